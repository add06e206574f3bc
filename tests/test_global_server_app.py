from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from config.aggregation import AggregationSettings
from config.child import free_port
from config.settings import MongoSettings
from flead import errors
from flead.messages import GlobalModel, LocalUpdate
from global_server import problems
from global_server.app import create_app
from global_server.bodies import MAX_BODY
from global_server.rounds import RoundService
from storage.connection import connect, open_database
from storage.rounds import RoundRepository
from tests.fixtures_http import listening
from tests.fixtures_storage import Mongo

pytestmark = pytest.mark.servers
NOW = datetime(2024, 6, 1, tzinfo=UTC)


def publish(_model: GlobalModel) -> None:
    raise errors.Unavailable("no broker here")


def body(device: str = "a", value: float = 1.0, **fields: Any) -> dict[str, Any]:
    weights = {
        "weights": [[[value], [value]]],
        "biases": [[value]],
        "architecture": {"input_size": 2, "hidden_sizes": [], "output_size": 1},
    }
    return {"device_id": device, "weights": weights, "sample_count": 10, "timestamp": "2024-05-31T00:00:00Z"} | fields


@contextmanager
def live(app: FastAPI) -> Iterator[httpx.Client]:
    """A real server on a free port, and a client of it."""
    with (
        listening(uvicorn.Config(app, log_level="warning")) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        yield client


@pytest.fixture
def client(mongo: Mongo) -> Iterator[httpx.Client]:
    service = RoundService(RoundRepository(mongo.database), AggregationSettings(min_devices=3), publish)
    service.load()
    with live(create_app(service, clock=lambda: NOW)) as client:
        yield client


def problem(response: Any, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document.keys() >= {"type", "title", "status", "detail"}
    assert document["status"] == status
    return document


def test_a_round_over_rest(client: httpx.Client) -> None:
    assert client.post("/api/aggregate").json()["status"] == "no_updates"
    answer = client.post("/api/local-update", json=body("a", 1.0)).json()
    assert answer == {
        "status": "accepted", "device_id": "a", "cohort": "default", "pending_updates": 1, "aggregation_rounds": 0,
    }  # fmt: skip
    assert client.post("/api/local-update", json=body("a", 1.0)).json()["status"] == "duplicate"
    client.post("/api/local-update", json=body("b", 4.0, sample_count=20))
    status = client.get("/api/status").json()
    assert status["pending_updates"] == 2
    assert status["device_contributions"] == {"a": 1, "b": 1}
    assert status["aggregation_config"]["min_devices"] == 3
    assert (status["status"], status["kafka"], status["mongodb"]) == ("running", "unreachable", "connected")
    made = client.post("/api/aggregate").json()
    assert (made["status"], made["round"], made["num_devices"], made["total_samples"]) == ("success", 1, 2, 30)
    model = client.get("/api/global-model").json()
    assert model["weights"]["weights"] == [[[3.0], [3.0]]]
    assert model["summary"]["total_parameters"] == 3
    assert model["aggregation_rounds"] == 1
    history = client.get("/api/history").json()
    assert history["total_rounds"] == 1
    assert history["aggregation_history"][0]["device_ids"] == ["a", "b"]
    assert history["aggregation_history"][0]["aggregation_strategy"] == "fedavg"


def test_enough_devices_make_a_round_at_once(client: httpx.Client) -> None:
    rounds = [client.post("/api/local-update", json=body(d)).json()["aggregation_rounds"] for d in "abc"]
    assert rounds == [0, 0, 1]
    assert client.get("/api/status").json()["pending_updates"] == 0


def test_a_model_that_is_known_is_not_sent_again(client: httpx.Client) -> None:
    client.post("/api/local-update", json=body("a"))
    client.post("/api/aggregate")
    first = client.get("/api/global-model")
    etag = first.headers["etag"]
    for known in (etag, f'"other", W/{etag}', "*"):
        again = client.get("/api/global-model", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
        assert first.headers["cache-control"] == again.headers["cache-control"] == "private, no-cache"
    client.post("/api/local-update", json=body("b", 4.0))
    client.post("/api/aggregate")
    assert client.get("/api/global-model", headers={"If-None-Match": etag}).status_code == 200


def test_cohorts_by_name(client: httpx.Client) -> None:
    client.post("/api/local-update", json=body("a", metadata={"cohort": "light"}))
    assert client.get("/api/status").json()["cohort"] == "light"
    client.post("/api/local-update", json=body("b"))
    assert client.get("/api/status").json()["cohort"] == "default"
    assert client.post("/api/aggregate?cohort=light").json()["cohort"] == "light"
    assert client.get("/api/global-model?cohort=light").status_code == 200
    problem(client.get("/api/global-model"), 404)


def test_root_and_docs(client: httpx.Client) -> None:
    assert client.get("/").json().keys() == {"service", "status", "version"}
    assert client.get("/docs").status_code == 200


@pytest.mark.parametrize("path", ["global-model", "status", "history"])
def test_an_unknown_cohort(client: httpx.Client, path: str) -> None:
    problem(client.get(f"/api/{path}?cohort=nobody"), 404)


def test_other_wrong_requests(client: httpx.Client) -> None:
    problem(client.get("/api/global-model"), 404)
    problem(client.get("/nowhere"), 404)
    problem(client.get("/api/history?limit=0"), 422)
    problem(client.post("/api/aggregate?cohort=nobody"), 404)
    problem(client.post("/api/local-update", content=b" " * (MAX_BODY + 1)), 413)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/status", "GET"),
        ("PUT", "/api/config", "DELETE, GET, POST"),
        ("PUT", "/api/keys/3f9c", "DELETE"),
        ("POST", "/api/models/compare", "GET"),
        ("PUT", "/login", "GET, POST"),
        ("PUT", "/docs", "GET"),
        ("PUT", "/openapi.json", "GET"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(client: httpx.Client, method: str, path: str, allowed: str) -> None:
    answer = client.request(method, path)
    problem(answer, 405)
    assert answer.headers["allow"] == allowed


def test_json_that_is_not_said_to_be_json_is_told_how_to_say_so(client: httpx.Client) -> None:
    """As `curl -d` sends it."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for path in ("/api/config", "/api/quarantine/mote-7"):
        for headers in (form, {}):
            told = problem(client.post(path, content=b'{"reason": "x"}', headers=headers), 422)
            assert "Content-Type: application/json" in told["detail"]


def test_every_error_of_ours_has_a_status() -> None:
    def tree(kind: type[errors.FleadError]) -> Iterator[type[errors.FleadError]]:
        yield kind
        for child in kind.__subclasses__():
            if child.__module__ == errors.__name__:
                yield from tree(child)

    assert set(tree(errors.FleadError)) == set(problems.STATUS)


def test_openapi_names_every_answer(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert {"LocalUpdate", "WeightsMessage", "Problem", "Violation"} <= schemas.keys()
    text = json.dumps(document)
    assert all(f'"{name}"' in text for name in ("404", "413", "422", "503"))
    references = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert references <= schemas.keys()
    assert "HTTPValidationError" not in text


WRONG = [
    b"", b"null", b"[]", b"{", b"NaN", b"\xff\xfe", b'"' + b"\\ud800" + b'"', b"[" * 100_000, b'{"a":' * 50_000,
    json.dumps(body(sample_count=float("nan"))).encode(),
    json.dumps(body(value=float("inf"))).encode(),
    json.dumps(body()).replace("1.0", "1e400").encode(),
    json.dumps(body()).replace("10", "9" * 5_000).encode(),
    json.dumps(body(sample_count=2**70)).encode(),
    json.dumps(body(sample_count=0)).encode(),
    json.dumps(body(sample_count=-5)).encode(),
    json.dumps(body(device_id="")).encode(),
    json.dumps(body(device_id="a\x00b")).encode(),
    json.dumps(body(device_id="x" * 129)).encode(),
    json.dumps(body(timestamp="yesterday")).encode(),
    json.dumps(body(timestamp="2024-01-01T00:00:00")).encode(),
    json.dumps(body(timestamp="0001-01-01T00:00:00+14:00")).encode(),
    json.dumps(body(metadata={"cohort": ["x"]})).encode(),
    json.dumps(body(metadata={"samples_seen": 2**70})).encode(),
    json.dumps(body(metadata={"base_version": 7})).encode(),
    json.dumps(body(value=1e9)).encode(),
    json.dumps(body(weights={"weights": [], "biases": [], "architecture": {"input_size": 10**9}})).encode(),
]  # fmt: skip


@pytest.mark.parametrize("raw", WRONG, ids=range(len(WRONG)))
def test_wrong_bodies(client: httpx.Client, raw: bytes) -> None:
    document = problem(client.post("/api/local-update", content=raw), 422)
    assert document["errors"]


def test_odd_but_right_bodies(client: httpx.Client) -> None:
    odd = {"x": 2**70, "$y": {"": [None] * 3}, "z\x00": "😀"}
    assert client.post("/api/local-update", json=body("a", metadata=odd)).status_code == 200
    assert client.post("/api/local-update", json=body("ж·$.#", later=1, metadata={"cohort": "$.#"})).status_code == 200
    assert client.get("/api/status", params={"cohort": "$.#"}).json()["pending_updates"] == 1


_leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
_json = st.recursive(
    _leaf,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)
_fields = ["device_id", "weights", "sample_count", "timestamp", "metadata"]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.dictionaries(st.sampled_from(_fields), _json, min_size=1),
    inside=st.none() | _json,
    cut=st.none() | st.integers(0, 150),
)
def test_never_5xx(client: httpx.Client, changes: dict[str, Any], inside: Any, cut: int | None) -> None:
    sent = body() | changes
    if inside is not None and "weights" not in changes:
        sent["weights"] = sent["weights"] | {"weights": inside}
    response = client.post("/api/local-update", content=json.dumps(sent).encode()[:cut])
    if response.status_code != 200:
        problem(response, 422)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(max_size=200))
def test_never_5xx_for_bytes(client: httpx.Client, raw: bytes) -> None:
    problem(client.post("/api/local-update", content=raw), 422)


def test_without_mongodb_503_and_what_is_known_stays_readable(mongo: Mongo) -> None:
    settings = MongoSettings(
        uri=SecretStr(f"mongodb://127.0.0.1:{free_port()}/?directConnection=true&serverSelectionTimeoutMS=100")
    )
    with connect(settings) as gone, ExitStack() as stack:
        service = RoundService(RoundRepository(open_database(gone, settings)), AggregationSettings(), publish)
        client = stack.enter_context(live(create_app(service, clock=lambda: NOW)))
        for response in (client.post("/api/local-update", json=body()), client.post("/api/aggregate")):
            problem(response, 503)
            assert response.headers["retry-after"]
        problem(client.get("/api/history"), 503)
        assert client.get("/api/status").json()["mongodb"] == "unreachable"
        problem(client.post("/api/local-update", content=b"?"), 422)


def test_the_message_and_the_documented_schema_are_one(client: httpx.Client) -> None:
    documented = client.get("/openapi.json").json()["components"]["schemas"]["LocalUpdate"]
    assert set(documented["required"]) == set(LocalUpdate.model_json_schema()["required"])
