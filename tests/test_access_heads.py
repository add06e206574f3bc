"""How much may come before a request is known."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI, Request

from config.settings import ServerSettings
from global_server.access.heads import MAX_HEAD
from global_server.main import http_of
from tests.fixtures_http import listening

PART = b"x" * 10_000
HEAD = b"POST / HTTP/1.1\r\nHost: here\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    app = FastAPI()

    @app.post("/")
    async def size(request: Request) -> int:
        return len(await request.body())

    with listening(http_of(app, ServerSettings())) as port:
        yield port


def answered(port: int, begin: bytes, part: bytes) -> bytes:
    """Sends a part again and again, a hundred times as much as may be, until the server has had enough."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(begin)
        try:
            for _ in range(100 * MAX_HEAD // len(part)):
                connection.sendall(part)
            return connection.recv(10_000)
        except ConnectionError:  # it was closed, and the answer is lost in what was sent on
            return b""


@pytest.mark.parametrize(
    ("begin", "part"),
    [
        (b"POST /", PART),
        (HEAD + b"Long: ", PART),
        (HEAD, b"Many: " + PART + b"\r\n"),
        (CHUNKED + b"1;long=", PART),
        (CHUNKED + b"1\r\nx\r\n0\r\nLong: ", PART),
    ],
)
def test_what_has_no_end_is_not_kept(port: int, begin: bytes, part: bytes) -> None:
    assert b" 200 " not in answered(port, begin, part)


def test_who_goes_too_far_is_told_so(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(HEAD)
        for _ in range(7):
            connection.sendall(b"Long: " + PART + b"\r\n")
        head, _, body = connection.recv(10_000).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == 431


def test_what_is_within_it_passes_one_request_after_another(port: int) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for size in (0, 1_000_000, 0, 200_000):
            headers = {f"Header-{n}": "x" * 5_000 for n in range(10)}
            assert client.post("/", content=b"x" * size, headers=headers).json() == size
            chunks = (b"x" * 1_000 for _ in range(size // 1_000))
            assert client.post("/", content=chunks).json() == size
