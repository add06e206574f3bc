"""Which anomalies belong together: those of neighbours within a short time are one event, and of several devices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Numbers = NDArray[np.int64]
Flags = NDArray[np.bool_]


def neighbours(positions: Vector, distance: float) -> Flags:
    """Which devices are neighbours, (d, d): every device is its own.

    Parameters
    ----------
    positions:
        (d, 2) x and y; NaN where it is not known: such a device has no neighbours
    distance:
        up to which two devices are, in the positions' unit

    >>> neighbours(np.array([[0.0, 0.0], [3.0, 4.0], [9.0, 9.0]]), 5.0).astype(int)
    array([[1, 1, 0],
           [1, 1, 0],
           [0, 0, 1]])
    """
    apart = np.hypot(*(positions[:, None, axis] - positions[None, :, axis] for axis in (0, 1)))
    near: Flags = (apart <= distance) | np.eye(len(positions), dtype=bool)
    return near


def events(times: Vector, devices: Numbers, near: Flags, within: float, fewest: int = 2) -> tuple[Numbers, Flags]:
    """Put anomalies together into events.

    Two anomalies of neighbours (or of one device) that are no further apart in time than `within` belong together, and
    so does what belongs to either. Where fewer than `fewest` devices meet, each device's anomalies are an event.

    Parameters
    ----------
    times:
        (m,) s, in any order
    devices:
        (m,) which device, 0 to d - 1
    near:
        (d, d) which devices are neighbours, symmetric
    within:
        s

    Returns
    -------
    (m,) the number of each anomaly's event, counted from 0 in order of their first anomalies; (m,) whether it is of
    several devices

    >>> times, devices = np.array([0.0, 30.0, 500.0, 30.0]), np.array([0, 1, 0, 2])
    >>> near = neighbours(np.array([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0]]), 1.0)
    >>> events(times, devices, near, 60.0)
    (array([0, 0, 2, 1]), array([ True,  True, False, False]))
    """
    order = np.lexsort((devices, times))
    together = _chains(times[order], devices[order], near, within)
    alone = _chains(times[order], devices[order], np.eye(len(near), dtype=bool), within)
    pairs = np.unique(np.column_stack((together, devices[order])), axis=0)
    met = np.bincount(pairs[:, 0].astype(np.int64), minlength=len(times))
    shared = met[together] >= max(fewest, 2)
    labels = np.where(shared, together, alone)  # both are places of a first anomaly, so they never mean two events
    numbers, flags = np.empty(len(times), dtype=np.int64), np.empty(len(times), dtype=bool)
    numbers[order] = np.unique(labels, return_inverse=True)[1]
    flags[order] = shared
    return numbers, flags


def _chains(times: Vector, devices: Numbers, near: Flags, within: float) -> Numbers:
    """The first anomaly of each anomaly's chain, (m,), for anomalies in order of time.

    It is enough to look at each neighbour's last anomaly: an earlier one in reach is in that one's chain.
    """
    parents = np.arange(len(times))
    last = np.full(len(near), -1)
    for i, device in enumerate(devices):
        before = last[near[device]]
        for j in before[before >= 0]:
            if times[i] - times[j] <= within:
                a, b = _root(parents, i), _root(parents, int(j))
                parents[max(a, b)] = min(a, b)
        last[device] = i
    return np.array([_root(parents, i) for i in range(len(times))], dtype=np.int64)


def _root(parents: Numbers, i: int) -> int:
    """The first of a chain, shortening the way to it."""
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = int(parents[i])
    return i
