"""`flead mart` as somebody uses it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import SecretStr

from config.child import free_port
from config.settings import MartSettings, MongoSettings
from storage.connection import connect, open_database
from storage.running import database_of
from tests.fixtures_cli import Flead
from tests.fixtures_mart import Mart, environment, following, reading, wait_level
from tests.fixtures_storage import Mongo
from visualization.mart import describe

pytestmark = pytest.mark.servers


@pytest.fixture
def pointed(mart: Mart, mongo: Mongo, monkeypatch: pytest.MonkeyPatch) -> Mart:
    """Settings that lead to the tests' servers."""
    for name, value in environment(mart, mongo.settings).items():
        monkeypatch.setenv(name, value)
    return mart


def test_a_mart_is_made_anew_and_says_how_it_is(pointed: Mart, mongo: Mongo, flead: Flead) -> None:
    mongo.database.device_data.insert_many([reading(n) for n in range(20)])
    made = flead("mart", "rebuild")
    assert (made.code, made.out) == (0, "")
    assert "made anew" in made.err
    assert pointed.count("device_data") == 20
    shown = json.loads(flead("mart", "status", "--json").out)
    assert (shown["rejected"], shown["to_copy"]) == (0, None)
    with following(pointed, mongo.database):
        wait_level(pointed, mongo.database)
        assert "0.0 s behind MongoDB" in flead("mart", "status").out


def test_what_the_follower_is_asked_for(
    pointed: Mart, mongo: Mongo, flead: Flead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("visualization.mart.follower.LOCK_WAIT_S", 0.2)
    with following(pointed, mongo.database):
        asked = flead("mart", "rebuild")
        assert asked.code == 0
        assert "the follower that runs makes it anew" in asked.err
        second = flead("mart", "follow")
    assert second.code == 1
    assert "another follower writes this mart" in second.err


def test_a_run_that_is_off_gets_its_servers_for_the_time_being(
    run_dir: Path, flead: Flead, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("FLEAD_MART__PORT", str(port))
    with database_of(MongoSettings(port=free_port()), run_dir, create=True) as mongodb, connect(mongodb) as client:
        open_database(client, mongodb).device_data.insert_one(reading(1))
    assert flead("mart", "rebuild").code == 0
    shown = flead("mart", "status").out
    assert "behind MongoDB" in shown
    assert "nobody follows" in shown
    plain, secret = flead("mart", "uri"), flead("mart", "uri", "--password")
    assert plain.out == f"postgresql://flead_reader@127.0.0.1:{port}/flead\n"
    held = (run_dir / "secrets" / "postgres-flead_reader.password").read_text().strip()
    assert str(run_dir / "secrets") in plain.err
    assert held not in plain.out + plain.err
    assert held in secret.out


def test_an_address_of_ones_own_is_printed_without_its_password(
    run_dir: Path, flead: Flead, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = MartSettings(uri=SecretStr("postgresql://me:very-secret@127.0.0.1/figures"))
    assert own.uri is not None
    monkeypatch.setenv("FLEAD_MART__URI", own.uri.get_secret_value())
    assert flead("mart", "uri", "--owner").out == "postgresql://me@127.0.0.1:5432/figures\n"
    assert not run_dir.exists()


def test_the_page_about_the_mart_is_current() -> None:
    page = Path(describe.__file__).parents[2] / "docs" / "mart.md"
    assert describe.tables() in page.read_text(), "run: python -m visualization.mart.describe docs/mart.md"
