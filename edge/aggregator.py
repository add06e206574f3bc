"""An aggregator near its devices: to them it is the global server, to the global server it is one device.

It speaks the plain REST contract on both sides. Updates are stored before they are acknowledged (`edge.buffer`); every
so often their weighted mean goes upstream as one update that says how many devices it stands for. The global model is
passed on, and the last one known is served while the upstream is away. Aggregators may stand behind aggregators.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import msgpack
import orjson
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from edge.buffer import KeptModel, UpdateBuffer
from edge.client import credential, is_address
from flead.errors import BadConfiguration, BadInput, BadUpdate, FleadError, PortTaken, Unavailable
from flead.messages import LocalUpdate
from flead.partial import Part
from flead.updates import read_message

LOG = logging.getLogger(__name__)

MAX_BODY = 2_000_000
"""Bytes of a request, as at the global server."""
FRESH_S = 2.0
"""How long a global model is passed on without asking the upstream again, s."""
RETRY_S = 2.0
"""How soon a message that the upstream did not take is sent again, s."""
PATIENCE = httpx.Timeout(30.0, connect=3.0)
_PASSING = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
"""Answers of the 400s that say nothing against what was asked: another time there may be another answer."""
_REFUSED = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNSUPPORTED_MEDIA_TYPE, HTTPStatus.UNPROCESSABLE_ENTITY,
}  # fmt: skip
"""Answers that speak against a message itself. Any other, as the 404 of a wrong address, may be mended without it."""
_HOSTS = ["127.0.0.1", "localhost"]
_MSGPACK = {"application/msgpack", "application/x-msgpack", "application/vnd.msgpack"}


class Aggregator:
    """Takes updates, sends sums, passes global models on. Safe to use from many threads.

    Parameters
    ----------
    client:
        of the upstream, whose address is its base; closed by `close`
    max_norm:
        the largest Euclidean norm of a device's parameters: one absurd update would have the whole sum refused
    """

    def __init__(self, buffer: UpdateBuffer, client: httpx.Client, max_norm: float = 1e4) -> None:
        self.buffer = buffer
        self.upstream = str(client.base_url).rstrip("/")
        self.connected = False
        """Whether the upstream answered when it was last asked."""
        self._client = client
        self._max_norm = max_norm
        self._asked: dict[str, float] = {}
        self._asking = threading.Lock()
        self._away_until = 0.0
        """Until when nobody asks for a model, as the upstream has just failed to answer."""

    @classmethod
    @contextmanager
    def open(
        cls, folder: Path, upstream: str, *, name: str | None = None, device_key: str | None = None,
        max_norm: float = 1e4,
    ) -> Iterator[Aggregator]:  # fmt: skip
        """One that keeps what it holds in a folder; see `UpdateBuffer` for what may be wrong with that."""
        if not is_address(upstream):
            raise BadConfiguration(f"--upstream is {upstream!r}: it must be http://host:port or https://host:port")
        if name is not None and not (name.isprintable() and 0 < len(name) <= 100):
            raise BadConfiguration("--name must have 1 to 100 characters, none of control")
        headers = {}
        if device_key is not None:
            headers["Authorization"] = f"Bearer {credential('--device-key-file', device_key)}"
        with (
            UpdateBuffer(folder / "updates.sqlite", name) as buffer,
            httpx.Client(base_url=upstream, headers=headers, timeout=PATIENCE) as client,
        ):
            yield cls(buffer, client, max_norm)

    def accept(self, update: LocalUpdate, now: datetime) -> bool:
        """Store a device's update; False where it was counted before.

        Raises
        ------
        BadUpdate, BadModel
            where it could not enter a round
        """
        read = read_message(update)
        norm = read.norm
        if not norm <= self._max_norm:
            raise BadUpdate(f"the parameters' norm is {norm:.6g}, the limit is {self._max_norm:g}")
        return self.buffer.accept(Part.from_update(read), now)

    def flush(self, now: datetime) -> int:
        """Sum up what waits and send what is not sent; returns how many messages the upstream took.

        Raises
        ------
        Unavailable
            where it did not take one: that and all behind it stay as they are
        """
        self.buffer.close(now)
        took = 0
        for message in self.buffer.waiting():
            answer = self._ask("POST", "/api/local-update", content=message.body)
            if answer.is_success:
                self.buffer.sent(message)
                took += 1
            elif answer.status_code in _REFUSED:
                LOG.error("the upstream refused a sum of %d devices: %s", message.devices, answer.text[:500])
                self.buffer.refused(message, answer.text[:2_000])
            else:
                raise Unavailable(f"{self.upstream} answered {answer.status_code}: {answer.text[:500]}")
        return took

    def run(self, every_s: float, stopping: threading.Event) -> None:
        """Flush every so often until told to stop; sooner again after a failure."""
        delay, trouble = every_s, ""
        while not stopping.wait(delay):
            try:
                self.flush(datetime.now(UTC))
                delay, trouble = every_s, ""
            except FleadError as error:
                if str(error) != trouble:  # once, and not every two seconds of a night without a line
                    trouble = str(error)
                    LOG.warning("%s: tried again until it works", trouble)
                delay = min(every_s, RETRY_S)
            except Exception:  # what was acknowledged must be sent, whatever went wrong this time
                LOG.exception("nothing could be sent")
                delay = min(every_s, RETRY_S)

    def global_model(self, cohort: str | None) -> Response:
        """The upstream's answer for a cohort; the last one that was good where it is away."""
        name = cohort or ""
        kept = self.buffer.model(name)
        # One asks for all. Who has nothing to pass on waits for that one, but not long: updates need the threads, too.
        if self._must_ask(name, kept) and self._asking.acquire(timeout=0.0 if kept else FRESH_S):
            try:
                kept = self.buffer.model(name)
                if self._must_ask(name, kept):  # nobody did while we waited
                    return self._model_from_upstream(cohort, kept)
            except Unavailable:
                self._away_until = time.monotonic() + RETRY_S
            finally:
                self._asking.release()
        return _model(kept, stale=time.monotonic() < self._away_until)

    def _must_ask(self, name: str, kept: KeptModel | None) -> bool:
        now = time.monotonic()
        return now >= self._away_until and (kept is None or now - self._asked.get(name, -FRESH_S) >= FRESH_S)

    def _model_from_upstream(self, cohort: str | None, kept: KeptModel | None) -> Response:
        """Ask for a newer model than the kept one, and keep it; raises `Unavailable`."""
        name = cohort or ""
        headers = {"If-None-Match": kept.etag} if kept and kept.etag else {}
        answer = self._ask("GET", "/api/global-model", headers=headers, params={"cohort": cohort} if cohort else {})
        if answer.is_server_error or answer.status_code in _PASSING:
            raise Unavailable(f"{self.upstream} answered {answer.status_code}")
        if answer.is_client_error:
            return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))
        if answer.status_code != HTTPStatus.NOT_MODIFIED or kept is None:
            kept = KeptModel(answer.headers.get("etag"), _version(answer.content), answer.content)
            try:
                self.buffer.keep_model(name, kept)
            except Unavailable as error:  # a full disk: it can be passed on nevertheless
                LOG.warning("a global model is passed on and not kept: %s", error)
                return _model(kept, stale=False)
        self._asked[name] = time.monotonic()
        return _model(kept, stale=False)

    def _ask(self, method: str, path: str, **said: Any) -> httpx.Response:
        """Ask the upstream; raises `Unavailable` where there is no answer."""
        try:
            headers = {"Content-Type": "application/json"} | said.pop("headers", {})
            answer = self._client.request(method, path, headers=headers, **said)
        except httpx.HTTPError as error:
            self.connected = False
            raise Unavailable(f"{self.upstream} does not answer: {error or type(error).__name__}") from None
        self.connected = True
        return answer


