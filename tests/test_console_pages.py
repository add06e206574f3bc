from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from config.child import free_port
from kafka.client import make_producer
from kafka.topics import ALERTS, PREDICTIONS
from storage.embedded import Mongod
from tests.fixtures_browser import OpenPage, serving
from tests.fixtures_storage import wait_until
from tests.test_console_fleet import alert, prediction

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.servers

HOSTILE = "<script>pwned = 1</script>/<b>&amp;%41"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.fixture(scope="module")
def send(kafka_servers: str) -> Any:
    """Puts predictions and alerts of a device into Kafka, stamped now."""
    producer = make_producer(kafka_servers)

    def send_(device: str, *, predictions: int = 0, alerts: int = 0, **fields: Any) -> None:
        for _ in range(predictions):
            producer.produce(PREDICTIONS, prediction(device, time.time(), **fields).value, device)
        for _ in range(alerts):
            producer.produce(ALERTS, alert(device, time.time()).value, device)
        assert producer.flush(10) == 0

    return send_


def cell(page: Page, device: str) -> Locator:
    return page.locator(f".cell[data-name={json.dumps(device)}]")  # on a map its label may be shorter


def expect(locator: Any) -> Any:
    from playwright.sync_api import expect as expect_

    return expect_(locator)


def test_a_browser_is_sent_to_the_console_and_a_program_gets_json(console: str) -> None:
    for accept in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        answer = httpx.get(f"{console}/", headers=accept)
        assert answer.json().keys() == {"service", "status", "version"}
    sent = httpx.get(f"{console}/", headers={"Accept": BROWSER})
    assert (sent.status_code, sent.headers["location"]) == (307, "/console")


def test_the_description_is_of_the_rest_interface_alone(console: str) -> None:
    paths = httpx.get(f"{console}/openapi.json").json()["paths"]
    assert paths.keys() >= {"/", "/api/local-update", "/api/global-model", "/api/models", "/api/quarantine"}
    assert not [path for path in paths if path.startswith("/console")]
    assert httpx.get(f"{console}/nowhere").headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("header", [{"Host": "rebound.example"}, {"Origin": "http://elsewhere.example"}])
def test_pages_of_other_sites_are_refused(console: str, header: dict[str, str]) -> None:
    socket = "/console/_nicegui_ws/socket.io/?EIO=4&transport=polling"
    for path in ("/console/", socket):
        assert httpx.get(f"{console}{path}", headers=header).status_code == 403
    upgrade = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }  # fmt: skip
    assert httpx.get(f"{console}{socket.replace('polling', 'websocket')}", headers=upgrade | header).status_code == 403


@pytest.fixture
def alone(tmp_path: Path, mongod: Mongod) -> Iterator[str]:
    """A server where there is no Kafka and no run."""
    nowhere = f"127.0.0.1:{free_port()}"
    settings = {"FLEAD_KAFKA__BOOTSTRAP_SERVERS": nowhere, "FLEAD_MONGODB__DATABASE": "flead_alone"}
    with serving(tmp_path, mongod, **settings) as url:
        yield url


def test_without_kafka_and_without_a_run_the_page_says_so(alone: str, open_page: OpenPage) -> None:
    page = open_page(f"{alone}/")
    expect(page.get_by_role("status")).to_contain_text("Kafka cannot be read")
    expect(page.get_by_role("status")).to_contain_text("No run in this folder")
    expect(page.locator("[data-about=devices] .headline")).to_have_text("No devices yet")
    expect(page.locator("[data-about=pipeline] .headline")).to_have_text("Kafka does not answer")
    assert page.url.startswith(f"{alone}/console")
    body = {
        "device_id": "by-rest", "sample_count": 10, "timestamp": "2024-05-31T00:00:00Z",
        "weights": {
            "weights": [[[1.0]]], "biases": [[1.0]],
            "architecture": {"input_size": 1, "hidden_sizes": [], "output_size": 1},
        },
    }  # fmt: skip
    httpx.post(f"{alone}/api/local-update", json=body).raise_for_status()
    httpx.post(f"{alone}/api/aggregate").raise_for_status()
    expect(page.locator(".model table td").first).to_have_text("1")


