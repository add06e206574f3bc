"""A real mongod for the tests, started once, and an empty database in it for each test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from pydantic import SecretStr
from pymongo.database import Database

from config.child import free_port
from config.settings import MongoSettings
from storage.connection import Document, connect, open_database
from storage.embedded import Mongod, embedded_mongod
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
        for collection in collections(settings):
            database[collection.name].delete_many({})
        yield Mongo(settings, database)
