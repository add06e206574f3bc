from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

from flead import evaluation, network, state
from flead.analysis.comparison import compared
from flead.analysis.day import DAY_S, day_facts, stuck_runs, without_impossible
from flead.analysis.judging import SUMS, asked_on, figures, judge
from flead.analysis.moments import Comoments, Moments
from flead.analysis.report import DeviceDay, Judged, Model, fold, summary
from flead.evaluation import Series
from flead.learner_config import LearnerConfig

VALUES = numpy_arrays(
    np.float64,
    st.tuples(st.integers(1, 40), st.just(3)),
    elements=st.one_of(st.floats(-1e6, 1e6, width=32), st.just(float("nan"))),
)
CREATED = datetime(2024, 1, 9, tzinfo=UTC)
SENSORS = ("humidity", "temperature")


def readings(days: int = 1, m: int = 400, seed: int = 0, start: float = 0.0) -> tuple[Any, Any]:
    """Times and values of a device with a daily cycle."""
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(start, start + days * DAY_S, m * days))
    cycle = np.sin(2 * np.pi * times / DAY_S)
    return times, np.column_stack((40 - 5 * cycle, 20 + 3 * cycle)) + 0.1 * rng.normal(size=(m * days, 2))


def device_day(device: str = "m1", day: int = 0, seed: int = 0, **changed: Any) -> DeviceDay:
    times, values = readings(seed=seed, start=day * DAY_S)
    facts = day_facts(day * DAY_S, times, values, SENSORS) | changed
    return DeviceDay(device, f"1970-01-{day + 1:02}", "humidity+temperature", facts)


def report(days: list[DeviceDay], **more: Any) -> dict[str, Any]:
    source = {"kind": "file", "name": "x"}
    rest: dict[str, Any] = {"judged": [], "models": [], "rejected": {}} | more
    judged, models = rest.pop("judged"), rest.pop("models")
    return fold(days, judged, models, ("next", "10min"), source=source, created=CREATED, **rest)


class TestMoments:
    @given(VALUES, VALUES)
    def test_of_parts_add_up_to_those_of_the_whole(self, a: Any, b: Any) -> None:
        both, whole = Moments.of(a) + Moments.of(b), Moments.of(np.concatenate((a, b)))
        scale = np.nanmax(np.abs(np.concatenate((a, b))), initial=1.0)
        for name, tolerance in (("count", 0.0), ("mean", scale), ("m2", scale**2), ("low", 0.0), ("high", 0.0)):
            np.testing.assert_allclose(getattr(both, name), getattr(whole, name), rtol=1e-7, atol=1e-9 * tolerance)

    @given(VALUES, VALUES)
    def test_of_pairs_add_up_too(self, a: Any, b: Any) -> None:
        both, whole = Comoments.of(a) + Comoments.of(b), Comoments.of(np.concatenate((a, b)))
        scale = np.nanmax(np.abs(np.concatenate((a, b))), initial=1.0)
        np.testing.assert_array_equal(both.count, whole.count)
        np.testing.assert_allclose(both.comoment, whole.comoment, rtol=1e-6, atol=1e-8 * scale**2)

    def test_survive_being_stored(self) -> None:
        values = np.array([[1.0, np.nan], [2.0, np.nan]])
        stored = Moments.of(values).as_lists()
        assert stored["mean"] == [1.5, None]
        np.testing.assert_array_equal(Moments.from_lists(stored).m2, [0.5, np.nan])

    def test_a_level_far_above_its_noise_does_not_hide_a_correlation(self) -> None:
        x = np.random.default_rng(0).normal(size=10_000)
        values = 1e9 + np.column_stack((x, x))
        assert Comoments.of(values).correlation[0, 1] == pytest.approx(1.0, abs=1e-6)


