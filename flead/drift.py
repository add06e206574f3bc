"""Concept drift: when a device's errors are no longer what they were. Constant in time and memory.

Both detectors keep their state in one flat array of float64 that begins as zeros, and say 1.0 where the mean of what
they watch has risen, -1.0 where it has fallen, else 0.0. They detect where River's detectors of the same name do.
"""

from __future__ import annotations

from math import log, sqrt

from flead.compilation import Floats, kernel

ADWIN_DELTA = 0.002
"""Confidence of ADWIN: the chance of a false cut, as in River."""
_CLOCK, _PER_ROW, _SHORTEST, _GRACE = 32, 5, 5, 10
_ROWS = 16  # windows of up to 5 * 2**16 readings
_SLOTS = _PER_ROW + 1
_TOTALS, _VARIANCES = 4 + _ROWS, 4 + _ROWS + _ROWS * _SLOTS
ADWIN_SIZE = 4 + _ROWS + 2 * _ROWS * _SLOTS
"""Numbers of state: width, total, variance, ticks; buckets in each row; their totals; their variances."""

PAGE_HINKLEY_SIZE = 6
PAGE_HINKLEY_DELTA, PAGE_HINKLEY_THRESHOLD, PAGE_HINKLEY_ALPHA, PAGE_HINKLEY_WARM = 0.005, 50.0, 0.9999, 30


@kernel
def page_hinkley(state: Floats, x: float) -> float:
    """Take one value: the cumulated difference from the mean, against its own extreme.

    Source: Page, 1954, "Continuous inspection schemes", Biometrika 41; the fading sum as in River.

    >>> import numpy as np
    >>> state = np.zeros(PAGE_HINKLEY_SIZE)
    >>> any(page_hinkley(state, 0.0) for _ in range(1000))
    False
    >>> next(i for i in range(1000) if page_hinkley(state, 1.0))
    51
    """
    state[0] += 1.0
    count = state[0]
    if count == 1.0:
        state[4], state[5] = 1e300, -1.0
    state[1] += (x - state[1]) / count
    deviation = x - state[1]
    state[2] = PAGE_HINKLEY_ALPHA * state[2] + deviation - PAGE_HINKLEY_DELTA
    state[3] = PAGE_HINKLEY_ALPHA * state[3] + deviation + PAGE_HINKLEY_DELTA
    state[4] = min(state[4], state[2])
    state[5] = max(state[5], state[3])
    if count < PAGE_HINKLEY_WARM:
        return 0.0
    change = 0.0
    if state[2] - state[4] > PAGE_HINKLEY_THRESHOLD:
        change = 1.0
    elif state[5] - state[3] > PAGE_HINKLEY_THRESHOLD:
        change = -1.0
    if change != 0.0:
        state[:] = 0.0
    return change


@kernel
def adwin(state: Floats, x: float) -> float:
    """Take one value: a window that is cut where its older and newer part differ.

    Source: Bifet and Gavaldà, 2007, "Learning from time-changing data with adaptive windowing".

    >>> import numpy as np
    >>> state = np.zeros(ADWIN_SIZE)
    >>> any(adwin(state, i % 2) for i in range(1000))
    False
    >>> next(i for i in range(1000) if adwin(state, 5.0 + i % 2))
    23
    """
    width = state[0] = state[0] + 1.0
    if width > 1.0:
        off = x - state[1] / (width - 1.0)
        state[2] += (width - 1.0) * off * off / width
    state[1] += x
    _insert(state, 0, x, 0.0)
    row = 0
    while state[4 + row] == _SLOTS:  # two of the oldest become one of the next row
        if row == _ROWS - 1:
            _drop_oldest(state, row)
            break
        a, size = _TOTALS + row * _SLOTS, 2.0**row
        apart = (state[a] - state[a + 1]) / size
        b = _VARIANCES + row * _SLOTS
        _insert(state, row + 1, state[a] + state[a + 1], state[b] + state[b + 1] + size * apart * apart / 2.0)
        _shift(state, row, 2)
        row += 1
    state[3] += 1.0
    if state[3] % _CLOCK != 0.0 or state[0] <= _GRACE:
        return 0.0
    change = _cut(state)
    if change != 0.0:
        state[:] = 0.0  # the window begins anew, as River's does
    return change


@kernel
def _insert(state: Floats, row: int, total: float, variance: float) -> None:
    slot = row * _SLOTS + int(state[4 + row])
    state[_TOTALS + slot] = total
    state[_VARIANCES + slot] = variance
    state[4 + row] += 1.0


@kernel
def _shift(state: Floats, row: int, gone: int) -> None:
    start = row * _SLOTS
    for i in range(start, start + _SLOTS - gone):
        state[_TOTALS + i] = state[_TOTALS + i + gone]
        state[_VARIANCES + i] = state[_VARIANCES + i + gone]
    state[4 + row] -= gone


@kernel
def _drop_oldest(state: Floats, row: int) -> None:
    size = 2.0**row
    total, variance = state[_TOTALS + row * _SLOTS], state[_VARIANCES + row * _SLOTS]
    state[0] -= size
    state[1] -= total
    apart = total / size - state[1] / state[0]
    state[2] -= variance + size * state[0] * apart * apart / (size + state[0])
    _shift(state, row, 1)


@kernel
def _cut(state: Floats) -> float:
    """1.0 or -1.0 where some cut of the window leaves two parts whose means differ: the newer is higher or lower."""
    width, total = state[0], state[1]
    limit = log(2.0 * log(width) / ADWIN_DELTA)
    old_n = old_total = 0.0
    for row in range(_ROWS - 1, -1, -1):
        size = 2.0**row
        for slot in range(int(state[4 + row])):
            old_n += size
            old_total += state[_TOTALS + row * _SLOTS + slot]
            new_n = width - old_n
            if new_n < _SHORTEST:
                return 0.0
            if old_n < _SHORTEST:
                continue
            m = 1.0 / (old_n - _SHORTEST + 1.0) + 1.0 / (new_n - _SHORTEST + 1.0)
            spread = max(state[2], 0.0) / width
            apart = (total - old_total) / new_n - old_total / old_n
            if abs(apart) > sqrt(2.0 * m * spread * limit) + 2.0 / 3.0 * limit * m:
                return 1.0 if apart > 0.0 else -1.0
    return 0.0
