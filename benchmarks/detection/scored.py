"""Scores of readings: FLEAD's, and those of other detectors on the same readings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from data.frames import Frame
from flead import learning, state
from flead.learner import DeviceLearner, Outcomes
from flead.learner_config import LearnerConfig
from flead.plugins import find_detector

Scores = NDArray[np.float64]
Scorer = Callable[[Frame], Scores]


def outcomes(frame: Frame) -> Outcomes:
    """All that a fresh learner says of a device's readings."""
    return DeviceLearner(frame.sensors, LearnerConfig()).process_frame(frame.times, frame.values)


def ours(frame: Frame) -> Scores:
    """What `flead detect` writes as `anomaly_score`."""
    return outcomes(frame).score


def z_score(frame: Frame) -> Scores:
    """The largest distance of a sensor from its running mean, in running standard deviations."""
    values, scores = frame.values, np.zeros(len(frame.times))
    mean, square, count = np.zeros(values.shape[1]), np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for i, row in enumerate(values):
        known = np.isfinite(row)
        sd = np.sqrt(square / np.maximum(count, 1.0))
        off = np.where(known & (count > 30), np.abs(row - mean) / np.maximum(sd, 1e-9), 0.0)
        scores[i] = off.max()
        count += known
        delta = np.where(known, row - mean, 0.0)
        mean += delta / np.maximum(count, 1.0)
        square += delta * np.where(known, row - mean, 0.0)
    return scores


def detector(name: str) -> Scorer:
    """A detector plug-in on the declared features, by itself."""
    features = ("level", "lag_1", "mean_20", "sd_10")

    def score(frame: Frame) -> Scores:
        config = LearnerConfig(features=features, detectors=(name,))
        spec = DeviceLearner(frame.sensors, config).spec
        sizes, buffer = state.fresh(config, len(frame.sensors))
        given = np.column_stack((frame.times, frame.values))
        rows, scales = np.zeros((len(given), spec.n_features)), np.zeros((len(given), spec.n_outputs))
        learning.follow(sizes, buffer, given, rows, scales)
        model, scores = find_detector(name)(spec), np.zeros(len(rows))
        for i, row in enumerate(rows):
            scores[i] = model.score(row)
            model.learn(row)
        return scores

    return score


COMPETITORS: dict[str, Scorer] = {
    "running z-score": z_score,
    "half-space trees (River)": detector("half_space_trees"),
    "isolation forest (scikit-learn)": detector("isolation_forest"),
}
