"""The built-in anomaly scores: how surprising a reading is by the device's own history. Constant in time and memory.

Every sensor has a few statistics of what can go wrong with it; each is turned into a surprise, -log10 of how often the
statistic was this large before, so that all speak one unit and nothing has to be set per dataset. A device's surprise
is the largest of its sensors' surprises. Evidence that lasts as long as the event (a level that has moved while the
changes are large) is no tail probability; it is joined over the sensors of a device, see `_joint`.

A reading is scored against what came before, then learnt; what is learnt from it is cut short (winsorised), so that
an anomaly does not become normal by happening.
"""

from __future__ import annotations

from math import log, log2, log10, log1p, sqrt
from typing import NamedTuple

from flead.compilation import Floats, kernel

KINDS = ("residual", "level", "drift", "noise", "stuck", "missing", "pattern", "detector")
"""What the loudest component watches: a jump off the forecast, a value never seen, a slow drift, unusual noise, a value
that does not change, a value that does not come, an unusual time of day, a plug-in detector."""
RESIDUAL, LEVEL, DRIFT, NOISE, STUCK, MISSING, PATTERN, DETECTOR = range(8)

EXTRA = 4
"""Most plug-in detectors whose strangeness is calibrated here."""
HIGHEST = 15.9
"""Largest surprise: 1 - 10**-15.9 is the last probability below 1 that float64 can hold."""

# The signals whose novelty is watched, and the statistics of a reading: each has a histogram of its own.
_VALUE, _MIDDLE, _SLOW, _DAY, _JUMP, _NOISE, _RAMP, _STUCK, _MISSING = range(9)
_SIGNALS, _STATISTICS = 4, 9
_KIND_OF = (LEVEL, LEVEL, DRIFT, PATTERN, RESIDUAL, NOISE, DRIFT, STUCK, MISSING)

BINS = 32
_PER_OCTAVE = 2.0
_LOWEST = (-10.0, -10.0, -10.0, -10.0, -4.0, -4.0, -4.0, 0.0, 0.0, -10.0)
"""log2 of where each statistic's histogram begins, the last for plug-in detectors."""
_HISTOGRAM = BINS + 2

DAY_BINS = 24
_DAY_SECONDS = 86_400.0

# Places in a sensor's own numbers.
(
    _COUNT, _LAST, _BEFORE, _LEVEL, _STEP, _UNREST, _CURVATURE, _QUICK, _LAGGING, _REPEATS, _LONGEST, _ABSENT,
    _LONGEST_ABSENT, _FAST, _STEADY, _VARIANCE, _ENERGY, _USUAL, _OF_DAY,
) = range(19)  # fmt: skip
_MEANS = 19
_LOW = _MEANS + 3
_HIGH = _LOW + _SIGNALS
_LOW_BEFORE = _HIGH + _SIGNALS
_HIGH_BEFORE = _LOW_BEFORE + _SIGNALS
_DAYS = _HIGH_BEFORE + _SIGNALS
_DAY_COUNTS = _DAYS + DAY_BINS
_HISTOGRAMS = _DAY_COUNTS + DAY_BINS
_OWN = _HISTOGRAMS + _STATISTICS * _HISTOGRAM

# Places in a sensor's part of the scratch: the surprise of each statistic, then its share of the joint evidence.
_APART, _EXCITED = _STATISTICS, _STATISTICS + 1
_PARTS = _STATISTICS + 2

_TRACE = 0
_DEVICE = 4
_SHARED = _DEVICE + (EXTRA + 1) * _HISTOGRAM


@kernel
def size(n: int) -> int:
    """How many numbers are kept for n sensors."""
    return _SHARED + n * _OWN


@kernel
def scratch_size(n: int) -> int:
    """How many numbers of scratch a reading of n sensors takes."""
    return n * _PARTS


class Scores(NamedTuple):
    """What is kept of a device of n sensors, and the scratch of one reading.

    Attributes
    ----------
    device: (_DEVICE,)
        numbers of the whole device
    shared: (EXTRA + 1, BINS + 2)
        histograms of the plug-in detectors' strangeness, and of gaps
    own: (n, _OWN)
        each sensor's numbers
    parts: (n, _PARTS)
        scratch: the surprises of the last reading
    """

    device: Floats
    shared: Floats
    own: Floats
    parts: Floats


@kernel
def views(n: int, kept: Floats, scratch: Floats) -> Scores:
    """Lay the arrays over a device's state (zeros are a fresh device) and over scratch that any device may share."""
    return Scores(
        kept[:_DEVICE],
        kept[_DEVICE:_SHARED].reshape(EXTRA + 1, _HISTOGRAM),
        kept[_SHARED : _SHARED + n * _OWN].reshape(n, _OWN),
        scratch[: n * _PARTS].reshape(n, _PARTS),
    )


