"""What every learner owes its device: honest forecasts, a small state that continues exactly, and no surprises."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from data.simulate import simulate
from flead.errors import BadConfiguration, BadModel
from flead.learner import STATE_LIMIT, Adoption, DeviceLearner, LearnerConfig, Outcome
from flead.messages import LocalUpdate, ReadingLimits, cohort_of
from flead.network import from_message

START = datetime(2024, 1, 1, tzinfo=UTC)
CONFIG = LearnerConfig()
MAX_SENSORS = ReadingLimits().max_sensors
Values = dict[str, float | None]

values = st.none() | st.floats(-1e15, 1e15) | st.sampled_from([0.0, 1e15, -1e15, 5e-324])
rows = st.fixed_dictionaries({}, optional={"a": values, "b": values}).filter(bool)
streams = st.lists(rows, min_size=1, max_size=120)


def when(number: int) -> str:
    """The time of a stream's reading, as it travels."""
    return (START + timedelta(seconds=30 * number)).isoformat()


def learner_of(*sensors: str, config: LearnerConfig = CONFIG) -> DeviceLearner:
    return DeviceLearner(sensors, config)


def taught(learner: DeviceLearner, stream: Iterable[Values]) -> list[Outcome]:
    return [learner.process(sensors) for sensors in stream]


def noise(count: int, *sensors: str, seed: int = 1) -> list[Values]:
    table = np.random.default_rng(seed).normal(20.0, 1.0, (count, len(sensors)))
    return [dict(zip(sensors, row, strict=True)) for row in table.tolist()]


def wave(count: int, level: float = 20.0) -> list[Values]:
    turns = (2 * math.pi * i / 24 for i in range(count))
    return [{"a": level + 3 * math.sin(turn), "b": level + 2 * math.cos(turn)} for turn in turns]


def numbers_of(outcome: Outcome) -> list[float]:
    return [
        *(outcome.expected or {}).values(),
        *outcome.forecast.values(),
        outcome.score,
        *([] if outcome.error is None else [outcome.error]),
    ]


@cache
def experienced_state() -> bytes:
    """A device's state after 100 readings."""
    learner = learner_of("a", "b")
    taught(learner, noise(100, "a", "b"))
    return learner.to_bytes()


class TestSameReadings:
    @settings(deadline=None, max_examples=40)
    @given(streams)
    def test_give_the_same_learner_to_the_last_byte(self, stream: list[Values]) -> None:
        one, other = learner_of("a", "b"), learner_of("a", "b")
        assert taught(one, stream) == taught(other, stream)
        assert one.to_bytes() == other.to_bytes()

    def test_and_another_seed_give_another_network(self) -> None:
        other = learner_of("a", "b", config=LearnerConfig(seed=1))
        assert not np.array_equal(other.theta, learner_of("a", "b").theta)

    def test_start_from_the_same_weights_on_every_device_of_a_cohort(self) -> None:
        assert_array_equal(learner_of("a", "b").theta, learner_of("a", "b").theta)
        assert not np.array_equal(learner_of("a", "b").theta, learner_of("a", "c").theta)

    def test_are_left_as_they_were(self) -> None:
        given_values: Values = {"a": 1.0, "b": None}
        learner_of("a", "b").process(given_values)
        assert given_values == {"a": 1.0, "b": None}


