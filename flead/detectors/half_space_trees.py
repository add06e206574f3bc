"""Half-space trees: how few of the last readings fell where this one falls.

Source: Tan, Ting and Liu, 2011, "Fast anomaly detection for streaming data"; the trees are River's.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from typing import Any, ClassVar, Self

from river import anomaly

from flead.detectors import watched
from flead.errors import BadModel
from flead.features import CLIP
from flead.network import Vector
from flead.plugins import Spec

TREES = 10
HEIGHT = 6
WINDOW = 250
"""Readings whose masses are compared with; the paper's choice, and each mass fits a byte."""

_HEAD = struct.Struct("<B?")


class HalfSpaceTrees:
    """River's half-space trees over the features that `watched` names, for constant time and state.

    The splits follow from the seed, so state is no more than the masses of the nodes.

    >>> import numpy as np
    >>> detector = HalfSpaceTrees(Spec(("temperature",), per_sensor=1))
    >>> for x in np.random.default_rng(0).normal(size=(WINDOW, 1)):
    ...     detector.learn(x)
    >>> detector.score(np.array([7.0])) > detector.score(np.array([0.1]))
    True
    """

    name: ClassVar[str] = "half_space_trees"

    def __init__(self, spec: Spec) -> None:
        self._watched = watched(spec)
        # River makes its trees at the first row, and scores after the first window: a window of one row does both.
        self._river = _one_row_window(len(self._watched), spec.seed)
        self._river.learn_one(dict.fromkeys(range(len(self._watched)), 0.0))
        self._river.window_size = WINDOW
        self._nodes = [node for tree in self._river.trees for node in tree.iter_dfs()]
        for node in self._nodes:
            node.l_mass = node.r_mass = 0  # and that row is forgotten
        self._warm = False

    def score(self, features: Vector) -> float:
        """Strangeness in [0, 1], of (n_features,); 0.0 in the first window."""
        return float(self._river.score_one(self._row(features))) if self._warm else 0.0

    def learn(self, features: Vector) -> None:
        """Count the features, (n_features,), in the present window, which is compared with once it is full."""
        self._river.learn_one(self._row(features))
        self._warm = self._warm or self._river.counter == 0

    def _row(self, features: Vector) -> dict[int, float]:
        return dict(enumerate(features[self._watched].tolist()))

    def to_bytes(self) -> bytes:
        """How far the window is, and the masses of the present and the last window: a byte each."""
        masses = [mass for node in self._nodes for mass in (node.l_mass, node.r_mass)]
        return _HEAD.pack(self._river.counter, self._warm) + bytes(masses)

    @classmethod
    def from_bytes(cls, raw: bytes, spec: Spec) -> Self:
        """Continue from `to_bytes`."""
        detector = cls(spec)
        size = _HEAD.size + 2 * len(detector._nodes)
        if len(raw) != size:
            raise BadModel(f"state of half-space trees has {len(raw)} bytes, it must have {size}")
        detector._river.counter, detector._warm = _HEAD.unpack_from(raw)
        masses = iter(raw[_HEAD.size :])
        for node in detector._nodes:
            node.l_mass, node.r_mass = next(masses), next(masses)
        return detector


def _one_row_window(n_features: int, seed: int) -> Any:
    limits: dict[Hashable, tuple[float, float]] = dict.fromkeys(range(n_features), (-CLIP, CLIP))
    return anomaly.HalfSpaceTrees(TREES, HEIGHT, window_size=1, limits=limits, seed=seed)
