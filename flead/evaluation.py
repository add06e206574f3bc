"""Offline federation over recorded days: how good forecasts are, by method, horizon, sensor and device.

The features, the scaling, the network and the averaging are those of the stream (`flead.learning`); only the network's
steps are taken in batches. A device's own scaling goes on through the test day, as it does on a stream; weights stay
as they were trained, except in the method `streamed`, which is the stream's learner itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flead import learning, metrics, network, state
from flead.errors import BadDataset
from flead.features import BINS, DAY
from flead.learner import DeviceLearner
from flead.learner_config import Adoption, LearnerConfig
from flead.learning import LARGEST_STEP, LARGEST_SWING
from flead.messages import cohort_of
from flead.network import Architecture, Vector
from flead.routines import SLOTS, practise_all, routines_at
from flead.training import Examples, Federation, federate, times_of_day, train

METHODS = ("persistence", "seasonal", "local", "federated", "personalised", "streamed", "centralised")
"""`persistence`: no change. `seasonal`: the change at the same time of an earlier day. `local`: a network of the
device's own. `federated`: the global model. `personalised`: the global model, fine-tuned on the device, with habits of
the device's own, what its time of day adds to the forecast of the horizon, and routines of its own, what its forecasts
usually leave at this time of a working or of a free day. `streamed`: the stream's learner, given the global model,
learning on. `centralised`: one network on everybody's data."""
COLD_METHODS = ("persistence", "local", "federated")

HOUR = 3_600.0
LONGEST_NEXT_S = 300.0
"""A reading that comes later than this is no next reading, s."""
TOLERANCE = 0.1
"""How far from the horizon a reading may lie, as a share of it."""
LONGEST_SEASON = 7
"""How many days back `seasonal` looks for the same time of day."""
HEAVIEST = 4.0
"""Largest weight of an early example of the horizon, whose scale was still smaller than it became."""
FEWEST = 200
"""Examples that a device needs to be trained."""


@dataclass(frozen=True)
class Series:
    """One device's readings in time order: (m,) times (s) and (m, n) values, NaN where there is none."""

    device: str
    times: Vector
    values: Vector


@dataclass(frozen=True)
class Plan:
    """How the models are trained."""

    federation: Federation = field(default_factory=Federation)
    personal_epochs: int = 3
    personal_rate: float = 0.001
    local_epochs: int = 6
    local_rate: float = 0.002
    central_epochs: int = 5
    seed: int = 0


@dataclass(frozen=True)
class Task:
    """What is asked of a device on the test day, and what is known to answer it.

    Attributes
    ----------
    features: (m, n_features) after each reading
    changes: (m, 2 n) what came: the change to the next reading, and to the horizon; NaN where nothing came in time
    seasonal: (m, 2 n) the same of an earlier day; 0 where there is none
    scales: (m, 2 n) the units of a model's outputs
    """

    features: Vector
    changes: Vector
    seasonal: Vector
    scales: Vector

    def __getitem__(self, rows: NDArray[np.bool_] | slice) -> Task:
        return Task(self.features[rows], self.changes[rows], self.seasonal[rows], self.scales[rows])


@dataclass(frozen=True)
class Evaluation:
    """The outcome: errors by method, as `errors[method][device]`, (m, 2 n) each, and those of a cold start."""

    sensors: tuple[str, ...]
    horizon_s: float
    devices: tuple[str, ...]
    errors: Mapping[str, list[Vector]]
    cold: Mapping[str, list[Vector]]
    rounds: list[float]
    """Mean skill of the global model after each round, on the test day."""
    theta: Vector
    architecture: Architecture

    @property
    def horizons(self) -> tuple[str, str]:
        """How the horizons are called."""
        return horizon_names(self.horizon_s)

    def as_dict(self, seed: int = 0) -> dict[str, Any]:
        """As it is written to JSON: RMSE, skill, confidence intervals, and both by device."""
        rng = np.random.default_rng(seed)
        rmse: dict[str, Any] = {}
        skill: dict[str, Any] = {}
        interval: dict[str, Any] = {}
        by_device: dict[str, Any] = {name: {} for name in self.devices}
        cold: dict[str, Any] = {}
        for h, horizon in enumerate(self.horizons):
            for s, sensor in enumerate(self.sensors):
                column = h * len(self.sensors) + s
                base = [e[:, column] for e in self.errors["persistence"]]
                for method, errors in self.errors.items():
                    own = [e[:, column] for e in errors]
                    put(rmse, (horizon, sensor, method), metrics.rmse(np.concatenate(own)))
                    put(skill, (horizon, sensor, method), metrics.skill(np.concatenate(own), np.concatenate(base)))
                    bounds = metrics.skill_interval(own, base, rng)
                    put(interval, (horizon, sensor, method), [bounds.low, bounds.high])
                    for name, mine, reference in zip(self.devices, own, base, strict=True):
                        put(by_device[name], (horizon, sensor, method), metrics.skill(mine, reference))
                cold_base = np.concatenate([e[:, column] for e in self.cold["persistence"]])
                for method, errors in self.cold.items():
                    own = [e[:, column] for e in errors]
                    put(cold, (horizon, sensor, method), metrics.skill(np.concatenate(own), cold_base))
        return {
            "sensors": list(self.sensors),
            "devices": list(self.devices),
            "rmse": rmse,
            "skill": skill | {"cold_start": cold},
            "mean_skill": {**mean_by_method(skill), "cold_start": mean_by_method(cold)},
            "skill_interval_95": interval,
            "skill_by_device": by_device,
            "skill_by_round": self.rounds,
            "architecture": self.architecture.as_dict(),
        }


