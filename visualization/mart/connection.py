"""The boundary to PostgreSQL: one way to connect, and foreign errors become those of `flead.errors`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import psycopg
from pydantic import SecretStr

from flead.errors import BadConfiguration, Unavailable

Connection = psycopg.Connection[tuple[Any, ...]]

LOCK = 0x666C656164
"""The advisory lock of the one who writes the mart; PostgreSQL forgets it with his connection."""

_OPTIONS: dict[str, Any] = {
    "connect_timeout": 5,
    # s: a server that has vanished is noticed within a minute, not after hours
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}

_AWAY = {"08", "40", "53", "55", "57", "58"}
"""Connection, conflict, resources, locks, being stopped, system: what may be better a moment later."""


def address_of(user: str, password: SecretStr, host: str, port: str, database: str) -> SecretStr:
    """Put an address together.

    >>> address_of("flead", SecretStr("a/b"), "127.0.0.1", "5433", "flead").get_secret_value()
    'postgresql://flead:a%2Fb@127.0.0.1:5433/flead'
    """
    host = f"[{host}]" if ":" in host else host
    return SecretStr(f"postgresql://{user}:{quote(password.get_secret_value(), safe='')}@{host}:{port}/{database}")


def connect(uri: SecretStr, name: str = "flead mart") -> Connection:
    """Open a connection; every statement is a transaction of its own unless told otherwise.

    Raises
    ------
    BadConfiguration
        where the address cannot be read; the message never holds it, for it holds a password
    psycopg.OperationalError
        where PostgreSQL does not answer or does not let us in
    """
    try:
        return psycopg.connect(uri.get_secret_value(), autocommit=True, application_name=name, **_OPTIONS)
    except psycopg.ProgrammingError:
        raise BadConfiguration(
            "mart.uri is no address that the driver can read: it looks like postgresql://user@host:port/database, "
            "special characters of a password percent-encoded"
        ) from None


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into `Unavailable`."""
    try:
        yield
    except psycopg.Error as error:
        raise Unavailable(f"PostgreSQL could not do it, or does not answer: {line(error)}") from error


def is_away(error: psycopg.Error) -> bool:
    """Whether PostgreSQL may do it a moment later; without a code, it is the driver that has no connection."""
    if error.sqlstate is None:
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return error.sqlstate[:2] in _AWAY


def line(error: psycopg.Error) -> str:
    """Name the error in one line; host and port may be in it, never the password."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
