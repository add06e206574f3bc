from __future__ import annotations

from datetime import UTC, datetime

import pytest

from orchestration.status import Status
from orchestration.watching import sample_of
from storage.documents import PipelineSample
from storage.samples import SampleRepository
from tests.fixtures_storage import Mongo

NOW = datetime(2024, 1, 1, 12, tzinfo=UTC)


def looked_at(**fields: object) -> PipelineSample:
    status = Status(state="running", updated="", run_dir="run")
    for name, value in fields.items():
        setattr(status, name, value)
    return sample_of(status, "the run", NOW)


def test_a_sample_counts_from_the_beginning_of_its_run() -> None:
    sample = looked_at(counts={"readings": 7, "rounds": 100, "rounds_this_run": 2}, lag={"flead.readings": 3})
    assert (sample.readings, sample.rounds, sample.dead_letters, sample.lag) == (7, 2, 0, {"flead.readings": 3})


def test_a_service_that_has_not_been_started_yet_is_not_down() -> None:
    states = ["running", "finished", "stopped", "starting", "backoff", "fatal"]
    services = {state: {"state": state} for state in states}
    assert looked_at(services=services).services_down == 2


def test_the_error_is_that_of_the_newest_minute_there_is() -> None:
    assert looked_at(error={"first_minute": 0.5, "last_minute": None}).error == 0.5
    assert looked_at(error={"first_minute": 0.5, "last_minute": 0.0}).error == 0.0
    assert looked_at().error is None


@pytest.mark.servers
def test_a_sample_is_kept_once(mongo: Mongo) -> None:
    for _ in range(2):
        SampleRepository(mongo.database).add(looked_at(latency_ms={"p50": 12.0, "p99": None}))
    found = list(mongo.database.pipeline_samples.find())
    assert [(one["_id"], one["latency_p50_ms"], one["timestamp"]) for one in found] == [
        ("the run@2024-01-01T12:00:00+00:00", 12.0, NOW)
    ]
