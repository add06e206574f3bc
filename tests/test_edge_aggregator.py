"""An aggregator stands for its devices: what it acknowledged reaches the global server, and counts once."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from fastapi import FastAPI, Request, Response

from config.aggregation import AggregationSettings
from config.child import free_port
from config.settings import PROJECT
from edge.aggregator import MAX_BODY, Aggregator, create_app, serve
from edge.buffer import UpdateBuffer
from edge.client import FederationClient
from flead import network
from flead.errors import BadConfiguration, BadUpdate, CorruptRunFolder, Unavailable
from flead.federation import fedavg
from flead.messages import GlobalModel, LocalUpdate, WeightsMessage
from flead.network import Architecture, Vector
from flead.partial import Part
from flead.updates import read_message
from global_server.app import create_app as create_global_server
from global_server.rounds import RoundService
from storage.rounds import RoundRepository
from tests.fixtures_http import live
from tests.fixtures_storage import Mongo, wait_until

NOW = datetime(2024, 6, 1, tzinfo=UTC)
ARCHITECTURE = Architecture(2, (), 1)


def weights_of(device: int) -> Vector:
    return np.array([1.0, -2.0, 0.5]) * float(device + 1)


def body(device: int, minute: int = 0, **fields: Any) -> dict[str, Any]:
    """Update number `minute` of a device that learned from 10 times its number plus 10 readings."""
    return {
        "device_id": f"d-{device}",
        "weights": network.to_message(weights_of(device) + minute, ARCHITECTURE),
        "sample_count": 10 * (device + 1),
        "timestamp": (NOW + timedelta(minutes=minute)).isoformat(),
        "metadata": {"cohort": "light", "samples_seen": 10 * (device + 1) * (minute + 1), "base_version": 0},
    } | fields


@contextmanager
def client_of(app: FastAPI) -> Iterator[httpx.Client]:
    with live(app) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


def publish(_model: GlobalModel) -> None:
    raise Unavailable("no broker here")


@pytest.fixture
def upstream(mongo: Mongo) -> Iterator[httpx.Client]:
    """The real global server; rounds are made when asked for."""
    service = RoundService(RoundRepository(mongo.database), AggregationSettings(min_devices=1_000), publish)
    service.load()
    with live(create_global_server(service)) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Aggregator]]:
    """Opens aggregators, and closes them."""
    with ExitStack() as stack:

        def opens(url: Any, name: str = "one", **options: Any) -> Aggregator:
            return stack.enter_context(Aggregator.open(tmp_path / name, str(url), name=name, **options))

        yield opens


def round_made(upstream: httpx.Client) -> tuple[Vector, dict[str, Any]]:
    """Ask for a round: the global model, and what is said of the round."""
    made = upstream.post("/api/aggregate", params={"cohort": "light"}).json()
    assert made["status"] == "success", made
    model = upstream.get("/api/global-model", params={"cohort": "light"}).json()
    return network.from_message(WeightsMessage.model_validate(model["weights"]))[0], made


def fedavg_of(devices: range) -> Vector:
    return fedavg([weights_of(d) for d in devices], [10 * (d + 1) for d in devices])


@pytest.mark.servers
class TestBetweenDevicesAndTheGlobalServer:
    def test_two_aggregators_of_five_devices_are_fedavg_of_all_ten(
        self, upstream: httpx.Client, opened: Callable[..., Aggregator]
    ) -> None:
        for name, devices in (("one", range(5)), ("two", range(5, 10))):
            aggregator = opened(upstream.base_url, name)
            with live(create_app(aggregator)) as url:
                for device in devices:
                    answer = httpx.post(f"{url}/api/local-update", json=body(device)).json()
                    assert answer["status"] == "accepted"
            assert aggregator.flush(NOW) == 1
        theta, made = round_made(upstream)
        np.testing.assert_allclose(theta, fedavg_of(range(10)), rtol=1e-12)
        assert made["total_samples"] == 550

    def test_devices_that_are_sent_one_by_one_are_fedavg_of_all(
        self, upstream: httpx.Client, opened: Callable[..., Aggregator]
    ) -> None:
        aggregator = opened(upstream.base_url)
        for device in (0, 1, 1, 2):
            aggregator.accept(LocalUpdate.model_validate(body(device)), NOW)
            aggregator.flush(NOW)
        theta, made = round_made(upstream)
        np.testing.assert_allclose(theta, fedavg_of(range(3)), rtol=1e-12)
        assert (made["num_devices"], made["total_samples"]) == (3, 60)

    def test_a_device_counts_once_however_often_it_sends(
        self, upstream: httpx.Client, opened: Callable[..., Aggregator]
    ) -> None:
        aggregator = opened(upstream.base_url)
        for update in (body(0), body(0), body(1), body(0, minute=1), body(0, minute=2, metadata=body(0)["metadata"])):
            aggregator.accept(LocalUpdate.model_validate(update), NOW)
        aggregator.flush(NOW)
        theta, made = round_made(upstream)
        np.testing.assert_allclose(theta, fedavg([weights_of(0) + 1, weights_of(1)], [20, 20]), rtol=1e-12)
        assert made["total_samples"] == 40

    def test_the_global_model_is_passed_on_and_served_while_the_upstream_is_away(
        self, upstream: httpx.Client, opened: Callable[..., Aggregator]
    ) -> None:
        aggregator = opened(upstream.base_url)
        with client_of(create_app(aggregator)) as devices:
            assert devices.get("/api/global-model", params={"cohort": "light"}).status_code == 404
            devices.post("/api/local-update", json=body(0))
            aggregator.flush(NOW)
            round_made(upstream)
            given = devices.get("/api/global-model", params={"cohort": "light"})
            assert given.json() == upstream.get("/api/global-model", params={"cohort": "light"}).json()
            assert devices.get("/api/status").json()["upstream"] == "connected"
            assert devices.post("/api/local-update", json=body(0, minute=1)).json()["aggregation_rounds"] == 1
        away = opened(f"http://127.0.0.1:{free_port()}", "two")
        kept = aggregator.buffer.model("light")
        assert kept is not None
        away.buffer.keep_model("light", kept)
        with client_of(create_app(away)) as devices:
            stale = devices.get("/api/global-model", params={"cohort": "light"})
            assert stale.json() == given.json()
            assert stale.headers["warning"].startswith("110")
            if etag := stale.headers.get("etag"):
                same = {"If-None-Match": etag}
                assert devices.get("/api/global-model", params={"cohort": "light"}, headers=same).status_code == 304
            none = devices.get("/api/global-model", params={"cohort": "other"})
            assert (none.status_code, none.headers["content-type"]) == (503, "application/problem+json")

    def test_a_crash_between_sending_and_noting_it_doubles_nothing(
        self, upstream: httpx.Client, tmp_path: Path
    ) -> None:
        def crash(_message: object) -> None:
            raise KeyboardInterrupt

        with Aggregator.open(tmp_path, str(upstream.base_url)) as first:
            first.accept(LocalUpdate.model_validate(body(0)), NOW)
            first.buffer.sent = crash  # type: ignore[assignment, method-assign]
            with pytest.raises(KeyboardInterrupt):
                first.flush(NOW)
        with Aggregator.open(tmp_path, str(upstream.base_url)) as again:
            assert again.flush(NOW + timedelta(hours=1)) == 1
            assert again.flush(NOW + timedelta(hours=2)) == 0
        theta, made = round_made(upstream)
        np.testing.assert_allclose(theta, weights_of(0))
        assert (made["num_devices"], made["total_samples"]) == (1, 10)

    def test_killed_between_storing_and_sending_it_loses_and_doubles_nothing(
        self, upstream: httpx.Client, tmp_path: Path
    ) -> None:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "orchestration", "aggregator", "--upstream", str(upstream.base_url)]
        command += ["--port", str(port), "--run-dir", str(tmp_path), "--every", "3600"]
        process = subprocess.Popen(command, cwd=PROJECT, env=dict(os.environ))  # noqa: S603

        def answers() -> bool:
            assert process.poll() is None
            try:
                return bool(httpx.get(url).json()["service"] == "flead-aggregator")
            except httpx.TransportError:
                return False

        try:
            wait_until(answers, 60.0)
            for device in range(5):
                assert httpx.post(f"{url}/api/local-update", json=body(device)).json()["status"] == "accepted"
        finally:
            process.kill()
            process.wait()
        with Aggregator.open(tmp_path / "aggregator", str(upstream.base_url)) as again:
            assert not again.accept(LocalUpdate.model_validate(body(4)), NOW)
            assert again.flush(NOW) == 1
        theta, made = round_made(upstream)
        np.testing.assert_allclose(theta, fedavg_of(range(5)), rtol=1e-12)
        assert made["total_samples"] == 150

    def test_an_aggregator_may_stand_behind_another(
        self, upstream: httpx.Client, opened: Callable[..., Aggregator]
    ) -> None:
        middle = opened(upstream.base_url, "middle")
        middle.accept(LocalUpdate.model_validate(body(9)), NOW)
        with live(create_app(middle)) as url:
            leaf = opened(url, "leaf")
            for hour, devices in enumerate((range(4), range(4, 9))):
                for device in devices:
                    leaf.accept(LocalUpdate.model_validate(body(device)), NOW)
                leaf.flush(NOW + timedelta(hours=hour))
        middle.flush(NOW)
        theta, made = round_made(upstream)
        np.testing.assert_allclose(theta, fedavg_of(range(10)), rtol=1e-12)
        assert made["total_samples"] == 550


class TestWhenTheUpstream:
    """What it answers is decided by the test: nobody else has to be broken for it."""

    @pytest.fixture
    def answers(self) -> list[int]:
        """The statuses that the upstream gives, in order; 200 when there are no more."""
        return []

    @pytest.fixture
    def received(self) -> list[dict[str, Any]]:
        return []

    @pytest.fixture
    def url(self, answers: list[int], received: list[dict[str, Any]]) -> Iterator[str]:
        app = FastAPI()

        @app.post("/api/local-update")
        async def local_update(request: Request) -> Response:
            received.append({"body": await request.body(), "key": request.headers.get("authorization")})
            return Response(b"because", answers.pop(0) if answers else 200)

        @app.get("/api/global-model")
        def global_model() -> str:
            return "no model"

        with live(app) as url:
            yield url

    def test_answers_nonsense_nothing_is_kept_of_it(self, url: str, opened: Any) -> None:
        aggregator = opened(url)
        assert aggregator.global_model("light").status_code == 503
        assert aggregator.buffer.model("light") is None

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 429, 500, 503])
    def test_cannot_take_a_sum_now_the_same_bytes_come_again(
        self, status: int, url: str, answers: list[int], received: list[dict[str, Any]], opened: Any
    ) -> None:
        aggregator = opened(url)
        aggregator.accept(LocalUpdate.model_validate(body(0)), NOW)
        answers.append(status)
        with pytest.raises(Unavailable, match=str(status)):
            aggregator.flush(NOW)
        aggregator.accept(LocalUpdate.model_validate(body(1)), NOW)
        assert aggregator.flush(NOW + timedelta(hours=1)) == 1
        assert received[0]["body"] == received[1]["body"]
        assert aggregator.flush(NOW + timedelta(hours=2)) == 1
        assert len(received) == 3

    def test_refuses_a_sum_it_is_kept_and_named_and_not_sent_again(
        self, url: str, answers: list[int], received: list[dict[str, Any]], opened: Any
    ) -> None:
        aggregator = opened(url)
        aggregator.accept(LocalUpdate.model_validate(body(0)), NOW)
        answers.append(422)
        assert aggregator.flush(NOW) == 0
        assert aggregator.flush(NOW) == 0
        assert len(received) == 1
        assert aggregator.buffer.summary()["refused"] == [{"devices": 1, "why": "because"}]

    def test_refuses_many_the_newest_are_kept(
        self, url: str, answers: list[int], opened: Any, monkeypatch: Any
    ) -> None:
        monkeypatch.setattr("edge.buffer.REFUSED", 2)
        aggregator = opened(url)
        answers += [422, 413, 415]
        for device in range(3):
            aggregator.accept(LocalUpdate.model_validate(body(device)), NOW)
            aggregator.flush(NOW)
        assert len(aggregator.buffer.summary()["refused"]) == 2

    def test_asks_for_a_key_it_is_sent(self, url: str, received: list[dict[str, Any]], opened: Any) -> None:
        aggregator = opened(url, device_key="flead_dk_x")
        aggregator.accept(LocalUpdate.model_validate(body(0)), NOW)
        aggregator.flush(NOW)
        assert received[0]["key"] == "Bearer flead_dk_x"

    def test_is_away_the_thread_goes_on_until_it_is_back(
        self,
        url: str,
        answers: list[int],
        received: list[dict[str, Any]],
        opened: Any,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        aggregator = opened(url)
        aggregator.accept(LocalUpdate.model_validate(body(0)), NOW)
        answers += [503, 503]
        stopping = threading.Event()
        thread = threading.Thread(target=aggregator.run, args=(0.01, stopping))
        thread.start()
        try:
            wait_until(lambda: len(received) == 3)
            wait_until(lambda: aggregator.buffer.waiting() == [])
        finally:
            stopping.set()
            thread.join()
        assert [said.levelname for said in caplog.records if said.name == "edge.aggregator"] == ["WARNING"]


class Upstream:
    """Gives a global model as soon as `goes_on` is set, unless it is away."""

    def __init__(self, *, away: bool = False) -> None:
        self.away = away
        self.asked = 0
        self.goes_on = threading.Event()

    def __call__(self, _request: httpx.Request) -> httpx.Response:
        self.asked += 1
        if self.away:
            raise httpx.ConnectTimeout("nobody there")
        assert self.goes_on.wait(30)
        return httpx.Response(200, json={"aggregation_rounds": 3, "weights": "0" * 100_000})


class TestPassingAModelOn:
    @pytest.fixture
    def behind(self, tmp_path: Path) -> Iterator[Callable[[Upstream], Aggregator]]:
        with UpdateBuffer(tmp_path / "b") as buffer:
            yield lambda upstream: Aggregator(
                buffer, httpx.Client(base_url="http://x", transport=httpx.MockTransport(upstream))
            )

    def test_one_asks_for_all_the_first_time_too(self, behind: Callable[[Upstream], Aggregator]) -> None:
        upstream = Upstream()
        aggregator = behind(upstream)
        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(aggregator.global_model, "light") for _ in range(4)]
            wait_until(lambda: upstream.asked > 0)
            upstream.goes_on.set()
            assert [future.result().status_code for future in asking] == [200] * 4
        assert upstream.asked == 1

    def test_nobody_waits_again_for_an_upstream_that_was_away_a_moment_ago(
        self, behind: Callable[[Upstream], Aggregator]
    ) -> None:
        upstream = Upstream(away=True)
        aggregator = behind(upstream)
        assert [aggregator.global_model(cohort).status_code for cohort in ("light", "light", None)] == [503] * 3
        assert upstream.asked == 1

    def test_a_full_disk_does_not_hold_it_back(self, behind: Callable[[Upstream], Aggregator]) -> None:
        upstream = Upstream()
        upstream.goes_on.set()
        aggregator = behind(upstream)
        with aggregator.buffer._transaction() as database:
            pages = database.execute("PRAGMA page_count").fetchone()[0]
        aggregator.buffer._database.execute(f"PRAGMA max_page_count = {pages}")
        assert aggregator.global_model("light").status_code == 200
        assert aggregator.buffer.model("light") is None


class TestWhatDevicesSee:
    @pytest.fixture
    def devices(self, opened: Callable[..., Aggregator]) -> Iterator[httpx.Client]:
        app = create_app(opened("http://127.0.0.1:1", max_norm=100.0), clock=lambda: NOW)
        with client_of(app) as client:
            yield client

    def test_is_the_plain_rest_contract(self, devices: httpx.Client) -> None:
        assert devices.get("/").json()["status"] == "running"
        answer = devices.post("/api/local-update", json=body(0)).json()
        assert answer == {
            "status": "accepted", "device_id": "d-0", "cohort": "light", "pending_updates": 1, "aggregation_rounds": 0,
        }  # fmt: skip
        assert devices.post("/api/local-update", json=body(0)).json()["status"] == "duplicate"
        status = devices.get("/api/status", params={"cohort": "light"}).json()
        assert status["device_contributions"] == {"d-0": 1}
        assert (status["pending_updates"], status["unique_devices"]) == (1, 1)
        assert {"status", "aggregation_rounds", "aggregation_config", "timestamp"} <= status.keys()
        assert devices.get("/api/status", params={"cohort": "nobody"}).status_code == 404

    def test_is_what_the_client_for_devices_speaks(self, devices: httpx.Client) -> None:
        with FederationClient(str(devices.base_url), compress=True) as client:
            sent = client.send_update("a", weights_of(1), ARCHITECTURE, sample_count=5, timestamp=NOW, cohort="light")
            assert (sent.status, sent.pending_updates) == ("accepted", 1)
            status = client.status()
        assert (status.cohort, status.device_contributions) == ("light", {"a": 1})

    @pytest.mark.parametrize("packs", [gzip.compress, lambda raw: raw])
    @pytest.mark.parametrize("kind", ["json", "msgpack", "x-msgpack"])
    def test_updates_may_be_packed(self, devices: httpx.Client, packs: Callable[[bytes], bytes], kind: str) -> None:
        raw = msgpack.packb(body(0)) if "msgpack" in kind else json.dumps(body(0)).encode()
        headers = {"Content-Type": f"application/{kind}"} | ({"Content-Encoding": "GZIP"} if packs(raw) != raw else {})
        answer = devices.post("/api/local-update", content=packs(raw), headers=headers)
        assert answer.json()["status"] == "accepted"

    @pytest.mark.parametrize(
        ("content", "headers", "status"),
        [
            (gzip.compress(b"0" * (MAX_BODY + 1)), {"Content-Encoding": "gzip"}, 413),
            (gzip.compress(b"{}")[:-4], {"Content-Encoding": "gzip"}, 422),
            (b"?", {"Content-Encoding": "gzip"}, 422),
            (b"?", {"Content-Encoding": "br"}, 415),
            (b"\xdd\xff\xff\xff\xff", {"Content-Type": "application/msgpack"}, 422),
        ],
    )
    def test_what_is_packed_wrongly_is_refused(
        self, devices: httpx.Client, content: bytes, headers: dict[str, str], status: int
    ) -> None:
        assert devices.post("/api/local-update", content=content, headers=headers).status_code == status

    @pytest.mark.parametrize(
        ("content", "status"),
        [
            (b"{", 422),
            (b"{}", 422),
            (b"x" * (MAX_BODY + 1), 413),
            (LocalUpdate.model_validate(body(3000)).model_dump_json().encode(), 422),  # beyond the norm
        ],
    )
    def test_bad_updates_are_refused_with_a_problem_document(
        self, devices: httpx.Client, content: bytes, status: int
    ) -> None:
        answer = devices.post("/api/local-update", content=content)
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert answer.json()["status"] == status
        assert devices.get("/api/status").json()["pending_updates"] == 0

    def test_pages_of_other_sites_can_do_nothing(self, devices: httpx.Client) -> None:
        refused = devices.post("/api/local-update", json=body(0), headers={"Origin": "https://elsewhere.example"})
        assert refused.status_code == 403
        assert devices.get("/", headers={"Host": "elsewhere.example"}).status_code == 400

    @pytest.mark.parametrize("host", ["0.0.0.0", "server", "192.168.1.7"])  # noqa: S104
    def test_only_this_machine_sees_anything(self, opened: Callable[..., Aggregator], host: str) -> None:
        with pytest.raises(BadConfiguration, match="reachable from outside"):
            serve(opened("http://127.0.0.1:1"), host, 1, 1.0)


class TestTheBuffer:
    def part(self, device: int = 0, minute: int = 0) -> Part:
        return Part.from_update(read_message(LocalUpdate.model_validate(body(device, minute))))

    def test_is_there_again_after_it_was_closed(self, tmp_path: Path) -> None:
        with UpdateBuffer(tmp_path / "b") as buffer:
            name = buffer.name
            assert buffer.accept(self.part(), NOW)
        with UpdateBuffer(tmp_path / "b") as buffer:
            assert buffer.name == name
            assert not buffer.accept(self.part(), NOW)
            assert buffer.close(NOW) == 1
            assert [message.devices for message in buffer.waiting()] == [1]

    def test_sends_counters_and_times_that_only_go_up(self, tmp_path: Path) -> None:
        sent = []
        with UpdateBuffer(tmp_path / "b") as buffer:
            for minute in range(3):
                buffer.accept(self.part(0, minute), NOW)
                buffer.close(NOW - timedelta(hours=minute))  # the clock goes backwards
                (message,) = buffer.waiting()
                sent.append(LocalUpdate.from_json(message.body))
                buffer.sent(message)
        assert [update.metadata["samples_seen"] for update in sent] == [10, 20, 30]
        assert sent[0].timestamp < sent[1].timestamp < sent[2].timestamp
        assert len({update.device_id for update in sent}) == 1  # always the same device

    def test_keeps_cohorts_and_architectures_apart(self, tmp_path: Path) -> None:
        other = network.to_message(np.zeros(2), Architecture(1, (), 1))
        with UpdateBuffer(tmp_path / "b") as buffer:
            buffer.accept(self.part(), NOW)
            buffer.accept(Part.from_update(read_message(LocalUpdate.model_validate(body(1, metadata={})))), NOW)
            buffer.accept(Part.from_update(read_message(LocalUpdate.model_validate(body(2, weights=other)))), NOW)
            assert buffer.close(NOW) == 3
            names = {LocalUpdate.from_json(message.body).device_id for message in buffer.waiting()}
        assert len(names) == 3

    def test_keeps_global_models_apart(self, tmp_path: Path) -> None:
        many = {"cohort": "light", "devices": 3}
        with UpdateBuffer(tmp_path / "b") as buffer:
            for minute, version in enumerate((1, 1, 2)):
                metadata = many | {"base_version": version}
                buffer.accept(
                    Part.from_update(read_message(LocalUpdate.model_validate(body(0, minute, metadata=metadata)))), NOW
                )
            buffer.accept(Part.from_update(read_message(LocalUpdate.model_validate(body(1)))), NOW)
            buffer.close(NOW)
            sent = [LocalUpdate.from_json(message.body).metadata for message in buffer.waiting()]
        assert [(said["base_version"], said["devices"]) for said in sent] == [(0, 1), (1, 6), (2, 3)]

    def test_grows_with_devices_and_not_with_updates_while_the_upstream_is_away(self, tmp_path: Path) -> None:
        with UpdateBuffer(tmp_path / "b") as buffer:
            for minute in range(20):
                buffer.accept(self.part(0, minute), NOW)
                buffer.close(NOW)
            assert len(buffer.waiting()) == 1
            assert buffer.pending() == 1

    def test_forgets_week_old_updates_while_the_upstream_is_away(self, tmp_path: Path) -> None:
        with UpdateBuffer(tmp_path / "b") as buffer:
            for day in range(20):
                buffer.accept(self.part(0, day), NOW + timedelta(days=day))
                buffer.close(NOW + timedelta(days=day))
            with buffer._transaction() as database:
                assert database.execute("SELECT COUNT(*) FROM updates").fetchone()[0] == 8
            assert len(buffer.waiting()) == 1

    def test_belongs_to_one_process(self, tmp_path: Path) -> None:
        with UpdateBuffer(tmp_path / "b"), pytest.raises(Unavailable, match="another process"):
            UpdateBuffer(tmp_path / "b")

    def test_says_where_its_file_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "b").write_bytes(b"not a database" * 100)
        with pytest.raises(CorruptRunFolder):
            UpdateBuffer(tmp_path / "b")

    def test_what_is_on_its_disk_is_durable(self, tmp_path: Path) -> None:
        with UpdateBuffer(tmp_path / "b") as buffer, buffer._transaction() as database:
            assert database.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
            assert database.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL


@pytest.mark.parametrize("upstream", ["server:8000", "http://", "http://h:port", ""])
def test_an_upstream_that_is_no_address_is_refused(tmp_path: Path, upstream: str) -> None:
    with pytest.raises(BadConfiguration, match="--upstream"), Aggregator.open(tmp_path, upstream):
        pass


@pytest.mark.parametrize("key", ["", "s\u00e9cret", "two\nlines"])
def test_a_key_that_is_none_is_refused_and_not_left_out(tmp_path: Path, key: str) -> None:
    with (
        pytest.raises(BadConfiguration, match="--device-key-file"),
        Aggregator.open(tmp_path, "http://x", device_key=key),
    ):
        pass


def test_an_update_that_is_too_large_never_enters_a_sum(opened: Callable[..., Aggregator]) -> None:
    aggregator = opened("http://127.0.0.1:1", max_norm=5.0)
    with pytest.raises(BadUpdate, match="norm"):
        aggregator.accept(LocalUpdate.model_validate(body(9)), NOW)
    assert aggregator.buffer.pending() == 0
