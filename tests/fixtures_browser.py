"""A real browser for the tests, headless; and `flead serve` with its console."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from config.child import ends_with_parent, free_port, stop
from config.settings import PROJECT
from storage.embedded import Mongod
from tests.fixtures_storage import wait_until
from visualization.browser import BROWSERS, OPTIONS, find_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request

LIMIT_MS = 20_000
SCREENSHOTS = PROJECT / "run" / "screenshots"

OpenPage = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium; without one on PATH the tests that need it are skipped.

    One for each module: while Playwright is there its event loop runs in this thread, where others' tests want theirs.
    """
    executable = find_browser()
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is on PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=list(OPTIONS))
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[OpenPage]:
    """Opens an address in a context of its own.

    At the end it keeps a picture of each page, and fails where one wrote an error, asked for what was not there, or
    asked another host for anything.
    """
    opened: list[Page] = []
    wrong: list[str] = []

    def open_(url: str, **options: Any) -> Page:
        from playwright.sync_api import expect

        expect.set_options(timeout=LIMIT_MS)
        page = browser.new_context(**options).new_page()
        page.set_default_timeout(LIMIT_MS)
        host = urlsplit(url).netloc

        def note(asked: Request) -> None:
            if urlsplit(asked.url).scheme != "data" and urlsplit(asked.url).netloc != host:
                wrong.append(f"asked another host: {asked.url}")

        def hear(message: ConsoleMessage) -> None:
            if message.type == "error":
                wrong.append(message.text)

        page.on("request", note)
        page.on("console", hear)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "response", lambda answer: wrong.append(f"{answer.status} {answer.url}") if answer.status > 399 else None
        )
        page.goto(url)
        opened.append(page)
        return page

    yield open_
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for number, page in enumerate(opened):
        page.screenshot(path=SCREENSHOTS / f"{request.node.name}-{number}.png", full_page=True)
        page.context.close()
    assert not wrong


@contextmanager
def serving(folder: Path, mongod: Mongod, **settings: str) -> Iterator[str]:
    """`flead serve` as people start it; its address."""
    port = free_port()
    environment = {
        **os.environ, "FLEAD_RUN_DIR": str(folder), "FLEAD_MONGODB__URI": mongod.uri,
        "FLEAD_MONGODB__DATABASE": "flead_console", **settings,
    }  # fmt: skip
    command = ends_with_parent([sys.executable, "-m", "orchestration", "serve", "--port", str(port)])
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=log, stderr=log)  # noqa: S603
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, (folder / "server.log").read_text()
        with suppress(httpx.HTTPError):
            return httpx.get(f"{url}/api/status").is_success
        return False

    try:
        wait_until(answers, 60.0)
        yield url
    finally:
        stop(process)


@pytest.fixture(scope="session")
def console(tmp_path_factory: pytest.TempPathFactory, mongod: Mongod, kafka_servers: str) -> Iterator[str]:
    """The address of a server that reads the session's broker; no run is in its folder."""
    folder = tmp_path_factory.mktemp("console")
    positions = folder / "positions.csv"
    positions.write_text("device_id,x,y\nmapped-1,0,0\nmapped-2,10,5\n")
    with serving(
        folder, mongod, FLEAD_KAFKA__BOOTSTRAP_SERVERS=kafka_servers, FLEAD_SPARK__POSITIONS=str(positions)
    ) as url:
        yield url
