"""The built-in anomaly scores: how surprising a reading is by the device's own history. Constant in time and memory.

Each sensor has a few statistics of what can go wrong with it. Each becomes a surprise, about -log10 of how often the
statistic was this large before, so that all speak one unit and nothing is set per dataset; the largest speaks for the
device. Three kinds of evidence are told apart:

- novelty: a signal leaves the range it had in the last epochs. It marks the onset of an event, once.
- changes: a jump, noise, a ramp, a value that repeats or does not come, in units of the sensor's typical change,
  against the largest of earlier blocks of readings. The return from such an event is none.
- unrest: all sensors of a device change more than they usually do while their levels are off. This lasts as long as
  the event, and needs two sensors that agree.

With a single sensor nothing can agree: there only novelty alarms, with a refractory period, and what persists stays
below, unless it is overwhelming. A reading is scored first and then learnt, and what is learnt from it is cut short,
so that an anomaly does not become normal by happening.
"""

from __future__ import annotations

from math import exp, inf, log, log2, log10, sqrt
from typing import NamedTuple

from flead.compilation import Floats, kernel
from flead.features import DAY, time_of_day

KINDS = ("residual", "level", "drift", "noise", "stuck", "missing", "pattern", "unrest", "detector")
"""What spoke loudest: a jump that was not forecast, a value never seen, a slow move, noise, a value that does not
change, a value that does not come, an unusual value for the time of day, sensors restless together, a plug-in."""
RESIDUAL, LEVEL, DRIFT, NOISE, STUCK, MISSING, PATTERN, UNREST, DETECTOR = range(9)

EXTRA = 4
"""Most plug-in detectors whose strangeness is calibrated here."""
HIGHEST = 15.9
"""Largest surprise: 1 - 10**-15.9 is the last probability below 1 that a float64 holds."""

_NOVEL_VALUE, _NOVEL_MIDDLE, _NOVEL_SLOW, _NOVEL_DAY = range(4)
_JUMP, _SPIKE, _NOISE, _RAMP, _STUCK, _ZERO, _ENDLESS, _MISSING = range(4, 12)
_SIGNALS, _TAILS, _STATISTICS = 4, 4, 12
"""Signals with a range, statistics with a tail, and all: `_ENDLESS` is a run far beyond any, with the kind stuck."""
_KIND_OF = (LEVEL, LEVEL, DRIFT, PATTERN, RESIDUAL, RESIDUAL, NOISE, DRIFT, STUCK, LEVEL, STUCK, MISSING)

_WARM = 10.0
"""Readings of a sensor before its value can surprise: with 50, faults of the first half hour are not ranked at all."""
_KNOWN = 50.0
"""Readings before what did not come, or a plug-in detector, can surprise."""
_READY = 30.0
"""Readings that fill a range, a scale or a mean before it is used to cut others short."""


# ---- histograms: novelty, plug-ins ----------------------------------------------------------------------------------

_BINS, _LOWEST, _PER_OCTAVE = 32, -10.0, 2.0
"""Bins of log2(value): half octaves from 2**-10 to 2**6."""
_HISTOGRAM = _BINS + 2
_FADE = 2.0 ** (1.0 / 10_000.0)
"""Growth of the weight of new values: earlier ones have a half-life of 10,000 readings."""
_HEAVY = 1e9
"""Weight at which a histogram is scaled back."""


@kernel
def _rarity(histogram: Floats, value: float) -> float:
    """-log10 of the share of earlier values at least this large, counting this one; then learn it.

    Parameters
    ----------
    histogram: (_HISTOGRAM,)
        weights of log2(value), their total, the weight of the last value
    """
    place = (log2(value) - _LOWEST) * _PER_OCTAVE if value > 0.0 else 0.0
    place = min(max(place, 0.0), _BINS - 1e-9)
    bin_ = int(place)
    total, weight = histogram[_BINS], max(histogram[_BINS + 1], 1.0)
    found = 0.0
    if place > 0.0:
        above = -(place - bin_) * histogram[bin_]
        for k in range(bin_, _BINS):
            above += histogram[k]
        found = max(0.0, -log10((max(above, 0.0) + weight) / (total + weight)))
    weight *= _FADE
    histogram[bin_] += weight
    histogram[_BINS] += weight
    if weight > _HEAVY:
        for k in range(_BINS + 1):
            histogram[k] /= weight
        weight = 1.0
    histogram[_BINS + 1] = weight
    return found


# ---- tails: the statistics of changes -------------------------------------------------------------------------------

