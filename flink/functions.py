"""The functions that run inside Flink: they move bytes between streams, state and `flead`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson
from pyflink.common import Row, Types
from pyflink.datastream import KeyedBroadcastProcessFunction, OutputTag, ProcessFunction, RuntimeContext
from pyflink.datastream.state import MapStateDescriptor, ValueStateDescriptor

from flead import network
from flead.errors import BadInput, BadModel, BadReading, Reason
from flead.learner import DeviceLearner
from flead.messages import DeadLetter, GlobalModel, Source, Stage, canary_key, parse_reading
from flead.rollout import is_canary
from flead.signatures import check, read_public
from flink.job_config import JobConfig

BYTES = Types.PRIMITIVE_ARRAY(Types.BYTE())
RECORD = Types.ROW_NAMED(["k", "v"], [BYTES, BYTES])
"""A Kafka record to write: key and value."""
INCOMING = Types.ROW([Types.STRING(), BYTES])
"""A reading on its way to its learner: the device, and the rest as JSON in one field, since each field costs a copy
between Java and Python: [timestamp, the same in s since 1970, sensors, partition, offset, time of production (ms)]."""

DEAD_LETTERS = OutputTag("dead-letters", RECORD)
LOCAL_UPDATES = OutputTag("local-updates", RECORD)
ALERTS = OutputTag("alerts", RECORD)
STATE = Types.PICKLED_BYTE_ARRAY()
"""How bytes lie in state: PyFlink's thread mode turns a BYTE array there into a tuple of numbers, one by one."""
GLOBAL_MODELS = MapStateDescriptor("global-models", Types.STRING(), STATE)

CACHED_LEARNERS = 10_000
"""Learners kept decoded beside the state, by device: saves 0.1 ms on every reading, for 140 KB (four sensors) beside
what Flink counts as its memory."""
CACHED_MODELS = 1_000
"""Global models kept decoded beside the broadcast state, by their records' keys."""


class ParseReadings(ProcessFunction):  # type: ignore[misc]
    """Bytes to readings: what cannot be read goes to the dead letters, so nothing behind this meets bad input."""

    def __init__(self, config: JobConfig) -> None:
        self._topic = config.topics.readings
        self._limits = config.reading

    def process_element(self, value: Row, ctx: ProcessFunction.Context) -> Iterator[Any]:
        """Yield the record under its device, or its dead letter."""
        key, raw, partition, offset, produced_ms = value
        now = datetime.now(UTC)
        try:
            reading = parse_reading(raw, now=now, limits=self._limits)
        except BadReading as bad:
            yield DEAD_LETTERS, Row(key, _dead_letter(bad, Source(self._topic, partition, offset), raw, now))
        else:
            time = reading.timestamp.timestamp()
            rest = [reading.timestamp, time, reading.sensors, partition, offset, produced_ms]
            yield Row(reading.device_id, orjson.dumps(rest))


