"""The verdict on a reading: each sensor's surprises, joined to one; scored first, then learnt."""

from __future__ import annotations

from math import exp, inf, log, log2, log10, sqrt

from flead.compilation import Floats, kernel
from flead.scoring.arithmetic import LARGEST_VALUE, cut
from flead.scoring.calibration import score_strangeness
from flead.scoring.changes import score_changes
from flead.scoring.failures import end_absence, score_absence, score_repeats, score_silence, score_zero
from flead.scoring.layout import (
    BEFORE,
    CHANGED,
    COUNT,
    ENDLESS,
    EXTRA,
    FAST,
    JUMP,
    LAST,
    LEVEL,
    MEANS,
    MISSING,
    RING,
    RING_LENGTH,
    STATISTICS,
    STEADY,
    STUCK,
    TRACE,
    USUAL_RUN,
    Scores,
)
from flead.scoring.novelty import score_novelty
from flead.scoring.unrest import joint, most_restless, score_unrest

KINDS = ("residual", "level", "drift", "noise", "stuck", "missing", "pattern", "unrest", "detector")
"""What spoke loudest: a jump that was not forecast, a value never seen, a slow move, noise, a value that does not
change, a value that does not come, an unusual value for the time of day, sensors restless together, a plug-in."""
_KIND_OF = tuple(
    map(
        KINDS.index,
        ("level", "level", "drift", "pattern", "residual", "residual", "noise", "drift", "stuck", "level", "stuck",
         "missing"),
    )
)  # fmt: skip
"""The kind of each statistic, in the order of `flead.scoring.layout`."""
_MISSING, _UNREST, _DETECTOR = map(KINDS.index, ("missing", "unrest", "detector"))

SURPRISE, SENSOR, KIND, JOINT, BY_SENSOR = range(5)
"""Places in a verdict, (4 + n,), see `score`."""
HIGHEST = 15.9
"""Largest surprise: 1 - 10**-15.9 is the last probability below 1 that a float64 holds."""

_WARM = 10.0
"""Readings of a sensor before its value can surprise: with 50, faults of the first half hour are not ranked at all."""
_ENOUGH_CHANGES = 10.0
"""Changes of a sensor until surprise at its changes counts in full: before, the typical change is a guess."""

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
def _begin(own: Floats, x: float) -> None:
    """A sensor's first value."""
    own[LAST] = own[BEFORE] = own[LEVEL] = own[FAST] = own[STEADY] = x
    own[MEANS : MEANS + 3] = x
    own[RING : RING + RING_LENGTH] = x
    own[USUAL_RUN] = 0.5


@kernel
def _value(own: Floats, parts: Floats, x: float, residual: float, time: float) -> None:
    """Score and learn one sensor's value."""
    if own[COUNT] == 0.0:
        _begin(own, x)
    score_novelty(own, parts, x, time)
    score_changes(own, parts, x, residual)
    score_repeats(own, parts, x)
    end_absence(own)
    score_zero(own, parts, x)
    score_unrest(own, parts, x)
    if own[CHANGED] < _ENOUGH_CHANGES:
        parts[JUMP:MISSING] *= own[CHANGED] / _ENOUGH_CHANGES
    if own[COUNT] < _WARM:
        parts[:] = 0.0
    own[BEFORE], own[LAST] = own[LAST], x
    own[COUNT] += 1.0


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
    for s in range(into.size - BY_SENSOR):
        if s != into[SENSOR]:
            found = max(found, into[BY_SENSOR + s])
    return found


@kernel
def _refracted(scores: Scores, surprise: float) -> float:
    """A surprise less what was reported lately: an event on a single sensor is reported at its onset."""
    trace = scores.device[TRACE] * _TRACE_LEFT
    scores.device[TRACE] = max(trace, surprise)
    return float(max(surprise - trace, _REFRACTORY_FLOOR * surprise))


@kernel
def _together(parts: Floats) -> float:
    """The surprises at a sensor's changes as one, a little above the largest: noise is a jump, a spike and rough."""
    total = 0.0
    for k in range(JUMP, STUCK):
        square = parts[k] * parts[k]
        total += square * square
    return sqrt(sqrt(total))


@kernel
def _of_sensor(parts: Floats, into: Floats, s: int, n: int) -> float:
    """Join one sensor's surprises; where it is the loudest so far, name it and its kind. Returns what is lasting."""
    own, kind, lasting, alone = 0.0, 0, 0.0, n == 1
    for k in range(STATISTICS):
        u = parts[k] * (_ALONE[k] if alone else _TOGETHER[k])
        if alone and JUMP <= k < ENDLESS:
            u = _BAND * parts[k] / (1.0 + parts[k])
            lasting = max(lasting, u)
        elif k >= ENDLESS:
            lasting = max(lasting, u)
        if u > own:
            own, kind = u, k
    if not alone:
        own = max(own, _together(parts))
    if own > into[JOINT]:
        into[SENSOR], into[KIND], into[JOINT] = s, _KIND_OF[kind], own
    into[BY_SENSOR + s] = min(own, HIGHEST)
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
    into[SENSOR] = -1.0
    scores.parts[:] = 0.0
    lasting = 0.0
    for s in range(n):
        parts = scores.parts[s]
        if abs(x[s]) < inf:  # neither NaN nor infinite
            _value(scores.own[s], parts, cut(x[s], LARGEST_VALUE), residual[s], time)
        else:
            score_absence(scores.own[s], parts)
        lasting = max(lasting, _of_sensor(parts, into, s, n))
    if n > 1:
        into[JOINT] = max(into[JOINT] - _FELT_BY_TWO * _second(into), lasting)
    silent = score_silence(scores, gap)
    if silent > into[JOINT]:
        into[SENSOR], into[KIND], into[JOINT] = -1.0, _MISSING, silent
    for k in range(min(extra.size, EXTRA)):
        strange = score_strangeness(scores.plugins[k], extra[k]) * (_DETECTOR_WEIGHT if n == 1 else 1.0)
        if strange > into[JOINT]:
            into[SENSOR], into[KIND], into[JOINT] = -1.0, _DETECTOR, strange
    if n > 1:
        unrest = _UNREST_WEIGHT * joint(scores.parts)
        if unrest > into[JOINT]:
            into[SENSOR], into[KIND], into[JOINT] = most_restless(scores.parts), _UNREST, unrest
    into[JOINT] = min(into[JOINT], HIGHEST)
    if n == 1:
        into[SURPRISE] = max(_refracted(scores, into[JOINT]), lasting)
        return
    into[JOINT] = into[SURPRISE] = _of_the_largest(into[JOINT], _HEARD * n)
    for s in range(n):
        into[BY_SENSOR + s] = _of_the_largest(into[BY_SENSOR + s], _HEARD)
