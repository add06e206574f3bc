"""Rounds, outwards: models, history, status; and a round at once."""

# No `annotations` from `__future__`: FastAPI must see the guard's own dependencies.

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Response
from starlette.exceptions import HTTPException

from config.aggregation import Rules
from flead.messages import GlobalModel, Name
from flead.network import Architecture
from global_server.access.audit import Audit
from global_server.access.guard import Guard
from global_server.access.roles import Principal, Role
from global_server.answers import (
    HistoryAnswer,
    HistoryEntry,
    ModelAnswer,
    ModelSummary,
    NoUpdates,
    RoundAnswer,
    StatusAnswer,
)
from global_server.rounds import RoundService
from global_server.routes.describing import problems

CohortQuery = Annotated[str | None, Query(description="without it the only cohort there is, or `default`")]


def existing(service: RoundService, cohort: str | None) -> str:
    """Resolve a cohort; one that is named must exist."""
    if cohort and not service.knows(cohort):
        raise HTTPException(404, f"there is no cohort {cohort[:128]!r}: GET /api/status names those that there are")
    return service.resolve(cohort)


def _etag(model: GlobalModel) -> str:
    """What names a version in its stage, for `If-None-Match`."""
    named = f"{model.cohort}#{model.version}#{model.stage.value}#{model.timestamp.isoformat()}"
    return f'"{hashlib.sha256(named.encode()).hexdigest()[:32]}"'


def _is_named(etag: str, asked: str) -> bool:
    """Whether `If-None-Match` names an ETag. What a proxy packs it calls weak, which is good enough (RFC 9110, 13.1.2).

    >>> _is_named('"a"', '"b", W/"a"'), _is_named('"a"', "*"), _is_named('"a"', '"b"')
    (True, True, False)
    """
    return asked.strip() == "*" or etag in (part.strip().removeprefix("W/") for part in asked.split(","))


def _configuration(rules: Rules) -> dict[str, Any]:
    """How a cohort's rounds are made, its strategy by name."""
    parameters = rules.strategy.model_dump(exclude={"name"})
    return rules.model_dump(mode="json") | {"strategy": rules.strategy.name, "strategy_parameters": parameters}


def routes(
    service: RoundService,
    guard: Guard,
    audit: Audit,
    *,
    clock: Callable[[], datetime],
    kafka_connected: Callable[[], bool],
) -> APIRouter:
    """Make the router.

    Parameters
    ----------
    clock:
        gives the present, aware
    kafka_connected:
        says whether a broker answers, for the status
    """
    router = APIRouter(tags=["rounds"])

    unchanged: dict[int | str, dict[str, Any]] = {
        304: {"description": "What `If-None-Match` names is still the newest"}
    }

    @router.get(
        "/api/global-model", response_model=ModelAnswer, responses=problems(401, 403, 404, 422, 429) | unchanged
    )
    def global_model(
        response: Response,
        who: Annotated[Principal, Depends(guard.anyone)],
        cohort: CohortQuery = None,
        device_id: Annotated[
            Name | None, Query(description="whose: a canary gets what is on trial; a device's key says who asks")
        ] = None,
        if_none_match: Annotated[str | None, Header(description="an ETag: what it names is not sent again")] = None,
    ) -> Any:
        """Give a cohort's global model: the stable one, or to a canary what is on trial."""
        name = existing(service, cohort)
        model = service.model(name, who.name if who.role is Role.DEVICE and not who.aggregator else device_id)
        if model is None:
            raise HTTPException(404, f"cohort {name!r} has no global model yet: it comes with its first round")
        etag = _etag(model)
        # Which one it is hangs on who asks, which no cache on the way looks at.
        headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
        if if_none_match is not None and _is_named(etag, if_none_match):
            return Response(status_code=304, headers=headers)
        response.headers.update(headers)
        control = service.control(name)
        summary = ModelSummary(
            architecture=model.weights.architecture,
            total_parameters=Architecture.from_message(model.weights.architecture).parameter_count,
            num_devices=model.num_devices,
            total_samples=model.total_samples,
            aggregation_strategy=model.aggregation_strategy,
        )
        return ModelAnswer(
            cohort=name,
            weights=model.weights,
            summary=summary,
            aggregation_rounds=model.version,
            timestamp=model.timestamp,
            parent=model.parent,
            stage=model.stage,
            share=model.share,
            signature=model.signature,
            control=None if control is None else control.tolist(),
        )

    @router.post("/api/aggregate", responses=problems(401, 403, 404, 409, 422, 429, 503))
    def aggregate(
        who: Annotated[Principal, Depends(guard.operator)], cohort: CohortQuery = None
    ) -> RoundAnswer | NoUpdates:
        """Make a round now of whatever is pending."""
        name = existing(service, cohort)
        model = service.aggregate(name, clock())
        if model is None:
            return NoUpdates(message=f"no update of cohort {name!r} waits for a round")
        audit.note(who.name, "round.make", f"{name}#{model.version}")
        same = model.model_dump(include={"cohort", "num_devices", "total_samples", "aggregation_strategy", "timestamp"})
        return RoundAnswer(round=model.version, **same)

    @router.get("/api/status", responses=problems(401, 403, 404, 422, 429), dependencies=[Depends(guard.viewer)])
    def status(cohort: CohortQuery = None) -> StatusAnswer:
        """Say how a cohort and the server are."""
        name, stored = existing(service, cohort), service.is_stored()
        cohorts = service.summary()
        figures = cohorts.get(name, {"rounds": 0, "pending_updates": 0, "unique_devices": 0})
        return StatusAnswer(
            status="running" if stored else "degraded",
            cohort=name,
            pending_updates=figures["pending_updates"],
            aggregation_rounds=figures["rounds"],
            unique_devices=figures["unique_devices"],
            device_contributions=service.contributions(name),
            aggregation_config=_configuration(service.rules(name)),
            timestamp=clock(),
            cohorts=cohorts,
            kafka="connected" if kafka_connected() else "unreachable",
            mongodb="connected" if stored else "unreachable",
        )

    @router.get("/api/history", responses=problems(401, 403, 404, 422, 429, 503), dependencies=[Depends(guard.viewer)])
    def history(
        cohort: CohortQuery = None, limit: Annotated[int, Query(ge=1, le=10_000, description="newest rounds")] = 1_000
    ) -> HistoryAnswer:
        """List a cohort's rounds."""
        name = existing(service, cohort)
        rounds = service.history(name, limit)
        entries = [
            HistoryEntry.model_validate({**found, "device_ids": [d["device_id"] for d in found["devices"]]})
            for found in rounds
        ]
        return HistoryAnswer(aggregation_history=entries, total_rounds=rounds[-1]["round"] if rounds else 0)

    return router
