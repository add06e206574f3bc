"""The ledger says what a set of offsets would say, in memory that grows with the gaps only."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestration.ledger import OffsetLedger

offsets = st.lists(st.integers(0, 60), max_size=120)


def intervals(ledger: OffsetLedger) -> list[tuple[int, int]]:
    """What the ledger holds: half-open, without the empty one that it begins with."""
    return [(a, b) for a, b in zip(ledger._starts, ledger._ends, strict=True) if a < b]


@settings(max_examples=200)
@given(offsets, st.integers(0, 30))
def test_it_is_a_set_that_counts(stream: list[int], begin: int) -> None:
    ledger, seen = OffsetLedger(begin), set[int]()
    for offset in stream:
        is_new = offset >= begin and offset not in seen
        assert ledger.add(offset) is is_new
        if is_new:
            seen.add(offset)
        assert ledger.count == len(seen)
    found = intervals(ledger)
    assert [offset for a, b in found for offset in range(a, b)] == sorted(seen)
    edges = [edge for interval in found for edge in interval]
    assert edges == sorted(set(edges)), "they are disjoint, in order and as few as can be"


@given(st.permutations(range(40)))
def test_what_came_whole_in_any_order_is_one_interval(order: list[int]) -> None:
    ledger = OffsetLedger(0)
    for offset in order:
        assert ledger.add(offset)
    assert (ledger._starts, ledger._ends) == ([0], [40])


def test_memory_does_not_grow_with_what_was_seen() -> None:
    ledger = OffsetLedger(5)
    for offset in range(5, 100_000):
        ledger.add(offset)
    assert len(ledger._starts) == 1
    assert ledger.count == 99_995
