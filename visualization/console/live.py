"""One frame of changes at a time for all open pages, computed once, in a thread beside the server's loop.

A page says when it has drawn a frame, and gets no other before: one that falls behind, or lies hidden, skips frames
and is told all that changed meanwhile in its next. Who it is shown to is asked with each frame: a page whose user has
logged out gets none.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import orjson

from flead.errors import Unavailable
from flead.messages import GlobalModel
from visualization.console import rollout, words
from visualization.console.feed import Feed
from visualization.console.fleet import Fleet
from visualization.page import UNITS

LOG = logging.getLogger(__name__)

PERIOD_S = 0.4
"""Between two frames, s."""
FACTS_S = 2.0
"""How often MongoDB and the run folder are looked at, s."""
LOST_S = 10.0
"""A page that has not answered for so long is sent a frame again, s."""
ROUNDS = 30
"""The newest versions of each cohort that are looked at, and can be compared."""


class Rounds(Protocol):
    """What the console asks the global server; `global_server.rounds.RoundService` is one."""

    def summary(self) -> dict[str, dict[str, int]]:
        """Rounds, pending updates and devices of each cohort."""

    def history(self, cohort: str, limit: int = ..., *, devices: bool = ...) -> list[dict[str, Any]]:
        """The newest rounds, oldest first; raises `Unavailable`."""

    def is_stored(self) -> bool:
        """Whether MongoDB answers."""

    def model(self, cohort: str) -> GlobalModel | None:
        """The stable model; None before the first round."""

    @property
    def versions(self) -> rollout.Versions:
        """What became of versions, and how they differ."""

    @property
    def quarantine(self) -> rollout.Quarantine:
        """Which devices are kept out."""


Frame = dict[str, Any]


async def _anybody() -> bool:
    return True


@dataclass(eq=False)
class Page:
    """An open page. What it is made with is called in the server's loop.

    Attributes
    ----------
    send:
        gives it a frame
    may_look:
        whether it may be given one still
    close:
        called once, where it may not: it is given nothing any more
    device:
        the device that it shows; None: no one
    """

    send: Callable[[Frame], None]
    may_look: Callable[[], Awaitable[bool]] = _anybody
    close: Callable[[], None] = lambda: None
    device: str | None = None
    drawn: bool = True
    revision: int = 0
    written: int = 0
    sent_at: float = 0.0

    def show(self, device: str | None) -> None:
        """Show another device."""
        self.device, self.written = device, 0


@dataclass(frozen=True)
class Model:
    """What is known of a cohort's versions.

    Attributes
    ----------
    standing:
        newest round, stable version, version on trial: while these stay, so does what is stored
    versions:
        the newest ones as the page has them, newest first
    numbers:
        of all that can be compared, newest first
    trial:
        how the newest one's trial goes
    """

    standing: tuple[int, int | None, int | None] = (0, None, None)
    versions: list[dict[str, Any]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    trial: dict[str, Any] | None = None

    @property
    def stable(self) -> int | None:
        """The stable version."""
        return self.standing[1]


@dataclass
class Facts:
    """What is known beside the stream, as of the last look."""

    status: dict[str, Any] | None = None
    stored: bool = True
    cohorts: dict[str, dict[str, int]] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    quarantine: dict[str, Any] = field(default_factory=lambda: rollout.quarantine_shown([]))


class Live:
    """Makes frames for pages.

    Parameters
    ----------
    status_file:
        where `flead up` writes how the run is
    positions:
        where devices are, x and y; empty where it is not known
    clock:
        gives the present, Unix time, s
    """

    def __init__(
        self, fleet: Fleet, feed: Feed, rounds: Rounds, status_file: Path,
        positions: Mapping[str, tuple[float, float]], *, clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.pages: set[Page] = set()
        self.positions = dict(positions)
        self._fleet = fleet
        self._feed = feed
        self._rounds = rounds
        self._status_file = status_file
        self._clock = clock
        self._facts = Facts()
        self._facts_at = 0.0
        self._number = 0
        self._looking = threading.Lock()

    async def run(self) -> None:
        """Serve pages until it is cancelled."""
        while True:
            begun = time.monotonic()
            try:
                await self.serve()
            except Exception:
                LOG.exception("a frame of the console failed")
            await asyncio.sleep(max(0.05, PERIOD_S - (time.monotonic() - begun)))

    async def serve(self) -> None:
        """Send each page that has drawn its last frame another one, and close those that may have none."""
        now = self._clock()
        ready = [page for page in self.pages if page.drawn or now - page.sent_at > LOST_S]
        if not ready:
            return
        wanted = [(page.revision, page.device, page.written) for page in ready]
        asked = asyncio.gather(*(page.may_look() for page in ready))
        frames, allowed = await asyncio.gather(asyncio.to_thread(self.frames, wanted, now), asked)
        for page, (_, device, _), frame, may in zip(ready, wanted, frames, allowed, strict=True):
            if page not in self.pages:  # it was left meanwhile
                continue
            if not may:
                self.pages.discard(page)
                page.close()
                continue
            if page.device != device:  # it shows another device since
                frame = {**frame, "device": None}
            elif frame["device"]:
                page.written = frame["device"].get("written", 0)
            page.revision, page.drawn, page.sent_at = frame["revision"], False, now
            page.send(frame)

    def frames(self, wanted: list[tuple[int, str | None, int]], now: float) -> list[Frame]:
        """The frames for pages that have seen these revisions and show these devices, alike ones made once."""
        with self._looking:
            if now - self._facts_at >= FACTS_S:
                self._facts, self._facts_at = self._look(now), now
            self._number += 1
            revision = self._fleet.look(now)
            common = {"number": self._number, "revision": revision, "now": now, **self._summary(now)}
        changes = {since: self._fleet.changes(since) for since in {since for since, _, _ in wanted}}
        devices = {key: self._device(*key) for key in {(device, written) for _, device, written in wanted}}
        return [{**common, **changes[since], "device": devices[device, written]} for since, device, written in wanted]

    def _device(self, name: str | None, written: int) -> dict[str, Any] | None:
        if name is None:
            return None
        found = self._fleet.device(name, written)
        if found is None:
            return {"name": name, "sensors": None}
        last = found["last"]
        found["units"] = [UNITS.get(sensor) for sensor in found["sensors"]]
        found["what"] = words.kind_in_words(last["kind"]) if last["is_anomaly"] else None
        return found

    def _look(self, now: float) -> Facts:
        """Look at MongoDB and the run folder; what does not answer keeps its last value."""
        facts = Facts(
            stored=self._rounds.is_stored(), cohorts=self._rounds.summary(), quarantine=self._facts.quarantine
        )
        with suppress(OSError, ValueError):
            found = orjson.loads(self._status_file.read_bytes())
            facts.status = found if isinstance(found, dict) else None
        for name, figures in facts.cohorts.items():
            facts.models[name] = self._model(name, figures["rounds"], now)
        if facts.stored:
            with suppress(Unavailable):
                facts.quarantine = rollout.quarantine_shown(self._rounds.quarantine.list())
        return facts

    def _model(self, cohort: str, rounds: int, now: float) -> Model:
        """Look at a cohort's versions; MongoDB is asked only where one is new, or was promoted or rolled back."""
        stable = self._rounds.model(cohort)
        trial = self._rounds.versions.trial(cohort, datetime.fromtimestamp(now, UTC))
        standing = (rounds, stable.version if stable else None, trial["version"] if trial else None)
        known = self._facts.models.get(cohort, Model())
        if standing != known.standing:
            try:
                found = self._rounds.history(cohort, ROUNDS, devices=False)
            except Unavailable:
                return known
            numbers = [one["round"] for one in reversed(found)]
            known = Model(standing, rollout.versions_shown(found, *standing[1:]), numbers)
        return replace(known, trial=rollout.trial_shown(trial))

    def look_again(self) -> None:
        """Look at MongoDB with the next frame: something was changed."""
        self._facts_at = 0.0

    def compare(self, cohort: str, a: int, b: int) -> dict[str, Any]:
        """How version b differs from version a, for the page; raises `NotThere`, `Unavailable`."""
        return rollout.difference_shown(cohort, a, b, self._rounds.versions.compare(cohort, a, b))

    def _summary(self, now: float) -> dict[str, Any]:
        facts, figures, cohorts = self._facts, self._fleet.figures(now), self._fleet.cohorts()
        tally = self._fleet.tally()
        main = max(cohorts, key=lambda name: cohorts[name]["devices"], default=None)
        made = sum(cohort["rounds"] for cohort in facts.cohorts.values())
        answers = {
            "devices": words.about_devices(tally, self._fleet.troubled(8)),
            "model": words.about_model(cohorts[main]["skills"] if main else [], made),
            "pipeline": words.about_pipeline(
                facts.status, kafka=self._feed.problem, stored=facts.stored, newest=figures["newest"],
                p99=figures["latency_ms"]["p99"], now=now,
            ),
        }  # fmt: skip
        models = _models(cohorts, facts)
        going_on = words.about_rollout(models[0]["trial"], next(iter(models[0]["versions"]), None)) if models else ""
        answers["model"] = answers["model"]._replace(detail=" ".join(filter(None, (answers["model"].detail, going_on))))
        return {
            "tally": tally,
            "answers": {name: answer._asdict() for name, answer in answers.items()},
            "figures": figures,
            "models": models,
            "quarantine": facts.quarantine,
            "run": _run(facts.status, now),
            "kafka": self._feed.problem,
            "stored": facts.stored,
        }


