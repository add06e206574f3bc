"""Evaluation on small fleets of which it is known what can be forecast."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from flead.errors import BadDataset
from flead.evaluation import COLD_METHODS, METHODS, Evaluation, Plan, Series, changes_of, evaluate
from flead.features import DAY
from flead.learner import DeviceLearner
from flead.learner_config import LearnerConfig
from flead.network import Vector
from flead.personalisation import RULES, Personalisation, Rounds, compare_rules
from flead.training import Federation
from tests.fixtures_cli import Flead

BEGIN, INTERVAL = 19_800 * DAY, 240.0
SENSORS = ("humidity", "temperature")
CONFIG = LearnerConfig(hidden_sizes=(8,), horizon_s=1_200.0)
PLAN = Plan(Federation(rounds=4), personal_epochs=2, local_epochs=2, central_epochs=2)
HORIZONS = ("next", "20min")


def series(device: str, first_day: int, days: int, seed: int = 0) -> Series:
    """A daily pattern at the device's own level, with a little noise."""
    times = BEGIN + first_day * DAY + np.arange(0.0, days * DAY, INTERVAL)
    turns = 2 * np.pi * times / DAY
    clean = np.column_stack((50.0 + 10.0 * np.cos(3 * turns), 20.0 + 5.0 * np.sin(turns)))
    return Series(device, times, clean + seed + np.random.default_rng(seed).normal(0.0, 0.05, clean.shape))


def fleet(first_day: int, days: int, count: int = 3) -> list[Series]:
    return [series(f"device-{i}", first_day, days, seed=10 * first_day + i) for i in range(count)]


def evaluated(train_days: list[Series], test_days: list[Series]) -> Evaluation:
    return evaluate(train_days, test_days, SENSORS, CONFIG, PLAN)


@cache
def outcome() -> Evaluation:
    return evaluated(fleet(0, 2), fleet(2, 1))


@cache
def figures() -> dict[str, Any]:
    return outcome().as_dict()


class TestSkill:
    def test_of_no_change_is_none(self) -> None:
        for horizon in HORIZONS:
            assert figures()["mean_skill"][horizon]["persistence"] == 0.0
            assert figures()["mean_skill"]["cold_start"][horizon]["persistence"] == 0.0

    @pytest.mark.parametrize("method", ["federated", "personalised", "centralised"])
    def test_of_a_model_is_positive_on_a_pattern_that_can_be_forecast(self, method: str) -> None:
        for horizon in HORIZONS:
            assert figures()["mean_skill"][horizon][method] > 0.1

    def test_of_the_global_model_is_told_after_each_round(self) -> None:
        told = figures()["skill_by_round"]
        assert len(told) == PLAN.federation.rounds
        assert all(skill > 0.1 for skill in told)


class TestSeasonal:
    def test_says_what_came_on_an_earlier_day(self) -> None:
        found = outcome()
        before, after = series("x", 0, 2, seed=0), series("x", 2, 1, seed=20)
        change = np.diff(before.values[-360:], axis=0)
        wrong = change - np.diff(after.values, axis=0)
        np.testing.assert_allclose(found.errors["seasonal"][0][:-1, :2], wrong, atol=1e-9)

    def test_is_no_change_where_there_is_no_earlier_day(self) -> None:
        times = BEGIN + DAY * 9.5 + np.arange(0.0, 20_000.0, INTERVAL)
        test = [Series("device-0", times, np.random.default_rng(0).normal(20.0, 1.0, (len(times), 2)))]
        found = evaluated(fleet(0, 1, count=1), test)
        assert_array_equal(found.errors["seasonal"][0], found.errors["persistence"][0])


class TestDevices:
    def test_without_readings_to_test_on_are_left_out(self) -> None:
        empty = Series("device-1", np.zeros(0), np.zeros((0, 2)))
        found = evaluated(fleet(0, 1), [fleet(1, 1)[0], empty])
        assert found.devices == ("device-0",)
        assert all(len(errors) == 1 for errors in found.errors.values())

    def test_that_are_all_others_than_before_are_refused(self) -> None:
        with pytest.raises(BadDataset, match="no device has readings in both"):
            evaluated([series("a", 0, 1)], [series("b", 1, 1)])


