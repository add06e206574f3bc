"""The facts of one day of one device: what came, what was missing, what cannot be true."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flead.analysis.moments import Comoments, Moments, Vector, plain

DAY_S, SLOT_S = 86_400.0, 600.0
SLOTS = int(DAY_S / SLOT_S)
"""A day in slots of ten minutes: what uptime counts, and what devices are compared by."""
LONG_GAP = 10.0
"""A gap is longer than so many typical intervals: the learner too takes what follows for a new beginning."""
STUCK_S, STUCK_READINGS = 3_600.0, 10
"""A sensor is stuck that says exactly the same for an hour, in ten readings at least."""


def day_facts(
    start: float,
    times: Vector,
    values: Vector,
    sensors: tuple[str, ...],
    *,
    arrival: NDArray[np.int64] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    latest: float = float("inf"),
) -> dict[str, Any]:
    """Look at one day of one device.

    Parameters
    ----------
    start:
        the day's beginning, s since 1970-01-01 UTC
    times, values:
        (m,) s and (m, n), in order of time, NaN where there is no value
    sensors:
        (n,) names
    arrival:
        (m,) in which order the readings came; None where that is not known
    ranges:
        lowest and highest value that can be true, by sensor; sensors that it does not name are not judged
    latest:
        a reading after it has a clock that runs ahead, s

    Returns
    -------
    dict
        plain values that `flead.analysis.report` folds

    >>> facts = day_facts(0.0, np.array([0.0, 30.0, 30.0, 900.0]), np.array([[1.0], [2.0], [np.nan], [4.0]]), ("t",))
    >>> facts["readings"], facts["duplicates"], facts["missing"], sum(s > 0 for s in facts["slots"])
    (4, 1, [1], 2)
    """
    steps = np.diff(times)
    forward = steps[steps > 0]
    interval = float(np.median(forward)) if forward.size else None
    long = forward[forward > LONG_GAP * interval] if interval else forward[:0]
    slot = np.clip(((times - start) // SLOT_S).astype(np.int64), 0, SLOTS - 1)
    stuck, longest = stuck_runs(times, values)
    moments = Moments.of(values)
    return {
        "readings": len(times),
        "duplicates": int(np.count_nonzero(steps == 0)),
        "backwards": None if arrival is None else _backwards(times, arrival),
        "future": int(np.count_nonzero(times > latest)),
        "first": float(times[0]),
        "last": float(times[-1]),
        "interval_s": interval,
        "gaps": int(long.size),
        "longest_gap_s": float(forward.max(initial=0.0)),
        "slots": np.bincount(slot, minlength=SLOTS).tolist(),
        "sensors": list(sensors),
        "moments": moments.as_lists(),
        "missing": (len(times) - moments.count).astype(int).tolist(),
        "stuck": stuck.tolist(),
        "longest_stuck_s": longest.tolist(),
        "out_of_range": _out_of_range(values, sensors, ranges or {}),
        "comoments": Comoments.of(values).as_lists(),
        "slot_means": [plain(column) for column in slot_means(slot, values).T],
    }


def slot_means(slot: NDArray[np.int64], values: Vector) -> Vector:
    """The mean of each slot, (SLOTS, n); NaN where it knows no value.

    Parameters
    ----------
    slot:
        (m,) which slot of the day each row lies in
    """
    known = np.isfinite(values)
    means = np.full((SLOTS, values.shape[1]), np.nan)
    for j in range(values.shape[1]):
        rows = known[:, j]
        count = np.bincount(slot[rows], minlength=SLOTS)
        total = np.bincount(slot[rows], weights=values[rows, j], minlength=SLOTS)
        means[count > 0, j] = total[count > 0] / count[count > 0]
    return means


def stuck_runs(times: Vector, values: Vector) -> tuple[NDArray[np.int64], Vector]:
    """How many values of each sensor lie in runs of one value, and how long the longest run is, s.

    Missing values neither end a run nor count. A run counts from `STUCK_S` and `STUCK_READINGS` on.

    >>> t = np.arange(20) * 600.0
    >>> stuck_runs(t, np.where(t < 7_200.0, 5.0, t)[:, None])
    (array([12]), array([6600.]))
    """
    n = values.shape[1]
    stuck, longest = np.zeros(n, dtype=np.int64), np.zeros(n)
    for j in range(n):
        known = np.isfinite(values[:, j])
        t, x = times[known], values[known, j]
        if not len(x):
            continue
        begins = np.concatenate(([0], np.flatnonzero(np.diff(x) != 0) + 1))
        ends = np.concatenate((begins[1:], [len(x)]))
        lasting, readings = t[ends - 1] - t[begins], ends - begins
        counts = (lasting >= STUCK_S) & (readings >= STUCK_READINGS)
        stuck[j] = readings[counts].sum()
        longest[j] = lasting[counts].max(initial=0.0)
    return stuck, longest


def without_impossible(values: Vector, sensors: tuple[str, ...], ranges: Mapping[str, tuple[float, float]]) -> Vector:
    """The values with NaN for what lies outside its sensor's range, (m, n): what a forecast is judged by."""
    low = np.array([ranges.get(name, (-np.inf, np.inf))[0] for name in sensors])
    high = np.array([ranges.get(name, (-np.inf, np.inf))[1] for name in sensors])
    kept: Vector = np.where((values >= low) & (values <= high), values, np.nan)
    return kept


def _out_of_range(
    values: Vector, sensors: tuple[str, ...], ranges: Mapping[str, tuple[float, float]]
) -> list[int | None]:
    possible = np.isfinite(without_impossible(values, sensors, ranges))
    outside = (np.isfinite(values) & ~possible).sum(axis=0)
    return [int(outside[j]) if name in ranges else None for j, name in enumerate(sensors)]


def _backwards(times: Vector, arrival: NDArray[np.int64]) -> int:
    """How many readings are older than one that came before them."""
    came = times[np.argsort(arrival, kind="stable")]
    return int(np.count_nonzero(came[1:] < np.maximum.accumulate(came)[:-1])) if len(came) > 1 else 0
