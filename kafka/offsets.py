"""How far topics reach and how far consumer groups have come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]  # public, not in __all__

from flead.errors import Unavailable
from kafka.connection import REQUEST_TIMEOUT_S, make_admin, metadata, translated


class Offsets:
    """Asks a broker for offsets; keep one where it is asked again and again.

    Every method returns numbers by partition and raises `Unavailable` if the broker does not answer or the topic is
    missing.
    """

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self._client: AdminClient | None = None

    def beginning(self, topic: str) -> dict[int, int]:
        """Ask for the offset of each partition's oldest record."""
        return self._reached(topic, OffsetSpec.earliest())  # type: ignore[no-untyped-call]

    def end(self, topic: str) -> dict[int, int]:
        """Ask for the offset that each partition's next record will have."""
        return self._reached(topic, OffsetSpec.latest())  # type: ignore[no-untyped-call]

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Ask where a group will continue; partitions that it never committed are left out."""
        wanted = [TopicPartition(topic, number) for number in self.partitions(topic)]
        with self._asking(f"asking where {group} is") as admin:
            futures = admin.list_consumer_group_offsets(
                [ConsumerGroupTopicPartitions(group, wanted)], request_timeout=REQUEST_TIMEOUT_S
            )
            found = futures[group].result().topic_partitions
        return {item.partition: item.offset for item in found if item.offset >= 0}

    def lag(self, group: str, topic: str) -> dict[int, int]:
        """Count the records that a group has not consumed; where it never committed, all of them.

        Where the last entry is a transaction's end marker, a group that has read everything may show 1.
        """
        begin = self.beginning(topic) | self.committed(group, topic)
        return {number: max(0, end - begin[number]) for number, end in self.end(topic).items()}

    def partitions(self, topic: str) -> list[int]:
        """List the numbers of a topic's partitions."""
        with self._asking("asking for topics") as admin:
            known = metadata(admin, self.servers).topics
        if topic not in known:
            raise Unavailable(f"Kafka at {self.servers} has no topic {topic}: run ensure_topics (`flead up`)")
        return sorted(known[topic].partitions)

    @contextmanager
    def _asking(self, doing: str) -> Iterator[AdminClient]:
        """Give the client, a new one after a failure.

        librdkafka's does not find a group's coordinator again on a broker that has come back.
        """
        self._client = self._client or make_admin(self.servers)
        try:
            with translated(doing, self.servers):
                yield self._client
        except Unavailable:
            self._client = None
            raise

    def _reached(self, topic: str, spec: OffsetSpec) -> dict[int, int]:
        asked = {TopicPartition(topic, number): spec for number in self.partitions(topic)}
        with self._asking(f"asking for offsets of {topic}") as admin:
            futures = admin.list_offsets(asked, request_timeout=REQUEST_TIMEOUT_S)
            return {where.partition: future.result().offset for where, future in futures.items()}


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
