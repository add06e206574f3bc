"""The network is its arithmetic: a step goes down the slope of the loss, and parameters travel unharmed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from flead import network
from flead.errors import BadModel
from flead.messages import WeightsMessage
from flead.network import ADAM, MOMENTUM, SGD, Architecture, Vector, forward, from_message, initial, layers, to_message

architectures = st.builds(
    Architecture,
    st.integers(1, 5),
    st.lists(st.integers(1, 6), max_size=3).map(tuple),
    st.integers(1, 4),
    skip=st.booleans(),
)
seeds = st.integers(0, 2**32)
optimisers = pytest.mark.parametrize("optimiser", [SGD, MOMENTUM, ADAM], ids=["sgd", "momentum", "adam"])
FAR = 1e9
"""Longer than any gradient here."""


def parameters(architecture: Architecture, rng: np.random.Generator) -> Vector:
    return rng.normal(0.0, 0.7, architecture.parameter_count)


def travelled(theta: Vector, architecture: Architecture) -> WeightsMessage:
    return WeightsMessage.model_validate_json(json.dumps(to_message(theta, architecture)))


class Kernel:
    """The compiled network with the loss `slope @ outputs`, whose derivatives by the outputs are `slope`."""

    def __init__(self, theta: Vector, architecture: Architecture, optimiser: int = SGD) -> None:
        self.theta, self.architecture, self.optimiser = theta.copy(), architecture, optimiser
        self._sizes = np.array(architecture.sizes, dtype=np.int64)
        self._work = np.zeros(self._sizes.sum())
        self._moments = np.zeros(network.moments_size(optimiser, theta.size))

    def outputs(self, x: Vector) -> Vector:
        self._work[:] = np.nan  # what was there before does not matter
        self._work[: x.size] = x
        at = network.activate(self.theta, self._sizes, self.architecture.skip, self._work)
        assert at == self._work.size - self.architecture.output_size
        return self._work[at:].copy()

    def step(self, x: Vector, slope: Vector, rate: float, longest: float = FAR) -> Vector:
        """One step; gives what it took off."""
        self.outputs(x)
        slopes, before = np.full(self._work.size, np.nan), self.theta.copy()
        slopes[-slope.size :] = slope
        network.descend(
            self.theta, self._sizes, self.architecture.skip, self._work, slopes, self._moments, self.optimiser, rate,
            longest,
        )  # fmt: skip
        return before - self.theta


def numerical_gradient(theta: Vector, loss: Callable[[Vector], float], step: float = 1e-6) -> Vector:
    return np.array([(loss(theta + step * e) - loss(theta - step * e)) / (2 * step) for e in np.eye(theta.size)])


def adam(gradients: list[Vector], rate: float) -> Vector:
    """Kingma and Ba's algorithm 1 with their rearranged step size: what it takes off after all gradients."""
    first = second = taken = np.zeros(gradients[0].size)
    for t, g in enumerate(gradients, start=1):
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        taken = taken + rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * first / (np.sqrt(second) + 1e-8)
    return taken


def momentum(gradients: list[Vector], rate: float) -> Vector:
    speed = taken = np.zeros(gradients[0].size)
    for g in gradients:
        speed = 0.9 * speed + g
        taken = taken + rate * speed
    return taken


def sgd(gradients: list[Vector], rate: float) -> Vector:
    taken: Vector = rate * np.sum(gradients, axis=0)
    return taken


