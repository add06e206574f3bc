"""The stream's beginning: Kafka's topics as Structured Streaming reads them, and where their reading has come to."""

from __future__ import annotations

import logging

import orjson
from confluent_kafka import Consumer, KafkaException, TopicPartition
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.listener import StreamingQueryProgress
from pyspark.sql.streaming.query import StreamingQuery

from kafka.client import make_consumer

log = logging.getLogger(__name__)


def kafka_stream(spark: SparkSession, servers: str, topics: tuple[str, ...], most: int) -> DataFrame:
    """Records of topics from their beginning, or from the query's checkpoint.

    Parameters
    ----------
    most:
        records of a micro-batch: a backlog is worked off in pieces that fit in memory
    """
    return (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", servers)
        .option("subscribe", ",".join(topics))
        .option("startingOffsets", "earliest")
        .option("maxOffsetsPerTrigger", most)
        .option("failOnDataLoss", "false")  # what Kafka has deleted is gone: the rest still counts
        .option("kafka.isolation.level", "read_committed")  # nothing that the learning job may yet take back
        .option("kafka.default.api.timeout.ms", "20000")
        .option("kafka.request.timeout.ms", "15000")
        .load()
    )


class Committer:
    """Commits how far a query has come to a consumer group, so that Kafka's own tools show the lag.

    Spark goes on from its checkpoint; nobody reads from these offsets.
    """

    def __init__(self, servers: str, group: str) -> None:
        self._consumer: Consumer = make_consumer(servers, group)
        self._done: dict[tuple[str, int], int] = {}

    def commit(self, query: StreamingQuery) -> None:
        """Commit the end of a query's last micro-batch; a broker that is away is told the next time."""
        progress = query.lastProgress
        reached = ends(progress.json) if isinstance(progress, StreamingQueryProgress) else {}
        new = {place: offset for place, offset in reached.items() if self._done.get(place) != offset}
        if not new:
            return
        offsets = [TopicPartition(topic, partition, offset) for (topic, partition), offset in new.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException as error:
            log.info("offsets were not committed: %s", error)
            return
        self._done |= new

    def close(self) -> None:
        """Leave Kafka."""
        self._consumer.close()


def ends(progress: str) -> dict[tuple[str, int], int]:
    """Where a query's last micro-batch ended, from its progress as JSON: by topic and partition.

    >>> ends('{"sources": [{"endOffset": {"flead.alerts": {"0": 7}}}]}')
    {('flead.alerts', 0): 7}
    """
    found: dict[tuple[str, int], int] = {}
    for source in orjson.loads(progress)["sources"]:
        for topic, partitions in (source.get("endOffset") or {}).items():
            found |= {(topic, int(partition)): offset for partition, offset in partitions.items()}
    return found
