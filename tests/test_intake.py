from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence
from concurrent.futures import Future, wait
from datetime import UTC, datetime, timedelta

import httpx
import numpy as np
import pytest

from config.aggregation import AggregationSettings
from flead import network
from flead.errors import BadInput, BadModel, BadUpdate, Unavailable
from flead.messages import GlobalModel, LocalUpdate
from flead.network import Architecture
from global_server.app import create_app
from global_server.intake import Intake, Taken
from global_server.memory import Accepted
from global_server.rounds import RoundService
from storage.rounds import RoundRepository
from tests.fixtures_storage import Mongo, wait_until

NOW = datetime(2024, 6, 1, tzinfo=UTC)
LIMIT_S = 20.0


def update(device: str, second: int = 0, *, value: float = 1.0, cohort: str = "c", width: int = 1) -> LocalUpdate:
    architecture = Architecture(1, (), width)
    return LocalUpdate.model_validate(
        {
            "device_id": device,
            "weights": network.to_message(np.full(architecture.parameter_count, value), architecture),
            "sample_count": 10,
            "timestamp": NOW + timedelta(seconds=second),
            "metadata": {"cohort": cohort},
        }
    )


class Slow(RoundService):
    """The real service, which notes its batches, and stores none before it may."""

    def __init__(self, mongo: Mongo, min_devices: int = 1_000) -> None:
        super().__init__(RoundRepository(mongo.database), AggregationSettings(min_devices=min_devices), _publish)
        self.batches: list[int] = []
        self.may = threading.Event()
        self.broken = ""

    def accept_many(self, messages: Sequence[LocalUpdate], now: datetime) -> list[Accepted | BadInput]:
        self.batches.append(len(messages))
        assert self.may.wait(LIMIT_S)
        if any(message.device_id == self.broken for message in messages):
            raise RuntimeError("nobody foresaw this device")
        return super().accept_many(messages, now)


def _publish(_model: GlobalModel) -> None:
    raise Unavailable("no broker here")


@pytest.fixture
def slow(mongo: Mongo) -> Slow:
    service = Slow(mongo)
    service.load()
    return service


def outcomes(answers: Sequence[Future[Taken]]) -> list[Accepted | type[BaseException]]:
    wait(answers, LIMIT_S)
    return [type(error) if (error := answer.exception(0)) else answer.result(0).outcome for answer in answers]


def begin(service: Slow, intake: Intake, *first: LocalUpdate) -> list[Future[Taken]]:
    """Give updates, and wait until the first of them is being stored."""
    answers = [intake.put(one, 100) for one in first]
    wait_until(lambda: bool(service.batches))
    return answers


@pytest.mark.servers
def test_what_comes_while_one_is_stored_is_stored_together(mongo: Mongo, slow: Slow) -> None:
    intake = Intake(slow, lambda: NOW, batch=4)
    answers = begin(slow, intake, update("first"))
    answers += [intake.put(update(f"d{number}"), 100) for number in range(6)]
    assert not any(answer.done() for answer in answers)  # nobody is answered before it is stored
    slow.may.set()
    assert set(outcomes(answers)) == {Accepted.NEW}
    assert slow.batches == [1, 4, 2]
    assert mongo.database.local_models.count_documents({}) == 7


@pytest.mark.servers
def test_an_answer_tells_how_the_cohort_stands(mongo: Mongo) -> None:
    service = Slow(mongo, min_devices=3)
    service.load()
    service.may.set()
    intake = Intake(service, lambda: NOW)
    told = [intake.put(update(device), 100).result(LIMIT_S) for device in "abcd"]
    assert [(one.pending_updates, one.aggregation_rounds) for one in told] == [(1, 0), (2, 0), (0, 1), (1, 1)]