_WARM = 50.0
"""Readings of a sensor before it can surprise, as many as the shortest of a benchmark's series can spare."""
_READY = 30.0
"""Readings that fill a range before leaving it means anything."""
_GROW = 3.0
"""A range grows by no more than so many of its widths at a reading: a glitch does not blind it."""
_EPOCH = 8_192.0
"""Readings of an epoch; a range is that of this epoch and the one before."""
_FADE = 2.0 ** (1.0 / 10_000.0)
"""Growth of the weight of a new reading in a histogram: half-life 10,000 readings."""


@kernel
def _rate(half_life: float, count: float) -> float:
    """Learning rate of a mean with this half-life, as fast as a plain mean at first."""
    return max(1.0 - 0.5 ** (1.0 / half_life), 1.0 / (count + 1.0))


@kernel
def _clipped(x: float, limit: float) -> float:
    return min(max(x, -limit), limit)


@kernel
def _surprise(histogram: Floats, value: float, lowest: float, tail: float) -> float:
    """-log10 of the share of earlier values at least this large.

    Parameters
    ----------
    histogram: (BINS + 2,)
        counts of log2(value), their total, and the weight that the next value will have
    tail:
        1 continues the histogram's slope beyond what was ever seen, 0 stays at one in all
    """
    if value <= 0.0:
        return 0.0
    place = (log2(value) - lowest) * _PER_OCTAVE
    if place <= 0.0:
        return 0.0
    bin_ = min(BINS - 1, int(place))
    total, weight = histogram[BINS], max(histogram[BINS + 1], 1.0)
    above = -min(1.0, place - bin_) * histogram[bin_]
    for k in range(bin_, BINS):
        above += histogram[k]
    found = max(0.0, -log10((max(above, 0.0) + weight) / (total + weight)))
    if tail > 0.0 and total > 100.0 * weight:
        found = max(found, _beyond(histogram, place))
    return min(found, HIGHEST)


@kernel
def _beyond(histogram: Floats, place: float) -> float:
    """The surprise by the slope between the values exceeded by 30 % and by 2 %, where it is beyond the latter."""
    total = histogram[BINS]
    high, common, rare = 0.0, 0.3 * total, 0.02 * total
    top, i = -1.0, BINS - 1
    while i > 0:
        new = high + histogram[i]
        if top < 0.0 and new >= rare:
            top = i + 1.0 - (rare - high) / histogram[i]
            if place <= top:
                return 0.0
        if new >= common:
            break
        high = new
        i -= 1
    bottom = i + 1.0 - (common - high) / (histogram[i] + 1e-9)
    return 1.7 + 1.18 * (place - top) / max(top - bottom, 1.0)


@kernel
def _learn(histogram: Floats, value: float, lowest: float) -> None:
    """Count a value; earlier ones fade, since each new one weighs a little more."""
    bin_ = 0
    if value > 0.0:
        bin_ = int(min(max((log2(value) - lowest) * _PER_OCTAVE, 0.0), BINS - 1.0))
    weight = max(histogram[BINS + 1], 1.0) * _FADE
    histogram[bin_] += weight
    histogram[BINS] += weight
    if weight > 1e9:
        for k in range(BINS + 1):
            histogram[k] /= weight
        weight = 1.0
    histogram[BINS + 1] = weight


@kernel
def _excess(own: Floats, parts: Floats, k: int, value: float) -> float:
    """How far a signal leaves the range it had in this epoch and the one before, in widths of it; then widen it."""
    if own[_COUNT] == 0.0:
        own[_LOW + k] = own[_HIGH + k] = own[_LOW_BEFORE + k] = own[_HIGH_BEFORE + k] = value
    low = min(own[_LOW + k], own[_LOW_BEFORE + k])
    high = max(own[_HIGH + k], own[_HIGH_BEFORE + k])
    width = high - low + 1e-9 * (abs(high) + abs(low)) + 1e-30
    outside = 0.0
    if own[_COUNT] > _READY:
        outside = max(0.0, max(value - high, low - value)) / width
        value = max(low - _GROW * width, min(high + _GROW * width, value))
    own[_LOW + k] = min(own[_LOW + k], value)
    own[_HIGH + k] = max(own[_HIGH + k], value)
    return outside


