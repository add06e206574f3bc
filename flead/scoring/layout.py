"""Where everything that is kept of a device, and of one reading, has its place: flat arrays of float64."""

from __future__ import annotations

from typing import NamedTuple

from flead.compilation import Floats, kernel
from flead.scoring.calibration import HISTOGRAM, TAIL

EXTRA = 4
"""Most plug-in detectors whose strangeness is calibrated here."""

NOVEL_VALUE, NOVEL_MIDDLE, NOVEL_SLOW, NOVEL_DAY = range(4)
JUMP, SPIKE, NOISE, RAMP, STUCK, ZERO, ENDLESS, MISSING = range(4, 12)
SIGNALS, TAILS, STATISTICS = 4, 4, 12
"""Signals with a range, statistics with a tail, and all: `ENDLESS` is a run far beyond any, with the kind stuck."""

# Places in a sensor's own numbers.
(
    COUNT, LAST, BEFORE, CHANGED, GRAIN, STIR, ROUGH, RUN, USUAL_RUN, LONGEST_RUN, LEVEL, PATH,
    ZEROS, ABSENT, LONGEST_ABSENT, FAST, STEADY, VARIANCE, ENERGY, USUAL_ENERGY, OF_DAY, REPEATED,
    REST,
) = range(23)  # fmt: skip
DAY_BINS = 24
RING_LENGTH = 16
MEANS = 23
LOW = MEANS + 3
HIGH = LOW + SIGNALS
LOW_BEFORE = HIGH + SIGNALS
HIGH_BEFORE = LOW_BEFORE + SIGNALS
HOUR = HIGH_BEFORE + SIGNALS
HOUR_COUNT = HOUR + DAY_BINS
RING = HOUR_COUNT + DAY_BINS
HISTOGRAMS = RING + RING_LENGTH
TAIL_OF = HISTOGRAMS + SIGNALS * HISTOGRAM
OWN = TAIL_OF + TAILS * TAIL

# Places in a sensor's scratch: the surprise of each statistic, then its share of the joint evidence.
APART, EXCITED = STATISTICS, STATISTICS + 1
PARTS = STATISTICS + 2

TRACE, LONGEST_GAP, READINGS, DEVICE = 0, 1, 2, 3
PLUGIN = 3 + HISTOGRAM
"""Numbers of a plug-in detector: count, mean and variance of its strangeness, its histogram."""
SHARED = DEVICE + EXTRA * PLUGIN


@kernel
def size(n: int) -> int:
    """How many numbers are kept for n sensors.

    >>> size(4) == size(1) + 3 * (size(2) - size(1))
    True
    """
    return SHARED + n * OWN


@kernel
def scratch_size(n: int) -> int:
    """How many numbers of scratch a reading of n sensors takes."""
    return n * PARTS


class Scores(NamedTuple):
    """What is kept of a device with n sensors, and the scratch of one reading.

    Attributes
    ----------
    device: (DEVICE,)
        the trace of what was reported lately, the longest gap, readings
    plugins: (EXTRA, PLUGIN)
        what strangeness each plug-in detector usually finds
    own: (n, OWN)
        each sensor's numbers
    parts: (n, PARTS)
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
        kept[:DEVICE],
        kept[DEVICE:SHARED].reshape(EXTRA, PLUGIN),
        kept[SHARED : SHARED + n * OWN].reshape(n, OWN),
        scratch[: n * PARTS].reshape(n, PARTS),
    )
