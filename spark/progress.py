"""How far Spark has come with what a session is working on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession

LOOK_S = 0.5


@contextmanager
def stages_watched(spark: SparkSession, tell: Callable[[float | None], None]) -> Iterator[None]:
    """Call `tell` now and then with the share of tasks done of the stages under way, None before the first.

    It is called from another thread.
    """
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_S):
            try:
                tell(share_done(spark))
            except (Py4JError, OSError):  # Spark is gone: whoever waits for its result says so
                return

    thread = threading.Thread(target=look, name="spark-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def share_done(spark: SparkSession) -> float | None:
    """The share of tasks done of all stages under way; None where none is."""
    tracker = spark.sparkContext.statusTracker()
    stages = [stage for stage in map(tracker.getStageInfo, tracker.getActiveStageIds()) if stage is not None]
    tasks = sum(stage.numTasks for stage in stages)
    return sum(stage.numCompletedTasks for stage in stages) / tasks if tasks else None
