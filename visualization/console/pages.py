"""The pages of the console: NiceGUI under `/console` of the global server.

NiceGUI gives pages, the socket and Vue; what is drawn is one component (`web/`), which gets frames and says when it has
drawn them. Nothing is fetched from elsewhere, nothing from outside becomes HTML, nothing is stored on the server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI
from nicegui import app as nicegui_app
from nicegui import ui
from nicegui.element import Element
from nicegui.events import GenericEventArguments
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flead.errors import FleadError
from visualization.console.desk import Desk, Person
from visualization.console.feed import Feed
from visualization.console.fleet import Fleet
from visualization.console.live import Frame, Live, Page, Rounds
from visualization.console.words import KINDS

LOG = logging.getLogger(__name__)

PATH = "/console"
WEB = Path(__file__).parent / "web"

T = TypeVar("T")


class Console(Element, component="web/console.js", esm={"flead-console": "web"}):
    """The whole page in the browser.

    Parameters
    ----------
    desk:
        takes what people ask for; None: nothing can be changed here
    person:
        who looks at it; None: nobody knows
    """

    def __init__(self, live: Live, desk: Desk | None, person: Person | None) -> None:
        super().__init__()
        self._live = live
        self._desk = desk
        self._request = self.client.request
        signed_in = person if person and person.signed_in else None
        self._props["person"] = {"name": signed_in.name, "role": signed_in.role} if signed_in else None
        self._props["mayAct"] = bool(desk and person and person.may_act)
        self._props["positions"] = live.positions
        self._props["kinds"] = dict(KINDS)
        self._page = Page(self._send, self._may_look, self._close)
        self.on("drawn", self._drawn)
        self.on("show", self._show)
        self.on("act", self._act)
        self.on("compare", self._compare)
        live.pages.add(self._page)
        self.client.on_delete(lambda _client: live.pages.discard(self._page))

    def _send(self, frame: Frame) -> None:
        self.run_method("draw", frame)

    async def _may_look(self) -> bool:
        return self._desk is None or await self._desk.may_look(self._request)

    def _close(self) -> None:
        """Have the browser ask for the page again: the server's door then says where to log in."""
        self.run_method("ended")

    def _drawn(self, _event: GenericEventArguments) -> None:
        self._page.drawn = True

    def _show(self, event: GenericEventArguments) -> None:
        name = event.args
        self._page.show(name if isinstance(name, str) and 0 < len(name) <= 128 else None)

    async def _act(self, event: GenericEventArguments) -> None:
        if self._desk is None:
            return
        told, done = await _told(self._desk.act(self._request, event.args))
        self._live.look_again()
        self.run_method("tell", {"text": told, "done": done})

    async def _compare(self, event: GenericEventArguments) -> None:
        match event.args:
            case {"cohort": str(cohort), "a": int(a), "b": int(b)} if max(abs(a), abs(b)) < 2**53:
                if not await self._may_look():
                    return
                found, done = await _told(asyncio.to_thread(self._live.compare, cohort, a, b))
                self.run_method("showDifference" if done else "tell", found if done else {"text": found, "done": False})


class NotFramed:
    """Keeps pages out of the frames of other sites, where somebody could be made to click a button unseen."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with the headers that say so."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Frame-Options"] = "DENY"
                headers.append("Content-Security-Policy", "frame-ancestors 'none'")
            await send(message)

        await self._app(scope, receive, with_headers)


async def _told(asked: Awaitable[T]) -> tuple[T | str, bool]:
    """The outcome and True, or why there is none and False."""
    try:
        return await asked, True
    except FleadError as error:
        return str(error), False
    except Exception:
        LOG.exception("what a page asked for failed")
        return "it failed: the server's log says why", False


@contextmanager
def console(
    app: FastAPI, rounds: Rounds, servers: str, status_file: Path, positions: Mapping[str, tuple[float, float]],
    desk: Desk | None = None,
) -> Iterator[None]:  # fmt: skip
    """Put the console onto an application, and read the topics while in the context. Once in a process.

    The application keeps away who may not see it: pages of other sites, and people who have to log in first.

    Parameters
    ----------
    servers:
        Kafka's bootstrap servers
    status_file:
        where `flead up` writes how the run is
    positions:
        where devices are
    desk:
        takes what people ask for, and knows who they are; None: they look on, and change nothing
    """
    fleet = Fleet()
    feed = Feed(fleet, servers)
    live = Live(fleet, feed, rounds, status_file, positions)
    style = (WEB / "console.css").read_text()

    @ui.page("/", title="FLEAD", dark=None)
    @ui.page("/device/{name:path}", title="FLEAD", dark=None)
    async def page(request: Request, name: str = "") -> None:  # the browser takes the name from its address
        person = await desk.person(request) if desk else None
        ui.add_css(style)
        ui.add_head_html(_THEME)
        Console(live, desk, person)

    tasks: set[asyncio.Task[Any]] = set()
    nicegui_app.on_startup(lambda: tasks.add(asyncio.get_running_loop().create_task(live.run())))
    nicegui_app.on_shutdown(lambda: [task.cancel() for task in tasks])
    nicegui_app.add_middleware(NotFramed)
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
