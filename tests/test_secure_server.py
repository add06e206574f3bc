from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI, Request

from config.aggregation import AggregationSettings, Rules
from config.secure import SecureSettings
from edge.secure import Outcome, Participation, SecureDevice
from flead import network
from flead.errors import BadSecureSum, BadUpdate, Unavailable, WrongPhase
from flead.federation import Krum
from flead.messages import GlobalModel, LocalUpdate
from flead.network import Architecture, Vector
from flead.privacy import Privacy
from flead.secure_sum import Kind, Party, Share, Words
from global_server import problems
from global_server.access.audit import Audit
from global_server.access.guard import Guard
from global_server.access.roles import Principal, Role
from global_server.memory import Accepted
from global_server.rounds import RoundService
from global_server.routes import secure as secure_routes
from global_server.secure import MAX_OPEN, Phase, SecureSums, Session
from storage.rounds import RoundRepository
from tests.fixtures_http import live
from tests.fixtures_storage import Mongo

NOW = datetime(2024, 6, 1, tzinfo=UTC)
SHAPE = Architecture(2, (3,), 1)
SIZE = SHAPE.parameter_count
SETTINGS = SecureSettings(
    devices=10, min_devices=4, threshold=0.67, gather_s=60, phase_s=30, max_samples=1_000, max_weight=10.0
)
LATER = timedelta(seconds=61)
SECONDS = timedelta(seconds=1)


@dataclass
class Recorder:
    """Rounds that only remember what they were given."""

    updates: list[LocalUpdate] = field(default_factory=list)
    error: Exception | None = None
    outcome: Accepted = Accepted.NEW
    global_model: GlobalModel | None = None
    how: Rules = field(default_factory=Rules)

    def accept(self, message: LocalUpdate, _now: datetime) -> Accepted:
        if self.error:
            raise self.error
        self.updates.append(message)
        return self.outcome

    def aggregate_ready(self, _now: datetime) -> None:
        pass

    def model(self, _cohort: str) -> GlobalModel | None:
        return self.global_model

    def rules(self, _cohort: str) -> Rules:
        return self.how


class Fleet:
    """Devices that speak to a session directly, each with a model and its samples."""

    def __init__(self, sums: SecureSums, session: Session, n: int) -> None:
        rng = np.random.default_rng(n)
        self.sums = sums
        self.session = session
        self.models: dict[str, Vector] = {f"mote-{i}": rng.normal(0, 1, SIZE) for i in range(n)}
        self.samples = {name: int(rng.integers(1, 1_000)) for name in self.models}
        self.parties = {name: Party(session.id, name, rng.bytes) for name in self.models}

    def keys(self, names: list[str], now: datetime = NOW) -> None:
        for name in names:
            with self.sums.at(self.session.id, now) as session:
                assert session
                session.add_keys(name, self.parties[name].keys)

    def shares(self, names: list[str], now: datetime = NOW) -> None:
        for name in names:
            with self.sums.at(self.session.id, now) as session:
                assert session
                session.add_shares(name, self.parties[name].share(*session.roster()))

    def masked_of(self, name: str, session: Session) -> Words:
        values = session.encoding.encode(self.models[name], self.samples[name])
        return self.parties[name].mask(values, session.sealed_for(name))

    def masked(self, names: list[str], now: datetime = NOW) -> None:
        for name in names:
            with self.sums.at(self.session.id, now) as session:
                assert session
                session.add_masked(name, self.masked_of(name, session))

    def unmask(self, names: list[str], now: datetime = NOW) -> None:
        for name in names:
            with self.sums.at(self.session.id, now) as session:
                assert session
                session.add_opened(name, self.parties[name].open(session.survivors))

    def mean(self, names: list[str]) -> Vector:
        weights = np.array([self.samples[name] for name in names], dtype=np.float64)
        mean: Vector = weights @ np.stack([self.models[name] for name in names]) / weights.sum()
        return mean


def started(n: int = 10, settings: SecureSettings = SETTINGS) -> tuple[SecureSums, Recorder, Session, Fleet, list[str]]:
    recorder = Recorder()
    sums = SecureSums(recorder, settings)
    session = sums.open("light", SHAPE, NOW)
    fleet = Fleet(sums, session, n)
    return sums, recorder, session, fleet, list(fleet.models)