class TestFigures:
    def test_are_by_horizon_sensor_and_method_and_can_be_written(self) -> None:
        found = json.loads(json.dumps(figures()))
        assert (found["sensors"], found["devices"]) == ([*SENSORS], ["device-0", "device-1", "device-2"])
        for part in ("rmse", "skill", "skill_interval_95"):
            for horizon in HORIZONS:
                assert set(found[part][horizon]) == {*SENSORS}
                assert all(set(by_method) == {*METHODS} for by_method in found[part][horizon].values())
        for horizon in HORIZONS:
            for sensor in SENSORS:
                assert set(found["skill"]["cold_start"][horizon][sensor]) == {*COLD_METHODS}
                assert set(found["skill_by_device"]["device-1"][horizon][sensor]) == {*METHODS}
                low, high = found["skill_interval_95"][horizon][sensor]["federated"]
                assert low <= found["skill"][horizon][sensor]["federated"] <= high
            assert set(found["mean_skill"][horizon]) == {*METHODS}
            assert set(found["mean_skill"]["cold_start"][horizon]) == {*COLD_METHODS}

    def test_are_the_same_for_the_same_seed(self) -> None:
        days = fleet(0, 1, count=2), fleet(1, 1, count=2)
        assert evaluated(*days).as_dict() == evaluated(*days).as_dict()


class TestHabits:
    """Each device has a jump at a time of day of its own, which nothing but its own past foretells."""

    @staticmethod
    def jumping(device: str, first_day: int, days: int, hour: float) -> Series:
        times = BEGIN + first_day * DAY + np.arange(0.0, days * DAY, INTERVAL)
        away = np.abs(times % DAY / 3_600.0 - hour)
        values: Vector = 20.0 + 5.0 * (away < 1.0) + np.random.default_rng(first_day).normal(0.0, 0.5, len(times))
        return Series(device, times, np.column_stack((values, values)))

    def test_help_the_personalised_model_and_no_other(self) -> None:
        hours = {f"device-{i}": 3.0 + 5.0 * i for i in range(4)}
        old, new = ([self.jumping(d, *days, h) for d, h in hours.items()] for days in ((0, 3), (3, 1)))
        found = evaluated(old, new)
        skill = found.as_dict()["mean_skill"]["20min"]
        assert skill["personalised"] > skill["federated"]
        assert found.theta.size == found.architecture.parameter_count


class TestRoutines:
    """At seven o'clock of working days the first sensor jumps, at no other: BEGIN is a Monday."""

    @staticmethod
    def working(device: str, first_day: int, days: int) -> Series:
        times = BEGIN + first_day * DAY + np.arange(0.0, days * DAY, INTERVAL)
        hour, weekday = times % DAY / 3_600.0, (times - BEGIN) // DAY % 7
        jump = 40.0 * (hour >= 7.0) * np.exp(7.0 - np.maximum(hour, 7.0)) * (weekday < 5)
        values = 20.0 + jump + np.random.default_rng(first_day).normal(0.0, 0.3, len(times))
        return Series(device, times, np.column_stack((values, np.random.default_rng(9).permutation(values))))

    def test_help_the_personalised_and_the_streamed_model(self) -> None:
        names = ("device-0", "device-1")
        found = evaluated([self.working(d, 0, 4) for d in names], [self.working(d, 4, 1) for d in names])
        skill = found.as_dict()["skill"]["20min"]["humidity"]
        for method in ("personalised", "streamed"):
            assert skill[method] > skill["federated"] + 0.05


