"""The rules that a cohort's round can follow: typed, frozen configurations over the arithmetic of this package.

A strategy keeps nothing: what the next round needs is in `Merge.state` and comes back as `state`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from flead.errors import BadConfiguration
from flead.federation import adaptive, robust
from flead.federation.averages import buffered, shares_of, staleness_weight
from flead.federation.updates import Merge, Updates, recall
from flead.network import Vector

State = Mapping[str, Vector]
NOTHING: State = MappingProxyType({})


class Rule(BaseModel, ABC):
    """What every strategy is: hyper-parameters, and one verb."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    linear: ClassVar[bool]
    """Whether an update may be the weighted mean of many devices', with the sum of their samples."""
    remembers: ClassVar[bool] = False
    """Whether a round leaves anything to the next."""

    @abstractmethod
    def merge(self, updates: Updates, state: State = NOTHING) -> Merge:
        """The round's result; raises BadUpdate where `state` is of another model."""


class FedAvg(Rule):
    """The mean of the models, each weighted by its samples (McMahan et al., 2017)."""

    name: Literal["fedavg"] = "fedavg"
    linear: ClassVar[bool] = True

    def merge(self, updates: Updates, state: State = NOTHING) -> Merge:
        """The weighted mean.

        >>> FedAvg().merge(Updates([[1.0, 2.0], [4.0, 8.0]], [2, 1])).theta
        array([2., 4.])
        """
        shares = shares_of(updates.samples)
        return Merge(shares @ updates.models, shares)


class FedProx(FedAvg):
    """FedAvg on the server; on a device every step is drawn back to the global model (Li et al., 2020)."""

    name: Literal["fedprox"] = "fedprox"  # type: ignore[assignment]
    proximal: float = Field(0.01, ge=0, description="mu: how hard a device is drawn to the global model, mu / 2 d^2")


class FedAvgM(Rule):
    """FedAvg with momentum on the server (Hsu et al., 2019)."""

    name: Literal["fedavgm"] = "fedavgm"
    linear: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    learning_rate: float = Field(1.0, gt=0, description="length of the server's steps")
    momentum: float = Field(0.5, ge=0, lt=1, description="share of a round's change in the next one's step")

    def merge(self, updates: Updates, state: State = NOTHING) -> Merge:
        """A step along the sum of the changes so far; in the first round the weighted mean."""
        mean = FedAvg().merge(updates)
        if updates.previous is None:
            return mean
        change = mean.theta - updates.previous
        summed = adaptive.momentum(change, recall(state, "momentum", np.zeros_like(change)), share=self.momentum)
        return Merge(updates.previous + self.learning_rate * summed, mean.shares, {"momentum": summed})


class _Adaptive(Rule):
    """What FedAdam, FedYogi and FedAdagrad have in common (Reddi et al., 2021)."""

    linear: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    learning_rate: float = Field(0.01, gt=0, description="length of the server's steps")
    beta1: float = Field(0.9, ge=0, lt=1, description="share of the running mean change that a round keeps")
    tau: float = Field(0.001, gt=0, description="change of a parameter below which steps get shorter")

    def merge(self, updates: Updates, state: State = NOTHING) -> Merge:
        """A step along the running mean change, each parameter's by its own size; first the weighted mean."""
        mean = FedAvg().merge(updates)
        if updates.previous is None:
            return mean
        change = mean.theta - updates.previous
        first = adaptive.smoothed(change, recall(state, "first", np.zeros_like(change)), self.beta1)
        second = self._second(change, recall(state, "second", np.full_like(change, self.tau**2)))
        theta = adaptive.stepped(updates.previous, first, second, self.learning_rate, self.tau)
        return Merge(theta, mean.shares, {"first": first, "second": second})

    @abstractmethod
    def _second(self, change: Vector, second: Vector) -> Vector:
        """The typical squared change."""


class FedAdam(_Adaptive):
    """Adam on the server (Reddi et al., 2021)."""

    name: Literal["fedadam"] = "fedadam"
    beta2: float = Field(0.99, ge=0, lt=1, description="share of the typical squared change that a round keeps")

    def _second(self, change: Vector, second: Vector) -> Vector:
        return adaptive.adam(change, second, self.beta2)


