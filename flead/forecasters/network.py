"""The learner's own network as a plug-in: the same kernels, called from Python.

A learner that is configured with `network` runs them in its compiled loop and does not come by here; this class is
for what predicts in another way and learns in the same (`flead.forecasters.tflite`), and for plug-ins to start from.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from flead import network
from flead.compilation import EntryPoint, carray
from flead.errors import BadModel
from flead.learner_config import Optimiser
from flead.learning import HUBER
from flead.messages import cohort_of
from flead.network import Architecture, Vector, activate, descend
from flead.plugins import Spec


class Network:
    """A multilayer perceptron that takes one step down the gradient of Huber's loss for each example.

    >>> model = Network(Spec(("temperature",), per_sensor=1, horizons=1, learning_rate=0.1))
    >>> for x in np.random.default_rng(0).normal(size=(500, 1)):
    ...     model.learn(x, target=0.5 * x - 0.1, observed=np.ones(1))
    >>> model.predict(np.array([1.0])).round(2)
    array([0.4])
    """

    name: ClassVar[str] = "network"

    def __init__(self, spec: Spec) -> None:
        self.architecture = Architecture(spec.n_features, spec.hidden_sizes, spec.n_outputs, spec.skip)
        count, sizes = self.architecture.parameter_count, self.architecture.sizes
        optimiser = list(Optimiser).index(spec.optimiser)
        # Parameters, what the optimiser remembers, and the steps since the start or the last drift.
        self._kept = np.zeros(count + network.moments_size(optimiser, count) + 1)
        self.parameters: Vector = self._kept[:count]
        self.parameters[:] = network.initial_of_cohort(self.architecture, cohort_of(spec.sensors), spec.seed)
        header = np.array([count, optimiser, spec.skip, *sizes], dtype=np.int64)
        work = np.zeros(2 * sum(sizes))  # values and slopes of each layer
        self._features, self._changes = work[: sizes[0]], work[sum(sizes) - sizes[-1] : sum(sizes)]
        given = np.zeros(3 + 2 * sizes[-1])
        given[:3] = spec.learning_rate, spec.learning_rate_decay, spec.gradient_clip
        self._target, self._observed = given[3:].reshape(2, -1)
        arrays = header, self._kept, work, given
        self._activate, self._descend = _ACTIVATE.bind(*arrays), _DESCEND.bind(*arrays)

    def predict(self, features: Vector) -> Vector:
        """The expected changes: (n_features,) to (n_outputs,)."""
        self._features[:] = features
        self._activate()
        return self._changes.copy()

    def learn(self, features: Vector, target: Vector, observed: Vector) -> None:
        """One step down the gradient of what was observed, (n_outputs,)."""
        self._features[:] = features
        self._target[:] = target
        self._observed[:] = observed
        self._descend()

    def drifted(self) -> None:
        """Learn as quickly as at the start."""
        self._kept[-1] = 0.0

    def to_bytes(self) -> bytes:
        """The parameters, what the optimiser remembers, and the steps."""
        return self._kept.tobytes()

    @classmethod
    def from_bytes(cls, raw: bytes, spec: Spec) -> Self:
        """Continue from `to_bytes`."""
        model = cls(spec)
        if len(raw) != model._kept.nbytes:
            raise BadModel(f"state of a network has {len(raw)} bytes, for this spec it has {model._kept.nbytes}")
        model._kept[:] = np.frombuffer(raw, "<f8")
        return model


def _forward(
    header: Any, n_header: int, kept: Any, n_kept: int, work: Any, n_work: int, _given: Any, _n_given: int
) -> None:
    """One forward pass.

    Parameters
    ----------
    header:
        how many parameters, the optimiser, whether inputs skip to the last layer, then every layer's width
    kept:
        parameters, the optimiser's memory, steps
    work:
        the values of every layer, inputs first, then as many slopes
    """
    whole, theta, values = carray(header, (n_header,)), carray(kept, (n_kept,)), carray(work, (n_work,))
    activate(theta[: whole[0]], whole[3:], whole[2] == 1, values[: n_work // 2])


def _step(header: Any, n_header: int, kept: Any, n_kept: int, work: Any, n_work: int, given: Any, n_given: int) -> None:
    """One step of learning, as in `flead.learning.learn`.

    Parameters
    ----------
    given:
        the learning rate, the steps that halve it, the longest gradient; targets; observed
    """
    whole, state = carray(header, (n_header,)), carray(kept, (n_kept,))
    room, numbers = carray(work, (n_work,)), carray(given, (n_given,))
    theta, moments, widths, skip = state[: whole[0]], state[whole[0] : n_kept - 1], whole[3:], whole[2] == 1
    values, slopes = room[: n_work // 2], room[n_work // 2 :]
    outputs = (n_given - 3) // 2
    target, observed = numbers[3 : 3 + outputs], numbers[3 + outputs :]
    at = activate(theta, widths, skip, values)
    for j in range(outputs):
        slopes[at + j] = min(max(values[at + j] - target[j], -HUBER), HUBER) * observed[j]
    rate = numbers[0] / (1.0 + state[n_kept - 1] / numbers[1])
    descend(theta, widths, skip, values, slopes, moments, whole[1], rate, numbers[2])
    state[n_kept - 1] += 1.0


_ACTIVATE, _DESCEND = EntryPoint(_forward), EntryPoint(_step)
