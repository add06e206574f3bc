"""What the stream said, kept: readings, predictions, alerts and dead letters, in bulk and at most once each.

A value's `_id` is derived from its content, so a batch that is written again after a crash leaves one of each. No
value stops its batch: what MongoDB cannot hold as it is, is kept without its metadata, else handed back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import bson
import orjson
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import BulkWriteError, DocumentTooLarge, OperationFailure

from flead.errors import BadReading
from flead.messages import ReadingLimits, parse_reading
from storage.connection import Document, translated

Value = bytes | dict[str, Any]
"""What Kafka held: the bytes, or the object in them."""

_DUPLICATE = 11_000
# What encoding says of a number over 64 bits, a key with a zero byte, half a surrogate pair, a nest without end.
_UNENCODABLE = (bson.errors.BSONError, OverflowError, ValueError, TypeError, RecursionError)
# What the server says of one document; any other code speaks of the server: BadValue, FailedToParse, TypeMismatch,
# Overflow, InvalidBSON, three of field names, DocumentValidationFailure, CannotIndexParallelArrays, two of size.
DOCUMENT_CODES = {2, 9, 14, 15, 22, 52, 56, 57, 121, 171, 10_334, 17_280}


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Refused:
    """A value that was not stored."""

    value: Value
    why: str


@dataclass(slots=True)
class Stored:
    """What became of a batch: `new` and `known` values are in the database, `trimmed` of them without metadata."""

    new: int = 0
    known: int = 0
    trimmed: int = 0
    refused: tuple[Refused, ...] = ()


class ArchiveRepository:
    """Writes the stream's values to their collections.

    Every method raises `Unavailable` where MongoDB does not answer; the batch may then be stored in part, and giving
    it again is harmless.

    Parameters
    ----------
    clock:
        says when a batch is stored, which is what retention counts from: event time may be years ago
    """

    def __init__(self, database: Database[Document], clock: Callable[[], datetime] = _now) -> None:
        self._database = database
        self._clock = clock

    def add_readings(self, values: Iterable[Value]) -> Stored:
        """Store values of `flead.readings`."""
        return self._add("device_data", values, _measured)

    def add_predictions(self, values: Iterable[Value]) -> Stored:
        """Store values of `flead.predictions`."""
        return self._add("predictions", values, _measured)

    def add_alerts(self, values: Iterable[Value]) -> Stored:
        """Store values of `flead.alerts`."""
        return self._add("alerts", values, _measured)

    def add_dead_letters(self, values: Iterable[Value]) -> Stored:
        """Store values of `flead.dead-letters`."""
        return self._add("dead_letters", values, _dead_letter)

    def counts(self, *, exact: bool = False) -> dict[str, int]:
        """Count the documents of each collection: from its statistics, or one by one.

        Parameters
        ----------
        exact:
            count each document, about 0.3 s a million; statistics are wrong after a kill -9 of mongod
        """
        names = ("device_data", "predictions", "alerts", "dead_letters")
        with translated():
            if exact:
                return {name: self._database[name].count_documents({}, hint="_id_") for name in names}
            return {name: self._database[name].estimated_document_count() for name in names}

    def _add(self, name: str, values: Iterable[Value], to_document: Callable[[Value], Document]) -> Stored:
        """Store values; several with one `_id` leave the first."""
        refused: list[Refused] = []
        documents: dict[str, Document] = {}
        sources: dict[str, Value] = {}
        repeated, now = 0, self._clock()
        for value in values:
            try:
                document = to_document(value)
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
                refused.append(Refused(value, _line(error)))
                continue
            if document["_id"] in documents:
                repeated += 1
                continue
            documents[document["_id"]] = document | {"stored_at": now}
            sources[document["_id"]] = value
        outcome = Stored(known=repeated)
        with translated():
            for key, why in _insert(self._database[name], list(documents.values()), outcome):
                refused.append(Refused(sources[key], why))
        outcome.refused = tuple(refused)
        return outcome


def valid_readings(values: Iterable[bytes], limits: ReadingLimits) -> Iterator[dict[str, Any]]:
    """The readings among records of `flead.readings`; the learning job sends the others to the dead letters."""
    now = datetime.now(UTC)
    for value in values:
        try:
            reading = parse_reading(value, now=now, limits=limits)
        except BadReading:
            continue
        yield {
            "device_id": reading.device_id,
            "timestamp": reading.timestamp,
            "sensors": reading.sensors,
            "metadata": reading.metadata,
        }


def _insert(collection: Collection[Document], documents: Sequence[Document], outcome: Stored) -> list[tuple[str, str]]:
    """Insert documents, counting into `outcome`; returns `_id` and reason of those that cannot be kept."""
    if not documents:
        return []
    try:
        outcome.new += len(collection.insert_many(documents, ordered=False).inserted_ids)
    except BulkWriteError as error:
        return _after_errors(collection, documents, error, outcome)
    except (OperationFailure, DocumentTooLarge, *_UNENCODABLE) as error:
        # One document fails the whole call. Look for it by halves; what was already sent counts as known then.
        _raise_unless_of_document(error)
        if len(documents) > 1:
            middle = len(documents) // 2
            return [
                part for half in (documents[:middle], documents[middle:]) for part in _insert(collection, half, outcome)
            ]
        return _without_metadata(collection, documents[0], _line(error), outcome)
    return []


def _after_errors(
    collection: Collection[Document], documents: Sequence[Document], error: BulkWriteError, outcome: Stored
) -> list[tuple[str, str]]:
    """Go on after a call that stored what it could."""
    details = cast(dict[str, Any], error.details)
    wrong = [item for item in details["writeErrors"] if item["code"] != _DUPLICATE]
    if details["writeConcernErrors"] or any(item["code"] not in DOCUMENT_CODES for item in wrong):
        raise error
    outcome.new += details["nInserted"]
    outcome.known += len(details["writeErrors"]) - len(wrong)
    refused = []
    for item in wrong:
        why = f"MongoDB: {item['errmsg']}"[:300]
        refused += _without_metadata(collection, documents[item["index"]], why, outcome)
    return refused


def _without_metadata(
    collection: Collection[Document], document: Document, why: str, outcome: Stored
) -> list[tuple[str, str]]:
    """Insert one document, which MongoDB refused, without its metadata."""
    if "metadata" not in document:
        return [(document["_id"], why)]
    trimmed = {name: value for name, value in document.items() if name != "metadata"}
    refused = _insert(collection, [trimmed], outcome)
    outcome.trimmed += not refused
    return refused


def _raise_unless_of_document(error: Exception) -> None:
    """Raise the error again where it says nothing of a document."""
    if isinstance(error, OperationFailure) and error.code not in DOCUMENT_CODES:
        raise error


def _measured(value: Value) -> Document:
    """Make the document of what a device measured, or of what was computed from it."""
    fields = _object(value)
    device, time = fields["device_id"], _time(fields["timestamp"])
    if not isinstance(device, str):
        raise TypeError("device_id is no string")
    return {"_id": f"{device}@{time.isoformat()}", **fields, "timestamp": time}


def _dead_letter(value: Value) -> Document:
    """Make the document of a dead letter: one for each record that was refused, however often it was."""
    fields = _object(value)
    source = fields["source"]
    key = f"{source['topic']}/{source['partition']}/{source['offset']}"
    return {"_id": key, **fields, "timestamp": _time(fields["timestamp"])}


def _object(value: Value) -> dict[str, Any]:
    fields = orjson.loads(value) if isinstance(value, bytes) else value
    if not isinstance(fields, dict):
        raise TypeError("it is no JSON object")
    return {name: part for name, part in fields.items() if name != "_id"}


def _time(text: Any) -> datetime:
    """Read an aware time, to UTC.

    >>> _time("2004-03-04T01:00:00.154+01:00").isoformat()
    '2004-03-04T00:00:00.154000+00:00'
    """
    time = text if isinstance(text, datetime) else datetime.fromisoformat(text)
    if time.tzinfo is None:
        raise ValueError(f"the time {text} does not say its offset from UTC")
    return time.astimezone(UTC)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
