"""An isolation forest on a sliding window: how few random cuts set a reading apart from the last ones.

Source: Liu, Ting and Zhou, 2008, "Isolation Forest"; the trees are scikit-learn's, walking them is ours: scoring one
record there takes milliseconds, nearly all of it checks and bookkeeping.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn import ensemble

from flead.compilation import EntryPoint, carray
from flead.detectors import watched
from flead.errors import BadModel
from flead.network import Vector
from flead.plugins import Spec

TREES = 50
"""The paper's path lengths have settled well before its 100 trees; each costs time at every fit."""
WINDOW = 256
"""Readings that a forest is made of: the paper's sub-sample."""
SAMPLE = 128
"""Readings that a tree is made of; fewer than the window, so that trees differ in what they saw."""
REFIT_EVERY = 128

_KEPT = WINDOW + REFIT_EVERY  # until the next fit, the rows of the last one are all there
_HEAD = struct.Struct("<Q")


class IsolationForest:
    """scikit-learn's isolation forest over the features that `watched` names, made anew every 128 readings.

    State is the last rows and their count: the forest is made again from them and the seed.

    >>> detector = IsolationForest(Spec(("temperature",), per_sensor=1))
    >>> for x in np.random.default_rng(0).normal(size=(REFIT_EVERY, 1)):
    ...     detector.learn(x)
    >>> detector.score(np.array([7.0])) > detector.score(np.array([0.1]))
    True
    """

    name: ClassVar[str] = "isolation_forest"

    def __init__(self, spec: Spec) -> None:
        self._watched = watched(spec)
        self._seed = spec.seed % 2**32
        self._rows: NDArray[np.float32] = np.zeros((_KEPT, len(self._watched)), dtype="<f4")
        self._count = 0
        self._forest: _Forest | None = None

    def score(self, features: Vector) -> float:
        """Strangeness in (0, 1), of (n_features,); 0.0 before the first forest."""
        return self._forest.score(features[self._watched]) if self._forest else 0.0

    def score_batch(self, rows: Vector) -> Vector:
        """The same for many rows: (m, n_features) to (m,)."""
        return self._forest.score_batch(rows[:, self._watched]) if self._forest else np.zeros(len(rows))

    def learn(self, features: Vector) -> None:
        """Take the features, (n_features,), into the window; every 128th makes a new forest, which takes a while."""
        self._rows[self._count % _KEPT] = features[self._watched]
        self._count += 1
        if self._count % REFIT_EVERY == 0:
            self._fit()

    def _fit(self) -> None:
        """Make the forest that the last multiple of `REFIT_EVERY` readings made, or is to make."""
        end = self._count - self._count % REFIT_EVERY
        if end:
            rows = self._rows[np.arange(max(0, end - WINDOW), end) % _KEPT]
            self._forest = _Forest(_fitted(rows, self._seed))

    def to_bytes(self) -> bytes:
        """The count and the rows."""
        return _HEAD.pack(self._count) + self._rows.tobytes()

    @classmethod
    def from_bytes(cls, raw: bytes, spec: Spec) -> Self:
        """Continue from `to_bytes`; makes the forest again."""
        detector = cls(spec)
        if len(raw) != _HEAD.size + detector._rows.nbytes:
            expected = _HEAD.size + detector._rows.nbytes
            raise BadModel(f"state of an isolation forest has {len(raw)} bytes, for this spec it has {expected}")
        (detector._count,) = _HEAD.unpack_from(raw)
        detector._rows[:] = np.frombuffer(raw, "<f4", offset=_HEAD.size).reshape(detector._rows.shape)
        detector._fit()
        return detector


def _fitted(rows: NDArray[np.float32], seed: int) -> ensemble.IsolationForest:
    """Fit in a thread of Python's own: scikit-learn's Cython may ask `PyGILState`, which hangs in Flink's threads."""
    forest = ensemble.IsolationForest(n_estimators=TREES, max_samples=SAMPLE, random_state=seed)
    failed: list[BaseException] = []

    def fit() -> None:
        try:
            forest.fit(rows)
        except BaseException as error:  # raised again below, in the caller's thread
            failed.append(error)

    worker = threading.Thread(target=fit, name="fit an isolation forest")
    worker.start()
    worker.join()
    if failed:
        raise failed[0]
    return forest


class _Forest:
    """A fitted forest as flat arrays, walked by machine code; scores are those of `score_samples`, negated."""

    def __init__(self, fitted: ensemble.IsolationForest) -> None:
        trees = [estimator.tree_ for estimator in fitted.estimators_]
        roots = np.cumsum([0, *(tree.node_count for tree in trees)])[:-1]
        nodes = [
            np.stack([tree.feature, tree.children_left + root, tree.children_right + root], axis=1)
            for tree, root in zip(trees, roots, strict=True)
        ]
        self._integers = np.concatenate([[len(trees), fitted.n_features_in_], roots, *map(np.ravel, nodes)])
        self._integers = self._integers.astype(np.int64)
        usual = len(trees) * float(_path_length(np.array([fitted.max_samples_]))[0])
        self._floats = np.concatenate([[usual], *map(_values, trees)])
        self._row, self._score = np.empty(fitted.n_features_in_), np.empty(1)
        self._walk = self._bind(self._row, self._score)

    def _bind(self, rows: Vector, scores: Vector) -> Callable[[], None]:
        return _WALK.bind(self._integers, self._floats, rows, scores)

    def score(self, row: Vector) -> float:
        """The score of one row of watched features."""
        self._row[:] = row
        self._walk()
        return float(self._score[0])

    def score_batch(self, rows: Vector) -> Vector:
        """The scores of many."""
        scores = np.empty(len(rows))
        self._bind(np.array(rows, dtype=np.float64, order="C").ravel(), scores)()
        return scores


def _values(tree: Any) -> Vector:
    """For each node of a scikit-learn tree its threshold, or, where it is a leaf, the length of the path to it."""
    depths = tree.compute_node_depths() - 1 + _path_length(tree.n_node_samples)
    return np.where(tree.feature < 0, depths, tree.threshold)


def _path_length(n: NDArray[Any]) -> Vector:
    """The mean length of a path in a random tree of `n` rows: equation 1 of the paper."""
    more = np.maximum(n, 3.0)
    length = 2.0 * (np.log(more - 1.0) + np.euler_gamma) - 2.0 * (more - 1.0) / more
    return np.where(n > 2, length, np.where(n == 2, 1.0, 0.0))


def _walk_trees(
    integers: Any, n: int, floats: Any, m: int, rows: Any, n_numbers: int, scores: Any, n_rows: int
) -> None:
    """Score rows.

    Parameters
    ----------
    integers:
        how many trees and features, each tree's root, then (feature or < 0, left, right) of each node
    floats:
        the usual path length of all trees together, then each node's threshold, or its path length if it is a leaf
    """
    whole, real = carray(integers, n), carray(floats, m)
    table, out = carray(rows, n_numbers), carray(scores, n_rows)
    n_trees, n_features = whole[0], whole[1]
    nodes = whole[2 + n_trees :]
    for i in range(n_rows):
        length = 0.0
        for t in range(n_trees):
            node = whole[2 + t]
            while nodes[3 * node] >= 0:
                value = np.float32(table[i * n_features + nodes[3 * node]])  # what scikit-learn compares
                node = nodes[3 * node + 1] if value <= real[1 + node] else nodes[3 * node + 2]
            length += real[1 + node]
        out[i] = 2.0 ** (-length / real[0])


_WALK = EntryPoint(_walk_trees)