def phase_of(session: Session) -> Phase:
    """Asked by a function, so that mypy does not take it for what it was before."""
    return session.phase


def theta_of(update: LocalUpdate) -> Vector:
    return network.from_message(update.weights)[0]


def assert_forgotten(session: Session) -> None:
    kept = (session.keys, session._sealed, session._masked, session._opened, session._total, session._update)
    assert not any(kept)


class TestASession:
    def test_gives_one_update_that_is_the_weighted_mean_of_all(self) -> None:
        _sums, recorder, session, fleet, names = started()
        for step in (fleet.keys, fleet.shares, fleet.masked):
            step(names)
        assert phase_of(session) is Phase.UNMASK
        assert session.threshold == 7
        fleet.unmask(names[:7])
        assert phase_of(session) is Phase.DONE
        [update] = recorder.updates
        assert update.device_id == f"secure-sum-{session.id}"
        assert update.metadata == {"cohort": "light", "devices": 10}
        assert update.sample_count == session.samples == sum(fleet.samples.values())
        np.testing.assert_allclose(theta_of(update), fleet.mean(names), rtol=0, atol=1e-9)
        assert_forgotten(session)

    def test_goes_on_without_those_who_leave_at_each_step(self) -> None:
        _sums, recorder, session, fleet, names = started(13, SETTINGS.model_copy(update={"devices": 13}))
        fleet.keys(names[:12])
        assert phase_of(session) is Phase.KEYS
        now = NOW + LATER
        fleet.shares(names[:11], now)  # one more leaves
        now += LATER
        fleet.masked(names[1:11], now)  # one leaves whose masks are in the sum
        now += LATER
        fleet.unmask(names[1:10], now)  # one of the sum does not help
        assert phase_of(session) is Phase.DONE
        [update] = recorder.updates
        assert update.metadata["devices"] == 10
        np.testing.assert_allclose(theta_of(update), fleet.mean(names[1:11]), rtol=0, atol=1e-9)

    @pytest.mark.parametrize("step", ["keys", "shares", "masked", "unmask"])
    def test_is_abandoned_and_forgets_where_too_few_stay(self, step: str) -> None:
        sums, recorder, session, fleet, names = started()
        now = NOW
        for name, action in (
            ("keys", fleet.keys), ("shares", fleet.shares), ("masked", fleet.masked), ("unmask", fleet.unmask)
        ):  # fmt: skip
            if name == step:
                action(names[:3], now)
                break
            action(names, now)
        sums.tick(now + LATER)
        assert phase_of(session) is Phase.ABANDONED
        assert session.reason is not None
        assert f"at step {step} 3 devices" in session.reason
        assert recorder.updates == []
        assert_forgotten(session)
        with pytest.raises(WrongPhase, match="abandoned"):
            session.add_masked("mote-0", np.zeros(SIZE + 1, np.uint64))

    def test_keeps_no_values_of_a_device(self) -> None:
        _sums, _recorder, session, fleet, names = started()
        fleet.keys(names)
        fleet.shares(names)
        fleet.masked(names[:5])
        assert session._total is not None
        assert session._total.shape == (SIZE + 1,)
        assert all(len(mark) == 32 for mark in session._masked.values())

    def test_takes_the_same_step_twice_and_counts_it_once(self) -> None:
        _sums, recorder, session, fleet, names = started()
        fleet.keys(names[:9])
        fleet.keys(names[:1])
        fleet.keys(names[9:])
        fleet.shares([*names[:9], *names[:2], names[9]])
        fleet.masked([*names[:9], *names[:5], names[9]])
        fleet.unmask([*names[:3], *names])
        np.testing.assert_allclose(theta_of(recorder.updates[0]), fleet.mean(names), rtol=0, atol=1e-9)
        assert len(recorder.updates) == 1
        assert phase_of(session) is Phase.DONE

    def test_refuses_a_second_and_different_step(self) -> None:
        _sums, _recorder, session, fleet, names = started()
        fleet.keys(names[:1])
        other = Party(session.id, "mote-0", np.random.default_rng(99).bytes).keys
        with pytest.raises(WrongPhase, match="something else at step keys"):
            session.add_keys("mote-0", other)

    def test_refuses_who_is_not_in_it_and_what_is_not_due(self) -> None:
        _sums, _recorder, session, fleet, names = started()
        with pytest.raises(WrongPhase, match="still gathers keys"):
            session.roster()
        with pytest.raises(WrongPhase, match="'sybil' is not"):
            session.add_shares("sybil", {})
        fleet.keys(names)
        with pytest.raises(BadSecureSum, match="one for each other device"):
            session.add_shares("mote-0", {"mote-1": b""})
        with pytest.raises(WrongPhase, match="'mote-0' is not, or no longer"):
            session.add_masked("mote-0", np.zeros(SIZE + 1, np.uint64))
        with pytest.raises(WrongPhase, match="at step shares, no longer"):
            session.add_keys("late", fleet.parties["mote-0"].keys)
        fleet.shares(names)
        with pytest.raises(BadSecureSum, match=f"this model takes {SIZE + 1}"):
            session.add_masked("mote-0", np.zeros(SIZE, np.uint64))

    def test_is_abandoned_where_shares_do_not_fit_and_nobody_else_can_help(self) -> None:
        sums, recorder, session, fleet, names = started()
        fleet.keys(names)
        fleet.shares(names)
        fleet.masked(names)
        session.add_opened("mote-0", {name: Share(Kind.SEED, bytes(33)) for name in names})
        fleet.unmask(names[1:7])
        assert phase_of(session) is Phase.UNMASK  # a wrong share: more help may come
        sums.tick(NOW + LATER)
        assert phase_of(session) is Phase.ABANDONED
        assert "do not make the secret" in str(session.reason)
        assert recorder.updates == []

    def test_survives_one_wrong_helper_where_another_can_help(self) -> None:
        sums, recorder, session, fleet, names = started()
        fleet.keys(names)
        fleet.shares(names)
        fleet.masked(names)
        session.add_opened("mote-0", {name: Share(Kind.SEED, bytes(33)) for name in names})
        fleet.unmask(names[1:8])
        sums.tick(NOW + LATER)
        assert phase_of(session) is Phase.DONE
        np.testing.assert_allclose(theta_of(recorder.updates[0]), fleet.mean(names), rtol=0, atol=1e-9)

    def test_is_abandoned_where_a_device_did_not_keep_to_the_encoding(self) -> None:
        _sums, recorder, session, fleet, names = started()
        fleet.keys(names)
        fleet.shares(names)
        poison = fleet.masked_of("mote-0", session)
        session.add_masked("mote-0", poison + np.uint64(2**61))
        fleet.masked(names[1:])
        fleet.unmask(names)
        assert phase_of(session) is Phase.ABANDONED
        assert "encoding" in str(session.reason)
        assert recorder.updates == []

    def test_goes_on_at_once_where_it_is_closed(self) -> None:
        sums, recorder, session, fleet, names = started()
        fleet.keys(names[:6])
        with sums.at(session.id, NOW):
            sums.close(session, NOW)
        assert phase_of(session) is Phase.SHARES
        for step in (fleet.shares, fleet.masked, fleet.unmask):
            step(names[:6])
        assert recorder.updates[0].metadata["devices"] == 6


