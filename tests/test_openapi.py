"""Everything that the OpenAPI document promises, held against a real server by schemathesis; and the plain contract."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema_rs import Draft202012Validator, ValidationError

from config.settings import PROJECT
from global_server.access import guard
from storage.access import AccessRepository
from tests.fixtures_storage import Mongo
from tests.test_access import KEPT, Server, serving

pytestmark = pytest.mark.servers
HERE = Path(__file__).parent
EXAMPLES = 3
"""Random requests of each operation, beside those that try the limits of every field."""


@pytest.fixture(params=["open", "required"])
def server(request: pytest.FixtureRequest, mongo: Mongo, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that has made a round, and whose limits are out of the way."""
    monkeypatch.setattr(guard, "REFUSALS_PER_MINUTE", 10**6)
    AccessRepository(mongo.database).add_user("admin", "admin", KEPT)
    with serving(mongo, access=request.param, requests_per_minute=10**6, logins_per_minute=10**6) as server:
        if request.param == "required":
            server.http.headers.update(server.token("admin"))
        for device in "abc":
            server.send(device, {}).raise_for_status()
        server.http.post("/api/aggregate").raise_for_status()
        yield server


def operations(server: Server) -> dict[str, dict[str, Any]]:
    paths = server.http.get("/openapi.json").json()["paths"]
    return {f"{method} {path}": found for path, item in paths.items() for method, found in item.items()}


def test_the_server_does_what_its_description_says(server: Server, tmp_path: Path) -> None:
    """No 5xx, no undocumented status, header or content type; what is wrong is refused, and so is who may not."""
    required = "authorization" in server.http.headers
    # The limits of every field are the same in both modes, and take the longest.
    phases = "examples,fuzzing" if required else "examples,coverage,fuzzing"
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml"),
        "run", f"{str(server.http.base_url).rstrip('/')}/openapi.json",
        "--checks", "all", "--phases", phases, "--max-examples", str(EXAMPLES),
        "--generation-deterministic", "--suppress-health-check", "all",
        "--warnings", "off", "--no-color", "--continue-on-failure",
    ]  # fmt: skip
    if required:
        command += ["--header", f"Authorization: {server.http.headers['authorization']}"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "SCHEMATHESIS_HOOKS": "tests.schemathesis_hooks"}
    ended = subprocess.run(  # noqa: S603
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240, env=environment
    )
    shown = f"{ended.stdout[-20_000:]}\n{ended.stderr[-2_000:]}"
    assert ended.returncode == 0, shown
    tested = re.search(r"Tested: (\d+)", ended.stdout)
    assert tested, shown
    assert int(tested[1]) == len(operations(server))


def test_every_operation_is_named_tagged_and_shown_by_example(server: Server) -> None:
    found = operations(server)
    components = server.http.get("/openapi.json").json()["components"]
    names = [operation["operationId"] for operation in found.values()]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("[a-z_]+", name) for name in names)
    for name, operation in found.items():
        assert operation["tags"], name
        assert operation["description"], name
        parts = {status: answer.get("content", {}) for status, answer in operation["responses"].items()}
        parts["request"] = operation.get("requestBody", {}).get("content", {})
        for part, contents in parts.items():
            for kind, content in contents.items():
                if kind.endswith("json"):
                    validate(content["example"], {**content["schema"], "components": components}, (name, part))


def validate(example: Any, schema: dict[str, Any], where: object) -> None:
    """Hold an example against a schema."""
    try:
        Draft202012Validator(schema).validate(example)
    except ValidationError as error:
        pytest.fail(f"{where}: {error.message} at {error.instance_path}")


def test_a_client_of_the_plain_contract(mongo: Mongo) -> None:
    """Written from the paragraph on REST in the design alone."""
    with serving(mongo, access="open") as server, httpx.Client(base_url=server.http.base_url) as http:
        about = http.get("/").json()
        assert about.keys() >= {"service", "status", "version"}
        assert http.get("/docs").status_code == 200
        assert http.post("/api/aggregate").json().keys() >= {"status", "message"}
        architecture = {"input_size": 2, "hidden_sizes": [3], "output_size": 1}
        for device, value, count in (("mote-1", 1.0, 100), ("mote-2", 4.0, 200)):
            update = {
                "device_id": device,
                "weights": {
                    "weights": [[[value] * 3] * 2, [[value]] * 3],
                    "biases": [[value] * 3, [value]],
                    "architecture": architecture,
                },
                "sample_count": count,
                "timestamp": "2004-03-04T00:00:00.154+00:00",
            }
            http.post("/api/local-update", json=update).raise_for_status()
        status = http.get("/api/status").json()
        assert status.keys() >= {
            "status", "pending_updates", "aggregation_rounds", "unique_devices", "device_contributions",
            "aggregation_config", "timestamp",
        }  # fmt: skip
        assert (status["pending_updates"], status["aggregation_rounds"], status["unique_devices"]) == (2, 0, 2)
        assert status["device_contributions"] == {"mote-1": 1, "mote-2": 1}
        assert http.post("/api/aggregate").json()["status"] != "no_updates"
        model = http.get("/api/global-model").json()
        assert model.keys() >= {"weights", "summary", "aggregation_rounds", "timestamp"}
        assert model["weights"]["weights"] == [[[3.0] * 3] * 2, [[3.0]] * 3]
        assert model["weights"]["architecture"].items() >= architecture.items()
        assert model["summary"]["architecture"].items() >= architecture.items()
        assert model["summary"]["total_parameters"] == 13
        assert model["aggregation_rounds"] == 1
        history = http.get("/api/history").json()
        assert history["total_rounds"] == 1
        (made,) = history["aggregation_history"]
        assert (made["num_devices"], made["total_samples"]) == (2, 300)
        assert sorted(made["device_ids"]) == ["mote-1", "mote-2"]
        assert made.keys() >= {"timestamp", "aggregation_strategy"}
        wrong = http.post("/api/local-update", json={"device_id": "mote-3"})
        assert wrong.status_code == 422
        assert wrong.headers["content-type"] == "application/problem+json"
        assert wrong.json().keys() >= {"type", "title", "status", "detail"}
        assert http.get("/api/status", params={"cohort": "nobody"}).status_code == 404
