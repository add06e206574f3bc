from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr
from pymongo.errors import WriteError

from config.child import free_port
from config.settings import MongoSettings
from flead.errors import BadConfiguration, Reason, Unavailable
from flead.messages import DeadLetter, Reading, Source
from storage.archive import ArchiveRepository, Stored
from storage.connection import connect, open_database, ping
from tests.fixtures_storage import Mongo

pytestmark = pytest.mark.servers
START = datetime(2024, 1, 1, 12, 0, 0, 154_000, tzinfo=UTC)


def reading(i: int = 0, **fields: Any) -> dict[str, Any]:
    value = Reading(device_id="mote-7", timestamp=START + timedelta(seconds=i), sensors={"light": 43, "dark": None})
    decoded: dict[str, Any] = orjson.loads(value.to_json())
    return decoded | fields


def nest(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def test_written_twice_leaves_one_with_bson_dates(mongo: Mongo) -> None:
    archive = ArchiveRepository(mongo.database)
    batch = [orjson.dumps(reading(i)) for i in range(10)]
    assert archive.add_readings(batch) == Stored(new=10)
    assert archive.add_readings([*batch, reading(10), reading(10)]) == Stored(new=1, known=11)
    found = mongo.database.device_data.find_one({"_id": "mote-7@2024-01-01T12:00:00.154000+00:00"})
    assert found is not None
    assert found["timestamp"] == START
    assert found["sensors"] == {"light": 43, "dark": None}


def test_one_instant_in_two_offsets_is_one_document(mongo: Mongo) -> None:
    archive = ArchiveRepository(mongo.database)
    both = [reading(timestamp="2024-01-01T12:00:00Z"), reading(timestamp="2024-01-01T13:00:00+01:00")]
    assert archive.add_predictions(both) == Stored(new=1, known=1)
    assert archive.add_alerts(both) == Stored(new=1, known=1)


@pytest.mark.parametrize(
    "metadata",
    [
        {"x": 2**70},
        {"x": -(2**64)},
        nest(250),
        nest(3_000),
        {"a\0b": 1},
        {"a": "\ud800"},
        {"a": "y" * 17_000_000},
        {"a": {5: 1}},
    ],
    ids=["big", "negative", "deep", "deeper", "zero byte", "surrogate", "17 MB", "number as a key"],
)
def test_metadata_that_mongodb_cannot_hold_are_left_out(mongo: Mongo, metadata: dict[str, Any]) -> None:
    batch = [reading(0), reading(1, metadata=metadata), reading(2)]
    assert ArchiveRepository(mongo.database).add_readings(batch) == Stored(new=3, trimmed=1)
    trimmed = mongo.database.device_data.find_one({"metadata": {"$exists": False}})
    assert trimmed is not None
    assert trimmed["timestamp"] == START + timedelta(seconds=1)


@pytest.mark.parametrize(
    "wrong",
    [
        b"{",
        b"[]",
        {"a": 1},
        reading(1, sensors=3),
        reading(1, sensors={"a": 2**80}),
        reading(1, timestamp="2024-01-01T00:00:00"),
        reading(1, timestamp="0001-01-01T00:00:00+14:00"),
        reading(1, timestamp=5),
        reading(1, device_id=5),
    ],
)
def test_what_cannot_be_kept_is_handed_back_and_stops_nothing(mongo: Mongo, wrong: Any) -> None:
    stored = ArchiveRepository(mongo.database).add_readings([reading(0), wrong, reading(2)])
    assert (stored.new, [refused.value for refused in stored.refused]) == (2, [wrong])
    assert stored.refused[0].why


def test_odd_names_are_kept(mongo: Mongo) -> None:
    odd = {"$where": 1, "a.b": 2, "": 3}
    assert ArchiveRepository(mongo.database).add_readings([reading(metadata=odd, **{"$x": 1})]).new == 1
    found = mongo.database.device_data.find_one()
    assert found is not None
    assert found["metadata"] == odd


def test_a_refused_record_leaves_one_dead_letter(mongo: Mongo) -> None:
    archive = ArchiveRepository(mongo.database)
    letter = DeadLetter(Reason.NOT_JSON, "line 1", Source("flead.readings", 2, 7), b"\xff", START).to_json()
    assert archive.add_dead_letters([letter]).new == 1
    assert archive.add_dead_letters([letter, orjson.loads(letter)]) == Stored(known=2)
    assert archive.counts()["dead_letters"] == 1
    assert mongo.database.dead_letters.find_one({}, {"_id": 1}) == {"_id": "flead.readings/2/7"}


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metadata=st.dictionaries(st.text(), _json, max_size=4))
def test_no_metadata_lose_a_reading(mongo: Mongo, metadata: dict[str, Any]) -> None:
    mongo.database.device_data.delete_many({})
    stored = ArchiveRepository(mongo.database).add_readings([reading(0), reading(1, metadata=metadata), reading(2)])
    assert (stored.new, stored.refused) == (3, ())


def test_what_is_stored_says_when_once_for_a_batch(mongo: Mongo) -> None:
    archive = ArchiveRepository(mongo.database, clock=iter([START, START + timedelta(days=1)]).__next__)
    archive.add_readings([reading(0), reading(1)])
    archive.add_readings([reading(1), reading(2)])
    found = mongo.database.device_data.find().sort("timestamp")
    assert [document["stored_at"] for document in found] == [START, START, START + timedelta(days=1)]


def test_validators_refuse_what_is_no_document_of_ours(mongo: Mongo) -> None:
    with pytest.raises(WriteError):
        mongo.database.global_model.insert_one({"cohort": "c", "round": 0})


def test_nobody_answers() -> None:
    uri = f"mongodb://127.0.0.1:{free_port()}/?directConnection=true&serverSelectionTimeoutMS=200"
    settings = MongoSettings(uri=SecretStr(uri))
    with connect(settings) as client:
        database = open_database(client, settings)
        for act in (lambda: ping(database), lambda: ArchiveRepository(database).add_readings([reading()])):
            with pytest.raises(Unavailable, match="does not answer"):
                act()


@pytest.mark.parametrize("uri", ["mongodb://user:pa@ss@word@host/", "mongodb://u:secret@h:99999/"])
def test_a_wrong_address_is_told_without_its_password(uri: str) -> None:
    with pytest.raises(BadConfiguration) as raised:
        connect(MongoSettings(uri=SecretStr(uri)))
    assert "secret" not in str(raised.value)
    assert "word" not in str(raised.value).replace("a password", "")
