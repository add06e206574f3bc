"""Real processes under a real supervisord: started again when they die, and none of them outlives us."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from config.settings import PROJECT
from flead.errors import Unavailable
from orchestration.supervision import STOP_LIMIT_S, Service, State, Supervisor
from tests.fixtures_storage import wait_until

FOREVER = "import signal, sys; print('up', flush=True); signal.pause()"
DEAF = """
import signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
while True:
    signal.pause()
"""
TALKS = """
import signal, sys
print("one\\ntwo")
print("three", file=sys.stderr, flush=True)
print("four", flush=True)
signal.pause()
"""
WORKS_A_WHILE = """
import signal
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 1.2)
signal.pause()
"""
"""Ends well after 1.2 s: what ends within a second supervisord takes for a failed start."""
SAYS = """
import json, os, signal, sys
print(json.dumps([sys.argv[1:], {k: v for k, v in os.environ.items() if k.startswith("SAID_")}]), flush=True)
signal.pause()
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="children that end with their parent need Linux")


def python(code: str, *arguments: str) -> list[str]:
    """A command that runs the code; a line break would end a line of supervisord's configuration."""
    return [sys.executable, "-c", f"exec({code!r})", *arguments]


def sleeper(name: str = "sleeper") -> Service:
    return Service(name, python(FOREVER))


def alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def pid_of(supervisor: Supervisor, name: str = "sleeper") -> int:
    """The process of a service that has said that it is up."""
    wait_until(lambda: supervisor.states()[name].pid is not None)
    pid = supervisor.states()[name].pid
    assert pid is not None
    return pid


def wait_for_state(supervisor: Supervisor, name: str, state: str) -> None:
    wait_until(lambda: supervisor.states()[name].state == state)


class TestARun:
    def test_starts_what_it_is_told_to_and_stops_all_of_it_at_the_end(self, tmp_path: Path) -> None:
        with Supervisor([sleeper("one"), sleeper("two"), sleeper("three")], tmp_path) as supervisor:
            assert set(supervisor.states().values()) == {State("stopped", None, 0)}
            supervisor.start("one")
            supervisor.start("two")
            pids = [pid_of(supervisor, "one"), pid_of(supervisor, "two")]
            assert all(map(alive, pids))
            wait_until(lambda: supervisor.last_lines("one") == ["up"])
            assert supervisor.states()["three"].state == "stopped"
        assert not any(map(alive, pids))

    def test_starts_a_killed_service_again_and_counts_it(self, tmp_path: Path) -> None:
        with Supervisor([sleeper()], tmp_path) as supervisor:
            supervisor.start("sleeper")
            wait_for_state(supervisor, "sleeper", "running")
            first = pid_of(supervisor)
            assert supervisor.states()["sleeper"].restarts == 0
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: supervisor.states()["sleeper"].pid not in (None, first))
            assert supervisor.states()["sleeper"].restarts == 1
            assert not alive(first)

    def test_stops_one_and_leaves_the_others(self, tmp_path: Path) -> None:
        with Supervisor([sleeper("one"), sleeper("two")], tmp_path) as supervisor:
            supervisor.start("one")
            supervisor.start("two")
            one, two = pid_of(supervisor, "one"), pid_of(supervisor, "two")
            supervisor.stop("one")
            assert not alive(one)
            assert supervisor.states()["one"].pid is None
            assert alive(two)
            supervisor.stop("one")  # again: fine

    def test_kills_what_does_not_want_to_stop(self, tmp_path: Path) -> None:
        with Supervisor([Service("deaf", python(DEAF), stop_limit_s=1)], tmp_path) as supervisor:
            supervisor.start("deaf")
            wait_until(lambda: "up" in supervisor.last_lines("deaf"))
            pid = pid_of(supervisor, "deaf")
        assert not alive(pid)

    def test_lets_a_service_that_may_end_end(self, tmp_path: Path) -> None:
        with Supervisor([Service("ends", python(WORKS_A_WHILE), final_exits=(0,))], tmp_path) as supervisor:
            supervisor.start("ends")
            wait_for_state(supervisor, "ends", "exited")
            assert supervisor.states()["ends"] == State("exited", None, 0)
            assert not supervisor.states()["ends"].given_up

    def test_keeps_the_end_of_what_a_service_says(self, tmp_path: Path) -> None:
        with Supervisor([Service("talks", python(TALKS))], tmp_path) as supervisor:
            assert supervisor.last_lines("talks") == []
            supervisor.start("talks")
            wait_until(lambda: "four" in supervisor.last_lines("talks"))
            assert "three" in supervisor.last_lines("talks")
            assert len(supervisor.last_lines("talks", 1)) == 1

    def test_says_so_when_supervisord_is_gone_and_leaves_no_child(self, tmp_path: Path) -> None:
        with Supervisor([sleeper()], tmp_path) as supervisor:
            supervisor.start("sleeper")
            pid = pid_of(supervisor)
            supervisor._process.kill()
            wait_until(lambda: not alive(pid))
            with pytest.raises(Unavailable, match=r"supervisor does not answer.*supervisord\.log"):
                supervisor.states()

    def test_keeps_secrets_from_other_users(self, tmp_path: Path) -> None:
        with Supervisor([Service("s", python(FOREVER), {"SECRET": "hunter2"})], tmp_path) as supervisor:
            work = Path(supervisor._work.name)
            assert "hunter2" in (work / "s.json").read_text()
            assert work.stat().st_mode & 0o077 == 0
            assert not [path for path in tmp_path.rglob("*") if path.is_file() and "hunter2" in path.read_text()]
        assert not work.exists()


