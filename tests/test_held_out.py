"""What the global server keeps of the reference devices' readings, and how it judges models by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from numpy.testing import assert_allclose

from flead import network
from flead.errors import Unavailable
from flead.evaluation import Series, examples_of
from flead.learner_config import LearnerConfig
from flead.messages import Reading, ReadingLimits
from flead.network import Architecture, Vector
from flead.state import architecture_of
from flead.training import train
from global_server.held_out import FEWEST, MOST_EXAMPLES, HeldOut, HeldOutReadings
from kafka.client import make_producer
from kafka.topics import READINGS
from tests.fixtures_storage import wait_until

CONFIG = LearnerConfig()
COHORT = "humidity+temperature"
SENSORS = ("humidity", "temperature")
ARCHITECTURE = architecture_of(CONFIG, 2)
START = datetime(2024, 1, 1, tzinfo=UTC)


def values(count: int, seed: int = 0) -> Vector:
    """A reading each 60 s that swings, (count, 2)."""
    minutes = np.arange(count)[:, None]
    swing = np.sin(2 * np.pi * minutes / np.array([40.0, 60.0]))
    found: Vector = 20.0 + 5.0 * swing + 0.1 * np.random.default_rng(seed).normal(size=(count, 2))
    return found


def filled(count: int = 600, most: int = 2_000, devices: tuple[str, ...] = ("a", "b")) -> HeldOutReadings:
    readings = HeldOutReadings(frozenset(devices), most, CONFIG)
    for seed, device in enumerate(devices):
        for minute, row in enumerate(values(count, seed)):
            readings.take(device, START.timestamp() + 60.0 * minute, dict(zip(SENSORS, row.tolist(), strict=True)))
    return readings


def models() -> Vector:
    """One that has learned what these sensors do, one that forecasts no change, and one that forecasts nonsense."""
    times = START.timestamp() + 60.0 * np.arange(600)
    known = examples_of(Series("c", times, values(600, 9)), CONFIG)
    idle = network.initial(ARCHITECTURE, np.random.default_rng(0))
    learned = train(idle, ARCHITECTURE, known, np.random.default_rng(0), epochs=10, rate=0.005)
    return np.stack((learned, idle, -learned))


def test_models_are_judged_by_what_they_forecast() -> None:
    losses = filled().losses(COHORT, models(), ARCHITECTURE)
    assert losses is not None
    assert losses[0] < 0.5 * losses[1] < losses[2]


def test_what_is_kept_are_the_examples_of_offline_training() -> None:
    readings = filled(400, devices=("a",))
    examples = readings.examples(COHORT)
    expected = examples_of(Series("a", START.timestamp() + 60.0 * np.arange(400), values(400)), CONFIG)
    known = expected[np.flatnonzero(expected.weights.any(axis=1))]
    assert examples is not None
    assert len(known) <= MOST_EXAMPLES
    assert_allclose(examples.features, known.features)
    assert_allclose(examples.targets, known.targets)


def test_the_order_in_which_readings_come_does_not_matter() -> None:
    late, row = HeldOutReadings(frozenset({"a"}), 2_000, CONFIG), values(400)
    for minute in np.random.default_rng(0).permutation(400).tolist():
        late.take("a", START.timestamp() + 60.0 * minute, dict(zip(SENSORS, row[minute].tolist(), strict=True)))
    found, expected = late.examples(COHORT), filled(400, devices=("a",)).examples(COHORT)
    assert found is not None
    assert expected is not None
    assert_allclose(found.features, expected.features)


def test_memory_is_bounded_and_old_readings_go() -> None:
    readings = filled(900, most=300, devices=("a",))
    kept = readings.examples(COHORT)
    newest = examples_of(Series("a", START.timestamp() + 60.0 * np.arange(600, 900), values(900)[600:]), CONFIG)
    assert kept is not None
    assert len(kept) <= 300
    assert_allclose(kept.features[0], newest.features[0])
    many = filled(1_500, most=1_500).examples(COHORT)
    assert many is not None
    assert len(many) == MOST_EXAMPLES


def test_newer_readings_change_the_judgement() -> None:
    readings, judged = filled(), models()
    before = readings.losses(COHORT, judged, ARCHITECTURE)
    for minute in range(600, 700):
        readings.take("a", START.timestamp() + 60.0 * minute, {"humidity": 20.0, "temperature": 20.0})
    after = readings.losses(COHORT, judged, ARCHITECTURE)
    assert before is not None
    assert after is not None
    assert not np.array_equal(before, after)


@pytest.mark.parametrize("cohort", ["light", "default"])
def test_nothing_is_said_of_a_cohort_of_which_nothing_is_known(cohort: str) -> None:
    assert filled().losses(cohort, models(), ARCHITECTURE) is None


def test_nothing_is_said_on_too_little() -> None:
    assert filled(FEWEST // 2, devices=("a",)).losses(COHORT, models(), ARCHITECTURE) is None


@pytest.mark.parametrize(
    "foreign", [Architecture(4, (), 4), Architecture(33, (32,), 4), Architecture(33, (32,), 6, skip=True)]
)
def test_nothing_is_said_of_models_that_are_not_our_learners(foreign: Architecture) -> None:
    assert filled().losses(COHORT, np.zeros((2, foreign.parameter_count)), foreign) is None


def test_a_device_that_gets_a_sensor_changes_its_cohort() -> None:
    readings = filled(300, devices=("a",))
    readings.take("a", START.timestamp() + 60.0 * 300, {"humidity": 20.0, "light": 4.0, "temperature": None})
    assert readings.examples(COHORT) is None
    assert readings.examples("humidity+light+temperature") is not None


def sent(device: str, row: Vector, minute: int) -> bytes:
    named = dict(zip(SENSORS, row.tolist(), strict=True))
    return Reading(device_id=device, timestamp=START + timedelta(minutes=minute), sensors=named).to_json()


@contextmanager
def following(servers: str, *devices: str) -> Iterator[HeldOut]:
    held_out = HeldOut(servers, HeldOutReadings(frozenset(devices), 1_000, CONFIG), ReadingLimits())
    held_out.start()
    try:
        yield held_out
    finally:
        held_out.stop()
        assert not held_out.is_alive()


def fails_once(take: Callable[[bytes | None], None]) -> Callable[[bytes | None], None]:
    failures = [Unavailable("away for a moment")]

    def take_(value: bytes | None) -> None:
        if failures:
            raise failures.pop()
        take(value)

    return take_


@pytest.mark.servers
def test_the_reference_devices_readings_are_followed_and_no_other_devices(
    kafka_servers: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer, rows = make_producer(kafka_servers), values(240)
    for minute in range(200):
        for device in ("held-out-1", "not-held-out"):
            producer.produce(READINGS, sent(device, rows[minute], minute), device)
    producer.produce(READINGS, b"{", "held-out-1")
    assert producer.flush(20) == 0
    with following(kafka_servers, "held-out-1") as held_out:  # what came before it began is known, too
        wait_until(lambda: held_out.losses(COHORT, models(), ARCHITECTURE) is not None)
        wait_until(lambda: held_out.readings.count("held-out-1") == 200)
        for minute in range(200, 240):
            producer.produce(READINGS, sent("held-out-1", rows[minute], minute), "held-out-1")
        assert producer.flush(20) == 0
        wait_until(lambda: held_out.readings.count("held-out-1") == 240)
        monkeypatch.setattr(held_out, "_take", fails_once(held_out._take))
        producer.produce(READINGS, sent("held-out-1", rows[0], 240), "held-out-1")
        assert producer.flush(20) == 0
        wait_until(lambda: held_out.readings.count("held-out-1") >= 241)
        assert held_out.readings.count("held-out-1") == 241, "it went on where it was, and took nothing twice"
        assert held_out.readings.count("not-held-out") == 0
