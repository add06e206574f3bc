"""A client of the global server's REST interface, for devices and for programs.

::

    with FederationClient("https://flead.example", device_key=key, public_key=trusted) as server:
        model = server.global_model("humidity+temperature")
        if model is not None:
            theta = model.theta
        ...  # learn
        server.send_update("mote-7", theta, architecture, sample_count=100, timestamp=now, base_version=model.version)

It tries again where that may help: no connection, a connection lost, 408, 429, 502, 503 and 504. It waits as the
server says (`Retry-After`), else exponentially longer with full jitter (Brooker, 2015, "Exponential Backoff and
Jitter"), so that a fleet does not come back at one moment. That is harmless, because an update is known by its device
and time: the server counts it once however often it comes.
"""

from __future__ import annotations

import base64
import gzip
import math
import random
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import msgpack
import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, Field, ValidationError

from flead import network, signatures
from flead.errors import (
    BadConfiguration,
    BadCredentials,
    BadInput,
    BadModel,
    BadUpdate,
    FleadError,
    Forbidden,
    Reason,
    TooOften,
    Unavailable,
)
from flead.messages import GlobalModel, LocalUpdate
from flead.network import Architecture, Vector

TIMEOUT_S = 10.0
RETRIES = 5
FIRST_WAIT_S, LONGEST_WAIT_S = 0.2, 30.0

_AGAIN = {408, 429, 502, 503, 504}
_FAR_S = 1e9

Answer = TypeVar("Answer", bound=BaseModel)


class Encoding(StrEnum):
    """How a body is written."""

    MSGPACK = "application/msgpack"
    """Less than half of JSON's bytes: nine for each parameter."""
    JSON = "application/json"


class Violation(BaseModel):
    """One thing that the server found wrong."""

    where: str = ""
    message: str = ""
    code: str = ""


class RefusedUpdate(BadUpdate):
    """An update that the server refused; sending it again does not help.

    Attributes
    ----------
    violations:
        what is wrong with it, as the server says
    """

    def __init__(self, detail: str, reason: Reason, violations: tuple[Violation, ...]) -> None:
        super().__init__(detail, reason)
        self.violations = violations


class UpdateOutcome(BaseModel):
    """What became of an update: `accepted`, `duplicate` (it was counted before), or why it is not used."""

    status: str
    cohort: str
    pending_updates: int
    aggregation_rounds: int


@dataclass(frozen=True)
class ReceivedModel:
    """A global model.

    Attributes
    ----------
    theta:
        (parameter_count,)
    version:
        the round that made it; goes into an update's `base_version`
    """

    theta: Vector
    architecture: Architecture
    cohort: str
    version: int
    timestamp: datetime


class Round(BaseModel):
    """A round, as `aggregate` and `history` tell it."""

    cohort: str
    round: int
    timestamp: datetime
    num_devices: int
    total_samples: int
    aggregation_strategy: str
    device_ids: list[str] = []


class _History(BaseModel):
    aggregation_history: list[Round]


class _Aggregated(BaseModel):
    status: str


class Status(BaseModel, extra="allow"):
    """How a cohort and the server are; what else the server says is kept as extra fields."""

    status: str
    cohort: str
    pending_updates: int
    aggregation_rounds: int
    unique_devices: int
    device_contributions: dict[str, int] = Field(description="updates accepted of each device")


