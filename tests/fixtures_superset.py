"""A real Superset for the tests, set up once and served as `flead up` does, over the tests' PostgreSQL."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from pymongo.database import Database

from config.child import ends_with_parent, free_port, stop
from config.settings import DashboardSettings, MongoSettings, Settings
from flead.errors import Unavailable
from storage.connection import Document, connect, open_database
from storage.embedded import Mongod
from storage.schema import apply_schema
from tests.fixtures_mart import NOON, Mart, following
from tests.fixtures_storage import wait_until
from visualization.mart.connection import connect as connect_mart
from visualization.mart.lag import lag_of
from visualization.mart.schema import drop
from visualization.superset import service
from visualization.superset.check import Answers, ask_all
from visualization.superset.client import Superset

Held = Database[Document]


@dataclass(frozen=True)
class Served:
    """A Superset that answers."""

    settings: Settings
    pid: int
    log: Path
    shown: list[str] = field(default_factory=list)
    """What its set-up showed to people."""

    @property
    def url(self) -> str:
        return self.settings.dashboards.url

    def as_admin(self) -> Superset:
        return Superset(self.url, service.ADMIN, service.admin_password(self.settings))

    def ask_all(self) -> dict[tuple[str, str], Answers]:
        """The answers of every chart, by dashboard and title; none may be an error."""
        with self.as_admin() as superset:
            asked = list(ask_all(superset))
        assert [(one.dashboard, one.chart, one.error) for one in asked if one.error] == []
        return {(one.dashboard, one.chart): one.answers for one in asked}


FLEET = {f"mote-{number}": ("humidity+temperature" if number < 4 else "light+temperature") for number in range(1, 7)}
FIRST, FIRST_SENSOR = "mote-1", "humidity"
POSITIONS = {device: (number * 4.5, 20.0 - number) for number, device in enumerate(FLEET) if device != "mote-6"}
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


def documents() -> Iterator[tuple[str, Document]]:
    """Four hours of a fleet in which something of everything happens."""
    draw = random.Random(7)  # noqa: S311
    for device, cohort in FLEET.items():
        for minute in range(0, 240 if device != "mote-3" else 150, 2):
            yield from _reading(draw, device, cohort, NOON + minute * MINUTE)
        for hour in range(4):
            yield "window_aggregates", _window(draw, device, cohort, NOON + hour * HOUR)
            yield "window_aggregates", _window(draw, device, cohort, NOON + hour * HOUR, "1m")
    for cohort in sorted(set(FLEET.values())):
        yield from _federation(draw, cohort)
    for number, (device, cohort) in enumerate(FLEET.items()):
        yield "device_trust", {
            "_id": device, "device_id": device, "cohort": cohort, "good": 0.5 * number, "bad": 2.0,
            "state": ("trusted", "quarantined", "rejected")[number % 3], "reason": "far from the others",
            "changed_at": NOON + number * MINUTE, "decided_by": "ada" if number % 2 else None,
        }  # fmt: skip
    for number in range(9):
        yield "dead_letters", {
            "_id": f"flead.readings/0/{number}", "reason": draw.choice(["not_json", "bad_time"]), "detail": "no",
            "source": {"topic": "flead.readings", "partition": 0, "offset": number}, "timestamp": NOON + number * HOUR,
        }  # fmt: skip
    for run in ("r1", "r2"):
        yield from _looks(draw, run, NOON if run == "r1" else NOON + HOUR)


def _reading(draw: random.Random, device: str, cohort: str, at: datetime) -> Iterator[tuple[str, Document]]:
    key = f"{device}@{at.isoformat()}"
    observed = {sensor: draw.uniform(10, 30) for sensor in cohort.split("+")}
    is_anomaly = draw.random() < 0.1
    kind, sensor = draw.choice(["spike", "stuck", None]), draw.choice([*observed, None])
    prediction = {
        "_id": key, "device_id": device, "timestamp": at, "cohort": cohort, "observed": observed,
        "expected": {name: value + draw.uniform(-1, 1) for name, value in observed.items()}, "forecast": observed,
        "error": draw.random() if at > NOON else None, "anomaly_score": draw.random(), "is_anomaly": is_anomaly,
        "drift": draw.random() < 0.05, "model_version": (at - NOON) // HOUR, "samples_seen": 1,
    }  # fmt: skip
    yield "predictions", prediction
    if not is_anomaly:
        return
    yield "alerts", {
        "_id": key, "device_id": device, "timestamp": at, "cohort": cohort, "kind": kind, "sensor": sensor,
        "observed": observed[sensor] if sensor else None, "expected": 20.0,
        "anomaly_score": prediction["anomaly_score"],
    }  # fmt: skip
    shared = draw.random() < 0.4
    yield "shared_anomalies", {
        "_id": f"{cohort}@{key}", "cohort": cohort, "start": at, "end": at + MINUTE, "stored_at": at, "count": 2,
        "kind": "shared" if shared else "single", "devices": [device, "mote-9"] if shared else [device],
        "sensors": [sensor] if sensor else [], "score": 0.5,
    }  # fmt: skip


def _window(draw: random.Random, device: str, cohort: str, at: datetime, length: str = "1h") -> Document:
    figures = {"sum": 1.0, "sum_squares": 1.0, "mean": 1.0, "min": 1.0, "max": 1.0}
    sensors = {name: {"count": 30, "missing": draw.randrange(5), **figures} for name in cohort.split("+")}
    return {
        "_id": f"{length}/device/{device}@{at.isoformat()}", "window": length, "scope": "device", "device_id": device,
        "cohort": cohort, "start": at, "end": at + HOUR, "stored_at": at, "readings": draw.randrange(20, 31),
        "devices": 1, "sensors": sensors, "errors": 3, "error": 0.5, "anomalies": 0, "uptime": 0.75, "loss": None,
        "expected": None if device == "mote-5" else 30, "late": draw.randrange(3),
    }  # fmt: skip


def _federation(draw: random.Random, cohort: str) -> Iterator[tuple[str, Document]]:
    weights = {"weights": [[1.0]], "biases": [[0.0]], "architecture": {"layers": [1, 1]}}
    packed = {"architecture": {"layers": [1, 1]}, "parameters": bytes(16)}
    devices = [device for device, its in FLEET.items() if its == cohort]
    for number in range(1, 8):
        at = NOON + number * 25 * MINUTE
        parts = [
            {"device_id": d, "samples": draw.randrange(9, 99), "updates": 1, "samples_seen": 9} for d in devices[1:]
        ]
        yield "global_model", {
            "_id": f"{cohort}#{number}", "cohort": cohort, "round": number, "timestamp": at, "weights": weights,
            "num_devices": len(parts), "total_samples": sum(part["samples"] for part in parts), "devices": parts,
            "aggregation_strategy": "fedavg", "published_at": None if number == 7 else at,
            **_decided(draw, number, at, parts),
        }  # fmt: skip
        for device in devices:
            yield "local_models", {
                "_id": f"{device}@{number}", "device_id": device, "timestamp": at, "cohort": cohort, "received_at": at,
                "weights": packed, "sample_count": 5, "samples_seen": 9, "base_version": draw.randrange(number),
                "round": number + (number == 7),  # those wait for the next
            }  # fmt: skip
        for length in ("1h", "1m"):
            yield "model_scores", {
                "_id": f"{cohort}#{number}/{length}@{number}", "cohort": cohort, "version": number, "window": length,
                "start": at.replace(minute=0), "stored_at": at, "devices": 3, "count": draw.randrange(1, 50),
                "error": draw.random(), "persistence": draw.uniform(0.5, 1.5), "skill": 0.1,
            }  # fmt: skip


def _decided(draw: random.Random, number: int, at: datetime, parts: list[Document]) -> Document:
    """What became of a version; the first is of a time before there were trials."""
    if number == 1:
        return {}
    for part in parts:
        part["share"], part["flag"] = (
            draw.random(),
            draw.choice([None, None, "far from the others", "against the others"]),
        )
    stage = "canary" if number == 7 else draw.choice(["stable", "rolled_back"])
    metrics = {"loss": draw.random(), "left_out": float(sum(part["flag"] is not None for part in parts))}
    metrics |= {"epsilon_total": 0.5 * number} if number % 2 else {}
    decided = {"verdict": "rose", "decided_by": draw.choice(["rollout", "ada"]), "decided_at": at + MINUTE}
    metrics |= {} if stage == "canary" else {"rise": draw.uniform(-0.2, 0.4)}
    stands = {"parent": number - 1, "stage": stage, "share": 0.1, "metrics": metrics}
    return stands if stage == "canary" else stands | decided


def _looks(draw: random.Random, run: str, began: datetime) -> Iterator[tuple[str, Document]]:
    readings = predictions = dead = 0
    for look in range(60):
        at = began + look * timedelta(seconds=5)
        readings += draw.randrange(5_000)
        predictions += draw.randrange(5_000)
        dead += draw.randrange(3)
        yield "pipeline_samples", {
            "_id": f"{run}@{look}", "run": run, "timestamp": at, "readings": readings, "predictions": predictions,
            "anomalies": 1, "local_updates": 1, "rounds": 1, "dead_letters": dead, "devices": 6,
            "lag": {"flead.readings": draw.randrange(99), "flead.predictions": draw.randrange(99)},
            "latency_p50_ms": draw.uniform(5, 9), "latency_p99_ms": draw.uniform(20, 90) if look else None,
            "error": 0.5, "services_down": draw.randrange(2),
        }  # fmt: skip


@pytest.fixture(scope="module")
def held(mongod: Mongod, postgres: Mart) -> Iterator[Held]:
    """A database with the documents of `documents`, and the mart has followed it."""
    kept = dict.fromkeys(("local_models", "dead_letters", "pipeline_samples"))  # for ever, though they are of 2024
    settings = MongoSettings(uri=SecretStr(mongod.uri), database="flead_figures", retention_days=kept)
    with connect(settings) as client:
        database = open_database(client, settings)
        apply_schema(database, settings)
        by_collection: dict[str, list[Document]] = {}
        for collection, document in documents():
            by_collection.setdefault(collection, []).append(document)
        for collection, found in by_collection.items():
            database[collection].insert_many(found)
        with connect_mart(postgres.uri()) as connection:
            drop(connection, "mart")
        with following(postgres, database, positions=POSITIONS):
            wait_until(lambda: _is_level(postgres))
            yield database
        client.drop_database(settings.database)


def _is_level(mart: Mart) -> bool:
    try:
        lag = lag_of(mart.uri())
    except Unavailable:
        return False
    return lag.follows and lag.behind_s == 0.0 and lag.to_copy is None


@pytest.fixture(scope="session")
def superset(postgres: Mart) -> Iterator[Served]:
    if not (service.ENVIRONMENT / "bin" / "gunicorn").exists():
        pytest.skip(f"there is no Superset in {service.ENVIRONMENT.name}: orchestration/run_all.sh installs it")
    dashboards = DashboardSettings(port=free_port(), workers=1)
    settings = Settings(run_dir=postgres.run_dir, mart=postgres.settings, dashboards=dashboards)
    shown: list[str] = []
    service.prepare(settings, shown.append)
    log = postgres.run_dir / "superset.log"
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603
            ends_with_parent(service.command(settings)),
            env={**os.environ, **service.environment(settings)}, stdout=output, stderr=output,
        )  # fmt: skip
    served = Served(settings, process.pid, log, shown)
    try:
        wait_until(lambda: _answers(served, process), 270.0)
        yield served
    finally:
        stop(process)


def _answers(served: Served, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, served.log.read_text()[-2_000:]
    try:
        service.ready(served.settings)
    except Unavailable:
        return False
    return True
