"""A small multilayer perceptron whose parameters are one flat vector.

One vector makes everything around the network plain: averaging, mixing, norms, state and messages are one operation
on one array; the layers are views into it.
"""

from __future__ import annotations

import zlib
from array import array
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flead.compilation import Floats, Integers, kernel
from flead.errors import BadModel
from flead.messages import ArchitectureMessage, WeightsMessage

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Architecture:
    """The sizes of a network; with `skip` the last layer sees the inputs beside the last hidden layer.

    >>> Architecture(4, (16, 8), 4).parameter_count
    252
    >>> Architecture(4, (16, 8), 4, skip=True).shapes
    ((4, 16), (16, 8), (12, 4))
    """

    input_size: int
    hidden_sizes: tuple[int, ...]
    output_size: int
    skip: bool = False

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Every layer's width, inputs first."""
        return (self.input_size, *self.hidden_sizes, self.output_size)

    @cached_property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Every weight matrix's inputs and outputs."""
        pairs = list(zip(self.sizes, self.sizes[1:], strict=False))
        if self.skip and self.hidden_sizes:
            pairs[-1] = (pairs[-1][0] + self.input_size, self.output_size)
        return tuple(pairs)

    @cached_property
    def parameter_count(self) -> int:
        """How many weights and biases there are."""
        return sum((n_in + 1) * n_out for n_in, n_out in self.shapes)

    @staticmethod
    def from_message(message: ArchitectureMessage) -> Architecture:
        """Read the sizes as they travel."""
        return _known(message.input_size, tuple(message.hidden_sizes), message.output_size, message.skip)

    def as_dict(self) -> dict[str, Any]:
        """The sizes as they travel."""
        sizes: dict[str, Any] = {
            "input_size": self.input_size,
            "hidden_sizes": list(self.hidden_sizes),
            "output_size": self.output_size,
        }
        return sizes | {"skip": True} if self.skip else sizes

    def __str__(self) -> str:
        return "-".join(map(str, self.sizes)) + ("+skip" if self.skip else "")


_known = lru_cache(maxsize=256)(Architecture)
"""An architecture is worked out once, not for each message."""


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
    for n_in, n_out in architecture.shapes:
        end = start + (n_in + 1) * n_out
        views.append(theta[start:end].reshape(n_in + 1, n_out))
        start = end
    return views


def initial(architecture: Architecture, rng: np.random.Generator) -> Vector:
    """Starting parameters, (parameter_count,): Glorot-uniform weights, zero biases, and a last layer of zeros.

    With a last layer of zeros the network starts by predicting no change, which is the forecast to beat.

    Source: Glorot and Bengio, 2010, "Understanding the difficulty of training deep feedforward neural networks".
    """
    theta = np.zeros(architecture.parameter_count)
    views = layers(theta, architecture)
    for layer in views[:-1]:
        n_in, n_out = layer.shape[0] - 1, layer.shape[1]
        limit = np.sqrt(6.0 / (n_in + n_out))
        layer[:-1] = rng.uniform(-limit, limit, (n_in, n_out))
    return theta


def initial_of_cohort(architecture: Architecture, cohort: str, seed: int) -> Vector:
    """Starting parameters that every device of a cohort shares: averages of other starts mean little."""
    return initial(architecture, np.random.default_rng([seed, zlib.crc32(cohort.encode())]))


def forward(theta: Vector, architecture: Architecture, x: Vector) -> Vector:
    """The network's outputs for many inputs, (m, input_size) to (m, output_size): tanh layers and a linear one.

    >>> forward(np.array([2.0, 1.0]), Architecture(1, (), 1), np.array([[3.0], [4.0]]))
    array([[7.],
           [9.]])
    """
    views, h = layers(theta, architecture), x
    for layer in views[:-1]:
        h = np.tanh(h @ layer[:-1] + layer[-1])
    if architecture.skip and architecture.hidden_sizes:
        h = np.concatenate((h, x), axis=-1)
    last: Vector = h @ views[-1][:-1] + views[-1][-1]
    return last


