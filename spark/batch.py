"""Looks at a whole history, day by day, and judges every global model on it; a day already done is not done again.

The unit of work is one day of one part of the fleet. Workers store what they find under the mark of the very readings
it was found in: killed at any moment, what is stored is whole or will be made again.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

from flead import network
from flead.analysis.day import DAY_S, day_facts, without_impossible
from flead.analysis.judging import asked_on, judge
from flead.analysis.report import LAYOUT, Model
from flead.errors import BadDataset, FleadError, Unavailable
from flead.evaluation import Series
from flead.learner_config import LearnerConfig
from flead.messages import WeightsMessage, cohort_of
from flead.network import Architecture, Vector
from spark.history import DAY_US, ROWS, SEPARATOR, Counted, History, mark_of
from spark.mongo import Target, database_of
from spark.progress import watched
from spark.session import last_cause
from spark.worker import settle
from storage.connection import Document
from storage.history import HistoryRepository, Unit

READINGS_OF_A_UNIT = 500_000
"""About so many readings each worker holds in memory at once, and as many of the day before."""


@dataclass(frozen=True)
class Judge:
    """A global model as workers need it."""

    key: str
    cohort: str
    version: int
    theta: Vector
    architecture: Architecture
    mark: str


@dataclass(frozen=True)
class Work:
    """What is to be done on one unit: its facts, and the models to judge, by key."""

    unit: Unit
    facts: bool
    models: tuple[str, ...]


@dataclass(frozen=True)
class Task:
    """What every worker is told."""

    source: str
    target: Target
    learner: LearnerConfig
    ranges: Mapping[str, tuple[float, float]]
    most: int
    latest: float
    work: Mapping[tuple[int, int], Work]
    models: Mapping[str, Judge]


@dataclass(frozen=True)
class Plan:
    """Every unit of a history, and what is left to do."""

    units: tuple[Unit, ...]
    work: tuple[Work, ...]
    shards: int


def plan(history: History, repository: HistoryRepository, models: Sequence[Judge]) -> Plan:
    """Find out which days are not done, or not with these readings.

    Raises
    ------
    BadDataset
        where the source cannot be read, or there are no readings at all
    Unavailable
        where MongoDB does not answer
    """
    try:
        days = sorted(history.days(), key=lambda d: (d.day, d.device))
    except (PySparkException, Py4JError) as error:
        raise BadDataset(f"{history.kind} {history.name} cannot be read: {last_cause(error)}") from None
    if not days:
        raise BadDataset(f"{history.kind} {history.name} holds no readings: there is nothing to report on")
    by_day: dict[int, list[Counted]] = defaultdict(list)
    for device_day in days:
        by_day[device_day.day].append(device_day)
    largest = max(sum(d.count for d in of_day) for of_day in by_day.values())
    shards = ceil(largest / READINGS_OF_A_UNIT)
    ranges = sorted(history.ranges.items())
    units: dict[Unit, int] = {}
    for day, of_day in by_day.items():
        before = {d.device: d for d in by_day.get(day - 1, ())}
        for shard in range(shards):
            own = [d for d in of_day if shard_of(d.device, shards) == shard]
            if own:
                warm = [before.get(d.device) for d in own]
                units[Unit(day, shard, mark_of(LAYOUT, shards, ranges, own, warm))] = len(own)
    done, judged = repository.done(history.source), repository.judged(history.source)
    work = []
    for unit, devices in units.items():
        missing = tuple(m.key for m in models if (unit, m.key, m.mark) not in judged)
        facts = done.get(unit) != devices
        if facts or missing:
            work.append(Work(unit, facts, missing))
    return Plan(tuple(units), tuple(work), shards)


def shard_of(device: str, shards: int) -> int:
    """Which part of the fleet a device belongs to.

    >>> shard_of("mote-7", 1)
    0
    """
    return zlib.crc32(device.encode()) % shards


def judges(repository: HistoryRepository, models: Sequence[Model], learner: LearnerConfig, most: int) -> list[Judge]:
    """Read the weights of the models that are to be judged; raises `BadModel` for a model that is damaged."""
    weights = repository.weights(model.key for model in models)
    found = []
    for model in models:
        theta, architecture = network.from_message(WeightsMessage.model_validate(weights[model.key]))
        mark = mark_of(LAYOUT, theta.tobytes(), learner.model_dump_json(), most)
        found.append(Judge(model.key, model.cohort, model.version, theta, architecture, mark))
    return found


def execute(
    spark: SparkSession, history: History, plan: Plan, task: Task, on_progress: Callable[[int, int], None]
) -> None:
    """Do what is left to do; again goes on where it was killed.

    Parameters
    ----------
    on_progress:
        called with how many units of how many are done, also from another thread

    Raises
    ------
    Unavailable
        where a worker cannot go on
    """
    if not plan.work:
        return
    of = len(plan.work)
    on_progress(0, of)
    days = [work.unit.day for work in plan.work]
    rows = _units(history.rows({*days, *(day - 1 for day in days)}), days, plan.shards)
    shared, finished = spark.sparkContext.broadcast(task), spark.sparkContext.accumulator(0)

    def look(key: tuple[pa.Scalar, ...], table: pa.Table) -> pa.Table:
        work = shared.value.work.get((key[0].as_py(), key[1].as_py()))
        if work is None:  # another part of the fleet on a day that is not done everywhere
            return pa.table({"day": pa.array([], pa.int32())})
        _look(shared.value, work, table)
        finished.add(1)
        return pa.table({"day": pa.array([work.unit.day], pa.int32())})

    looked = rows.groupBy("day", "shard").applyInArrow(look, "day int")
    try:
        with watched(lambda: on_progress(min(finished.value, of), of)):  # a unit that is tried again counts twice
            looked.collect()
        on_progress(of, of)
    except (PySparkException, Py4JError) as error:
        raise translated(error) from None
    finally:
        shared.destroy()


def translated(error: Exception) -> FleadError:
    """What stopped a worker, in one line: what Python said there, where it was Python."""
    said = re.findall(r"^((?:\w+\.)*)(\w+): (.+)$", str(error), re.MULTILINE)
    ours = [text for module, _, text in said if module.startswith("flead.")]
    python = [f"{name}: {text}" for module, name, text in said if not module.startswith(("org.", "java.", "py4j."))]
    if ours:
        return Unavailable(ours[-1])
    return Unavailable(f"Spark gave up: {python[-1][:300] if python else last_cause(error)}")


def _units(rows: DataFrame, days: Sequence[int], shards: int) -> DataFrame:
    """Readings with the day that needs them: their own, and the next one, which they warm up."""
    own = f.floor(f.col("time") / DAY_US).cast("int")
    placed = [f.struct((own + ahead).alias("day"), f.lit(ahead == 0).alias("own")) for ahead in (0, 1)]
    needed = f.explode(f.array(*placed))
    shard = (f.crc32(f.col("device").cast("binary")) % shards).cast("int")
    wanted = [name.split()[0] for name in ROWS.split(", ") if not name.startswith("reason")]
    found = rows.select(*wanted, needed.alias("needed")).select(*wanted, "needed.day", "needed.own")
    found = found.where(f.col("day").isin(sorted(set(days)))).withColumn("shard", shard)
    return found.repartition(len(days), "day", "shard")


def _look(task: Task, work: Work, table: pa.Table) -> None:
    """Do one unit, on a worker."""
    settle()
    repository = HistoryRepository(database_of(task.target))
    models: dict[str, list[Judge]] = defaultdict(list)
    for key in work.models:
        models[task.models[key].cohort].append(task.models[key])
    start = work.unit.day * DAY_S
    facts: list[Document] = []
    sums: dict[tuple[str, tuple[str, ...]], list[tuple[str, Vector]]] = defaultdict(list)
    for device, sensors, times, values, own, arrival in _devices(table):
        if not own.any():  # the day before alone is nobody's day
            continue
        cohort = cohort_of(sensors)
        if work.facts:
            found = day_facts(
                start, times[own], values[own], sensors,
                arrival=None if arrival is None else arrival[own], ranges=task.ranges, latest=task.latest,
            )  # fmt: skip
            facts.append({"device_id": device, "cohort": cohort, "version": LAYOUT, "facts": found})
        if cohort in models:
            possible = without_impossible(values, sensors, task.ranges)
            sums[cohort, sensors].append((device, _judged(task, models[cohort], device, start, times, possible, own)))
    if work.facts:
        repository.store_days(task.source, work.unit, facts)
    judgements = [
        _judgement(model, i, parts, sensors)
        for (cohort, sensors), parts in sums.items()
        for i, model in enumerate(models[cohort])
    ]
    seen = {document["key"] for document in judgements}
    judgements += [_judgement(task.models[key], 0, [], ()) for key in work.models if key not in seen]
    repository.store_judgements(task.source, work.unit, judgements)


def _judged(
    task: Task, models: Sequence[Judge], device: str, start: float, times: Vector, values: Vector, own: Any
) -> Vector:
    """Sums of each model on one device, (v, HOURS, 2 n, SUMS); zeros where a model was made for other features."""
    day = Series(device, times[own], values[own])
    before = Series(device, times[~own], values[~own]) if not own.all() else None
    asked = asked_on(day, before, start, task.learner, task.most)
    shape = asked.features.shape[1], asked.changes.shape[1]
    fitting = [(m.architecture.input_size, m.architecture.output_size) == shape for m in models]
    first = next((m.architecture for m, fits in zip(models, fitting, strict=True) if fits), None)
    thetas = [m.theta for m, fits in zip(models, fitting, strict=True) if fits and m.architecture == first]
    sums = np.zeros((len(models), *judge(np.zeros((0, 0)), Architecture(1, (), 1), asked).shape[1:]))
    if first is not None:
        places = [i for i, fits in enumerate(fitting) if fits and models[i].architecture == first]
        sums[places] = judge(np.stack(thetas), first, asked)
    return sums


def _judgement(model: Judge, place: int, parts: Sequence[tuple[str, Vector]], sensors: tuple[str, ...]) -> Document:
    """What is stored of one model on one unit."""
    by_device = [sums[place].sum(axis=0).tolist() for _, sums in parts]
    by_hour = np.sum([sums[place] for _, sums in parts], axis=0).tolist() if parts else []
    return {
        "key": model.key,
        "cohort": model.cohort,
        "model": model.version,
        "weights_mark": model.mark,
        "version": LAYOUT,
        "facts": {
            "sensors": list(sensors),
            "devices": [device for device, _ in parts],
            "by_device": by_device,
            "by_hour": by_hour,
        },
    }


def _devices(table: pa.Table) -> Iterator[tuple[str, tuple[str, ...], Vector, Vector, Any, Any]]:
    """Each device of a unit: sensors, (m,) times (s), (m, n) values, (m,) whether it is the day's own, arrival."""
    table = table.sort_by([("device", "ascending"), ("time", "ascending"), ("arrival", "ascending")]).combine_chunks()
    devices = table["device"].to_pandas().to_numpy()
    begins = np.concatenate(([0], np.flatnonzero(devices[1:] != devices[:-1]) + 1, [len(devices)]))
    for first, last in pairwise(begins):
        part = table.slice(first, last - first)
        sensors, values = _values(part)
        arrival = None if part["arrival"].null_count else part["arrival"].to_numpy()
        own = part["own"].to_numpy()
        yield str(devices[first]), sensors, part["time"].to_numpy() / 1e6, values, own, arrival


def _values(part: pa.Table) -> tuple[tuple[str, ...], Vector]:
    """The sorted sensors of a device on its own day, and all its values of them, (m, n), NaN where there is none."""
    names = part["names"].to_pandas().to_numpy()
    kinds = {text: text.split(SEPARATOR) for text in set(names.tolist())}
    today = set(names[part["own"].to_numpy()].tolist())
    sensors = tuple(sorted({name for text in today for name in kinds[text]}))
    values = np.full((len(names), len(sensors)), np.nan)
    lists = part["values"].combine_chunks()
    for text, own in kinds.items():
        rows = np.flatnonzero(names == text)
        given = lists.take(pa.array(rows)).flatten().to_numpy(zero_copy_only=False).reshape(len(rows), len(own))
        for i, name in enumerate(own):
            if name in sensors:
                values[rows, sensors.index(name)] = given[:, i]
    return sensors, values


def now_s() -> float:
    """The present, s since 1970-01-01 UTC."""
    return datetime.now(UTC).timestamp()
