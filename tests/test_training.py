"""Training goes down the slope of its loss, and federating is nothing but weighted means of what devices trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from numpy.typing import NDArray

from flead.features import DAY
from flead.federation import FedAvg, FedProx, Median, Scaffold, parse_strategy
from flead.network import Architecture, Vector, forward, initial
from flead.training import HUBER, Examples, Federation, descend, federate, gradient, times_of_day, train

RNG = np.random.default_rng
SMALL = Architecture(3, (4,), 2, skip=True)

architectures = st.builds(
    Architecture,
    st.integers(1, 4),
    st.lists(st.integers(1, 4), max_size=2).map(tuple),
    st.integers(1, 3),
    skip=st.booleans(),
)


def examples(count: int, architecture: Architecture = SMALL, seed: int = 0, spread: float = 1.0) -> Examples:
    """Outputs that a network could give, some of them unknown."""
    rng = RNG(seed)
    x = rng.normal(size=(count, architecture.input_size))
    truth = RNG(99).normal(size=(architecture.input_size, architecture.output_size))
    targets = spread * (x @ truth + 0.1 * rng.normal(size=(count, architecture.output_size)))
    weights: Vector = np.where(rng.random(targets.shape) < 0.8, rng.uniform(0.5, 2.0, targets.shape), 0.0)
    return Examples(x, targets * (weights > 0), weights)


def loss(theta: Vector, architecture: Architecture, batch: Examples) -> float:
    """Mean Huber loss of the known targets."""
    shared = architecture.parameter_count
    said = forward(theta[:shared], architecture, batch.features)
    if batch.personal is not None:
        own = theta[shared:].reshape(batch.personal.shape[1], -1)
        said[:, -own.shape[1] :] += batch.personal @ own
    off = np.abs(said - batch.targets)
    each = np.where(off <= HUBER, 0.5 * off * off, HUBER * (off - 0.5 * HUBER))
    return float((each * batch.weights).sum() / len(batch))


class TestTheGradient:
    @settings(deadline=None, max_examples=60)
    @given(architectures, st.integers(0, 2**32), st.sampled_from([1.0, 10.0]))
    def test_is_the_numerical_one_of_the_huber_loss(self, architecture: Architecture, seed: int, spread: float) -> None:
        batch, step = examples(9, architecture, seed, spread), 1e-6
        theta = RNG(seed).normal(0.0, 0.7, architecture.parameter_count)
        numerical = [
            (loss(theta + step * e, architecture, batch) - loss(theta - step * e, architecture, batch)) / (2 * step)
            for e in np.eye(theta.size)
        ]
        assert_allclose(gradient(theta, architecture, batch), numerical, rtol=1e-4, atol=1e-6)

    @settings(deadline=None, max_examples=20)
    @given(architectures, st.integers(0, 2**32))
    def test_of_personal_parameters_is_the_numerical_one_too(self, architecture: Architecture, seed: int) -> None:
        batch, step = replace(examples(9, architecture, seed), personal=RNG(seed).normal(size=(9, 5))), 1e-6
        theta = RNG(seed).normal(0.0, 0.7, architecture.parameter_count + 5)
        numerical = [
            (loss(theta + step * e, architecture, batch) - loss(theta - step * e, architecture, batch)) / (2 * step)
            for e in np.eye(theta.size)
        ]
        assert_allclose(gradient(theta, architecture, batch), numerical, rtol=1e-4, atol=1e-6)

    def test_does_not_know_targets_that_are_not_known(self) -> None:
        batch, theta = examples(20), RNG(1).normal(size=SMALL.parameter_count)
        other = Examples(batch.features, np.where(batch.weights > 0, batch.targets, 3.0), batch.weights)
        assert_array_equal(gradient(theta, SMALL, other), gradient(theta, SMALL, batch))


class TestTraining:
    def test_lowers_the_loss(self) -> None:
        known, start = examples(400), initial(SMALL, RNG(0))
        for options in ({}, {"average": 0.05}, {"cosine": True}):
            trained = train(start, SMALL, known, RNG(0), epochs=20, rate=0.01, **options)
            assert loss(trained, SMALL, known) < 0.1 * loss(start, SMALL, known)

    def test_gives_the_same_for_the_same_seed_and_leaves_its_start_alone(self) -> None:
        start = initial(SMALL, RNG(0))
        kept = start.copy()
        one, again, other = (train(start, SMALL, examples(90), RNG(s), epochs=2, rate=0.01) for s in (1, 1, 2))
        assert_array_equal(one, again)
        assert not np.array_equal(one, other)
        assert_array_equal(start, kept)

    @pytest.mark.parametrize("average", [0.0, 0.01])
    def test_for_no_epoch_or_on_nothing_changes_nothing(self, average: float) -> None:
        start = initial(SMALL, RNG(0))
        assert_array_equal(train(start, SMALL, examples(9), RNG(0), epochs=0, rate=0.1, average=average), start)
        assert_array_equal(train(start, SMALL, examples(0), RNG(0), epochs=2, rate=0.1, average=average), start)

    def test_gives_back_the_running_mean_of_its_steps_where_it_is_told_to(self) -> None:
        start, known = initial(SMALL, RNG(0)), examples(32)
        once = train(start, SMALL, known, RNG(0), epochs=1, rate=0.01)  # one batch: one step
        averaged = train(start, SMALL, known, RNG(0), epochs=1, rate=0.01, average=0.25)
        assert_allclose(averaged, start + 0.25 * (once - start), rtol=1e-12)

    def test_survives_targets_that_are_far_away(self) -> None:
        trained = train(initial(SMALL, RNG(0)), SMALL, examples(200, spread=1e12), RNG(0), epochs=3, rate=0.01)
        assert np.isfinite(trained).all()
        assert np.abs(trained).max() < 10


class TestHabits:
    """What a device's time of day adds to its model: its own."""

    TIMES = np.arange(0.0, 4 * DAY, 600.0)
    TRUTH = np.sin(2 * np.pi * 3 * TIMES / DAY) + 0.5

    def habitual(self) -> Examples:
        """The last of two outputs has a daily habit that no feature tells."""
        x = RNG(0).normal(size=(len(self.TIMES), 3))
        targets = np.column_stack((np.zeros_like(self.TRUTH), self.TRUTH))
        return Examples(x, targets, np.ones_like(targets), times_of_day(self.TIMES))

    def test_are_learned_where_no_feature_tells_them(self) -> None:
        known, shared = self.habitual(), SMALL.parameter_count
        start = np.concatenate((initial(SMALL, RNG(0)), np.zeros(48)))
        found = train(start, SMALL, known, RNG(0), epochs=30, rate=0.01, cosine=True)
        assert loss(found, SMALL, known) < 0.05 * loss(start, SMALL, known)
        assert np.corrcoef(times_of_day(self.TIMES) @ found[shared:], self.TRUTH)[0, 1] > 0.95

    def test_are_no_part_of_the_model_that_is_federated(self) -> None:
        start, known = initial(SMALL, RNG(0)), self.habitual()
        together = Examples.together([known, known])
        assert together.personal is None
        assert train(start, SMALL, together, RNG(0), epochs=1, rate=0.01).size == SMALL.parameter_count

    def test_of_one_half_hour_reach_its_neighbours_over_midnight(self) -> None:
        near = times_of_day(np.array([0.0, DAY, 12 * 3_600.0]))
        assert_allclose(near[0], near[1], atol=1e-9)
        assert near[0].argmax() == 0
        assert near[0, 47] == pytest.approx(near[0, 1])
        assert near[2].argmax() == 24
        assert_allclose(np.sqrt((times_of_day(np.arange(0.0, DAY, 60.0)) ** 2).mean(axis=0)), 1.0, rtol=1e-3)


