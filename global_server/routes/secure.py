"""Secure sums over REST. Keys, shares and values travel as base64; `edge.secure` is the device's side."""

# No `annotations` from `__future__`: FastAPI must see the guard's own dependencies.

import base64
import binascii
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from flead.errors import BadSecureSum, Forbidden, NotThere
from flead.messages import ArchitectureMessage, Name
from flead.network import Architecture
from flead.secret_sharing import SHARE_BYTES
from flead.secure_sum import MAX_DEVICES, SEALED_BYTES, Encoding, Keys, Kind, Share
from global_server.access.audit import Audit
from global_server.access.guard import Guard
from global_server.access.roles import Principal, Role
from global_server.routes.describing import problems
from global_server.secure import Phase, SecureSums, Session
from global_server.updates import MAX_PARAMETERS


def _decoded(value: Any) -> Any:
    """Bytes of a base64 text; what is none is left for pydantic to refuse."""
    if not isinstance(value, str):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("must be base64") from None


_BASE64 = (
    BeforeValidator(_decoded),
    PlainSerializer(lambda value: base64.b64encode(value).decode(), return_type=str),
)


def _text(least: int, most: int) -> dict[str, Any]:
    """How base64 of so many bytes is described."""
    short, long = (-(-size // 3) * 4 for size in (least, most))
    pattern = "^[A-Za-z0-9+/]*={0,2}$"
    return {"type": "string", "contentEncoding": "base64", "pattern": pattern, "minLength": short, "maxLength": long}


Key = Annotated[bytes, Field(min_length=32, max_length=32), *_BASE64, WithJsonSchema(_text(32, 32))]
Signature = Annotated[bytes, Field(max_length=64), *_BASE64, WithJsonSchema(_text(0, 64))]
Sealed = Annotated[
    bytes,
    Field(min_length=SEALED_BYTES, max_length=SEALED_BYTES),
    *_BASE64,
    WithJsonSchema(_text(SEALED_BYTES, SEALED_BYTES)),
]
Opened = Annotated[
    bytes,
    Field(min_length=SHARE_BYTES, max_length=SHARE_BYTES),
    *_BASE64,
    WithJsonSchema(_text(SHARE_BYTES, SHARE_BYTES)),
]
_MOST = 8 * (MAX_PARAMETERS + 1)
Values = Annotated[bytes, Field(min_length=16, max_length=_MOST), *_BASE64, WithJsonSchema(_text(16, _MOST))]


_NO_OTHERS: dict[str, Any] = {"additionalProperties": False}
"""Keys that are no names."""


_SHAPE = {"input_size": 61, "hidden_sizes": [32], "output_size": 8, "skip": True}


def _like(**fields: Any) -> ConfigDict:
    """An example for OpenAPI; binary fields are shown as zeros."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


def _zeros(size: int) -> str:
    return base64.b64encode(bytes(size)).decode()


class OpenBody(BaseModel):
    """`POST /api/secure/sessions`."""

    model_config = _like(cohort="humidity+light+temperature+voltage", architecture=_SHAPE)

    cohort: Name
    architecture: ArchitectureMessage | None = Field(None, description="needed where there is no global model yet")


class JoinBody(BaseModel):
    """`POST /api/secure/join`."""

    model_config = _like(device_id="mote-7", cohort="humidity+light+temperature+voltage", architecture=_SHAPE)

    device_id: Name
    cohort: Name
    architecture: ArchitectureMessage


class KeysBody(BaseModel):
    """What a device shows to all others."""

    model_config = _like(device_id="mote-7", channel=_zeros(32), mask=_zeros(32), commitment=_zeros(32), signature="")

    device_id: Name
    channel: Key
    mask: Key
    commitment: Key
    signature: Signature = b""


class SharesBody(BaseModel):
    """Shares of a device's secrets, sealed for each other device."""

    model_config = _like(device_id="mote-7", shares={"mote-8": _zeros(SEALED_BYTES)})

    device_id: Name
    shares: dict[Name, Sealed] = Field(max_length=MAX_DEVICES, json_schema_extra=_NO_OTHERS)


class MaskedBody(BaseModel):
    """A device's masked values: 64-bit words, little end first."""

    model_config = _like(device_id="mote-7", values=_zeros(24))

    device_id: Name
    values: Values


class OpenedShare(BaseModel):
    """One share, of a device's seed or of its mask key."""

    kind: Kind
    value: Opened


class UnmaskBody(BaseModel):
    """A device's help to unmask."""

    model_config = _like(device_id="mote-7", shares={"mote-8": {"kind": Kind.SEED.value, "value": _zeros(SHARE_BYTES)}})

    device_id: Name
    shares: dict[Name, OpenedShare] = Field(max_length=MAX_DEVICES, json_schema_extra=_NO_OTHERS)


class RosterAnswer(BaseModel):
    """All who take part."""

    threshold: int
    devices: list[KeysBody]


class SharesAnswer(BaseModel):
    """What the others sealed for a device."""

    shares: dict[str, Sealed]


class SessionAnswer(BaseModel):
    """A session as everybody may see it."""

    model_config = _like(
        id="5f0c3a9be1d24786",
        cohort="humidity+light+temperature+voltage",
        phase=Phase.MASKED.value,
        devices=52,
        threshold=35,
        seconds_left=21.5,
        architecture=_SHAPE,
        base_version=7,
        encoding={"devices": 100, "max_samples": 1_000_000, "max_weight": 100.0},
        survivors=[],
        samples=None,
        reason=None,
    )

    id: str
    cohort: str
    phase: Phase
    devices: int = Field(description="that take part, at the step it is at")
    threshold: int | None = Field(description="devices that must stay to the end; known when the keys are")
    seconds_left: float = Field(description="of the step it is at")
    architecture: ArchitectureMessage
    base_version: int = Field(description="the global model that it began from; 0: none")
    encoding: Encoding
    survivors: list[str] = Field(description="whose values are in the sum; known when they are complete")
    samples: int | None = Field(description="of all of them, when it is done")
    reason: str | None = Field(description="why it was abandoned")


class SessionsAnswer(BaseModel):
    """`GET /api/secure/sessions`, oldest first."""

    sessions: list[SessionAnswer]


def _answer(session: Session, now: datetime) -> SessionAnswer:
    return SessionAnswer(
        id=session.id,
        cohort=session.cohort,
        phase=session.phase,
        devices=session.devices,
        threshold=session.threshold,
        seconds_left=max(0.0, (session.deadline - now).total_seconds()),
        architecture=ArchitectureMessage.model_validate(session.architecture.as_dict()),
        base_version=session.base_version,
        encoding=session.encoding,
        survivors=list(session.survivors),
        samples=session.samples,
        reason=session.reason,
    )


def _own(who: Principal, device_id: str) -> None:
    """Refuse a device that speaks for another."""
    if who.role is Role.DEVICE and who.name != device_id:
        raise Forbidden(f"{who.name!r} sends in the name of {device_id!r}: a device speaks for itself alone here")


SessionId = Annotated[str, Path(max_length=64, description="the session")]
DeviceId = Annotated[Name, Query(description="the device that asks")]
_STEP = problems(401, 403, 404, 409, 413, 422, 429, 503)


def routes(sums: SecureSums, guard: Guard, audit: Audit, *, clock: Callable[[], datetime]) -> APIRouter:
    """Make the router; `clock` gives the present, aware."""
    router = APIRouter(prefix="/api/secure", tags=["secure sums"])

    @contextmanager
    def at(session_id: str, who: Principal | None = None, device_id: str = "") -> Iterator[Session]:
        """A session that must exist, for a device that must be itself."""
        if who is not None:
            _own(who, device_id)
        with sums.at(session_id, clock()) as session:
            if session is None:
                raise NotThere("there is no such secure sum, or no longer: join another")
            yield session

    def now_of(session_id: str) -> SessionAnswer:
        with at(session_id) as session:
            return _answer(session, clock())

    @router.post("/sessions", status_code=201, responses=problems(401, 403, 409, 422, 429, 503))
    def open_secure_sum(body: OpenBody, who: Annotated[Principal, Depends(guard.operator)]) -> SessionAnswer:
        """Begin a secure sum for a cohort; the one that gathers devices already, where there is one."""
        named = Architecture.from_message(body.architecture) if body.architecture else None
        session = sums.open(body.cohort, named, clock())
        audit.note(who.name, "secure.open", session.id, cohort=body.cohort)
        return _answer(session, clock())

    @router.get("/sessions", responses=problems(401, 403, 429), dependencies=[Depends(guard.viewer)])
    def secure_sums() -> SessionsAnswer:
        """List the secure sums since the server's start."""
        now = clock()
        return SessionsAnswer(sessions=[_answer(session, now) for session in sums.sessions(now)])

    @router.post("/sessions/{session_id}/close", responses=problems(401, 403, 404, 422, 429, 503))
    def close_secure_sum(session_id: SessionId, who: Annotated[Principal, Depends(guard.operator)]) -> SessionAnswer:
        """Wait no longer for the step that it is at: go on with who is there, or abandon it where they are too few."""
        with at(session_id) as session:
            sums.close(session, clock())
            audit.note(who.name, "secure.close", session.id, outcome=session.phase)
        return now_of(session_id)

    @router.delete("/sessions/{session_id}", responses=problems(401, 403, 404, 409, 422, 429, 503))
    def end_secure_sum(session_id: SessionId, who: Annotated[Principal, Depends(guard.operator)]) -> SessionAnswer:
        """End it without a result, and forget what devices sent."""
        with at(session_id) as session:
            session.abandon(f"{who.name} ended it")
            audit.note(who.name, "secure.abandon", session.id)
            return _answer(session, clock())

    @router.post("/join", responses=_STEP)
    def join_secure_sum(body: JoinBody, who: Annotated[Principal, Depends(guard.device)]) -> SessionAnswer:
        """Find the secure sum that gathers devices of a cohort."""
        _own(who, body.device_id)
        session = sums.join(body.cohort, Architecture.from_message(body.architecture), clock())
        if session is None:
            raise NotThere(f"no secure sum gathers devices of {body.cohort!r}: an operator opens one")
        return _answer(session, clock())

    @router.get("/sessions/{session_id}", responses=_STEP, dependencies=[Depends(guard.anyone)])
    def secure_sum(session_id: SessionId) -> SessionAnswer:
        """Say how a secure sum stands."""
        return now_of(session_id)

    @router.post("/sessions/{session_id}/keys", responses=_STEP)
    def give_keys(
        session_id: SessionId, body: KeysBody, who: Annotated[Principal, Depends(guard.device)]
    ) -> SessionAnswer:
        """Step 1: take part, with keys made for this session."""
        with at(session_id, who, body.device_id) as session:
            session.add_keys(body.device_id, Keys(body.channel, body.mask, body.commitment, body.signature))
        return now_of(session_id)

    @router.get("/sessions/{session_id}/roster", responses=_STEP, dependencies=[Depends(guard.device)])
    def secure_roster(session_id: SessionId) -> RosterAnswer:
        """Give the keys of all who take part."""
        with at(session_id) as session:
            found, threshold = session.roster()
        devices = [
            KeysBody(device_id=name, channel=k.channel, mask=k.mask, commitment=k.commitment, signature=k.signature)
            for name, k in found.items()
        ]
        return RosterAnswer(threshold=threshold, devices=devices)

    @router.post("/sessions/{session_id}/shares", responses=_STEP)
    def give_shares(
        session_id: SessionId, body: SharesBody, who: Annotated[Principal, Depends(guard.device)]
    ) -> SessionAnswer:
        """Step 2: shares of the secrets behind the masks, sealed for each other device."""
        with at(session_id, who, body.device_id) as session:
            session.add_shares(body.device_id, body.shares)
        return now_of(session_id)

    @router.get("/sessions/{session_id}/shares", responses=_STEP)
    def sealed_shares(
        session_id: SessionId, device_id: DeviceId, who: Annotated[Principal, Depends(guard.device)]
    ) -> SharesAnswer:
        """Give what the others sealed for a device."""
        with at(session_id, who, device_id) as session:
            return SharesAnswer(shares=session.sealed_for(device_id))

    @router.post("/sessions/{session_id}/masked", responses=_STEP)
    def give_masked_values(
        session_id: SessionId, body: MaskedBody, who: Annotated[Principal, Depends(guard.device)]
    ) -> SessionAnswer:
        """Step 3: weights times samples, and the samples, as whole numbers behind the masks."""
        if len(body.values) % 8:
            raise BadSecureSum("values: must be whole words of 8 bytes")
        words = np.frombuffer(body.values, "<u8").astype(np.uint64)
        with at(session_id, who, body.device_id) as session:
            session.add_masked(body.device_id, words)
        return now_of(session_id)

    @router.post("/sessions/{session_id}/unmask", responses=_STEP)
    def help_to_unmask(
        session_id: SessionId, body: UnmaskBody, who: Annotated[Principal, Depends(guard.device)]
    ) -> SessionAnswer:
        """Step 4: for each device in the sum a share of its seed, for each that left a share of its mask key."""
        opened = {name: Share(share.kind, share.value) for name, share in body.shares.items()}
        with at(session_id, who, body.device_id) as session:
            session.add_opened(body.device_id, opened)
        return now_of(session_id)

    return router
