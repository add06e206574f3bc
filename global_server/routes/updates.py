"""Local updates, inwards: `POST /api/local-update`."""

# No `annotations` from `__future__`: FastAPI must see the guard's own dependencies.

from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from flead.messages import LocalUpdate
from global_server.access.audit import Audit
from global_server.access.guard import Guard
from global_server.access.roles import Principal
from global_server.answers import UpdateAnswer
from global_server.memory import Accepted
from global_server.problems import InvalidBody
from global_server.rounds import RoundService
from global_server.routes.describing import SCHEMAS, problems

MAX_BODY = 2_000_000
"""Bytes of a request: twice the JSON of the largest model that is accepted. Validation lists everything that is wrong
with a body, which takes about 2 s for each million bytes of nothing but errors."""
_DRAIN = 32 * MAX_BODY  # read on this far before answering: a sender that is cut off does not see the answer

_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"$ref": SCHEMAS + "LocalUpdate"}}}}
}


def routes(service: RoundService, guard: Guard, audit: Audit, *, clock: Callable[[], datetime]) -> APIRouter:
    """Make the router; `clock` gives the present, aware."""
    router = APIRouter(tags=["updates"])

    @router.post("/api/local-update", responses=problems(400, 401, 403, 413, 422, 429, 503), openapi_extra=_BODY)
    async def local_update(request: Request, who: Annotated[Principal, Depends(guard.device)]) -> UpdateAnswer:
        """Take a local update into the next round; the same one again is harmless."""
        raw = await _body(request)
        return await run_in_threadpool(take, raw, who, request.headers.get("x-signature"))

    def take(raw: bytes, who: Principal, signature: str | None) -> UpdateAnswer:
        update = _parse(raw)
        guard.admit(who, update.device_id, raw, signature)
        now = clock()
        outcome = service.accept(update, now)
        if outcome is Accepted.DUPLICATE:
            guard.note_repeat(who, update.device_id)
        service.aggregate_ready(now)
        figures = service.summary()[update.cohort]
        return UpdateAnswer(
            status=outcome.value,
            device_id=update.device_id,
            cohort=update.cohort,
            pending_updates=figures["pending_updates"],
            aggregation_rounds=figures["rounds"],
        )

    return router


async def _body(request: Request) -> bytes:
    """Read the body, up to `MAX_BODY`."""
    parts, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= MAX_BODY:
                parts.append(chunk)
            elif size > _DRAIN:
                break
    except ClientDisconnect:
        raise HTTPException(400, "the sender went away") from None
    if size > MAX_BODY:
        raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")
    return b"".join(parts)


def _parse(raw: bytes) -> LocalUpdate:
    try:
        return LocalUpdate.model_validate_json(raw)
    except ValidationError as error:
        raise InvalidBody(error) from None