class TestState:
    @settings(deadline=None, max_examples=80)
    @given(streams, st.sets(st.integers(0, 119), max_size=6))
    def test_continues_exactly_as_if_it_had_never_stopped(self, stream: list[Values], stops: set[int]) -> None:
        steady, stopped = learner_of("a", "b"), learner_of("a", "b")
        for number, sensors in enumerate(stream):
            if number in stops:
                stopped = DeviceLearner.from_bytes(stopped.to_bytes(), CONFIG)
            assert stopped.process(sensors) == steady.process(sensors)
            assert stopped.take_update("m", when(number)) == steady.take_update("m", when(number))
        assert stopped.to_bytes() == steady.to_bytes()

    def test_continues_exactly_when_it_stops_after_every_reading(self) -> None:
        steady, stopped = learner_of("a", "b"), learner_of("a", "b")
        for number, sensors in enumerate(noise(400, "a", "b")):
            stopped = DeviceLearner.from_bytes(stopped.to_bytes(), CONFIG)
            if number == 250:
                assert stopped.adopt(steady.theta * 0.5, 3)
                assert steady.adopt(steady.theta * 0.5, 3)
            assert stopped.process(sensors) == steady.process(sensors)
        assert stopped.to_bytes() == steady.to_bytes()

    @pytest.mark.parametrize("count", [1, 4, MAX_SENSORS])
    def test_fits_its_limit_with_the_longest_names(self, count: int) -> None:
        names = tuple(sorted("\U0001f600" * 125 + f"{i:03}" for i in range(count)))
        learner = learner_of(*names)
        taught(learner, noise(50, *names))
        assert len(learner.to_bytes()) <= STATE_LIMIT

    @pytest.mark.parametrize("sign", ['"', "\\", "/", "\u2028"])
    def test_fits_its_limit_with_names_that_json_has_to_escape(self, sign: str) -> None:
        names = tuple(sorted(sign * 125 + f"{i:03}" for i in range(MAX_SENSORS)))
        assert len(learner_of(*names).to_bytes()) <= STATE_LIMIT
        assert DeviceLearner.from_bytes(learner_of(*names).to_bytes(), CONFIG).sensors == names

    def test_does_not_grow_over_20_000_readings(self) -> None:
        learner = learner_of("a", "b")
        taught(learner, wave(1000))
        before = len(learner.to_bytes())
        taught(learner, wave(19_000))
        assert len(learner.to_bytes()) <= before + 8  # the digits of its counters

    def test_keeps_everything_but_the_network_where_the_hidden_layers_changed(self) -> None:
        learner = learner_of("a", "b")
        taught(learner, noise(150, "a", "b"))
        changed = DeviceLearner.from_bytes(learner.to_bytes(), LearnerConfig(hidden_sizes=(4,)))
        assert changed.architecture.hidden_sizes == (4,)
        assert (changed.samples_seen, changed.since_update, changed.base_version) == (150, 150, 0)
        after = changed.process({"a": 20.0, "b": 20.0})
        assert after.expected == learner.process({"a": 20.0, "b": 20.0}).expected

    def test_of_another_layout_is_refused(self) -> None:
        with pytest.raises(BadModel, match="layout 9"):
            DeviceLearner.from_bytes(b"\x09" + learner_of("a").to_bytes()[1:], CONFIG)

    @pytest.mark.parametrize("hidden_sizes", [(1000,), (64, 64), (100_000, 100_000)])
    def test_that_would_not_fit_is_refused_before_it_exists(self, hidden_sizes: tuple[int, ...]) -> None:
        with pytest.raises(BadConfiguration, match=r"lower learner\.hidden_sizes or reading\.max_sensors"):
            LearnerConfig(hidden_sizes=hidden_sizes).check_state_fits(MAX_SENSORS)

    def test_fits_with_the_settings_that_are_shipped(self) -> None:
        CONFIG.check_state_fits(MAX_SENSORS)


