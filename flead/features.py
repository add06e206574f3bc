"""Features: what a model is given about a device's past, from one declared list, in constant time and memory.

Everything is relative: values are given as distances from the last one, in units of the device's own typical change,
so that devices of different levels can share weights. Time is counted in the device's own typical interval between
readings, so that gaps count as what they are. A sensor that gives no value keeps its last one and ages.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, floor, inf, log, log1p, pi, sin, sqrt
from typing import NamedTuple

from flead.compilation import Floats, Integers, kernel
from flead.errors import BadConfiguration

HALF_LIVES = (1.5, 4.0, 20.0, 80.0, 640.0)
"""Of the exponentially weighted means, in typical intervals."""
FAST_MEANS = 2
"""The first so many are close to the last value, and scaled by one step's change like the lags."""
BINS = 48
"""Of the profile of a day: half an hour each."""

_WINDOW = ("mean", "sd", "min", "max", "slope", "energy")
PER_SENSOR = (
    *(f"lag_{i}" for i in range(1, 9)),
    *(f"mean_{half_life:g}" for half_life in HALF_LIVES),
    *(f"{name}_{length}" for length in (10, 100) for name in _WINDOW),
    "level",
    "profile",
    "horizon_ago",
    "age",
)
"""Every feature that a sensor has.

`lag_i`: the value i readings ago. `mean_h`: the mean with half-life h. `mean_10` and so on: over the last 10 or 100
values, `slope` per reading, `energy` the root mean square of the changes. `level`: the distance from the long mean.
`profile`: what the value usually does within the horizon at this time of day. `horizon_ago`: the value one horizon
ago. `age`: the time since the sensor gave a value."""
SHARED = ("gap", "day_sin_1", "day_cos_1", "day_sin_2", "day_cos_2", "week_sin", "week_cos")
"""Every feature that all sensors share: the time since the last reading, the time of day and of the week."""

TYPICAL = {
    "lag_1": 1.5, "lag_2": 2.0, "lag_3": 2.3, "lag_4": 2.6, "lag_5": 2.8, "lag_6": 3.0, "lag_7": 3.2, "lag_8": 3.4,
    "mean_1.5": 1.2, "mean_4": 2.0, "mean_20": 1.6, "mean_80": 3.0, "mean_640": 4.0, "max_10": 3.0, "min_10": 3.0,
    "profile": 0.42, "horizon_ago": 1.5, "gap": 0.3,
}  # fmt: skip
"""Root mean squares of features on Intel Lab (4-6 March, rounded): a feature is given in units of it, so that none
owns the first steps of a network. Worth 0.5 points of skill, see docs/learning.md."""
CLIP = 15.0
"""Largest absolute value of a feature, before it is given in typical sizes, and after."""

_MEANS, _SHORT, _LONG = 8, 8 + len(HALF_LIVES), 8 + len(HALF_LIVES) + len(_WINDOW)
_LEVEL = _LONG + len(_WINDOW)


_OWN_SIZES = tuple(1.0 / TYPICAL.get(name, 1.0) for name in PER_SENSOR)
_SHARED_SIZES = tuple(1.0 / TYPICAL.get(name, 0.7) for name in SHARED)  # 0.7: of a sine


def codes(names: Sequence[str]) -> tuple[list[int], list[int]]:
    """What the kernel calls these features: those of each sensor, and the shared ones.

    Raises
    ------
    BadConfiguration
        for an unknown name, listing the known ones

    >>> codes(("lag_1", "level", "gap"))
    ([0, 25], [0])
    """
    unknown = [name for name in names if name not in PER_SENSOR + SHARED]
    if unknown:
        raise BadConfiguration(
            f"learner.features knows no {', '.join(unknown)}; it knows {', '.join(PER_SENSOR + SHARED)}"
        )
    return [PER_SENSOR.index(n) for n in names if n in PER_SENSOR], [SHARED.index(n) for n in names if n in SHARED]


RING = 100
"""Values kept of each sensor where a feature over 100 is asked for; 10 otherwise."""


def ring_length(names: Sequence[str]) -> int:
    """How many values of each sensor have to be kept for these features."""
    return RING if any(name.endswith("_100") for name in names) else 10


class Past(NamedTuple):
    """What is kept of the past, for n sensors.

    Attributes
    ----------
    clock: (CLOCK_SIZE,) numbers of the whole device, see `READINGS`
    mean, variance: (n,) the long mean of the values and their variance about it
    seen: (n,) values so far
    last: (n,) the last value
    age: (n,) typical intervals since it came, 0 where the last reading gave one
    step: (n,) mean square of the change from one value to the next
    swing: (n,) mean square of the distance from the mean with half-life 20
    means: (len(HALF_LIVES), n) exponentially weighted means
    ring: (length, n) the last values, at position seen % length
    profile, profile_count: (BINS, n) what the value usually does within the horizon, by time of day
    """

    clock: Floats
    mean: Floats
    variance: Floats
    seen: Floats
    last: Floats
    age: Floats
    step: Floats
    swing: Floats
    means: Floats
    ring: Floats
    profile: Floats
    profile_count: Floats


