"""What MongoDB holds: ONE typed declaration of each collection.

From it come the validators and indexes (`storage.schema`), what may expire, the proof that every query has an index
(`tests/test_storage_schema.py`) and the page `docs/collections.md` (`storage.describe`). Models name what other parts
rely on and leave the rest open: a device may send fields that nobody declared. A new field of an existing collection
has a default, for documents of earlier versions do not have it; anything else is a migration
(`storage.migrations`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

UP, DOWN = 1, -1


def field(says: str, unit: str = "", **more: Any) -> Any:
    """A field with its description, unit and limits; required unless `default` is given."""
    return Field(description=says, json_schema_extra={"unit": unit} if unit else None, **more)


Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Length = Literal["1m", "1h", "1d"]


class _Document(BaseModel):
    model_config = ConfigDict(extra="allow")


class DeviceData(_Document):
    """Readings as they came; several of one device with the same time are one: the first."""

    device_id: Name = field("the device")
    timestamp: datetime = field("event time")
    sensors: dict[str, float | None] = field("name → value; null where the sensor had none", "the sensor's own")
    metadata: dict[str, Any] = field("what else came with it; left out where MongoDB cannot hold it", default={})
    stored_at: datetime | None = field("when it was stored; documents of layout 0 lack it", default=None)


class Prediction(_Document):
    """What was expected of a reading, and how far off it was: records of `flead.predictions`."""

    device_id: Name = field("the device")
    timestamp: datetime = field("event time of the reading")
    cohort: str | None = field("the device's cohort", default=None)
    observed: dict[str, Any] | None = field("name → value", "the sensor's own", default=None)
    expected: dict[str, Any] | None = field(
        "what was forecast for this reading; null for a device's first", "the sensor's own", default=None
    )
    forecast: dict[str, Any] | None = field("for the next reading", "the sensor's own", default=None)
    error: float | None = field("mean absolute residual, each cut at 8", "standard deviations", default=None)
    anomaly_score: float | None = field("1 - p", "in [0, 1)", default=None)
    is_anomaly: bool | None = field("whether it raised an alert", default=None)
    sensor: str | None = field("the strangest sensor", default=None)
    kind: str | None = field("in which way it is strange", default=None)
    drift: bool | None = field("whether the device's errors have risen for good with this reading", default=None)
    model_version: int | None = field("round whose global model the device last adopted; 0: none", default=None)
    samples_seen: int | None = field("the device's training counter", "readings", default=None)
    produced_ms: int | None = field("when the reading was sent", "ms since 1970", default=None)
    stored_at: datetime | None = field("when it was stored; documents of layout 0 lack it", default=None)


class Alert(_Document):
    """Readings whose score is an anomaly: records of `flead.alerts`."""

    device_id: Name = field("the device")
    timestamp: datetime = field("event time of the reading")
    cohort: str | None = field("the device's cohort", default=None)
    kind: str | None = field("in which way it is strange", default=None)
    sensor: str | None = field("the strangest sensor; null where it is the whole device", default=None)
    observed: float | None = field("what came", "the sensor's own", default=None)
    expected: float | None = field("what was forecast", "the sensor's own", default=None)
    anomaly_score: float | None = field("1 - p", "in [0, 1)", default=None)
    stored_at: datetime | None = field("when it was stored; documents of layout 0 lack it", default=None)


class DeadLetter(_Document):
    """What was refused anywhere, and why: records of `flead.dead-letters`."""

    reason: str = field("the code of `flead.errors.Reason`")
    source: dict[str, Any] = field("`topic`, `partition` and `offset`; of a file its path, 0 and the line")
    timestamp: datetime = field("when it was refused")
    detail: str | None = field("one line for people", default=None)
    payload_base64: str | None = field("the bytes as they came, up to 1,500,000", default=None)
    size: int | None = field("of the whole record", "bytes", default=None)
    sha256: str | None = field("of the whole record", default=None)
    truncated: bool | None = field("whether the payload is only its beginning", default=None)
    stored_at: datetime | None = field("when it was stored; documents of layout 0 lack it", default=None)


class Weights(_Document):
    """A network's parameters."""

    weights: list[Any] = field("layer l is (n_in, n_out)")
    biases: list[Any] = field("layer l is (n_out,)")
    architecture: dict[str, Any] = field("sizes of the layers")