class TestForward:
    @settings(deadline=None, max_examples=60)
    @given(architectures, seeds)
    def test_is_tanh_layers_and_a_linear_one_that_may_also_see_the_inputs(
        self, architecture: Architecture, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        theta, x = parameters(architecture, rng), rng.normal(0.0, 1.0, (7, architecture.input_size))
        message, h = to_message(theta, architecture), x
        for depth, (weights, biases) in enumerate(zip(message["weights"], message["biases"], strict=True)):
            last = depth == len(architecture.hidden_sizes)
            if last and depth and architecture.skip:
                h = np.hstack((h, x))
            h = h @ np.array(weights) + np.array(biases)
            h = h if last else np.tanh(h)
        assert_allclose(forward(theta, architecture, x), h, rtol=1e-12, atol=1e-12)

    @settings(deadline=None, max_examples=100)
    @given(architectures, seeds)
    def test_is_what_the_kernel_does(self, architecture: Architecture, seed: int) -> None:
        rng = np.random.default_rng(seed)
        theta, x = parameters(architecture, rng), rng.normal(0.0, 1.0, (3, architecture.input_size))
        x[0, 0] = 0.0
        kernel = Kernel(theta, architecture)
        found = np.stack([kernel.outputs(row) for row in x])
        assert_allclose(found, forward(theta, architecture, x), rtol=1e-12, atol=1e-12)
        assert_array_equal(kernel.theta, theta)


class TestAStep:
    @settings(deadline=None, max_examples=80)
    @given(architectures, seeds)
    def test_goes_down_the_numerical_gradient(self, architecture: Architecture, seed: int) -> None:
        rng = np.random.default_rng(seed)
        theta, x = parameters(architecture, rng), rng.normal(0.0, 1.0, architecture.input_size)
        slope = rng.normal(0.0, 1.0, architecture.output_size)
        numerical = numerical_gradient(theta, lambda at: float(forward(at, architecture, x) @ slope))
        assert_allclose(Kernel(theta, architecture).step(x, slope, 1.0), numerical, rtol=1e-5, atol=1e-7)

    @settings(deadline=None, max_examples=60)
    @given(architectures, seeds, st.floats(0.01, 2.0))
    def test_is_cut_to_the_longest_gradient_exactly(
        self, architecture: Architecture, seed: int, longest: float
    ) -> None:
        rng = np.random.default_rng(seed)
        theta, x = parameters(architecture, rng), rng.normal(0.0, 1.0, architecture.input_size)
        slope = rng.normal(0.0, 1.0, architecture.output_size)
        whole = Kernel(theta, architecture).step(x, slope, 1.0)
        cut = Kernel(theta, architecture).step(x, slope, 1.0, longest)
        norm = float(np.linalg.norm(whole))
        assert_allclose(np.linalg.norm(cut), min(norm, longest), rtol=1e-9)
        assert_allclose(cut, whole * min(1.0, longest / norm), rtol=1e-8, atol=1e-12)

    @optimisers
    def test_without_a_slope_changes_nothing(self, optimiser: int) -> None:
        architecture, rng = Architecture(3, (4,), 2, skip=True), np.random.default_rng(3)
        kernel = Kernel(parameters(architecture, rng), architecture, optimiser)
        assert not kernel.step(rng.normal(size=3), np.zeros(2), 1.0).any()

    @optimisers
    @pytest.mark.parametrize("architecture", [Architecture(3, (4, 2), 2, skip=True), Architecture(3, (4,), 2)], ids=str)
    @pytest.mark.parametrize("longest", [FAR, 0.5])
    def test_is_its_optimisers(self, optimiser: int, architecture: Architecture, longest: float) -> None:
        rng = np.random.default_rng(5)
        start = parameters(architecture, rng)
        kernel = Kernel(start, architecture, optimiser)
        gradients: list[Vector] = []
        for _ in range(30):
            x, slope = rng.normal(size=3), rng.normal(size=2)
            x[rng.integers(3)] = 0.0  # an input of zero still lets the moments fade
            g = Kernel(kernel.theta, architecture).step(x, slope, 1.0)
            gradients.append(g * min(1.0, longest / float(np.linalg.norm(g))))
            kernel.step(x, slope, 0.01, longest)
        reference = {SGD: sgd, MOMENTUM: momentum, ADAM: adam}[optimiser]
        assert_allclose(start - kernel.theta, reference(gradients, 0.01), rtol=1e-7, atol=1e-12)


def test_layers_are_views() -> None:
    architecture = Architecture(2, (3,), 1)
    theta = np.zeros(architecture.parameter_count)
    for number, layer in enumerate(layers(theta, architecture), start=1):
        layer[:] = number
    assert_array_equal(theta, [1.0] * 9 + [2.0] * 4)


class TestStartingParameters:
    @given(architectures, seeds)
    def test_follow_from_the_generator_alone(self, architecture: Architecture, seed: int) -> None:
        one, again, other = (initial(architecture, np.random.default_rng(s)) for s in (seed, seed, seed + 1))
        assert_array_equal(one, again)
        assert np.array_equal(one, other) == (not architecture.hidden_sizes)

    @given(architectures, seeds)
    def test_predict_no_change(self, architecture: Architecture, seed: int) -> None:
        rng = np.random.default_rng(seed)
        theta = initial(architecture, rng)
        assert not forward(theta, architecture, rng.normal(size=(5, architecture.input_size))).any()

    @given(architectures, seeds)
    def test_have_no_biases_and_are_as_wide_as_glorot_says(self, architecture: Architecture, seed: int) -> None:
        for layer in layers(initial(architecture, np.random.default_rng(seed)), architecture):
            n_in, n_out = layer.shape[0] - 1, layer.shape[1]
            assert not layer[-1].any()
            assert np.abs(layer).max() <= np.sqrt(6.0 / (n_in + n_out))


class TestAMessage:
    @given(architectures, seeds)
    def test_carries_parameters_to_the_last_bit(self, architecture: Architecture, seed: int) -> None:
        theta = parameters(architecture, np.random.default_rng(seed))
        theta[0] = 5e-324
        arrived, sizes = from_message(travelled(theta, architecture))
        assert sizes == architecture
        assert_array_equal(arrived, theta)

    def test_says_only_where_it_is_so_that_the_last_layer_sees_the_inputs(self) -> None:
        assert Architecture(2, (3,), 1, skip=True).as_dict()["skip"] is True
        assert "skip" not in Architecture(2, (3,), 1).as_dict()

    def test_of_a_network_that_skips_fits_no_other(self) -> None:
        skipping, plain = Architecture(2, (3,), 1, skip=True), Architecture(2, (3,), 1)
        message = to_message(np.zeros(skipping.parameter_count), skipping) | {"architecture": plain.as_dict()}
        with pytest.raises(BadModel, match=r"weights\[1\] must be \(3, 1\)"):
            from_message(WeightsMessage.model_validate(message))


class TestAMessageWhoseShapesDoNotFit:
    ARCHITECTURE = Architecture(2, (3,), 1)

    def refused(self, **changes: Any) -> str:
        good = to_message(np.zeros(self.ARCHITECTURE.parameter_count), self.ARCHITECTURE)
        with pytest.raises(BadModel) as refused:
            from_message(WeightsMessage.model_validate(good | changes))
        return refused.value.detail

    def test_names_the_layer_of_wrong_weights(self) -> None:
        wide, narrow = [[0.0] * 3] * 2, [[0.0]] * 3
        assert "weights[1] must be (3, 1)" in self.refused(weights=[wide, [[0.0]] * 2])
        assert "weights[0] must be (2, 3)" in self.refused(weights=[[[0.0] * 4] * 2, narrow])
        assert "weights[0] must be (2, 3)" in self.refused(weights=[[[0.0] * 3, [0.0] * 2], narrow])
        assert "weights[0] must be (2, 3)" in self.refused(weights=[[], narrow])

    def test_names_the_layer_of_wrong_biases(self) -> None:
        assert "biases[0] must be (3,)" in self.refused(biases=[[0.0] * 2, [0.0]])
        assert "biases[1] must be (1,)" in self.refused(biases=[[0.0] * 3, []])

    def test_says_how_many_layers_there_should_be(self) -> None:
        assert "2-3-1 has 2 layers" in self.refused(weights=[], biases=[])
        assert "2-3-1 has 2 layers" in self.refused(biases=[[0.0] * 3])

    def test_does_not_take_other_sizes_for_its_own(self) -> None:
        self.refused(architecture={"input_size": 3, "hidden_sizes": [3], "output_size": 1})
        self.refused(architecture={"input_size": 2, "hidden_sizes": [3, 3], "output_size": 1})