@kernel
def _novelty(own: Floats, parts: Floats, x: float, time: float) -> None:
    """Surprises of the four signals of one sensor at leaving their ranges."""
    count = own[_COUNT]
    for k in range(3):
        own[_MEANS + k] += _rate((8.0, 100.0, 800.0)[k], count) * (x - own[_MEANS + k])
    hour = int((time % _DAY_SECONDS) / _DAY_SECONDS * DAY_BINS) % DAY_BINS
    off = x - own[_DAYS + hour] if own[_DAY_COUNTS + hour] > 0.0 else 0.0
    own[_DAY_COUNTS + hour] += 1.0
    own[_DAYS + hour] += max(0.1, 1.0 / own[_DAY_COUNTS + hour]) * (x - own[_DAYS + hour])
    own[_OF_DAY] += _rate(8.0, count) * (off - own[_OF_DAY])
    for k in range(_SIGNALS):
        if k == _VALUE:
            value = x
        elif k == _MIDDLE:
            value = own[_MEANS + 0] - own[_MEANS + 1]
        elif k == _SLOW:
            value = own[_MEANS + 1] - own[_MEANS + 2]
        else:
            value = own[_OF_DAY]
        outside = _excess(own, parts, k, value)
        parts[k] = _surprise(own[_HISTOGRAMS + k * _HISTOGRAM :], outside, -10.0, 0.0)
        _learn(own[_HISTOGRAMS + k * _HISTOGRAM :], outside, -10.0)
    if (count + 1.0) % _EPOCH == 0.0:
        for k in range(_SIGNALS):
            own[_LOW_BEFORE + k], own[_HIGH_BEFORE + k] = own[_LOW + k], own[_HIGH + k]
            own[_LOW + k], own[_HIGH + k] = 1e300, -1e300


@kernel
def _take(own: Floats, parts: Floats, k: int, value: float, lowest: float) -> None:
    """One statistic's surprise, and learn it."""
    parts[k] = _surprise(own[_HISTOGRAMS + k * _HISTOGRAM :], value, lowest, 1.0)
    _learn(own[_HISTOGRAMS + k * _HISTOGRAM :], value, lowest)


@kernel
def _changes(own: Floats, parts: Floats, x: float, residual: float) -> None:
    """Surprises of one sensor at how its value changes: a jump, noise, a ramp, no change."""
    count = own[_COUNT]
    change = x - own[_LAST]
    size_ = abs(change)
    scale = sqrt(own[_UNREST] ** 2 + 9.0 * own[_STEP] ** 2) + 1e-9 * abs(own[_LEVEL]) + 1e-30
    # The return from an anomaly is none: a jump has to leave the level before it, too.
    jump = min(size_, abs(x - own[_LEVEL])) / scale
    _take(own, parts, _JUMP, jump, -4.0)
    bend = min(abs(x - 2.0 * own[_LAST] + own[_BEFORE]) / scale, 12.0)
    own[_CURVATURE] += 0.15 * (bend * bend - own[_CURVATURE])
    _take(own, parts, _NOISE, sqrt(own[_CURVATURE]), -4.0)
    own[_LEVEL] += 0.25 * _clipped(x - own[_LEVEL], 6.0 * scale)
    own[_QUICK] += 0.206 * (x - own[_QUICK])
    own[_LAGGING] += 0.034 * _clipped(x - own[_LAGGING], 30.0 * scale)
    _take(own, parts, _RAMP, abs(own[_QUICK] - own[_LAGGING]) / scale, -4.0)
    if count > 0.0:
        _repeat(own, parts, change == 0.0)
    rate = max(0.001, 1.0 / (count + 1.0))
    local = max(0.02, 1.0 / (count + 1.0))
    own[_UNREST] += local * (min(size_, 5.0 * scale if count > 20.0 else size_) - own[_UNREST])
    limit = 8.0 * own[_STEP] + 1e-9 * abs(own[_LEVEL]) if count > 50.0 else size_
    own[_STEP] += rate * (min(size_, limit) - own[_STEP])


@kernel
def _repeat(own: Floats, parts: Floats, same: bool) -> None:
    """Surprise at a value that stays equal: the share of earlier runs at least this long."""
    if same:
        own[_REPEATS] += 1.0
        parts[_STUCK] = _surprise(own[_HISTOGRAMS + _STUCK * _HISTOGRAM :], 1.0 + own[_REPEATS], 0.0, 1.0)
        return
    _learn(own[_HISTOGRAMS + _STUCK * _HISTOGRAM :], 1.0 + own[_REPEATS], 0.0)
    own[_LONGEST] = max(own[_LONGEST] * 0.999, own[_REPEATS])
    own[_REPEATS] = 0.0