class TestADay:
    def test_counts_what_came_twice_late_and_from_the_future(self) -> None:
        times = np.array([10.0, 20.0, 20.0, 30.0])
        facts = day_facts(
            0.0, times, np.ones((4, 1)), ("t",), arrival=np.array([0, 1, 3, 2]), ranges={"t": (2.0, 3.0)}, latest=25.0
        )
        assert (facts["duplicates"], facts["backwards"], facts["future"], facts["out_of_range"]) == (1, 1, 1, [4])

    def test_a_gap_is_longer_than_ten_usual_intervals(self) -> None:
        times = np.concatenate((np.arange(0.0, 3_000.0, 30.0), np.arange(4_000.0, 7_000.0, 30.0), [7_270.0]))
        facts = day_facts(0.0, times, np.ones((len(times), 1)), ("t",))
        assert (facts["interval_s"], facts["gaps"], facts["longest_gap_s"]) == (30.0, 1, 1_030.0)

    def test_one_reading_has_no_interval_and_no_gap(self) -> None:
        facts = day_facts(0.0, np.array([5.0]), np.array([[np.nan]]), ("t",))
        assert (facts["interval_s"], facts["gaps"], facts["missing"], facts["moments"]["mean"]) == (
            None,
            0,
            [1],
            [None],
        )

    def test_missing_values_neither_end_a_run_nor_count(self) -> None:
        times = np.arange(14) * 400.0
        values = np.full(14, 7.0)
        values[5] = np.nan
        stuck, longest = stuck_runs(times, values[:, None])
        assert (stuck[0], longest[0]) == (13, 13 * 400.0)

    def test_short_runs_are_not_stuck(self) -> None:
        assert stuck_runs(np.arange(9) * 600.0, np.ones((9, 1)))[0][0] == 0, "nine readings are too few"
        assert stuck_runs(np.arange(50) * 30.0, np.ones((50, 1)))[0][0] == 0, "25 minutes are too short"

    def test_sensors_without_a_range_are_not_judged(self) -> None:
        kept = without_impossible(np.array([[1e9, -1.0]]), ("any", "known"), {"known": (0.0, 1.0)})
        np.testing.assert_array_equal(kept, [[1e9, np.nan]])


class TestJudging:
    CONFIG = LearnerConfig()

    def model(self, seed: int) -> Any:
        architecture = state.architecture_of(self.CONFIG, 2)
        return network.initial(architecture, np.random.default_rng(seed)), architecture

    def test_is_what_scikit_learn_says_of_the_same_forecasts(self) -> None:
        times, values = readings(days=2, m=900)
        split = int(np.searchsorted(times, DAY_S))
        before, day = Series("m", times[:split], values[:split]), Series("m", times[split:], values[split:])
        theta, architecture = self.model(1)
        asked = asked_on(day, before, DAY_S, self.CONFIG, 10_000)
        sums = judge(np.stack((theta,)), architecture, asked)
        features, scales = evaluation.followed(Series("m", times, values), self.CONFIG)
        changes = evaluation.changes_of(day, self.CONFIG.horizon_s)
        said = np.clip(network.forward(theta, architecture, features), [-20, -20, -8, -8], [20, 20, 8, 8]) * scales
        for output in range(4):
            known = np.isfinite(changes[:, output])
            truth = (values[split:, output % 2] + changes[:, output])[known]
            forecast = (values[split:, output % 2] + said[split:, output])[known]
            still = values[split:, output % 2][known]
            found = figures(sums[0].sum(axis=0)[output])
            rmse = mean_squared_error(truth, forecast) ** 0.5
            assert found["count"] == known.sum()
            assert found["rmse"] == pytest.approx(rmse)
            assert found["mae"] == pytest.approx(mean_absolute_error(truth, forecast))
            assert found["r2"] == pytest.approx(r2_score(truth, forecast))
            assert found["skill"] == pytest.approx(1.0 - rmse / mean_squared_error(truth, still) ** 0.5)

    def test_hours_add_up_to_the_day(self) -> None:
        times, values = readings(m=500)
        theta, architecture = self.model(2)
        asked = asked_on(Series("m", times, values), None, 0.0, self.CONFIG, 10_000)
        by_hour = judge(np.stack((theta, theta)), architecture, asked)
        assert by_hour.shape == (2, 24, 4, SUMS)
        np.testing.assert_array_equal(by_hour[0], by_hour[1])
        morning = asked.hour < 12
        early = Series("m", times[morning], values[morning])
        only = judge(np.stack((theta,)), architecture, asked_on(early, None, 0.0, self.CONFIG, 10_000))
        np.testing.assert_allclose(by_hour[0, :11], only[0, :11])  # the twelfth looks ten minutes into the thirteenth

    def test_asks_about_readings_evenly_spread_where_there_are_many(self) -> None:
        times, values = readings(m=1_000)
        asked = asked_on(Series("m", times, values), None, 0.0, self.CONFIG, 100)
        assert len(asked.values) == 100
        assert set(asked.hour) == set(range(24))

    def test_of_nothing_known_says_nothing(self) -> None:
        assert figures(np.zeros(SUMS)) == {"count": 0, "rmse": None, "mae": None, "r2": None, "skill": None}
        constant = figures(np.array([3.0, 3.0, 3.0, 0.0, 60.0, 1_200.0]))
        assert (constant["r2"], constant["skill"]) == (None, None)