class FedYogi(_Adaptive):
    """Yogi on the server: like Adam, forgetting slower where changes get small (Reddi et al., 2021)."""

    name: Literal["fedyogi"] = "fedyogi"
    beta2: float = Field(0.99, ge=0, lt=1, description="share of the typical squared change that a round keeps")

    def _second(self, change: Vector, second: Vector) -> Vector:
        return adaptive.yogi(change, second, self.beta2)


class FedAdagrad(_Adaptive):
    """Adagrad on the server: steps that only get shorter (Reddi et al., 2021)."""

    name: Literal["fedadagrad"] = "fedadagrad"
    learning_rate: float = Field(0.05, gt=0, description="length of the server's steps")
    beta1: float = Field(0.0, ge=0, lt=1, description="share of the running mean change that a round keeps")

    def _second(self, change: Vector, second: Vector) -> Vector:
        return adaptive.adagrad(change, second)


class _Robust(Rule):
    """Merges the models alone: sample counts say only whether a device has any, as they could be lies, too."""

    linear: ClassVar[bool] = False

    def merge(self, updates: Updates, state: State = NOTHING) -> Merge:
        """The merged model of the devices that have samples."""
        heard = updates.samples > 0
        if heard.all():
            return Merge(*self._merged(updates.models))
        theta, parts = self._merged(updates.models[heard])
        shares = np.zeros(len(updates))
        shares[heard] = parts
        return Merge(theta, shares)

    @abstractmethod
    def _merged(self, models: Vector) -> tuple[Vector, Vector]:
        """The merged model, (parameters,), and each device's share in it, (devices,)."""


class Median(_Robust):
    """Of each parameter the median (Yin et al., 2018)."""

    name: Literal["median"] = "median"

    def _merged(self, models: Vector) -> tuple[Vector, Vector]:
        return robust.median(models)


class _Suspicious(_Robust):
    malicious: float = Field(0.3, ge=0, lt=0.5, description="largest share of devices that may lie")

    def _cut(self, models: Vector) -> int:
        return robust.malicious_count(self.malicious, len(models))


class TrimmedMean(_Suspicious):
    """Of each parameter the mean without the largest and the smallest values (Yin et al., 2018)."""

    name: Literal["trimmed_mean"] = "trimmed_mean"

    def _merged(self, models: Vector) -> tuple[Vector, Vector]:
        return robust.trimmed_mean(models, self._cut(models))


class Krum(_Suspicious):
    """The one model with the nearest neighbours (Blanchard et al., 2017)."""

    name: Literal["krum"] = "krum"

    def _merged(self, models: Vector) -> tuple[Vector, Vector]:
        return robust.krum(models, robust.krum_bound(self._cut(models), len(models)))


class MultiKrum(_Suspicious):
    """The mean of all but the models whose neighbours are far (Blanchard et al., 2017)."""

    name: Literal["multi_krum"] = "multi_krum"

    def _merged(self, models: Vector) -> tuple[Vector, Vector]:
        cut = self._cut(models)
        return robust.multi_krum(models, robust.krum_bound(cut, len(models)), len(models) - cut)


class Bulyan(_Suspicious):
    """Krum again and again, then the values nearest to the median (El Mhamdi et al., 2018)."""

    name: Literal["bulyan"] = "bulyan"
    malicious: float = Field(0.3, ge=0, lt=0.5, description="largest share that may lie; Bulyan holds for a quarter")

    def _merged(self, models: Vector) -> tuple[Vector, Vector]:
        return robust.bulyan(models, robust.bulyan_bound(self._cut(models), len(models)))


class GeometricMedian(_Robust):
    """The point whose distances to all models are together least (RFA; Pillutla et al., 2022)."""

    name: Literal["geometric_median"] = "geometric_median"
    smoothing: float = Field(1e-6, gt=0, description="distances below it count as it")
    iterations: int = Field(100, ge=1, le=10_000, description="at most so many steps of Weiszfeld's")

    def _merged(self, models: Vector) -> tuple[Vector, Vector]:
        return robust.geometric_median(models, smoothing=self.smoothing, iterations=self.iterations)


