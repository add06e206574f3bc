"""A database of an earlier version becomes today's: in order, each step once, however often it was begun."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.database import Database

from config.child import free_port
from flead.errors import CorruptRunFolder, Unavailable
from storage import migrations
from storage.archive import ArchiveRepository
from storage.connection import Document, connect, open_database
from storage.migrations import VERSION, Migration, schema_lock, version_of
from storage.rounds import RoundRepository
from storage.schema import apply_schema
from tests.fixtures_storage import Mongo

pytestmark = pytest.mark.servers
NOW = datetime(2024, 1, 1, tzinfo=UTC)


@pytest.fixture
def bare(mongo: Mongo) -> Iterator[Mongo]:
    """A database without anything in it."""
    database = mongo.database.client["flead_bare"]
    mongo.database.client.drop_database("flead_bare")
    yield Mongo(mongo.settings.model_copy(update={"database": "flead_bare"}), database)
    mongo.database.client.drop_database("flead_bare")


def lay_out_as_before_there_were_layouts(database: Database[Document]) -> None:
    """Indexes and validators as the code made them before `schema_version`, with a document in each."""
    by_device = IndexModel([("device_id", ASCENDING), ("timestamp", DESCENDING)], name="device_time")
    by_time = IndexModel([("timestamp", DESCENDING)], name="time")
    cohort_round = [("cohort", ASCENDING), ("round", ASCENDING)]
    kept = IndexModel([("received_at", ASCENDING)], name="kept", expireAfterSeconds=604_800)
    measured = {"bsonType": "object", "required": ["device_id", "timestamp"]}
    for name, indexes in {
        "device_data": [by_device, by_time],
        "local_models": [by_device, IndexModel(cohort_round, name="cohort_round"), kept],
        "global_model": [
            IndexModel([("cohort", ASCENDING), ("round", DESCENDING)], name="cohort_round", unique=True),
            by_time,
        ],
        "predictions": [by_device, by_time],
    }.items():
        schema = measured if name != "global_model" else {"bsonType": "object"}
        database.create_collection(name, validator={"$jsonSchema": schema})
        database[name].create_indexes(indexes)
    database.device_data.insert_one({"_id": "old", "device_id": "d", "timestamp": NOW, "sensors": {"light": 1}})
    weights = {"weights": [[[0.5]]], "biases": [[0]], "architecture": {}}
    architecture = {"input_size": 1, "hidden_sizes": [], "output_size": 1}
    update = {"device_id": "d", "cohort": "light", "timestamp": NOW, "received_at": datetime.now(UTC)} | {
        "weights": weights | {"architecture": architecture}, "sample_count": 5,
        "samples_seen": None, "base_version": None, "round": None,
    }  # fmt: skip
    database.local_models.insert_one({"_id": f"d@{NOW.isoformat()}"} | update)


def test_a_database_from_before_there_were_layouts(bare: Mongo) -> None:
    lay_out_as_before_there_were_layouts(bare.database)
    assert version_of(bare.database) == 0
    apply_schema(bare.database, bare.settings)
    assert version_of(bare.database) == VERSION
    assert set(bare.database.local_models.index_information()) == {
        "_id_", "device_received", "cohort_round", "kept",
    }  # fmt: skip
    assert set(bare.database.global_model.index_information()) == {"_id_", "cohort_round"}
    [update] = RoundRepository(bare.database).pending("light")
    assert (update.device_id, update.theta.tolist()) == ("d", [0.5, 0.0])
    bare.database.local_models.update_many({}, {"$set": {"loss": 1.0}})  # it is what a document must be today
    again = {"device_id": "d", "timestamp": NOW + timedelta(1), "sensors": {"light": 2}}
    assert ArchiveRepository(bare.database).add_readings([again]).new == 1
    assert "stored_at" not in (bare.database.device_data.find_one({"_id": "old"}) or {})


def steps(log: list[int], *, dies_once_in: int = 0) -> tuple[Migration, ...]:
    """Three steps that note when they ran to their end; one of them can be killed half-way, once."""
    killed: set[int] = set()

    def step(version: int) -> Callable[[Database[Document]], None]:
        def apply(database: Database[Document]) -> None:
            database.steps.update_one({"_id": version}, {"$set": {"half": True}}, upsert=True)
            if version == dies_once_in and version not in killed:
                killed.add(version)
                raise KeyboardInterrupt
            database.steps.update_one({"_id": version}, {"$set": {"whole": True}})
            log.append(version)

        return apply

    return tuple(Migration(version, f"step {version}", step(version)) for version in (1, 2, 3))


def use(monkeypatch: pytest.MonkeyPatch, chosen: tuple[Migration, ...]) -> None:
    monkeypatch.setattr(migrations, "MIGRATIONS", chosen)
    monkeypatch.setattr(migrations, "VERSION", chosen[-1].version)


def test_killed_half_way_it_goes_on_where_it_was(bare: Mongo, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    use(monkeypatch, steps(done, dies_once_in=2))
    with pytest.raises(KeyboardInterrupt):
        apply_schema(bare.database, bare.settings)
    assert (done, version_of(bare.database)) == ([1], 1)
    apply_schema(bare.database, bare.settings)
    assert (done, version_of(bare.database)) == ([1, 2, 3], 3)
    assert list(bare.database.steps.find()) == [{"_id": i, "half": True, "whole": True} for i in (1, 2, 3)]
    apply_schema(bare.database, bare.settings)
    assert done == [1, 2, 3]


def test_of_several_processes_that_start_at_once_one_does_it(bare: Mongo, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    use(monkeypatch, steps(done))
    together = threading.Barrier(4)

    def start() -> None:
        with connect(bare.settings) as client:
            together.wait(10)
            apply_schema(open_database(client, bare.settings), bare.settings)

    with ThreadPoolExecutor(4) as pool:
        for started in [pool.submit(start) for _ in range(4)]:
            started.result()
    assert done == [1, 2, 3]
    assert (bare.database.schema_version.find_one() or {})["lock"] is None


def test_a_database_of_a_newer_version_is_left_alone(bare: Mongo, tmp_path: Path) -> None:
    bare.database.schema_version.insert_one({"_id": "schema", "version": VERSION + 1})
    with pytest.raises(CorruptRunFolder, match=f"layout {VERSION + 1}.* up to {VERSION}: update FLEAD") as raised:
        apply_schema(bare.database, bare.settings)
    assert "\n" not in str(raised.value)
    assert bare.database.list_collection_names() == ["schema_version"]


class TestTheLock:
    def test_of_a_killed_process_is_taken_over(self, bare: Mongo) -> None:
        ended = {"owner": "killed", "until": datetime.now(UTC) - timedelta(seconds=1)}
        bare.database.schema_version.insert_one({"_id": "schema", "version": 0, "lock": ended})
        apply_schema(bare.database, bare.settings)
        assert version_of(bare.database) == VERSION

    def test_of_a_living_process_is_respected(self, bare: Mongo) -> None:
        with (
            schema_lock(bare.database),
            pytest.raises(Unavailable, match="another process"),
            schema_lock(bare.database, limit_s=0.1),
        ):
            pass

    def test_is_kept_while_a_step_takes_long(self, bare: Mongo, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(migrations, "_LEASE_S", 0.2)

        def until() -> Any:
            return (bare.database.schema_version.find_one() or {})["lock"]["until"]

        with schema_lock(bare.database):
            first = until()
            with pytest.raises(Unavailable), schema_lock(bare.database, limit_s=0.6):
                pass
            assert until() > first

    def test_that_was_lost_stops_us(self, bare: Mongo) -> None:
        with schema_lock(bare.database) as lock:
            bare.database.schema_version.update_one({}, {"$set": {"lock.owner": "another"}})
            with pytest.raises(Unavailable, match="start again"):
                lock.set(version=5)


def test_nobody_answers(mongo: Mongo) -> None:
    uri = f"mongodb://127.0.0.1:{free_port()}/?directConnection=true&serverSelectionTimeoutMS=200"
    settings = type(mongo.settings)(uri=uri)
    with connect(settings) as client, pytest.raises(Unavailable, match="does not answer"):
        apply_schema(open_database(client, settings), settings)
