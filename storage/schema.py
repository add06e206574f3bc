"""Brings a database to what `storage.documents` declares: layout, validators, indexes, and how long things are kept."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pymongo
from pymongo import IndexModel
from pymongo.database import Database
from pymongo.errors import OperationFailure

from config.settings import MongoSettings
from storage.connection import Document, translated
from storage.documents import COLLECTIONS, UP, Collection
from storage.migrations import check_usable, migrate, schema_lock
from storage.validators import validator

_NAMESPACE_EXISTS = 48
_DAY_S = 86_400
_INDEX_LIMIT_S = 3_600.0
"""An index over millions of documents takes longer than an answer may take otherwise."""

KEPT = "kept"
"""The index by which MongoDB deletes what is too old."""


def collections(settings: MongoSettings) -> tuple[Collection, ...]:
    """Every collection, with the time to keep that the settings say.

    >>> [collection.name for collection in collections(MongoSettings())][:3]
    ['device_data', 'local_models', 'global_model']
    """
    days: dict[str, float | None] = dict(settings.retention_days.items())
    return tuple(replace(declared, keep_days=days.get(declared.name)) for declared in COLLECTIONS)


def apply_schema(database: Database[Document], settings: MongoSettings) -> None:
    """Make the collections, validators and indexes as they are declared; again is harmless.

    Several processes may do so at once; all but one wait.

    Raises
    ------
    CorruptRunFolder
        where a newer FLEAD wrote the database, or a restore into it did not end
    Unavailable
        where MongoDB does not answer
    """
    with translated():
        check_usable(database)
        with schema_lock(database) as lock:
            check_usable(database)  # what we waited for may have changed it
            migrate(database, lock)
            declare(database, collections(settings))


def declare(database: Database[Document], declared: Iterable[Collection]) -> None:
    """Make collections, validators and indexes of a database of today's layout; changes only what differs."""
    present = {found["name"]: found["options"].get("validator") for found in database.list_collections()}
    for collection in declared:
        _apply_validator(database, collection, present)
        _apply_indexes(database, collection)


def _apply_validator(database: Database[Document], collection: Collection, present: Document) -> None:
    wanted = validator(collection.model)
    if collection.name not in present:
        try:
            database.create_collection(collection.name, validator=wanted, check_exists=False)
        except OperationFailure as error:  # somebody may have written into it just now
            if error.code != _NAMESPACE_EXISTS:
                raise
        else:
            return
    if present.get(collection.name) != wanted:
        database.command("collMod", collection.name, validator=wanted)


def _apply_indexes(database: Database[Document], collection: Collection) -> None:
    """Make the indexes; an equal one under another name, made by somebody else, will do."""
    present = database[collection.name].index_information()
    keys = {name: dict(index["key"]) for name, index in present.items()}
    for index in collection.indexes:
        same = [name for name, key in keys.items() if list(key.items()) == list(index.keys.items())]
        if any(bool(present[name].get("unique")) >= index.unique for name in same):
            continue
        if index.name in present:  # it had other keys in an earlier version
            database[collection.name].drop_index(index.name)
        unique = {"unique": True} if index.unique else {}
        _create(database, collection.name, IndexModel(list(index.keys.items()), name=index.name, **unique))
    _apply_retention(database, collection, present.get(KEPT))


def _apply_retention(database: Database[Document], collection: Collection, present: Document | None) -> None:
    """Have MongoDB delete what is older than the time to keep, or stop doing so."""
    keep_s = None if collection.keep_days is None else max(1, int(collection.keep_days * _DAY_S))
    key = [(collection.expires_from, UP)] if collection.expires_from and keep_s is not None else None
    if present and [(name, order) for name, order in present["key"]] != key:
        database[collection.name].drop_index(KEPT)
        present = None
    if key and not present:
        _create(database, collection.name, IndexModel(key, name=KEPT, expireAfterSeconds=keep_s))
    elif key and present and present.get("expireAfterSeconds") != keep_s:
        database.command("collMod", collection.name, index={"name": KEPT, "expireAfterSeconds": keep_s})


def _create(database: Database[Document], name: str, index: IndexModel) -> None:
    with pymongo.timeout(_INDEX_LIMIT_S):
        database[name].create_indexes([index])