_TAIL_BINS = 24
_THRESHOLD, _LARGEST, _FILLED, _BLOCKS, _SLOPE, _WEIGHT, _COUNTS = range(7)
_TAIL = _COUNTS + _TAIL_BINS
_BLOCK = 20.0
"""Readings of a block: events of neighbouring readings count once, by their largest."""
_RARE, _COMMON = 0.02, 0.2
"""Shares of the blocks whose largest value is above the threshold, and above the point that gives the slope."""
_AT_THRESHOLD = 2.6
"""Surprise at the threshold: a reading of one of 50 blocks of 20, where about half of a block's readings stand out."""
_SOFT = 0.3
"""Added to a statistic before its logarithm: below the typical change nothing matters."""
_PER_OCTAVE_ABOVE = 0.7
"""Surprise per octave of a statistic whose spread is usual."""
_USUAL_SPREAD = 1.5
"""Octaves between the two points where the slope is 1; a statistic that varies less says more per octave."""
_SLOPES = (0.25, 9.0)
_TAIL_MEMORY = 2_000.0
"""Blocks after which a tail forgets half."""
_DOUBT = 2.0
"""Octaves that the threshold of a first block may still be wrong by; it falls with the number of blocks."""
_PRIOR_BLOCKS = 10.0
"""Blocks that the usual spread counts for at first."""
_SMALLEST = log2(_SOFT)


@kernel
def _beyond(tail: Floats, value: float, steep: float) -> float:
    """Surprise at a statistic, by the octaves between it and what only one of 50 earlier blocks reached."""
    octaves = (
        (log2(value + _SOFT) if value > 0.0 else _SMALLEST)
        - max(tail[_THRESHOLD], 0.0)
        - _DOUBT / (tail[_BLOCKS] + 1.0)
    )
    slope = tail[_SLOPE] if tail[_BLOCKS] > 0.0 else 1.0
    slope = steep * sqrt(slope) if octaves > 0.0 else slope  # far out, the slope is a guess
    return float(max(0.0, _AT_THRESHOLD + _PER_OCTAVE_ABOVE * slope * octaves))


@kernel
def _learn_tail(tail: Floats, value: float) -> None:
    """Learn a statistic; at the end of a block, learn the block's largest and find the threshold anew.

    Parameters
    ----------
    tail: (_TAIL,)
        log2 of the threshold, the largest of this block, readings in it, blocks, slope, weight, half-octave counts
    """
    if tail[_FILLED] == 0.0 or value > tail[_LARGEST]:
        tail[_LARGEST] = value
    tail[_FILLED] += 1.0
    if tail[_FILLED] < _BLOCK:
        return
    bin_ = int(min(max((log2(tail[_LARGEST] + _SOFT) - _SMALLEST) * 2.0, 0.0), _TAIL_BINS - 1.0))
    tail[_COUNTS + bin_] += 1.0
    tail[_FILLED] = 0.0
    tail[_BLOCKS] += 1.0
    tail[_WEIGHT] += 1.0
    if tail[_WEIGHT] > _TAIL_MEMORY:
        tail[_WEIGHT:] *= 0.5
    threshold, common = _quantile(tail, _RARE), _quantile(tail, _COMMON)
    doubt = _PRIOR_BLOCKS / (tail[_BLOCKS] + _PRIOR_BLOCKS)
    spread = (threshold - common + _USUAL_SPREAD * doubt) / (1.0 + doubt)
    tail[_THRESHOLD] = threshold
    tail[_SLOPE] = min(max(_USUAL_SPREAD / (spread + 0.05), _SLOPES[0]), _SLOPES[1])


@kernel
def _quantile(tail: Floats, share: float) -> float:
    """log2 of what this share of the blocks' largest values exceeds."""
    left, k = share * tail[_WEIGHT], _TAIL_BINS - 1
    while k > 0 and tail[_COUNTS + k] < left:
        left -= tail[_COUNTS + k]
        k -= 1
    part = left / tail[_COUNTS + k] if tail[_COUNTS + k] > 0.0 else 0.0
    return _SMALLEST + 0.5 * (k + 1.0 - part)


# ---- state ----------------------------------------------------------------------------------------------------------

