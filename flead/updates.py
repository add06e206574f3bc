"""A local update as it is meant: its numbers in one vector, what its metadata says checked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import numpy as np
import orjson
from pydantic import Field, TypeAdapter, ValidationError

from flead import network
from flead.errors import BadModel, BadUpdate, Reason
from flead.messages import ArchitectureMessage, LocalUpdate, Name, UpdateHeader
from flead.network import Architecture, Vector

_MAX_COUNT = 2**53 - 1  # beyond it, JSON numbers of other languages are no longer exact

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_NAMES: TypeAdapter[list[str]] = TypeAdapter(Annotated[list[Name], Field(min_length=1, max_length=256)])


@dataclass(frozen=True, slots=True)
class ReadUpdate:
    """What a local update says.

    Attributes
    ----------
    device_id, cohort:
        whose it is; `default` without a cohort
    theta:
        (parameter_count,), the device's parameters, or the mean of so many `devices`
    sample_count:
        readings learned from since the previous update
    timestamp:
        of the last of them, in UTC
    samples_seen, base_version:
        the training counter and the global model that it began from; None where it does not say
    sensors:
        the names that the network's inputs are made of; None where they are none, which is no reason to refuse
    loss:
        the mean error with that global model, standard deviations; None where it is none, which only judges canaries
    control:
        (parameter_count,), how the control variate of SCAFFOLD changed; None where it does not say
    """

    device_id: str
    cohort: str
    theta: Vector
    architecture: Architecture
    sample_count: int
    timestamp: datetime
    samples_seen: int | None = None
    base_version: int | None = None
    sensors: tuple[str, ...] | None = None
    devices: int = 1
    loss: float | None = None
    control: Vector | None = None

    @property
    def norm(self) -> float:
        """The Euclidean norm of all parameters; infinite where they are too large for one."""
        with np.errstate(over="ignore"):
            return float(np.sqrt(self.theta @ self.theta))


def parse_update(raw: bytes) -> ReadUpdate:
    """Read a record of `flead.local-updates`.

    The outcome is that of `LocalUpdate.from_json` and `read_message`, in two thirds of their time: that every number is
    one shows when they are put into the vector. Where anything is unusual they read it again, and say what is wrong.
    Only a whole number beyond 64 bits, which is none of those that are read, is taken for a float.

    Raises
    ------
    BadUpdate
        naming the field that is wrong
    BadModel
        where shapes do not fit or a number is not finite

    >>> weights = b'{"weights": [[[0.5]]], "biases": [[1]], "architecture": {"input_size": 1, "hidden_sizes": [], '
    >>> weights += b'"output_size": 1}}'
    >>> said = b'{"device_id": "m", "sample_count": 9, "timestamp": "2024-01-01T00:00:00Z", "weights": '
    >>> update = parse_update(said + weights + b'}')
    >>> update.device_id, update.theta.tolist(), str(update.architecture)
    ('m', [0.5, 1.0], '1-1')
    """
    try:
        fields = orjson.loads(raw)
        weights = fields.pop("weights")
        architecture = Architecture.from_message(ArchitectureMessage.model_validate(weights["architecture"]))
        theta = network.flattened(architecture, weights["weights"], weights["biases"])
        header = UpdateHeader.model_validate(fields)
    except (orjson.JSONDecodeError, ValidationError, BadModel, AttributeError, KeyError, TypeError):
        return read_message(LocalUpdate.from_json(raw))
    return _read(header, theta, architecture)


def read_message(message: LocalUpdate) -> ReadUpdate:
    """Read an update that has been validated as a message.

    Raises
    ------
    BadUpdate
        naming the field that is wrong
    BadModel
        where shapes do not fit or a number is not finite
    """
    return _read(message, *network.from_message(message.weights))


def _read(said: UpdateHeader, theta: Vector, architecture: Architecture) -> ReadUpdate:
    try:
        timestamp = said.timestamp.astimezone(UTC)
    except OverflowError:
        raise BadUpdate(f"timestamp: {said.timestamp} has no time in UTC", Reason.TIME_OUT_OF_RANGE) from None
    return ReadUpdate(
        device_id=said.device_id,
        cohort=_cohort(said),
        theta=theta,
        architecture=architecture,
        sample_count=said.sample_count,
        timestamp=timestamp,
        samples_seen=_count(said, "samples_seen"),
        base_version=_count(said, "base_version"),
        sensors=_sensors(said),
        devices=_devices(said),
        loss=_loss(said),
        control=_control(said, theta.size),
    )


def _cohort(said: UpdateHeader) -> str:
    named = said.metadata.get("cohort")
    try:
        return _NAME.validate_python(said.cohort if named is None else named, strict=True)
    except ValidationError:
        raise BadUpdate("metadata.cohort: not a name (1-128 characters, none of control)", Reason.BAD_NAME) from None


def _sensors(said: UpdateHeader) -> tuple[str, ...] | None:
    named = said.metadata.get("sensors")
    if named is None:
        return None
    try:
        return tuple(_NAMES.validate_python(named, strict=True))
    except ValidationError:
        return None


def _devices(said: UpdateHeader) -> int:
    count = _count(said, "devices")
    if count is None:
        return 1
    if not 1 <= count <= said.sample_count:
        raise BadUpdate(
            f"metadata.devices: {count} devices cannot have learned from {said.sample_count} readings",
            Reason.OUT_OF_RANGE,
        )
    return count


def _loss(said: UpdateHeader) -> float | None:
    value = said.metadata.get("loss")
    if not isinstance(value, float | int) or isinstance(value, bool):
        return None
    return float(value) if 0 <= value < 1e300 else None  # neither does NaN pass


def _control(said: UpdateHeader, size: int) -> Vector | None:
    given = said.metadata.get("control")
    if given is None:
        return None
    sound = isinstance(given, list) and len(given) == size and all(type(one) in (int, float) for one in given)
    control = np.array(given, dtype=np.float64) if sound else np.full(1, np.nan)
    if not np.isfinite(control).all():
        raise BadUpdate(f"metadata.control: must be {size} finite numbers, one for each parameter", Reason.WRONG_TYPE)
    return control


def _count(said: UpdateHeader, name: str) -> int | None:
    value = said.metadata.get(name)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= _MAX_COUNT:  # bool is an int to isinstance()
        raise BadUpdate(f"metadata.{name}: must be a whole number from 0 to 2**53 - 1", Reason.WRONG_TYPE)
    return value
