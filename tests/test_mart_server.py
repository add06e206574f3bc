"""The embedded PostgreSQL: who may do what, and where its passwords lie."""

from __future__ import annotations

import os
import stat
import sysconfig
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from config.child import free_port, port_is_taken
from config.settings import MartSettings
from flead.errors import BadConfiguration, CorruptRunFolder, PortTaken, Unavailable
from storage.connection import Document
from tests.fixtures_mart import Mart, reading
from tests.fixtures_storage import wait_until
from visualization.mart import schema, server
from visualization.mart.connection import address_of, connect, translated
from visualization.mart.lag import lag_of
from visualization.mart.server import (
    Role,
    address,
    embedded_postgres,
    find_running,
    mart_of,
    password_file,
    postgres_command,
    ready,
)
from visualization.mart.writer import Change, Writer

pytestmark = pytest.mark.servers


@pytest.fixture
def filled(mart: Mart) -> Mart:
    """A mart with a reading."""
    document: Document = reading(1)
    with connect(mart.uri()) as connection:
        schema.ensure(connection)
        Writer(connection, schema.SCHEMA).apply([Change("device_data", "a@1", document)])
    return mart


def test_the_reader_reads(filled: Mart) -> None:
    assert filled.ask("SELECT value FROM device_data_sensors", role=Role.READER) == [(0.25,), (1.0,)]
    assert filled.ask("SELECT count(*) FROM mart.rejected", role=Role.READER) == [(0,)]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO mart.device_data SELECT * FROM mart.device_data",
        "SET default_transaction_read_only = off; DELETE FROM mart.device_data",
        "SET default_transaction_read_only = off; UPDATE mart.state SET events = 5",
        "SET default_transaction_read_only = off; CREATE TABLE mart.mine ()",
        "SET default_transaction_read_only = off; CREATE TABLE public.mine ()",
        "SET default_transaction_read_only = off; CREATE SCHEMA mine",
        "SET default_transaction_read_only = off; CREATE TEMPORARY TABLE mine ()",
        "SET default_transaction_read_only = off; CREATE ROLE mine SUPERUSER",
        "DROP SCHEMA mart CASCADE",
        "COPY mart.device_data TO PROGRAM 'cat'",
        "COPY mart.device_data TO '/tmp/mine'",
        "SELECT pg_read_file('/etc/passwd')",
        "SELECT * FROM mart_next.device_data",
        "SELECT rolpassword FROM pg_authid",
        "SET ROLE flead",
    ],
)
def test_the_reader_does_nothing_else(filled: Mart, statement: str) -> None:
    with connect(filled.uri()) as owner:
        schema.drop(owner, schema.NEXT)
        schema.create(owner, schema.NEXT)
    with connect(filled.uri(Role.READER)) as connection, pytest.raises(psycopg.Error) as refused:
        connection.execute(statement.encode())
    assert refused.value.sqlstate in ("42501", "25006"), refused.value  # no right; read-only


@pytest.mark.parametrize("role", [Role.OWNER, Role.SUPERSET])
def test_nobody_runs_programs_or_reads_files(filled: Mart, role: Role) -> None:
    for statement in (b"COPY (SELECT 1) TO PROGRAM 'cat'", b"SELECT pg_read_file('/etc/passwd')"):
        with connect(filled.uri(role)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)


@pytest.mark.parametrize(
    ("role", "database"),
    [(Role.READER, "superset"), (Role.SUPERSET, "flead"), (Role.READER, "postgres"), ("postgres", "postgres")],
)
def test_nobody_enters_what_is_not_his(postgres: Mart, role: str, database: str) -> None:
    asked = Role(role) if role in list(Role) else Role.OWNER
    secret = server.password(postgres.run_dir, asked)
    with pytest.raises(psycopg.OperationalError):
        connect(address_of(role, secret, "127.0.0.1", str(postgres.settings.port), database))


def test_a_wrong_password_is_refused(postgres: Mart) -> None:
    port = str(postgres.settings.port)
    with pytest.raises(Unavailable, match="password") as refused, translated():
        connect(address_of("flead", SecretStr("guessed-it"), "127.0.0.1", port, "flead"))
    assert "guessed-it" not in str(refused.value)


def test_an_address_that_is_none_is_not_repeated() -> None:
    with pytest.raises(BadConfiguration, match=r"mart\.uri") as refused:
        connect(SecretStr("postgresql://flead:very-secret@host/x?nonsense=1"))
    assert "very-secret" not in str(refused.value)


def test_passwords_are_for_their_owner_only(postgres: Mart) -> None:
    for role in Role:
        path = password_file(postgres.run_dir, role)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_command_is_local_and_holds_no_secret(postgres: Mart) -> None:
    command = postgres_command(postgres.run_dir / "postgres", 12345)
    assert "listen_addresses=127.0.0.1" in command
    assert "unix_socket_directories=" in command
    for role in Role:
        assert server.password(postgres.run_dir, role).get_secret_value() not in " ".join(command)


def test_lost_passwords_are_replaced(tmp_path: Path) -> None:
    settings = MartSettings(port=free_port())
    with embedded_postgres(tmp_path, settings) as running:
        ready(settings, tmp_path)
        assert find_running(tmp_path / "postgres") == running
        with pytest.raises(PortTaken), embedded_postgres(tmp_path / "other", settings):
            pass
        other_port = MartSettings(port=free_port())
        with pytest.raises(Unavailable, match="another PostgreSQL uses"), embedded_postgres(tmp_path, other_port):
            pass
        with mart_of(other_port, tmp_path) as found:
            assert found.port == settings.port
    password_file(tmp_path, Role.OWNER).unlink()
    with mart_of(settings, tmp_path) as found:
        connect(address(found, tmp_path)).close()
    assert not port_is_taken(settings.port)
    assert find_running(tmp_path / "postgres") is None
    with pytest.raises(Unavailable, match="does not answer"):
        ready(settings, tmp_path)


def test_a_server_of_ones_own(tmp_path: Path) -> None:
    own = MartSettings(uri=SecretStr("postgresql://me:secret@db.example:6000/figures"))
    with mart_of(own, tmp_path) as found:
        assert found == own
    assert address(own, tmp_path) == own.uri
    reader = address(own, tmp_path, Role.READER).get_secret_value()
    assert reader.startswith("postgresql://flead_reader:")
    assert reader.endswith("@db.example:6000/figures")
    assert address(own, tmp_path, Role.SUPERSET).get_secret_value().endswith("@db.example:6000/superset")


def test_names_that_are_taken(tmp_path: Path) -> None:
    with pytest.raises(BadConfiguration, match=r"mart\.database"):
        server.prepare(tmp_path / "postgres", MartSettings(database="superset"), tmp_path)


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"")
    with pytest.raises(CorruptRunFolder, match="cannot be made"):
        server.prepare(tmp_path / "run" / "postgres", MartSettings(), tmp_path)


def test_no_postgresql_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    with pytest.raises(Unavailable, match="no PostgreSQL"):
        server.find_postgres()


def test_a_mart_that_is_not_there_yet(mart: Mart) -> None:
    with pytest.raises(Unavailable, match="no mart yet"):
        lag_of(mart.uri())


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL runs as its own user only where we are root")
def test_where_we_are_root_postgresql_is_not(postgres: Mart) -> None:
    running = find_running(postgres.run_dir / "postgres")
    assert running is not None
    wait_until(lambda: Path(f"/proc/{running.pid}").stat().st_uid != 0)
    assert (postgres.run_dir / "postgres").stat().st_mode & 0o077 == 0
