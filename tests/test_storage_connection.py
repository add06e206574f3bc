"""One client serves all threads of a process, with a pool of a known size."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from pydantic import SecretStr
from pymongo import MongoClient
from pymongo.monitoring import CommandListener, ConnectionPoolListener

from config.settings import MongoSettings
from flead.errors import Unavailable
from storage import connection
from storage.connection import connect, open_database, ping
from tests.fixtures_storage import Mongo

pytestmark = pytest.mark.servers


class Pool(ConnectionPoolListener):
    """Counts connections; every event that is of no interest is passed over."""

    def __init__(self) -> None:
        self.lock, self.made, self.out, self.most_out = threading.Lock(), 0, 0, 0

    def connection_created(self, event: Any) -> None:
        with self.lock:
            self.made += 1

    def connection_checked_out(self, event: Any) -> None:
        with self.lock:
            self.out += 1
            self.most_out = max(self.most_out, self.out)

    def connection_checked_in(self, event: Any) -> None:
        with self.lock:
            self.out -= 1

    def _passed_over(self, event: Any) -> None: ...

    pool_created = pool_ready = pool_cleared = pool_closed = _passed_over
    connection_ready = connection_closed = _passed_over
    connection_check_out_started = connection_check_out_failed = _passed_over


class Holder(CommandListener):
    """Keeps the connection of the first command busy until it is told to go on."""

    def __init__(self) -> None:
        self.first, self.held, self.go_on = True, threading.Event(), threading.Event()

    def started(self, event: Any) -> None:
        if self.first:
            self.first = False
            self.held.set()
            self.go_on.wait(20)

    def succeeded(self, event: Any) -> None: ...

    def failed(self, event: Any) -> None: ...


def listen(monkeypatch: pytest.MonkeyPatch, listener: Any) -> None:
    monkeypatch.setattr(connection, "MongoClient", partial(MongoClient, event_listeners=[listener]))


def test_many_threads_stay_within_the_pool(mongo: Mongo, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    listen(monkeypatch, pool)
    with connect(mongo.settings.model_copy(update={"max_pool_size": 3})) as client:
        found = open_database(client, mongo.settings).device_data
        together = threading.Barrier(12)

        def work(_: int) -> int:
            together.wait(10)
            return sum(found.count_documents({}) for _ in range(25))

        with ThreadPoolExecutor(12) as threads:
            assert list(threads.map(work, range(12))) == [0] * 12
    assert 1 < pool.most_out <= 3
    assert pool.made <= 3


@pytest.fixture
def busy(mongo: Mongo) -> MongoSettings:
    """Settings with a pool of one connection and a short wait for it."""
    assert mongo.settings.uri is not None
    uri = mongo.settings.uri.get_secret_value() + "&waitQueueTimeoutMS=100"
    return mongo.settings.model_copy(update={"uri": SecretStr(uri), "max_pool_size": 1})


def test_a_pool_that_is_all_in_use_is_told_with_its_mend(busy: MongoSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    holder = Holder()
    listen(monkeypatch, holder)
    with connect(busy) as client, ThreadPoolExecutor(1) as thread:
        database = open_database(client, busy)
        first = thread.submit(ping, database)
        try:
            assert holder.held.wait(10)
            with pytest.raises(Unavailable, match=r"busy: raise mongodb\.max_pool_size"):
                ping(database)
        finally:
            holder.go_on.set()
        first.result(10)


def test_what_the_address_says_wins(mongo: Mongo) -> None:
    settings = MongoSettings(uri=SecretStr("mongodb://127.0.0.1:1/?MAXPOOLSIZE=5"), max_pool_size=9)
    with connect(settings) as client:
        assert client.options.pool_options.max_pool_size == 5
    with connect(MongoSettings(max_pool_size=9)) as client:
        assert client.options.pool_options.max_pool_size == 9
