"""The network is its arithmetic: its gradient is the slope of its loss, and its parameters travel unharmed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from flead.errors import BadModel
from flead.messages import WeightsMessage
from flead.network import Architecture, Vector, Workspace, from_message, initial, layers, to_message

architectures = st.builds(
    Architecture, st.integers(1, 5), st.lists(st.integers(1, 6), max_size=3).map(tuple), st.integers(1, 4)
)
seeds = st.integers(0, 2**32)


def parameters(architecture: Architecture, rng: np.random.Generator) -> Vector:
    return rng.normal(0.0, 0.7, architecture.parameter_count)


def travelled(theta: Vector, architecture: Architecture) -> WeightsMessage:
    return WeightsMessage.model_validate_json(json.dumps(to_message(theta, architecture)))


@settings(deadline=None, max_examples=60)
@given(architectures, seeds)
def test_backward_is_the_numerical_gradient(architecture: Architecture, seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta, x = parameters(architecture, rng), rng.normal(0.0, 1.0, architecture.input_size)
    slope, step = rng.normal(0.0, 1.0, architecture.output_size), 1e-6

    def loss(at: Vector) -> float:
        return float(Workspace(at, architecture).forward(x) @ slope)

    numerical = [(loss(theta + step * e) - loss(theta - step * e)) / (2 * step) for e in np.eye(theta.size)]
    work = Workspace(theta, architecture)
    work.forward(x)
    assert_allclose(work.backward(slope), numerical, rtol=1e-5, atol=1e-7)


@given(architectures, seeds)
def test_forward_is_tanh_layers_and_a_linear_one(architecture: Architecture, seed: int) -> None:
    rng = np.random.default_rng(seed)
    theta, x = parameters(architecture, rng), rng.normal(0.0, 1.0, architecture.input_size)
    message, h = to_message(theta, architecture), x
    for depth, (weights, biases) in enumerate(zip(message["weights"], message["biases"], strict=True)):
        h = h @ np.array(weights) + np.array(biases)
        h = np.tanh(h) if depth < len(architecture.hidden_sizes) else h
    assert_allclose(Workspace(theta, architecture).forward(x), h, rtol=1e-12, atol=1e-12)


def test_a_workspace_always_uses_the_present_parameters() -> None:
    architecture, rng = Architecture(2, (3,), 1), np.random.default_rng(1)
    theta, x = parameters(architecture, rng), np.array([0.5, -1.0])
    work = Workspace(theta, architecture)
    work.forward(x)
    theta[:] = parameters(architecture, rng)
    assert_array_equal(work.forward(x), Workspace(theta, architecture).forward(x))


def test_layers_are_views() -> None:
    architecture = Architecture(2, (3,), 1)
    theta = np.zeros(architecture.parameter_count)
    for number, layer in enumerate(layers(theta, architecture), start=1):
        layer[:] = number
    assert_array_equal(theta, [1.0] * 9 + [2.0] * 4)


@given(architectures, seeds)
def test_starting_parameters_follow_from_the_generator_alone(architecture: Architecture, seed: int) -> None:
    one, again, other = (initial(architecture, np.random.default_rng(s)) for s in (seed, seed, seed + 1))
    assert_array_equal(one, again)
    assert not np.array_equal(one, other)


@given(architectures, seeds)
def test_starting_parameters_predict_next_to_nothing(architecture: Architecture, seed: int) -> None:
    theta = initial(architecture, np.random.default_rng(seed))
    views = layers(theta, architecture)
    assert all(not layer[-1].any() for layer in views)
    for layer, scale in zip(views, [1.0] * (len(views) - 1) + [0.1], strict=True):
        n_in, n_out = layer.shape[0] - 1, layer.shape[1]
        assert np.abs(layer).max() <= scale * np.sqrt(6.0 / (n_in + n_out))


@given(architectures, seeds)
def test_parameters_travel_to_the_last_bit(architecture: Architecture, seed: int) -> None:
    theta = parameters(architecture, np.random.default_rng(seed))
    theta[0] = 5e-324
    arrived, sizes = from_message(travelled(theta, architecture))
    assert sizes == architecture
    assert_array_equal(arrived, theta)


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