class TestTheResult:
    def done_but_for_storing(
        self, error: Exception | None = None, outcome: Accepted = Accepted.NEW
    ) -> tuple[SecureSums, Recorder, Session]:
        sums, recorder, session, fleet, names = started()
        recorder.error, recorder.outcome = error, outcome
        for step in (fleet.keys, fleet.shares, fleet.masked):
            step(names)
        fleet.unmask(names[:7])  # just enough
        return sums, recorder, session

    def test_waits_for_mongodb_and_is_stored_under_the_same_key(self) -> None:
        sums, recorder, session = self.done_but_for_storing(Unavailable("away"))
        assert phase_of(session) is Phase.UNMASK
        recorder.error = None
        sums.tick(NOW + SECONDS)
        assert phase_of(session) is Phase.DONE
        assert recorder.updates[0].timestamp == NOW  # the key has the time: tried again, it is the same update

    def test_is_given_up_where_mongodb_stays_away(self) -> None:
        sums, recorder, session = self.done_but_for_storing(Unavailable("away"))
        sums.tick(NOW + LATER)
        assert phase_of(session) is Phase.ABANDONED
        assert "could not be stored: away" in str(session.reason)
        assert recorder.updates == []

    def test_that_must_not_enter_a_round_ends_the_session(self) -> None:
        _sums, _recorder, session = self.done_but_for_storing(BadUpdate("norm too large"))
        assert phase_of(session) is Phase.ABANDONED
        assert session.reason == "the sum must not enter a round: norm too large"

    def test_that_is_not_used_is_not_said_to_be_done(self) -> None:
        """The version that it began from was taken back meanwhile."""
        _sums, _recorder, session = self.done_but_for_storing(outcome=Accepted.OUTDATED)
        assert phase_of(session) is Phase.ABANDONED
        assert session.reason == "the sum must not enter a round: it is outdated"
        assert_forgotten(session)

    def test_that_was_stored_before_an_answer_was_lost_is_done(self) -> None:
        _sums, _recorder, session = self.done_but_for_storing(outcome=Accepted.DUPLICATE)
        assert phase_of(session) is Phase.DONE

    def test_names_the_global_model_that_it_began_from(self) -> None:
        recorder = Recorder(global_model=_model(7))
        sums = SecureSums(recorder, SETTINGS)
        session = sums.open("light", None, NOW)
        fleet = Fleet(sums, session, 10)
        for step in (fleet.keys, fleet.shares, fleet.masked, fleet.unmask):
            step(list(fleet.models))
        assert recorder.updates[0].metadata["base_version"] == 7


