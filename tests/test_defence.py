"""What is found in a round, what is left alone, and how long a device is trusted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from pydantic import ValidationError

from flead import network
from flead.defence import (
    Defence,
    Reputation,
    Verdict,
    alike,
    clip_to,
    inspect,
    losses_on,
    oddness,
    should_quarantine,
    usual_length,
)
from flead.errors import BadUpdate
from flead.federation import Updates
from flead.network import Architecture, Vector
from flead.training import HUBER, Examples

RNG = np.random.default_rng
WIDTH = 60
OFF = Defence(clip=None, distance=None, direction=None, alike=None, loss=None, most_samples=None)


def honest(devices: int = 20, seed: int = 0, width: int = WIDTH) -> Updates:
    """Devices that learned something in common, each in its own way and of its own length."""
    rng = RNG(seed)
    previous = rng.normal(size=width)
    common = rng.normal(size=width)
    own = rng.normal(size=(devices, width)) * rng.lognormal(0.0, 0.2, (devices, 1))
    return Updates(previous + common + own, rng.integers(50, 200, devices).astype(np.float64), previous)


def with_liars(updates: Updates, lies: Vector) -> Updates:
    """The first devices send something else."""
    models = updates.models.copy()
    models[: len(lies)] = lies
    return replace(updates, models=models)


def flagged(verdict: Verdict) -> list[int]:
    assert [reason is not None for reason in verdict.reasons] == (~verdict.kept).tolist()
    return [int(i) for i in np.flatnonzero(~verdict.kept)]


class TestAnHonestRound:
    @settings(deadline=None, max_examples=40)
    @given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([1, 2, WIDTH]))
    def test_is_hardly_ever_suspected(self, seed: int, devices: int, width: int) -> None:
        verdict = inspect(honest(devices, seed, width), Defence())
        assert len(flagged(verdict)) <= max(1, devices // 8)

    def test_of_equals_passes_untouched(self) -> None:
        same = Updates(np.ones((12, WIDTH)), np.ones(12), np.zeros(WIDTH))
        rounded = replace(same, models=same.models + 1e-15 * RNG(0).normal(size=same.models.shape))
        for updates in (same, rounded):
            verdict = inspect(updates, Defence())
            assert flagged(verdict) == []
            assert_array_equal(verdict.models, updates.models)
            assert_array_equal(verdict.scales, 1.0)

    def test_is_left_as_it_is_where_every_check_is_off(self) -> None:
        updates = with_liars(honest(), np.full((6, WIDTH), 1e6))
        verdict = inspect(updates, OFF, np.full(20, 1e9), 1.0)
        assert flagged(verdict) == []
        assert verdict.models is updates.models
        assert verdict.samples is updates.samples

    def test_may_hold_one_that_learned_from_twice_as_much(self) -> None:
        updates = honest()
        assert updates.previous is not None
        longer = updates.previous + 1.5 * (updates.models[:1] - updates.previous)
        assert flagged(inspect(with_liars(updates, longer), Defence())) == []

    def test_is_changed_in_no_argument(self) -> None:
        updates = with_liars(honest(), np.full((3, WIDTH), 50.0))
        before = updates.models.copy(), updates.samples.copy()
        inspect(updates, Defence(), RNG(0).random(20), 0.5)
        assert_array_equal(updates.models, before[0])
        assert_array_equal(updates.samples, before[1])

    def test_does_not_depend_on_the_order_of_devices(self) -> None:
        updates = with_liars(honest(), RNG(5).normal(0.0, 9.0, (4, WIDTH)))
        order = RNG(1).permutation(20)
        shuffled = replace(updates, models=updates.models[order], samples=updates.samples[order])
        assert_array_equal(inspect(shuffled, Defence()).kept, inspect(updates, Defence()).kept[order])


class TestLiars:
    def test_that_send_noise_are_far_from_the_median(self) -> None:
        verdict = inspect(with_liars(honest(), RNG(5).normal(0.0, 20.0, (6, WIDTH))), Defence(alike=None))
        assert flagged(verdict) == list(range(6))
        assert "robust deviations" in str(verdict.reasons[0])

    def test_do_not_hide_behind_worse_ones(self) -> None:
        lies = np.vstack((RNG(5).normal(0.0, 1e6, (5, WIDTH)), RNG(6).normal(0.0, 6.0, (3, WIDTH))))
        assert flagged(inspect(with_liars(honest(), lies), Defence(alike=None))) == list(range(8))

    def test_do_not_hide_the_others_by_one_that_is_absurd(self) -> None:
        lies = np.repeat(RNG(5).normal(0.0, 3.0, (1, WIDTH)), 5, axis=0)
        lies[0] = 1e12
        assert flagged(inspect(with_liars(honest(), lies), Defence())) == list(range(5))

    def test_that_are_one_and_the_same_differ_in_the_same_way(self) -> None:
        updates = honest()
        little = updates.models.mean(axis=0) - 0.5 * updates.models.std(axis=0)
        only = OFF.model_copy(update={"alike": 0.95})
        verdict = inspect(with_liars(updates, np.repeat(little[None], 6, axis=0)), only)
        assert flagged(verdict) == list(range(6))
        assert verdict.reasons[0] == "5 others of the round differ from it in the same way"

    def test_that_go_the_other_way_go_against_the_round(self) -> None:
        updates = honest()
        assert updates.previous is not None
        common = updates.models.mean(axis=0) - updates.previous
        only = OFF.model_copy(update={"direction": 0.5})
        verdict = inspect(with_liars(updates, np.repeat((updates.previous - common)[None], 4, axis=0)), only)
        assert flagged(verdict) == [0, 1, 2, 3]

    def test_that_forecast_badly_are_found_by_what_is_held_out(self) -> None:
        losses = np.full(20, 1.0)
        losses[:3] = 1.2, np.inf, np.nan
        verdict = inspect(honest(), OFF.model_copy(update={"loss": 0.05}), losses, 0.9)
        assert flagged(verdict) == [0, 1, 2]
        assert verdict.reasons[0] == "its loss on held-out readings is 1.2 times the reference, the limit is 1.05"

    def test_cannot_claim_more_samples_than_is_usual(self) -> None:
        updates = honest()
        claimed = np.concatenate(([1e9], updates.samples[1:]))
        verdict = inspect(replace(updates, samples=claimed), Defence())
        assert verdict.kept[0]
        assert verdict.samples[0] == 10.0 * np.median(claimed)
        assert_array_equal(verdict.samples[1:], updates.samples[1:])


class TestFewDevices:
    def test_are_not_compared_with_one_another(self) -> None:
        updates = with_liars(honest(4), np.full((1, WIDTH), 1e6))
        verdict = inspect(updates, Defence())
        assert flagged(verdict) == []
        assert verdict.models is updates.models

    def test_are_judged_on_held_out_readings(self) -> None:
        assert flagged(inspect(honest(1), Defence(), np.array([1.2]), 1.0)) == [0]
        assert flagged(inspect(honest(1), Defence(), np.array([1.2]))) == []  # by what?
        assert flagged(inspect(honest(2), Defence(), np.array([1.2, 1.01]), 1.0)) == [0]

    def test_are_each_measured_by_the_others_median(self) -> None:
        rng = RNG(0)
        for count in range(2, 9):
            losses = rng.integers(1, 5, count).astype(np.float64)  # some are equal
            verdict = inspect(honest(count), OFF.model_copy(update={"loss": 0.0}), losses)
            expected = [losses[i] <= np.median(np.delete(losses, i)) for i in range(count)]
            assert verdict.kept.tolist() == expected

    def test_that_all_do_worse_than_the_mean_before_are_only_different(self) -> None:
        assert flagged(inspect(honest(4), Defence(), np.array([1.3, 1.32, 1.29, 1.31]), 1.0)) == []


class TestTheFirstRound:
    """There is no global model to compare with yet."""

    def test_is_not_clipped_but_looked_at(self) -> None:
        updates = replace(with_liars(honest(), RNG(5).normal(0.0, 30.0, (3, WIDTH))), previous=None)
        verdict = inspect(updates, Defence())
        assert flagged(verdict) == [0, 1, 2]
        assert_array_equal(verdict.scales, 1.0)


class TestClipping:
    def test_leaves_no_update_longer_than_the_limit_and_keeps_its_direction(self) -> None:
        updates = honest()
        assert updates.previous is not None
        clipped, scales = clip_to(updates.models, updates.previous, 7.0)
        before, after = updates.models - updates.previous, clipped - updates.previous
        assert np.linalg.norm(after, axis=1).max() <= 7.0 + 1e-12
        assert_allclose(after, scales[:, None] * before)
        assert_array_equal(scales == 1.0, np.linalg.norm(before, axis=1) <= 7.0)

    def test_is_by_the_rounds_own_median_and_from_where_each_began(self) -> None:
        updates = honest()
        assert updates.previous is not None
        bases = updates.previous + np.arange(20.0)[:, None]  # they began from different global models
        stale = replace(updates, models=updates.models + np.arange(20.0)[:, None], bases=bases)
        stale.models[0] = bases[0] + 9.0 * (stale.models[0] - bases[0])
        verdict = inspect(stale, Defence(distance=None))
        limit = 2.0 * usual_length(stale.models - bases)
        assert np.linalg.norm(verdict.models[0] - bases[0]) == pytest.approx(limit)
        assert verdict.kept[0]
        assert (verdict.scales < 1.0).sum() == 1

    def test_of_an_update_of_no_length_is_nothing(self) -> None:
        clipped, scales = clip_to(np.ones((2, 3)), np.ones(3), 0.0)
        assert_array_equal(clipped, 1.0)
        assert_array_equal(scales, [1.0, 1.0])


class TestLikeness:
    def test_of_two_is_that_of_twins(self) -> None:
        steps = honest().models
        steps[1] = steps[0]
        assert not alike(steps, 0.95).any()
        steps[2] = steps[0]
        assert alike(steps, 0.95).tolist() == [2, 2, 2] + [0] * 17

    def test_of_half_of_a_round_is_the_round(self) -> None:
        steps = honest(10).models
        steps[:5] = steps[0]
        assert not alike(steps, 0.95).any()

    def test_says_nothing_in_few_dimensions(self) -> None:
        assert not alike(honest(20, width=2).models, 0.5).any()

    def test_is_the_same_in_blocks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        steps = honest(50).models
        steps[:9] = steps[0] + 0.01 * RNG(0).normal(size=(9, WIDTH))
        whole = alike(steps, 0.95)
        monkeypatch.setattr("flead.defence._BLOCK", 150)
        assert_array_equal(alike(steps, 0.95), whole)
        assert np.count_nonzero(whole) == 9


def test_devices_that_crowd_together_make_nobody_look_odd() -> None:
    steps = honest(20).models
    centre = np.median(steps, axis=0)
    off = steps - centre
    steps = centre + off / np.linalg.norm(off, axis=1)[:, None]  # all just as far
    steps[0] = centre + 1.3 * (steps[0] - centre)
    assert oddness(steps, np.ones(20, dtype=bool)).max() < 2.0


class TestWhatIsKept:
    def test_is_the_round_without_those_found_out(self) -> None:
        updates = replace(
            with_liars(honest(), RNG(5).normal(0.0, 20.0, (6, WIDTH))),
            staleness=np.arange(20.0), bases=np.zeros((20, WIDTH)), controls=np.ones((20, WIDTH)),
        )  # fmt: skip
        kept = inspect(updates, Defence()).of_kept(updates)
        assert len(kept) == 14
        assert kept.staleness is not None
        assert_array_equal(kept.staleness, np.arange(6.0, 20.0))
        assert kept.bases is not None
        assert kept.controls is not None
        assert kept.bases.shape == kept.controls.shape == (14, WIDTH)
        assert_array_equal(kept.samples, updates.samples[6:])

    def test_may_be_nothing_which_no_strategy_can_merge(self) -> None:
        verdict = inspect(honest(1), Defence(), np.array([9.0]), 1.0)
        with pytest.raises(BadUpdate, match="every one"):
            verdict.of_kept(honest(1))


class TestHeldOutLoss:
    @pytest.mark.parametrize(
        "architecture",
        [Architecture(3, hidden, 2, skip) for hidden in ((), (5,), (5, 4)) for skip in (False, True)],
        ids=str,
    )
    def test_of_many_models_is_that_of_each(self, architecture: Architecture, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = RNG(0)
        known = Examples(rng.normal(size=(30, 3)), rng.normal(0.0, 6.0, (30, 2)), rng.uniform(0.0, 2.0, (30, 2)))
        models = rng.normal(size=(7, architecture.parameter_count))
        expected = []
        for theta in models:
            off = np.abs(network.forward(theta, architecture, known.features) - known.targets)
            each = np.where(off <= HUBER, 0.5 * off**2, HUBER * (off - 0.5 * HUBER))
            expected.append((each * known.weights).sum() / known.weights.sum())
        assert_allclose(losses_on(known, models, architecture), expected)
        monkeypatch.setattr("flead.defence._BLOCK", 300)  # a few models at once
        assert_allclose(losses_on(known, models, architecture), expected)

    def test_of_absurd_models_is_large_and_no_error(self) -> None:
        line = Examples(np.ones((2, 1)), np.ones((2, 1)), np.ones((2, 1)))
        found = losses_on(line, np.array([[1e300, 1e300], [1.0, 0.0]]), Architecture(1, (), 1))
        assert found[0] > 1e300
        assert found[1] == 0.0


def after(rounds: str, start: Reputation | None = None) -> Reputation:
    """A reputation after rounds with (x) and without (.) a flag."""
    reputation = start or Reputation()
    for flag in rounds:
        reputation = reputation.after(flagged=flag == "x")
    return reputation


class TestReputation:
    @given(st.text("x.", max_size=60))
    def test_is_a_share_that_rises_without_and_falls_with_a_flag(self, rounds: str) -> None:
        reputation = after(rounds)
        assert 0.0 < reputation.value < 1.0
        assert after("x", reputation).value < after(".", reputation).value
        assert reputation.good + reputation.bad <= 10.0 + 1e-9  # it forgets

    @pytest.mark.parametrize(
        ("rounds", "out"),
        [
            ("", False), ("xx", False), ("xxx", True), ("x" + 9 * ".", False),
            (30 * "." + "xxxxxx", False), (30 * "." + "xxxxxxx", True),
            (20 * ".x", True), (20 * "..x", False), (20 * "x" + 10 * ".", False),
        ],
    )  # fmt: skip
    def test_leads_to_quarantine_where_flags_outweigh_the_rest(self, rounds: str, out: bool) -> None:
        assert should_quarantine(after(rounds), Defence()) is out

    def test_has_the_memory_that_it_was_given(self) -> None:
        assert after(100 * ".", Reputation(memory=0.5)).good == pytest.approx(2.0)


@pytest.mark.parametrize(
    "wrong", [{"clip": 0.5}, {"alike": 1.0}, {"distance": 0.0}, {"fewest_devices": 2}, {"loss": float("nan")}, {"x": 1}]
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Defence.model_validate(wrong)
