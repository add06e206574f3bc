"""What travels on the topics and over REST: one typed declaration for each, with its JSON.

Reading a message is strict: it either gives a valid object or raises an error of `flead.errors` that says what is
wrong. Times are aware and in UTC. Numbers are finite.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Self, TypeVar

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, FailFast, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from flead.errors import BadModel, BadReading, BadUpdate, Reason

Name = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\p{C}]+$")]
"""A device, sensor or cohort name: 1-128 characters, none of them a control character."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class ReadingLimits(BaseModel):
    """What still counts as a reading. Beyond it a record goes to the dead letters."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_bytes: int = Field(262_144, gt=0, description="size of one record")
    max_sensors: int = Field(64, gt=0, le=256, description="sensors of one device")
    max_abs_value: float = Field(1e15, gt=0, description="beyond it float64 no longer tells tenths apart")
    earliest: AwareDatetime = Field(
        datetime(2000, 1, 1, tzinfo=UTC), description="a clock that was never set says 1970"
    )
    max_future_s: float = Field(86_400.0, ge=0, le=1e9, description="how far a device's clock may run ahead, s")


class Reading(BaseModel):
    """One record of `flead.readings`.

    `sensors` is a non-empty map of name to finite number, or None where the device has the sensor but no value.
    Unknown fields are kept in `metadata`.
    """

    model_config = ConfigDict(strict=True, extra="allow")

    device_id: Name
    timestamp: AwareDatetime
    sensors: dict[Name, Finite | None] = Field(min_length=1)
    metadata: dict[str, Any] = Field(default_factory=dict)

    def model_post_init(self, _context: Any, /) -> None:
        """Move unknown fields into the metadata, and the time to UTC."""
        extra = self.__pydantic_extra__
        if extra:
            self.metadata = {**extra, **self.metadata}
            extra.clear()
        with suppress(OverflowError):  # year 1 or 9999 with an offset: out of range, and refused as such
            self.timestamp = self.timestamp.astimezone(UTC)

    def to_json(self) -> bytes:
        """The record's bytes.

        >>> Reading(device_id="mote-7", timestamp=datetime(2004, 3, 4, tzinfo=UTC), sensors={"light": None}).to_json()
        b'{"device_id":"mote-7","timestamp":"2004-03-04T00:00:00+00:00","sensors":{"light":null},"metadata":{}}'
        """
        fields = {
            "device_id": self.device_id,
            "timestamp": self.timestamp,
            "sensors": self.sensors,
            "metadata": self.metadata,
        }
        try:
            return orjson.dumps(fields)
        except TypeError:  # orjson refuses integers beyond 64 bits, which metadata may hold
            return self.model_dump_json().encode()


def parse_reading(raw: bytes | None, *, now: datetime, limits: ReadingLimits) -> Reading:
    """Read one record of `flead.readings`.

    Parameters
    ----------
    raw:
        the record's value as it came, None for a tombstone
    now:
        the present, aware: readings from further ahead than `limits.max_future_s` are refused

    Raises
    ------
    BadReading
        with the `Reason` and one line that says where

    >>> limits, now = ReadingLimits(), datetime(2024, 1, 1, tzinfo=UTC)
    >>> ok = b'{"device_id": "m", "timestamp": "2004-03-04T00:00:00+00:00", "sensors": {"t": 19.3}, "site": "lab"}'
    >>> parse_reading(ok, now=now, limits=limits).metadata
    {'site': 'lab'}
    >>> parse_reading(b'{"device_id": "m"', now=now, limits=limits)
    Traceback (most recent call last):
    flead.errors.BadReading: not_json: Invalid JSON: EOF while parsing an object at line 1 column 17
    """
    if not raw:
        raise BadReading(Reason.EMPTY, "the record has no value")
    if len(raw) > limits.max_bytes:
        raise BadReading(Reason.TOO_LARGE, f"{len(raw)} bytes, the limit is {limits.max_bytes}")
    try:
        reading = Reading.model_validate_json(raw)
    except ValidationError as error:
        raise BadReading(*_first_reason(error)) from None
    if len(reading.sensors) > limits.max_sensors:
        raise BadReading(Reason.TOO_MANY_SENSORS, f"{len(reading.sensors)} sensors, the limit is {limits.max_sensors}")
    for name, value in reading.sensors.items():
        if value is not None and abs(value) > limits.max_abs_value:
            raise BadReading(Reason.OUT_OF_RANGE, f"sensors.{name} is {value:g}, the limit is {limits.max_abs_value:g}")
    if reading.timestamp < limits.earliest:
        raise BadReading(
            Reason.TIME_OUT_OF_RANGE, f"{reading.timestamp.isoformat()} is before {limits.earliest.date()}"
        )
    if reading.timestamp > now + timedelta(seconds=limits.max_future_s):
        raise BadReading(Reason.TIME_OUT_OF_RANGE, f"{reading.timestamp.isoformat()} is in the future")
    return reading


_REASONS = {
    "json_invalid": Reason.NOT_JSON,
    "missing": Reason.MISSING_FIELD,
    "too_short": Reason.NO_SENSORS,
    "finite_number": Reason.NOT_FINITE,
    "string_too_short": Reason.BAD_NAME,
    "string_too_long": Reason.BAD_NAME,
    "string_pattern_mismatch": Reason.BAD_NAME,
    "string_unicode": Reason.BAD_NAME,
    "timezone_aware": Reason.BAD_TIME,
    "datetime_parsing": Reason.BAD_TIME,
    "datetime_from_date_parsing": Reason.BAD_TIME,
    "datetime_object_invalid": Reason.BAD_TIME,
    "datetime_type": Reason.WRONG_TYPE,
    "model_type": Reason.NOT_AN_OBJECT,
    "model_attributes_type": Reason.NOT_AN_OBJECT,
}


def _first_reason(error: ValidationError) -> tuple[Reason, str]:
    """The code and the line for the first thing that pydantic found wrong."""
    first: ErrorDetails = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    detail = f"{where}: {first['msg']}" if where else first["msg"]
    return _REASONS.get(first["type"], Reason.WRONG_TYPE), " ".join(detail.split())[:500]


@lru_cache(maxsize=4_096)
def cohort_of(sensors: Sequence[str]) -> str:
    """The cohort of devices that have just these sensors (sorted names, as a tuple).

    >>> cohort_of(("humidity", "temperature"))
    'humidity+temperature'
    >>> cohort_of(tuple(f"sensor-{i:02}" for i in range(50)))
    '50-sensors-21da333a156f'
    """
    name = "+".join(sensors)
    if len(name) <= 64 and name.count("+") == len(sensors) - 1:
        return name
    return f"{len(sensors)}-sensors-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


T = TypeVar("T")
_Quick = Annotated[T, FailFast()]
"""Stops at the first error: a large body of nothing but errors would otherwise take minutes to describe."""


class ArchitectureMessage(BaseModel):
    """The sizes of a network as they travel."""

    model_config = ConfigDict(extra="allow")

    input_size: int = Field(gt=0, le=100_000)
    hidden_sizes: list[Annotated[int, Field(gt=0, le=100_000)]] = Field(max_length=64)
    output_size: int = Field(gt=0, le=100_000)
    skip: bool = Field(False, description="whether the last layer also sees the inputs, behind the hidden values")


class WeightsMessage(BaseModel):
    """A network's parameters as they travel: `weights[l]` is (n_in, n_out), `biases[l]` is (n_out,)."""

    model_config = ConfigDict(extra="allow")

    weights: _Quick[list[_Quick[list[_Quick[list[Finite]]]]]]
    biases: _Quick[list[_Quick[list[Finite]]]]
    architecture: ArchitectureMessage


