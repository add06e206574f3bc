"""The report: facts of many days and devices folded into what people decide by.

Everything here follows from the facts alone: the same facts give the same report, however they came to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import numpy as np

from flead.analysis.comparison import compared
from flead.analysis.day import SLOT_S, SLOTS
from flead.analysis.judging import COUNT, figures, mean_known
from flead.analysis.moments import Comoments, Vector, arrays, plain
from flead.analysis.ranking import rank
from flead.messages import cohort_of

LAYOUT = 1
"""Of the report, and of the facts it is made of: facts of another layout are made anew."""

MOST_CORRELATED = 200
"""Devices that are compared with each other; of more, those with most readings."""
MOST_DETAILED = 100
"""Models of which devices and hours are told apart: the newest ones."""

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class DeviceDay:
    """The facts of one day of one device (`flead.analysis.day.day_facts`)."""

    device: str
    day: str
    cohort: str
    facts: Facts


@dataclass(frozen=True)
class Judged:
    """What a model was worth on a part of a day: sums of `flead.analysis.judging` as they were stored.

    Attributes
    ----------
    by_device: (d, 2 n, SUMS)
    by_hour: (HOURS, 2 n, SUMS)
    """

    key: str
    sensors: tuple[str, ...]
    devices: tuple[str, ...]
    by_device: Vector
    by_hour: Vector


@dataclass(frozen=True)
class Model:
    """A global model that is reported on."""

    key: str
    cohort: str
    version: int
    timestamp: str
    num_devices: int


def fold(
    days: Sequence[DeviceDay],
    judged: Sequence[Judged],
    models: Sequence[Model],
    horizons: tuple[str, str],
    *,
    source: Mapping[str, str],
    created: datetime,
    rejected: Mapping[str, int],
    previous: Mapping[str, Any] | None = None,
    remarks: Sequence[str] = (),
) -> dict[str, Any]:
    """Make the report.

    Parameters
    ----------
    days:
        at least one, in order of day
    models:
        oldest first; those without any judged reading are left out
    horizons:
        what the two horizons are called
    """
    by_device: dict[str, list[DeviceDay]] = {}
    for day in days:
        by_device.setdefault(day.device, []).append(day)
    by_device = dict(sorted(by_device.items()))
    first, last = min(d.facts["first"] for d in days), max(d.facts["last"] for d in days)
    span = int(last // SLOT_S - first // SLOT_S) + 1
    evaluation = [e for e in (_evaluation(m, judged, horizons) for m in models) if e is not None]
    for detailed in evaluation[:-MOST_DETAILED]:
        del detailed["devices"], detailed["hours"]
    report: dict[str, Any] = {
        "layout": LAYOUT,
        "source": dict(source),
        "created": created.isoformat(),
        "from": _iso(first),
        "to": _iso(last),
        "days": sorted({d.day for d in days}),
        "readings": sum(d.facts["readings"] for d in days),
        "duplicates": sum(d.facts["duplicates"] for d in days),
        "devices": {device: _statistics(own) for device, own in by_device.items()},
        "rejected": dict(sorted(rejected.items())),
        "quality": {device: _quality(own, span) for device, own in by_device.items()},
        "correlation": {"sensors": _between_sensors(days), "devices": _between_devices(by_device)},
        "evaluation": evaluation,
        "drift": {device: _drift(own) for device, own in by_device.items()},
        "remarks": list(remarks),
    }
    report["ranking"] = rank(report)
    report["previous"] = None if previous is None else compared(previous, report)
    return report


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a report: all that the next one is compared with, and no table that grows with days or pairs."""
    left_out = ("correlation", "drift", "previous")
    evaluation = [{k: v for k, v in e.items() if k not in ("devices", "hours")} for e in report["evaluation"]]
    return {**{k: v for k, v in report.items() if k not in left_out}, "evaluation": evaluation}


def _columns(own: Sequence[DeviceDay]) -> dict[str, list[tuple[str, Facts, int]]]:
    """By sensor: the days that know it, their facts, and its place in them."""
    found: dict[str, list[tuple[str, Facts, int]]] = {}
    for day in own:
        for place, sensor in enumerate(day.facts["sensors"]):
            found.setdefault(sensor, []).append((day.day, day.facts, place))
    return dict(sorted(found.items()))