READINGS, LAST_TIME, INTERVAL, GAP = 0, 1, 2, 3
"""Places in the clock: readings so far, the time of the last (s), the typical interval (s), the last gap in it."""
CLOCK_SIZE = 8


@kernel
def tick(clock: Floats, time: float) -> None:
    """Take a reading's time: the gap since the last, and the running median of gaps.

    The median follows by a small factor up or down (stochastic approximation), quickly at first.
    """
    gap = time - clock[LAST_TIME]
    if clock[READINGS] == 0.0 or gap < 0.0:
        gap = 0.0
    if gap > 0.0:
        if clock[INTERVAL] == 0.0:
            clock[INTERVAL] = gap
        else:
            rate = max(0.5 / (1.0 + clock[READINGS]), 0.005)
            clock[INTERVAL] *= 1.0 + rate if gap > clock[INTERVAL] else 1.0 / (1.0 + rate)
    clock[GAP] = min(gap / clock[INTERVAL], 1e4) if clock[INTERVAL] > 0.0 else 0.0
    clock[LAST_TIME] = max(time, clock[LAST_TIME]) if clock[READINGS] > 0.0 else time
    clock[READINGS] += 1.0


DAY = 86_400.0


@kernel
def time_of_day(time: float) -> float:
    """Seconds since midnight: `time % DAY`, without the remainder's loop.

    >>> time_of_day(3 * 86_400.0 + 5.5), time_of_day(-0.5)
    (5.5, 86399.5)
    """
    left = time - DAY * floor(time / DAY)
    return left if left >= 0.0 else left + DAY  # where the quotient was rounded up to a whole day


@kernel
def step_scale(past: Past, s: int) -> float:
    """One sensor's typical change from one value to the next, never zero."""
    return float(max(sqrt(past.step[s]), FINEST * abs(past.mean[s]) + 1e-9))


@kernel
def swing_scale(past: Past, s: int) -> float:
    """One sensor's typical distance from its recent mean, never below its typical change."""
    return max(sqrt(past.swing[s]), step_scale(past, s))


@kernel
def take(past: Past, s: int, x: float, memory: float, paces: Floats) -> None:
    """Take a value of one sensor into its past; NaN where it gave none.

    Variances take a value for no more than `WINSOR` standard deviations once `WARM` have come.

    Parameters
    ----------
    paces: (1 + len(HALF_LIVES),)
        scratch: a time in typical intervals, and how far each mean goes in it; sensors mostly share it
    """
    gap = past.clock[GAP]
    if x != x:  # NaN
        past.age[s] += gap
        return
    length = past.ring.shape[0]
    if past.seen[s] == 0.0:
        past.mean[s] = past.last[s] = x
        for k in range(past.means.shape[0]):
            past.means[k, s] = x
        for i in range(length):
            past.ring[i, s] = x
    past.seen[s] += 1.0
    count = past.seen[s]
    rate = max(1.0 / count, 1.0 / memory)
    off = x - past.mean[s]
    change = x - past.last[s]
    step = change * change
    if count > WARM:
        limit = WINSOR * sqrt(past.variance[s])
        if limit > 0.0:
            off = min(max(off, -limit), limit)
        if past.step[s] > 0.0:
            step = min(step, WINSOR * WINSOR * past.step[s])
    past.mean[s] += rate * off
    past.variance[s] += rate * (off * (off - rate * off) - past.variance[s])
    if count > 1.0:
        past.step[s] += max(1.0 / (count - 1.0), 1.0 / memory) * (step - past.step[s])
    units = max(gap + past.age[s], 1.0)
    limit = FARTHEST * swing_scale(past, s) if count > WARM else inf
    if paces[0] != units:
        paces[0] = units
        for k in range(past.means.shape[0]):
            paces[1 + k] = 1.0 - 0.5 ** (units / HALF_LIVES[k])
    for k in range(past.means.shape[0]):
        off = min(max(x - past.means[k, s], -limit), limit)
        past.means[k, s] += paces[1 + k] * off
    off = x - past.means[2, s]
    swing = off * off
    if count > WARM and past.swing[s] > 0.0:
        swing = min(swing, WINSOR * WINSOR * past.swing[s])
    past.swing[s] += rate * (swing - past.swing[s])
    past.age[s] = 0.0
    past.last[s] = x
    past.ring[int(count) % length, s] = x


WARM = 20.0
"""Values after which running statistics count as warm."""
WINSOR = 5.0
FARTHEST = 20.0
"""Swings by which a value may pull a running mean: beyond, a model does not tell distances apart either."""
FINEST = 1e-6
"""Smallest change, as a share of the level."""


