"""Training a network on many examples at once: what offline federation does between two rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi

import numpy as np
from numpy.typing import NDArray

from flead import network
from flead.features import BINS, DAY
from flead.federation import FedAvg, FedProx, Rule, Scaffold, Updates
from flead.network import ADAM_BETA1, ADAM_BETA2, Architecture, Vector
from flead.routines import NEAREST

HUBER = 5.0
"""Errors beyond it pull no harder (Huber, 1964)."""
LONGEST_GRADIENT = 10.0


@dataclass(frozen=True)
class Examples:
    """What one device can be taught, m examples.

    Attributes
    ----------
    features: (m, n_features)
    targets: (m, n_outputs), 0 where `weights` is 0
    weights: (m, n_outputs), 0 where the target is not known
    personal: (m, p) what only personal parameters see, see `gradient`
    """

    features: Vector
    targets: Vector
    weights: Vector
    personal: Vector | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: NDArray[np.int64] | slice) -> Examples:
        personal = None if self.personal is None else self.personal[rows]
        return Examples(self.features[rows], self.targets[rows], self.weights[rows], personal)

    @staticmethod
    def together(parts: list[Examples]) -> Examples:
        """All of several devices, without what is personal."""
        return Examples(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("features", "targets", "weights")))


def times_of_day(times: Vector) -> Vector:
    """How near each time (s) is to each half hour of the day, (m, BINS), each column's root mean square 1.

    >>> times_of_day(np.array([0.0])).round(2)[0, [0, 1, 2, 24, 47]]
    array([5.2 , 3.16, 0.7 , 0.  , 3.16])
    """
    away = (times[:, None] / DAY * BINS - np.arange(BINS) + BINS / 2) % BINS - BINS / 2
    near: Vector = np.exp(-0.5 * away * away) * NEAREST
    return near


def gradient(theta: Vector, architecture: Architecture, batch: Examples) -> Vector:
    """The gradient of the mean Huber loss over a batch, as long as theta.

    Where the batch has personal inputs, theta may go on behind the network's parameters: with a (p, k) linear map from
    those inputs to the last k outputs. It is no part of the network and is never federated.
    """
    shared, x = architecture.parameter_count, batch.features
    views = network.layers(theta[:shared], architecture)
    inputs = [x]
    for layer in views[:-1]:
        inputs.append(np.tanh(inputs[-1] @ layer[:-1] + layer[-1]))
    hidden = inputs[-1].shape[1]
    skips = architecture.skip and bool(architecture.hidden_sizes)
    if skips:
        inputs[-1] = np.concatenate((inputs[-1], x), axis=1)
    wrong = inputs[-1] @ views[-1][:-1] + views[-1][-1] - batch.targets
    if batch.personal is not None:
        own = theta[shared:].reshape(batch.personal.shape[1], -1)
        wrong[:, architecture.output_size - own.shape[1] :] += batch.personal @ own
    slope = np.clip(wrong, -HUBER, HUBER) * batch.weights / len(batch)
    found = np.empty(theta.size)
    if batch.personal is not None:
        found[shared:] = (batch.personal.T @ slope[:, architecture.output_size - own.shape[1] :]).ravel()
    gradients = network.layers(found[:shared], architecture)
    for depth in range(len(views) - 1, -1, -1):
        gradients[depth][:-1] = inputs[depth].T @ slope
        gradients[depth][-1] = slope.sum(axis=0)
        if depth:
            below = inputs[depth][:, :hidden] if skips and depth == len(views) - 1 else inputs[depth]
            weights = views[depth][: below.shape[1]]
            slope = (slope @ weights.T) * (1.0 - below * below)
    return found


def _shorten(g: Vector) -> None:
    norm = float(np.sqrt(g @ g))
    if norm > LONGEST_GRADIENT:
        g *= LONGEST_GRADIENT / norm


def train(
    theta: Vector, architecture: Architecture, examples: Examples, rng: np.random.Generator, *, epochs: int,
    rate: float, batch: int = 32, average: float = 0.0, cosine: bool = False, proximal: float = 0.0,
) -> Vector:  # fmt: skip
    """Train by Adam on shuffled batches; gives new parameters, as many as it was given.

    Parameters
    ----------
    theta:
        (parameter_count,), with or without personal parameters behind (see `gradient`)
    rate:
        length of the first steps; with `cosine` it falls to next to nothing over the epochs (Loshchilov and Hutter,
        2017)
    average:
        share of each step's parameters in the running mean that is given back; 0 gives the last ones (Polyak and
        Juditsky, 1992)
    proximal:
        mu: the loss has mu / 2 of the squared distance from where training began beside it (FedProx; Li et al., 2020,
        "Federated Optimization in Heterogeneous Networks")

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(512, 1))
    >>> line = Examples(x, 2.0 * x, np.ones((512, 1)))
    >>> train(np.zeros(2), Architecture(1, (), 1), line, rng, epochs=20, rate=0.05).round(1)
    array([2., 0.])
    """
    begun, theta, mean = theta, theta.copy(), theta.copy()
    first, second, step = np.zeros(theta.size), np.zeros(theta.size), 0
    for epoch in range(epochs):
        now = rate * (0.5 * (1.0 + cos(pi * epoch / epochs)) + 0.02) if cosine else rate
        order = rng.permutation(len(examples))
        for start in range(0, len(order), batch):
            g = gradient(theta, architecture, examples[order[start : start + batch]])
            if proximal:
                g += proximal * (theta - begun)
            _shorten(g)
            step += 1
            first += (1.0 - ADAM_BETA1) * (g - first)
            second += (1.0 - ADAM_BETA2) * (g * g - second)
            scaled = now * np.sqrt(1.0 - ADAM_BETA2**step) / (1.0 - ADAM_BETA1**step)
            theta -= scaled * first / (np.sqrt(second) + 1e-8)
            if average:
                mean += average * (theta - mean)
    return mean if average and epochs else theta


@dataclass(frozen=True)
class Federation:
    """How a global model is trained offline."""

    rounds: int = 48
    share: float = 0.5
    """Of the devices that take part in a round."""
    rate: float = 0.002
    averaged: int = 8
    """The global model is the mean of the last so many rounds'."""