class TestFederating:
    DEVICES = (examples(40, seed=1), examples(80, seed=2), examples(0), examples(120, seed=3))

    def test_is_plain_fedavg(self) -> None:
        start = initial(SMALL, RNG(0))
        plan = Federation(rounds=1, share=1.0, averaged=1)
        rng, able = RNG(7), [device for device in self.DEVICES if len(device)]
        order = rng.permutation(len(able))
        trained = [train(start, SMALL, able[i], rng, epochs=1, rate=1.02 * plan.rate) for i in order]
        counts = np.array([len(able[i]) for i in order], dtype=float)
        expected = (counts[:, None] * np.stack(trained)).sum(axis=0) / counts.sum()
        assert_allclose(federate(start, SMALL, list(self.DEVICES), RNG(7), plan), expected, rtol=1e-12, atol=1e-15)

    def test_gives_the_same_for_the_same_seed(self) -> None:
        start = initial(SMALL, RNG(0))
        one, again, other = (
            federate(start, SMALL, list(self.DEVICES), RNG(s), Federation(rounds=3)) for s in (1, 1, 2)
        )
        assert_array_equal(one, again)
        assert not np.array_equal(one, other)

    @pytest.mark.parametrize("averaged", [1, 2, 3])
    def test_gives_the_mean_of_the_last_rounds_which_it_tells_of(self, averaged: int) -> None:
        told: list[Vector] = []
        numbers: list[int] = []

        def on_round(number: int, theta: Vector) -> None:
            numbers.append(number)
            told.append(theta.copy())

        plan = Federation(rounds=5, averaged=averaged)
        final = federate(initial(SMALL, RNG(0)), SMALL, list(self.DEVICES), RNG(0), plan, on_round)
        assert numbers == [1, 2, 3, 4, 5]
        assert_allclose(final, np.mean(told[-averaged:], axis=0), rtol=1e-12)

    def test_asks_a_share_of_the_devices_and_at_least_one(self) -> None:
        start = initial(SMALL, RNG(0))
        alone = federate(start, SMALL, list(self.DEVICES), RNG(4), Federation(rounds=1, share=0.01))
        rng, able = RNG(4), [device for device in self.DEVICES if len(device)]
        picked = rng.permutation(3)[0]
        assert_array_equal(alone, train(start, SMALL, able[picked], rng, epochs=1, rate=1.02 * Federation().rate))

    def test_learns_what_devices_have_in_common(self) -> None:
        start = initial(SMALL, RNG(0))
        found = federate(start, SMALL, list(self.DEVICES), RNG(0), Federation(rounds=20, share=1.0, rate=0.02))
        unseen = examples(300, seed=9)
        assert loss(found, SMALL, unseen) < 0.1 * loss(start, SMALL, unseen)

    @pytest.mark.parametrize("name", ["fedavgm", "fedprox", "fedadam", "fedyogi", "fedadagrad", "median", "scaffold"])
    def test_learns_by_every_kind_of_strategy(self, name: str) -> None:
        start, unseen = initial(SMALL, RNG(0)), examples(300, seed=9)
        plan = Federation(rounds=30, share=1.0, rate=0.02)
        rule = Scaffold(local_rate=0.05) if name == "scaffold" else parse_strategy(name)
        found = federate(start, SMALL, list(self.DEVICES), RNG(0), plan, strategy=rule)
        assert loss(found, SMALL, unseen) < 0.5 * loss(start, SMALL, unseen)

    def test_lets_an_attack_change_what_arrives(self) -> None:
        seen: list[tuple[int, list[int]]] = []

        def shout(number: int, picked: NDArray[np.int64], trained: Vector, theta: Vector) -> Vector:
            seen.append((number, sorted(picked.tolist())))
            assert trained.shape == (3, theta.size)
            return np.where((picked == 3)[:, None], 1e6, trained)

        start, plan = initial(SMALL, RNG(0)), Federation(rounds=2, share=1.0, averaged=1)
        poisoned, defended = (
            federate(start, SMALL, list(self.DEVICES), RNG(0), plan, strategy=rule, tamper=shout)
            for rule in (FedAvg(), Median())
        )
        assert np.abs(poisoned).min() > 1e5
        assert np.abs(defended).max() < 10.0
        assert seen == [(1, [0, 1, 3]), (2, [0, 1, 3])] * 2  # device 2 has no examples


