from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr

from config.aggregation import AggregationSettings, RulesPatch
from config.child import free_port
from config.settings import MongoSettings
from flead import network
from flead.errors import BadInput, BadModel, BadUpdate, Unavailable
from flead.messages import GlobalModel, LocalUpdate
from flead.network import Architecture
from global_server.memory import Accepted
from global_server.rounds import RoundService
from global_server.schedule import Scheduler
from storage.connection import connect, open_database
from storage.embedded import embedded_mongod
from storage.rounds import RoundRepository
from storage.schema import apply_schema
from tests.fixtures_storage import Mongo, wait_until

pytestmark = pytest.mark.servers
NOW = datetime(2024, 6, 1, tzinfo=UTC)
SIZES = Architecture(2, (3,), 1)


def update(
    device: str = "a",
    value: float = 1.0,
    *,
    second: int = 0,
    samples: int = 10,
    sizes: Architecture = SIZES,
    **metadata: Any,
) -> LocalUpdate:
    return LocalUpdate.model_validate(
        {
            "device_id": device,
            "weights": network.to_message(np.full(sizes.parameter_count, value), sizes),
            "sample_count": samples,
            "timestamp": NOW + timedelta(seconds=second),
            "metadata": metadata,
        }
    )


def misshapen() -> LocalUpdate:
    wrong = update("x")
    wrong.weights.biases[0].append(1.0)
    return wrong


class Outlet:
    """Where models go; refuses while it is closed."""

    def __init__(self) -> None:
        self.models: list[GlobalModel] = []
        self.closed = False

    def __call__(self, model: GlobalModel) -> None:
        if self.closed:
            raise Unavailable("closed")
        self.models.append(model)


@pytest.fixture
def outlet() -> Outlet:
    return Outlet()


Restart = Callable[[], RoundService]


@pytest.fixture
def restart(mongo: Mongo, outlet: Outlet) -> Restart:
    def make() -> RoundService:
        settings = AggregationSettings(min_devices=2, interval_s=60.0, max_weight_norm=100.0)
        service = RoundService(RoundRepository(mongo.database), settings, outlet)
        service.load()
        return service

    return make


@pytest.fixture
def service(restart: Restart) -> RoundService:
    return restart()


def theta(model: GlobalModel | None) -> float:
    assert model is not None
    values = network.from_message(model.weights)[0]
    np.testing.assert_allclose(values, values[0])
    return float(values[0])


def test_a_round_weighs_by_samples_and_is_stored_with_its_marks(service: RoundService, mongo: Mongo) -> None:
    service.accept(update("a", 1.0, samples=10), NOW)
    assert service.aggregate_ready(NOW) == []
    service.accept(update("b", 4.0, samples=20), NOW)
    (model,) = service.aggregate_ready(NOW)
    assert theta(model) == pytest.approx(3.0)
    assert (model.version, model.num_devices, model.total_samples) == (1, 2, 30)
    stored = mongo.database.global_model.find_one({"_id": "default#1"})
    assert stored is not None
    assert [d["device_id"] for d in stored["devices"]] == ["a", "b"]
    assert mongo.database.local_models.count_documents({"round": 1}) == 2
    assert service.aggregate("default", NOW) is None


def test_one_update_per_device_the_latest_weights_the_samples_of_all(service: RoundService) -> None:
    for second, value in enumerate((1.0, 2.0, 3.0)):
        service.accept(update("a", value, second=second, samples=10), NOW)
    service.accept(update("b", 0.0, samples=30), NOW)
    model = service.aggregate("default", NOW)
    assert theta(model) == pytest.approx(1.5)
    assert service.contributions("default") == {"a": 3, "b": 1}


def test_an_older_update_that_comes_late_adds_samples_but_not_its_weights(service: RoundService) -> None:
    service.accept(update("a", 5.0, second=9), NOW)
    service.accept(update("a", 1.0, second=3), NOW)
    model = service.aggregate("default", NOW)
    assert theta(model) == 5.0
    assert model is not None
    assert model.total_samples == 20


def test_the_newest_model_of_a_device_is_found_with_its_sensors(service: RoundService, mongo: Mongo) -> None:
    repository = RoundRepository(mongo.database)
    assert repository.newest_of("a") is None
    named: dict[str, Any] = {"cohort": "x", "sensors": ["x"]}
    batch = [update("a", second=1, **named), update("a", 3.0, second=2, **named), update("b", 9.0)]
    service.accept_many(batch, NOW + timedelta(seconds=1))  # one time of receipt: the device's own decides
    service.accept(update("a", 2.0, second=3, **named), NOW)
    newest = repository.newest_of("a")
    assert newest is not None
    assert (newest.cohort, newest.sensors, newest.architecture) == ("x", ("x",), SIZES)
    assert set(newest.theta.tolist()) == {3.0}
    assert repository.devices() == ["a", "b"]
    service.aggregate("x", NOW)
    used = repository.newest_of("a")
    assert used is not None
    assert used.key == newest.key


