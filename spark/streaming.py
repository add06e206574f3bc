"""Streaming analytics: two queries of Structured Streaming over Kafka, kept running, into MongoDB.

`archive` stores the raw records of four topics and puts alerts of several devices together; `devices` keeps windows
and the scores of the global model from the predictions. Each has a checkpoint; what a micro-batch writes has `_id`s
made of its content, so that one which is done again leaves what it left before.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException, StreamingQueryException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from config.settings import Settings
from flead.errors import CorruptRunFolder, Unavailable
from kafka.topics import ARCHIVE_GROUP, ARCHIVED, PREDICTIONS, ensure_topics
from spark import stream_archive, stream_devices, stream_shared
from spark.mongo import Target, until_done
from spark.session import SparkHome, one_line, spark_session
from spark.stream_source import Committer, kafka_stream
from storage.connection import connect as connect_mongo
from storage.connection import open_database
from storage.schema import apply_schema

log = logging.getLogger(__name__)

LOOK_S = 0.5
"""Between two looks at the queries, s."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
MOST_FAILURES = 10
"""In a row, without a micro-batch between them, after which a query is given up."""
STOP_S = 12.0
"""How long a query may take to stop, s."""
LAYOUT = stream_devices.LAYOUT
"""Of the checkpoints."""


def run(settings: Settings, home: SparkHome, stopping: Callable[[], bool]) -> None:
    """Run streaming analytics until `stopping`.

    Raises
    ------
    BadConfiguration
        where positions cannot be read
    CorruptRunFolder
        where the checkpoints are of another version
    Unavailable
        where Kafka, MongoDB or Spark does not answer at the start, Spark's JVM ends, or a query fails again and again
    """
    rule = stream_shared.Neighbourhood.of(settings.spark)
    with connect_mongo(settings.mongodb) as client:
        apply_schema(open_database(client, settings.mongodb), settings.mongodb)
    ensure_topics(settings.kafka.servers, settings.kafka)
    with spark_session(settings.spark, home, "flead analyze stream", **_OPTIONS) as spark:
        folder = Checkpoints(spark, settings.spark.checkpoints or (home.folder / "checkpoints").absolute().as_uri())
        folder.check()
        analytics = Analytics(spark, settings, rule, folder, stopping)
        try:
            analytics.keep()
        except (Py4JError, OSError) as error:
            log.debug("%s", one_line(error))
            raise Unavailable(f"Spark's JVM has ended: see {home.folder / 'spark.log'}") from None
        finally:
            analytics.stop()


_OPTIONS = {"spark__scheduler__mode": "FAIR"}  # windows do not wait for a large batch of the archive
_CONFIGURATION = {
    "spark.sql.streaming.stopTimeout": f"{STOP_S:g}s",
    "spark.sql.streaming.noDataMicroBatches.enabled": "false",  # silent devices can wait for the next reading
    "spark.sql.streaming.minBatchesToRetain": "10",
}