@kernel
def take_swing_of_day(past: Past, s: int, bin_: int, change: float) -> None:
    """Learn what a sensor does within the horizon from this time of day on."""
    limit = WINSOR * swing_scale(past, s)
    past.profile_count[bin_, s] += 1.0
    rate = max(1.0 / past.profile_count[bin_, s], 0.01)
    past.profile[bin_, s] += rate * (min(max(change, -limit), limit) - past.profile[bin_, s])


@kernel
def bin_of_day(time: float) -> int:
    """Which bin of the day a time (s) falls in."""
    return int(time_of_day(time) / DAY * BINS) % BINS


@kernel
def extract(past: Past, time: float, ago: Floats, own: Integers, shared: Integers, into: Floats) -> None:
    """Write the features after the last reading.

    Parameters
    ----------
    time:
        of the last reading, s
    ago:
        (n,) the values one horizon ago, NaN where there are none
    own, shared:
        what `codes` gave
    into:
        (n * own.size + shared.size,) each sensor's features in their order, then the shared ones
    """
    at, bin_ = 0, bin_of_day(time)
    for s in range(past.last.size):
        if past.seen[s] == 0.0:
            into[at : at + own.size] = 0.0
            at += own.size
            continue
        step, swing = 1.0 / step_scale(past, s), 1.0 / swing_scale(past, s)
        x, length = past.last[s], past.ring.shape[0]
        head = int(past.seen[s]) % length
        # In one function: handing `past` to another copies its arrays' descriptions, which takes longer than a feature.
        for k in range(own.size):
            code = own[k]
            if code < _MEANS:
                before = head - code - 1
                value = (past.ring[before if before >= 0 else before + length, s] - x) * step
            elif code < _SHORT:
                value = (past.means[code - _MEANS, s] - x) * (step if code - _MEANS < FAST_MEANS else swing)
            elif code < _LEVEL:
                m = min(10 if code < _LONG else 100, length, int(past.seen[s]))
                what = code - _SHORT if code < _LONG else code - _LONG
                value = _of_window(past.ring, s, x, what, m, head, step, swing)
            elif code == _LEVEL:
                value = (x - past.mean[s]) / max(sqrt(past.variance[s]), 1.0 / swing)
            elif code == _LEVEL + 1:
                after, before = (bin_ + 1 if bin_ + 1 < BINS else 0), (bin_ if bin_ > 0 else BINS) - 1
                total = 2.0 * past.profile[bin_, s] + past.profile[after, s] + past.profile[before, s]
                value = 0.25 * total * swing
            elif code == _LEVEL + 2:
                value = (ago[s] - x) * swing if ago[s] == ago[s] else 0.0  # not NaN
            else:
                value = log1p(past.age[s])
            value = min(max(value, -CLIP), CLIP) * _OWN_SIZES[code]
            into[at] = min(max(value, -CLIP), CLIP)
            at += 1
    day = 2.0 * pi * time_of_day(time) / DAY
    across, along = sin(day), cos(day)
    for k in range(shared.size):
        code = shared[k]
        if code == 0:
            value = log1p(min(past.clock[GAP], 100.0)) - log(2.0)
        elif code == 1 or code == 2:
            value = across if code == 1 else along
        elif code == 3 or code == 4:  # of twice the angle
            value = 2.0 * across * along if code == 3 else 1.0 - 2.0 * across * across
        else:
            week = 2.0 * pi * ((time / DAY + 3.0) % 7.0) / 7.0  # 1970-01-01 was a Thursday
            value = sin(week) if code == 5 else cos(week)
        into[at] = value * _SHARED_SIZES[code]
        at += 1


@kernel
def _of_window(
    ring: Floats, s: int, x: float, what: int, m: int, head: int, step: float, swing: float
) -> float:  # fmt: skip
    """A statistic over a sensor's last m values, relative to the last one, x; that is at `head`."""
    length, at = ring.shape[0], head
    if what == 2 or what == 3:
        low = high = x
        for i in range(m):
            value = ring[at - i if at >= i else at - i + length, s]
            low, high = min(low, value), max(high, value)
        return float(((high if what == 3 else low) - x) * step)
    total = square = slope = energy = 0.0
    before = x
    for i in range(m):
        value = ring[at, s]
        at = at - 1 if at > 0 else length - 1
        off = value - x
        total += off
        square += off * off
        slope += off * (0.5 * (m - 1) - i)
        energy += (value - before) * (value - before)
        before = value
    if what == 0:
        return float(total / m * swing)
    if what == 1:
        return sqrt(max(square / m - (total / m) ** 2, 0.0)) * swing
    if what == 4:
        return float(slope * 12.0 / max(m * (m * m - 1.0), 1.0) * step)
    return sqrt(energy / max(m - 1, 1)) * step