def horizon_names(horizon_s: float) -> tuple[str, str]:
    """How the next reading and a horizon (s) are called in figures.

    >>> horizon_names(600.0)
    ('next', '10min')
    """
    return "next", f"{horizon_s / 60:g}min"


def put(into: dict[str, Any], path: Sequence[str], value: float | list[float]) -> None:
    """Write a figure where a path of keys leads."""
    for key in path[:-1]:
        into = into.setdefault(key, {})
    into[path[-1]] = value


def mean_by_method(skill: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The mean over sensors, by horizon and method."""
    return {
        horizon: {
            method: _known_mean([by_method[method] for by_method in sensors.values()])
            for method in next(iter(sensors.values()))
        }
        for horizon, sensors in skill.items()
    }


def _known_mean(values: Sequence[float]) -> float:
    """Without the sensors of which nothing is known: one that gave no value, or never changed."""
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


Progress = Callable[[str, float], None]
"""Called with what is being done and how much of it is done, 0 to 1."""


def evaluate(
    train_days: Sequence[Series], test_days: Sequence[Series], sensors: tuple[str, ...], config: LearnerConfig,
    plan: Plan, on_progress: Progress = lambda _what, _share: None,
) -> Evaluation:  # fmt: skip
    """Train every method on some days and test it on others.

    Parameters
    ----------
    train_days, test_days:
        the same devices' readings; the test days come later

    Raises
    ------
    BadDataset
        where no device has readings on both sides
    """
    before = {series.device: series for series in train_days}
    after = {series.device: series for series in test_days if len(series.times)}
    names = tuple(name for name in before if name in after)
    if not names:
        raise BadDataset("no device has readings in both files: give days of the same fleet")
    architecture = state.architecture_of(config, len(sensors))
    rng = np.random.default_rng([config.seed, plan.seed])
    start = network.initial(architecture, rng)
    devices = []
    for i, name in enumerate(names):
        on_progress("reading the past", i / len(names))
        devices.append(_Device.of(before[name], after[name], config))
    tasks, rounds = [device.task for device in devices], list[float]()

    def after_round(number: int, theta: Vector) -> None:
        on_progress("federating", number / plan.federation.rounds)
        rounds.append(_mean_skill([_errors(theta, architecture, task) for task in tasks], tasks))

    known = [device.known for device in devices]
    theta = federate(start, architecture, known, rng, plan.federation, after_round)
    central = _centralised(start, architecture, Examples.together(known), rng, plan, on_progress)
    errors: dict[str, list[Vector]] = {method: [] for method in METHODS}
    cold: dict[str, list[Vector]] = {method: [] for method in COLD_METHODS}
    for i, device in enumerate(devices):
        on_progress("fitting devices", i / len(devices))
        task, times = device.task, device.new.times
        own, personal = start, np.concatenate((theta, np.zeros(BINS * len(sensors))))
        routines = np.zeros((2 * SLOTS, 2 * len(sensors)))
        if len(device.known) >= FEWEST:
            own = train(
                start, architecture, device.known, rng, epochs=plan.local_epochs, rate=plan.local_rate, average=0.01,
                cosine=True,
            )  # fmt: skip
            personal = _personalised(personal, architecture, device, rng, plan)
            left = -_errors(personal, architecture, device.past, device.old.times)
            practise_all(routines, device.old.times, left, device.past.scales)
        errors["persistence"].append(-task.changes)
        errors["seasonal"].append(task.seasonal - task.changes)
        errors["streamed"].append(_streamed(device.old, device.new, theta, config, sensors) - task.changes)
        for method, weights in (("local", own), ("federated", theta), ("centralised", central)):
            errors[method].append(_errors(weights, architecture, task))
        usual = routines_at(routines, times, task.scales)
        errors["personalised"].append(_errors(personal, architecture, task, times) + usual)
        beginner = start
        if len(device.hour):
            beginner = train(start, architecture, device.hour, rng, epochs=10, rate=plan.personal_rate, batch=16)
        cold["persistence"].append(-device.cold.changes)
        cold["local"].append(_errors(beginner, architecture, device.cold))
        cold["federated"].append(_errors(theta, architecture, device.cold))
    on_progress("done", 1.0)
    return Evaluation(sensors, config.horizon_s, names, errors, cold, rounds, theta, architecture)


@dataclass(frozen=True)
class _Device:
    """One device's days: what it can be taught, and what is asked of it.

    Attributes
    ----------
    old, new: the training days and the test days
    past, known: what was asked of it on the training days, and what that teaches
    task: what is asked on the test days, the features warm from the training days
    hour, cold: what its first hour teaches a device without a past, and what is asked of it from then on
    """

    old: Series
    new: Series
    past: Task
    known: Examples
    task: Task
    hour: Examples
    cold: Task

    @classmethod
    def of(cls, old: Series, new: Series, config: LearnerConfig) -> _Device:
        """Follow a device through its days, with its past and without."""
        past, both, fresh = _task(old, config), _task(joined(old, new), config), _task(new, config)
        first = new.times < new.times[0] + HOUR
        task = both[slice(len(old.times), None)]
        return cls(old, new, past, _examples(past), task, _examples(fresh[first]), fresh[~first])


def _centralised(
    theta: Vector, architecture: Architecture, everything: Examples, rng: np.random.Generator, plan: Plan,
    on_progress: Progress,
) -> Vector:  # fmt: skip
    """One network on everybody's examples, in steps that grow shorter by the epoch."""
    for epoch in range(plan.central_epochs):
        on_progress("centralised", epoch / plan.central_epochs)
        share = plan.central_epochs - epoch
        rate = plan.local_rate * share / plan.central_epochs
        theta = train(theta, architecture, everything, rng, epochs=1, rate=rate, batch=128)
    return theta


def _personalised(
    theta: Vector, architecture: Architecture, device: _Device, rng: np.random.Generator, plan: Plan
) -> Vector:  # fmt: skip
    """The global model and the habits behind it, (parameter_count + BINS n,), fine-tuned on a device's own past."""
    examples = replace(device.known, personal=times_of_day(device.old.times))
    return train(
        theta, architecture, examples, rng, epochs=plan.personal_epochs, rate=plan.personal_rate, average=0.005,
        cosine=True,
    )  # fmt: skip


def joined(old: Series, new: Series) -> Series:
    """One series, the newer readings behind the older."""
    return Series(old.device, np.concatenate((old.times, new.times)), np.concatenate((old.values, new.values)))


def _task(series: Series, config: LearnerConfig) -> Task:
    """Follow a device through its readings, and look up what came of each."""
    features, scales = followed(series, config)
    changes = changes_of(series, config.horizon_s)
    return Task(features, changes, _earlier_day(series, changes), scales)


def followed(series: Series, config: LearnerConfig) -> tuple[Vector, Vector]:
    """What a model is given after each reading, (m, n_features), and the units of its outputs, (m, 2 n)."""
    m, n = series.values.shape
    sizes, buffer = state.fresh(config, n)
    features, scales = np.zeros((m, sizes[state.FEATURES])), np.zeros((m, 2 * n))
    learning.follow(sizes, buffer, np.column_stack((series.times, series.values)), features, scales)
    return features, scales


def changes_of(series: Series, horizon_s: float) -> Vector:
    """The changes to the next reading and to the horizon, (m, 2 n); NaN where nothing came in time.

    >>> changes_of(Series("m", np.array([0.0, 30.0, 600.0]), np.array([[1.0], [3.0], [8.0]])), 600.0)
    array([[ 2.,  7.],
           [nan,  5.],
           [nan, nan]])
    """
    m, n = series.values.shape
    changes = np.full((m, 2 * n), np.nan)
    if m > 1:
        near = np.diff(series.times) <= LONGEST_NEXT_S
        changes[:-1, :n][near] = np.diff(series.values, axis=0)[near]
    changes[:, n:] = _value_at(series, series.times + horizon_s, TOLERANCE * horizon_s) - series.values
    return changes


def _value_at(series: Series, times: Vector, tolerance: float) -> Vector:
    """The values nearest to these times, (m, n); NaN where none is within the tolerance, s."""
    after = np.clip(np.searchsorted(series.times, times), 1, max(len(series.times) - 1, 1))
    after = np.minimum(after, len(series.times) - 1)
    earlier = np.abs(series.times[after - 1] - times) <= np.abs(series.times[after] - times)
    nearest = np.where(earlier, np.maximum(after - 1, 0), after)
    values: Vector = series.values[nearest].copy()
    values[np.abs(series.times[nearest] - times) > tolerance] = np.nan
    return values


def _earlier_day(series: Series, changes: Vector) -> Vector:
    """What came at the same time of the nearest earlier day that knows it; 0 where none does within a minute."""
    past, known = np.full(changes.shape, np.nan), replace(series, values=changes)
    for days in range(1, LONGEST_SEASON + 1):
        rows = np.flatnonzero(np.isnan(past).any(axis=1) & (series.times - days * DAY >= series.times[0] - 60.0))
        earlier = _value_at(known, series.times[rows] - days * DAY, 60.0)
        past[rows] = np.where(np.isnan(past[rows]), earlier, past[rows])
    return np.nan_to_num(past, nan=0.0)


def examples_of(series: Series, config: LearnerConfig) -> Examples:
    """What a model can be taught of a device's readings."""
    return _examples(_task(series, config))


def _examples(task: Task) -> Examples:
    """What a model is taught: changes in its units, without outliers' pull."""
    if not len(task.features):
        return Examples(task.features, task.changes, task.changes)
    n = task.changes.shape[1] // 2
    largest = np.repeat((LARGEST_STEP, LARGEST_SWING), n)
    targets = np.clip(task.changes / task.scales, -largest, largest)
    weights = np.isfinite(targets).astype(np.float64)
    # Early rows have a tiny scale and so huge targets: they count by what their scale has become.
    weights[:, n:] *= np.minimum((task.scales[:, n:] / task.scales[-1, n:]) ** 2, HEAVIEST)
    return Examples(task.features, np.nan_to_num(targets), weights)


def _errors(theta: Vector, architecture: Architecture, task: Task, times: Vector | None = None) -> Vector:
    """Forecast less truth, in the sensors' units, (m, 2 n).

    Where theta goes on behind the network's parameters, it is with what this device's habits add at which time of day.
    """
    n, shared = task.changes.shape[1] // 2, architecture.parameter_count
    largest = np.repeat((LARGEST_STEP, LARGEST_SWING), n)
    forecast = network.forward(theta[:shared], architecture, task.features)
    if times is not None and theta.size > shared:
        forecast[:, n:] += times_of_day(times) @ theta[shared:].reshape(BINS, n)
    forecast = np.clip(forecast, -largest, largest) * task.scales
    wrong: Vector = forecast - task.changes
    return wrong


def _streamed(old: Series, new: Series, theta: Vector, config: LearnerConfig, sensors: tuple[str, ...]) -> Vector:
    """The changes that the stream's learner forecasts on the test day, (m, 2 n)."""
    learner = DeviceLearner(sensors, config.model_copy(update={"adoption": Adoption.REPLACE}))
    learner.process_frame(old.times, old.values)
    learner.adopt(theta, 1)
    said = learner.process_frame(new.times, new.values)
    return np.concatenate((said.forecast - new.values, said.horizon - new.values), axis=1)


def _mean_skill(errors: list[Vector], tasks: list[Task]) -> float:
    together, base = np.concatenate(errors), np.concatenate([task.changes for task in tasks])
    return _known_mean([metrics.skill(together[:, j], base[:, j]) for j in range(base.shape[1])])


def cohort_frames(frames: Sequence[Any]) -> tuple[tuple[str, ...], list[Series]]:
    """The largest cohort among frames of devices: its sensors and its series.

    Devices of other sensors share no model with it, and are left out.
    """
    cohorts: dict[str, list[Any]] = {}
    for frame in frames:
        cohorts.setdefault(cohort_of(frame.sensors), []).append(frame)
    largest = max(cohorts.values(), key=len)
    return largest[0].sensors, [Series(frame.device, frame.times, frame.values) for frame in largest]