def _model(kept: KeptModel | None, *, stale: bool) -> Response:
    """A kept global model as an answer; RFC 9111's Warning says where it may be out of date."""
    if kept is None:
        return _problem(503, "the upstream does not answer, and no global model is kept yet")
    headers = {"ETag": kept.etag} if kept.etag else {}
    if stale:
        headers["Warning"] = '110 - "Response is Stale"'
    return Response(kept.body, media_type="application/json", headers=headers)


def create_app(
    aggregator: Aggregator, *, every_s: float = 30.0, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> FastAPI:
    """Make the REST interface for devices."""
    app = FastAPI(title="FLEAD aggregator", description="Stands for the devices near it.", openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)
    app.add_exception_handler(HTTPException, _as_problem)
    app.add_exception_handler(FleadError, _as_problem)

    @app.get("/")
    def root() -> dict[str, str]:
        return {"service": "flead-aggregator", "status": "running", "name": aggregator.buffer.name}

    @app.post("/api/local-update")
    async def local_update(request: Request) -> dict[str, Any]:
        _only_programs(request)
        raw = await _body(request)
        return await run_in_threadpool(take, raw, request.headers)

    def take(raw: bytes, headers: Headers) -> dict[str, Any]:
        update = _parse(raw, headers)
        new = aggregator.accept(update, clock())
        return {
            "status": "accepted" if new else "duplicate",
            "device_id": update.device_id,
            "cohort": update.cohort,
            "pending_updates": aggregator.buffer.pending(),
            "aggregation_rounds": aggregator.buffer.version(update.cohort),
        }

    @app.get("/api/global-model")
    def global_model(request: Request, cohort: str | None = None) -> Response:
        answer = aggregator.global_model(cohort)
        etag = answer.headers.get("etag")
        if etag and etag in request.headers.get("if-none-match", ""):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers={"ETag": etag})
        return answer

    @app.get("/api/status")
    def status(cohort: str | None = None) -> dict[str, Any]:
        summary = aggregator.buffer.summary()
        cohorts = {d["cohort"] for d in summary["devices"].values()}
        cohort = cohort or (next(iter(cohorts)) if len(cohorts) == 1 else None)
        devices = {n: d["updates"] for n, d in summary["devices"].items() if cohort in (None, d["cohort"])}
        if cohort and not devices:
            raise HTTPException(404, f"no device of cohort {cohort[:128]!r} has sent an update here")
        return {
            "status": "running",
            "cohort": cohort or "default",
            "pending_updates": len(summary["pending"] & devices.keys()),
            "aggregation_rounds": aggregator.buffer.version(cohort or ""),
            "unique_devices": len(devices),
            "device_contributions": devices,
            "aggregation_config": {"strategy": "partial_sum", "interval_s": every_s, "upstream": aggregator.upstream},
            "timestamp": clock().isoformat(),
            "upstream": "connected" if aggregator.connected else "unreachable",
            "messages_waiting": summary["waiting"],
            "messages_refused": summary["refused"],
        }

    return app


