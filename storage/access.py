"""Users, devices' keys and the audit log of the global server.

What changed is found by `changed_at`, which is MongoDB's own time: a server learns of it whoever changed it, and
whatever the clock of that machine says. Nothing is deleted: what no longer holds says since when.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo.database import Database
from pymongo.errors import DuplicateKeyError

from flead.errors import FleadError
from storage.connection import Document, translated

_OVERLAP = timedelta(seconds=10)
"""What was written at the same time as what was read last may become visible after it."""
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class StoredUser:
    """A user. `password` is the hash of it, empty where he was removed; tokens of other generations do not hold."""

    name: str
    role: str
    password: str
    generation: int
    created_at: datetime
    changed_at: datetime

    @property
    def removed(self) -> bool:
        """Whether he may no longer log in."""
        return not self.password


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A device's key: its hash, and what it lets the device do."""

    key_id: str
    device_id: str
    sha256: str
    aggregator: bool
    public_key: str | None
    created_by: str
    created_at: datetime
    changed_at: datetime
    revoked_at: datetime | None


class AccessRepository:
    """Who may ask the global server. Every method raises `Unavailable` where MongoDB does not answer."""

    def __init__(self, database: Database[Document]) -> None:
        self._users = database["users"]
        self._keys = database["device_keys"]

    def users(self, changed_since: datetime = BEGINNING) -> list[StoredUser]:
        """Read users in order of their last change, removed ones too; those of the last 10 s before come again."""
        with translated():
            found = self._users.find({"changed_at": {"$gte": _before(changed_since)}}).sort("changed_at", 1)
            return [_user(document) for document in found]

    def add_user(self, name: str, role: str, password: str) -> None:
        """Add a user, or one again who was removed.

        Raises
        ------
        FleadError
            where there is one of that name
        """
        fields = {"name": name, "role": role, "password": password, "removed_at": None}
        with translated():
            try:
                self._users.update_one({"_id": name, "password": ""}, _with_stamps(fields), upsert=True)
            except DuplicateKeyError:
                raise FleadError(
                    f"there is a user {name!r}: `flead users password {name}` gives him another password"
                ) from None

    def set_password(self, name: str, password: str) -> bool:
        """Give a user another password, which ends all his tokens; False where there is none of that name."""
        return self._change_user(name, {"password": password})

    def remove_user(self, name: str) -> bool:
        """Let a user log in no longer; False where there is none of that name."""
        return self._change_user(name, {"password": ""}, removed_at="$$NOW")

    def _change_user(self, name: str, fields: Mapping[str, Any], **stamps: str) -> bool:
        which = {"_id": name, "password": {"$ne": ""}}
        with translated():
            return bool(self._users.update_one(which, _with_stamps(fields, **stamps)).matched_count)

    def keys(self, changed_since: datetime = BEGINNING) -> list[StoredKey]:
        """Read keys in order of their last change, revoked ones too; those of the last 10 s before come again."""
        with translated():
            found = self._keys.find({"changed_at": {"$gte": _before(changed_since)}}).sort("changed_at", 1)
            return [_key(document) for document in found]

    def list_keys(self, device_id: str | None = None, limit: int = 1_000) -> list[StoredKey]:
        """Read keys for people: of one device, or of all by device."""
        with translated():
            if device_id is not None:
                found = self._keys.find({"device_id": device_id}).sort("created_at", 1)
            else:
                found = self._keys.find({}).sort([("device_id", 1), ("created_at", 1)])
            return [_key(document) for document in found.limit(limit)]

    def add_key(
        self, key_id: str, device_id: str, sha256: str, created_by: str, *, aggregator: bool, public_key: str | None
    ) -> StoredKey:
        """Keep a key's hash."""
        fields = {"device_id": device_id, "sha256": sha256, "created_by": created_by, "aggregator": aggregator}
        fields |= {"public_key": public_key, "revoked_at": None}
        stamps = {"created_at": "$$NOW", "changed_at": "$$NOW"}
        with translated():
            self._keys.update_one({"_id": key_id}, [{"$set": {**_literal(fields), **stamps}}], upsert=True)
            stored = self._keys.find_one({"_id": key_id})
        return _key(stored or {})

    def revoke_key(self, key_id: str) -> StoredKey | None:
        """Let a key hold no longer; None where there is none of that name. Again changes nothing."""
        stamps = {"revoked_at": "$$NOW", "changed_at": "$$NOW"}
        with translated():
            self._keys.update_one({"_id": key_id, "revoked_at": None}, [{"$set": stamps}])
            stored = self._keys.find_one({"_id": key_id})
        return _key(stored) if stored else None


class AuditRepository:
    """The audit log: it can be added to and read. Every method raises `Unavailable` where MongoDB does not answer."""

    def __init__(self, database: Database[Document]) -> None:
        self._log = database["audit_log"]

    def add(self, entry: Mapping[str, Any]) -> None:
        """Keep an entry; `at` is aware. Its name sorts by time."""
        at = entry["at"].astimezone(UTC)
        name = f"{at.isoformat(timespec='microseconds')}#{secrets.token_hex(6)}"
        with translated():
            self._log.insert_one({"_id": name, **entry, "at": at})

    def newest(self, limit: int, before: str | None = None) -> Sequence[Document]:
        """Read entries, newest first, each with its `_id`: those before one of that name, where it is given."""
        asked: Document = {"_id": {"$lt": before}} if before else {}
        with translated():
            return list(self._log.find(asked).sort("_id", -1).limit(limit))


def _before(since: datetime) -> datetime:
    return since - _OVERLAP if since > BEGINNING else since


def _with_stamps(fields: Mapping[str, Any], **stamps: str) -> list[Document]:
    """A change of a user: the fields, a new generation, and when it was."""
    always = {
        "generation": {"$add": [{"$ifNull": ["$generation", 0]}, 1]},
        "created_at": {"$ifNull": ["$created_at", "$$NOW"]},
        "changed_at": "$$NOW",
    }
    return [{"$set": {**_literal(fields), **always, **stamps}}]


def _literal(fields: Mapping[str, Any]) -> Document:
    """Fields as they are: in a pipeline a text that begins with $ would be an expression."""
    return {name: {"$literal": value} for name, value in fields.items()}


def _user(document: Document) -> StoredUser:
    return StoredUser(
        name=document["_id"],
        role=document["role"],
        password=document["password"],
        generation=int(document["generation"]),
        created_at=document["created_at"],
        changed_at=document["changed_at"],
    )


def _key(document: Document) -> StoredKey:
    return StoredKey(
        key_id=document["_id"],
        device_id=document["device_id"],
        sha256=document["sha256"],
        aggregator=bool(document.get("aggregator")),
        public_key=document.get("public_key"),
        created_by=document["created_by"],
        created_at=document["created_at"],
        changed_at=document["changed_at"],
        revoked_at=document.get("revoked_at"),
    )
