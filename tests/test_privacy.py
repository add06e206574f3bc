from __future__ import annotations

from itertools import pairwise
from math import erfc, exp, sqrt

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from flead.errors import BadUpdate, BudgetSpent
from flead.network import Vector
from flead.privacy import Accountant, Privacy, Spent, clipped, epsilon_of, noise_multiplier_for, private_mean


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def gaussian_delta(epsilon: float, sigma: float) -> float:
    """Balle and Wang, 2018, theorem 8, for sensitivity 1."""

    def phi(x: float) -> float:
        return 0.5 * erfc(-x / sqrt(2.0))

    return phi(0.5 / sigma - epsilon * sigma) - exp(epsilon) * phi(-0.5 / sigma - epsilon * sigma)


class TestClipping:
    @given(scale=st.floats(1e-200, 1e200), clip=st.floats(1e-3, 1e3), seed=st.integers(0, 2**32 - 1))
    @settings(deadline=None)
    def test_no_update_is_longer_than_the_clip_and_none_is_turned(self, scale: float, clip: float, seed: int) -> None:
        steps = rng(seed).normal(0.0, scale, (4, 7))
        cut = clipped(steps, np.zeros(7), clip)
        unit = cut / np.abs(cut).max(axis=1, keepdims=True)
        lengths = np.abs(cut).max(axis=1) * np.sqrt((unit * unit).sum(axis=1))
        assert (lengths <= clip * (1 + 1e-12)).all()
        np.testing.assert_allclose(unit, steps / np.abs(steps).max(axis=1, keepdims=True), rtol=1e-9)

    def test_leaves_short_updates_as_they_are(self) -> None:
        previous = rng().normal(size=5)
        models = previous + np.array([[0.1, 0, 0, 0, 0], [0, 0, 0, 0, 0.2]])
        np.testing.assert_allclose(clipped(models, previous, 0.5), models - previous, atol=1e-16)

    def test_of_no_change_is_no_change(self) -> None:
        np.testing.assert_array_equal(clipped(np.ones((2, 3)), np.ones(3), 0.5), np.zeros((2, 3)))

    @pytest.mark.parametrize(
        ("models", "previous"),
        [
            (np.zeros((2, 3)), np.zeros(4)),
            (np.zeros(3), np.zeros(3)),
            (np.zeros((0, 3)), np.zeros(3)),
            (np.full((2, 3), np.nan), np.zeros(3)),
            (np.full((2, 3), 1e308), np.full(3, -1e308)),
        ],
    )
    def test_refuses_what_are_no_updates(self, models: Vector, previous: Vector) -> None:
        with pytest.raises(BadUpdate):
            clipped(models, previous, 1.0)


class TestPrivateMean:
    def test_of_little_noise_is_the_mean_of_clipped_updates(self) -> None:
        models, previous = rng().normal(size=(50, 20)), rng(1).normal(size=20)
        quiet = Privacy(clip=0.7, noise_multiplier=1e-3)
        exact = previous + clipped(models, previous, 0.7).mean(axis=0)
        np.testing.assert_allclose(private_mean(models, previous, quiet, rng()), exact, atol=1e-4)

    def test_has_gaussian_noise_of_the_promised_size(self) -> None:
        privacy = Privacy(clip=2.0, noise_multiplier=3.0)
        noise = private_mean(np.zeros((10, 40_000)), np.zeros(40_000), privacy, rng())
        assert noise.std() == pytest.approx(3.0 * 2.0 / 10, rel=0.02)
        assert abs(noise.mean()) < 5 * 0.6 / 200
        assert np.mean(np.abs(noise) < 0.6) == pytest.approx(0.6827, abs=0.01)

    def test_moves_by_at_most_a_clip_over_the_devices_when_one_device_changes_everything(self) -> None:
        models, previous, privacy = rng().normal(size=(8, 5)), np.zeros(5), Privacy(clip=0.3)
        without, far = models.copy(), models.copy()
        without[3], far[3] = previous, 1e9  # zero-out neighbours
        gap = private_mean(far, previous, privacy, rng(7)) - private_mean(without, previous, privacy, rng(7))
        assert float(np.linalg.norm(gap)) <= 0.3 / 8 + 1e-12

    def test_counts_devices_not_samples_and_leaves_its_input_alone(self) -> None:
        models, previous = rng().normal(size=(4, 3)), np.zeros(3)
        kept = models.copy()
        first = private_mean(models, previous, Privacy(), rng(3))
        np.testing.assert_array_equal(models, kept)
        np.testing.assert_allclose(private_mean(models[::-1], previous, Privacy(), rng(3)), first, atol=1e-15)


