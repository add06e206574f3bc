"""The user for dashboards reads one database, and the server holds him to it."""

from __future__ import annotations

import base64
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.errors import OperationFailure

from config.child import free_port
from config.settings import MongoSettings
from flead.errors import FleadError, Unavailable
from storage.archive import ArchiveRepository
from storage.connection import Client, connect, open_database, ping
from storage.reader import keep_secret, kept_secret, renew_reader
from storage.schema import apply_schema
from tests.fixtures_storage import Mongo, mongod_with, wait_until

pytestmark = pytest.mark.servers
UNAUTHORIZED = 13


def answers(settings: MongoSettings) -> bool:
    try:
        with connect(settings) as client:
            ping(open_database(client, settings))
    except Unavailable:
        return False
    return True


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MongoSettings]:
    """Settings of an administrator of a mongod that asks everybody who he is."""
    folder, port, password = tmp_path_factory.mktemp("guarded"), free_port(), secrets.token_urlsafe()
    key = folder / "key"
    key.touch(0o600)
    key.write_bytes(base64.b64encode(secrets.token_bytes(48)))
    with (
        mongod_with(folder / "db", port=port),
        MongoClient[dict[str, object]]("127.0.0.1", port, directConnection=True) as client,
    ):
        client.admin.command("createUser", "root", pwd=password, roles=["root"])
    uri = f"mongodb://root:{password}@127.0.0.1:{port}/?replicaSet=flead&directConnection=true&authSource=admin"
    settings = MongoSettings(uri=SecretStr(uri))
    with mongod_with(folder / "db", "--auth", "--keyFile", str(key), port=port):
        wait_until(lambda: answers(settings))
        with connect(settings) as client:
            apply_schema(open_database(client, settings), settings)
        yield settings


@pytest.fixture
def reading(guarded: MongoSettings) -> Iterator[Client]:
    """A client as a dashboard has one."""
    with connect(guarded) as client:
        made = renew_reader(open_database(client, guarded), guarded)
    assert made.enforced
    with connect(guarded.model_copy(update={"uri": made.uri})) as client:
        yield client


def test_he_reads(guarded: MongoSettings, reading: Client) -> None:
    with connect(guarded) as client:
        moment = {"timestamp": "2024-01-01T00:00:00Z", "device_id": "d", "sensors": {}}
        ArchiveRepository(open_database(client, guarded)).add_readings([moment])
    assert reading.flead.device_data.count_documents({}) == 1
    assert reading.get_default_database().name == "flead"
    assert "device_data" in reading.flead.list_collection_names()


@pytest.mark.parametrize(
    "act",
    [
        lambda client: client.flead.device_data.insert_one({}),
        lambda client: client.flead.device_data.update_one({}, {"$set": {"a": 1}}),
        lambda client: client.flead.device_data.delete_many({}),
        lambda client: client.flead.device_data.drop(),
        lambda client: client.flead.device_data.create_index("a"),
        lambda client: client.flead.device_data.aggregate([{"$out": "copy"}]),
        lambda client: client.flead.create_collection("new"),
        lambda client: client.drop_database("flead"),
        lambda client: client.flead.command("createUser", "another", pwd="x", roles=["root"]),  # noqa: S106
        lambda client: client.other.things.find_one(),
        lambda client: client.other.things.insert_one({}),
        lambda client: client.admin.system.users.find_one(),
        lambda client: client.local.oplog.rs.find_one(),
    ],
)
def test_he_does_nothing_else(reading: Client, act: Callable[[Client], object]) -> None:
    with pytest.raises(OperationFailure) as refused:
        act(reading)
    assert refused.value.code == UNAUTHORIZED


def test_a_new_password_ends_the_old_one(guarded: MongoSettings) -> None:
    with connect(guarded) as client:
        first, second = (renew_reader(open_database(client, guarded), guarded) for _ in range(2))
    assert not answers(guarded.model_copy(update={"uri": first.uri}))
    assert answers(guarded.model_copy(update={"uri": second.uri}))


def test_who_may_make_no_users_is_told_so(reading: Client, guarded: MongoSettings) -> None:
    with pytest.raises(Unavailable, match="refuses"):
        renew_reader(reading.flead, guarded)


def test_a_server_without_access_control_is_told_of(mongo: Mongo) -> None:
    made = renew_reader(mongo.database, mongo.settings)
    assert not made.enforced
    mongo.database.command("dropUser", "flead-reader")


def test_the_address_is_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "uri"
    for text in ("first", "second"):
        keep_secret(path, SecretStr(text))
        assert path.read_text() == text + "\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "file").touch()
    with pytest.raises(FleadError, match="cannot be written"):
        keep_secret(tmp_path / "file" / "uri", SecretStr("x"))


def test_a_secret_that_two_processes_make_at_once_is_the_one_that_was_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = kept_secret(tmp_path / "key")
    monkeypatch.setattr(Path, "exists", lambda _self: False)  # as the other one saw it
    assert kept_secret(tmp_path / "key") == first
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