class PackedWeights(_Document):
    """A network's parameters, in one value."""

    architecture: dict[str, Any] = field("sizes of the layers")
    parameters: bytes = field("float64, little-endian: layer by layer its weights (n_in, n_out), then its biases")


class LocalModel(_Document):
    """Local updates, pending or used by a round."""

    device_id: Name = field("the device")
    timestamp: datetime = field("event time of its last reading")
    cohort: Name = field("the device's cohort")
    received_at: datetime = field("when the server took it in")
    weights: PackedWeights = field("the device's network")
    sample_count: int = field("learned from since the device's previous update", "readings", ge=1)
    samples_seen: Count | None = field("the device's training counter; null: it did not say", "readings")
    base_version: Count | None = field("the round that the device began from; null: it did not say")
    sensors: list[Name] | None = field("what the network's inputs are made of; null: it did not say", default=None)
    devices: int = field("whose weighted mean it is: 1, or more of an edge's or a shard's", "devices", ge=1, default=1)
    loss: float | None = field("mean error with that round's model; null: unknown", "standard deviations", default=None)
    control: bytes | None = field("SCAFFOLD: how its control variate changed; float64, little-endian", default=None)
    round: Count = field("the round it goes into, pending until that is there; 0: none, its model was taken back")


class GlobalRound(_Document):
    """Rounds, each with the global model that it made."""

    cohort: Name = field("whose model it is")
    round: int = field("its number", ge=1)
    timestamp: datetime = field("when it was made")
    weights: Weights = field("the merged network")
    num_devices: Count = field("devices that took part", "devices")
    total_samples: Count = field("that its updates learned from", "readings")
    aggregation_strategy: str = field("how the updates were merged")
    devices: list[dict[str, Any]] = field(
        "`device_id`, `samples`, `updates`, `samples_seen`, `share` and `flag` of each"
    )
    published_at: datetime | None = field("when Kafka confirmed it; null: not yet")
    parent: int | None = field("the version before; null: none", default=None)
    stage: str = field("`stable`, `canary` or `rolled_back`", default="stable")
    share: Share = field("of the devices, where it is a canary", "in [0, 1]", default=1.0)
    metrics: dict[str, float] = field("what it was judged by, and what it cost", default={})
    signature: str | None = field("the server's, Ed25519, base64", default=None)
    verdict: str | None = field("why it was promoted or rolled back; null: it was not judged", default=None)
    decided_by: str | None = field("who did: a person, or `rollout`", default=None)
    decided_at: datetime | None = field("when", default=None)


class StrategyState(_Document):
    """What a cohort's strategy remembers from one round to the next."""

    strategy: str = field("whose it is")
    version: Count = field("the round that left it")
    arrays: dict[str, Any] = field("name → float64, little-endian")


class DeviceTrust(_Document):
    """What the defence thinks of devices that it ever thought badly of."""

    device_id: Name = field("the device")
    cohort: Name = field("its cohort")
    good: float = field("of its reputation, a Beta distribution", "rounds")
    bad: float = field("of its reputation, a Beta distribution", "rounds")
    state: str = field("`trusted`, `quarantined` or `rejected`")
    reason: str | None = field("why it is kept out; null: it is not", default=None)
    changed_at: datetime = field("when the state last changed")
    decided_by: str | None = field("who decided; null: the defence", default=None)


class ServerRules(_Document):
    """What an operator changed in how rounds are made."""

    rules: dict[str, Any] = field("the settings of `aggregation` that he changed")
    changed_at: datetime = field("when he last did")
    changed_by: str = field("who did")


class SensorWindow(_Document):
    """One sensor in a window."""

    count: Count = field("values", "readings")
    missing: Count = field("readings without a value", "readings")
    sum: float = field("of the values", "the sensor's own")
    sum_squares: float = field("of the values", "the sensor's own, squared")
    mean: float | None = field("null without values", "the sensor's own")
    min: float | None = field("null without values", "the sensor's own")
    max: float | None = field("null without values", "the sensor's own")


