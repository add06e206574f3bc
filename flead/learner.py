"""One device's learner: predicts, then scores, then learns on every reading; a few KB of state, for ever.

The arithmetic is in `flead.learning`, compiled; this class gives it names: of sensors, of kinds of anomaly, of
cohorts. Nothing here knows an engine, a clock or a file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from flead import learning, network, state
from flead.errors import BadConfiguration, BadModel
from flead.features import INTERVAL, codes
from flead.learner_config import Adoption, LearnerConfig
from flead.learning import ALARM, DRIFTED, ERROR, JOINT, KIND, SAID, SENSOR, SURPRISE
from flead.messages import cohort_of
from flead.network import Architecture, Vector
from flead.plugins import Detector, Forecaster, Spec, find_detector, find_forecaster
from flead.scoring import EXTRA, KINDS
from flead.state import DRIFTS

STATE_LIMIT = 3 * 1024 * 1024
"""Bytes of encoded state that a device may take; one of four sensors takes about 130 KB."""
FEWEST = 16
"""Examples on which models are compared at least."""

_NAN = float("nan")
_STATE_VERSION = 4
_HEAD = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a learner says about one reading, in the sensors' own units.

    Attributes
    ----------
    expected: by sensor, fixed before the reading came; None before there was anything to expect
    forecast: by sensor, of the next reading
    horizon: by sensor, of the reading one horizon ahead
    error: mean absolute residual in standard deviations of the sensors; None before they are known
    score: 1 - p, where p is the chance of something this strange under the device's own behaviour
    scores: the same by sensor, each by itself
    is_anomaly: whether it is stranger than the accepted false alarms allow
    sensor, kind: which one is strangest, and how (`flead.scoring.KINDS`); None where nothing is strange
    drift: whether the device's errors have risen for good
    """

    expected: dict[str, float] | None
    forecast: dict[str, float]
    horizon: dict[str, float]
    error: float | None
    score: float
    scores: dict[str, float]
    is_anomaly: bool
    sensor: str | None
    kind: str | None
    drift: bool


@dataclass(frozen=True)
class Outcomes:
    """What a learner says about many readings, a row each; NaN where an `Outcome` has None or no value.

    Attributes
    ----------
    expected, forecast, horizon: (m, n)
    error, score, joint: (m,); `joint` is the score before repeated alarms are played down
    scores: (m, n) of each sensor by itself
    is_anomaly, drift: (m,) bool
    sensor, kind: (m,) int, -1 for none
    """

    expected: Vector
    forecast: Vector
    horizon: Vector
    error: Vector
    score: Vector
    joint: Vector
    scores: Vector
    is_anomaly: NDArray[np.bool_]
    drift: NDArray[np.bool_]
    sensor: NDArray[np.int64]
    kind: NDArray[np.int64]


