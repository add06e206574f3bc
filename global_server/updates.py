"""What an update must be before it may enter a round, as far as the update alone can tell."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from flead.errors import BadUpdate, Reason
from flead.messages import Name, UpdateHeader
from flead.network import Architecture, Vector
from storage.rounds import Update

MAX_PARAMETERS = 40_000
"""A float64 takes up to 24 characters of JSON, and a Kafka record 1 MB unless the broker says otherwise: a global
model that could not be published must not come about."""

_MAX_COUNT = 2**53 - 1  # beyond it, JSON numbers of other languages are no longer exact

_NAME: TypeAdapter[str] = TypeAdapter(Name)
_NAMES: TypeAdapter[list[str]] = TypeAdapter(Annotated[list[Name], Field(min_length=1, max_length=256)])


def read_update(
    message: UpdateHeader, theta: Vector, architecture: Architecture, now: datetime, max_norm: Callable[[str], float]
) -> Update:
    """Validate an update and take from it what is kept.

    Parameters
    ----------
    theta:
        (parameter_count,), its weights
    now:
        when it was received, aware
    max_norm:
        cohort → the largest Euclidean norm of all parameters

    Raises
    ------
    BadUpdate
        naming the field that is wrong
    """
    if theta.size > MAX_PARAMETERS:
        raise BadUpdate(f"the model has {theta.size} parameters, the limit is {MAX_PARAMETERS}", Reason.TOO_LARGE)
    with np.errstate(over="ignore"):  # an infinite norm is refused as well
        norm = float(np.sqrt(theta @ theta))
    cohort = _cohort(message)
    if not norm <= (limit := max_norm(cohort)):
        raise BadUpdate(f"the parameters' norm is {norm:.6g}, the limit is {limit:g}", Reason.OUT_OF_RANGE)
    try:
        timestamp = message.timestamp.astimezone(UTC)
    except OverflowError:
        raise BadUpdate(f"timestamp: {message.timestamp} has no time in UTC", Reason.TIME_OUT_OF_RANGE) from None
    return Update(
        device_id=message.device_id,
        cohort=cohort,
        timestamp=timestamp,
        received_at=now.astimezone(UTC),
        theta=theta,
        architecture=architecture,
        sample_count=message.sample_count,
        samples_seen=_count(message, "samples_seen"),
        base_version=_count(message, "base_version"),
        sensors=_sensors(message),
        devices=_devices(message),
        loss=_loss(message),
        control=_control(message, theta.size),
    )


def _cohort(message: UpdateHeader) -> str:
    named = message.metadata.get("cohort")
    try:
        return _NAME.validate_python(message.cohort if named is None else named, strict=True)
    except ValidationError:
        raise BadUpdate("metadata.cohort: not a name (1-128 characters, none of control)", Reason.BAD_NAME) from None


def _sensors(message: UpdateHeader) -> tuple[str, ...] | None:
    """Read the sensors' names; None where they are none, which is no reason to refuse: no round depends on them."""
    named = message.metadata.get("sensors")
    if named is None:
        return None
    try:
        return tuple(_NAMES.validate_python(named, strict=True))
    except ValidationError:
        return None


def _devices(message: UpdateHeader) -> int:
    """Read how many devices the weights are the mean of; 1 where it does not say."""
    count = _count(message, "devices")
    if count is None:
        return 1
    if not 1 <= count <= message.sample_count:
        raise BadUpdate(
            f"metadata.devices: {count} devices cannot have learned from {message.sample_count} readings",
            Reason.OUT_OF_RANGE,
        )
    return count


def _loss(message: UpdateHeader) -> float | None:
    """Read the device's mean error; None where it is none, which is no reason to refuse: it only judges canaries."""
    value = message.metadata.get("loss")
    if not isinstance(value, float | int) or isinstance(value, bool):
        return None
    return float(value) if 0 <= value < 1e300 else None  # neither does NaN pass


def _control(message: UpdateHeader, size: int) -> Vector | None:
    """Read how the device's control variate changed (SCAFFOLD), (size,); None where it does not say."""
    given = message.metadata.get("control")
    if given is None:
        return None
    sound = isinstance(given, list) and len(given) == size and all(type(one) in (int, float) for one in given)
    control = np.array(given, dtype=np.float64) if sound else np.full(1, np.nan)
    if not np.isfinite(control).all():
        raise BadUpdate(f"metadata.control: must be {size} finite numbers, one for each parameter", Reason.WRONG_TYPE)
    return control


def _count(message: UpdateHeader, name: str) -> int | None:
    """Read a counter from the metadata; None where there is none."""
    value = message.metadata.get(name)
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= _MAX_COUNT:  # bool is an int to isinstance()
        raise BadUpdate(f"metadata.{name}: must be a whole number from 0 to 2**53 - 1", Reason.WRONG_TYPE)
    return value
