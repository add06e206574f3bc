"""Every topic: its name, and the one declaration of its partitions, retention and settings.

Records are keyed by device, the global model by cohort. Readings keep the time at which they were sent (CreateTime);
what is computed from them gets the time at which the broker stored it (LogAppendTime), so the latency of a prediction
is the difference of the two.

Readings are kept by size and not by age: a producer may stamp them with their event time, and what was measured in
2004 would be older than any age.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but not declared in __all__
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
    TopicMetadata,
)

from config.settings import KafkaSettings
from flead.errors import Unavailable
from kafka.connection import REQUEST_TIMEOUT_S, make_admin, metadata, translated

LOG = logging.getLogger(__name__)

READINGS = "flead.readings"
PREDICTIONS = "flead.predictions"
LOCAL_UPDATES = "flead.local-updates"
GLOBAL_MODEL = "flead.global-model"
ALERTS = "flead.alerts"
DEAD_LETTERS = "flead.dead-letters"

ARCHIVED = (READINGS, PREDICTIONS, ALERTS, DEAD_LETTERS)
"""What MongoDB keeps of what flows."""
ARCHIVE_GROUP = "flead-archive"
"""The consumer group that shows how far storing has come, whoever stores."""

MIB = 1_048_576
DAY_MS = 86_400_000

MAX_DEAD_LETTER = 4 * MIB
"""Bytes of one dead letter: `flead.messages.MAX_PAYLOAD` in base64, and room for where it came from."""


@dataclass(frozen=True, slots=True)
class Topic:
    """How a topic should be."""

    name: str
    partitions: int
    replication: int
    config: dict[str, str]


@dataclass(slots=True)
class TopicChanges:
    """What `ensure_topics` did. False when there was nothing to do.

    >>> bool(TopicChanges())
    False
    """

    created: list[str] = field(default_factory=list)
    altered: dict[str, dict[str, str]] = field(default_factory=dict)
    grown: dict[str, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.created or self.altered or self.grown)


_ON_ARRIVAL = {"message.timestamp.type": "LogAppendTime"}


def declared_topics(settings: KafkaSettings) -> tuple[Topic, ...]:
    """Every topic as it should be.

    >>> [topic.name for topic in declared_topics(KafkaSettings()) if topic.partitions == 1]
    ['flead.global-model']
    """

    def keyed(name: str, *, days: int, **config: str) -> Topic:
        return _topic(name, settings.partitions, settings, _kept(days) | config)

    return (
        keyed(READINGS, days=0),
        keyed(PREDICTIONS, days=7, **_ON_ARRIVAL),
        keyed(LOCAL_UPDATES, days=7, **_ON_ARRIVAL),
        _topic(GLOBAL_MODEL, 1, settings, _LATEST_PER_KEY),
        keyed(ALERTS, days=30, **_ON_ARRIVAL),
        keyed(DEAD_LETTERS, days=30, **_ON_ARRIVAL, **{"max.message.bytes": str(MAX_DEAD_LETTER)}),
    )


_LATEST_PER_KEY = {
    "cleanup.policy": "compact",
    # Only a closed segment is compacted, and only when a tenth of the log is superseded.
    "segment.ms": str(3_600_000),
    "min.cleanable.dirty.ratio": "0.1",
}


def _kept(days: int) -> dict[str, str]:
    """Keep records for so many days (0: of any age), and at most 1 GiB of each partition."""
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(days * DAY_MS or -1),
        "retention.bytes": str(1024 * MIB),
        "segment.bytes": str(128 * MIB),
    }


def _topic(name: str, partitions: int, settings: KafkaSettings, config: dict[str, str]) -> Topic:
    # Of three copies two must have a record before it is acknowledged: one broker may be down, none may lose it.
    in_sync = max(1, min(2, settings.replication - 1))
    timestamps = {"message.timestamp.type": "CreateTime"}
    return Topic(name, partitions, settings.replication, timestamps | config | {"min.insync.replicas": str(in_sync)})


def ensure_topics(servers: str, settings: KafkaSettings, *, timeout_s: float = 30.0) -> TopicChanges:
    """Make the topics as they are declared, and return when all of them can be written to.

    Missing topics are created, differing settings altered, partitions added. Partitions are never taken away, since
    Kafka cannot; copies of an existing topic stay as many as they are. Added partitions move devices: readings of one
    device before and after lie in different ones.

    Raises
    ------
    Unavailable
        if the broker does not answer or refuses (fewer brokers than copies)
    """
    admin = make_admin(servers)
    wanted = declared_topics(settings)
    existing = metadata(admin, servers, timeout_s=min(timeout_s, REQUEST_TIMEOUT_S)).topics
    changes = TopicChanges()
    with translated("making topics", servers):
        missing = [topic for topic in wanted if topic.name not in existing]
        changes.created = _create(admin, missing)
        present = [topic for topic in wanted if topic.name not in changes.created]
        changes.altered = _alter(admin, present)
        changes.grown = _grow(admin, present, existing)
    _wait_for_leaders(admin, servers, wanted, timeout_s)
    return changes


def topic_id(servers: str, topic: str) -> str:
    """Ask for the id that Kafka gave to a topic when it was made; made anew, it has another.

    Raises
    ------
    Unavailable
        if the broker does not answer or the topic is missing
    """
    admin = make_admin(servers)  # has to live until it has answered
    with translated("asking for a topic's id", servers):
        asked = admin.describe_topics(TopicCollection([topic]), request_timeout=REQUEST_TIMEOUT_S)
        return str(asked[topic].result().topic_id)


def _create(admin: AdminClient, topics: list[Topic]) -> list[str]:
    """Create topics; returns the names of those that nobody else created meanwhile."""
    if not topics:
        return []
    new = [NewTopic(t.name, t.partitions, t.replication, config=t.config) for t in topics]
    created = []
    for name, future in admin.create_topics(new, operation_timeout=REQUEST_TIMEOUT_S).items():
        try:
            future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise
        else:
            created.append(name)
    return created


def _alter(admin: AdminClient, topics: list[Topic]) -> dict[str, dict[str, str]]:
    """Set what differs from the declaration; returns it by topic."""
    if not topics:
        return {}
    resources = {ConfigResource(ResourceType.TOPIC, topic.name): topic for topic in topics}
    differing: dict[str, dict[str, str]] = {}
    for resource, future in admin.describe_configs(list(resources)).items():
        actual: dict[str, ConfigEntry] = future.result()
        topic = resources[resource]
        differs = {name: value for name, value in topic.config.items() if actual[name].value != value}
        if differs:
            differing[topic.name] = differs
    if differing:
        _finish(admin.incremental_alter_configs([_alteration(*item) for item in differing.items()]).values())
    return differing


def _alteration(topic: str, values: dict[str, str]) -> ConfigResource:
    entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in values.items()]
    return ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)


def _grow(admin: AdminClient, topics: list[Topic], existing: dict[str, TopicMetadata]) -> dict[str, int]:
    """Add partitions where there are fewer than declared; returns the new number by topic."""
    actual = {name: len(topic.partitions) for name, topic in existing.items()}
    grown = {t.name: t.partitions for t in topics if actual.get(t.name, t.partitions) < t.partitions}
    if grown:
        _finish(admin.create_partitions([NewPartitions(name, count) for name, count in grown.items()]).values())
        LOG.warning("partitions added, devices may move to another one: %s", grown)
    return grown


def _finish(futures: Iterable[Future[Any]]) -> None:
    for future in futures:
        future.result()


def _wait_for_leaders(admin: AdminClient, servers: str, topics: tuple[Topic, ...], timeout_s: float) -> None:
    """Wait until every partition of every topic has a leader: a topic is created before it can be written to."""
    deadline = time.monotonic() + timeout_s
    while True:
        known = metadata(admin, servers).topics
        lacking = [topic.name for topic in topics if not _has_leaders(known.get(topic.name), topic.partitions)]
        if not lacking:
            return
        if time.monotonic() > deadline:
            raise Unavailable(
                f"Kafka at {servers}: no leader for {', '.join(lacking)} after {timeout_s:g} s: see its log"
            )
        time.sleep(0.02)


def _has_leaders(topic: TopicMetadata | None, partitions: int) -> bool:
    if topic is None or len(topic.partitions) < partitions:
        return False
    return all(partition.leader >= 0 for partition in topic.partitions.values())
