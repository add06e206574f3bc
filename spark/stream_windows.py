"""Windowed aggregates of one device's predictions: a minute, an hour and a day, kept open until they cannot change.

What is summed is a pure function of the device's predictions in the order in which they came, whatever micro-batches
they came in: done again after a crash, it gives the same rows. Lateness is a device's own affair for the same reason,
and because one clock that runs a day ahead would close everybody's windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import floor
from typing import Any, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from flead.messages import cohort_of

Vector = NDArray[np.float64]

LENGTHS = {"1m": 60.0, "1h": 3_600.0, "1d": 86_400.0}
"""Windows and their lengths, s; aligned to UTC."""
MINUTE = LENGTHS["1m"]
EARLIEST, LATEST = 631_152_000.0, 7_258_118_400.0
"""1990 and 2200, s since 1970: what lies outside is no event time."""
LARGEST = 1e100
"""What is beyond counts as no value: the sum of squares must still be a number, which JSON and MongoDB can hold."""
MOST_SENSORS = 256
LONGEST_NAME = 128
REMEMBERED = 1_024
"""Times of a device that a repeated prediction is told by; the newest are kept."""
_COUNT, _SUM, _SQUARES, _MIN, _MAX = range(5)


@dataclass(frozen=True, slots=True)
class Row:
    """What windows need of a prediction; `time` in s since 1970, `micros` the same in whole µs."""

    time: float
    micros: int
    cohort: str
    sensors: tuple[str, ...]
    version: int
    observed: Mapping[str, float | None]
    error: float | None
    is_anomaly: bool


def read_row(value: bytes, device: str) -> Row | None:
    """Read a record of `flead.predictions`; None where it is none, or of another device.

    Records of earlier versions may lack the cohort, the model's version and the scores.
    """
    try:
        fields = orjson.loads(value)
        observed = fields["observed"]
        moment = datetime.fromisoformat(fields["timestamp"])
        if fields["device_id"] != device or moment.tzinfo is None or not _are_values(observed):
            return None
        time = moment.timestamp()
        scores = fields.get("sensor_scores")
        sensors = tuple(sorted(scores if _are_values(scores) else observed))
        cohort = fields.get("cohort") or cohort_of(sensors)
        version = fields.get("model_version") or 0
        error = fields.get("error")
        if not (isinstance(cohort, str) and is_name(cohort) and isinstance(version, int) and EARLIEST < time < LATEST):
            return None
        known = isinstance(error, float | int) and abs(error) < LARGEST
        micros = round(time * 1e6)
        return Row(
            time, micros, cohort, sensors, version, observed, float(error) if known else None,
            fields.get("is_anomaly") is True,
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def is_name(text: str) -> bool:
    """Whether a device, sensor or cohort may be called so."""
    return 0 < len(text) <= LONGEST_NAME and "\0" not in text


def _are_values(found: Any) -> bool:
    """Whether this is a map of a few names to numbers or nothing."""
    return (
        isinstance(found, dict)
        and 0 < len(found) <= MOST_SENSORS
        and all(is_name(name) and (x is None or type(x) in (float, int)) for name, x in found.items())
    )


def values_of(rows: Sequence[Row], names: Sequence[str]) -> Vector:
    """The observed values, (m, n); NaN where there is none, or it is too large to be squared."""
    given = [[row.observed.get(name) for name in names] for row in rows]
    values = np.array(given, dtype=np.float64).reshape(len(rows), len(names))
    values[~(np.abs(values) < LARGEST)] = np.nan
    return values


@dataclass(slots=True)
class Window:
    """The sums of one window of one device.

    Attributes
    ----------
    start: s since 1970
    error: sum of the errors
    late: readings that came in it and belong to minutes that are closed
    minutes: minutes with a reading
    sensors: name → [values, their sum, sum of squares, smallest, largest]
    scores: version of the global model → [readings, sum of its errors, sum of persistence's]
    """

    length: str
    start: float
    cohort: str
    readings: int = 0
    errors: int = 0
    error: float = 0.0
    anomalies: int = 0
    late: int = 0
    minutes: int = 0
    sensors: dict[str, list[float]] = field(default_factory=dict)
    scores: dict[str, list[float]] = field(default_factory=dict)

    @property
    def end(self) -> float:
        """The first instant after it, s since 1970."""
        return self.start + LENGTHS[self.length]

    def add(self, part: Window) -> None:
        """Add the sums of another window of the device."""
        self.cohort = part.cohort
        self.readings += part.readings
        self.errors += part.errors
        self.error += part.error
        self.anomalies += part.anomalies
        self.minutes += part.minutes
        for name, figures in part.sensors.items():
            mine = self.sensors.setdefault(name, [0.0, 0.0, 0.0, float("inf"), float("-inf")])
            add_figures(mine, figures)

    def as_list(self) -> list[Any]:
        """As it lies in state."""
        return [
            self.length, self.start, self.cohort, self.readings, self.errors, self.error, self.anomalies, self.late,
            self.minutes,
            {name: figures if figures[_COUNT] else figures[:_MIN] for name, figures in self.sensors.items()},
            self.scores,
        ]  # fmt: skip

    @classmethod
    def from_list(cls, parts: list[Any]) -> Window:
        """As it lay in state; JSON has no infinity, so a sensor without values lies there without limits."""
        found = cls(*parts)
        for figures in found.sensors.values():
            if len(figures) == _MIN:
                figures += [float("inf"), float("-inf")]
        return found


def add_figures(mine: list[float], others: Sequence[float]) -> None:
    """Add a sensor's figures to others, in place."""
    for i in (_COUNT, _SUM, _SQUARES):
        mine[i] += others[i]
    mine[_MIN], mine[_MAX] = min(mine[_MIN], others[_MIN]), max(mine[_MAX], others[_MAX])


@dataclass(slots=True)
class DeviceWindows:
    """The open windows of one device.

    Attributes
    ----------
    watermark: how far behind its newest reading a device's reading may be and still count, s
    latest, since: event time of its newest and its first reading, s since 1970; `latest` is None before there was one
    times: those of its last readings, µs, sorted
    left: windows that another cohort had until now, and that cohort; not state
    """

    watermark: float
    latest: float | None = None
    since: float = 0.0
    times: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    windows: dict[tuple[str, float], Window] = field(default_factory=dict)
    left: set[tuple[str, float, str]] = field(default_factory=set)

    def add(self, rows: Sequence[Row]) -> tuple[list[Row], set[tuple[str, float]]]:
        """Take readings in the order they came.

        Returns
        -------
        those that count, which are neither late nor repeated, and the windows that changed
        """
        if not rows:
            return [], set()
        taken, late = self._on_time(rows)
        changed: set[tuple[str, float]] = set()
        for minute in _minutes(taken):
            known = ("1m", minute.start) in self.windows
            minute.minutes = 0 if known else 1
            for key in _keys(minute.start):
                window = self.windows.get(key)
                if window is None:
                    window = self.windows[key] = Window(*key, minute.cohort)
                if window.cohort != minute.cohort:
                    self.left.add((*key, window.cohort))
                window.add(minute)
                changed.add(key)
        for newest, many in late.items():
            for key in _keys(newest):
                self.windows[key].late += many
                changed.add(key)
        return taken, changed

    def _on_time(self, rows: Sequence[Row]) -> tuple[list[Row], dict[float, int]]:
        """Which readings count, and how many came after their minute was closed, by the newest time they met.

        A learning job that was restarted says some things twice; who is late is not asked whether it came before.
        """
        latest = self.latest
        if latest is None:
            latest = self.since = rows[0].time
        seen = set(self.times.tolist())
        taken: list[Row] = []
        late: dict[float, int] = {}
        for row in rows:
            if _minute(row.time) + MINUTE + self.watermark <= latest:
                late[latest] = late.get(latest, 0) + 1
            elif row.micros not in seen:
                seen.add(row.micros)
                taken.append(row)
                latest = max(latest, row.time)
        self.latest = latest
        oldest = (latest - self.watermark - MINUTE) * 1e6  # earlier ones would be late
        self.times = np.array(sorted(t for t in seen if t >= oldest)[-REMEMBERED:], dtype=np.int64)
        return taken, late

    def score(self, minute: float, version: int, count: int, error: float, persistence: float) -> None:
        """Add what a global model was worth in a minute that is open."""
        window = self.windows[("1m", minute)]
        sums = window.scores.setdefault(str(version), [0, 0.0, 0.0])
        sums[0] += count
        sums[1] += error
        sums[2] += persistence

    def complete(self, before: float | None) -> set[tuple[str, float]]:
        """The windows whose end the device has passed since its newest reading was at `before`."""
        if before is None or self.latest is None:
            return set()
        return {key for key, window in self.windows.items() if before < window.end <= self.latest}

    def close(self) -> None:
        """Forget the windows that no reading can enter any more."""
        if self.latest is None:
            return
        limit = self.latest - self.watermark
        self.windows = {key: window for key, window in self.windows.items() if window.end > limit}

    def document(self, window: Window, device: str, interval: float) -> dict[str, Any]:
        """A window as it is stored.

        Parameters
        ----------
        interval:
            the device's typical time between two readings, s; 0 where it is not known
        """
        passed = self.latest is not None and self.latest >= window.end
        covered = window.end - max(window.start, self.since)
        expected = floor(covered / interval) if interval > 0.0 and passed else 0
        sensors = {name: figures_document(figures, window.readings) for name, figures in window.sensors.items()}
        start, end = (datetime.fromtimestamp(at, UTC) for at in (window.start, window.end))
        return {
            "_id": f"{window.length}/device/{device}@{start.isoformat()}",
            "window": window.length,
            "scope": "device",
            "device_id": device,
            "cohort": window.cohort,
            "start": start,
            "end": end,
            "stored_at": datetime.now(UTC),
            "readings": window.readings,
            "devices": 1,
            "sensors": sensors,
            "errors": window.errors,
            "error": window.error / window.errors if window.errors else None,
            "anomalies": window.anomalies,
            "uptime": window.minutes * MINUTE / LENGTHS[window.length],
            "loss": max(0.0, 1.0 - window.readings / expected) if expected else None,
            "expected": expected or None,
            "late": window.late,
            "scores": [
                {"version": int(version), "count": int(sums[0]), "error": sums[1], "persistence": sums[2]}
                for version, sums in window.scores.items()
            ],
        }

    def to_bytes(self) -> bytes:
        """The whole state; no pickle."""
        windows = [window.as_list() for window in self.windows.values()]
        return orjson.dumps([self.latest, self.since, self.times.tolist(), windows])

    @classmethod
    def from_bytes(cls, raw: bytes, watermark: float) -> DeviceWindows:
        """Go on from `to_bytes`."""
        latest, since, times, windows = orjson.loads(raw)
        found = [Window.from_list(parts) for parts in windows]
        by_key = {(window.length, window.start): window for window in found}
        return cls(watermark, latest, since, np.array(times, dtype=np.int64), by_key)


def _minute(time: float) -> float:
    """The start of the minute, s since 1970."""
    return floor(time / MINUTE) * MINUTE


def _keys(time: float) -> Iterator[tuple[str, float]]:
    """The windows that a time lies in."""
    for length, width in LENGTHS.items():
        yield length, floor(time / width) * width


def _minutes(rows: Sequence[Row]) -> Iterator[Window]:
    """The readings' sums by minute, in the order of time."""
    if not rows:
        return
    names = sorted({name for row in rows for name in (*row.observed, *row.sensors)})
    values = values_of(rows, names)
    starts = np.floor(np.array([row.time for row in rows]) / MINUTE) * MINUTE
    order = np.argsort(starts, kind="stable")
    firsts = np.flatnonzero(np.diff(starts[order], prepend=-1.0))
    known = ~np.isnan(values[order])
    plain = np.where(known, values[order], 0.0)
    figures = np.stack(
        (
            np.add.reduceat(known.astype(np.float64), firsts),
            np.add.reduceat(plain, firsts),
            np.add.reduceat(plain * plain, firsts),
            np.minimum.reduceat(np.where(known, values[order], np.inf), firsts),
            np.maximum.reduceat(np.where(known, values[order], -np.inf), firsts),
        ),
        axis=-1,
    ).tolist()
    for i, (first, end) in enumerate(zip(firsts, (*firsts[1:], len(order)), strict=True)):
        of_minute = [rows[j] for j in order[first:end]]
        errors = [row.error for row in of_minute if row.error is not None]
        yield Window(
            "1m", float(starts[order[first]]), of_minute[-1].cohort, len(of_minute), len(errors), float(sum(errors)),
            sum(row.is_anomaly for row in of_minute), sensors=dict(zip(names, figures[i], strict=True)),
        )  # fmt: skip


def figures_document(figures: Sequence[float], readings: int) -> dict[str, Any]:
    """One sensor's figures as they are stored."""
    count = int(figures[_COUNT])
    return {
        "count": count,
        "missing": max(readings - count, 0),
        "sum": figures[_SUM],
        "sum_squares": figures[_SQUARES],
        "mean": figures[_SUM] / count if count else None,
        "min": figures[_MIN] if count else None,
        "max": figures[_MAX] if count else None,
    }


def cohort_key(window: str, cohort: str, start: float) -> str:
    """The `_id` of a cohort's window.

    >>> cohort_key("1h", "humidity", 1_078_358_400.0)
    '1h/cohort/humidity@2004-03-04T00:00:00+00:00'
    """
    return f"{window}/cohort/{cohort}@{datetime.fromtimestamp(start, UTC).isoformat()}"


def fold(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A cohort's window from those of its devices, as they are stored: one at least."""
    first = found[0]
    readings = sum(row["readings"] for row in found)
    sensors: dict[str, list[float]] = {}
    for row in found:
        for name, one in row["sensors"].items():
            limits = (one["min"], one["max"]) if one["count"] else (float("inf"), float("-inf"))
            mine = sensors.setdefault(name, [0.0, 0.0, 0.0, float("inf"), float("-inf")])
            add_figures(mine, (one["count"], one["sum"], one["sum_squares"], *limits))
    errors = sum(row["errors"] for row in found)
    error = sum(row["errors"] * row["error"] for row in found if row["errors"])
    expecting = [row for row in found if row.get("expected")]
    expected = sum(row["expected"] for row in expecting)
    came = sum(min(row["readings"], row["expected"]) for row in expecting)
    return {
        "_id": cohort_key(first["window"], first["cohort"], first["start"].timestamp()),
        **{name: first[name] for name in ("window", "cohort", "start", "end")},
        "scope": "cohort",
        "device_id": None,
        "stored_at": datetime.now(UTC),
        "readings": readings,
        "devices": len(found),
        "sensors": {name: figures_document(figures, readings) for name, figures in sensors.items()},
        "errors": errors,
        "error": error / errors if errors else None,
        "anomalies": sum(row["anomalies"] for row in found),
        "uptime": sum(row["uptime"] for row in found) / len(found),
        "loss": 1.0 - came / expected if expected else None,
        "expected": expected or None,
        "late": sum(row.get("late", 0) for row in found),
    }


def fold_scores(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each version of a cohort's global model was worth in a minute, from the minutes of its devices."""
    sums: dict[int, list[float]] = {}
    first: Mapping[str, Any] = {}
    for row in rows:
        first = first or row
        for one in row.get("scores", ()):
            mine = sums.setdefault(one["version"], [0, 0, 0.0, 0.0])
            for i, more in enumerate((1, one["count"], one["error"], one["persistence"])):
                mine[i] += more
    return [
        {
            "_id": f"{first['cohort']}#{version}/{first['window']}@{cast(datetime, first['start']).isoformat()}",
            **{name: first[name] for name in ("cohort", "window", "start")},
            "version": version,
            "stored_at": datetime.now(UTC),
            "devices": int(devices),
            "count": int(count),
            "error": error / count if count else None,
            "persistence": persistence / count if count else None,
            "skill": 1.0 - error / persistence if persistence else None,
        }
        for version, (devices, count, error, persistence) in sums.items()
    ]
