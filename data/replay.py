"""Replay a file of readings as the stream that it once was: all devices merged by event time, at a chosen pace."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from data.formats import Rejected
from data.sorting import Progress, SortedLines
from data.sources import Dataset, open_dataset
from flead.errors import BadConfiguration, BadDataset
from flead.messages import Reading

T = TypeVar("T")
"""What passes through a pace: readings and whatever else stands between them."""

_DAY = timedelta(days=1)


def replay(
    path: str | Path, *, loop: bool = False, on_progress: Progress | None = None, chunk_bytes: int = 8 * 2**20
) -> Iterator[Reading | Rejected]:
    """Every record of a file in the order of event time, whatever the order of the file.

    The same file gives the same records in the same order, so a producer that was killed goes on with
    `itertools.islice(replay(path), sent, None)`. Records of equal time keep the order of the file; records without a
    readable time come first, in an Intel Lab file where their text puts them. Memory is flat: beyond `chunk_bytes` of
    text the sorting goes through a temporary folder, which is gone when the iterator ends or is closed.

    Parameters
    ----------
    loop:
        begin again at the end, for ever, with all dates moved on by the file's span rounded up to whole days (the
        time of day stays, each device's times go on rising). Rejected records come in the first round only
    on_progress:
        called during the sorting with the number of lines read so far, and once more at its end
    chunk_bytes:
        text sorted in memory at a time, bytes

    Raises
    ------
    BadDataset
        at once, if the file is missing, empty or of no known format; while sorting, if it cannot be read to its end
    Unavailable
        while sorting: the temporary folder is full
    """
    return _replay(open_dataset(path), on_progress, chunk_bytes, loop=loop)


def _replay(
    dataset: Dataset, on_progress: Progress | None, chunk_bytes: int, *, loop: bool
) -> Iterator[Reading | Rejected]:
    parse = dataset.format.parse
    with SortedLines(dataset.format.sort_key, chunk_bytes) as ordered:
        ordered.fill(dataset.lines(), on_progress)
        first = last = None
        for number, line in ordered:
            record = parse(line, number)
            if isinstance(record, Reading):
                last = record.timestamp
                first = first or last
            yield record
        if not loop or first is None or last is None:
            return
        # One day more than whole days of span: a round that ends at midnight must not meet the next one there
        span = ((last - first) // _DAY + 1) * _DAY
        shift = span
        while True:
            for number, line in ordered:
                record = parse(line, number)
                if isinstance(record, Reading):
                    record.timestamp = _moved(record.timestamp, shift, dataset)
                    yield record
            shift += span


def _moved(moment: datetime, shift: timedelta, dataset: Dataset) -> datetime:
    try:
        return moment + shift
    except OverflowError:
        raise BadDataset(f"{dataset.path}: looping reached the year 9999; replay it once, or mend its dates") from None


@dataclass(frozen=True)
class Pace:
    """Lets records through when they are due, without drift.

    What is due within the next `slice_s` goes at once, so at high rates it sleeps once a slice, not once a record.
    After a delay downstream it catches up; it is never ahead by more than a slice.

    Parameters
    ----------
    rate:
        records per second; 0 is as fast as it goes
    speed:
        event time over wall time: 60 plays an hour in a minute; 0 is as fast as it goes. One of the two at most
    clock:
        monotonic seconds
    sleep:
        waits that many seconds; an `Event.wait` makes the wait end early
    slice_s:
        how finely time is cut, s

    Raises
    ------
    BadConfiguration
        rate or speed is negative, not finite, or both are set

    >>> now, waits = [0.0], []
    >>> def sleep(s):
    ...     waits.append(s)
    ...     now[0] += s
    >>> list(Pace(rate=2, clock=lambda: now[0], sleep=sleep).over("abc")), waits
    (['a', 'b', 'c'], [0.5, 0.5])
    """

    rate: float = 0.0
    speed: float = 0.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], object] = time.sleep
    slice_s: float = 0.01

    def __post_init__(self) -> None:
        for name, value in (("rate", self.rate), ("speed", self.speed)):
            if not (math.isfinite(value) and value >= 0):
                raise BadConfiguration(f"{name} is {value}: give a number above 0, or 0 for as fast as it goes")
        if self.rate and self.speed:
            raise BadConfiguration("rate and speed are both set: give one, readings per second or a speed-up")

    def over(self, records: Iterable[T]) -> Iterator[T]:
        """Pass the records on, each when it is due; the clock starts with the first.

        At a `speed`, what has no timestamp (a rejected record) is due at once.
        """
        due = self._due_by_speed() if self.speed else self._due_by_rate()
        started = None
        for record in records:
            after = due(record)
            now = self.clock()
            started = now if started is None else started
            ahead = started + after - now
            if ahead >= self.slice_s:
                self.sleep(ahead)
            yield record

    def _due_by_rate(self) -> Callable[[object], float]:
        """Seconds from the start by count; counting, not adding up, keeps rounding from becoming drift."""
        numbers = itertools.count()
        step = 1.0 / self.rate if self.rate else 0.0
        return lambda _record: next(numbers) * step

    def _due_by_speed(self) -> Callable[[object], float]:
        """Seconds from the start by event time."""
        first: datetime | None = None

        def due(record: object) -> float:
            nonlocal first
            moment = getattr(record, "timestamp", None)
            if not isinstance(moment, datetime):
                return 0.0
            first = first or moment
            return (moment - first).total_seconds() / self.speed

        return due
