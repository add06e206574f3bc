"""A simulated fleet is the same in any chunks, and does what fleets do."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from flead.errors import BadConfiguration, BadUpdate
from flead.federation import STRATEGIES, FedAvg, FedBuff, Median, MultiKrum, Rule, Scaffold, fedavg, parse_strategy
from flead.network import Architecture, Vector, initial
from flead.simulation import LATEST, Fleet, Round, Training, examples_of, simulate, train_many
from flead.splitmix import normal, uniform
from flead.training import Examples, gradient
from orchestration.cli import app

FLEET = Fleet(devices=600, hidden=4, drop_out=0.2, stragglers=0.1)


def rounds_of(
    fleet: Fleet, count: int = 4, strategy: Any = None, **training: Any
) -> tuple[list[Round], Vector]:  # fmt: skip
    found = list(simulate(fleet, count, strategy, Training(**training)))
    return [each for each, _ in found], found[-1][1]


class TestTheFleet:
    def test_is_the_same_in_any_chunks_and_on_any_number_of_threads(self) -> None:
        whole, theta = rounds_of(FLEET, chunk=1_000)
        pieces, of_pieces = rounds_of(FLEET, chunk=37)
        with ThreadPoolExecutor(4) as pool:
            threads = list(simulate(FLEET, 4, training=Training(chunk=37), mapper=pool.map))
        np.testing.assert_allclose(of_pieces, theta, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(threads[-1][1], of_pieces)
        for one, other in zip(whole, pieces, strict=True):
            assert one.loss == pytest.approx(other.loss)
            assert (one.merged, one.late, one.samples) == (other.merged, other.late, other.samples)

    def test_is_another_for_another_seed(self) -> None:
        assert rounds_of(FLEET)[0][0].loss != rounds_of(Fleet(devices=600, hidden=4, seed=1))[0][0].loss

    def test_learns(self) -> None:
        losses = [each.loss for each in rounds_of(Fleet(devices=300), 8)[0]]
        assert losses[-1] < 0.7 * losses[0]

    def test_gives_fedavg_of_its_devices_where_nobody_is_missing(self) -> None:
        fleet = Fleet(devices=40, hidden=3)
        theta = initial(fleet.architecture, np.random.default_rng([0, 1]))
        inputs, targets, weights = examples_of(fleet, np.arange(40), 1)
        trained = train_many(theta, fleet.architecture, inputs, targets, weights, steps=5, rate=0.1)
        expected = fedavg(trained, (weights > 0).sum(axis=1))
        np.testing.assert_allclose(rounds_of(fleet, 1, chunk=7)[1], expected, rtol=1e-9, atol=1e-12)

    def test_counts_every_device_once(self) -> None:
        rounds, _ = rounds_of(FLEET, 12)
        sent = 0
        for each in rounds:
            assert each.asked == 600
            assert each.dropped == pytest.approx(120, abs=45)
            sent += each.asked - each.dropped
        assert sum(each.merged for each in rounds) + rounds[-1].waiting == sent
        assert sum(each.late for each in rounds) > 0
        assert rounds[-1].waiting < 0.1 * 600 * LATEST

    def test_waits_for_whoever_is_late(self) -> None:
        rounds, _ = rounds_of(Fleet(devices=200, hidden=2, stragglers=1.0), 6)
        assert (rounds[0].merged, rounds[0].waiting) == (0, 200)
        assert all(each.merged == each.late > 0 for each in rounds[1:])

    def test_stands_still_where_nobody_sends(self) -> None:
        rounds, _ = rounds_of(Fleet(devices=20, hidden=2, drop_out=1.0), 3)
        assert {each.merged for each in rounds} == {0}
        assert len({each.loss for each in rounds}) == 1

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("devices", 0), ("drop_out", 1.5), ("stragglers", -0.1), ("examples", 1), ("hidden", -1), ("seed", 2**64),
            ("noise", float("nan")), ("heterogeneity", float("inf")),
        ],
    )  # fmt: skip
    def test_refuses_what_is_no_fleet(self, name: str, value: float) -> None:
        with pytest.raises(BadConfiguration, match=name):
            Fleet(**({"devices": 10} | {name: value}))  # type: ignore[arg-type]

    @pytest.mark.parametrize(("name", "value"), [("chunk", 0), ("sample", 0), ("steps", 0), ("rate", float("nan"))])
    def test_refuses_what_is_no_training(self, name: str, value: float) -> None:
        options: dict[str, Any] = {name: value}
        with pytest.raises(BadConfiguration, match=name):
            Training(**options)


class TestStrategies:
    @pytest.mark.parametrize("rule", [rule for rule in STRATEGIES if rule is not Scaffold])
    def test_all_learn_from_a_fleet_that_lags_and_drops_out(self, rule: type[Rule]) -> None:
        rounds, _ = rounds_of(FLEET, 5, rule(), sample=100)
        assert rounds[-1].loss < rounds[0].loss
        assert {each.asked for each in rounds} == {600 if rule.linear else 100}

    def test_that_need_each_update_are_given_a_sample_that_changes(self) -> None:
        rounds, _ = rounds_of(FLEET, 3, Median(), sample=100)
        assert len({each.samples for each in rounds}) == 3

    def test_a_robust_one_stands_where_fedavg_falls(self) -> None:
        fleet = Fleet(devices=400, hidden=4, malicious=0.3)
        fallen, _ = rounds_of(fleet, 8, FedAvg())
        stands, _ = rounds_of(fleet, 8, MultiKrum(), sample=200)
        assert fallen[-1].loss > 2 * stands[-1].loss
        assert fallen[0].malicious == pytest.approx(120, abs=40)

    def test_staleness_reaches_the_one_that_weighs_by_it(self) -> None:
        fleet = Fleet(devices=300, hidden=2, stragglers=0.5)
        by_age, by_samples = FedBuff(exponent=5.0), FedBuff(exponent=0.0)
        assert rounds_of(fleet, 4, by_age)[0][-1].loss != rounds_of(fleet, 4, by_samples)[0][-1].loss

    def test_fedprox_draws_devices_back(self) -> None:
        fleet = Fleet(devices=50, hidden=2)
        start = initial(fleet.architecture, np.random.default_rng([0, 1]))
        near = rounds_of(fleet, 1, parse_strategy({"name": "fedprox", "proximal": 5.0}))[1]
        far = rounds_of(fleet, 1, parse_strategy({"name": "fedprox", "proximal": 0.0}))[1]
        assert np.linalg.norm(near - start) < 0.8 * np.linalg.norm(far - start)

    def test_one_that_needs_devices_with_a_memory_is_refused(self) -> None:
        with pytest.raises(BadConfiguration, match="scaffold"):
            rounds_of(FLEET, 1, Scaffold())

    @pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
    def test_a_fleet_that_falls_apart_says_when(self) -> None:
        with pytest.raises(BadUpdate):
            rounds_of(Fleet(devices=10, hidden=0), 500, FedAvg(), rate=50.0, steps=20)


class TestTraining:
    @pytest.mark.parametrize("hidden", [0, 3])
    def test_of_many_devices_is_gradient_descent_on_each(self, hidden: int) -> None:
        architecture = Architecture(4, (hidden,) if hidden else (), 1)
        rng = np.random.default_rng(0)
        theta = rng.normal(0.0, 0.5, architecture.parameter_count)
        inputs, targets = rng.normal(size=(3, 6, 4)), rng.normal(size=(3, 6))
        weights = np.full((3, 6), 1 / 6)
        trained = train_many(theta, architecture, inputs, targets, weights, steps=1, rate=0.1)
        for device in range(3):
            batch = Examples(inputs[device], targets[device][:, None], np.ones((6, 1)))
            step = 0.1 * gradient(theta, architecture, batch)
            np.testing.assert_allclose(trained[device], theta - step, rtol=1e-12)


class TestRandomNumbers:
    def test_belong_to_the_device(self) -> None:
        ids = np.arange(50)
        whole = uniform(7, 3, ids, 5)
        np.testing.assert_array_equal(uniform(7, 3, ids[20:30], 5), whole[20:30])
        np.testing.assert_array_equal(uniform(7, 3, ids, 2), whole[:, :2])
        assert not (uniform(8, 3, ids, 5) == whole).any()
        assert not (uniform(7, 4, ids, 5) == whole).any()

    def test_are_uniform_and_normal_and_independent(self) -> None:
        ids = np.arange(4_000)
        flat = uniform(0, 1, ids, 20)
        assert 0.0 < flat.min() < 1e-3 < 0.999 < flat.max() < 1.0
        np.testing.assert_allclose(np.histogram(flat, 10, (0, 1))[0] / flat.size, 0.1, atol=0.004)
        bell = normal(0, 1, ids, 21)
        assert bell.shape == (4_000, 21)
        np.testing.assert_allclose([bell.mean(), bell.std(), (bell**4).mean()], [0.0, 1.0, 3.0], atol=0.06)
        correlation = np.corrcoef(bell[:, :8], rowvar=False) - np.eye(8)
        assert np.abs(correlation).max() < 0.08


class TestTheCommand:
    def said(self, *options: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["simulate", "--devices", "300", "--rounds", "2", *options, "--json"])
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    def test_measures_every_round(self) -> None:
        said = self.said("--strategy", '{"name": "fedprox", "proximal": 0.1}', "--parameters", "41")
        assert (said["parameters"], said["merged_by"]) == (41, "partial sums of the whole fleet")
        assert said["strategy"] == {"name": "fedprox", "proximal": 0.1}
        assert [each["number"] for each in said["rounds"]] == [1, 2]
        assert all(each["seconds"] > 0 and each["peak_mb"] > 10 for each in said["rounds"])

    def test_says_that_a_robust_strategy_sees_a_sample(self) -> None:
        said = self.said("--strategy", "median", "--sample", "50", "--malicious", "0.2")
        assert said["merged_by"] == "each update of a sample"
        assert said["rounds"][0]["asked"] == 50

    def test_shows_a_table(self) -> None:
        done = CliRunner().invoke(app, ["simulate", "--devices", "50", "--rounds", "1"])
        assert done.exit_code == 0
        assert "peak MB" in done.stdout

    @pytest.mark.parametrize("strategy", ["nonsense", '{"name":'])
    def test_refuses_an_unknown_strategy(self, strategy: str) -> None:
        done = CliRunner().invoke(app, ["simulate", "--strategy", strategy])
        assert isinstance(done.exception, BadConfiguration)
