"""A change in a device's errors is noticed where River notices it, in constant state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river.drift import ADWIN, PageHinkley

from flead import drift
from flead.compilation import Floats

Kernel = Callable[[Floats, float], float]

DETECTORS: dict[str, tuple[Kernel, int, Any]] = {
    "adwin": (drift.adwin, drift.ADWIN_SIZE, ADWIN),
    "page-hinkley": (drift.page_hinkley, drift.PAGE_HINKLEY_SIZE, PageHinkley),
}


def changes_of(kernel: Kernel, size: int, values: Sequence[float] | Floats) -> list[tuple[int, float]]:
    state = np.zeros(size)
    found = [(i, kernel(state, x)) for i, x in enumerate(values)]
    assert np.isfinite(state).all()
    return [(i, change) for i, change in found if change]


def changes_of_river(detector: Any, values: Floats) -> list[int]:
    found = []
    for i, x in enumerate(values):
        detector.update(x)
        if detector.drift_detected:
            found.append(i)
    return found


def with_steps(seed: int, n: int = 6_000) -> Floats:
    rng = np.random.default_rng(seed)
    return np.abs(rng.normal(0, 1, n)) + np.repeat(rng.uniform(0, 3, 6), n // 6)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("seed", range(5))
def test_a_change_is_detected_at_the_reading_where_river_detects_it(name: str, seed: int) -> None:
    kernel, size, river = DETECTORS[name]
    values = with_steps(seed)
    ours = [i for i, _ in changes_of(kernel, size, values)]
    assert ours == changes_of_river(river(), values)
    assert ours


@pytest.mark.parametrize("name", DETECTORS)
def test_a_rise_and_a_fall_are_told_apart(name: str) -> None:
    kernel, size, _ = DETECTORS[name]
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.2, 3_000)
    rise = changes_of(kernel, size, noise + np.repeat([1.0, 1.0, 3.0], 1_000))
    fall = changes_of(kernel, size, noise + np.repeat([3.0, 3.0, 1.0], 1_000))
    assert [change for _, change in rise][:1] == [1.0]
    assert [change for _, change in fall][:1] == [-1.0]


@pytest.mark.parametrize("name", DETECTORS)
@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(
        st.one_of(st.just(0.0), st.just(8.0), st.floats(0, 8, allow_subnormal=False)), min_size=1, max_size=400
    )
)
def test_state_stays_finite_whatever_errors_come(name: str, values: list[float]) -> None:
    kernel, size, _ = DETECTORS[name]
    changes_of(kernel, size, values * 10)


def test_a_window_of_any_length_fits_the_state() -> None:
    state = np.zeros(drift.ADWIN_SIZE)
    rng = np.random.default_rng(0)
    false_alarms = sum(drift.adwin(state, x) != 0 for x in rng.normal(1, 0.1, 700_000))
    assert np.isfinite(state).all()
    assert state[0] <= 6 * 2**16
    assert false_alarms < 10
