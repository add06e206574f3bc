"""Every feature is what its name says: each is computed here once more, from the whole series, in plain NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from math import cos, log, pi, sin

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from flead import features, learning, state
from flead.errors import BadConfiguration
from flead.features import BINS, CLIP, HALF_LIVES, PER_SENSOR, SHARED, TYPICAL, codes
from flead.learner_config import LearnerConfig
from flead.network import Vector

ALL = (*PER_SENSOR, *SHARED)
CONFIG = LearnerConfig(features=ALL, hidden_sizes=())
DAY = 86_400.0
MONDAY = datetime(2024, 1, 1, tzinfo=UTC).timestamp()


@dataclass
class Followed:
    """A series, and what the kernels make of it: features by name, and the units of changes."""

    times: Vector
    values: Vector
    features: Vector
    scales: Vector
    clock: Vector

    def of(self, name: str, sensor: int = 0) -> Vector:
        """(m,)"""
        n, per = self.values.shape[1], len(PER_SENSOR)
        place = n * per + SHARED.index(name) if name in SHARED else sensor * per + PER_SENSOR.index(name)
        column: Vector = self.features[:, place]
        return column

    def seen(self, sensor: int, row: int) -> Vector:
        """The sensor's values until this reading."""
        values = self.values[: row + 1, sensor]
        known: Vector = values[~np.isnan(values)]
        return known

    def step(self, sensor: int, row: int) -> float:
        return float(self.scales[row, sensor])

    def swing(self, sensor: int, row: int) -> float:
        return float(self.scales[row, self.values.shape[1] + sensor])


def followed(times: Vector, values: Vector, config: LearnerConfig = CONFIG) -> Followed:
    m, n = values.shape
    sizes, buffer = state.fresh(config, n)
    made, scales = np.zeros((m, sizes[state.FEATURES])), np.zeros((m, 2 * n))
    learning.follow(sizes, buffer, np.column_stack((times, values)), made, scales)
    return Followed(times, values, made, scales, buffer[: features.CLOCK_SIZE])


@cache
def series(seed: int, count: int = 400, jumps: bool = True) -> Followed:
    """Two sensors with missing values, readings that come late, and jumps."""
    rng = np.random.default_rng(seed)
    gaps = np.where(rng.random(count) < 0.05, rng.uniform(60.0, 3_000.0, count), rng.uniform(25.0, 35.0, count))
    values = rng.normal(0.0, 0.3, (count, 2)).cumsum(axis=0) + np.array([20.0, -500.0])
    if jumps:
        values += 30.0 * (rng.random(values.shape) < 0.02)
    values[rng.random(values.shape) < 0.15] = np.nan
    values[:7, 1] = np.nan
    return followed(MONDAY + 5 * 3_600 + gaps.cumsum(), values)


def compare(data: Followed, name: str, expected: dict[tuple[int, int], float]) -> None:
    """Against one number for each (sensor, row)."""
    places = list(expected)
    found = [data.of(name, sensor)[row] for sensor, row in places]
    wanted = np.clip(np.clip([expected[place] for place in places], -CLIP, CLIP) / TYPICAL.get(name, 1.0), -CLIP, CLIP)
    assert_allclose(found, wanted, rtol=1e-7, atol=1e-8)
    assert len(set(found)) > 1  # or nothing was tested


def places(data: Followed) -> list[tuple[int, int]]:
    m, n = data.values.shape
    return [(s, i) for s in range(n) for i in range(m) if len(data.seen(s, i))]


seeds = pytest.mark.parametrize("seed", [1, 2])


