"""What routes say about themselves in OpenAPI."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from global_server.problems import MEDIA_TYPE

SCHEMAS = "#/components/schemas/"
_WHEN = {
    400: "The request could not be read",
    401: "No credentials, or none that hold",
    403: "Not allowed, or asked by a page of another site",
    404: "There is none",
    409: "It cannot be done as things are",
    413: "The body is too large",
    415: "The body is in a form that is not understood",
    422: "The request breaks the contract",
    429: "Too many requests: `Retry-After` says when to try again",
    503: "A part of the system does not answer: `Retry-After` says when to try again, which is harmless",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Document the problem documents that a route answers with."""
    return {status: _problem(status) for status in statuses}


def _problem(status: int) -> dict[str, Any]:
    example = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": _WHEN[status]}
    content = {MEDIA_TYPE: {"schema": {"$ref": SCHEMAS + "Problem"}, "example": example}}
    described: dict[str, Any] = {"description": _WHEN[status], "content": content}
    if status in (429, 503):
        described["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    if status == 401:
        described["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return described
