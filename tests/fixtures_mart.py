"""A real PostgreSQL for the tests, started once, and what compares a mart with its MongoDB."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from pymongo.database import Database

from config.child import ends_with_parent, free_port, stop
from config.settings import PROJECT, MartSettings, MongoSettings
from flead.errors import Unavailable
from storage.connection import Document, open_database
from storage.connection import connect as connect_mongodb
from storage.documents import COLLECTIONS
from storage.embedded import Mongod
from tests.fixtures_storage import Mongo, wait_until
from visualization.mart.connection import Connection, connect
from visualization.mart.follower import Follower
from visualization.mart.lag import lag_of
from visualization.mart.schema import drop
from visualization.mart.server import Role, address, embedded_postgres
from visualization.mart.tables import SOURCES, TABLES, Type

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
Sums = dict[str, float | int]


@dataclass(frozen=True)
class Mart:
    """A PostgreSQL, and the folder with its passwords."""

    settings: MartSettings
    run_dir: Path

    def uri(self, role: Role = Role.OWNER) -> SecretStr:
        return address(self.settings, self.run_dir, role)

    def ask(self, query: Any, *parameters: Any, role: Role = Role.OWNER) -> list[tuple[Any, ...]]:
        with connect(self.uri(role)) as connection:
            return connection.execute(query, parameters).fetchall()

    def do(self, query: Any, *parameters: Any) -> None:
        with connect(self.uri()) as connection:
            connection.execute(query, parameters or None)

    def count(self, table: str) -> int:
        return int(self.ask(f"SELECT count(*) FROM mart.{table}")[0][0])  # noqa: S608


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mart]:
    mart = Mart(MartSettings(port=free_port()), tmp_path_factory.mktemp("postgres"))
    with embedded_postgres(mart.run_dir, mart.settings) as running:
        yield mart
        os.kill(running.pid, signal.SIGQUIT)  # at once: to write down what nobody needs takes it seconds


@pytest.fixture
def mart(postgres: Mart) -> Mart:
    """The PostgreSQL without a mart."""
    with connect(postgres.uri()) as connection:
        drop(connection, "mart")
        drop(connection, "mart_next")
    return postgres


@contextmanager
def following(mart: Mart, database: Database[Document], **more: Any) -> Iterator[None]:
    """A follower in a thread, once it follows; what it raises is raised here."""
    told, raised = threading.Event(), []

    def follow() -> None:
        try:
            Follower(database, mart.uri(), **more).run(told)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        wait_until(lambda: bool(raised) or _is_copied(mart))
        yield
    except AssertionError as error:
        if raised:  # that is why
            raise raised[0] from error
        raise
    finally:
        told.set()
        thread.join(20.0)
        assert not thread.is_alive(), "the follower did not stop"
    if raised:
        raise raised[0]


@pytest.fixture
def followed(mart: Mart, mongo: Mongo) -> Iterator[Mart]:
    """A mart that is followed."""
    with following(mart, mongo.database):
        yield mart


def _is_copied(mart: Mart) -> bool:
    with suppress(Unavailable):  # there is none yet
        return lag_of(mart.uri()).behind_s is not None
    return False


def wait_level(mart: Mart, database: Database[Document], limit_s: float = 20.0) -> None:
    """Wait until the mart says that it has all, and has."""

    def is_level() -> bool:
        lag = lag_of(mart.uri())
        at_rest = lag.follows and lag.behind_s == 0.0 and lag.to_copy is None
        return at_rest and sums_in_mart(mart) == sums_in_mongodb(database)

    wait_until(is_level, limit_s)


@pytest.fixture
def plain(mongod: Mongod) -> Iterator[Database[Document]]:
    """A database without validators, which may be dropped."""
    settings = MongoSettings(uri=SecretStr(mongod.uri), database="flead_plain")
    with connect_mongodb(settings) as client:
        client.drop_database(settings.database)
        yield open_database(client, settings)
        client.drop_database(settings.database)


@contextmanager
def follow_process(mart: Mart, mongodb: MongoSettings, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`flead mart follow` in a process of its own."""
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603
            ends_with_parent([sys.executable, "-m", "orchestration", "mart", "follow"]),
            cwd=PROJECT, env=environment(mart, mongodb), stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield process
    finally:
        stop(process)


def environment(mart: Mart, mongodb: MongoSettings) -> dict[str, str]:
    return {
        **os.environ,
        "FLEAD_RUN_DIR": str(mart.run_dir),
        "FLEAD_MART__URI": mart.uri().get_secret_value(),
        "FLEAD_MONGODB__URI": mongodb.address.get_secret_value(),
        "FLEAD_MONGODB__DATABASE": mongodb.database,
    }


