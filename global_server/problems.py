"""Errors as RFC 9457 problem documents: ONE table from error to status."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from flead import errors

STATUS: dict[type[errors.FleadError], tuple[int, str]] = {
    errors.FleadError: (500, "Something went wrong"),
    errors.BadInput: (422, "The input breaks the contract"),
    errors.BadReading: (422, "Not a reading"),
    errors.BadUpdate: (422, "Not an update that can enter a round"),
    errors.BadModel: (422, "Weights that do not hold"),
    errors.BadDataset: (422, "Not a readable dataset"),
    errors.Refused: (403, "Refused"),
    errors.BadCredentials: (401, "No credentials that hold"),
    errors.Forbidden: (403, "Not allowed"),
    errors.TooOften: (429, "Too many requests"),
    errors.BudgetSpent: (409, "The privacy budget is spent"),
    errors.BadSecureSum: (422, "A step of a secure sum that does not hold"),
    errors.WrongPhase: (409, "A secure sum is at another step"),
    errors.ForgedModel: (422, "A global model that no trusted server signed"),
    errors.BadRules: (422, "Rules that cannot be"),
    errors.NotThere: (404, "It does not exist"),
    errors.Conflict: (409, "It cannot be done as things stand"),
    errors.BadConfiguration: (500, "A setting that cannot work"),
    errors.Unavailable: (503, "A part of the system does not answer"),
    errors.PortTaken: (503, "A port is taken"),
    errors.CorruptRunFolder: (503, "The run folder cannot be continued from"),
}
"""Every error that FLEAD raises on purpose: status and title. A test proves it complete."""

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 20
RETRY_AFTER_S = 2
_NOT_JSON = "model_attributes_type"
"""Pydantic's code where a body is bytes: FastAPI parses none that is not said to be JSON, as `curl -d` does not."""


class Violation(BaseModel):
    """One thing wrong with the input."""

    where: str
    message: str
    code: str


class Problem(BaseModel):
    """An RFC 9457 problem document."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[Violation] = Field(default_factory=list)


class InvalidBody(errors.BadUpdate):
    """A body that is no local update: everything that is wrong with it."""

    def __init__(self, error: ValidationError) -> None:
        found = error.errors(include_url=False, include_context=False, include_input=False)[:MAX_ERRORS]
        self.violations = [_violation(dict(item)) for item in found]
        super().__init__(f"{error.error_count()} wrong, first: {self.violations[0].where} {self.violations[0].message}")


def _violation(item: dict[str, Any]) -> Violation:
    where = ".".join(str(part)[:100] for part in item["loc"])
    return Violation(where=where[:500], message=str(item["msg"])[:300], code=str(item["type"]))


def _respond(problem: Problem, headers: dict[str, str] | None = None) -> JSONResponse:
    body = problem.model_dump(exclude_defaults=True)
    return JSONResponse(body, problem.status, headers=headers, media_type=MEDIA_TYPE)


def _of_http(status: int, detail: str, violations: list[Violation] | None = None) -> Problem:
    title = HTTPStatus(status).phrase
    return Problem(type="about:blank", title=title, status=status, detail=detail, errors=violations or [])


def of_error(error: errors.FleadError) -> Problem:
    """Make the problem document of an error.

    >>> of_error(errors.BadModel("biases[0] must be (3,)")).status
    422
    """
    kind = next(kind for kind in type(error).__mro__ if kind in STATUS)
    status, title = STATUS[kind]
    detail = error.detail if isinstance(error, errors.BadInput) else str(error)
    code = error.reason.value if isinstance(error, errors.BadInput) else kind.__name__.lower()
    violations = error.violations if isinstance(error, InvalidBody) else []
    if isinstance(error, errors.BadInput) and not violations:
        violations = [Violation(where="", message=detail, code=code)]
    return Problem(type=f"urn:flead:problem:{code}", title=title, status=status, detail=detail, errors=violations)


def response_to(error: errors.FleadError) -> JSONResponse:
    """Answer an error."""
    problem = of_error(error)
    headers = {}
    if isinstance(error, errors.TooOften):
        headers["Retry-After"] = str(error.retry_after_s)
    elif problem.status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    elif problem.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="flead"'
    return _respond(problem, headers)


def _methods(request: Request) -> set[str]:
    """What may be done with a path: each method has a route of its own."""

    def has_route(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)

    return {method for method in ("DELETE", "GET", "PATCH", "POST", "PUT") if has_route(method)}


def install(app: FastAPI) -> None:
    """Answer every error with a problem document."""

    @app.exception_handler(errors.FleadError)
    def _ours(_request: Request, error: errors.FleadError) -> JSONResponse:
        return response_to(error)

    @app.exception_handler(HTTPException)
    def _http(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(sorted(_methods(request)))
        return _respond(_of_http(error.status_code, str(error.detail)), headers)

    @app.exception_handler(RequestValidationError)
    def _validation(_request: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()[:MAX_ERRORS]
        detail = "the request does not fit its description"
        if any(item["type"] == _NOT_JSON and item["loc"] == ("body",) for item in found):
            detail = "the body was not read as JSON: send it with the header Content-Type: application/json"
        return _respond(_of_http(422, detail, [_violation(item) for item in found]))

    @app.exception_handler(Exception)
    def _unforeseen(_request: Request, _error: Exception) -> JSONResponse:
        return _respond(_of_http(500, "an error that nobody foresaw: the server's log has it"))
