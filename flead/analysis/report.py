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

from flead.analysis.day import SLOT_S, SLOTS
from flead.analysis.judging import COUNT, figures
from flead.analysis.moments import Comoments, Vector, arrays, plain
from flead.messages import cohort_of

LAYOUT = 1
"""Of the report, and of the facts it is made of: facts of another layout are made anew."""

MOST_CORRELATED = 200
"""Devices that are compared with each other; of more, those with most readings."""
MOST_DETAILED = 100
"""Models of which devices and hours are told apart: the newest ones."""
LARGE_SHIFT = 3.0
"""Standard deviations that a day may lie from the days before it without being worth a word."""
TOLD = 0.05
"""A change since the previous report, as a share, that is worth a line."""

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
    report["ranking"] = _ranking(report)
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


def mean_known(values: Sequence[float | None]) -> float | None:
    """The mean of what is known; None where nothing is.

    >>> mean_known([0.5, None, 0.1]), mean_known([None])
    (0.3, None)
    """
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _drift(own: Sequence[DeviceDay]) -> dict[str, Any]:
    """Each day's mean beside the days before it, in their standard deviations."""
    found = {}
    for sensor, column in _columns(own).items():
        m = _moments(column)
        shift = np.full(len(column), np.nan)
        for i in range(1, len(column)):
            _, mean, sd = _together(m["count"][:i], m["mean"][:i], m["m2"][:i])
            if sd > 0:
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


def _ranking(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Devices, most in need of attention first.

    A point is one per cent: of the time silent; of values missing, impossible or stuck (beyond the median device's
    share for that sensor); of readings with a wrong clock; of error above that of no change. Each standard deviation
    beyond `LARGE_SHIFT` by which the last day lies from those before counts ten.
    """
    quality, newest = report["quality"], _newest(report["evaluation"])
    usual = _usual_stuck(quality)
    ranking = []
    for device, own in quality.items():
        parts: list[tuple[float, str]] = []
        silent = 100.0 * (1.0 - own["uptime"])
        parts.append((silent, f"silent {silent:.0f} % of the time"))
        wrong_clock = 100.0 * (own["clock"]["future"] + (own["clock"]["out_of_order"] or 0)) / max(own["readings"], 1)
        parts.append((wrong_clock, f"{wrong_clock:.1f} % of readings out of order or from the future"))
        for sensor, q in own["sensors"].items():
            count = report["devices"][device][sensor]["count"]
            missing, stuck = 100.0 * q["missing"], 100.0 * max(q["stuck"] - usual[sensor], 0.0)
            outside = 100.0 * (q["out_of_range"] or 0) / max(count, 1)
            parts.append((missing, f"{missing:.0f} % of {sensor} missing"))
            parts.append((stuck, f"{sensor} stuck {100.0 * q['stuck']:.0f} % of the time"))
            parts.append((outside, f"{outside:.1f} % of {sensor} out of range"))
            drift = report["drift"][device][sensor]
            shift = drift["shift"][-1]
            if shift is not None and len(report["days"]) > 1 and drift["days"][-1] == report["days"][-1]:
                beyond = max(abs(shift) - LARGE_SHIFT, 0.0)
                parts.append((10.0 * beyond, f"{sensor} {shift:+.1f} sd from the days before"))
        for horizon, cells in newest.get(own["cohort"], {}).get(device, {}).items():
            skill = mean_known([cell["skill"] for cell in cells.values()])
            if skill is not None and skill < 0.0:
                parts.append((-100.0 * skill, f"forecasts ({horizon}) {-100.0 * skill:.0f} % worse than no change"))
        reasons = [text for points, text in sorted(parts, key=lambda p: -p[0]) if points >= 0.5]
        ranking.append({"device": device, "points": round(sum(p for p, _ in parts), 1), "reasons": reasons})
    return sorted(ranking, key=lambda row: (-row["points"], row["device"]))


def _usual_stuck(quality: Mapping[str, Any]) -> dict[str, float]:
    """The median device's share of stuck values, by sensor: light is dark every night."""
    shares: dict[str, list[float]] = {}
    for own in quality.values():
        for sensor, q in own["sensors"].items():
            shares.setdefault(sensor, []).append(q["stuck"])
    return {sensor: float(np.median(each)) for sensor, each in shares.items()}


def _newest(evaluation: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures by device of each cohort's newest model."""
    return {e["cohort"]: e["devices"] for e in sorted(evaluation, key=lambda e: e["version"]) if "devices" in e}


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What has changed since an earlier report of the same source."""
    changes = [_change("readings", before["readings"], after["readings"])]
    changes.append(_change("rejected", _sum(before["rejected"]), _sum(after["rejected"]), good=-1))
    old, new = _skills(before["evaluation"]), _skills(after["evaluation"])
    for (cohort, horizon), skill in new.items():
        what = f"skill of the newest global model, {horizon} ({cohort})"
        changes.append(_change(what, old.get((cohort, horizon)), skill, good=1))
    for device, own in after["quality"].items():
        then = before["quality"].get(device)
        if then is not None:
            changes.append(_change("uptime", then["uptime"], own["uptime"], device, good=1))
            for sensor, q in own["sensors"].items():
                if sensor in then["sensors"]:
                    for name in ("missing", "stuck"):
                        was = then["sensors"][sensor][name]
                        changes.append(_change(f"{name}, {sensor}", was, q[name], device, good=-1))
    return {
        "created": before["created"],
        "changes": [c for c in changes if _worth_telling(c)],
        "new_devices": sorted(after["quality"].keys() - before["quality"].keys()),
        "gone_devices": sorted(before["quality"].keys() - after["quality"].keys()),
    }


def _skills(evaluation: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float | None]:
    """Mean skill of each cohort's newest model, by cohort and horizon."""
    ordered = sorted(evaluation, key=lambda e: e["version"])
    return {(e["cohort"], horizon): skill for e in ordered for horizon, skill in e["skill"].items()}


def _change(
    what: str, before: float | None, after: float | None, device: str | None = None, *, good: int = 0
) -> dict[str, Any]:
    """One line; `good`: 1 where more is better, -1 where less is, 0 where neither."""
    better = None
    if good and before is not None and after is not None and before != after:
        better = (after > before) == (good > 0)
    return {"what": what, "before": before, "after": after, "device": device, "better": better}


def _worth_telling(change: Mapping[str, Any]) -> bool:
    before, after = change["before"], change["after"]
    if before is None or after is None:
        return before is not after
    return bool(abs(after - before) > (TOLD if change["device"] is not None else 0.0))


def _sum(counts: Mapping[str, int]) -> int:
    return sum(counts.values())


def _iso(time: float) -> str:
    """A time in s, as ISO 8601 in UTC.

    >>> _iso(0.0)
    '1970-01-01T00:00:00+00:00'
    """
    return datetime.fromtimestamp(time, UTC).isoformat()
