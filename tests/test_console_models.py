"""What the console shows of versions and quarantine, and what people may do there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import pytest
from pydantic import SecretStr
from starlette.requests import Request

from config.child import free_port
from config.settings import KafkaSettings, MongoSettings, ServerSettings, Settings
from flead.errors import BadCredentials
from global_server.access.audit import Audit
from global_server.access.guard import Guard
from global_server.access.passwords import hashed
from global_server.app import create_app
from orchestration.console import desk_of, mount_console
from storage.access import AccessRepository, AuditRepository
from storage.connection import connect, open_database
from storage.embedded import Mongod
from storage.schema import apply_schema
from tests.fixtures_browser import OpenPage
from tests.fixtures_http import live
from tests.fixtures_storage import Mongo
from tests.test_console_pages import BROWSER, HOSTILE, expect
from tests.test_rollout import Fleet
from visualization.console.desk import Person

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

pytestmark = pytest.mark.servers

T = TypeVar("T")

PASSWORD = "correct horse battery"  # noqa: S105
START = datetime.now(UTC) - timedelta(hours=2)


class FleetOfToday(Fleet):
    """Twenty devices whose rounds are of the last hours."""

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.second)

    def begin_trial(self) -> int:
        """Make rounds until a version is on trial; its number."""
        while not (self.trial or self.round()):
            pass
        return self.trial or self.begin_trial()

    @property
    def trial(self) -> int | None:
        found = self.service.versions.trial("default", self.now)
        return found["version"] if found else None


@dataclass
class Served:
    """A server that asks people to log in, its fleet, and its audit log."""

    url: str
    fleet: FleetOfToday
    users: AccessRepository
    guard: Guard
    log: AuditRepository

    def noted(self) -> tuple[str, str, str, str]:
        """The newest entry about a model or a device."""
        newest = next(one for one in self.log.newest(50) if one["action"].startswith(("model", "quarantine")))
        return newest["who"], newest["action"], newest["target"], newest["outcome"]


@pytest.fixture(scope="module")
def served(mongod: Mongod, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    mongodb = MongoSettings(uri=SecretStr(mongod.uri), database="flead_console_models")
    kafka = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}")  # nobody is there
    with connect(mongodb) as client:
        database = open_database(client, mongodb)
        apply_schema(database, mongodb)
        users, log = AccessRepository(database), AuditRepository(database)
        for name, role in (("ada", "operator"), ("eve", "operator"), ("vic", "viewer")):
            users.add_user(name, role, hashed(PASSWORD))
        fleet, audit = FleetOfToday(Mongo(mongodb, database)), Audit(log)
        guard = Guard(audit, ServerSettings(access="required"), users, SecretStr("a secret of thirty-two characters"))
        app = create_app(fleet.service, guard=guard, audit=audit, site="/console")
        settings = Settings(run_dir=tmp_path_factory.mktemp("models"), kafka=kafka)
        with mount_console(app, fleet.service, guard, audit, settings, {}), live(app) as url:
            yield Served(url, fleet, users, guard, log)
        client.drop_database(mongodb.database)


@pytest.fixture
def enter(served: Served, open_page: OpenPage) -> Any:
    """Logs somebody in, as people do, and gives the console."""

    def enter_(name: str, **options: Any) -> Page:
        page = open_page(f"{served.url}/login?next=/console/", **options)
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        expect(page.locator(".versions")).to_be_visible()
        return page

    return enter_


def row(page: Page, version: int) -> Locator:
    return page.locator(f".versions tr[data-version='{version}']")


def forge(page: Page, wish: dict[str, Any]) -> None:
    """Ask for something as the page's own button would, whether there is one or not."""
    page.evaluate(f"getElement(+document.querySelector('.console').id.slice(1)).$emit('act', {json.dumps(wish)})")


