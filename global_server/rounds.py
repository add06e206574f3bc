"""The rounds: updates in, global models out. What REST and Kafka both feed.

What is in memory is what MongoDB holds. When a write may or may not have happened, memory is thrown away and read
again before anything else; a restart is the same path.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from config.settings import AggregationSettings
from flead.errors import BadInput, Unavailable
from flead.messages import GlobalModel, LocalUpdate
from global_server.cohort import Cohort
from global_server.memory import Accepted, Memory
from global_server.updates import read_update
from storage.rounds import RoundRepository, Update

LOG = logging.getLogger(__name__)

DEFAULT_COHORT = "default"
_RETRY_S = 1.0
"""How long after a failure of MongoDB callers are refused at once, s: each would wait for the driver in turn."""


class RoundService:
    """Accepts local updates and makes rounds of them. Safe to use from many threads.

    Parameters
    ----------
    publish:
        delivers a model and returns when that is confirmed, else raises `Unavailable`

    Notes
    -----
    Every method may raise `Unavailable` where MongoDB does not answer; trying again later is harmless.
    """

    def __init__(
        self, repository: RoundRepository, settings: AggregationSettings, publish: Callable[[GlobalModel], None]
    ) -> None:
        self.settings = settings
        self.work = threading.Event()
        """Set when there is a model to publish."""
        self._repository = repository
        self._publish = publish
        self._lock = threading.RLock()
        self._memory = Memory()
        self._loaded = False
        self._refuse_until = 0.0

    def accept(self, message: LocalUpdate, now: datetime) -> Accepted:
        """Take one update; raises `BadUpdate` or `BadModel` where it must not enter a round."""
        outcome = self.accept_many([message], now)[0]
        if isinstance(outcome, BadInput):
            raise outcome
        return outcome

    def accept_many(self, messages: Sequence[LocalUpdate], now: datetime) -> list[Accepted | BadInput]:
        """Take updates in order; the outcome of each, the error where it was refused.

        On return every accepted update is stored.
        """
        read = [self._read(message, now) for message in messages]
        with self._current():
            known = self._repository.known(update.key for update in read if isinstance(update, Update))
            new: list[Update] = []
            outcomes = [part if isinstance(part, BadInput) else self._memory.decide(part, known, new) for part in read]
            self._repository.add_updates(new)
        return outcomes

    def _read(self, message: LocalUpdate, now: datetime) -> Update | BadInput:
        try:
            return read_update(message, now, self.settings.max_weight_norm)
        except BadInput as error:
            return error

    def aggregate(self, cohort: str, now: datetime) -> GlobalModel | None:
        """Make a round of what is pending; None if nothing is. On return the round is stored, not yet published."""
        with self._current():
            state = self._memory.cohorts.get(cohort)
            if state is None or not state.pending:
                return None
            # MongoDB keeps milliseconds; what is published must be what is read again after a restart.
            now = now.astimezone(UTC).replace(microsecond=now.microsecond // 1000 * 1000)
            model, used = state.merge(now)
            self._repository.store_round(model, used)
            state.begin(model)
        LOG.info("round %d of %s: %d devices, %d samples", model.version, cohort, len(used), model.total_samples)
        self.work.set()
        return model

    def aggregate_ready(self, now: datetime) -> list[GlobalModel]:
        """Make a round of each cohort in which enough devices wait."""
        return self._aggregate_where(lambda state: len(state.pending) >= self.settings.min_devices, now)

    def aggregate_due(self, now: datetime) -> list[GlobalModel]:
        """Make a round of each cohort whose pending updates waited for the interval."""
        interval = timedelta(seconds=self.settings.interval_s)

        def due(state: Cohort) -> bool:
            since = state.due_at()
            return since is not None and now - since >= interval

        return self._aggregate_where(due, now)

    def _aggregate_where(self, condition: Callable[[Cohort], bool], now: datetime) -> list[GlobalModel]:
        with self._current():
            models = [
                self.aggregate(state.name, now) for state in list(self._memory.cohorts.values()) if condition(state)
            ]
        return [model for model in models if model]

    def publish_pending(self) -> int:
        """Publish the newest round of each cohort that was not since this process started; returns how many.

        Raises
        ------
        Unavailable
            where one could not be delivered; it stays pending
        """
        with self._current():
            waiting = [state.model for state in self._memory.cohorts.values() if state.model and not state.published]
        failures = [error for error in map(self._publish_one, waiting) if error]
        if failures:
            raise failures[0]
        return len(waiting)

    def _publish_one(self, model: GlobalModel) -> Unavailable | None:
        """Publish a model, without the lock: a broker may take seconds. Returns why it could not be."""
        try:
            self._publish(model)
            self._repository.mark_published(model.cohort, model.version, datetime.now(UTC))
        except Unavailable as error:
            return error
        with self._lock:
            state = self._memory.cohorts.get(model.cohort)
            if state and state.version == model.version:
                state.published = True
        return None

    def resolve(self, cohort: str | None) -> str:
        """Give the cohort that is meant where none is named: the only one there is, or `default`."""
        with self._lock:
            return cohort or (next(iter(self._memory.cohorts)) if len(self._memory.cohorts) == 1 else DEFAULT_COHORT)

    def knows(self, cohort: str) -> bool:
        """Say whether an update of the cohort was ever accepted."""
        with self._lock:
            return cohort in self._memory.cohorts

    def model(self, cohort: str) -> GlobalModel | None:
        """Give the newest global model, None before the first round."""
        with self._lock:
            state = self._memory.cohorts.get(cohort)
            return state.model if state else None

    def history(self, cohort: str, limit: int = 1_000) -> list[dict[str, Any]]:
        """Read the newest rounds from MongoDB, oldest first."""
        return self._repository.history(cohort, limit)

    def contributions(self, cohort: str) -> dict[str, int]:
        """Count the updates accepted of each device."""
        with self._lock:
            state = self._memory.cohorts.get(cohort)
            return dict(state.accepted) if state else {}

    def summary(self) -> dict[str, dict[str, int]]:
        """Sum up each cohort: rounds, devices pending, devices ever."""
        with self._lock:
            return {
                name: {"rounds": s.version, "pending_updates": len(s.pending), "unique_devices": len(s.accepted)}
                for name, s in self._memory.cohorts.items()
            }

    def is_stored(self) -> bool:
        """Say whether MongoDB answers, and memory is what it holds."""
        try:
            with self._current():
                self._repository.ping()
        except Unavailable:
            return False
        return True

    @contextmanager
    def _current(self) -> Iterator[None]:
        """Hold the lock over a memory that is what MongoDB holds; after any failure it is to be read again."""
        with self._lock:
            if not self._loaded and time.monotonic() < self._refuse_until:
                raise Unavailable("MongoDB did not answer a moment ago: try again in a second")
            try:
                if not self._loaded:
                    self.load()
                yield
            except BaseException:
                self._loaded, self._refuse_until = False, time.monotonic() + _RETRY_S
                raise

    def load(self) -> None:
        """Read everything from MongoDB: rounds, pending updates, counters."""
        with self._lock:
            published = {name: state.version for name, state in self._memory.cohorts.items() if state.published}
            self._memory = Memory.read(self._repository)
            for name, state in self._memory.cohorts.items():
                state.published = bool(state.model) and published.get(name) == state.version
            self._loaded = True
        self.work.set()