class TestNumbers:
    @settings(deadline=None, max_examples=80)
    @given(streams)
    def test_are_finite_for_every_stream_of_finite_values(self, stream: list[Values]) -> None:
        learner = learner_of("a", "b")
        for outcome in taught(learner, stream):
            assert all(map(math.isfinite, numbers_of(outcome)))
            assert 0 <= outcome.score <= 1
            assert outcome.is_anomaly == (outcome.score >= CONFIG.threshold)
        assert np.isfinite(learner.theta).all()

    @pytest.mark.parametrize(
        "pattern",
        [[1e15, -1e15], [1e15, 0.0], [1e15] * 50 + [-1e15] * 50, [0.0], [1e15], [5e-324, 0.0], [1e15, 1e-15], [None]],
    )
    def test_are_finite_for_ever_in_the_worst_of_streams(self, pattern: list[float | None]) -> None:
        learner = learner_of("a", "b")
        stream: list[Values] = [{"a": v, "b": 20.0} for v in itertools.islice(itertools.cycle(pattern), 3000)]
        for outcome in taught(learner, stream):
            assert all(map(math.isfinite, numbers_of(outcome)))
        assert np.isfinite(np.frombuffer(learner.to_bytes()[-8 * 9 * 2 :])).all()
        assert np.abs(learner.theta).max() < 100

    def test_never_call_a_constant_an_anomaly(self) -> None:
        outcomes = taught(learner_of("a"), [{"a": 21.7}] * 500)
        assert not any(outcome.is_anomaly for outcome in outcomes)
        assert outcomes[-1].forecast["a"] == pytest.approx(21.7, abs=0.1)


class TestWhatIsMissing:
    @pytest.mark.parametrize("nothing", [{"a": None}, {"a": None, "b": None}])
    def test_teaches_nothing(self, nothing: Values) -> None:
        learner = learner_of("a", "b")
        taught(learner, noise(200, "a", "b"))
        theta, forecast = learner.theta.copy(), None
        for outcome in taught(learner, [nothing] * 100):
            assert (outcome.error, outcome.score, outcome.sensor) == (None, 0.0, None)
            assert forecast is None or outcome.forecast == forecast
            forecast = outcome.forecast
        assert_array_equal(learner.theta, theta)
        assert learner.samples_seen == 300

    def test_is_the_same_whether_null_or_not_named(self) -> None:
        null, absent = learner_of("a", "b"), learner_of("a", "b")
        for number, sensors in enumerate(noise(300, "a", "b")):
            only_a: Values = {"a": sensors["a"]}
            whole = number % 3 > 0
            one = null.process(sensors if whole else only_a | {"b": None})
            other = absent.process(sensors if whole else only_a)
            assert one == other
        assert_array_equal(null.theta, absent.theta)

    def test_leaves_the_other_sensors_statistics_alone(self) -> None:
        stream = noise(300, "a", "b")
        with_b, without_b = learner_of("a", "b"), learner_of("a", "b")
        taught(with_b, stream)
        taught(without_b, [{"a": sensors["a"], "b": None} for sensors in stream])
        assert with_b._rows["mean"][0] == without_b._rows["mean"][0]
        assert with_b._rows["variance"][0] == without_b._rows["variance"][0]

    def test_a_sensor_that_never_gave_a_value_has_no_forecast(self) -> None:
        outcomes = taught(learner_of("a", "b"), [{"a": 1.0, "b": None}] * 50)
        assert all(set(outcome.forecast) == {"a"} for outcome in outcomes)

    def test_a_device_that_never_gave_a_value_has_nothing_to_say(self) -> None:
        outcomes = taught(learner_of("a"), [{"a": None}] * 100)
        assert {(o.error, o.score, o.sensor, o.is_anomaly) for o in outcomes} == {(None, 0.0, None, False)}
        assert all(outcome.forecast == {} for outcome in outcomes)


