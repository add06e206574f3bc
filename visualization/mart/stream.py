"""MongoDB's side of the mart: the change stream, the copy of what is there, and what tells this MongoDB from others."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import bson
from bson import json_util
from bson.codec_options import CodecOptions, DatetimeConversion
from pymongo.change_stream import DatabaseChangeStream
from pymongo.database import Database
from pymongo.errors import OperationFailure
from pymongo.read_concern import ReadConcern

from visualization.mart.tables import SOURCES, Unfit, fields_of, key_of
from visualization.mart.writer import Change, printable

COLLECTIONS = tuple(source.collection for source in SOURCES)
Document = dict[str, Any]

MOST = 5_000
"""Changes that are applied at a time."""
GATHER_S = 0.1
"""How long they are gathered, s."""
AWAIT_MS = 100
"""How long MongoDB waits for a first change, ms."""

_LOST = {136, 222, 260, 280, 286}
# CappedPositionLost, CloseChangeStream, InvalidResumeToken, ChangeStreamFatalError, ChangeStreamHistoryLost
_LENIENT: CodecOptions[Document] = CodecOptions(
    # What Python cannot hold is handed on as something that does not fit, so that it stops only its document.
    tz_aware=True,
    unicode_decode_error_handler="surrogateescape",
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
_REPLACED = {"insert", "replace", "update"}


class StreamLost(Exception):
    """The stream cannot be gone on with: the mart has to be made anew."""


@dataclass(slots=True)
class Batch:
    """Changes in a row, at most one of a document: the last.

    Attributes
    ----------
    cleared:
        collections that were dropped before the changes
    token:
        the place in the stream behind them
    at:
        when the last of them happened, Unix time in s; None where nothing happened
    level:
        whether the stream has no more
    """

    changes: dict[tuple[str, str], Change] = field(default_factory=dict)
    cleared: set[str] = field(default_factory=set)
    events: int = 0
    token: str = ""
    at: float | None = None
    level: bool = False


class Stream:
    """The changes of a database from a place on; as a context it holds the cursor.

    Parameters
    ----------
    copied_until:
        cluster time up to which an inserted document may be in the mart already
    """

    def __init__(self, database: Database[Document], token: str | None = None, copied_until: int = 0) -> None:
        self._database = database.with_options(codec_options=_LENIENT)
        self._token = json_util.loads(token) if token else None
        self._copied_until = copied_until
        self._stream: DatabaseChangeStream[Document]

    def __enter__(self) -> Stream:
        try:
            self._stream = self._database.watch(
                _pipeline(), "updateLookup", resume_after=self._token, max_await_time_ms=AWAIT_MS, batch_size=MOST
            )
        except OperationFailure as error:
            raise _named(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    @property
    def token(self) -> str:
        """The place that has been reached."""
        return json_util.dumps(self._stream.resume_token)

    def next(self) -> Batch:
        """Gather changes; returns soon also where there are none.

        Raises
        ------
        StreamLost
            where the stream has ended, or the place is no longer in MongoDB's log
        """
        batch, until = Batch(), time.monotonic() + GATHER_S
        try:
            while batch.events < MOST and (not batch.events or time.monotonic() < until):
                event = self._stream.try_next()
                if event is None:
                    batch.level = True
                    break
                self._take(event, batch)
        except OperationFailure as error:
            raise _named(error) from error
        batch.token = self.token
        return batch

    def _take(self, event: Mapping[str, Any], batch: Batch) -> None:
        batch.events += 1
        batch.at = event["wallTime"].timestamp() if "wallTime" in event else event["clusterTime"].time
        kind = event["operationType"]
        if kind not in _REPLACED and kind not in ("delete", "drop"):
            raise StreamLost(f"MongoDB says {kind}")
        collection = event["ns"]["coll"]
        if kind == "drop":
            batch.cleared.add(collection)
            batch.changes = {place: change for place, change in batch.changes.items() if place[0] != collection}
            return
        # An update's document is looked up when it is read: it may be newer, and what follows repeats that; or gone.
        change = change_of(collection, event["documentKey"]["_id"], event.get("fullDocument"))
        place = (collection, change.key)
        known = batch.changes.get(place)
        if known is not None:
            change.fresh = known.fresh
        elif kind == "insert":
            change.fresh = collection in batch.cleared or _as_number(event["clusterTime"]) > self._copied_until
        batch.changes[place] = change


def change_of(collection: str, identity: object, document: Mapping[str, Any] | None, *, fresh: bool = False) -> Change:
    """What a document has become; one whose `_id` is no text that can be kept is told of by another."""
    try:
        key = key_of(identity)
    except Unfit:
        key = printable(str(identity))
    return Change(collection, key, document, fresh)


def cluster_time(database: Database[Document]) -> int:
    """The time of the last thing that MongoDB did, as a number that grows."""
    return _as_number(database.command("ping")["operationTime"])


def identity_of(database: Database[Document]) -> str:
    """What tells a database from others of the same name: the identity of a collection that each has."""
    [*found] = database.list_collections(filter={"name": "schema_version"})
    return f"{database.name}/{found[0]['info']['uuid'].hex() if found else ''}"


def count(database: Database[Document]) -> int:
    """About how many documents there are to copy."""
    return sum(database[name].estimated_document_count() for name in COLLECTIONS)


def documents(database: Database[Document], collection: str) -> Iterator[Document]:
    """All documents of a collection, with what the mart reads of them; only what survives a crash of MongoDB."""
    source = database.get_collection(collection, _LENIENT, read_concern=ReadConcern("majority"))
    yield from source.find({}, dict.fromkeys(fields_of(collection), 1), batch_size=MOST)


def _pipeline() -> list[Document]:
    """Only what the mart wants: neither other collections nor weights and payloads."""
    fields = sorted({f"fullDocument.{name}" for collection in COLLECTIONS for name in fields_of(collection)})
    about = ("operationType", "ns", "documentKey", "clusterTime", "wallTime", "fullDocument._id")
    ours = {"$in": COLLECTIONS}
    of_all = {"$in": ["dropDatabase", "invalidate"]}
    return [
        {"$match": {"$or": [{"ns.coll": ours}, {"to.coll": ours}, {"operationType": of_all}]}},
        {"$project": dict.fromkeys((*about, *fields), 1)},
    ]


def _as_number(stamp: bson.Timestamp) -> int:
    return int(stamp.time) << 32 | int(stamp.inc)


def _named(error: OperationFailure) -> Exception:
    return StreamLost(str(error)[:200]) if error.code in _LOST else error
