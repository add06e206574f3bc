"""A simulated fleet: an endless stream of readings with daily cycles, radio loss and labelled faults.

The same seed gives the same stream. A fault is named in the reading's metadata, which no model is shown:
`{"fault": "spike", "fault_sensor": "temperature"}`; see `data/faults.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from data.faults import SENSORS, Faults
from flead.errors import BadConfiguration
from flead.messages import Reading

Values = NDArray[np.float64]

START = datetime(2024, 1, 1, tzinfo=UTC)

_DAY_S = 86_400.0


def simulate(
    devices: int,
    *,
    seed: int,
    start: datetime = START,
    interval_s: float = 30.0,
    faults: bool = True,
    faults_per_day: float = 2.0,
    radio_loss: float = 0.1,
    missing: float = 0.01,
) -> Iterator[Reading]:
    """Every device's readings, merged by event time, for ever.

    Each device reports once in every slot of `interval_s`, at a moment of its own within the slot that wanders a
    little. Without faults the stream is the same but for the labelled readings.

    Parameters
    ----------
    devices:
        how many, `sim-1` and up; memory grows with it and with nothing else
    seed:
        of everything random
    start:
        the first slot's beginning, aware
    interval_s:
        length of a slot, s, at least 0.001
    faults:
        whether sensors fail
    faults_per_day:
        mean number of faults that begin on a device in a day of event time
    radio_loss:
        share of readings that never arrive, in [0, 1)
    missing:
        share of values that are None in a reading that does, in [0, 1)

    Raises
    ------
    BadConfiguration
        at once, naming the argument that cannot work

    >>> fleet = simulate(2, seed=1, radio_loss=0.0)
    >>> [next(fleet).device_id for _ in range(4)]
    ['sim-2', 'sim-1', 'sim-2', 'sim-1']
    """
    _check(devices, start, interval_s, faults_per_day, {"radio_loss": radio_loss, "missing": missing})
    # Streams of random numbers of their own: what one part draws leaves the others as they were
    building, radio, failing = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    fleet = _Fleet.build(devices, interval_s, building)
    failures = Faults(devices, interval_s, faults_per_day if faults else 0.0, failing)
    return _stream(fleet, failures, radio, start.astimezone(UTC), radio_loss, missing)


def _check(devices: int, start: datetime, interval_s: float, faults_per_day: float, shares: dict[str, float]) -> None:
    if devices < 1:
        raise BadConfiguration(f"devices is {devices}: give at least 1")
    if start.tzinfo is None:
        raise BadConfiguration(f"start is {start.isoformat()}, without a time zone: add one, such as +00:00")
    if not 0.001 <= interval_s <= _DAY_S:
        raise BadConfiguration(f"interval_s is {interval_s}: give seconds between 0.001 and a day")
    if not 0 <= faults_per_day < math.inf:
        raise BadConfiguration(f"faults_per_day is {faults_per_day}: give a number from 0")
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise BadConfiguration(f"{name} is {share}: give a share from 0 to below 1")


@dataclass
class _Fleet:
    """What the devices are and the state of the rooms that they measure; every array is (devices,)."""

    rng: np.random.Generator
    interval_s: float
    place: Values  # where in the slot a device reports, share of the slot
    phase: Values  # how far its day runs ahead, share of a day
    level: Values  # °C
    swing: Values  # °C, of the daily cycle
    window: Values  # lux at noon
    moisture: Values  # %RH at its own mean temperature
    battery: Values  # V, above the floor, when the stream begins
    cloud: Values  # log of the share of light that comes through
    warmth: Values  # °C that the light has brought into the room
    wander: Values  # (3, devices): slow noise of temperature, humidity and voltage, in units of its deviation

    @classmethod
    def build(cls, devices: int, interval_s: float, rng: np.random.Generator) -> _Fleet:
        """Draw a fleet."""
        return cls(
            rng=rng,
            interval_s=interval_s,
            place=rng.uniform(0.0, 0.9, devices),
            phase=rng.uniform(-0.05, 0.05, devices),
            level=rng.normal(20.0, 1.5, devices),
            swing=rng.uniform(0.5, 2.5, devices),
            window=rng.lognormal(5.5, 0.6, devices),
            moisture=rng.normal(40.0, 4.0, devices),
            battery=rng.uniform(0.3, 0.6, devices),
            cloud=np.zeros(devices),
            warmth=np.zeros(devices),
            wander=rng.standard_normal((3, devices)),
        )

    def step(self, elapsed_s: float, day_s: float) -> Values:
        """Move on by one slot and measure: (4, devices) in the order of `SENSORS`.

        Parameters
        ----------
        elapsed_s:
            since the stream began, s
        day_s:
            since midnight UTC, s
        """
        rng, n = self.rng, self.place.size
        day = day_s / _DAY_S + self.phase
        # Autoregressive noise with time constants of 20 minutes for clouds and 10 for the rest
        keep = math.exp(-self.interval_s / 1200.0)
        self.cloud = keep * self.cloud + math.sqrt(1 - keep * keep) * 0.3 * rng.standard_normal(n)
        keep = math.exp(-self.interval_s / 600.0)
        self.wander = keep * self.wander + math.sqrt(1 - keep * keep) * rng.standard_normal((3, n))
        slow_t, slow_h, slow_v = self.wander

        light = self.window * np.maximum(np.sin(2 * np.pi * (day - 0.25)), 0.0) * np.exp(self.cloud)
        # The room takes about an hour to follow the light
        self.warmth += (1 - math.exp(-self.interval_s / 3600.0)) * (0.006 * light - self.warmth)
        cycle = self.swing * np.sin(2 * np.pi * (day - 0.375)) + self.warmth
        temperature = self.level + cycle + 0.1 * slow_t + 0.02 * rng.standard_normal(n)
        # Warm air of the same moisture is relatively drier
        humidity = self.moisture - 1.6 * cycle + 0.3 * slow_h + 0.05 * rng.standard_normal(n)
        # A battery declines towards its floor within months, and gives a little more when warm
        charge = self.battery * math.exp(-elapsed_s / (120 * _DAY_S))
        voltage = 2.3 + charge + 0.004 * (temperature - 20.0) + 0.002 * slow_v + 0.001 * rng.standard_normal(n)
        light += np.where(light > 0, 0.5 * rng.standard_normal(n), 0.0)
        return np.stack([temperature, np.clip(humidity, 1.0, 99.0), np.maximum(light, 0.0), voltage])

    def moments(self) -> Values:
        """Draw when in the slot each device reports, s; (devices,)."""
        return (self.place + self.rng.uniform(0.0, 0.1, self.place.size)) * self.interval_s


def _stream(
    fleet: _Fleet, faults: Faults, radio: np.random.Generator, start: datetime, radio_loss: float, missing: float
) -> Iterator[Reading]:
    """Slot after slot: measure all devices at once, break some, lose some, order the rest by time."""
    n = fleet.place.size
    names = [f"sim-{i}" for i in range(1, n + 1)]
    midnight_s = (start - start.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()
    slot = 0
    while True:
        elapsed_s = slot * fleet.interval_s
        begin = start + timedelta(seconds=elapsed_s)
        values = fleet.step(elapsed_s, (midnight_s + elapsed_s) % _DAY_S)
        moments = fleet.moments()
        lost = radio.random((len(SENSORS), n)) < missing
        heard = radio.random(n) >= radio_loss
        labels = faults.strike(values)
        if labels:
            lost[:, list(labels)] = False  # a label stands only where the fault can be seen
        table = np.where(lost, np.nan, values.round(4))
        order = np.argsort(moments, kind="stable")
        for i in order[heard[order]].tolist():
            yield _reading(names[i], begin + timedelta(seconds=moments[i]), table[:, i].tolist(), labels.get(i))
        slot += 1


def _reading(name: str, moment: datetime, values: list[float], label: dict[str, str] | None) -> Reading:
    sensors = {sensor: None if value != value else value for sensor, value in zip(SENSORS, values, strict=True)}
    return Reading(device_id=name, timestamp=moment, sensors=sensors, metadata=label or {})
