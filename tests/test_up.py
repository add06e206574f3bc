"""What `flead up` does before it starts anything, where it cannot start, and when somebody wants it to end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from pymongo import MongoClient

from config.child import free_port
from config.settings import MongoSettings, Settings
from flead.errors import CorruptRunFolder, Unavailable
from orchestration.services import check_database, declare, preflight
from orchestration.status import STATUS_FILE, SUMMARY_FILE, Status
from orchestration.supervision import Supervisor
from orchestration.up import Options, Run
from orchestration.watching import Watcher, judge
from storage.embedded import embedded_mongod
from storage.migrations import COLLECTION, KEY, VERSION
from tests.fixtures_storage import Mongo


@pytest.fixture
def newer(mongo: Mongo) -> Iterator[Mongo]:
    """A database that a newer FLEAD wrote."""
    mongo.database[COLLECTION].update_one(KEY, {"$set": {"version": VERSION + 1}})
    yield mongo
    mongo.database[COLLECTION].update_one(KEY, {"$set": {"version": VERSION}})


@pytest.mark.servers
class TestADatabaseThatIsNotToBeTouched:
    def test_is_refused_before_anything_starts(self, newer: Mongo, tmp_path: Path) -> None:
        with pytest.raises(CorruptRunFolder, match="which a newer FLEAD wrote"):
            preflight(Settings(run_dir=tmp_path, mongodb=newer.settings), [])

    def test_of_the_run_folder_is_refused_as_soon_as_it_can_be_read(self, tmp_path: Path) -> None:
        settings = Settings(run_dir=tmp_path, mongodb=MongoSettings(port=free_port()))
        part = next(part for part in declare(settings, None) if part.service.name == "mongodb")
        with embedded_mongod(tmp_path / "mongodb", settings.mongodb.port) as server:
            part.ready()
            check_database(settings.mongodb.model_copy(update={"database": "other"}))
            with MongoClient[dict[str, Any]](server.uri) as client:
                client["flead"][COLLECTION].insert_one({**KEY, "version": 0, "restoring": {"file": "b.tar"}})
            with pytest.raises(CorruptRunFolder, match=r"the half of a restore of b\.tar"):
                part.ready()

    def test_is_not_waited_for(self, tmp_path: Path) -> None:
        def never() -> None:
            raise CorruptRunFolder("a newer FLEAD wrote it")

        nobody = cast(Supervisor, None)  # who is not asked: there is nothing to wait for
        with pytest.raises(CorruptRunFolder, match="newer"):
            run(tmp_path)._wait(nobody, "mongodb", never, 60.0)


def run(folder: Path) -> Run:
    return Run(Settings(run_dir=folder), Options(None), lambda _: None, lambda _: None)


def test_a_run_that_begins_is_not_taken_for_the_one_before(tmp_path: Path) -> None:
    before = Status("stopped", "", str(tmp_path), counts={"readings": 5}, checks={"job": {"ok": True, "detail": ""}})
    for name in (STATUS_FILE, SUMMARY_FILE):
        (tmp_path / name).write_text(before.to_json())
    shown: list[str] = []
    settings = Settings(run_dir=tmp_path, mongodb=MongoSettings(port=free_port()))
    with Watcher(settings, archived=True, show=lambda status: shown.append(status.state), say=lambda _: None):
        now = json.loads((tmp_path / STATUS_FILE).read_text())
        assert (now["state"], now["counts"], shown) == ("starting", {}, ["starting"])
        assert not (tmp_path / SUMMARY_FILE).exists()


def test_a_run_that_could_not_start_leaves_a_summary_without_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise Unavailable("no")

    monkeypatch.setattr("orchestration.up.preflight", lambda *_: None)
    monkeypatch.setattr("orchestration.up.declare", lambda *_: [])
    monkeypatch.setattr(Run, "_start", cannot)
    monkeypatch.setattr(Run, "_listen_to_signals", lambda _: None)
    with pytest.raises(Unavailable, match="no"):
        run(tmp_path).execute()
    summary = json.loads((tmp_path / SUMMARY_FILE).read_text())
    assert (summary["state"], summary["checks"]) == ("stopped", {})


def test_what_a_killed_flink_left_is_thrown_away(tmp_path: Path) -> None:
    left, kept = tmp_path / "flink" / "tmp" / "flink-rpc.jar", tmp_path / "flink" / "checkpoints" / "a"
    for path in (left, kept):
        path.parent.mkdir(parents=True)
        path.write_text("")
    parts = declare(Settings(run_dir=tmp_path), None, frozenset({"dashboards"}))
    next(part for part in parts if part.service.name == "jobmanager").prepare()
    assert left.parent.is_dir()
    assert not left.exists()
    assert kept.exists()


@pytest.fixture
def signals() -> Iterator[None]:
    """What the tests do to signals is undone."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
class TestATerminalThatIsClosed:
    def test_stops_a_run(self, tmp_path: Path) -> None:
        closed = run(tmp_path)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests were started with
        closed._listen_to_signals()
        os.kill(os.getpid(), signal.SIGHUP)
        assert closed._stopping.wait(10.0)

    def test_is_nothing_to_one_that_was_given_to_nohup(self, tmp_path: Path) -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        run(tmp_path)._listen_to_signals()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN

    @pytest.mark.parametrize("error", [OSError(5, "Input/output error"), BrokenPipeError(), SystemExit(1)])
    def test_does_not_keep_a_run_from_stopping_in_order(self, error: BaseException, tmp_path: Path) -> None:
        def gone(_: object) -> None:
            raise error

        unheard = Run(Settings(run_dir=tmp_path), Options(None), gone, gone, gone)
        unheard._say("stopping")
        unheard._reveal("password")
        unheard._watcher.save()
        assert (tmp_path / STATUS_FILE).exists()


class TestADiskThatFills:
    def test_ends_a_run_in_order_while_there_is_room_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        left, said = iter([5.0, 1.2, 0.9, 0.8]), list[str]()
        watched = Run(Settings(run_dir=tmp_path), Options([]), lambda _: None, said.append)

        def look(watcher: Watcher, _: Supervisor) -> None:
            watcher.status.disk_free_gb = next(left)

        monkeypatch.setattr("orchestration.up.REFRESH_S", 0.0)
        monkeypatch.setattr(Watcher, "look", look)
        watched._watch(cast(Supervisor, None))  # who is not asked: all there is to see is the disk
        assert [line for line in said if "only 0.9 GB are free" in line]
        assert next(left) == 0.8

    @pytest.mark.parametrize(("free_gb", "ok"), [(0.9, False), (1.0, True)])
    def test_is_in_the_verdict(self, free_gb: float, ok: bool) -> None:
        checks = judge(Status("stopping", "", "run", disk_free_gb=free_gb), 2)
        assert checks["disk"] == {"ok": ok, "detail": f"{free_gb:.2f} GB are free"}