Tamper = Callable[[int, NDArray[np.int64], Vector, Vector], Vector]
"""What a simulated attack does: from the round, counted from 1, the picked devices, (k,), by their place in the fleet,
what they trained, (k, p), and the global model that they began from, (p,), to what arrives, (k, p)."""

_FEDAVG = FedAvg()


def descend(
    theta: Vector, architecture: Architecture, examples: Examples, rng: np.random.Generator, *, rate: float,
    correction: Vector, batch: int = 32,
) -> tuple[Vector, Vector]:  # fmt: skip
    """One epoch of plain gradient descent, each step's gradient corrected: what a device does under SCAFFOLD.

    Parameters
    ----------
    correction:
        (parameter_count,), the fleet's control variate less the device's own, c - c_i

    Returns
    -------
    the new parameters, and the mean gradient of the steps before its correction: the device's next control variate

    Source: Karimireddy et al., 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", algorithm 1,
    option II: c_i - c + (x - y_i) / (steps x rate).

    >>> line = Examples(np.ones((4, 1)), np.full((4, 1), 3.0), np.ones((4, 1)))
    >>> descend(np.zeros(2), Architecture(1, (), 1), line, np.random.default_rng(0), rate=0.1, correction=np.zeros(2))
    (array([0.3, 0.3]), array([-3., -3.]))
    """
    begun, theta = theta, theta.copy()
    order = rng.permutation(len(examples))
    starts = range(0, len(order), batch)
    for start in starts:
        g = gradient(theta, architecture, examples[order[start : start + batch]])
        _shorten(g)
        theta -= rate * (g + correction)
    return theta, (begun - theta) / (len(starts) * rate) - correction


def federate(
    theta: Vector, architecture: Architecture, devices: list[Examples], rng: np.random.Generator, plan: Federation,
    on_round: Callable[[int, Vector], None] = lambda _round, _theta: None, *,
    strategy: Rule = _FEDAVG, proximal: float = 0.0, tamper: Tamper | None = None,
) -> Vector:  # fmt: skip
    """Each round, some devices train an epoch from the global model, and what the strategy makes of it is the next one.

    Parameters
    ----------
    strategy:
        how a round merges; with `FedProx` its `proximal` holds, with `Scaffold` devices take corrected steps of its
        `local_rate` instead of Adam's, and its `participation` is the share that a round really hears
    proximal:
        mu of FedProx for any strategy but `Scaffold`, see `train`; 0: the strategy's own
    tamper:
        an attack on what arrives

    Source: McMahan et al., 2017, "Communication-efficient learning of deep networks from decentralized data".
    """
    last: list[Vector] = []
    state: dict[str, Vector] = {}
    fleet = np.array([place for place, device in enumerate(devices) if len(device)], dtype=np.int64)
    heard = max(1, round(plan.share * len(fleet)))
    if isinstance(strategy, FedProx):
        proximal = proximal or strategy.proximal
    if isinstance(strategy, Scaffold):
        strategy = strategy.model_copy(update={"participation": heard / len(fleet)})
    own = np.zeros((len(devices) if isinstance(strategy, Scaffold) else 0, theta.size))
    for number in range(plan.rounds):
        picked = fleet[rng.permutation(len(fleet))[:heard]]
        asked = [devices[i] for i in picked]
        fall = 0.5 * (1.0 + cos(pi * number / plan.rounds)) + 0.02
        controls = None
        if isinstance(strategy, Scaffold):
            corrections = state.get("control", np.zeros_like(theta)) - own[picked]
            trained, found = _descend_all(theta, architecture, asked, rng, fall * strategy.local_rate, corrections)
            controls, own[picked] = found - own[picked], found
        else:
            rate = fall * plan.rate
            trained = np.stack(
                [train(theta, architecture, e, rng, epochs=1, rate=rate, proximal=proximal) for e in asked]
            )
        if tamper:
            trained = tamper(number + 1, picked, trained, theta)
        samples = np.array([len(examples) for examples in asked], dtype=np.float64)
        merged = strategy.merge(Updates(trained, samples, theta, controls=controls), state)
        theta, state = merged.theta, merged.state
        last = [*last[1 - plan.averaged :], theta] if plan.averaged > 1 else [theta]
        on_round(number + 1, theta)
    mean: Vector = np.mean(last, axis=0)
    return mean


def _descend_all(
    theta: Vector, architecture: Architecture, asked: list[Examples], rng: np.random.Generator, rate: float,
    corrections: Vector,
) -> tuple[Vector, Vector]:  # fmt: skip
    """What `descend` gives for each device, stacked."""
    each = [
        descend(theta, architecture, examples, rng, rate=rate, correction=correction)
        for examples, correction in zip(asked, corrections, strict=True)
    ]
    return np.stack([trained for trained, _ in each]), np.stack([control for _, control in each])