class TestFedProx:
    def test_with_no_pull_is_fedavg_to_the_bit(self) -> None:
        start, devices, plan = initial(SMALL, RNG(0)), list(TestFederating.DEVICES), Federation(rounds=3)
        plain = federate(start, SMALL, devices, RNG(0), plan)
        assert_array_equal(federate(start, SMALL, devices, RNG(0), plan, strategy=FedProx(proximal=0.0)), plain)

    def test_keeps_devices_the_nearer_the_harder_it_pulls(self) -> None:
        start = initial(SMALL, RNG(0))
        moved = [
            np.linalg.norm(train(start, SMALL, examples(200), RNG(0), epochs=10, rate=0.01, proximal=mu) - start)
            for mu in (0.0, 1.0, 100.0)
        ]
        assert moved[0] > moved[1] > moved[2]

    def test_pulls_by_the_strategys_own_strength_or_the_one_that_is_named(self) -> None:
        start, devices, plan = initial(SMALL, RNG(0)), list(TestFederating.DEVICES), Federation(rounds=2)
        by_strategy = federate(start, SMALL, devices, RNG(0), plan, strategy=FedProx(proximal=0.5))
        assert_array_equal(federate(start, SMALL, devices, RNG(0), plan, proximal=0.5), by_strategy)
        assert not np.array_equal(federate(start, SMALL, devices, RNG(0), plan), by_strategy)


