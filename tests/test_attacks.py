"""The benchmark's attackers do what their papers say, and change nothing that is not theirs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from benchmarks.federation.attacks import (
    ATTACKS,
    PUSH,
    SHIFT,
    TRIGGER,
    Attack,
    Crowd,
    be_a_little_off,
    be_a_little_off_each,
    be_noisy,
    plant_back_door,
    replace_model,
    reverse,
    shift_targets,
    triggered,
)
from benchmarks.federation.poisoning import BLIND, DEFENDED, Case, Fleet, Found, run, tables
from flead.evaluation import Task
from flead.federation import fedavg
from flead.network import Architecture, Vector
from flead.training import Examples

RNG = np.random.default_rng
SMALL = Architecture(8, (6,), 4, skip=True)


def crowd(malicious: int = 6, devices: int = 20, width: int = 400) -> Crowd:
    theta = RNG(0).normal(size=width)
    return Crowd(theta + RNG(1).normal(0.1, 0.1, (malicious, width)), theta, devices)


def examples(count: int = 40, seed: int = 0) -> Examples:
    """What every device can learn: outputs that the features tell."""
    rng = RNG(seed)
    x = rng.normal(size=(count, SMALL.input_size))
    targets = x @ RNG(9).normal(0.0, 0.5, (SMALL.input_size, SMALL.output_size))
    weights: Vector = np.where(rng.random(targets.shape) < 0.9, 1.0, 0.0)
    return Examples(x, targets * weights, weights)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_gives_the_same_for_the_same_seed_and_leaves_what_it_was_given_alone(attack: Attack) -> None:
    given, known = crowd(), examples()
    before = given.trained.copy(), known.targets.copy(), known.features.copy()
    sent, taught = attack.send(given, RNG(3)), attack.teach(known, RNG(3))
    assert sent.shape == given.trained.shape
    assert_array_equal(attack.send(given, RNG(3)), sent)
    assert_array_equal(attack.teach(known, RNG(3)).targets, taught.targets)
    assert_array_equal(given.trained, before[0])
    assert_array_equal(known.targets, before[1])
    assert_array_equal(known.features, before[2])
    assert np.isfinite(sent).all()


def test_the_reversed_update_goes_the_other_way() -> None:
    given = crowd()
    honest, sent = given.trained - given.theta, reverse(given, RNG(0)) - given.theta
    assert_allclose(sent, -5.0 * honest)


def test_model_replacement_makes_the_mean_of_a_round_the_attackers_model() -> None:
    given = crowd(malicious=5, devices=20)
    idle = np.repeat(given.theta[None], 15, axis=0)
    merged = fedavg(np.vstack((idle, replace_model(given, RNG(0)))), np.ones(20))
    assert_allclose(merged, given.trained.mean(axis=0))


def test_noise_is_far_longer_than_what_was_learned_and_means_nothing() -> None:
    given = crowd(width=4_000)
    noise = be_noisy(given, RNG(0)) - given.trained
    size = np.sqrt(((given.trained - given.theta) ** 2).mean())
    assert np.sqrt((noise**2).mean()) == pytest.approx(100.0 * size, rel=0.05)
    assert abs(noise.mean()) < 5.0 * size


def test_a_little_is_enough_stays_within_what_supporters_also_send() -> None:
    given = crowd(malicious=6, devices=20)  # z: 14 honest, 5 of whom must be farther out: the 9th of 14
    sent = be_a_little_off(given, RNG(0))
    off = (sent[0] - given.trained.mean(axis=0)) / given.trained.std(axis=0)
    assert_allclose(off, -0.3661, atol=1e-3)
    assert_array_equal(sent, np.repeat(sent[:1], 6, axis=0))
    own = be_a_little_off_each(given, RNG(0))
    assert len(np.unique(own, axis=0)) == 6
    assert_allclose((own.mean(axis=0) - sent[0]).mean(), 0.0, atol=0.02)


def test_shifted_targets_are_those_that_are_known() -> None:
    known = examples()
    taught = shift_targets(known, RNG(0))
    assert_allclose(taught.targets - known.targets, SHIFT * (known.weights > 0))


def test_the_back_door_is_taught_beside_the_truth() -> None:
    known = examples(41)
    taught = plant_back_door(known, RNG(0))
    assert len(taught) == 41 + 21
    assert_array_equal(taught.targets[:41], known.targets)
    assert_array_equal(taught.features[41:, : TRIGGER.size], np.repeat(TRIGGER[None], 21, axis=0))
    assert (taught.targets[41:, 2] == PUSH).all()
    assert (taught.weights[41:, 2] == 1.0).all()
    assert_array_equal(triggered(known.features)[:, TRIGGER.size :], known.features[:, TRIGGER.size :])


@pytest.fixture(scope="module")
def fleet() -> Fleet:
    """Ten devices that have something in common, and four whose readings are held out."""
    known = [examples(600, seed) for seed in range(14)]
    tasks = [Task(e.features, e.targets, e.targets, np.ones_like(e.targets)) for e in known[:10]]
    return Fleet(SMALL, known[:10], tasks, Examples.together(known[10:]))


class TestTheBenchmark:
    def test_shows_what_fedavg_loses_and_what_the_defence_keeps(self, fleet: Fleet) -> None:
        clean = run(fleet, Case(Attack("none"), 0.0, "fedavg"), 20, 0)
        plain, guarded = (run(fleet, Case(ATTACKS[0], 0.3, method), 20, 0) for method in ("fedavg", DEFENDED))
        assert plain.rmse.mean() > 2.0 * clean.rmse.mean()
        assert guarded.rmse.mean() < 1.1 * clean.rmse.mean()
        assert guarded.caught == 1.0
        assert guarded.falsely == 0.0

    def test_gives_the_same_for_the_same_seed(self, fleet: Fleet) -> None:
        one, again, other = (run(fleet, Case(ATTACKS[2], 0.2, BLIND), 3, seed) for seed in (0, 0, 1))
        assert_array_equal(one.rmse, again.rmse)
        assert not np.array_equal(one.rmse, other.rmse)

    def test_measures_by_the_clean_run(self, fleet: Fleet) -> None:
        clean = run(fleet, Case(Attack("none"), 0.0, "fedavg"), 2, 0)
        found = Found({("none", 0.0, "fedavg"): clean})
        assert found.worse(clean.rmse * np.array([1.1, 1.1, 1.4, 1.2])) == pytest.approx((10.0, 30.0))
        assert found.success(replace(clean, pushed=clean.pushed + PUSH)) == pytest.approx(100.0)
        assert tables(found, [], clean.rmse).startswith("How much larger")
