"""The small steps that every score takes: means that begin quickly, numbers cut to a limit."""

from __future__ import annotations

from flead.compilation import kernel

READY = 30.0
"""Readings that fill a range, a scale or a mean before it is used to cut others short."""

LARGEST_VALUE = 1e100
"""Values are cut to this, so that no square overflows."""
_FINEST, _TINY = 1e-9, 1e-30
"""Smallest change of any meaning, as a share of the level, and at all."""


@kernel
def learning_rate(half_life: float, count: float) -> float:
    """Learning rate of a mean with this half-life, as fast as a plain mean at first."""
    return float(max(1.0 - 0.5 ** (1.0 / half_life), 1.0 / (count + 1.0)))


@kernel
def cut(x: float, limit: float) -> float:
    """The number, no further from zero than the limit."""
    return min(max(x, -limit), limit)


@kernel
def finest(x: float) -> float:
    """The smallest change that means anything where a value is about this large."""
    return _FINEST * abs(x) + _TINY
