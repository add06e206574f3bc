"""`flead backup`, `restore` and `reader`, over run folders whose MongoDB runs or does not."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from config.child import free_port
from config.settings import MongoSettings
from orchestration.status import only_run
from storage.archive import ArchiveRepository
from storage.connection import connect, open_database
from storage.embedded import embedded_mongod
from storage.running import database_of
from storage.schema import apply_schema
from tests.fixtures_cli import Flead

pytestmark = pytest.mark.servers
READING = {"device_id": "mote-7", "timestamp": "2004-03-04T00:00:00Z", "sensors": {"light": 43}}


def fill(settings: MongoSettings) -> None:
    with connect(settings) as client:
        database = open_database(client, settings)
        apply_schema(database, settings)
        ArchiveRepository(database).add_readings([READING])


def readings(run_dir: Path) -> int:
    with database_of(MongoSettings(port=free_port()), run_dir) as settings, connect(settings) as client:
        return open_database(client, settings).device_data.count_documents({})


@pytest.fixture
def used(run_dir: Path) -> Path:
    """A run folder with one reading in its database, where nothing runs."""
    with database_of(MongoSettings(port=free_port()), run_dir, create=True) as settings:
        fill(settings)
    return run_dir


def test_a_run_that_is_over_moves_to_another_folder(flead: Flead, used: Path, tmp_path: Path) -> None:
    ended = flead("backup", tmp_path / "b", "--json")
    assert (ended.code, json.loads(ended.out)["documents"]) == (0, 1)
    ended = flead("restore", tmp_path / "b", "--run-dir", tmp_path / "new")
    assert (ended.code, ended.out) == (0, "")
    assert "restored: 1 documents" in ended.err
    assert readings(tmp_path / "new") == 1
    ended = flead("restore", tmp_path / "b", "--run-dir", tmp_path / "new")
    assert ended.code == 1
    assert "--replace" in ended.err
    assert flead("restore", tmp_path / "b", "--run-dir", tmp_path / "new", "--replace").code == 0


def test_a_running_one_is_backed_up_and_is_not_restored_into(flead: Flead, used: Path, tmp_path: Path) -> None:
    with embedded_mongod(used / "mongodb", free_port()):
        assert flead("backup", tmp_path / "b").code == 0
        with only_run(used):
            ended = flead("restore", tmp_path / "b", "--replace")
    assert ended.code == 1
    assert "another run uses" in ended.err


@pytest.mark.parametrize("command", ["backup", "reader"])
def test_a_folder_without_a_database(flead: Flead, run_dir: Path, tmp_path: Path, command: str) -> None:
    arguments = [tmp_path / "b"] if command == "backup" else []
    ended = flead(command, *arguments)
    assert ended.code == 1
    assert "holds no database" in ended.err
    assert not list(tmp_path.iterdir())


def test_what_is_no_backup_starts_nothing(flead: Flead, run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "b").write_text("no backup")
    ended = flead("restore", tmp_path / "b")
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert not run_dir.exists()


def test_a_file_that_cannot_be_written(flead: Flead, used: Path, tmp_path: Path) -> None:
    ended = flead("backup", tmp_path / "no folder" / "b")
    assert ended.code == 1
    assert "cannot be written" in ended.err.splitlines()[-1]


def test_the_readers_address_is_in_a_file_and_nowhere_else(flead: Flead, used: Path) -> None:
    ended = flead("reader")
    assert ended.code == 0
    file = used / "secrets" / "mongodb-reader.uri"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    password = file.read_text().split(":")[2].split("@")[0]
    assert len(password) > 40
    assert password not in ended.out + ended.err + (used / "mongod.log").read_text()
    assert "without access control" in ended.err