def _models(cohorts: Mapping[str, dict[str, Any]], facts: Facts) -> list[dict[str, Any]]:
    """What is known of each cohort's model, the largest cohort first."""
    nothing: dict[str, Any] = {"devices": 0, "adopted": {}, "skills": []}
    found = []
    for name in cohorts.keys() | facts.cohorts.keys():
        seen, made = cohorts.get(name, nothing), facts.cohorts.get(name, {})
        model = facts.models.get(name, Model())
        found.append(
            {
                "cohort": name, "devices": seen["devices"] or made.get("unique_devices", 0),
                "adopted": sorted(seen["adopted"].items()), "skills": seen["skills"],
                "made": made.get("rounds", 0), "pending": made.get("pending_updates", 0),
                "stable": model.stable, "trial": model.trial, "versions": model.versions, "numbers": model.numbers,
            }
        )  # fmt: skip
    return sorted(found, key=lambda model: (-model["devices"], model["cohort"]))


def _run(status: Mapping[str, Any] | None, now: float) -> dict[str, Any] | None:
    """The run as the page shows it; None where there has been none."""
    if status is None:
        return None
    services = status.get("services") or {}
    return {
        "state": "over" if words.is_stale(status, now) else status.get("state"),
        "updated": status.get("updated"),
        "services": [[name, service.get("state"), service.get("restarts")] for name, service in services.items()],
        "lag": status.get("lag") or {},
        "counts": status.get("counts") or {},
    }
