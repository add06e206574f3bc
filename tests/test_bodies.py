from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any

import httpx
import msgpack
import pytest
from fastapi import FastAPI, Request
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from flead.messages import LocalUpdate
from global_server import problems
from global_server.bodies import JSON, MSGPACK, Body, parse, read_body, unpack
from global_server.problems import InvalidBody

LIMIT = 10_000


class Point(BaseModel):
    x: float
    y: list[float] = []


@pytest.fixture
def app() -> FastAPI:
    app = FastAPI()
    problems.install(app)

    @app.post("/point")
    async def point(request: Request) -> Point:
        return parse(await read_body(request, LIMIT), Point, LIMIT)

    return app


def post(app: FastAPI, raw: bytes, media_type: str | None = None, encoding: str | None = None) -> httpx.Response:
    headers = {"content-type": media_type, "content-encoding": encoding}
    named = {name: value for name, value in headers.items() if value}

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return await client.post("/point", content=raw, headers=named)

    return asyncio.run(ask())


RAW = b'{"x": 2.5}'
PACKED = msgpack.packb({"x": 2.5})


@pytest.mark.parametrize(
    ("raw", "media_type", "encoding"),
    [
        (RAW, None, None),
        (RAW, "application/json; charset=utf-8", "identity"),
        (RAW, "application/vnd.flead+json", None),
        (RAW, "application/x-www-form-urlencoded", None),  # what `curl -d` says where nobody told it
        (RAW, "text/plain;charset=UTF-8", None),
        (PACKED, "application/msgpack", None),
        (PACKED, "application/x-msgpack", None),
        (gzip.compress(RAW), None, "gzip"),
        (gzip.compress(PACKED), "Application/MsgPack", "GZip"),
    ],
)
def test_json_and_msgpack_packed_or_not(app: FastAPI, raw: bytes, media_type: str | None, encoding: str | None) -> None:
    answer = post(app, raw, media_type, encoding)
    assert answer.status_code == 200, answer.text
    assert answer.json()["x"] == 2.5


def test_what_is_not_read_is_named_with_what_is(app: FastAPI) -> None:
    other = post(app, b"<x>2.5</x>", "application/xml")
    assert (other.status_code, other.headers["accept"]) == (415, f"{JSON}, {MSGPACK}")
    brotli = post(app, b"", "application/json", "br")
    assert (brotli.status_code, brotli.headers["accept-encoding"]) == (415, "gzip")
    assert {answer.headers["content-type"] for answer in (other, brotli)} == {problems.MEDIA_TYPE}


def test_the_limit_holds_packed_and_unpacked(app: FastAPI) -> None:
    def body(size: int) -> bytes:
        return RAW + b" " * (size - len(RAW))

    assert post(app, body(LIMIT)).status_code == 200
    assert post(app, body(LIMIT + 1)).status_code == 413
    assert post(app, gzip.compress(body(LIMIT)), encoding="gzip").status_code == 200
    assert post(app, gzip.compress(body(LIMIT + 1)), encoding="gzip").status_code == 413


def test_a_bomb_is_not_unpacked_beyond_the_limit() -> None:
    bomb = gzip.compress(b"0" * 50_000_000, 9)
    assert len(bomb) < 100_000
    with pytest.raises(HTTPException) as refused:
        unpack(bomb)
    assert refused.value.status_code == 413


@pytest.mark.parametrize(
    "raw", [b"", b"gzip", gzip.compress(RAW)[:-1], gzip.compress(RAW) + b"x", gzip.compress(RAW) * 2]
)
def test_what_is_not_one_whole_gzip_stream_is_refused(app: FastAPI, raw: bytes) -> None:
    answer = post(app, raw, encoding="gzip")
    assert answer.status_code == 422
    assert "gzip" in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"\xc1", b"\x92\x01", PACKED + b"\x01", b"\x91" * 5_000, b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff",
        b"\xa1\xff", b"\x81\x01\x02", b"\x81\x90\x02", b"\xd7\xff" + b"\xff" * 8, b"\xd4\x05\x00",
        b"\x81\xc4\x01\xff\x01",
    ],
)  # fmt: skip
def test_what_is_not_a_message_in_msgpack_is_refused(app: FastAPI, raw: bytes) -> None:
    answer = post(app, raw, MSGPACK)
    assert answer.status_code == 422
    assert answer.json()["errors"]


@pytest.mark.parametrize("claimed", [10_000_000, 3_000])
def test_lists_that_claim_to_be_long_take_no_memory(claimed: int) -> None:
    """500 of them in each other, in 2,500 bytes: longer than any model's, or than what is left could fill."""
    nested = (b"\xdd" + claimed.to_bytes(4, "big")) * 500
    with pytest.raises(InvalidBody, match="max_array_len"):
        parse(Body(nested, media_type=MSGPACK), LocalUpdate)


WHOLE: dict[str, Any] = {
    "device_id": "a",
    "weights": {
        "weights": [[[1.0], [2.0]]],
        "biases": [[0.5]],
        "architecture": {"input_size": 2, "hidden_sizes": [], "output_size": 1},
    },
    "sample_count": 10,
    "timestamp": "2024-05-31T00:00:00Z",
}


def test_every_format_gives_the_same_update() -> None:
    raw, packed = json.dumps(WHOLE).encode(), msgpack.packb(WHOLE)
    bodies = [
        Body(raw), Body(packed, media_type=MSGPACK),
        Body(gzip.compress(raw), packed=True), Body(gzip.compress(packed), packed=True, media_type=MSGPACK),
    ]  # fmt: skip
    first, *others = [parse(body, LocalUpdate) for body in bodies]
    assert all(other == first for other in others)


def test_msgpack_may_carry_the_time_as_its_own_type() -> None:
    whole = WHOLE | {"timestamp": msgpack.Timestamp(1717113600, 0)}
    assert parse(Body(msgpack.packb(whole), media_type=MSGPACK), LocalUpdate).timestamp.isoformat() == (
        "2024-05-31T00:00:00+00:00"
    )


_scalar = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
_text = st.text(max_size=9) | st.binary(max_size=9)
_anything = st.recursive(
    _scalar | _text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4),
    max_leaves=12,
)
_fields = st.sampled_from([*WHOLE, "metadata", "x"])


@given(changes=st.dictionaries(_fields, _anything), cut=st.none() | st.integers(0, 150))
def test_whatever_comes_in_msgpack_is_a_message_or_refused(changes: dict[str, Any], cut: int | None) -> None:
    raw = msgpack.packb(WHOLE | changes)[:cut]
    try:
        assert isinstance(parse(Body(raw, media_type=MSGPACK), LocalUpdate), LocalUpdate)
    except InvalidBody as refused:
        assert refused.violations  # noqa: PT017


@given(raw=st.binary(max_size=300))
def test_whatever_bytes_come_are_refused_as_what_they_are(raw: bytes) -> None:
    for body in (Body(raw), Body(raw, media_type=MSGPACK), Body(raw, packed=True)):
        with pytest.raises(InvalidBody):
            parse(body, LocalUpdate)