class FederationClient:
    """Sends updates and gets global models. Keeps its connections; safe to use from many threads.

    Parameters
    ----------
    url:
        of the server, as `http://127.0.0.1:8000`
    device_key:
        a device's key (`flead keys add`)
    token:
        a user's token (`POST /api/token`)
    signing_key:
        signs updates, where the device registered the public one
    public_key:
        a global model that this key did not sign is refused; None: signatures are not looked at. An older version that
        it signed is taken: a device whose canary was taken back is given one
    encoding, compress:
        how updates are written, and whether they are packed with gzip: random weights shrink by a tenth
    timeout_s:
        to connect, and between two bytes of an answer, s
    retries:
        attempts after the first
    verify:
        whether to check the server's certificate, or a file of certificates to trust
    transport:
        what carries the requests; None: the network
    sleep, rng, now:
        how to wait (s), what jitter is drawn from, and what gives the present; for tests

    Raises
    ------
    BadConfiguration
        where the address, a key or the file of certificates is none
    """

    def __init__(
        self, url: str, *, device_key: str | None = None, token: str | None = None,
        signing_key: Ed25519PrivateKey | None = None, public_key: Ed25519PublicKey | None = None,
        encoding: Encoding = Encoding.MSGPACK, compress: bool = False,
        timeout_s: float = TIMEOUT_S, retries: int = RETRIES, verify: bool | str = True,
        transport: httpx.BaseTransport | None = None, sleep: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None, now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:  # fmt: skip
        headers = {"Accept": "application/json"}
        if device_key:
            headers["X-Device-Key"] = credential("device_key", device_key)
        if token:
            headers["Authorization"] = f"Bearer {credential('token', token)}"
        if not is_address(url):
            raise BadConfiguration(f"{url!r} is no address of a server: it must be http://host:port, or https")
        certificates = _trusting(verify) if isinstance(verify, str) else verify
        self._http = httpx.Client(
            base_url=url, headers=headers, timeout=timeout_s, verify=certificates, transport=transport,
            follow_redirects=False,
        )  # fmt: skip
        self._signing_key = signing_key
        self._public_key = public_key
        self._encoding = encoding
        self._compress = compress
        self._retries = retries
        self._sleep = sleep
        self._rng = rng or random.Random()  # noqa: S311  # nobody gains from guessing how long we wait
        self._now = now
        self._known: dict[tuple[str | None, str | None], tuple[str, ReceivedModel]] = {}

    def send_update(
        self, device_id: str, theta: Vector, architecture: Architecture, *, sample_count: int, timestamp: datetime,
        cohort: str | None = None, samples_seen: int | None = None, base_version: int | None = None,
        loss: float | None = None, metadata: Mapping[str, Any] | None = None,
    ) -> UpdateOutcome:  # fmt: skip
        """Send what a device has learned; raises as `send`.

        Parameters
        ----------
        theta:
            (parameter_count,), finite
        sample_count:
            readings learned from since the previous update
        timestamp:
            of the last of them, aware; with the device's name it is what the update is known by
        samples_seen:
            the device's training counter, which only grows
        base_version:
            the global model that it began from
        loss:
            mean error since then, standard deviations of the sensors
        metadata:
            what else is to be known of it
        """
        about = {"cohort": cohort, "samples_seen": samples_seen, "base_version": base_version, "loss": loss}
        named = {name: value for name, value in about.items() if value is not None}
        if theta.shape != (architecture.parameter_count,):
            raise BadUpdate(f"theta is {theta.shape}, and {architecture} takes ({architecture.parameter_count},)")
        try:
            update = LocalUpdate.model_validate(
                {
                    "device_id": device_id,
                    "weights": network.to_message(theta, architecture),
                    "sample_count": sample_count,
                    "timestamp": timestamp,
                    "metadata": {**(metadata or {}), **named},
                }
            )
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise BadUpdate(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        return self.send(update)

    def send(self, update: LocalUpdate) -> UpdateOutcome:
        """Send an update; again is harmless.

        Raises
        ------
        RefusedUpdate
            where it must not enter a round, with what is wrong
        BadUpdate
            where its metadata cannot be written
        Refused
            where the sender may not send it (`BadCredentials`, `Forbidden`), or too often for our patience (`TooOften`)
        Unavailable
            where the server did not answer, or could not store it, in all attempts; where there is none
        """
        body, headers = self._encoded(update)
        answer = self._ask("POST", "/api/local-update", content=body, headers=headers)
        return _read(UpdateOutcome, answer)

    def global_model(self, cohort: str | None = None, device_id: str | None = None) -> ReceivedModel | None:
        """Get the newest global model; None before the first round. An unchanged one is not sent again.

        Parameters
        ----------
        cohort:
            whose; without it, the only one there is, or `default`
        device_id:
            for whom: some versions go to a few devices first

        Raises
        ------
        ForgedModel
            where it is not signed by the server that is trusted
        BadModel
            where its weights do not hold, or it is of another cohort than was asked for
        Refused, Unavailable
            as `send`
        """
        key = cohort, device_id
        etag, known = self._known.get(key, ("", None))
        headers = {"If-None-Match": etag} if etag else {}
        asked = {name: value for name, value in (("cohort", cohort), ("device_id", device_id)) if value is not None}
        answer = self._ask("GET", "/api/global-model", params=asked, headers=headers, fine=(304, 404))
        if answer.status_code == 404:
            if not answer.headers.get("content-type", "").startswith("application/problem+json"):
                raise _no_answer(answer)
            return None
        if answer.status_code == 304 and known is not None:
            return replace(known, theta=known.theta.copy())
        model = self._received(answer)
        if cohort is not None and model.cohort != cohort:
            raise BadModel(f"asked for the global model of {cohort!r}, and got that of {model.cohort!r}")
        if found := answer.headers.get("etag"):
            self._known[key] = found, replace(model, theta=model.theta.copy())  # who asked may train on in place
        return model

    def aggregate(self, cohort: str | None = None) -> Round | None:
        """Make a round at once of what is pending; None where nothing is. Takes an operator's token."""
        answer = self._ask("POST", "/api/aggregate", params=_query(cohort))
        return None if _read(_Aggregated, answer).status == "no_updates" else _read(Round, answer)

    def status(self, cohort: str | None = None) -> Status:
        """Ask how a cohort and the server are. Takes a viewer's token."""
        return _read(Status, self._ask("GET", "/api/status", params=_query(cohort)))

    def history(self, cohort: str | None = None, limit: int = 1_000) -> list[Round]:
        """List a cohort's newest rounds, oldest first. Takes a viewer's token."""
        answer = self._ask("GET", "/api/history", params=_query(cohort) | {"limit": str(limit)})
        return _read(_History, answer).aggregation_history

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()

    def _encoded(self, update: LocalUpdate) -> tuple[bytes, dict[str, str]]:
        """Write an update; what is signed is the body as it travels."""
        try:
            fields = update.model_dump(mode="json")
            body = msgpack.packb(fields) if self._encoding is Encoding.MSGPACK else orjson.dumps(fields)
        except (TypeError, ValueError, OverflowError) as error:  # an object, or a whole number beyond 64 bits
            raise BadUpdate(f"metadata: cannot be written: {error}") from None
        headers = {"Content-Type": self._encoding.value}
        if self._compress:
            body = gzip.compress(body, 6, mtime=0)
            headers["Content-Encoding"] = "gzip"
        if self._signing_key:
            headers["X-Signature"] = base64.b64encode(self._signing_key.sign(body)).decode()
        return body, headers

    def _received(self, answer: httpx.Response) -> ReceivedModel:
        """Read `GET /api/global-model`, and check who signed it."""
        try:
            found = answer.json()
            same = {name: found[name] for name in ("cohort", "weights", "timestamp")}
            signed = {name: found[name] for name in ("parent", "stage", "share", "signature") if name in found}
            made = {name: found["summary"][name] for name in ("num_devices", "total_samples", "aggregation_strategy")}
            model = GlobalModel.model_validate(same | signed | made | {"version": found["aggregation_rounds"]})
        except (ValueError, KeyError, TypeError) as error:
            raise BadModel(f"{answer.url} gave no global model: {type(error).__name__} {str(error)[:200]}") from None
        if self._public_key is not None:
            signatures.check(model, [self._public_key])
        theta, architecture = network.from_message(model.weights)
        return ReceivedModel(theta, architecture, model.cohort, model.version, model.timestamp)

    def _ask(
        self, method: str, path: str, *, params: Mapping[str, str] | None = None, content: bytes | None = None,
        headers: Mapping[str, str] | None = None, fine: tuple[int, ...] = (),
    ) -> httpx.Response:  # fmt: skip
        """Ask until there is an answer that another attempt would not change."""
        for attempt in range(self._retries + 1):
            asked_to_wait = 0.0
            try:
                answer = self._http.request(method, path, params=params, content=content, headers=headers)
            except (httpx.TransportError, httpx.DecodingError) as error:
                failure: FleadError = Unavailable(
                    f"{self._http.base_url} does not answer: {type(error).__name__} {error}"
                )
            else:
                if answer.is_success or answer.status_code in fine:
                    return answer
                asked_to_wait = self._retry_after(answer)
                failure = _failure(answer, asked_to_wait)
                if answer.status_code not in _AGAIN:
                    raise failure
            if attempt < self._retries:
                jitter = self._rng.uniform(0.0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0**attempt))
                self._sleep(min(asked_to_wait, LONGEST_WAIT_S) + jitter)
        raise failure

    def _retry_after(self, answer: httpx.Response) -> float:
        """What the server asks to wait, s: a number, or a date."""
        said = answer.headers.get("retry-after", "")
        with suppress(ValueError, TypeError, OverflowError):  # a date that is none, or has no zone
            seconds = float(said) if said.replace(".", "", 1).isdigit() else self._until(said)
            return min(max(0.0, seconds), _FAR_S)
        return 0.0

    def _until(self, date: str) -> float:
        return (parsedate_to_datetime(date) - self._now()).total_seconds()


def _query(cohort: str | None) -> dict[str, str]:
    return {} if cohort is None else {"cohort": cohort}


def is_address(url: str) -> bool:
    """Whether this can be the address of a server.

    >>> is_address("http://127.0.0.1:8000"), is_address("127.0.0.1:8000")
    (True, False)
    """
    try:
        return httpx.URL(url).scheme in ("http", "https") and bool(httpx.URL(url).host)
    except httpx.InvalidURL:
        return False


def credential(name: str, value: str) -> str:
    """A key as a header takes it, without the line's end of the file that it was read from.

    Raises
    ------
    BadConfiguration
        where it can be none; names the setting and shows nothing of the key
    """
    value = value.strip()
    if not (value and value.isascii() and value.isprintable()):
        raise BadConfiguration(f"{name} holds a character that no key has, or nothing")
    return value


def _trusting(certificates: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=certificates)
    except OSError as error:  # of which SSLError is one
        raise BadConfiguration(f"verify: {certificates!r} is no file of certificates ({error})") from None


def _read(kind: type[Answer], answer: httpx.Response) -> Answer:
    """Read an answer; raises `Unavailable` where it is none of ours, as a proxy's page."""
    try:
        return kind.model_validate_json(answer.content)
    except ValidationError:
        raise _no_answer(answer) from None


def _no_answer(answer: httpx.Response) -> Unavailable:
    return Unavailable(f"{answer.url} gave something that is no answer of a FLEAD server")


class _Problem(BaseModel):
    """A problem document (RFC 9457), or what can be had of something else."""

    type: str = "about:blank"
    detail: str = ""
    errors: list[Violation] = []


def _failure(answer: httpx.Response, asked_to_wait: float) -> FleadError:
    """Make the error of an answer that is no success; what the server asks to wait is in seconds."""
    try:
        problem = _Problem.model_validate_json(answer.content)
    except ValidationError:
        problem = _Problem()
    status = answer.status_code
    detail = problem.detail or f"{answer.request.method} {answer.url.path}: {status} {answer.reason_phrase}"
    if status == 401:
        return BadCredentials(detail)
    if status == 403:
        return Forbidden(detail)
    if status == 429:
        return TooOften(detail, math.ceil(asked_to_wait))
    is_update = answer.request.method == "POST" and answer.url.path.endswith("/local-update")
    if status >= 500 or status < 400 or status in _AGAIN or (is_update and status in (404, 405)):
        return Unavailable(detail)
    code = problem.type.rpartition(":")[2]
    reason = Reason(code) if code in set(Reason) else Reason.BAD_UPDATE
    if is_update:
        return RefusedUpdate(detail, reason, tuple(problem.errors))
    return BadInput(reason if code in set(Reason) else Reason.BAD_NAME, detail)
