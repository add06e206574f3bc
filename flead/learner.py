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
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field

from flead import network, scaling
from flead.errors import BadConfiguration, BadModel
from flead.messages import cohort_of
from flead.network import Architecture, Vector

STATE_LIMIT = 64 * 1024
"""Bytes of encoded state that a device may take."""


VALUE_WINSOR = 4.0
"""How far from its mean a value may pull the scaling, in standard deviations."""
RESIDUAL_WINSOR = 20.0
"""The same for residuals: wide, since their tails are heavy and a variance cut short would call them anomalies."""


class Adoption(StrEnum):
    """What a learner does with a new global model."""

    REPLACE = "replace"
    MIX = "mix"


class LearnerConfig(BaseModel):
    """The hyper-parameters of every learner."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hidden_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((16, 8), description="widths of the hidden layers")
    learning_rate: float = Field(0.01, gt=0, description="step of stochastic gradient descent")
    memory: float = Field(2_880.0, ge=100, description="readings after which scaling forgets (2,880: a day of 30 s)")
    update_every: int = Field(100, ge=1, description="samples between two updates of a device")
    adoption: Adoption = Field(Adoption.MIX, description="what a device does with the global model")
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
                f"{size:,} bytes of state, the limit is {STATE_LIMIT:,}: "
                "lower learner.hidden_sizes or reading.max_sensors"
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
    """Where each array lies in a learner's one buffer of float64: the parameters, then one row per field."""

    FIELDS = (
        "mean",
        "residual_mean",
        "variance",
        "residual_variance",
        "count",
        "residual_count",
        "last",
        "next",
        "absent",
    )

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

    >>> learner = DeviceLearner(("temperature",), LearnerConfig())
    >>> for value in (20.0, 20.5, 20.0):
    ...     outcome = learner.process({"temperature": value})
    >>> learner.samples_seen, round(outcome.expected["temperature"])
    (3, 20)
    """

    __slots__ = (
        "_buffer", "_counts", "_fresh", "_means", "_named", "_observed", "_rows", "_settled", "_spread", "_variances",
        "_winsor", "_work", "architecture", "base_version", "cohort", "config", "samples_seen", "sensors",
        "since_update", "theta",
    )  # fmt: skip

    def __init__(self, sensors: tuple[str, ...], config: LearnerConfig) -> None:
        self._attach(sensors, config, None)
        # Every device of a cohort starts from the same weights: averages of differently started networks mean little.
        rng = np.random.default_rng([config.seed, zlib.crc32(self.cohort.encode())])
        self.theta[:] = network.initial(self.architecture, rng)
        self.samples_seen = 0
        self.since_update = 0
        self.base_version = 0

    def _attach(self, sensors: tuple[str, ...], config: LearnerConfig, buffer: Vector | None) -> None:
        """Lay the arrays over a buffer (a new one of zeros without it)."""
        self.sensors, self.config = sensors, config
        self.cohort = cohort_of(sensors)
        self.architecture = config.architecture(len(sensors))
        layout, n = _Layout(self.architecture), len(sensors)
        self._buffer = np.zeros(layout.size) if buffer is None else buffer
        self.theta = self._buffer[: layout.parameters]
        self._work = network.Workspace(self.theta, self.architecture)
        self._fresh = False  # whether the workspace holds the forward pass that made `next`
        rows = self._buffer[layout.parameters :].reshape(len(layout.FIELDS), n)
        self._rows = dict(zip(layout.FIELDS, rows, strict=True))
        # Values and residuals are scaled by the same code, side by side in one array.
        self._means, self._variances, self._counts = (rows[i : i + 2].reshape(2 * n) for i in (0, 2, 4))
        self._observed = np.ones(2 * n)
        self._derive()

    def _derive(self) -> None:
        """Work out what follows from the buffer and is kept beside it only for speed."""
        self._spread = scaling.spread(self._means, self._variances)
        # What never varied yet says nothing about its scale: such statistics count as cold, however many came.
        warm = (self._counts > scaling.WARM) & (self._variances > 0)
        self._winsor = np.where(warm, np.repeat((VALUE_WINSOR, RESIDUAL_WINSOR), len(self.sensors)), np.inf)
        self._settled = bool(warm.all())
        self._named = self._by_name(self._rows["next"])

    def process(self, given: Mapping[str, float | None]) -> Outcome:
        """Take one reading: predict, score and learn, in that order.

        Parameters
        ----------
        given:
            values by sensor, finite or None; no sensor that this learner lacks (see `fitted`)
        """
        n, row = len(self.sensors), self._rows
        x, observed = self._read(given)
        residual = x - row["next"]
        expected = self._named if self.samples_seen else None
        error, score, worst = self._score(residual, observed[n:])
        self._learn(x, observed[n:])
        scaling.update(
            self._means, self._variances, self._counts, np.concatenate((x, residual)), observed,
            memory=self.config.memory, limit=self._winsor * self._spread,
        )  # fmt: skip
        self._spread = scaling.spread(self._means, self._variances)
        row["last"][:] = x
        self._forecast()
        if not self._settled:
            self._derive()
        self.samples_seen += 1
        self.since_update += 1
        return Outcome(
            expected=expected,
            forecast=self._named,
            error=error,
            score=score,
            is_anomaly=score >= self.config.threshold,
            sensor=None if error is None else self.sensors[worst],
        )

    def _read(self, given: Mapping[str, float | None]) -> tuple[Vector, Vector]:
        """The values (n,), a missing one as the last known; and what was observed, values then residuals (2n,)."""
        row, n = self._rows, len(self.sensors)
        values = [given.get(name) for name in self.sensors]
        if len(given) == n:
            row["absent"][:] = 0.0
        else:
            row["absent"] += 1.0
            row["absent"][[name in given for name in self.sensors]] = 0.0
        if self._settled and None not in values:
            return np.array(values), self._observed
        x = np.array([np.nan if value is None else value for value in values])
        seen = np.isfinite(x)
        observed = np.concatenate((seen, seen & (row["count"] > 0))).astype(np.float64)
        return np.where(seen, x, row["last"]), observed

    def _score(self, residual: Vector, observed: Vector) -> tuple[float | None, float, int]:
        """Compare a reading with what was expected of it: (error, score, index of the furthest sensor).

        The score is 1 - 1 / z**2, Chebyshev's bound on the probability of a residual less than z standard deviations
        from its mean: it holds for every distribution, so it means the same on every device. 0.99 is z = 10.
        """
        n, row = len(self.sensors), self._rows
        total = float(observed.dot(observed))
        if self.samples_seen < scaling.WARM or not total:
            return None, 0.0, 0
        scale = self._spread[:n]
        error = float(np.minimum(np.abs(residual) / scale, scaling.CLIP).dot(observed)) / total
        fineness = np.maximum(self._spread[n:], scaling.RELATIVE_FLOOR * scale)
        z = np.abs(residual - row["residual_mean"]) / fineness * observed
        worst = int(z.argmax())
        distance = float(z[worst])
        warm = row["residual_count"][worst] >= self.config.warm_up
        return error, 1.0 - distance**-2 if warm and distance > 1.0 else 0.0, worst

    def _learn(self, x: Vector, observed: Vector) -> None:
        """One step of gradient descent on the change since the last reading; Huber's loss: no outlier owns a step."""
        if not self._fresh:
            self._work.forward(self._normalised(self._rows["last"]))
        wrong = self._work.output - (self._normalised(x) - self._work.input)
        slope = np.minimum(np.maximum(wrong, -1.0), 1.0) * observed
        self.theta -= self.config.learning_rate * self._work.backward(slope)

    def _forecast(self) -> None:
        """Write the next reading's forecast, with the statistics and weights as they are now."""
        last = self._rows["last"]
        change = self._work.forward(self._normalised(last))
        np.add(last, change * self._spread[: len(self.sensors)], out=self._rows["next"])
        self._named = self._by_name(self._rows["next"])
        self._fresh = True

    def _normalised(self, x: Vector) -> Vector:
        """In standard deviations from the mean, within +-CLIP."""
        z = (x - self._rows["mean"]) / self._spread[: len(self.sensors)]
        clipped: Vector = np.minimum(np.maximum(z, -scaling.CLIP), scaling.CLIP)
        return clipped

    def _by_name(self, values: Vector) -> dict[str, float]:
        """Values by sensor name; a sensor never seen is left out."""
        named = dict(zip(self.sensors, values.tolist(), strict=True))
        if not self._settled:
            known = self._rows["count"] > 0
            named = {name: named[name] for name, is_known in zip(self.sensors, known, strict=True) if is_known}
        return named

    def fitted(self, given: Mapping[str, float | None], max_sensors: int) -> DeviceLearner:
        """This learner, or, where the device's sensors have changed, its successor in another cohort.

        A sensor that is new joins at once; one that was not named for `forget_after` readings leaves, and so do those
        longest absent where there would be more than `max_sensors`. The successor keeps the training counter and each
        remaining sensor's statistics; its network starts anew, and what the old one had learned since its last update
        is not sent.
        """
        if len(given) == len(self.sensors) and all(name in given for name in self.sensors):
            return self
        unknown = given.keys() - self.sensors
        ages = dict(zip(self.sensors, self._rows["absent"].tolist(), strict=True))
        staying = [name for name in self.sensors if name in given or ages[name] < self.config.forget_after]
        staying.sort(key=lambda name: (name not in given, ages[name]))
        staying = staying[: max_sensors - len(unknown)]
        if not unknown and len(staying) == len(self.sensors):
            return self
        successor = DeviceLearner(tuple(sorted({*staying} | unknown)), self.config)
        kept = [name for name in successor.sensors if name in self.sensors]
        here, there = [self.sensors.index(n) for n in kept], [successor.sensors.index(n) for n in kept]
        for field in _Layout.FIELDS:
            successor._rows[field][there] = self._rows[field][here]
        successor._derive()
        successor.samples_seen = self.samples_seen
        return successor

    def adopt(self, theta: Vector, version: int) -> bool:
        """Take a global model of this cohort, by the configured rule; False where it is not new or does not fit.

        Parameters
        ----------
        theta:
            (parameter_count,), finite
        version:
            the round that made it
        """
        if version <= self.base_version or theta.shape != self.theta.shape:
            return False
        if self.config.adoption is Adoption.REPLACE or self.samples_seen < self.config.update_every:
            self.theta[:] = theta  # a device that has learned next to nothing has nothing to mix in
        else:
            self.theta += self.config.mix * (theta - self.theta)
        self.base_version = version
        self._fresh = False
        return True

    def take_update(self, device_id: str, timestamp: str) -> dict[str, Any] | None:
        """The update to send after a reading, as it travels; None until `update_every` samples have come since.

        Parameters
        ----------
        timestamp:
            of the reading, ISO 8601
        """
        if self.since_update < self.config.update_every:
            return None
        update = {
            "device_id": device_id,
            "weights": network.to_message(self.theta, self.architecture),
            "sample_count": self.since_update,
            "timestamp": timestamp,
            "metadata": {
                "cohort": self.cohort,
                "sensors": self.sensors,
                "samples_seen": self.samples_seen,
                "base_version": self.base_version,
            },
        }
        self.since_update = 0
        return update

    def to_bytes(self) -> bytes:
        """The whole state: a version, the names and counters as JSON, and one buffer of little-endian float64."""
        header = orjson.dumps([self.sensors, self.samples_seen, self.since_update, self.base_version])
        return _HEAD.pack(_STATE_VERSION, len(header)) + header + self._buffer.tobytes()

    @classmethod
    def from_bytes(cls, state: bytes, config: LearnerConfig) -> DeviceLearner:
        """Continue from `to_bytes`.

        State of another layout version is refused with `BadModel`. Where `config.hidden_sizes` has changed since, the
        network starts anew and everything else is kept.
        """
        version, length = _HEAD.unpack_from(state)
        if version != _STATE_VERSION:
            raise BadModel(f"a device's state has layout {version}, this code reads {_STATE_VERSION}")
        body = _HEAD.size + length
        sensors, samples_seen, since_update, base_version = orjson.loads(state[_HEAD.size : body])
        buffer = np.frombuffer(state, dtype="<f8", offset=body)
        learner = cls.__new__(cls)
        if buffer.size == _Layout(config.architecture(len(sensors))).size:
            learner._attach(tuple(sensors), config, buffer.copy())
            learner.base_version = base_version
        else:
            learner = cls(tuple(sensors), config)
            kept = len(_Layout.FIELDS) * len(sensors)
            learner._buffer[-kept:] = buffer[-kept:]
            learner._derive()
        learner.samples_seen, learner.since_update = samples_seen, since_update
        return learner


_STATE_VERSION = 1
_HEAD = struct.Struct("<II")
