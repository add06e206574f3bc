"""The stateful part of the stream: windows and scores of every device, from its predictions.

One operator keeps a device's open windows and its features together: both need its readings in order, each once, and
one shuffle and one state serve them.
"""

from __future__ import annotations

import logging
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import bson
import numpy as np
import orjson
import pandas as pd
import pyarrow as pa
from bson.raw_bson import RawBSONDocument
from pymongo.database import Database
from pyspark.sql import DataFrame
from pyspark.sql.functions import col
from pyspark.sql.streaming.state import GroupState, GroupStateTimeout

from flead.errors import BadModel, Unavailable
from flead.learner_config import LearnerConfig
from flead.messages import cohort_of
from spark.mongo import Target, database_of, replace_all
from spark.stream_scores import Find, Follower, Model, Models, score
from spark.stream_windows import MINUTE, DeviceWindows, Row, cohort_key, fold, fold_scores, read_row, values_of
from spark.worker import settle
from storage.connection import Document, translated

log = logging.getLogger(__name__)

LAYOUT = 1
"""Of the state: a checkpoint of another one cannot be gone on from."""
ROWS = "window string, cohort string, start double, document binary, note string"
"""What the operator says: a window that changed, or (`note`) what could not be done."""
STATE = "state binary"
SILENT_MS, FORGOTTEN_MS = 6 * 3_600_000, 7 * 86_400_000
"""Wall time without a reading after which a device's features are forgotten, and then its windows too, ms."""
MODEL_WAIT_S = 20.0
_HEAD = struct.Struct("<II")
_WRITES = "window string, cohort string, start double, note string, away string"
_WRITES_SCHEMA = pa.schema(
    [("window", pa.string()), ("cohort", pa.string()), ("start", pa.float64()), ("note", pa.string()),
     ("away", pa.string())]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """What workers need to know."""

    target: Target
    learner: LearnerConfig
    watermark: float


@dataclass(slots=True)
class Device:
    """One device's state."""

    windows: DeviceWindows
    follower: Follower | None = None

    def to_bytes(self) -> bytes:
        """Sensors and windows as JSON, the features' past as numbers."""
        sensors = self.follower.sensors if self.follower else None
        head, windows = orjson.dumps(sensors), self.windows.to_bytes()
        past = self.follower.to_bytes() if self.follower else b""
        return b"".join((_HEAD.pack(len(head), len(windows)), head, windows, past))

    @classmethod
    def from_bytes(cls, raw: bytes, job: Job) -> Device:
        """Go on from `to_bytes`."""
        n_head, n_windows = _HEAD.unpack_from(raw)
        at = _HEAD.size + n_head
        sensors = orjson.loads(raw[_HEAD.size : at])
        windows = DeviceWindows.from_bytes(raw[at : at + n_windows], job.watermark)
        follower = Follower(tuple(sensors), job.learner, raw[at + n_windows :]) if sensors else None
        return cls(windows, follower)

    def take(self, rows: Sequence[Row], job: Job, find: Find) -> tuple[set[tuple[str, float]], list[str]]:
        """Take predictions in the order they came; gives the windows that changed, and what could not be done."""
        told = self.follower is None  # its windows, as over, when it fell silent
        before = self.windows.latest
        taken, changed = self.windows.add(rows)
        notes: list[str] = []
        at = 0
        while at < len(taken):  # stretches with the same sensors: there is one, but where a device is rebuilt
            end = at + 1
            while end < len(taken) and taken[end].sensors == taken[at].sensors:
                end += 1
            notes += self._score(taken[at:end], job, find)
            at = end
        return changed if told else changed | self.windows.complete(before), notes

    def _score(self, rows: Sequence[Row], job: Job, find: Find) -> Iterator[str]:
        """Follow the device, and score the global models that its predictions name."""
        sensors = rows[0].sensors
        if self.follower is None or self.follower.sensors != sensors:
            self.follower = Follower(sensors, job.learner)
        times = np.array([row.time for row in rows])
        asked = self.follower.follow(times, values_of(rows, sensors))
        if cohort_of(sensors) != rows[0].cohort:
            return
        for version in sorted({row.version for row in rows if row.version > 0}):
            model = find(rows[0].cohort, version)
            if model is None:
                yield (
                    f"the global model {rows[0].cohort}#{version}, which predictions name, is not in MongoDB: "
                    "they are not scored"
                )
                continue
            chosen = [i for i, row in enumerate(rows) if row.version == version]
            try:
                for part in score(asked, model, version, np.floor(times / MINUTE) * MINUTE, chosen):
                    self.windows.score(part.minute, part.version, part.count, part.error, part.persistence)
            except BadModel as error:
                yield f"the global model {rows[0].cohort}#{version} cannot be scored: {error.detail}"


@lru_cache(maxsize=4)
def models_of(target: Target) -> Models:
    """The global models, read once by this process."""
    collection = database_of(target)["global_model"]
    return Models(lambda key: collection.find_one({"_id": key}, {"weights": 1}))


def _patient(find: Find, cohort: str, version: int) -> Model | None:
    """Look a model up; where MongoDB is away, for a while: then the micro-batch is done again from its beginning."""
    deadline = time.monotonic() + MODEL_WAIT_S
    while True:
        try:
            return find(cohort, version)
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


class Operator:
    """What Spark calls for each device that has new predictions, or was silent for long."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(
        self, key: tuple[Any, ...], frames: Iterable[pd.DataFrame], held: GroupState
    ) -> Iterator[pd.DataFrame]:
        """Take one micro-batch of one device."""
        settle()
        name = str(key[0])
        device = (
            Device.from_bytes(held.get[0], self._job) if held.exists else Device(DeviceWindows(self._job.watermark))
        )
        if held.hasTimedOut:
            yield from self._silent(name, device, held)
            return
        rows = self._rows(name, frames)
        find = models_of(self._job.target)
        changed, notes = device.take(rows, self._job, lambda cohort, version: _patient(find, cohort, version))
        if device.windows.latest is None:  # none of them was a prediction
            return
        said = _said(name, device, changed, notes)
        device.windows.close()
        held.update((device.to_bytes(),))
        held.setTimeoutDuration(SILENT_MS if device.follower else FORGOTTEN_MS)
        yield said

    @staticmethod
    def _rows(name: str, frames: Iterable[pd.DataFrame]) -> list[Row]:
        """The predictions in the order in which Kafka holds them; what is none is left out."""
        records: list[tuple[int, int, bytes]] = []
        for frame in frames:
            records += zip(frame["partition"].tolist(), frame["offset"].tolist(), frame["value"].tolist(), strict=True)
        records.sort(key=lambda record: record[:2])
        found = (read_row(bytes(value), name) for _, _, value in records)
        return [row for row in found if row is not None]

    def _silent(self, name: str, device: Device, held: GroupState) -> Iterator[pd.DataFrame]:
        """Tell a silent device's windows as over, and forget its features, which are most of its state; later all.

        The windows stay open: a device that comes back on the same day goes on with that day's sums.
        """
        if device.follower is None:
            held.remove()
            return
        windows = device.windows
        held.update((Device(windows).to_bytes(),))
        held.setTimeoutDuration(FORGOTTEN_MS)
        changed = {key for key, window in windows.windows.items() if window.end > (windows.latest or 0.0)}
        windows.latest = max(window.end for window in windows.windows.values())
        yield _said(name, device, changed, [])


def _said(name: str, device: Device, changed: Iterable[tuple[str, float]], notes: Iterable[str]) -> pd.DataFrame:
    """Rows of `ROWS`: the windows that changed, those that moved to another cohort, and notes."""
    interval = device.follower.interval if device.follower else 0.0
    rows: list[tuple[Any, ...]] = []
    for key in sorted(changed):
        window = device.windows.windows[key]
        rows.append((*_place(window.length, window.cohort, window.start),
                     bson.encode(device.windows.document(window, name, interval)), None))  # fmt: skip
    rows += [(*_place(length, cohort, start), None, None) for length, start, cohort in device.windows.left]
    rows += [(None, None, None, None, note) for note in sorted(set(notes))]
    return pd.DataFrame(rows, columns=["window", "cohort", "start", "document", "note"])


def _place(length: str, cohort: str, start: float) -> tuple[str, str, float]:
    return length, cohort, start


def changes(records: DataFrame, job: Job) -> DataFrame:
    """The windows that change as predictions come: rows of `ROWS`.

    Parameters
    ----------
    records:
        a stream of `flead.predictions`, as Kafka's source gives it
    """
    named = records.select(col("key").cast("string").alias("device"), "partition", "offset", "value")
    usable = named.where(col("device").isNotNull() & col("value").isNotNull())
    return usable.groupBy("device").applyInPandasWithState(
        Operator(job), ROWS, STATE, "update", GroupStateTimeout.ProcessingTimeTimeout
    )


@dataclass(frozen=True, slots=True)
class Place:
    """A window of a cohort that has to be summed anew; `start` in s since 1970."""

    window: str
    cohort: str
    start: float


def write(changed: DataFrame, target: Target) -> tuple[set[Place], set[str]]:
    """Replace the windows that changed, on the workers.

    Returns
    -------
    what has to be summed anew, and what could not be done

    Raises
    ------
    Unavailable
        where MongoDB does not answer: writing them again is harmless
    """
    rows = changed.mapInArrow(writing(target), _WRITES).collect()
    for row in rows:
        if row.away:
            raise Unavailable(row.away)
    places = {Place(row.window, row.cohort, row.start) for row in rows if row.window}
    return places, {row.note for row in rows if row.note}


def writing(target: Target) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """What workers do with rows of `ROWS`, for `mapInArrow`."""

    def work(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        settle()
        collection = database_of(target)["window_aggregates"]
        for batch in batches:
            rows = batch.to_pylist()
            documents = [row["document"] for row in rows if row["document"] is not None]
            places = {(row["window"], row["cohort"], row["start"]) for row in rows if row["window"]}
            said = [{"window": window, "cohort": cohort, "start": start} for window, cohort, start in places]
            said += [{"note": note} for note in {row["note"] for row in rows if row["note"]}]
            try:
                said += [{"note": note} for note in replace_all(collection, map(RawBSONDocument, documents))]
            except Unavailable as error:
                said = [{"away": str(error)}]
            yield pa.RecordBatch.from_pylist(said, schema=_WRITES_SCHEMA)

    return work


def sum_cohorts(database: Database[Document], places: Iterable[Place]) -> list[str]:
    """Sum windows of cohorts anew from those of their devices, and the scores of their models from the minutes.

    Always the fold of what is stored: done again, it leaves the same.
    """
    notes: list[str] = []
    groups: dict[tuple[str, str], list[float]] = {}
    for place in places:
        groups.setdefault((place.window, place.cohort), []).append(place.start)
    for (window, cohort), starts in groups.items():
        for first in range(0, len(starts), _STARTS):
            some = starts[first : first + _STARTS]
            sums, scores = [], []
            for rows in _devices(database, window, cohort, some):
                sums.append(fold(rows))
                if window == "1m":
                    scores += fold_scores(rows)
            notes += replace_all(database["window_aggregates"], sums)
            notes += replace_all(database["model_scores"], scores)
            left = {cohort_key(window, cohort, start) for start in some} - {one["_id"] for one in sums}
            with translated():  # its devices have all gone to another cohort
                database["window_aggregates"].delete_many({"_id": {"$in": sorted(left)}})
    return notes


_STARTS = 200
"""Windows that are asked for at a time."""


def _devices(
    database: Database[Document], window: str, cohort: str, starts: Sequence[float]
) -> Iterator[list[Document]]:
    """The rows of a cohort's devices, one window after the other: of a large cohort, one must fit in memory."""
    moments = [pd.Timestamp(start, unit="s", tz="UTC").to_pydatetime() for start in starts]
    query = {"window": window, "scope": "device", "cohort": cohort, "start": {"$in": moments}}
    with translated():
        found = database["window_aggregates"].find(query).sort("start", 1)
        for _, rows in groupby(found, key=lambda row: row["start"]):
            yield list(rows)
