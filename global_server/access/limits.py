"""How often somebody may ask: so many times within any minute, counted in memory."""

from __future__ import annotations

import math
import time

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from flead.errors import TooOften


class Limits:
    """Counts what each one asks within the last minute."""

    def __init__(self) -> None:
        self._window = MovingWindowRateLimiter(MemoryStorage())

    def hit(self, what: str, who: str, per_minute: int) -> None:
        """Count one request.

        Raises
        ------
        TooOften
            where there were so many within the last minute

        >>> limits = Limits()
        >>> for _ in range(3):
        ...     limits.hit("updates", "mote-1", 2)
        Traceback (most recent call last):
        flead.errors.TooOften: more than 2 updates within a minute: try again in 60 s
        """
        item = RateLimitItemPerMinute(per_minute)
        if self._window.hit(item, what, who):
            return
        wait = max(1, math.ceil(self._window.get_window_stats(item, what, who).reset_time - time.time()))
        raise TooOften(f"more than {per_minute} {what} within a minute: try again in {wait} s", wait)
