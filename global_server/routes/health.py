"""Whether the server is alive, whether it can work, and its figures."""

# No `annotations` from `__future__`: FastAPI must see the guard's own dependencies.

from collections.abc import Callable
from typing import Any, Literal

from fastapi import APIRouter, Depends
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.responses import Response

from flead.errors import Unavailable
from global_server.access.guard import Guard
from global_server.rounds import RoundService
from global_server.routes.describing import problems
from global_server.telemetry import Telemetry


class Health(BaseModel):
    """`GET /healthz`, `GET /readyz`."""

    status: Literal["ok"] = "ok"


_METRICS = "# HELP flead_cohorts Cohorts that there are.\n# TYPE flead_cohorts gauge\nflead_cohorts 1.0\n"
_FIGURES: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus' text format", "content": {"text/plain": {"example": _METRICS}}}
}


def routes(
    service: RoundService, guard: Guard, telemetry: Telemetry, *, kafka_connected: Callable[[], bool]
) -> APIRouter:
    """Make the router; `kafka_connected` says whether a broker answers."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz", operation_id="healthz", responses=problems(403))
    def healthz() -> Health:
        """Say that the process is alive. Restart it where this does not answer."""
        return Health()

    @router.get("/readyz", operation_id="readyz", responses=problems(403, 503))
    def readyz() -> Health:
        """Say whether MongoDB answers and the rounds are read. Send nothing here while it does not."""
        if not service.is_stored():
            raise Unavailable("MongoDB does not answer, so nothing can be taken in: it is tried again by itself")
        return Health()

    @router.get(
        "/metrics",
        operation_id="metrics",
        dependencies=[Depends(guard.scraper)],
        response_class=Response,
        responses=_FIGURES | problems(401, 403, 429),
    )
    def metrics() -> Response:
        """Give the figures that Prometheus scrapes."""
        telemetry.up.labels("mongodb").set(service.is_stored())
        telemetry.up.labels("kafka").set(kafka_connected())
        return Response(telemetry.page(), media_type=CONTENT_TYPE_LATEST)

    return router
