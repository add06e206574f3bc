"""Scoring a file of readings as the stream would: what `flead detect` does.

Each device has a fresh learner that takes its readings in the order of their times; a score is made before the learner
has seen the reading. A device's sensors are all those that it has anywhere in the file.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from data.fields import cells_of
from data.formats import Csv, Format, IntelLab, Rejected
from data.frames import Frame, frames_of
from data.sources import Dataset, open_dataset
from flead.errors import BadConfiguration, BadDataset
from flead.learner import DeviceLearner
from flead.learner_config import LearnerConfig
from flead.messages import Reading
from flead.scoring import KINDS

ROWS = 4_096
"""Readings that a learner takes in one call."""
LABELS = frozenset({"label", "labels", "class", "anomaly", "is_anomaly", "outlier", "target", "fault", "attack"})
DAY = 86_400.0

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how much of it is done and how much there is, in records."""


@dataclass(frozen=True)
class Choice:
    """Which columns are sensors: those in `sensors` (empty: every column of numbers), but none in `ignore`."""

    sensors: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    def takes(self, name: str) -> bool:
        """Whether a column is a sensor."""
        return name not in self.ignore and (not self.sensors or name in self.sensors)

    def __bool__(self) -> bool:
        return bool(self.sensors or self.ignore)


@dataclass(frozen=True)
class Track:
    """One device: its readings and, a row each, what the learner said; `sensor` and `kind` are -1 for none."""

    frame: Frame
    score: NDArray[np.float64]
    is_anomaly: NDArray[np.bool_]
    sensor: NDArray[np.int64]
    kind: NDArray[np.int64]
    expected: NDArray[np.float64]
    """(m,), of the strangest sensor; NaN where there is none."""

    @property
    def days(self) -> float:
        """From the first reading to the last, days."""
        return float(self.frame.times[-1] - self.frame.times[0]) / DAY if len(self.frame.times) else 0.0