class Checkpoints:
    """The folder of the queries' checkpoints, on whatever file system Spark reaches.

    Parameters
    ----------
    uri:
        of a folder that every worker can write
    """

    def __init__(self, spark: SparkSession, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._jvm: Any = spark._jvm
        self._hadoop: Any = spark.sparkContext._jsc.hadoopConfiguration()

    def of(self, query: str) -> str:
        """A query's checkpoint."""
        return f"{self.uri}/{query}"

    def check(self) -> None:
        """Return if the queries can go on from here; a new folder is marked as of this layout.

        Raises
        ------
        CorruptRunFolder
            where it is of another layout, or cannot be written
        """
        path = self._jvm.org.apache.hadoop.fs.Path(f"{self.uri}/layout-{LAYOUT}")
        try:
            system = path.getFileSystem(self._hadoop)
            if system.exists(path):
                return
            parent = path.getParent()
            others = list(system.listStatus(parent)) if system.exists(parent) else []
            if not others:
                system.mkdirs(parent)
                system.create(path).close()
                return
        except Py4JError as error:
            raise CorruptRunFolder(f"the checkpoints {self.uri} cannot be used: {one_line(error)}") from None
        raise CorruptRunFolder(
            f"the checkpoints in {self.uri} are of another version of FLEAD (this one writes layout {LAYOUT}): "
            "move the folder away; everything that Kafka still holds is then read again, and nothing is stored twice"
        )


@dataclass(slots=True)
class Kept:
    """A query that is started again when it fails for a reason that passes."""

    name: str
    start: Callable[[], StreamingQuery]
    query: StreamingQuery | None = None
    failures: int = 0
    batch: int = -1
    again_at: float = field(default=0.0)

    def look(self, now: float) -> None:
        """Start it where it does not run; raises `Unavailable` where it has failed too often.

        Parameters
        ----------
        now:
            monotonic, s
        """
        if self.query is None:
            if now >= self.again_at:
                try:
                    self.query = self.start()
                except PySparkException as error:
                    self._fail(one_line(error), now)
            return
        progress = self.query.lastProgress
        if progress is not None and progress["batchId"] > self.batch:
            self.batch, self.failures = progress["batchId"], 0
        if self.query.isActive:
            return
        failure = self.query.exception()
        why = _why(failure) if failure else "it ended"
        self.query = None
        if is_after_replay(why):
            log.info("%s has done its interrupted micro-batch again, and goes on", self.name)
            return
        self._fail(why, now)

    def _fail(self, why: str, now: float) -> None:
        """Plan another start, or give up."""
        self.failures += 1
        if self.failures >= MOST_FAILURES:
            raise Unavailable(f"{self.name} failed {self.failures} times in a row and is given up: {why}")
        pause = min(FIRST_PAUSE_S * 2.0 ** (self.failures - 1), LONGEST_PAUSE_S)
        log.warning("%s failed and goes on from its checkpoint in %g s: %s", self.name, pause, why)
        self.again_at = now + pause


class Analytics:
    """The queries of a session."""

    def __init__(
        self, spark: SparkSession, settings: Settings, rule: stream_shared.Neighbourhood, folder: Checkpoints,
        stopping: Callable[[], bool],
    ) -> None:  # fmt: skip
        for name, value in _CONFIGURATION.items():
            spark.conf.set(name, value)
        self._spark = spark
        self._settings = settings
        self._rule = rule
        self._folder = folder
        self._target = Target.of(settings.mongodb)
        self._client = connect_mongo(settings.mongodb)
        self._database = open_database(self._client, settings.mongodb)
        self._asked_to_stop = stopping
        self._ending = False
        self._noted: set[str] = set()
        self._committer = Committer(settings.kafka.servers, ARCHIVE_GROUP)
        self._kept = [
            Kept("archive", lambda: self.start_archive()),
            Kept("devices", lambda: self.start_devices()),
        ]

    def keep(self) -> None:
        """Keep the queries running until it is time to stop."""
        while not self._asked_to_stop():
            self.look(time.monotonic())
            time.sleep(LOOK_S)

    def look(self, now: float) -> None:
        """Start what does not run, and commit how far the archive has come."""
        for kept in self._kept:
            kept.look(now)
        archive = self._kept[0].query
        if archive is not None:
            self._committer.commit(archive)

    def stop(self) -> None:
        """Stop the queries; micro-batches under way are done again at the next start."""
        self._ending = True
        for kept in self._kept:
            if kept.query is not None:
                try:
                    kept.query.stop()
                except (PySparkException, Py4JError, OSError) as error:
                    log.info("%s did not stop in time: %s", kept.name, one_line(error))
        try:
            if self._kept[0].query is not None:
                self._committer.commit(self._kept[0].query)
        except (Py4JError, OSError):
            log.debug("Spark was gone before the last offsets were committed")
        self._committer.close()
        self._client.close()

    def stopping(self) -> bool:
        """Whether micro-batches should end."""
        return self._ending or self._asked_to_stop()

    def start_archive(self, **trigger: Any) -> StreamingQuery:
        """Start to store raw records and shared anomalies."""
        return self._start("archive", self._records(ARCHIVED), self._archive, trigger)

    def start_devices(self, **trigger: Any) -> StreamingQuery:
        """Start windows and scores."""
        job = stream_devices.Job(self._target, self._settings.learner, self._settings.spark.watermark_s)
        changed = stream_devices.changes(self._records((PREDICTIONS,)), job)
        return self._start("devices", changed, self._windows, trigger)

    def _records(self, topics: tuple[str, ...]) -> DataFrame:
        most = self._settings.spark.most_per_trigger
        return kafka_stream(self._spark, self._settings.kafka.servers, topics, most)

    def _start(
        self, name: str, rows: DataFrame, each: Callable[[DataFrame, int], None], trigger: dict[str, Any]
    ) -> StreamingQuery:
        trigger = trigger or {"processingTime": f"{round(self._settings.spark.trigger_s * 1000)} milliseconds"}
        writer = rows.writeStream.queryName(name).outputMode("update").foreachBatch(each)
        return writer.option("checkpointLocation", self._folder.of(name)).trigger(**trigger).start()

    def _archive(self, batch: DataFrame, _number: int) -> None:
        """Store one micro-batch of raw records."""
        settings, tasks = self._settings, self._settings.spark.partitions
        touched = until_done(
            lambda: stream_archive.archive(batch, self._target, settings.reading, tasks), self.stopping
        )
        if touched:
            until_done(lambda: stream_shared.regroup(self._database, touched, self._rule), self.stopping)

    def _windows(self, batch: DataFrame, _number: int) -> None:
        """Write the windows that one micro-batch of predictions changed, then those of their cohorts."""
        batch = batch.persist()  # the operator runs once, however often MongoDB has to be asked
        try:
            places, notes = until_done(lambda: stream_devices.write(batch, self._target), self.stopping)
            notes |= set(until_done(lambda: stream_devices.sum_cohorts(self._database, places), self.stopping))
        finally:
            batch.unpersist()
        for note in sorted(notes - self._noted):
            log.warning("%s", note)
        self._noted = notes | self._noted if len(self._noted) < MOST_NOTES else notes


MOST_NOTES = 1_000
"""Lines that are remembered so that they are said once."""


def is_after_replay(why: str) -> bool:
    """Whether a query failed after it had done, and committed, the micro-batch that a crash had left.

    Spark 4.1.1 then asks for the lag before it knows any (SPARK-55271); started again, the query goes on.
    """
    return "IterableOps.map" in why and "Option.get()" in why


def _why(failure: StreamingQueryException) -> str:
    """The last cause that a query's failure names, in one line."""
    text = str(failure)
    for mark in ("flead.errors.", "Caused by: "):
        if mark in text:
            text = text.rsplit(mark, 1)[1]
    return one_line(RuntimeError(text.split("\n")[0]))