class DeviceLearner:
    """One device's model, scaling and residual statistics.

    Parameters
    ----------
    sensors:
        sorted names; the order of every array
    config:
        hyper-parameters, the same for every device

    >>> learner = DeviceLearner(("temperature",), LearnerConfig())
    >>> for second, value in enumerate((20.0, 20.5, 20.0)):
    ...     outcome = learner.process(30.0 * second, {"temperature": value})
    >>> learner.samples_seen, round(outcome.expected["temperature"], 1)
    (3, 20.5)
    """

    __slots__ = (
        "_absent", "_begun", "_buffer", "_calls", "_detectors", "_forecaster", "_given", "_loss", "_n_judged",
        "_n_kept", "_said", "_sizes", "_state", "_taken_version", "architecture", "base_version", "cohort", "config",
        "samples_seen", "sensors", "since_update", "theta",
    )  # fmt: skip

    def __init__(self, sensors: tuple[str, ...], config: LearnerConfig) -> None:
        self._attach(sensors, config)
        if self._forecaster is None:
            self.theta[:] = network.initial_of_cohort(self.architecture, self.cohort, config.seed)
            self._anchor(self.theta)

    def _attach(self, sensors: tuple[str, ...], config: LearnerConfig) -> None:
        """Lay the views over a buffer of zeros."""
        self.sensors, self.config, self.cohort = sensors, config, cohort_of(sensors)
        n = len(sensors)
        self._sizes, self._buffer = state.fresh(config, n)
        self._n_kept, _ = state.sizes_of(self._sizes)
        self._state = state.views.py_func(self._sizes, self._buffer)  # type: ignore[attr-defined]
        self._given, self._said = np.zeros(1 + n), np.zeros(SAID + 4 * n)
        self._detectors: list[Detector] = [find_detector(name)(self.spec) for name in config.detectors]
        self._forecaster: Forecaster | None = None
        if config.forecaster == state.NETWORK:
            self.theta, self.architecture = self._state.theta, state.architecture_of(config, n)
        else:
            self._use(find_forecaster(config.forecaster)(self.spec))
        self._bind()
        self._absent = [0] * n
        self.samples_seen = self.since_update = self.base_version = self._taken_version = 0
        self._begun = 0  # readings that the device had seen when this model began
        self._judge_anew()

    def _anchor(self, theta: Vector) -> None:
        """Hold the network near these parameters from here on, where it is held at all."""
        if self._state.anchor.size:
            self._state.anchor[:] = theta

    def _judge_anew(self) -> None:
        """Forget how large the errors were: from here on they are another model's, or the next update's."""
        self._loss, self._n_judged = 0.0, 0

    def _restore(self, kept: Vector, n_anchor: int) -> None:
        """Take what was kept, of which `n_anchor` numbers are an anchor.

        Another rule of adoption may keep other things besides: what it lacks, it begins with.
        """
        view, n = self._state, len(self.sensors)
        f = view.features.size
        common = self._n_kept - view.anchor.size - view.recent.size - view.n_recent.size
        recent = kept[common + n_anchor :]
        if kept.size < common + n_anchor or recent.size not in (0, state.MOST_RECENT * (f + 4 * n) + 1):
            raise ValueError(f"{kept.size} numbers where {self._n_kept} are kept")
        self._buffer[:common] = kept[:common]
        self._anchor(kept[common : common + n_anchor] if n_anchor else self.theta)
        if recent.size and view.recent.size:
            view.recent[:] = recent[:-1].reshape(view.recent.shape)
            view.n_recent[:] = recent[-1]

    def _use(self, forecaster: Forecaster) -> None:
        self._forecaster, self.theta = forecaster, forecaster.parameters
        own = getattr(forecaster, "architecture", None)
        # Parameters of another shape than a network's travel as one layer's.
        self.architecture = own or Architecture(max(self.theta.size - 1, 1), (), 1)

    def _bind(self) -> None:
        arrays = (self._sizes, self._buffer, self._given, self._said)
        if self._forecaster is None and not self._detectors:
            self._calls: tuple[Callable[[], None], ...] = (learning.RUN.bind(*arrays),)
        else:
            points = (learning.OBSERVE, learning.JUDGE, learning.TEACH, learning.COMMIT)
            self._calls = tuple(point.bind(*arrays) for point in points)

    @property
    def spec(self) -> Spec:
        """What plug-ins are made for."""
        config = self.config
        own, shared = codes(config.features)
        return Spec(
            self.sensors, len(own), len(shared), 2, config.hidden_sizes, config.learning_rate, config.seed, config.skip,
            config.optimiser, config.learning_rate_decay, config.gradient_clip,
        )  # fmt: skip

    @property
    def interval(self) -> float:
        """The device's typical time between two readings, s; 0 before there were two."""
        return float(self._state.past.clock[INTERVAL])

    @property
    def features(self) -> Vector:
        """What the model was given last, (n_features,)."""
        present: Vector = self._state.features.copy()
        return present

    @property
    def recent_features(self) -> Vector:
        """What the model was given lately, (m, n_features): the device's own window, to calibrate an export on."""
        waiting = self._state.waiting
        made = waiting[:, 0] != 0.0
        rows: Vector = np.concatenate((waiting[made, 1 : 1 + self._state.features.size], self._state.features[None]))
        return rows

    @property
    def recent_examples(self) -> Vector:
        """The newest examples, (m, n_features + 2 * 2 n), where the rule of adoption compares models on them."""
        view = self._state
        rows: Vector = view.recent[: int(view.n_recent[0])] if view.n_recent.size else view.recent
        return rows

    @property
    def drifts(self) -> int:
        """How often the device's errors have risen for good."""
        return int(self._state.queue[DRIFTS])

    def process(self, time: float, given: Mapping[str, float | None]) -> Outcome:
        """Take one reading: predict, score and learn, in that order.

        Parameters
        ----------
        time:
            s since 1970-01-01 UTC
        given:
            values by sensor, finite or None; no sensor that this learner lacks (see `fitted`)
        """
        row = self._given
        row[0] = time
        for i, name in enumerate(self.sensors):
            value = given.get(name)
            row[1 + i] = _NAN if value is None else value
        if len(given) < len(self.sensors):
            self._absent = [0 if name in given else n + 1 for name, n in zip(self.sensors, self._absent, strict=True)]
        elif any(self._absent):
            self._absent = [0] * len(self.sensors)
        self._step()
        said = self._said.tolist()
        if said[ERROR] == said[ERROR]:  # not NaN
            self._loss += said[ERROR]
            self._n_judged += 1
        return self._outcome(said)

    def _step(self) -> None:
        """Let the kernels take the row in `_given`; plug-ins speak and learn in between."""
        self.samples_seen += 1
        self.since_update += 1
        if len(self._calls) == 1:
            self._calls[0]()
            return
        observe, judge, teach, commit = self._calls
        observe()
        view = self._state
        for i, detector in enumerate(self._detectors):
            view.extra[i] = detector.score(view.features)
        judge()
        for detector in self._detectors:
            detector.learn(view.features)
        if self._forecaster is None:
            teach()
        else:
            if self._said[DRIFTED] and hasattr(self._forecaster, "drifted"):
                self._forecaster.drifted()
            f, outputs = view.features.size, view.change.size
            for example in view.examples[: int(view.n_examples[0])]:
                targets, observed = example[f : f + outputs], example[f + outputs : f + 2 * outputs]
                self._forecaster.learn(example[:f], targets, observed)
            view.change[:] = self._forecaster.predict(view.features)
        commit()

    def process_frame(self, times: Vector, values: Vector) -> Outcomes:
        """Take many readings at once: the same as one by one, in one call.

        Other threads run meanwhile, so frames of several devices take as many cores as there are threads.

        Parameters
        ----------
        times:
            (m,), s, in order
        values:
            (m, n), NaN where there is none

        Raises
        ------
        ValueError
            if there is not a time for every row and a column for every sensor
        """
        m, n = len(times), len(self.sensors)
        if values.shape != (m, n):
            raise ValueError(f"{m} times and {n} sensors need values ({m}, {n}), these are {values.shape}")
        given = np.column_stack((times, values)).astype(np.float64, copy=False)
        said = np.zeros((m, SAID + 4 * n))
        if len(self._calls) == 1:
            learning.RUN.bind(self._sizes, self._buffer, given.ravel(), said.ravel(), free=True)()
            self.samples_seen += m
            self.since_update += m
        else:
            for i in range(m):
                self._given[:] = given[i]
                self._step()
                said[i] = self._said
        expected, forecast, horizon, surprises = (said[:, SAID + k * n : SAID + (k + 1) * n] for k in range(4))
        sensor = said[:, SENSOR].astype(np.int64)
        errors = said[np.isfinite(said[:, ERROR]), ERROR]
        self._loss = float(np.cumsum(np.append(self._loss, errors))[-1])  # in their order, as one by one
        self._n_judged += errors.size
        return Outcomes(
            expected=expected,
            forecast=forecast,
            horizon=horizon,
            error=said[:, ERROR],
            score=1.0 - 10.0 ** -said[:, SURPRISE],
            joint=1.0 - 10.0 ** -said[:, JOINT],
            scores=1.0 - 10.0**-surprises,
            is_anomaly=said[:, ALARM] > 0.0,
            drift=said[:, DRIFTED] > 0.0,
            sensor=sensor,
            kind=np.where((sensor < 0) & (said[:, SURPRISE] == 0.0), -1, said[:, KIND]).astype(np.int64),
        )

    def _outcome(self, said: list[float]) -> Outcome:
        n, error, sensor = len(self.sensors), said[ERROR], int(said[SENSOR])
        expected = self._by_name(said[SAID : SAID + n])
        return Outcome(
            expected=expected or None,
            forecast=self._by_name(said[SAID + n : SAID + 2 * n]),
            horizon=self._by_name(said[SAID + 2 * n : SAID + 3 * n]),
            error=error if error == error else None,  # not NaN
            score=1.0 - 10.0 ** -said[SURPRISE],
            scores={name: 1.0 - 10.0**-u for name, u in zip(self.sensors, said[SAID + 3 * n :], strict=True)},
            is_anomaly=said[ALARM] > 0.0,
            sensor=None if sensor < 0 else self.sensors[sensor],
            kind=None if sensor < 0 and said[SURPRISE] == 0.0 else KINDS[int(said[KIND])],
            drift=said[DRIFTED] > 0.0,
        )

    def _by_name(self, values: list[float]) -> dict[str, float]:
        """Values by sensor name; a sensor never seen is left out."""
        return {name: value for name, value in zip(self.sensors, values, strict=True) if value == value}  # not NaN

    def fitted(self, given: Mapping[str, float | None], max_sensors: int) -> DeviceLearner:
        """This learner, or, where the device's sensors have changed, its successor in another cohort.

        A sensor that is new joins at once; one that was not named for `forget_after` readings leaves, and so do those
        longest absent where there would be more than `max_sensors`. The successor keeps the training counter and each
        remaining sensor's past; its model and scores start anew, and what the old one had learned since its last
        update is not sent.
        """
        if len(given) == len(self.sensors) and all(name in given for name in self.sensors):
            return self
        unknown = given.keys() - self.sensors
        ages = dict(zip(self.sensors, self._absent, strict=True))
        staying = [name for name in self.sensors if name in given or ages[name] < self.config.forget_after]
        staying.sort(key=lambda name: (name not in given, ages[name]))
        staying = staying[: max_sensors - len(unknown)]
        if not unknown and len(staying) == len(self.sensors):
            return self
        successor = DeviceLearner(tuple(sorted({*staying} | unknown)), self.config)
        kept = [name for name in successor.sensors if name in self.sensors]
        here, there = [self.sensors.index(n) for n in kept], [successor.sensors.index(n) for n in kept]
        for old, new in zip(self._state.past, successor._state.past, strict=True):
            if old is self._state.past.clock:
                new[:] = old
            else:
                new[..., there] = old[..., here]
        for i, j in zip(here, there, strict=True):
            successor._absent[j] = self._absent[i]
        successor.samples_seen = successor._begun = self.samples_seen
        return successor

    def adopt(self, theta: Vector, version: int) -> bool:
        """Take a global model of this cohort, by the configured rule (`Adoption`).

        A model that has learned from fewer than `update_every` readings is nobody's own yet: it is replaced whole.
        Where a rule cannot be followed the device mixes: `last_layer` with a model of a single layer, `better` with a
        plug-in or before there are `FEWEST` examples to compare on. A model that was weighed and left is the base
        version all the same: what the device says of its errors from here on tells what this version did to it.

        Parameters
        ----------
        theta:
            (parameter_count,), finite
        version:
            the round that made it

        Returns
        -------
        whether anything of it was taken: False where it is not new, does not fit, or is worse than the device's own

        Source: `last_layer` is Arivazhagan et al., 2019, "Federated learning with personalization layers"; to mix, as
        far as the device's own data speak for it, Deng et al., 2020, "Adaptive personalized federated learning".
        """
        if version <= self.base_version or theta.shape != self.theta.shape:
            return False
        self.base_version = version
        self._judge_anew()
        taken = self._made_of(theta)
        if taken is None:
            return False
        self.theta[:] = taken
        self._anchor(theta)
        self._taken_version = version
        return True

    def return_to(self, theta: Vector, version: int) -> None:
        """Go back to an older global model in place of everything: the one that this learner weighed was taken back.

        A learner that had left that one has nothing of it, and keeps its own.
        """
        if theta.shape != self.theta.shape:
            return
        if self._taken_version == self.base_version:
            self.theta[:] = theta
            self._anchor(theta)
            self._taken_version = version
        self.base_version = version
        self._judge_anew()

    def _made_of(self, theta: Vector) -> Vector | None:
        """What the rule makes of a global model, (parameter_count,); None where the device keeps its own."""
        rule, own = self.config.adoption, self.theta
        if rule is Adoption.REPLACE or self.samples_seen - self._begun < self.config.update_every:
            return theta
        n_in, n_out = self.architecture.shapes[-1]
        last = (n_in + 1) * n_out
        if rule is Adoption.LAST_LAYER and last < own.size:
            joined: Vector = np.concatenate((theta[:-last], own[-last:]))
            return joined
        mixed: Vector = own + self.config.mix * (theta - own)
        if rule is not Adoption.BETTER or len(self.recent_examples) < FEWEST:
            return mixed
        candidates = [theta, mixed, own]
        best = candidates[int(np.nanargmin([self._loss_of(model) for model in candidates]))]
        return None if best is own else best

    def _loss_of(self, theta: Vector) -> float:
        """The mean loss (Huber's, which the learner lessens) of a network on the device's recent examples."""
        f, outputs = self._state.features.size, self._state.change.size
        rows = self.recent_examples
        with np.errstate(over="ignore", invalid="ignore"):
            said = network.forward(theta, self.architecture, rows[:, :f])
            off = np.abs(said - rows[:, f : f + outputs])
            losses = np.where(off <= learning.HUBER, 0.5 * off * off, learning.HUBER * (off - 0.5 * learning.HUBER))
            return float(np.average(losses, weights=rows[:, f + outputs :]))

    def take_update(self, device_id: str, timestamp: str) -> dict[str, Any] | None:
        """The update to send after a reading, as it travels; None until `update_every` samples have come since.

        `metadata.loss` is the mean `Outcome.error` of the `loss_count` readings that had one since the last update or
        the last adoption, whichever is later; both are absent where none had.

        Parameters
        ----------
        timestamp:
            of the reading, ISO 8601
        """
        if self.since_update < self.config.update_every or not self.theta.size:
            return None
        update: dict[str, Any] = {
            "device_id": device_id,
            "weights": network.to_message(self.theta, self.architecture),
            "sample_count": self.since_update,
            "timestamp": timestamp,
            "metadata": {
                "cohort": self.cohort,
                "sensors": self.sensors,
                "samples_seen": self.samples_seen,
                "base_version": self.base_version,
                "drifts": self.drifts,
            },
        }
        if self._n_judged:
            update["metadata"] |= {"loss": self._loss / self._n_judged, "loss_count": self._n_judged}
        self.since_update = 0
        self._judge_anew()
        return update

    def to_bytes(self) -> bytes:
        """The whole state: a version, names and counters as JSON, plug-ins' bytes, and the buffer, little-endian."""
        plugins = [part.to_bytes() for part in self._plugins()]
        counters = [
            self.samples_seen, self.since_update, self.base_version, self._taken_version, self._state.anchor.size,
            self._loss, self._n_judged, self._begun,
        ]  # fmt: skip
        lengths = list(map(len, plugins))
        header = orjson.dumps([_fingerprint(self.config), self.sensors, *counters, self._absent, lengths])
        kept = self._buffer[: self._n_kept].tobytes()
        return b"".join((_HEAD.pack(_STATE_VERSION, len(header)), header, *plugins, kept))

    def _plugins(self) -> list[Forecaster | Detector]:
        return [*([self._forecaster] if self._forecaster is not None else []), *self._detectors]

    @classmethod
    def from_bytes(cls, raw: bytes, config: LearnerConfig) -> DeviceLearner:
        """Continue from `to_bytes`.

        Where the configuration has changed since in what the state means (features, model, detectors, drift), the
        learner starts anew and keeps its training counter.

        Raises
        ------
        BadModel
            for a state of another layout version, or damaged bytes
        """
        try:
            version, length = _HEAD.unpack_from(raw)
            if version != _STATE_VERSION:
                raise BadModel(f"a device's state has layout {version}, this code reads {_STATE_VERSION}")
            at = _HEAD.size + length
            fingerprint, sensors, samples_seen, since_update, base_version, *rest, absent, lengths = orjson.loads(
                raw[_HEAD.size : at]
            )
            if fingerprint != _fingerprint(config):
                learner = cls(tuple(sensors), config)
                learner.samples_seen = learner._begun = samples_seen
                return learner
            learner = cls.__new__(cls)
            learner._attach(tuple(sensors), config)
            older = [base_version, 0, 0.0, 0, 0]  # for what was not kept yet when the state was written
            taken_version, n_anchor, loss, n_judged, begun = rest + older[len(rest) :]
            learner._restore(np.frombuffer(raw, dtype="<f8", offset=at + sum(lengths)), n_anchor)
        except (ValueError, TypeError, struct.error) as error:
            raise BadModel(f"a device's state is damaged: {error}") from None
        parts = []
        for size in lengths:
            parts.append(raw[at : at + size])
            at += size
        if learner._forecaster is not None:
            learner._use(type(learner._forecaster).from_bytes(parts.pop(0), learner.spec))
        learner._detectors = [
            type(detector).from_bytes(part, learner.spec)
            for detector, part in zip(learner._detectors, parts, strict=True)
        ]
        learner.samples_seen, learner.since_update, learner.base_version = samples_seen, since_update, base_version
        learner._taken_version, learner._loss, learner._n_judged = taken_version, loss, n_judged
        learner._begun = begun
        learner._absent = absent
        return learner


