"""The collections: ONE declaration of their fields, indexes and how long they are kept.

Validators say `number`, never `double`, which refuses whole numbers. They name what other parts rely on and leave
the rest open: a device may send fields that nobody declared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.database import Database
from pymongo.errors import OperationFailure

from config.settings import MongoSettings
from storage.connection import Document, translated

_INDEX_OPTIONS_CONFLICT = 85
_NAMESPACE_EXISTS = 48
_DAY_S = 86_400

_NAME = {"bsonType": "string", "minLength": 1}
_DATE = {"bsonType": "date"}
_COUNT = {"bsonType": "number", "minimum": 0}
_NULLABLE_COUNT = {"bsonType": ["number", "null"], "minimum": 0}
_WEIGHTS = {
    "bsonType": "object",
    "required": ["weights", "biases", "architecture"],
    "properties": {
        "weights": {"bsonType": "array"},
        "biases": {"bsonType": "array"},
        "architecture": {"bsonType": "object"},
    },
}
_BY_DEVICE = IndexModel([("device_id", ASCENDING), ("timestamp", DESCENDING)], name="device_time")
_BY_TIME = IndexModel([("timestamp", DESCENDING)], name="time")


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection: its fields (a part of JSON schema, all required unless in `optional`) and indexes."""

    name: str
    fields: dict[str, Any]
    indexes: tuple[IndexModel, ...]
    optional: frozenset[str] = frozenset()

    @property
    def validator(self) -> dict[str, Any]:
        """What MongoDB checks each document against."""
        required = [name for name in self.fields if name not in self.optional]
        return {"$jsonSchema": {"bsonType": "object", "required": required, "properties": self.fields}}


def collections(settings: MongoSettings) -> tuple[Collection, ...]:
    """Declare every collection.

    >>> [collection.name for collection in collections(MongoSettings())]
    ['device_data', 'local_models', 'global_model', 'predictions', 'alerts', 'dead_letters']
    """
    measured = {"device_id": _NAME, "timestamp": _DATE}
    return (
        Collection(
            "device_data",
            measured | {"sensors": {"bsonType": "object"}, "metadata": {"bsonType": "object"}},
            (_BY_DEVICE, _BY_TIME),
            frozenset({"metadata"}),
        ),
        Collection(
            "local_models",
            measured
            | {
                "cohort": _NAME,
                "received_at": _DATE,
                "weights": _WEIGHTS,
                "sample_count": {"bsonType": "number", "minimum": 1},
                "samples_seen": _NULLABLE_COUNT,
                "base_version": _NULLABLE_COUNT,
                "sensors": {"bsonType": ["array", "null"], "items": _NAME},
                "round": _NULLABLE_COUNT,
            },
            (
                _BY_DEVICE,
                IndexModel([("cohort", ASCENDING), ("round", ASCENDING)], name="cohort_round"),
                IndexModel(
                    [("received_at", ASCENDING)],
                    name="kept",
                    expireAfterSeconds=int(settings.local_models_days * _DAY_S),
                ),
            ),
            frozenset({"sensors"}),
        ),
        Collection(
            "global_model",
            {
                "cohort": _NAME,
                "round": {"bsonType": "number", "minimum": 1},
                "timestamp": _DATE,
                "weights": _WEIGHTS,
                "num_devices": _COUNT,
                "total_samples": _COUNT,
                "aggregation_strategy": {"bsonType": "string"},
                "devices": {"bsonType": "array"},
                "published_at": {"bsonType": ["date", "null"]},
            },
            (IndexModel([("cohort", ASCENDING), ("round", DESCENDING)], name="cohort_round", unique=True), _BY_TIME),
        ),
        Collection("predictions", measured, (_BY_DEVICE, _BY_TIME)),
        Collection("alerts", measured, (_BY_DEVICE, _BY_TIME)),
        Collection(
            "dead_letters",
            {"reason": {"bsonType": "string"}, "source": {"bsonType": "object"}, "timestamp": _DATE},
            (IndexModel([("reason", ASCENDING), ("timestamp", DESCENDING)], name="reason_time"), _BY_TIME),
        ),
    )


def apply_schema(database: Database[Document], settings: MongoSettings) -> None:
    """Make the collections, validators and indexes as they are declared; again is harmless.

    Raises
    ------
    Unavailable
        where MongoDB does not answer
    """
    with translated():
        for collection in collections(settings):
            _apply(database, collection)


def _apply(database: Database[Document], collection: Collection) -> None:
    try:
        database.create_collection(collection.name, validator=collection.validator, check_exists=False)
    except OperationFailure as error:
        if error.code != _NAMESPACE_EXISTS:
            raise
        database.command("collMod", collection.name, validator=collection.validator)
    for index in collection.indexes:
        _apply_index(database, collection.name, index)


def _apply_index(database: Database[Document], name: str, index: IndexModel) -> None:
    try:
        database[name].create_indexes([index])
    except OperationFailure as error:
        declared = index.document
        if error.code != _INDEX_OPTIONS_CONFLICT or "expireAfterSeconds" not in declared:
            raise
        changed = {"name": declared["name"], "expireAfterSeconds": declared["expireAfterSeconds"]}
        database.command("collMod", name, index=changed)
