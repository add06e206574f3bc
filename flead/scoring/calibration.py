"""Statistics become surprises, about -log10 of how often the statistic was this large before.

In two ways: against a histogram of all earlier values, where most values are zero (novelty, plug-ins), and against the
largest values of earlier blocks of readings, where what is usual is large already (changes).
"""

from __future__ import annotations

from math import log2, log10, sqrt

from flead.compilation import Floats, kernel
from flead.scoring.arithmetic import LARGEST_VALUE, READY, cut, finest

KNOWN = 50.0
"""Readings before what did not come, or a plug-in detector, can surprise."""


# ---- histograms: novelty, plug-ins ----------------------------------------------------------------------------------

_BINS, _LOWEST, _PER_OCTAVE = 32, -10.0, 2.0
"""Bins of log2(value): half octaves from 2**-10 to 2**6."""
HISTOGRAM = _BINS + 2
_FADE = 2.0 ** (1.0 / 10_000.0)
"""Growth of the weight of new values: earlier ones have a half-life of 10,000 readings."""
_HEAVY = 1e9
"""Weight at which a histogram is scaled back."""


@kernel
def rarity(histogram: Floats, value: float) -> float:
    """-log10 of the share of earlier values at least this large, counting this one; then learn it.

    Parameters
    ----------
    histogram: (HISTOGRAM,)
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
TAIL = _COUNTS + _TAIL_BINS
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
def beyond(tail: Floats, value: float, steep: float) -> float:
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
def learn_tail(tail: Floats, value: float) -> None:
    """Learn a statistic; at the end of a block, learn the block's largest and find the threshold anew.

    Parameters
    ----------
    tail: (TAIL,)
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


# ---- plug-ins --------------------------------------------------------------------------------------------------------

_STRANGE_LIMIT = 8.0
"""Standard deviations of strangeness that are learnt of one reading."""


@kernel
def score_strangeness(plugin: Floats, value: float) -> float:
    """Surprise at a plug-in detector's strangeness, whatever its unit."""
    if not abs(value) <= LARGEST_VALUE:
        return 0.0
    count = plugin[0]
    spread = sqrt(plugin[2]) + finest(plugin[1])
    off = value - plugin[1] if count > 0.0 else 0.0
    found = rarity(plugin[3:], max(off, 0.0) / spread)
    rate = max(1.0 / (count + 1.0), 1.0 - 1.0 / _FADE)
    off = cut(off, _STRANGE_LIMIT * spread) if count > READY else off
    plugin[1] += rate * off if count > 0.0 else value
    plugin[2] = (1.0 - rate) * (plugin[2] + rate * off * off)
    plugin[0] += 1.0
    return found if count >= KNOWN else 0.0