def _moments(column: Sequence[tuple[str, Facts, int]]) -> dict[str, Vector]:
    """Count, mean, m2, low and high of a sensor, (days,) each."""
    names = ("count", "mean", "m2", "low", "high")
    return {name: arrays([facts["moments"][name][place] for _, facts, place in column]) for name in names}


def _together(count: Vector, mean: Vector, m2: Vector) -> tuple[float, float, float]:
    """Count, mean and sample standard deviation of all parts.

    >>> _together(np.array([2.0, 1.0]), np.array([1.5, 6.0]), np.array([0.5, 0.0]))[1:]
    (3.0, 2.6457513110645907)
    """
    some = count > 0
    total = float(count[some].sum())
    if not total:
        return 0.0, np.nan, np.nan
    middle = float((count[some] * mean[some]).sum() / total)
    spread = float(m2[some].sum() + (count[some] * (mean[some] - middle) ** 2).sum())
    return total, middle, float(np.sqrt(spread / (total - 1))) if total > 1 else np.nan


def _statistics(own: Sequence[DeviceDay]) -> dict[str, Any]:
    found = {}
    for sensor, column in _columns(own).items():
        m = _moments(column)
        count, mean, sd = _together(m["count"], m["mean"], m["m2"])
        missing = sum(facts["missing"][place] for _, facts, place in column)
        low = np.fmin.reduce(m["low"])
        high = np.fmax.reduce(m["high"])
        mean_, sd_, low_, high_ = plain(np.array([mean, sd, low, high]))
        found[sensor] = {
            "count": int(count), "missing": missing, "mean": mean_, "sd": sd_, "min": low_, "max": high_,
        }  # fmt: skip
    return found


def _quality(own: Sequence[DeviceDay], span: int) -> dict[str, Any]:
    """How reliable a device is; `span`: ten-minute slots from the first to the last reading of all devices."""
    facts = [day.facts for day in own]
    intervals = [f["interval_s"] for f in facts if f["interval_s"] is not None]
    known_order = [f["backwards"] for f in facts if f["backwards"] is not None]
    sensors = {}
    for sensor, column in _columns(own).items():
        count = sum(f["moments"]["count"][place] for _, f, place in column)
        missing = sum(f["missing"][place] for _, f, place in column)
        outside = [f["out_of_range"][place] for _, f, place in column if f["out_of_range"][place] is not None]
        sensors[sensor] = {
            "missing": missing / max(count + missing, 1),
            "stuck": sum(f["stuck"][place] for _, f, place in column) / max(count, 1),
            "longest_stuck_s": max(f["longest_stuck_s"][place] for _, f, place in column),
            "out_of_range": sum(outside) if outside else None,
        }
    return {
        "cohort": own[-1].cohort,
        "readings": sum(f["readings"] for f in facts),
        "duplicates": sum(f["duplicates"] for f in facts),
        "first": _iso(min(f["first"] for f in facts)),
        "last": _iso(max(f["last"] for f in facts)),
        "interval_s": float(np.median(intervals)) if intervals else None,
        "uptime": sum(sum(s > 0 for s in f["slots"]) for f in facts) / span,
        "gaps": sum(f["gaps"] for f in facts),
        "longest_gap_s": _longest_gap(facts),
        "clock": {
            "out_of_order": sum(known_order) if known_order else None,
            "future": sum(f["future"] for f in facts),
        },
        "sensors": sensors,
    }


def _longest_gap(facts: Sequence[Facts]) -> float:
    """Within a day, or from one day's last reading to the next one's first, s."""
    ordered = sorted(facts, key=lambda f: f["first"])
    between = [after["first"] - before["last"] for before, after in pairwise(ordered)]
    return float(max([*between, *(f["longest_gap_s"] for f in ordered)]))


def _between_sensors(days: Sequence[DeviceDay]) -> dict[str, Any]:
    """Pearson's correlation of each cohort's sensors, over all readings that know both."""
    sums: dict[tuple[str, ...], Comoments] = {}
    for day in days:
        names, one = tuple(day.facts["sensors"]), Comoments.from_lists(day.facts["comoments"])
        sums[names] = sums[names] + one if names in sums else one
    return {
        cohort_of(names): {
            "names": list(names),
            "matrix": [plain(row) for row in total.correlation],
            "count": int(total.count.max(initial=0.0)),
        }
        for names, total in sorted(sums.items())
        if len(names) > 1
    }


