"""What every learner owes its device: honest forecasts, a small state that continues exactly, and no surprises."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from flead.errors import BadConfiguration, BadModel
from flead.features import LAST_TIME, PER_SENSOR, SHARED, WARM, step_scale, swing_scale
from flead.learner import STATE_LIMIT, DeviceLearner, Outcome, Outcomes, check
from flead.learner_config import Adoption, Drift, LearnerConfig, Optimiser
from flead.learning import LARGEST_STEP, LARGEST_SWING
from flead.messages import LocalUpdate, cohort_of
from flead.network import Vector, from_message, layers
from flead.routines import practise_all, routines_at
from flead.scoring import KINDS

START = datetime(2024, 1, 1, tzinfo=UTC)
BEGIN, INTERVAL = START.timestamp(), 30.0
CONFIG = LearnerConfig()
MAX_SENSORS = 64
Values = dict[str, float | None]
Row = tuple[float, float | None, float | None]

CONFIGS = {
    "as shipped": CONFIG,
    "momentum": LearnerConfig(optimiser=Optimiser.MOMENTUM, skip=False, hidden_sizes=(8, 4), drift=Drift.NONE),
    "adam": LearnerConfig(optimiser=Optimiser.ADAM, hidden_sizes=(8,), drift=Drift.PAGE_HINKLEY, horizon_s=60.0),
    "no hidden layer": LearnerConfig(hidden_sizes=(), features=("lag_1", "profile", "horizon_ago")),
    "proximal": LearnerConfig(hidden_sizes=(4,), proximal=0.1),
    "better": LearnerConfig(hidden_sizes=(4,), features=("lag_1", "mean_20"), adoption=Adoption.BETTER),
    "every feature": LearnerConfig(hidden_sizes=(4,), features=(*PER_SENSOR, *SHARED)),
}
PLUGINS = {
    "persistence": LearnerConfig(forecaster="persistence"),
    "linear": LearnerConfig(forecaster="linear"),
    "half_space_trees": LearnerConfig(detectors=("half_space_trees",)),
    "both": LearnerConfig(forecaster="linear", detectors=("half_space_trees",), hidden_sizes=()),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
every_plugin = pytest.mark.parametrize("config", PLUGINS.values(), ids=PLUGINS)

values = st.none() | st.floats(10.0, 30.0) | st.floats(-1e15, 1e15) | st.sampled_from([0.0, 1e15, -1e15, 5e-324])
gaps = st.sampled_from([30.0, 30.0, 0.0, 1.0, 600.0, 5_000.0, -45.0, 1e6]) | st.floats(25.0, 35.0)
streams = st.lists(st.tuples(gaps, values, values), min_size=1, max_size=150)
configs = st.sampled_from(list(CONFIGS.values()))


def when(number: int) -> str:
    """The time of a stream's reading, as it travels."""
    return (START + timedelta(seconds=INTERVAL * number)).isoformat()


def learner_of(*sensors: str, config: LearnerConfig = CONFIG) -> DeviceLearner:
    return DeviceLearner(sensors, config)


def taught(learner: DeviceLearner, stream: Iterable[Values]) -> list[Outcome]:
    """One by one, 30 s apart."""
    begin = BEGIN + INTERVAL * learner.samples_seen
    return [learner.process(begin + INTERVAL * i, sensors) for i, sensors in enumerate(stream)]


def followed(learner: DeviceLearner, table: Vector) -> Outcomes:
    """At once, 30 s apart."""
    return learner.process_frame(BEGIN + INTERVAL * (learner.samples_seen + np.arange(len(table))), table)


def noise(count: int, n: int = 2, seed: int = 1) -> Vector:
    return np.random.default_rng(seed).normal(20.0, 1.0, (count, n))


def wave(count: int, period_s: float = 3_600.0, level: float = 20.0, seed: int = 1) -> Vector:
    """Two sensors that turn, with a little noise."""
    turns = 2 * np.pi * INTERVAL * np.arange(count) / period_s
    table = np.column_stack((level + 3 * np.sin(turns), level + 2 * np.cos(turns)))
    return table + np.random.default_rng(seed).normal(0.0, 0.02, table.shape)


def named(table: Vector, sensors: str = "ab") -> list[Values]:
    return [dict(zip(sensors, row, strict=False)) for row in table.tolist()]


def arrays(stream: list[Row]) -> tuple[Vector, Vector]:
    table = np.array([[np.nan if x is None else x for x in row] for row in stream])
    return BEGIN + table[:, 0].cumsum(), table[:, 1:]


def numbers_of(outcome: Outcome) -> list[float]:
    by_name = (outcome.expected or {}, outcome.forecast, outcome.horizon)
    rest = [outcome.score] if outcome.error is None else [outcome.score, outcome.error]
    return [*itertools.chain.from_iterable(d.values() for d in by_name), *rest]


def all_finite(learner: DeviceLearner) -> bool:
    """Whether everything is finite that the next reading is judged or predicted by."""
    kept = [part for part in learner._state.past if part is not learner._state.past.clock]
    arrays = [*kept, learner.theta, learner.features, learner._state.change, learner._state.moments]
    return all(np.isfinite(array).all() for array in arrays) and learner.interval < np.inf


def rmse(off: Vector) -> float:
    return float(np.sqrt(np.mean(off * off)))


@cache
def experienced_state() -> bytes:
    """A device's state after 100 readings."""
    learner = learner_of("a", "b")
    followed(learner, noise(100))
    return learner.to_bytes()


