"""The README's pictures, taken of a run that is on: `python -m visualization.screenshots`.

Needs Chromium on PATH and the packages of `requirements/dev.txt`. Refuses a page whose browser console holds an error.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from config.settings import PROJECT, Settings, load_settings
from flead.errors import FleadError, Unavailable
from visualization.browser import OPTIONS, find_browser
from visualization.superset import service
from visualization.superset.client import Superset

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

IMAGES = PROJECT / "docs" / "images"
CONSOLE, DASHBOARD = (1440, 900), (1600, 1900)
"""Sizes of the pages, pixels: charts of a dashboard that are not in sight are not drawn."""
SHOWN = 1600, 1150
"""The part of a dashboard that is a picture."""
LIMIT_MS = 60_000


def main() -> None:
    """Take all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, help="folder of the run; without it, that of the settings")
    parser.add_argument("--device", help="whose page to show; without it, the most troubled one's")
    parser.add_argument("--output", type=Path, default=IMAGES, help="where the pictures go (%(default)s)")
    asked = parser.parse_args()
    settings = load_settings()
    if asked.run_dir:
        settings = settings.model_copy(update={"run_dir": asked.run_dir})
    asked.output.mkdir(parents=True, exist_ok=True)
    with browsing() as browser:
        take_console(browser, settings, asked.device, asked.output)
        take_dashboards(browser, settings, asked.output)


@contextmanager
def browsing() -> Iterator[Browser]:
    """Headless Chromium; raises `Unavailable` where there is none."""
    from playwright.sync_api import sync_playwright

    path = find_browser()
    if path is None:
        raise Unavailable("there is no browser: install Chromium (on Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def page_of(browser: Browser, size: tuple[int, int], *, dark: bool = False) -> Iterator[Page]:
    """A page of this width and height; raises `FleadError` at its end if it wrote an error."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light", locale="en-GB"
    )
    page, wrong = context.new_page(), []
    page.set_default_timeout(LIMIT_MS)
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    yield page
    context.close()
    if wrong:
        raise FleadError(f"the page wrote errors: {'; '.join(wrong)[:500]}")


def take_console(browser: Browser, settings: Settings, device: str | None, folder: Path) -> None:
    """The live console in light and dark, and one device."""
    url = f"{settings.server.url}/console"
    for name, dark in (("console", False), ("console-dark", True)):
        with page_of(browser, CONSOLE, dark=dark) as page:
            page.goto(url)
            cells = page.locator(".grid .cell")
            cells.first.wait_for()
            page.wait_for_timeout(12_000)  # what is drawn over time is to be seen
            device = device or cells.first.get_attribute("data-name")
            page.screenshot(path=folder / f"{name}.png")
    with page_of(browser, CONSOLE) as page:
        page.goto(f"{url}/device/{device}")
        page.locator(".device .canvas").first.wait_for()
        page.wait_for_timeout(8_000)
        page.screenshot(path=folder / "console-device.png")


def take_dashboards(browser: Browser, settings: Settings, folder: Path) -> None:
    """Every dashboard, whole."""
    password, base = service.admin_password(settings), settings.dashboards.url
    with Superset(base, service.ADMIN, password) as superset:
        slugs = {found["slug"]: found["dashboard_title"] for found in superset.dashboards()}
    with page_of(browser, DASHBOARD) as page:
        page.goto(f"{base}/login/")
        page.locator("input[name=username], input#username").fill(service.ADMIN)
        page.locator("input[type=password]").fill(password.get_secret_value())
        page.keyboard.press("Enter")
        page.wait_for_url(lambda url: "/login" not in url)
        for slug in slugs:
            page.goto(f"{base}/superset/dashboard/{slug}/")
            page.locator(".slice_container").first.wait_for()
            page.wait_for_function("() => !document.querySelector('.dashboard .loading')")
            page.wait_for_timeout(3_000)  # lines grow for a second
            page.screenshot(
                path=folder / f"dashboard-{slug}.png", clip={"x": 0, "y": 0, "width": SHOWN[0], "height": SHOWN[1]}
            )


if __name__ == "__main__":
    main()
