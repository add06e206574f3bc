"""Changes: a jump, a spike, noise, a ramp, in units of the sensor's typical change."""

from __future__ import annotations

from math import log2, sqrt

from flead.compilation import Floats, kernel
from flead.scoring.arithmetic import cut, finest
from flead.scoring.calibration import TAIL, beyond, learn_tail
from flead.scoring.layout import (
    BEFORE,
    CHANGED,
    COUNT,
    GRAIN,
    JUMP,
    LAST,
    LEVEL,
    NOISE,
    PATH,
    RAMP,
    RING,
    RING_LENGTH,
    ROUGH,
    SPIKE,
    STIR,
    TAIL_OF,
    USUAL_ENERGY,
)

_LEVEL_RATE, _ROUGH_RATE, _STIR_RATE, _GRAIN_RATE = 0.25, 0.15, 0.03, 0.005
"""Learning rates: of the level that a jump has to leave, of noise, of the changes lately, of the typical change."""
_LEVEL_LIMIT, _STIR_LIMIT, _GRAIN_LIMIT, _BEND_LIMIT = 3.0, 4.0, 3.0, 1e4
"""How much of one reading they learn: in scales, in scales, in octaves, in typical changes."""
_LEARNS_FREELY = 20.0
"""Readings until the level's learning is cut short."""
_RAMP_STEEP = 2.5
"""A t statistic grows slowly, so that an octave of it says more."""


@kernel
def _tail_of(own: Floats, statistic: int) -> Floats:
    start = TAIL_OF + (statistic - JUMP) * TAIL
    return own[start : start + TAIL]


@kernel
def _take(own: Floats, parts: Floats, statistic: int, value: float, steep: float) -> None:
    """Score and learn one statistic."""
    tail = _tail_of(own, statistic)
    parts[statistic] = beyond(tail, value, steep)
    learn_tail(tail, value)


@kernel
def score_changes(own: Floats, parts: Floats, x: float, residual: float) -> None:
    """Surprise at how one sensor's value changes: a jump, a spike, noise, a ramp."""
    count, last, before = own[COUNT], own[LAST], own[BEFORE]
    grain = 2.0 ** own[GRAIN] if own[CHANGED] > 0.0 else abs(x - last)
    grain = max(grain, finest(own[LEVEL]))
    stir = own[STIR] / grain
    scale = grain * sqrt(stir * stir + 1.0)
    change = x - last
    # The return from an anomaly is none: a jump has to leave the level before it, too.
    jump = min(abs(change), abs(x - own[LEVEL]))
    if residual == residual:  # not NaN: nor is a jump that was forecast
        jump = min(jump, abs(residual) * sqrt(own[USUAL_ENERGY]))
    _take(own, parts, JUMP, jump / scale, 1.0)
    up, down = last - before, last - x
    # What stood out from both its neighbours is certain once the second is there.
    _take(own, parts, SPIKE, min(abs(up), abs(down)) / scale if up * down > 0.0 else 0.0, 1.0)
    bend = log2(1.0 + min(abs(change - up) / grain, _BEND_LIMIT))
    own[ROUGH] += _ROUGH_RATE * (bend - own[ROUGH])
    # Noise is over when the value is back at its level, though its mean still remembers it.
    rough = min(own[ROUGH], 1.0 + log2(1.0 + min(abs(change), abs(x - own[LEVEL])) / grain))
    _take(own, parts, NOISE, 2.0**rough, 1.0)
    _take(own, parts, RAMP, _ramp(own, x, change, grain), _RAMP_STEEP)
    limit = _LEVEL_LIMIT * scale if count > _LEARNS_FREELY else abs(x - own[LEVEL])
    own[LEVEL] += _LEVEL_RATE * cut(x - own[LEVEL], limit)
    if change != 0.0:
        own[CHANGED] += 1.0
        octave = log2(max(abs(change), 1e-300))
        if own[CHANGED] == 1.0:
            own[GRAIN] = octave
        own[GRAIN] += max(_GRAIN_RATE, 1.0 / own[CHANGED]) * cut(octave - own[GRAIN], _GRAIN_LIMIT)
    own[STIR] += _STIR_RATE * (min(abs(change), _STIR_LIMIT * scale) - own[STIR])


@kernel
def _ramp(own: Floats, x: float, change: float, grain: float) -> float:
    """How far the value went in 16 readings, as a t statistic: against what a random walk of such steps would go."""
    place = RING + int(own[COUNT]) % RING_LENGTH
    after = RING + (int(own[COUNT]) + 1) % RING_LENGTH
    own[PATH] += change * change
    went = x - own[place]
    ratio = went * went / (own[PATH] + grain * grain)
    own[PATH] = max(own[PATH] - (own[after] - own[place]) ** 2, 0.0)
    own[place] = x
    return sqrt(ratio / (max(RING_LENGTH - ratio, 0.0) / (RING_LENGTH - 1.0) + 0.05))