class TestSensorsThatChange:
    def test_a_reading_with_the_known_sensors_changes_nothing(self) -> None:
        learner = learner_of("a", "b")
        assert learner.fitted({"a": 1.0, "b": 2.0}, 64) is learner
        assert learner.fitted({"a": None}, 64) is learner

    def test_a_new_sensor_moves_the_device_to_another_cohort_and_keeps_what_it_knows(self) -> None:
        learner = learner_of("a", "c")
        outcomes = taught(learner, noise(200, "a", "c"))
        successor = learner.fitted({"a": 20.0, "b": 5.0, "c": 20.0}, 64)
        assert (successor.sensors, successor.cohort) == (("a", "b", "c"), cohort_of(("a", "b", "c")))
        assert (successor.samples_seen, successor.base_version) == (200, 0)
        for field in ("mean", "variance", "residual_mean", "residual_variance", "count", "residual_count"):
            assert_array_equal(successor._rows[field][[0, 2]], learner._rows[field])
        outcome = successor.process({"a": 20.0, "b": 5.0, "c": 20.0})
        assert outcome.expected == outcomes[-1].forecast
        assert set(outcome.forecast) == {"a", "b", "c"}
        assert not outcome.is_anomaly

    def test_the_old_learner_is_left_as_it_was(self) -> None:
        learner = learner_of("a")
        taught(learner, noise(100, "a"))
        before = learner.to_bytes()
        successor = learner.fitted({"b": 1.0}, 64)
        taught(successor, noise(10, "a", "b"))
        assert learner.to_bytes() == before

    def test_a_sensor_not_named_for_long_leaves(self) -> None:
        learner = learner_of("a", "b", config=LearnerConfig(forget_after=50))
        taught(learner, noise(100, "a", "b"))
        taught(learner, noise(49, "a"))
        assert learner.fitted({"a": 1.0}, 64) is learner
        taught(learner, noise(1, "a"))
        successor = learner.fitted({"a": 1.0}, 64)
        assert (successor.sensors, successor.cohort, successor.samples_seen) == (("a",), "a", 150)
        assert_array_equal(successor._rows["mean"], learner._rows["mean"][:1])

    def test_a_sensor_that_is_named_again_in_time_stays(self) -> None:
        learner = learner_of("a", "b", config=LearnerConfig(forget_after=50))
        for _ in range(5):
            taught(learner, noise(49, "a"))
            assert learner.fitted({"a": 1.0}, 64) is learner
            taught(learner, [{"a": 20.0, "b": None}])  # named without a value is named

    def test_a_sensor_that_gives_null_for_ever_stays(self) -> None:
        learner = learner_of("a", "b", config=LearnerConfig(forget_after=50))
        taught(learner, [{"a": 20.0, "b": None}] * 200)
        assert learner.fitted({"a": 20.0, "b": None}, 64) is learner

    def test_a_device_may_change_all_its_sensors(self) -> None:
        learner = learner_of("a", config=LearnerConfig(forget_after=10))
        taught(learner, noise(20, "a"))
        for _ in range(30):
            learner = learner.fitted({"b": 1.0}, 64)
            learner.process({"b": 1.0})
        assert (learner.sensors, learner.samples_seen) == (("b",), 50)

    def test_a_sensor_that_comes_and_goes_keeps_its_cohort(self) -> None:
        learner, cohorts = learner_of("a", "b"), set()
        for number in range(300):
            sensors: Values = {"a": 1.0, "b": 2.0} if number % 20 == 0 else {"a": 1.0}
            learner = learner.fitted(sensors, 64)
            learner.process(sensors)
            cohorts.add(learner.cohort)
        assert cohorts == {"a+b"}


