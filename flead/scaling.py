"""Online scaling of sensor values, robust to outliers, constant in time and memory."""

from __future__ import annotations

import numpy as np

from flead.network import Vector

CLIP = 8.0
"""Largest normalised value that a model sees, in standard deviations."""
WARM = 30
"""Values after which the statistics count as warm."""
RELATIVE_FLOOR = 1e-3
"""Smallest standard deviation, as a share of the level: finer changes are a sensor's own resolution."""


def spread(mean: Vector, variance: Vector) -> Vector:
    """The standard deviation to divide by, (n,): never zero.

    >>> spread(np.array([20.0, 0.0]), np.array([4.0, 0.0]))
    array([2.e+00, 1.e-09])
    """
    return np.maximum(np.sqrt(variance), RELATIVE_FLOOR * np.abs(mean) + 1e-9)


def update(
    mean: Vector, variance: Vector, count: Vector, x: Vector, observed: Vector, *, memory: float, limit: Vector | float
) -> None:
    """Take one value of each sensor into running statistics, in place.

    Exact mean and variance at first (Welford), exponentially forgetting once `memory` values have come. An outlier
    counts as a value `limit` away from the mean, so that no single value can own warm statistics.

    Parameters
    ----------
    mean, variance, count:
        (n,), changed in place
    x:
        (n,), finite; ignored where `observed` is 0
    observed:
        (n,), 1 where the sensor gave a value, else 0
    memory:
        values after which old ones fade
    limit:
        in the values' units, one for all or (n,); infinite while statistics are cold

    >>> mean, variance, count = np.zeros(1), np.zeros(1), np.zeros(1)
    >>> for value in (1.0, 2.0, 3.0):
    ...     update(mean, variance, count, np.array([value]), np.ones(1), memory=100, limit=9.0)
    >>> mean, variance
    (array([2.]), array([0.66666667]))
    """
    count += observed
    rate = observed / np.minimum(np.maximum(count, 1.0), memory)
    delta = np.minimum(np.maximum(x - mean, -limit), limit)
    step = rate * delta
    mean += step
    variance += delta * (delta - step) * rate - rate * variance
