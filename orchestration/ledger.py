"""Which offsets of a topic have been seen: exact, however they come, in memory that grows with the gaps only."""

from __future__ import annotations

from bisect import bisect_right


class OffsetLedger:
    """The offsets of one partition that have been seen, from `begin` on, as sorted disjoint intervals.

    >>> ledger = OffsetLedger(begin=10)
    >>> [ledger.add(offset) for offset in (10, 12, 12, 3)]
    [True, True, False, False]
    >>> ledger.count
    2
    """

    def __init__(self, begin: int) -> None:
        self.count = 0
        self._starts = [begin]
        self._ends = [begin]

    def add(self, offset: int) -> bool:
        """Note an offset; False where it was seen before or lies before `begin`."""
        i = bisect_right(self._starts, offset) - 1
        if i < 0 or offset < self._ends[i]:
            return False
        self.count += 1
        joins_left = offset == self._ends[i]
        joins_right = i + 1 < len(self._starts) and offset + 1 == self._starts[i + 1]
        if joins_left and joins_right:
            self._ends[i] = self._ends.pop(i + 1)
            self._starts.pop(i + 1)
        elif joins_left:
            self._ends[i] += 1
        elif joins_right:
            self._starts[i + 1] = offset
        else:
            self._starts.insert(i + 1, offset)
            self._ends.insert(i + 1, offset + 1)
        return True
