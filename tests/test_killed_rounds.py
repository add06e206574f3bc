"""Killed at any moment of a round, the server loses no round, doubles none, and publishes none by halves."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import orjson
import pytest

from config.settings import PROJECT
from flead.messages import GlobalModel, Stage
from flead.signatures import check
from kafka.topics import GLOBAL_MODEL
from tests.fixtures_storage import Mongo
from tests.killed_rounds import DEVICES, KEY, WAVES
from tests.test_run import read

pytestmark = pytest.mark.servers
POINTS = 20


def test_killed_at_twenty_moments_everything_counts_once(mongo: Mongo, kafka_servers: str) -> None:
    uri = mongo.settings.address.get_secret_value()
    command = [sys.executable, "-m", "tests.killed_rounds", uri, mongo.settings.database, kafka_servers, str(POINTS)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, timeout=200, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr.decode()[-2_000:]
    said = orjson.loads(done.stdout)
    assert said["moments"] > 2 * POINTS
    assert len(said["killed"]) == POINTS
    records = [(key, model) for key, model in read(kafka_servers, GLOBAL_MODEL) if key and key.startswith(b"killed-")]
    for cohort in ("killed-never", *said["killed"]):
        everything_counts_once(mongo, cohort)
        what_went_out_is_what_is_stored(mongo, cohort, [GlobalModel.model_validate(m) for _, m in records])


def everything_counts_once(mongo: Mongo, cohort: str) -> None:
    rounds = list(mongo.database.global_model.find({"cohort": cohort}).sort("round", 1))
    assert [r["round"] for r in rounds] == list(range(1, len(rounds) + 1))
    assert len(rounds) == WAVES if cohort == "killed-never" else len(rounds) >= WAVES - 1
    updates = list(mongo.database.local_models.find({"cohort": cohort}, {"device_id": 1, "round": 1}))
    assert len(updates) == DEVICES * WAVES
    found = Counter((update["round"], update["device_id"]) for update in updates)
    said = {(r["round"], d["device_id"]): d["updates"] for r in rounds for d in r["devices"]}
    assert said == {place: count for place, count in found.items() if place[0] <= len(rounds)}
    waiting = sum(count for place, count in found.items() if place[0] > len(rounds))
    assert max(place[0] for place in found) <= len(rounds) + 1
    assert sum(r["total_samples"] for r in rounds) == 100 * (DEVICES * WAVES - waiting)


def what_went_out_is_what_is_stored(mongo: Mongo, cohort: str, models: list[GlobalModel]) -> None:
    mine = [model for model in models if model.cohort == cohort]
    stored: dict[int, dict[str, Any]] = {
        r["round"]: r for r in mongo.database.global_model.find({"cohort": cohort, "published_at": {"$ne": None}})
    }
    assert {model.version for model in mine} == set(stored)
    for model in mine:
        check(model, [KEY.public_key()])
        assert model.weights.model_dump() == stored[model.version]["weights"]
    stable = [model.version for model in mine if model.stage is Stage.STABLE]
    assert stable == sorted(stable)
    assert stable[-1] == max(version for version, one in stored.items() if one["stage"] == "stable")