def _version(body: bytes) -> int:
    """The number of the round in an answer to `GET /api/global-model`; raises `Unavailable` where it is none."""
    try:
        return int(orjson.loads(body)["aggregation_rounds"])
    except (ValueError, TypeError, KeyError):
        raise Unavailable("the upstream answered with something that is no global model") from None


def _only_programs(request: Request) -> None:
    """Refuse what a page of another site makes a browser send: programs name no origin."""
    if "origin" in request.headers:
        raise HTTPException(403, "updates are taken from programs, not from pages in a browser")


async def _body(request: Request) -> bytes:
    """Read the body, up to `MAX_BODY`."""
    parts, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > MAX_BODY:
                raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")
            parts.append(chunk)
    except ClientDisconnect:
        raise HTTPException(400, "the sender went away") from None
    return b"".join(parts)


def _parse(raw: bytes, headers: Headers) -> LocalUpdate:
    """An update from JSON or MessagePack, perhaps packed by gzip, as the global server reads it."""
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("gzip", "x-gzip"):
        raw = _unpacked(raw)
    elif encoding != "identity":
        raise HTTPException(415, f"Content-Encoding {encoding[:60]!r} is not read here: send gzip, or nothing packed")
    try:
        if headers.get("content-type", "").partition(";")[0].strip().lower() in _MSGPACK:
            return LocalUpdate.model_validate(
                msgpack.unpackb(raw, timestamp=3, max_array_len=100_000, max_map_len=10_000, max_ext_len=32)
            )
        return LocalUpdate.model_validate_json(raw)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise BadUpdate(f"{'.'.join(map(str, found['loc']))}: {found['msg']}") from None
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise BadUpdate(f"the body is no MessagePack: {error or type(error).__name__}") from None


def _unpacked(raw: bytes) -> bytes:
    """What gzip packed, of at most `MAX_BODY` bytes: no more is ever made."""
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        found = unpacker.decompress(raw, MAX_BODY + 1)
    except zlib.error as error:
        raise BadUpdate(f"the body is no gzip: {error}") from None
    if len(found) > MAX_BODY:
        raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes when it is unpacked")
    if not unpacker.eof or unpacker.unused_data:
        raise BadUpdate("the body is no gzip: it is not one whole stream")
    return found


def _as_problem(_request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return _problem(error.status_code, str(error.detail))
    if isinstance(error, BadInput):
        return _problem(422, error.detail)
    return _problem(503 if isinstance(error, Unavailable) else 500, str(error))


def _problem(status: int, detail: str) -> Response:
    """An RFC 9457 problem document."""
    document = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    headers = {"Retry-After": str(round(RETRY_S))} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return JSONResponse(document, status, headers, media_type="application/problem+json")


def serve(aggregator: Aggregator, host: str, port: int, every_s: float) -> None:
    """Run until SIGTERM or SIGINT; call it from the main thread.

    Raises
    ------
    BadConfiguration
        where the address is not the one that only this machine reaches: nothing asks devices for credentials here
    PortTaken
        where another process listens on the port
    """
    if host not in _HOSTS:
        raise BadConfiguration(f"{host} may be reachable from outside, and nothing asks for credentials: 127.0.0.1")
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise PortTaken(f"cannot listen on {host}:{port} ({error.strerror}): name another with --port") from None
        stopping = threading.Event()
        thread = threading.Thread(target=aggregator.run, args=(every_s, stopping), name="flush", daemon=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _leave)
        thread.start()
        LOG.info("aggregator %s listens on http://%s:%d", aggregator.buffer.name, host, port)
        config = uvicorn.Config(
            create_app(aggregator, every_s=every_s), access_log=False, log_level="warning", timeout_graceful_shutdown=5
        )
        try:
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            stopping.set()
            thread.join(PATIENCE.read or 0)


def _leave(_signal: int, _frame: object) -> None:
    """End through every `finally`; uvicorn raises its signal again once it has shut down."""
    raise SystemExit(0)
