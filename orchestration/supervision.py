"""Starts, restarts and stops processes, by supervisord: this module writes its configuration and speaks to it.

Nothing survives: every service ends with supervisord, and supervisord with the process that started it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from config.child import ends_with_parent
from flead.errors import Unavailable

STOP_LIMIT_S = 20
_PREFIX = "flead-"


@dataclass(frozen=True)
class Service:
    """A process to supervise.

    Attributes
    ----------
    port:
        that it listens on, for people to see
    final_exits:
        exit codes that are final; after any other end it is started again
    stop_limit_s:
        how long it may take to stop in order, s, before it is killed
    stop_signal:
        what asks it to stop in order
    """

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int | None = None
    final_exits: tuple[int, ...] = ()
    stop_limit_s: int = STOP_LIMIT_S
    stop_signal: signal.Signals = signal.SIGTERM


@dataclass(frozen=True, slots=True)
class State:
    """How a service is: supervisord's word for it in lower case, and how often it was started again."""

    state: str
    pid: int | None
    restarts: int

    @property
    def given_up(self) -> bool:
        """Whether supervisord has stopped trying."""
        return self.state == "fatal"


class Supervisor:
    """A running supervisord. Enter it from the main thread: supervisord ends with the thread that started it.

    Parameters
    ----------
    services:
        none is started by entering
    folder:
        for the configuration; `logs/` beside it takes each service's output
    """

    def __init__(self, services: list[Service], folder: Path) -> None:
        self.services = {service.name: service for service in services}
        self.logs = folder / "logs"
        self._note = folder / "supervisor.folder"
        self._starts: dict[str, tuple[int, int]] = {}  # service -> last pid seen, starts seen

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        # Not in the run folder: the name of a socket may have 107 characters and no more, and nobody else may look in.
        _remove_left_over(self._note)
        self._work = tempfile.TemporaryDirectory(prefix=_PREFIX)
        work = Path(self._work.name)
        self._note.write_text(str(work))
        configuration = work / "supervisord.conf"
        configuration.write_text(_configuration(self.services.values(), work, self.logs))
        with (self.logs / "supervisord.log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                ends_with_parent([sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(configuration)]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for us: we stop it in order
            )
        proxy: Any = xmlrpc.client.ServerProxy("http://localhost", _UnixTransport(str(work / "supervisor.sock")))
        self._rpc, self._close = proxy.supervisor, proxy("close")
        try:
            self._wait_until_it_answers()
        except Unavailable:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        limit = max((service.stop_limit_s for service in self.services.values()), default=0) + 10
        try:
            self._process.wait(limit)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._close()
        self._work.cleanup()
        self._note.unlink(missing_ok=True)

    def start(self, name: str) -> None:
        """Start a service; returns at once."""
        wait = False
        try:
            self._call("startProcess", name, wait)
        except xmlrpc.client.Fault as fault:
            raise Unavailable(f"{name} could not be started: {fault.faultString}") from None

    def stop(self, name: str) -> None:
        """Stop a service in order, and wait for it; not running is fine."""
        wait = True
        with contextlib.suppress(xmlrpc.client.Fault):
            self._call("stopProcess", name, wait)

    def states(self) -> dict[str, State]:
        """How each service is now."""
        answer = {}
        for info in self._call("getAllProcessInfo"):
            name, pid = info["name"], info["pid"]
            last, starts = self._starts.get(name, (0, 0))
            if pid and pid != last:
                last, starts = pid, starts + 1
                self._starts[name] = last, starts
            state = info["statename"].lower()
            if state == "exited" and info["exitstatus"] not in self.services[name].final_exits:
                state = "restarting"  # supervisord is about to start it again
            answer[name] = State(state, pid or None, max(0, starts - 1))
        return answer

    def last_lines(self, name: str, count: int = 5) -> list[str]:
        """The end of a service's log."""
        path = self.logs / f"{name}.log"
        return path.read_text(errors="replace").strip().splitlines()[-count:] if path.exists() else []

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._rpc, method)(*arguments)
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(
                f"the supervisor does not answer ({error}): see {self.logs / 'supervisord.log'}"
            ) from None

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + 20.0
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(Unavailable):
                self._call("getState")
                return
            time.sleep(0.05)
        raise Unavailable(f"the supervisor did not start: see {self.logs / 'supervisord.log'}")


def _remove_left_over(note: Path) -> None:
    """Remove the folder of a supervisor that was killed: what services are told may hold passwords."""
    try:
        work = Path(note.read_text())
    except FileNotFoundError:
        return
    if work.parent == Path(tempfile.gettempdir()) and work.name.startswith(_PREFIX):  # whoever wrote the note
        shutil.rmtree(work, ignore_errors=True)


_LAUNCH = """
import json, os, sys
service = json.load(open(sys.argv[1]))
os.chdir(service["folder"])
os.execvpe(service["command"][0], service["command"], {**os.environ, **service["environment"]})
"""
"""Becomes the service that a file describes. supervisord reads commands, paths and environments with rules of its own
for quotes, '%', '#' and ';': it is given names without any, in a folder that we name."""


def _configuration(services: Iterable[Service], work: Path, logs: Path) -> str:
    """Describe the services in files under `work`, and write supervisord's configuration for them."""
    (work / "logs").symlink_to(logs, target_is_directory=True)
    (work / "python").symlink_to(sys.executable)
    (work / "launch.py").write_text(_LAUNCH)
    lines = [
        "[supervisord]", "nodaemon=true", f"logfile={work}/logs/supervisor-events.log",
        f"pidfile={work}/supervisord.pid",
        f"childlogdir={work}/logs", "silent=true",
        "[unix_http_server]", f"file={work}/supervisor.sock", "chmod=0700",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface",
    ]  # fmt: skip
    for service in services:
        described = {
            "command": ends_with_parent(service.command, service.stop_signal),
            "environment": dict(service.environment),
            "folder": str(logs.parent),
        }
        (work / f"{service.name}.json").write_text(json.dumps(described))
        codes = ",".join(map(str, service.final_exits))
        lines += [
            f"[program:{service.name}]", f"command={work}/python -IS {work}/launch.py {work}/{service.name}.json",
            "autostart=false", f"autorestart={'unexpected' if codes else 'true'}", f"exitcodes={codes or '0'}",
            f"startsecs={0 if 0 in service.final_exits else 1}", "startretries=10",
            f"stopsignal={service.stop_signal.name[3:]}", f"stopwaitsecs={service.stop_limit_s}", "killasgroup=true",
            "redirect_stderr=true", f"stdout_logfile={work}/logs/{service.name}.log",
            "stdout_logfile_maxbytes=20MB", "stdout_logfile_backups=1",
        ]  # fmt: skip
    return "\n".join(lines) + "\n"


class _UnixTransport(xmlrpc.client.Transport):
    """XML-RPC over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._connection: tuple[Any, Any] = (None, None)

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        """The one connection, kept as the base class keeps it, so that `close` closes it."""
        if self._connection[1] is None:
            self._connection = host, _UnixConnection(self._path)
        connection: http.client.HTTPConnection = self._connection[1]
        return connection


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60.0)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.close()
            raise