# Places in a sensor's own numbers.
(
    _COUNT, _LAST, _BEFORE, _CHANGED, _GRAIN, _STIR, _ROUGH, _RUN, _USUAL_RUN, _LONGEST_RUN, _LEVEL, _PATH,
    _ZEROS, _ABSENT, _LONGEST_ABSENT, _FAST, _STEADY, _VARIANCE, _ENERGY, _USUAL_ENERGY, _OF_DAY, _REPEATED,
    _REST,
) = range(23)  # fmt: skip
DAY_BINS = 24
_RING_LENGTH = 16
_MEANS = 23
_LOW = _MEANS + 3
_HIGH = _LOW + _SIGNALS
_LOW_BEFORE = _HIGH + _SIGNALS
_HIGH_BEFORE = _LOW_BEFORE + _SIGNALS
_DAY = _HIGH_BEFORE + _SIGNALS
_DAY_COUNT = _DAY + DAY_BINS
_RING = _DAY_COUNT + DAY_BINS
_HISTOGRAMS = _RING + _RING_LENGTH
_TAIL_OF = _HISTOGRAMS + _SIGNALS * _HISTOGRAM
_OWN = _TAIL_OF + _TAILS * _TAIL

# Places in a sensor's scratch: the surprise of each statistic, then its share of the joint evidence.
_APART, _EXCITED = _STATISTICS, _STATISTICS + 1
_PARTS = _STATISTICS + 2

_TRACE, _LONGEST_GAP, _READINGS, _DEVICE = 0, 1, 2, 3
_PLUGIN = 3 + _HISTOGRAM
"""Numbers of a plug-in detector: count, mean and variance of its strangeness, its histogram."""
_SHARED = _DEVICE + EXTRA * _PLUGIN


@kernel
def size(n: int) -> int:
    """How many numbers are kept for n sensors.

    >>> size(4) == size(1) + 3 * (size(2) - size(1))
    True
    """
    return _SHARED + n * _OWN


@kernel
def scratch_size(n: int) -> int:
    """How many numbers of scratch a reading of n sensors takes."""
    return n * _PARTS


class Scores(NamedTuple):
    """What is kept of a device with n sensors, and the scratch of one reading.

    Attributes
    ----------
    device: (_DEVICE,)
        the trace of what was reported lately, the longest gap, readings
    plugins: (EXTRA, _PLUGIN)
        what strangeness each plug-in detector usually finds
    own: (n, _OWN)
        each sensor's numbers
    parts: (n, _PARTS)
        scratch: the surprises of the last reading, and its part of the joint evidence
    """

    device: Floats
    plugins: Floats
    own: Floats
    parts: Floats


@kernel
def views(n: int, kept: Floats, scratch: Floats) -> Scores:
    """Lay the arrays over a device's state (zeros are a fresh device) and over scratch that devices may share."""
    return Scores(
        kept[:_DEVICE],
        kept[_DEVICE:_SHARED].reshape(EXTRA, _PLUGIN),
        kept[_SHARED : _SHARED + n * _OWN].reshape(n, _OWN),
        scratch[: n * _PARTS].reshape(n, _PARTS),
    )


@kernel
def _rate(half_life: float, count: float) -> float:
    """Learning rate of a mean with this half-life, as fast as a plain mean at first."""
    return float(max(1.0 - 0.5 ** (1.0 / half_life), 1.0 / (count + 1.0)))


@kernel
def _cut(x: float, limit: float) -> float:
    """The number, no further from zero than the limit."""
    return min(max(x, -limit), limit)


_LARGEST_VALUE = 1e100
"""Values are cut to this, so that no square overflows."""
_FINEST, _TINY = 1e-9, 1e-30
"""Smallest change of any meaning, as a share of the level, and at all."""


@kernel
def _finest(x: float) -> float:
    return _FINEST * abs(x) + _TINY


# ---- novelty --------------------------------------------------------------------------------------------------------

_EPOCH = 8_192
"""Readings of an epoch; a range is that of this epoch and the one before."""
_GROW = 3.0
"""A range grows by no more than so many of its widths at a reading: a glitch does not blind it."""
_DAY_RATE = 0.1
"""Least learning rate of an hour of the day."""
_QUICK, _MIDDLE, _SLOW = 8.0, 100.0, 800.0
"""Half-lives of the means whose differences are watched: bands of an hour, a day, a week of five-minute readings."""


@kernel
def _outside(own: Floats, k: int, value: float) -> float:
    """How far a signal leaves its range, in widths of it; then widen it."""
    if own[_COUNT] == 0.0:
        own[_LOW + k] = own[_HIGH + k] = own[_LOW_BEFORE + k] = own[_HIGH_BEFORE + k] = value
    low = min(own[_LOW + k], own[_LOW_BEFORE + k])
    high = max(own[_HIGH + k], own[_HIGH_BEFORE + k])
    width = high - low + _finest(abs(high) + abs(low))
    excess = 0.0
    if own[_COUNT] > _READY:
        excess = max(0.0, max(value - high, low - value)) / width
        value = min(max(value, low - _GROW * width), high + _GROW * width)
    own[_LOW + k] = min(own[_LOW + k], value)
    own[_HIGH + k] = max(own[_HIGH + k], value)
    return excess