@pytest.mark.parametrize("sensors", [None, [], {}, "x", [1], [""], ["x"] * 257, 7])
def test_sensors_that_are_no_names_are_left_out(sensors: Any, service: RoundService, mongo: Mongo) -> None:
    assert service.accept(update(sensors=sensors), NOW) is Accepted.NEW
    newest = RoundRepository(mongo.database).newest_of("a")
    assert newest is not None
    assert newest.sensors is None


def test_a_model_stored_by_an_earlier_version_has_no_sensors(service: RoundService, mongo: Mongo) -> None:
    service.accept(update(sensors=["x"]), NOW)
    mongo.database.local_models.update_one({}, {"$unset": {"sensors": 1}})
    newest = RoundRepository(mongo.database).newest_of("a")
    assert newest is not None
    assert newest.sensors is None
    assert len(RoundRepository(mongo.database).pending()) == 1


def test_the_same_again_counts_once(service: RoundService, restart: Restart) -> None:
    assert service.accept(update(), NOW) is Accepted.NEW
    assert service.accept(update(value=2.0), NOW) is Accepted.DUPLICATE
    assert service.accept_many([update(second=1), update(second=1)], NOW) == [Accepted.NEW, Accepted.DUPLICATE]
    assert restart().accept(update(second=1), NOW) is Accepted.DUPLICATE
    model = service.aggregate("default", NOW)
    assert model is not None
    assert model.total_samples == 20
    assert restart().accept(update(), NOW) is Accepted.DUPLICATE


def test_a_training_counter_never_goes_down(service: RoundService, restart: Restart) -> None:
    assert service.accept(update(second=0, samples_seen=100), NOW) is Accepted.NEW
    assert service.accept(update(second=1, samples_seen=100), NOW) is Accepted.DUPLICATE
    assert service.accept(update(second=2, samples_seen=50), NOW) is Accepted.DUPLICATE
    assert restart().accept(update(second=3, samples_seen=100), NOW) is Accepted.DUPLICATE
    service.aggregate("default", NOW)
    after = restart()
    assert after.accept(update(second=4, samples_seen=99), NOW) is Accepted.DUPLICATE
    assert after.accept(update(second=5, samples_seen=101), NOW) is Accepted.NEW


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        (update("x", 50.0), BadUpdate),  # its norm
        (update("x", 1e300), BadUpdate),
        (update("x", sizes=Architecture(3, (3,), 1)), BadUpdate),
        (update("x", cohort="a\nb"), BadUpdate),
        (update("x", cohort=5), BadUpdate),
        (update("x", base_version=1), BadUpdate),
        (update("x", base_version=-1), BadUpdate),
        (update("x", samples_seen=True), BadUpdate),
        (update("x", samples_seen=2**70), BadUpdate),
        (update("x", samples_seen="9"), BadUpdate),
        (update("x").model_copy(update={"timestamp": datetime.max.replace(tzinfo=UTC).astimezone(UTC)}), None),
        (misshapen(), BadModel),
        (update("x").model_copy(update={"timestamp": datetime.fromisoformat("0001-01-01T00:00:00+14:00")}), BadUpdate),
    ],
)  # fmt: skip
def test_a_wrong_update_is_refused_and_poisons_nothing(
    service: RoundService, restart: Restart, wrong: LocalUpdate, kind: type[BadInput] | None
) -> None:
    outcomes = service.accept_many([update("a"), wrong, update("b", 3.0)], NOW)
    assert [outcomes[0], outcomes[2]] == [Accepted.NEW, Accepted.NEW]
    assert outcomes[1] is Accepted.NEW if kind is None else type(outcomes[1]) is kind
    model = restart().aggregate("default", NOW)
    assert model is not None
    assert model.num_devices == (3 if kind is None else 2)


def test_cohorts_do_not_mix(service: RoundService) -> None:
    other = Architecture(1, (), 1)
    service.accept(update("a", 1.0), NOW)
    assert service.resolve(None) == "default"
    service.accept(update("b", 2.0, sizes=other, cohort="light"), NOW)
    assert service.resolve(None) == "default"
    assert theta(service.aggregate("light", NOW)) == 2.0
    assert service.model("default") is None
    assert theta(service.aggregate("default", NOW)) == 1.0


def test_a_restart_goes_on_where_it_was(service: RoundService, restart: Restart, outlet: Outlet) -> None:
    service.accept(update("a", 1.0), NOW)
    first = service.aggregate("default", NOW)
    service.accept(update("a", 2.0, second=1, samples=10), NOW)
    service.accept(update("a", 3.0, second=2, samples=10), NOW)
    after = restart()
    assert after.model("default") == first
    assert after.summary() == service.summary() == {"default": {"rounds": 1, "pending_updates": 1, "unique_devices": 1}}
    assert after.contributions("default") == {"a": 3}
    with pytest.raises(BadUpdate, match="is 2-3-1"):
        after.accept(update("b", sizes=Architecture(1, (), 1)), NOW)
    second = after.aggregate("default", NOW)
    assert second is not None
    assert (second.version, theta(second), second.total_samples) == (2, 3.0, 20)
    assert after.publish_pending() == 1
    assert outlet.models == [second]


