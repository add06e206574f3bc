"""Comparing federated with local and centralised learning on recorded days: what `flead evaluate` does."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from data.formats import Rejected
from data.frames import Frame, frames_of
from data.plausible import PlausibleOnly, ranges_of
from data.sources import open_dataset
from flead.errors import BadConfiguration, BadDataset
from flead.evaluation import LONGEST_NEXT_S, TOLERANCE, Evaluation, Plan, Series, cohort_frames, evaluate
from flead.learner_config import LearnerConfig
from flead.messages import cohort_of
from flead.personalisation import compare_rules
from flead.training import Federation
from orchestration.display import some_of
from visualization.plots import Forecasts

Progress = Callable[[str, float | None], None]
"""Called with what is being done and how much of it is done, 0 to 1; None where that is not known."""

SHOWN_DEVICES = 3
SHOWN_S = 12 * 3600.0


@dataclass(frozen=True)
class Days:
    """Whole days in UTC, as s since 1970: start <= time < end.

    >>> Days.parse("2004-03-04..2004-03-06", "--train-days").text
    '2004-03-04..2004-03-06'
    """

    start: float
    end: float

    @staticmethod
    def parse(text: str, option: str) -> Days:
        """Read `FROM..TO`, both inclusive, or one day; raises `BadConfiguration`."""
        first, dots, last = text.partition("..")
        try:
            days = [
                datetime.strptime(part, "%Y-%m-%d").replace(tzinfo=UTC) for part in (first, last if dots else first)
            ]
        except ValueError:
            raise BadConfiguration(f"{option} takes days like 2004-03-04..2004-03-06, not {text!r}") from None
        if days[1] < days[0]:
            raise BadConfiguration(f"{option} {text} ends before it begins")
        return Days(days[0].timestamp(), (days[1] + timedelta(days=1)).timestamp())

    @property
    def text(self) -> str:
        """As it is given."""
        first, last = (datetime.fromtimestamp(s, UTC).date().isoformat() for s in (self.start, self.end - 1.0))
        return f"{first}..{last}"


@dataclass(frozen=True)
class Request:
    """What is to be compared on what; `train_days` and `test_days` cut the files, None takes all of them."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]
    train_days: Days | None = None
    test_days: Days | None = None
    plausible: bool = True
    rounds: int | None = None
    seed: int = 0
    personalisation: bool = False
    """Whether the rules of adoption are compared, too."""

    @property
    def plan(self) -> Plan:
        """How the models are trained."""
        federation = Federation() if self.rounds is None else replace(Federation(), rounds=self.rounds)
        return Plan(federation=federation, seed=self.seed)


@dataclass(frozen=True)
class _File:
    """A file that was read, and what was in it."""

    frames: list[Frame]
    found: dict[str, Any]


@dataclass
class Compared:
    """The outcome: the report as JSON has it, remarks for people, and forecasts to be drawn."""

    report: dict[str, Any]
    remarks: list[str] = field(default_factory=list)
    forecasts: list[Forecasts] = field(default_factory=list)

    def to_json(self) -> str:
        """One JSON object; what cannot be known (a sensor without a reading) is null."""
        return json.dumps(_finite(self.report), indent=1, allow_nan=False) + "\n"


def compare(request: Request, config: LearnerConfig, on_progress: Progress) -> Compared:
    """Read the files, train every method and test it.

    Raises
    ------
    BadDataset
        a file cannot be read or has no reading, no device is on both sides, or nothing follows the training
    """
    begun, remarks, files = time.perf_counter(), list[str](), dict[Path, _File]()
    for path in (*request.train, *request.test):
        if path not in files:
            files[path] = _read(path, on_progress, plausible=request.plausible)
    before = _side([files[path] for path in request.train], request.train_days, "train", request.train)
    after = _side([files[path] for path in request.test], request.test_days, "test", request.test)
    sensors, train = cohort_frames(before)
    test = [Series(f.device, f.times, f.values) for f in after if f.sensors == sensors]
    remarks += _left_out(before, after, sensors)
    test, overlap = _after_training(train, test)
    remarks += overlap
    common = {series.device for series in train} & {series.device for series in test}
    if not common:
        raise BadDataset(
            f"no device with the sensors {', '.join(sensors)} has readings on both sides: training has "
            f"{some_of([series.device for series in train])}, testing {some_of([f.device for f in after])}"
        )
    read, marks = time.perf_counter(), dict[str, float]()

    def on_step(what: str, share: float) -> None:
        marks.setdefault(what, time.perf_counter())
        on_progress(what, share)

    found = evaluate(train, test, sensors, config, request.plan, on_step)
    rules = compare_rules(train, test, sensors, config, on_progress=on_step) if request.personalisation else None
    ended = time.perf_counter()
    remarks += _unknown(found, test)
    names, starts = list(marks), [*marks.values(), ended]
    phases = {name: starts[i + 1] - starts[i] for i, name in enumerate(names) if name != "done"}
    report = found.as_dict(request.seed) | {
        "horizons": list(found.horizons),
        "methods": list(found.errors),
        "cohort": cohort_of(sensors),
        "files": {
            "train": [str(path) for path in request.train],
            "test": [str(path) for path in request.test],
            "train_days": request.train_days.text if request.train_days else None,
            "test_days": request.test_days.text if request.test_days else None,
            "read": {str(path): file.found for path, file in files.items()},
        },
        "readings": {
            "train": sum(len(series.times) for series in train if series.device in common),
            "test": sum(len(series.times) for series in test if series.device in common),
        },
        "remarks": remarks,
        "settings": {"learner": config.model_dump(mode="json"), "plan": asdict(request.plan)},
        "machine": machine(),
        "durations_s": {"reading": read - begun, **phases, "total": ended - begun},
    }
    if rules is not None:
        report["personalisation"] = rules.as_dict()
    return Compared(report, remarks, _forecasts(found, test))


