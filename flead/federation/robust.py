"""Merging where some devices lie: no device's sample count has a say, since it could be a lie, too.

`models` are (devices, parameters) and finite. Each rule gives the merged model, (parameters,), and each device's share
in it, (devices,), together 1. The order of the devices never matters: of two that are equally good, their parameters
decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flead.network import Vector

_BLOCK = 2**19
"""Numbers worked on at once: 4 MiB, about what a core's cache holds."""
FAR = 1e200
"""Squared distances beyond it are infinite: sums of them would be."""
FARTHEST = 1e307
"""Infinite distances count as it: where all are, somebody must have a share."""
BOUND = 1e9
"""Bulyan counts no squared distance as more than so many typical ones."""
FEW = 8
"""With fewer neighbours Bulyan sums anew: so few are often equally near, which rounding must not decide."""


def malicious_count(share: float, devices: int) -> int:
    """How many devices a share is, rounded down.

    >>> malicious_count(0.29, 100), malicious_count(0.3, 3)
    (29, 0)
    """
    return int(share * devices + 1e-9)


def krum_bound(malicious: int, devices: int) -> int:
    """The most that Krum stands among so many devices, at most `malicious`: devices >= 2 malicious + 3.

    >>> krum_bound(3, 10), krum_bound(5, 10), krum_bound(1, 2)
    (3, 3, 0)
    """
    return max(0, min(malicious, (devices - 3) // 2))


def bulyan_bound(malicious: int, devices: int) -> int:
    """The most that Bulyan stands among so many devices, at most `malicious`: devices >= 4 malicious + 3.

    >>> bulyan_bound(3, 15), bulyan_bound(3, 14), bulyan_bound(1, 1)
    (3, 2, 0)
    """
    return max(0, min(malicious, (devices - 3) // 4))


def trimmed_mean(models: Vector, cut: int) -> tuple[Vector, Vector]:
    """Of each parameter the mean without the `cut` largest and the `cut` smallest values, 2 cut < devices.

    Source: Yin et al., 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates".

    >>> trimmed_mean(np.array([[1.0], [2.0], [3.0], [99.0]]), 1)
    (array([2.5]), array([0. , 0.5, 0.5, 0. ]))
    """
    devices, width = models.shape
    theta, shares = np.empty(width), np.zeros(devices)
    for columns, values in _columns(models):
        # All of it, as NumPy's vectorised sort is faster than its partition by two places.
        middle = np.sort(values, axis=1)[:, cut : devices - cut]
        theta[columns] = middle.mean(axis=1)
        kept = (values >= middle[:, :1]) & (values <= middle[:, -1:])
        shares += (1.0 / kept.sum(axis=1)) @ kept
    return theta, shares / width


def median(models: Vector) -> tuple[Vector, Vector]:
    """Of each parameter the median, between the middle two where their number is even.

    Source: Yin et al., 2018, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates".

    >>> median(np.array([[1.0, 0.0], [2.0, 9.0], [99.0, 3.0]]))[0]
    array([2., 3.])
    """
    return trimmed_mean(models, (len(models) - 1) // 2)


def _columns(models: Vector) -> Iterator[tuple[slice, Vector]]:
    """Some parameters at a time, (some, devices), each parameter's values side by side."""
    devices, width = models.shape
    step = max(1, _BLOCK // devices)
    for begin in range(0, width, step):
        columns = slice(begin, min(begin + step, width))
        yield columns, np.ascontiguousarray(models[:, columns].T)


def geometric_median(
    models: Vector, *, smoothing: float = 1e-6, iterations: int = 100, tolerance: float = 1e-9
) -> tuple[Vector, Vector]:
    """The point nearest to all models together, by the sum of distances: smoothed Weiszfeld steps (RFA).

    Parameters
    ----------
    smoothing:
        distances below it count as it
    iterations:
        at most so many steps, begun at the parameters' medians
    tolerance:
        a step shorter than so much of the median distance is the last

    Source: Pillutla et al., 2022, "Robust Aggregation for Federated Learning", algorithm 2, whose weights by samples
    are left out.

    >>> geometric_median(np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0], [1.0, -1.0], [1.0, 0.0]]))[0]
    array([1., 0.])
    """
    theta = median(models)[0]
    shares = np.full(len(models), 1.0 / len(models))
    for _ in range(iterations):
        away = np.clip(distances_to(models, theta), smoothing, FARTHEST)
        shares = 1.0 / away
        shares /= shares.sum()
        step = shares @ models - theta
        theta = theta + step
        if distances_to(step[None], np.zeros_like(step))[0] <= tolerance * np.median(away):
            break
    return theta, shares


def distances_to(models: Vector, theta: Vector) -> Vector:
    """How far each model is from theta, (devices,), Euclidean."""
    found = np.empty(len(models))
    step = max(1, _BLOCK // models.shape[1])
    for begin in range(0, len(models), step):
        with np.errstate(over="ignore"):  # so far away that it has no share
            off = models[begin : begin + step] - theta
            found[begin : begin + step] = np.sqrt(np.einsum("ij,ij->i", off, off))
    return found


def krum(models: Vector, malicious: int) -> tuple[Vector, Vector]:
    """The one model with the nearest neighbours.

    Source: Blanchard et al., 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent".

    >>> krum(np.array([[1.0], [1.1], [1.3], [9.0], [9.0]]), 1)[0]
    array([1.1])
    """
    return multi_krum(models, malicious, 1)


def multi_krum(models: Vector, malicious: int, keep: int) -> tuple[Vector, Vector]:
    """The mean of the `keep` models with the nearest neighbours.

    Source: Blanchard et al., 2017, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent".
    """
    order = _canonical(models)
    scores = krum_scores(models[order], malicious)
    shares = np.zeros(len(models))
    shares[order[np.argsort(scores, kind="stable")[:keep]]] = 1.0 / keep
    return shares @ models, shares


def krum_scores(models: Vector, malicious: int) -> Vector:
    """How far each model is from its nearest others: the sum of the devices - malicious - 2 least squared distances.

    >>> krum_scores(np.array([[0.0], [1.0], [3.0], [9.0]]), 0)
    array([ 10.,   5.,  13., 100.])
    """
    devices = len(models)
    scores = np.zeros(devices)
    for rows, squared in _squared_distances(models):
        if devices > 1:
            scores[rows] = _least(squared, devices - malicious - 2)
    return scores


def _least(squared: Vector, nearest: int) -> Vector:
    """The sum of each row's least squared distances, `nearest` of them, of which at least one counts."""
    count = max(1, nearest)
    sums: Vector = np.partition(squared, count - 1, axis=1)[:, :count].sum(axis=1)
    return sums


def _canonical(models: Vector) -> NDArray[np.int64]:
    """The devices in an order that does not depend on how they came: by their first parameter, else by all bytes."""
    rows = np.ascontiguousarray(models).view(f"V{models.shape[1] * models.itemsize}")[:, 0]
    order = np.argsort(rows)
    return order[np.argsort(models[order, 0], kind="stable")]


def _squared_distances(models: Vector) -> Iterator[tuple[slice, Vector]]:
    """Some devices at a time: their squared distances from all, (some, devices), from itself infinite."""
    with np.errstate(over="ignore"):
        centred = models - median(models)[0]  # what cancels in the product is then no more than honest models differ
        norms = np.einsum("ij,ij->i", centred, centred)
    far = ~(norms < FAR)
    centred[far] = 0.0
    norms[far] = np.inf
    step = max(1, 4 * _BLOCK // len(models))
    for begin in range(0, len(models), step):
        rows = slice(begin, min(begin + step, len(models)))
        squared = centred[rows] @ centred.T
        squared *= -2.0
        squared += norms[rows, None]
        squared += norms
        np.maximum(squared, 0.0, out=squared)
        np.fill_diagonal(squared[:, rows], np.inf)
        yield rows, squared


def bulyan(models: Vector, malicious: int) -> tuple[Vector, Vector]:
    """Krum again and again, then of each parameter the mean of the values nearest to the median of what Krum chose.

    Holds all distances at once: 8 devices^2 bytes and a third more.

    Source: El Mhamdi et al., 2018, "The Hidden Vulnerability of Distributed Learning in Byzantium", algorithm 2.

    >>> bulyan(np.array([[1.0], [1.1], [1.2], [1.3], [1.4], [9.0], [9.0]]), 1)[0].round(1)
    array([1.2])
    """
    order = _canonical(models)
    chosen = order[_krum_again_and_again(models[order], malicious)] if malicious else order
    theta, parts = _nearest_to_median(models[chosen], len(chosen) - 2 * malicious)
    shares = np.zeros(len(models))
    shares[chosen] = parts
    return theta, shares


def _krum_again_and_again(models: Vector, malicious: int) -> NDArray[np.int64]:
    """The devices - 2 malicious devices that Krum gives, each time of those still left; malicious > 0.

    A device's score is the sum over its nearest, of whom there is one fewer each time: the one that left where it was
    among them, else the furthest of them. So distances are sorted once.
    """
    devices = len(models)
    squared, order = _distances_in_order(models, devices - malicious - 2)
    every = np.arange(devices)
    among = np.zeros((devices, devices), dtype=np.bool_)  # [j, i]: j is among the nearest of i
    for begin in range(0, devices, 256):
        among[order[begin : begin + 256], every[begin : begin + 256, None]] = True
    scores = np.array([row[near].sum() for row, near in zip(squared, order, strict=True)])
    last, gone = np.full(devices, order.shape[1] - 1), np.zeros(devices, dtype=np.bool_)
    found = np.empty(devices - 2 * malicious, dtype=np.int64)
    for number in range(len(found)):
        best = found[number] = np.argmin(scores)
        gone[best], scores[best] = True, np.inf
        left = devices - number - 1
        if left - malicious - 2 < FEW:
            rest = np.flatnonzero(~gone)
            scores[rest] = _least(squared[np.ix_(rest, rest)], left - malicious - 2)
            continue
        near = among[best]
        scores[near] -= squared[best, near]
        others = np.flatnonzero(~(near | gone))
        furthest = order[others, last[others]]
        while (passed := gone[furthest]).any():
            last[others[passed]] -= 1
            furthest = order[others, last[others]]
        scores[others] -= squared[others, furthest]
        among[furthest, others] = False
        last[others] -= 1
    return found


def _distances_in_order(models: Vector, nearest: int) -> tuple[Vector, NDArray[Any]]:
    """All squared distances, (devices, devices), from itself infinite, and of each its `nearest`, nearest first."""
    devices = len(models)
    squared, order = np.empty((devices, devices)), np.empty((devices, nearest), dtype=np.min_scalar_type(devices))
    for rows, block in _squared_distances(models):
        squared[rows] = block
    _mirror(squared)
    for begin in range(0, devices, 256):
        rows = slice(begin, begin + 256)
        order[rows] = np.argsort(squared[rows], axis=1)[:, :nearest]
    # Scores shrink by subtraction: next to a distance without bounds nothing would be left of the others' digits.
    typical = float(np.median(squared[np.arange(devices), order[:, devices // 2 - 1]]))
    limit = BOUND * typical if 0.0 < typical < FAR / BOUND else FAR
    np.minimum(squared, limit, out=squared)
    np.fill_diagonal(squared, np.inf)
    return squared, order


def _mirror(squared: Vector) -> None:
    """Make both halves of a square matrix the same to the last bit, in place."""
    step = 1024
    for i in range(0, len(squared), step):
        for j in range(i, len(squared), step):
            there, back = squared[i : i + step, j : j + step], squared[j : j + step, i : i + step]
            there[:] = np.minimum(there, back.T)
            back[:] = there.T


def _nearest_to_median(models: Vector, keep: int) -> tuple[Vector, Vector]:
    """Of each parameter the mean of the `keep` values nearest to its median, and of those as near."""
    devices, width = models.shape
    theta, shares = np.empty(width), np.zeros(devices)
    for columns, values in _columns(models):
        off = np.abs(values - np.median(values, axis=1)[:, None])
        kept = off <= np.partition(off, keep - 1, axis=1)[:, keep - 1 : keep]
        parts = kept / kept.sum(axis=1)[:, None]
        theta[columns] = (parts * values).sum(axis=1)
        shares += parts.sum(axis=0)
    return theta, shares / width
