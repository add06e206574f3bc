"""Local updates, inwards: `POST /api/local-update`."""

# No `annotations` from `__future__`: FastAPI must see the guard's own dependencies.

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.concurrency import run_in_threadpool

from flead.messages import LocalUpdate
from global_server.access.audit import Audit
from global_server.access.guard import Guard
from global_server.access.roles import Principal
from global_server.answers import UpdateAnswer
from global_server.bodies import JSON, MAX_BODY, MSGPACK, Body, parse, read_body
from global_server.intake import Intake
from global_server.memory import Accepted
from global_server.rounds import RoundService
from global_server.routes.describing import SCHEMAS, problems

_AT_ONCE = 100_000
"""Bytes of a body that are read in the event loop: a millisecond at most, and a thread would take half of one."""

_SCHEMA = {"schema": {"$ref": SCHEMAS + "LocalUpdate"}}
_BODY = {"requestBody": {"required": True, "content": {JSON: _SCHEMA, MSGPACK: _SCHEMA}}}


def routes(service: RoundService, guard: Guard, audit: Audit, *, clock: Callable[[], datetime]) -> APIRouter:
    """Make the router; `clock` gives the present, aware."""
    router, intake = APIRouter(tags=["updates"]), Intake(service, clock)

    @router.post("/api/local-update", responses=problems(400, 401, 403, 413, 415, 422, 429, 503), openapi_extra=_BODY)
    async def local_update(request: Request, who: Annotated[Principal, Depends(guard.device)]) -> UpdateAnswer:
        """Take a local update into the next round; the same one again is harmless.

        The body is JSON or MessagePack, packed with gzip or not. The answer is sent once the update is stored.
        """
        body = await read_body(request, MAX_BODY)
        signature = request.headers.get("x-signature")
        if guard.required or body.packed or len(body.raw) > _AT_ONCE:  # it may have to ask MongoDB, or takes long
            update = await run_in_threadpool(read, body, who, signature)
        else:
            update = read(body, who, signature)
        taken = await asyncio.wrap_future(intake.put(update, len(body.raw)))
        if taken.outcome is Accepted.DUPLICATE:
            await run_in_threadpool(guard.note_repeat, who, update.device_id)
        return UpdateAnswer(
            status=taken.outcome.value,
            device_id=update.device_id,
            cohort=update.cohort,
            pending_updates=taken.pending_updates,
            aggregation_rounds=taken.aggregation_rounds,
        )

    def read(body: Body, who: Principal, signature: str | None) -> LocalUpdate:
        update = parse(body, LocalUpdate)
        guard.admit(who, update.device_id, body.raw, signature)
        return update

    return router
