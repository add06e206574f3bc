"""How simulated sensors fail: for a whole fleet at once, each failure with its name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Indexes = NDArray[np.int64]

SENSORS = ("temperature", "humidity", "light", "voltage")
"""What every simulated device measures: °C, % relative humidity, lux, V."""

SCALE = np.array([1.0, 2.0, 60.0, 0.05])
"""How far a healthy value moves within minutes, by sensor: faults are drawn in multiples of it."""


@dataclass(frozen=True)
class Kind:
    """A way to fail.

    Parameters
    ----------
    shortest, longest:
        slots that it lasts
    sensors:
        which can fail so, as indexes of `SENSORS`
    """

    name: str
    shortest: int
    longest: int
    sensors: tuple[int, ...]


KINDS = (
    Kind("spike", 1, 1, (0, 1, 2, 3)),
    # Light is the same for hours at night by itself
    Kind("stuck_at", 20, 60, (0, 1, 3)),
    Kind("drift", 60, 180, (0, 1, 3)),
    Kind("noise_burst", 10, 30, (0, 1, 2, 3)),
    Kind("dead_battery", 60, 120, (3,)),
)
"""Every way to fail; the names are what labels say."""

_SPIKE, _STUCK, _DRIFT, _NOISE, _DEAD = range(len(KINDS))
_NONE = -1


class Faults:
    """The faults of a fleet: at most one on a device at a time, each beginning by chance.

    Parameters
    ----------
    devices:
        how many
    interval_s:
        length of a slot, s
    per_day:
        mean number of faults that begin on a device in a day
    rng:
        drawn from in the same way whatever is measured

    >>> faults = Faults(1, 30.0, 2880.0, np.random.default_rng(1))
    >>> faults.strike(np.array([[20.0], [40.0], [100.0], [2.7]]))
    {0: {'fault': 'noise_burst', 'fault_sensor': 'voltage'}}
    """

    def __init__(self, devices: int, interval_s: float, per_day: float, rng: np.random.Generator) -> None:
        self._rng = rng
        self._chance = per_day * interval_s / 86_400.0
        self._kind: Indexes = np.full(devices, _NONE)
        self._sensor: Indexes = np.zeros(devices, dtype=np.int64)
        self._age: Indexes = np.zeros(devices, dtype=np.int64)
        self._length: Indexes = np.ones(devices, dtype=np.int64)
        self._size: Values = np.zeros(devices)
        self._held: Values = np.zeros(devices)

    def strike(self, values: Values) -> dict[int, dict[str, str]]:
        """Change what the failing sensors measure in this slot, in place.

        Parameters
        ----------
        values:
            (4, devices), in the order of `SENSORS`

        Returns
        -------
        the label of every failing device, by its index
        """
        if self._chance == 0.0:
            return {}
        self._begin(values)
        failing = np.flatnonzero(self._kind != _NONE)
        if not failing.size:
            return {}
        self._change(values, failing)
        labels = {
            int(i): {"fault": KINDS[self._kind[i]].name, "fault_sensor": SENSORS[self._sensor[i]]} for i in failing
        }
        self._age[failing] += 1
        over = failing[self._age[failing] >= self._length[failing]]
        self._kind[over] = _NONE
        return labels

    def _begin(self, values: Values) -> None:
        """Let new faults begin on healthy devices."""
        rng = self._rng
        new = np.flatnonzero((rng.random(self._kind.size) < self._chance) & (self._kind == _NONE))
        for i in new:
            choice = int(rng.integers(len(KINDS)))
            kind = KINDS[choice]
            self._kind[i] = choice
            self._sensor[i] = kind.sensors[int(rng.integers(len(kind.sensors)))]
            self._length[i] = rng.integers(kind.shortest, kind.longest + 1)
            self._size[i] = rng.choice((-1.0, 1.0)) * rng.uniform(6.0, 15.0)
        self._age[new] = 0
        self._held[new] = values[self._sensor[new], new]

    def _change(self, values: Values, failing: Indexes) -> None:
        kind, sensor = self._kind[failing], self._sensor[failing]
        size = self._size[failing] * SCALE[sensor]
        # From just above 0 to 1 over the fault's life
        progress = (self._age[failing] + 1) / self._length[failing]
        noise = self._rng.standard_normal(failing.size)
        healthy = values[sensor, failing]
        changed: Values = np.select(
            [kind == _SPIKE, kind == _STUCK, kind == _DRIFT, kind == _NOISE, kind == _DEAD],
            [
                healthy + size,
                self._held[failing],
                healthy + size * progress,
                healthy + size * noise / 2,
                healthy - progress,
            ],
        )
        values[sensor, failing] = np.where(sensor == 2, np.abs(changed), changed)
        # With its supply gone a thermometer reads too hot: the motes of the Intel lab ended at 122 °C
        dead, how_far = failing[kind == _DEAD], progress[kind == _DEAD]
        values[0, dead] += 100.0 * np.maximum(how_far - 0.3, 0.0) ** 2
