"""Merging many devices' parameters into one: pure arithmetic on stacked arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flead.errors import BadUpdate
from flead.network import Vector


def fedavg(stacked: ArrayLike, sample_counts: ArrayLike) -> Vector:
    """Average parameters, each device weighted by its samples (FedAvg).

    Parameters
    ----------
    stacked:
        (devices, parameters)
    sample_counts:
        (devices,), readings that each device learned from

    Returns
    -------
    (parameters,)

    Raises
    ------
    BadUpdate
        where shapes do not fit, a number is not finite, a count is negative or all are zero

    Source: McMahan et al., 2017, "Communication-Efficient Learning of Deep Networks from Decentralized Data".

    >>> fedavg([[1.0, 2.0], [4.0, 8.0]], [2, 1])
    array([2., 4.])
    """
    try:
        models = np.asarray(stacked, dtype=np.float64)
        counts = np.asarray(sample_counts, dtype=np.float64)
    except (ValueError, TypeError):
        raise BadUpdate("the devices' parameters must all have the same length") from None
    if models.ndim != 2 or not models.size:
        raise BadUpdate(f"parameters must be (devices, parameters), they are {models.shape}")
    if counts.shape != models.shape[:1]:
        raise BadUpdate(f"sample counts must be ({len(models)},), they are {counts.shape}")
    if not np.isfinite(models).all():
        raise BadUpdate("a parameter is not a finite number")
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise BadUpdate("a sample count is negative or not a finite number")
    largest = counts.max()
    if largest == 0:
        raise BadUpdate("all sample counts are zero: there is nothing to weigh by")
    shares = counts / largest  # first, so that neither the total nor the weighted sum can overflow
    shares /= shares.sum()
    merged: Vector = shares @ models
    return merged