@seeds
class TestEachFeatureOfASensor:
    @pytest.mark.parametrize("lag", range(1, 9))
    def test_lag_is_the_value_so_many_values_ago(self, seed: int, lag: int) -> None:
        data = series(seed)
        expected = {}
        for s, i in places(data):
            seen = data.seen(s, i)
            ago = seen[-1 - lag] if len(seen) > lag else seen[0]
            expected[s, i] = (ago - seen[-1]) / data.step(s, i)
        compare(data, f"lag_{lag}", expected)

    @pytest.mark.parametrize("k", range(len(HALF_LIVES)))
    def test_mean_forgets_half_in_its_half_life(self, seed: int, k: int) -> None:
        data = series(seed, jumps=False)  # what jumps far pulls no further than `FARTHEST`
        interval = typical_intervals(data.times)
        expected = {}
        for s in range(2):
            mean, since = np.nan, 0.0
            for i, x in enumerate(data.values[:, s]):
                gap = min((data.times[i] - data.times[i - 1]) / interval[i], 1e4) if i else 0.0
                since += gap
                if not np.isnan(x):
                    mean = x if np.isnan(mean) else mean + (1.0 - 0.5 ** (max(since, 1.0) / HALF_LIVES[k])) * (x - mean)
                    since = 0.0
                if not np.isnan(mean):
                    scale = data.step(s, i) if k < features.FAST_MEANS else data.swing(s, i)
                    expected[s, i] = (mean - data.seen(s, i)[-1]) / scale
        compare(data, f"mean_{HALF_LIVES[k]:g}", expected)

    @pytest.mark.parametrize("window", [10, 100])
    @pytest.mark.parametrize("name", ["mean", "sd", "min", "max", "slope", "energy"])
    def test_a_window_is_over_its_last_values(self, seed: int, name: str, window: int) -> None:
        data = series(seed)
        expected = {}
        for s, i in places(data):
            last = data.seen(s, i)[-window:]
            off, step, swing = last - last[-1], data.step(s, i), data.swing(s, i)
            several = len(last) > 1
            expected[s, i] = {
                "mean": off.mean() / swing,
                "sd": off.std() / swing,
                "min": off.min() / step,
                "max": off.max() / step,
                "slope": np.polyfit(np.arange(len(off)), off, 1)[0] / step if several else 0.0,
                "energy": np.sqrt(np.mean(np.diff(last) ** 2)) / step if several else 0.0,
            }[name]
        compare(data, f"{name}_{window}", expected)

    def test_level_is_the_distance_from_the_long_mean(self, seed: int) -> None:
        data = series(seed, jumps=False)
        expected = {}
        for s, i in places(data):
            seen = data.seen(s, i)
            expected[s, i] = (seen[-1] - seen.mean()) / max(seen.std(), data.swing(s, i))
        # The same until an outlier is cut short, after 20 values.
        compare(data, "level", {(s, i): x for (s, i), x in expected.items() if len(data.seen(s, i)) <= 20})

    def test_age_is_the_time_since_its_last_value(self, seed: int) -> None:
        data = series(seed)
        interval, expected = typical_intervals(data.times), {}
        for s, i in places(data):
            age, j = 0.0, i
            while np.isnan(data.values[j, s]):
                age += min((data.times[j] - data.times[j - 1]) / interval[j], 1e4)
                j -= 1
            expected[s, i] = np.log1p(age)
        compare(data, "age", expected)

    def test_units_are_the_typical_change_and_the_typical_swing(self, seed: int) -> None:
        data = series(seed, jumps=False)
        for s, i in places(data):
            seen = data.seen(s, i)
            if 2 < len(seen) <= 20:
                assert_allclose(data.step(s, i), np.sqrt(np.mean(np.diff(seen) ** 2)), rtol=1e-9)
            assert 0 < data.step(s, i) <= data.swing(s, i)


def typical_intervals(times: Vector) -> Vector:
    """The running median of gaps, by stochastic approximation, (m,)."""
    interval, found = 0.0, [0.0]
    for i, gap in enumerate(np.diff(times), start=1):
        rate = max(0.5 / (1.0 + i), 0.005)
        interval = gap if not interval else interval * (1.0 + rate if gap > interval else 1.0 / (1.0 + rate))
        found.append(interval)
    return np.array(found)


def beside_an_outlier(outlier: float) -> tuple[Followed, Followed]:
    """A steady series, and the same with an outlier in the middle."""
    values = np.random.default_rng(4).normal(20.0, 1.0, (1_000, 1))
    times = MONDAY + 30.0 * np.arange(1_000)
    steady = followed(times, values.copy())
    values[500] = outlier
    return steady, followed(times, values)