@kernel
def activate(theta: Floats, sizes: Integers, skip: bool, work: Floats) -> int:  # noqa: FBT001
    """One forward pass in place.

    Parameters
    ----------
    sizes:
        every layer's width, inputs first
    work:
        (sum of sizes,): the inputs come in its first places, each layer's values are written behind them

    Returns
    -------
    where the outputs begin
    """
    at, weight, last = 0, 0, sizes.size - 1
    for depth in range(1, sizes.size):
        n_in, n_out = sizes[depth - 1], sizes[depth]
        n_also = sizes[0] if skip and depth == last and depth > 1 else 0
        rows, out = n_in + n_also, at + n_in
        layer = theta[weight : weight + (rows + 1) * n_out].reshape((rows + 1, n_out))
        into = work[out : out + n_out]
        for j in range(n_out):
            into[j] = layer[rows, j]
        _add_products(layer[:n_in], work[at:out], into)
        _add_products(layer[n_in:rows], work[:n_also], into)
        if depth < last:
            for j in range(n_out):
                into[j] = _tanh(into[j])
        at, weight = out, weight + (rows + 1) * n_out
    return at


@kernel
def _add_products(weights: Floats, x: Floats, into: Floats) -> None:
    """Add x times a matrix (n_in, n_out): four rows at a time, each read in its order, as vectors want it."""
    n_in, n_out = weights.shape
    whole = n_in - n_in % 4
    for i in range(0, whole, 4):
        a, b, c, d = x[i], x[i + 1], x[i + 2], x[i + 3]
        for j in range(n_out):
            into[j] += a * weights[i, j] + b * weights[i + 1, j] + c * weights[i + 2, j] + d * weights[i + 3, j]
    for i in range(whole, n_in):
        a = x[i]
        for j in range(n_out):
            into[j] += a * weights[i, j]


@kernel
def _tanh(x: float) -> float:
    """To the last few bits what `math.tanh` gives, in arithmetic that vectors do: a fifth of the network's time.

    Lambert's continued fraction at x / 8, then tanh 2y = 2 tanh y / (1 + tanh² y) three times, on the fraction n / d.
    """
    x = 20.0 if x > 20.0 else (-20.0 if x < -20.0 else x)  # it is 1 there; NaN stays
    y = 0.125 * x
    z = y * y
    n = y * (135_135.0 + z * (17_325.0 + z * (378.0 + z)))
    d = 135_135.0 + z * (62_370.0 + z * (3_150.0 + z * 28.0))
    n, d = 2.0 * n * d, d * d + n * n
    n, d = 2.0 * n * d, d * d + n * n
    return 2.0 * n * d / (d * d + n * n)


@kernel
def descend(
    theta: Floats, sizes: Integers, skip: bool, work: Floats, slopes: Floats, moments: Floats, optimiser: int,  # noqa: FBT001
    rate: float, longest: float,
) -> None:  # fmt: skip
    """One step down the gradient of the loss, for the last forward pass.

    Parameters
    ----------
    work:
        (sum of sizes,): what `activate` left
    slopes:
        (sum of sizes,): in its last places the derivatives of the loss by the outputs; the others are overwritten
    moments:
        what the optimiser remembers: nothing, (P,) for momentum, (2 P + 1,) for Adam
    optimiser:
        SGD, MOMENTUM or ADAM
    longest:
        gradients are cut to this Euclidean length (Pascanu et al., 2013)

    The gradient is never stored: each layer's is the outer product of its inputs and its slopes, and so is its norm.
    """
    last = sizes.size - 1
    at, weight, square = 0, theta.size, 0.0
    for depth in range(last):
        at += sizes[depth]
    for depth in range(last, 0, -1):
        n_in, n_out = sizes[depth - 1], sizes[depth]
        n_also = sizes[0] if skip and depth == last and depth > 1 else 0
        weight -= (n_in + n_also + 1) * n_out
        below = at - n_in
        own, values, under = slopes[at : at + n_out], work[below:at], slopes[below:at]
        x2, d2 = 1.0, 0.0
        for j in range(n_out):
            d2 += own[j] * own[j]
        for i in range(n_in):
            x2 += values[i] * values[i]
        if depth > 1:
            layer = theta[weight : weight + n_in * n_out].reshape((n_in, n_out))
            for i in range(n_in):
                s = 0.0
                for j in range(n_out):
                    s += layer[i, j] * own[j]
                under[i] = s * (1.0 - values[i] * values[i])
        for i in range(n_also):
            x2 += work[i] * work[i]
        square += x2 * d2
        at = below
    norm = sqrt(square)
    if norm == 0.0:
        return
    scale = longest / norm if norm > longest else 1.0
    if optimiser == ADAM:
        moments[moments.size - 1] += 1.0
        count = moments[moments.size - 1]
        rate *= sqrt(1.0 - ADAM_BETA2**count) / (1.0 - ADAM_BETA1**count)
    at = weight = 0
    for depth in range(1, sizes.size):
        n_in, n_out = sizes[depth - 1], sizes[depth]
        n_also = sizes[0] if skip and depth == last and depth > 1 else 0
        rows, out = n_in + n_also, at + n_in
        own = slopes[out : out + n_out]
        if optimiser == SGD:
            layer = theta[weight : weight + (rows + 1) * n_out].reshape((rows + 1, n_out))
            step = rate * scale
            _subtract_outer(layer[:n_in], work[at:out], own, step)
            _subtract_outer(layer[n_in:rows], work[:n_also], own, step)
            for j in range(n_out):
                layer[rows, j] -= step * own[j]
            weight += (rows + 1) * n_out
        else:
            for i in range(rows + 1):
                x = work[at + i] if i < n_in else (work[i - n_in] if i < rows else 1.0)
                _update(theta, moments, weight, own, scale * x, optimiser, rate)
                weight += n_out
        at = out


