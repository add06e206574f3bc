"""Devices whose updates are not used: put there by the defence or by somebody, let out by somebody."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime

from flead.defence import Reputation
from flead.errors import Conflict, NotThere
from global_server.books import Books
from storage.rounds import Trust

LOG = logging.getLogger(__name__)

QUARANTINED, REJECTED, TRUSTED = "quarantined", "rejected", "trusted"


class Quarantine:
    """Lists, puts in, and decides. Every method may raise `Unavailable` where MongoDB does not answer."""

    def __init__(self, books: Books) -> None:
        self._books = books

    def list(self, cohort: str | None = None, *, everybody: bool = False) -> list[Trust]:
        """The devices that are kept out, newest first; with `everybody`, all that were ever flagged."""
        with self._books.current() as memory:
            found = [
                trust
                for trust in memory.trust.values()
                if cohort in (None, trust.cohort) and (everybody or trust.state != TRUSTED)
            ]
        return sorted(found, key=lambda trust: trust.changed_at, reverse=True)

    def put(self, device_id: str, cohort: str, reason: str, who: str, now: datetime) -> Trust:
        """Keep a device out; what it sent for the round to come stays in that round."""
        with self._books.current() as memory:
            fresh = Reputation()
            known = memory.trust.get(device_id) or Trust(
                device_id, cohort, fresh.good, fresh.bad, TRUSTED, None, now, None
            )
            return self._keep(replace(known, state=QUARANTINED, reason=reason, changed_at=now, decided_by=who))

    def accept(self, device_id: str, who: str, now: datetime) -> Trust:
        """Let a device in again, its reputation as if nothing had been.

        Raises
        ------
        NotThere
            where it is not kept out
        """
        with self._books.current():
            known, fresh = self._kept_out(device_id), Reputation()
            back = replace(known, state=TRUSTED, good=fresh.good, bad=fresh.bad, changed_at=now, decided_by=who)
            return self._keep(back)

    def reject(self, device_id: str, who: str, now: datetime) -> Trust:
        """Keep a device out for good.

        Raises
        ------
        NotThere
            where it is not kept out
        Conflict
            where that was decided before
        """
        with self._books.current():
            known = self._kept_out(device_id)
            if known.state == REJECTED:
                raise Conflict(f"device {device_id!r} was rejected before, by {known.decided_by}")
            return self._keep(replace(known, state=REJECTED, changed_at=now, decided_by=who))

    def _kept_out(self, device_id: str) -> Trust:
        trust = self._books.memory.trust.get(device_id)
        if trust is None or trust.state == TRUSTED:
            raise NotThere(f"device {device_id[:128]!r} is not in quarantine: GET /api/quarantine lists those that are")
        return trust

    def _keep(self, trust: Trust) -> Trust:
        self._books.repository.keep_trust(trust)
        self._books.memory.trust[trust.device_id] = trust
        LOG.info("device %s is %s: %s (%s)", trust.device_id, trust.state, trust.reason, trust.decided_by)
        return trust
