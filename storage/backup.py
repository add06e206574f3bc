"""A database in one file, and back.

The file is a tar: `NAME.bson.gz` for each collection, each a row of BSON documents, and `manifest.json`, which says
the layout, how many documents there are, and the SHA-256 of each part. `tar x`, `gunzip` and MongoDB's `bsondump`
read it too. Nothing in it is run or unpickled. All collections are read as of one instant, also while a run writes.

A restore marks the database before it changes anything and takes the mark away at its end: one that was killed is
told from a whole one, and no process of FLEAD starts on it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import os
import re
import struct
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, BinaryIO, cast

import bson
from bson.codec_options import CodecOptions
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pymongo.client_session import ClientSession
from pymongo.database import Database
from pymongo.errors import OperationFailure

from config.settings import MongoSettings
from flead.errors import FleadError, Unavailable
from storage.connection import Document, app_name, translated
from storage.migrations import (
    COLLECTION,
    KEY,
    check_not_newer,
    check_usable,
    migrate,
    schema_lock,
    version_of,
)
from storage.schema import collections, declare

log = logging.getLogger(__name__)

FORMAT = 1
APP_NAME = "flead restore"
"""What a restore's own client is called, so that it does not take itself for somebody who uses the database."""

_MANIFEST = "manifest.json"
_LINGERS_S = 2.0
"""How long the connections of a process that has just ended may still be there."""

_BATCH, _BATCH_BYTES = 1_000, 16_000_000
_SNAPSHOT_UNAVAILABLE, _SNAPSHOT_TOO_OLD = 246, 239
_UNREADABLE = (tarfile.TarError, OSError, EOFError, zlib.error, BSONError, ValueError)
_RAW: CodecOptions[RawBSONDocument] = CodecOptions(document_class=RawBSONDocument)

Progress = Callable[[int], None]


class BadBackup(FleadError):
    """A file that is no whole backup; the message says what is wrong with it."""


def _ours(name: str) -> str:
    """Refuse names that MongoDB cannot have, or keeps for itself."""
    if not re.fullmatch(r"[^$.\x00][^$\x00]*", name) or name.startswith("system.") or name == COLLECTION:
        raise ValueError(f"{name!r} is no collection of a backup")
    return name


class Part(BaseModel):
    """One collection of a backup."""

    documents: int = Field(ge=0)
    bytes: int = Field(ge=0, description="of the compressed part")
    sha256: str


class Manifest(BaseModel):
    """What a backup holds."""

    format: int
    layout: int = Field(ge=0, description="the layout of the database (`storage.migrations`)")
    created: datetime
    database: str
    collections: dict[Annotated[str, AfterValidator(_ours)], Part]

    @property
    def documents(self) -> int:
        """How many documents all collections hold."""
        return sum(part.documents for part in self.collections.values())


def write_backup(
    database: Database[Document], path: Path, *, ours: bool = False, on_progress: Progress = lambda _: None
) -> Manifest:
    """Write a database to a file.

    Parameters
    ----------
    ours:
        the server is our embedded one, which may be told to remember its past for as long as this takes
    on_progress:
        is told how many documents have been written

    Raises
    ------
    CorruptRunFolder
        where the database is the half of a restore, or was written by a newer FLEAD
    Unavailable
        where MongoDB does not answer, or forgets the instant that is being read
    """
    with translated():
        check_usable(database)
        with _remembering(database, ours=ours):
            for _ in range(5):
                with suppress(_Again):
                    return _write(database, path, on_progress)
    raise Unavailable(f"collections of database {database.name} are being made or changed all the time: try again")


def check_backup(path: Path, on_progress: Progress = lambda _: None) -> Manifest:
    """Read a whole backup and compare it with its manifest.

    Raises
    ------
    BadBackup
        where it cannot be read, is damaged, or of another kind
    CorruptRunFolder
        where a newer FLEAD wrote it
    """
    done = 0
    with _opened(path) as (tar, manifest):
        for name, part in manifest.collections.items():
            with _part(tar, name) as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != part.sha256:  # type: ignore[arg-type]
                    raise BadBackup(f"{path} is damaged: the checksum of {name} is another; use another backup")
            count = 0
            for count, _ in enumerate(_documents(tar, name), 1):
                if (done + count) % _BATCH == 0:
                    on_progress(done + count)
            if count != part.documents:
                raise BadBackup(f"{path} is damaged: {name} holds {count} documents, not {part.documents}")
            done += count
    return manifest


