"""The engine of `flead analyze batch`: source, plan, work on Spark, report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from config.settings import PROJECT, Settings
from data.sources import open_dataset
from flead.analysis.moments import arrays
from flead.analysis.report import LAYOUT, DeviceDay, Judged, Model, fold, summary
from flead.errors import BadConfiguration
from kafka.offsets import Offsets
from kafka.topics import READINGS
from orchestration.display import some_of
from orchestration.java import find_java_home
from orchestration.services import JARS
from spark.batch import Judge, Plan, Task, execute, judges, now_s, plan
from spark.history import FileHistory, History, KafkaHistory, MongoHistory
from spark.mongo import Target
from spark.progress import stages_watched
from spark.session import SparkHome, spark_session
from storage.connection import Document, connect, open_database
from storage.history import HistoryRepository, Unit
from storage.running import database_of
from storage.schema import apply_schema

KAFKA = "kafka"
Say = Callable[[str, float | None], None]
"""Called with what is being done and which share of it is, None where that is not known."""


@dataclass(frozen=True)
class Request:
    """What a report is asked for.

    Attributes
    ----------
    data:
        a file of readings, `KAFKA`, or None for all that MongoDB holds
    versions:
        the versions of global models to judge; None for all
    """

    data: str | None
    versions: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Made:
    """A report, and how much work it was: of `units` days, `done` were looked at now; `durations_s` by step."""

    report: dict[str, Any]
    units: int
    done: int
    durations_s: dict[str, float]


Session = Callable[[Settings], AbstractContextManager[SparkSession]]


def own_session(settings: Settings) -> AbstractContextManager[SparkSession]:
    """A session that ends with the report."""
    # A partition for each unit: units are large, and few of them make progress visible.
    options = {"spark__sql__adaptive__coalescePartitions__enabled": "false"}
    return spark_session(settings.spark, spark_home(settings), "flead analyze batch", **options)


def analyze(request: Request, settings: Settings, say: Say, session: Session = own_session) -> Made:
    """Make a report, and keep it in MongoDB.

    Parameters
    ----------
    session:
        opens the Spark session to work on

    Raises
    ------
    BadDataset
        where there is nothing to report on
    BadConfiguration
        for versions that no global model has
    Unavailable
        where the source, MongoDB or Spark does not answer
    """
    began = now_s()
    durations: dict[str, float] = {}

    def mark(step: str) -> None:
        durations[step] = round(now_s() - began - sum(durations.values()), 3)

    check(request, settings)
    with ExitStack() as stack:
        say("opening the database", None)
        mongodb = stack.enter_context(database_of(settings.mongodb, settings.run_dir, create=request.data is not None))
        settings = settings.model_copy(update={"mongodb": mongodb})
        database = open_database(stack.enter_context(connect(mongodb)), mongodb)
        apply_schema(database, mongodb)
        repository = HistoryRepository(database)
        models = _models(repository, request.versions)
        mark("database")
        say("starting Spark", None)
        spark = stack.enter_context(session(settings))
        mark("spark")
        history = _history(request, settings, spark, repository)
        stack.callback(history.close)
        say("reading", None)
        most = settings.spark.evaluation_rows
        known = judges(repository, models, settings.learner, most)
        with stages_watched(spark, lambda share: say("reading", share)):
            todo = plan(history, repository, known)
        mark("read")
        task = Task(
            history.source, Target.of(mongodb), settings.learner, dict(history.ranges), most,
            now_s() + settings.reading.max_future_s,
            {(work.unit.day, work.unit.shard): work for work in todo.work}, {judge.key: judge for judge in known},
        )  # fmt: skip
        execute(spark, history, todo, task, lambda done, of: say(f"looking at days: {done} of {of}", done / of))
        mark("look")
        say("writing the report", None)
        report = _report(history, repository, todo, models, known, settings)
        mark("fold")
        return Made(report, len(todo.units), len(todo.work), durations)


def check(request: Request, settings: Settings) -> None:
    """Refuse a source that cannot be read before anything is started."""
    if request.data == KAFKA:
        Offsets(settings.kafka.servers).partitions(READINGS)
    elif request.data is not None:
        open_dataset(Path(request.data).expanduser())


def spark_home(settings: Settings) -> SparkHome:
    """What Spark needs of this machine."""
    return SparkHome(find_java_home(), JARS / "spark", PROJECT, settings.run_dir / "spark")


def _history(request: Request, settings: Settings, spark: SparkSession, repository: HistoryRepository) -> History:
    ranges = settings.spark.ranges
    if request.data is None:
        return MongoHistory(spark, settings, repository, ranges)
    if request.data == KAFKA:
        return KafkaHistory(spark, ranges, settings.kafka.servers, settings.reading)
    return FileHistory.open(spark, Path(request.data).expanduser(), ranges)


def _models(repository: HistoryRepository, versions: tuple[int, ...] | None) -> list[Model]:
    """The global models to judge; raises `BadConfiguration` for a version that there is not."""
    stored = [
        Model(row["_id"], row["cohort"], row["round"], row["timestamp"].isoformat(), row["num_devices"])
        for row in repository.models()
    ]
    if versions is None:
        return stored
    unknown = sorted(set(versions) - {model.version for model in stored})
    if unknown:
        there = sorted({model.version for model in stored})
        have = f"there are {there[0]} to {there[-1]}" if there else "no global model is stored"
        raise BadConfiguration(f"no global model has version {', '.join(map(str, unknown))}: {have}")
    return [model for model in stored if model.version in versions]


def _report(
    history: History,
    repository: HistoryRepository,
    todo: Plan,
    models: Sequence[Model],
    known: Sequence[Judge],
    settings: Settings,
) -> dict[str, Any]:
    days = [_device_day(row) for row in repository.facts(history.source, todo.units)]
    marks = {judge.key: judge.mark for judge in known}
    judged = [
        _judged(row)
        for row in repository.judgements(history.source, todo.units, marks)
        if row["weights_mark"] == marks[row["key"]]
    ]
    created = datetime.now(UTC).replace(microsecond=0)
    before = repository.newest_report(history.source)
    previous = before["report"] if before is not None and before["version"] == LAYOUT else None
    report = fold(
        days,
        judged,
        models,
        ("next", f"{settings.learner.horizon_s / 60:g}min"),
        source={"kind": history.kind, "name": history.name},
        created=created,
        rejected=history.rejected(),
        previous=previous,
        remarks=_remarks(history, models, judged, todo.units),
    )
    repository.store_report(history.source, created, LAYOUT, summary(report))
    return report


def _remarks(history: History, models: Sequence[Model], judged: Sequence[Judged], units: Sequence[Unit]) -> list[str]:
    """What a reader should know of how the report was made."""
    remarks = []
    fitting = {part.key for part in judged if part.sensors}
    foreign = [model.key for model in models if model.key not in fitting]
    if foreign:
        remarks.append(f"no device of this history has the sensors of these global models: {some_of(foreign, 5)}")
    if not history.ranges:
        remarks.append("which values are possible was not said (spark.ranges), so none counts as out of range")
    if len({unit.day for unit in units}) == 1:
        remarks.append("one day only: drift needs at least two")
    return remarks


def _device_day(row: Document) -> DeviceDay:
    return DeviceDay(row["device_id"], f"{row['day']:%Y-%m-%d}", row["cohort"], row["facts"])


def _judged(row: Document) -> Judged:
    facts = row["facts"]
    by_device, by_hour = arrays(facts["by_device"]), arrays(facts["by_hour"])
    return Judged(row["key"], tuple(facts["sensors"]), tuple(facts["devices"]), by_device, by_hour)
