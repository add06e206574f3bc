"""Takes in many updates at once: what comes while one batch is stored goes into the next.

An update that is stored alone pays for a search, a write and its journal, some 2 ms of waiting; a batch pays once.
Nobody waits for a batch to fill: the first update is stored at once, and while it is, others gather.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from flead.errors import BadInput, Unavailable
from flead.messages import LocalUpdate
from global_server.memory import Accepted
from global_server.rounds import RoundService

LOG = logging.getLogger(__name__)

BATCH = 256
"""Updates that are stored together, at most."""
BATCH_BYTES = 8_000_000
MAX_WAITING_BYTES = 64_000_000
"""Bodies of which the updates may wait, bytes."""


def settle_memory() -> None:
    """Let the garbage collector never again look at what the start left, and seldom at the rest; call it once, then.

    The objects of the libraries live as long as the process. Lists of numbers are made and dropped by the thousand,
    which makes the collector look at everything again and again; nobody is answered meanwhile. Threads hand over ten
    times as often as usual: one that reads a large body must not keep the others from their answers.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    sys.setswitchinterval(0.0005)


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of an update, and how its cohort stood right after."""

    outcome: Accepted
    pending_updates: int
    aggregation_rounds: int


@dataclass(frozen=True, slots=True)
class _Waiting:
    update: LocalUpdate
    size: int
    answer: Future[Taken]


class Intake:
    """Stores updates in batches. Safe to use from many threads.

    Parameters
    ----------
    clock:
        gives the present, aware
    batch:
        updates that are stored together, at most
    max_waiting:
        bytes of bodies that may wait
    """

    def __init__(
        self,
        service: RoundService,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        batch: int = BATCH,
        max_waiting: int = MAX_WAITING_BYTES,
    ) -> None:
        self._service = service
        self._clock = clock
        self._batch = batch
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._waiting: deque[_Waiting] = deque()
        self._bytes = 0
        self._busy = False
        self._thread = ThreadPoolExecutor(1, "intake")

    def put(self, update: LocalUpdate, size: int) -> Future[Taken]:
        """Give an update; the future has an answer once it is stored, or the error for which it is not.

        Parameters
        ----------
        size:
            of its body, bytes

        Raises
        ------
        Unavailable
            where too much waits already, or the server is ending
        """
        answer: Future[Taken] = Future()
        with self._lock:
            if self._bytes and self._bytes + size > self._max_waiting:
                raise Unavailable(f"{len(self._waiting)} updates wait to be stored: try again in a moment")
            if not self._busy:
                self._start()
            self._waiting.append(_Waiting(update, size, answer))
            self._bytes += size
        return answer

    def close(self) -> None:
        """Store what waits, and take no more."""
        self._thread.shutdown()

    def _start(self) -> None:
        try:
            self._thread.submit(self._work)
        except RuntimeError:
            raise Unavailable("the server is ending: try again when it is back") from None
        self._busy = True

    def _work(self) -> None:
        """Store batches until nothing waits."""
        while batch := self._next():
            asked = [one for one in batch if one.answer.set_running_or_notify_cancel()]
            self._settle(asked)

    def _next(self) -> list[_Waiting]:
        """Take the next batch; with none left, the next update starts the work again."""
        batch: list[_Waiting] = []
        with self._lock:
            room = BATCH_BYTES
            while self._waiting and len(batch) < self._batch and (not batch or self._waiting[0].size <= room):
                batch.append(self._waiting.popleft())
                room -= batch[-1].size
            self._bytes -= sum(one.size for one in batch)
            self._busy = bool(batch)
        return batch

    def _settle(self, batch: list[_Waiting]) -> None:
        """Store a batch and answer each of its updates."""
        try:
            answers = self._store([one.update for one in batch])
        except Unavailable as error:
            answers = [error] * len(batch)
        except Exception as error:
            if len(batch) > 1:  # whose fault it is shows one by one, and the others are stored
                LOG.exception("a batch of %d updates is stored one by one", len(batch))
                for one in batch:
                    self._settle([one])
                return
            answers = [error]
        for one, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Taken):
                one.answer.set_result(answer)
            else:
                one.answer.set_exception(answer)

    def _store(self, updates: list[LocalUpdate]) -> list[Taken | Exception]:
        now = self._clock()
        outcomes = self._service.accept_many(updates, now)
        try:
            self._service.aggregate_ready(now)
        except Unavailable as error:  # what is accepted is stored; the scheduler makes the round
            LOG.warning("a round waits: %s", error)
        cohorts = self._service.summary()
        return [
            outcome if isinstance(outcome, BadInput) else _taken(outcome, cohorts.get(update.cohort))
            for update, outcome in zip(updates, outcomes, strict=True)
        ]


def _taken(outcome: Accepted, figures: dict[str, int] | None) -> Taken:
    """Put an answer together; a cohort of which nothing was ever accepted has no figures."""
    return Taken(outcome, figures["pending_updates"], figures["rounds"]) if figures else Taken(outcome, 0, 0)