class TestEpsilon:
    @pytest.mark.parametrize("noise", [0.3, 1.0, 2.0, 4.0, 20.0])
    @pytest.mark.parametrize("delta", [1e-3, 1e-5])
    def test_of_one_round_is_the_analytic_gaussian_mechanism(self, noise: float, delta: float) -> None:
        assert gaussian_delta(epsilon_of(noise, delta), noise) == pytest.approx(delta, rel=1e-6)

    def test_never_beats_what_dp_sgd_papers_state(self) -> None:
        # The classical bound, sigma = sqrt(2 ln(1.25 / delta)) / epsilon (Dwork and Roth, 2014, theorem 3.22).
        for epsilon in (0.1, 0.5, 0.9):
            classical = sqrt(2 * np.log(1.25 / 1e-5)) / epsilon
            assert noise_multiplier_for(epsilon, 1e-5) < classical

    @pytest.mark.parametrize("noise", [1.0, 4.0])
    @pytest.mark.parametrize("rounds", [1, 7])
    def test_of_rounds_together_agrees_with_googles_accountants(self, noise: float, rounds: int) -> None:
        ours = Accountant(Privacy(noise_multiplier=noise), [(noise, rounds)]).spent().epsilon_total
        exact = PLDAccountant(value_discretization_interval=1e-3).compose(GaussianDpEvent(noise), rounds)
        assert ours == pytest.approx(exact.get_epsilon(1e-5), rel=1e-3)
        bound = RdpAccountant().compose(GaussianDpEvent(noise), rounds).get_epsilon(1e-5)
        assert ours < bound < 1.2 * ours

    def test_of_different_noises_agrees_with_googles_accountant(self) -> None:
        exact = PLDAccountant(value_discretization_interval=1e-3)
        exact.compose(GaussianDpEvent(2.0), 3).compose(GaussianDpEvent(5.0), 4)
        ours = Accountant(Privacy(), [(2.0, 3), (5.0, 4)]).spent().epsilon_total
        assert ours == pytest.approx(exact.get_epsilon(1e-5), rel=1e-3)

    def test_of_extreme_noises_is_a_number(self) -> None:
        assert epsilon_of(1e6, 1e-5) == 0.0
        assert np.isfinite(epsilon_of(1e-6, 1e-12))

    @given(epsilon=st.floats(0.1, 50.0), rounds=st.integers(1, 5_000))
    @settings(deadline=None, max_examples=30)
    def test_is_met_by_the_calibrated_noise(self, epsilon: float, rounds: int) -> None:
        noise = noise_multiplier_for(epsilon, 1e-6, rounds)
        spent = Accountant(Privacy(delta=1e-6), [(noise, rounds)]).spent()
        assert spent.epsilon_total == pytest.approx(epsilon, rel=1e-6)


class TestAccountant:
    def test_before_the_first_round_has_told_nothing(self) -> None:
        assert Accountant(Privacy()).spent() == Spent(epsilon_of(1.0, 1e-5), 0.0, 1e-5, 0)

    def test_grows_with_each_round(self) -> None:
        accountant = Accountant(Privacy(noise_multiplier=2.0))
        totals = [accountant.spend().epsilon_total for _ in range(20)]
        assert all(a < b for a, b in pairwise(totals))
        assert totals[0] == accountant.spent().epsilon_round
        assert totals[-1] < 20 * totals[0]

    def test_goes_on_where_it_was_after_a_restart(self) -> None:
        straight = Accountant(Privacy(noise_multiplier=2.0))
        for _ in range(9):
            straight.spend()
        restored = Accountant(Privacy(noise_multiplier=2.0), [(2.0, 4), (2.0, 1)])
        for _ in range(4):
            restored.spend()
        assert restored.spent().rounds == straight.spent().rounds == 9
        assert restored.spent().epsilon_total == pytest.approx(straight.spent().epsilon_total, rel=1e-12)

    def test_remembers_noise_that_was_another_before(self) -> None:
        loud = Accountant(Privacy(noise_multiplier=8.0), [(1.0, 3)]).spent()
        assert loud.epsilon_round == epsilon_of(8.0, 1e-5)
        assert loud.epsilon_total == pytest.approx(epsilon_of(1 / sqrt(3), 1e-5))

    @pytest.mark.parametrize("noise", [0.7, 4.0, 8.0])
    def test_makes_as_many_rounds_as_it_says_are_left_and_not_one_more(self, noise: float) -> None:
        accountant = Accountant(Privacy(noise_multiplier=noise, max_epsilon=8.0))
        left = accountant.rounds_left()
        assert left is not None
        for _ in range(left):
            accountant.spend()
        assert accountant.rounds_left() == 0
        before = accountant.spent()
        assert before.epsilon_total <= 8.0
        with pytest.raises(BudgetSpent, match=f"round {left + 1} would bring epsilon to .*max_epsilon is 8"):
            accountant.spend()
        assert accountant.spent() == before

    def test_without_a_limit_only_reports(self) -> None:
        accountant = Accountant(Privacy(noise_multiplier=0.1))
        assert accountant.rounds_left() is None
        assert accountant.spend().epsilon_total > 50

    def test_that_starts_beyond_its_limit_makes_no_round(self) -> None:
        accountant = Accountant(Privacy(max_epsilon=1.0), [(0.5, 10)])
        assert accountant.rounds_left() == 0
        with pytest.raises(BudgetSpent):
            accountant.check()


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip": 0},
        {"clip": float("inf")},
        {"noise_multiplier": 0},
        {"delta": 0},
        {"delta": 1},
        {"max_epsilon": 0},
        {"x": 1},
    ],
)
def test_settings_that_promise_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Privacy.model_validate(wrong)