class TestAdoption:
    @staticmethod
    def experienced(**changes: object) -> DeviceLearner:
        learner = learner_of("a", "b", config=LearnerConfig.model_validate(changes))
        taught(learner, noise(200, "a", "b"))
        return learner

    def test_replace_takes_the_global_model_as_it_is(self) -> None:
        learner = self.experienced(adoption="replace")
        theta = learner.theta + 1.0
        assert learner.adopt(theta, 1)
        assert_array_equal(learner.theta, theta)
        assert learner.base_version == 1

    @pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
    def test_mix_takes_its_share(self, share: float) -> None:
        learner = self.experienced(adoption=Adoption.MIX, mix=share)
        own, theta = learner.theta.copy(), learner.theta + 1.0
        assert learner.adopt(theta, 1)
        assert_allclose(learner.theta, (1 - share) * own + share * theta, rtol=1e-12, atol=1e-12)

    def test_a_device_that_has_learned_next_to_nothing_takes_all_of_it(self) -> None:
        learner = learner_of("a", "b")
        taught(learner, noise(CONFIG.update_every - 1, "a", "b"))
        theta = learner.theta + 1.0
        assert learner.adopt(theta, 1)
        assert_array_equal(learner.theta, theta)

    def test_a_stale_version_changes_nothing(self) -> None:
        learner = self.experienced()
        assert learner.adopt(learner.theta + 1.0, 5)
        before = learner.to_bytes()
        for version in (5, 4, 0, -1):
            assert not learner.adopt(np.zeros_like(learner.theta), version)
        assert learner.to_bytes() == before

    @pytest.mark.parametrize("surplus", [-1, 1])
    def test_a_model_of_another_shape_changes_nothing(self, surplus: int) -> None:
        learner = self.experienced()
        before = learner.to_bytes()
        assert not learner.adopt(np.zeros(learner.theta.size + surplus), 1)
        assert learner.to_bytes() == before

    def test_the_global_model_is_not_kept_by_reference(self) -> None:
        learner = self.experienced(adoption="replace")
        theta = learner.theta + 1.0
        learner.adopt(theta, 1)
        kept = theta.copy()
        taught(learner, noise(5, "a", "b"))
        assert_array_equal(theta, kept)

    def test_the_next_forecast_uses_it_and_the_one_already_published_stands(self) -> None:
        learner = self.experienced()
        published = learner.process({"a": 20.0, "b": 20.0})
        learner.adopt(learner.theta * 2.0, 1)
        assert learner.process({"a": 20.0, "b": 20.0}).expected == published.forecast


class TestUpdates:
    @pytest.mark.parametrize("every", [1, 7, 100])
    def test_come_every_so_many_samples_and_add_up_to_the_samples_seen(self, every: int) -> None:
        learner = learner_of("a", "b", config=LearnerConfig(update_every=every))
        counts, numbers = [], []
        for number, sensors in enumerate(noise(450, "a", "b"), start=1):
            learner.process(sensors)
            update = learner.take_update("m", when(number))
            if update is not None:
                counts.append(update["sample_count"])
                numbers.append(number)
                assert update["metadata"]["samples_seen"] == number == sum(counts)
        assert numbers == list(range(every, 451, every))
        assert sum(counts) + learner.since_update == learner.samples_seen

    def test_travel_and_hold_the_weights_as_they_are(self) -> None:
        learner = learner_of("a", "b")
        taught(learner, noise(100, "a", "b"))
        learner.adopt(learner.theta + 1.0, 4)
        update = learner.take_update("mote-7", when(99))
        assert update is not None
        arrived = LocalUpdate.from_json(orjson.dumps(update))
        theta, architecture = from_message(arrived.weights)
        assert_array_equal(theta, learner.theta)
        assert architecture == learner.architecture
        assert (arrived.device_id, arrived.cohort, arrived.sample_count) == ("mote-7", "a+b", 100)
        assert arrived.timestamp == START + timedelta(seconds=30 * 99)
        assert arrived.metadata["base_version"] == 4

    def test_do_not_change_with_later_learning(self) -> None:
        learner = learner_of("a", "b")
        taught(learner, noise(100, "a", "b"))
        update = learner.take_update("m", when(99))
        assert update is not None
        before = str(update)
        taught(learner, noise(50, "a", "b"))
        assert str(update) == before


