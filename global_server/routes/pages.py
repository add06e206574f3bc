"""Two plain pages that work without JavaScript: where people log in, and what there is to ask."""

# No `annotations` from `__future__`: FastAPI must see the guard's own dependencies.

from collections.abc import Iterator
from datetime import timedelta
from html import escape
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import HTMLResponse, RedirectResponse, Response

from flead.errors import Refused
from global_server.access.doors import LOGIN
from global_server.access.guard import Guard
from global_server.problems import of_error
from global_server.routes.access import log_in, set_cookie

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def routes(app: FastAPI, guard: Guard, pages: str | None) -> APIRouter:
    """Make the router.

    Parameters
    ----------
    app:
        whose description is shown
    pages:
        where a log-in leads; None: to `/docs`
    """
    router = APIRouter(include_in_schema=False)
    home = pages or "/docs"

    @router.get(LOGIN)
    def form(next: str = "") -> Response:
        """Ask for name and password."""
        return _page("Log in", _form(next))

    @router.post(LOGIN)
    async def begin(request: Request, next: str = "") -> Response:
        """Log in, and go on to where somebody wanted to go."""
        try:
            found = await log_in(guard, request, timedelta(hours=guard.settings.session_hours))
        except (Refused, RequestValidationError) as error:
            problem = of_error(error) if isinstance(error, Refused) else None
            says = problem.detail if problem else "a name and a password, please"
            return _page("Log in", _form(next, says), problem.status if problem else 422)
        response = RedirectResponse(next if _is_ours(next) else home, HTTPStatus.SEE_OTHER)
        set_cookie(request, response, found)
        return response

    @router.get("/docs", dependencies=[Depends(guard.viewer)])
    def docs() -> Response:
        """List what there is to ask."""
        return _page("FLEAD global server", "".join(_operations(app.openapi())))

    return router


def _is_ours(path: str) -> bool:
    r"""Whether a path leads to this server, and nowhere else.

    >>> _is_ours("/console"), _is_ours("//elsewhere.example"), _is_ours("https://elsewhere.example"), _is_ours("/\\e.x")
    (True, False, False, False)
    """
    return path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()


def _form(next_: str, says: str = "") -> str:
    action = f"{LOGIN}?next={quote(next_)}" if _is_ours(next_) else LOGIN
    wrong = f'<p role="alert">{escape(says)}</p>' if says else ""
    return (
        f'{wrong}<form method="post" action="{action}">'
        '<label>Name <input name="username" autocomplete="username" required autofocus></label>'
        '<label>Password <input name="password" type="password" autocomplete="current-password" required></label>'
        "<button>Log in</button></form>"
    )


def _operations(document: dict[str, Any]) -> Iterator[str]:
    """The description as sections by tag."""
    yield f"<p>{escape(document['info'].get('description', ''))} The whole as <a href='/openapi.json'>JSON</a>.</p>"
    found = [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]
    for tag in dict.fromkeys(tag for _, _, operation in found for tag in operation.get("tags", ["server"])):
        yield f"<h2>{escape(tag)}</h2>"
        for method, path, operation in found:
            if tag in operation.get("tags", ["server"]):
                yield _operation(method, path, operation)


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    says = escape(operation.get("description") or operation.get("summary", ""))
    asked = "".join(
        f"<li><code>{escape(given['name'])}</code> ({escape(given['in'])}"
        f"{', required' if given.get('required') else ''}) {escape(given.get('description', ''))}</li>"
        for given in operation.get("parameters", [])
    )
    answers = "".join(
        f"<li><code>{escape(status)}</code> {escape(answer.get('description', ''))}</li>"
        for status, answer in operation["responses"].items()
    )
    return (
        f"<details><summary><code>{method} {escape(path)}</code> {says}</summary>"
        f"<ul>{asked}</ul><p>Answers</p><ul>{answers}</ul></details>"
    )


def _page(title: str, inside: str, status: int = 200) -> HTMLResponse:
    return HTMLResponse(_FRAME.format(title=escape(title), inside=inside), status, _HEADERS)


_FRAME = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
body {{ max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
form {{ display: grid; gap: 1rem; max-width: 20rem; }}
label {{ display: grid; gap: .25rem; }}
input, button {{ font: inherit; padding: .4rem .6rem; }}
[role=alert] {{ color: #c0392b; font-weight: 600; }}
summary {{ cursor: pointer; padding: .25rem 0; }}
</style></head><body><h1>{title}</h1>{inside}</body></html>
"""
