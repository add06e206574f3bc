"""Local updates and the rounds made of them.

An update is stored with the number of the round that it goes into, which is its cohort's next: it is pending until
that round is there, and used from then on. So a round need not touch the updates it was made of. A round and what its
strategy and its defence remember are ONE transaction: after a crash there is all or none. So is a version's change of
stage.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
from pymongo import DESCENDING, ReplaceOne, collection
from pymongo.client_session import ClientSession
from pymongo.database import Database

from config.aggregation import RulesPatch
from flead.messages import GlobalModel, Stage
from flead.network import Vector
from flead.updates import ReadUpdate
from storage.connection import Document, ping, translated
from storage.weights import packed, packed_numbers, unpacked, unpacked_numbers

_DISCARDED = 0
"""`round` of an update that no round will use: it began from a version that was taken back."""


@dataclass(frozen=True, slots=True)
class Update(ReadUpdate):
    """A local update that may enter a round, and when it came, in UTC."""

    received_at: datetime = field(kw_only=True)
    key: str = field(init=False, compare=False)
    """The document's `_id`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", f"{self.device_id}@{self.timestamp.isoformat()}")


@dataclass(frozen=True, slots=True)
class Contribution:
    """What a device gave to a round: `updates` of them, merged into one, that learned from `samples` readings.

    `share` is its part in the result, 0 where it was left out, and `flag` why the defence left it out.
    """

    device_id: str
    samples: int
    updates: int
    samples_seen: int | None
    share: float | None = None
    flag: str | None = None


@dataclass(frozen=True, slots=True)
class Trust:
    """What the defence thinks of a device: its reputation (a, b of a Beta), and whether it is kept out."""

    device_id: str
    cohort: str
    good: float
    bad: float
    state: str
    """`trusted`, `quarantined` or `rejected`."""
    reason: str | None
    changed_at: datetime
    decided_by: str | None = None


@dataclass(frozen=True, slots=True)
class Memo:
    """What a round leaves to the next: its strategy's arrays, by name, and the trust of devices that has changed."""

    strategy: str = ""
    state: Mapping[str, Vector] = field(default_factory=dict)
    trust: Sequence[Trust] = ()
    superseded: int | None = None
    """The canary that this round takes the place of."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a cohort stands: the newest version's number, the stable model, and what became of the newest canary."""

    version: int
    model: GlobalModel | None
    canary: GlobalModel | None


@dataclass(frozen=True, slots=True)
class Loss:
    """What a device said of its errors with a version of the global model."""

    device_id: str
    base_version: int | None
    loss: float
    received_at: datetime


