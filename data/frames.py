"""A dataset as arrays, one frame per device in time order: what offline work (evaluating, detecting) goes over."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.formats import Rejected
from flead.messages import Reading

_REPORT_EVERY = 10_000


@dataclass(frozen=True)
class Frame:
    """All readings of one device, in time order; readings of one time stay in the order of the file.

    Attributes
    ----------
    sensors:
        sorted names
    times:
        (m,), s since 1970-01-01 UTC
    values:
        (m, n), in the sensors' units, NaN where there is none
    records:
        (m,), which record of the dataset each row is, from 0
    """

    device: str
    sensors: tuple[str, ...]
    times: NDArray[np.float64]
    values: NDArray[np.float64]
    records: NDArray[np.int64]

    def between(self, start: float, end: float) -> Frame:
        """The rows with start <= time < end, s."""
        first, last = np.searchsorted(self.times, (start, end))
        cut = slice(int(first), int(last))
        return Frame(self.device, self.sensors, self.times[cut], self.values[cut], self.records[cut])


def frames_of(
    records: Iterable[Reading | Rejected],
    on_progress: Callable[[int], None] | None = None,
    on_rejected: Callable[[Rejected], None] | None = None,
) -> list[Frame]:
    """Gather readings into frames, devices in order of their names.

    >>> from datetime import UTC, datetime
    >>> day = datetime(2024, 1, 2, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC)
    >>> readings = [Reading(device_id="m", timestamp=t, sensors={"t": 1.0 + i}) for i, t in enumerate(day)]
    >>> frames_of(readings)[0].values.ravel(), frames_of(readings)[0].records
    (array([2., 1.]), array([1, 0]))
    """
    gathered: dict[str, list[tuple[float, int, dict[str, float | None]]]] = {}
    for number, record in enumerate(records):
        if on_progress is not None and number % _REPORT_EVERY == 0:
            on_progress(number)
        if isinstance(record, Rejected):
            if on_rejected is not None:
                on_rejected(record)
            continue
        gathered.setdefault(record.device_id, []).append((record.timestamp.timestamp(), number, record.sensors))
    return [_frame(device, gathered[device]) for device in sorted(gathered)]


def _frame(device: str, rows: list[tuple[float, int, dict[str, float | None]]]) -> Frame:
    rows.sort(key=lambda row: row[:2])
    sensors = tuple(sorted({name for _, _, given in rows for name in given}))
    values = np.array([[given.get(name) for name in sensors] for _, _, given in rows], dtype=np.float64)
    return Frame(device, sensors, np.array([row[0] for row in rows]), values, np.array([row[1] for row in rows]))
