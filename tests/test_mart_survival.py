"""Whatever is killed, in the end the mart is what MongoDB is."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from pydantic import SecretStr
from pymongo.errors import PyMongoError

from config.child import free_port
from config.settings import MartSettings, MongoSettings
from flead.errors import CorruptRunFolder, Unavailable
from storage.connection import connect, open_database
from storage.embedded import embedded_mongod
from tests.fixtures_mart import Mart, follow_process, prediction, reading, wait_level
from tests.fixtures_storage import wait_until
from tests.test_mart_follower import operations
from visualization.mart.connection import connect as connect_mart
from visualization.mart.server import Role, embedded_postgres

pytestmark = pytest.mark.servers

KILLS = 6


class Servers:
    """A MongoDB and a PostgreSQL of their own, on ports that stay."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._mongod, self._postgres = stack.enter_context(ExitStack()), stack.enter_context(ExitStack())
        port = free_port()
        self.mongodb = MongoSettings(
            port=port, uri=SecretStr(f"mongodb://127.0.0.1:{port}/?replicaSet=flead&directConnection=true")
        )
        self.mart = Mart(MartSettings(port=free_port()), folder / "run")
        self.start_mongod()
        self.start_postgres()

    def start_mongod(self) -> None:
        server = self._mongod.enter_context(embedded_mongod(self._folder / "db", self.mongodb.port))
        self._mongod_pid = server.pid

    def start_postgres(self) -> None:
        """Start it; the parts of one that was killed may need a moment to end."""

        def started() -> bool:
            with suppress(Unavailable):
                running = embedded_postgres(self.mart.run_dir, self.mart.settings)
                self._postgres_pid = self._postgres.enter_context(running).pid
                return True
            return False

        wait_until(started)

    def kill_mongod(self) -> None:
        os.kill(self._mongod_pid, signal.SIGKILL)
        self._mongod.close()

    def kill_postgres(self) -> None:
        os.kill(self._postgres_pid, signal.SIGKILL)
        self._postgres.close()


@contextmanager
def load(settings: MongoSettings) -> Iterator[None]:
    """Somebody who changes documents all the time; what MongoDB does not answer he forgets."""
    told = threading.Event()

    def change() -> None:
        numbers = random.Random(0)  # noqa: S311
        with connect(settings) as client:
            database = open_database(client, settings)
            while not told.wait(0.01):
                with suppress(PyMongoError):
                    database.device_data.bulk_write(operations(numbers, 150, reading))
                    database.predictions.bulk_write(operations(numbers, 50, prediction))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        told.set()
        thread.join()


def test_followers_mongodb_and_postgresql_are_killed(tmp_path: Path) -> None:
    log = tmp_path / "follow.log"
    with ExitStack() as stack:
        servers = Servers(tmp_path, stack)
        mart = servers.mart

        def token() -> str | None:
            if mart.ask("SELECT to_regclass('mart.state')") == [(None,)]:
                return None
            return str(mart.ask("SELECT token FROM mart.state")[0][0] or "") or None

        def wait_until_it_goes_on() -> None:
            before = token()
            wait_until(lambda: token() not in (None, before))

        with load(servers.mongodb):
            for number in range(KILLS):
                with follow_process(mart, servers.mongodb, log) as process:
                    wait_until_it_goes_on()
                    if number == 2:
                        servers.kill_mongod()
                        wait_until(lambda: "MongoDB does not answer, waiting for it" in log.read_text())
                        servers.start_mongod()
                        wait_until_it_goes_on()
                    if number == 4:
                        servers.kill_postgres()
                        wait_until(lambda: "PostgreSQL does not answer, waiting for it" in log.read_text())
                        servers.start_postgres()
                        wait_until_it_goes_on()
                    assert process.poll() is None, log.read_text()[-2_000:]
                    process.kill()
        with follow_process(mart, servers.mongodb, log) as process, connect(servers.mongodb) as client:
            wait_level(mart, open_database(client, servers.mongodb))
            process.terminate()
            assert process.wait(10.0) == 0
    said = log.read_text()
    assert said.count("answers again") == 2
    assert said.count("made anew") == 1
    for secret in (mart.run_dir / "secrets").iterdir():
        assert secret.read_text().strip() not in said + (mart.run_dir / "postgres.log").read_text()


def test_a_copy_that_is_killed_begins_again(tmp_path: Path, mart: Mart) -> None:
    with ExitStack() as stack:
        stack.enter_context(embedded_mongod(tmp_path / "db", port := free_port()))
        settings = MongoSettings(uri=SecretStr(f"mongodb://127.0.0.1:{port}/?directConnection=true"))
        database = open_database(stack.enter_context(connect(settings)), settings)
        database.device_data.insert_many([reading(n) for n in range(20_000)])
        with follow_process(mart, settings, tmp_path / "log") as process:
            wait_until(lambda: mart.ask("SELECT to_regclass('mart_next.state')") != [(None,)])
            process.kill()
        database.device_data.delete_many({"_id": {"$lt": "a@5"}})
        with follow_process(mart, settings, tmp_path / "log"):
            wait_until(lambda: mart.ask("SELECT token IS NOT NULL FROM mart.state") == [(True,)], 40.0)
            wait_level(mart, database)
    assert mart.ask("SELECT to_regclass('mart_next.state')") == [(None,)]


def test_what_superset_stored_outlives_a_kill(tmp_path: Path) -> None:
    with ExitStack() as stack:
        servers = Servers(tmp_path, stack)
        with connect_mart(servers.mart.uri(Role.SUPERSET)) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 5 AS number")
        servers.kill_postgres()
        servers.start_postgres()
        assert servers.mart.ask("SELECT number FROM kept", role=Role.SUPERSET) == [(5,)]


def test_a_folder_that_postgresql_cannot_open(tmp_path: Path) -> None:
    settings = MartSettings(port=free_port())
    with embedded_postgres(tmp_path, settings):
        pass
    (tmp_path / "postgres" / "global" / "pg_control").write_bytes(b"?")
    with pytest.raises(CorruptRunFolder, match="made again from MongoDB"), embedded_postgres(tmp_path, settings):
        pass