@pytest.mark.servers
def test_what_is_refused_touches_nobody_else(mongo: Mongo, slow: Slow) -> None:
    intake = Intake(slow, lambda: NOW)
    answers = begin(slow, intake, update("a"))
    answers += [
        intake.put(one, 100)
        for one in (update("b"), update("b"), update("c", value=1e9), update("d", width=2), update("e"))
    ]
    broken = update("f").model_copy(deep=True)
    broken.weights.biases.append([1.0])
    answers.append(intake.put(broken, 100))
    slow.may.set()
    expected = [Accepted.NEW, Accepted.NEW, Accepted.DUPLICATE, BadUpdate, BadUpdate, Accepted.NEW, BadModel]
    assert outcomes(answers) == expected
    assert sorted(mongo.database.local_models.distinct("device_id")) == ["a", "b", "e"]


@pytest.mark.servers
def test_an_update_that_nobody_foresaw_fails_alone(mongo: Mongo, slow: Slow, caplog: pytest.LogCaptureFixture) -> None:
    slow.broken = "b"
    intake = Intake(slow, lambda: NOW)
    answers = begin(slow, intake, update("first"))
    answers += [intake.put(update(device), 100) for device in "abc"]
    slow.may.set()
    assert outcomes(answers) == [Accepted.NEW, Accepted.NEW, RuntimeError, Accepted.NEW]
    assert "one by one" in caplog.text


@pytest.mark.servers
def test_without_mongodb_a_whole_batch_is_refused_for_now(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_updates: object) -> None:
        raise Unavailable("MongoDB does not answer")

    monkeypatch.setattr(slow._repository, "add_updates", gone)
    intake = Intake(slow, lambda: NOW)
    answers = begin(slow, intake, update("a"))
    answers += [intake.put(update(device), 100) for device in "bc"]
    slow.may.set()
    assert set(outcomes(answers)) == {Unavailable}


@pytest.mark.servers
def test_more_than_may_wait_is_refused_at_once(slow: Slow) -> None:
    intake = Intake(slow, lambda: NOW, max_waiting=1_000)
    answers = begin(slow, intake, update("a"))
    answers.append(intake.put(update("b"), 5_000))  # alone it may be larger than all that may wait
    with pytest.raises(Unavailable, match="wait"):
        intake.put(update("c"), 1)
    slow.may.set()
    assert outcomes(answers) == [Accepted.NEW] * 2
    assert outcomes([intake.put(update("c"), 1)]) == [Accepted.NEW]


@pytest.mark.servers
def test_closing_stores_what_waits_and_takes_no_more(mongo: Mongo, slow: Slow) -> None:
    intake = Intake(slow, lambda: NOW)
    answers = begin(slow, intake, update("a"))
    answers += [intake.put(update(device), 100) for device in "bc"]
    slow.may.set()
    intake.close()
    assert all(answer.done() for answer in answers)
    assert mongo.database.local_models.count_documents({}) == 3
    with pytest.raises(Unavailable, match="ending"):
        intake.put(update("d"), 100)


@pytest.mark.servers
def test_many_threads_lose_nothing(mongo: Mongo, slow: Slow) -> None:
    slow.may.set()
    intake = Intake(slow, lambda: NOW, batch=16)
    answers: list[Future[Taken]] = []

    def send(name: str) -> None:
        answers.extend([intake.put(update(name, second), 100) for second in range(50)])

    threads = [threading.Thread(target=send, args=(f"d{number}",)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes(answers) == [Accepted.NEW] * 400
    assert mongo.database.local_models.count_documents({}) == 400
    assert slow.contributions("c") == {f"d{number}": 50 for number in range(8)}
    assert max(slow.batches) == 16


@pytest.mark.servers
def test_requests_that_come_together_are_answered_each_with_its_own(mongo: Mongo, slow: Slow) -> None:
    slow.may.set()
    app = create_app(slow, clock=lambda: NOW)
    bodies = [json.loads(update(f"d{number}").model_dump_json()) for number in range(30)]
    bodies[7]["sample_count"] = 0
    bodies[8]["weights"]["biases"] = []

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await asyncio.gather(*(client.post("/api/local-update", json=body) for body in bodies))

    answers = asyncio.run(ask())
    assert [number for number, answer in enumerate(answers) if answer.status_code == 422] == [7, 8]
    assert all(a.json()["device_id"] == b["device_id"] for a, b in zip(answers, bodies, strict=True) if a.is_success)
    assert mongo.database.local_models.count_documents({}) == 28
    assert len(slow.batches) < 29
