"""What a model or a detector is to a learner, and how one is found by its name.

A plug-in is one class with the few methods below. FLEAD's own are declared in `BUILT_IN`; anybody else's come from
installed packages that name their class in the entry-point group `flead.forecasters` or `flead.detectors`, in the
environment that the stream runs in. Both are loaded the same way; where a name is taken twice, FLEAD's own wins.
`tests/test_plugins.py` is the contract: it runs over every plug-in that `known` lists, installed ones included.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Protocol, Self

from flead.errors import BadConfiguration
from flead.learner_config import Optimiser
from flead.network import Vector

FORECASTERS = "flead.forecasters"
DETECTORS = "flead.detectors"

BUILT_IN = (
    EntryPoint("linear", "flead.forecasters.linear:Linear", FORECASTERS),
    EntryPoint("network", "flead.forecasters.network:Network", FORECASTERS),
    EntryPoint("persistence", "flead.forecasters.persistence:Persistence", FORECASTERS),
    EntryPoint("tflite", "flead.forecasters.tflite:TfLite", FORECASTERS),
    EntryPoint("tflite_int8", "flead.forecasters.tflite:TfLiteInt8", FORECASTERS),
    EntryPoint("half_space_trees", "flead.detectors.half_space_trees:HalfSpaceTrees", DETECTORS),
    EntryPoint("isolation_forest", "flead.detectors.isolation_forest:IsolationForest", DETECTORS),
)


@dataclass(frozen=True)
class Spec:
    """What a plug-in is made for: a device's sensors, the features made of them, and hyper-parameters.

    Features are one block per sensor, in the order of `sensors`, then what all sensors share. Outputs are all sensors
    of the first horizon, then all of the second, and so on. Features are finite, in standard deviations within
    +-`features.CLIP`.

    >>> spec = Spec(("humidity", "temperature"), per_sensor=3, shared=4)
    >>> spec.n_features, spec.n_outputs
    (10, 4)
    """

    sensors: tuple[str, ...]
    per_sensor: int
    """Features of each sensor, the most telling first."""
    shared: int = 0
    """Features that belong to no sensor: the time of day."""
    horizons: int = 2
    """How far ahead a forecast looks: the next reading, then 10 minutes."""
    hidden_sizes: tuple[int, ...] = (32,)
    learning_rate: float = 0.001
    seed: int = 0
    skip: bool = True
    """Whether a network's last layer also sees the features themselves."""
    optimiser: Optimiser = Optimiser.SGD
    learning_rate_decay: float = 100_000.0
    """Steps after which the learning rate is halved."""
    gradient_clip: float = 1.0
    """Longest gradient, Euclidean."""

    @property
    def n_features(self) -> int:
        """The length of a feature vector."""
        return len(self.sensors) * self.per_sensor + self.shared

    @property
    def n_outputs(self) -> int:
        """The length of a forecast."""
        return self.horizons * len(self.sensors)


class Forecaster(Protocol):
    """A model of one device: it predicts how each sensor changes, and learns from what came.

    The same spec and the same calls give the same numbers; outputs are finite for all features within the limit;
    state stays bounded however long the stream.

    Two things a forecaster may have besides: a property `architecture`, by which its parameters travel as a network's
    layers, and a method `drifted()`, called after a reading with which the device's errors have risen for good.
    """

    name: ClassVar[str]

    def __init__(self, spec: Spec) -> None: ...

    @property
    def parameters(self) -> Vector:
        """What the federation averages: flat, and writing to it changes the model; of size 0 where there is nothing.

        The shape follows from the spec alone, so that devices of one cohort fit together.
        """
        ...

    def predict(self, features: Vector) -> Vector:
        """The expected changes in standard deviations, (n_features,) to (n_outputs,); changes nothing."""
        ...

    def learn(self, features: Vector, target: Vector, observed: Vector) -> None:
        """Take one step; what was not observed teaches nothing.

        A horizon is learned when its time has come: the 10-minute one by a later call, with the features of then.

        Parameters
        ----------
        features:
            (n_features,), from when the forecast was made
        target:
            (n_outputs,), the changes that came, finite
        observed:
            (n_outputs,), 1 where the target is known, else 0
        """
        ...

    def to_bytes(self) -> bytes:
        """The whole state."""
        ...

    @classmethod
    def from_bytes(cls, raw: bytes, spec: Spec) -> Self:
        """Continue exactly from `to_bytes`; raises `BadModel` where the bytes do not fit the spec."""
        ...