class FedBuff(Rule):
    """A step along what the devices changed, each from its own base; the staler, the less (Nguyen et al., 2022)."""

    name: Literal["fedbuff"] = "fedbuff"
    linear: ClassVar[bool] = True
    learning_rate: float = Field(1.0, gt=0, description="length of the server's steps")
    exponent: float = Field(0.5, ge=0, description="an update s rounds behind counts (1 + s)^-exponent")

    def merge(self, updates: Updates, state: State = NOTHING) -> Merge:
        """The step; in the first round the mean by samples and freshness.

        >>> models, previous = [[1.0], [4.0]], [0.0]
        >>> FedBuff().merge(Updates(models, [1, 1], previous, staleness=[0, 3])).theta
        array([1.5])
        """
        freshness = staleness_weight(
            np.zeros(len(updates)) if updates.staleness is None else updates.staleness, self.exponent
        )
        samples = shares_of(updates.samples)
        shares = shares_of(samples * freshness)
        if updates.previous is None:
            return Merge(shares @ updates.models, shares)
        theta = buffered(updates.models, samples, updates.previous, updates.bases, freshness, self.learning_rate)
        return Merge(theta, shares)


class Scaffold(Rule):
    """FedAvg whose devices correct their steps by how they differ from the fleet (Karimireddy et al., 2020).

    Needs devices that keep a control variate, are told the fleet's (`state["control"]`), and send how theirs changed
    (`Updates.controls`): `flead.training.federate` does. Without, it is FedAvg.
    """

    name: Literal["scaffold"] = "scaffold"
    linear: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    learning_rate: float = Field(1.0, gt=0, description="length of the server's steps")
    participation: float = Field(1.0, gt=0, le=1, description="share of the fleet's devices that a round hears")
    local_rate: float = Field(0.01, gt=0, description="length of a device's steps, which are of plain gradient descent")

    def merge(self, updates: Updates, state: State = NOTHING) -> Merge:
        """A step along the mean change; the fleet's control variate follows the devices'."""
        mean = FedAvg().merge(updates)
        control = recall(state, "control", np.zeros_like(mean.theta))
        if updates.controls is not None:
            control = control + self.participation * (mean.shares @ updates.controls)
        if updates.previous is None:
            return Merge(mean.theta, mean.shares, {"control": control})
        theta = updates.previous + self.learning_rate * (mean.theta - updates.previous)
        return Merge(theta, mean.shares, {"control": control})


Strategy = Annotated[
    FedAvg | FedAvgM | FedProx | FedAdam | FedYogi | FedAdagrad | Median | TrimmedMean | Krum | MultiKrum | Bulyan
    | GeometricMedian | FedBuff | Scaffold,
    Field(discriminator="name"),
]  # fmt: skip
"""Any of them, told apart by `name`."""

_READER: TypeAdapter[Strategy] = TypeAdapter(Strategy)

STRATEGIES: tuple[type[Rule], ...] = (
    FedAvg, FedAvgM, FedProx, FedAdam, FedYogi, FedAdagrad, Median, TrimmedMean, Krum, MultiKrum, Bulyan,
    GeometricMedian, FedBuff, Scaffold,
)  # fmt: skip


def parse_strategy(given: str | Mapping[str, Any]) -> Strategy:
    """A strategy from its name, or from an object with a name and hyper-parameters.

    Raises
    ------
    BadConfiguration
        where there is no such strategy or hyper-parameter, or a value is out of range

    >>> parse_strategy("krum")
    Krum(malicious=0.3, name='krum')
    >>> parse_strategy({"name": "fedprox", "proximal": 0.1}).proximal
    0.1
    """
    try:
        return _READER.validate_python({"name": given} if isinstance(given, str) else dict(given))
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'][1:])) or 'name'}: {e['msg']}" for e in error.errors())
        names = ", ".join(rule.model_fields["name"].default for rule in STRATEGIES)
        raise BadConfiguration(f"not a strategy: {wrong}; the strategies are {names}") from None
