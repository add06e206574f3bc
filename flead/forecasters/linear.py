"""Linear regression on the stream: recursive least squares with forgetting, one filter per sensor.

Source: Haykin, "Adaptive Filter Theory", the chapter on recursive least squares; the ridge that does not fade follows
Gunnarsson, 1996, "Combining tracking and regularization in recursive least squares identification".
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from flead.compilation import EntryPoint, carray, kernel
from flead.errors import BadModel
from flead.network import Vector
from flead.plugins import Spec

FORGETTING = 0.999
"""What a reading's weight is multiplied by at each later one: a memory of 1,000 readings."""
RIDGE = 10.0
"""How many rows' worth of "this weight is zero" each weight is held by, whatever is forgotten."""
ERROR_LIMIT = 0.5
"""Errors count up to this many standard deviations (Huber's loss), so that no outlier owns a step."""
# Chosen on four Intel Lab motes: with a ridge of 1 a device's first hours at 10 minutes were several times worse, with
# 0.01 the forecasts of light ran away; a memory of 2,000 readings and an error limit of 1 were a little worse.


class Linear:
    """Each sensor's changes, linear in its own features, the shared ones and 1.

    A filter keeps the inverse correlation P of its inputs x. Every horizon of a sensor sees the same inputs, only
    later, so there is one P per sensor: the first horizon updates it, and the later ones use it with the features of
    then. The gain of least squares is P x with x already counted in P, so for a horizon that comes later P x is that
    gain (with some more rows counted: 20 of 1,000). Where x was never counted, because the next reading was missing,
    the step is cut to what makes the error zero.

    Forgetting alone would let P grow without bound where inputs do not vary. So at each step one weight in turn is
    also told to be zero, as strongly as the ridge has faded in a round of all weights: P stays below about
    1 / `RIDGE`, and weights that nothing supports fade away.

    >>> model = Linear(Spec(("temperature",), per_sensor=1, horizons=1))
    >>> for x in np.random.default_rng(0).normal(size=(200, 1)):
    ...     model.learn(x, target=0.5 * x - 0.1, observed=np.ones(1))
    >>> model.predict(np.array([1.0])).round(2)
    array([0.38])
    """

    name: ClassVar[str] = "linear"

    def __init__(self, spec: Spec) -> None:
        n, horizons = len(spec.sensors), spec.horizons
        d = spec.per_sensor + spec.shared + 1  # inputs of one filter
        self._own = n * spec.per_sensor
        self.parameters: Vector = np.zeros(n * horizons * d)
        self._weights = self.parameters.reshape(n, horizons, d)
        self._inverse = np.tile(np.eye(d) / RIDGE, (n, 1, 1))  # P
        self._integers = np.array([n, horizons, d] + [0] * n, dtype=np.int64)
        self._steps = self._integers[3:]  # updates of each P
        given = np.ones(n * d + 2 * n * horizons)
        self._inputs = given[: n * d].reshape(n, d)
        self._target, self._observed = given[n * d :].reshape(2, -1)
        self._step = _STEP.bind(self._integers, self.parameters, self._inverse, given)

    def predict(self, features: Vector) -> Vector:
        """The expected changes: (n_features,) to (n_outputs,)."""
        self._arrange(features)
        changes = self._weights @ self._inputs[:, :, None]  # (sensors, horizons, 1)
        return changes[:, :, 0].T.ravel()

    def learn(self, features: Vector, target: Vector, observed: Vector) -> None:
        """One step of every filter whose target, (n_outputs,), was observed."""
        self._arrange(features)
        self._target[:] = target
        self._observed[:] = observed
        self._step()

    def _arrange(self, features: Vector) -> None:
        """Write each filter's inputs: its sensor's features, the shared ones, and 1."""
        n, own = len(self._inputs), self._own // len(self._inputs)
        self._inputs[:, :own] = features[: self._own].reshape(n, own)
        self._inputs[:, own:-1] = features[self._own :]

    def to_bytes(self) -> bytes:
        """The steps, the weights, and each P's upper triangle."""
        upper = self._inverse[:, *np.triu_indices(self._inverse.shape[1])]
        return self._steps.astype("<i8").tobytes() + self.parameters.tobytes() + upper.tobytes()

    @classmethod
    def from_bytes(cls, raw: bytes, spec: Spec) -> Self:
        """Continue from `to_bytes`."""
        model = cls(spec)
        rows, columns = np.triu_indices(model._inverse.shape[1])
        sizes = [model._steps.size, model.parameters.size, model._steps.size * rows.size]
        if len(raw) != 8 * sum(sizes):
            raise BadModel(f"state of a linear model has {len(raw)} bytes, for this spec it has {8 * sum(sizes)}")
        model._steps[:] = np.frombuffer(raw, "<i8", sizes[0])
        numbers = np.frombuffer(raw, "<f8", offset=8 * sizes[0])
        model.parameters[:] = numbers[: sizes[1]]
        upper = numbers[sizes[1] :].reshape(-1, rows.size)
        model._inverse[:, rows, columns] = upper
        model._inverse[:, columns, rows] = upper
        return model


def _learn(
    integers: Any, n_integers: int, parameters: Any, _1: int, inverse: Any, _2: int, given: Any, n_given: int
) -> None:
    """One step of every filter.

    Parameters
    ----------
    integers:
        how many sensors, horizons and inputs, then each sensor's steps
    given:
        inputs (sensors, inputs), target (horizons, sensors), observed (horizons, sensors)
    """
    whole, numbers = carray(integers, n_integers), carray(given, n_given)
    n, horizons, d = whole[0], whole[1], whole[2]
    weights, inverses = carray(parameters, (n, horizons, d)), carray(inverse, (n, d, d))
    target, observed = numbers[n * d :], numbers[n * d + n * horizons :]
    strength = (1.0 - FORGETTING) * RIDGE * d  # of the ridge's row: each weight has its turn every d steps
    p_x, column = np.empty(d), np.empty(d)
    for s in range(n):
        x, p = numbers[s * d : (s + 1) * d], inverses[s]
        for i in range(d):
            p_x[i] = _dot(p[i], x)
        power = _dot(p_x, x)
        counted = observed[s] > 0
        divisor = FORGETTING + power if counted else max(1.0, power)
        if counted:
            _subtract(p, p_x, 1.0 / divisor)
            for i in range(d):
                for j in range(d):
                    p[i, j] /= FORGETTING
        turn = whole[3 + s] % d
        for i in range(d):
            column[i] = p[turn, i]
        pull = strength / (1.0 + strength * column[turn])
        if counted:
            _subtract(p, column, pull)
            whole[3 + s] += 1
        for h in range(horizons):
            if observed[h * n + s] > 0:
                w = weights[s, h]
                wrong = target[h * n + s] - _dot(w, x)
                step = min(max(wrong, -ERROR_LIMIT), ERROR_LIMIT) / divisor
                held = pull * (w[turn] + step * p_x[turn])
                for i in range(d):
                    w[i] += step * p_x[i] - held * column[i]


@kernel
def _dot(a: Vector, b: Vector) -> float:
    total = 0.0  # not NumPy's, which takes seconds to compile
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@kernel
def _subtract(p: Vector, v: Vector, factor: float) -> None:
    """P - factor v v': one half is computed and mirrored, or rounding would make P lopsided."""
    for i in range(v.size):
        for j in range(i + 1):
            p[i, j] = p[j, i] = p[i, j] - v[i] * v[j] * factor


_STEP = EntryPoint(_learn)
