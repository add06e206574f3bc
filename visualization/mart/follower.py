"""Keeps the mart equal to MongoDB: copies what is there, then follows the change stream.

The place in the stream is written in the same transaction as the rows, so that a follower that is killed goes on
exactly where it was. What cannot be gone on with is made anew. MongoDB and PostgreSQL may go away and come back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice

import psycopg
from pydantic import SecretStr
from pymongo.database import Database
from pymongo.errors import PyMongoError

from flead.errors import Unavailable
from visualization.mart import schema
from visualization.mart.connection import LOCK, Connection, connect, is_away, line
from visualization.mart.schema import NEXT
from visualization.mart.stream import (
    COLLECTIONS,
    Batch,
    Document,
    Stream,
    StreamLost,
    change_of,
    cluster_time,
    count,
    documents,
    identity_of,
)
from visualization.mart.tables import LAYOUT
from visualization.mart.writer import Change, Writer

log = logging.getLogger(__name__)

LOCK_WAIT_S = 5.0
"""How long to wait for the lock, s: a follower that was killed is not forgotten at once."""
RETRY_S = 0.5
HEARTBEAT_S = 1.0
"""How often the state is written where nothing happens, s."""
RATE_S = 5.0
"""Over how long the events per second are averaged, s."""
COPIED_AT_A_TIME = 5_000

Progress = Callable[[int, int], None]
"""Called with the documents copied so far, and about how many there are."""


class Held(Unavailable):
    """Another process writes this mart."""


class Follower:
    """Keeps one mart equal to one database.

    Parameters
    ----------
    uri:
        the mart's, as its owner
    positions:
        where devices are
    progress:
        called while the mart is made anew
    """

    def __init__(
        self,
        database: Database[Document],
        uri: SecretStr,
        positions: Mapping[str, tuple[float, float]] | None = None,
        progress: Progress = lambda _done, _total: None,
    ) -> None:
        self._database = database
        self._uri = uri
        self._positions = positions or {}
        self._progress = progress
        self._away = ""

    def run(self, stop: threading.Event) -> None:
        """Follow until told to stop.

        Raises
        ------
        Held
            where another follower writes this mart
        BadConfiguration
            where the mart cannot be ours, or is a newer version's
        """
        while not stop.is_set():
            try:
                with self._connected() as connection:
                    schema.ensure(connection)
                    schema.put_positions(connection, schema.SCHEMA, self._positions)
                    self._keep(connection, stop)
            except PyMongoError as error:
                self._say_away("MongoDB", " ".join(f"{type(error).__name__}: {error}".split())[:200])
            except (psycopg.errors.InvalidSchemaName, psycopg.errors.UndefinedTable) as error:
                log.warning("somebody dropped the mart: %s", line(error))
            except psycopg.Error as error:
                if not is_away(error):
                    raise
                self._say_away("PostgreSQL", line(error))
            stop.wait(RETRY_S)

    def rebuild(self, stop: threading.Event) -> bool:
        """Make the mart anew, whatever it holds; the rows that it has are shown until then.

        Returns
        -------
        whether it was done here; else the follower that runs does it

        Raises
        ------
        PyMongoError, psycopg.Error
            where MongoDB or PostgreSQL does not answer
        """
        try:
            with self._connected() as connection:
                schema.ensure(connection, any_layout=True)
                self._make_anew(connection, stop)
                return True
        except Held:
            with connect(self._uri) as connection:
                connection.execute("UPDATE mart.state SET rebuild = true")
            return False

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        """A connection that holds the lock."""
        with connect(self._uri) as connection:
            deadline = time.monotonic() + LOCK_WAIT_S
            while connection.execute("SELECT pg_try_advisory_lock(%s)", [LOCK]).fetchone() != (True,):
                if time.monotonic() > deadline:
                    raise Held("another follower writes this mart: one is enough; stop it, or name another database")
                time.sleep(0.1)
            yield connection

    def _keep(self, connection: Connection, stop: threading.Event) -> None:
        """Follow, and make the mart anew wherever that cannot be gone on with."""
        why = ""
        schema.drop(connection, NEXT)  # what was killed while it was made
        while not stop.is_set():
            source = identity_of(self._database)
            [(layout, known, token, until)] = connection.execute(
                "SELECT layout, source, token, copied_until FROM mart.state"
            ).fetchall()
            if token is None:
                why = why or "it is empty"
            elif layout != LAYOUT:
                why = f"its layout is {layout}, not {LAYOUT}"
            elif source != known:
                why = "it is of another MongoDB"
            if why:
                log.info("the mart is made anew: %s", why)
                self._make_anew(connection, stop)
                why = ""
                continue
            try:
                self._follow(connection, Stream(self._database, token, until), stop)
            except StreamLost as error:
                why = f"the change stream cannot be gone on with ({error})"

    def _follow(self, connection: Connection, stream: Stream, stop: threading.Event) -> None:
        writer, rate, written = Writer(connection, schema.SCHEMA), _Rate(), 0.0
        with stream:
            while not stop.is_set():
                batch = stream.next()
                rate.add(batch.events)
                if not batch.events and time.monotonic() < written + HEARTBEAT_S:
                    continue
                with connection.transaction():
                    for collection in batch.cleared:
                        writer.clear(collection)
                    writer.apply(list(batch.changes.values()))
                    asked = _note(connection, batch, rate.per_s)
                written = time.monotonic()
                self._say_back()
                if asked:
                    raise StreamLost("it was asked for")

    def _make_anew(self, connection: Connection, stop: threading.Event) -> None:
        """Copy everything beside the mart, and put it in the mart's place.

        The place in the stream is taken first: what changes meanwhile is applied again afterwards.
        """
        schema.drop(connection, NEXT)
        with connection.transaction():
            schema.create(connection, NEXT)
        source = identity_of(self._database)
        with Stream(self._database) as stream:
            token = stream.token
        done, total, writer = 0, count(self._database), Writer(connection, NEXT)
        self._say_progress(connection, done, total)
        for collection in COLLECTIONS:
            for changes in _chunks(documents(self._database, collection), collection):
                with connection.transaction():
                    writer.apply(changes)
                done += len(changes)
                self._say_progress(connection, done, total)
                if stop.is_set():
                    return
        until = cluster_time(self._database)
        schema.finish(connection, NEXT)
        schema.put_positions(connection, NEXT, self._positions)
        with connection.transaction():
            connection.execute(
                "UPDATE mart_next.state SET source = %s, token = %s, copied_until = %s, checked = now()",
                [source, token, until],
            )
            schema.publish(connection)
        log.info("the mart holds %d documents", done)
        self._say_back()

    def _say_progress(self, connection: Connection, done: int, total: int) -> None:
        connection.execute(
            "UPDATE mart.state SET copied = %s, to_copy = %s, checked = clock_timestamp()", [done, total]
        )
        self._progress(done, total)

    def _say_away(self, who: str, why: str) -> None:
        if who != self._away:
            log.warning("%s does not answer, waiting for it: %s", who, why)
        self._away = who

    def _say_back(self) -> None:
        if self._away:
            log.info("%s answers again", self._away)
        self._away = ""


class _Rate:
    """Events per second of late."""

    def __init__(self) -> None:
        self.per_s = 0.0
        self._events, self._since = 0, time.monotonic()

    def add(self, events: int) -> None:
        self._events += events
        if (elapsed := time.monotonic() - self._since) >= RATE_S:
            self.per_s = self._events / elapsed
            self._events, self._since = 0, time.monotonic()


def _chunks(found: Iterable[Document], collection: str) -> Iterator[list[Change]]:
    changes = (change_of(collection, document["_id"], document, fresh=True) for document in found)
    while chunk := list(islice(changes, COPIED_AT_A_TIME)):
        yield chunk


def _note(connection: Connection, batch: Batch, per_s: float) -> bool:
    """Write the state behind a batch; returns whether somebody asks that the mart be made anew."""
    behind = 0.0 if batch.level or batch.at is None else max(0.0, time.time() - batch.at)
    [(asked,)] = connection.execute(
        "UPDATE mart.state SET token = %s, events = events + %s, events_per_s = %s, "
        "applied = coalesce(to_timestamp(%s), applied), behind_s = %s, checked = clock_timestamp(), "
        "copied = NULL, to_copy = NULL RETURNING rebuild",
        [batch.token, batch.events, per_s, batch.at, behind],
    ).fetchall()
    return bool(asked)
