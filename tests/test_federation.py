"""The arithmetic of a round."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flead.errors import BadUpdate
from flead.federation import fedavg

_values = st.floats(-1e6, 1e6)


@st.composite
def fleets(draw: st.DrawFn) -> tuple[Any, Any]:
    n, width = draw(st.integers(1, 8)), draw(st.integers(1, 12))
    models = draw(arrays(np.float64, (n, width), elements=_values))
    counts = draw(arrays(np.int64, (n,), elements=st.integers(1, 10**9)))
    return models, counts


@given(fleets(), st.randoms(use_true_random=False))
def test_the_order_of_devices_does_not_matter(fleet: tuple[Any, Any], random: Any) -> None:
    models, counts = fleet
    order = list(range(len(models)))
    random.shuffle(order)
    np.testing.assert_allclose(fedavg(models[order], counts[order]), fedavg(models, counts), rtol=1e-9, atol=1e-6)


@given(fleets(), st.integers(2, 1000))
def test_only_shares_matter(fleet: tuple[Any, Any], factor: int) -> None:
    models, counts = fleet
    np.testing.assert_allclose(fedavg(models, counts * factor), fedavg(models, counts), rtol=1e-9, atol=1e-6)


@given(arrays(np.float64, st.integers(1, 12), elements=_values), st.integers(1, 10**9), st.integers(1, 8))
def test_one_device_is_that_device_and_so_are_many_alike(model: Any, count: int, n: int) -> None:
    np.testing.assert_array_equal(fedavg([model], [count]), model)
    np.testing.assert_allclose(fedavg([model] * n, [count] * n), model, rtol=1e-9, atol=1e-9)


@given(fleets())
def test_it_lies_between_the_devices(fleet: tuple[Any, Any]) -> None:
    models, counts = fleet
    merged = fedavg(models, counts)
    assert (merged >= models.min(axis=0) - 1e-6).all()
    assert (merged <= models.max(axis=0) + 1e-6).all()


@given(fleets())
def test_a_device_without_samples_has_no_say(fleet: tuple[Any, Any]) -> None:
    models, counts = fleet
    more = np.vstack([models, np.full_like(models[:1], 1e6)])
    np.testing.assert_allclose(fedavg(more, [*counts, 0]), fedavg(models, counts), rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(
    ("models", "counts"),
    [
        ([], []),
        ([[1.0]], [0]),
        ([[1.0]], [-1]),
        ([[1.0]], [float("nan")]),
        ([[1.0], [2.0]], [1]),
        ([[1.0], [2.0, 3.0]], [1, 1]),
        ([[float("nan")]], [1]),
        ([[float("inf")], [1.0]], [1, 1]),
        ([1.0, 2.0], [1, 1]),
        ([["x"]], [1]),
    ],
)
def test_refusals(models: Any, counts: Any) -> None:
    with pytest.raises(BadUpdate):
        fedavg(models, counts)
