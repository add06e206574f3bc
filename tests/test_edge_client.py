from __future__ import annotations

import base64
import hashlib
import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from config.aggregation import AggregationSettings
from edge.client import Encoding, FederationClient, ReceivedModel, RefusedUpdate
from flead import network
from flead.errors import (
    BadConfiguration,
    BadCredentials,
    BadInput,
    BadModel,
    BadUpdate,
    Forbidden,
    ForgedModel,
    TooOften,
    Unavailable,
)
from flead.messages import GlobalModel
from flead.network import Architecture
from flead.signatures import sign
from global_server.app import create_app
from global_server.rounds import RoundService
from storage.rounds import RoundRepository
from tests.fixtures_http import live
from tests.fixtures_storage import Mongo

NOW = datetime(2024, 6, 1, tzinfo=UTC)
ARCHITECTURE = Architecture(2, (3,), 1)
KEY = Ed25519PrivateKey.generate()
THETA = np.linspace(-1.0, 1.0, ARCHITECTURE.parameter_count)


def publish(_model: GlobalModel) -> None:
    raise Unavailable("no broker here")


@pytest.fixture
def url(mongo: Mongo) -> Iterator[str]:
    """A real server."""
    service = RoundService(RoundRepository(mongo.database), AggregationSettings(min_devices=100), publish, key=KEY)
    service.load()
    app = create_app(service, clock=lambda: NOW)
    with live(app) as address:
        yield address


def send(client: FederationClient, device: str = "a", second: int = 0, **fields: Any) -> str:
    timestamp = NOW + timedelta(seconds=second)
    return client.send_update(device, THETA, ARCHITECTURE, sample_count=10, timestamp=timestamp, **fields).status


@pytest.mark.servers
@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("compress", [False, True])
def test_a_round_by_the_client(url: str, encoding: Encoding, *, compress: bool) -> None:
    with FederationClient(url, encoding=encoding, compress=compress) as client:
        assert client.global_model() is None
        assert client.aggregate() is None
        assert send(client, "a", cohort="c", samples_seen=10) == "accepted"
        assert send(client, "b", cohort="c", samples_seen=10, loss=0.4, base_version=0) == "accepted"
        assert client.status().pending_updates == 2
        made = client.aggregate("c")
        assert made is not None
        assert (made.round, made.num_devices, made.total_samples) == (1, 2, 20)
        model = client.global_model("c")
        assert model is not None
        assert (model.version, model.cohort, model.architecture) == (1, "c", ARCHITECTURE)
        np.testing.assert_array_equal(model.theta, THETA)
        assert [(one.round, one.device_ids) for one in client.history("c")] == [(1, ["a", "b"])]


@pytest.mark.servers
def test_a_model_is_checked_against_the_servers_key_and_not_sent_twice(url: str) -> None:
    with FederationClient(url, public_key=KEY.public_key()) as client:
        send(client)
        client.aggregate()
        first = client.global_model()
        assert first is not None
        np.testing.assert_allclose(first.theta, THETA)
        again = client.global_model()
        assert again is not None
        assert again.version == first.version
        send(client, second=1)
        client.aggregate()
        newer = client.global_model()
        assert newer is not None
        assert newer.version == 2
    other = Ed25519PrivateKey.generate().public_key()
    with FederationClient(url, public_key=other) as client, pytest.raises(ForgedModel):
        client.global_model()


@pytest.mark.servers
def test_what_the_server_refuses_comes_with_what_is_wrong(url: str) -> None:
    with FederationClient(url) as client:
        with pytest.raises(RefusedUpdate, match="base_version") as refused:
            send(client, base_version=7)
        assert refused.value.violations
        with pytest.raises(RefusedUpdate) as refused:
            send(client, cohort="a\nb")
        assert refused.value.reason == "bad_name"
        with pytest.raises(BadUpdate, match="sample_count"):  # which need not travel
            client.send_update("a", THETA, ARCHITECTURE, sample_count=0, timestamp=NOW)
        with pytest.raises(BadInput, match="no cohort"):
            client.status("nobody")


class Waits(list[float]):
    """What a client waited, s; nobody waits."""

    def client(self, url: str, transport: httpx.BaseTransport, **options: Any) -> FederationClient:
        return FederationClient(url, transport=transport, sleep=self.append, rng=random.Random(0), **options)  # noqa: S311


class Through(httpx.BaseTransport):
    """On the way to the server and back; `trouble` does something to the requests whose numbers it is given.

    Parameters
    ----------
    trouble:
        for each attempt, what happens to it instead of or after an answer; later ones pass
    """

    def __init__(self, *trouble: Callable[[httpx.Request, httpx.BaseTransport], httpx.Response]) -> None:
        self._inner = httpx.HTTPTransport()
        self._trouble = list(trouble)
        self.asked: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        if self._trouble:
            return self._trouble.pop(0)(request, self._inner)
        return self._inner.handle_request(request)

    def close(self) -> None:
        self._inner.close()