NUMBERS = (Type.DOUBLE, Type.BIGINT)


def sums_in_mart(mart: Mart) -> dict[str, Sums]:
    """Of each table: its rows, and of each column the sum, or where it is no number, how many have it."""
    found = {}
    with connect(mart.uri()) as connection:
        for name in TABLES:
            found[name] = _sums(connection, name)
    return found


def _sums(connection: Connection, name: str) -> Sums:
    columns = [column for column in TABLES[name].columns if column.name != "id"]
    wanted = [f'coalesce(sum("{c.name}"), 0)::float8' if c.type in NUMBERS else f'count("{c.name}")' for c in columns]
    query: Any = f'SELECT count(*), {", ".join(wanted)} FROM mart."{name}"'  # noqa: S608
    [row] = connection.execute(query).fetchall()
    return dict(zip(["rows", *(column.name for column in columns)], row, strict=True))


def sums_in_mongodb(database: Database[Document]) -> dict[str, Sums]:
    """The same, by aggregations of MongoDB's that know nothing of the mart's rows."""
    found: dict[str, Sums] = {}
    for name, table in TABLES.items():
        collection = max((c.name for c in COLLECTIONS if f"{name}_".startswith(f"{c.name}_")), key=len)
        stages, paths = UNFOLDED.get(name, ([], {}))
        paths = {f"source_{part}": f"source.{part}" for part in ("topic", "partition", "offset")} | paths
        group: Document = {"_id": None, "rows": {"$sum": 1}}
        for column in table.columns:
            if column.name == "id":
                continue
            value: Any = f"${paths.get(column.name, column.name)}"
            if column.type not in NUMBERS:
                value = {"$cond": [{"$gt": [value, None]}, 1, 0]}
            group[column.name] = {"$sum": value}
        nothing = dict.fromkeys(["rows", *(column.name for column in table.columns if column.name != "id")], 0)
        summed = next(iter(database[collection].aggregate([*stages, {"$group": group}])), nothing)
        found[name] = {key: value for key, value in summed.items() if key != "_id"}
    return found


def _unfolded(field: str, key: str, *columns: str) -> tuple[list[Document], dict[str, str]]:
    """A map by name, unfolded: its key, and the columns that its objects hold."""
    stages: list[Document] = [{"$set": {"part": {"$objectToArray": f"${field}"}}}, {"$unwind": "$part"}]
    return stages, {key: "part.k", **{column: f"part.v.{column}" for column in columns}}


def _listed(field: str, *columns: str) -> tuple[list[Document], dict[str, str]]:
    return [{"$unwind": f"${field}"}], {column: f"{field}.{column}" for column in columns}


def _maps(key: str, **fields: str) -> tuple[list[Document], dict[str, str]]:
    """Several maps by name, unfolded into one row for each name."""
    parts = {column: {"$objectToArray": {"$ifNull": [f"${field}", {}]}} for column, field in fields.items()}
    keys = {"$setUnion": [{"$map": {"input": f"$map.{column}", "in": "$$this.k"}} for column in fields]}
    values = {
        column: {"$first": {"$filter": {"input": f"$map.{column}", "cond": {"$eq": ["$$this.k", "$key"]}}}}
        for column in fields
    }
    stages: list[Document] = [{"$set": {"map": parts}}, {"$set": {"key": keys}}, {"$unwind": "$key"}]
    return [*stages, {"$set": {"found": values}}], {key: "key", **{column: f"found.{column}.v" for column in fields}}


UNFOLDED = {
    "device_data_sensors": _maps("sensor", value="sensors"),
    "predictions_sensors": _maps("sensor", observed="observed", expected="expected", forecast="forecast"),
    "global_model_devices": _listed("devices", "device_id", "samples", "updates", "samples_seen", "share", "flag"),
    "global_model_metrics": _maps("metric", value="metrics"),
    "window_aggregates_sensors": _unfolded(
        "sensors", "sensor", "count", "missing", "sum", "sum_squares", "mean", "min", "max"
    ),
    "window_aggregates_scores": _listed("scores", "version", "count", "error", "persistence"),
    "shared_anomalies_devices": ([{"$unwind": "$devices"}], {"device_id": "devices"}),
    "shared_anomalies_sensors": ([{"$unwind": "$sensors"}], {"sensor": "sensors"}),
    "pipeline_samples_lag": _maps("topic", records="lag"),
}
"""How MongoDB itself lays out what is nested, and where each column then lies."""

assert {f"{source.collection}_{part.name}" for source in SOURCES for part in source.parts} == set(UNFOLDED)