class Detector(Protocol):
    """A model of what is usual on one device: it says how strange a reading is, and learns from it.

    The same promises as a forecaster's.
    """

    name: ClassVar[str]

    def __init__(self, spec: Spec) -> None: ...

    def score(self, features: Vector) -> float:
        """How strange the features are, (n_features,); higher is stranger, on any finite scale; changes nothing.

        0.0 while warming up. The learner makes a probability of it from the device's own history.
        """
        ...

    def learn(self, features: Vector) -> None:
        """Take these features, (n_features,), as usual."""
        ...

    def to_bytes(self) -> bytes:
        """The whole state."""
        ...

    @classmethod
    def from_bytes(cls, raw: bytes, spec: Spec) -> Self:
        """Continue exactly from `to_bytes`; raises `BadModel` where the bytes do not fit the spec."""
        ...


_METHODS = {
    FORECASTERS: ("predict", "learn", "to_bytes", "from_bytes"),
    DETECTORS: ("score", "learn", "to_bytes", "from_bytes"),
}


def known(group: str) -> tuple[str, ...]:
    """The names that can be found in a group, FLEAD's own and installed ones.

    >>> "persistence" in known(FORECASTERS), "persistence" in known(DETECTORS)
    (True, False)
    """
    return tuple(sorted(_declared(group)))


def find_forecaster(name: str) -> type[Forecaster]:
    """The forecaster of this name; raises `BadConfiguration` where there is none or it does not load.

    >>> find_forecaster("linear").name
    'linear'
    """
    found: type[Forecaster] = _load(FORECASTERS, name)
    return found


def find_detector(name: str) -> type[Detector]:
    """The detector of this name; raises `BadConfiguration` where there is none or it does not load.

    >>> find_detector("psychic")
    Traceback (most recent call last):
    flead.errors.BadConfiguration: no plug-in 'psychic' in flead.detectors; known: half_space_trees, isolation_forest
    """
    found: type[Detector] = _load(DETECTORS, name)
    return found


def _declared(group: str) -> dict[str, EntryPoint]:
    """Entry points by name: the first one of a name wins, and FLEAD's own come first."""
    declared: dict[str, EntryPoint] = {}
    for point in (*(own for own in BUILT_IN if own.group == group), *entry_points(group=group)):
        declared.setdefault(point.name, point)
    return declared


def _load(group: str, name: str) -> Any:
    declared = _declared(group)
    if name not in declared:
        raise BadConfiguration(f"no plug-in {name!r} in {group}; known: {', '.join(sorted(declared))}")
    point = declared[name]
    source = f" of package {point.dist.name}" if point.dist else ""
    try:
        # In a thread of Python's own: libraries made with pybind11, SciPy's among them, ask `PyGILState` while they are
        # imported, which hangs in Flink's threads.
        with ThreadPoolExecutor(1, thread_name_prefix=f"import {name}") as outside:
            loaded = outside.submit(point.load).result()
    except Exception as error:  # whatever a foreign module raises while it is imported
        raise BadConfiguration(
            f"plug-in {name!r}{source} ({point.value}) does not load: {type(error).__name__}: {error}"
        ) from error
    missing = [method for method in _METHODS[group] if not callable(getattr(loaded, method, None))]
    if missing:
        raise BadConfiguration(f"plug-in {name!r}{source} ({point.value}) lacks {', '.join(missing)}")
    return loaded
