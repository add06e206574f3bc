"""Reads the topics into the fleet's state: one thread, places of its own, nothing committed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from flead.errors import Unavailable
from kafka.client import make_consumer
from kafka.connection import translated
from kafka.offsets import Offsets
from kafka.topics import ALERTS, DEAD_LETTERS, PREDICTIONS
from visualization.console.fleet import Fleet, Kind, Record

LOG = logging.getLogger(__name__)

KINDS: Mapping[str, Kind] = {
    PREDICTIONS: Kind.PREDICTION,
    ALERTS: Kind.ALERT,
    DEAD_LETTERS: Kind.DEAD_LETTER,
}
"""The topics that are read, and what their records say."""

LOOK_BACK_S, LOOK_BACK_RECORDS = 1_800, 20_000
"""A page is not empty after a restart: reading begins so long ago, and at most so many records of a topic."""
BATCH, WAIT_S = 1_000, 0.1
ANSWER_S, RETRY_S = 2.0, 2.0


class Feed(threading.Thread):
    """Reads until it is stopped, whatever happens to Kafka meanwhile.

    Parameters
    ----------
    clock:
        gives the present, Unix time, s
    """

    def __init__(self, fleet: Fleet, servers: str, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(name="console-feed", daemon=True)
        self.problem: str | None = None
        """Why nothing can be read; None where it can."""
        self._fleet = fleet
        self._servers = servers
        self._clock = clock
        self._stopping = threading.Event()
        self._places: dict[tuple[str, int], int] = {}
        self._lost: str | None = None  # librdkafka waits for a broker in silence, and says so only here

    def stop(self) -> None:
        """End after the batch at hand."""
        self._stopping.set()
        if self.is_alive():
            self.join(10.0)

    def run(self) -> None:
        """Read; go on after anything unforeseen."""
        while not self._stopping.is_set():
            try:
                self._read()
            except Unavailable as error:
                if str(error) != self.problem:
                    LOG.info("the console waits: %s", error)
                self.problem = str(error)
            except Exception as error:
                LOG.exception("the console's feed starts over")
                self.problem = str(error)
            self._stopping.wait(RETRY_S)

    def _read(self) -> None:
        self._lost = None
        offsets = Offsets(self._servers, limit_s=ANSWER_S)  # says soon where nobody answers
        ends = {topic: offsets.end(topic) for topic in KINDS}  # refuses where a topic is missing
        fetches: dict[str, Any] = {"fetch.wait.max.ms": 50, "error_cb": self._note}
        group = f"flead-console-{time.time_ns()}"
        with closing(make_consumer(self._servers, group, from_beginning=False, **fetches)) as consumer:
            consumer.assign(self._begin(consumer, ends))
            self.problem = None
            while not self._stopping.is_set():
                with translated("reading what flows", self._servers):
                    self._take(consumer.consume(BATCH, WAIT_S))
                if self._lost:
                    raise Unavailable(self._lost)

    def _note(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._lost = f"no Kafka broker answers at {self._servers}"

    def _begin(self, consumer: Consumer, ends: Mapping[str, Mapping[int, int]]) -> list[TopicPartition]:
        """Where each partition was left, else a little before its end."""
        since = int((self._clock() - LOOK_BACK_S) * 1000)
        asked = [TopicPartition(topic, partition, since) for topic, found in ends.items() for partition in found]
        with translated("asking where to begin", self._servers):
            found = consumer.offsets_for_times(asked, timeout=10.0)
        places = []
        for place in found:
            end = ends[place.topic][place.partition]
            most = LOOK_BACK_RECORDS // len(ends[place.topic])
            begin = max(end if place.offset < 0 else place.offset, end - most)
            left = self._places.get((place.topic, place.partition), -1)
            places.append(TopicPartition(place.topic, place.partition, left if begin <= left <= end else begin))
        return places

    def _take(self, messages: list[Message]) -> None:
        records = []
        for message in messages:
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            if message.error() is None and topic is not None and partition is not None and offset is not None:
                records.append(Record(KINDS[topic], message.value(), message.timestamp()[1] / 1000))
                self._places[topic, partition] = offset + 1
        self._fleet.take(records)
