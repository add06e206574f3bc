"""Readings that no update was learned from: what the server judges models on.

Follows `flead.readings` for a few reference devices and keeps their newest readings in memory. Those readings do reach
the server, which those of no other device do: choose devices whose owner agrees to that, and whose readings are
trusted. Nothing is trained on them here.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from confluent_kafka import TopicPartition

from flead.defence import losses_on
from flead.errors import BadReading
from flead.evaluation import Series, examples_of
from flead.learner_config import LearnerConfig
from flead.messages import ReadingLimits, cohort_of, parse_reading
from flead.network import Architecture, Vector
from flead.state import architecture_of
from flead.training import Examples
from global_server.following import Follower
from kafka.client import make_consumer
from kafka.connection import translated
from kafka.offsets import Offsets
from kafka.topics import READINGS

FEWEST = 100
"""Examples without which nothing is said about a model."""
MOST_EXAMPLES = 1_000
"""Of a cohort, evenly over what is kept: neighbours in time say the same."""
BACKLOG = 50_000
"""Records of each partition, before its end, that are looked through at the start."""
BATCH = 1_000
WAIT_S = 0.5
_GROUP = "flead-held-out"
"""It joins nothing and commits nothing."""


@dataclass
class _Device:
    """A reference device's newest readings as they came: time, s, and values by sensor."""

    readings: deque[tuple[float, Mapping[str, float | None]]]
    taken: int = 0


@dataclass
class _Made:
    """A cohort's examples, and how many readings had been taken when they were made."""

    taken: int
    examples: Examples


@dataclass
class HeldOutReadings:
    """The newest readings of the reference devices, and models judged on them. Safe between threads.

    Attributes
    ----------
    devices: the reference devices' names
    most: readings kept of each
    config: the learners', for features and scales are theirs
    """

    devices: frozenset[str]
    most: int
    config: LearnerConfig
    _kept: dict[str, _Device] = field(default_factory=dict)
    _made: dict[str, _Made] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, device: str, time: float, sensors: Mapping[str, float | None]) -> None:
        """Keep a reading; of another device, nothing happens."""
        if device not in self.devices:
            return
        with self._lock:
            kept = self._kept.setdefault(device, _Device(deque(maxlen=self.most)))
            kept.readings.append((time, sensors))
            kept.taken += 1

    def count(self, device: str) -> int:
        """How many readings of a device are kept."""
        with self._lock:
            return len(self._kept[device].readings) if device in self._kept else 0

    def losses(self, cohort: str, models: Vector, architecture: Architecture) -> Vector | None:
        """Judge models by their mean Huber loss, in the model's units.

        Parameters
        ----------
        models:
            (d, parameter_count)

        Returns
        -------
        (d,); None where too few readings of the cohort are known, or the models are none of our learners'
        """
        examples = self.examples(cohort)
        if examples is None or examples.targets.shape[1] != architecture.output_size:
            return None
        if architecture != architecture_of(self.config, architecture.output_size // 2):
            return None
        return losses_on(examples, models, architecture)

    def examples(self, cohort: str) -> Examples | None:
        """What a cohort's models are judged on; None where there is too little."""
        with self._lock:
            series = [(name, list(device.readings), device.taken) for name, device in self._kept.items()]
        of_cohort = [(name, readings, taken) for name, readings, taken in series if _cohort(readings) == cohort]
        taken = sum(taken for _, _, taken in of_cohort)
        made = self._made.get(cohort)
        if made is None or made.taken != taken:
            parts = [_known(examples_of(_series(name, readings), self.config)) for name, readings, _ in of_cohort]
            together = Examples.together(parts) if parts else None
            if together is None or len(together) < FEWEST:
                return None
            rows = np.linspace(0, len(together) - 1, min(len(together), MOST_EXAMPLES)).astype(np.int64)
            made = self._made[cohort] = _Made(taken, together[rows])
        return made.examples


def _sensors(readings: Collection[tuple[float, Mapping[str, float | None]]]) -> tuple[str, ...]:
    return tuple(sorted({name for _, sensors in readings for name in sensors}))


def _cohort(readings: Collection[tuple[float, Mapping[str, float | None]]]) -> str:
    return cohort_of(_sensors(readings))


def _series(device: str, readings: list[tuple[float, Mapping[str, float | None]]]) -> Series:
    """The readings in time order, what is missing as NaN."""
    sensors = _sensors(readings)
    ordered = sorted(readings, key=lambda reading: reading[0])
    values = np.array([[given.get(name) for name in sensors] for _, given in ordered], dtype=np.float64)
    return Series(device, np.array([time for time, _ in ordered]), values)


def _known(examples: Examples) -> Examples:
    """Those of which any target is known."""
    return examples[np.flatnonzero(examples.weights.any(axis=1))]


class HeldOut(Follower):
    """Follows the reference devices' readings until it is stopped, whatever happens to Kafka meanwhile.

    Partitions that are added to the topic are followed after the next start.

    Parameters
    ----------
    clock:
        gives the present, aware
    """

    def __init__(
        self,
        servers: str,
        readings: HeldOutReadings,
        limits: ReadingLimits,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__("held-out")
        self.servers = servers
        self.readings = readings
        self._limits = limits
        self._clock = clock
        self._names = {name.encode() for name in readings.devices}
        self._places: dict[int, int] = {}

    def losses(self, cohort: str, models: Vector, architecture: Architecture) -> Vector | None:
        """Judge models on what is held out, see `HeldOutReadings.losses`."""
        return self.readings.losses(cohort, models, architecture)

    def _follow(self) -> None:
        offsets = Offsets(self.servers)
        begin, end = offsets.beginning(READINGS), offsets.end(READINGS)
        with closing(make_consumer(self.servers, _GROUP)) as consumer:
            where = [TopicPartition(READINGS, n, self._place(n, begin[n], end[n])) for n in end]
            with translated("reading what is held out", self.servers):
                consumer.assign(where)
            while not self._stopping.is_set():
                with translated("reading what is held out", self.servers):
                    messages = consumer.consume(BATCH, WAIT_S)
                for message in messages:
                    partition, offset = message.partition(), message.offset()
                    if message.error() is not None or partition is None or offset is None:
                        continue
                    if message.key() in self._names:
                        self._take(message.value())
                    self._places[partition] = offset + 1

    def _place(self, partition: int, begin: int, end: int) -> int:
        """Where it was left, so that nothing is taken twice; else a little before the end."""
        left = self._places.get(partition, -1)
        return left if begin <= left <= end else max(begin, end - BACKLOG)

    def _take(self, value: bytes | None) -> None:
        try:
            reading = parse_reading(value, now=self._clock(), limits=self._limits)
        except BadReading:
            return  # the learning job gives it to the dead letters
        self.readings.take(reading.device_id, reading.timestamp.timestamp(), reading.sensors)