def _between_devices(by_device: Mapping[str, Sequence[DeviceDay]]) -> dict[str, Any]:
    """Pearson's correlation of devices, by sensor, over ten-minute means at the same time."""
    if len(by_device) < 2:
        return {}
    largest = sorted(by_device, key=lambda d: (-sum(day.facts["readings"] for day in by_device[d]), d))
    days = {day: i for i, day in enumerate(sorted({d.day for own in by_device.values() for d in own}))}
    columns = {device: _columns(by_device[device]) for device in sorted(largest[:MOST_CORRELATED])}
    found = {}
    for sensor in sorted({sensor for own in columns.values() for sensor in own}):
        names = [device for device, own in columns.items() if sensor in own]
        if len(names) < 2:
            continue
        means = np.full((len(days) * SLOTS, len(names)), np.nan)
        for j, device in enumerate(names):
            for day, facts, place in columns[device][sensor]:
                at = days[day] * SLOTS
                means[at : at + SLOTS, j] = arrays(facts["slot_means"][place])
        matrix = Comoments.of(means).correlation
        found[sensor] = {"names": names, "matrix": [plain(row) for row in matrix], "bin_s": SLOT_S}
    return found


def _evaluation(model: Model, judged: Sequence[Judged], horizons: tuple[str, str]) -> dict[str, Any] | None:
    """What a model was worth on all days: over all devices, by device, and by hour of the day."""
    own = [part for part in judged if part.key == model.key and part.sensors]
    if not own:
        return None
    sensors = own[0].sensors
    by_hour = np.sum([part.by_hour for part in own], axis=0)
    devices: dict[str, Vector] = {}
    for part in own:
        for device, sums in zip(part.devices, part.by_device, strict=True):
            devices[device] = devices[device] + sums if device in devices else sums
    total = by_hour.sum(axis=0)
    if not total[:, COUNT].any():
        return None
    overall = _by_horizon(total, sensors, horizons)
    return {
        "cohort": model.cohort,
        "version": model.version,
        "timestamp": model.timestamp,
        "num_devices": model.num_devices,
        "count": int(total[0, COUNT]),
        "sensors": overall,
        "skill": {h: mean_known([cell["skill"] for cell in overall[h].values()]) for h in horizons},
        "devices": {device: _by_horizon(sums, sensors, horizons) for device, sums in sorted(devices.items())},
        "hours": {str(hour): _by_horizon(sums, sensors, horizons) for hour, sums in enumerate(by_hour)},
    }


def _by_horizon(sums: Vector, sensors: tuple[str, ...], horizons: tuple[str, str]) -> dict[str, Any]:
    n = len(sensors)
    return {h: {s: figures(sums[i * n + j]) for j, s in enumerate(sensors)} for i, h in enumerate(horizons)}


def _drift(own: Sequence[DeviceDay]) -> dict[str, Any]:
    """Each day's mean beside the days before it, in their standard deviations."""
    found = {}
    for sensor, column in _columns(own).items():
        m = _moments(column)
        shift = np.full(len(column), np.nan)
        for i in range(1, len(column)):
            _, mean, sd = _together(m["count"][:i], m["mean"][:i], m["m2"][:i])
            if sd > 1e-9 * abs(mean):  # a constant's is what rounding leaves
                shift[i] = (m["mean"][i] - mean) / sd
        with np.errstate(divide="ignore", invalid="ignore"):
            sd_each = np.sqrt(np.where(m["count"] > 1, m["m2"] / (m["count"] - 1), np.nan))
        found[sensor] = {
            "days": [day for day, _, _ in column],
            "mean": plain(m["mean"]),
            "sd": plain(sd_each),
            "shift": plain(shift),
        }
    return found


def _iso(time: float) -> str:
    """A time in s, as ISO 8601 in UTC.

    >>> _iso(0.0)
    '1970-01-01T00:00:00+00:00'
    """
    return datetime.fromtimestamp(time, UTC).isoformat()