@kernel
def _novelty(own: Floats, parts: Floats, x: float, time: float) -> None:
    """Surprise at each signal's leaving its range: the value, two differences of means, the value for the hour."""
    count = own[_COUNT]
    own[_MEANS] += _rate(_QUICK, count) * (x - own[_MEANS])
    own[_MEANS + 1] += _rate(_MIDDLE, count) * (x - own[_MEANS + 1])
    own[_MEANS + 2] += _rate(_SLOW, count) * (x - own[_MEANS + 2])
    hour = int(time_of_day(time) / DAY * DAY_BINS) % DAY_BINS
    off = x - own[_DAY + hour] if own[_DAY_COUNT + hour] > 0.0 else 0.0
    own[_DAY_COUNT + hour] += 1.0
    own[_DAY + hour] += max(_DAY_RATE, 1.0 / own[_DAY_COUNT + hour]) * (x - own[_DAY + hour])
    own[_OF_DAY] += _rate(_QUICK, count) * (off - own[_OF_DAY])
    for k in range(_SIGNALS):
        if k == _NOVEL_VALUE:
            signal = x
        elif k == _NOVEL_MIDDLE:
            signal = own[_MEANS] - own[_MEANS + 1]
        elif k == _NOVEL_SLOW:
            signal = own[_MEANS + 1] - own[_MEANS + 2]
        else:
            signal = own[_OF_DAY]
        start = _HISTOGRAMS + k * _HISTOGRAM
        parts[k] = _rarity(own[start : start + _HISTOGRAM], _outside(own, k, signal))
    if int(count + 1.0) % _EPOCH == 0:
        for k in range(_SIGNALS):
            own[_LOW_BEFORE + k], own[_HIGH_BEFORE + k] = own[_LOW + k], own[_HIGH + k]
            own[_LOW + k], own[_HIGH + k] = 1e300, -1e300


# ---- changes --------------------------------------------------------------------------------------------------------


_LEVEL_RATE, _ROUGH_RATE, _STIR_RATE, _GRAIN_RATE = 0.25, 0.15, 0.03, 0.005
"""Learning rates: of the level that a jump has to leave, of noise, of the changes lately, of the typical change."""
_LEVEL_LIMIT, _STIR_LIMIT, _GRAIN_LIMIT, _BEND_LIMIT = 3.0, 4.0, 3.0, 1e4
"""How much of one reading they learn: in scales, in scales, in octaves, in typical changes."""
_LEARNS_FREELY = 20.0
"""Readings until the level's learning is cut short."""
_RAMP_STEEP = 2.5
"""A t statistic grows slowly, so that an octave of it says more."""
_ENOUGH_CHANGES = 10.0
"""Changes of a sensor until surprise at its changes counts in full: before, the typical change is a guess."""


@kernel
def _tail_of(own: Floats, statistic: int) -> Floats:
    start = _TAIL_OF + (statistic - _JUMP) * _TAIL
    return own[start : start + _TAIL]


@kernel
def _take(own: Floats, parts: Floats, statistic: int, value: float, steep: float) -> None:
    """Score and learn one statistic."""
    tail = _tail_of(own, statistic)
    parts[statistic] = _beyond(tail, value, steep)
    _learn_tail(tail, value)