def _model(version: int) -> GlobalModel:
    return GlobalModel.model_validate(
        {
            "cohort": "light",
            "version": version,
            "weights": network.to_message(np.zeros(SIZE), SHAPE),
            "timestamp": NOW,
            "num_devices": 1,
            "total_samples": 1,
            "aggregation_strategy": "fedavg",
        }
    )


class TestOpening:
    def test_gathers_in_one_session_per_cohort(self) -> None:
        sums = SecureSums(Recorder(), SETTINGS)
        first = sums.open("light", SHAPE, NOW)
        assert sums.open("light", None, NOW) is first
        assert sums.open("heavy", SHAPE, NOW) is not first
        assert sums.join("light", SHAPE, NOW) is first

    def test_is_left_to_operators_unless_it_is_automatic(self) -> None:
        assert SecureSums(Recorder(), SETTINGS).join("light", SHAPE, NOW) is None
        automatic = SecureSums(Recorder(), SETTINGS.model_copy(update={"automatic": True}))
        assert automatic.join("light", SHAPE, NOW) is not None

    def test_needs_an_architecture_and_the_right_one(self) -> None:
        with pytest.raises(BadSecureSum, match="name the architecture"):
            SecureSums(Recorder(), SETTINGS).open("light", None, NOW)
        with pytest.raises(BadSecureSum, match="cohort 'light' is 2-3-1"):
            SecureSums(Recorder(global_model=_model(1)), SETTINGS).open("light", Architecture(1, (), 1), NOW)
        with pytest.raises(BadSecureSum, match="the limit is 40000"):
            SecureSums(Recorder(), SETTINGS).open("light", Architecture(1_000, (1_000,), 1), NOW)

    @pytest.mark.parametrize(
        ("how", "who"),
        [(Rules(strategy=Krum()), "krum"), (Rules(privacy=Privacy(enabled=True)), "privacy")],
    )
    def test_is_refused_where_rounds_look_at_each_update(self, how: Rules, who: str) -> None:
        with pytest.raises(BadSecureSum, match=f"{who} looks at each device's update"):
            SecureSums(Recorder(how=how), SETTINGS).open("light", SHAPE, NOW)

    def test_has_a_limit_that_sessions_out_of_time_do_not_count_for(self) -> None:
        sums = SecureSums(Recorder(), SETTINGS)
        for i in range(MAX_OPEN):
            sums.open(f"cohort-{i}", SHAPE, NOW)
        with pytest.raises(WrongPhase, match=f"{MAX_OPEN} secure sums go on"):
            sums.open("one-more", SHAPE, NOW)
        assert sums.open("one-more", SHAPE, NOW + LATER).phase is Phase.KEYS

    def test_refuses_settings_that_cannot_work(self) -> None:
        with pytest.raises(ValueError, match="min_devices"):
            SecureSettings(devices=5, min_devices=6)
        with pytest.raises(ValueError, match="devices \\* max_samples"):
            SecureSettings(devices=1_000, max_samples=2_000_000)


