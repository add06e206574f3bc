"""The REST interface, put together. It translates; what happens is in `global_server.rounds`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import Depends, FastAPI, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, RedirectResponse

from config.secure import SecureSettings
from flead.messages import LocalUpdate
from global_server import problems
from global_server.access.audit import Audit
from global_server.access.doors import LOGIN, Addressed, FromHere, KnownSenders, PagesDoor, SmallBodies
from global_server.access.guard import COOKIE, Guard
from global_server.answers import Service
from global_server.bodies import MAX_BODY
from global_server.rounds import RoundService
from global_server.routes import access, configuration, health, models, pages, quarantine, rounds, secure, updates
from global_server.routes.access import Credentials
from global_server.routes.describing import SCHEMAS
from global_server.routes.describing import problems as described
from global_server.routes.examples import show
from global_server.secure import SecureSums
from global_server.telemetry import Measured, Telemetry

UPDATES = "/api/local-update"
LOGINS = (LOGIN, "/api/token", "/api/session")


def create_app(
    service: RoundService,
    *,
    guard: Guard | None = None,
    audit: Audit | None = None,
    telemetry: Telemetry | None = None,
    sums: SecureSums | None = None,
    public_key: str | None = None,
    kafka_connected: Callable[[], bool] = lambda: False,
    site: str | None = None,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> FastAPI:
    """Make the application.

    Parameters
    ----------
    guard:
        asks for credentials; None: whoever reaches the server may do everything
    audit:
        notes who did what; None: in the log only
    telemetry:
        what `/metrics` shows
    sums:
        sums of which the server sees no term; None: as by default
    public_key:
        the one that the signatures of models hold for, base64
    kafka_connected:
        says whether a broker answers, for the status
    site:
        the path of the pages for people, where `GET /` sends a browser; None: there are none
    clock:
        gives the present, aware
    """
    audit = audit or Audit(clock=clock)
    guard = guard or Guard(audit)
    telemetry = telemetry or Telemetry()
    telemetry.watch(service)
    app = FastAPI(
        title="FLEAD global server", version=_version(), description="Rounds of federated learning.",
        docs_url=None, redoc_url=None, openapi_url=None, generate_unique_id_function=lambda route: route.name,
    )  # fmt: skip
    problems.install(app)
    _close_doors(app, guard, telemetry, site)

    @app.get("/", response_model=Service, tags=["server"], operation_id="service")
    def root(request: Request) -> Service | RedirectResponse:
        """Say what this is; a browser is sent to the pages for people."""
        if site and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse(site)
        return Service(service="flead-global-server", status="running", version=_version())

    @app.get("/openapi.json", include_in_schema=False, dependencies=[Depends(guard.viewer)])
    def openapi() -> JSONResponse:
        return JSONResponse(app.openapi())

    for router in (
        updates.routes(service, guard, audit, clock=clock),
        rounds.routes(service, guard, audit, clock=clock, kafka_connected=kafka_connected),
        models.routes(service, guard, audit, clock=clock, public_key=public_key),
        quarantine.routes(service, guard, audit, clock=clock),
        configuration.routes(service, guard, audit, clock=clock),
        secure.routes(sums or SecureSums(service, SecureSettings()), guard, audit, clock=clock),
        access.routes(guard, audit),
        health.routes(service, guard, telemetry, kafka_connected=kafka_connected),
        pages.routes(app, guard, site),
    ):
        app.include_router(router)
    _describe(app.openapi(), required=guard.required)
    return app


def _close_doors(app: FastAPI, guard: Guard, telemetry: Telemetry, site: str | None) -> None:
    """What a request passes before any route; of middleware, what is added last comes first."""
    app.add_middleware(SmallBodies, limit=MAX_BODY, unless=(UPDATES,))
    if guard.required:
        app.add_middleware(KnownSenders, guard=guard, unless=(UPDATES, *LOGINS))
        if site:
            app.add_middleware(PagesDoor, guard=guard, path=site)
    else:
        app.add_middleware(FromHere)
    app.add_middleware(Addressed)
    app.add_middleware(Measured, telemetry=telemetry, pages=site)


def _version() -> str:
    try:
        return version("flead")
    except PackageNotFoundError:  # run from a checkout that was not installed
        return "0.1.0"


_TIME = {"type": "string", "format": "date-time", "description": "ISO 8601 with an offset"}
_SECONDS = {"type": "number", "description": "since 1970, s or ms"}
_SCHEMES = {
    "token": {"type": "http", "scheme": "bearer", "description": "a user's, from `POST /api/token`"},
    "key": {"type": "apiKey", "in": "header", "name": "X-Device-Key", "description": "a device's"},
    "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "from `POST /api/session`"},
}
_WITHOUT_CREDENTIALS = {"service", "healthz", "readyz", "log_in", "begin_session", "end_session"}


def _describe(document: dict[str, Any], *, required: bool) -> None:
    """Put into the OpenAPI document what is read and written by hand, and what credentials it takes."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    by_hand: tuple[type[BaseModel], ...] = (LocalUpdate, Credentials, problems.Problem)
    for model in by_hand:
        schema = model.model_json_schema(ref_template=SCHEMAS + "{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    # Pydantic takes both, and says the first only.
    schemas["LocalUpdate"]["properties"]["timestamp"] = {"anyOf": [_TIME, _SECONDS]}
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    for operation in operations:
        show(operation, schemas)
        if "requestBody" in operation:
            for status, says in described(400, 413).items():
                operation["responses"].setdefault(str(status), says)
    if not required:
        return
    components["securitySchemes"] = _SCHEMES
    for operation in operations:
        if operation["operationId"] not in _WITHOUT_CREDENTIALS:
            operation["security"] = [{name: []} for name in _SCHEMES]
