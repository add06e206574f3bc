"""Secure sums at the server: gathers what devices send in four steps, and ends with one local update for all of them.

The server passes on keys and shares that it cannot read, and adds up values that it cannot read. Nobody waits for a
timer: every call first moves a session on whose step is complete or out of time. A session lives in memory only;
a restart ends it, and devices begin another.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from math import floor
from typing import Any, Protocol

from config.aggregation import Rules
from config.secure import SecureSettings
from flead import network
from flead.errors import BadInput, BadSecureSum, Unavailable, WrongPhase
from flead.messages import GlobalModel, LocalUpdate, WeightsMessage
from flead.network import Architecture
from flead.secure_sum import Encoding, Keys, Share, Words, unmask
from global_server.memory import Accepted
from global_server.updates import MAX_PARAMETERS

LOG = logging.getLogger(__name__)

MAX_OPEN = 32
"""Sessions that go on at once: each keeps devices^2 sealed shares."""
KEPT = 200
"""Sessions that are over and can still be asked about."""


class Phase(StrEnum):
    """What a session waits for."""

    KEYS = "keys"
    SHARES = "shares"
    MASKED = "masked"
    UNMASK = "unmask"
    DONE = "done"
    ABANDONED = "abandoned"


OVER = (Phase.DONE, Phase.ABANDONED)


class Rounds(Protocol):
    """What is needed of `global_server.rounds.RoundService`."""

    def accept(self, message: LocalUpdate, now: datetime) -> Any:
        """Take an update; returns what became of it."""

    def aggregate_ready(self, now: datetime) -> Any:
        """Make rounds where enough devices wait."""

    def model(self, cohort: str) -> GlobalModel | None:
        """The newest global model."""

    def rules(self, cohort: str) -> Rules:
        """How its rounds are made."""


@dataclass
class Session:
    """One secure sum. Who holds `lock` may call; every method but `advance` needs a session that was moved on."""

    id: str
    cohort: str
    architecture: Architecture
    base_version: int
    encoding: Encoding
    min_devices: int
    threshold_share: float
    phase_s: float
    deadline: datetime
    phase: Phase = Phase.KEYS
    reason: str | None = None
    """Why it was abandoned."""
    threshold: int | None = None
    """Devices that must stay to the end, known when the roster is."""
    samples: int | None = None
    """Of all devices in the sum, when it is done."""
    survivors: tuple[str, ...] = ()
    """Devices whose values are in the sum, known when it is complete."""
    keys: dict[str, Keys] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _sealed: dict[str, dict[str, bytes]] = field(default_factory=dict, repr=False)
    """By sender, then by receiver."""
    _total: Words | None = field(default=None, repr=False)
    _masked: dict[str, bytes] = field(default_factory=dict, repr=False)
    """Hashes of the values that are in the total, by device."""
    _opened: dict[str, dict[str, Share]] = field(default_factory=dict, repr=False)
    _tried: int = field(default=0, repr=False)
    """With how many helpers it was tried to unmask."""
    _wrong: str | None = field(default=None, repr=False)
    """Why that failed."""
    _update: LocalUpdate | None = field(default=None, repr=False)

    @property
    def devices(self) -> int:
        """How many take part."""
        return len(self.survivors or self._masked or self._sealed or self.keys)

    def add_keys(self, name: str, keys: Keys) -> None:
        """A device takes part."""
        if self._again(name, self.keys, keys, Phase.KEYS):
            return
        if len(self.keys) >= self.encoding.devices:
            raise WrongPhase(f"session {self.id} is full: join another")
        self.keys[name] = keys

    def roster(self) -> tuple[dict[str, Keys], int]:
        """The keys of all who take part, and the threshold."""
        self._needs_life()
        if self.threshold is None:
            raise WrongPhase(f"session {self.id} still gathers keys")
        return dict(self.keys), self.threshold

    def add_shares(self, name: str, sealed: Mapping[str, bytes]) -> None:
        """A device's shares of its secrets, sealed for each other device."""
        self._needs(name, self.keys)
        if self._again(name, self._sealed, dict(sealed), Phase.SHARES):
            return
        if sealed.keys() != self.keys.keys() - {name}:
            raise BadSecureSum("shares: there must be one for each other device of the roster")
        self._sealed[name] = dict(sealed)

    def sealed_for(self, name: str) -> dict[str, bytes]:
        """What the others sealed for a device."""
        self._needs(name, self._sealed)
        if self.phase not in (Phase.MASKED, Phase.UNMASK):
            raise WrongPhase(f"session {self.id} is at step {self.phase}: shares are handed out at step masked")
        return {sender: sealed[name] for sender, sealed in self._sealed.items() if sender != name}

    def add_masked(self, name: str, masked: Words) -> None:
        """A device's masked values, (parameters + 1,); they are added up and not kept."""
        self._needs(name, self._sealed)
        size = self.architecture.parameter_count + 1
        if masked.shape != (size,):
            raise BadSecureSum(f"values: {masked.size} numbers, and this model takes {size}")
        mark = hashlib.sha256(masked.tobytes()).digest()
        if self._again(name, self._masked, mark, Phase.MASKED):
            return
        self._total = masked.copy() if self._total is None else self._total + masked
        self._masked[name] = mark

    def add_opened(self, name: str, shares: Mapping[str, Share]) -> None:
        """A device's help to unmask; more than is needed is harmless."""
        if self.phase is Phase.DONE and name in self.survivors:
            return
        self._needs(name, self._masked)
        if not self._again(name, self._opened, dict(shares), Phase.UNMASK):
            self._opened[name] = dict(shares)

    def abandon(self, reason: str) -> None:
        """End it without a result, and forget what devices sent."""
        self.phase, self.reason = Phase.ABANDONED, reason
        self._forget()
        LOG.warning("secure sum %s of %s: abandoned: %s", self.id, self.cohort, reason)

    def advance(self, now: datetime, *, waiting: bool = True) -> LocalUpdate | None:
        """Move on as far as what is there allows.

        Parameters
        ----------
        waiting:
            whether a step that is not complete may still wait until its deadline

        Returns
        -------
        the result, where there is one that was not `finish`ed
        """
        while True:
            late = now >= self.deadline or not waiting
            before = self.phase
            match self.phase:
                case Phase.KEYS if late or len(self.keys) == self.encoding.devices:
                    share = floor(self.threshold_share * len(self.keys)) + 1
                    self.threshold = max(self.min_devices, min(share, len(self.keys)))
                    self._go_on(Phase.SHARES, len(self.keys), self.min_devices, now)
                case Phase.SHARES if late or len(self._sealed) == len(self.keys):
                    self._go_on(Phase.MASKED, len(self._sealed), self.threshold, now)
                case Phase.MASKED if late or len(self._masked) == len(self._sealed):
                    self.survivors = tuple(sorted(self._masked))
                    self._go_on(Phase.UNMASK, len(self._masked), self.threshold, now)
                case Phase.UNMASK:
                    return self._result(now, late=late)
                case _:
                    return None
            waiting = True  # what is hurried is one step
            if before is self.phase:
                return None

    def _go_on(self, phase: Phase, there: int, needed: int | None, now: datetime) -> None:
        if there < (needed or 0):
            self.abandon(f"at step {self.phase} {there} devices were there in time, and {needed} are needed")
        else:
            self.phase, self.deadline = phase, now + timedelta(seconds=self.phase_s)

    def _result(self, now: datetime, *, late: bool) -> LocalUpdate | None:
        helpers, last = len(self._opened), late or len(self._opened) == len(self._masked)
        # A first try as soon as enough help; where a share was wrong, a second with all who helped.
        if (
            self._update is None
            and helpers >= (self.threshold or 0)
            and (not self._tried or (last and helpers > self._tried))
        ):
            self._tried = helpers
            try:
                self._update = self._unmasked(now)
            except BadSecureSum as error:
                self._wrong = str(error)
        if self._update is None and last:
            few = f"at step unmask {helpers} devices helped in time, and {self.threshold} are needed"
            self.abandon(self._wrong or few)
        return self._update

    def _unmasked(self, now: datetime) -> LocalUpdate:
        assert self._total is not None  # noqa: S101  # somebody's values are there, or there were no survivors
        total = unmask(
            self._total, self.id, self.keys, self._sealed, self.survivors, self.threshold or 0, self._opened
        )  # fmt: skip
        theta, self.samples = self.encoding.decode(total, len(self.survivors))
        metadata: dict[str, Any] = {"cohort": self.cohort, "devices": len(self.survivors)}
        if self.base_version:
            metadata["base_version"] = self.base_version
        return LocalUpdate(
            device_id=f"secure-sum-{self.id}",
            weights=WeightsMessage.model_validate(network.to_message(theta, self.architecture)),
            sample_count=self.samples,
            timestamp=now.astimezone(UTC),
            metadata=metadata,
        )

    def finish(self) -> None:
        """The result is where it belongs: forget the rest."""
        self.phase = Phase.DONE
        self._forget()
        LOG.info("secure sum %s of %s: %d devices, %s samples", self.id, self.cohort, self.devices, self.samples)

    def _forget(self) -> None:
        for kept in (self.keys, self._sealed, self._masked, self._opened):
            kept.clear()
        self._total = self._update = None

    def _needs_life(self) -> None:
        if self.phase in OVER:
            raise WrongPhase(f"session {self.id} is {self.phase}" + (f": {self.reason}" if self.reason else ""))

    def _needs(self, name: str, among: Mapping[str, object]) -> None:
        self._needs_life()
        if name not in among:
            raise WrongPhase(f"{name!r} is not, or no longer, in session {self.id}: join another")

    def _again(self, name: str, known: Mapping[str, Any], given: Any, phase: Phase) -> bool:
        """Say whether the very same came before; raise where it may not come now."""
        if name in known:
            if known[name] != given:
                raise WrongPhase(f"{name!r} sent something else at step {phase} before: that stays")
            return True
        if self.phase is not phase:
            raise WrongPhase(f"session {self.id} is at step {self.phase}, no longer or not yet at {phase}")
        return False