class TestAFrame:
    def same(self, stream: list[Row], config: LearnerConfig) -> None:
        times, table = arrays(stream)
        single, frame = learner_of("a", "b", config=config), learner_of("a", "b", config=config)
        said = frame.process_frame(times, table)
        for i, (time, sensors) in enumerate(zip(times.tolist(), named(table), strict=True)):
            given_values = {name: None if x is None or math.isnan(x) else x for name, x in sensors.items()}
            outcome = single.process(time, given_values)
            for found, name in ((said.expected, "expected"), (said.forecast, "forecast"), (said.horizon, "horizon")):
                by_name = getattr(outcome, name) or {}
                assert_allclose(found[i], [by_name.get(s, np.nan) for s in "ab"], rtol=1e-9, atol=1e-9)
            assert_allclose(said.error[i], np.nan if outcome.error is None else outcome.error, rtol=1e-9, atol=1e-9)
            assert_allclose(said.score[i], outcome.score, atol=1e-9)
            assert (bool(said.is_anomaly[i]), bool(said.drift[i])) == (outcome.is_anomaly, outcome.drift)
            assert said.sensor[i] == (-1 if outcome.sensor is None else "ab".index(outcome.sensor))
            assert said.kind[i] == (-1 if outcome.kind is None else KINDS.index(outcome.kind))
        assert_allclose(frame.theta, single.theta, rtol=1e-9, atol=1e-12)
        assert frame.samples_seen == single.samples_seen
        assert frame.since_update == single.since_update

    @every_config
    @settings(deadline=None, max_examples=15)
    @given(streams)
    def test_says_what_its_readings_say_one_by_one(self, config: LearnerConfig, stream: list[Row]) -> None:
        self.same(stream, config)

    @every_plugin
    def test_says_the_same_with_plug_ins(self, config: LearnerConfig) -> None:
        self.same([(30.0, *row) for row in noise(300).tolist()], config)

    def test_may_be_cut_anywhere(self) -> None:
        whole, cut = learner_of("a", "b"), learner_of("a", "b")
        table = wave(700)
        said = followed(whole, table)
        parts = [followed(cut, part) for part in np.split(table, [0, 1, 250, 251, 600])]
        for field in fields(Outcomes):
            together = np.concatenate([getattr(part, field.name) for part in parts])
            assert_array_equal(together, getattr(said, field.name))
        assert cut.to_bytes() == whole.to_bytes()

    def test_may_lie_in_memory_in_any_order(self) -> None:
        table = noise(100)
        one, other = learner_of("a", "b"), learner_of("a", "b")
        followed(one, table)
        followed(other, np.asfortranarray(np.repeat(table, 2, axis=0))[::2])
        assert one.to_bytes() == other.to_bytes()

    @pytest.mark.parametrize("shape", [(10, 1), (10, 3), (9, 2), (11, 2), (20,)])
    def test_of_another_shape_is_refused(self, shape: tuple[int, ...]) -> None:
        learner = learner_of("a", "b")
        before = learner.to_bytes()
        with pytest.raises(ValueError, match=r"10 times and 2 sensors need values \(10, 2\)"):
            learner.process_frame(BEGIN + INTERVAL * np.arange(10), np.zeros(shape))
        assert learner.to_bytes() == before

    @pytest.mark.parametrize("kind", [np.int64, np.int32, np.float32])
    def test_may_hold_numbers_of_any_kind(self, kind: Any) -> None:
        learner = learner_of("a")
        times = (INTERVAL * np.arange(100)).astype(kind)
        said = learner.process_frame(times, np.arange(100)[:, None].astype(kind))
        assert said.expected[-1, 0] == pytest.approx(98.0, abs=5.0)

    def test_of_many_devices_gives_the_same_in_threads(self) -> None:
        frames = [(BEGIN + INTERVAL * np.arange(400), noise(400, seed=seed)) for seed in range(8)]
        alone = [learner_of("a", "b").process_frame(*frame) for frame in frames]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda frame: learner_of("a", "b").process_frame(*frame), frames))
        for one, other in zip(alone, together, strict=True):
            for part in fields(Outcomes):
                assert_array_equal(getattr(one, part.name), getattr(other, part.name))


class TestSameReadings:
    @settings(deadline=None, max_examples=25)
    @given(streams, configs)
    def test_give_the_same_learner_to_the_last_byte(self, stream: list[Row], config: LearnerConfig) -> None:
        one, other = learner_of("a", "b", config=config), learner_of("a", "b", config=config)
        for learner in (one, other):
            learner.process_frame(*arrays(stream))
        assert one.to_bytes() == other.to_bytes()

    def test_and_another_seed_give_another_network(self) -> None:
        other = learner_of("a", "b", config=LearnerConfig(seed=1))
        assert not np.array_equal(other.theta, learner_of("a", "b").theta)

    def test_start_from_the_same_weights_on_every_device_of_a_cohort(self) -> None:
        assert_array_equal(learner_of("a", "b").theta, learner_of("a", "b").theta)
        assert not np.array_equal(learner_of("a", "b").theta, learner_of("a", "c").theta)

    def test_are_left_as_they_were(self) -> None:
        given_values: Values = {"a": 1.0, "b": None}
        learner_of("a", "b").process(BEGIN, given_values)
        assert given_values == {"a": 1.0, "b": None}


class TestForecast:
    @settings(deadline=None, max_examples=25)
    @given(streams)
    def test_is_fixed_before_the_reading_is_seen(self, stream: list[Row]) -> None:
        said = learner_of("a", "b").process_frame(*arrays(stream))
        assert np.isnan(said.expected[0]).all()
        assert_array_equal(said.expected[1:], said.forecast[:-1])

    @settings(deadline=None, max_examples=25)
    @given(st.floats(-1e15, 1e15), st.floats(-1e15, 1e15), st.sampled_from([0.0, 30.0, 1e5]))
    def test_does_not_depend_on_the_reading_that_it_is_compared_with(
        self, one: float, other: float, gap: float
    ) -> None:
        at = BEGIN + INTERVAL * 99
        here, there = (DeviceLearner.from_bytes(experienced_state(), CONFIG) for _ in range(2))
        assert here.process(at + 30.0, {"a": one}).expected == there.process(at + gap, {"a": other}).expected

    def test_starts_as_no_change(self) -> None:
        outcome = learner_of("a", "b").process(BEGIN, {"a": 20.0, "b": -7.0})
        assert outcome.expected is None
        assert outcome.forecast == outcome.horizon == {"a": 20.0, "b": -7.0}

    @pytest.mark.parametrize(
        "config",
        [*(CONFIGS[n] for n in ("as shipped", "momentum", "adam")), LearnerConfig(hidden_sizes=())],
        ids=["as shipped", "momentum", "adam", "no hidden layer"],
    )
    def test_of_what_can_be_predicted_is_better_than_no_change(self, config: LearnerConfig) -> None:
        table = wave(8_000, period_s=900.0)
        said = followed(learner_of("a", "b", config=config), table)
        late = slice(-1_000, None)
        change = rmse(np.diff(table, axis=0)[late])
        assert rmse((said.expected - table)[late]) < 0.5 * change

    @every_config
    def test_of_noise_is_hardly_worse_than_the_best_there_is(self, config: LearnerConfig) -> None:
        table = noise(6_000)
        said = followed(learner_of("a", "b", config=config), table)
        assert rmse((said.expected - table)[-2_000:]) < 1.25  # no change: 1.41; the mean: 1

    def test_of_the_horizon_is_learned_when_its_time_has_come(self) -> None:
        table, ahead = wave(8_000), int(CONFIG.horizon_s / INTERVAL)
        said = followed(learner_of("a", "b"), table)
        off = (said.horizon[:-ahead] - table[ahead:])[-2_000:]
        change = (table[ahead:] - table[:-ahead])[-2_000:]
        assert rmse(off) < 0.3 * rmse(change)

    def test_of_the_horizon_is_learned_where_readings_come_faster_than_forecasts_can_wait(self) -> None:
        times = BEGIN + 5.0 * np.arange(30_000)
        table = 20.0 + 3.0 * np.sin(2 * np.pi * times / 3_600.0)[:, None]
        said = learner_of("a").process_frame(times, table)
        off, change = (said.horizon[:-120] - table[120:])[-4_000:], (table[120:] - table[:-120])[-4_000:]
        assert rmse(off) < 0.5 * rmse(change)

    def test_of_a_device_whose_clock_had_run_ahead_is_as_good_as_before(self) -> None:
        learner, table, year = learner_of("a", "b"), wave(8_000, period_s=900.0), 365 * 86_400.0
        learner.process(BEGIN + year, {"a": 20.0, "b": 20.0})
        said = followed(learner, table)
        late, ahead = slice(-1_000, None), int(CONFIG.horizon_s / INTERVAL)
        assert rmse((said.expected - table)[late]) < 0.5 * rmse(np.diff(table, axis=0)[late])
        off, change = said.horizon[:-ahead] - table[ahead:], table[ahead:] - table[:-ahead]
        assert rmse(off[late]) < 0.5 * rmse(change[late])

    def test_goes_on_from_a_clock_that_was_set_back_and_not_from_a_reading_that_came_late(self) -> None:
        learner = learner_of("a", "b")
        followed(learner, noise(200))
        for time in (BEGIN, BEGIN - 1_700.0):  # an hour and a half before the newest, then less than half an hour
            learner.process(time, {"a": 20.0, "b": 20.0})
            assert learner._state.past.clock[LAST_TIME] == BEGIN

    @pytest.mark.parametrize("shift", [-100.0, 1.0, 500.0])
    def test_does_not_depend_on_the_level_that_is_normal_for_the_device(self, shift: float) -> None:
        here, there = learner_of("a", "b"), learner_of("a", "b")
        followed(here, wave(500))
        followed(there, wave(500, level=20.0 + shift))
        assert_allclose(there.theta, here.theta, atol=1e-6)

    def test_stays_within_reach(self) -> None:
        learner = learner_of("a", "b")
        followed(learner, noise(500))
        learner.adopt(1e6 * np.ones(learner.theta.size), 1)
        outcome = learner.process(BEGIN + INTERVAL * 500, {"a": 20.0, "b": 20.0})
        for name in "ab":
            assert abs(outcome.forecast[name] - 20.0) < 2.0 * LARGEST_STEP
            assert abs(outcome.horizon[name] - 20.0) < 2.0 * LARGEST_SWING


