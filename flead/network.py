"""A small multilayer perceptron whose parameters are one flat vector.

One vector makes everything around the network plain: averaging, mixing, norms, state and messages are one operation
on one array; the layers are views into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flead.errors import BadModel
from flead.messages import ArchitectureMessage, WeightsMessage

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Architecture:
    """The sizes of a network.

    >>> Architecture(4, (16, 8), 4).parameter_count
    252
    """

    input_size: int
    hidden_sizes: tuple[int, ...]
    output_size: int

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Every layer's width, inputs first."""
        return (self.input_size, *self.hidden_sizes, self.output_size)

    @cached_property
    def parameter_count(self) -> int:
        """How many weights and biases there are."""
        return sum((n_in + 1) * n_out for n_in, n_out in zip(self.sizes, self.sizes[1:], strict=False))

    @classmethod
    def from_message(cls, message: ArchitectureMessage) -> Architecture:
        """Read the sizes as they travel."""
        return cls(message.input_size, tuple(message.hidden_sizes), message.output_size)

    def as_dict(self) -> dict[str, Any]:
        """The sizes as they travel."""
        return {
            "input_size": self.input_size,
            "hidden_sizes": list(self.hidden_sizes),
            "output_size": self.output_size,
        }

    def __str__(self) -> str:
        return "-".join(map(str, self.sizes))


def layers(theta: Vector, architecture: Architecture) -> list[Vector]:
    """The layers of a parameter vector, as views: writing to them writes to `theta`.

    Parameters
    ----------
    theta:
        (parameter_count,)

    Returns
    -------
    list of (n_in + 1, n_out): the weights, and in the last row the biases

    >>> [layer.shape for layer in layers(np.zeros(13), Architecture(2, (3,), 1))]
    [(3, 3), (4, 1)]
    """
    views, start = [], 0
    for n_in, n_out in zip(architecture.sizes, architecture.sizes[1:], strict=False):
        end = start + (n_in + 1) * n_out
        views.append(theta[start:end].reshape(n_in + 1, n_out))
        start = end
    return views


def initial(architecture: Architecture, rng: np.random.Generator) -> Vector:
    """Starting parameters, (parameter_count,): Glorot-uniform weights, zero biases, and a last layer near zero.

    With a last layer near zero the network starts by predicting no change, which is the forecast to beat.

    Source: Glorot and Bengio, 2010, "Understanding the difficulty of training deep feedforward neural networks".
    """
    theta = np.zeros(architecture.parameter_count)
    views = layers(theta, architecture)
    for layer in views:
        n_in, n_out = layer.shape[0] - 1, layer.shape[1]
        limit = np.sqrt(6.0 / (n_in + n_out))
        layer[:-1] = rng.uniform(-limit, limit, (n_in, n_out))
    views[-1] *= 0.1
    return theta


class Workspace:
    """Room for one forward and backward pass, made once: the passes then allocate next to nothing.

    Parameters
    ----------
    theta:
        (parameter_count,); not copied, so that a pass always uses its present values

    >>> work = Workspace(np.array([2.0, 1.0]), Architecture(1, (), 1))
    >>> work.forward(np.array([3.0]))
    array([7.])
    >>> work.backward(np.array([1.0]))
    array([3., 1.])
    """

    __slots__ = ("_backward", "_forward", "_gradient", "_last", "_with_bias", "input", "output")

    def __init__(self, theta: Vector, architecture: Architecture) -> None:
        views = layers(theta, architecture)
        self._gradient = np.empty(architecture.parameter_count)
        self._with_bias = [np.ones(size + 1) for size in architecture.sizes[:-1]]  # a layer's inputs, then 1
        inputs = [values[:-1] for values in self._with_bias]
        self.input = inputs[0]
        self.output = np.empty(architecture.output_size)
        # Every view is made once: at these sizes making one costs as much as the arithmetic.
        self._forward = list(zip(self._with_bias, views, inputs[1:], strict=False))
        columns = [values[:, None] for values in self._with_bias]
        weights = [view[:-1] for view in views]
        gradients = layers(self._gradient, architecture)
        self._backward = list(zip(columns, gradients, weights, inputs, strict=True))[::-1]
        self._last = views[-1]

    def forward(self, x: Vector) -> Vector:
        """The network's output for one input: (input_size,) to (output_size,); overwritten by the next pass."""
        self.input[:] = x
        for values, layer, activation in self._forward:
            np.tanh(values.dot(layer), activation)
        return self._with_bias[-1].dot(self._last, self.output)

    def backward(self, slope: Vector) -> Vector:
        """The gradient of the loss for the last forward pass, (parameter_count,); overwritten by the next pass.

        Parameters
        ----------
        slope:
            (output_size,), the derivative of the loss by the network's output
        """
        for column, gradient, weights, inputs in self._backward:
            np.multiply(column, slope, gradient)
            if inputs is not self.input:
                slope = weights.dot(slope) * (1.0 - inputs * inputs)
        return self._gradient


def to_message(theta: Vector, architecture: Architecture) -> dict[str, Any]:
    """The parameters as they travel: lists of numbers by layer, and the architecture."""
    views = layers(theta, architecture)
    return {
        "weights": [layer[:-1].tolist() for layer in views],
        "biases": [layer[-1].tolist() for layer in views],
        "architecture": architecture.as_dict(),
    }


def from_message(message: WeightsMessage) -> tuple[Vector, Architecture]:
    """Read parameters as they travel.

    Raises
    ------
    BadModel
        naming the layer whose shape does not fit the architecture, or saying that a number is not finite

    >>> tiny = {"weights": [[[1.0], [2.0]]], "biases": [[0.5]],
    ...         "architecture": {"input_size": 2, "hidden_sizes": [], "output_size": 1}}
    >>> from_message(WeightsMessage.model_validate(tiny))[0]
    array([1. , 2. , 0.5])
    """
    architecture = Architecture.from_message(message.architecture)
    shapes = list(zip(architecture.sizes, architecture.sizes[1:], strict=False))
    if not len(message.weights) == len(message.biases) == len(shapes):
        raise BadModel(
            f"architecture {architecture} has {len(shapes)} layers, "
            f"but there are {len(message.weights)} weight matrices and {len(message.biases)} bias vectors"
        )
    parts: list[Vector] = []
    for depth, (shape, rows, biases) in enumerate(zip(shapes, message.weights, message.biases, strict=True)):
        if len(rows) != shape[0] or any(len(row) != shape[1] for row in rows):
            widths = sorted({len(row) for row in rows})
            raise BadModel(f"weights[{depth}] must be {shape}, it has {len(rows)} rows of {widths} numbers")
        if len(biases) != shape[1]:
            raise BadModel(f"biases[{depth}] must be ({shape[1]},), it has {len(biases)} numbers")
        parts += [np.asarray(rows, dtype=np.float64).ravel(), np.asarray(biases, dtype=np.float64)]
    theta = np.concatenate(parts)
    if not np.isfinite(theta).all():
        raise BadModel("a weight is not a finite number")
    return theta, architecture