def restore_backup(
    database: Database[Document],
    settings: MongoSettings,
    path: Path,
    *,
    replace: bool = False,
    on_progress: Progress = lambda _: None,
) -> Manifest:
    """Put what a backup holds into a database, and bring it to today's layout.

    The backup is checked whole before the database is touched. A restore that did not end may be done again.

    Parameters
    ----------
    replace:
        drop what the database holds
    on_progress:
        is told how many documents have been written

    Raises
    ------
    BadBackup
        where the file is no whole backup
    CorruptRunFolder
        where a newer FLEAD wrote the backup
    Unavailable
        where MongoDB does not answer, or other processes of FLEAD use the database
    FleadError
        where the database is not empty and may not be replaced
    """
    manifest = check_backup(path)
    with translated():
        _check_unused(database)
        if not replace:
            _check_empty(database)
        with schema_lock(database) as lock:
            begun = {"file": path.name, "since": datetime.now(UTC)}
            lock.set(restoring=begun, version=manifest.layout)
            for name in _names(database):
                database.drop_collection(name)
            _insert(database, path, on_progress)
            migrate(database, lock)
            declare(database, collections(settings))
            lock.set(restoring=None)
    return manifest


class _Again(Exception):
    """A collection was made or changed after the instant that is being read."""


def _write(database: Database[Document], path: Path, on_progress: Progress) -> Manifest:
    parts: dict[str, Part] = {}
    created = datetime.now(UTC)
    with (
        open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file,  # it holds hashes of passwords
        tarfile.open(fileobj=file, mode="w") as tar,
        database.client.start_session(snapshot=True) as session,
    ):
        layout = version_of(database, session)  # the first read: all others are of the same instant
        for name in _names(database):
            before = sum(part.documents for part in parts.values())
            with tempfile.TemporaryFile(dir=path.parent) as spool:
                count = 0
                for count in _dump(database, name, session, spool):
                    on_progress(before + count)
                _add(tar, f"{name}.bson.gz", spool, created)
                parts[name] = Part(documents=count, bytes=spool.tell(), sha256=_digest(spool))
        manifest = Manifest(format=FORMAT, layout=layout, created=created, database=database.name, collections=parts)
        _add(tar, _MANIFEST, io.BytesIO(manifest.model_dump_json(indent=1).encode()), created)
    return manifest


def _dump(database: Database[Document], name: str, session: ClientSession, file: IO[bytes]) -> Iterator[int]:
    """Write a collection's documents as they are; yields how many have been written."""
    written = 0
    try:
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=1, mtime=0) as packed:
            batches = database[name].find_raw_batches(session=session)
            for batch in cast(Iterable[bytes], batches):
                packed.write(batch)
                written += sum(1 for _ in _lengths(batch))
                yield written
    except OperationFailure as error:
        if error.code == _SNAPSHOT_UNAVAILABLE:
            raise _Again from None
        if error.code == _SNAPSHOT_TOO_OLD:
            raise Unavailable(
                "the backup took longer than MongoDB remembers its past: raise its parameter "
                "minSnapshotHistoryWindowInSeconds (300 s) and begin again"
            ) from None
        raise


def _lengths(batch: bytes) -> Iterator[int]:
    """The length of each document: its first four bytes."""
    at = 0
    while at < len(batch):
        (length,) = struct.unpack_from("<i", batch, at)
        yield length
        at += length


def _digest(file: IO[bytes]) -> str:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _add(tar: tarfile.TarFile, name: str, file: IO[bytes], created: datetime) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = file.seek(0, 2), int(created.timestamp()), 0o600
    file.seek(0)
    tar.addfile(info, file)