@kernel
def _changes(own: Floats, parts: Floats, x: float, residual: float) -> None:
    """Surprise at how one sensor's value changes: a jump, a spike, noise, a ramp."""
    count, last, before = own[_COUNT], own[_LAST], own[_BEFORE]
    grain = 2.0 ** own[_GRAIN] if own[_CHANGED] > 0.0 else abs(x - last)
    grain = max(grain, _finest(own[_LEVEL]))
    stir = own[_STIR] / grain
    scale = grain * sqrt(stir * stir + 1.0)
    change = x - last
    # The return from an anomaly is none: a jump has to leave the level before it, too.
    jump = min(abs(change), abs(x - own[_LEVEL]))
    if residual == residual:  # not NaN: nor is a jump that was forecast
        jump = min(jump, abs(residual) * sqrt(own[_USUAL_ENERGY]))
    _take(own, parts, _JUMP, jump / scale, 1.0)
    up, down = last - before, last - x
    # What stood out from both its neighbours is certain once the second is there.
    _take(own, parts, _SPIKE, min(abs(up), abs(down)) / scale if up * down > 0.0 else 0.0, 1.0)
    bend = log2(1.0 + min(abs(change - up) / grain, _BEND_LIMIT))
    own[_ROUGH] += _ROUGH_RATE * (bend - own[_ROUGH])
    # Noise is over when the value is back at its level, though its mean still remembers it.
    rough = min(own[_ROUGH], 1.0 + log2(1.0 + min(abs(change), abs(x - own[_LEVEL])) / grain))
    _take(own, parts, _NOISE, 2.0**rough, 1.0)
    _take(own, parts, _RAMP, _ramp(own, x, change, grain), _RAMP_STEEP)
    limit = _LEVEL_LIMIT * scale if count > _LEARNS_FREELY else abs(x - own[_LEVEL])
    own[_LEVEL] += _LEVEL_RATE * _cut(x - own[_LEVEL], limit)
    if change != 0.0:
        own[_CHANGED] += 1.0
        octave = log2(max(abs(change), 1e-300))
        if own[_CHANGED] == 1.0:
            own[_GRAIN] = octave
        own[_GRAIN] += max(_GRAIN_RATE, 1.0 / own[_CHANGED]) * _cut(octave - own[_GRAIN], _GRAIN_LIMIT)
    own[_STIR] += _STIR_RATE * (min(abs(change), _STIR_LIMIT * scale) - own[_STIR])


@kernel
def _ramp(own: Floats, x: float, change: float, grain: float) -> float:
    """How far the value went in 16 readings, as a t statistic: against what a random walk of such steps would go."""
    place = _RING + int(own[_COUNT]) % _RING_LENGTH
    after = _RING + (int(own[_COUNT]) + 1) % _RING_LENGTH
    own[_PATH] += change * change
    went = x - own[place]
    ratio = went * went / (own[_PATH] + grain * grain)
    own[_PATH] = max(own[_PATH] - (own[after] - own[place]) ** 2, 0.0)
    own[place] = x
    return sqrt(ratio / (max(_RING_LENGTH - ratio, 0.0) / (_RING_LENGTH - 1.0) + 0.05))


_RUN_RATE = 0.02
"""Learning rate of the mean logarithm of runs: about 50 of them."""
_RUN_SOFT = 0.8
"""Added to the usual run: where there never was one, three repeats are nothing yet and 20 are certain."""
_NEWS = 20.0
"""Readings of a run that are news. What goes on says nothing new, and long natural runs (light at night) would bury
short faults: worth 0.05 to 0.1 of AUROC on stuck sensors of Intel Lab, whose faults take 20; 30 gives half of it."""
_NEWS_LEFT = 0.9
"""What each further repeat leaves of a run's surprise, unless the run is a record."""
_NEW_RECORD = 10.0
"""Readings beyond the longest run that make a record."""
_REPEATS_WEIGHT = 0.72
"""Weight of a run's surprise beside others: its repeats are not independent."""
_FORGET_RECORD = 0.9999
"""What is left of a record after another run has ended."""
_LONG_REST, _LONGER_REST = 300.0, 4.0
"""A rest is long from so many readings on, and at the same value may take up to so many times as long: the first night
of a device that began before dawn is twice what it has seen of it."""
_CERTAIN = 3.0
"""Surprise at a run beyond any record, twice that at the moment when it falls."""
_ENDLESS_RUN = (20.0, 400.0)
_ENDLESS_ABSENCE = (2.0, 5.0)
_ENDLESS_GAP = (3.0, 20.0)
"""What makes a run one beyond record: so many times the longest, and so many readings (intervals) more."""


@kernel
def _record(run: float, longest: float, times: float, more: float, before: float) -> float:
    """Surprise at a run that is far longer than any before: twice when the record falls, as it is reported once.

    `before` is how long the run was at the reading before.
    """
    limit = times * longest + more
    if run <= limit:
        return 0.0
    return 2.0 * _CERTAIN if before <= limit else _CERTAIN


