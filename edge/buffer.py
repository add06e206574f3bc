"""What an aggregator holds until the upstream has it: in SQLite, and acknowledged only once it is on the disk.

A device's updates wait as one `Part`; closing makes of all parts of a cohort one message with a time and a counter that
are never used again, and deletes the parts in the same transaction. A message is sent as it was stored until the
upstream has answered, so that sending it twice is the same as once.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import orjson

from flead.errors import CorruptRunFolder, Unavailable
from flead.partial import Part, partial_updates, sender_name

_SCHEMA = """
CREATE TABLE IF NOT EXISTS said (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS devices
    (device TEXT PRIMARY KEY, cohort TEXT NOT NULL, updates INTEGER NOT NULL, samples_seen INTEGER);
CREATE TABLE IF NOT EXISTS updates (device TEXT, time TEXT, received TEXT NOT NULL, PRIMARY KEY (device, time))
    WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS updates_received ON updates (received);
CREATE TABLE IF NOT EXISTS parts
    (sender TEXT, device TEXT, version INTEGER, part BLOB NOT NULL, PRIMARY KEY (sender, device, version));
CREATE TABLE IF NOT EXISTS senders
    (sender TEXT PRIMARY KEY, cohort TEXT NOT NULL, samples INTEGER NOT NULL, time TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS messages
    (number INTEGER PRIMARY KEY AUTOINCREMENT, body BLOB NOT NULL, devices INTEGER NOT NULL, refused TEXT);
CREATE TABLE IF NOT EXISTS models (cohort TEXT PRIMARY KEY, etag TEXT, version INTEGER NOT NULL, body BLOB NOT NULL);
"""
_REMEMBERED = timedelta(days=7)
"""How long it is known that an update was taken, as the global server knows it."""
REFUSED = 100
"""Refused messages that are kept, the newest: a wrong rule upstream refuses one every few seconds."""


@dataclass(frozen=True, slots=True)
class Message:
    """An update on its way to the upstream: the bytes that it is sent as, whenever it is."""

    number: int
    body: bytes
    devices: int


@dataclass(frozen=True, slots=True)
class KeptModel:
    """A global model as the upstream answered: its ETag, its round, the body."""

    etag: str | None
    version: int
    body: bytes


class UpdateBuffer:
    """The aggregator's memory. Safe to use from many threads; one process at a time.

    Parameters
    ----------
    path:
        of the SQLite file; its folder is made
    name:
        under which sums are sent; None keeps the one that it has, or makes one up

    Raises
    ------
    CorruptRunFolder
        where the file is none of SQLite's, or cannot be written
    Unavailable
        where another process has it
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self._lock = threading.RLock()
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.5)
        except (OSError, sqlite3.Error) as error:
            raise CorruptRunFolder(f"{path} cannot be opened ({error}): name another folder with --run-dir") from None
        try:
            with self._transaction(prepare=True) as database:
                for statement in _SCHEMA.split(";"):
                    database.execute(statement)
                kept = database.execute("SELECT value FROM said WHERE key = 'name'").fetchone()
                self.name = name or (kept[0] if kept else f"aggregator-{uuid4().hex[:8]}")
                database.execute("INSERT OR REPLACE INTO said VALUES ('name', ?)", (self.name,))
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._database.close()

    def accept(self, part: Part, now: datetime) -> bool:
        """Store an update; False where it was counted before. On return it is on the disk."""
        with self._transaction() as database:
            key = (part.device_id, part.timestamp.isoformat(), now.isoformat())
            if not database.execute("INSERT OR IGNORE INTO updates VALUES (?, ?, ?)", key).rowcount:
                return False
            known = database.execute(
                "SELECT samples_seen, updates FROM devices WHERE device = ?", (part.device_id,)
            ).fetchone()
            seen = part.samples_seen
            if known and known[0] is not None and seen is not None and seen <= known[0]:
                return False
            said = (part.device_id, part.cohort, 1 + (known[1] if known else 0), seen)
            database.execute("INSERT OR REPLACE INTO devices VALUES (?, ?, ?, ?)", said)
            # A device's newest weights contain its earlier ones; a mean of many devices is kept apart by its model.
            version = -1 if part.devices == 1 or part.base_version is None else part.base_version
            place = (sender_name(self.name, part.cohort, part.architecture), part.device_id, version)
            same = "SELECT part FROM parts WHERE sender = ? AND device = ? AND version = ?"
            waiting = database.execute(same, place).fetchone()
            if waiting:
                part = Part.from_bytes(waiting[0]).then(part)
            database.execute("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?)", (*place, part.to_bytes()))
        return True

    def close(self, now: datetime) -> int:
        """Make messages of what waits: one for each cohort and each global model that devices began from.

        None while earlier ones wait. Returns for how many cohorts.
        """
        with self._transaction() as database:
            # Before anything else, as updates also come while the upstream is away for weeks.
            database.execute("DELETE FROM updates WHERE received < ?", ((now - _REMEMBERED).isoformat(),))
            if database.execute("SELECT 1 FROM messages WHERE refused IS NULL").fetchone():
                return 0
            senders = [row[0] for row in database.execute("SELECT DISTINCT sender FROM parts ORDER BY sender")]
            for sender in senders:
                self._close(database, sender, now)
        return len(senders)

    def _close(self, database: sqlite3.Connection, sender: str, now: datetime) -> None:
        rows = database.execute("SELECT part FROM parts WHERE sender = ? ORDER BY device", (sender,))
        parts = [Part.from_bytes(row[0]) for row in rows]
        sent = database.execute("SELECT samples, time FROM senders WHERE sender = ?", (sender,)).fetchone()
        before, time = (sent[0], datetime.fromisoformat(sent[1])) if sent else (0, datetime.min.replace(tzinfo=UTC))
        time = max(now.astimezone(UTC), time + timedelta(microseconds=1))  # also where the clock was set back
        updates = partial_updates(parts, device_id=sender, timestamp=time, samples_before=before)
        messages = [(orjson.dumps(update), update["metadata"]["devices"]) for update in updates]
        database.executemany("INSERT INTO messages (body, devices) VALUES (?, ?)", messages)
        last = updates[-1]
        now_sent = (sender, parts[0].cohort, last["metadata"]["samples_seen"], last["timestamp"])
        database.execute("INSERT OR REPLACE INTO senders VALUES (?, ?, ?, ?)", now_sent)
        database.execute("DELETE FROM parts WHERE sender = ?", (sender,))

    def waiting(self) -> list[Message]:
        """The messages that the upstream has not answered, oldest first."""
        with self._transaction() as database:
            found = database.execute("SELECT number, body, devices FROM messages WHERE refused IS NULL ORDER BY number")
            return [Message(*row) for row in found]

    def sent(self, message: Message) -> None:
        """The upstream has it."""
        with self._transaction() as database:
            database.execute("DELETE FROM messages WHERE number = ?", (message.number,))

    def refused(self, message: Message, why: str) -> None:
        """The upstream will never take it: it is kept, with why, and not sent again."""
        with self._transaction() as database:
            database.execute("UPDATE messages SET refused = ? WHERE number = ?", (why, message.number))
            newest = "SELECT number FROM messages WHERE refused IS NOT NULL ORDER BY number DESC LIMIT ?"
            database.execute(
                f"DELETE FROM messages WHERE refused IS NOT NULL AND number NOT IN ({newest})",  # noqa: S608
                (REFUSED,),
            )

    def keep_model(self, cohort: str, model: KeptModel) -> None:
        """Keep what the upstream answered when asked for a cohort's global model ('' where none was named)."""
        with self._transaction() as database:
            row = (cohort, model.etag, model.version, model.body)
            database.execute("INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?)", row)

    def model(self, cohort: str) -> KeptModel | None:
        """The newest answer that is kept."""
        with self._transaction() as database:
            query = "SELECT etag, version, body FROM models WHERE cohort = ?"
            found = database.execute(query, (cohort,)).fetchone()
        return KeptModel(*found) if found else None

    def version(self, cohort: str) -> int:
        """The round of the global model that is kept; 0 where there is none."""
        with self._transaction() as database:
            found = database.execute("SELECT version FROM models WHERE cohort = ?", (cohort,)).fetchone()
        return int(found[0]) if found else 0

    def pending(self) -> int:
        """How many devices wait to be summed up."""
        with self._transaction() as database:
            return int(database.execute("SELECT COUNT(DISTINCT device) FROM parts").fetchone()[0])

    def summary(self) -> dict[str, Any]:
        """Devices with their cohort and number of updates; devices that wait, messages that wait or were refused."""
        with self._transaction() as database:
            devices = database.execute("SELECT device, cohort, updates FROM devices ORDER BY device").fetchall()
            pending = database.execute("SELECT DISTINCT device FROM parts").fetchall()
            messages = database.execute("SELECT number, devices, refused FROM messages ORDER BY number").fetchall()
        return {
            "devices": {device: {"cohort": cohort, "updates": updates} for device, cohort, updates in devices},
            "pending": {row[0] for row in pending},
            "waiting": sum(refused is None for _, _, refused in messages),
            "refused": [{"devices": devices, "why": refused} for _, devices, refused in messages if refused],
        }

    @contextmanager
    def _transaction(self, *, prepare: bool = False) -> Iterator[sqlite3.Connection]:
        """All or nothing; on return it is on the disk."""
        with self._lock:
            try:
                if prepare:
                    for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
                        self._database.execute(f"PRAGMA {pragma}")
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield self._database
                except BaseException:
                    self._database.execute("ROLLBACK")
                    raise
                self._database.execute("COMMIT")
            except sqlite3.OperationalError as error:
                if "locked" in str(error):
                    raise Unavailable(f"another process uses {self._path}: stop it, or name another folder") from None
                raise Unavailable(f"{self._path} cannot be written: {error}") from None
            except sqlite3.DatabaseError as error:
                raise CorruptRunFolder(f"{self._path} cannot be read ({error}): name another folder") from None