@contextmanager
def _remembering(database: Database[Document], *, ours: bool) -> Iterator[None]:
    """Have our own server keep its past for a day, in place of five minutes, until the context ends."""
    parameter, admin = "minSnapshotHistoryWindowInSeconds", database.client.admin
    if not ours:
        yield
        return
    before = admin.command({"getParameter": 1, parameter: 1})[parameter]
    admin.command({"setParameter": 1, parameter: 86_400})
    try:
        yield
    finally:
        admin.command({"setParameter": 1, parameter: before})


@contextmanager
def _opened(path: Path) -> Iterator[tuple[tarfile.TarFile, Manifest]]:
    """A backup and its manifest; what cannot be read while it is open is a bad backup."""
    try:
        with tarfile.open(path, "r:") as tar:
            with _part(tar, _MANIFEST, "") as file:
                fields = json.load(file)
            if not isinstance(fields, dict) or fields.get("format") != FORMAT:
                raise BadBackup(f"{path} is a backup of another format than {FORMAT}: update FLEAD")
            manifest = Manifest.model_validate(fields)
            check_not_newer(manifest.layout, str(path))
            yield tar, manifest
    except FileNotFoundError:
        raise BadBackup(f"there is no file {path}: name one that `flead backup` wrote") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadBackup(f"{path} is no backup of FLEAD: in its manifest, {where}: {first['msg']}") from None
    except _UNREADABLE as error:
        raise BadBackup(f"{path} is no whole backup of FLEAD: {' '.join(str(error).split())[:200]}") from None


def _part(tar: tarfile.TarFile, name: str, ending: str = ".bson.gz") -> IO[bytes]:
    try:
        file = tar.extractfile(name + ending)
    except KeyError:
        file = None
    if file is None:
        raise BadBackup(f"{tar.name!s} is no whole backup of FLEAD: it has no {name}{ending}")
    return file


def _documents(tar: tarfile.TarFile, name: str) -> Iterator[RawBSONDocument]:
    with _part(tar, name) as packed, gzip.GzipFile(fileobj=packed) as file:
        yield from bson.decode_file_iter(cast(BinaryIO, file), _RAW)


def _insert(database: Database[Document], path: Path, on_progress: Progress) -> None:
    done = 0
    with _opened(path) as (tar, manifest):
        for name in manifest.collections:
            collection = database.get_collection(name, codec_options=_RAW)
            for batch in _batches(_documents(tar, name)):
                collection.insert_many(batch, ordered=False)
                done += len(batch)
                on_progress(done)


def _batches(documents: Iterable[RawBSONDocument]) -> Iterator[list[RawBSONDocument]]:
    """As many as are written at once: a document may have 16 MB."""
    batch: list[RawBSONDocument] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.raw)
        if len(batch) == _BATCH or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _names(database: Database[Document]) -> list[str]:
    """All collections but the one that says what state the database is in."""
    found = database.list_collection_names(filter={"type": "collection"})
    return sorted(name for name in found if name != COLLECTION and not name.startswith("system."))


def _check_empty(database: Database[Document]) -> None:
    if (database[COLLECTION].find_one(KEY) or {}).get("restoring"):
        return  # the half of a restore is nothing that somebody would miss
    full = [name for name in _names(database) if database[name].find_one({}, {"_id": 1})]
    if full:
        raise FleadError(
            f"database {database.name} is not empty ({', '.join(full)}): name an empty --run-dir, "
            "or have all that it holds dropped with --replace"
        )


def _check_unused(database: Database[Document]) -> None:
    """Raise `Unavailable` where other processes of FLEAD are connected: what they remember would no longer hold."""
    everybody: list[Document] = [
        {"$currentOp": {"allUsers": True, "idleConnections": True}},
        {"$match": {"appName": app_name(database.name)}},
        {"$limit": 1},
    ]
    deadline = time.monotonic() + _LINGERS_S
    try:
        while list(database.client.admin.aggregate(everybody)):
            if time.monotonic() > deadline:
                raise Unavailable(f"a running FLEAD uses database {database.name}: stop it first (`flead down`)")
            time.sleep(0.05)
    except OperationFailure as error:
        log.warning("who uses MongoDB cannot be seen (%s): make sure that no FLEAD runs on it", error.code)