@kernel
def _repeats(own: Floats, parts: Floats, x: float) -> None:
    """Surprise at a value that stays equal: by the usual length of such runs, and by the longest.

    A value at which the sensor has rested for long before, as light does in the dark, may rest again, and longer.
    """
    if x == own[_LAST]:
        own[_RUN] += 1.0
        if own[_CHANGED] == 0.0:
            return  # a sensor that never changed yet: no run of it has ended
        usual, longest = 2.0 ** own[_USUAL_RUN] - 1.0 + _RUN_SOFT, own[_LONGEST_RUN]
        times, more = _ENDLESS_RUN
        if x == own[_REST] and longest >= _LONG_REST:
            usual, times, more = max(usual, longest), _LONGER_REST, _NEW_RECORD
        if own[_RUN] <= _NEWS:
            own[_REPEATED] += log10((usual + 1.0) / usual)  # of a geometric law
        elif own[_RUN] <= longest + _NEW_RECORD:
            own[_REPEATED] *= _NEWS_LEFT
        parts[_STUCK] = _REPEATS_WEIGHT * own[_REPEATED]
        parts[_ENDLESS] = _record(own[_RUN], longest, times, more, own[_RUN] - 1.0)
        return
    usual = own[_RUN] if own[_CHANGED] > 1.0 else 0.0  # what a sensor begins with may be a rest, and is no usual run
    own[_USUAL_RUN] += max(_RUN_RATE, 1.0 / (own[_CHANGED] + 1.0)) * (log2(1.0 + usual) - own[_USUAL_RUN])
    own[_LONGEST_RUN] *= _FORGET_RECORD
    if own[_RUN] >= own[_LONGEST_RUN]:
        own[_LONGEST_RUN], own[_REST] = own[_RUN], own[_LAST]
    own[_RUN] = own[_REPEATED] = 0.0


_FAILED = 2.0
"""A zero counts for more than its rarity: it is what a sensor gives that has failed."""


@kernel
def _zero(own: Floats, parts: Floats, x: float) -> None:
    """Surprise at a zero: what a sensor gives that has failed."""
    if x == 0.0:
        parts[_ZERO] = _FAILED * log10((own[_COUNT] + 1.0) / (own[_ZEROS] + 1.0))
        own[_ZEROS] += 1.0


# ---- unrest ---------------------------------------------------------------------------------------------------------


_FAST_HALF_LIFE, _STEADY_HALF_LIFE = 2.0, 300.0
_ENERGY_HALF_LIFE, _USUAL_HALF_LIFE = 12.0, 3_000.0
"""Half-lives of the two means and of the two energies that are compared, in readings."""
_STEADY_LIMIT, _USUAL_LIMIT, _ENERGY_LIMIT = 2.0, 9.0, 1e4
"""What the steady mean learns (sd), and what the usual and the present energy learn (times the usual one)."""
_APART_LIMIT = 10.0
"""Most standard deviations that a level can be off."""


@kernel
def _unrest(own: Floats, parts: Floats, x: float) -> None:
    """How far one sensor's level is from its steady mean (in sd), and how far the energy of its changes is up."""
    count, usual = own[_COUNT], own[_USUAL_ENERGY]
    spread = sqrt(own[_VARIANCE]) + _finest(own[_STEADY])
    own[_FAST] += _rate(_FAST_HALF_LIFE, count) * (x - own[_FAST])
    change = (x - own[_LAST]) ** 2
    settled = count > _READY
    own[_ENERGY] += _rate(_ENERGY_HALF_LIFE, count) * (
        min(change, _ENERGY_LIMIT * usual if settled else change) - own[_ENERGY]
    )
    parts[_APART] = min(abs(own[_FAST] - own[_STEADY]) / spread, _APART_LIMIT) * min(1.0, count / _STEADY_HALF_LIFE)
    parts[_EXCITED] = log(1.0 + own[_ENERGY] / usual) if usual > 0.0 else 0.0
    off = x - own[_STEADY]
    if settled:
        off = _cut(off, _STEADY_LIMIT * spread)
    rate = _rate(_STEADY_HALF_LIFE, count)
    own[_STEADY] += rate * off
    own[_VARIANCE] = (1.0 - rate) * (own[_VARIANCE] + rate * off * off)
    own[_USUAL_ENERGY] += _rate(_USUAL_HALF_LIFE, count) * (
        min(change, _USUAL_LIMIT * usual if settled else change) - usual
    )


@kernel
def _joint(parts: Floats) -> float:
    """How far the levels are off on average, times the unrest of the calmest sensor."""
    return float(parts[:, _APART].mean() * parts[:, _EXCITED].min())


@kernel
def _most_restless(parts: Floats) -> int:
    """The sensor with the largest share of the unrest."""
    most = 0
    for s in range(1, parts.shape[0]):
        if parts[s, _APART] * parts[s, _EXCITED] > parts[most, _APART] * parts[most, _EXCITED]:
            most = s
    return most


