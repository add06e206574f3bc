"""Anomalies that several devices share, told from those of one: stored alerts, put together by time and position."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil, floor, inf
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
LONGEST_S = 3_600.0
"""Where alerts follow each other without a gap for longer, events are cut at full hours, s."""
MOST = 20_000
"""Alerts that are put together at a time; where there are more without a gap, events are cut there."""
AT_ONCE = 500
"""Alerts whose events are written at once, about."""


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
    total = 0
    with translated():
        for cohort, low, high in _spans(touched):
            # What came may have closed the last gap of the hour before a full one: then a cut is new there.
            reached = high + rule.within + LONGEST_S
            held: list[list[Document]] = []
            for alerts in stretches(_alerts(database, cohort, low, reached, rule), rule.within):
                first, last = (alerts[i]["timestamp"].timestamp() for i in (0, -1))
                if first > reached:
                    break
                if last >= low - 0.001:  # MongoDB cuts times to milliseconds
                    held.append(alerts)
                if sum(map(len, held)) >= AT_ONCE:
                    total += _replace(database, cohort, held, rule)
                    held = []
            if held:
                total += _replace(database, cohort, held, rule)
    return total


def _spans(touched: Iterable[Touched]) -> Iterator[tuple[str, float, float]]:
    """Where each cohort has to be looked at: cohort, first and last instant, s; what is near is one."""
    cohort, low, high = "", 0.0, 0.0
    for one in sorted(touched, key=lambda one: (one.cohort, one.low)):
        if one.cohort == cohort and one.low <= high + 2.0 * LONGEST_S:
            high = max(high, one.high)
            continue
        if cohort:
            yield cohort, low, high
        cohort, low, high = one.cohort, one.low, one.high
    if cohort:
        yield cohort, low, high


def _alerts(
    database: Database[Document], cohort: str, low: float, reached: float, rule: Neighbourhood
) -> Iterable[Document]:
    """Stored alerts in order of time, from so early on that `low` lies in a whole stretch, till one begins later."""
    early = floor(low / LONGEST_S) * LONGEST_S - LONGEST_S - rule.within
    between = {"$gte": _moment(early), "$lte": _moment(reached + 2.0 * LONGEST_S)}
    wanted = {"device_id": 1, "timestamp": 1, "sensor": 1, "anomaly_score": 1}
    return database["alerts"].find({"cohort": cohort, "timestamp": between}, wanted).sort("timestamp", 1)


def stretches(alerts: Iterable[Document], within: float) -> Iterator[list[Document]]:
    """Cut alerts, in order of time, where no event goes on.

    That is where nothing comes for longer than `within` (s), and at a full hour that ends an hour without such a gap:
    so the cuts do not depend on what was looked at, and an event is counted once.
    """
    stretch: list[Document] = []
    since = before = -inf
    for alert in alerts:
        at = alert["timestamp"].timestamp()
        hour = floor(at / LONGEST_S) * LONGEST_S
        gap = at - before > within
        if stretch and (gap or (before < hour and since <= hour - LONGEST_S) or len(stretch) == MOST):
            yield stretch
            stretch = []
        if gap:
            since = at
        stretch.append(alert)
        before = at
    if stretch:
        yield stretch


def _replace(database: Database[Document], cohort: str, parts: Sequence[list[Document]], rule: Neighbourhood) -> int:
    """Write the events of stretches that follow each other, then take away what was said of them before."""
    documents = [event for alerts in parts for event in _events(database, cohort, alerts, rule)]
    collection = database["shared_anomalies"]
    for line in replace_all(collection, documents):
        log.warning("%s", line)
    whole = {"$gte": parts[0][0]["timestamp"], "$lte": parts[-1][-1]["timestamp"]}
    keys = [one["_id"] for one in documents]
    collection.delete_many({"cohort": cohort, "start": whole, "_id": {"$nin": keys}})
    return len(documents)


def _events(
    database: Database[Document], cohort: str, alerts: Sequence[Document], rule: Neighbourhood
) -> Iterator[dict[str, Any]]:
    """The events of one stretch, as they are stored."""
    names = sorted({alert["device_id"] for alert in alerts})
    numbers = {name: i for i, name in enumerate(names)}
    devices = np.array([numbers[alert["device_id"]] for alert in alerts])
    if rule.positions is None:
        near = np.ones((len(names), len(names)), dtype=bool)
        fewest = FEWEST
        if len(names) >= FEWEST:  # of fewer, none is shared however many are active
            fewest = max(FEWEST, ceil(SHARE * _active(database, cohort, alerts)))
    else:
        nowhere = (np.nan, np.nan)
        near = spatial.neighbours(np.array([rule.positions.get(name, nowhere) for name in names]), rule.distance)
        fewest = 2
    events, shared = spatial.events(_times(alerts), devices, near, rule.within, fewest)
    for number in range(int(events.max()) + 1):
        rows = np.flatnonzero(events == number)
        yield _event(cohort, [alerts[i] for i in rows], shared=bool(shared[rows[0]]))


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
