"""What reports are made of: readings by day, every global model, and what was found of each day so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from pymongo import DESCENDING, ReplaceOne
from pymongo.database import Database

from storage.connection import Document, translated

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WRITTEN_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of the fleet on one day, looked at in one go.

    Attributes
    ----------
    day: since 1970-01-01, UTC
    shard: which part of the fleet
    mark: tells these very readings, looked at in this very way, from others
    """

    day: int
    shard: int
    mark: str


class HistoryRepository:
    """Every method raises `Unavailable` where MongoDB does not answer."""

    def __init__(self, database: Database[Document]) -> None:
        self._database = database

    def days(self) -> list[tuple[str, int, int]]:
        """Device, day and count of its readings, for all readings stored; from an index alone."""
        day = {"$floor": {"$divide": [{"$toLong": "$timestamp"}, 86_400_000]}}
        counted: list[Document] = [
            {"$sort": {"device_id": 1, "timestamp": -1}},
            {"$group": {"_id": {"device": "$device_id", "day": day}, "count": {"$sum": 1}}},
        ]
        with translated():
            found = self._database["device_data"].aggregate(counted, hint="device_time", allowDiskUse=True)
            return [(row["_id"]["device"], int(row["_id"]["day"]), row["count"]) for row in found]

    def dead_letters(self) -> dict[str, int]:
        """How many dead letters of readings there are, by reason."""
        counted: list[Document] = [
            {"$match": {"source.topic": {"$ne": "flead.local-updates"}}},
            {"$group": {"_id": "$reason", "count": {"$sum": 1}}},
        ]
        with translated():
            return {row["_id"]: row["count"] for row in self._database["dead_letters"].aggregate(counted)}

    def models(self) -> list[Document]:
        """Every global model without its weights, oldest first: cohort, round, timestamp, num_devices."""
        wanted = {"cohort": 1, "round": 1, "timestamp": 1, "num_devices": 1}
        with translated():
            found = self._database["global_model"].find({}, wanted)
            return sorted(found, key=lambda row: (row["cohort"], row["round"]))

    def weights(self, keys: Iterable[str]) -> dict[str, Document]:
        """The weights of some global models, by `_id`."""
        with translated():
            found = self._database["global_model"].find({"_id": {"$in": list(keys)}}, {"weights": 1})
            return {row["_id"]: row["weights"] for row in found}

    def done(self, source: str) -> dict[Unit, int]:
        """For how many devices of each unit there are facts."""
        counted: list[Document] = [
            {"$match": {"source": source}},
            {"$group": {"_id": {"day": "$day", "shard": "$shard", "mark": "$mark"}, "count": {"$sum": 1}}},
        ]
        with translated():
            found = self._database["analysis_days"].aggregate(counted)
            return {_unit(row["_id"]): row["count"] for row in found}

    def judged(self, source: str) -> set[tuple[Unit, str, str]]:
        """Which global models have been judged on which unit: with the model's key and the mark of its weights."""
        wanted = {"_id": 0, "day": 1, "shard": 1, "mark": 1, "key": 1, "weights_mark": 1}
        with translated():
            found = self._database["analysis_evaluations"].find({"source": source}, wanted)
            return {(_unit(row), row["key"], row["weights_mark"]) for row in found}

    def store_days(self, source: str, unit: Unit, documents: Sequence[Document]) -> None:
        """Store the facts of a unit's devices; what was found earlier of other readings of it goes."""
        same = {"source": source, "day": date_of(unit.day), "shard": unit.shard}
        prefix = f"{source}/{same['day']:%Y-%m-%d}"
        made = [
            {"_id": f"{prefix}/{d['device_id']}", **same, "mark": unit.mark, "stored_at": datetime.now(UTC), **d}
            for d in documents
        ]
        self._replace("analysis_days", made)
        with translated():
            self._database["analysis_days"].delete_many({**same, "mark": {"$ne": unit.mark}})

    def store_judgements(self, source: str, unit: Unit, documents: Sequence[Document]) -> None:
        """Store what models were worth on a unit."""
        same = {"source": source, "day": date_of(unit.day), "shard": unit.shard, "mark": unit.mark}
        prefix = f"{source}/{same['day']:%Y-%m-%d}"
        made = [
            {"_id": f"{prefix}/{unit.shard}/{d['key']}", **same, "stored_at": datetime.now(UTC), **d} for d in documents
        ]
        self._replace("analysis_evaluations", made)

    def facts(self, source: str, units: Iterable[Unit]) -> list[Document]:
        """The facts of every device of these units, in order of day and device."""
        return self._of("analysis_days", source, units, [("day", 1), ("device_id", 1)])

    def judgements(self, source: str, units: Iterable[Unit], keys: Iterable[str]) -> list[Document]:
        """What these models were worth on these units."""
        return self._of("analysis_evaluations", source, units, [("day", 1)], {"key": {"$in": list(keys)}})

    def newest_report(self, source: str) -> Document | None:
        """The last report made of a source; None where there is none."""
        with translated():
            return self._database["analysis_reports"].find_one({"source": source}, sort=[("created", DESCENDING)])

    def store_report(self, source: str, created: datetime, layout: int, report: Document) -> None:
        """Keep a report."""
        document = {
            "_id": f"{source}@{created.isoformat()}",
            "source": source,
            "created": created,
            "version": layout,
            "stored_at": created,
            "report": report,
        }
        with translated():
            self._database["analysis_reports"].replace_one({"_id": document["_id"]}, document, upsert=True)

    def _of(
        self, name: str, source: str, units: Iterable[Unit], order: list[tuple[str, int]], more: Document | None = None
    ) -> list[Document]:
        wanted = {(unit.day, unit.shard): unit.mark for unit in units}
        if not wanted:
            return []
        days = {"$gte": date_of(min(wanted)[0]), "$lte": date_of(max(wanted)[0])}
        with translated():
            found = self._database[name].find({"source": source, "day": days, **(more or {})}).sort(order)
            return [row for row in found if wanted.get((_unit(row).day, row["shard"])) == row["mark"]]

    def _replace(self, name: str, documents: Sequence[Document]) -> None:
        for start in range(0, len(documents), _WRITTEN_AT_ONCE):
            part = documents[start : start + _WRITTEN_AT_ONCE]
            with translated():
                self._database[name].bulk_write(
                    [ReplaceOne({"_id": d["_id"]}, d, upsert=True) for d in part], ordered=False
                )


def date_of(day: int) -> datetime:
    """The beginning of a day since 1970-01-01, UTC.

    >>> date_of(12481)
    datetime.datetime(2004, 3, 4, 0, 0, tzinfo=datetime.timezone.utc)
    """
    return EPOCH + timedelta(days=day)


def _unit(row: dict[str, Any]) -> Unit:
    return Unit((row["day"] - EPOCH).days, row["shard"], row["mark"])