class SecureSums:
    """All sessions. Safe to use from many threads.

    Parameters
    ----------
    rounds:
        takes each sum's one local update
    """

    def __init__(self, rounds: Rounds, settings: SecureSettings) -> None:
        self.settings = settings
        self._rounds = rounds
        self._sessions: dict[str, Session] = {}
        self._lock = threading.RLock()

    def open(self, cohort: str, architecture: Architecture | None, now: datetime) -> Session:
        """Begin a session; the one that gathers for this cohort already, where there is one.

        Parameters
        ----------
        architecture:
            of the models; None: that of the cohort's global model

        Raises
        ------
        BadSecureSum
            where the architecture is not known, or not the cohort's; where its rounds look at each device's update
        WrongPhase
            where too many sessions go on
        """
        self.tick(now)
        with self._lock:
            return self._open(cohort, architecture, now)

    def _open(self, cohort: str, architecture: Architecture | None, now: datetime) -> Session:
        gathering, model, rules = self._gathering(cohort), self._rounds.model(cohort), self._rounds.rules(cohort)
        if not rules.strategy.linear or rules.privacy.enabled:
            who = "privacy" if rules.privacy.enabled else rules.strategy.name
            raise BadSecureSum(f"cohort {cohort!r}: {who} looks at each device's update, which a sum hides: change one")
        known = gathering.architecture if gathering else None
        if known is None and model is not None:
            known = Architecture.from_message(model.weights.architecture)
        if known is not None and architecture not in (None, known):
            raise BadSecureSum(f"cohort {cohort!r} is {known}, and this is {architecture}")
        if gathering:
            return gathering
        known = known or architecture
        if known is None:
            raise BadSecureSum(f"cohort {cohort!r} has no global model yet: name the architecture")
        if known.parameter_count > MAX_PARAMETERS:
            raise BadSecureSum(f"the model has {known.parameter_count} parameters, the limit is {MAX_PARAMETERS}")
        if sum(session.phase not in OVER for session in self._sessions.values()) >= MAX_OPEN:
            raise WrongPhase(f"{MAX_OPEN} secure sums go on: wait for one to end")
        session = Session(
            id=secrets.token_hex(8),
            cohort=cohort,
            architecture=known,
            base_version=model.version if model else 0,
            encoding=self.settings.encoding,
            min_devices=self.settings.min_devices,
            threshold_share=self.settings.threshold,
            phase_s=self.settings.phase_s,
            deadline=now + timedelta(seconds=self.settings.gather_s),
        )
        self._sessions[session.id] = session
        self._forget_oldest()
        return session

    def join(self, cohort: str, architecture: Architecture, now: datetime) -> Session | None:
        """Give the session that gathers devices of a cohort, opened where that is automatic; None where there is none.

        Raises
        ------
        BadSecureSum
            where the architecture is not the cohort's
        """
        self.tick(now)
        with self._lock:
            wanted = self.settings.automatic or self._gathering(cohort)
            return self._open(cohort, architecture, now) if wanted else None

    def _gathering(self, cohort: str) -> Session | None:
        return next((s for s in self._sessions.values() if s.cohort == cohort and s.phase is Phase.KEYS), None)

    def _forget_oldest(self) -> None:
        over = [name for name, session in self._sessions.items() if session.phase in OVER]
        for name in over[: max(0, len(over) - KEPT)]:
            del self._sessions[name]

    @contextmanager
    def at(self, session_id: str, now: datetime) -> Iterator[Session | None]:
        """Give a session, moved on before and after; None where there is none."""
        with self._lock:
            session = self._sessions.get(session_id)
        if session is None:
            yield None
            return
        with session.lock:
            self._advance(session, now)
            yield session
            self._advance(session, now)

    def sessions(self, now: datetime) -> list[Session]:
        """All that are known, oldest first."""
        self.tick(now)
        with self._lock:
            return list(self._sessions.values())

    def tick(self, now: datetime) -> None:
        """Move every session on; each call does that for its own, so nobody needs to call this often."""
        with self._lock:
            sessions = [session for session in self._sessions.values() if session.phase not in OVER]
        for session in sessions:
            with session.lock:
                self._advance(session, now)

    def close(self, session: Session, now: datetime) -> None:
        """Wait no longer for the step that a session is at: go on with who is there, or abandon it."""
        self._advance(session, now, waiting=False)

    def _advance(self, session: Session, now: datetime, *, waiting: bool = True) -> None:
        update = session.advance(now, waiting=waiting)
        if update is None:
            return
        try:
            outcome = self._rounds.accept(update, now)
            if outcome in (Accepted.OUTDATED, Accepted.QUARANTINED):  # a duplicate was stored when it came first
                session.abandon(f"the sum must not enter a round: it is {outcome.value}")
                return
            session.finish()
            self._rounds.aggregate_ready(now)
        except BadInput as error:
            session.abandon(f"the sum must not enter a round: {error.detail}")
        except Unavailable as error:
            # The update's key is the same when it is tried again, so that it is counted once.
            LOG.warning("secure sum %s: MongoDB does not answer: %s", session.id, error)
            if session.phase not in OVER and now >= session.deadline + timedelta(seconds=session.phase_s):
                session.abandon(f"the sum could not be stored: {error}")