def unconnected(_request: httpx.Request, _inner: httpx.BaseTransport) -> httpx.Response:
    raise httpx.ConnectError("nobody listens")


def answer_lost(request: httpx.Request, inner: httpx.BaseTransport) -> httpx.Response:
    """The server has stored it, and nobody hears of it."""
    inner.handle_request(request).read()
    raise httpx.ReadError("the connection broke")


def busy(status: int, **headers: str) -> Callable[[httpx.Request, httpx.BaseTransport], httpx.Response]:
    return lambda _request, _inner: httpx.Response(status, headers={k.replace("_", "-"): v for k, v in headers.items()})


@pytest.mark.servers
def test_it_tries_again_until_the_server_answers(url: str) -> None:
    waits = Waits()
    with waits.client(url, Through(unconnected, busy(502), busy(503), unconnected)) as client:
        assert send(client) == "accepted"
    assert len(waits) == 4
    assert all(0 <= wait <= 0.2 * 2**attempt for attempt, wait in enumerate(waits))  # full jitter


@pytest.mark.servers
def test_an_update_whose_answer_was_lost_is_counted_once(url: str, mongo: Mongo) -> None:
    with Waits().client(url, Through(answer_lost, answer_lost)) as client:
        assert send(client) == "duplicate"
        assert client.status().device_contributions == {"a": 1}
    assert mongo.database.local_models.count_documents({}) == 1


def test_it_waits_as_long_as_the_server_says() -> None:
    waits = Waits()
    date = "Sat, 01 Jun 2024 00:00:12 GMT"
    ways = [busy(429, Retry_After="7"), busy(503, Retry_After=date), busy(503, Retry_After="soon"), busy(429)]
    ways += [busy(503, Retry_After="86400"), busy(200)]
    with waits.client("http://x", Through(*ways), now=lambda: NOW) as client, pytest.raises(Unavailable):
        client.status()
    for wait, (least, jitter) in zip(waits, [(7, 0.2), (12, 0.4), (0, 0.8), (0, 1.6), (30, 3.2)], strict=True):
        assert least <= wait <= least + jitter


@pytest.mark.parametrize(
    ("said", "seconds"), [("7", 7), ("1.5", 2), ("Sat, 01 Jun 2024 00:00:12 GMT", 12), ("9" * 999, 10**9), ("soon", 0)]
)
def test_in_the_end_it_says_when_to_come_again(said: str, seconds: int) -> None:
    with (
        Waits().client("http://x", Through(busy(429, Retry_After=said)), retries=0, now=lambda: NOW) as client,
        pytest.raises(TooOften) as often,
    ):
        client.status()
    assert often.value.retry_after_s == seconds


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        (unconnected, Unavailable),
        (busy(408), Unavailable),
        (busy(503), Unavailable),
        (busy(429, Retry_After="9"), TooOften),
    ],
)
def test_in_the_end_it_gives_up(
    trouble: Callable[[httpx.Request, httpx.BaseTransport], httpx.Response], error: type[Exception]
) -> None:
    waits, transport = Waits(), Through(*[trouble] * 9)
    with waits.client("http://x", transport, retries=3) as client, pytest.raises(error):
        send(client)
    assert (len(transport.asked), len(waits)) == (4, 3)


@pytest.mark.parametrize(
    ("status", "error"), [(400, BadUpdate), (401, BadCredentials), (403, Forbidden), (413, BadUpdate), (422, BadUpdate)]
)
def test_what_would_not_change_is_not_tried_again(status: int, error: type[Exception]) -> None:
    transport = Through(busy(status))
    with Waits().client("http://x", transport) as client, pytest.raises(error):
        send(client)
    assert len(transport.asked) == 1


def test_a_page_of_a_proxy_is_no_answer() -> None:
    page = lambda _request, _inner: httpx.Response(200, html="<h1>Log in</h1>")  # noqa: E731
    with Waits().client("http://x", Through(page, page)) as client:
        with pytest.raises(Unavailable, match="no answer of a FLEAD server"):
            client.status()
        with pytest.raises(BadModel):
            client.global_model()
    missing = lambda _request, _inner: httpx.Response(404, html="<h1>Nothing here</h1>")  # noqa: E731
    asks: list[Callable[[FederationClient], Any]] = [
        FederationClient.aggregate, FederationClient.history, FederationClient.global_model, send,
    ]  # fmt: skip
    for ask, answer in zip(asks, (page, page, missing, missing), strict=True):
        with Waits().client("http://x", Through(answer)) as client, pytest.raises(Unavailable):
            ask(client)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://", "http://h:port", ""])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(BadConfiguration, match="no address"):
        FederationClient(url)


