"""What changes a database of an earlier layout into today's: numbered steps, each applied once and in order.

The number of the last step is kept in `schema_version`, in one document that is also the lock of who applies them and
the mark of a restore that has not ended. A step may be killed half-way and is then applied again, so each leaves the
same however often it is; on an empty database it does nothing. Validators and indexes need no step: `storage.schema`
brings them to what is declared.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

import numpy as np
from pymongo import UpdateOne
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import DuplicateKeyError, OperationFailure, PyMongoError

from flead import network
from flead.errors import CorruptRunFolder, Unavailable
from flead.messages import WeightsMessage
from storage.connection import Document
from storage.rounds import newest_rounds
from storage.weights import packed, packed_numbers

log = logging.getLogger(__name__)

COLLECTION = "schema_version"
KEY = {"_id": "schema"}
_LEASE_S = 10.0
_BATCH = 500
_GONE = {26, 27}  # NamespaceNotFound, IndexNotFound


@dataclass(frozen=True, slots=True)
class Migration:
    """One step."""

    version: int
    does: str
    apply: Callable[[Database[Document]], None]


def _drop_unused_indexes(database: Database[Document]) -> None:
    """Layout 0 had two indexes that no query used."""
    for collection, index in (("local_models", "device_time"), ("global_model", "time")):
        _drop_index(database, collection, index)


def _drop_index(database: Database[Document], collection: str, index: str) -> None:
    try:
        database[collection].drop_index(index)
    except OperationFailure as error:
        if error.code not in _GONE:
            raise


def _name_the_round_of_updates(database: Database[Document]) -> None:
    """Layout 1 marked updates when a round had used them, and kept their numbers as arrays."""
    updates = database["local_models"]
    newest = newest_rounds(database["global_model"])
    for cohort in updates.distinct("cohort", {"round": None}):
        pending = {"cohort": cohort, "round": None}
        stands = {"$set": {"round": newest.get(cohort, 0) + 1}}
        updates.update_many(pending, stands, bypass_document_validation=True)
    _drop_index(database, "local_models", "pending")
    arrays = updates.find({"weights.weights": {"$exists": True}}, {"weights": 1, "control": 1})
    while batch := [_packed(found) for found in islice(arrays, _BATCH)]:
        updates.bulk_write(batch, ordered=False, bypass_document_validation=True)


def _packed(found: Document) -> UpdateOne:
    theta, architecture = network.from_message(WeightsMessage.model_validate(found["weights"]))
    changed: Document = {"weights": packed(theta, architecture)}
    if found.get("control") is not None:
        changed["control"] = packed_numbers(np.array(found["control"], dtype=np.float64))
    return UpdateOne({"_id": found["_id"]}, {"$set": changed})


MIGRATIONS = (
    Migration(1, "drop the indexes that no query uses", _drop_unused_indexes),
    Migration(2, "local updates name their round, and hold their numbers in one value", _name_the_round_of_updates),
)
VERSION = MIGRATIONS[-1].version
"""The layout that this code writes."""


def version_of(database: Database[Document], session: ClientSession | None = None) -> int:
    """The layout of a database; 0: one from before layouts were numbered, or an empty one."""
    found = database[COLLECTION].find_one(KEY, session=session)
    return int(found["version"]) if found else 0


def check_usable(database: Database[Document]) -> None:
    """Raise `CorruptRunFolder` where this code must not touch the database."""
    found = database[COLLECTION].find_one(KEY) or {}
    restoring = found.get("restoring")
    if restoring:
        raise CorruptRunFolder(
            f"database {database.name} is the half of a restore of {restoring['file']} that did not end: "
            "run `flead restore` with a backup again"
        )
    check_not_newer(int(found.get("version", 0)), f"database {database.name}")


def check_not_newer(version: int, what: str) -> None:
    """Raise `CorruptRunFolder` for a layout that this code does not know."""
    if version > VERSION:
        raise CorruptRunFolder(
            f"{what} has layout {version}, which a newer FLEAD wrote; this one knows layouts up to {VERSION}: "
            "update FLEAD, or name another --run-dir or mongodb.database"
        )


@dataclass(frozen=True, slots=True)
class Lock:
    """The right to change the layout of a database, until `schema_lock` ends."""

    database: Database[Document]
    owner: str

    def set(self, **fields: object) -> None:
        """Set fields of the one document; raises `Unavailable` where the lock was lost to another process."""
        ours = {**KEY, "lock.owner": self.owner}
        if not self.database[COLLECTION].update_one(ours, {"$set": fields}).matched_count:
            raise Unavailable(f"another process changes the layout of database {self.database.name}: start again")


def migrate(database: Database[Document], lock: Lock) -> None:
    """Apply the steps that the database has not seen."""
    version = version_of(database)
    for migration in MIGRATIONS:
        if migration.version > version:
            log.info("database %s, layout %d: %s", database.name, migration.version, migration.does)
            migration.apply(database)
            lock.set(version=migration.version, changed_at=datetime.now(UTC))


@contextmanager
def schema_lock(database: Database[Document], limit_s: float = 60.0) -> Iterator[Lock]:
    """Hold the lock; wait while another process does. A holder that is killed loses it after 10 s.

    Raises
    ------
    Unavailable
        where another process holds it longer than `limit_s`
    """
    lock = Lock(database, f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}")
    with suppress(DuplicateKeyError):
        database[COLLECTION].update_one(KEY, {"$setOnInsert": {"version": 0}}, upsert=True)
    deadline = time.monotonic() + limit_s
    free = {"$or": [{"lock": None}, {"$expr": {"$lt": ["$lock.until", "$$NOW"]}}]}
    while not _take(lock, free):
        if time.monotonic() > deadline:
            raise Unavailable(f"another process has been changing database {database.name} for {limit_s:g} s: wait")
        time.sleep(0.05)
    done = threading.Event()
    keeper = threading.Thread(target=_keep, args=(lock, done), daemon=True)
    keeper.start()
    try:
        yield lock
    finally:
        done.set()
        keeper.join()
        with suppress(PyMongoError):  # it ends by itself
            database[COLLECTION].update_one({**KEY, "lock.owner": lock.owner}, {"$set": {"lock": None}})


def _take(lock: Lock, where: Document) -> bool:
    """Take the lock or keep it for another while, by the server's clock."""
    until = {"$dateAdd": {"startDate": "$$NOW", "unit": "millisecond", "amount": int(_LEASE_S * 1_000)}}
    taken = [{"$set": {"lock": {"owner": {"$literal": lock.owner}, "until": until}}}]
    return bool(lock.database[COLLECTION].update_one({**KEY, **where}, taken).matched_count)


def _keep(lock: Lock, done: threading.Event) -> None:
    while not done.wait(_LEASE_S / 4):
        with suppress(PyMongoError):
            _take(lock, {"lock.owner": lock.owner})