# ---- a reading ------------------------------------------------------------------------------------------------------


@kernel
def _begin(own: Floats, x: float) -> None:
    """A sensor's first value."""
    own[_LAST] = own[_BEFORE] = own[_LEVEL] = own[_FAST] = own[_STEADY] = x
    own[_MEANS : _MEANS + 3] = x
    own[_RING : _RING + _RING_LENGTH] = x
    own[_USUAL_RUN] = 0.5


@kernel
def _value(own: Floats, parts: Floats, x: float, residual: float, time: float) -> None:
    """Score and learn one sensor's value."""
    if own[_COUNT] == 0.0:
        _begin(own, x)
    _novelty(own, parts, x, time)
    _changes(own, parts, x, residual)
    _repeats(own, parts, x)
    own[_LONGEST_ABSENT] = max(_FORGET_RECORD * own[_LONGEST_ABSENT], own[_ABSENT])
    own[_ABSENT] = 0.0
    _zero(own, parts, x)
    _unrest(own, parts, x)
    if own[_CHANGED] < _ENOUGH_CHANGES:
        parts[_JUMP:_MISSING] *= own[_CHANGED] / _ENOUGH_CHANGES
    if own[_COUNT] < _WARM:
        parts[:] = 0.0
    own[_BEFORE], own[_LAST] = own[_LAST], x
    own[_COUNT] += 1.0


@kernel
def _no_value(own: Floats, parts: Floats) -> None:
    """Score that one sensor gave no value."""
    own[_ABSENT] += 1.0
    if own[_COUNT] >= _KNOWN:
        parts[_MISSING] = _record(own[_ABSENT], own[_LONGEST_ABSENT], *_ENDLESS_ABSENCE, own[_ABSENT] - 1.0)


@kernel
def _silence(scores: Scores, gap: float) -> float:
    """Surprise at a gap between readings that is far longer than any before."""
    found = 0.0
    if scores.device[_READINGS] >= _KNOWN:
        found = _record(gap, scores.device[_LONGEST_GAP], *_ENDLESS_GAP, 0.0)
    if scores.device[_READINGS] > 0.0:
        scores.device[_LONGEST_GAP] = max(_FORGET_RECORD * scores.device[_LONGEST_GAP], gap)
    scores.device[_READINGS] += 1.0
    return found


_STRANGE_LIMIT = 8.0
"""Standard deviations of strangeness that are learnt of one reading."""


@kernel
def _strange(plugin: Floats, value: float) -> float:
    """Surprise at a plug-in detector's strangeness, whatever its unit."""
    if not abs(value) <= _LARGEST_VALUE:
        return 0.0
    count = plugin[0]
    spread = sqrt(plugin[2]) + _finest(plugin[1])
    off = value - plugin[1] if count > 0.0 else 0.0
    found = _rarity(plugin[3:], max(off, 0.0) / spread)
    rate = max(1.0 / (count + 1.0), 1.0 - 1.0 / _FADE)
    off = _cut(off, _STRANGE_LIMIT * spread) if count > _READY else off
    plugin[1] += rate * off if count > 0.0 else value
    plugin[2] = (1.0 - rate) * (plugin[2] + rate * off * off)
    plugin[0] += 1.0
    return found if count >= _KNOWN else 0.0


