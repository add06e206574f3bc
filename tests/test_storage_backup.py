"""A backup is one instant in one file; a restore gives all of it back, or says plainly that it did not."""

from __future__ import annotations

import io
import json
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import bson
import pytest
from bson import Decimal128
from bson.raw_bson import RawBSONDocument
from pydantic import SecretStr
from pymongo.database import Database

from config.settings import PROJECT, MongoSettings
from flead.errors import CorruptRunFolder, FleadError, Unavailable
from storage import migrations
from storage.archive import ArchiveRepository
from storage.backup import APP_NAME, BadBackup, _batches, check_backup, restore_backup, write_backup
from storage.connection import Document, connect, open_database
from storage.migrations import VERSION, Migration, version_of
from storage.schema import apply_schema
from tests.fixtures_storage import Mongo

pytestmark = pytest.mark.servers
START = datetime(2024, 1, 1, tzinfo=UTC)


def readings(first: int, last: int) -> list[Document]:
    return [
        {
            "device_id": "mote-7",
            "timestamp": START + timedelta(milliseconds=i),
            "sensors": {"light": i, "dark": None},
        }
        for i in range(first, last)
    ]


@pytest.fixture
def filled(mongo: Mongo) -> Iterator[Database[Document]]:
    """A database with documents in some of its collections, and in one that nobody declared."""
    archive = ArchiveRepository(mongo.database)
    archive.add_readings(readings(0, 600))
    archive.add_predictions(readings(0, 5))
    odd = {
        "_id": 1,
        "bytes": b"\0",
        "exact": Decimal128("0.1"),
        "nothing": None,
        "deep": [{"a": [1.5]}],
        "$odd.name": 1,
    }
    mongo.database.of_nobody.replace_one({"_id": 1}, odd, upsert=True)
    yield mongo.database
    mongo.database.of_nobody.drop()


@pytest.fixture
def target(mongo: Mongo) -> Iterator[Mongo]:
    """An empty database on the same server, and a client as `flead restore` has one."""
    settings = mongo.settings.model_copy(update={"database": "flead_restored"})
    with connect(settings, APP_NAME) as client:
        client.drop_database("flead_restored")
        yield Mongo(settings, open_database(client, settings))
        client.drop_database("flead_restored")


def content(database: Database[Document]) -> dict[str, list[Document]]:
    names = sorted(set(database.list_collection_names()) - {"schema_version"})
    found = {name: list(database[name].find().sort("_id")) for name in names}
    return {name: documents for name, documents in found.items() if documents}


def test_what_was_backed_up_comes_back(filled: Database[Document], target: Mongo, tmp_path: Path) -> None:
    told: list[int] = []
    written = write_backup(filled, tmp_path / "backup", on_progress=told.append)
    assert written.documents == 606
    assert told == sorted(told)
    assert told[-1] == 606
    assert [path.name for path in tmp_path.iterdir()] == ["backup"]
    assert stat.S_IMODE((tmp_path / "backup").stat().st_mode) == 0o600
    told.clear()
    assert restore_backup(target.database, target.settings, tmp_path / "backup", on_progress=told.append) == written
    assert told[-1] == 606
    assert content(target.database) == content(filled)
    assert target.database.device_data.index_information() == filled.device_data.index_information()
    apply_schema(target.database, target.settings)
    assert version_of(target.database) == VERSION


def test_large_documents_are_written_a_few_at_a_time() -> None:
    large, small = (RawBSONDocument(bson.encode({"a": b"\0" * size})) for size in (7_000_000, 1))
    batches = list(_batches([large] * 4 + [small] * 1_500))
    assert [len(batch) for batch in batches] == [3, 1_000, 501]


def test_it_is_one_instant_while_a_run_writes(filled: Database[Document], tmp_path: Path) -> None:
    archive = ArchiveRepository(filled)
    before = content(filled)

    def write(done: int) -> None:
        archive.add_readings(readings(1_000 + done, 1_003 + done))
        archive.add_predictions(readings(1_000 + done, 1_003 + done))

    manifest = write_backup(filled, tmp_path / "backup", ours=True, on_progress=write)
    assert filled.predictions.count_documents({}) > 5
    assert {name: part.documents for name, part in manifest.collections.items() if part.documents} == {
        name: len(documents) for name, documents in before.items()
    }
    parameter = filled.client.admin.command({"getParameter": 1, "minSnapshotHistoryWindowInSeconds": 1})
    assert parameter["minSnapshotHistoryWindowInSeconds"] == 300


def test_a_database_that_holds_something_is_replaced_only_where_that_is_said(
    filled: Database[Document], target: Mongo, tmp_path: Path
) -> None:
    write_backup(filled, tmp_path / "backup")
    target.database.of_before.insert_one({"_id": 1})
    with pytest.raises(FleadError, match=r"not empty \(of_before\).*--replace"):
        restore_backup(target.database, target.settings, tmp_path / "backup")
    assert content(target.database) == {"of_before": [{"_id": 1}]}
    restore_backup(target.database, target.settings, tmp_path / "backup", replace=True)
    assert content(target.database) == content(filled)


def test_what_a_running_flead_uses_is_left_alone(filled: Database[Document], target: Mongo, tmp_path: Path) -> None:
    write_backup(filled, tmp_path / "backup")
    with connect(target.settings) as other:
        open_database(other, target.settings).command("ping")
        with pytest.raises(Unavailable, match="stop it first"):
            restore_backup(target.database, target.settings, tmp_path / "backup", replace=True)
    restore_backup(target.database, target.settings, tmp_path / "backup")


