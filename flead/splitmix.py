"""Random numbers that belong to a device: they follow from a seed and its number, whoever asks and in whatever order.

Source: Steele, Lea and Flood, 2014, "Fast Splittable Pseudorandom Number Generators" (SplitMix64), each device and
stream a generator of its own. Not for secrets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from flead.network import Vector

Ids = NDArray[np.int64]
"""Devices by number, (k,)."""

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniform(seed: int, stream: int, ids: Ids, count: int) -> Vector:
    """Numbers in (0, 1) that belong to each device, (k, count): the same whoever else is asked for.

    >>> both = uniform(0, 1, np.array([3, 7]), 4)
    >>> bool((both[1] == uniform(0, 1, np.array([7]), 4)[0]).all())
    True
    """
    with np.errstate(over="ignore"):  # of 64 bits, as the generator wants it
        keys = _mixed(np.uint64(seed) + _GAMMA * np.uint64(stream + 1))
        keys = _mixed(keys + _GAMMA * (ids.astype(np.uint64) + np.uint64(1)))
        bits = _mixed(keys[:, None] + _GAMMA * np.arange(1, count + 1, dtype=np.uint64))
    bits >>= np.uint64(12)
    numbers: Vector = bits * 2.0**-52
    numbers += 2.0**-53
    return numbers


def normal(seed: int, stream: int, ids: Ids, count: int) -> Vector:
    """Standard normal numbers of each device, (k, count), from `uniform` (Box and Muller, 1958).

    >>> drawn = normal(0, 1, np.arange(1_000), 100)
    >>> round(float(drawn.std()), 2)
    1.0
    """
    half = (count + 1) // 2
    drawn = uniform(seed, stream, ids, 2 * half)
    length = np.sqrt(-2.0 * np.log(drawn[:, :half]))
    angle = (2.0 * np.pi) * drawn[:, half:]
    drawn[:, :half] = length * np.cos(angle)
    drawn[:, half:] = length * np.sin(angle)
    return drawn[:, :count]


def _mixed(z: Any) -> Any:
    """SplitMix64's finaliser, on whole arrays."""
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))
