"""How good forecasts and scores are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


def rmse(errors: Vector) -> float:
    """Root mean square of the errors that are known (not NaN); NaN where none is.

    >>> rmse(np.array([3.0, 4.0, np.nan]))
    3.5355339059327378
    """
    known = errors[np.isfinite(errors)]
    return float(np.sqrt(np.mean(known * known))) if known.size else float("nan")


def skill(errors: Vector, reference: Vector) -> float:
    """1 - RMSE / RMSE of a reference on the same targets: 0 is no better, 1 is perfect.

    Source: Murphy, 1988, "Skill scores based on the mean square error", in the form with the root.

    >>> skill(np.array([1.0, -1.0]), np.array([2.0, 2.0]))
    0.5
    """
    base = rmse(reference)
    return 1.0 - rmse(errors) / base if base > 0 else float("nan")


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % confidence interval."""

    low: float
    high: float


def skill_interval(
    errors: list[Vector], references: list[Vector], rng: np.random.Generator, draws: int = 400
) -> Interval:
    """The confidence interval of the pooled skill, over devices drawn with replacement.

    Devices are drawn, not readings: readings of one device follow one another and are no independent draws.

    Parameters
    ----------
    errors, references:
        one array per device, aligned

    Source: Efron and Tibshirani, 1993, "An introduction to the bootstrap" (percentile interval over clusters).

    >>> half = [np.full(10, 1.0)] * 5, [np.full(10, 2.0)] * 5
    >>> skill_interval(*half, np.random.default_rng(0))
    Interval(low=0.5, high=0.5)
    """
    sums = np.array([[np.nansum(e * e), np.nansum(r * r)] for e, r in zip(errors, references, strict=True)])
    if not len(sums):
        return Interval(float("nan"), float("nan"))
    picks = rng.integers(0, len(sums), (draws, len(sums)))
    totals = sums[picks].sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = 1.0 - np.sqrt(totals[:, 0] / totals[:, 1])
    low, high = np.nanpercentile(drawn, (2.5, 97.5)) if np.isfinite(drawn).any() else (np.nan, np.nan)
    return Interval(float(low), float(high))


@dataclass(frozen=True)
class Detection:
    """How well scores tell anomalies from the rest; `threshold` is where F1 is largest."""

    auroc: float
    auprc: float
    f1: float
    threshold: float


def detection(labels: NDArray[np.bool_], scores: Vector) -> Detection:
    """Area under ROC and precision-recall curve (average precision), best F1 and its threshold.

    >>> detection(np.array([False, False, True]), np.array([0.1, 0.2, 0.9]))
    Detection(auroc=1.0, auprc=1.0, f1=1.0, threshold=0.9)
    """
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    precision, recall, thresholds = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(np.argmax(f1[:-1]))
    return Detection(
        float(roc_auc_score(labels, scores)),
        float(average_precision_score(labels, scores)),
        float(f1[best]),
        float(thresholds[best]),
    )


def f1_at(labels: NDArray[np.bool_], scores: Vector, threshold: float) -> float:
    """F1 of the alarms at a threshold that was chosen elsewhere.

    >>> f1_at(np.array([False, True, True]), np.array([0.1, 0.2, 0.9]), 0.5)
    0.6666666666666666
    """
    alarms = scores >= threshold
    hits = float(np.sum(alarms & labels))
    return 2 * hits / max(float(alarms.sum() + labels.sum()), 1e-12)
