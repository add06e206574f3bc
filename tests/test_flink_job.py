"""What the job is made of, as Flink sees it: under which names its operators find their state again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from config.settings import PROJECT
from orchestration.java import find_java_home

JARS = PROJECT / ".jvm" / "jars" / "flink"
PRINT_UIDS = """
import sys
from flink import job
from flink.job_config import JobConfig, Topics

configuration = job.configuration
def with_connector(config):
    flink = configuration(config)
    flink.set_string("pipeline.jars", f"file://{sys.argv[1]}")
    return flink
job.configuration = with_connector

names = {name: name for name in Topics.model_fields}
told = JobConfig(bootstrap_servers="x:1", readings_id="K", topics=Topics(**names), checkpoints="file:///tmp")
made = job.build(told)._j_stream_execution_environment.getStreamGraph(False).getJobGraph()
for vertex in made.getVerticesAsArray():
    for place in range(vertex.getOperatorIDs().size()):
        print("uid:", vertex.getOperatorIDs().get(place).getUserDefinedOperatorUid() or "")
"""


@pytest.mark.servers
def test_state_that_speaks_of_kafka_is_kept_under_the_mark_of_its_kafka_and_the_learners_is_not() -> None:
    connector = next(JARS.glob("flink-sql-connector-kafka-*.jar"), None)
    if connector is None:
        pytest.skip(f"no Kafka connector in {JARS}: orchestration/run_all.sh fetches it")
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", PRINT_UIDS, str(connector)],
        cwd=PROJECT, env={**os.environ, "JAVA_HOME": str(find_java_home())},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    uids = {line.removeprefix("uid:").strip() for line in done.stdout.splitlines() if line.startswith("uid:")} - {""}
    sources = {f"from {topic} of K" for topic in ("readings", "global_model")}
    sinks = {f"to {topic} of K" for topic in ("predictions", "alerts", "dead_letters", "local_updates")}
    committers = {f"Sink Committer: {sink}" for sink in sinks}
    assert uids == {"parse", "learn"} | sources | sinks | committers, done.stderr[-2_000:]
