"""Local updates and the rounds made of them.

A round and the marks on the updates that went into it are ONE transaction: after a crash there are both or neither.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pymongo import DESCENDING
from pymongo.database import Database

from flead import network
from flead.messages import GlobalModel, WeightsMessage
from flead.network import Architecture, Vector
from storage.connection import Document, ping, translated

_PENDING = None
"""`round` of an update that no round has used."""


@dataclass(frozen=True, slots=True)
class Update:
    """A validated local update.

    `theta` is (parameter_count,); `samples_seen` the device's training counter, `base_version` the round it began from
    and `sensors` the names its inputs are made of, None where it did not say.
    """

    device_id: str
    cohort: str
    timestamp: datetime
    received_at: datetime
    theta: Vector
    architecture: Architecture
    sample_count: int
    samples_seen: int | None = None
    base_version: int | None = None
    sensors: tuple[str, ...] | None = None

    @property
    def key(self) -> str:
        """The document's `_id`."""
        return f"{self.device_id}@{self.timestamp.isoformat()}"


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a device gave to a round: `updates` of them, merged into one, that learned from `samples` readings."""

    device_id: str
    samples: int
    updates: int
    samples_seen: int | None


class RoundRepository:
    """Keeps local updates and rounds. Every method raises `Unavailable` where MongoDB does not answer."""

    def __init__(self, database: Database[Document]) -> None:
        self._database = database
        self._updates = database["local_models"]
        self._rounds = database["global_model"]

    def ping(self) -> None:
        """Return if the database can be written to."""
        ping(self._database)

    def add_updates(self, updates: Sequence[Update]) -> None:
        """Store pending updates; all of them must be new."""
        if updates:
            with translated():
                self._updates.insert_many([_to_document(update) for update in updates])

    def known(self, keys: Iterable[str]) -> set[str]:
        """Find which of these updates are stored, pending or used."""
        with translated():
            return {found["_id"] for found in self._updates.find({"_id": {"$in": list(keys)}}, {"_id": 1})}

    def pending(self, cohort: str | None = None) -> list[Update]:
        """Read the updates that no round has used, of one cohort or all, in the order they came."""
        query: Document = {"round": _PENDING} | ({"cohort": cohort} if cohort is not None else {})
        with translated():
            return [_from_document(found) for found in self._updates.find(query).sort("received_at")]

    def newest_of(self, device_id: str) -> Update | None:
        """Read the newest update of a device, pending or used; None where there is none."""
        newest = [("received_at", DESCENDING), ("timestamp", DESCENDING)]
        with translated():
            found = self._updates.find_one({"device_id": device_id}, sort=newest)
        return None if found is None else _from_document(found)

    def devices(self) -> list[str]:
        """Name the devices of which updates are stored, sorted."""
        with translated():
            return sorted(self._updates.distinct("device_id"))

    def latest_rounds(self) -> dict[str, GlobalModel]:
        """Read the newest round of each cohort."""
        newest: list[Document] = [
            {"$sort": {"cohort": 1, "round": -1}},
            {"$group": {"_id": "$cohort", "key": {"$first": "$_id"}}},
        ]
        with translated():
            keys = [found["key"] for found in self._rounds.aggregate(newest)]
            return {found["cohort"]: _to_model(found) for found in self._rounds.find({"_id": {"$in": keys}})}

    def store_round(self, model: GlobalModel, devices: Sequence[Contribution]) -> None:
        """Store a round and mark the pending updates of its cohort as used by it, in one transaction.

        Raises
        ------
        Unavailable
            where it is not known to be stored: read the rounds again before going on
        """
        document = {
            "_id": f"{model.cohort}#{model.version}",
            "cohort": model.cohort,
            "round": model.version,
            "timestamp": model.timestamp,
            "weights": model.weights.model_dump(),
            "num_devices": model.num_devices,
            "total_samples": model.total_samples,
            "aggregation_strategy": model.aggregation_strategy,
            "devices": [
                {"device_id": d.device_id, "samples": d.samples, "updates": d.updates, "samples_seen": d.samples_seen}
                for d in devices
            ],
            "published_at": None,
        }
        # Not with_transaction(): it would go on trying for two minutes, and whoever calls us waits.
        with translated(), self._database.client.start_session() as session, session.start_transaction():
            self._rounds.insert_one(document, session=session)
            used = {"cohort": model.cohort, "round": _PENDING}
            self._updates.update_many(used, {"$set": {"round": model.version}}, session=session)

    def mark_published(self, cohort: str, version: int, now: datetime) -> None:
        """Note when a round was delivered."""
        with translated():
            self._rounds.update_one({"_id": f"{cohort}#{version}"}, {"$set": {"published_at": now}})

    def history(self, cohort: str, limit: int = 1_000) -> list[Document]:
        """Read the newest rounds of a cohort without their weights, oldest first."""
        with translated():
            found = list(self._rounds.find({"cohort": cohort}, {"weights": 0}).sort("round", -1).limit(limit))
        return found[::-1]

    def contributions(self) -> dict[str, list[Contribution]]:
        """Sum what each device gave to all rounds, by cohort."""
        totals: list[Document] = [
            {"$unwind": "$devices"},
            {
                "$group": {
                    "_id": {"cohort": "$cohort", "device_id": "$devices.device_id"},
                    "samples": {"$sum": "$devices.samples"},
                    "updates": {"$sum": "$devices.updates"},
                    "samples_seen": {"$max": "$devices.samples_seen"},
                }
            },
        ]
        by_cohort: dict[str, list[Contribution]] = {}
        with translated():
            for found in self._rounds.aggregate(totals):
                names, sums = found.pop("_id"), found
                by_cohort.setdefault(names["cohort"], []).append(Contribution(names["device_id"], **sums))
        return by_cohort

    def counts(self) -> dict[str, int]:
        """Count stored updates, pending ones and rounds."""
        with translated():
            return {
                "local_models": self._updates.estimated_document_count(),
                "pending": self._updates.count_documents({"round": _PENDING}),
                "global_model": self._rounds.estimated_document_count(),
            }


def _to_document(update: Update) -> Document:
    return {
        "_id": update.key,
        "device_id": update.device_id,
        "cohort": update.cohort,
        "timestamp": update.timestamp,
        "received_at": update.received_at,
        "weights": network.to_message(update.theta, update.architecture),
        "sample_count": update.sample_count,
        "samples_seen": update.samples_seen,
        "base_version": update.base_version,
        "sensors": None if update.sensors is None else list(update.sensors),
        "round": _PENDING,
    }


def _from_document(document: Document) -> Update:
    theta, architecture = network.from_message(WeightsMessage.model_validate(document["weights"]))
    # The date keeps milliseconds; the `_id` has the whole time.
    timestamp = datetime.fromisoformat(document["_id"].removeprefix(document["device_id"] + "@")).astimezone(UTC)
    same: dict[str, Any] = {
        name: document[name]
        for name in ("device_id", "cohort", "received_at", "sample_count", "samples_seen", "base_version")
    }
    named = document.get("sensors")  # documents of earlier versions have none
    sensors = None if named is None else tuple(named)
    return Update(timestamp=timestamp, theta=theta, architecture=architecture, sensors=sensors, **same)


def _to_model(document: Document) -> GlobalModel:
    return GlobalModel.model_validate({**document, "version": document["round"]})
