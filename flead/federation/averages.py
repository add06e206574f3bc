"""Weighted means of models, and steps along them: whatever is a sum over devices, and so can be summed in parts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flead.federation.updates import sample_counts, stacked_models
from flead.network import Vector


def fedavg(stacked: ArrayLike, samples: ArrayLike) -> Vector:
    """Average parameters, each device weighted by its samples (FedAvg).

    Parameters
    ----------
    stacked:
        (devices, parameters)
    samples:
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
    models = stacked_models(stacked)
    merged: Vector = shares_of(sample_counts(samples, len(models))) @ models
    return merged


def shares_of(samples: Vector) -> Vector:
    """Each device's share by its samples, (devices,), together 1.

    >>> shares_of(np.array([3.0, 1.0, 0.0]))
    array([0.75, 0.25, 0.  ])
    """
    shares: Vector = samples / samples.max()  # first, so that neither the total nor a weighted sum can overflow
    shares /= shares.sum()
    return shares


def staleness_weight(staleness: ArrayLike, exponent: float = 0.5) -> Vector:
    """How much an update still counts that is so many rounds behind: (1 + staleness)^-exponent.

    Source: Nguyen et al., 2022, "Federated Learning with Buffered Asynchronous Aggregation", with exponent 1/2.

    >>> staleness_weight([0, 3, 8])
    array([1.        , 0.5       , 0.33333333])
    """
    weights: Vector = (1.0 + np.asarray(staleness, dtype=np.float64)) ** -exponent
    return weights


def buffered(
    models: Vector, shares: Vector, previous: Vector, bases: Vector | None, freshness: Vector, rate: float
) -> Vector:
    """A step along the mean of what the devices changed, each from the model that it began from (FedBuff).

    Parameters
    ----------
    models, bases:
        (devices, parameters); without bases all began from `previous`
    shares, freshness:
        (devices,), the share by samples and `staleness_weight`
    rate:
        length of the step; 1 with fresh updates is FedAvg

    Source: Nguyen et al., 2022, "Federated Learning with Buffered Asynchronous Aggregation", algorithm 1; its updates
    count alike, here by their samples, so that an update may stand for many devices.
    """
    weights = shares * freshness
    began: Vector = weights.sum() * previous if bases is None else weights @ bases
    moved: Vector = previous + rate * (weights @ models - began)
    return moved
