"""The state of the fleet as a screen shows it: made from records, bounded, and told in changes.

Pure: no Kafka, no browser, no clock. Times are Unix seconds; those of records are when the broker stored them, so a
console that starts later sees the same ages.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from math import isfinite
from typing import Any, NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from visualization.console.words import sentence

Vector = NDArray[np.float64]

MAX_DEVICES = 5_000
"""Devices that are kept; beyond it the one that was silent for longest gives way."""
HISTORY, HISTORY_NUMBERS = 400, 16_384
"""A device's readings that are kept: as many as a chart has room for, and no more numbers than this."""
ALARM_S, ALARM_GAPS = 120.0, 20.0
"""An alarm shows in a device's state for so many seconds, and so many of its usual gaps between readings. Two that are
no further apart are one episode."""
LASTING, LASTING_SHARE, MOST_ALARMS = 3, 0.01, 100
"""So many alarms, and of so large a share of its readings meanwhile, are trouble: fewer are allowed to every device now
and then (`learner.false_alarms_per_day`). More than the last are not counted."""
SILENT_S, SILENT_GAPS = 30.0, 10.0
"""A device is silent after so many seconds, and so many of its usual gaps between readings."""
EPISODES = 200
VERSIONS, COHORTS = 64, 32
RATE_S = 60
"""How many seconds rates and latencies look back."""
_RECENT_S = 5
_EDGES = np.geomspace(1.0, 120_000.0, 160)
"""Of the classes that latencies are counted in, ms: 7.6 % apart."""


class State(StrEnum):
    """How a device is; worst first."""

    ALARM = "alarm"
    NOTED = "noted"
    SILENT = "silent"
    LEARNING = "learning"
    OK = "ok"


class Kind(StrEnum):
    """What a record says."""

    PREDICTION = "prediction"
    ALERT = "alert"
    DEAD_LETTER = "dead_letter"


class Record(NamedTuple):
    """A record of a topic.

    Attributes
    ----------
    at:
        when the broker stored it, Unix time, s
    """

    kind: Kind
    value: bytes | None
    at: float


_NONE = -1.0