class TestRules:
    """The stream's learners in rounds of their own, once by each rule of adoption."""

    CONFIG = CONFIG.model_copy(update={"update_every": 60})

    @classmethod
    def ruled(cls, train: list[Series], test: list[Series], min_devices: int = 2) -> Personalisation:
        return compare_rules(train, test, SENSORS, cls.CONFIG, Rounds(3_600.0, min_devices))

    @classmethod
    @cache
    def found(cls) -> Personalisation:
        return cls.ruled(fleet(0, 2, count=4), fleet(2, 1, count=4))

    def test_are_all_compared_on_every_reading_of_the_test_days(self) -> None:
        found = self.found()
        assert tuple(found.rules) == RULES == ("alone", "replace", "mix", "last_layer", "better")
        for ruled in found.rules.values():
            for off, late, base in zip(ruled.errors, ruled.newcomers, found.reference, strict=True):
                assert_array_equal(np.isnan(off), np.isnan(base))
                assert_array_equal(np.isnan(late), np.isnan(base))

    def test_alone_is_a_learner_that_never_adopts(self) -> None:
        ruled, old, new = self.found().rules["alone"], fleet(0, 2)[0], fleet(2, 1)[0]
        learner = DeviceLearner(SENSORS, self.CONFIG)
        learner.process_frame(old.times, old.values)
        said = learner.process_frame(new.times, new.values)
        changes = changes_of(new, self.CONFIG.horizon_s)
        assert_array_equal(ruled.errors[0][:, :2], said.forecast - new.values - changes[:, :2])
        late = DeviceLearner(SENSORS, self.CONFIG).process_frame(new.times, new.values)
        assert_array_equal(ruled.newcomers[0][:, 2:], late.horizon - new.values - changes[:, 2:])
        assert np.isnan(ruled.taken)

    def test_of_federation_help_newcomers(self) -> None:
        means = self.found().as_dict()["newcomers"]["mean_skill"]
        for rule in RULES[1:]:
            assert means["next"][rule] > means["next"]["alone"] + 0.02

    def test_take_all_models_but_the_one_that_asks_whether_they_are_better(self) -> None:
        taken = {rule: ruled.taken for rule, ruled in self.found().rules.items()}
        assert taken["replace"] == taken["mix"] == taken["last_layer"] == 1.0
        assert 0.0 < taken["better"] < 1.0

    def test_make_a_round_when_enough_devices_have_sent_their_updates(self) -> None:
        train, test = fleet(0, 1, count=4), fleet(1, 1, count=4)
        for day in (train, test):  # two devices give half as many readings
            day[2:] = [replace(slow, times=slow.times[::2], values=slow.values[::2]) for slow in day[2:]]
        few, all_ = (self.ruled(train, test, n).rules["mix"].rounds for n in (2, 4))
        assert (few, all_) == (12, 6)  # of 720 and of 360 readings, 60 to an update

    def test_are_figures_that_can_be_written_printed_and_shown(
        self, tmp_path: Path, run_dir: Path, flead: Flead
    ) -> None:
        lines = ["timestamp,device_id,humidity,temperature"]
        for each in fleet(0, 2, count=2):
            rows = zip(each.times.tolist(), each.values.tolist(), strict=True)
            lines += [f"{datetime.fromtimestamp(t, UTC).isoformat()},{each.device},{a},{b}" for t, (a, b) in rows]
        source, out, page = tmp_path / "in.csv", tmp_path / "out.json", tmp_path / "page.html"
        source.write_text("\n".join(lines) + "\n")
        both = ("--train", source, "--test", source, "--train-days", "2024-03-18", "--test-days", "2024-03-19")
        done = flead("evaluate", *both, "--rounds", 1, "--personalisation", "--json", out, "--page", page)
        assert done.code == 0, done.err
        found = json.loads(out.read_text(), parse_constant=pytest.fail)["personalisation"]
        assert found["rules"] == list(RULES)
        for who in ("devices", "newcomers"):
            for horizon in ("next", "10min"):
                assert set(found[who]["mean_skill"][horizon]) == {*RULES}
                assert set(found[who]["skill"][horizon]["humidity"]) == {*RULES}
        assert "last_layer" in done.out
        assert "What a device does with the global model" in page.read_text()

    def test_need_a_device_on_both_sides(self) -> None:
        with pytest.raises(BadDataset, match="no device has readings in both"):
            self.ruled([series("a", 0, 1)], [series("b", 1, 1)])