class WindowAggregate(_Document):
    """Readings and predictions of a device, or of a cohort, summed over a window of event time."""

    window: Length = field("its length")
    scope: Literal["device", "cohort"] = field("what it sums")
    device_id: Name | None = field("the device; null where it is a cohort's")
    cohort: Name = field("the cohort")
    start: datetime = field("its first instant")
    end: datetime = field("the first instant after it")
    stored_at: datetime = field("when it was last written")
    readings: Count = field("that came", "readings")
    devices: Count = field("that sent any", "devices")
    sensors: dict[str, SensorWindow] = field("name → its figures")
    errors: Count = field("readings with an error", "readings")
    error: float | None = field("their mean error", "standard deviations")
    anomalies: Count = field("that raised an alert", "readings")
    uptime: Share = field("share of its minutes in which readings came; of a minute 1", "in [0, 1]")
    loss: Share | None = field("share of the expected readings that did not come; null: unknown", "in [0, 1]")
    expected: Count | None = field("that should have come; null: unknown", "readings", default=None)
    late: Count = field("that came after the watermark", "readings", default=0)
    scores: list[dict[str, Any]] = field(
        "`version`, `count`, `error` and `persistence` (sums) of each global model; devices' minutes only", default=[]
    )


class SharedAnomaly(_Document):
    """Anomalies that belong together: of several devices of a cohort at once, or of one."""

    cohort: Name = field("the cohort")
    start: datetime = field("of the first anomaly")
    end: datetime = field("of the last")
    stored_at: datetime = field("when it was last written")
    kind: Literal["shared", "single"] = field("of several devices, or of one")
    devices: list[Name] = field("the devices")
    sensors: list[str] = field("the sensors named by their anomalies")
    count: Count = field("anomalies in it", "readings")
    score: Share = field("the highest anomaly score", "in [0, 1]")


class ModelScore(_Document):
    """How well a version of the global model does on the live stream, by window."""

    cohort: Name = field("whose model it is")
    version: Count = field("the round")
    window: Length = field("the window's length")
    start: datetime = field("the window's first instant")
    stored_at: datetime = field("when it was last written")
    devices: Count = field("that it was scored on", "devices")
    count: Count = field("that it was scored on", "readings")
    error: float | None = field("mean absolute residual of the next reading", "typical changes of the sensor")
    persistence: float | None = field("the same of the forecast that nothing changes", "typical changes of the sensor")
    skill: float | None = field("1 - error / persistence; null where that is 0")


class PipelineSample(_Document):
    """One look at a run: what flowed since it began, what waits, and how fast it is."""

    run: Name = field("the run: when it began")
    timestamp: datetime = field("when it was looked at")
    readings: Count = field("sent since the run began", "readings")
    predictions: Count = field("published since then", "readings")
    anomalies: Count = field("that raised an alert since then", "readings")
    local_updates: Count = field("sent since then")
    rounds: Count = field("made since then")
    dead_letters: Count = field("refused since then")
    devices: Count = field("heard of since then", "devices")
    lag: dict[str, int] = field("topic → records not yet consumed", "records")
    latency_p50_ms: float | None = field("of the last minute, reading sent to prediction published", "ms")
    latency_p99_ms: float | None = field("of the last minute, reading sent to prediction published", "ms")
    error: float | None = field("mean error of the last minute", "standard deviations")
    services_down: Count = field("parts of the run that ended by themselves and have not come back")


class AnalysisDay(_Document):
    """The batch analysis of one device's day."""

    source: Name = field("which data")
    day: datetime = field("00:00 UTC")
    shard: Count = field("the part of the fleet that was looked at in one go")
    mark: str = field("tells the readings it was made of, and the way, from others")
    device_id: Name = field("the device")
    cohort: str = field("its cohort")
    version: Count = field("layout of the facts")
    stored_at: datetime = field("when it was last written")
    facts: dict[str, Any] = field("what was found")