# Over REST, as it is used.


class StubGuard(Guard):
    """Everybody is who the header says."""

    async def device(self, request: Request) -> Principal:
        return Principal(request.headers.get("x-device", "nobody"), Role.DEVICE)


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def application(sums: SecureSums, clock: Clock) -> FastAPI:
    app = FastAPI()
    problems.install(app)
    audit = Audit(clock=clock)
    app.include_router(secure_routes.routes(sums, StubGuard(audit), audit, clock=clock))
    return app


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def url(recorder: Recorder, clock: Clock) -> Iterator[str]:
    with live(application(SecureSums(recorder, SETTINGS), clock)) as url:
        yield url


@contextmanager
def devices(url: str, n: int) -> Iterator[list[SecureDevice]]:
    names = [f"mote-{i}" for i in range(n)]
    clients = [httpx.Client(base_url=url, headers={"x-device": name}, timeout=30) for name in names]
    try:
        yield [SecureDevice(client, name) for client, name in zip(clients, names, strict=True)]
    finally:
        for client in clients:
            client.close()


def opened(url: str) -> dict[str, Any]:
    body = {"cohort": "light", "architecture": SHAPE.as_dict()}
    answer = httpx.post(f"{url}/api/secure/sessions", json=body)
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.servers
def test_ten_devices_of_which_three_drop_out_make_a_round_over_rest(mongo: Mongo, clock: Clock) -> None:
    def publish(_model: GlobalModel) -> None:
        raise Unavailable("no broker here")

    rounds = RoundService(RoundRepository(mongo.database), AggregationSettings(min_devices=1), publish)
    rounds.load()
    rng = np.random.default_rng(0)
    models, samples = rng.normal(0, 1, (10, SIZE)), rng.integers(1, 1_000, 10)
    with live(application(SecureSums(rounds, SETTINGS), clock)) as url, devices(url, 10) as fleet:
        session = opened(url)
        parts = [
            device.join(model, SHAPE, int(count), "light")
            for device, model, count in zip(fleet, models, samples, strict=True)
        ]
        steps(parts)  # keys; all are there, so that shares are next
        steps(parts[:9])  # shares; mote-9 is gone
        clock.now += LATER
        steps(parts[:8])  # values; mote-8 is gone, and its masks are in the sum
        clock.now += LATER
        steps(parts[:7])  # help; mote-7 is gone, its values are in the sum
        steps(parts[:7])
        assert {part.outcome for part in parts[:7]} == {Outcome(session["id"], counted=True, devices=8)}
        steps(parts[7:])
        assert [part.outcome.counted for part in parts[7:] if part.outcome] == [True, False, False]
        answer = httpx.get(f"{url}/api/secure/sessions/{session['id']}").json()
        assert (answer["phase"], answer["samples"]) == ("done", samples[:8].sum())
    model = rounds.model("light")
    assert model is not None
    theta, _ = network.from_message(model.weights)
    np.testing.assert_allclose(theta, samples[:8] @ models[:8] / samples[:8].sum(), rtol=0, atol=1e-9)
    assert model.total_samples == samples[:8].sum()


def steps(parts: list[Participation]) -> None:
    for part in parts:
        part.step()


