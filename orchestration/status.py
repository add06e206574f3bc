"""What is known of a run, and where others find it: the files in its folder, and the lock that says that it is on."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from flead.errors import CorruptRunFolder, FleadError, Unavailable

STATUS_FILE = "status.json"
SUMMARY_FILE = "summary.json"
LOCK_FILE = "up.lock"
LOOK_S = 0.5
"""Who looks whether a run is on holds the lock for a moment: a run that starts just then waits so long."""


@dataclass
class Status:
    """One look at a run; what `flead status --json` prints and `summary.json` keeps."""

    state: str
    updated: str
    run_dir: str
    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    lag: dict[str, int] = field(default_factory=dict)
    archive_lag: dict[str, int] = field(default_factory=dict)
    latency_ms: dict[str, float | None] = field(default_factory=dict)
    latency_ms_whole_run: dict[str, float | None] = field(default_factory=dict)
    error: dict[str, float | None] = field(default_factory=dict)
    dead_letter_reasons: dict[str, int] = field(default_factory=dict)
    producer: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    mart: dict[str, Any] = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)
    disk_free_gb: float | None = None
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def mark_stopped(self) -> None:
        """Say of the run and all its services that they have ended."""
        self.state = "stopped"
        for service in self.services.values():
            service |= {"state": "stopped", "pid": None}

    def to_json(self) -> str:
        """As one JSON object."""
        return json.dumps(asdict(self), indent=1)


def load_status(run_dir: Path) -> Status:
    """The last look at the run of a folder.

    Raises
    ------
    FleadError
        where there has been no run, or one of another version of FLEAD
    """
    path = run_dir / STATUS_FILE
    if not path.exists():
        raise FleadError(f"there has been no run in {run_dir}: start one with `flead up`")
    try:
        return Status(**json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise FleadError(f"{path} was written by another version: start the run again") from None


@contextmanager
def only_run(run_dir: Path) -> Iterator[None]:
    """Hold the run folder; its lock file names our process for `flead down`.

    Raises
    ------
    CorruptRunFolder
        where it can be no run folder
    Unavailable
        where another run holds it
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / LOCK_FILE).open("a+")
    except OSError as error:
        raise CorruptRunFolder(
            f"the run folder {run_dir} cannot be used ({error.strerror}): name another with --run-dir"
        ) from None
    with lock:
        if not _locked(lock, fcntl.LOCK_EX, LOOK_S):
            raise Unavailable(
                f"another run uses {run_dir}: stop it with `flead down --run-dir {run_dir}`, or name another folder"
            )
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def running_pid(run_dir: Path) -> int | None:
    """The process that holds a run folder; None where no run does.

    Raises
    ------
    CorruptRunFolder
        where we may not look
    """
    try:
        with (run_dir / LOCK_FILE).open() as lock:
            if _locked(lock, fcntl.LOCK_SH):  # not LOCK_EX: two who look at once would take each other for a run
                return None
            return int(lock.read() or 0) or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CorruptRunFolder(f"the run folder {run_dir} cannot be read ({error.strerror})") from None


def _locked(lock: TextIO, kind: int, limit_s: float = 0.0) -> bool:
    """Take a lock, or wait for it no longer than `limit_s`."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        else:
            return True