class Learn(KeyedBroadcastProcessFunction):  # type: ignore[misc]
    """One learner per device in keyed state: predict, score, learn; adopt the cohort's newer global model."""

    def __init__(self, config: JobConfig) -> None:
        self._config = config

    def open(self, runtime_context: RuntimeContext) -> None:
        """Bind the state; what earlier instances held decoded is not ours."""
        self._state = runtime_context.get_state(ValueStateDescriptor("learner", STATE))
        self._trusted = [read_public(key) for key in self._config.trusted_keys]
        self._learners: dict[str, DeviceLearner] = {}
        self._models: dict[str, Offer | None] = {}

    def process_element(self, value: Row, ctx: KeyedBroadcastProcessFunction.ReadOnlyContext) -> Iterator[Any]:
        """Take one reading: yield its prediction, and what follows from it.

        Where the learner fails, which a plug-in's forecaster or detector may, the reading goes to the dead letters and
        leaves no trace: an exception would restart the job, and meet the same reading again.
        """
        device, rest = value
        timestamp, time, sensors, partition, offset, produced_ms = orjson.loads(rest)
        key = device.encode()
        try:
            learner = self._learner(device, sensors)
            self._follow(learner, device, ctx)
            outcome = learner.process(time, sensors)
            update = learner.take_update(device, timestamp)
            state = learner.to_bytes()
        except Exception as error:
            self._learners.pop(device, None)  # it may have stopped half-way; the state is of the reading before
            what = " ".join(f"the model of {device}: {type(error).__name__}: {error}".split())[:500]
            source = Source(self._config.topics.readings, partition, offset)
            failed = BadReading(Reason.LEARNER_FAILED, what)
            yield DEAD_LETTERS, Row(key, _dead_letter(failed, source, bytes(rest), datetime.now(UTC)))
            return
        self._state.update(state)
        said = {
            "device_id": device,
            "timestamp": timestamp,
            "cohort": learner.cohort,
            "samples_seen": learner.samples_seen,
            "model_version": learner.base_version,
            "observed": sensors,
            "expected": outcome.expected,
            "forecast": outcome.forecast,
            "horizon_s": learner.config.horizon_s,
            "horizon": outcome.horizon,
            "error": outcome.error,
            "anomaly_score": outcome.score,
            "sensor_scores": outcome.scores,
            "is_anomaly": outcome.is_anomaly,
            "sensor": outcome.sensor,
            "kind": outcome.kind,
            "drift": outcome.drift,
            "source": {"partition": partition, "offset": offset},
            "produced_ms": produced_ms,
        }
        yield Row(key, orjson.dumps(said))
        if update is not None:
            yield LOCAL_UPDATES, Row(key, orjson.dumps(update))
        if outcome.is_anomaly:
            yield ALERTS, Row(key, _alert(said))

    def process_broadcast_element(self, value: Row, ctx: KeyedBroadcastProcessFunction.Context) -> Iterator[Any]:
        """Keep what was said last of a cohort's models; what is no model, or forged, goes to the dead letters."""
        key, raw, partition, offset = value
        if raw is None:  # a tombstone of compaction
            return
        try:
            model = GlobalModel.from_json(raw)
            if self._trusted:
                check(model, self._trusted)
            offer = _offer(model)
        except BadModel as bad:
            source = Source(self._config.topics.global_model, partition, offset)
            yield DEAD_LETTERS, Row(key, _dead_letter(bad, source, raw, datetime.now(UTC)))
            return
        ctx.get_broadcast_state(GLOBAL_MODELS).put(model.key, raw)
        self._models[model.key] = offer

    def _follow(self, learner: DeviceLearner, device: str, ctx: Any) -> None:
        """Let the learner have the version that is meant for it; a network of other layers is for nobody here."""
        cohort = learner.cohort
        stable, canary = (
            offer if offer and offer.architecture == learner.architecture else None
            for offer in (self._global_model(cohort, ctx), self._global_model(canary_key(cohort), ctx))
        )
        newest = stable.version if stable else 0
        if canary and canary.stage is Stage.CANARY and canary.version > newest:
            if learner.base_version == canary.version:
                return
            if is_canary(device, cohort, canary.version, canary.share):
                learner.adopt(canary.theta, canary.version)
                return
        if stable is None or stable.version == learner.base_version:
            return
        if stable.version > learner.base_version:
            learner.adopt(stable.theta, stable.version)
        else:
            learner.return_to(stable.theta, stable.version)

    def _learner(self, device: str, sensors: dict[str, float | None]) -> DeviceLearner:
        """The device's learner, fitted to the sensors that the reading names."""
        learner = self._learners.get(device)
        if learner is None:
            state = self._state.value()
            if state is None:
                learner = DeviceLearner(tuple(sorted(sensors)), self._config.learner)
            else:
                learner = DeviceLearner.from_bytes(state, self._config.learner)
            if len(self._learners) >= CACHED_LEARNERS:
                self._learners.clear()
        learner = self._learners[device] = learner.fitted(sensors, self._config.reading.max_sensors)
        return learner

    def _global_model(self, key: str, ctx: Any) -> Offer | None:
        """What was said last under a key of the topic, decoded once."""
        if key not in self._models:
            if len(self._models) >= CACHED_MODELS:
                self._models.clear()
            raw = ctx.get_broadcast_state(GLOBAL_MODELS).get(key)
            self._models[key] = None if raw is None else _offer(GlobalModel.from_json(raw))
        return self._models[key]


@dataclass(frozen=True, slots=True)
class Offer:
    """A version of a global model, and for whom it is."""

    theta: network.Vector
    architecture: network.Architecture
    version: int
    stage: Stage
    share: float


def _offer(model: GlobalModel) -> Offer:
    theta, architecture = network.from_message(model.weights)
    return Offer(theta, architecture, model.version, model.stage, model.share)


def _alert(said: dict[str, Any]) -> bytes:
    """An alert from what was said of a reading: which sensor, what was expected, what came."""
    sensor = said["sensor"]
    alert = {name: said[name] for name in ("device_id", "timestamp", "cohort", "anomaly_score", "sensor", "kind")}
    expected = said["expected"] or {}
    return orjson.dumps(alert | {"observed": said["observed"].get(sensor), "expected": expected.get(sensor)})


def _dead_letter(bad: BadInput, source: Source, raw: bytes | None, now: datetime) -> bytes:
    return DeadLetter(bad.reason, bad.detail, source, raw or b"", now).to_json()