class TestAnOutlier:
    @pytest.mark.parametrize("outlier", [1e3, 1e6, -1e15])
    def test_does_not_own_the_typical_change(self, outlier: float) -> None:
        steady, hit = beside_an_outlier(outlier)
        for row in (500, 501, 600, 999):
            assert hit.step(0, row) < 1.3 * steady.step(0, row)

    @pytest.mark.parametrize("outlier", [1e3, 1e6, -1e15])
    def test_does_not_own_the_typical_swing(self, outlier: float) -> None:
        steady, hit = beside_an_outlier(outlier)
        for row in (500, 501, 600, 999):
            assert hit.swing(0, row) < 1.3 * steady.swing(0, row)

    def test_is_forgotten_by_every_feature(self) -> None:
        steady, hit = beside_an_outlier(1e6)
        names = [name for name in PER_SENSOR if not name.endswith("_100")]
        assert_allclose([hit.of(n)[999] for n in names], [steady.of(n)[999] for n in names], atol=0.5)


class TestTheHorizon:
    TIMES = MONDAY + 30.0 * np.arange(3 * 2_880)
    VALUES = np.random.default_rng(3).normal(0.0, 0.3, (len(TIMES), 1)).cumsum(axis=0)

    def test_ago_is_the_value_one_horizon_before(self) -> None:
        data = followed(self.TIMES[:2_000], self.VALUES[:2_000])
        back = int(CONFIG.horizon_s / 30)
        compare(
            data,
            "horizon_ago",
            {(0, i): (data.values[i - back, 0] - data.values[i, 0]) / data.swing(0, i) for i in range(back, 2_000)},
        )
        assert not data.of("horizon_ago")[: back - 5].any()

    def test_ago_is_nothing_where_a_gap_lies_between(self) -> None:
        times = np.concatenate((self.TIMES[:500], self.TIMES[500:600] + 7_200.0))
        data = followed(times, self.VALUES[:600])
        assert data.of("horizon_ago")[499]
        assert not data.of("horizon_ago")[500:515].any()
        assert data.of("horizon_ago")[599]

    def test_profile_is_what_the_value_does_at_this_time_of_day(self) -> None:
        """What came of every forecast, by its half hour; half of the next and half of the last half hour count, too."""
        turns = 2.0 * np.pi * self.TIMES / DAY
        data = followed(self.TIMES, 10.0 * np.sin(turns)[:, None])
        back = int(CONFIG.horizon_s / 30)
        values, last = data.values[:, 0], len(self.TIMES) - 1
        usual = np.zeros(BINS)
        counts = np.zeros(BINS)
        bins = (self.TIMES % DAY // (DAY / BINS)).astype(int)
        for i in range(len(values) - back):
            counts[bins[i]] += 1
            usual[bins[i]] += max(1.0 / counts[bins[i]], 0.01) * (values[i + back] - values[i] - usual[bins[i]])
        b = bins[last]
        expected = 0.25 * (2 * usual[b] + usual[(b + 1) % BINS] + usual[b - 1]) / data.swing(0, last)
        assert_allclose(data.of("profile")[last], expected / TYPICAL["profile"], rtol=0.02)
        assert abs(expected) > 0.1


class TestTheSharedFeatures:
    @seeds
    def test_gap_is_the_time_since_the_last_reading_in_typical_intervals(self, seed: int) -> None:
        data = series(seed)
        gaps = np.diff(data.times, prepend=data.times[0]) / np.maximum(typical_intervals(data.times), 1e-9)
        expected = (np.log1p(np.minimum(gaps, 100.0)) - log(2.0)) / TYPICAL["gap"]
        assert_allclose(data.of("gap"), expected, rtol=1e-9, atol=1e-12)

    @seeds
    def test_harmonics_are_the_time_of_day_and_of_the_week(self, seed: int) -> None:
        data = series(seed)
        for i in range(0, len(data.times), 17):
            at = datetime.fromtimestamp(float(data.times[i]), UTC)
            day = (at.hour + at.minute / 60 + (at.second + at.microsecond / 1e6) / 3_600) / 24
            week = (at.weekday() + day) / 7
            expected = {
                "day_sin_1": sin(2 * pi * day),
                "day_cos_1": cos(2 * pi * day),
                "day_sin_2": sin(4 * pi * day),
                "day_cos_2": cos(4 * pi * day),
                "week_sin": sin(2 * pi * week),
                "week_cos": cos(2 * pi * week),
            }
            for name, value in expected.items():
                assert data.of(name)[i] == pytest.approx(value / 0.7, abs=1e-6)


class TestTheTypicalInterval:
    @pytest.mark.parametrize("median", [0.01, 1.0, 30.0, 3_600.0])
    @pytest.mark.parametrize("first", [0.001, 1.0, 1_000.0])
    def test_becomes_the_median_gap(self, median: float, first: float) -> None:
        rng = np.random.default_rng(1)
        gaps = median * np.exp(rng.normal(0.0, 0.2, 4_000))
        gaps[rng.random(4_000) < 0.1] *= 100.0  # gaps do not own it
        gaps[1] = first * median
        data = followed(MONDAY + gaps.cumsum(), np.zeros((4_000, 1)))
        assert_allclose(data.clock[features.INTERVAL], np.median(gaps), rtol=0.1)

    def test_does_not_count_readings_of_one_time_or_of_the_past(self) -> None:
        times = MONDAY + np.repeat(30.0 * np.arange(1_000), 3)
        times[7::50] -= 1_000.0
        data = followed(times, np.zeros((3_000, 1)))
        assert data.clock[features.INTERVAL] == pytest.approx(30.0, rel=0.02)
        assert data.clock[features.LAST_TIME] == times.max()


extremes = st.sampled_from([0.0, 1e15, -1e15, 1e-300, np.nan]) | st.floats(-1e15, 1e15)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(-1e4, 1e6), extremes, extremes), min_size=1, max_size=150))
def test_are_finite_and_clipped_whatever_comes(rows: list[tuple[float, float, float]]) -> None:
    table = np.array(rows)
    data = followed(MONDAY + table[:, 0].cumsum(), table[:, 1:])
    assert np.isfinite(data.features).all()
    assert np.abs(data.features).max() <= CLIP
    assert (data.scales > 0).all()