def as_kept(now: datetime) -> datetime:
    """A time as MongoDB keeps it, in UTC and milliseconds: what is published must be what is read after a restart.

    >>> as_kept(datetime(2024, 1, 1, microsecond=123_456, tzinfo=UTC)).microsecond
    123000
    """
    return now.astimezone(UTC).replace(microsecond=now.microsecond // 1000 * 1000)


def newest_rounds(rounds: collection.Collection[Document]) -> dict[str, int]:
    """The number of each cohort's newest round."""
    newest: list[Document] = [
        {"$sort": {"cohort": 1, "round": -1}},
        {"$group": {"_id": "$cohort", "round": {"$first": "$round"}}},
    ]
    return {found["_id"]: found["round"] for found in rounds.aggregate(newest)}


class RoundRepository:
    """Keeps local updates and rounds. Every method raises `Unavailable` where MongoDB does not answer."""

    def __init__(self, database: Database[Document]) -> None:
        self._database = database
        self._updates = database["local_models"]
        self._rounds = database["global_model"]
        self._states = database["strategy_state"]
        self._trust = database["device_trust"]
        self._patches = database["server_rules"]

    def ping(self) -> None:
        """Return if the database can be written to."""
        ping(self._database)

    def add_updates(self, updates: Sequence[Update], rounds: Mapping[str, int]) -> None:
        """Store pending updates; all of them must be new.

        Parameters
        ----------
        rounds:
            cohort → the number of its next round
        """
        if updates:
            with translated():
                self._updates.insert_many([_to_document(update, rounds[update.cohort]) for update in updates])

    def known(self, keys: Iterable[str]) -> set[str]:
        """Find which of these updates are stored, pending or used."""
        with translated():
            return {found["_id"] for found in self._updates.find({"_id": {"$in": list(keys)}}, {"_id": 1})}

    def pending(self, cohort: str | None = None) -> list[Update]:
        """Read the updates that no round has used, of one cohort or all, in the order they came."""
        with translated():
            newest = newest_rounds(self._rounds)
            names = self._updates.distinct("cohort") if cohort is None else [cohort]
            waiting = [{"cohort": name, "round": {"$gt": newest.get(name, _DISCARDED)}} for name in names]
            if not waiting:
                return []
            found = self._updates.find({"$or": waiting}).sort({"round": 1, "received_at": 1})
            return [_from_document(one) for one in found]

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

    def standings(self) -> dict[str, Standing]:
        """Read where each cohort stands."""
        newest: list[Document] = [
            {"$sort": {"cohort": 1, "round": -1}},
            {
                "$group": {
                    "_id": "$cohort",
                    "version": {"$first": "$round"},
                    "stage": {"$first": {"$ifNull": ["$stage", Stage.STABLE]}},
                    "stable": {"$max": {"$cond": [{"$eq": [{"$ifNull": ["$stage", Stage.STABLE]}, Stage.STABLE]},
                                                  "$round", None]}},
                }
            },
        ]  # fmt: skip
        with translated():
            found = list(self._rounds.aggregate(newest))
        standings = {}
        for one in found:
            cohort, version, stable = one["_id"], one["version"], one["stable"]
            model = None if stable is None else self.version_of(cohort, stable)
            canary = None if one["stage"] == Stage.STABLE else self.version_of(cohort, version)
            standings[cohort] = Standing(version, model, canary)
        return standings

    def version_of(self, cohort: str, version: int) -> GlobalModel | None:
        """Read one version; None where there is none."""
        with translated():
            found = self._rounds.find_one({"cohort": cohort, "round": version})
        return None if found is None else _to_model(found)

    def forget_patch(self, cohort: str) -> None:
        """Remove what operators changed in the rules of a cohort."""
        with translated():
            self._patches.delete_one({"_id": cohort})

    def decision(self, cohort: str, version: int) -> Document:
        """Read what was decided about a version: `verdict`, `decided_by`, `decided_at`, `published_at`."""
        wanted = {"verdict": 1, "decided_by": 1, "decided_at": 1, "published_at": 1, "_id": 0}
        with translated():
            return self._rounds.find_one({"cohort": cohort, "round": version}, wanted) or {}

    def stable_before(self, cohort: str, version: int) -> GlobalModel | None:
        """Read the newest version before this one that was never taken back."""
        query = {"cohort": cohort, "round": {"$lt": version}, "stage": {"$in": [Stage.STABLE, None]}}
        with translated():
            found = self._rounds.find_one(query, sort=[("round", DESCENDING)])
        return None if found is None else _to_model(found)

    def in_use_after(self, cohort: str, version: int) -> list[GlobalModel]:
        """Read the later versions that were not taken back."""
        query = {"cohort": cohort, "round": {"$gt": version}, "stage": {"$ne": Stage.ROLLED_BACK}}
        with translated():
            return [_to_model(found) for found in self._rounds.find(query)]

    def patches(self) -> dict[str, RulesPatch]:
        """Read what operators changed in the rules, by cohort."""
        with translated():
            return {found["_id"]: RulesPatch.model_validate(found["rules"]) for found in self._patches.find({})}

    def keep_patch(self, cohort: str, patch: RulesPatch, who: str, now: datetime) -> None:
        """Write what operators changed in the rules of a cohort."""
        kept = {"rules": patch.model_dump(mode="json", exclude_unset=True), "changed_at": now, "changed_by": who}
        with translated():
            self._patches.replace_one({"_id": cohort}, kept, upsert=True)

    def strategy_state(self, cohort: str, strategy: str) -> dict[str, Vector]:
        """Read what the last round of this strategy left to the next."""
        with translated():
            found = self._states.find_one({"_id": cohort, "strategy": strategy})
        return {} if found is None else {name: np.frombuffer(raw) for name, raw in found["arrays"].items()}

    def noise_of(self, cohort: str) -> list[tuple[float, int]]:
        """Sum up the private rounds of a cohort: each noise multiplier, and how many rounds were made with it."""
        counted: list[Document] = [
            {"$match": {"cohort": cohort, "metrics.noise_multiplier": {"$gt": 0}}},
            {"$group": {"_id": "$metrics.noise_multiplier", "count": {"$sum": 1}}},
        ]
        with translated():
            return [(found["_id"], found["count"]) for found in self._rounds.aggregate(counted)]

    def trust(self) -> list[Trust]:
        """Read what is thought of each device that was ever thought badly of."""
        with translated():
            return [_to_trust(found) for found in self._trust.find({})]

    def keep_trust(self, trust: Trust) -> None:
        """Write what is thought of a device now."""
        with translated():
            self._trust.replace_one({"_id": trust.device_id}, _trust_document(trust), upsert=True)

    def losses(self, cohort: str, since_round: int) -> list[Loss]:
        """Read what devices said of their errors since a round, in the order it came."""
        query: Document = {"cohort": cohort, "round": {"$gte": since_round}, "loss": {"$gte": 0}}
        wanted = {"device_id": 1, "base_version": 1, "loss": 1, "received_at": 1, "_id": 0}
        with translated():
            return [Loss(**found) for found in self._updates.find(query, wanted).sort("received_at")]

    def store_round(
        self,
        model: GlobalModel,
        devices: Sequence[Contribution],
        memo: Memo | None = None,
        *,
        instead_of: int | None = None,
    ) -> None:
        """Store a round, in one transaction.

        Parameters
        ----------
        instead_of:
            the round that the pending updates wait for, where this version was not made of them: they go on waiting

        Raises
        ------
        Unavailable
            where it is not known to be stored: read the rounds again before going on
        """
        memo = memo or Memo()
        document = {
            "_id": f"{model.cohort}#{model.version}",
            "round": model.version,
            **model.model_dump(exclude={"version"}),
            "devices": [{name: getattr(device, name) for name in Contribution.__slots__} for device in devices],
            "published_at": None,
        }
        # Not with_transaction(): it would go on trying for two minutes, and whoever calls us waits.
        with translated(), self._database.client.start_session() as session, session.start_transaction():
            self._rounds.insert_one(document, session=session)
            if instead_of is not None:
                waiting = {"cohort": model.cohort, "round": {"$gte": instead_of}}
                self._updates.update_many(waiting, {"$set": {"round": model.version + 1}}, session=session)
            if memo.superseded is not None:
                self._set_stage(model.cohort, memo.superseded, {"stage": Stage.ROLLED_BACK}, session)
            if memo.state:
                arrays = {name: np.asarray(array, dtype="<f8").tobytes() for name, array in memo.state.items()}
                kept = {"strategy": memo.strategy, "version": model.version, "arrays": arrays}
                self._states.replace_one({"_id": model.cohort}, kept, upsert=True, session=session)
            if memo.trust:
                writes = [ReplaceOne({"_id": t.device_id}, _trust_document(t), upsert=True) for t in memo.trust]
                self._trust.bulk_write(writes, session=session)

    def restage(
        self, decided: Sequence[tuple[GlobalModel, Document]], discard: Collection[int] = (), next_round: int = 0
    ) -> None:
        """Write the stages, metrics and signatures of some versions of a cohort, in one transaction.

        Parameters
        ----------
        decided:
            each with its `verdict`, `decided_by` and `decided_at`
        discard:
            the versions that are taken back: no round shall use the pending updates that began from them
        next_round:
            the round that those wait for
        """
        with translated(), self._database.client.start_session() as session, session.start_transaction():
            for model, verdict in decided:
                stands = model.model_dump(include={"stage", "share", "metrics", "signature"})
                self._set_stage(model.cohort, model.version, stands | verdict, session)
            if discard:
                waiting = {"cohort": decided[0][0].cohort, "round": {"$gte": next_round}}
                began = waiting | {"base_version": {"$in": list(discard)}}
                self._updates.update_many(began, {"$set": {"round": _DISCARDED}}, session=session)

    def _set_stage(self, cohort: str, version: int, stands: Document, session: ClientSession) -> None:
        self._rounds.update_one({"_id": f"{cohort}#{version}"}, {"$set": stands}, session=session)

    def mark_published(self, cohort: str, version: int, now: datetime) -> None:
        """Note when a round was delivered."""
        with translated():
            self._rounds.update_one({"_id": f"{cohort}#{version}"}, {"$set": {"published_at": now}})

    def history(self, cohort: str, limit: int = 1_000, *, devices: bool = True) -> list[Document]:
        """Read the newest rounds of a cohort without their weights, oldest first; their devices where asked for."""
        left_out: Document = {"weights": 0} if devices else {"weights": 0, "devices": 0}
        with translated():
            found = list(self._rounds.find({"cohort": cohort}, left_out).sort("round", -1).limit(limit))
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


def _to_document(update: Update, next_round: int) -> Document:
    return {
        "_id": update.key,
        "device_id": update.device_id,
        "cohort": update.cohort,
        "timestamp": update.timestamp,
        "received_at": update.received_at,
        "weights": packed(update.theta, update.architecture),
        "sample_count": update.sample_count,
        "samples_seen": update.samples_seen,
        "base_version": update.base_version,
        "sensors": None if update.sensors is None else list(update.sensors),
        "devices": update.devices,
        "loss": update.loss,
        "control": None if update.control is None else packed_numbers(update.control),
        "round": next_round,
    }


def _from_document(document: Document) -> Update:
    theta, architecture = unpacked(document["weights"])
    # The date keeps milliseconds; the `_id` has the whole time.
    timestamp = datetime.fromisoformat(document["_id"].removeprefix(document["device_id"] + "@")).astimezone(UTC)
    same: dict[str, Any] = {
        name: document[name]
        for name in ("device_id", "cohort", "received_at", "sample_count", "samples_seen", "base_version")
    }
    named = document.get("sensors")  # documents of earlier versions have none
    sensors = None if named is None else tuple(named)
    control = document.get("control")
    same |= {"devices": document.get("devices") or 1, "loss": document.get("loss")}
    same["control"] = None if control is None else unpacked_numbers(control)
    return Update(timestamp=timestamp, theta=theta, architecture=architecture, sensors=sensors, **same)


def _to_model(document: Document) -> GlobalModel:
    return GlobalModel.model_validate({**document, "version": document["round"]})


def _trust_document(trust: Trust) -> Document:
    return {"_id": trust.device_id, **asdict(trust)}


def _to_trust(document: Document) -> Trust:
    return Trust(**{name: document[name] for name in Trust.__dataclass_fields__})