def test_a_round_that_was_not_published_is_later(
    service: RoundService, restart: Restart, outlet: Outlet, mongo: Mongo
) -> None:
    outlet.closed = True
    service.accept(update("a"), NOW)
    model = service.aggregate("default", NOW)
    with pytest.raises(Unavailable):
        service.publish_pending()
    assert service.history("default")[0]["published_at"] is None
    outlet.closed = False
    assert (service.publish_pending(), service.publish_pending()) == (1, 0)
    assert outlet.models == [model]
    assert service.history("default")[0]["published_at"] is not None
    assert restart().publish_pending() == 1  # harmless, and it mends a broker that lost its data
    assert outlet.models == [model, model]


def test_a_round_is_stored_whole_or_not_at_all(service: RoundService, mongo: Mongo) -> None:
    service.change_rules(None, RulesPatch.model_validate({"strategy": {"name": "fedavgm"}}), "ada", NOW)
    service.accept(update("a"), NOW)
    service.aggregate("default", NOW)
    service.accept(update("a", 2.0, second=2), NOW)
    mongo.database.command("collMod", "strategy_state", validator={"strategy": {"$ne": "fedavgm"}})
    with pytest.raises(Unavailable):
        service.aggregate("default", NOW)
    assert mongo.database.global_model.count_documents({}) == 1
    apply_schema(mongo.database, mongo.settings)
    wait_until(service.is_stored)
    model = service.aggregate("default", NOW)
    assert model is not None
    assert model.version == 2


@pytest.mark.parametrize(("waited", "rounds"), [(59.9, 0), (60.0, 1)])
def test_the_interval_counts_from_the_first_that_waits(service: RoundService, waited: float, rounds: int) -> None:
    service.accept(update("a"), NOW)
    service.accept(update("a", second=50), NOW + timedelta(seconds=50))
    assert len(service.aggregate_due(NOW + timedelta(seconds=waited))) == rounds


def test_the_scheduler_makes_rounds_and_publishes_until_it_is_confirmed(service: RoundService, outlet: Outlet) -> None:
    now = [NOW]
    outlet.closed = True
    scheduler = Scheduler(service, clock=lambda: now[0])
    scheduler.start()
    try:
        service.accept(update("a"), NOW)
        now[0] += timedelta(seconds=61)
        wait_until(lambda: service.model("default") is not None)
        outlet.closed = False
        wait_until(lambda: len(outlet.models) == 1)
    finally:
        scheduler.stop()
    assert not scheduler.is_alive()


def test_many_threads_lose_and_double_nothing(service: RoundService, restart: Restart) -> None:
    def send(part: int) -> None:
        for second in range(20):
            service.accept(update(f"d{part}", second=second), NOW)
            service.accept(update("shared", second=second), NOW)
            service.aggregate_ready(NOW)

    threads = [threading.Thread(target=send, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    service.aggregate("default", NOW)
    assert service.contributions("default") == {"shared": 20} | {f"d{part}": 20 for part in range(4)}
    assert restart().contributions("default") == service.contributions("default")
    rounds = service.history("default")
    assert [entry["round"] for entry in rounds] == list(range(1, len(rounds) + 1))
    assert sum(entry["total_samples"] for entry in rounds) == 1_000


def test_kill_9_of_mongod_loses_nothing_that_was_accepted(tmp_path: Path, outlet: Outlet) -> None:
    port = free_port()
    settings = MongoSettings(
        uri=SecretStr(f"mongodb://127.0.0.1:{port}/?directConnection=true&serverSelectionTimeoutMS=200")
    )
    with connect(settings) as client:
        database = open_database(client, settings)
        service = RoundService(RoundRepository(database), AggregationSettings(), outlet)
        with embedded_mongod(tmp_path / "db", port) as server:
            apply_schema(database, settings)
            service.accept(update("a", 1.0), NOW)
            first = service.aggregate("default", NOW)
            service.accept(update("a", 2.0, second=1), NOW)
            os.kill(server.pid, signal.SIGKILL)
            for _ in range(2):
                with pytest.raises(Unavailable):
                    service.accept(update("b", 4.0), NOW)
            assert service.model("default") == first
            assert not service.is_stored()
        with embedded_mongod(tmp_path / "db", port):
            wait_until(service.is_stored)
            assert service.summary()["default"] == {"rounds": 1, "pending_updates": 1, "unique_devices": 1}
            assert service.accept(update("b", 4.0), NOW) is Accepted.NEW
            model = service.aggregate("default", NOW)
            assert (theta(model), model and model.version) == (3.0, 2)