KILLED = """
import os, signal, sys
from pathlib import Path
from pydantic import SecretStr
from config.settings import MongoSettings
from storage import migrations
from storage.backup import APP_NAME, restore_backup
from storage.connection import connect, open_database
migrations._LEASE_S = 0.5
settings = MongoSettings(uri=SecretStr(sys.argv[1]), database=sys.argv[2])
with connect(settings, APP_NAME) as client:
    kill = lambda done: os.kill(os.getpid(), signal.SIGKILL)
    restore_backup(open_database(client, settings), settings, Path(sys.argv[3]), on_progress=kill)
"""


def test_a_killed_restore_is_told_and_can_be_done_again(
    filled: Database[Document], target: Mongo, tmp_path: Path
) -> None:
    path = tmp_path / "backup of monday"
    write_backup(filled, path)
    assert target.settings.uri is not None
    arguments = [target.settings.uri.get_secret_value(), target.database.name, str(path)]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=PROJECT, check=False)  # noqa: S603
    assert killed.returncode == -9
    for act in (
        lambda: apply_schema(target.database, target.settings),
        lambda: write_backup(target.database, tmp_path / "of a half"),
    ):
        with pytest.raises(CorruptRunFolder, match="half of a restore of backup of monday"):
            act()
    restore_backup(target.database, target.settings, path)
    assert content(target.database) == content(filled)
    apply_schema(target.database, target.settings)


def test_a_backup_of_an_older_layout_is_brought_to_todays(
    filled: Database[Document], target: Mongo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_backup(filled, tmp_path / "backup")

    def light_to_lux(database: Database[Document]) -> None:
        database.device_data.update_many({}, {"$rename": {"sensors.light": "sensors.lux"}})

    added = Migration(VERSION + 1, "light is called lux", light_to_lux)
    monkeypatch.setattr(migrations, "MIGRATIONS", (*migrations.MIGRATIONS, added))
    restore_backup(target.database, target.settings, tmp_path / "backup")
    assert version_of(target.database) == VERSION + 1
    assert target.database.device_data.count_documents({"sensors.lux": {"$exists": True}}) == 600


def change_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    with tarfile.open(path) as tar:
        parts = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    manifest = json.loads(parts["manifest.json"])
    change(manifest)
    parts["manifest.json"] = json.dumps(manifest).encode()
    with tarfile.open(path, "w") as tar:
        for name, part in parts.items():
            if name != manifest.get("without"):
                info = tarfile.TarInfo(name)
                info.size = len(part)
                tar.addfile(info, io.BytesIO(part))


def flip_a_byte(path: Path) -> None:
    with tarfile.open(path) as tar:
        at = tar.getmember("device_data.bson.gz").offset_data + 700
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def rename_a_collection(manifest: dict[str, Any]) -> None:
    manifest["collections"]["system.users"] = manifest["collections"].pop("device_data")


def count_one_more(manifest: dict[str, Any]) -> None:
    manifest["collections"]["device_data"]["documents"] += 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip_a_byte, "checksum of device_data"),
        (lambda path: path.write_bytes(path.read_bytes()[:-10_400]), "no whole backup"),
        (lambda path: path.write_bytes(b"?" * 20_000), "no whole backup"),
        (lambda path: path.write_bytes(b""), "no whole backup"),
        (lambda path: path.unlink(), "there is no file"),
        (lambda path: change_manifest(path, lambda m: m.update(without="device_data.bson.gz")), "it has no device"),
        (lambda path: change_manifest(path, lambda m: m.update(without="manifest.json")), "it has no manifest"),
        (lambda path: change_manifest(path, lambda m: m.pop("layout")), "layout: Field required"),
        (lambda path: change_manifest(path, lambda m: m.update(format=2)), "another format"),
        (lambda path: change_manifest(path, rename_a_collection), "no collection of a backup"),
        (lambda path: change_manifest(path, count_one_more), "holds 600 documents, not 601"),
        (lambda path: change_manifest(path, lambda m: m.update(layout=VERSION + 1)), "a newer FLEAD"),
    ],
    ids=[
        "a byte", "cut off", "no tar", "empty", "none", "a part", "the manifest", "a field", "format", "system",
        "count", "layout",
    ],
)  # fmt: skip
def test_what_is_no_whole_backup_is_refused_in_a_line_and_touches_nothing(
    filled: Database[Document], target: Mongo, tmp_path: Path, damage: Callable[[Path], object], says: str
) -> None:
    path = tmp_path / "backup"
    write_backup(filled, path)
    damage(path)
    target.database.of_before.insert_one({"_id": 1})
    with pytest.raises(FleadError, match=says) as raised:
        restore_backup(target.database, target.settings, path, replace=True)
    assert isinstance(raised.value, BadBackup | CorruptRunFolder)
    assert "\n" not in str(raised.value)
    assert target.database.list_collection_names() == ["of_before"]


def test_a_folder_is_no_backup(tmp_path: Path) -> None:
    with pytest.raises(BadBackup, match="no whole backup"):
        check_backup(tmp_path)


def test_a_database_of_a_newer_version_is_not_backed_up(target: Mongo, tmp_path: Path) -> None:
    target.database.schema_version.insert_one({"_id": "schema", "version": VERSION + 1})
    with pytest.raises(CorruptRunFolder, match="a newer FLEAD"):
        write_backup(target.database, tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_nobody_answers(tmp_path: Path) -> None:
    settings = MongoSettings(uri=SecretStr("mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=200"))
    with connect(settings) as client, pytest.raises(Unavailable, match="does not answer"):
        write_backup(open_database(client, settings), tmp_path / "backup")
