"""The forecast to beat: nothing changes."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from flead.errors import BadModel
from flead.network import Vector
from flead.plugins import Spec


class Persistence:
    """Predicts that every sensor stays as it is; learns nothing and keeps nothing.

    >>> Persistence(Spec(("temperature",), per_sensor=1)).predict(np.array([3.0]))
    array([0., 0.])
    """

    name: ClassVar[str] = "persistence"

    def __init__(self, spec: Spec) -> None:
        self.parameters: Vector = np.empty(0)
        self._n_outputs = spec.n_outputs

    def predict(self, features: Vector) -> Vector:
        """Zeros: (n_features,) to (n_outputs,)."""
        return np.zeros(self._n_outputs)

    def learn(self, features: Vector, target: Vector, observed: Vector) -> None:
        """Nothing."""

    def to_bytes(self) -> bytes:
        """Nothing."""
        return b""

    @classmethod
    def from_bytes(cls, raw: bytes, spec: Spec) -> Self:
        """A new one."""
        if raw:
            raise BadModel(f"persistence has no state, there are {len(raw)} bytes")
        return cls(spec)
