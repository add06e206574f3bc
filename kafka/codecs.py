"""What a record of each topic is, and the key that it must have: one table."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from flead.errors import BadConfiguration, BadInput, Reason
from flead.messages import DeadLetter, GlobalModel, LocalUpdate, ReadingLimits, Source, parse_reading
from kafka.topics import ALERTS, DEAD_LETTERS, GLOBAL_MODEL, LOCAL_UPDATES, PREDICTIONS, READINGS


@dataclass(frozen=True, slots=True)
class Codec:
    """How to read a record of one topic.

    Parameters
    ----------
    decode:
        value, present time and limits to message; raises `BadInput`
    key:
        message to the key that its record must have; None where any key will do
    """

    decode: Callable[[bytes, datetime, ReadingLimits], Any]
    key: Callable[[Any], str | None]


class _DeadLetterRecord(BaseModel):
    """A dead letter as it travels: see `DeadLetter.to_json`."""

    model_config = ConfigDict(extra="allow")

    reason: Reason
    detail: str
    source: Source
    timestamp: AwareDatetime
    payload_base64: str
    size: int
    sha256: str
    truncated: bool


def decode_dead_letter(raw: bytes) -> DeadLetter:
    """Read a record of `flead.dead-letters`; of a truncated payload, what was kept.

    Raises
    ------
    BadInput
        if a field is missing or wrong, or the payload is not the one that its size and SHA-256 describe

    >>> letter = DeadLetter(Reason.EMPTY, "", Source("t", 0, 7), b"?", datetime.fromisoformat("2024-01-01T00:00:00Z"))
    >>> decode_dead_letter(letter.to_json()) == letter
    True
    """
    try:
        record = _DeadLetterRecord.model_validate_json(raw)
        payload = base64.b64decode(record.payload_base64, validate=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise BadInput(Reason.WRONG_TYPE, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except ValueError as error:  # binascii.Error, or not ASCII
        raise BadInput(Reason.WRONG_TYPE, f"payload_base64: {error}") from None
    if not record.truncated and (len(payload), _sha256(payload)) != (record.size, record.sha256):
        raise BadInput(Reason.WRONG_TYPE, "payload_base64: not the bytes that size and sha256 describe")
    return DeadLetter(record.reason, record.detail, record.source, payload, record.timestamp)


def decode_object(raw: bytes) -> dict[str, Any]:
    """Read a JSON object that names its device.

    Raises
    ------
    BadInput
        saying what it is instead

    >>> decode_object(b'{"device_id": "mote-7"}')
    {'device_id': 'mote-7'}
    >>> decode_object(b"[]")
    Traceback (most recent call last):
    flead.errors.BadInput: not_an_object: a list
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadInput(Reason.NOT_JSON, str(error)) from None
    if not isinstance(value, dict):
        raise BadInput(Reason.NOT_AN_OBJECT, f"a {type(value).__name__}")
    if not isinstance(value.get("device_id"), str):
        raise BadInput(Reason.MISSING_FIELD, "device_id: a string is required")
    return value


def _sha256(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


_OBJECT = Codec(lambda raw, _now, _limits: decode_object(raw), lambda message: message["device_id"])

CODECS: Mapping[str, Codec] = {
    READINGS: Codec(
        lambda raw, now, limits: parse_reading(raw, now=now, limits=limits), lambda reading: reading.device_id
    ),
    PREDICTIONS: _OBJECT,
    LOCAL_UPDATES: Codec(lambda raw, _now, _limits: LocalUpdate.from_json(raw), lambda update: update.device_id),
    GLOBAL_MODEL: Codec(lambda raw, _now, _limits: GlobalModel.from_json(raw), lambda model: model.key),
    ALERTS: _OBJECT,
    DEAD_LETTERS: Codec(lambda raw, _now, _limits: decode_dead_letter(raw), lambda _letter: None),
}
"""Topic to codec. `tests/test_kafka_codecs.py` shows that every declared topic has one."""


def decode(topic: str, value: bytes | None, *, now: datetime, limits: ReadingLimits) -> Any:
    """Read a record's value.

    Raises
    ------
    BadInput
        saying what is wrong with it
    BadConfiguration
        if the topic is not one of ours
    """
    codec = CODECS.get(topic)
    if codec is None:
        raise BadConfiguration(f"{topic} is no topic of FLEAD: choose one of {', '.join(CODECS)}")
    if not value:
        raise BadInput(Reason.EMPTY, "the record has no value")
    return codec.decode(value, now, limits)


def problem_with(
    topic: str, key: bytes | None, value: bytes | None, *, now: datetime, limits: ReadingLimits
) -> str | None:
    """Say what is wrong with a record, as `reason: detail`; None if nothing is.

    A record without value deletes its key from a compacted topic, which is no problem there.

    Raises
    ------
    BadConfiguration
        if the topic is not one of ours
    """
    if value is None and topic == GLOBAL_MODEL:
        return None
    try:
        message = decode(topic, value, now=now, limits=limits)
    except BadInput as error:
        return str(error)
    expected = CODECS[topic].key(message)
    if expected is not None and key != expected.encode():
        return f"{WRONG_KEY}: {_shown(key)}, the value says {expected!r}"
    return None


WRONG_KEY = "wrong_key"


def _shown(key: bytes | None) -> str:
    return "none" if key is None else repr(key[:128].decode(errors="replace"))