@kernel
def _persistent(own: Floats, parts: Floats, x: float) -> None:
    """How far one sensor's fast mean is from its steady one, and how much its changes exceed the usual."""
    count = own[_COUNT]
    spread = sqrt(own[_VARIANCE]) + 1e-9 * abs(own[_STEADY]) + 1e-30
    own[_FAST] += _rate(2.0, count) * (x - own[_FAST])
    change = (x - own[_LAST]) * (x - own[_LAST])
    usual = own[_USUAL]
    own[_ENERGY] += _rate(12.0, count) * (min(change, 1e4 * usual if count > _READY else change) - own[_ENERGY])
    parts[_APART] = min(abs(own[_FAST] - own[_STEADY]) / spread, 10.0)
    parts[_EXCITED] = log1p(own[_ENERGY] / usual) if usual > 0.0 else 0.0
    rate = _rate(300.0, count)
    off = x - own[_STEADY]
    if count > _READY:
        off = _clipped(off, 2.0 * spread)
    own[_STEADY] += rate * off
    own[_VARIANCE] = (1.0 - rate) * (own[_VARIANCE] + rate * off * off)
    own[_USUAL] += _rate(3_000.0, count) * (min(change, 9.0 * usual if count > _READY else change) - usual)


@kernel
def _value(own: Floats, parts: Floats, x: float, time: float, residual: float) -> None:
    """Score and learn one sensor's value."""
    if own[_COUNT] == 0.0:
        own[_LAST] = own[_BEFORE] = own[_LEVEL] = x
        own[_QUICK] = own[_LAGGING] = own[_FAST] = own[_STEADY] = x
        own[_MEANS : _MEANS + 3] = x
    _novelty(own, parts, x, time)
    _changes(own, parts, x, residual)
    _persistent(own, parts, x)
    if own[_ABSENT] > 0.0:
        own[_LONGEST_ABSENT] = max(own[_LONGEST_ABSENT] * 0.999, own[_ABSENT])
    _learn(own[_HISTOGRAMS + _MISSING * _HISTOGRAM :], 1.0 + own[_ABSENT], 0.0)
    own[_ABSENT] = 0.0
    own[_BEFORE], own[_LAST] = own[_LAST], x
    if own[_COUNT] < _WARM:
        parts[:] = 0.0
    parts[_APART] *= min(1.0, own[_COUNT] / 300.0)
    own[_COUNT] += 1.0


@kernel
def _no_value(own: Floats, parts: Floats) -> None:
    """Score and learn that one sensor gave no value."""
    if own[_COUNT] == 0.0:
        return
    own[_ABSENT] += 1.0
    if own[_COUNT] > _WARM:
        parts[_MISSING] = _surprise(own[_HISTOGRAMS + _MISSING * _HISTOGRAM :], 1.0 + own[_ABSENT], 0.0, 1.0)


_WEIGHTS = (1.0, 0.3, 0.3, 0.3, 1.0, 1.0, 1.0, 1.0, 1.0)
_BAND = 0.3


@kernel
def score(
    scores: Scores, time: float, gap: float, x: Floats, residual: Floats, extra: Floats, into: Floats
) -> None:
    """Score a reading against what came before, then learn it."""
    n = x.size
    scores.parts[:] = 0.0
    for s in range(n):
        if x[s] == x[s]:  # noqa: PLR0124  # not NaN
            _value(scores.own[s], scores.parts[s], _clipped(x[s], 1e100), time, residual[s])
        else:
            _no_value(scores.own[s], scores.parts[s])
    onset, sensor, kind = 0.0, -1, 0
    best = 0.0
    for s in range(n):
        own = 0.0
        for k in range(_STATISTICS):
            u = _WEIGHTS[k] * scores.parts[s, k]
            if n == 1 and k >= _SIGNALS:
                u = _BAND * u / (1.0 + u)
            own = max(own, u)
            if u > best:
                best, sensor, kind = u, s, _KIND_OF[k]
        into[4 + s] = own
    joint = 0.0
    if n > 1:
        joint = scores.parts[:, _APART].sum() * scores.parts[:, _EXCITED].sum()
    into[0] = best
    into[1] = sensor
    into[2] = kind
    into[3] = max(best, joint)
    onset = best
    if n == 1:
        trace = scores.device[_TRACE] * 0.5 ** (1.0 / 120.0)
        into[0] = max(onset - trace, 0.15 * onset)
        scores.device[_TRACE] = max(trace, onset)
    else:
        into[0] = max(onset, joint)
