"""The record of who did what: written once, never changed; secrets never enter it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from flead.errors import Unavailable
from storage.access import AuditRepository

LOG = logging.getLogger(__name__)

ADDRESS: ContextVar[str | None] = ContextVar("address", default=None)
"""Where the request at hand comes from; set by the application."""


class Audit:
    """Notes what was done, by whom, and what became of it.

    Parameters
    ----------
    repository:
        where entries are kept; None: in the log only
    clock:
        gives the present, aware
    """

    def __init__(
        self, repository: AuditRepository | None = None, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self.repository = repository
        self._clock = clock

    def note(self, who: str, action: str, target: str, outcome: str = "done", **details: Any) -> None:
        """Note one thing. Where it cannot be stored, the log has it.

        Parameters
        ----------
        who:
            the principal's name
        action:
            what was done or tried, as `model.promote`
        target:
            to what
        outcome:
            `done`, or why not
        """
        entry: dict[str, Any] = {"who": who, "action": action, "target": target, "outcome": outcome}
        entry |= {"details": details, "at": self._clock(), "address": ADDRESS.get()}
        LOG.info("%r %s %r: %r", who, action, target, outcome)  # quoted: none of them starts a line of its own
        if self.repository is None:
            return
        try:
            self.repository.add(entry)
        except Unavailable as error:
            LOG.warning("an entry of the audit log was not stored (%s): %s", error, entry)
