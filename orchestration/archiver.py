"""Stores what flows in MongoDB: readings, predictions, alerts and dead letters, each thing once.

Offsets are committed after the documents are stored, and a document's `_id` comes from its content: killed at any
moment, it leaves every record stored exactly once.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from confluent_kafka import Message

from flead.errors import Unavailable
from flead.messages import ReadingLimits
from kafka.client import make_consumer
from kafka.offsets import positions
from kafka.topics import ALERTS, ARCHIVE_GROUP, ARCHIVED, DEAD_LETTERS, PREDICTIONS, READINGS
from storage.archive import ArchiveRepository, Stored, valid_readings

log = logging.getLogger(__name__)

BATCH = 2_000
_LARGE_FETCHES: dict[str, Any] = {"fetch.min.bytes": 262_144, "fetch.wait.max.ms": 500}


def archive(servers: str, repository: ArchiveRepository, limits: ReadingLimits, stopping: Callable[[], bool]) -> None:
    """Consume and store until `stopping`; while MongoDB or Kafka is away, wait and lose nothing."""
    # Few large fetches: what is stored half a second later harms nobody, and the broker has a stream to serve.
    consumer = make_consumer(servers, ARCHIVE_GROUP, **_LARGE_FETCHES)
    try:
        consumer.subscribe(list(ARCHIVED))
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
    yield READINGS, repository.add_readings(valid_readings(values[READINGS], limits))
    yield PREDICTIONS, repository.add_predictions(values[PREDICTIONS])
    yield ALERTS, repository.add_alerts(values[ALERTS])
    yield DEAD_LETTERS, repository.add_dead_letters(values[DEAD_LETTERS])


def _by_topic(messages: Iterable[Message]) -> dict[str, list[bytes]]:
    values: dict[str, list[bytes]] = defaultdict(list)
    for message in messages:
        topic, value = message.topic(), message.value()
        if topic is not None and value is not None:
            values[topic].append(value)
    return values