def test_who_may_only_look_sees_the_trial_and_no_buttons_and_is_refused_where_he_asks(
    served: Served, enter: Any
) -> None:
    version = served.fleet.begin_trial()
    page = enter("vic")
    expect(page.locator(".person")).to_contain_text("vic, viewer")
    on_trial = page.get_by_role("region", name="Version on trial")
    expect(on_trial).to_contain_text(f"Version {version}")
    expect(on_trial).to_contain_text("0 of 2")
    expect(on_trial).to_contain_text("more devices to report")
    expect(row(page, version)).to_have_attribute("data-stage", "on trial")
    expect(page.locator("[data-about=model]")).to_contain_text(f"Version {version} is on trial with 2 of 20 devices.")
    served.fleet.send(devices=sorted(served.fleet.canaries())[:1], loss=lambda _: 1.5)
    expect(on_trial).to_contain_text("1 of 2")
    expect(on_trial).to_contain_text("+50 %")
    assert page.get_by_role("button", name="Promote").or_(page.get_by_role("button", name="Roll back")).count() == 0
    forge(page, {"action": "promote", "cohort": "default", "version": version})
    expect(page.get_by_role("alert")).to_contain_text("vic is viewer, and may only look on")
    assert served.fleet.trial == version
    refused = "refused: vic is viewer, and may only look on"
    assert served.noted() == ("vic", "model.promote", f"default#{version}", refused)


def test_an_operator_promotes_with_the_keyboard_and_rolls_back(served: Served, enter: Any) -> None:
    version = served.fleet.begin_trial()
    stable = served.fleet.version
    page = enter("ada", color_scheme="dark")
    button = page.get_by_role("button", name=f"Promote version {version}").first
    button.focus()
    page.keyboard.press("Enter")
    sure = page.get_by_role("dialog", name=f"Make version {version} the stable one?")
    expect(sure.get_by_role("button", name="Cancel")).to_be_focused()
    page.keyboard.press("Escape")
    expect(sure).to_have_count(0)
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text(f"Version {version} of default is the stable one now.")
    expect(row(page, version)).to_have_attribute("data-stage", "stable")
    expect(row(page, version)).to_contain_text("promoted by ada")
    assert served.noted() == ("ada", "model.promote", f"default#{version}", "done")
    page.get_by_role("button", name=f"Roll back version {version}").click()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(row(page, version)).to_have_attribute("data-stage", "rolled back")
    expect(row(page, stable)).to_have_attribute("data-stage", "stable")
    assert served.fleet.version == stable
    assert served.noted() == ("ada", "model.rollback", f"default#{version}", "done")
    expect(page.locator("[data-about=model]")).to_contain_text(f"Version {version} was taken back")
    forge(page, {"action": "roll_back", "cohort": "default", "version": version})
    expect(page.get_by_role("alert")).to_contain_text("is neither the stable one nor on trial")
    for wrong in ({"action": "promote", "cohort": "default", "version": "1"}, {"action": "drop"}, None):
        forge(page, wrong)  # type: ignore[arg-type]
        expect(page.get_by_role("alert")).to_contain_text("reload it")


def test_any_two_versions_are_compared(served: Served, enter: Any) -> None:
    version = served.fleet.begin_trial()
    page = enter("vic")
    page.get_by_label("Version", exact=True).select_option("1")
    page.get_by_label("Other version").select_option(str(version))
    page.get_by_role("button", name="Compare").click()
    found = page.get_by_role("group", name=f"Version {version} against version 1")
    expect(found).to_contain_text("cosine")
    expected = served.fleet.service.versions.compare("default", 1, version)
    expect(found).to_contain_text(f"distance {expected.distance:.4f}")
    expect(found.locator("li")).to_have_count(len(expected.layers))


