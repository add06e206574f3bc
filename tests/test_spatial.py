from __future__ import annotations

from itertools import combinations
from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from flead.spatial import Flags, events, neighbours

WITHIN = 60.0
Anomalies = tuple[list[float], list[int], list[tuple[float, float]]]


@st.composite
def anomalies(draw: st.DrawFn) -> Anomalies:
    n_devices = draw(st.integers(1, 6))
    times = draw(st.lists(st.integers(0, 600).map(float), min_size=1, max_size=25))
    devices = draw(st.lists(st.integers(0, n_devices - 1), min_size=len(times), max_size=len(times)))
    places = st.tuples(st.integers(0, 9).map(float), st.integers(0, 9).map(float))
    return times, devices, draw(st.lists(places, min_size=n_devices, max_size=n_devices))


def by_hand(times: list[float], devices: list[int], near: Flags, fewest: int) -> tuple[list[set[int]], set[int]]:
    """Components of the graph of all pairs, and the anomalies that are in one of several devices."""

    def components(linked: Flags) -> list[set[int]]:
        groups = [{i} for i in range(len(times))]
        for i, j in combinations(range(len(times)), 2):
            if abs(times[i] - times[j]) <= WITHIN and linked[devices[i], devices[j]]:
                one, other = (next(g for g in groups if k in g) for k in (i, j))
                if one is not other:
                    groups.remove(other)
                    one |= other
        return groups

    shared = [g for g in components(near) if len({devices[i] for i in g}) >= fewest]
    several = {i for group in shared for i in group}
    alone = [g for g in components(np.eye(len(near), dtype=bool)) if not g & several]
    return [*shared, *alone], several


@given(anomalies(), st.integers(2, 4), st.sampled_from([2.0, 4.0, 100.0]))
def test_events_are_the_components_of_what_is_near(given_: Anomalies, fewest: int, distance: float) -> None:
    times, devices, places = given_
    near = neighbours(np.array(places), distance)
    numbers, shared = events(np.array(times), np.array(devices), near, WITHIN, fewest)
    groups, several = by_hand(times, devices, near, fewest)
    found = [set(np.flatnonzero(numbers == number).tolist()) for number in range(int(numbers.max()) + 1)]
    assert sorted(map(sorted, found)) == sorted(map(sorted, groups))
    assert set(np.flatnonzero(shared).tolist()) == several


@given(anomalies(), st.randoms(use_true_random=False))
def test_the_order_in_which_anomalies_come_means_nothing(given_: Anomalies, random: Random) -> None:
    times, devices, places = given_
    near = neighbours(np.array(places), 3.0)
    order = list(range(len(times)))
    random.shuffle(order)
    one, of_one = events(np.array(times), np.array(devices), near, WITHIN)
    other, of_other = events(np.array(times)[order], np.array(devices)[order], near, WITHIN)
    assert {frozenset(np.flatnonzero(one == e).tolist()) for e in one} == {
        frozenset(order[i] for i in np.flatnonzero(other == e)) for e in other
    }
    assert of_one[order].tolist() == of_other.tolist()


def test_a_device_without_a_position_has_no_neighbours() -> None:
    near = neighbours(np.array([[0.0, 0.0], [np.nan, np.nan], [0.5, 0.0]]), 1.0)
    assert near.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_events_are_counted_in_the_order_of_their_first_anomalies() -> None:
    everybody = np.ones((3, 3), dtype=bool)
    numbers, shared = events(np.array([900.0, 10.0, 0.0]), np.array([0, 1, 2]), everybody, WITHIN)
    assert numbers.tolist() == [1, 0, 0]
    assert shared.tolist() == [False, True, True]
