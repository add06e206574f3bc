"""One device's learner: predicts, then scores, then learns on every reading; a few KB of state, for ever.

The learner sees values normalised by the device's own running statistics, so that devices of different levels can
share weights. The network predicts the change from one reading to the next; a sensor that gave no value counts as
unchanged and teaches nothing. Nothing here knows an engine, a clock or a file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field

from flead import network, scaling
from flead.errors import BadConfiguration
from flead.messages import Reading, cohort_of
from flead.network import Architecture, Vector

STATE_LIMIT = 64 * 1024
"""Bytes of encoded state that a device may take."""


class Adoption(StrEnum):
    """What a learner does with a new global model."""

    REPLACE = "replace"
    MIX = "mix"


class LearnerConfig(BaseModel):
    """The hyper-parameters of every learner."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden_sizes: tuple[int, ...] = Field((16, 8), description="widths of the hidden layers")
    learning_rate: float = Field(0.01, gt=0, description="step of stochastic gradient descent")
    memory: float = Field(2_880.0, ge=100, description="readings after which the scaling forgets (2,880: a day of 30 s)")
    update_every: int = Field(100, ge=1, description="samples between two updates of a device")
    adoption: Adoption = Adoption.MIX
    mix: float = Field(0.5, gt=0, le=1, description="the global model's share when it is mixed in")
    threshold: float = Field(0.99, gt=0, lt=1, description="scores from here on are anomalies")
    warm_up: int = Field(60, ge=2, description="readings before a device's first score above zero")
    forget_after: int = Field(1_000, ge=1, description="readings after which a sensor no longer named is dropped")
    seed: int = Field(0, ge=0, description="of the starting weights")

    def architecture(self, n_sensors: int) -> Architecture:
        """The network of a cohort with `n_sensors` sensors."""
        return Architecture(n_sensors, self.hidden_sizes, n_sensors)

    def check_state_fits(self, max_sensors: int) -> None:
        """Raise `BadConfiguration` where the state of a device with `max_sensors` sensors could pass 64 KB."""
        size = 8 * _Layout(self.architecture(max_sensors)).size + max_sensors * (4 * 128 + 3) + 1_024
        if size > STATE_LIMIT:
            raise BadConfiguration(
                f"a device with {max_sensors} sensors and hidden layers {list(self.hidden_sizes)} could need "
                f"{size:,} bytes of state, the limit is {STATE_LIMIT:,}: lower learner.hidden_sizes or reading.max_sensors"
            )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a learner says about one reading, in the sensors' own units.

    `expected` was fixed before the reading came; `error` is the mean absolute residual in standard deviations of the
    sensor (None before there was anything to compare); `sensor` is the one furthest off.
    """

    expected: dict[str, float] | None
    forecast: dict[str, float]
    error: float | None
    score: float
    is_anomaly: bool
    sensor: str | None


class _Layout:
    """Where each array lies in a learner's one buffer of float64."""

    FIELDS = ("mean", "variance", "count", "residual_mean", "residual_variance", "residual_count", "last", "next", "absent")

    def __init__(self, architecture: Architecture) -> None:
        self.parameters = architecture.parameter_count
        self.sensors = architecture.output_size
        self.size = self.parameters + len(self.FIELDS) * self.sensors


class DeviceLearner:
    """One device's model, scaling and residual statistics.

    Parameters
    ----------
    sensors:
        sorted names; the inputs and outputs of the network
    config:
        hyper-parameters, the same for every device

    >>> from datetime import UTC
    >>> learner = DeviceLearner(("temperature",), LearnerConfig(warm_up=2))
    >>> for minute, value in enumerate((20.0, 20.5, 20.0)):
    ...     reading = Reading(
    ...         device_id="m", timestamp=datetime(2024, 1, 1, 0, minute, tzinfo=UTC), sensors={"temperature": value}
    ...     )
    ...     outcome = learner.process(reading)
    >>> learner.samples_seen, round(outcome.expected["temperature"])
    (3, 20)
    """

    __slots__ = (
        "_buffer", "_gradient", "_gradient_views", "_views", "absent", "adopted", "architecture", "base_version",
        "cohort", "config", "count", "error_sum", "last", "mean", "next", "residual_count", "residual_mean",
        "residual_variance", "samples_seen", "sensors", "since_update", "theta", "variance",
    )  # fmt: skip

    mean: Vector
    variance: Vector
    count: Vector
    residual_mean: Vector
    residual_variance: Vector
    residual_count: Vector
    last: Vector
    next: Vector
    absent: Vector

    def __init__(self, sensors: tuple[str, ...], config: LearnerConfig) -> None:
        self._attach(sensors, config, None)
        # Every device of a cohort starts from the same weights: averages of differently started networks mean little.
        rng = np.random.default_rng([config.seed, zlib.crc32(self.cohort.encode())])
        self.theta[:] = network.initial(self.architecture, rng)
        self.last[:] = np.nan
        self.next[:] = np.nan
        self.samples_seen = 0
        self.since_update = 0
        self.error_sum = 0.0
        self.base_version = 0
        self.adopted = 0

    def _attach(self, sensors: tuple[str, ...], config: LearnerConfig, buffer: Vector | None) -> None:
        """Lay the arrays over a buffer (a new one of zeros without it)."""
        self.sensors, self.config = sensors, config
        self.cohort = cohort_of(sensors)
        self.architecture = config.architecture(len(sensors))
        layout = _Layout(self.architecture)
        self._buffer = np.zeros(layout.size) if buffer is None else buffer
        self.theta = self._buffer[: layout.parameters]
        self._views = network.layers(self.theta, self.architecture)
        self._gradient = np.empty(layout.parameters)
        self._gradient_views = network.layers(self._gradient, self.architecture)
        for i, field in enumerate(layout.FIELDS):
            start = layout.parameters + i * layout.sensors
            setattr(self, field, self._buffer[start : start + layout.sensors])

    def process(self, reading: Reading) -> Outcome:
        """Predict, score and learn, in that order. The reading's sensors must be among this learner's (`fit_sensors`)."""
        x = np.array([_number(reading.sensors.get(name)) for name in self.sensors])
        seen = ~np.isnan(x)
        self._count_absent(reading)
        expected = None if self.samples_seen == 0 else _by_name(self.sensors, self.next)
        error, score, sensor = self._score(x, seen)
        self._learn(x, seen)
        self._remember(x, seen)
        self.samples_seen += 1
        self.since_update += 1
        self.error_sum += error or 0.0
        return Outcome(
            expected, _by_name(self.sensors, self.next), error, score, score >= self.config.threshold, sensor
        )
