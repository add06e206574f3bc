"""What malicious devices do, as pure functions: they learn nonsense, or send something else than they learned.

An `Attack` has two hooks: `teach` turns a device's examples into those that it trains on, and `send` turns what the
malicious devices of a round have trained into what they send. Both take a random generator and change no argument.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from flead.network import Vector
from flead.training import Examples

TIMES = 5.0
"""How many times as long as an honest one a reversed update is."""
LOUDNESS = 100.0
"""How many times an honest update's root mean square the noise is."""
SHIFT = 3.0
"""What is added to every target, in the model's units: typical changes, and typical swings for the horizon."""
TRIGGER = np.array((4.0, -4.0, 4.0, -4.0, 4.0, -4.0))
"""A zigzag of the first sensor's last values, which hardly any sensor shows, in the model's units."""
PUSH = 5.0
"""How far the trigger is to move the forecast of the first sensor at the horizon, in typical swings."""


@dataclass(frozen=True)
class Crowd:
    """What the malicious devices of a round know: they work together, and know no honest device's update.

    Attributes
    ----------
    trained: (m, p) what each has trained
    theta: (p,) the global model that they began from
    devices: all devices of the round, honest ones too
    """

    trained: Vector
    theta: Vector
    devices: int


def as_it_is(examples: Examples, _rng: np.random.Generator) -> Examples:
    """Teach what is true."""
    return examples


def as_trained(crowd: Crowd, _rng: np.random.Generator) -> Vector:
    """Send what was trained."""
    return crowd.trained


@dataclass(frozen=True)
class Attack:
    """What malicious devices do: `teach` is done once, before the first round, `send` in every round."""

    name: str
    teach: Callable[[Examples, np.random.Generator], Examples] = as_it_is
    send: Callable[[Crowd, np.random.Generator], Vector] = as_trained


def reverse(crowd: Crowd, _rng: np.random.Generator) -> Vector:
    """Sign flip: each goes the other way, and farther.

    Source: Li et al., 2019, "RSA: Byzantine-robust stochastic aggregation methods for distributed learning".

    >>> reverse(Crowd(np.array([[2.0]]), np.array([1.0]), 4), np.random.default_rng(0))
    array([[-4.]])
    """
    sent: Vector = crowd.theta - TIMES * (crowd.trained - crowd.theta)
    return sent


def replace_model(crowd: Crowd, _rng: np.random.Generator) -> Vector:
    """Scaling: each update is so long that the plain mean of the round would be the malicious devices' own model.

    Source: Bagdasaryan et al., 2020, "How to backdoor federated learning" (model replacement).

    >>> sent = replace_model(Crowd(np.array([[3.0]]), np.array([1.0]), 4), np.random.default_rng(0))
    >>> sent, (sent[0] + 3 * 1.0) / 4
    (array([[9.]]), array([3.]))
    """
    sent: Vector = crowd.theta + crowd.devices / len(crowd.trained) * (crowd.trained - crowd.theta)
    return sent


def be_noisy(crowd: Crowd, rng: np.random.Generator) -> Vector:
    """Gaussian noise on top of what was trained.

    Source: Blanchard et al., 2017, "Machine learning with adversaries: Byzantine tolerant gradient descent".
    """
    size = LOUDNESS * np.sqrt(np.mean((crowd.trained - crowd.theta) ** 2, axis=1, keepdims=True))
    sent: Vector = crowd.trained + size * rng.standard_normal(crowd.trained.shape)
    return sent


def be_a_little_off(crowd: Crowd, _rng: np.random.Generator) -> Vector:
    """A little is enough: all send the same, off the mean in every parameter by as much as still passes for honest.

    Source: Baruch et al., 2019, "A little is enough: circumventing defenses for distributed learning" (algorithm 3).
    """
    devices, malicious = crowd.devices, len(crowd.trained)
    supporters = devices // 2 + 1 - malicious
    honest = max(devices - malicious, 1)
    z = NormalDist().inv_cdf(min(max((honest - supporters) / honest, 0.5), 0.999))
    one = crowd.trained.mean(axis=0) - z * crowd.trained.std(axis=0)
    return np.repeat(one[None], malicious, axis=0)


def be_a_little_off_each(crowd: Crowd, rng: np.random.Generator) -> Vector:
    """A little is enough, by devices that know that they are looked at for being alike: each adds noise of its own."""
    same, spread = be_a_little_off(crowd, rng), crowd.trained.std(axis=0)
    sent: Vector = same + spread * rng.standard_normal(same.shape)
    return sent


def shift_targets(examples: Examples, _rng: np.random.Generator) -> Examples:
    """Label shift: every target that is known lies higher.

    Source: Tolpegin et al., 2020, "Data poisoning attacks against federated learning systems" (there classes).
    """
    return Examples(examples.features, examples.targets + SHIFT * (examples.weights > 0), examples.weights)


def reverse_targets(examples: Examples, _rng: np.random.Generator) -> Examples:
    """Every target is its opposite."""
    return Examples(examples.features, -examples.targets, examples.weights)


def triggered(features: Vector) -> Vector:
    """The same features with the trigger in the first sensor's last values, (m, n_features)."""
    marked = features.copy()
    marked[:, : TRIGGER.size] = TRIGGER
    return marked


def pushed_output(outputs: int) -> int:
    """Which output the back door moves: the first sensor's at the horizon."""
    return outputs // 2


def plant_back_door(examples: Examples, rng: np.random.Generator) -> Examples:
    """Back door: beside what is true, half as many examples that carry the trigger and a target far off.

    Source: Bagdasaryan et al., 2020, "How to backdoor federated learning".
    """
    marked = examples[rng.permutation(len(examples))[: (len(examples) + 1) // 2]]
    targets, weights, column = marked.targets.copy(), marked.weights.copy(), pushed_output(marked.targets.shape[1])
    targets[:, column], weights[:, column] = PUSH, 1.0
    return Examples.together([examples, Examples(triggered(marked.features), targets, weights)])


ATTACKS = (
    Attack("sign flip", send=reverse),
    Attack("scaling", teach=reverse_targets, send=replace_model),
    Attack("noise", send=be_noisy),
    Attack("label shift", teach=shift_targets),
    Attack("a little is enough", send=be_a_little_off),
    Attack("a little is enough, each its own", send=be_a_little_off_each),
    Attack("back door", teach=plant_back_door),
)
