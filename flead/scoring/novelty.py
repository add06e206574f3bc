"""Novelty: a signal leaves the range it had in the last epochs. It marks the onset of an event, once."""

from __future__ import annotations

from flead.compilation import Floats, kernel
from flead.features import DAY, time_of_day
from flead.scoring.arithmetic import READY, finest, learning_rate
from flead.scoring.calibration import HISTOGRAM, rarity
from flead.scoring.layout import (
    COUNT,
    DAY_BINS,
    HIGH,
    HIGH_BEFORE,
    HISTOGRAMS,
    HOUR,
    HOUR_COUNT,
    LOW,
    LOW_BEFORE,
    MEANS,
    NOVEL_MIDDLE,
    NOVEL_SLOW,
    NOVEL_VALUE,
    OF_DAY,
    SIGNALS,
)

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
    if own[COUNT] == 0.0:
        own[LOW + k] = own[HIGH + k] = own[LOW_BEFORE + k] = own[HIGH_BEFORE + k] = value
    low = min(own[LOW + k], own[LOW_BEFORE + k])
    high = max(own[HIGH + k], own[HIGH_BEFORE + k])
    width = high - low + finest(abs(high) + abs(low))
    excess = 0.0
    if own[COUNT] > READY:
        excess = max(0.0, max(value - high, low - value)) / width
        value = min(max(value, low - _GROW * width), high + _GROW * width)
    own[LOW + k] = min(own[LOW + k], value)
    own[HIGH + k] = max(own[HIGH + k], value)
    return excess


@kernel
def score_novelty(own: Floats, parts: Floats, x: float, time: float) -> None:
    """Surprise at each signal's leaving its range: the value, two differences of means, the value for the hour."""
    count = own[COUNT]
    own[MEANS] += learning_rate(_QUICK, count) * (x - own[MEANS])
    own[MEANS + 1] += learning_rate(_MIDDLE, count) * (x - own[MEANS + 1])
    own[MEANS + 2] += learning_rate(_SLOW, count) * (x - own[MEANS + 2])
    hour = int(time_of_day(time) / DAY * DAY_BINS) % DAY_BINS
    off = x - own[HOUR + hour] if own[HOUR_COUNT + hour] > 0.0 else 0.0
    own[HOUR_COUNT + hour] += 1.0
    own[HOUR + hour] += max(_DAY_RATE, 1.0 / own[HOUR_COUNT + hour]) * (x - own[HOUR + hour])
    own[OF_DAY] += learning_rate(_QUICK, count) * (off - own[OF_DAY])
    for k in range(SIGNALS):
        if k == NOVEL_VALUE:
            signal = x
        elif k == NOVEL_MIDDLE:
            signal = own[MEANS] - own[MEANS + 1]
        elif k == NOVEL_SLOW:
            signal = own[MEANS + 1] - own[MEANS + 2]
        else:
            signal = own[OF_DAY]
        start = HISTOGRAMS + k * HISTOGRAM
        parts[k] = rarity(own[start : start + HISTOGRAM], _outside(own, k, signal))
    if int(count + 1.0) % _EPOCH == 0:
        for k in range(SIGNALS):
            own[LOW_BEFORE + k], own[HIGH_BEFORE + k] = own[LOW + k], own[HIGH + k]
            own[LOW + k], own[HIGH + k] = 1e300, -1e300