def reading(number: int, device: str = "a") -> Document:
    """A document of `device_data`; its numbers add up exactly."""
    at = NOON.replace(minute=number // 60_000 % 60, second=number // 1_000 % 60, microsecond=number % 1_000 * 1_000)
    return {
        "_id": f"{device}@{number}",
        "device_id": device,
        "timestamp": at,
        "sensors": {"temperature": number / 4, "humidity": None if number % 7 == 0 else float(number)},
        "metadata": {"firmware": "1", "n": number},
        "stored_at": NOON,
    }


def prediction(number: int, device: str = "a") -> Document:
    """A document of `predictions`."""
    values = {"temperature": number / 4, "humidity": number / 8}
    return {
        "_id": f"{device}@{number}",
        "device_id": device,
        "timestamp": reading(number)["timestamp"],
        "cohort": "c",
        "observed": values,
        "expected": None if number % 5 == 0 else values,
        "forecast": {"temperature": number / 2},
        "error": number / 16,
        "anomaly_score": 0.5,
        "is_anomaly": number % 3 == 0,
        "sensor": "temperature" if number % 3 == 0 else None,
        "kind": None,
        "model_version": number % 4,
        "samples_seen": number,
        "produced_ms": 1_704_110_400_000 + number,
        "stored_at": NOON,
    }


def one_of_each() -> dict[str, Document]:
    """A document of every collection that the mart has."""
    figures = {"count": 3, "missing": 1, "sum": 1.5, "sum_squares": 0.75, "mean": 0.5, "min": 0.25, "max": 1.0}
    score = {"version": 2, "count": 3, "error": 0.5, "persistence": 0.25}
    weights = {"weights": [[1.0]], "biases": [[0.0]], "architecture": {"layers": [1, 1]}}
    packed = {"architecture": {"layers": [1, 1]}, "parameters": bytes(16)}
    return {
        "device_data": reading(1),
        "predictions": prediction(1),
        "alerts": {"_id": "a@1", "device_id": "a", "timestamp": NOON, "cohort": "c", "observed": 1.5},
        "dead_letters": {
            "_id": "t/0/7", "reason": "empty", "source": {"topic": "t", "partition": 0, "offset": 7}, "timestamp": NOON,
            "detail": "it is empty", "payload_base64": "AAAA", "size": 3, "sha256": "f", "truncated": False,
        },
        "local_models": {
            "_id": "a@1", "device_id": "a", "timestamp": NOON, "cohort": "c", "received_at": NOON, "weights": packed,
            "sample_count": 5, "samples_seen": 9, "base_version": None, "sensors": ["temperature"], "round": 2,
            "devices": 1, "loss": 0.25, "control": None,
        },
        "global_model": {
            "_id": "c#1", "cohort": "c", "round": 1, "timestamp": NOON, "weights": weights, "num_devices": 1,
            "total_samples": 5, "aggregation_strategy": "fedavg", "published_at": None,
            "devices": [
                {"device_id": "a", "samples": 5, "updates": 1, "samples_seen": 9, "share": 0.5, "flag": None}
            ],
            "parent": None, "stage": "stable", "share": 1.0, "metrics": {"loss": 0.25}, "signature": "AAAA",
        },
        "device_trust": {
            "_id": "a", "device_id": "a", "cohort": "c", "good": 0.5, "bad": 2.0, "state": "quarantined",
            "reason": "odd", "changed_at": NOON, "decided_by": None,
        },
        "window_aggregates": {
            "_id": "1m/device/a@0", "window": "1m", "scope": "device", "device_id": "a", "cohort": "c", "start": NOON,
            "end": NOON, "stored_at": NOON, "readings": 4, "devices": 1, "sensors": {"temperature": figures},
            "errors": 3, "error": 0.5, "anomalies": 0, "uptime": 1.0, "loss": None, "expected": None, "late": 0,
            "scores": [score],
        },
        "shared_anomalies": {
            "_id": "c@0/a", "cohort": "c", "start": NOON, "end": NOON, "stored_at": NOON, "kind": "shared",
            "devices": ["a", "b"], "sensors": ["temperature"], "count": 2, "score": 0.75,
        },
        "model_scores": {
            "_id": "c#2/1m@0", "cohort": "c", "version": 2, "window": "1m", "start": NOON, "stored_at": NOON,
            "devices": 1, "count": 3, "error": 0.5, "persistence": 0.25, "skill": -1.0,
        },
        "pipeline_samples": {
            "_id": "r@1", "run": "r", "timestamp": NOON, "readings": 5, "predictions": 5, "anomalies": 0,
            "local_updates": 1, "rounds": 1, "dead_letters": 0, "devices": 1, "lag": {"flead.readings": 3},
            "latency_p50_ms": 8.5, "latency_p99_ms": None, "error": 0.5, "services_down": 0,
        },
    }  # fmt: skip