@kernel
def _subtract_outer(weights: Floats, x: Floats, slopes: Floats, step: float) -> None:
    """Step the weights (n_in, n_out) that lead from x, without what an optimiser remembers."""
    n_in, n_out = weights.shape
    for i in range(n_in):
        a = step * x[i]
        for j in range(n_out):
            weights[i, j] -= a * slopes[j]


@kernel
def _update(
    theta: Floats, moments: Floats, at: int, slopes: Floats, x: float, optimiser: int, rate: float
) -> None:  # fmt: skip
    """Step the weights that lead from one value to every value of the next layer."""
    n_out = slopes.size
    if optimiser == MOMENTUM:
        for j in range(n_out):
            moments[at + j] = MOMENTUM_BETA * moments[at + j] + x * slopes[j]
            theta[at + j] -= rate * moments[at + j]
    else:
        second = theta.size + at
        for j in range(n_out):
            g = x * slopes[j]
            moments[at + j] += (1.0 - ADAM_BETA1) * (g - moments[at + j])
            moments[second + j] += (1.0 - ADAM_BETA2) * (g * g - moments[second + j])
            theta[at + j] -= rate * moments[at + j] / (sqrt(moments[second + j]) + 1e-8)


SGD, MOMENTUM, ADAM = 0, 1, 2
MOMENTUM_BETA = 0.9
ADAM_BETA1, ADAM_BETA2 = 0.9, 0.999
"""Kingma and Ba, 2015, "Adam: a method for stochastic optimization"."""


def moments_size(optimiser: int, parameter_count: int) -> int:
    """How many numbers an optimiser remembers."""
    return {SGD: 0, MOMENTUM: parameter_count, ADAM: 2 * parameter_count + 1}[optimiser]


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
    return flattened(architecture, message.weights, message.biases), architecture


def flattened(architecture: Architecture, matrices: list[list[list[float]]], vectors: list[list[float]]) -> Vector:
    """Lists of numbers as one vector, (parameter_count,).

    Parameters
    ----------
    matrices, vectors:
        layer by layer its weights, (n_in, n_out), and its biases, (n_out,)

    Raises
    ------
    BadModel
        naming the layer whose shape does not fit the architecture, or saying that a number is not finite
    TypeError
        where they are no lists of numbers

    >>> flattened(Architecture(2, (), 1), [[[1.0], [2.0]]], [[0.5]])
    array([1. , 2. , 0.5])
    """
    shapes = architecture.shapes
    if not len(matrices) == len(vectors) == len(shapes):
        raise BadModel(
            f"architecture {architecture} has {len(shapes)} layers, "
            f"but there are {len(matrices)} weight matrices and {len(vectors)} bias vectors"
        )
    numbers = array("d")  # takes a list of floats in half the time that NumPy does
    for depth, (shape, rows, biases) in enumerate(zip(shapes, matrices, vectors, strict=True)):
        if (len(rows), widths := set(map(len, rows))) != (shape[0], {shape[1]}):
            raise BadModel(f"weights[{depth}] must be {shape}, it has {len(rows)} rows of {sorted(widths)} numbers")
        if len(biases) != shape[1]:
            raise BadModel(f"biases[{depth}] must be ({shape[1]},), it has {len(biases)} numbers")
        for row in (*rows, biases):
            numbers.fromlist(row)
    theta = np.frombuffer(numbers)
    if not np.isfinite(theta).all():
        raise BadModel("a weight is not a finite number")
    return theta
