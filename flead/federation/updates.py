"""What a round is given and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from flead.errors import BadUpdate
from flead.network import Vector


@dataclass(frozen=True, eq=False)
class Updates:
    """One cohort's local models, stacked: what a strategy merges.

    Lists become arrays of float64; what is one already is not copied, and nothing is ever written to.

    Attributes
    ----------
    models: (devices, parameters)
    samples: (devices,) readings that each learned from; a device of none has no say
    previous: (parameters,) the global model that the round starts from; None in the first round
    staleness: (devices,) rounds that each is behind, >= 0; None: all are of this round
    bases: (devices, parameters) the global model that each began from; None: all began from `previous`
    controls: (devices, parameters) how each changed its control variate, c_i+ - c_i (SCAFFOLD only)

    Raises
    ------
    BadUpdate
        where shapes do not fit, a number is not finite, a count is negative or all are zero

    >>> len(Updates([[1.0, 2.0], [4.0, 8.0]], [2, 1]))
    2
    """

    models: Vector
    samples: Vector
    previous: Vector | None = None
    staleness: Vector | None = None
    bases: Vector | None = None
    controls: Vector | None = None

    def __post_init__(self) -> None:
        models = stacked_models(self.models)
        self._keep("models", models)
        self._keep("samples", sample_counts(self.samples, len(models)))
        for name, shape in (
            ("previous", models.shape[1:]),
            ("staleness", models.shape[:1]),
            ("bases", models.shape),
            ("controls", models.shape),
        ):
            given = getattr(self, name)
            if given is not None:
                self._keep(name, _finite(given, shape, name))
        if self.staleness is not None and (self.staleness < 0).any():
            raise BadUpdate("staleness is negative: a device cannot be ahead of the global model")

    def _keep(self, name: str, value: Vector) -> None:
        object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.models)


@dataclass(frozen=True, eq=False)
class Merge:
    """The result of a round.

    Attributes
    ----------
    theta: (parameters,) the new global model
    shares: (devices,) how much of the result is each device's, together 1; 0: left out
    state: what the strategy needs in the next round, by name; nothing for most
    """

    theta: Vector
    shares: Vector
    state: dict[str, Vector] = field(default_factory=dict)


def stacked_models(given: ArrayLike) -> Vector:
    """Local models as (devices, parameters), finite; raises BadUpdate where they are not."""
    try:
        models = np.asarray(given, dtype=np.float64)
    except (ValueError, TypeError):
        raise BadUpdate("the devices' parameters must all have the same length") from None
    if models.ndim != 2 or not models.size:
        raise BadUpdate(f"parameters must be (devices, parameters), they are {models.shape}")
    if not all_finite(models):
        raise BadUpdate("a parameter is not a finite number")
    return models


def sample_counts(given: ArrayLike, devices: int) -> Vector:
    """Sample counts as (devices,), at least one of them above zero; raises BadUpdate where they are not."""
    try:
        counts = np.asarray(given, dtype=np.float64)
    except (ValueError, TypeError):
        raise BadUpdate("a sample count is not a number") from None
    if counts.shape != (devices,):
        raise BadUpdate(f"sample counts must be ({devices},), they are {counts.shape}")
    if not np.isfinite(counts).all() or (counts < 0).any():
        raise BadUpdate("a sample count is negative or not a finite number")
    if not counts.any():
        raise BadUpdate("all sample counts are zero: there is nothing to weigh by")
    return counts


def recall(state: Mapping[str, Vector], name: str, start: Vector) -> Vector:
    """What an earlier round left under a name, else `start`; raises BadUpdate where it is of another model.

    >>> recall({}, "momentum", np.zeros(2))
    array([0., 0.])
    """
    return _finite(state[name], start.shape, f"the state {name!r}") if name in state else start


def all_finite(values: Vector) -> bool:
    """Whether no number of (rows, columns) is infinite or missing; one pass without a mask where none is.

    >>> all_finite(np.array([[1.0, np.inf], [1.0, -np.inf]])), all_finite(np.full((2, 1), 1e308))
    (False, True)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        sums = np.ones(len(values)) @ values  # an infinity or NaN cannot leave a sum; an overflow may enter it
    return bool(np.isfinite(sums).all()) or bool(np.isfinite(values).all())


def _finite(given: ArrayLike, shape: tuple[int, ...], name: str) -> Vector:
    try:
        values = np.asarray(given, dtype=np.float64)
    except (ValueError, TypeError):
        raise BadUpdate(f"{name} must be numbers of shape {shape}") from None
    if values.shape != shape:
        raise BadUpdate(f"{name} must be {shape}, it is {values.shape}")
    if not all_finite(np.atleast_2d(values)):
        raise BadUpdate(f"{name} holds a number that is not finite")
    return values