class TestState:
    @settings(deadline=None, max_examples=40)
    @given(streams, st.sets(st.integers(0, 149), max_size=6), configs)
    def test_continues_exactly_as_if_it_had_never_stopped(
        self, stream: list[Row], stops: set[int], config: LearnerConfig
    ) -> None:
        steady, stopped = learner_of("a", "b", config=config), learner_of("a", "b", config=config)
        times, table = arrays(stream)
        for number, (time, a, b) in enumerate(np.column_stack((times, table)).tolist()):
            if number in stops:
                stopped = DeviceLearner.from_bytes(stopped.to_bytes(), config)
            sensors: Values = {n: x for n, x in (("a", a), ("b", b)) if not math.isnan(x)} or {"a": None}
            assert stopped.process(time, sensors) == steady.process(time, sensors)
            assert stopped.take_update("m", when(number)) == steady.take_update("m", when(number))
        assert stopped.to_bytes() == steady.to_bytes()

    @every_plugin
    def test_continues_exactly_with_plug_ins(self, config: LearnerConfig) -> None:
        steady, stopped = learner_of("a", "b", config=config), learner_of("a", "b", config=config)
        for number, sensors in enumerate(named(wave(600))):
            if number % 97 == 0:
                stopped = DeviceLearner.from_bytes(stopped.to_bytes(), config)
            if number == 250:
                assert stopped.adopt(steady.theta * 0.5, 3) == steady.adopt(steady.theta * 0.5, 3)
            assert taught(stopped, [sensors]) == taught(steady, [sensors])
        assert stopped.to_bytes() == steady.to_bytes()

    def test_continues_exactly_when_it_stops_after_every_reading(self) -> None:
        steady, stopped = learner_of("a", "b"), learner_of("a", "b")
        for sensors in named(noise(300)):
            stopped = DeviceLearner.from_bytes(stopped.to_bytes(), CONFIG)
            assert taught(stopped, [sensors]) == taught(steady, [sensors])
        assert stopped.to_bytes() == steady.to_bytes()

    @every_config
    def test_does_not_grow(self, config: LearnerConfig) -> None:
        learner = learner_of("a", "b", config=config)
        before = len(learner.to_bytes())
        followed(learner, wave(10_000))
        assert len(learner.to_bytes()) <= before + 32  # the digits of its counters
        assert len(learner.to_bytes()) < STATE_LIMIT

    @pytest.mark.parametrize("sign", ["x", '"', "\\", "/", "\u2028", "\U0001f600"])
    def test_that_is_accepted_fits_its_limit_with_the_longest_names(self, sign: str) -> None:
        config = LearnerConfig(hidden_sizes=(16,), skip=False)
        check(config, MAX_SENSORS)
        names = tuple(sorted(sign * 125 + f"{i:03}" for i in range(MAX_SENSORS)))
        learner = learner_of(*names, config=config)
        followed(learner, noise(50, MAX_SENSORS))
        assert len(learner.to_bytes()) <= STATE_LIMIT
        assert DeviceLearner.from_bytes(learner.to_bytes(), config).sensors == names

    @pytest.mark.parametrize(
        "changes",
        [
            {"hidden_sizes": (4,)},
            {"features": ("lag_1", "gap")},
            {"optimiser": "adam"},
            {"skip": False},
            {"forecaster": "linear"},
            {"detectors": ("half_space_trees",)},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_starts_anew_where_the_configuration_changed_and_keeps_the_counter(self, changes: dict[str, Any]) -> None:
        learner = learner_of("a", "b")
        followed(learner, noise(150))
        config = LearnerConfig.model_validate(changes)
        changed, fresh = DeviceLearner.from_bytes(learner.to_bytes(), config), learner_of("a", "b", config=config)
        assert (changed.samples_seen, changed.since_update, changed.base_version) == (150, 0, 0)
        fresh.samples_seen = fresh._begun = 150
        assert changed.to_bytes() == fresh.to_bytes()

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ({"features": ("lag_1", "mean_20")}, {"features": ("lag_1", "mean_80")}),
            ({"drift": "adwin"}, {"drift": "page-hinkley"}),
            ({"forecaster": "linear"}, {"forecaster": "persistence"}),
            ({"detectors": ("half_space_trees",)}, {"detectors": ("isolation_forest",)}),
        ],
        ids=["features", "drift", "forecaster", "detector"],
    )
    def test_starts_anew_where_as_many_bytes_mean_something_else(
        self, before: dict[str, Any], after: dict[str, Any]
    ) -> None:
        learner = learner_of("a", "b", config=LearnerConfig.model_validate(before))
        followed(learner, noise(150))
        config = LearnerConfig.model_validate(after)
        changed, fresh = DeviceLearner.from_bytes(learner.to_bytes(), config), learner_of("a", "b", config=config)
        fresh.samples_seen = fresh._begun = 150
        assert changed.to_bytes() == fresh.to_bytes()

    def test_goes_on_where_only_its_settings_changed(self) -> None:
        learner, config = learner_of("a", "b"), LearnerConfig(learning_rate=0.01, update_every=10, memory=200)
        followed(learner, noise(150))
        changed = DeviceLearner.from_bytes(learner.to_bytes(), config)
        assert changed.to_bytes() == learner.to_bytes()
        followed(changed, noise(5))
        followed(learner, noise(5))
        assert not np.array_equal(changed.theta, learner.theta)

    @pytest.mark.parametrize("lacking", [slice(5, 10), slice(9, 10)], ids=["errors", "where its model began"])
    def test_of_before_something_was_counted_is_read(self, lacking: slice) -> None:
        learner = learner_of("a", "b")
        followed(learner, noise(100))
        version, length = struct.unpack_from("<II", raw := learner.to_bytes())
        header = orjson.loads(raw[8 : 8 + length])
        del header[lacking]
        older = orjson.dumps(header)
        again = DeviceLearner.from_bytes(struct.pack("<II", version, len(older)) + older + raw[8 + length :], CONFIG)
        assert_array_equal(again._buffer[: again._n_kept], learner._buffer[: again._n_kept])
        assert (again.samples_seen, again._begun, again._absent) == (100, 0, [0, 0])
        update = again.take_update("m", when(0))
        assert update is not None
        assert ("loss" in update["metadata"]) == (lacking.start > 8)

    @pytest.mark.parametrize("before", [{}, {"proximal": 1.0}, {"adoption": "better"}])
    @pytest.mark.parametrize("after", [{}, {"proximal": 1.0}, {"adoption": "better"}])
    def test_goes_on_where_the_rule_of_adoption_changed(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        learner, config = learner_of("a", "b", config=LearnerConfig(**before)), LearnerConfig(**after)
        followed(learner, noise(150))
        changed = DeviceLearner.from_bytes(learner.to_bytes(), config)
        assert_array_equal(changed.theta, learner.theta)
        assert_array_equal(changed._state.habits, learner._state.habits)
        if config.proximal:
            assert_array_equal(changed._state.anchor, learner._state.anchor if "proximal" in before else learner.theta)
        if config.adoption is Adoption.BETTER:
            assert len(changed.recent_examples) == len(learner.recent_examples)
        followed(changed, noise(10))
        assert all_finite(changed)

    @pytest.mark.parametrize("rule", ["mix", "better"])
    @pytest.mark.parametrize("end", [-800, -16, -8, -3])
    def test_that_is_cut_short_is_refused(self, rule: str, end: int) -> None:
        config = LearnerConfig.model_validate({"adoption": rule})
        with pytest.raises(BadModel, match="damaged"):
            DeviceLearner.from_bytes(learner_of("a", config=config).to_bytes()[:end], config)

    def test_of_another_layout_is_refused(self) -> None:
        with pytest.raises(BadModel, match="layout 9"):
            DeviceLearner.from_bytes(b"\x09" + learner_of("a").to_bytes()[1:], CONFIG)

    def test_that_is_read_is_not_kept_by_reference(self) -> None:
        raw = bytearray(experienced_state())
        followed(DeviceLearner.from_bytes(raw, CONFIG), noise(10))  # type: ignore[arg-type]
        assert raw == experienced_state()


WORST: dict[str, Sequence[float | None]] = {
    "a constant": [21.7],
    "zero": [0.0],
    "a huge constant": [1e15],
    "alternating": [1e15, -1e15],
    "huge and nothing": [1e15, None],
    "huge and zero": [1e15, 0.0],
    "half huge": [1e15] * 50 + [-1e15] * 50,
    "tiny": [1e-300, -1e-300],
    "tiny and zero": [5e-324, 0.0],
    "huge and tiny": [1e15, 1e-300],
    "missing": [None],
    "rare": [20.0] * 49 + [1e15],
}
worst = pytest.mark.parametrize("pattern", WORST.values(), ids=WORST)


class TestNumbers:
    @settings(deadline=None, max_examples=40)
    @given(streams, configs)
    def test_are_finite_for_every_stream_of_finite_values(self, stream: list[Row], config: LearnerConfig) -> None:
        learner = learner_of("a", "b", config=config)
        for time, a, b in np.column_stack(arrays(stream)).tolist():
            outcome = learner.process(time, {n: None if math.isnan(x) else x for n, x in (("a", a), ("b", b))})
            assert all(map(math.isfinite, numbers_of(outcome)))
            assert 0.0 <= outcome.score <= 1.0
        assert all_finite(learner)

    @worst
    @every_config
    def test_are_finite_for_ever_in_the_worst_of_streams(
        self, config: LearnerConfig, pattern: Sequence[float | None]
    ) -> None:
        learner = learner_of("a", "b", config=config)
        table = np.full((5_000, 2), 20.0)
        table[:, 0] = np.resize(np.array([np.nan if x is None else x for x in pattern]), 5_000)
        said = followed(learner, table)
        assert all_finite(learner)
        assert np.abs(learner.theta).max() < 1_000
        known = ~np.isnan(np.fmax.accumulate(table))
        assert np.isfinite(said.forecast[known]).all()
        assert np.isfinite(said.horizon[known]).all()
        assert np.isfinite(said.score).all()

    @pytest.mark.parametrize("step", [0.0, -30.0, 1e-9, 1e9])
    def test_are_finite_where_time_stands_still_runs_back_or_leaps(self, step: float) -> None:
        learner = learner_of("a", "b")
        said = learner.process_frame(BEGIN + step * np.arange(2_000), noise(2_000))
        assert all_finite(learner)
        assert np.isfinite(said.forecast).all()
        assert np.isfinite(said.horizon).all()

    def test_are_finite_after_a_million_readings(self) -> None:
        learner = learner_of("a", config=LearnerConfig(hidden_sizes=(4,), features=("lag_1", "mean_20")))
        table = noise(1_000_000, n=1)
        table[::1_000] *= 100.0
        said = followed(learner, table)
        assert all_finite(learner)
        assert np.isfinite(said.score).all()
        assert learner.samples_seen == 1_000_000

    def test_of_a_constant_are_the_constant_and_no_anomaly(self) -> None:
        outcomes = taught(learner_of("a"), [{"a": 21.7}] * 500)
        assert not any(outcome.is_anomaly for outcome in outcomes)
        assert outcomes[-1].forecast["a"] == pytest.approx(21.7, abs=0.01)


class TestWhatIsMissing:
    @pytest.mark.parametrize("nothing", [{"a": None}, {"a": None, "b": None}])
    def test_teaches_nothing(self, nothing: Values) -> None:
        learner = learner_of("a", "b")
        followed(learner, noise(200))
        taught(learner, [nothing] * 30)  # until what was seen before has taught what it teaches
        theta = learner.theta.copy()
        for outcome in taught(learner, [nothing] * 100):
            assert outcome.error is None
        assert_array_equal(learner.theta, theta)
        assert learner.samples_seen == 330

    def test_is_the_same_whether_null_or_not_named(self) -> None:
        null, absent = learner_of("a", "b"), learner_of("a", "b")
        for number, sensors in enumerate(named(noise(300))):
            only_a: Values = {"a": sensors["a"]}
            whole = number % 3 > 0
            assert taught(null, [sensors if whole else only_a | {"b": None}]) == taught(
                absent, [sensors if whole else only_a]
            )
        assert_array_equal(null.theta, absent.theta)

    def test_leaves_the_other_sensors_statistics_alone(self) -> None:
        table = noise(300)
        with_b, without_b = learner_of("a", "b"), learner_of("a", "b")
        followed(with_b, table)
        table[:, 1] = np.nan
        followed(without_b, table)
        for one, other in zip(with_b._state.past, without_b._state.past, strict=True):
            if one.ndim > 1 or one.size == 2:
                assert_array_equal(one[..., 0], other[..., 0])

    def test_a_sensor_that_never_gave_a_value_has_no_forecast(self) -> None:
        for outcome in taught(learner_of("a", "b"), [{"a": 1.0, "b": None}] * 50):
            assert set(outcome.forecast) == set(outcome.horizon) == {"a"}

    def test_a_device_that_never_gave_a_value_has_nothing_to_say(self) -> None:
        for outcome in taught(learner_of("a"), [{"a": None}] * 100):
            assert (outcome.expected, outcome.error, outcome.sensor, outcome.is_anomaly) == (None, None, None, False)
            assert outcome.forecast == outcome.horizon == {}


class TestSensorsThatChange:
    def test_a_reading_with_the_known_sensors_changes_nothing(self) -> None:
        learner = learner_of("a", "b")
        assert learner.fitted({"a": 1.0, "b": 2.0}, 64) is learner
        assert learner.fitted({"a": None}, 64) is learner

    def test_a_new_sensor_moves_the_device_to_another_cohort_and_keeps_what_it_knows(self) -> None:
        learner = learner_of("a", "c")
        followed(learner, noise(200))
        successor = learner.fitted({"a": 20.0, "b": 5.0, "c": 20.0}, 64)
        assert (successor.sensors, successor.cohort) == (("a", "b", "c"), cohort_of(("a", "b", "c")))
        assert (successor.samples_seen, successor.base_version, successor.since_update) == (200, 0, 0)
        assert successor.interval == learner.interval
        for old, new in zip(learner._state.past[1:], successor._state.past[1:], strict=True):
            assert_array_equal(new[..., [0, 2]], old)
            assert not new[..., 1].any()
        last = {"a": learner._state.past.last[0], "c": learner._state.past.last[1]}
        outcome = successor.process(BEGIN + INTERVAL * 200, {"a": 20.0, "b": 5.0, "c": 20.0})
        assert outcome.expected == pytest.approx(last)
        assert set(outcome.forecast) == {"a", "b", "c"}
        assert not outcome.is_anomaly

    def test_the_old_learner_is_left_as_it_was(self) -> None:
        learner = learner_of("a")
        followed(learner, noise(100, n=1))
        before = learner.to_bytes()
        followed(learner.fitted({"b": 1.0}, 64), noise(10))
        assert learner.to_bytes() == before

    def test_a_sensor_not_named_for_long_leaves(self) -> None:
        learner = learner_of("a", "b", config=LearnerConfig(forget_after=50))
        taught(learner, named(noise(100)))
        taught(learner, named(noise(49), "a"))
        assert learner.fitted({"a": 1.0}, 64) is learner
        taught(learner, named(noise(1), "a"))
        successor = learner.fitted({"a": 1.0}, 64)
        assert (successor.sensors, successor.cohort, successor.samples_seen) == (("a",), "a", 150)
        assert successor._state.past.mean[0] == learner._state.past.mean[0]

    def test_a_sensor_that_is_named_again_in_time_stays(self) -> None:
        learner = learner_of("a", "b", config=LearnerConfig(forget_after=50))
        for _ in range(5):
            taught(learner, named(noise(49), "a"))
            assert learner.fitted({"a": 1.0}, 64) is learner
            taught(learner, [{"a": 20.0, "b": None}])  # named without a value is named

    def test_a_sensor_that_gives_null_for_ever_stays(self) -> None:
        learner = learner_of("a", "b", config=LearnerConfig(forget_after=50))
        taught(learner, [{"a": 20.0, "b": None}] * 200)
        assert learner.fitted({"a": 20.0, "b": None}, 64) is learner

    def test_absence_is_remembered_over_a_restart(self) -> None:
        config = LearnerConfig(forget_after=50)
        learner = learner_of("a", "b", config=config)
        taught(learner, named(noise(49), "a"))
        learner = DeviceLearner.from_bytes(learner.to_bytes(), config)
        taught(learner, named(noise(1), "a"))
        assert learner.fitted({"a": 1.0}, 64).sensors == ("a",)

    def test_a_device_may_change_all_its_sensors(self) -> None:
        learner = learner_of("a", config=LearnerConfig(forget_after=10))
        followed(learner, noise(20, n=1))
        for _ in range(30):
            learner = learner.fitted({"b": 1.0}, 64)
            taught(learner, [{"b": 1.0}])
        assert (learner.sensors, learner.samples_seen) == (("b",), 50)

    def test_a_sensor_that_comes_and_goes_keeps_its_cohort(self) -> None:
        learner, cohorts = learner_of("a", "b"), set()
        for number in range(300):
            sensors: Values = {"a": 1.0, "b": 2.0} if number % 20 == 0 else {"a": 1.0}
            learner = learner.fitted(sensors, 64)
            taught(learner, [sensors])
            cohorts.add(learner.cohort)
        assert cohorts == {"a+b"}

    def test_a_device_that_names_ever_new_sensors_stays_small(self) -> None:
        config = LearnerConfig(hidden_sizes=(4,), skip=False)
        learner = learner_of("s0-0", config=config)
        for i in range(10):
            given_values: Values = {f"s{i}-{j}": 1.0 for j in range(64)}
            learner = learner.fitted(given_values, 64)
            taught(learner, [given_values])
            assert set(learner.sensors) == set(given_values)
        assert learner.samples_seen == 10
        assert len(learner.to_bytes()) < STATE_LIMIT

    def test_of_too_many_sensors_those_longest_absent_leave(self) -> None:
        learner = learner_of("a", "b", "c")
        taught(learner, [{"a": 1.0, "b": 1.0, "c": 1.0}, {"a": 1.0, "b": 1.0}])
        assert learner.fitted({"a": 1.0, "d": 1.0}, 3).sensors == ("a", "b", "d")


class TestAdoption:
    @staticmethod
    def experienced(**changes: object) -> DeviceLearner:
        learner = learner_of("a", "b", config=LearnerConfig.model_validate(changes))
        followed(learner, noise(200))
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
        followed(learner, noise(CONFIG.update_every - 1))
        theta = learner.theta + 1.0
        assert learner.adopt(theta, 1)
        assert_array_equal(learner.theta, theta)

    @pytest.mark.parametrize("rule", Adoption)
    def test_a_model_that_began_anew_on_an_old_device_is_replaced_whole(self, rule: Adoption) -> None:
        config, other = LearnerConfig(adoption=rule), LearnerConfig(adoption=rule, hidden_sizes=(4,))
        learner = learner_of("a", "b", config=config)
        followed(learner, noise(300))
        for successor in (
            learner.fitted({"a": 1.0, "b": 1.0, "c": 1.0}, 64),
            DeviceLearner.from_bytes(learner.to_bytes(), other),
        ):
            again = DeviceLearner.from_bytes(successor.to_bytes(), successor.config)
            theta = again.theta + 1.0
            assert again.adopt(theta, 1)
            assert_array_equal(again.theta, theta)

    def test_a_stale_version_changes_nothing(self) -> None:
        learner = self.experienced()
        learner.adopt(learner.theta + 1.0, 5)  # weighed, and left where it is worse
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
        followed(learner, noise(30))
        assert_array_equal(theta, kept)

    def test_the_last_layer_stays_the_devices_own_and_the_others_are_replaced(self) -> None:
        learner = self.experienced(adoption="last_layer", hidden_sizes=(4, 3))
        own, theta = learner.theta.copy(), learner.theta + 1.0
        assert learner.adopt(theta, 1)
        *hidden, last = (layers(vector, learner.architecture) for vector in (learner.theta, theta, own))
        for depth in (0, 1):
            assert_array_equal(hidden[0][depth], hidden[1][depth])
        assert_array_equal(hidden[0][2], last[2])

    def test_the_last_layer_and_all_others_go_on_learning(self) -> None:
        learner = self.experienced(adoption="last_layer")
        learner.adopt(learner.theta + 0.1, 1)
        before = [layer.copy() for layer in layers(learner.theta, learner.architecture)]
        followed(learner, noise(10, seed=2))
        for layer, old in zip(layers(learner.theta, learner.architecture), before, strict=True):
            assert not np.array_equal(layer, old)

    @pytest.mark.parametrize("rule", ["last_layer", "better"])
    @pytest.mark.parametrize("forecaster", ["network", "linear"])
    def test_a_rule_that_cannot_be_followed_mixes(self, rule: str, forecaster: str) -> None:
        changes = {"hidden_sizes": ()} if forecaster == "network" else {"forecaster": forecaster}
        learner = learner_of("a", "b", config=LearnerConfig.model_validate({"adoption": rule, "mix": 0.25, **changes}))
        table = noise(200)
        table[10:] = np.nan if rule == "better" else table[10:]  # too few to compare on
        followed(learner, table)
        own = learner.theta.copy()
        assert learner.adopt(own + 1.0, 1)
        assert_allclose(learner.theta, own + 0.25, rtol=1e-12, atol=1e-12)

    def test_what_is_better_on_its_own_recent_data_a_device_takes(self) -> None:
        good = learner_of("a", "b", config=LearnerConfig(adoption="better"))
        followed(good, wave(8_000, period_s=900.0))
        beginner = learner_of("a", "b", config=LearnerConfig(adoption="better"))
        followed(beginner, wave(200, period_s=900.0))
        assert beginner.adopt(good.theta, 1)
        assert_array_equal(beginner.theta, good.theta)
        assert not good.adopt(learner_of("a", "b").theta, 1)

    def test_what_is_worse_a_device_leaves_and_weighs_no_second_time(self) -> None:
        learner = self.experienced(adoption="better")
        own = learner.theta.copy()
        assert not learner.adopt(own + 1.0, 3)
        assert_array_equal(learner.theta, own)
        assert learner.base_version == 3
        before = learner.to_bytes()
        assert not learner.adopt(own.copy(), 3)
        assert learner.to_bytes() == before

    def test_a_model_beyond_all_numbers_is_worse(self) -> None:
        learner = self.experienced(adoption="better")
        own = learner.theta.copy()
        assert not learner.adopt(np.resize([1e308, -1e308], own.size), 1)
        assert_array_equal(learner.theta, own)

    def test_the_mix_is_taken_where_it_is_best(self) -> None:
        learner = self.experienced(adoption="better")
        far = learner.theta.copy()
        bias = layers(learner.theta, learner.architecture)[-1][-1]
        layers(far, learner.architecture)[-1][-1] -= 2.0 * 0.9
        bias += 0.9  # the mean of both is what was learned
        wanted = learner.theta + 0.5 * (far - learner.theta)
        assert learner.adopt(far, 1)
        assert_allclose(learner.theta, wanted)

    def test_the_newest_examples_are_compared_on_without_what_habits_add(self) -> None:
        learner = self.experienced(adoption="better")
        learner._state.habits[:] = 0.2
        followed(learner, noise(100, seed=2))
        rows, n = learner.recent_examples, 2
        assert rows.shape == (64, learner.features.size + 4 * n)
        newest = rows[int(learner._state.n_recent[0] - 1) % 64]
        example = learner._state.examples[0]
        f = learner.features.size
        assert_array_equal(newest[: f + n], example[: f + n])
        assert_array_equal(newest[f + 2 * n :], example[f + 2 * n : f + 4 * n])
        assert (np.abs(example[f + n : f + 2 * n] - newest[f + n : f + 2 * n]) > 0.2).all()

    def test_going_back_undoes_what_was_taken(self) -> None:
        learner = self.experienced(adoption="replace", proximal=1.0)
        good, bad = learner.theta + 0.1, learner.theta + 50.0
        learner.adopt(good, 1)
        learner.adopt(bad, 2)
        learner.return_to(good, 1)
        assert_array_equal(learner.theta, good)
        assert_array_equal(learner._state.anchor, good)
        assert learner.base_version == 1
        assert learner.adopt(bad, 3)

    def test_going_back_leaves_a_device_alone_that_had_left_it(self) -> None:
        learner = self.experienced(adoption="better")
        own = learner.theta.copy()
        assert not learner.adopt(own + 1.0, 2)
        learner = DeviceLearner.from_bytes(learner.to_bytes(), learner.config)
        learner.return_to(own + 2.0, 1)
        assert_array_equal(learner.theta, own)
        assert learner.base_version == 1

    def test_the_next_forecast_uses_it_and_the_one_already_published_stands(self) -> None:
        learner, alone = self.experienced(), self.experienced()
        row: Values = {"a": 20.0, "b": 20.0}
        published = taught(learner, [row])[0]
        taught(alone, [row])
        learner.adopt(learner.theta * 3.0, 1)
        after = taught(learner, [row])[0]
        assert after.expected == published.forecast
        assert after.forecast != taught(alone, [row])[0].forecast


class TestAProximalTerm:
    """The network is held near the global model that was adopted last (FedProx)."""

    @staticmethod
    def away(proximal: float) -> float:
        config = LearnerConfig(adoption="replace", proximal=proximal)
        learner = learner_of("a", "b", config=config)
        followed(learner, noise(200))
        theta = learner.theta.copy()
        learner.adopt(theta, 1)
        followed(learner, wave(500))
        return float(np.linalg.norm(learner.theta - theta))

    def test_holds_it_the_nearer_the_larger_it_is(self) -> None:
        free, held, tied = (self.away(proximal) for proximal in (0.0, 3.0, 100.0))
        assert tied < 0.3 * held
        assert held < 0.9 * free

    def test_holds_it_near_the_start_before_there_is_a_global_model(self) -> None:
        learner = learner_of("a", "b", config=LearnerConfig(proximal=1.0))
        assert_array_equal(learner._state.anchor, learner.theta)

    def test_pulls_nothing_while_nothing_is_learned(self) -> None:
        learner = learner_of("a", "b", config=LearnerConfig(proximal=10.0))
        followed(learner, noise(200))
        followed(learner, np.full((30, 2), np.nan))
        theta = learner.theta.copy()
        followed(learner, np.full((50, 2), np.nan))
        assert_array_equal(learner.theta, theta)

    def test_takes_no_state_where_there_is_none(self) -> None:
        plain, held = (learner_of("a", "b", config=LearnerConfig(proximal=mu)) for mu in (0.0, 1.0))
        assert held._n_kept == plain._n_kept + plain.theta.size


class TestUpdates:
    @pytest.mark.parametrize("every", [1, 7, 100])
    def test_come_every_so_many_samples_and_add_up_to_the_samples_seen(self, every: int) -> None:
        learner = learner_of("a", "b", config=LearnerConfig(update_every=every))
        counts, numbers = [], []
        for number, sensors in enumerate(named(noise(450)), start=1):
            taught(learner, [sensors])
            update = learner.take_update("m", when(number))
            if update is not None:
                counts.append(update["sample_count"])
                numbers.append(number)
                assert update["metadata"]["samples_seen"] == number == sum(counts)
        assert numbers == list(range(every, 451, every))
        assert sum(counts) + learner.since_update == learner.samples_seen

    def test_after_a_frame_count_all_of_it(self) -> None:
        learner = learner_of("a", "b")
        followed(learner, noise(250))
        update = learner.take_update("m", when(250))
        assert update is not None
        assert update["sample_count"] == 250
        assert learner.take_update("m", when(250)) is None

    def test_travel_and_hold_the_weights_as_they_are(self) -> None:
        learner = learner_of("a", "b")
        followed(learner, noise(100))
        learner.adopt(learner.theta + 1.0, 4)
        update = learner.take_update("mote-7", when(99))
        assert update is not None
        arrived = LocalUpdate.from_json(orjson.dumps(update))
        theta, architecture = from_message(arrived.weights)
        assert_array_equal(theta, learner.theta)
        assert architecture == learner.architecture
        assert (arrived.device_id, arrived.cohort, arrived.sample_count) == ("mote-7", "a+b", 100)
        assert arrived.timestamp == START + timedelta(seconds=INTERVAL * 99)
        assert arrived.metadata["base_version"] == 4

    def test_of_a_plug_in_travel_as_one_layer(self) -> None:
        learner = learner_of("a", "b", config=PLUGINS["linear"])
        followed(learner, noise(100))
        update = learner.take_update("m", when(99))
        assert update is not None
        theta, _ = from_message(LocalUpdate.from_json(orjson.dumps(update)).weights)
        assert_array_equal(theta, learner.theta)

    def test_of_what_has_no_weights_are_not_sent(self) -> None:
        learner = learner_of("a", "b", config=PLUGINS["persistence"])
        followed(learner, noise(300))
        assert learner.take_update("m", when(300)) is None

    def test_do_not_change_with_later_learning(self) -> None:
        learner = learner_of("a", "b")
        followed(learner, noise(100))
        update = learner.take_update("m", when(99))
        before = str(update)
        followed(learner, noise(50))
        assert str(update) == before


class TestLoss:
    """What an update says of how far its device's forecasts were off, in the sensors' standard deviations."""

    @staticmethod
    def told(learner: DeviceLearner) -> tuple[Any, Any]:
        update = learner.take_update("m", when(0))
        assert update is not None
        return update["metadata"].get("loss"), update["metadata"].get("loss_count")

    @every_plugin
    def test_is_the_mean_error_since_the_last_update(self, config: LearnerConfig) -> None:
        if not (learner := learner_of("a", "b", config=config)).theta.size:
            return  # it sends none
        for table in (noise(130), noise(110, seed=2)):
            errors = [outcome.error for outcome in taught(learner, named(table))]
            known = [error for error in errors if error is not None]
            assert self.told(learner) == (pytest.approx(np.mean(known)), len(known))

    def test_is_the_mean_error_since_the_last_adoption_where_that_is_later(self) -> None:
        learner = learner_of("a", "b")
        followed(learner, noise(150))
        learner.adopt(learner.theta + 0.1, 1)
        said = followed(learner, noise(30, seed=2))
        assert self.told(learner) == (pytest.approx(said.error.mean()), 30)

    def test_goes_on_where_a_model_is_not_adopted(self) -> None:
        learner = learner_of("a", "b")
        followed(learner, noise(150))
        assert not learner.adopt(np.zeros(3), 1)
        assert self.told(learner)[1] == 150 - WARM - 1

    @pytest.mark.parametrize("stop", [False, True])
    def test_does_not_depend_on_frames_or_on_a_restart(self, stop: bool) -> None:
        one, other = learner_of("a", "b"), learner_of("a", "b")
        table = noise(300)
        taught(one, named(table))
        for part in np.split(table, [7, 130, 131]):
            followed(other, part)
            other = DeviceLearner.from_bytes(other.to_bytes(), CONFIG) if stop else other
        assert self.told(one) == (pytest.approx(self.told(other)[0]), 300 - WARM - 1)

    def test_is_absent_where_nothing_could_be_judged(self) -> None:
        learner = learner_of("a")
        taught(learner, [{"a": None}] * 200)
        assert self.told(learner) == (None, None)


class TestHabits:
    """What the time of day adds to the forecast of the horizon: the device's own, beside its network."""

    @staticmethod
    def habitual() -> DeviceLearner:
        learner = learner_of("a", "b")
        followed(learner, wave(6_000, period_s=28_800.0))
        return learner

    def test_start_as_none(self) -> None:
        assert not learner_of("a", "b")._state.habits.any()

    def test_are_learned_and_survive_a_restart_and_a_new_global_model(self) -> None:
        learner = self.habitual()
        learned = learner._state.habits.copy()
        assert learned.any(axis=0).all()
        learner = DeviceLearner.from_bytes(learner.to_bytes(), CONFIG)
        learner.adopt(np.zeros(learner.theta.size), 1)
        assert_array_equal(learner._state.habits, learned)

    def test_are_not_sent(self) -> None:
        learner = self.habitual()
        update = learner.take_update("m", when(0))
        assert update is not None
        sent, _ = from_message(LocalUpdate.from_json(orjson.dumps(update)).weights)
        assert sent.size == learner.architecture.parameter_count

    def test_add_to_the_horizon_at_their_time_of_day_only(self) -> None:
        said = {}
        for hour in (None, 0, 12):
            learner = learner_of("a", "b")
            if hour is not None:
                learner._state.habits[2 * hour] = 0.1
            followed(learner, np.full((1, 2), 20.0))  # at midnight
            said[hour] = learner._state.change.copy()
        assert (said[0] - said[None])[:2].tolist() == [0.0, 0.0]
        assert ((said[0] - said[None])[2:] > 0.1).all()
        assert_array_equal(said[12], said[None])


class TestRoutines:
    """What forecasts usually leave at this time of a working or a free day: START is a Monday."""

    DAY = 2_880

    @classmethod
    def jumping(cls, day: int, size: float = 50.0) -> Vector:
        """A day's readings; at seven o'clock the first sensor jumps, and slowly comes back."""
        after = np.maximum(np.arange(cls.DAY) - 7 * 120, 0)
        table = np.random.default_rng(day).normal(20.0, 0.1, (cls.DAY, 2))
        table[:, 0] += size * (np.arange(cls.DAY) >= 7 * 120) * np.exp(-after / 200.0)
        return table

    def test_expect_what_came_at_this_time_of_a_working_day(self) -> None:
        learner = learner_of("a", "b")
        for day in range(3):
            said = followed(learner, self.jumping(day))
        just_before = slice(7 * 120 - 10, 7 * 120 - 1)  # ten minutes ahead of these it has jumped
        assert (said.horizon[just_before, 0] - 20.0 > 5.0).all()
        assert (np.abs(said.horizon[just_before, 1] - 20.0) < 1.0).all()

    def test_of_working_days_say_nothing_of_free_ones(self) -> None:
        learner = learner_of("a", "b")
        for day in range(5):
            followed(learner, self.jumping(day))
        working = learner._state.routines[:288].copy()
        assert not learner._state.routines[288:].any()
        followed(learner, self.jumping(5, size=0.0))
        assert learner._state.routines[288:].any()
        assert_array_equal(learner._state.routines[:285], working[:285])  # its last forecasts were Friday's

    def test_are_learned_and_survive_a_restart_and_a_new_global_model(self) -> None:
        learner = TestHabits.habitual()
        learned = learner._state.routines.copy()
        assert learned[:288].any(axis=0).all()
        learner = DeviceLearner.from_bytes(learner.to_bytes(), CONFIG)
        learner.adopt(np.zeros(learner.theta.size), 1)
        assert_array_equal(learner._state.routines, learned)

    def test_offline_are_those_of_the_stream(self) -> None:
        routines, times = np.zeros((576, 4)), BEGIN + INTERVAL * np.arange(200, 201)
        for _ in range(20):
            practise_all(routines, times, np.array([[8.0, np.nan, 8.0, 1.0]]), np.ones((1, 4)))
        row = np.flatnonzero(routines.any(axis=1))
        assert_allclose(routines[row], [[8.0 * (1 - 0.9**20), 0.0, 8.0 * (1 - 0.96**20), 1 - 0.96**20]])
        said: list[Outcomes] = []
        for learner in (learner_of("a", "b"), learner_of("a", "b")):
            followed(learner, noise(200))
            learner._state.routines[:] = 0.0 if said else routines
            said.append(followed(learner, np.full((1, 2), 20.0)))
        past = learner._state.past
        scales = np.array([[scale(past, s) for scale in (step_scale, swing_scale) for s in (0, 1)]])
        usual = routines_at(routines, times, scales)[0]
        assert usual.astype(bool).tolist() == [True, False, True, True]
        assert_allclose((said[0].forecast - said[1].forecast)[0], usual[:2])
        assert_allclose((said[0].horizon - said[1].horizon)[0], usual[2:])

    def test_change_no_score(self) -> None:
        told = []
        for size in (0.0, 3.0):
            learner = learner_of("a", "b")
            followed(learner, noise(200))
            learner._state.routines[:] += size
            said = followed(learner, noise(50, seed=2))
            told.append((said.score, said.error))
        assert_array_equal(told[0], told[1])

    def test_bring_no_forecast_beyond_sixty_typical_changes(self) -> None:
        learner = learner_of("a", "b")
        followed(learner, noise(200))
        learner._state.routines[:] = 1e90
        said = followed(learner, noise(1))
        assert (np.abs(said.forecast - 20.0) < 200.0).all()
        assert (np.abs(said.horizon - 20.0) < 200.0).all()


class TestConceptDrift:
    @staticmethod
    def rising(config: LearnerConfig, factor: float = 8.0) -> tuple[DeviceLearner, Outcomes]:
        """Small noise about a constant for 4,000 readings, then noise of another size."""
        table = noise(5_000)
        table[4_000:] += (factor - 1.0) * (table[4_000:] - 20.0)
        learner = learner_of("a", "b", config=config)
        return learner, followed(learner, table)

    @pytest.mark.parametrize("name", ["as shipped", "adam"])
    def test_is_reported_once_the_errors_rise(self, name: str) -> None:
        learner, said = self.rising(CONFIGS[name])
        assert not said.drift[:4_000].any()
        assert said.drift[4_000:4_200].any()
        assert learner.drifts == said.drift.sum()

    def test_makes_the_steps_as_long_as_at_the_start(self) -> None:
        learner, said = self.rising(CONFIG)
        calm = learner_of("a", "b")
        followed(calm, noise(5_000))
        last = np.flatnonzero(said.drift)[-1]
        assert learner._state.queue[2] <= 4 * (5_000 - last)
        assert calm._state.queue[2] > 4_900

    def test_is_not_watched_for_where_it_is_switched_off(self) -> None:
        learner, said = self.rising(CONFIGS["momentum"])
        assert not said.drift.any()
        assert learner.drifts == 0

    def test_is_told_with_the_update_and_survives_a_restart(self) -> None:
        learner, said = self.rising(CONFIG)
        learner = DeviceLearner.from_bytes(learner.to_bytes(), CONFIG)
        update = learner.take_update("m", when(0))
        assert update is not None
        assert update["metadata"]["drifts"] == said.drift.sum() > 0


class TestAlarms:
    @pytest.mark.parametrize("config", [CONFIG, PLUGINS["both"]], ids=["network", "plug-ins"])
    def test_say_which_sensor_in_which_way_and_what_was_expected(self, config: LearnerConfig) -> None:
        learner = learner_of("a", "b", config=config)
        followed(learner, noise(3_000))
        calm, spike = taught(learner, [{"a": 20.0, "b": 20.0}, {"a": 20.0, "b": 500.0}])
        assert not calm.is_anomaly
        assert spike.is_anomaly
        assert spike.score > calm.score
        assert spike.sensor == "b"
        assert spike.kind in KINDS
        assert spike.expected is not None
        assert spike.expected["b"] == pytest.approx(20.0, abs=5.0)

    def test_are_not_raised_before_anything_is_known(self) -> None:
        said = followed(learner_of("a", "b"), noise(int(WARM)))
        assert not said.is_anomaly.any()


class TestPlugIns:
    @every_plugin
    def test_run_in_a_learner(self, config: LearnerConfig) -> None:
        learner = learner_of("a", "b", config=config)
        table = wave(1_500)
        said = followed(learner, table)
        assert np.isfinite(said.forecast).all()
        assert rmse((said.expected - table)[-500:]) < 1.1 * rmse(np.diff(table, axis=0)[-500:])

    def test_persistence_expects_the_last_value(self) -> None:
        table = noise(100)
        said = followed(learner_of("a", "b", config=PLUGINS["persistence"]), table)
        assert_array_equal(said.forecast, table)
        assert_array_equal(said.horizon, table)

    def test_a_linear_model_learns_both_horizons(self) -> None:
        table = wave(4_000)
        said = followed(learner_of("a", "b", config=PLUGINS["linear"]), table)
        off, change = (said.horizon[:-20] - table[20:])[-1_000:], (table[20:] - table[:-20])[-1_000:]
        assert rmse(off) < 0.3 * rmse(change)

    def test_a_detector_does_not_change_what_the_network_learns(self) -> None:
        alone, watched = learner_of("a", "b"), learner_of("a", "b", config=PLUGINS["half_space_trees"])
        table = wave(500)
        assert_allclose(followed(watched, table).forecast, followed(alone, table).forecast, rtol=1e-9)


class TestAConfigurationIsRefused:
    @pytest.mark.parametrize(
        ("changes", "said"),
        [
            ({"features": ("lag_1", "hour")}, r"learner\.features knows no hour; it knows lag_1"),
            ({"forecaster": "oracle"}, r"oracle.*persistence"),
            ({"detectors": ("oracle",)}, r"oracle.*half_space_trees"),
            ({"detectors": ("half_space_trees",) * 5}, r"learner\.detectors names 5, at most 4"),
            ({"hidden_sizes": (1_000,)}, r"lower learner\.hidden_sizes, learner\.features or reading\.max_sensors"),
            ({"hidden_sizes": (100_000, 100_000)}, r"the limit is 3,145,728"),
        ],
    )
    def test_with_its_mend_before_anything_starts(self, changes: dict[str, Any], said: str) -> None:
        with pytest.raises(BadConfiguration, match=said):
            check(LearnerConfig.model_validate(changes), MAX_SENSORS)

    @every_plugin
    def test_unless_a_learner_can_be_made_of_it(self, config: LearnerConfig) -> None:
        check(config, 16)
        learner_of(*(f"s{i:02}" for i in range(16)), config=config)

    def test_unless_it_is_the_one_that_is_shipped(self) -> None:
        check(CONFIG, MAX_SENSORS)

    def test_where_its_plug_ins_would_need_too_much_state(self, monkeypatch: pytest.MonkeyPatch) -> None:
        config = LearnerConfig(forecaster="linear", features=(*PER_SENSOR, *SHARED))
        learner = learner_of(*(f"s{i:02}" for i in range(MAX_SENSORS)), config=config)
        monkeypatch.setattr("flead.learner.STATE_LIMIT", len(learner.to_bytes()) - 10_000)
        with pytest.raises(BadConfiguration, match="state"):
            check(config, MAX_SENSORS)


def test_the_settings_of_one_learner_cannot_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        CONFIG.seed = 3  # type: ignore[misc]
