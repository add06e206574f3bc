"""What the server does by itself: rounds by interval, and publishing until it is confirmed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from flead.errors import Unavailable
from global_server.rounds import RoundService

LOG = logging.getLogger(__name__)

TICK_S = 1.0
CHECK_S = 5.0


class Scheduler(threading.Thread):
    """Looks once a second whether a round is due, and publishes new rounds at once.

    Parameters
    ----------
    check:
        called every few seconds, to see whether Kafka is there
    clock:
        gives the present, aware
    """

    def __init__(
        self,
        service: RoundService,
        check: Callable[[], None] = lambda: None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(name="scheduler", daemon=True)
        self.service = service
        self._check = check
        self._clock = clock
        self._stopping = threading.Event()
        self._last_trouble = ""

    def stop(self) -> None:
        """End after what it is doing."""
        self._stopping.set()
        self.service.work.set()
        if self.is_alive():
            self.join(15.0)

    def run(self) -> None:
        """Work until stopped, whatever happens to Kafka or MongoDB meanwhile."""
        check_at = time.monotonic()
        while not self._stopping.is_set():
            try:
                self.tick()
                if time.monotonic() >= check_at:
                    self._check()
                    check_at = time.monotonic() + CHECK_S
            except Exception:
                LOG.exception("the scheduler goes on")
                self._stopping.wait(TICK_S)
            self.service.work.wait(TICK_S)

    def tick(self) -> None:
        """Make the rounds that are due, publish what waits. Trouble is logged when it changes."""
        self.service.work.clear()
        trouble = ""
        for step in (self._rounds, self.service.publish_pending):
            try:
                step()
            except Unavailable as error:
                trouble = trouble or str(error)
        if trouble and trouble != self._last_trouble:
            LOG.warning("will be tried again: %s", trouble)
        self._last_trouble = trouble

    def _rounds(self) -> None:
        now = self._clock()
        self.service.aggregate_ready(now)
        self.service.aggregate_due(now)
