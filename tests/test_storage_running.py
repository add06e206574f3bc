"""A run's database is found wherever it is, and another's is never taken for it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from pydantic import SecretStr

from config.child import free_port, port_is_taken
from config.settings import MongoSettings
from flead.errors import Unavailable
from storage.connection import connect, open_database
from storage.embedded import embedded_mongod
from storage.running import database_of
from tests.fixtures_storage import Mongo

pytestmark = pytest.mark.servers


def mark(settings: MongoSettings, name: str) -> None:
    with connect(settings) as client:
        open_database(client, settings).marks.insert_one({"_id": name})


def marks(settings: MongoSettings) -> list[str]:
    with connect(settings) as client:
        return [found["_id"] for found in open_database(client, settings).marks.find()]


def test_it_is_started_over_what_the_run_left_and_ends_again(tmp_path: Path) -> None:
    settings = MongoSettings(port=free_port())
    with database_of(settings, tmp_path, create=True) as found:
        mark(found, "ours")
    assert not port_is_taken(found.port)
    with database_of(settings, tmp_path) as found:
        assert (found.port, marks(found)) == (settings.port, ["ours"])


def test_a_running_one_is_used_on_whatever_port_and_goes_on(tmp_path: Path) -> None:
    with embedded_mongod(tmp_path / "mongodb", free_port()) as server:
        for port in (server.port, free_port()):
            with database_of(MongoSettings(port=port), tmp_path) as found:
                assert found.port == server.port
                mark(found, f"by {port}")
        assert len(marks(found)) == 2


def test_the_mongod_of_another_run_is_left_alone(tmp_path: Path) -> None:
    with embedded_mongod(tmp_path / "other" / "mongodb", free_port()) as other:
        theirs = MongoSettings(uri=SecretStr(other.uri))
        with database_of(MongoSettings(port=other.port), tmp_path / "run", create=True) as found:
            mark(found, "ours")
            assert found.port != other.port
        assert marks(theirs) == []


def test_what_is_no_mongod_is_left_alone(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings = MongoSettings(port=silent.getsockname()[1])
        with database_of(settings, tmp_path, create=True) as found:
            assert found.port != settings.port


def test_an_address_is_followed(mongo: Mongo, tmp_path: Path) -> None:
    with database_of(mongo.settings, tmp_path) as found:
        assert found == mongo.settings
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_database(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="holds no database"), database_of(MongoSettings(), tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lock_that_names_another_process_misleads_nobody(tmp_path: Path) -> None:
    with database_of(MongoSettings(port=free_port()), tmp_path, create=True):
        pass
    (tmp_path / "mongodb" / "mongod.lock").write_text("1\n")
    with database_of(MongoSettings(port=free_port()), tmp_path) as found:
        assert marks(found) == []
