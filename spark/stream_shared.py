"""Anomalies that several devices share, told from those of one: stored alerts, put together by time and position."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from typing import Any

import numpy as np
from pymongo.database import Database

from config.settings import SparkSettings
from data.positions import read_positions
from flead import spatial
from spark.mongo import replace_all
from spark.stream_archive import Touched
from storage.connection import Document, translated

log = logging.getLogger(__name__)

Positions = Mapping[str, tuple[float, float]]

FEWEST, SHARE = 3, 0.1
"""Devices that make an anomaly a shared one where positions are not known: this many, and this share of a cohort."""
REACH_S = 3_600.0
"""How far before and after new alerts others are looked at, s: what has no gap in so long is cut there."""
MOST = 20_000
"""Alerts that are put together at a time."""


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """What makes two anomalies one event; without positions all devices of a cohort are neighbours."""

    positions: Positions | None
    distance: float
    within: float

    @classmethod
    def of(cls, settings: SparkSettings) -> Neighbourhood:
        """The settings' one; raises `BadConfiguration`."""
        positions = read_positions(settings.positions) if settings.positions else None
        return cls(positions, settings.neighbour_distance, settings.neighbour_s)


def regroup(database: Database[Document], touched: Iterable[Touched], rule: Neighbourhood) -> int:
    """Put the alerts about these times together anew, and let the events be just these.

    Always made from the alerts that are stored: done again, it leaves the same.

    Returns
    -------
    how many events there are now

    Raises
    ------
    Unavailable
        where MongoDB does not answer
    """
    spans: dict[str, tuple[float, float]] = {}
    for one in touched:
        low, high = spans.get(one.cohort, (one.low, one.high))
        spans[one.cohort] = min(low, one.low), max(high, one.high)
    total = 0
    with translated():
        for cohort, span in spans.items():
            alerts = _between_gaps(_alerts(database, cohort, *span), *span, rule.within)
            if alerts:
                total += _replace(database, cohort, alerts, rule)
    return total


def _alerts(database: Database[Document], cohort: str, low: float, high: float) -> list[Document]:
    between = {"$gte": _moment(low - REACH_S), "$lte": _moment(high + REACH_S)}
    wanted = {"device_id": 1, "timestamp": 1, "sensor": 1, "anomaly_score": 1}
    query = {"cohort": cohort, "timestamp": between}
    found = list(database["alerts"].find(query, wanted).sort("timestamp", 1).limit(MOST))
    if len(found) == MOST:
        log.warning("%s: more than %d alerts within hours, the first of them are put together", cohort, MOST)
    return found


def _between_gaps(alerts: list[Document], low: float, high: float, within: float) -> list[Document]:
    """Those from the last gap before `low` to the first gap after `high`: nothing outside can belong to them."""
    if not alerts:
        return []
    times = _times(alerts)
    gaps = np.flatnonzero(np.diff(times) > within) + 1
    before, after = gaps[times[gaps] <= low], gaps[times[gaps] > high]
    return alerts[int(before[-1]) if before.size else 0 : int(after[0]) if after.size else None]


def _replace(database: Database[Document], cohort: str, alerts: list[Document], rule: Neighbourhood) -> int:
    """Write the events of these alerts, then take away what was said of them before."""
    names = sorted({alert["device_id"] for alert in alerts})
    numbers = {name: i for i, name in enumerate(names)}
    devices = np.array([numbers[alert["device_id"]] for alert in alerts])
    if rule.positions is None:
        near = np.ones((len(names), len(names)), dtype=bool)
        fewest = max(FEWEST, ceil(SHARE * _active(database, cohort, alerts)))
    else:
        nowhere = (np.nan, np.nan)
        near = spatial.neighbours(np.array([rule.positions.get(name, nowhere) for name in names]), rule.distance)
        fewest = 2
    events, shared = spatial.events(_times(alerts), devices, near, rule.within, fewest)
    documents = []
    for number in range(int(events.max()) + 1):
        rows = np.flatnonzero(events == number)
        documents.append(_event(cohort, [alerts[i] for i in rows], shared=bool(shared[rows[0]])))
    collection = database["shared_anomalies"]
    for line in replace_all(collection, documents):
        log.warning("%s", line)
    stretch = {"$gte": alerts[0]["timestamp"], "$lte": alerts[-1]["timestamp"]}
    keys = [one["_id"] for one in documents]
    collection.delete_many({"cohort": cohort, "start": stretch, "_id": {"$nin": keys}})
    return len(documents)


def _active(database: Database[Document], cohort: str, alerts: Sequence[Document]) -> int:
    """How many devices of a cohort were active about the alerts: in the busiest hour, from the one before them on."""
    hours = {"$gte": _moment(alerts[0]["timestamp"].timestamp() - 7_200.0), "$lte": alerts[-1]["timestamp"]}
    query = {"window": "1h", "scope": "cohort", "cohort": cohort, "start": hours}
    busiest = database["window_aggregates"].find_one(query, {"devices": 1}, sort=[("devices", -1)])
    return int(busiest["devices"]) if busiest else 0


def _event(cohort: str, alerts: Sequence[Document], *, shared: bool) -> dict[str, Any]:
    first, last = alerts[0], alerts[-1]
    opened = min(alert["device_id"] for alert in alerts if alert["timestamp"] == first["timestamp"])
    scores = [alert.get("anomaly_score") for alert in alerts]
    return {
        "_id": f"{cohort}@{first['timestamp'].isoformat()}/{opened}",
        "cohort": cohort,
        "start": first["timestamp"],
        "end": last["timestamp"],
        "stored_at": datetime.now(UTC),
        "kind": "shared" if shared else "single",
        "devices": sorted({alert["device_id"] for alert in alerts}),
        "sensors": sorted({alert["sensor"] for alert in alerts if isinstance(alert.get("sensor"), str)}),
        "count": len(alerts),
        "score": max((min(max(float(x), 0.0), 1.0) for x in scores if isinstance(x, float | int)), default=0.0),
    }


def _times(alerts: Sequence[Document]) -> spatial.Vector:
    return np.array([alert["timestamp"].timestamp() for alert in alerts])


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
