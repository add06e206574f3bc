"""The mart is what MongoDB is: counts and sums of every table, whatever happened on the way."""

from __future__ import annotations

import logging
import random
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any

import bson
import psycopg
import pytest
from bson import json_util
from bson.datetime_ms import DatetimeMS
from bson.raw_bson import RawBSONDocument
from pymongo import DeleteOne, InsertOne, ReplaceOne, UpdateOne
from pymongo.database import Database
from pymongo.errors import OperationFailure

from flead.errors import BadConfiguration
from storage.connection import Document
from tests.fixtures_mart import (
    NOON,
    Mart,
    following,
    one_of_each,
    prediction,
    reading,
    sums_in_mart,
    sums_in_mongodb,
    wait_level,
)
from tests.fixtures_storage import Mongo, wait_until
from visualization.mart.follower import Follower, Held
from visualization.mart.lag import lag_of
from visualization.mart.server import Role
from visualization.mart.stream import Stream
from visualization.mart.tables import LAYOUT
from visualization.mart.writer import Change

pytestmark = pytest.mark.servers


def operations(random_numbers: random.Random, count: int, make: Any) -> list[Any]:
    """Inserts, updates, replacements and deletes of a few documents, in any order."""
    found: list[Any] = []
    for _ in range(count):
        number = random_numbers.randrange(count // 3)
        key = {"_id": make(number)["_id"]}
        kinds: list[list[Any]] = [
            [ReplaceOne(key, make(number), upsert=True)],
            [UpdateOne(key, {"$set": {"stored_at": NOON + timedelta(seconds=number), "sensors.added": 0.25}})],
            [ReplaceOne(key, make(number) | {"stored_at": None})],
            [DeleteOne(key)],
            [DeleteOne(key), InsertOne(make(number))],
        ]
        found += random_numbers.choice(kinds)
    return found


def test_what_is_there_is_copied_and_what_comes_is_followed(mart: Mart, mongo: Mongo) -> None:
    for name, document in one_of_each().items():
        mongo.database[name].insert_one(document)
    mongo.database.device_data.insert_many([reading(n) for n in range(10, 500)])
    with following(mart, mongo.database):
        wait_level(mart, mongo.database)
        assert all(sums["rows"] for sums in sums_in_mart(mart).values())
        mongo.database.predictions.insert_many([prediction(n) for n in range(10, 500)])
        mongo.database.device_data.update_many({}, {"$set": {"sensors": {"pressure": 1.5}}})
        mongo.database.window_aggregates.update_one({}, {"$set": {"scores": [], "sensors": {}}})
        wait_level(mart, mongo.database)
    assert mart.ask("SELECT DISTINCT sensor FROM mart.device_data_sensors") == [("pressure",)]
    assert mart.count("window_aggregates_scores") == mart.count("window_aggregates_sensors") == 0


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_changes(followed: Mart, mongo: Mongo, seed: int) -> None:
    numbers = random.Random(seed)  # noqa: S311
    for _ in range(5):
        mongo.database.device_data.bulk_write(operations(numbers, 300, reading))
        mongo.database.predictions.bulk_write(operations(numbers, 100, prediction))
    mongo.database.device_data.delete_many({"_id": {"$lt": "a@2"}})
    wait_level(followed, mongo.database)
    assert mongo.database.device_data.count_documents({}) == followed.count("device_data") > 0


def test_changes_while_it_is_copied_are_neither_lost_nor_doubled(mart: Mart, plain: Database[Document]) -> None:
    plain.device_data.insert_many([reading(n) for n in range(12_000)])

    def meddle(done: int, _total: int) -> None:
        """Called between parts of the copy: change what has been copied, what comes, and what is new."""
        plain.device_data.delete_many({"_id": {"$in": [f"a@{done + n}" for n in range(-50, 50)]}})
        plain.device_data.update_many({"_id": {"$in": ["a@1", "a@11999"]}}, {"$set": {"sensors": {"t": done / 4}}})
        plain.device_data.insert_many([reading(100_000 + done + n) for n in range(50)])

    with following(mart, plain, progress=meddle):
        wait_level(mart, plain)
    assert mart.ask("SELECT events > 0, token IS NOT NULL FROM mart.state") == [(True, True)]


def test_it_goes_on_where_it_was(mart: Mart, mongo: Mongo, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with following(mart, mongo.database):
        mongo.database.device_data.insert_many([reading(n) for n in range(100)])
        wait_level(mart, mongo.database)
    mongo.database.device_data.delete_many({"_id": {"$lt": "a@5"}})
    mongo.database.device_data.insert_many([reading(n) for n in range(1_000, 1_100)])
    with following(mart, mongo.database):
        wait_level(mart, mongo.database)
    assert caplog.text.count("made anew") == 1


def read(stream: Stream, events: int) -> dict[tuple[str, str], Change]:
    """What documents have become, after so many events."""
    found: dict[tuple[str, str], Change] = {}
    while events > 0:
        batch = stream.next()
        events -= batch.events
        found |= batch.changes
    return found


def test_weights_never_leave_mongodb(mongo: Mongo) -> None:
    models = mongo.database.global_model
    with Stream(mongo.database) as stream:
        models.insert_one(one_of_each()["global_model"])
        models.update_one({}, {"$set": {"published_at": NOON}})
        [change] = read(stream, events=2).values()
    assert change.document is not None
    assert "devices" in change.document
    assert "weights" not in change.document


def test_a_document_that_is_gone_before_it_is_looked_up(mongo: Mongo) -> None:
    with Stream(mongo.database) as stream:
        mongo.database.device_data.insert_one(reading(1))
        mongo.database.device_data.update_one({}, {"$set": {"stored_at": None}})
        mongo.database.device_data.delete_one({})
        assert read(stream, events=3)["device_data", "a@1"].document is None


def test_a_collection_that_is_dropped(mart: Mart, plain: Database[Document]) -> None:
    with following(mart, plain):
        plain.device_data.insert_many([reading(n) for n in range(50)])
        plain.alerts.insert_one(one_of_each()["alerts"])
        wait_level(mart, plain)
        plain.device_data.drop()
        plain.device_data.insert_many([reading(n) for n in range(40, 60)])
        wait_level(mart, plain)
    assert (mart.count("device_data"), mart.count("alerts")) == (20, 1)


def test_a_database_that_is_dropped(mart: Mart, plain: Database[Document]) -> None:
    with following(mart, plain):
        plain.device_data.insert_many([reading(n) for n in range(50)])
        wait_level(mart, plain)
        plain.client.drop_database(plain.name)
        wait_until(lambda: mart.count("device_data") == 0)
        plain.device_data.insert_one(reading(1))
        wait_level(mart, plain)


def test_a_collection_that_gets_another_name(mart: Mart, plain: Database[Document]) -> None:
    with following(mart, plain):
        plain.device_data.insert_many([reading(n) for n in range(50)])
        plain.other.insert_many([reading(n) for n in range(100, 110)])
        wait_level(mart, plain)
        plain.other.rename("device_data", dropTarget=True)
        wait_level(mart, plain)
    assert mart.count("device_data") == 10


def test_a_place_that_mongodb_does_not_find(mart: Mart, mongo: Mongo, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with mongo.database.watch() as stream, following(mart, mongo.database):
        mongo.database.device_data.insert_one(reading(1))
        data = next(stream)["_id"]["_data"]
        wait_level(mart, mongo.database)
    mart.do("DELETE FROM mart.device_data")
    ancient = json_util.dumps({"_data": data[:2] + "0000000100000001" + data[18:]})  # of an event in 1970
    mart.do("UPDATE mart.state SET token = %s", ancient)
    with following(mart, mongo.database):
        wait_level(mart, mongo.database)
    assert "cannot be gone on with" in caplog.text
    assert mart.count("device_data") == 1


@pytest.mark.parametrize("code", [286, 260])
def test_a_place_that_is_no_longer_in_the_log(
    mart: Mart, mongo: Mongo, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The log holds a gigabyte at least, so MongoDB's answer is put into its mouth."""
    mongo.database.device_data.insert_one(reading(1))
    with following(mart, mongo.database):
        wait_level(mart, mongo.database)
    mart.do("DELETE FROM mart.device_data")
    watch, answers = Database.watch, [OperationFailure("gone", code)]

    def once(*arguments: Any, **options: Any) -> Any:
        if answers:
            raise answers.pop()
        return watch(*arguments, **options)

    monkeypatch.setattr(Database, "watch", once)
    with following(mart, mongo.database):
        wait_level(mart, mongo.database)


def invalid_text() -> RawBSONDocument:
    raw = bson.encode(reading(8) | {"device_id": "XX"})
    return RawBSONDocument(raw.replace(b"XX\0", b"\xff\xfe\0"))


UNFIT: dict[str, Any] = {
    "a@1": {"device_id": 5},
    "a@2": {"sensors": {"t": float("nan")}},
    "a@3": {"metadata": {"a": "zero \0"}},
    "a@4": {"sensors": "none"},
    "a@5": {"timestamp": DatetimeMS(2**60)},
    "a@6": {"device_id": "".join(random.Random(0).choices("abcdefghijklmnop", k=9_000))},  # noqa: S311
    "a@7": {"sensors": None},
}


@pytest.mark.parametrize("copied", [True, False])
def test_what_does_not_fit_stops_nobody(
    mart: Mart, plain: Database[Document], caplog: pytest.LogCaptureFixture, copied: bool
) -> None:
    good = [reading(n) for n in range(100, 300)]
    bad = [reading(int(key[2:])) | change for key, change in UNFIT.items()]
    mixed: list[Any] = [*good[:100], *bad, invalid_text(), {"_id": 5}, {"_id": "\0"}, *good[100:]]
    if copied:
        plain.device_data.insert_many(mixed)
    with following(mart, plain):
        if not copied:
            plain.device_data.insert_many(mixed)
        wait_until(lambda: mart.count("device_data") == 200)
        keys = {"5", "\\x00", "a@8", *UNFIT}
        wait_until(lambda: {key for (key,) in mart.ask("SELECT id FROM mart.rejected")} == keys)
        assert lag_of(mart.uri()).rejected == len(keys)
        plain.device_data.replace_one({"_id": "a@1"}, reading(1))
        plain.device_data.delete_many({"_id": {"$in": ["a@2", 5]}})
        wait_until(lambda: lag_of(mart.uri()).rejected == len(keys) - 3)
    assert mart.count("device_data") == 201
    assert "documents that do not fit: " in caplog.text


def test_a_document_that_becomes_unfit_is_no_longer_shown(mart: Mart, plain: Database[Document]) -> None:
    with following(mart, plain):
        plain.device_data.insert_many([reading(1), reading(2)])
        wait_level(mart, plain)
        plain.device_data.update_one({"_id": "a@1"}, {"$set": {"device_id": None}})
        wait_until(lambda: mart.ask("SELECT id FROM mart.device_data") == [("a@2",)])
    assert mart.ask("SELECT id, why FROM mart.rejected") == [("a@1", "device_id is missing or null")]


def test_two_ids_that_read_the_same_stop_nobody(mart: Mart, plain: Database[Document]) -> None:
    with following(mart, plain):
        plain.device_data.insert_many([reading(1) | {"_id": 5}, reading(2)])
        wait_until(lambda: mart.count("device_data") == 2)
        plain.device_data.insert_many([reading(3) | {"_id": "5"}, reading(4)])
        wait_until(lambda: mart.count("device_data") == 3)


def test_only_one_follows(followed: Mart, mongo: Mongo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visualization.mart.follower.LOCK_WAIT_S", 0.2)
    wait_level(followed, mongo.database)
    with pytest.raises(Held, match="another follower"):
        Follower(mongo.database, followed.uri()).run(threading.Event())


def test_who_follows_makes_it_anew_where_somebody_asks(
    followed: Mart, mongo: Mongo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("visualization.mart.follower.LOCK_WAIT_S", 0.2)
    mongo.database.device_data.insert_many([reading(n) for n in range(50)])
    wait_level(followed, mongo.database)
    followed.do("DELETE FROM mart.device_data")
    assert not Follower(mongo.database, followed.uri()).rebuild(threading.Event())
    wait_level(followed, mongo.database)
    assert "it was asked for" in caplog.text


def test_made_anew_it_is_never_empty_for_who_reads(mart: Mart, mongo: Mongo) -> None:
    mongo.database.device_data.insert_many([reading(n) for n in range(3_000)])
    follower, done = Follower(mongo.database, mart.uri()), threading.Event()
    follower.rebuild(threading.Event())
    seen = []

    def read() -> None:
        while not done.is_set():
            seen.extend(mart.ask("SELECT count(*) FROM device_data", role=Role.READER))

    reader = threading.Thread(target=read)
    reader.start()
    follower.rebuild(threading.Event())
    done.set()
    reader.join()
    assert set(seen) == {(3_000,)}


def test_to_stop_while_it_is_made_anew_leaves_the_old_one(mart: Mart, mongo: Mongo) -> None:
    mongo.database.device_data.insert_many([reading(n) for n in range(50)])
    Follower(mongo.database, mart.uri()).rebuild(threading.Event())
    mongo.database.device_data.insert_one(reading(50))
    stop = threading.Event()
    Follower(mongo.database, mart.uri(), progress=lambda _done, _total: stop.set()).rebuild(stop)
    assert mart.count("device_data") == 50
    with following(mart, mongo.database):
        wait_level(mart, mongo.database)
    assert mart.ask("SELECT to_regnamespace('mart_next')") == [(None,)]


def test_an_older_layout_is_made_anew(mart: Mart, mongo: Mongo) -> None:
    mongo.database.device_data.insert_one(reading(1))
    Follower(mongo.database, mart.uri()).rebuild(threading.Event())
    mart.do("UPDATE mart.state SET layout = 0; ALTER TABLE mart.device_data ADD COLUMN old text")
    with following(mart, mongo.database):
        wait_until(lambda: mart.ask("SELECT layout FROM mart.state") == [(LAYOUT,)])
        wait_level(mart, mongo.database)
    assert "old" not in {name for (name,) in mart.ask("SELECT attname FROM pg_attribute")}


def test_a_mart_that_is_dropped_is_made_anew(mart: Mart, mongo: Mongo) -> None:
    with following(mart, mongo.database):
        mongo.database.device_data.insert_many([reading(n) for n in range(50)])
        wait_level(mart, mongo.database)
        mart.do("DROP SCHEMA mart CASCADE")
        mongo.database.device_data.insert_one(reading(50))
        wait_until(lambda: mart.ask("SELECT to_regclass('mart.state')") != [(None,)])
        wait_until(lambda: is_whole(mart, 51))


def is_whole(mart: Mart, rows: int) -> bool:
    with suppress(psycopg.errors.UndefinedTable):
        return mart.count("device_data") == rows
    return False


def test_a_newer_layout_is_left_alone(mart: Mart, mongo: Mongo) -> None:
    follower = Follower(mongo.database, mart.uri())
    follower.rebuild(threading.Event())
    mart.do("UPDATE mart.state SET layout = 99")
    with pytest.raises(BadConfiguration, match="layout 99"):
        follower.run(threading.Event())
    assert follower.rebuild(threading.Event())
    assert mart.ask("SELECT layout < 99 FROM mart.state") == [(True,)]


def test_a_schema_of_somebody_else_is_left_alone(mart: Mart, mongo: Mongo) -> None:
    mart.do("CREATE SCHEMA mart; CREATE TABLE mart.theirs ()")
    with pytest.raises(BadConfiguration, match="not FLEAD's"):
        Follower(mongo.database, mart.uri()).run(threading.Event())


def test_the_mart_of_another_mongodb_is_made_anew(mart: Mart, mongo: Mongo, plain: Database[Document]) -> None:
    mongo.database.device_data.insert_one(reading(1))
    plain.device_data.insert_one(reading(2))
    for database in (mongo.database, plain):
        with following(mart, database):
            wait_level(mart, database)
    assert mart.ask("SELECT id FROM mart.device_data") == [("a@2",)]


def test_positions_are_those_of_the_file(mart: Mart, mongo: Mongo) -> None:
    for positions in ({"a": (1.0, 2.5), "b": (0.0, 0.0)}, {"c": (3.0, 4.0)}):
        with following(mart, mongo.database, positions=positions):
            wait_level(mart, mongo.database)
            assert mart.ask("SELECT * FROM mart.device_positions ORDER BY 1") == [
                (device, *at) for device, at in positions.items()
            ]


def test_it_says_how_far_it_is(mart: Mart, mongo: Mongo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visualization.mart.follower.RATE_S", 0.1)
    with following(mart, mongo.database):
        wait_level(mart, mongo.database)
        mongo.database.device_data.insert_many([reading(n) for n in range(500)])
        wait_until(lambda: lag_of(mart.uri(Role.READER)).events_per_s > 0)
        assert lag_of(mart.uri()).follows
    monkeypatch.setattr("visualization.mart.lag.SILENT_S", 0.0)
    lag = lag_of(mart.uri())
    assert not lag.follows
    assert lag.behind_s is not None
    assert lag.behind_s > 0
    assert sums_in_mart(mart) == sums_in_mongodb(mongo.database)