_ALONE = (1.0, 0.3, 0.3, 0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0)
"""Weights of the surprises where a device has one sensor: the value's own novelty is the most certain."""
_TOGETHER = (0.7, 0.7, 0.7, 0.7, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
"""The same with several sensors."""
_BAND = 0.1
"""What lasts stays below this surprise where a device has one sensor: no second one confirms it."""
_UNREST_WEIGHT = 0.5
"""Surprise per unit of joint unrest, such that it is heard above single sensors when it is certain."""
_DETECTOR_WEIGHT = 0.3
"""A plug-in's surprise counts as little as any second opinion where a device has one sensor."""
_TRACE_LEFT = 0.5 ** (1.0 / 120.0)
"""What was reported is remembered with a half-life of 120 readings."""
_REFRACTORY_FLOOR = 0.15
"""Share of a surprise that is always reported."""


_FELT_BY_TWO = 0.3
"""Share of the second strangest sensor's surprise that the strangest one's is less by: a fault is of one sensor, and an
event that several feel is heard by its unrest."""
_LOG10_OF_2, _LN_OF_10 = log10(2.0), log(10.0)
_HEARD = 5.0
"""Statistics of a sensor that may speak at any ordinary reading."""


@kernel
def _of_the_largest(surprise: float, n: float) -> float:
    """The surprise of the largest of n surprises (Bonferroni's bound, bent so that none stays none)."""
    if surprise == 0.0:
        return 0.0
    return _LOG10_OF_2 * log2((exp(_LN_OF_10 * surprise) + n) / (1.0 + n))  # twice as quick as log10 of a power of 10


@kernel
def _second(into: Floats) -> float:
    """The surprise of the strangest sensor but one."""
    found = 0.0
    for s in range(into.size - 4):
        if s != into[1]:
            found = max(found, into[4 + s])
    return found


@kernel
def _refracted(scores: Scores, surprise: float) -> float:
    """A surprise less what was reported lately: an event on a single sensor is reported at its onset."""
    trace = scores.device[_TRACE] * _TRACE_LEFT
    scores.device[_TRACE] = max(trace, surprise)
    return float(max(surprise - trace, _REFRACTORY_FLOOR * surprise))


@kernel
def _together(parts: Floats) -> float:
    """The surprises at a sensor's changes as one, a little above the largest: noise is a jump, a spike and rough."""
    total = 0.0
    for k in range(_JUMP, _STUCK):
        square = parts[k] * parts[k]
        total += square * square
    return sqrt(sqrt(total))


@kernel
def _of_sensor(parts: Floats, into: Floats, s: int, n: int) -> float:
    """Join one sensor's surprises; where it is the loudest so far, name it and its kind. Returns what is lasting."""
    own, kind, lasting, alone = 0.0, 0, 0.0, n == 1
    for k in range(_STATISTICS):
        u = parts[k] * (_ALONE[k] if alone else _TOGETHER[k])
        if alone and _JUMP <= k < _ENDLESS:
            u = _BAND * parts[k] / (1.0 + parts[k])
            lasting = max(lasting, u)
        elif k >= _ENDLESS:
            lasting = max(lasting, u)
        if u > own:
            own, kind = u, k
    if not alone:
        own = max(own, _together(parts))
    if own > into[3]:
        into[1], into[2], into[3] = s, _KIND_OF[kind], own
    into[4 + s] = min(own, HIGHEST)
    return lasting


@kernel
def score(scores: Scores, time: float, gap: float, x: Floats, residual: Floats, extra: Floats, into: Floats) -> None:
    """Score a reading against what came before, then learn it.

    Parameters
    ----------
    time:
        s since 1970, UTC
    gap:
        time since the last reading, in typical intervals
    x: (n,)
        the values, NaN where a sensor gave none
    residual: (n,)
        off the forecast, in units of the sensor's typical step; NaN where there was no forecast
    extra: (m,)
        strangeness by plug-in detectors, m <= EXTRA
    into: (4 + n,)
        gets the surprise (0 to 15.9, the score in [0, 1] is 1 - 10**-surprise), the strangest sensor (-1: none), its
        kind (an index of KINDS), the surprise before the refractory period, and each sensor's own
    """
    n = x.size
    into[:] = 0.0
    into[1] = -1.0
    scores.parts[:] = 0.0
    lasting = 0.0
    for s in range(n):
        parts = scores.parts[s]
        if abs(x[s]) < inf:  # neither NaN nor infinite
            _value(scores.own[s], parts, _cut(x[s], _LARGEST_VALUE), residual[s], time)
        else:
            _no_value(scores.own[s], parts)
        lasting = max(lasting, _of_sensor(parts, into, s, n))
    if n > 1:
        into[3] = max(into[3] - _FELT_BY_TWO * _second(into), lasting)
    silence = _silence(scores, gap)
    if silence > into[3]:
        into[1], into[2], into[3] = -1.0, MISSING, silence
    for k in range(min(extra.size, EXTRA)):
        strange = _strange(scores.plugins[k], extra[k]) * (_DETECTOR_WEIGHT if n == 1 else 1.0)
        if strange > into[3]:
            into[1], into[2], into[3] = -1.0, DETECTOR, strange
    if n > 1:
        unrest = _UNREST_WEIGHT * _joint(scores.parts)
        if unrest > into[3]:
            into[1], into[2], into[3] = _most_restless(scores.parts), UNREST, unrest
    into[3] = min(into[3], HIGHEST)
    if n == 1:
        into[0] = max(_refracted(scores, into[3]), lasting)
        return
    into[3] = into[0] = _of_the_largest(into[3], _HEARD * n)
    for s in range(n):
        into[4 + s] = _of_the_largest(into[4 + s], _HEARD)
