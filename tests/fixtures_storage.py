"""A real mongod for the tests, started once, and an empty database in it for each test."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr
from pymongo.database import Database

from config.child import ends_with_parent, free_port, stop
from config.settings import MongoSettings
from storage.connection import Document, connect, open_database
from storage.embedded import Mongod, embedded_mongod, initiate, mongod_command
from storage.schema import apply_schema, collections


def wait_until(condition: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@dataclass(frozen=True)
class Mongo:
    """An empty database with its schema, and the settings that lead to it."""

    settings: MongoSettings
    database: Database[Document]


@contextmanager
def mongod_with(dbpath: Path, *options: str, port: int = 0) -> Iterator[Mongod]:
    """A mongod that was started with more options than ours; with --auth it must have been a primary before."""
    dbpath.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    command = [*mongod_command(dbpath, port, dbpath.with_name("mongod.log")), *options]
    process = subprocess.Popen(ends_with_parent(command), stdout=subprocess.DEVNULL)  # noqa: S603
    try:
        if "--auth" not in options:
            initiate(port)
        yield Mongod(port, process.pid)
    finally:
        stop(process)


@pytest.fixture(scope="session")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    with embedded_mongod(tmp_path_factory.mktemp("mongod") / "db", free_port()) as server:
        yield server


@pytest.fixture
def mongo(mongod: Mongod) -> Iterator[Mongo]:
    """One database for all tests, emptied before each: making its collections anew takes half a second."""
    settings = MongoSettings(uri=SecretStr(mongod.uri), database="flead_test")
    with connect(settings) as client:
        database = open_database(client, settings)
        apply_schema(database, settings)
        for name in {collection.name for collection in collections(settings)} - {"schema_version"}:
            database[name].delete_many({})
        yield Mongo(settings, database)
