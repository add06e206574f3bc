"""The boundary to MongoDB: one way to connect, and foreign errors become those of `flead.errors`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pymongo import MongoClient
from pymongo.database import Database
from pymongo.errors import ConfigurationError, InvalidURI, OperationFailure, PyMongoError, WaitQueueTimeoutError

from config.settings import MongoSettings
from flead.errors import BadConfiguration, Unavailable

Document = dict[str, Any]
Client = MongoClient[Document]

_DEFAULTS: dict[str, Any] = {
    "w": "majority",  # what was acknowledged survives a crash: with one member, it is in the journal
    "waitQueueTimeoutMS": 10_000,  # for a free connection of the pool: without it, a thread would wait for ever
    # ms: long enough for an election, short enough for somebody who waits for an answer
    "serverSelectionTimeoutMS": 3_000,
    "connectTimeoutMS": 3_000,
    "socketTimeoutMS": 30_000,
}
"""Options of the connection; those that the URI names win."""

_REFUSED = {13, 18}  # Unauthorized, AuthenticationFailed


def app_name(database: str) -> str:
    """What a server knows the processes of FLEAD by that use one of its databases."""
    return f"flead {database}"[:128]


def connect(settings: MongoSettings, appname: str | None = None) -> Client:
    """Make a client; it connects when it is first used. Times are read as aware, in UTC.

    One client serves all threads of a process: it keeps a pool of at most `mongodb.max_pool_size` connections.

    Parameters
    ----------
    appname:
        what the server knows us by; without it, that we use `mongodb.database`

    Raises
    ------
    BadConfiguration
        where `mongodb.uri` is no MongoDB address; the message never holds the address, for it may hold a password
    """
    uri = settings.address.get_secret_value()
    name = appname or app_name(settings.database)
    defaults = {**_DEFAULTS, "maxPoolSize": settings.max_pool_size, "appname": name}
    ours = {key: value for key, value in defaults.items() if not re.search(f"[?&]{key}=", uri, re.IGNORECASE)}
    try:
        return MongoClient(uri, tz_aware=True, **ours)
    except (InvalidURI, ConfigurationError, ValueError):
        raise BadConfiguration(
            "mongodb.uri is no address that the driver can read: it looks like mongodb://host:port/?replicaSet=name, "
            "special characters of a password percent-encoded"
        ) from None


def open_database(client: Client, settings: MongoSettings) -> Database[Document]:
    """Give the database that FLEAD uses."""
    return client[settings.database]


def ping(database: Database[Document]) -> None:
    """Return if the database answers and can be written to; raises `Unavailable`."""
    with translated():
        if not database.client.admin.command("hello").get("isWritablePrimary"):
            raise Unavailable("MongoDB has no primary at the moment: wait for the election, or look at its log")


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into `Unavailable`."""
    try:
        yield
    except OperationFailure as error:
        if error.code in _REFUSED:
            raise Unavailable(
                "MongoDB refuses our credentials: correct mongodb.uri (in config/environment.env)"
            ) from None
        raise Unavailable(f"MongoDB could not do it: {_short(error)}") from error
    except WaitQueueTimeoutError as error:
        raise Unavailable(
            f"all connections to MongoDB are busy: raise mongodb.max_pool_size ({_short(error)})"
        ) from error
    except PyMongoError as error:
        raise Unavailable(
            f"MongoDB does not answer: start it (`flead up`) or correct mongodb.uri ({_short(error)})"
        ) from error


def _short(error: PyMongoError) -> str:
    """Name the error in one line; host and port may be in it, never the URI."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
