"""The Numenta Anomaly Benchmark: its series, its score, and what it says of published detectors.

Source: Lavin and Ahmad, 2015, "Evaluating real-time anomaly detection algorithms - the Numenta Anomaly Benchmark",
arXiv 1510.03336. The score follows the standard profile: 100 for a perfect detector, 0 for one that never fires.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FALSE_ALARM = 0.11
"""What an alarm outside of every window costs; a window missed costs 1, one found early gives 1."""
PROBATION, LONGEST_PROBATION = 0.15, 750.0

Windows = Mapping[str, Sequence[Sequence[str]]]


def load_windows(folder: Path) -> dict[str, list[list[str]]]:
    """The labelled windows by series: [[from, to], ...]."""
    windows: dict[str, list[list[str]]] = json.loads((folder / "windows.json").read_text())
    return windows


Values = Mapping[str, NDArray[np.float64]]
Point = tuple[float, float, tuple[str, int] | None]
"""A row after the probation: its score, what an alarm there is worth, and the window it lies in."""


def score(times: Values, scores: Values, windows: Windows) -> tuple[float, float]:
    """The score, and the one threshold for all series that gives it: the benchmark takes the best.

    Parameters
    ----------
    times, scores:
        by series: (m,) s since 1970-01-01 UTC, and (m,)
    """
    points = [p for name, spans in windows.items() for p in _points(times[name], scores[name], spans, name)]
    curve = _curve(points)
    threshold, best = max(curve, key=lambda step: step[1])
    return _percent(best, points), threshold


def _curve(points: Sequence[Point]) -> list[tuple[float, float]]:
    """What alarms from a threshold on are worth in all, for every threshold from the highest to the lowest."""
    best: dict[tuple[str, int], float] = {key: -1.0 for _, _, key in points if key is not None}
    total = -float(len(best))
    curve = [(1.1, total)]
    for value, weight, key in sorted(points, key=lambda point: -point[0]):
        if key is None:
            total += weight
        elif weight > best[key]:
            total += weight - best[key]
            best[key] = weight
        if curve[-1][0] == value:
            curve[-1] = (value, total)
        else:
            curve.append((value, total))
    return curve


def _percent(total: float, points: Sequence[Point]) -> float:
    n = len({key for _, _, key in points if key is not None})
    return 100.0 * (total + n) / (2.0 * n)


def _points(
    times: NDArray[np.float64], scores: NDArray[np.float64], spans: Sequence[Sequence[str]], name: str
) -> list[Point]:
    """One series' rows after the probation."""
    rows = len(times)
    edges = [(_seconds(a), _seconds(b)) for a, b in spans]
    inside = [(int(np.searchsorted(times, a)), int(np.searchsorted(times, b, "right")) - 1) for a, b in edges]
    start = int(min(np.floor(PROBATION * rows), LONGEST_PROBATION))
    out: list[Point] = []
    window, before = 0, None
    for k in range(rows):
        while window < len(inside) and k > inside[window][1]:
            before, window = inside[window], window + 1
        if k < start:
            continue
        if window < len(inside) and inside[window][0] <= k:
            first, last = inside[window]
            weight = _sigmoid(-(last - k + 1) / (last - first + 1)) / _sigmoid(-1.0)
            out.append((float(scores[k]), weight, (name, window)))
        else:
            away = None if before is None else (k - before[1]) / max(1, before[1] - before[0])
            out.append((float(scores[k]), FALSE_ALARM * (-1.0 if away is None else _sigmoid(away)), None))
    return out


def _sigmoid(y: float) -> float:
    return -1.0 if y > 3 else 2.0 / (1.0 + float(np.exp(5.0 * y))) - 1.0


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text.split(".")[0]).replace(tzinfo=UTC).timestamp()


def crossed(times: Values, scores: Values, windows: Windows, folds: int = 5, seed: int = 0) -> float:
    """The score where each series is judged by the threshold that is best for the other folds' series."""
    names = list(windows)
    order = np.random.default_rng(seed).permutation(len(names))
    every, total = [], 0.0
    for fold in range(folds):
        held = {names[i] for i in order[fold::folds]}
        _, threshold = score(times, scores, {name: spans for name, spans in windows.items() if name not in held})
        points = [p for name in held for p in _points(times[name], scores[name], windows[name], name)]
        total += next(worth for value, worth in reversed(_curve(points)) if value >= threshold)
        every += points
    return _percent(total, every)


def reference_scores(folder: Path) -> dict[str, float]:
    """What published detectors score on these series, from REFERENCE.md; empty without it."""
    path = folder / "REFERENCE.md"
    if not path.exists():
        return {}
    rows = re.findall(r"^\| ([^|]+?) \| ([\d.]+) \| ", path.read_text(), re.MULTILINE)
    return {name: float(value) for name, value in rows}
