"""Devices that are kept out: list, put in, let in again, keep out for good."""

# No `annotations` from `__future__`: FastAPI must see the guard's own dependencies.

from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, ConfigDict, Field

from flead.defence import Reputation
from flead.messages import Name
from global_server.access.audit import Audit
from global_server.access.guard import Guard
from global_server.access.roles import Principal
from global_server.rounds import RoundService
from global_server.routes.describing import problems
from global_server.routes.rounds import CohortQuery, existing
from storage.rounds import Trust

Device = Annotated[Name, Path(description="the device's id", examples=["mote-7"])]


class TrustAnswer(BaseModel):
    """What is thought of a device."""

    device_id: str
    cohort: str
    state: Literal["trusted", "quarantined", "rejected"]
    reputation: float = Field(description="in [0, 1]; 1: nothing was ever held against it")
    reason: str | None = Field(description="what was held against it last")
    changed_at: datetime
    decided_by: str | None = Field(description="who decided; null: the defence")


class QuarantineAnswer(BaseModel):
    """`GET /api/quarantine`, newest first."""

    devices: list[TrustAnswer]


class Suspicion(BaseModel):
    """Why somebody keeps a device out."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=500, examples=["its sensor was moved"])


def answer(trust: Trust) -> TrustAnswer:
    """What is said of a device."""
    return TrustAnswer(
        device_id=trust.device_id,
        cohort=trust.cohort,
        state=trust.state,
        reputation=Reputation(trust.good, trust.bad).value,
        reason=trust.reason,
        changed_at=trust.changed_at,
        decided_by=trust.decided_by,
    )


def routes(service: RoundService, guard: Guard, audit: Audit, *, clock: Callable[[], datetime]) -> APIRouter:
    """Make the router; `clock` gives the present, aware."""
    router = APIRouter(tags=["quarantine"])
    quarantine = service.quarantine
    operator = Annotated[Principal, Depends(guard.operator)]

    @router.get(
        "/api/quarantine", responses=problems(401, 403, 404, 422, 429, 503), dependencies=[Depends(guard.viewer)]
    )
    def list_quarantine(
        cohort: Annotated[str | None, Query(description="only of this cohort", max_length=128)] = None,
        *,
        everybody: Annotated[bool, Query(description="also those that were flagged and are trusted")] = False,
    ) -> QuarantineAnswer:
        """List the devices whose updates are not used."""
        return QuarantineAnswer(devices=[answer(trust) for trust in quarantine.list(cohort, everybody=everybody)])

    @router.post("/api/quarantine/{device_id}", responses=problems(401, 403, 404, 422, 429, 503))
    def put_into_quarantine(
        device_id: Device, why: Suspicion, who: operator, cohort: CohortQuery = None
    ) -> TrustAnswer:
        """Keep a device out until somebody decides."""
        name = existing(service, cohort)
        found = quarantine.put(device_id, name, why.reason, who.name, clock())
        audit.note(who.name, "quarantine.put", device_id, reason=why.reason)
        return answer(found)

    @router.post("/api/quarantine/{device_id}/accept", responses=problems(401, 403, 404, 422, 429, 503))
    def accept_device(device_id: Device, who: operator) -> TrustAnswer:
        """Let a device in again, its reputation as if nothing had been."""
        found = quarantine.accept(device_id, who.name, clock())
        audit.note(who.name, "quarantine.accept", device_id)
        return answer(found)

    @router.post("/api/quarantine/{device_id}/reject", responses=problems(401, 403, 404, 409, 422, 429, 503))
    def reject_device(device_id: Device, who: operator) -> TrustAnswer:
        """Keep a device out for good."""
        found = quarantine.reject(device_id, who.name, clock())
        audit.note(who.name, "quarantine.reject", device_id)
        return answer(found)

    return router