PARENT = """
import sys, signal
from pathlib import Path
from orchestration.supervision import Service, Supervisor
code = "import signal; print('up', flush=True); signal.pause()"
with Supervisor([Service(n, [sys.executable, "-c", code]) for n in ("one", "two")], Path(sys.argv[1])) as supervisor:
    for name in ("one", "two"):
        supervisor.start(name)
    pids = []
    while len(pids) < 2:
        pids = [state.pid for state in supervisor.states().values() if state.pid]
    print(supervisor._process.pid, *pids, flush=True)
    signal.pause()
"""


def test_a_parent_killed_outright_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE) as parent:  # noqa: S603
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 3
        assert all(map(alive, pids))
        parent.kill()
        wait_until(lambda: not any(map(alive, pids)), STOP_LIMIT_S + 10.0)  # a signal between fork and exec is lost
    note = tmp_path / "supervisor.folder"
    work = Path(note.read_text())
    assert (work / "one.json").exists(), "killed, it could not remove what its services were told"
    with Supervisor([sleeper()], tmp_path):
        assert not work.exists(), "the next one does"
    assert not note.exists()


def test_only_a_folder_of_ours_is_removed(tmp_path: Path) -> None:
    other = tmp_path / "flead-other"
    other.mkdir()
    (tmp_path / "supervisor.folder").write_text(str(other))
    with Supervisor([sleeper()], tmp_path):
        assert other.exists()


class TestWhatAServiceIsTold:
    def told(self, folder: Path, arguments: list[str], environment: Mapping[str, str]) -> tuple[list[str], object]:
        """What reached the service."""
        with Supervisor([Service("says", python(SAYS, *arguments), environment)], folder) as supervisor:
            supervisor.start("says")
            wait_until(lambda: bool(supervisor.last_lines("says")))
            got, said = json.loads(supervisor.last_lines("says", 1)[0])
        return got, said

    def test_survives_signs_that_supervisord_or_a_shell_would_take_for_its_own(self, tmp_path: Path) -> None:
        arguments = [
            "a b", "50%", "%(here)s", "%%", "it's", 'say "hi"', "back\\slash", "", "$HOME", "*", "a;b", "#b", "a=b,c",
            "a ;b", "a #b", "one\ntwo",
            "ü\U0001f600", "~", "{x}", "`id`",
        ]  # fmt: skip
        environment = {
            "SAID_SPACE": "a b", "SAID_PERCENT": "50% of %(here)s", "SAID_QUOTE": "it's", "SAID_LIST": "a,b=c",
            "SAID_EMPTY": "", "SAID_BLANK": " ", "SAID_BACKSLASH": "back\\slash", "SAID_UNICODE": "ü\U0001f600",
            "SAID_JSON": '{"a": 1}', "SAID_COMMENT": "a #b ;c", "SAID_LINES": "one\ntwo",
            "SAID_QUOTED": "'x'",
            "SAID_URI": "mongodb://u:p%40ss@h/?a=b&c=d", "SAID_DOLLAR": "$HOME",
        }  # fmt: skip
        assert self.told(tmp_path, arguments, environment) == (arguments, environment)

    @pytest.mark.parametrize(
        "name",
        ["it's a;b of ü", "50% off", "a #b", 'q"q', "/".join(["long" * 25] * 3)],
        ids=lambda name: name[:8],
    )
    def test_does_not_depend_on_the_name_of_the_run_folder(self, name: str, tmp_path: Path) -> None:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        assert self.told(folder, [str(folder)], {"SAID_WHERE": str(folder)}) == (
            [str(folder)],
            {"SAID_WHERE": str(folder)},
        )
        assert (folder / "logs" / "says.log").exists()
