"""The database of a run folder, for commands that may come while the run is on, or while nothing runs."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr
from pymongo.errors import PyMongoError

from config.child import free_port, port_is_taken
from config.settings import MongoSettings
from flead.errors import Unavailable
from storage.connection import Client
from storage.embedded import Mongod, embedded_mongod, initiate

log = logging.getLogger(__name__)

FOLDER = "mongodb"
"""Where the embedded mongod's data lie in a run folder."""

_ANSWER_MS = 2_000


@contextmanager
def database_of(settings: MongoSettings, run_dir: Path, *, create: bool = False) -> Iterator[MongoSettings]:
    """Settings that lead to a run's database as long as the context lasts.

    It is the one that `mongodb.uri` names; else the run's own mongod, on whatever port it listens; else an embedded
    one, started for the time being over what the run left. A mongod over other data is never taken for the run's.
    Enter from the main thread (see `embedded_mongod`).

    Parameters
    ----------
    create:
        make an empty database where the folder holds none

    Raises
    ------
    Unavailable
        where the folder holds no database and none is to be made, or its mongod cannot be reached or started
    """
    if settings.uri:
        yield settings
        return
    dbpath = run_dir.expanduser().absolute() / FOLDER
    running = find_running(settings.port, dbpath)
    if running:
        initiate(running.port)  # one that has just started may not be writable yet
        yield _leading_to(running, settings)
        return
    if not create and not (dbpath / "WiredTiger").exists():
        raise Unavailable(
            f"{run_dir} holds no database: name the folder of a run with --run-dir, or set mongodb.uri to a running one"
        )
    port = free_port() if port_is_taken(settings.port) else settings.port
    with embedded_mongod(dbpath, port) as server:
        yield _leading_to(server, settings)


def find_running(port: int, dbpath: Path) -> Mongod | None:
    """Find the mongod that runs over `dbpath`: on `port`, or where the process that locked the folder listens."""
    holder = _holder(dbpath)
    for candidate in (port, _port_of(holder)):
        if candidate and port_is_taken(candidate) and _serves(candidate, dbpath):
            return Mongod(candidate, holder or 0)
    return None


def _leading_to(server: Mongod, settings: MongoSettings) -> MongoSettings:
    return settings.model_copy(update={"uri": SecretStr(server.uri), "port": server.port})


def _serves(port: int, dbpath: Path) -> bool:
    """Whether what listens on `port` is a mongod over this folder; it says so itself."""
    limits: dict[str, Any] = {
        "serverSelectionTimeoutMS": _ANSWER_MS,
        "connectTimeoutMS": _ANSWER_MS,
        "socketTimeoutMS": _ANSWER_MS,
    }
    try:
        with Client("127.0.0.1", port, directConnection=True, **limits) as client:
            options = client.admin.command("getCmdLineOpts")
            return Path(options["parsed"]["storage"]["dbPath"]).resolve() == dbpath.resolve()
    except (PyMongoError, KeyError) as error:
        log.debug("port %d is not the run's mongod: %s", port, error)
        return False


def _holder(dbpath: Path) -> int | None:
    """The process that says it holds a data folder: a mongod writes its id into the lock, and empties it at its end."""
    try:
        return int((dbpath / "mongod.lock").read_text())
    except (OSError, ValueError):
        return None


def _port_of(pid: int | None) -> int | None:
    """Read the port from a mongod's command line."""
    if pid is None:
        return None
    try:
        pairs = dict(itertools.pairwise(psutil.Process(pid).cmdline()))
        return int(pairs["--port"])
    except (psutil.Error, KeyError, ValueError):
        return None