def test_devices_appear_and_alarms_of_one_are_one_line(console: str, open_page: OpenPage, send: Any) -> None:
    send("shown-1", predictions=2)
    send("shown-2", predictions=2, error=None)
    page = open_page(f"{console}/console/")
    expect(cell(page, "shown-1")).to_have_attribute("data-state", "ok")
    expect(cell(page, "shown-2")).to_have_attribute("aria-label", "shown-2: learning")
    send("shown-1", alerts=1)
    line = page.locator(".feed li", has_text="shown-1")
    expect(line).to_contain_text("t far from what was expected: 29, expected 20")
    expect(cell(page, "shown-1")).to_have_attribute("data-state", "noted")
    send("shown-1", alerts=2)
    expect(line.locator(".times")).to_have_attribute("aria-label", "3 alarms")
    expect(cell(page, "shown-1")).to_have_attribute("aria-label", "shown-1: 3 anomalies in the last minutes")
    expect(page.locator("[data-about=devices] .headline")).to_contain_text("need a look")


def test_a_paused_feed_stands_still(console: str, open_page: OpenPage, send: Any) -> None:
    page = open_page(f"{console}/console/")
    expect(page.locator("[data-about=devices]")).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    send("late-1", alerts=1)
    expect(page.get_by_role("button", name=re.compile("Go on, . newer"))).to_be_visible()
    expect(page.locator(".feed li", has_text="late-1")).to_have_count(0)
    page.keyboard.press("p")
    expect(page.locator(".feed li", has_text="late-1")).to_have_count(1)


def test_alarms_by_device_and_kind(console: str, open_page: OpenPage, send: Any) -> None:
    send("kind-1", alerts=1)
    page = open_page(f"{console}/console/")
    line = page.locator(".feed li", has_text="kind-1")
    expect(line).to_be_visible()
    page.get_by_label("Alarms of this kind").select_option("stuck")
    expect(line).to_have_count(0)
    page.get_by_label("Alarms of this kind").select_option("residual")
    page.get_by_label("Alarms of this device").fill("KIND-1")
    expect(page.locator(".feed li")).to_have_count(1)


def test_a_name_from_outside_is_text_wherever_it_stands(console: str, open_page: OpenPage, send: Any) -> None:
    said = {"observed": {HOSTILE: 20.5}, "expected": {HOSTILE: 20.4}, "horizon": {HOSTILE: 20.4}, "cohort": HOSTILE}
    send(HOSTILE, predictions=2, alerts=1, **said)
    page = open_page(f"{console}/console/")
    cell(page, HOSTILE).click()
    expect(page.get_by_role("dialog").get_by_role("heading", level=2)).to_have_text(HOSTILE)
    expect(page.locator(".chart canvas")).to_be_visible()
    expect(page.locator(".feed li", has_text=HOSTILE)).to_be_visible()
    page.reload()
    expect(page.get_by_role("dialog").get_by_role("heading", level=2)).to_have_text(HOSTILE)
    expect(page.locator(".chart figcaption")).to_contain_text(HOSTILE)
    assert page.evaluate("typeof pwned") == "undefined"


def test_a_device_has_an_address_that_can_be_sent_on(console: str, open_page: OpenPage, send: Any) -> None:
    send("sent-on", predictions=5, alerts=1)
    page = open_page(f"{console}/console/device/sent-on")
    opened = page.get_by_role("dialog")
    expect(opened).to_contain_text("Readings learned from")
    expect(opened.locator("canvas")).to_be_visible()
    expect(opened).to_contain_text("20.5")
    send("sent-on", predictions=1, observed={"t": 77.25})
    expect(opened).to_contain_text("77.25")
    page.keyboard.press("Escape")
    expect(opened).to_have_count(0)
    assert page.url == f"{console}/console/"
    page.go_back()
    expect(page.get_by_role("dialog")).to_be_visible()


def test_an_address_with_a_sign_that_means_itself(console: str, open_page: OpenPage, send: Any) -> None:
    send("at 100%", predictions=2)
    page = open_page(f"{console}/console/device/at 100%")
    opened = page.get_by_role("dialog")
    expect(opened.get_by_role("heading", level=2)).to_have_text("at 100%")
    expect(opened.locator("canvas")).to_be_visible()
    expect(cell(page, "at 100%")).to_have_attribute("aria-expanded", "true")


def test_a_device_that_nobody_knows(console: str, open_page: OpenPage) -> None:
    page = open_page(f"{console}/console/device/nobody")
    expect(page.get_by_role("dialog")).to_contain_text("Nothing was heard of this device")


