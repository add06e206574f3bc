"""Scaling is the exact mean and variance at first, forgets later, and no single value owns it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from flead import scaling
from flead.network import Vector

INF = float("inf")
values = st.floats(-1e6, 1e6)
extremes = st.floats(-1e15, 1e15) | st.sampled_from([1e15, -1e15, 0.0, 5e-324])


class Statistics:
    """Running statistics of one sensor, where warm ones take outliers for values `winsor` deviations away."""

    def __init__(self, memory: float = 1000.0, winsor: float = 4.0) -> None:
        self.mean, self.variance, self.count = np.zeros(1), np.zeros(1), np.zeros(1)
        self.memory, self.winsor = memory, winsor

    def take(self, stream: Iterable[float]) -> Statistics:
        for value in stream:
            limit = self.winsor * self.spread if self.count[0] >= scaling.WARM else INF
            scaling.update(
                self.mean, self.variance, self.count, np.array([value]), np.ones(1), memory=self.memory, limit=limit
            )
        return self

    @property
    def spread(self) -> float:
        return float(scaling.spread(self.mean, self.variance)[0])


def steady(count: int, seed: int = 1) -> Vector:
    return np.random.default_rng(seed).normal(20.0, 2.0, count)


@settings(deadline=None)
@given(st.lists(values, min_size=1, max_size=100))
def test_the_first_values_have_their_exact_mean_and_variance(stream: list[float]) -> None:
    taken = Statistics(memory=100, winsor=INF).take(stream)
    level = max(1.0, float(np.abs(stream).max()))
    assert_allclose(taken.mean[0], np.mean(stream), rtol=1e-9, atol=1e-9 * level)
    assert_allclose(taken.variance[0], np.var(stream), rtol=1e-7, atol=1e-9 * level**2)
    assert taken.count[0] == len(stream)


def test_values_within_reach_are_taken_as_they_are() -> None:
    stream = 20.0 + 2.0 * np.sin(np.arange(1000.0))
    taken = Statistics(memory=1000).take(stream)
    assert_allclose(taken.mean[0], stream.mean(), rtol=1e-12)
    assert_allclose(taken.variance[0], stream.var(), rtol=1e-9)


def test_old_values_fade() -> None:
    taken = Statistics(memory=100).take(steady(5000)).take(100.0 + steady(5000))
    assert_allclose(taken.mean[0], 120.0, atol=2.0)
    assert_allclose(taken.spread, 2.0, atol=1.0)


@given(st.floats(-1e15, 1e15), st.integers(scaling.WARM, 300))
def test_an_outlier_moves_warm_statistics_no_further_than_a_value_at_the_limit(outlier: float, after: int) -> None:
    taken = Statistics(memory=100).take(steady(after))
    mean, spread = float(taken.mean[0]), taken.spread
    taken.take([outlier])
    rate = 1.0 / min(after + 1, taken.memory)
    assert abs(taken.mean[0] - mean) <= taken.winsor * spread * rate * (1 + 1e-9)
    assert taken.spread <= spread * np.sqrt(1 + taken.winsor**2 * rate) * (1 + 1e-9)


@settings(deadline=None)
@given(extremes, st.integers(1, 200))
def test_a_constant_never_divides_by_zero(value: float, count: int) -> None:
    taken = Statistics().take([value] * count)
    assert_allclose(taken.mean[0], value, rtol=1e-9, atol=1e-12)
    assert taken.spread > 0
    assert abs(value - taken.mean[0]) / taken.spread < 1


@settings(deadline=None, max_examples=60)
@given(st.lists(extremes, min_size=1, max_size=200))
def test_extremes_stay_within_their_own_bounds(stream: list[float]) -> None:
    taken = Statistics(memory=100).take(stream)
    assert abs(taken.mean[0]) <= 1e15 * (1 + 1e-9)
    assert 0 <= taken.variance[0] <= 4e30
    assert 0 < taken.spread <= 4e15


@pytest.mark.parametrize("value", [0.0, 1e15, -1e15])
def test_what_was_not_observed_teaches_nothing(value: float) -> None:
    mean, variance, count = np.array([20.0, 5.0]), np.array([4.0, 1.0]), np.array([50.0, 50.0])
    scaling.update(mean, variance, count, np.array([value, 6.0]), np.array([0.0, 1.0]), memory=100, limit=8.0)
    assert (mean[0], variance[0], count[0]) == (20.0, 4.0, 50.0)
    assert mean[1] > 5.0
    assert count[1] == 51.0


def test_each_sensor_has_its_own_statistics() -> None:
    streams = np.stack([steady(200, seed=1), 1000.0 * steady(200, seed=2)])
    mean, variance, count = np.zeros(2), np.zeros(2), np.zeros(2)
    for x in streams.T:
        scaling.update(mean, variance, count, x, np.ones(2), memory=1000, limit=np.array([INF, 30_000.0]))
    for i in range(2):
        alone = Statistics(winsor=INF).take(streams[i])
        assert (mean[i], variance[i]) == (alone.mean[0], alone.variance[0])