@dataclass
class Report:
    """What was found in a file."""

    records: int = 0
    rejected: int = 0
    first_rejected: str | None = None
    devices: int = 0
    alarms: int = 0
    alarms_per_device_and_day: float | None = None
    sensors: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    """Sensors whose names say that they are labels."""
    by_device: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    records_per_s: float = 0.0
    """Read, scored and written."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def summary(self) -> str:
        """One line for people."""
        rate = self.alarms_per_device_and_day
        return (
            f"{self.records:,} records of {self.devices} device{'s' * (self.devices != 1)}: {self.alarms:,} alarms"
            + (f" ({rate:.3g} per device and day)" if rate is not None else "")
            + f", {self.records_per_s:,.0f} records/s"
        )


@dataclass
class _Lines:
    """What goes back into the output as it came: a row for each record of the file."""

    timestamps: list[str] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)


def detect(
    path: Path,
    output: Path,
    config: LearnerConfig,
    choice: Choice,
    on_progress: Progress,
    *,
    largest: float,
    explain: bool = False,
) -> tuple[Report, list[Track]]:
    """Score every record of `path` and write a line for each to `output`, in the order of the file.

    Parameters
    ----------
    largest:
        the stream's limit of a value (`reading.max_abs_value`): a record beyond it is rejected

    Raises
    ------
    BadDataset
        the file cannot be read, or no line of it is a reading
    BadConfiguration
        `choice` names a column that there is not, or leaves none
    """
    report, lines, source = Report(), _Lines(), open_dataset(path)
    dataset = Dataset(source.path, _chosen(source.format, choice))
    entered = time.perf_counter()
    on_progress("compiling, once after an update", 0, None)
    DeviceLearner(("any",), config)
    begun = time.perf_counter()
    known: set[str] = set()
    frames = frames_of(_noted(dataset, choice, lines, known, report), lambda done: on_progress("reading", done, None))
    count = len(lines.timestamps)
    if not isinstance(dataset.format, Csv) and choice.sensors and set(choice.sensors) - known:
        raise BadConfiguration(_unknown(sorted(set(choice.sensors) - known), sorted(known)))
    frames = [_within_limits(frame, largest, lines, report) for frame in frames]
    frames = [frame for frame in frames if len(frame.times)]
    if not frames:
        raise BadDataset(f"{path} holds no reading; " + (report.first_rejected or "there is nothing below its header"))
    read = time.perf_counter()
    taken: list[int] = []

    def advance(rows: int) -> None:
        taken.append(rows)
        on_progress("scoring", sum(taken), count)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # a frame is scored without the interpreter's lock
        tracks = list(pool.map(lambda frame: _track(frame, config, advance), frames))
    scored = time.perf_counter()
    has_device = not isinstance(dataset.format, Csv) or dataset.format.device_column is not None
    _write(output, lines, tracks, has_device=has_device, explain=explain)
    ended = time.perf_counter()
    report.records, report.devices = count, len(tracks)
    report.sensors = sorted({name for frame in frames for name in frame.sensors})
    report.labels = [name for name in report.sensors if name.lower() in LABELS]
    report.alarms = sum(int(track.is_anomaly.sum()) for track in tracks)
    days = sum(track.days for track in tracks)
    report.alarms_per_device_and_day = report.alarms / days if days else None
    report.by_device = {
        track.frame.device: {
            "records": len(track.frame.times),
            "alarms": int(track.is_anomaly.sum()),
            "days": round(track.days, 4),
            "highest_score": float(track.score.max()),
        }
        for track in tracks
    }
    report.seconds = {
        "compiling": begun - entered,
        "reading": read - begun,
        "scoring": scored - read,
        "writing": ended - scored,
    }
    report.records_per_s = count / (ended - begun)
    return report, tracks


def _chosen(format_: Format, choice: Choice) -> Format:
    """The format, where it is CSV, with every column that is not wanted taken as text."""
    if isinstance(format_, IntelLab):
        _check(choice, ("humidity", "light", "temperature", "voltage"))
    if not isinstance(format_, Csv) or not choice:
        return format_
    special = {format_.time_column, format_.device_column}
    columns = {i: name for i, name in enumerate(format_.columns) if i not in special}
    _check(choice, tuple(columns.values()))
    unwanted = {i for i, name in columns.items() if not choice.takes(name)}
    # A column that is asked for by name is read as numbers, whatever its first lines hold.
    texts = frozenset(unwanted if choice.sensors else unwanted | format_.text_columns)
    if len(texts) == len(columns):
        raise BadConfiguration("--sensors and --ignore leave no column of numbers to look at")
    return replace(format_, text_columns=texts)


def _check(choice: Choice, known: tuple[str, ...]) -> None:
    unknown = sorted({*choice.sensors, *choice.ignore} - set(known))
    if unknown:
        raise BadConfiguration(_unknown(unknown, sorted(known)))
    if not any(map(choice.takes, known)):
        raise BadConfiguration("--sensors and --ignore leave no column of numbers to look at")


def _unknown(names: list[str], known: list[str]) -> str:
    return f"there is no column {', '.join(names)}: the file has {', '.join(known) or 'none'}"


def _noted(
    dataset: Dataset, choice: Choice, lines: _Lines, known: set[str], report: Report
) -> Iterator[Reading | Rejected]:
    """Every record, its times and device noted as they are written; lines without a character are no records."""
    parse, filtered = dataset.format.parse, bool(choice) and not isinstance(dataset.format, Csv)
    for number, line in dataset.lines():
        if not line.strip():
            continue
        record = parse(line, number)
        timestamp, device = _texts(dataset.format, line)
        lines.timestamps.append(timestamp)
        lines.devices.append(device if isinstance(record, Rejected) or device else record.device_id)
        lines.numbers.append(number)
        if isinstance(record, Rejected):
            _reject(report, number, record.detail)
        elif filtered:
            known |= record.sensors.keys()
            chosen = {name: value for name, value in record.sensors.items() if choice.takes(name)}
            record = record.model_copy(update={"sensors": chosen})
        yield record


def _texts(format_: Format, line: bytes) -> tuple[str, str]:
    """The time and the device of a line as they are written in it, as far as they are."""
    if isinstance(format_, Csv):
        try:
            cells = cells_of(line)
        except ValueError:
            cells = line.decode(errors="replace").split(",")
        at, device = format_.time_column, format_.device_column
        return (
            cells[at] if at < len(cells) else "",
            cells[device] if device is not None and device < len(cells) else "",
        )
    if isinstance(format_, IntelLab):
        fields = line.decode(errors="replace").split(" ")
        return " ".join(fields[:2]), f"mote-{fields[3]}" if len(fields) > 3 else ""
    try:
        found = orjson.loads(line)
        return str(found.get("timestamp", "")), str(found.get("device_id", ""))
    except (ValueError, AttributeError):
        return "", ""


def _reject(report: Report, number: int, why: str) -> None:
    report.rejected += 1
    if report.first_rejected is None:
        report.first_rejected = f"line {number}: {why}"


def _within_limits(frame: Frame, largest: float, lines: _Lines, report: Report) -> Frame:
    """The frame without the rows that the stream would refuse."""
    beyond = (np.abs(frame.values) > largest).any(axis=1)
    if not beyond.any():
        return frame
    for record in frame.records[beyond]:
        _reject(report, lines.numbers[int(record)], f"a value is beyond {largest:g}")
    kept = ~beyond
    return replace(frame, times=frame.times[kept], values=frame.values[kept], records=frame.records[kept])


def _track(frame: Frame, config: LearnerConfig, on_rows: Callable[[int], None]) -> Track:
    m, n = frame.values.shape
    score, alarm = np.zeros(m), np.zeros(m, dtype=np.bool_)
    sensor, kind, expected = np.full(m, -1), np.full(m, -1), np.full(m, np.nan)
    if not n:  # every sensor of the device was left out
        return Track(frame, score, alarm, sensor, kind, expected)
    learner = DeviceLearner(frame.sensors, config)
    for start in range(0, m, ROWS):
        rows = slice(start, start + ROWS)
        said = learner.process_frame(frame.times[rows], frame.values[rows])
        score[rows], alarm[rows] = said.score, said.is_anomaly
        sensor[rows], kind[rows] = said.sensor, said.kind
        blamed = np.maximum(said.sensor, 0)[:, None]
        expected[rows] = np.where(said.sensor < 0, np.nan, np.take_along_axis(said.expected, blamed, axis=1)[:, 0])
        on_rows(len(said.score))
    return Track(frame, score, alarm, sensor, kind, expected)


def _write(path: Path, lines: _Lines, tracks: list[Track], *, has_device: bool, explain: bool) -> None:
    count = len(lines.timestamps)
    score, alarm = np.zeros(count), np.zeros(count, dtype=np.int64)
    reasons = [("", "", "", "")] * (count if explain else 0)
    for track in tracks:
        rows = track.frame.records
        score[rows], alarm[rows] = track.score, track.is_anomaly
        for i in np.flatnonzero(track.sensor >= 0) if explain else ():
            s, expected = int(track.sensor[i]), float(track.expected[i])
            observed = float(track.frame.values[i, s])
            reasons[rows[i]] = (track.frame.sensors[s], KINDS[track.kind[i]], _text(expected), _text(observed))
    columns: list[list[Any]] = [lines.timestamps, *([lines.devices] if has_device else [])]
    columns += [list(map(repr, score.tolist())), alarm.tolist()]
    header = ["timestamp", *(["device_id"] if has_device else []), "anomaly_score", "is_anomaly"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if explain:
            writer.writerow([*header, "sensor", "kind", "expected", "observed"])
            writer.writerows((*row, *why) for *row, why in zip(*columns, reasons, strict=True))
        else:
            writer.writerow(header)
            writer.writerows(zip(*columns, strict=True))


def _text(value: float) -> str:
    return repr(value) if value == value else ""  # not NaN