class AnalysisEvaluation(_Document):
    """One version of a global model, judged on a part of the fleet on one day."""

    source: Name = field("which data")
    day: datetime = field("00:00 UTC")
    shard: Count = field("the part of the fleet")
    mark: str = field("tells the readings it was made of, and the way, from others")
    key: Name = field("the model: `_id` in global_model")
    weights_mark: str = field("tells its weights from others")
    cohort: Name = field("whose model it is")
    model: Count = field("its version")
    version: Count = field("layout of the facts")
    stored_at: datetime = field("when it was last written")
    facts: dict[str, Any] = field("what was found")


class AnalysisReport(_Document):
    """Reports of the batch analysis."""

    source: Name = field("which data")
    created: datetime = field("when it was made")
    version: Count = field("layout of the report")
    report: dict[str, Any] = field("what `report.json` holds")


class User(_Document):
    """Who may log in at the global server."""

    name: Name = field("who")
    role: Literal["viewer", "operator", "admin"] = field("what he may do")
    password: str = field("its hash, argon2id; empty: removed")
    generation: int = field("raised with each change: tokens of earlier ones no longer hold", ge=1)
    created_at: datetime = field("when he was first added")
    changed_at: datetime = field("when he was last changed, by MongoDB's clock")
    removed_at: datetime | None = field("when he was removed; null: he was not", default=None)


class DeviceKey(_Document):
    """Keys by which devices show who they are."""

    device_id: Name = field("the device")
    sha256: str = field("of the key; the key itself is nowhere")
    aggregator: bool = field("whether it may send what it merged of other devices", default=False)
    public_key: str | None = field(
        "Ed25519, base64: updates of the device are signed; null: they are not", default=None
    )
    created_by: str = field("who made it")
    created_at: datetime = field("when")
    changed_at: datetime = field("when it was last changed, by MongoDB's clock")
    revoked_at: datetime | None = field("when it was revoked; null: it holds", default=None)


class AuditEntry(_Document):
    """Who did what at the global server, or tried to. Written once, never changed."""

    at: datetime = field("when")
    who: str = field("a user, a device, `local`, or `?` where nobody knows")
    action: Name = field("what was done or tried")
    target: str = field("to what")
    outcome: str = field("`done`, or why not")
    details: dict[str, Any] = field("more about it; never a secret", default={})
    address: str | None = field("where the request came from; null: from a command", default=None)


class SchemaVersion(_Document):
    """One document: the layout of this database, and who is changing it."""

    version: Count = field("the last migration that was applied")
    changed_at: datetime | None = field("when it was", default=None)
    lock: dict[str, Any] | None = field("`owner` and `until` of who brings it up to date; null: nobody", default=None)
    restoring: dict[str, Any] | None = field("`file` and `since` of a restore that has not ended", default=None)


class Operand(Enum):
    """What stands in a query's filter where the asker gives something."""

    VALUE = "a value"
    RANGE = "a range"


VALUE, RANGE = Operand.VALUE, Operand.RANGE