class UpdateHeader(BaseModel):
    """What a local update says beside its weights.

    `sample_count` counts the readings learned from since the device's previous update. `metadata.cohort` names the
    cohort, `metadata.samples_seen` the device's training counter, `metadata.base_version` the global model it
    began from.
    """

    model_config = ConfigDict(extra="allow")

    device_id: Name
    sample_count: int = Field(gt=0, le=1_000_000_000)
    timestamp: AwareDatetime
    metadata: dict[str, Any] = Field(default_factory=dict)

    @property
    def cohort(self) -> str:
        """The cohort it belongs to; `default` without one."""
        return str(self.metadata.get("cohort") or "default")


class LocalUpdate(UpdateHeader):
    """One record of `flead.local-updates` and the body of `POST /api/local-update`."""

    weights: WeightsMessage

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """Read a record; raises `BadUpdate`."""
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            reason, detail = _first_reason(error)
            raise BadUpdate(detail, reason) from None


def canary_key(cohort: str) -> str:
    r"""The key of a cohort's newest canary; no cohort's name, for those hold no control characters.

    >>> canary_key("light")
    'light\x00canary'
    """
    return cohort + "\0canary"


class Stage(StrEnum):
    """Where a version of a global model stands."""

    STABLE = "stable"
    """For every device of the cohort."""
    CANARY = "canary"
    """For a few devices, until their errors have judged it."""
    ROLLED_BACK = "rolled_back"
    """Taken back: who has it goes back to the stable one."""


