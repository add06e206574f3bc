"""Superset as FLEAD runs it: set up once, closed to strangers, and as the files say."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.fixtures_cli import Flead
from tests.fixtures_mart import Mart
from tests.fixtures_superset import Served
from visualization.mart.connection import connect
from visualization.mart.schema import ensure
from visualization.mart.server import Role
from visualization.superset import assets, service

pytestmark = pytest.mark.servers

Ask = Callable[..., Any]


@pytest.fixture
def empty(mart: Mart) -> Mart:
    """A mart with its tables and no rows."""
    with connect(mart.uri()) as connection:
        ensure(connection)
    return mart


@pytest.fixture
def of_superset(superset: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let commands be about this Superset."""
    settings = superset.settings
    monkeypatch.setenv("FLEAD_RUN_DIR", str(settings.run_dir))
    monkeypatch.setenv("FLEAD_MART__PORT", str(settings.mart.port))
    monkeypatch.setenv("FLEAD_DASHBOARDS__PORT", str(settings.dashboards.port))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the files, to be written to."""
    return Path(shutil.copytree(assets.FOLDER, tmp_path / "assets"))


def counts(mart: Mart) -> list[tuple[Any, ...]]:
    """How much Superset holds."""
    tables = ("dbs", "tables", "table_columns", "sql_metrics", "slices", "dashboards", "dashboard_slices", "ab_user")
    return [row for table in tables for row in mart.ask(f"SELECT count(*) FROM {table}", role=Role.SUPERSET)]  # noqa: S608


def test_what_is_changed_in_the_browser_is_that_line_in_the_files_and_set_up_undoes_it(
    superset: Served, postgres: Mart, copy: Path
) -> None:
    before = counts(postgres)
    with connect(postgres.uri(Role.SUPERSET)) as connection:
        connection.execute("UPDATE dashboards SET dashboard_title = 'My fleet' WHERE slug = 'fleet'")
    file = copy / "dashboards" / "fleet.yaml"
    lines = file.read_text().splitlines()
    with superset.as_admin() as asked:
        assert assets.write_back(assets.unpack(asked.export()), copy) == ["dashboards/fleet.yaml"]
    changed = file.read_text().splitlines()
    assert [pair for pair in zip(lines, changed, strict=True) if pair[0] != pair[1]] == [
        ("dashboard_title: Fleet", "dashboard_title: My fleet")
    ]
    service.set_up(superset.settings)
    assert counts(postgres) == before
    with superset.as_admin() as asked:
        assert assets.write_back(assets.unpack(asked.export())) == []


def test_the_password_is_shown_once_and_kept_for_the_owner(superset: Served) -> None:
    password = service.admin_password(superset.settings).get_secret_value()
    [line] = superset.shown
    assert password in line
    again: list[str] = []
    service.prepare(superset.settings, again.append)
    assert again == []
    for path in (superset.settings.run_dir / "secrets").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("password", ["admin", "", "general"])
def test_strangers_are_refused(superset: Served, password: str) -> None:
    login = {"username": "admin", "password": password, "provider": "db"}
    answer = httpx.post(f"{superset.url}/api/v1/security/login", json=login)
    assert answer.is_client_error
    assert "access_token" not in answer.text
    assert httpx.post(f"{superset.url}/api/v1/chart/data", json={}).status_code == httpx.codes.UNAUTHORIZED
    assert httpx.get(f"{superset.url}/api/v1/assets/export/").status_code == httpx.codes.UNAUTHORIZED


def test_secrets_are_in_no_log_and_on_no_command_line(superset: Served, postgres: Mart) -> None:
    files = [path for path in (postgres.run_dir / "secrets").iterdir() if path.suffix != ".json"]
    secrets = [path.read_text().strip() for path in files]
    assert len(secrets) >= 5
    process = psutil.Process(superset.pid)
    lines = [" ".join(one.cmdline()) for one in (process, *process.children(recursive=True))]
    said = superset.log.read_text()
    for secret in secrets:
        assert secret not in said
        assert not any(secret in line for line in lines)


def test_superset_holds_no_password_of_the_mart(superset: Served, postgres: Mart) -> None:
    found = postgres.ask("SELECT sqlalchemy_uri, password FROM dbs", role=Role.SUPERSET)
    assert found == [("postgresql+psycopg2://flead_reader@mart/flead", None)]


def test_everything_superset_keeps_is_in_postgresql(superset: Served) -> None:
    assert not [path for path in superset.settings.run_dir.rglob("*") if path.suffix in {".db", ".sqlite"}]


def test_pages_may_fetch_nothing_from_elsewhere(superset: Served) -> None:
    policy = httpx.get(f"{superset.url}/login/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy


@pytest.mark.usefixtures("of_superset")
class TestCommands:
    def test_every_chart_answers_over_an_empty_mart(self, flead: Flead, empty: Mart) -> None:
        ended = flead("dashboards", "check", "--json")
        assert ended.code == 0
        told = json.loads(ended.out)
        assert len(told) == sum(assets.kind_of(path) == "charts" for path in assets.read())
        assert {one["dashboard"] for one in told} == {"Fleet", "Device", "Global model", "Anomalies", "Pipeline"}
        assert all(one["ok"] and one["took_s"] > 0.0 for one in told)

    def test_check_fails_where_charts_do(self, flead: Flead, mart: Mart) -> None:
        ended = flead("dashboards", "check")
        assert ended.code == 1
        assert "does not exist" in ended.out
        assert "0 failed" not in ended.err

    def test_an_export_without_a_change_changes_no_file(self, flead: Flead) -> None:
        ended = flead("dashboards", "export", "--json")
        assert ended.code == 0
        assert json.loads(ended.out)["changed"] == []

    def test_open_tells_where_and_who(self, flead: Flead, superset: Served) -> None:
        ended = flead("dashboards", "open", "--print")
        assert ended.code == 0
        assert ended.out.strip() == f"{superset.url}/dashboard/list/"
        assert service.admin_password(superset.settings).get_secret_value() not in ended.out + ended.err


@pytest.mark.parametrize("command", ["check", "export"])
def test_where_nothing_was_set_up_a_command_says_so(flead: Flead, run_dir: Path, command: str) -> None:
    ended = flead("dashboards", command)
    assert ended.code == 1
    assert "no dashboards have been set up" in ended.err
    assert not run_dir.exists()
