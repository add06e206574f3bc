"""Failures: a sensor that repeats its value, gives none or zero, and a device that is silent."""

from __future__ import annotations

from math import log2, log10

from flead.compilation import Floats, kernel
from flead.scoring.calibration import KNOWN
from flead.scoring.layout import (
    ABSENT,
    CHANGED,
    COUNT,
    ENDLESS,
    LAST,
    LONGEST_ABSENT,
    LONGEST_GAP,
    LONGEST_RUN,
    MISSING,
    READINGS,
    REPEATED,
    REST,
    RUN,
    STUCK,
    USUAL_RUN,
    ZERO,
    ZEROS,
    Scores,
)

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
def score_repeats(own: Floats, parts: Floats, x: float) -> None:
    """Surprise at a value that stays equal: by the usual length of such runs, and by the longest.

    A value at which the sensor has rested for long before, as light does in the dark, may rest again, and longer.
    """
    if x == own[LAST]:
        own[RUN] += 1.0
        if own[CHANGED] == 0.0:
            return  # a sensor that never changed yet: no run of it has ended
        usual, longest = 2.0 ** own[USUAL_RUN] - 1.0 + _RUN_SOFT, own[LONGEST_RUN]
        times, more = _ENDLESS_RUN
        if x == own[REST] and longest >= _LONG_REST:
            usual, times, more = max(usual, longest), _LONGER_REST, _NEW_RECORD
        if own[RUN] <= _NEWS:
            own[REPEATED] += log10((usual + 1.0) / usual)  # of a geometric law
        elif own[RUN] <= longest + _NEW_RECORD:
            own[REPEATED] *= _NEWS_LEFT
        parts[STUCK] = _REPEATS_WEIGHT * own[REPEATED]
        parts[ENDLESS] = _record(own[RUN], longest, times, more, own[RUN] - 1.0)
        return
    usual = own[RUN] if own[CHANGED] > 1.0 else 0.0  # what a sensor begins with may be a rest, and is no usual run
    own[USUAL_RUN] += max(_RUN_RATE, 1.0 / (own[CHANGED] + 1.0)) * (log2(1.0 + usual) - own[USUAL_RUN])
    own[LONGEST_RUN] *= _FORGET_RECORD
    if own[RUN] >= own[LONGEST_RUN]:
        own[LONGEST_RUN], own[REST] = own[RUN], own[LAST]
    own[RUN] = own[REPEATED] = 0.0


_FAILED = 2.0
"""A zero counts for more than its rarity: it is what a sensor gives that has failed."""


@kernel
def score_zero(own: Floats, parts: Floats, x: float) -> None:
    """Surprise at a zero: what a sensor gives that has failed."""
    if x == 0.0:
        parts[ZERO] = _FAILED * log10((own[COUNT] + 1.0) / (own[ZEROS] + 1.0))
        own[ZEROS] += 1.0


@kernel
def end_absence(own: Floats) -> None:
    """Take that one sensor gives a value again."""
    own[LONGEST_ABSENT] = max(_FORGET_RECORD * own[LONGEST_ABSENT], own[ABSENT])
    own[ABSENT] = 0.0


@kernel
def score_absence(own: Floats, parts: Floats) -> None:
    """Score that one sensor gave no value."""
    own[ABSENT] += 1.0
    if own[COUNT] >= KNOWN:
        parts[MISSING] = _record(own[ABSENT], own[LONGEST_ABSENT], *_ENDLESS_ABSENCE, own[ABSENT] - 1.0)


@kernel
def score_silence(scores: Scores, gap: float) -> float:
    """Surprise at a gap between readings that is far longer than any before."""
    found = 0.0
    if scores.device[READINGS] >= KNOWN:
        found = _record(gap, scores.device[LONGEST_GAP], *_ENDLESS_GAP, 0.0)
    if scores.device[READINGS] > 0.0:
        scores.device[LONGEST_GAP] = max(_FORGET_RECORD * scores.device[LONGEST_GAP], gap)
    scores.device[READINGS] += 1.0
    return found
