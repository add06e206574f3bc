"""How far topics reach and how far consumer groups have come."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition

from flead.errors import Unavailable
from kafka.client import make_consumer
from kafka.connection import REQUEST_TIMEOUT_S, translated

_SETTLING = {
    KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE,
}  # fmt: skip
_NO_GROUP = "flead-offsets"
"""Asks where topics begin and end: it joins nothing and commits nothing."""


class Offsets:
    """Asks a broker for offsets; keep one where it is asked again and again.

    Every method returns numbers by partition and raises `Unavailable` if the broker does not answer or the topic is
    missing.

    It asks as consumers do. librdkafka's client for administrators ends the whole process, by an assertion, where a
    broker goes away while it is asked about a group (confluentinc/librdkafka, issues 3663 and 4605).

    Parameters
    ----------
    limit_s:
        how long a broker may take to answer, s
    """

    def __init__(self, servers: str, limit_s: float = REQUEST_TIMEOUT_S) -> None:
        self.servers = servers
        self._limit_s = limit_s
        self._consumers: dict[str, Consumer] = {}

    def beginning(self, topic: str) -> dict[int, int]:
        """Ask for the offset of each partition's oldest record."""
        return self._reached(topic, OFFSET_BEGINNING)

    def end(self, topic: str) -> dict[int, int]:
        """Ask for the offset that each partition's next record will have."""
        return self._reached(topic, OFFSET_END)

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Ask where a group will continue; partitions that it never committed are left out."""
        wanted = [TopicPartition(topic, number) for number in self.partitions(topic)]
        with self._asking(f"asking where {group} is", group) as consumer:
            found = self._settled(consumer, wanted)
        return {item.partition: item.offset for item in found if item.offset >= 0}

    def lag(self, group: str, topic: str) -> dict[int, int]:
        """Count the records that a group has not consumed; where it never committed, all of them.

        All of them too where its offset lies outside of what the topic holds (old records were deleted, or the topic
        was made anew): our groups then begin at the oldest record. Where the last entry is a transaction's end marker,
        a group that has read everything may show 1.
        """
        begin, committed = self.beginning(topic), self.committed(group, topic)
        return {
            number: end - next_offset(begin[number], committed.get(number), end)
            for number, end in self.end(topic).items()
        }

    def partitions(self, topic: str) -> list[int]:
        """List the numbers of a topic's partitions."""
        with self._asking("asking for topics") as consumer:
            known = consumer.list_topics(timeout=self._limit_s).topics
        if topic not in known:
            raise Unavailable(f"Kafka at {self.servers} has no topic {topic}: run ensure_topics (`flead up`)")
        return sorted(known[topic].partitions)

    def _settled(self, consumer: Consumer, wanted: list[TopicPartition]) -> list[TopicPartition]:
        """Ask what is committed, again where the broker has yet to read what its groups committed: it just started."""
        deadline = time.monotonic() + self._limit_s
        while True:
            try:
                return _checked(consumer.committed(wanted, timeout=self._limit_s))
            except KafkaException as error:
                if error.args[0].code() not in _SETTLING or time.monotonic() >= deadline:
                    raise
            time.sleep(0.05)

    @contextmanager
    def _asking(self, doing: str, group: str = _NO_GROUP) -> Iterator[Consumer]:
        """Give the one that asks for a group, a new one after a failure."""
        if group not in self._consumers:
            self._consumers[group] = make_consumer(self.servers, group, read_committed=False)
        try:
            with translated(doing, self.servers):
                yield self._consumers[group]
        except Unavailable:
            self._consumers.pop(group).close()
            raise

    def _reached(self, topic: str, where: int) -> dict[int, int]:
        asked = [TopicPartition(topic, number, where) for number in self.partitions(topic)]
        with self._asking(f"asking for offsets of {topic}") as consumer:
            found = _checked(consumer.offsets_for_times(asked, timeout=self._limit_s))
        return {item.partition: item.offset for item in found}


def _checked(found: list[TopicPartition]) -> list[TopicPartition]:
    for item in found:
        if item.error is not None:
            raise KafkaException(item.error)
    return found


def next_offset(begin: int, committed: int | None, end: int) -> int:
    """Where a group that resets to the oldest record goes on in a partition.

    >>> next_offset(10, 15, 20), next_offset(10, None, 20), next_offset(10, 5, 20), next_offset(10, 25, 20)
    (15, 10, 10, 10)
    """
    return begin if committed is None or not begin <= committed <= end else committed


def positions(messages: Iterable[Message]) -> list[TopicPartition]:
    """Where to go on after these messages, by partition.

    The end of a partition (`partition_eof`) lies behind the marks of transactions too: committing it makes the lag 0.
    """
    after: dict[tuple[str, int], int] = {}
    for message in messages:
        error = message.error()
        topic, partition, offset = message.topic(), message.partition(), message.offset()
        if topic is None or partition is None or offset is None or offset < 0:
            continue
        if error is None:
            after[topic, partition] = offset + 1
        elif error.code() == KafkaError._PARTITION_EOF:
            after[topic, partition] = offset
    return [TopicPartition(topic, partition, offset) for (topic, partition), offset in after.items()]
