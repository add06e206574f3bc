"""Microseconds per reading of one learner, without Kafka and Flink around it: `python -m benchmarks.learner`.

One core, four sensors. Side by side with persistence in bare NumPy: the last value as the forecast, a running mean and
variance of how far off it was, and the z-score; values come to it as arrays. What the learner costs beyond that is the
price of its model. Processor time is measured, so that what else the machine does counts for little.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.machine import describe
from benchmarks.report import keep, table
from flead.learner import DeviceLearner
from flead.learner_config import LearnerConfig
from flead.network import Vector

SENSORS = ("humidity", "light", "temperature", "voltage")
READINGS = 2_000
REPEATS = 7
BEGIN, INTERVAL = 1_704_067_200.0, 30.0
OVER_DEVICES = "frames of 16 devices, all cores"
TARGETS = {"one by one": 40_000.0, "in frames": 400_000.0, OVER_DEVICES: 400_000.0}
"""Readings per second on one core that were asked for."""
PLUGINS = {
    "persistence": LearnerConfig(forecaster="persistence"),
    "linear": LearnerConfig(forecaster="linear"),
    "half_space_trees": LearnerConfig(detectors=("half_space_trees",)),
}


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


class Stream:
    """Readings without end, as each caller wants them; time goes on from one batch to the next."""

    def __init__(self) -> None:
        walk = np.random.default_rng(7).normal(size=(READINGS, len(SENSORS))).cumsum(axis=0) / 10
        self.values = (
            20.0 + 2.0 * np.sin(np.arange(READINGS) * 2 * np.pi / READINGS)[:, None] + walk - walk.mean(axis=0)
        )
        self.given = [dict(zip(SENSORS, row, strict=True)) for row in self.values.tolist()]
        self._batches = itertools.count()

    def times(self) -> Vector:
        """The next batch's, (READINGS,), s."""
        return BEGIN + INTERVAL * (READINGS * next(self._batches) + np.arange(READINGS))


def one_by_one(learner: DeviceLearner) -> Callable[[], float]:
    """What the stream does: a dict in, an `Outcome` out."""
    stream = Stream()

    def run() -> float:
        times = stream.times().tolist()
        begun = time.process_time()
        for at, given in zip(times, stream.given, strict=True):
            learner.process(at, given)
        return time.process_time() - begun

    return run


def bare_calls(learner: DeviceLearner) -> Callable[[], float]:
    """The machine code, called reading by reading, with the row already where it reads it."""
    stream, row, call = Stream(), learner._given, learner._step

    def run() -> float:
        rows = np.column_stack((stream.times(), stream.values))
        begun = time.process_time()
        for each in rows:
            row[:] = each
            call()
        return time.process_time() - begun

    return run


def in_frames(learner: DeviceLearner) -> Callable[[], float]:
    """All readings in one call."""
    stream = Stream()

    def run() -> float:
        times = stream.times()
        begun = time.process_time()
        learner.process_frame(times, stream.values)
        return time.process_time() - begun

    return run


def over_devices(learners: Sequence[DeviceLearner]) -> Callable[[], float]:
    """Frames of several devices on all cores; gives the time on the wall, for each device's readings."""
    streams, pool = [Stream() for _ in learners], ThreadPoolExecutor(os.cpu_count())

    def run() -> float:
        times = [stream.times() for stream in streams]
        begun = time.perf_counter()
        list(pool.map(lambda i: learners[i].process_frame(times[i], streams[i].values), range(len(learners))))
        return (time.perf_counter() - begun) / len(learners)

    return run


def baseline(memory: float) -> Callable[[], float]:
    """Persistence in NumPy."""
    stream, model = Stream(), Persistence(len(SENSORS), memory)

    def run() -> float:
        begun = time.process_time()
        for x in stream.values:
            model.process(x)
        return time.process_time() - begun

    return run


def repeated(call: Callable[[], object]) -> Callable[[], float]:
    """A call as often as there are readings in a batch."""

    def run() -> float:
        begun = time.process_time()
        for _ in range(READINGS):
            call()
        return time.process_time() - begun

    return run


def measure() -> dict[str, float]:
    """Microseconds per reading (or per call), by what is called."""
    config = LearnerConfig()
    learners = [DeviceLearner(SENSORS, config) for _ in range(4)]
    state = learners[3].to_bytes()
    runs: dict[str, Callable[[], float]] = {
        "baseline: persistence in NumPy": baseline(config.memory),
        "one by one": one_by_one(learners[0]),
        "bare calls": bare_calls(learners[1]),
        "in frames": in_frames(learners[2]),
        OVER_DEVICES: over_devices([DeviceLearner(SENSORS, config) for _ in range(16)]),
        **{f"one by one, {name}": one_by_one(DeviceLearner(SENSORS, each)) for name, each in PLUGINS.items()},
        "to_bytes": repeated(learners[3].to_bytes),
        "from_bytes": repeated(lambda: DeviceLearner.from_bytes(state, config)),
    }
    for run in runs.values():  # compiles, and passes the warm-up
        run()
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPEATS):  # in turn, so that what else the machine does to its caches falls on all alike
        for name, run in runs.items():
            taken[name].append(run() / READINGS * 1e6)
    return {name: median(repeats) for name, repeats in taken.items()}


def report(us: dict[str, float]) -> dict[str, Any]:
    """What is printed and kept."""
    return {
        "machine": describe(),
        "load": os.getloadavg()[0],
        "sensors": len(SENSORS),
        "state_bytes": len(DeviceLearner(SENSORS, LearnerConfig()).to_bytes()),
        "microseconds": us,
        "readings_per_second": {name: 1e6 / us[name] for name in us if not name.endswith("_bytes")},
        "frame_to_one_by_one": us["one by one"] / us["in frames"],
        "targets": {name: {"asked": asked, "met": 1e6 / us[name] >= asked} for name, asked in TARGETS.items()},
    }


def main() -> None:
    """Measure, print the table, and keep the figures where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    path = parser.parse_args().json
    found = report(measure())
    rows = [
        (name, us, found["readings_per_second"].get(name), TARGETS.get(name))
        for name, us in found["microseconds"].items()
    ]
    print(f"{found['machine']}; load {found['load']:.1f}")
    of = f"{REPEATS} repeats of {READINGS:,} readings of {len(SENSORS)} sensors"
    print(f"Median of {of}, one core but where it says all\n")
    print(table(("what", "µs", "readings/s", "asked for, readings/s"), rows))
    print(f"\nFrames are {found['frame_to_one_by_one']:.1f} times as fast as readings one by one.")
    print(f"A state takes {found['state_bytes']:,} bytes.")
    keep(path, found)


if __name__ == "__main__":
    main()
