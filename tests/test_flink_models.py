"""A learner in Flink has the version of the global model that is meant for it, and only what is signed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pyflink.common import Row

from flead import network
from flead.learner import DeviceLearner
from flead.learner_config import Adoption, LearnerConfig
from flead.messages import GlobalModel, Stage
from flead.rollout import is_canary, share_for
from flead.signatures import public_text, sign
from flink.functions import DEAD_LETTERS, GLOBAL_MODELS, Learn
from flink.job_config import JobConfig, Topics

NAMES = ("readings", "predictions", "local_updates", "global_model", "alerts", "dead_letters")
DEVICES = [f"d{i}" for i in range(20)]
SHARE = share_for(DEVICES, "t", 2, 0.1)
CANARY = next(name for name in DEVICES if is_canary(name, "t", 2, SHARE))
OTHER = next(name for name in DEVICES if not is_canary(name, "t", 2, SHARE))
KEY = Ed25519PrivateKey.generate()
LEARNER = LearnerConfig(adoption=Adoption.REPLACE)


class Kept:
    """A state of one value, and what a function is told of where it runs."""

    def __init__(self) -> None:
        self.values: dict[Any, Any] = {}

    def get_state(self, _descriptor: object) -> Kept:
        return self

    def value(self) -> Any:
        return self.values.get(None)

    def update(self, value: Any) -> None:
        self.values[None] = value

    def get_broadcast_state(self, descriptor: object) -> Kept:
        assert descriptor is GLOBAL_MODELS
        return self

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def put(self, key: str, value: Any) -> None:
        self.values[key] = value


class Job:
    """The operator that learns, over states that a test can look into; one keyed state for each device."""

    def __init__(self, *trusted: str, learner: LearnerConfig = LEARNER) -> None:
        self.learner = learner
        topics = Topics(**{name: f"flead.{name}" for name in NAMES})
        config = JobConfig(bootstrap_servers="", topics=topics, checkpoints="", learner=learner, trusted_keys=trusted)
        self.operators: dict[str, Learn] = {name: Learn(config) for name in DEVICES}
        self.states = {name: Kept() for name in DEVICES}
        for name, operator in self.operators.items():
            operator.open(self.states[name])
        self.broadcast = Kept()
        self.dead: list[dict[str, Any]] = []

    def publish(self, model: GlobalModel) -> None:
        raw = model.model_dump_json().encode()
        for operator in self.operators.values():
            for tag, row in operator.process_broadcast_element(Row(b"t", raw, 0, 0), self.broadcast):
                assert tag is DEAD_LETTERS
                self.dead.append(orjson.loads(row[1]))

    def version_of(self, device: str) -> tuple[int, float]:
        """The version that a device has after its next reading, and what its parameters are about."""
        reading = orjson.dumps(["2024-01-01T00:00:00Z", 1_704_067_200.0, {"t": None}, 0, 0, 0])
        list(self.operators[device].process_element(Row(device, reading), self.broadcast))
        learner = DeviceLearner.from_bytes(self.states[device].value(), self.learner)
        return learner.base_version, float(np.median(learner.theta))


def model(
    version: int, value: float, stage: Stage = Stage.STABLE, share: float = 1.0, config: LearnerConfig = LEARNER
) -> GlobalModel:
    sizes = DeviceLearner(("t",), config).architecture
    theta = np.full(sizes.parameter_count, value)
    made = {"num_devices": 20, "total_samples": 2_000, "aggregation_strategy": "fedavg", "share": share, "stage": stage}
    weights = network.to_message(theta, sizes)
    at = datetime(2024, 1, 1, tzinfo=UTC)
    return GlobalModel.model_validate({"cohort": "t", "version": version, "weights": weights, "timestamp": at, **made})


@pytest.fixture
def job() -> Job:
    made = Job()
    made.publish(model(1, 0.25))
    return made


def test_a_canary_is_for_a_few_and_its_promotion_for_all(job: Job) -> None:
    job.publish(model(2, 0.5, Stage.CANARY, SHARE))
    assert job.version_of(CANARY) == (2, 0.5)
    assert job.version_of(OTHER) == (1, 0.25)
    job.publish(model(2, 0.5))
    assert job.version_of(OTHER) == job.version_of(CANARY) == (2, 0.5)


def test_who_had_what_was_taken_back_returns_to_the_stable_one(job: Job) -> None:
    job.publish(model(2, 0.5, Stage.CANARY, SHARE))
    assert job.version_of(CANARY) == (2, 0.5)
    job.publish(model(2, 0.5, Stage.ROLLED_BACK, SHARE))
    assert job.version_of(CANARY) == job.version_of(OTHER) == (1, 0.25)
    job.publish(model(3, 0.75))
    assert job.version_of(CANARY) == (3, 0.75)


def test_a_stable_version_that_was_taken_back_is_given_up_by_all(job: Job) -> None:
    job.publish(model(2, 0.5))
    assert job.version_of(OTHER) == (2, 0.5)
    job.publish(model(1, 0.25))
    assert job.version_of(OTHER) == (1, 0.25)


def test_a_network_of_other_layers_is_for_nobody_though_it_has_as_many_parameters() -> None:
    # Two inputs and two outputs: hidden layers of 3 and 2 take as many weights and biases as layers of 2 and 3.
    small = {"adoption": Adoption.REPLACE, "features": ("lag_1", "gap"), "skip": False}
    ours, other = (LearnerConfig.model_validate(small | {"hidden_sizes": sizes}) for sizes in ((3, 2), (2, 3)))
    job = Job(learner=ours)
    job.publish(model(1, 0.25, config=other))
    assert job.version_of(OTHER)[0] == 0
    job.publish(model(1, 0.25, config=ours))
    assert job.version_of(OTHER) == (1, 0.25)


def test_after_a_restart_the_broadcast_state_says_the_same(job: Job) -> None:
    job.publish(model(2, 0.5, Stage.CANARY, SHARE))
    for name in DEVICES:
        job.operators[name].open(job.states[name])
    assert job.version_of(CANARY) == (2, 0.5)
    assert job.version_of(OTHER) == (1, 0.25)


def test_what_no_trusted_server_signed_goes_to_the_dead_letters() -> None:
    job = Job(public_text(KEY.public_key()))
    good = sign(model(1, 0.25), KEY)
    job.publish(good)
    forged = json.loads(good.model_dump_json()) | {"version": 2}
    for bad in (GlobalModel.model_validate(forged), model(3, 0.5), sign(model(4, 0.5), Ed25519PrivateKey.generate())):
        job.publish(bad)
    assert {letter["reason"] for letter in job.dead} == {"forged"}
    assert job.version_of(OTHER) == (1, 0.25)


def test_a_reading_at_which_a_model_fails_is_a_dead_letter_and_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch, job: Job
) -> None:
    job.version_of(OTHER)
    before = job.states[OTHER].value()
    with monkeypatch.context() as broken:
        broken.setattr(DeviceLearner, "take_update", lambda *_: 1 / 0)
        reading = orjson.dumps(["2024-01-01T00:01:00Z", 1_704_067_260.0, {"t": 3.5}, 2, 7, 0])
        ((tag, row),) = job.operators[OTHER].process_element(Row(OTHER, reading), job.broadcast)
    assert tag is DEAD_LETTERS
    letter = orjson.loads(row[1])
    assert (letter["reason"], letter["source"]["offset"]) == ("learner_failed", 7)
    assert letter["detail"] == f"the model of {OTHER}: ZeroDivisionError: division by zero"
    assert job.states[OTHER].value() == before
    assert DeviceLearner.from_bytes(before, LEARNER).samples_seen == 1
    job.version_of(OTHER)
    assert DeviceLearner.from_bytes(job.states[OTHER].value(), LEARNER).samples_seen == 2