def machine() -> str:
    """What the figures were made on, in one line."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return (
        f"{named or platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}"
    )


def _read(path: Path, on_progress: Progress, *, plausible: bool) -> _File:
    dataset = open_dataset(path)
    kept = PlausibleOnly(ranges_of(dataset.format) if plausible else {})
    rejected: list[Rejected] = []
    frames = frames_of(
        kept.of(dataset.readings()), lambda done: on_progress(f"reading {path.name}: {done:,}", None), rejected.append
    )
    count = sum(len(frame.times) for frame in frames)
    if not count:
        why = f"; the first line that is none, {rejected[0].number}: {rejected[0].detail}" if rejected else ""
        raise BadDataset(f"{path} holds no reading{why}")
    found = {
        "format": dataset.format.name,
        "readings": count,
        "devices": len(frames),
        "rejected": len(rejected),
        "implausible": kept.removed,
    }
    return _File(frames, found)


def _side(files: Sequence[_File], days: Days | None, side: str, paths: Sequence[Path]) -> list[Frame]:
    """The devices of some files, each with all its readings of these days in time order."""
    parts: dict[str, list[Frame]] = {}
    for file in files:
        for frame in file.frames:
            cut = frame.between(days.start, days.end) if days else frame
            if len(cut.times):
                parts.setdefault(frame.device, []).append(cut)
    if not parts:
        times = [t for file in files for f in file.frames for t in (f.times[0], f.times[-1])]
        raise BadDataset(
            f"--{side}-days {days.text if days else ''} holds no reading of {some_of([path.name for path in paths])}: "
            f"they go from {_moment(min(times))} to {_moment(max(times))}"
        )
    return [_together(parts[device]) for device in sorted(parts)]


def _together(parts: list[Frame]) -> Frame:
    if len(parts) == 1:
        return parts[0]
    sensors = tuple(sorted({name for part in parts for name in part.sensors}))
    values = []
    for part in parts:
        wide = np.full((len(part.times), len(sensors)), np.nan)
        wide[:, [sensors.index(name) for name in part.sensors]] = part.values
        values.append(wide)
    times = np.concatenate([part.times for part in parts])
    order = np.argsort(times, kind="stable")
    records = np.concatenate([part.records for part in parts])
    return Frame(parts[0].device, sensors, times[order], np.concatenate(values)[order], records[order])


def _left_out(before: Iterable[Frame], after: Iterable[Frame], sensors: tuple[str, ...]) -> list[str]:
    other = sorted({f.device for f in (*before, *after) if f.sensors != sensors})
    if not other:
        return []
    return [f"left out, for their sensors are not {', '.join(sensors)}: {some_of(other)}"]


def _after_training(train: list[Series], test: list[Series]) -> tuple[list[Series], list[str]]:
    """What is tested must not have been learnt from: each device's test begins after its training has ended."""
    ends = {series.device: series.times[-1] for series in train}
    kept, dropped = list[Series](), 0
    for series in test:
        first = int(np.searchsorted(series.times, ends.get(series.device, -math.inf), side="right"))
        dropped += first
        if first < len(series.times):
            kept.append(Series(series.device, series.times[first:], series.values[first:]))
    if not dropped:
        return test, []
    if not any(series.device in ends for series in kept):
        raise BadDataset(
            "no test reading is later than the training: give later days to --test, or cut the files with "
            "--train-days and --test-days"
        )
    return kept, [
        f"training and test overlap in time: {dropped:,} test readings not later than the training are left out"
    ]


def _unknown(found: Evaluation, test: Sequence[Series]) -> list[str]:
    """A remark for each horizon at which the test has no reading to judge a forecast by."""
    steps = [np.diff(series.times) for series in test if series.device in found.devices]
    every = np.concatenate(steps)
    come = f"they come about every {np.median(every):g} s" if len(every) else "each device has one"
    sought = (
        f"within {LONGEST_NEXT_S:g} s of an earlier one",
        f"{found.horizon_s:g} s after an earlier one, give or take {TOLERANCE * found.horizon_s:g} s",
    )
    n = len(found.sensors)
    return [
        f"{horizon} has no figures: no test reading lies {where} ({come})"
        + ("; learner.horizon_s sets another horizon" if h else "")
        for h, (horizon, where) in enumerate(zip(found.horizons, sought, strict=True))
        if not any(np.isfinite(errors[:, h * n : (h + 1) * n]).any() for errors in found.errors["persistence"])
    ]


def _forecasts(found: Evaluation, test: Sequence[Series]) -> list[Forecasts]:
    """A few devices' forecasts over some hours of the first test day, at the longer horizon."""
    by_device, n = {series.device: series for series in test}, len(found.sensors)
    most = sorted(found.devices, key=lambda device: -len(by_device[device].times))[:SHOWN_DEVICES]
    drawn = []
    for device in sorted(most):
        series, i = by_device[device], found.devices.index(device)
        middle = series.times[0] + 0.5 * (min(series.times[-1], series.times[0] + 86_400.0) - series.times[0])
        rows = (series.times >= middle - SHOWN_S / 2) & (series.times <= middle + SHOWN_S / 2)
        # An error is forecast less truth; that of persistence is minus the change that came.
        changes = -found.errors["persistence"][i][rows, n:]
        forecasts = {
            method: series.values[rows] + changes + found.errors[method][i][rows, n:]
            for method in ("federated", "personalised")
        }
        drawn.append(
            Forecasts(
                device,
                found.sensors,
                found.horizons[1],
                found.horizon_s,
                series.times[rows],
                series.values[rows],
                forecasts,
            )
        )
    return drawn


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(" ", "seconds")
