"""What a Python worker of Spark is spared."""

from __future__ import annotations

import subprocess
import sys

from config.settings import PROJECT

WORKER = """
import gc
import pandas, pyspark.sql
from spark.worker import settle

settle()
first = gc.get_freeze_count()
settle()
assert gc.get_freeze_count() == first
import pymongo
settle()
print(first, gc.get_freeze_count(), len(gc.get_objects()))
"""


def test_garbage_collection_after_a_task_passes_over_what_packages_hold() -> None:
    done = subprocess.run([sys.executable, "-c", WORKER], cwd=PROJECT, capture_output=True, text=True, check=True)  # noqa: S603
    first, more, looked_at = map(int, done.stdout.split())
    assert looked_at < first / 20
    assert more > first
