"""Every dashboard, in a real browser: empty and filled, without an error and without asking any other host."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.fixtures_browser import LIMIT_MS, OpenPage
from tests.fixtures_mart import Mart
from tests.fixtures_storage import wait_until
from tests.fixtures_superset import FIRST, FIRST_SENSOR, Held, Served
from visualization.mart.connection import connect
from visualization.mart.schema import ensure
from visualization.superset import assets, service
from visualization.superset.questions import queries_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Response

pytestmark = pytest.mark.servers

DASHBOARDS = sorted(asset["slug"] for path, asset in assets.read().items() if assets.kind_of(path) == "dashboards")
VIEWPORT = {"width": 1600, "height": 3100}
"""So high that all charts of a dashboard are in it: those that are not are not asked for."""
IS_DRAWN = """charts => !document.querySelector('.dashboard .loading')
    && document.querySelectorAll('.dashboard-component-chart-holder .slice_container').length === charts"""
ASKED = ("columns", "metrics", "orderby", "row_limit", "filters", "extras")


class Watched:
    """A page that opens dashboards, and what it asked Superset for."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self._url = url
        self.queries: dict[str, list[dict[str, Any]]] = {}
        self.titles: dict[str, str] = {}
        page.on("response", self._note)

    def open(self, slug: str) -> None:
        """Open a dashboard, and wait until it is drawn."""
        [asset] = [asset for asset in assets.read().values() if asset.get("slug") == slug]
        charts = sum(item.get("type") == "CHART" for item in asset["position"].values() if isinstance(item, dict))
        self.page.goto(f"{self._url}/superset/dashboard/{slug}/")
        self.page.wait_for_function(IS_DRAWN, arg=charts, timeout=3 * LIMIT_MS)
        wait_until(lambda: self.page.screenshot() == self.page.screenshot())  # lines grow for a second

    def _note(self, response: Response) -> None:
        if "/api/v1/chart/data" in response.url:
            body = json.loads(response.request.post_data or "{}")
            if "slice_id" in body["form_data"]:
                self.queries[str(body["form_data"]["slice_id"])] = body["queries"]


@pytest.fixture(scope="module")
def logged_in(browser: Browser, superset: Served) -> Any:
    """The cookies of the administrator."""
    page = browser.new_context().new_page()
    page.goto(f"{superset.url}/login/")
    page.fill("#username", service.ADMIN)
    page.fill("#password", service.admin_password(superset.settings).get_secret_value())
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "/login" not in url)
    state = page.context.storage_state()
    page.context.close()
    return state


@pytest.fixture
def watched(open_page: OpenPage, superset: Served, logged_in: Any) -> Iterator[Watched]:
    for path in (superset.settings.run_dir / "superset" / "cache").rglob("*"):
        if path.is_file():
            path.unlink()  # what the test before was answered
    page = open_page(f"{superset.url}/login/", storage_state=logged_in, viewport=VIEWPORT)
    yield Watched(page, superset.url)
    assert page.locator("[data-test=error-message], .ant-alert-error").all_inner_texts() == []


@pytest.mark.parametrize("slug", DASHBOARDS)
def test_a_dashboard_of_an_empty_mart_is_drawn(mart: Mart, watched: Watched, slug: str) -> None:
    with connect(mart.uri()) as connection:
        ensure(connection)
    watched.open(slug)


@pytest.mark.parametrize("slug", DASHBOARDS)
def test_a_dashboard_is_drawn_and_asks_what_check_asks(
    held: Held, superset: Served, watched: Watched, slug: str
) -> None:
    watched.open(slug)
    with superset.as_admin() as asked:
        [number] = [one["id"] for one in asked.dashboards() if one["slug"] == slug]
        charts = {str(chart["id"]): chart for chart in asked.charts(number)}
    wait_until(lambda: watched.queries.keys() >= charts.keys())
    for number, chart in charts.items():
        ours = queries_of(chart["form_data"])
        theirs = [{key: query[key] for key in query if key in ASKED} for query in watched.queries[number]]
        for query, sent in zip(ours, theirs, strict=True):
            assert comparable(sent) == comparable(query), chart["slice_name"]


def test_a_device_is_chosen_when_its_dashboard_is_opened(held: Held, watched: Watched) -> None:
    watched.open("device")
    wait_until(lambda: all(_filters(query) for queries in watched.queries.values() for query in queries))
    chosen = [_filters(query) for queries in watched.queries.values() for query in queries]
    assert all({"device_id": FIRST}.items() <= one.items() for one in chosen)
    assert {"device_id": FIRST, "sensor": FIRST_SENSOR} in chosen


def _filters(query: dict[str, Any]) -> dict[str, str]:
    return {one["col"]: one["val"][0] for one in query["filters"] if one["op"] == "IN"}


def comparable(query: dict[str, Any]) -> dict[str, Any]:
    """A query without what a dashboard filters by, and without what says nothing."""
    filters = [one for one in query["filters"] if one["op"] != "IN"]
    order = [list(one) for one in query.get("orderby", [])]
    found = {key: query[key] for key in ASKED if query.get(key)}
    return {**found, "filters": filters, "orderby": order}