def test_with_the_keyboard_alone(console: str, open_page: OpenPage, send: Any) -> None:
    for number in (1, 2, 3):
        send(f"key-{number}", predictions=2)
    page = open_page(f"{console}/console/")
    expect(cell(page, "key-3")).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("key-")
    expect(page.locator(".cell:visible")).to_have_count(3)
    while not page.evaluate("document.activeElement.classList.contains('cell')"):
        page.keyboard.press("Tab")
    expect(cell(page, "key-1")).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    expect(cell(page, "key-2")).to_be_focused()
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog").get_by_role("heading", level=2)).to_have_text("key-3")
    page.keyboard.press("Escape")
    expect(cell(page, "key-3")).to_be_focused()


def test_the_keyboard_goes_back_to_the_alarms_that_it_came_from(console: str, open_page: OpenPage, send: Any) -> None:
    send("back-1", predictions=2, alerts=1)
    page = open_page(f"{console}/console/")
    search = page.get_by_label("Alarms of this device")
    page.get_by_label("Find a device").fill("back-")
    search.fill("nobody")
    search.press("Escape")
    expect(search).to_have_value("")
    expect(page.get_by_label("Find a device")).to_have_value("back-")
    line = page.locator(".feed li button", has_text="back-1")
    line.focus()
    page.keyboard.press("Enter")
    expect(cell(page, "back-1")).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Escape")
    expect(line).to_be_focused()


def test_what_a_device_was_drawn_with_is_given_back(console: str, open_page: OpenPage, send: Any) -> None:
    for number in (1, 2, 3):
        send(f"drawn-{number}", predictions=2)
    page = open_page(f"{console}/console/")
    for number in (1, 2, 3):
        cell(page, f"drawn-{number}").press("Enter")  # the open one lies over it
        expect(page.locator(".chart canvas")).to_be_visible()
    expect(page.locator(".chart canvas")).to_have_count(1)
    wait_until(lambda: kept_in_memory(page, "flead-console/chart.js", "Chart") == 1)  # one is held for a frame


def kept_in_memory(page: Page, module: str, name: str) -> int:
    """How many instances of a module's class the browser holds after it has collected its garbage."""
    tools = page.context.new_cdp_session(page)
    asked = {"expression": f"import('{module}').then((found) => found.{name}.prototype)", "awaitPromise": True}
    of = tools.send("Runtime.evaluate", asked)["result"]["objectId"]
    found = tools.send("Runtime.queryObjects", {"prototypeObjectId": of})["objects"]["objectId"]
    length = {"objectId": found, "functionDeclaration": "function() { return this.length; }"}
    count = int(tools.send("Runtime.callFunctionOn", length)["result"]["value"])
    tools.detach()  # what was found is held until then
    return count


def test_the_map(console: str, open_page: OpenPage, send: Any) -> None:
    send("mapped-1", predictions=2)
    send("mapped-2", predictions=2)
    send("elsewhere", predictions=2)
    page = open_page(f"{console}/console/")
    expect(page.get_by_role("button", name="Map", exact=True)).to_have_attribute("aria-pressed", "true")
    expect(cell(page, "elsewhere")).to_be_visible()
    one, other = (cell(page, name).bounding_box() for name in ("mapped-1", "mapped-2"))
    assert one
    assert other
    assert one["x"] < other["x"]
    assert one["y"] > other["y"]
    cell(page, "mapped-1").focus()
    page.keyboard.press("ArrowUp")
    expect(cell(page, "mapped-2")).to_be_focused()


@pytest.mark.parametrize("width", [360, 768])
def test_on_a_small_screen_nothing_sticks_out(console: str, open_page: OpenPage, send: Any, width: int) -> None:
    send("a-device-with-a-long-name-" + 60 * "x", predictions=2, alerts=1)
    options: dict[str, Any] = {"viewport": {"width": width, "height": 800}, "is_mobile": True, "has_touch": True}
    page = open_page(f"{console}/console/", **options)
    expect(page.locator(".feed li").first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".feed li button").first.tap()
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_colours_follow_the_system_and_a_choice_is_remembered(console: str, open_page: OpenPage) -> None:
    page = open_page(f"{console}/console/", color_scheme="dark")
    body = page.locator("body")
    expect(body).to_have_css("background-color", "rgb(13, 16, 20)")
    page.get_by_label("Colours").select_option("light")
    expect(body).to_have_css("background-color", "rgb(245, 246, 248)")
    page.reload()
    expect(page.get_by_label("Colours")).to_have_value("light")
    expect(body).to_have_css("background-color", "rgb(245, 246, 248)")
