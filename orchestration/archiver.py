"""Stores what flows in MongoDB: readings, predictions, alerts and dead letters, each thing once.

Offsets are committed after the documents are stored, and a document's `_id` comes from its content: killed at any
moment, it leaves every record stored exactly once.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Message

from flead.errors import BadReading, Unavailable
from flead.messages import ReadingLimits, parse_reading
from kafka.client import make_consumer
from kafka.offsets import positions
from kafka.topics import ALERTS, DEAD_LETTERS, PREDICTIONS, READINGS
from storage.archive import ArchiveRepository, Stored

log = logging.getLogger(__name__)

GROUP = "flead-archive"
BATCH = 2_000
_LARGE_FETCHES: dict[str, Any] = {"fetch.min.bytes": 262_144, "fetch.wait.max.ms": 500}
TOPICS = (READINGS, PREDICTIONS, ALERTS, DEAD_LETTERS)


def archive(servers: str, repository: ArchiveRepository, limits: ReadingLimits, stopping: Callable[[], bool]) -> None:
    """Consume and store until `stopping`; while MongoDB or Kafka is away, wait and lose nothing."""
    # Few large fetches: what is stored half a second later harms nobody, and the broker has a stream to serve.
    consumer = make_consumer(servers, GROUP, **_LARGE_FETCHES)
    try:
        consumer.subscribe(list(TOPICS))
        while not stopping():
            messages = [message for message in consumer.consume(BATCH, 0.5) if message.error() is None]
            if messages and _store_until_done(messages, repository, limits, stopping):
                consumer.commit(offsets=positions(messages), asynchronous=False)
    finally:
        consumer.close()


def _store_until_done(
    messages: list[Message], repository: ArchiveRepository, limits: ReadingLimits, stopping: Callable[[], bool]
) -> bool:
    """Store a batch; False where it is time to stop before MongoDB came back."""
    values = _by_topic(messages)
    while not stopping():
        try:
            for topic, outcome in _store(values, repository, limits):
                for refused in outcome.refused:
                    log.warning("a record of %s cannot be stored: %s", topic, refused.why)
        except Unavailable as error:
            log.warning("waiting for MongoDB: %s", error)
            time.sleep(0.5)
        else:
            return True
    return False


def _store(
    values: dict[str, list[bytes]], repository: ArchiveRepository, limits: ReadingLimits
) -> Iterator[tuple[str, Stored]]:
    yield READINGS, repository.add_readings(_valid(values[READINGS], limits))
    yield PREDICTIONS, repository.add_predictions(values[PREDICTIONS])
    yield ALERTS, repository.add_alerts(values[ALERTS])
    yield DEAD_LETTERS, repository.add_dead_letters(values[DEAD_LETTERS])


def _valid(values: Iterable[bytes], limits: ReadingLimits) -> Iterator[dict[str, Any]]:
    """Readings only: the learning job sends the others to the dead letters."""
    now = datetime.now(UTC)
    for value in values:
        try:
            yield parse_reading(value, now=now, limits=limits).model_dump()
        except BadReading:
            continue


def _by_topic(messages: Iterable[Message]) -> dict[str, list[bytes]]:
    values: dict[str, list[bytes]] = defaultdict(list)
    for message in messages:
        topic, value = message.topic(), message.value()
        if topic is not None and value is not None:
            values[topic].append(value)
    return values
