"""FLEAD's own detectors, one a file, declared in `flead.plugins.BUILT_IN`.

Each keeps the contract of `flead.plugins.Detector`; a new one is a file here and a line there, and
`tests/test_plugins.py` then checks it. Imports `flead` only.
"""

from __future__ import annotations

from flead.plugins import Spec

MOST_FEATURES = 32


def watched(spec: Spec) -> list[int]:
    """Which features a detector of random splits looks at: the first ones of every sensor, about 32 in all.

    In more dimensions splits land on what matters too rarely, and a window of rows takes too much state. Where no
    sensor has features of its own, the shared ones are all there is to look at.

    >>> watched(Spec(("humidity", "temperature"), per_sensor=3, shared=4))
    [0, 1, 2, 3, 4, 5]
    >>> watched(Spec(tuple("abcdefghijklmnop"), per_sensor=15))[:5]
    [0, 1, 15, 16, 30]
    """
    if not spec.per_sensor:
        return list(range(spec.shared))
    n = len(spec.sensors)
    first = min(spec.per_sensor, max(1, MOST_FEATURES // n))
    return [sensor * spec.per_sensor + feature for sensor in range(n) for feature in range(first)]
