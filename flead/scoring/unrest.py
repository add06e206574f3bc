"""Unrest: all sensors of a device change more than they usually do while their levels are off.

This lasts as long as the event, and needs two sensors that agree.
"""

from __future__ import annotations

from math import log, sqrt

from flead.compilation import Floats, kernel
from flead.scoring.arithmetic import READY, cut, finest, learning_rate
from flead.scoring.layout import APART, COUNT, ENERGY, EXCITED, FAST, LAST, STEADY, USUAL_ENERGY, VARIANCE

_FAST_HALF_LIFE, _STEADY_HALF_LIFE = 2.0, 300.0
_ENERGY_HALF_LIFE, _USUAL_HALF_LIFE = 12.0, 3_000.0
"""Half-lives of the two means and of the two energies that are compared, in readings."""
_STEADY_LIMIT, _USUAL_LIMIT, _ENERGY_LIMIT = 2.0, 9.0, 1e4
"""What the steady mean learns (sd), and what the usual and the present energy learn (times the usual one)."""
_APART_LIMIT = 10.0
"""Most standard deviations that a level can be off."""


@kernel
def score_unrest(own: Floats, parts: Floats, x: float) -> None:
    """How far one sensor's level is from its steady mean (in sd), and how far the energy of its changes is up."""
    count, usual = own[COUNT], own[USUAL_ENERGY]
    spread = sqrt(own[VARIANCE]) + finest(own[STEADY])
    own[FAST] += learning_rate(_FAST_HALF_LIFE, count) * (x - own[FAST])
    change = (x - own[LAST]) ** 2
    settled = count > READY
    own[ENERGY] += learning_rate(_ENERGY_HALF_LIFE, count) * (
        min(change, _ENERGY_LIMIT * usual if settled else change) - own[ENERGY]
    )
    parts[APART] = min(abs(own[FAST] - own[STEADY]) / spread, _APART_LIMIT) * min(1.0, count / _STEADY_HALF_LIFE)
    parts[EXCITED] = log(1.0 + own[ENERGY] / usual) if usual > 0.0 else 0.0
    off = x - own[STEADY]
    if settled:
        off = cut(off, _STEADY_LIMIT * spread)
    rate = learning_rate(_STEADY_HALF_LIFE, count)
    own[STEADY] += rate * off
    own[VARIANCE] = (1.0 - rate) * (own[VARIANCE] + rate * off * off)
    own[USUAL_ENERGY] += learning_rate(_USUAL_HALF_LIFE, count) * (
        min(change, _USUAL_LIMIT * usual if settled else change) - usual
    )


@kernel
def joint(parts: Floats) -> float:
    """How far the levels are off on average, times the unrest of the calmest sensor."""
    return float(parts[:, APART].mean() * parts[:, EXCITED].min())


@kernel
def most_restless(parts: Floats) -> int:
    """The sensor with the largest share of the unrest."""
    most = 0
    for s in range(1, parts.shape[0]):
        if parts[s, APART] * parts[s, EXCITED] > parts[most, APART] * parts[most, EXCITED]:
            most = s
    return most
