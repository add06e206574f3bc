"""What every strategy keeps to, and what each is for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from flead.errors import BadConfiguration, BadUpdate
from flead.federation import (
    STRATEGIES,
    Bulyan,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedBuff,
    FedProx,
    GeometricMedian,
    Krum,
    Median,
    Merge,
    MultiKrum,
    Rule,
    Scaffold,
    TrimmedMean,
    Updates,
    fedavg,
    parse_strategy,
    robust,
    staleness_weight,
)
from flead.network import Vector

RNG = np.random.default_rng
RULES: list[Rule] = [strategy() for strategy in STRATEGIES]
LINEAR = [rule for rule in RULES if rule.linear]
ROBUST = [rule for rule in RULES if not rule.linear]
every_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
every_linear = pytest.mark.parametrize("rule", LINEAR, ids=lambda rule: type(rule).__name__)
every_robust = pytest.mark.parametrize("rule", ROBUST, ids=lambda rule: type(rule).__name__)
some = settings(deadline=None, max_examples=25)

_values = st.floats(-1e6, 1e6)


def of(*given_values: Any, **more: Any) -> Updates:
    """Updates of lists and whole numbers, too."""
    return Updates(*given_values, **more)


def round_of(seed: int, devices: int, width: int = 6, *, first: bool = False) -> Updates:
    """A round with everything in it that a strategy may ask for."""
    rng = RNG(seed)
    previous = rng.normal(size=width)
    bases = previous + rng.normal(0.0, 0.1, (devices, width))
    return of(
        models=bases + rng.normal(0.2, 1.0, (devices, width)),
        samples=rng.integers(1, 500, devices),
        previous=None if first else previous,
        staleness=rng.integers(0, 5, devices),
        bases=bases,
        controls=rng.normal(size=(devices, width)),
    )


rounds = st.builds(round_of, st.integers(0, 2**32), st.integers(4, 24), st.integers(1, 12), first=st.booleans())
small_rounds = st.builds(round_of, st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 4), first=st.booleans())


def chosen(updates: Updates, places: Any, *, scale: float = 1.0, shift: float = 0.0) -> Updates:
    """Some of the devices, their sample counts scaled, all models shifted."""
    return of(
        updates.models[places] + shift,
        updates.samples[places] * scale,
        None if updates.previous is None else updates.previous + shift,
        None if updates.staleness is None else updates.staleness[places],
        None if updates.bases is None else updates.bases[places] + shift,
        None if updates.controls is None else updates.controls[places],
    )


def after_a_round(rule: Any, width: int) -> dict[str, Vector]:
    """What the strategy remembers after an earlier round."""
    state: dict[str, Vector] = rule.merge(round_of(77, 9, width)).state
    return state


def assert_same(one: Merge, other: Merge, tolerance: float = 1e-9) -> None:
    assert_allclose(one.theta, other.theta, rtol=tolerance, atol=tolerance)
    assert one.state.keys() == other.state.keys()
    for name, value in one.state.items():
        assert_allclose(value, other.state[name], rtol=tolerance, atol=tolerance)


class TestEveryStrategy:
    @every_rule
    @some
    @given(st.one_of(rounds, small_rounds), st.randoms(use_true_random=False))
    def test_does_not_care_about_the_order_of_devices(self, rule: Any, updates: Updates, random: Any) -> None:
        order, state = list(range(len(updates))), after_a_round(rule, updates.models.shape[1])
        random.shuffle(order)
        one, other = rule.merge(updates, state), rule.merge(chosen(updates, order), state)
        assert_same(one, other)
        assert_allclose(other.shares, one.shares[order], rtol=1e-9, atol=1e-9)

    @every_rule
    @some
    @given(rounds, st.sampled_from([1e-3, 7.0, 1e9]))
    def test_cares_about_shares_of_samples_only(self, rule: Any, updates: Updates, scale: float) -> None:
        state, everybody = after_a_round(rule, updates.models.shape[1]), slice(None)
        assert_same(rule.merge(chosen(updates, everybody, scale=scale), state), rule.merge(updates, state))

    @every_rule
    @some
    @given(rounds, st.floats(-10, 10))
    def test_moves_with_the_models(self, rule: Any, updates: Updates, shift: float) -> None:
        state = after_a_round(rule, updates.models.shape[1])
        moved = rule.merge(chosen(updates, slice(None), shift=shift), state)
        assert_allclose(moved.theta - shift, rule.merge(updates, state).theta, rtol=1e-6, atol=1e-6)

    @every_rule
    @pytest.mark.parametrize("devices", [1, 2, 3, 4, 5, 7, 10, 30])
    def test_makes_of_equal_devices_in_the_first_round_their_model(self, rule: Any, devices: int) -> None:
        model = RNG(devices).normal(size=5)
        merged = rule.merge(of(np.tile(model, (devices, 1)), np.arange(1, devices + 1)))
        assert_allclose(merged.theta, model, rtol=1e-12)

    @every_rule
    @pytest.mark.parametrize("devices", [2, 3, 4, 5, 7, 10, 30])
    def test_makes_of_equal_devices_what_it_makes_of_one(self, rule: Any, devices: int) -> None:
        previous, model = RNG(devices).normal(size=(2, 5))
        state = after_a_round(rule, 5)
        alone = rule.merge(of(model[None], [3], previous), state)
        assert_same(rule.merge(of(np.tile(model, (devices, 1)), [3] * devices, previous), state), alone)
        if type(rule) in (FedAvg, FedProx, FedBuff, Scaffold, *(type(each) for each in ROBUST)):
            assert_allclose(alone.theta, model, rtol=1e-12)

    @every_rule
    def test_stays_where_nobody_moves(self, rule: Any) -> None:
        previous = RNG(0).normal(size=5)
        merged = rule.merge(of(np.tile(previous, (9, 1)), np.arange(1, 10), previous))
        assert_allclose(merged.theta, previous, rtol=1e-12)

    @every_rule
    @some
    @given(rounds)
    def test_gives_shares_that_are_together_one(self, rule: Any, updates: Updates) -> None:
        shares = rule.merge(updates).shares
        assert shares.shape == (len(updates),)
        assert (shares >= 0).all()
        assert shares.sum() == pytest.approx(1.0)

    @every_rule
    @some
    @given(rounds)
    def test_gives_a_device_without_samples_no_say(self, rule: Any, updates: Updates) -> None:
        samples = updates.samples.copy()
        samples[::3] = 0.0
        state, heard = after_a_round(rule, updates.models.shape[1]), np.flatnonzero(samples)
        partly = of(updates.models, samples, updates.previous, updates.staleness, updates.bases, updates.controls)
        merged = rule.merge(partly, state)
        assert_same(merged, rule.merge(chosen(updates, heard), state))
        assert (merged.shares[::3] == 0).all()

    @every_rule
    def test_writes_to_nothing_that_it_is_given_and_gives_the_same_twice(self, rule: Any) -> None:
        updates, state = round_of(3, 12), after_a_round(rule, 6)
        for given_array in (updates.models, updates.samples, updates.previous, updates.staleness, *state.values()):
            assert given_array is not None
            given_array.setflags(write=False)
        one, again = rule.merge(updates, state), rule.merge(updates, state)
        assert_array_equal(one.theta, again.theta)
        assert_array_equal(one.shares, again.shares)

    @every_rule
    def test_goes_on_from_a_state_that_was_written_down_as_lists(self, rule: Any) -> None:
        state = after_a_round(rule, 6)
        written = {name: np.array(value.tolist()) for name, value in state.items()}
        one, other = rule.merge(round_of(3, 12), state), rule.merge(round_of(3, 12), written)
        assert_array_equal(one.theta, other.theta)
        assert all(value.shape == (6,) and np.isfinite(value).all() for value in one.state.values())

    @every_rule
    def test_refuses_the_state_of_another_model(self, rule: Any) -> None:
        state = after_a_round(rule, 7)
        if state:
            with pytest.raises(BadUpdate, match="the state"):
                rule.merge(round_of(3, 12, width=6), state)

    @every_rule
    def test_comes_back_from_its_json(self, rule: Any) -> None:
        assert parse_strategy(rule.model_dump()) == rule
        assert parse_strategy(rule.name) == rule

    @every_linear
    @some
    @given(rounds)
    def test_that_is_linear_takes_partial_means_for_devices(self, rule: Any, updates: Updates) -> None:
        fresh = of(updates.models, updates.samples, updates.previous, None, updates.bases, updates.controls)
        halves = [slice(0, 3), slice(3, None)]
        parts = [chosen(fresh, half) for half in halves]

        def means(name: str) -> Vector:
            return np.stack([fedavg(getattr(part, name), part.samples) for part in parts])

        summed = of(
            means("models"), [part.samples.sum() for part in parts], fresh.previous,
            bases=means("bases"), controls=means("controls"),
        )  # fmt: skip
        assert_same(rule.merge(summed), rule.merge(fresh))


class TestUpdates:
    @pytest.mark.parametrize(
        ("models", "samples"),
        [
            ([], []),
            ([[]], [1]),
            ([[1.0]], [0]),
            ([[1.0]], [-1]),
            ([[1.0]], [float("nan")]),
            ([[1.0]], ["many"]),
            ([[1.0], [2.0]], [1]),
            ([[1.0], [2.0, 3.0]], [1, 1]),
            ([[float("nan")]], [1]),
            ([[float("inf")], [1.0]], [1, 1]),
            ([[float("inf")], [float("-inf")]], [1, 1]),
            ([1.0, 2.0], [1, 1]),
            ([["x"]], [1]),
        ],
    )
    def test_refuse_what_cannot_be_averaged(self, models: Any, samples: Any) -> None:
        with pytest.raises(BadUpdate):
            of(models, samples)
        with pytest.raises(BadUpdate):
            fedavg(models, samples)

    @pytest.mark.parametrize(
        "more",
        [
            {"previous": [1.0]},
            {"previous": [[1.0, 2.0]]},
            {"previous": [1.0, float("nan")]},
            {"staleness": [0]},
            {"staleness": [0, -1]},
            {"staleness": [0, float("inf")]},
            {"bases": [1.0, 2.0]},
            {"bases": [[1.0, 2.0], [1.0, float("inf")]]},
            {"controls": [[1.0], [2.0]]},
            {"controls": [["a", "b"], ["c", "d"]]},
        ],
    )
    def test_refuse_what_does_not_fit_the_models(self, more: Any) -> None:
        with pytest.raises(BadUpdate, match=next(iter(more))):
            of([[1.0, 2.0], [3.0, 4.0]], [1, 1], **more)

    def test_take_numbers_up_to_the_largest_there_are(self) -> None:
        assert_allclose(fedavg(np.full((3, 2), 1.7e308), [1, 1, 1]), 1.7e308)


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Any, Any]:
    n, width = draw(st.integers(1, 8)), draw(st.integers(1, 12))
    models = draw(arrays(np.float64, (n, width), elements=_values))
    counts = draw(arrays(np.int64, (n,), elements=st.integers(1, 10**9)))
    return models, counts


class TestFedAvg:
    @given(fleets())
    def test_lies_between_the_devices(self, fleet: tuple[Any, Any]) -> None:
        models, counts = fleet
        merged = fedavg(models, counts)
        assert (merged >= models.min(axis=0) - 1e-6).all()
        assert (merged <= models.max(axis=0) + 1e-6).all()

    @given(arrays(np.float64, st.integers(1, 12), elements=_values), st.integers(1, 10**9))
    def test_of_one_device_is_that_device_to_the_bit(self, model: Any, count: int) -> None:
        assert_array_equal(fedavg([model], [count]), model)


class TestServerOptimisers:
    def test_momentum_carries_a_part_of_each_change_into_the_next_round(self) -> None:
        rule, previous = FedAvgM(learning_rate=1.0, momentum=0.5), np.zeros(2)
        one = rule.merge(of([[1.0, 2.0]], [1], previous))
        two = rule.merge(of([one.theta], [1], one.theta), one.state)
        assert_allclose(one.theta, [1.0, 2.0])
        assert_allclose(two.theta, [1.5, 3.0])

    def test_without_momentum_and_at_full_length_is_fedavg(self) -> None:
        updates = round_of(1, 8)
        assert_allclose(FedAvgM(momentum=0.0).merge(updates).theta, FedAvg().merge(updates).theta)

    @pytest.mark.parametrize("name", ["fedadam", "fedyogi", "fedadagrad"])
    def test_adaptive_ones_step_as_far_for_parameters_that_change_little(self, name: str) -> None:
        rule, theta = parse_strategy({"name": name, "tau": 1e-9, "beta1": 0.0}), np.zeros(2)
        state: dict[str, Vector] = {}
        for _ in range(30):
            merged = rule.merge(of([theta + np.array([1e-3, 1.0])], [1], theta), state)
            theta, state = merged.theta, merged.state
        assert theta[0] == pytest.approx(theta[1], rel=1e-3)

    def test_yogi_forgets_a_large_change_slower_than_adam(self) -> None:
        previous, second = np.zeros(1), np.ones(1)
        small = of([[1e-3]], [1], previous)
        adam, yogi = (
            parse_strategy(name).merge(small, {"second": second}).state["second"] for name in ("fedadam", "fedyogi")
        )
        assert yogi[0] > adam[0]
        assert yogi[0] == pytest.approx(1.0, abs=1e-6)


class TestAgainstLies:
    """20 honest devices near one model, 8 others that say anything."""

    LIES = (-50.0, 3.0, 1e12, 1e160, 1e300)

    @staticmethod
    def fleet(lie: float, malicious: int = 8, honest: int = 20) -> tuple[Updates, Vector]:
        rng = RNG(5)
        truth = rng.normal(size=40)
        models = truth + rng.normal(0.0, 0.1, (honest + malicious, 40))
        models[:malicious] = lie * np.sign(rng.normal(size=40)) + rng.normal(0.0, 0.01, (malicious, 40))
        samples = np.full(honest + malicious, 10.0)
        samples[:malicious] = 1e6
        return of(models, samples, np.zeros(40)), truth

    @pytest.mark.parametrize("lie", LIES)
    @every_robust
    def test_robust_ones_stay_with_the_honest_however_many_samples_a_liar_names(self, rule: Any, lie: float) -> None:
        malicious = 6 if isinstance(rule, Bulyan) else 8
        updates, truth = self.fleet(lie, malicious, 28 - malicious)
        merged = rule.merge(updates)
        assert np.abs(merged.theta - truth).max() < 0.35
        assert merged.shares[:malicious].sum() < (0.25 if lie == 3.0 else 0.1)

    @pytest.mark.parametrize("lie", LIES)
    def test_fedavg_does_not(self, lie: float) -> None:
        updates, truth = self.fleet(lie)
        assert np.abs(FedAvg().merge(updates).theta - truth).max() > 2.0

    def test_krum_gives_one_of_the_models(self) -> None:
        updates = round_of(0, 17)
        merged = Krum().merge(updates)
        assert_array_equal(merged.theta, updates.models[merged.shares.argmax()])
        assert merged.shares.max() == 1.0

    def test_multi_krum_leaves_out_the_share_that_may_lie(self) -> None:
        for devices in range(1, 30):
            merged = MultiKrum(malicious=0.3).merge(round_of(devices, devices))
            assert (merged.shares == 0).sum() == robust.malicious_count(0.3, devices)

    def test_trimmed_mean_is_the_mean_of_the_middle(self) -> None:
        updates = round_of(0, 20, 9)
        middle = np.sort(updates.models, axis=0)[5:15].mean(axis=0)
        assert_allclose(TrimmedMean(malicious=0.25).merge(updates).theta, middle)
        assert_allclose(TrimmedMean(malicious=0.0).merge(updates).theta, updates.models.mean(axis=0))

    @pytest.mark.parametrize("devices", [1, 2, 9, 10])
    def test_median_is_the_median(self, devices: int) -> None:
        updates = round_of(2, devices)
        assert_allclose(Median().merge(updates).theta, np.median(updates.models, axis=0))

    def test_geometric_median_has_the_least_sum_of_distances(self) -> None:
        updates = round_of(3, 15, 4)
        found = GeometricMedian().merge(updates).theta
        least = robust.distances_to(updates.models, found).sum()
        for near in found + RNG(0).normal(0.0, 0.01, (50, 4)):
            assert robust.distances_to(updates.models, near).sum() > least

    @pytest.mark.parametrize("lies", [1, 2])
    def test_geometric_median_is_a_number_where_everybody_is_far_away(self, lies: int) -> None:
        models = np.array([[1.0, 2.0], [1.1, 2.1], *[[1e300, -1e300]] * lies])[-2 * lies :]
        merged = GeometricMedian().merge(of(models, np.ones(len(models))))
        assert np.isfinite(merged.theta).all()
        assert merged.shares.sum() == pytest.approx(1.0)

    def test_krum_scores_are_sums_of_the_nearest_squared_distances(self) -> None:
        models = RNG(0).normal(size=(40, 5))
        squared = ((models[:, None] - models) ** 2).sum(axis=2)
        expected = np.sort(squared, axis=1)[:, 1 : 40 - 9 - 2 + 1].sum(axis=1)
        assert_allclose(robust.krum_scores(models, 9), expected)

    @pytest.mark.parametrize(("devices", "malicious"), [(15, 3), (40, 4), (120, 29)])
    def test_bulyan_takes_krum_of_those_left_and_then_the_values_nearest_to_the_median(
        self, devices: int, malicious: int
    ) -> None:
        models = RNG(devices).normal(size=(devices, 6))
        left, taken = list(range(devices)), []
        for _ in range(devices - 2 * malicious):
            best = left[int(np.argmin(robust.krum_scores(models[left], malicious)))]
            taken.append(best)
            left.remove(best)
        off = np.abs(models[taken] - np.median(models[taken], axis=0))
        near = np.argsort(off, axis=0)[: devices - 4 * malicious]
        theta, shares = robust.bulyan(models, malicious)
        assert set(np.flatnonzero(shares)) <= set(taken)
        assert_allclose(theta, np.take_along_axis(models[taken], near, axis=0).mean(axis=0))


class TestStaleness:
    def test_an_update_counts_the_less_the_staler_it_is(self) -> None:
        assert_allclose(staleness_weight([0, 3, 99]), [1.0, 0.5, 0.1])

    def test_fedbuff_counts_what_a_device_changed_and_not_what_it_had_missed(self) -> None:
        previous = np.array([10.0, 10.0])
        late = of([[1.0, 2.0]], [5], previous, staleness=[3], bases=[[0.0, 0.0]])
        assert_allclose(FedBuff().merge(late).theta, [10.5, 11.0])

    def test_fedbuff_with_nobody_late_is_fedavg(self) -> None:
        updates = round_of(4, 9)
        prompt = of(updates.models, updates.samples, updates.previous)
        assert_allclose(FedBuff().merge(prompt).theta, FedAvg().merge(prompt).theta)


class TestScaffold:
    def test_the_fleets_control_follows_the_devices_by_the_share_that_was_heard(self) -> None:
        updates = of([[1.0], [3.0]], [1, 1], [0.0], controls=[[0.4], [0.8]])
        merged = Scaffold(participation=0.5).merge(updates, {"control": np.array([1.0])})
        assert_allclose(merged.theta, [2.0])
        assert_allclose(merged.state["control"], [1.3])

    def test_without_controls_is_fedavg(self) -> None:
        updates = round_of(4, 9)
        plain = of(updates.models, updates.samples, updates.previous)
        assert_allclose(Scaffold().merge(plain).theta, FedAvg().merge(plain).theta)


class TestConfiguration:
    def test_names_are_those_that_configurations_use(self) -> None:
        assert [rule.model_dump()["name"] for rule in RULES] == [
            "fedavg", "fedavgm", "fedprox", "fedadam", "fedyogi", "fedadagrad", "median", "trimmed_mean", "krum",
            "multi_krum", "bulyan", "geometric_median", "fedbuff", "scaffold",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("given_strategy", "told"),
        [
            ("fedsgd", "the strategies are fedavg"),
            ({}, "name"),
            ({"name": "krum", "malicious": 0.5}, "malicious: Input should be less than 0.5"),
            ({"name": "krum", "malicious": "many"}, "malicious"),
            ({"name": "fedavg", "momentum": 0.9}, "momentum: Extra inputs"),
            ({"name": "fedadam", "learning_rate": float("nan")}, "learning_rate"),
        ],
    )
    def test_what_cannot_work_is_refused_by_name(self, given_strategy: Any, told: str) -> None:
        with pytest.raises(BadConfiguration, match=told):
            parse_strategy(given_strategy)

    def test_hyper_parameters_cannot_change_between_rounds(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            FedAdam().tau = 1.0  # type: ignore[misc]


@every_rule
def test_the_documentation_names_every_hyper_parameter_with_its_default(rule: Rule) -> None:
    text = (Path(__file__).parents[1] / "docs" / "federation.md").read_text()
    settings_of = rule.model_dump()
    name = settings_of.pop("name")
    line = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    assert all(f"`{field}={value}`" in line for field, value in settings_of.items())
