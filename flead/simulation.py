"""A fleet in arithmetic: as many devices as one likes, each with a task of its own, in the memory of a few.

Nothing is kept of a device. Whatever it has, its data and what befalls it in a round, follows from the seed and its
number, whoever asks and in whatever order; so a round goes over the fleet in chunks and is the same in any chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from flead import network
from flead.errors import BadConfiguration, BadUpdate
from flead.federation import FedAvg, FedProx, Merge, Strategy, Updates
from flead.network import Architecture, Vector
from flead.partial import PartialSum
from flead.splitmix import Ids, normal, uniform

Mapper = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]
"""`map`, or one that works on several at once and keeps the order."""

PANEL = 512
"""Devices on whose unseen examples the global model is judged."""
TEACHERS = 6
"""Hidden units of the function that the devices have in common."""
FORCE = 3.0
"""A malicious device sends the opposite of what it learned, so many times as far."""
LATEST = 3
"""Rounds after which the last straggler has come."""


@dataclass(frozen=True)
class Fleet:
    """Devices that each know a few examples of nearly the same function.

    What a device sees is the common function, a network of `TEACHERS` units, plus a linear part and a level of its own;
    its inputs lie around a place of its own. Devices have between a quarter of `examples` and all of them.

    Attributes
    ----------
    hidden:
        hidden units of the model that learns it; 0: a linear one
    heterogeneity:
        how far devices differ: standard deviation of their places, levels and slopes
    drop_out:
        share of the devices that do not send in a round
    stragglers:
        share of those that send whose update comes late: after one round, two or three, alike often
    malicious:
        share of the devices that send the opposite of what they learned, see `FORCE`
    """

    devices: int
    inputs: int = 8
    hidden: int = 16
    examples: int = 16
    heterogeneity: float = 0.3
    noise: float = 0.1
    drop_out: float = 0.0
    stragglers: float = 0.0
    malicious: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        _hold(self, devices=1, inputs=1, hidden=0, examples=4, heterogeneity=0, noise=0, seed=0)
        if self.seed >= 2**64:
            raise BadConfiguration(f"seed is {self.seed}: it must be below 2^64")
        for name in ("drop_out", "stragglers", "malicious"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BadConfiguration(f"{name} is {getattr(self, name)}: it is a share, from 0 to 1")

    @property
    def architecture(self) -> Architecture:
        """Of the model that learns."""
        return Architecture(self.inputs, (self.hidden,) if self.hidden else (), 1)


@dataclass(frozen=True)
class Training:
    """How devices train and how they are gone through.

    Attributes
    ----------
    steps, rate:
        of gradient descent on all of a device's examples
    chunk:
        devices that are worked on at once
    sample:
        devices of a round where the strategy must see each update: a robust one
    """

    steps: int = 5
    rate: float = 0.1
    chunk: int = 256
    sample: int = 1_000

    def __post_init__(self) -> None:
        _hold(self, steps=1, rate=0, chunk=1, sample=1)


def _hold(settings: object, **least: int) -> None:
    """Raise `BadConfiguration` where one of these settings is below its least value, infinite or NaN."""
    for name, value in least.items():
        given = getattr(settings, name)
        if not value <= given < float("inf"):
            raise BadConfiguration(f"{name} is {given}: it must be {value} or more")


@dataclass(frozen=True)
class Round:
    """What one round was.

    Attributes
    ----------
    asked, dropped:
        devices of the round, and those of them that never sent
    merged, late:
        devices whose updates were merged, and those of them whose update came late
    waiting:
        devices whose update is still under way
    malicious:
        devices of the round that lied
    loss:
        root of the mean squared error of the global model, see `PANEL`
    """

    number: int
    asked: int
    dropped: int
    merged: int
    late: int
    waiting: int
    malicious: int
    samples: int
    loss: float


def simulate(
    fleet: Fleet, rounds: int, strategy: Strategy | None = None, training: Training | None = None, *,
    mapper: Mapper = map, on_devices: Callable[[int], object] = lambda _: None,
) -> Iterator[tuple[Round, Vector]]:  # fmt: skip
    """Federate a fleet; yields each round with the global model that it made.

    A linear strategy is given one partial sum for all fresh updates and one for each age of late ones, and every device
    takes part. Any other sees each update: it is given a sample of the fleet, another in each round.

    Parameters
    ----------
    mapper:
        works through the chunks of a round; several at once need as much more memory
    on_devices:
        called with how many devices of the round are done

    Raises
    ------
    BadConfiguration
        where the strategy needs what a simulated device does not keep

    >>> [round(r.loss, 2) for r, _ in simulate(Fleet(devices=50), 3)]
    [1.95, 1.47, 1.27]
    """
    strategy, training = strategy or FedAvg(), training or Training()
    if strategy.name == "scaffold":
        raise BadConfiguration("scaffold keeps a control of each device, the simulator keeps none: choose another")
    theta = network.initial(fleet.architecture, np.random.default_rng([fleet.seed, 1]))
    panel = _panel(fleet)
    waiting: dict[int, dict[int, Basket]] = {}
    began: dict[int, Vector] = {}
    state: Mapping[str, Vector] = {}
    for number in range(1, rounds + 1):
        began[number] = theta
        now = _work_through(fleet, strategy, training, number, theta, mapper, on_devices)
        for delay, basket in now.baskets.items():
            waiting.setdefault(number + delay, {})[number] = basket
        arrived = dict(sorted(waiting.pop(number, {}).items()))
        if arrived:
            merge = _merged(strategy, _updates(arrived, number, theta, began), state, number)
            theta, state = merge.theta, merge.state
        late = [basket.devices for origin, basket in arrived.items() if origin < number]
        told = Round(
            number=number,
            asked=now.asked,
            dropped=now.dropped,
            merged=sum(basket.devices for basket in arrived.values()),
            late=sum(late),
            waiting=sum(basket.devices for baskets in waiting.values() for basket in baskets.values()),
            malicious=now.malicious,
            samples=sum(int(basket.samples.sum()) for basket in arrived.values()),
            loss=_error(theta, fleet, panel),
        )
        yield told, theta
        began.pop(number - LATEST, None)


def _merged(strategy: Strategy, updates: Updates, state: Mapping[str, Vector], number: int) -> Merge:
    try:
        return strategy.merge(updates, state)
    except BadUpdate as error:
        raise BadUpdate(f"{strategy.name} did not hold this fleet together in round {number}: {error}") from None


class Basket(Protocol):
    """Updates on their way into one round that began from one global model."""

    @property
    def models(self) -> Vector:
        """(k, parameters), k devices or one mean of all."""

    @property
    def samples(self) -> Vector:
        """(k,)."""

    @property
    def devices(self) -> int:
        """How many devices it holds."""

    def __add__(self, other: Any) -> Any: ...


@dataclass(frozen=True)
class Summed:
    """A basket of which only the sum is kept."""

    sum: PartialSum

    @property
    def models(self) -> Vector:
        """(1, parameters)."""
        return self.sum.mean[None]

    @property
    def samples(self) -> Vector:
        """(1,)."""
        return np.array([self.sum.samples], dtype=np.float64)

    @property
    def devices(self) -> int:
        """How many devices were summed up."""
        return self.sum.devices

    def __add__(self, other: Summed) -> Summed:
        return Summed(self.sum + other.sum)


@dataclass(frozen=True)
class Stacked:
    """A basket of which every update is kept."""

    models: Vector
    samples: Vector

    @property
    def devices(self) -> int:
        """How many updates there are."""
        return len(self.samples)

    def __add__(self, other: Stacked) -> Stacked:
        return Stacked(np.concatenate((self.models, other.models)), np.concatenate((self.samples, other.samples)))


@dataclass
class _Work:
    """What came of a chunk, or of a round: baskets by how many rounds late they come."""

    asked: int = 0
    dropped: int = 0
    malicious: int = 0
    baskets: dict[int, Any] = field(default_factory=dict)

    def add(self, other: _Work) -> None:
        self.asked += other.asked
        self.dropped += other.dropped
        self.malicious += other.malicious
        for delay, basket in other.baskets.items():
            self.baskets[delay] = self.baskets[delay] + basket if delay in self.baskets else basket


def _work_through(
    fleet: Fleet, strategy: Strategy, training: Training, number: int, theta: Vector, mapper: Mapper,
    on_devices: Callable[[int], object],
) -> _Work:  # fmt: skip
    """Let the devices of a round train, chunk by chunk."""
    everybody = strategy.linear or fleet.devices <= training.sample
    picked: Ids | range = range(fleet.devices)
    if not everybody:
        rng = np.random.default_rng([fleet.seed, 2, number])
        picked = np.sort(rng.choice(fleet.devices, training.sample, replace=False))
    chunks = (np.asarray(picked[at : at + training.chunk]) for at in range(0, len(picked), training.chunk))
    whole = _Work()
    for part in mapper(lambda ids: _train_chunk(fleet, strategy, training, number, theta, ids), chunks):
        whole.add(part)
        on_devices(whole.asked)
    return whole


def _train_chunk(
    fleet: Fleet, strategy: Strategy, training: Training, number: int, theta: Vector, ids: Ids
) -> _Work:  # fmt: skip
    """What the devices of a chunk do in a round."""
    fate = uniform(fleet.seed, _FATE + number, ids, 3)
    sends = fate[:, 0] >= fleet.drop_out
    delay = np.where(fate[:, 1] < fleet.stragglers, 1 + (fate[:, 2] * LATEST).astype(np.int64), 0)[sends]
    lies = uniform(fleet.seed, _CHARACTER, ids, 1)[:, 0] < fleet.malicious
    work = _Work(len(ids), int((~sends).sum()), int(lies.sum()))
    if not sends.any():
        return work
    inputs, targets, weights = examples_of(fleet, ids[sends], _LEARNED)
    proximal = strategy.proximal if isinstance(strategy, FedProx) else 0.0
    trained = train_many(
        theta, fleet.architecture, inputs, targets, weights, steps=training.steps, rate=training.rate, proximal=proximal
    )
    trained[lies[sends]] = theta - FORCE * (trained[lies[sends]] - theta)
    samples = (weights > 0).sum(axis=1)
    for late in np.unique(delay):
        rows = delay == late
        if strategy.linear:
            work.baskets[int(late)] = Summed(PartialSum.of(trained[rows], samples[rows]))
        else:
            work.baskets[int(late)] = Stacked(trained[rows], samples[rows].astype(np.float64))
    return work


def _updates(arrived: Mapping[int, Basket], number: int, theta: Vector, began: Mapping[int, Vector]) -> Updates:
    """Everything that arrived, as a strategy takes it: by the round that it began from."""
    models = [basket.models for basket in arrived.values()]
    return Updates(
        models=np.concatenate(models),
        samples=np.concatenate([basket.samples for basket in arrived.values()]),
        previous=theta,
        staleness=np.concatenate([np.full(len(m), float(number - o)) for o, m in zip(arrived, models, strict=True)]),
        bases=np.concatenate([np.broadcast_to(began[o], m.shape) for o, m in zip(arrived, models, strict=True)]),
    )


def train_many(
    theta: Vector, architecture: Architecture, inputs: Vector, targets: Vector, weights: Vector, *, steps: int,
    rate: float, proximal: float = 0.0,
) -> Vector:  # fmt: skip
    """Gradient descent on the mean squared error of many devices at once, each from the same model.

    Parameters
    ----------
    theta:
        (parameters,), of a linear model or one hidden layer of tanh
    inputs:
        (k, m, inputs)
    targets, weights:
        (k, m); a device's weights sum to 1, 0 where there is no example
    proximal:
        how hard a step is drawn back to `theta` (FedProx's mu; Li et al., 2020)

    Returns
    -------
    (k, parameters)
    """
    models = np.repeat(theta[None], len(inputs), axis=0)
    views = _stacked_layers(models, architecture)
    ones = np.ones((*inputs.shape[:2], 1))
    x = np.concatenate((inputs, ones), axis=2)
    gradient = np.empty_like(models)
    slopes = _stacked_layers(gradient, architecture)
    for _ in range(steps):
        if len(views) == 1:
            wrong = ((x @ views[0])[..., 0] - targets) * weights
            slopes[0][...] = (wrong[:, None, :] @ x).swapaxes(1, 2)
        else:
            h = np.tanh(x @ views[0])
            wrong = ((h @ views[1][:, :-1])[..., 0] + views[1][:, -1] - targets) * weights
            slopes[1][:, :-1] = (wrong[:, None, :] @ h).swapaxes(1, 2)
            slopes[1][:, -1, 0] = wrong.sum(axis=1)
            below = wrong[..., None] * views[1][:, None, :-1, 0]
            np.multiply(h, h, out=h)
            np.subtract(1.0, h, out=h)
            below *= h
            slopes[0][...] = x.swapaxes(1, 2) @ below
        if proximal:
            gradient += proximal * (models - theta)
        gradient *= rate
        models -= gradient
    return models


def _stacked_layers(models: Vector, architecture: Architecture) -> list[Vector]:
    """The layers of many parameter vectors, each (k, n_in + 1, n_out), as views."""
    views, start = [], 0
    for n_in, n_out in architecture.shapes:
        end = start + (n_in + 1) * n_out
        views.append(models[:, start:end].reshape(len(models), n_in + 1, n_out))
        start = end
    return views


_LEARNED, _UNSEEN, _OWN, _CHARACTER, _FATE = 1, 2, 3, 4, 16
"""Streams of random numbers of a device: its examples, those it never sees, its task, its honesty, and from `_FATE` on
what befalls it in each round."""


def examples_of(fleet: Fleet, ids: Ids, stream: int) -> tuple[Vector, Vector, Vector]:
    """What these devices know: inputs (k, m, inputs), targets (k, m) and weights (k, m) that sum to 1 for each."""
    k, m, n = len(ids), fleet.examples, fleet.inputs
    own = normal(fleet.seed, _OWN, ids, 2 * n + 2) * fleet.heterogeneity
    count = np.floor(m / 4 + uniform(fleet.seed, _CHARACTER, ids, 2)[:, 1] * (m - m // 4 + 1)).clip(1, m)
    drawn = normal(fleet.seed, stream, ids, m * (n + 1)).reshape(k, m, n + 1)
    inputs = drawn[..., :n] + own[:, None, :n]
    targets = _common(fleet, inputs) + own[:, 2 * n, None] + (inputs @ own[:, n : 2 * n, None])[..., 0]
    targets += fleet.noise * drawn[..., n]
    weights = (np.arange(m) < count[:, None]) / count[:, None]
    return inputs, targets, weights


def _common(fleet: Fleet, inputs: Vector) -> Vector:
    """The function that the devices have in common, (k, m)."""
    rng = np.random.default_rng([fleet.seed, 0])
    into = rng.normal(0.0, 1.0 / np.sqrt(fleet.inputs), (fleet.inputs, TEACHERS))
    values: Vector = np.tanh(2.0 * inputs @ into) @ rng.normal(0.0, 1.0, TEACHERS)
    return values


def _panel(fleet: Fleet) -> tuple[Vector, Vector]:
    """Inputs (examples, inputs) and targets (examples,) on which global models are judged."""
    count = min(PANEL, fleet.devices)
    ids = np.linspace(0, fleet.devices - 1, count).astype(np.int64)
    inputs, targets, _ = examples_of(fleet, ids, _UNSEEN)
    return inputs.reshape(-1, fleet.inputs), targets.ravel()


def _error(theta: Vector, fleet: Fleet, panel: tuple[Vector, Vector]) -> float:
    inputs, targets = panel
    with np.errstate(over="ignore", invalid="ignore"):
        wrong = network.forward(theta, fleet.architecture, inputs)[:, 0] - targets
        return float(np.sqrt(np.mean(wrong * wrong)))
