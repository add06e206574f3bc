"""What every request passes before any route: ASGI middleware."""

from __future__ import annotations

import ipaddress
from http import HTTPStatus
from urllib.parse import quote, urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flead.errors import BadCredentials, FleadError, Forbidden
from global_server import problems
from global_server.access.audit import ADDRESS
from global_server.access.guard import SAFE, Guard, is_same_site

LOGIN = "/login"


class Addressed:
    """Lets the audit log know where a request comes from."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        if client := scope.get("client"):
            ADDRESS.set(client[0])
        await self._app(scope, receive, send)


class FromHere:
    """Refuses what a page of another site makes a browser of this machine ask, where access is open.

    A name of ours in `Host` stops DNS rebinding; `Origin`, which a browser sends with everything that changes
    something, stops the rest. A program sends no `Origin`, and passes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] in ("http", "websocket") and not is_from_here(Headers(scope=scope)):
            where = "this server answers to names of this machine only, and to no page of another site"
            await _refuse(scope, receive, send, Forbidden(f"{where}: ask for http://127.0.0.1"))
            return
        await self._app(scope, receive, send)


def is_from_here(headers: Headers) -> bool:
    """Whether a request is for this machine by name, and made by a page of the same server or by no page.

    >>> is_from_here(Headers({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:8000"}))
    True
    >>> is_from_here(Headers({"host": "rebound.example:8000"}))
    False
    >>> is_from_here(Headers({"host": "localhost", "origin": "https://elsewhere.example"}))
    False
    """
    host = headers.get("host", "")
    return _is_here(host) and ("origin" not in headers or is_same_site(headers))


def _is_here(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class PagesDoor:
    """Keeps pages for people to those who logged in; others are sent to the page where they can.

    Parameters
    ----------
    path:
        where the pages are
    """

    def __init__(self, app: ASGIApp, guard: Guard, path: str) -> None:
        self._app = app
        self._guard = guard
        self._path = path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        path = scope.get("path", "")
        if scope["type"] in ("http", "websocket") and (path == self._path or path.startswith(f"{self._path}/")):
            try:
                await self._guard.visitor(HTTPConnection(scope))
            except FleadError as error:
                await _refuse(scope, receive, send, error)
                return
        await self._app(scope, receive, send)


async def _refuse(scope: Scope, receive: Receive, send: Send, error: FleadError) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})
        return
    for_people = scope["method"] == "GET" and "text/html" in Headers(scope=scope).get("accept", "")
    if for_people and isinstance(error, BadCredentials):
        asked = scope["raw_path"].decode("ascii", "replace")  # as it came: a device's name may have any character in it
        response = RedirectResponse(f"{LOGIN}?next={quote(asked)}", HTTPStatus.SEE_OTHER)
        await response(scope, receive, send)
    else:
        await problems.response_to(error)(scope, receive, send)


class KnownSenders:
    """Asks who sends a body before it is read: a route's own guard comes after it, and anybody could have it parsed.

    Parameters
    ----------
    unless:
        paths that take bodies of people who have yet to log in, or see to it themselves
    """

    def __init__(self, app: ASGIApp, guard: Guard, unless: tuple[str, ...]) -> None:
        self._app = app
        self._guard = guard
        self._unless = unless

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] == "http" and scope["method"] not in SAFE and scope["path"] not in self._unless:
            try:
                await self._guard.somebody(HTTPConnection(scope))
            except FleadError as error:
                await _refuse(scope, receive, send, error)
                return
        await self._app(scope, receive, send)


class SmallBodies:
    """Refuses bodies that are too large, whatever reads them.

    Parameters
    ----------
    limit:
        the largest body, bytes
    unless:
        paths that see to it themselves
    """

    def __init__(self, app: ASGIApp, limit: int, unless: tuple[str, ...] = ()) -> None:
        self._app = app
        self._limit = limit
        self._unless = unless

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with a body that ends in a refusal where it is too large."""
        if scope["type"] != "http" or scope["path"] in self._unless:
            await self._app(scope, receive, send)
            return
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size <= self._limit:
                return message
            # Read on for a while: a sender that is cut off does not see the answer.
            while message.get("more_body") and size <= 32 * self._limit:
                message = await receive()
                size += len(message.get("body", b""))
            raise HTTPException(413, f"the body is larger than {self._limit} bytes")

        await self._app(scope, limited, send)
