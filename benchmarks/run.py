"""A run of `flead up` to measure: on free ports, in a temporary folder, stopped whatever happens."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from config.child import ends_with_parent
from config.settings import PROJECT
from orchestration.status import STATUS_FILE, SUMMARY_FILE, Status

SIMULATED = "simulated"
POLL_S = 0.5
STOP_LIMIT_S = 300.0
PORTS = (
    "FLEAD_KAFKA__PORT",
    "FLEAD_KAFKA__CONTROLLER_PORT",
    "FLEAD_MONGODB__PORT",
    "FLEAD_FLINK__REST_PORT",
    "FLEAD_FLINK__RPC_PORT",
    "FLEAD_SERVER__PORT",
    "FLEAD_MART__PORT",
    "FLEAD_DASHBOARDS__PORT",
)


class RunEnded(Exception):
    """`flead up` ended where it should have gone on, or without a verdict."""


class Running:
    """A `flead up` in a process of its own, seen through its status file.

    Parameters
    ----------
    run_dir:
        its run folder
    log:
        the file that takes what it says
    """

    def __init__(self, process: subprocess.Popen[bytes], run_dir: Path, log: Path) -> None:
        self.process = process
        self._run_dir = run_dir
        self._log = log

    def status(self) -> Status | None:
        """The newest status; None before the first."""
        return _load(self._run_dir / STATUS_FILE)

    def statuses(self) -> Iterator[Status]:
        """Each new status, looked for twice a second, until `up` ends."""
        last = ""
        while True:
            ended = self.process.poll() is not None
            status = self.status()
            if status is not None and status.updated != last:
                last = status.updated
                yield status
            if ended:
                return
            time.sleep(POLL_S)

    def wait_for(self, condition: Callable[[Status], bool], limit_s: float) -> Status | None:
        """The first status written from now on that meets a condition; None where there was none in time.

        Raises
        ------
        RunEnded
            where `up` has ended
        """
        begun, deadline = time.time(), time.monotonic() + limit_s
        while time.monotonic() < deadline:
            status = self.status()
            if status is not None and written(status) >= begun and condition(status):
                return status
            if self.process.poll() is not None:
                raise RunEnded(self._why_it_ended())
            time.sleep(POLL_S)
        return None

    def end(self) -> None:
        """Stop it in order, as Ctrl-C does, and wait; killed where that takes too long or we are interrupted again."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_LIMIT_S)
        except BaseException:
            self.process.kill()  # its supervisor ends with it, and the services with that
            self.process.wait()
            raise

    def summary(self) -> Status:
        """The last status, with the verdict; `RunEnded` where `up` ended before it had one."""
        found = _load(self._run_dir / SUMMARY_FILE)
        if found is None:
            raise RunEnded(self._why_it_ended())
        return found

    def _why_it_ended(self) -> str:
        said = " | ".join(self._log.read_text(errors="replace").splitlines()[-4:])
        return f"`flead up` ended with exit code {self.process.returncode}: {said or 'it said nothing'}"


@contextmanager
def running(rate: float, seconds: float | None, data: str = SIMULATED, *extra: str) -> Iterator[Running]:
    """Start `flead up`; on leaving, however that comes, it is stopped and its folder removed.

    Parameters
    ----------
    rate:
        readings per second
    seconds:
        how long to send; None: until it is ended
    data:
        a file of readings, or `simulated`
    extra:
        further options of `flead up`
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being terminated stops everything too
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="flead-benchmark-", ignore_cleanup_errors=True))
        )
        log = folder / "up.log"
        command = [sys.executable, "-m", "orchestration", "up", "--loop", "--json", "--rate", str(rate)]
        command += ["--for", str(seconds)] if seconds is not None else []
        command += ["--data", data, "--run-dir", str(folder / "run"), *extra]
        process = subprocess.Popen(  # noqa: S603
            ends_with_parent(command),
            cwd=PROJECT,
            env=os.environ | {name: str(port) for name, port in zip(PORTS, free_ports(len(PORTS)), strict=True)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stack.enter_context(log.open("wb")),
            start_new_session=True,  # Ctrl-C is for us: we stop it in order
        )
        run = Running(process, folder / "run", log)
        stack.callback(run.end)
        yield run


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 that nothing listens on; all are held until the last is known."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def public_or_simulated() -> str:
    """Four days of the Intel Lab's readings where they lie on this machine, else the simulator.

    They are looked for in the folder that FLEAD_DATA names, or in `shared/data` beside the checkout.
    """
    folder = Path(os.environ.get("FLEAD_DATA") or PROJECT.parent / "shared" / "data")
    path = folder / "intel-lab" / "data_2004-03-04_2004-03-07.txt.gz"
    return str(path.absolute()) if path.is_file() else SIMULATED


def data_named(text: str) -> str:
    """What `--data` means: the simulator or a file, made absolute since `up` runs in the checkout."""
    return text if text == SIMULATED else str(Path(text).expanduser().absolute())


def written(status: Status) -> float:
    """When a status was written, Unix time in seconds."""
    return datetime.fromisoformat(status.updated).timestamp()


def _load(path: Path) -> Status | None:
    return Status(**json.loads(path.read_text())) if path.exists() else None
