"""What the global model, as it comes, would have forecast on the live stream: from the device's features only.

Which version is scored is in the data: each prediction names the one that its device had adopted when the reading came,
the newest that had been published then. Done again after a crash, a micro-batch is scored by the same versions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pydantic import ValidationError

from flead import drift, features, learning, network, state
from flead.errors import BadModel
from flead.evaluation import LONGEST_NEXT_S
from flead.learner_config import LearnerConfig
from flead.learning import LARGEST_STEP
from flead.messages import WeightsMessage
from flead.network import Architecture, Vector
from storage.connection import Document, translated

log = logging.getLogger(__name__)


class Model(NamedTuple):
    """A global model: (parameter_count,) and its sizes."""

    theta: Vector
    architecture: Architecture


Find = Callable[[str, int], Model | None]
"""Gives a cohort's global model of a version; None where there is none."""


class Models:
    """The global models of a database, each read once and kept; a worker has one of these.

    Parameters
    ----------
    read:
        gives the document with this `_id` of `global_model`
    clock:
        monotonic seconds
    """

    MOST = 256
    AGAIN_S = 10.0
    """After which a version that was not found is looked for again, s."""

    def __init__(self, read: Callable[[str], Document | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._models: dict[tuple[str, int], Model] = {}
        self._missing: dict[tuple[str, int], float] = {}

    def __call__(self, cohort: str, version: int) -> Model | None:
        """A cohort's model of a version; raises `Unavailable` where it is not known and MongoDB does not answer."""
        key = cohort, version
        if key in self._models:
            return self._models[key]
        if self._clock() - self._missing.get(key, -np.inf) < self.AGAIN_S:
            return None
        with translated():
            document = self._read(f"{cohort}#{version}")
        model = _model(document)
        for kept in (self._models, self._missing):
            if len(kept) >= self.MOST:
                kept.clear()
        if model is None:
            self._missing[key] = self._clock()
        else:
            self._models[key] = model
        return model


def _model(document: Document | None) -> Model | None:
    try:
        return Model(*network.from_message(WeightsMessage.model_validate((document or {})["weights"])))
    except (KeyError, ValidationError, BadModel):
        return None


class Follower:
    """A device's features, kept up to date by its readings: its learner's past without its model.

    Parameters
    ----------
    sensors:
        sorted names, the learner's
    config:
        the learners'
    raw:
        what `to_bytes` gave; of another configuration, it is not gone on from
    """

    __slots__ = ("_buffer", "_previous", "_sizes", "sensors")

    def __init__(self, sensors: tuple[str, ...], config: LearnerConfig, raw: bytes | None = None) -> None:
        self.sensors = sensors
        # With a forecaster that is none of the loop's own, the buffer has no room for weights.
        self._sizes, self._buffer = state.fresh(config.model_copy(update={"forecaster": "persistence"}), len(sensors))
        self._previous = np.zeros(self._n_features + 2 * len(sensors))  # features, scales and values, last time
        self._previous[-len(sensors) :] = np.nan
        if raw is not None and len(raw) == 8 * (self._kept + self._previous.size):
            numbers = np.frombuffer(raw, dtype="<f8")
            self._buffer[: self._kept] = numbers[: self._kept]
            self._previous = numbers[self._kept :].copy()

    @property
    def _n_features(self) -> int:
        return int(self._sizes[state.FEATURES])

    @property
    def _kept(self) -> int:
        """How many numbers are the past: behind them come scores and drift, which nobody reads here."""
        return state.sizes_of(self._sizes)[0] - int(self._sizes[state.SCORES]) - drift.ADWIN_SIZE

    @property
    def interval(self) -> float:
        """The device's typical time between two readings, s; 0 before there were two."""
        return float(self._buffer[features.INTERVAL])

    def to_bytes(self) -> bytes:
        """The whole state, little-endian."""
        return self._buffer[: self._kept].astype("<f8").tobytes() + self._previous.astype("<f8").tobytes()

    def follow(self, times: Vector, values: Vector) -> Asked:
        """Take readings in, and say what was known before each of them, and what came.

        Parameters
        ----------
        times:
            (m,), s
        values:
            (m, n), NaN where there is none
        """
        (m, n), f = values.shape, self._n_features
        seen, last_time = self._buffer[features.READINGS], self._buffer[features.LAST_TIME]
        given = np.ascontiguousarray(np.column_stack((times, values)), dtype=np.float64)
        made, scales = np.zeros((m, f)), np.zeros((m, 2 * n))
        learning.follow(self._sizes, self._buffer, given, made, scales)
        known = _filled(np.vstack((self._previous[f + n :], values)))
        before = np.vstack((self._previous[:f], made[:-1]))
        units = np.vstack((self._previous[f : f + n], scales[:-1, :n]))
        gaps = np.diff(times, prepend=last_time)
        self._previous = np.concatenate((made[-1], scales[-1, :n], known[-1]))
        with np.errstate(divide="ignore", invalid="ignore"):  # before the first reading there is no unit
            changes = (values - known[:-1]) / units
        usable = (gaps > 0.0) & (gaps <= LONGEST_NEXT_S) & (seen + np.arange(m) > features.WARM)
        changes[~usable] = np.nan
        return Asked(before, np.clip(changes, -LARGEST_STEP, LARGEST_STEP))


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked of a model before each reading, and what came.

    Attributes
    ----------
    features: (m, n_features)
    changes: (m, n) to the reading from the last known value, in typical changes; NaN where nothing is asked
    """

    features: Vector
    changes: Vector


@dataclass(frozen=True, slots=True)
class Score:
    """What a version was worth in a minute: sums over `count` readings, in typical changes."""

    minute: float
    version: int
    count: int
    error: float
    persistence: float


def score(asked: Asked, model: Model, version: int, minutes: Vector, rows: Sequence[int]) -> Iterator[Score]:
    """Score one version of the global model on some of the readings, all at once.

    Parameters
    ----------
    minutes:
        (m,) the minute of each reading, s since 1970
    rows:
        which readings it is asked about

    Raises
    ------
    BadModel
        where it was made for other features or sensors
    """
    n, architecture = asked.changes.shape[1], model.architecture
    if (architecture.input_size, architecture.output_size) != (asked.features.shape[1], 2 * n):
        raise BadModel(f"{architecture} does not fit {asked.features.shape[1]} features of {n} sensors")
    chosen = np.asarray(rows, dtype=np.int64)
    chosen = chosen[np.isfinite(asked.changes[chosen]).any(axis=1)]
    if not chosen.size:
        return
    changes = asked.changes[chosen]
    forecast = np.clip(network.forward(*model, asked.features[chosen])[:, :n], -LARGEST_STEP, LARGEST_STEP)
    error, persistence = np.nanmean(np.abs(forecast - changes), axis=1), np.nanmean(np.abs(changes), axis=1)
    starts, of = np.unique(minutes[chosen], return_inverse=True)
    counts, errors, base = (np.bincount(of, weights) for weights in (None, error, persistence))
    for i, start in enumerate(starts):
        yield Score(float(start), version, int(counts[i]), float(errors[i]), float(base[i]))


def _filled(values: Vector) -> Vector:
    """Each column with its last known value where there is none, (m, n); NaN before there was one."""
    rows = np.where(np.isnan(values), 0, np.arange(len(values))[:, None])
    filled: Vector = np.take_along_axis(values, np.maximum.accumulate(rows, axis=0), axis=0)
    return filled