class GlobalModel(BaseModel):
    """One record of `flead.global-model`. `version` is the round that made it, `parent` the version before.

    Stable models are keyed by cohort; what becomes of a canary has the key `canary_key`, so that compaction keeps both.
    `share` is for which devices a canary is (`flead.rollout.is_canary`), `signature` that of `flead.signatures`.
    """

    cohort: Name
    version: int = Field(ge=1)
    weights: WeightsMessage
    timestamp: AwareDatetime
    num_devices: int = Field(ge=1)
    total_samples: int = Field(ge=1)
    aggregation_strategy: str
    parent: int | None = Field(None, ge=1)
    stage: Stage = Stage.STABLE
    share: float = Field(1.0, ge=0, le=1)
    metrics: dict[str, float] = Field(default_factory=dict)
    signature: str | None = Field(None, max_length=128)

    @property
    def key(self) -> str:
        """The record's key.

        >>> sizes = {"input_size": 1, "hidden_sizes": [], "output_size": 1}
        >>> weights = {"weights": [], "biases": [], "architecture": sizes}
        >>> GlobalModel(cohort="x", version=1, weights=weights, timestamp="2024-01-01T00:00:00Z", num_devices=1,
        ...             total_samples=1, aggregation_strategy="fedavg").key
        'x'
        """
        return self.cohort if self.stage is Stage.STABLE else canary_key(self.cohort)

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """Read a record; raises `BadModel`."""
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            raise BadModel(_first_reason(error)[1]) from None


@dataclass(frozen=True, slots=True)
class Source:
    """Where a record came from: a Kafka topic, partition and offset, or a file (topic) and line (offset)."""

    topic: str
    partition: int
    offset: int


MAX_PAYLOAD = 1_500_000
"""Bytes of a refused record that its dead letter keeps; the rest is named by `size` and `sha256`."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of `flead.dead-letters`: the bytes as they came, the reason, and where they came from."""

    reason: Reason
    detail: str
    source: Source
    payload: bytes
    timestamp: datetime

    def to_json(self) -> bytes:
        """The record's bytes; the payload in base64.

        >>> import json
        >>> source, now = Source("flead.readings", 0, 7), datetime(2024, 1, 1, tzinfo=UTC)
        >>> letter = DeadLetter(Reason.NOT_JSON, "line 1", source, b"?", now)
        >>> json.loads(letter.to_json())["payload_base64"]
        'Pw=='
        """
        return orjson.dumps(
            {
                "reason": self.reason,
                "detail": self.detail,
                "source": self.source,
                "timestamp": self.timestamp,
                "payload_base64": base64.b64encode(self.payload[:MAX_PAYLOAD]).decode(),
                "size": len(self.payload),
                "sha256": hashlib.sha256(self.payload).hexdigest(),
                "truncated": len(self.payload) > MAX_PAYLOAD,
            }
        )