class TestScaffold:
    """Two devices whose targets disagree, of unequal shape: local steps drift apart, controls hold them together."""

    LINE = Architecture(1, (), 1)

    def device(self, slope: float, spread: float, seed: int) -> Examples:
        x = spread * RNG(seed).normal(size=(320, 1))
        return Examples(x, slope * x, np.ones((320, 1)))

    def fleet(self) -> list[Examples]:
        return [self.device(2.0, 1.0, 1), self.device(-1.0, 0.3, 2)]

    def test_its_control_is_the_mean_gradient_of_the_steps(self) -> None:
        batch, theta = examples(20), RNG(1).normal(size=SMALL.parameter_count)
        correction = np.full_like(theta, 0.1)
        trained, control = descend(theta, SMALL, batch, RNG(0), rate=0.01, correction=correction)
        order = RNG(0).permutation(20)  # one batch: one step
        assert_allclose(control, gradient(theta, SMALL, batch[order]), rtol=1e-9, atol=1e-12)
        assert_allclose(trained, theta - 0.01 * (control + correction), rtol=1e-12)

    def test_finds_the_optimum_of_all_devices_where_local_steps_alone_drift(self) -> None:
        everything = Examples.together(self.fleet())
        best = np.linalg.lstsq(
            np.hstack((everything.features, np.ones((640, 1)))), everything.targets[:, 0], rcond=None
        )[0]
        plan = Federation(rounds=200, share=1.0, averaged=1)
        found = federate(np.zeros(2), self.LINE, self.fleet(), RNG(0), plan, strategy=Scaffold(local_rate=0.3))
        drifted = np.zeros(2)
        for number in range(plan.rounds):
            fall = 0.5 * (1.0 + np.cos(np.pi * number / plan.rounds)) + 0.02
            drifted = np.mean(
                [
                    descend(drifted, self.LINE, e, RNG(number), rate=0.3 * fall, correction=np.zeros(2))[0]
                    for e in self.fleet()
                ],
                axis=0,
            )
        assert np.abs(found - best).max() < 0.3 * np.abs(drifted - best).max()


def test_examples_of_several_devices_are_all_of_theirs() -> None:
    one, other = examples(3, seed=1), examples(4, seed=2)
    together = Examples.together([one, other])
    assert len(together) == 7
    assert_array_equal(together.targets, np.vstack((one.targets, other.targets)))
    assert_array_equal(together[np.array([1, 3])].features, np.stack((one.features[1], other.features[0])))
    assert_array_equal(together[2:4].weights, np.stack((one.weights[2], other.weights[0])))
