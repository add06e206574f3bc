"""Optimisers on the server: the mean of the devices' changes is taken for a gradient and followed by some rule.

Each takes `change` (parameters,), the mean model less the previous one, and what it remembers, and gives what to
remember next. Arrays are never written to.

Sources: Hsu et al., 2019, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
Classification" (momentum); Reddi et al., 2021, "Adaptive Federated Optimization", algorithm 2 (the others).
"""

from __future__ import annotations

import numpy as np

from flead.network import Vector


def momentum(change: Vector, remembered: Vector, *, share: float) -> Vector:
    """The sum of all changes, each round's worth `share` of the next one's (FedAvgM).

    >>> momentum(np.array([1.0]), np.array([2.0]), share=0.5)
    array([2.])
    """
    summed: Vector = share * remembered + change
    return summed


def smoothed(change: Vector, first: Vector, beta1: float) -> Vector:
    """The running mean of the changes, m in the paper."""
    mean: Vector = beta1 * first + (1.0 - beta1) * change
    return mean


def adagrad(change: Vector, second: Vector) -> Vector:
    """The sum of all squared changes, v in the paper.

    >>> adagrad(np.array([2.0]), np.array([1.0]))
    array([5.])
    """
    total: Vector = second + change * change
    return total


def adam(change: Vector, second: Vector, beta2: float) -> Vector:
    """The running mean of the squared changes.

    >>> adam(np.array([2.0]), np.array([1.0]), 0.5)
    array([2.5])
    """
    mean: Vector = beta2 * second + (1.0 - beta2) * change * change
    return mean


def yogi(change: Vector, second: Vector, beta2: float) -> Vector:
    """Towards the squared changes by steps as long as they are: forgets slower than Adam where changes get small.

    >>> yogi(np.array([2.0]), np.array([1.0]), 0.5), yogi(np.array([1.0]), np.array([4.0]), 0.5)
    (array([3.]), array([3.5]))
    """
    square = change * change
    mean: Vector = second - (1.0 - beta2) * square * np.sign(second - square)
    return mean


def stepped(previous: Vector, first: Vector, second: Vector, rate: float, tau: float) -> Vector:
    """The next model: one step of `rate`, each parameter's by its own typical change; `tau` keeps it finite."""
    theta: Vector = previous + rate * first / (np.sqrt(second) + tau)
    return theta
