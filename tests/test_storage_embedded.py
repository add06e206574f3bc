from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from config.child import free_port, port_is_taken
from flead.errors import CorruptRunFolder, PortTaken, Unavailable
from storage import embedded
from storage.embedded import embedded_mongod, initiate, mongod_command
from storage.mongod_log import first_error
from tests.fixtures_storage import wait_until

pytestmark = pytest.mark.servers


def test_command_is_local_and_a_replica_set(tmp_path: Path) -> None:
    command = mongod_command(tmp_path, 12345, tmp_path / "log")
    pairs = dict(itertools.pairwise(command))
    assert pairs["--bind_ip"] == "127.0.0.1"
    assert pairs["--replSet"] == "flead"
    assert pairs["--port"] == "12345"
    assert pairs["--dbpath"] == str(tmp_path)


def test_it_comes_back_after_kill_9_on_another_port_and_tells_who_is_in_the_way(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    with embedded_mongod(folder, free_port()) as server:
        initiate(server.port)  # again is harmless
        with pytest.raises(PortTaken), embedded_mongod(tmp_path / "other", server.port):
            pass
        with pytest.raises(Unavailable, match="another mongod uses"), embedded_mongod(folder, free_port()):
            pass
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not port_is_taken(server.port))
    with embedded_mongod(folder, free_port()) as server:
        assert port_is_taken(server.port)
    assert not port_is_taken(server.port)


def test_a_corrupt_folder_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    folder.mkdir()
    (folder / "WiredTiger").write_bytes(b"?")
    (folder / "storage.bson").write_bytes(b"?")
    with pytest.raises(CorruptRunFolder, match="move the folder away"), embedded_mongod(folder, free_port()):
        pass


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"")
    with pytest.raises(CorruptRunFolder, match="cannot be made"), embedded_mongod(tmp_path / "db", free_port()):
        pass


def test_no_mongod_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    with pytest.raises(Unavailable, match="no mongod"):
        embedded.find_mongod()


def test_the_wheels_mongod_gets_its_run_bit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    binary = tmp_path / "fiftyone" / "db" / "bin" / "mongod"
    binary.parent.mkdir(parents=True)
    binary.touch(0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    assert embedded.find_mongod() == binary
    assert os.access(binary, os.X_OK)


def test_nobody_answers() -> None:
    with pytest.raises(Unavailable, match="was not ready"):
        initiate(free_port(), limit_s=0.2)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_it_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    port = free_port()
    script = (
        "import sys; from pathlib import Path; from storage.embedded import embedded_mongod\n"
        f"with embedded_mongod(Path({str(tmp_path / 'db')!r}), {port}): print('up', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(  # noqa: S603  # the command line is ours
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(embedded.__file__).parents[1],
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"up\n"
        parent.kill()
    wait_until(lambda: not port_is_taken(port))


def test_the_first_error_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert "no log" in first_error(log)
    log.write_text("")
    assert first_error(log) == "its log is empty"
    log.write_text('{"s":"E","msg":"old"}\n')
    start = log.stat().st_size
    with log.open("a") as file:
        file.write('plain words\n{"s":"I","msg":"fine"}\n{"s":"E","msg":"cause"}\n{"s":"F","msg":"effect"}\n')
    assert first_error(log, start) == "cause"