@pytest.mark.parametrize("key", ["sécret", "secret\nX-Other: 1", " \n"])
def test_a_key_that_is_none_is_refused_and_not_shown(key: str) -> None:
    for name in ("device_key", "token"):
        options: dict[str, Any] = {name: key}
        with pytest.raises(BadConfiguration, match=name) as refused:
            FederationClient("http://x", **options)
        assert "cret" not in str(refused.value)


def test_certificates_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").touch()
    for name in ("empty.pem", "missing.pem"):
        with pytest.raises(BadConfiguration, match=name):
            FederationClient("https://x", verify=str(tmp_path / name))


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("value", [10**30, object()])
def test_an_update_that_cannot_be_written_is_refused(encoding: Encoding, value: Any) -> None:
    with FederationClient("http://x", encoding=encoding) as client, pytest.raises(BadUpdate, match="metadata"):
        send(client, metadata={"odd": value})


def test_weights_of_another_size_are_refused() -> None:
    with FederationClient("http://x") as client, pytest.raises(BadUpdate, match="theta is"):
        client.send_update("a", THETA[1:], ARCHITECTURE, sample_count=1, timestamp=NOW)


def test_credentials_and_a_signature_travel_with_it() -> None:
    key, transport = Ed25519PrivateKey.generate(), Through(busy(422), busy(422))
    with (
        Waits().client("http://x", transport, device_key="flead_dk_1\n", signing_key=key) as client,
        pytest.raises(RefusedUpdate),
    ):
        send(client)
    sent = transport.asked[0]
    assert sent.headers["x-device-key"] == "flead_dk_1"
    key.public_key().verify(base64.b64decode(sent.headers["x-signature"]), sent.content)


WEIGHTS: dict[str, Any] = network.to_message(THETA, ARCHITECTURE)


def model_answer(model: GlobalModel) -> dict[str, Any]:
    """What `GET /api/global-model` says of a model, with what is signed."""
    said = model.model_dump(
        mode="json", include={"cohort", "weights", "timestamp", "parent", "stage", "share", "signature"}
    )
    made = model.model_dump(include={"num_devices", "total_samples", "aggregation_strategy"})
    return said | {"summary": made, "aggregation_rounds": model.version}


class Serves(httpx.BaseTransport):
    """Gives models with the hash of their weights as ETag, and none that the asker has."""

    def __init__(self, *models: GlobalModel) -> None:
        self._models = list(models)
        self.statuses: list[int] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = httpx.Response(200, json=model_answer(self._models.pop(0)))
        etag = f'"{hashlib.sha256(answer.content).hexdigest()}"'
        unchanged = request.headers.get("if-none-match") == etag
        self.statuses.append(304 if unchanged else 200)
        return httpx.Response(304) if unchanged else httpx.Response(200, content=answer.content, headers={"etag": etag})


def model(version: int) -> GlobalModel:
    about = {"num_devices": 1, "total_samples": 10, "aggregation_strategy": "fedavg"}
    return GlobalModel.model_validate({"cohort": "c", "version": version, "weights": WEIGHTS, "timestamp": NOW} | about)


def test_an_unchanged_model_is_not_sent_again() -> None:
    serves = Serves(model(1), model(1), model(2), model(2))
    with FederationClient("http://x", transport=serves) as client:
        got: list[ReceivedModel] = []
        for _ in range(3):
            one = client.global_model()
            assert one is not None
            np.testing.assert_array_equal(one.theta, THETA)
            one.theta[:] = 0.0  # a device trains on in place
            got.append(one)
        client.global_model("c")  # asked for by another name, it is another answer
    assert serves.statuses == [200, 304, 200, 200]
    assert [one.version for one in got] == [1, 1, 2]


def test_a_signed_model_of_another_cohort_is_refused() -> None:
    key = Ed25519PrivateKey.generate()
    serves = Serves(sign(model(1), key))
    with (
        FederationClient("http://x", transport=serves, public_key=key.public_key()) as client,
        pytest.raises(BadModel, match="asked for the global model of 'b'"),
    ):
        client.global_model("b")


def test_a_model_that_the_trusted_server_did_not_sign_is_refused() -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    signed = sign(model(1), key)
    forged = [sign(model(1), other), model(1), signed.model_copy(update={"version": 2})]
    with FederationClient("http://x", transport=Serves(signed, *forged), public_key=key.public_key()) as client:
        assert client.global_model() is not None
        for _ in forged:
            with pytest.raises(ForgedModel):
                client.global_model()
