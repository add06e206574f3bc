"""The learning job: Kafka in, one learner per device, Kafka out. Submitted by `flink.submit`; see `build`.

::

    flead.readings ──► parse ──► key by device ──► learn ──► flead.predictions
                         │                          ▲  ├───► flead.local-updates   (exactly once, per checkpoint)
                         ▼                          │  └───► flead.alerts
                 flead.dead-letters      flead.global-model (broadcast)

With `partial_sums`, `flink.partial` stands before `flead.local-updates`.
"""

from __future__ import annotations

import argparse

from pyflink.common import Configuration
from pyflink.datastream import DataStream, StreamExecutionEnvironment
from pyflink.table import DataTypes, Schema, StreamTableEnvironment

from flink.functions import (
    ALERTS,
    DEAD_LETTERS,
    GLOBAL_MODELS,
    INCOMING,
    LOCAL_UPDATES,
    RECORD,
    Learn,
    ParseReadings,
)
from flink.job_config import JOB_NAME, JobConfig
from flink.partial import partial_sums


def configuration(config: JobConfig) -> Configuration:
    """The settings that make the job what it is, wherever it runs."""
    options = {
        "parallelism.default": config.parallelism,
        "python.execution-mode": config.execution_mode,
        "python.fn-execution.bundle.time": 20,
        "execution.buffer-timeout.interval": f"{config.buffer_timeout_ms} ms",
        "execution.checkpointing.interval": f"{config.checkpoint_interval_ms} ms",
        "execution.checkpointing.dir": config.checkpoints,
        "execution.checkpointing.externalized-checkpoint-retention": "RETAIN_ON_CANCELLATION",
        "execution.checkpointing.tolerable-failed-checkpoints": 10,
        "state.backend.type": config.state_backend,
        "restart-strategy.type": "failure-rate",
        "restart-strategy.failure-rate.max-failures-per-interval": config.max_restarts,
        "restart-strategy.failure-rate.failure-rate-interval": "10 min",
        "restart-strategy.failure-rate.delay": "1 s",
    }
    flink = Configuration()
    for key, value in options.items():
        flink.set_string(key, str(value))
    return flink


def build(config: JobConfig) -> StreamExecutionEnvironment:
    """Put the job together."""
    env = StreamExecutionEnvironment.get_execution_environment(configuration(config))
    tables = StreamTableEnvironment.create(env)

    models = _source(tables, config, config.topics.global_model, "earliest-offset", "k, v, p, o")
    readings = _source(tables, config, config.topics.readings, "group-offsets", f"k, v, p, o, {_MILLISECONDS}")
    parsed = readings.process(ParseReadings(config), INCOMING).name("parse").uid("parse")
    learned = (
        parsed.key_by(lambda row: row[0], key_type=INCOMING.get_field_types()[0])
        .connect(models.broadcast(GLOBAL_MODELS))
        .process(Learn(config), RECORD)
        .name("learn")
        .uid("learn")
    )
    bad = parsed.get_side_output(DEAD_LETTERS).union(learned.get_side_output(DEAD_LETTERS))
    updates = learned.get_side_output(LOCAL_UPDATES)
    if config.partial_sums:
        updates = partial_sums(updates, config.partial_sums, config.partial_every_s)
    statements = tables.create_statement_set()
    for topic, stream, guarantee in (
        (config.topics.predictions, learned, "at-least-once"),
        (config.topics.alerts, learned.get_side_output(ALERTS), "at-least-once"),
        (config.topics.dead_letters, bad, "at-least-once"),
        # An update counts once: it becomes visible with the checkpoint that holds the learner that sent it.
        (config.topics.local_updates, updates, "exactly-once"),
    ):
        _add_sink(tables, statements, config, topic, stream, guarantee)
    statements.attach_as_datastream()
    if config.readings_id:
        _tie_to_kafka(env, config.readings_id)
    return env


def _tie_to_kafka(env: StreamExecutionEnvironment, readings_id: str) -> None:
    """Put this Kafka's mark into the uids of sources and sinks, under which their state is found again.

    Offsets mean nothing to another Kafka, and a transaction that it does not know fails the restore, each time anew
    (InvalidPidMappingException).
    """
    waiting = list(env._j_stream_execution_environment.getTransformations())
    while waiting:
        node = waiting.pop()
        if node.getClass().getSimpleName() in ("SourceTransformation", "SinkTransformation"):
            name, _, _ = node.getName().partition("[")  # behind it stands a number that other tables would change
            node.setUid(f"{name} of {readings_id}")
        waiting.extend(node.getInputs())


_MILLISECONDS = "EXTRACT(EPOCH FROM t) * 1000 + EXTRACT(MILLISECOND FROM t)"


def _source(tables: StreamTableEnvironment, config: JobConfig, topic: str, start: str, columns: str) -> DataStream:
    """A topic as rows of value, partition, offset and time: raw bytes, so that nothing can fail before `parse`."""
    tables.execute_sql(f"""
        CREATE TEMPORARY TABLE `from {topic}` (
            k BYTES, v BYTES, p INT METADATA FROM 'partition' VIRTUAL, o BIGINT METADATA FROM 'offset' VIRTUAL,
            t TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL
        ) WITH (
            'connector' = 'kafka', 'topic' = '{topic}', 'key.format' = 'raw', 'key.fields' = 'k',
            'value.format' = 'raw', 'value.fields-include' = 'EXCEPT_KEY', 'scan.startup.mode' = '{start}',
            'properties.bootstrap.servers' = '{config.bootstrap_servers}', 'properties.group.id' = '{config.group}',
            'properties.auto.offset.reset' = 'earliest', 'properties.client.id.prefix' = '{config.group}-{topic}'
        )""")
    return tables.to_data_stream(tables.sql_query(f"SELECT {columns} FROM `from {topic}`"))  # noqa: S608


def _add_sink(
    tables: StreamTableEnvironment,
    statements: object,
    config: JobConfig,
    topic: str,
    stream: DataStream,
    guarantee: str,
) -> None:
    """Write keyed records to a topic, by the same key hash that every Kafka client uses."""
    transactions = f"'sink.transactional-id-prefix' = '{config.group}-{topic}'," if guarantee == "exactly-once" else ""
    tables.execute_sql(f"""
        CREATE TEMPORARY TABLE `to {topic}` (k BYTES, v BYTES) WITH (
            'connector' = 'kafka', 'topic' = '{topic}', 'properties.bootstrap.servers' = '{config.bootstrap_servers}',
            'key.format' = 'raw', 'key.fields' = 'k', 'value.format' = 'raw', 'value.fields-include' = 'EXCEPT_KEY',
            'sink.delivery-guarantee' = '{guarantee}', {transactions}
            'properties.linger.ms' = '10', 'properties.batch.size' = '131072',
            'properties.transaction.timeout.ms' = '600000', 'properties.compression.type' = 'lz4',
            'properties.max.request.size' = '4194304'
        )""")
    schema = Schema.new_builder().column("k", DataTypes.BYTES()).column("v", DataTypes.BYTES()).build()
    statements.add_insert(f"`to {topic}`", tables.from_data_stream(stream, schema))  # type: ignore[attr-defined]


def main() -> None:
    """Entry point on the cluster's client."""
    parser = argparse.ArgumentParser(description="FLEAD's learning job")
    parser.add_argument("--config", required=True, help="flink.job_config.JobConfig as JSON")
    arguments = parser.parse_args()
    build(JobConfig.model_validate_json(arguments.config)).execute(JOB_NAME)


if __name__ == "__main__":
    main()