def _fingerprint(config: LearnerConfig) -> int:
    """Tells configurations apart whose states mean different things."""
    shaping = config.model_dump_json(
        include={"forecaster", "detectors", "features", "hidden_sizes", "skip", "optimiser", "drift", "horizon_s"}
    )
    return zlib.crc32(shaping.encode())


def check(config: LearnerConfig, max_sensors: int) -> None:
    """Refuse what no learner could be made of, before anything starts.

    Raises
    ------
    BadConfiguration
        for unknown features or plug-ins, or where a device with `max_sensors` sensors would pass the limit of state
    """
    if len(config.detectors) > EXTRA:
        raise BadConfiguration(f"learner.detectors names {len(config.detectors)}, at most {EXTRA} may speak")
    size = 8 * state.sizes_of(state.header(config, max_sensors))[0] + max_sensors * (4 * 128 + 8) + 1_024
    if size <= STATE_LIMIT:  # else making one could take all memory
        sensors = tuple(f"sensor-{i}" for i in range(max_sensors))
        size += sum(len(part.to_bytes()) for part in DeviceLearner(sensors, config)._plugins())
    if size > STATE_LIMIT:
        raise BadConfiguration(
            f"a device with {max_sensors} sensors, hidden layers {list(config.hidden_sizes)} and "
            f"{len(config.features)} features could need {size:,} bytes of state, the limit is {STATE_LIMIT:,}: "
            "lower learner.hidden_sizes, learner.features or reading.max_sensors"
        )