def test_of_a_sensor_that_never_gave_a_value_are_zero() -> None:
    data = followed(MONDAY + 30.0 * np.arange(200), np.column_stack((np.arange(200.0), np.full(200, np.nan))))
    assert not data.features[:, len(PER_SENSOR) : 2 * len(PER_SENSOR)].any()


def test_of_each_sensor_are_its_own() -> None:
    both = series(1)
    for s in range(2):
        alone = followed(both.times, both.values[:, s : s + 1])
        for name in PER_SENSOR:
            assert_allclose(alone.of(name), both.of(name, s), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 500.0), (1000.0, 0.0), (-1.0, 0.0)])
def test_do_not_depend_on_a_devices_level_or_unit(factor: float, shift: float) -> None:
    here = series(1)
    there = followed(here.times, factor * (here.values + shift))
    turned = {"min": "max", "max": "min"} if factor < 0 else {}
    for name in PER_SENSOR:
        stem, _, rest = name.partition("_")
        same = here.of(f"{turned.get(stem, stem)}_{rest}" if rest else stem, 0)
        sign = np.sign(factor) if stem not in ("sd", "energy", "age") else 1.0
        assert_allclose(there.of(name, 0), sign * same, rtol=1e-5, atol=1e-5)


class TestTheDeclaredList:
    def test_gives_features_in_their_own_order(self) -> None:
        names = ("gap", "level", "week_cos", "lag_3", "mean_10")
        data = series(1)
        chosen = followed(data.times, data.values, LearnerConfig(features=names))
        own, shared = codes(names)
        assert [PER_SENSOR[c] for c in own] == ["level", "lag_3", "mean_10"]
        assert [SHARED[c] for c in shared] == ["gap", "week_cos"]
        wanted = [data.of(n, s) for s in (0, 1) for n in ("level", "lag_3", "mean_10")]
        wanted += [data.of("gap"), data.of("week_cos")]
        assert_allclose(chosen.features, np.column_stack(wanted), rtol=1e-9, atol=1e-12)

    def test_refuses_what_it_does_not_know_and_says_what_it_knows(self) -> None:
        with pytest.raises(BadConfiguration, match=r"knows no lag_99, hour; it knows lag_1, .*week_cos"):
            codes(("lag_1", "lag_99", "hour"))

    def test_keeps_no_more_values_than_are_asked_for(self) -> None:
        assert features.ring_length(("lag_8", "sd_10")) == 10
        assert features.ring_length(("lag_8", "sd_100")) == 100

    def test_has_no_name_twice(self) -> None:
        assert len(set(ALL)) == len(ALL)