@pytest.mark.servers
def test_devices_that_give_by_themselves(url: str, recorder: Recorder) -> None:
    opened(url)
    outcomes: list[Outcome] = []
    with devices(url, 10) as fleet:
        threads = [
            threading.Thread(
                target=lambda device=device: outcomes.append(
                    device.give(np.ones(SIZE), SHAPE, 5, "light", poll_s=0.005, limit_s=30)
                )
            )
            for device in fleet
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [outcome.counted for outcome in outcomes] == [True] * 10
    assert len(recorder.updates) == 1
    np.testing.assert_allclose(theta_of(recorder.updates[0]), np.ones(SIZE), rtol=0, atol=1e-9)


def test_a_device_that_gives_asks_again_for_a_server_that_is_away() -> None:
    ways = iter([httpx.ConnectError("away"), httpx.ConnectError("away"), None])
    slept: list[float] = []

    def answer(_request: httpx.Request) -> httpx.Response:
        if error := next(ways):
            raise error
        return httpx.Response(404, json={"detail": "no secure sum gathers"})

    with httpx.Client(base_url="http://x", transport=httpx.MockTransport(answer)) as client:
        device = SecureDevice(client, "mote-0")
        with pytest.raises(WrongPhase, match="no secure sum gathers"):
            device.give(np.ones(SIZE), SHAPE, 5, "light", sleep=slept.append, clock=lambda: float(len(slept)))
        ways = iter([httpx.ConnectError("away")] * 99)
        with pytest.raises(Unavailable, match="does not answer"):
            device.give(
                np.ones(SIZE), SHAPE, 5, "light", limit_s=3, sleep=slept.append, clock=lambda: float(len(slept))
            )
    assert slept == [1.0] * 5


@pytest.mark.servers
def test_what_goes_wrong_is_said_in_problem_documents(url: str) -> None:
    with httpx.Client(base_url=url, headers={"x-device": "mote-0"}) as client:
        body: dict[str, Any] = {"device_id": "mote-0", "cohort": "light", "architecture": SHAPE.as_dict()}
        assert client.post("/api/secure/join", json=body).status_code == 404
        session = opened(url)["id"]
        assert client.post("/api/secure/join", json=body).json()["id"] == session
        assert client.post("/api/secure/join", json=body | {"device_id": "mote-1"}).status_code == 403
        other = Architecture(1, (), 1).as_dict()
        assert client.post("/api/secure/join", json=body | {"architecture": other}).status_code == 422
        at = f"/api/secure/sessions/{session}"
        assert client.get("/api/secure/sessions/nonsense").status_code == 404
        assert client.get(f"{at}/roster").status_code == 409
        for keys in ({"channel": "?"}, {"channel": "QQ=="}, {}):
            answer = client.post(f"{at}/keys", json={"device_id": "mote-0", **keys})
            assert answer.status_code == 422
            assert answer.headers["content-type"] == "application/problem+json"
        assert client.post(f"{at}/masked", json={"device_id": "mote-0", "values": "QUFB" * 8}).status_code == 409
        assert client.post(f"{at}/masked", json={"device_id": "mote-0", "values": "QUFB" * 7}).status_code == 422
        ended = client.request("DELETE", at).json()
        assert (ended["phase"], ended["reason"]) == ("abandoned", "local ended it")
        assert [each["phase"] for each in client.get("/api/secure/sessions").json()["sessions"]] == ["abandoned"]


@pytest.mark.servers
def test_a_device_leaves_a_session_that_was_ended(url: str) -> None:
    session = opened(url)["id"]
    with devices(url, 1) as [device]:
        part = device.join(np.zeros(SIZE), SHAPE, 5, "light")
        assert part.step() == "keys"
        httpx.delete(f"{url}/api/secure/sessions/{session}")
        part.step()
        assert part.outcome == Outcome(session, counted=False, reason="local ended it")
        with pytest.raises(WrongPhase, match="no secure sum gathers"):
            device.join(np.zeros(SIZE), SHAPE, 5, "light")


@pytest.mark.servers
def test_closing_a_session_that_too_few_joined_abandons_it(url: str) -> None:
    session = opened(url)["id"]
    with devices(url, 3) as fleet:
        steps([device.join(np.zeros(SIZE), SHAPE, 5, "light") for device in fleet])
    answer = httpx.post(f"{url}/api/secure/sessions/{session}/close").json()
    assert answer["phase"] == "abandoned"
    assert answer["reason"] == "at step keys 3 devices were there in time, and 4 are needed"


def test_a_server_that_is_away_is_unavailable_and_one_that_talks_nonsense_is_refused() -> None:
    def away(_request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    def nonsense(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"id": "x", "encoding": {"devices": 1}})

    for answer, error in ((away, Unavailable), (nonsense, BadSecureSum)):
        with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://server") as client:
            device = SecureDevice(client, "mote-0")
            with pytest.raises(error):
                device.join(np.zeros(SIZE), SHAPE, 5, "light")


def test_every_body_shows_an_example_that_it_takes() -> None:
    bodies = ("OpenBody", "JoinBody", "KeysBody", "SharesBody", "MaskedBody", "UnmaskBody", "SessionAnswer")
    for body in (getattr(secure_routes, name) for name in bodies):
        [example] = body.model_config["json_schema_extra"]["examples"]
        assert body.model_validate(example).model_dump(mode="json") == example
