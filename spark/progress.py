"""How far Spark has come with what a session is working on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession

LOOK_S = 0.5


@contextmanager
def watched(look: Callable[[], None]) -> Iterator[None]:
    """Call `look` every half second, from another thread, until the context ends or Spark is gone."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK_S):
            try:
                look()
            except (Py4JError, OSError):  # whoever waits for Spark's result says so
                return

    thread = threading.Thread(target=watch, name="spark-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def stages_watched(spark: SparkSession, tell: Callable[[float | None], None]) -> Iterator[None]:
    """Call `tell`, from another thread, with the share of tasks done of the stages under way; None before the first."""
    with watched(lambda: tell(share_done(spark))):
        yield


def share_done(spark: SparkSession) -> float | None:
    """The share of tasks done of all stages under way; None where none is."""
    tracker = spark.sparkContext.statusTracker()
    stages = [stage for stage in map(tracker.getStageInfo, tracker.getActiveStageIds()) if stage is not None]
    tasks = sum(stage.numTasks for stage in stages)
    return sum(stage.numCompletedTasks for stage in stages) / tasks if tasks else None