class History:
    """The newest readings of a device: time, what was observed and expected of each sensor, and which was an anomaly.

    >>> history = History(("t", "u"))
    >>> history.add(0.0, [20.0, 1.0], [None, None], None)
    >>> history.add(30.0, [21.0, 1.0], [20.5, 1.0], "t")
    >>> history.since(1)["observed"], history.since(0)["anomalies"], history.written
    ([[21.0], [1.0]], [(1, 0)], 2)
    """

    __slots__ = ("_most", "_rows", "sensors", "written")

    def __init__(self, sensors: tuple[str, ...]) -> None:
        self.sensors = sensors
        self.written = 0
        columns = 2 + 2 * len(sensors)
        self._most = max(1, min(HISTORY, HISTORY_NUMBERS // columns))
        self._rows: Vector = np.empty((min(50, self._most), columns))

    def add(self, time: float, observed: list[Any], expected: list[Any], anomaly: str | None) -> None:
        """Keep a reading; None is no value. An anomaly is a sensor's, or any other name: the whole device's."""
        rows = self._rows
        if self.written == len(rows) < self._most:
            more = np.empty((min(2 * len(rows), self._most), rows.shape[1]))
            more[: len(rows)] = rows
            self._rows = rows = more
        number = len(self.sensors)
        place = _NONE if anomaly is None else self.sensors.index(anomaly) if anomaly in self.sensors else number
        rows[self.written % len(rows)] = [time, place, *observed, *expected]
        self.written += 1

    def _ordered(self, written: int) -> Vector:
        """The rows that are kept behind the first `written`, oldest first."""
        kept = min(self.written, len(self._rows))
        places = np.arange(max(written, self.written - kept), self.written) % len(self._rows)
        rows: Vector = self._rows[places]
        return rows

    def since(self, written: int) -> dict[str, list[Any]]:
        """The readings behind the first `written` as columns, as far as they are kept.

        Anomalies are pairs of a row and a sensor's place; one behind the last is the whole device.
        """
        rows, n = self._ordered(written), len(self.sensors)
        return {
            "time": rows[:, 0].tolist(),
            "anomalies": [(int(row), int(rows[row, 1])) for row in np.flatnonzero(rows[:, 1] != _NONE)],
            "observed": rows[:, 2 : 2 + n].T.tolist(),
            "expected": rows[:, 2 + n :].T.tolist(),
        }

    def usual_miss(self) -> list[float | None]:
        """How far off 19 of 20 forecasts of each sensor are, anomalies apart; None where nothing is known."""
        rows, n = self._ordered(0), len(self.sensors)
        missed = np.abs(rows[:, 2 : 2 + n] - rows[:, 2 + n :])[rows[:, 1] == _NONE]
        return [float(np.quantile(known, 0.95)) if known.size else None for known in _known(missed)]


def _known(columns: Vector) -> list[Vector]:
    return [column[np.isfinite(column)] for column in columns.T]


class Device:
    """What is known of one device."""

    __slots__ = (
        "alarms", "cohort", "drifts", "gap", "history", "last", "name", "revision", "seen", "shown", "version",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.cohort = ""
        self.version = 0
        self.seen = 0.0
        self.gap = 0.0
        self.alarms: deque[float] = deque(maxlen=MOST_ALARMS)
        self.drifts = 0
        self.history = History(())
        self.last: dict[str, Any] | None = None
        self.shown: tuple[State, int] | None = None
        self.revision = 0

    @property
    def window(self) -> float:
        """How long an alarm counts, s."""
        return max(ALARM_S, ALARM_GAPS * self.gap)

    def state(self, now: float) -> State:
        """How it is."""
        if self.alarms:
            readings = min(self.history.written, self.window / self.gap if self.gap else 0.0)
            trouble = min(max(LASTING, LASTING_SHARE * readings), MOST_ALARMS)
            return State.ALARM if len(self.alarms) >= trouble else State.NOTED
        if now - self.seen > max(SILENT_S, SILENT_GAPS * self.gap):
            return State.SILENT
        return State.LEARNING if self.last is None or self.last["error"] is None else State.OK


class Episode:
    """Alarms of one device, none of them long after the one before: one line of the feed, with a count."""

    __slots__ = ("count", "device", "first", "last", "number", "revision", "said")

    def __init__(self, number: int, device: str, at: float) -> None:
        self.number = number
        self.device = device
        self.first = self.last = at
        self.count = 0
        self.revision = 0
        self.said: dict[str, Any] = {}

    def shown(self) -> dict[str, Any]:
        """As the feed has it."""
        return {
            "number": self.number, "device": self.device, "first": self.first, "last": self.last, "count": self.count,
            "kind": self.said.get("kind"), "sensor": self.said.get("sensor"), "score": self.said.get("anomaly_score"),
            "text": sentence(self.said), "time": self.said.get("timestamp"),
        }  # fmt: skip


class Skills:
    """How much better each version's forecasts were than "no change", on the same readings: 1 - error / error of that.

    Both have the same nights and the same noise, so versions of different hours can be compared. Errors are in typical
    changes of each sensor, so that one which stands still for a night does not decide.

    >>> skills = Skills(1)
    >>> skills.add(1, [21.0], [20.9], [20.5])
    >>> [(version, readings, round(skill, 2)) for version, readings, skill in skills.values()]
    [(1, 1, 0.8)]
    """

    __slots__ = ("_steps", "_versions")

    def __init__(self, sensors: int) -> None:
        self._steps = [0.0] * sensors
        self._versions: dict[int, tuple[list[float], list[float], list[int]]] = {}

    def add(self, version: int, observed: list[Any], expected: list[Any], before: list[Any]) -> None:
        """Count a reading of a version; None is no value. One with other sensors is not of this cohort."""
        if len(observed) != len(self._steps):
            return
        found = self._versions.get(version)
        if found is None:
            if len(self._versions) == VERSIONS:  # the first stays, to be compared with
                del self._versions[sorted(self._versions)[1]]
            found = self._versions[version] = ([0.0] * len(self._steps), [0.0] * len(self._steps), [0])
        errors, steps, readings = found
        readings[0] += 1
        for place, (value, forecast, last) in enumerate(zip(observed, expected, before, strict=True)):
            if value is not None and forecast is not None and last is not None:
                step = abs(value - last)
                errors[place] += abs(value - forecast)
                steps[place] += step
                self._steps[place] += step

    def values(self) -> list[tuple[int, int, float | None]]:
        """Version, readings, skill; None where nothing moved."""
        return [
            (version, kept[2][0], self._skill(kept[0], kept[1])) for version, kept in sorted(self._versions.items())
        ]

    def _skill(self, errors: list[float], steps: list[float]) -> float | None:
        moved = [
            (e / typical, s / typical) for e, s, typical in zip(errors, steps, self._steps, strict=True) if typical
        ]
        error, step = sum(e for e, _ in moved), sum(s for _, s in moved)
        return 1 - error / step if step > 0 and isfinite(error / step) else None


class Rates:
    """How many of each kind in each of the last seconds.

    >>> rates = Rates()
    >>> for second in (100.2, 100.9, 101.5, 30.0):
    ...     rates.add(Kind.ALERT, second)
    >>> rates.series(Kind.ALERT, 102.0, 3)
    [0, 2, 1]
    """

    def __init__(self) -> None:
        self._newest = 0
        self._counts = {kind: np.zeros(RATE_S + 1, dtype=np.int64) for kind in Kind}

    def add(self, kind: Kind, at: float) -> None:
        """Count one."""
        second = int(at)
        if second > self._newest:
            self._forget(second)
        if second > self._newest - RATE_S:
            self._counts[kind][second % (RATE_S + 1)] += 1

    def _forget(self, second: int) -> None:
        """Make room for the seconds up to this one."""
        gone = np.arange(max(self._newest + 1, second - RATE_S), second + 1) % (RATE_S + 1)
        for counts in self._counts.values():
            counts[gone] = 0
        self._newest = second

    def series(self, kind: Kind, now: float, seconds: int = RATE_S) -> list[int]:
        """Of each of the last full seconds, oldest first."""
        last = int(now) - 1
        return [
            int(self._counts[kind][s % (RATE_S + 1)]) if self._newest - RATE_S < s <= self._newest else 0
            for s in range(last - seconds + 1, last + 1)
        ]


class Latency:
    """From a reading sent to its prediction stored, of the last minute, in classes.

    >>> latency = Latency()
    >>> for ms in (8.0, 10.0, 12.0, 900.0):
    ...     latency.add(ms, 100.0)
    >>> [round(q) for q in latency.quantiles(101.0, (0.5, 0.99))]
    [10, 901]
    """

    SLOT_S = 5

    def __init__(self) -> None:
        self._slots: deque[tuple[int, NDArray[np.int64]]] = deque(maxlen=RATE_S // self.SLOT_S + 1)

    def add(self, ms: float, at: float) -> None:
        """Count one."""
        slot = int(at) // self.SLOT_S
        if not self._slots or slot > self._slots[-1][0]:
            self._slots.append((slot, np.zeros(len(_EDGES) + 1, dtype=np.int64)))
        self._slots[-1][1][_EDGES.searchsorted(ms)] += 1

    def quantiles(self, now: float, quantiles: tuple[float, ...]) -> list[float | None]:
        """The middles of the classes that they lie in, ms; None where nothing came."""
        since = (now - RATE_S) // self.SLOT_S
        counts = sum((counts for slot, counts in self._slots if slot >= since), np.zeros(len(_EDGES) + 1, np.int64))
        total = counts.sum()
        if not total:
            return [None for _ in quantiles]
        places = np.cumsum(counts).searchsorted([q * total for q in quantiles])
        middles = np.sqrt(np.append(_EDGES, _EDGES[-1]) * np.insert(_EDGES, 0, _EDGES[0]))
        return [float(middles[place]) for place in places]


class Fleet:
    """All devices. Safe to use from many threads.

    `take` feeds it, `look` lets time pass, and `changes` says what a screen that saw a revision has to draw anew.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._devices: dict[str, Device] = {}
        self._episodes: dict[str, Episode] = {}  # the newest of each device
        self._feed: deque[Episode] = deque(maxlen=EPISODES)
        self._numbers = 0
        self._revision = 1
        self._floor = 0  # a screen that saw no more than this has to begin anew: devices were forgotten
        self._rates = Rates()
        self._latency = Latency()
        self._skills: dict[str, Skills] = {}  # by cohort
        self.counts = dict.fromkeys(Kind, 0)
        self.unreadable = 0
        self.reasons: dict[str, int] = {}
        self._newest = 0.0
        self._take = {
            Kind.PREDICTION: self._prediction, Kind.ALERT: self._alert, Kind.DEAD_LETTER: self._dead_letter,
        }  # fmt: skip

    def take(self, records: Iterable[Record]) -> None:
        """Take records in; what cannot be read is counted, for anybody may write to a topic."""
        with self._lock:
            for record in records:
                kind = record.kind
                self.counts[kind] += 1
                self._rates.add(kind, record.at)
                try:
                    self._take[kind](orjson.loads(record.value or b""), record.at)
                except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
                    self.unreadable += 1

    def _prediction(self, said: dict[str, Any], at: float) -> None:
        name, observed, expected = said["device_id"], said["observed"], said["expected"] or {}
        time = datetime.fromisoformat(said["timestamp"]).timestamp()
        version, error, waited = _version(said["model_version"]), said["error"], at * 1000 - float(said["produced_ms"])
        cohort, anomaly = _text(said["cohort"]), bool(said["is_anomaly"])
        device = self._devices.get(name) or Device(_text(name))
        if len(observed) != len(device.history.sensors) or not observed.keys() >= set(device.history.sensors):
            device.history = History(tuple(sorted(map(_text, observed))))
        sensors = device.history.sensors
        values, forecasts = [observed[s] for s in sensors], [expected.get(s) for s in sensors]
        before = [device.last["observed"][s] for s in sensors] if device.history.written and device.last else None
        which = str(said["sensor"]) if anomaly else None
        device.history.add(time, values, forecasts, which)  # refuses what is no number: nothing is changed before
        if not device.seen:
            self._meet(device)
        if before and error is not None and not anomaly:
            self._skill(cohort, sensors).add(version, values, forecasts, before)
        if device.seen:
            device.gap += ((at - device.seen) - device.gap) * 0.1
        device.seen, device.last, device.version, device.cohort = at, said, version, cohort
        device.drifts += bool(said["drift"])
        self._newest = max(self._newest, at)
        self._latency.add(max(waited, 0.0), at)

    def _skill(self, cohort: str, sensors: tuple[str, ...]) -> Skills:
        if cohort not in self._skills:
            if len(self._skills) == COHORTS:
                del self._skills[next(iter(self._skills))]
            self._skills[cohort] = Skills(len(sensors))
        return self._skills[cohort]

    def _meet(self, device: Device) -> None:
        if len(self._devices) == MAX_DEVICES and device.name not in self._devices:
            gone = min(self._devices.values(), key=lambda device: device.seen)
            del self._devices[gone.name]
            self._episodes.pop(gone.name, None)
            self._floor = self._revision
        self._devices[device.name] = device

    def _alert(self, said: dict[str, Any], at: float) -> None:
        name = _text(said["device_id"])
        sentence(said)  # what cannot be said is refused here
        device = self._devices.get(name) or Device(name)
        self._meet(device)
        device.alarms.append(at)
        episode = self._episodes.get(name)
        if episode is None or at - episode.last > device.window:
            self._numbers += 1
            episode = self._episodes[name] = Episode(self._numbers, name, at)
            self._feed.append(episode)
        episode.said, episode.last, episode.revision = said, max(at, episode.last), self._revision
        episode.count += 1

    def _dead_letter(self, said: dict[str, Any], _at: float) -> None:
        reason = _text(said["reason"])
        if reason in self.reasons or len(self.reasons) < COHORTS:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def look(self, now: float) -> int:
        """Let time pass: alarms grow old, devices fall silent. Returns the revision that this made."""
        with self._lock:
            self._revision += 1
            for device in self._devices.values():
                alarms = device.alarms
                while alarms and alarms[0] < now - device.window:
                    alarms.popleft()
                shown = device.state(now), len(alarms)
                if shown != device.shown:
                    device.shown, device.revision = shown, self._revision
            return self._revision

    def changes(self, since: int) -> dict[str, Any]:
        """What is not as it was at a revision: devices as name, state, alarms; episodes, oldest first.

        `anew` says that the screen has to forget what it has.
        """
        with self._lock:
            anew = since <= self._floor
            since = -1 if anew else since
            return {
                "anew": anew,
                "devices": [
                    [d.name, *d.shown] for d in self._devices.values() if d.revision > since and d.shown is not None
                ],
                # One that came in since the last look has its revision already, and is told again: harmless.
                "episodes": [e.shown() for e in self._feed if e.revision >= since],
            }

    def tally(self) -> dict[str, int]:
        """How many devices are in each state, as of the last look."""
        with self._lock:
            states = [device.shown[0] for device in self._devices.values() if device.shown]
        return {state: states.count(state) for state in State}

    def troubled(self, most: int) -> list[str]:
        """The devices with the most alarms, as of the last look."""
        with self._lock:
            found = [(d.shown[1], d.alarms[-1], d.name) for d in self._devices.values() if d.shown and d.alarms]
        return [name for _, _, name in sorted(found, reverse=True)[:most]]

    def figures(self, now: float) -> dict[str, Any]:
        """Rates of the last seconds, latency of the last minute, counts since the start."""
        with self._lock:
            series = {kind: self._rates.series(kind, now) for kind in Kind}
            p50, p99 = self._latency.quantiles(now, (0.5, 0.99))
            return {
                "counts": dict(self.counts),
                "per_second": {kind: sum(counts[-_RECENT_S:]) / _RECENT_S for kind, counts in series.items()},
                "last_minute": {kind: sum(counts) for kind, counts in series.items()},
                "series": series[Kind.PREDICTION],
                "latency_ms": {"p50": p50, "p99": p99},
                "unreadable": self.unreadable,
                "reasons": dict(sorted(self.reasons.items(), key=lambda item: -item[1])),
                "newest": self._newest or None,
            }

    def cohorts(self) -> dict[str, dict[str, Any]]:
        """Of each cohort: its devices, who has which version, and how good each version's forecasts were."""
        with self._lock:
            found: dict[str, dict[str, Any]] = {}
            for device in self._devices.values():
                if device.cohort:
                    cohort = found.setdefault(device.cohort, {"devices": 0, "adopted": {}, "skills": []})
                    cohort["devices"] += 1
                    cohort["adopted"][device.version] = cohort["adopted"].get(device.version, 0) + 1
            for name, skills in self._skills.items():
                if name in found:
                    found[name]["skills"] = skills.values()
            return found

    def device(self, name: str, written: int) -> dict[str, Any] | None:
        """One device: its readings behind the first `written`, and what it last said; None where it is not known."""
        with self._lock:
            device = self._devices.get(name)
            if device is None or device.last is None:
                return None
            history, last, shown = device.history, device.last, device.shown
            if written > history.written:  # its sensors have changed since, or it was forgotten and met again
                written = 0
            return {
                "name": name,
                "sensors": list(history.sensors),
                "anew": not written,
                "written": history.written,
                "rows": history.since(written),
                "miss": history.usual_miss(),
                "state": shown[0] if shown else State.LEARNING,
                "alarms": shown[1] if shown else 0,
                "cohort": device.cohort,
                "seen": device.seen,
                "drifts": device.drifts,
                "last": {key: last.get(key) for key in _SHOWN},
                "episodes": [episode.shown() for episode in self._feed if episode.device == name][::-1],
            }


_SHOWN = (
    "timestamp", "samples_seen", "model_version", "observed", "expected", "forecast", "horizon", "horizon_s", "error",
    "anomaly_score", "sensor_scores", "is_anomaly", "sensor", "kind", "drift",
)  # fmt: skip
"""What a device's page shows of its newest prediction."""


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= 128:
        raise TypeError("not a name")
    return value


def _version(value: Any) -> int:
    number = int(value)
    if not 0 <= number < 2**53:  # more than a page, or JSON, can hold
        raise ValueError("not a version")
    return number
