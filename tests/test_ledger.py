"""The ledger says what a set of offsets would say, in memory that grows with the gaps only."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.ledger import OffsetLedger

offsets = st.lists(st.integers(0, 60), max_size=120)


def unseen(seen: set[int], begin: int, end: int) -> list[int]:
    return [offset for offset in range(begin, end) if offset not in seen]


@settings(max_examples=200)
@given(offsets, st.integers(0, 30), st.integers(1, 40))
def test_it_is_a_set_that_counts_and_names_its_gaps(stream: list[int], begin: int, length: int) -> None:
    end = begin + length
    ledger, seen = OffsetLedger(begin), set[int]()
    for offset in stream:
        is_new = offset >= begin and offset not in seen
        assert ledger.add(offset) is is_new
        if is_new:
            seen.add(offset)
        assert ledger.count == len(seen)
    gaps = ledger.gaps(end)
    assert [offset for a, b in gaps for offset in range(a, b)] == unseen(seen, begin, end)


@settings(max_examples=200)
@given(offsets, st.integers(1, 70))
def test_gaps_are_disjoint_in_order_and_as_few_as_can_be(stream: list[int], end: int) -> None:
    ledger = OffsetLedger(0)
    for offset in stream:
        ledger.add(offset)
    edges = [edge for gap in ledger.gaps(end) for edge in gap]
    assert edges == sorted(set(edges))


@given(st.permutations(range(40)))
def test_what_came_whole_in_any_order_is_one_interval(order: list[int]) -> None:
    ledger = OffsetLedger(0)
    for offset in order:
        assert ledger.add(offset)
    assert ledger.gaps(40) == []
    assert ledger.gaps(41) == [(40, 41)]
    assert (ledger._starts, ledger._ends) == ([0], [40])


def test_memory_does_not_grow_with_what_was_seen() -> None:
    ledger = OffsetLedger(5)
    for offset in range(5, 100_000):
        ledger.add(offset)
    assert len(ledger._starts) == 1
    assert ledger.count == 99_995