def test_quarantine_is_there_while_somebody_is_in_it(served: Served, enter: Any) -> None:
    served.fleet.begin_trial()
    page = enter("ada", viewport={"width": 360, "height": 800})
    assert page.get_by_role("heading", name="Quarantine").count() == 0
    for device in (HOSTILE, "d7"):
        served.fleet.service.quarantine.put(device, "default", f"against the others {HOSTILE}", "eve", served.fleet.now)
    line = page.locator(".quarantine tbody tr", has_text="d7")
    expect(line).to_contain_text("waits for a decision by eve")
    expect(page.locator(".quarantine td", has_text=HOSTILE).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.get_by_role("button", name="Keep d7 out").click()
    page.get_by_role("dialog", name="Keep d7 out?").get_by_role("button", name="Keep out").click()
    expect(line).to_contain_text("kept out for good by ada")
    assert served.noted() == ("ada", "quarantine.reject", "d7", "done")
    for device in ("d7", HOSTILE):
        page.get_by_role("button", name=f"Let {device} in again").click()
        page.get_by_role("dialog").get_by_role("button", name="Let in again").click()
        expect(page.get_by_role("alert")).to_contain_text(f"{device} is let in again.")
    expect(page.locator(".quarantine")).to_have_count(0)
    assert served.noted() == ("ada", "quarantine.accept", HOSTILE, "done")
    assert page.evaluate("typeof pwned") == "undefined"


def test_a_page_that_is_still_open_ends_with_the_log_in_that_opened_it(served: Served, enter: Any) -> None:
    served.fleet.begin_trial()
    page = enter("ada")
    other = page.context.new_page()
    other.goto(f"{served.url}/console/device/d7")
    expect(other.get_by_role("dialog", name="d7")).to_be_visible()
    page.get_by_role("button", name="Log out").click()
    page.wait_for_url(f"{served.url}/login")
    other.wait_for_url(f"{served.url}/login?next=/console/device/d7")
    expect(other.get_by_label("Password")).to_be_visible()


def test_who_was_removed_since_sees_no_more_and_may_do_nothing(served: Served, enter: Any) -> None:
    version = served.fleet.begin_trial()
    asked = {"username": "eve", "password": PASSWORD}
    token = httpx.post(f"{served.url}/api/token", json=asked).json()["access_token"]
    page = enter("eve")
    served.users.remove_user("eve")
    served.guard.refresh()
    page.wait_for_url(f"{served.url}/login?next=/console/")
    headers = [(b"authorization", f"Bearer {token}".encode())]
    request = Request({"type": "http", "headers": headers, "method": "GET", "path": "/console/"})
    desk = desk_of(served.fleet.service, served.guard, Audit(served.log))
    wish = {"action": "promote", "cohort": "default", "version": version}
    with pytest.raises(BadCredentials, match="log in again"):
        in_a_thread(desk.act(request, wish))
    assert not in_a_thread(desk.may_look(request))
    assert served.fleet.trial == version
    assert served.noted()[:3] == ("?", "model.promote", f"default#{version}")


def in_a_thread(asked: Coroutine[Any, Any, T]) -> T:
    """Waits for something where no loop runs: in this thread Playwright's does."""
    with ThreadPoolExecutor() as pool:
        return pool.submit(asyncio.run, asked).result()


def test_where_access_is_open_everybody_may_act_and_nobody_is_named(served: Served) -> None:
    desk = desk_of(served.fleet.service, Guard(Audit()), Audit())
    request = Request({"type": "http", "headers": [], "method": "GET", "path": "/console/"})
    assert in_a_thread(desk.person(request)) == Person("local", "admin", may_act=True, signed_in=False)


def test_nobody_sees_it_without_logging_in_and_no_site_in_a_frame(served: Served) -> None:
    sent = httpx.get(f"{served.url}/console/", headers={"Accept": BROWSER})
    assert (sent.status_code, sent.headers["location"]) == (303, "/login?next=/console/")
    asked = {"username": "vic", "password": PASSWORD}
    token = httpx.post(f"{served.url}/api/token", json=asked).json()["access_token"]
    page = httpx.get(f"{served.url}/console/", headers={"Authorization": f"Bearer {token}"})
    assert page.status_code == 200
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-frame-options"] == "DENY"