@dataclass(frozen=True, slots=True)
class Index:
    """An index: field → `UP` or `DOWN`."""

    name: str
    keys: Mapping[str, int]
    unique: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """A question that the code, a dashboard or a report asks; every one is served by an index."""

    asks: str
    filter: Mapping[str, Any]
    sort: Mapping[str, int]
    only: tuple[str, ...] = ()
    """The fields it wants, where the index alone answers: no document is read."""


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection."""

    name: str
    model: type[BaseModel]
    key: str
    """What its `_id` is made of."""
    indexes: tuple[Index, ...] = ()
    queries: tuple[Query, ...] = ()
    expires_from: str | None = None
    """The date that retention counts from, which is when a thing was stored; None: it may not expire."""
    keep_days: float | None = None
    """How long documents are kept; None: for ever. Comes from the settings."""


_BY_DEVICE = Index("device_time", {"device_id": UP, "timestamp": DOWN})
_BY_TIME = Index("time", {"timestamp": DOWN})
_OF_DEVICE = Query("a device, newest first", {"device_id": VALUE, "timestamp": RANGE}, {"timestamp": DOWN})
_OF_ALL = Query("all devices, newest first", {"timestamp": RANGE}, {"timestamp": DOWN})
_REPLAY = Query("all devices, as it happened", {"timestamp": RANGE}, {"timestamp": UP})
_WHEN = Query("when each device was heard", {}, {"device_id": UP, "timestamp": DOWN}, ("device_id", "timestamp"))

COLLECTIONS: tuple[Collection, ...] = (
    Collection(
        "device_data",
        DeviceData,
        "device@time",
        (_BY_DEVICE, _BY_TIME),
        (_OF_DEVICE, _OF_ALL, _REPLAY, _WHEN),
        "stored_at",
    ),
    Collection(
        "local_models",
        LocalModel,
        "device@time",
        (
            Index("device_received", {"device_id": UP, "received_at": DOWN, "timestamp": DOWN}),
            Index("cohort_round", {"cohort": UP, "round": UP, "received_at": UP}),
        ),
        (
            Query("the newest of a device", {"device_id": VALUE}, {"received_at": DOWN, "timestamp": DOWN}),
            Query("pending ones of a cohort", {"cohort": VALUE, "round": RANGE}, {"round": UP, "received_at": UP}),
        ),
        "received_at",
    ),
    Collection(
        "global_model",
        GlobalRound,
        "cohort#round",
        (Index("cohort_round", {"cohort": UP, "round": DOWN}, unique=True),),
        (
            Query("a cohort's history", {"cohort": VALUE}, {"round": DOWN}),
            Query("the newest of each cohort", {}, {"cohort": UP, "round": DOWN}),
        ),
    ),
    Collection("strategy_state", StrategyState, "cohort"),
    Collection("device_trust", DeviceTrust, "device"),
    Collection("server_rules", ServerRules, "cohort, or `*` for all"),
    Collection(
        "predictions", Prediction, "device@time", (_BY_DEVICE, _BY_TIME), (_OF_DEVICE, _OF_ALL, _REPLAY), "stored_at"
    ),
    Collection(
        "alerts",
        Alert,
        "device@time",
        (_BY_DEVICE, _BY_TIME, Index("cohort_time", {"cohort": UP, "timestamp": UP})),
        (
            _OF_DEVICE,
            _OF_ALL,
            Query("a cohort's, as it happened", {"cohort": VALUE, "timestamp": RANGE}, {"timestamp": UP}),
        ),
        "stored_at",
    ),
    Collection(
        "dead_letters",
        DeadLetter,
        "topic/partition/offset",
        (Index("reason_time", {"reason": UP, "timestamp": DOWN}), _BY_TIME),
        (
            Query("of one reason, newest first", {"reason": VALUE}, {"timestamp": DOWN}),
            Query("all, newest first", {"timestamp": RANGE}, {"timestamp": DOWN}),
        ),
        "stored_at",
    ),
    Collection(
        "window_aggregates",
        WindowAggregate,
        "window/scope/name@start",
        (
            Index("device_window", {"device_id": UP, "window": UP, "start": DOWN}),
            Index("window_scope", {"window": UP, "scope": UP, "start": DOWN, "cohort": UP}),
        ),
        (
            Query("a device's windows", {"device_id": VALUE, "window": VALUE, "start": RANGE}, {"start": DOWN}),
            Query("a device's windows, to be rolled up", {"device_id": VALUE, "window": "1m", "start": RANGE}, {}),
            Query("windows of all devices", {"window": VALUE, "scope": "device", "start": RANGE}, {"start": DOWN}),
            Query("windows of all cohorts", {"window": VALUE, "scope": "cohort", "start": RANGE}, {"start": DOWN}),
            Query(
                "a cohort's windows",
                {"window": VALUE, "scope": "cohort", "start": RANGE, "cohort": VALUE},
                {"start": DOWN},
            ),
            Query(
                "a cohort's device windows of one time, to be rolled up",
                {"window": VALUE, "scope": "device", "start": VALUE, "cohort": VALUE},
                {},
            ),
        ),
        "stored_at",
    ),
    Collection(
        "shared_anomalies",
        SharedAnomaly,
        "cohort@start/device",
        (
            Index("time", {"start": DOWN}),
            Index("kind_time", {"kind": UP, "start": DOWN}),
            Index("device_time", {"devices": UP, "start": DOWN}),
            Index("cohort_time", {"cohort": UP, "start": DOWN}),
        ),
        (
            Query("all, newest first", {"start": RANGE}, {"start": DOWN}),
            Query("of one kind, newest first", {"kind": VALUE, "start": RANGE}, {"start": DOWN}),
            Query("of a device, newest first", {"devices": VALUE}, {"start": DOWN}),
            Query("of a cohort", {"cohort": VALUE, "start": RANGE}, {"start": DOWN}),
        ),
        "stored_at",
    ),
    Collection(
        "model_scores",
        ModelScore,
        "cohort#version/window@start",
        (
            Index("version_time", {"cohort": UP, "version": UP, "start": DOWN}),
            Index("cohort_time", {"cohort": UP, "start": DOWN}),
        ),
        (
            Query("one version", {"cohort": VALUE, "version": VALUE, "start": RANGE}, {"start": DOWN}),
            Query("all versions of a cohort", {"cohort": VALUE, "start": RANGE}, {"start": DOWN}),
        ),
        "stored_at",
    ),
    Collection(
        "analysis_days",
        AnalysisDay,
        "source/day/device",
        (
            Index("source_unit", {"source": UP, "day": UP, "shard": UP, "mark": UP}),
            Index("source_day", {"source": UP, "day": UP, "device_id": UP}),
            Index("source_device", {"source": UP, "device_id": UP, "day": UP}),
        ),
        (
            Query("what has been looked at", {"source": VALUE}, {}, ("day", "shard", "mark")),
            Query("a part of the fleet on a day", {"source": VALUE, "day": VALUE, "shard": VALUE}, {}),
            Query("days of a source", {"source": VALUE, "day": RANGE}, {"day": UP, "device_id": UP}),
            Query("days of a device", {"source": VALUE, "device_id": VALUE}, {"day": UP}),
        ),
        "stored_at",
    ),
    Collection(
        "analysis_evaluations",
        AnalysisEvaluation,
        "source/day/shard/cohort#model",
        (Index("source_unit", {"source": UP, "day": UP, "shard": UP, "mark": UP, "key": UP, "weights_mark": UP}),),
        (
            Query("what has been judged", {"source": VALUE}, {}, ("day", "shard", "mark", "key", "weights_mark")),
            Query("days of a source", {"source": VALUE, "day": RANGE}, {"day": UP}),
            Query("days of some models", {"source": VALUE, "day": RANGE, "key": VALUE}, {"day": UP}),
        ),
        "stored_at",
    ),
    Collection(
        "analysis_reports",
        AnalysisReport,
        "source@created",
        (Index("source_created", {"source": UP, "created": DOWN}),),
        (Query("the newest of a source", {"source": VALUE}, {"created": DOWN}),),
        "created",
    ),
    Collection(
        "pipeline_samples",
        PipelineSample,
        "run@time",
        (Index("time", {"timestamp": DOWN}),),
        (Query("all, newest first", {"timestamp": RANGE}, {"timestamp": DOWN}),),
        "timestamp",
    ),
    Collection(
        "users",
        User,
        "name",
        (Index("changed", {"changed_at": UP}),),
        (Query("what changed", {"changed_at": RANGE}, {"changed_at": UP}),),
    ),
    Collection(
        "device_keys",
        DeviceKey,
        "the key's name",
        (Index("changed", {"changed_at": UP}), Index("device", {"device_id": UP, "created_at": UP})),
        (
            Query("what changed", {"changed_at": RANGE}, {"changed_at": UP}),
            Query("of a device", {"device_id": VALUE}, {"created_at": UP}),
            Query("all", {}, {"device_id": UP, "created_at": UP}),
        ),
    ),
    Collection(
        "audit_log",
        AuditEntry,
        "time#random",
        expires_from="at",
    ),
    Collection("schema_version", SchemaVersion, "`schema`"),
)
