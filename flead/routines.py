"""What a device's own time of day adds to its forecasts: habits and routines. They are personal, never sent.

Habits are 48 half hours of the day, smoothed over their neighbours, that are added to what the network says of the
horizon and learn by its gradient. Routines are what the forecasts of either horizon usually leave, by five minutes of
a working or a free day, in the sensors' units: see docs/learning.md.
"""

from __future__ import annotations

from math import exp, floor, pi, sqrt

import numpy as np

from flead.compilation import Floats, cached_kernel, kernel
from flead.features import BINS, DAY, time_of_day

SLOTS = 288
"""Parts of a day, 5 min each, that a device's routines tell apart, on working days and on free ones."""

NEAR = 9
"""Half hours of the day about a time that say what the habits add then; the others are too far away to count."""

NEAREST = (48.0 / sqrt(pi)) ** 0.5
"""How near a time of day is to itself: such that nearness has the root mean square 1 over a day of half hours."""
INVERSE_E = exp(-1.0)
HABIT_PACE = 0.03
"""Length of the steps that habits take, in the network's: a habit is what comes back, not what the last hour was."""
NEXT_PACE, HORIZON_PACE = 0.1, 0.04
"""How far a routine goes towards what came: of ten readings in five minutes it keeps 65 % and 34 % on the first day,
88 % and 56 % after two. Chosen on Intel Lab days, see docs/learning.md."""
SMALLEST_ROUTINE = 1.0
"""What routines say of the next reading is lessened by so many typical changes (soft thresholding, Donoho, 1995): of
five minutes a week little but noise comes back."""
LARGEST_ROUTINE = 60.0
"""What is left beyond teaches routines no more, nor do they say more: in typical changes, and in typical swings for the
horizon."""


@kernel
def add_habits(habits: Floats, nearness: Floats, time: float, horizon: Floats) -> int:
    """Add what the device's habits, (BINS, n), say at this time of day to what its network says of the horizon, (n,).

    Gives the first of the half hours that count, and leaves in `nearness`, (NEAR,), how near they are.
    """
    at = time_of_day(time) / DAY * BINS
    first = int(at + 0.5) - NEAR // 2
    away = at - first
    near, growth = exp(-0.5 * away * away) * NEAREST, exp(away - 0.5)
    first = first if first >= 0 else first + BINS
    for k in range(NEAR):
        nearness[k] = near
        for s in range(horizon.size):
            horizon[s] += near * habits[_half_hour(first, k), s]
        near *= growth  # exp(-(away - k)² / 2) of the next k, without another exponential
        growth *= INVERSE_E
    return first


@kernel
def step_habits(habits: Floats, nearness: Floats, first: int, slopes: Floats, rate: float) -> None:
    """Step the habits down the slopes of the loss by the horizon's outputs, (n,), at the time of `add_habits`."""
    for k in range(NEAR):
        for s in range(slopes.size):
            step = HABIT_PACE * rate * nearness[k] * slopes[s]
            habits[_half_hour(first, k), s] -= step


@kernel
def _half_hour(first: int, k: int) -> int:
    """The k-th half hour of the day from the first."""
    return first + k if first + k < BINS else first + k - BINS


@kernel
def routine_of(time: float) -> int:
    """Which row of the routines a time (s) belongs to: of a working day (Monday to Friday, UTC) or a free one."""
    slot = min(int(time_of_day(time) / DAY * SLOTS), SLOTS - 1)
    since_monday = floor(time / DAY) + 3.0  # 1970-01-01 was a Thursday
    return slot if since_monday - 7.0 * floor(since_monday / 7.0) < 5.0 else SLOTS + slot


@kernel
def practise(routines: Floats, row: int, output: int, left: float, scale: float, pace: float) -> None:
    """Take what a forecast has left, in the sensor's units: an exponentially weighted mean that starts at none.

    A mean that starts at none and goes slowly is one shrunk towards it: a single day is believed in part.
    """
    limit = LARGEST_ROUTINE * scale
    routines[row, output] += pace * (min(max(left, -limit), limit) - routines[row, output])


@kernel
def routine(routines: Floats, row: int, output: int, scale: float, least: float) -> float:
    """What is usually left at this time, over three slots, and lessened by so many scales; in the sensor's units."""
    first = SLOTS if row >= SLOTS else 0
    before = row - 1 if row > first else first + SLOTS - 1
    after = row + 1 if row < first + SLOTS - 1 else first
    usual = 0.5 * routines[row, output] + 0.25 * (routines[before, output] + routines[after, output])
    limit, least = LARGEST_ROUTINE * scale, least * scale
    return float(min(max(usual - least, 0.0), limit) + max(min(usual + least, 0.0), -limit))


@cached_kernel
def practise_all(routines: Floats, times: Floats, left: Floats, scales: Floats) -> None:
    """Let routines take what many forecasts have left, in time order, for offline work.

    Parameters
    ----------
    routines:
        (2 SLOTS, 2 n), changed
    times:
        (m,) when the forecasts were made, s
    left, scales:
        (m, 2 n) what came less what was forecast, NaN where nothing came; and the scales, in the sensors' units
    """
    n = left.shape[1] // 2
    for i in range(times.size):
        row = routine_of(times[i])
        for j in range(2 * n):
            if left[i, j] == left[i, j]:  # not NaN
                practise(routines, row, j, left[i, j], scales[i, j], NEXT_PACE if j < n else HORIZON_PACE)


@cached_kernel
def routines_at(routines: Floats, times: Floats, scales: Floats) -> Floats:
    """What routines add to many forecasts, (m, 2 n), in the sensors' units, for offline work: see `practise_all`."""
    usual, n = np.zeros(scales.shape), scales.shape[1] // 2
    for i in range(times.size):
        row = routine_of(times[i])
        for j in range(2 * n):
            usual[i, j] = routine(routines, row, j, scales[i, j], SMALLEST_ROUTINE if j < n else 0.0)
    return usual
