"""What a Python worker of Spark is taught before it works."""

from __future__ import annotations

import gc
import sys
import zipimport
from collections.abc import Callable
from functools import cache
from pathlib import Path


def settle() -> None:
    """Spare this process what Spark does around each task, however small: the first line of what a worker does."""
    _read_zips_once()
    _freeze(len(sys.modules))


@cache
def _freeze(modules: int) -> None:
    """Hide what so many modules hold from the garbage collector.

    After each task Spark collects garbage in full, which walks through every object of every package: some 0.1 s a
    task on 140,000 objects, four fifths of what a worker did in small micro-batches. What is frozen is still freed
    when nobody refers to it; only cycles among it stay, which is why garbage is collected first.
    """
    del modules  # asked once for each number of them: whenever a task has brought more
    gc.collect()
    gc.freeze()


@cache
def _read_zips_once() -> None:
    """Let this process read a zip's directory again only where the zip has changed.

    Before each task Spark forgets what it knows of every path, and Python then reads the directory of `pyspark.zip`
    again for each package in it: 0.2-0.5 s a task, half of what a worker does in a small micro-batch.
    """
    zipimport.zipimporter.invalidate_caches = _unless_changed(  # type: ignore[method-assign,assignment]
        zipimport.zipimporter.invalidate_caches
    )


def _unless_changed(forget: Callable[[zipimport.zipimporter], None]) -> Callable[[zipimport.zipimporter], None]:
    seen: dict[str, tuple[int, int]] = {}

    def invalidate_caches(importer: zipimport.zipimporter) -> None:
        try:
            found = Path(importer.archive).stat()
        except OSError:
            forget(importer)
            return
        now = found.st_mtime_ns, found.st_size
        # Each importer is asked by itself: the first time of an archive says nothing of what another one has read.
        key = f"{importer.archive}\0{importer.prefix}"
        if seen.get(key) != now:
            seen[key] = now
            forget(importer)

    return invalidate_caches
