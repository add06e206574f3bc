"""The federation is operated from the command line: versions, quarantine, rules; by asking a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from config.aggregation import AggregationSettings
from config.child import free_port
from flead import network
from flead.network import Architecture
from flead.signatures import public_text
from global_server.app import create_app
from global_server.backups import Backups
from global_server.rounds import RoundService
from storage.rounds import RoundRepository
from tests.fixtures_cli import Flead
from tests.fixtures_http import live
from tests.fixtures_storage import Mongo

pytestmark = pytest.mark.servers
SIZES = Architecture(2, (3,), 1)


@pytest.fixture
def server(mongo: Mongo, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    key = Ed25519PrivateKey.generate()
    backups = Backups(run_dir, keep=5)
    service = RoundService(
        RoundRepository(mongo.database), AggregationSettings(), lambda _: None, key=key, on_stable=backups.write
    )
    service.load()
    app = create_app(service, public_key=public_text(key.public_key()))
    with live(app) as url, httpx.Client(base_url=url) as client:
        monkeypatch.setenv("FLEAD_SERVER__PORT", url.rpartition(":")[2])
        for value in (1.0, 2.0, 3.0):
            make_a_round(client, value)
            service.publish_pending()
        yield client


def make_a_round(client: httpx.Client, value: float) -> None:
    weights = network.to_message(np.full(SIZES.parameter_count, value), SIZES)
    sent = {"device_id": "a", "weights": weights, "sample_count": 10, "timestamp": datetime.now(UTC).isoformat()}
    assert client.post("/api/local-update", json=sent).json()["status"] == "accepted"
    assert client.post("/api/aggregate").json()["status"] == "success"


class TestVersions:
    def test_are_listed_compared_and_taken_back(self, server: httpx.Client, flead: Flead) -> None:
        said = json.loads(flead("models", "list", "--json").out)
        assert [(one["version"], one["stage"]) for one in said["models"]] == [(v, "stable") for v in (3, 2, 1)]
        assert "stable 3, on trial none" in flead("models", "list").out
        compared = json.loads(flead("models", "compare", 1, 3, "--json").out)
        assert compared["distance"] == pytest.approx(2.0 * SIZES.parameter_count**0.5)
        assert flead("models", "rollback", 3).err == "version 3 of default is rolled_back\n"
        assert server.get("/api/global-model").json()["aggregation_rounds"] == 2
        assert flead("models", "promote", 1).code == 0
        assert server.get("/api/global-model").json()["aggregation_rounds"] == 1
        refused = flead("models", "promote", 1)
        assert (refused.code, refused.err) == (1, "flead: version 1 of 'default' is the stable one already\n")
        assert flead("models", "rollback", 99).err.startswith("flead: cohort 'default' has no version 99")

    def test_a_backup_comes_back_with_one_command(self, server: httpx.Client, flead: Flead, run_dir: Path) -> None:
        before = server.get("/api/global-model").json()
        restored = json.loads(flead("models", "restore", "--json").out)
        assert (restored["version"], restored["parent"]) == (4, 3)
        assert server.get("/api/global-model").json()["weights"] == before["weights"]
        newest = Backups(run_dir, keep=5).newest("default")
        forged = run_dir / "forged.json"
        forged.write_text(newest.read_text().replace('"version":3', '"version":7'))
        assert "is not signed by a server that is trusted here" in flead("models", "restore", forged).err
        assert flead("models", "restore", "--cohort", "x").err.startswith("flead: there is no backup of cohort 'x'")


class TestQuarantine:
    def test_a_device_is_kept_out_and_let_in(self, server: httpx.Client, flead: Flead) -> None:
        assert flead("quarantine", "list").out == "no device is kept out\n"
        assert flead("quarantine", "add", "a", "--reason", "its sensor was moved").code == 0
        assert "its sensor was moved" in flead("quarantine", "list").out
        sent = {
            "weights": network.to_message(np.full(SIZES.parameter_count, 9.0), SIZES),
            "sample_count": 1,
            "device_id": "a",
        }
        at = datetime.now(UTC).isoformat()
        assert server.post("/api/local-update", json=sent | {"timestamp": at}).json()["status"] == "quarantined"
        assert flead("quarantine", "accept", "a").err == "a is trusted\n"
        assert server.post("/api/local-update", json=sent | {"timestamp": at}).json()["status"] == "accepted"
        assert "is not in quarantine" in flead("quarantine", "reject", "a").err


class TestRules:
    def test_change_while_the_server_runs(self, server: httpx.Client, flead: Flead) -> None:
        changed = json.loads(flead("rules", "set", '{"strategy": {"name": "median"}}').out)
        assert changed["strategy"] == {"name": "median"}
        make_a_round(server, 5.0)
        newest = server.get("/api/history").json()["aggregation_history"][-1]
        assert newest["aggregation_strategy"] == "median"
        assert json.loads(flead("rules", "show").out)["changed"]["strategy"] == {"name": "median"}
        assert json.loads(flead("rules", "reset").out)["strategy"] == {"name": "fedavg"}

    def test_what_cannot_be_is_refused_in_one_line(self, server: httpx.Client, flead: Flead) -> None:
        assert flead("rules", "set", "{").err.startswith("flead: that is no JSON")
        assert "strategy" in flead("rules", "set", '{"strategy": {"name": "best"}}').err
        assert "rollout.share" in flead("rules", "set", '{"rollout": {"share": 7}}').err


def test_without_a_server_one_line_says_so(flead: Flead, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEAD_SERVER__PORT", str(free_port()))
    assert "start one with `flead up`" in flead("models", "list").err