class TestForecast:
    @settings(deadline=None, max_examples=40)
    @given(streams)
    def test_is_fixed_before_the_reading_is_seen(self, stream: list[Values]) -> None:
        outcomes = taught(learner_of("a", "b"), stream)
        assert outcomes[0].expected is None
        for before, after in itertools.pairwise(outcomes):
            assert after.expected == before.forecast

    @given(st.floats(-1e15, 1e15), st.floats(-1e15, 1e15))
    def test_does_not_depend_on_the_reading_that_it_is_compared_with(self, one: float, other: float) -> None:
        state = experienced_state()
        outcomes = [DeviceLearner.from_bytes(state, CONFIG).process({"a": x, "b": x}) for x in (one, other)]
        assert outcomes[0].expected == outcomes[1].expected

    def test_starts_as_no_change(self) -> None:
        outcome = learner_of("a", "b").process({"a": 20.0, "b": -7.0})
        assert outcome.forecast == pytest.approx({"a": 20.0, "b": -7.0}, rel=0.01)

    def test_of_what_can_be_predicted_gets_better_with_learning(self) -> None:
        errors = []
        for rate in (1e-12, CONFIG.learning_rate):
            outcomes = taught(learner_of("a", "b", config=LearnerConfig(learning_rate=rate)), wave(3000))
            errors.append(np.mean([outcome.error for outcome in outcomes[-500:] if outcome.error is not None]))
        without, with_learning = errors
        assert with_learning < 0.5 * without

    @pytest.mark.parametrize("shift", [-100.0, 1.0, 500.0])
    def test_does_not_depend_on_the_level_that_is_normal_for_the_device(self, shift: float) -> None:
        here, there = learner_of("a", "b"), learner_of("a", "b")
        taught(here, wave(500, level=20.0))
        taught(there, wave(500, level=20.0 + shift))
        assert_allclose(there.theta, here.theta, atol=0.01)


class TestScores:
    def spiked(self, stream: Sequence[Values], sd: float) -> Outcome:
        learner = learner_of("a", "b")
        taught(learner, stream)
        spread = float(np.sqrt(learner._rows["variance"][1]))
        return learner.process({"a": 20.0, "b": 20.0 + sd * spread})

    @pytest.mark.parametrize("sd", [50.0, -50.0, 1e12])
    def test_a_spike_is_an_anomaly_of_its_sensor(self, sd: float) -> None:
        outcome = self.spiked(noise(CONFIG.warm_up + 2, "a", "b"), sd)
        assert outcome.is_anomaly
        assert outcome.sensor == "b"
        assert outcome.score >= CONFIG.threshold

    def test_nothing_is_an_anomaly_before_the_warm_up(self) -> None:
        assert self.spiked(noise(CONFIG.warm_up - 2, "a", "b"), 50.0).score == 0.0

    def test_a_larger_spike_never_scores_less(self) -> None:
        stream = noise(200, "a", "b")
        scores = [self.spiked(stream, sd).score for sd in (0.0, 2.0, 5.0, 10.0, 50.0, 1e6)]
        assert scores == sorted(scores)

    def test_readings_of_a_healthy_simulated_fleet_are_seldom_anomalies(self) -> None:
        learners: dict[str, DeviceLearner] = {}
        anomalies = count = 0
        for each in itertools.islice(simulate(2, seed=1, faults=False), 11_000):
            learner = learners.setdefault(each.device_id, learner_of(*sorted(each.sensors)))
            anomalies += learner.process(each.sensors).is_anomaly
            count += 1
        assert anomalies < 0.02 * count

    def test_noise_without_a_pattern_is_no_anomaly(self) -> None:
        assert not any(outcome.is_anomaly for outcome in taught(learner_of("a", "b"), noise(5000, "a", "b")))


def test_the_settings_of_one_learner_cannot_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        CONFIG.seed = 3  # type: ignore[misc]


def test_a_device_that_names_ever_new_sensors_stays_small() -> None:
    learner = DeviceLearner(("s0-0",), LearnerConfig())
    for i in range(20):
        given: dict[str, float | None] = {f"s{i}-{j}": 1.0 for j in range(64)}
        learner = learner.fitted(given, 64)
        learner.process(given)
        assert set(learner.sensors) == set(given)
    assert learner.samples_seen == 20
    assert len(learner.to_bytes()) < STATE_LIMIT


def test_of_too_many_sensors_those_longest_absent_leave() -> None:
    learner = DeviceLearner(("a", "b", "c"), LearnerConfig())
    learner.process({"a": 1.0, "b": 1.0, "c": 1.0})
    learner.process({"a": 1.0, "b": 1.0})
    assert learner.fitted({"a": 1.0, "d": 1.0}, 3).sensors == ("a", "b", "d")
