"""The pages of the console: NiceGUI under `/console` of the global server.

NiceGUI gives pages, the socket and Vue; what is drawn is one component (`web/`), which gets frames and says when it has
drawn them. Nothing is fetched from elsewhere, nothing from outside becomes HTML, nothing is stored on the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import FastAPI
from nicegui import app as nicegui_app
from nicegui import ui
from nicegui.element import Element
from nicegui.events import GenericEventArguments
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from visualization.console.feed import Feed
from visualization.console.fleet import Fleet
from visualization.console.live import Frame, Live, Page, Rounds
from visualization.console.words import KINDS

PATH = "/console"
WEB = Path(__file__).parent / "web"
_HERE = ("127.0.0.1", "localhost", "[::1]")


class Console(Element, component="web/console.js", esm={"flead-console": "web"}):
    """The whole page in the browser."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self._props["positions"] = live.positions
        self._props["kinds"] = dict(KINDS)
        self._page = Page(self._send)
        self.on("drawn", self._drawn)
        self.on("show", self._show)
        live.pages.add(self._page)
        self.client.on_delete(lambda _client: live.pages.discard(self._page))

    def _send(self, frame: Frame) -> None:
        self.run_method("draw", frame)

    def _drawn(self, _event: GenericEventArguments) -> None:
        self._page.drawn = True

    def _show(self, event: GenericEventArguments) -> None:
        name = event.args
        self._page.show(name if isinstance(name, str) and 0 < len(name) <= 128 else None)


class OnlyFromHere:
    """Refuses requests that a page of another site makes in a browser of this machine.

    Names of ours in `Host` stop DNS rebinding; `Origin`, which a browser always sends with a socket, stops the rest.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] in ("http", "websocket") and not is_from_here(scope["headers"]):
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.close", "code": 1008})
            else:
                await PlainTextResponse("open the console as http://127.0.0.1\n", 403)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def is_from_here(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a request is for this machine by name, and made by a page of the same server or by no page.

    >>> is_from_here([(b"host", b"127.0.0.1:8000"), (b"origin", b"http://127.0.0.1:8000")])
    True
    >>> is_from_here([(b"host", b"rebound.example:8000")])
    False
    >>> is_from_here([(b"host", b"localhost"), (b"origin", b"https://elsewhere.example")])
    False
    """
    given = {name: value.decode("latin-1") for name, value in headers if name in (b"host", b"origin")}
    host = given.get(b"host", "")
    return _name(host) in _HERE and (b"origin" not in given or urlsplit(given[b"origin"]).netloc == host)


def _name(host: str) -> str:
    return host if host.endswith("]") else host.rpartition(":")[0] or host


@contextmanager
def console(
    app: FastAPI, rounds: Rounds, servers: str, status_file: Path, positions: Mapping[str, tuple[float, float]]
) -> Iterator[None]:
    """Put the console onto an application, and read the topics while in the context. Once in a process.

    Parameters
    ----------
    servers:
        Kafka's bootstrap servers
    status_file:
        where `flead up` writes how the run is
    positions:
        where devices are
    """
    fleet = Fleet()
    feed = Feed(fleet, servers)
    live = Live(fleet, feed, rounds, status_file, positions)
    style = (WEB / "console.css").read_text()

    @ui.page("/", title="FLEAD", dark=None)
    @ui.page("/device/{name:path}", title="FLEAD", dark=None)
    def page(name: str = "") -> None:  # the browser takes the name from its address
        ui.add_css(style)
        ui.add_head_html(_THEME)
        Console(live)

    tasks: set[asyncio.Task[Any]] = set()
    nicegui_app.on_startup(lambda: tasks.add(asyncio.get_running_loop().create_task(live.run())))
    nicegui_app.on_shutdown(lambda: [task.cancel() for task in tasks])
    nicegui_app.add_middleware(OnlyFromHere)
    ui.run_with(
        app, mount_path=PATH, title="FLEAD", dark=None, tailwind=False, favicon=_ICON, message_history_length=0,
        binding_refresh_interval=None, show_welcome_message=False,
    )  # fmt: skip
    feed.start()
    try:
        yield
    finally:
        feed.stop()


_THEME = """<script>
document.documentElement.dataset.theme = localStorage.getItem("flead-theme") || "auto";
</script>"""
"""Before anything is drawn: the theme that was chosen last."""
_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="8" fill="#0072b2"/>'
    '<path d="M5 18h5l3-9 5 15 3-9 2 3h4" fill="none" stroke="#fff" stroke-width="2.6" stroke-linejoin="round"/></svg>'
)
