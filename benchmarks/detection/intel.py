"""Intel Lab readings with injected faults: five kinds, each in 1 % of the windows of 20 readings, in one sensor.

Spike: one reading +-2 sd off. Stuck: all 20 hold the first value. Ramp: linearly to +-2 sd. Noise: Gaussian of 0.5 sd
added. Zero: five readings are 0. A sensor's sd is that of the mote's whole series.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data.frames import Frame

WINDOW = 20
KINDS = ("spike", "stuck", "ramp", "noise", "zero")
SHARE = 0.01
SEED = 7


@dataclass(frozen=True)
class Faulty:
    """A mote's readings with faults.

    Attributes
    ----------
    rows: (m,) which reading is faulty: 0 for none, else 1 + the kind
    windows: (m // WINDOW,) the same by window
    """

    frame: Frame
    rows: NDArray[np.int64]
    windows: NDArray[np.int64]


def inject(frame: Frame, rng: np.random.Generator) -> Faulty:
    """Put faults into a copy of a mote's readings, in sensors that have more than 100 of them."""
    n_windows = len(frame.times) // WINDOW
    length = n_windows * WINDOW
    values = frame.values[:length].copy()
    rows, windows = np.zeros(length, dtype=np.int64), np.zeros(n_windows, dtype=np.int64)
    sd = np.nanstd(values, axis=0) if length else np.zeros(values.shape[1])
    sensors = [s for s in range(values.shape[1]) if np.isfinite(values[:, s]).sum() > 100]
    each = max(1, round(SHARE * n_windows)) if sensors else 0
    order = rng.permutation(n_windows)
    for kind in range(len(KINDS)):
        for window in order[kind * each : (kind + 1) * each]:
            touched = _fault(values, int(window) * WINDOW, kind, int(rng.choice(sensors)), sd, rng)
            rows[touched] = windows[window] = 1 + kind
    cut = replace(frame, times=frame.times[:length], values=values, records=frame.records[:length])
    return Faulty(cut, rows, windows)


def _fault(values: NDArray[np.float64], start: int, kind: int, s: int, sd: NDArray[np.float64],
           rng: np.random.Generator) -> slice:  # fmt: skip
    """Write one fault; gives the rows it touches."""
    whole, sign = slice(start, start + WINDOW), rng.choice((-1.0, 1.0))
    name = KINDS[kind]
    if name == "spike":
        at = start + int(rng.integers(WINDOW))
        values[at, s] += 2.0 * sign * sd[s]
        return slice(at, at + 1)
    if name == "zero":
        at = start + int(rng.integers(WINDOW - 4))
        values[at : at + 5, s] = 0.0
        return slice(at, at + 5)
    if name == "stuck":
        values[whole, s] = values[start, s]
    elif name == "ramp":
        values[whole, s] += 2.0 * sign * sd[s] * np.linspace(0.0, 1.0, WINDOW)
    else:
        values[whole, s] += rng.normal(0.0, 0.5 * sd[s], WINDOW)
    return whole
