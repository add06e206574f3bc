"""What is known of all cohorts, under one lock: what is in memory is what MongoDB holds.

When a write may or may not have happened, memory is thrown away and read again before anything else; a restart is the
same path.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from config.aggregation import AggregationSettings, Rules
from flead.errors import BadInput, BudgetSpent, Conflict, NotThere, Unavailable
from global_server.cohort import Cohort
from global_server.memory import Memory
from storage.rounds import RoundRepository

EVERYBODY = "*"
"""The key of rules that hold for all cohorts."""
MOST_RULES = 10_000
"""Cohorts whose rules are remembered: names come from outside."""
_RETRY_S = 1.0
"""How long after a failure of MongoDB callers are refused at once, s: each would wait for the driver in turn."""


class Books:
    """Memory, its lock, and the database behind it.

    Attributes
    ----------
    work:
        set when there is a model to publish
    """

    def __init__(self, repository: RoundRepository, settings: AggregationSettings) -> None:
        self.repository = repository
        self.settings = settings
        self.lock = threading.RLock()
        self.work = threading.Event()
        self.memory = Memory()
        self._rules: dict[str, Rules] = {}
        self._loaded = False
        self._refuse_until = 0.0

    @contextmanager
    def current(self) -> Iterator[Memory]:
        """Hold the lock over a memory that is what MongoDB holds; after any failure it is to be read again."""
        with self.lock:
            if not self._loaded and time.monotonic() < self._refuse_until:
                raise Unavailable("MongoDB did not answer a moment ago: try again in a second")
            try:
                if not self._loaded:
                    self.load()
                yield self.memory
            except (BadInput, BudgetSpent, Conflict, NotThere):  # raised before anything is changed
                raise
            except BaseException:
                self._loaded, self._refuse_until = False, time.monotonic() + _RETRY_S
                raise

    def load(self) -> None:
        """Read everything from MongoDB: rounds, pending updates, counters."""
        with self.lock:
            before = self.memory.cohorts
            self.memory = Memory.read(self.repository)
            self._rules = {}
            for name, cohort in self.memory.cohorts.items():
                _keep_delivered(cohort, before.get(name))
            self._loaded = True
        self.work.set()

    def rules(self, cohort: str) -> Rules:
        """How a cohort's rounds are made: the settings, and what operators changed since."""
        known = self._rules.get(cohort)  # without the lock, which whoever stores holds
        if known is not None:
            return known
        with self.lock:
            patches = [self.memory.patches[key] for key in (EVERYBODY, cohort) if key in self.memory.patches]
            if len(self._rules) >= MOST_RULES:
                self._rules = {}
            found = self._rules[cohort] = self.settings.rules(cohort, *patches)
            return found

    def forget_rules(self) -> None:
        """Read the rules anew when they are next asked for."""
        with self.lock:
            self._rules = {}


def _keep_delivered(cohort: Cohort, before: Cohort | None) -> None:
    """What was delivered is not delivered again because memory was read again."""
    if before is None:
        return
    cohort.published = before.published and cohort.model == before.model
    cohort.announced = before.announced and cohort.canary == before.canary
