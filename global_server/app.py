"""The REST interface. It translates; what happens is in `global_server.rounds`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse

from flead.messages import LocalUpdate
from flead.network import Architecture
from global_server import problems
from global_server.answers import (
    HistoryAnswer,
    HistoryEntry,
    ModelAnswer,
    ModelSummary,
    NoUpdates,
    RoundAnswer,
    Service,
    StatusAnswer,
    UpdateAnswer,
)
from global_server.rounds import RoundService

MAX_BODY = 2_000_000
"""Bytes of a request: twice the JSON of the largest model that is accepted. Validation lists everything that is wrong
with a body, which takes about 2 s for each million bytes of nothing but errors."""
_DRAIN = 32 * MAX_BODY  # read on this far before answering: a sender that is cut off does not see the answer

CohortQuery = Annotated[str | None, Query(description="without it the only cohort there is, or `default`")]


def create_app(
    service: RoundService,
    *,
    kafka_connected: Callable[[], bool] = lambda: False,
    pages: str | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> FastAPI:
    """Make the application.

    Parameters
    ----------
    kafka_connected:
        says whether a broker answers, for the status
    pages:
        the path of the pages for people, where `GET /` sends a browser; None: there are none
    clock:
        gives the present, aware
    """
    app = FastAPI(title="FLEAD global server", version=_version(), description="Rounds of federated learning.")
    problems.install(app)

    def existing(cohort: str | None) -> str:
        """Resolve a cohort; one that is named must exist."""
        if cohort and not service.knows(cohort):
            raise HTTPException(404, f"there is no cohort {cohort[:128]!r}: GET /api/status names those that there are")
        return service.resolve(cohort)

    @app.get("/", response_model=Service)
    def root(request: Request) -> Service | RedirectResponse:
        """Say what this is; a browser is sent to the pages for people."""
        if pages and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(pages)
        return Service(service="flead-global-server", status="running", version=_version())

    @app.post("/api/local-update", responses=_problems(400, 413, 422, 503), openapi_extra=_UPDATE_BODY)
    async def local_update(request: Request) -> UpdateAnswer:
        """Take a local update into the next round; the same one again is harmless."""
        raw = await _body(request)
        return await run_in_threadpool(take, raw)

    def take(raw: bytes) -> UpdateAnswer:
        update = _parse(raw)
        now = clock()
        outcome = service.accept(update, now)
        service.aggregate_ready(now)
        figures = service.summary()[update.cohort]
        return UpdateAnswer(
            status=outcome.value,
            device_id=update.device_id,
            cohort=update.cohort,
            pending_updates=figures["pending_updates"],
            aggregation_rounds=figures["rounds"],
        )

    @app.get("/api/global-model", responses=_problems(404, 422))
    def global_model(cohort: CohortQuery = None) -> ModelAnswer:
        """Give a cohort's newest global model."""
        name = existing(cohort)
        model = service.model(name)
        if model is None:
            raise HTTPException(404, f"cohort {name!r} has no global model yet: it comes with its first round")
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
        )

    @app.post("/api/aggregate", responses=_problems(404, 422, 503))
    def aggregate(cohort: CohortQuery = None) -> RoundAnswer | NoUpdates:
        """Make a round now of whatever is pending."""
        name = existing(cohort)
        model = service.aggregate(name, clock())
        if model is None:
            return NoUpdates(message=f"no update of cohort {name!r} waits for a round")
        same = model.model_dump(include={"cohort", "num_devices", "total_samples", "aggregation_strategy", "timestamp"})
        return RoundAnswer(round=model.version, **same)

    @app.get("/api/status", responses=_problems(404, 422))
    def status(cohort: CohortQuery = None) -> StatusAnswer:
        """Say how a cohort and the server are."""
        name, stored = existing(cohort), service.is_stored()
        cohorts = service.summary()
        figures = cohorts.get(name, {"rounds": 0, "pending_updates": 0, "unique_devices": 0})
        return StatusAnswer(
            status="running" if stored else "degraded",
            cohort=name,
            pending_updates=figures["pending_updates"],
            aggregation_rounds=figures["rounds"],
            unique_devices=figures["unique_devices"],
            device_contributions=service.contributions(name),
            aggregation_config={"strategy": "fedavg", **service.settings.model_dump()},
            timestamp=clock(),
            cohorts=cohorts,
            kafka="connected" if kafka_connected() else "unreachable",
            mongodb="connected" if stored else "unreachable",
        )

    @app.get("/api/history", responses=_problems(404, 422, 503))
    def history(
        cohort: CohortQuery = None, limit: Annotated[int, Query(ge=1, le=10_000, description="newest rounds")] = 1_000
    ) -> HistoryAnswer:
        """List a cohort's rounds."""
        name = existing(cohort)
        rounds = service.history(name, limit)
        entries = [
            HistoryEntry.model_validate({**found, "device_ids": [d["device_id"] for d in found["devices"]]})
            for found in rounds
        ]
        return HistoryAnswer(aggregation_history=entries, total_rounds=rounds[-1]["round"] if rounds else 0)

    _describe(app)
    return app


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
        raise problems.InvalidBody(error) from None


def _version() -> str:
    try:
        return version("flead")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0.1.0"


_SCHEMAS = "#/components/schemas/"
_UPDATE_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"$ref": _SCHEMAS + "LocalUpdate"}}}}
}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    schema = {"schema": {"$ref": _SCHEMAS + "Problem"}}
    return {s: {"description": "A problem document", "content": {problems.MEDIA_TYPE: schema}} for s in statuses}


def _describe(app: FastAPI) -> None:
    """Put the schemas into the OpenAPI document that are read and written by hand."""
    components = app.openapi().setdefault("components", {}).setdefault("schemas", {})
    models: tuple[type[BaseModel], ...] = (LocalUpdate, problems.Problem)
    for model in models:
        schema = model.model_json_schema(ref_template=_SCHEMAS + "{model}")
        components.update(schema.pop("$defs", {}))
        components[model.__name__] = schema
