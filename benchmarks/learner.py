"""Microseconds per reading of one learner, without Kafka and Flink around it: `python -m benchmarks.learner`.

Side by side with persistence in bare NumPy: the last value as the forecast, a running mean and variance of how far off
it was, and the z-score; values come to it as arrays. What the learner costs beyond that is the price of its model.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any

import numpy as np

from benchmarks.machine import describe
from benchmarks.report import table
from flead.learner import DeviceLearner, LearnerConfig
from flead.messages import Reading, ReadingLimits, parse_reading
from flead.network import Vector

SENSORS = (1, 4, 16, 64)
READINGS = 500
REPEATS = 5
BEGIN = datetime(2024, 1, 1, tzinfo=UTC)


class Persistence:
    """Forecasts the last value; scores by the exponentially weighted mean and variance of its residuals."""

    def __init__(self, n_sensors: int, memory: float) -> None:
        self._last, self._mean, self._variance = np.zeros(n_sensors), np.zeros(n_sensors), np.ones(n_sensors)
        self._rate = 1.0 / memory

    def process(self, x: Vector) -> float:
        """Take one reading, (n,); the largest distance from what was expected, in standard deviations."""
        delta = x - self._last - self._mean
        z = np.abs(delta) / np.sqrt(self._variance)
        self._mean += self._rate * delta
        self._variance += self._rate * (delta * delta - self._variance)
        self._last = x
        return float(z.max())


def measure(n_sensors: int) -> tuple[dict[str, float], int]:
    """Microseconds per call by what is called, and the size of the state in bytes."""
    config, limits = LearnerConfig(), ReadingLimits()
    names = tuple(f"sensor-{i:02}" for i in range(n_sensors))
    values = 20.0 + np.random.default_rng(7).normal(size=(READINGS, n_sensors)).cumsum(axis=0) / 10
    given = [dict(zip(names, row, strict=True)) for row in values.tolist()]
    times = [BEGIN + timedelta(seconds=30 * i) for i in range(READINGS)]
    raw = [
        Reading(device_id="device-1", timestamp=at, sensors=dict(sensors)).to_json()
        for at, sensors in zip(times, given, strict=True)
    ]
    learner, baseline = DeviceLearner(names, config), Persistence(n_sensors, config.memory)
    for sensors in given:  # past the warm-up
        learner.process(sensors)
    state = learner.to_bytes()
    now = times[-1]
    calls: dict[str, tuple[Callable[[Any], object], list[Any]]] = {
        "persistence": (baseline.process, list(values)),
        "process": (learner.process, given),
        "to_bytes": (lambda _: learner.to_bytes(), given),
        "from_bytes": (lambda _: DeviceLearner.from_bytes(state, config), given),
        "parse_reading": (lambda record: parse_reading(record, now=now, limits=limits), raw),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPEATS):  # in turn, so that what else the machine does falls on all alike
        for name, (call, arguments) in calls.items():
            taken[name].append(_microseconds(call, arguments))
    return {name: median(repeats) for name, repeats in taken.items()}, len(state)


def _microseconds(call: Callable[[Any], object], arguments: list[Any]) -> float:
    begun = time.perf_counter()
    for argument in arguments:
        call(argument)
    return (time.perf_counter() - begun) / len(arguments) * 1e6


def main() -> None:
    """Measure each number of sensors and print the table."""
    rows = []
    for n in SENSORS:
        us, size = measure(n)
        network = "-".join(map(str, (n, *LearnerConfig().hidden_sizes, n)))
        ratio = us["process"] / us["persistence"]
        columns = (us["persistence"], us["process"], f"{ratio:.1f}x")
        rows.append((n, network, *columns, us["to_bytes"], us["from_bytes"], us["parse_reading"], size))
    print(f"{describe()}\nMedian of {REPEATS} repeats of {READINGS} readings\n")
    header = (
        "sensors", "network", "persistence, µs", "process, µs", "ratio", "to_bytes, µs", "from_bytes, µs",
        "parse_reading, µs", "state, bytes",
    )  # fmt: skip
    print(table(header, rows))


if __name__ == "__main__":
    main()
