"""Reads the body of a request: no more than a limit, unpacked, as JSON or MessagePack.

Nothing of a body is trusted before it is validated: unpacking stops at the limit, MessagePack may not claim lists that
are longer than any model's, and neither format can make objects other than numbers, texts, lists and maps.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, TypeVar

import msgpack
from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from global_server.problems import InvalidBody
from global_server.updates import MAX_PARAMETERS

MAX_BODY = 2_000_000
"""Bytes of a request, packed and unpacked: twice the JSON of the largest model that is accepted."""
_DRAIN = 32 * MAX_BODY  # read on this far before answering: a sender that is cut off does not see the answer

JSON, MSGPACK = "application/json", "application/msgpack"
_MSGPACK_NAMES = {MSGPACK, "application/x-msgpack", "application/vnd.msgpack"}
# What curl, urllib and fetch say of a text when nobody told them what it is; it is read as JSON.
_UNNAMED = {"", "application/x-www-form-urlencoded", "text/plain"}

_MAX_LIST, _MAX_MAP, _MAX_TIME = MAX_PARAMETERS, 10_000, 32

_GZIP = 16 + zlib.MAX_WBITS

Message = TypeVar("Message", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body.

    Attributes
    ----------
    raw:
        the bytes as they came, which is what a signature covers
    packed:
        whether they are gzip's
    media_type:
        `JSON` or `MSGPACK`, of what is packed
    """

    raw: bytes
    packed: bool = False
    media_type: str = JSON


async def read_body(request: Request, limit: int = MAX_BODY) -> Body:
    """Read a body of at most `limit` bytes; it is neither unpacked nor parsed yet.

    Raises
    ------
    HTTPException
        413 where it is larger, 415 for another encoding or media type, 400 where the sender went away
    """
    raw = await _read(request, limit)
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", ""):
        detail = f"Content-Encoding {encoding[:60]!r} is not read here: send gzip, or nothing packed"
        raise HTTPException(415, detail, {"Accept-Encoding": "gzip"})
    return Body(raw, encoding.endswith("gzip"), _media_type(request.headers.get("content-type", "")))


def parse(body: Body, model: type[Message], limit: int = MAX_BODY) -> Message:
    """Make a message of a body.

    Parameters
    ----------
    limit:
        of the unpacked body, bytes

    Raises
    ------
    InvalidBody
        with everything that is wrong
    HTTPException
        413 where it is larger

    >>> class Point(BaseModel):
    ...     x: float
    >>> parse(Body(msgpack.packb({"x": 2.5}), media_type=MSGPACK), Point)
    Point(x=2.5)
    >>> parse(Body(b'{"x": "?"}'), Point)
    Traceback (most recent call last):
    global_server.problems.InvalidBody: bad_update: 1 wrong, first: x Input should be a valid number, ...
    """
    raw = unpack(body.raw, limit) if body.packed else body.raw
    try:
        if body.media_type == MSGPACK:
            return model.model_validate(_read_msgpack(raw))
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise InvalidBody(error) from None


def unpack(raw: bytes, limit: int = MAX_BODY) -> bytes:
    """Unpack gzip; no more than `limit` bytes are ever made.

    Raises
    ------
    InvalidBody
        where it is not one whole gzip stream
    HTTPException
        413 where it is larger

    >>> import gzip
    >>> unpack(gzip.compress(b"{}"))
    b'{}'
    """
    unpacker = zlib.decompressobj(_GZIP)
    try:
        found = unpacker.decompress(raw, limit + 1)
    except zlib.error as error:
        raise _invalid(f"Invalid gzip: {error}") from None
    if len(found) > limit:
        raise _too_large(limit, "unpacked ")
    if not unpacker.eof:
        raise _invalid("Invalid gzip: it ends too early")
    if unpacker.unused_data:
        raise _invalid("Invalid gzip: something follows its end")
    return found


async def _read(request: Request, limit: int) -> bytes:
    parts, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= limit:
                parts.append(chunk)
            elif size > _DRAIN:
                break
    except ClientDisconnect:
        raise HTTPException(400, "the sender went away") from None
    if size > limit:
        raise _too_large(limit)
    return b"".join(parts)


def _media_type(header: str) -> str:
    named = header.partition(";")[0].strip().lower()
    if named in _MSGPACK_NAMES:
        return MSGPACK
    if named in _UNNAMED or named in (JSON, "text/json") or named.endswith("+json"):
        return JSON
    detail = f"Content-Type {named[:60]!r} is not read here: send {JSON} or {MSGPACK}"
    raise HTTPException(415, detail, {"Accept": f"{JSON}, {MSGPACK}"})


def _read_msgpack(raw: bytes) -> Any:
    # The length that a list claims is allocated before its items are read, and each of those takes a byte or more.
    longest = min(_MAX_LIST, len(raw))
    try:
        return msgpack.unpackb(raw, timestamp=3, max_array_len=longest, max_map_len=_MAX_MAP, max_ext_len=_MAX_TIME)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise _invalid(f"Invalid MessagePack: {why}") from None


def _invalid(message: str) -> InvalidBody:
    why = PydanticCustomError("body_invalid", "{why}", {"why": message})
    return InvalidBody(ValidationError.from_exception_data("body", [InitErrorDetails(type=why, input=None)]))


def _too_large(limit: int, how: str = "") -> HTTPException:
    return HTTPException(413, f"the body is {how}larger than {limit} bytes")