class TestTheReport:
    def test_of_one_reading_of_one_device_is_whole(self) -> None:
        facts = day_facts(0.0, np.array([5.0]), np.array([[20.0]]), ("t",))
        made = report([DeviceDay("m1", "1970-01-01", "t", facts)])
        assert made["devices"] == {
            "m1": {"t": {"count": 1, "missing": 0, "mean": 20.0, "sd": None, "min": 20.0, "max": 20.0}}
        }
        assert made["correlation"] == {"sensors": {}, "devices": {}}
        assert made["ranking"][0]["device"] == "m1"

    def test_puts_the_device_that_needs_attention_first_and_says_why(self) -> None:
        silent = device_day("silent", seed=1)
        slots = [n if i < 36 else 0 for i, n in enumerate(silent.facts["slots"])]
        days = [device_day("well"), DeviceDay("silent", silent.day, silent.cohort, {**silent.facts, "slots": slots})]
        first = report(days)["ranking"][0]
        assert first["device"] == "silent"
        silent_share = 100 - 100 * sum(s > 0 for s in slots) / 144
        assert first["reasons"][0] == f"silent {silent_share:.0f} % of the time"
        assert silent_share >= 75

    def test_a_dark_night_is_no_fault_where_every_light_is_dark(self) -> None:
        days = [device_day(name, seed=i, stuck=[0, 150]) for i, name in enumerate(("a", "b", "c"))]
        days.append(device_day("d", seed=9, stuck=[0, 390]))
        ranking = {row["device"]: row["reasons"] for row in report(days)["ranking"]}
        assert not any("stuck" in reason for reason in ranking["a"])
        assert any("temperature stuck" in reason for reason in ranking["d"])

    def test_drift_is_told_in_standard_deviations_of_the_days_before(self) -> None:
        days = [device_day(day=0), device_day(day=1, seed=1), device_day(day=2, seed=2)]
        drift = report(days)["drift"]["m1"]["temperature"]
        first, second = readings(seed=0)[1][:, 1], readings(seed=1, start=DAY_S)[1][:, 1]
        assert drift["shift"][0] is None
        assert drift["shift"][1] == pytest.approx((second.mean() - first.mean()) / first.std(ddof=1))

    def test_devices_that_see_the_same_correlate(self) -> None:
        made = report([device_day("a", seed=1), device_day("b", seed=2)])["correlation"]
        assert made["devices"]["temperature"]["matrix"][0][1] > 0.9
        assert made["sensors"]["humidity+temperature"]["matrix"][0][1] < -0.9

    def test_leaves_out_models_that_nothing_was_judged_on(self) -> None:
        models = [Model("c#1", "c", 1, "2024-01-01T00:00:00+00:00", 3)]
        empty = Judged("c#1", (), (), np.zeros(0), np.zeros(0))
        assert report([device_day()], models=models, judged=[empty])["evaluation"] == []

    def test_adds_a_models_days_up(self) -> None:
        models = [Model("c#1", "c", 1, "2024-01-01T00:00:00+00:00", 3)]
        sums = np.ones((1, 24, 4, SUMS))
        part = Judged("c#1", SENSORS, ("m1",), sums.sum(axis=1), sums[0])
        made = report([device_day()], models=models, judged=[part, part])["evaluation"][0]
        assert made["count"] == 48
        assert made["devices"]["m1"]["next"]["humidity"]["count"] == 48
        assert made["hours"]["7"]["10min"]["temperature"]["count"] == 2

    def test_says_what_changed_since_the_one_before(self) -> None:
        before = report([device_day("a"), device_day("gone", seed=3)])
        after = report([device_day("a"), device_day("a", day=1, seed=1), device_day("new", seed=4)])
        changed = compared(before, after)
        assert (changed["new_devices"], changed["gone_devices"]) == (["new"], ["gone"])
        assert {"what": "readings", "before": 800, "after": 1_200, "device": None, "better": None} in changed["changes"]

    def test_says_nothing_where_nothing_changed(self) -> None:
        made = report([device_day("a")])
        assert compared(summary(made), made)["changes"] == []

    def test_keeps_nothing_that_grows_with_days_or_pairs_of_devices(self) -> None:
        few = [device_day(name, seed=i) for i, name in enumerate("ab")]
        more = [device_day(name, day, seed=i) for day in range(9) for i, name in enumerate("ab")]
        sizes = [len(json.dumps(summary(report(days)))) for days in (few, more)]
        assert sizes[1] < 1.5 * sizes[0]
