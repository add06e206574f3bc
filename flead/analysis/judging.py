"""Global models judged on a day: what each would have forecast on a device, as it comes, beside no change at all.

Only the features and scales are the device's own, as on a device that has just been given the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flead import evaluation, network
from flead.evaluation import Series
from flead.learner_config import LearnerConfig
from flead.learning import LARGEST_STEP, LARGEST_SWING
from flead.network import Architecture, Vector

COUNT, SQUARES, ABSOLUTES, PERSISTENCE, TOTAL, TOTAL_SQUARES = range(6)
"""Places in a row of sums: forecasts whose truth came; squares and absolutes of their errors; squares of what came of
no change; the true values, and their squares."""
SUMS = 6
HOURS = 24
HOUR_S = 3_600.0


@dataclass(frozen=True)
class Asked:
    """What is asked of a model on one day of one device, m readings.

    Attributes
    ----------
    features: (m, n_features) after each reading
    scales: (m, 2 n) the units of a model's outputs
    changes: (m, 2 n) what came: the change to the next reading, and to the horizon; NaN where nothing came in time
    values: (m, n) the readings
    hour: (m,) of the day
    """

    features: Vector
    scales: Vector
    changes: Vector
    values: Vector
    hour: NDArray[np.int64]


def asked_on(day: Series, before: Series | None, start: float, config: LearnerConfig, most: int) -> Asked:
    """Follow a device through a day, and look up what came of each reading on that day.

    Parameters
    ----------
    before:
        the device's readings of the day before, which only warm the features up; None where there are none. So a day's
        figures depend on that day and the one before, and on nothing else
    start:
        the day's beginning, s
    most:
        readings to ask about, evenly spread where there are more
    """
    both = day if before is None else evaluation.joined(before, day)
    features, scales = evaluation.followed(both, config)
    own = slice(len(both.times) - len(day.times), None)
    rows = np.arange(len(day.times))
    if len(rows) > most:
        rows = np.linspace(0, len(rows) - 1, most).round().astype(np.int64)
    hour = np.clip((day.times - start) // HOUR_S, 0, HOURS - 1).astype(np.int64)
    changes = evaluation.changes_of(day, config.horizon_s)
    return Asked(features[own][rows], scales[own][rows], changes[rows], day.values[rows], hour[rows])


def judge(thetas: Vector, architecture: Architecture, asked: Asked) -> Vector:
    """Sums by hour for each model, (v, HOURS, 2 n, SUMS).

    Parameters
    ----------
    thetas:
        (v, parameter_count)
    """
    m, outputs = asked.changes.shape
    begins, hours = _segments(asked.hour)
    sums = np.zeros((len(thetas), HOURS, outputs, SUMS))
    if not m:
        return sums
    known = np.isfinite(asked.changes)
    changes = np.where(known, asked.changes, 0.0)
    truth = np.where(known, changes + np.tile(asked.values, 2), 0.0)
    shared = (known.astype(np.float64), changes * changes, truth, truth * truth)
    for place, rows in zip((COUNT, PERSISTENCE, TOTAL, TOTAL_SQUARES), shared, strict=True):
        sums[..., place][:, hours] = np.add.reduceat(rows, begins, axis=0)
    scales = np.where(known, asked.scales, 0.0)
    largest = np.repeat((LARGEST_STEP, LARGEST_SWING), outputs // 2)
    for v, theta in enumerate(thetas):
        wrong = network.forward(theta, architecture, asked.features)
        np.clip(wrong, -largest, largest, out=wrong)
        wrong *= scales
        wrong -= changes
        sums[v, ..., ABSOLUTES][hours] = np.add.reduceat(np.abs(wrong), begins, axis=0)
        wrong *= wrong
        sums[v, ..., SQUARES][hours] = np.add.reduceat(wrong, begins, axis=0)
    return sums


def _segments(hour: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each hour begins in rows that are in order of time, and which hours they are."""
    begins = np.concatenate(([0], np.flatnonzero(np.diff(hour)) + 1)) if len(hour) else np.zeros(0, dtype=np.int64)
    return begins, hour[begins]


def figures(sums: Vector) -> dict[str, Any]:
    """RMSE, MAE, R² and skill over persistence of one row of sums, (SUMS,); None where they are not known.

    R² is 1 - squared error / squared distance from the mean of the true values.

    >>> figures(np.array([2.0, 2.0, 2.0, 8.0, 4.0, 10.0]))
    {'count': 2, 'rmse': 1.0, 'mae': 1.0, 'r2': 0.0, 'skill': 0.5}
    """
    count, squares, absolutes, persistence, total, total_squares = sums.tolist()
    if not count:
        return {"count": 0, "rmse": None, "mae": None, "r2": None, "skill": None}
    spread = total_squares - total * total / count
    # What is left by rounding where all values are one is no spread.
    varies = spread > 1e-9 * max(total_squares, 1e-300)
    return {
        "count": int(count),
        "rmse": float(np.sqrt(squares / count)),
        "mae": absolutes / count,
        "r2": 1.0 - squares / spread if varies else None,
        "skill": 1.0 - float(np.sqrt(squares / persistence)) if persistence > 0 else None,
    }


def mean_known(values: Sequence[float | None]) -> float | None:
    """The mean of what is known; None where nothing is.

    >>> mean_known([0.5, None, 0.1]), mean_known([None])
    (0.3, None)
    """
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
