"""Versions of global models: which is stable, which is on trial, what becomes of it, and how two of them differ."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np

from flead import network
from flead.errors import BadModel, Conflict, NotThere
from flead.messages import GlobalModel, Stage
from flead.rollout import Judgement, Verdict
from global_server.books import Books
from global_server.cohort import Cohort
from storage.rounds import Memo, as_kept

LOG = logging.getLogger(__name__)

BY_ITSELF = "rollout"
"""Who decides where nobody does."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How version b differs from version a.

    Attributes
    ----------
    distance: Euclidean, over all parameters
    relative: the same as a share of a's norm
    cosine: of the angle between the two
    layers: the distance by layer, its biases with it
    """

    distance: float
    relative: float
    cosine: float
    layers: list[float]


class Versions:
    """Promotes and rolls back. Every method may raise `Unavailable` where MongoDB does not answer.

    Parameters
    ----------
    sign:
        gives a model the server's signature
    check:
        raises `ForgedModel` where a model does not have it
    """

    def __init__(
        self, books: Books, sign: Callable[[GlobalModel], GlobalModel], check: Callable[[GlobalModel], None]
    ) -> None:
        self._books = books
        self._sign = sign
        self._check = check

    def judge_due(self, now: datetime) -> list[tuple[GlobalModel, Judgement]]:
        """Decide on each canary whose trial is over."""
        decided = []
        with self._books.current() as memory:
            for name in list(memory.cohorts):
                cohort = self._books.memory.cohorts[name]  # a version that was taken back had everything read again
                rollout = self._books.rules(cohort.name).rollout
                if cohort.trial is None or not rollout.automatic:
                    continue
                found = cohort.trial.judge(rollout, now)
                if found.verdict is not Verdict.WAIT:
                    decided.append((self._decide(cohort, found, now), found))
        return decided

    def _decide(self, cohort: Cohort, found: Judgement, now: datetime) -> GlobalModel:
        if found.verdict is Verdict.PROMOTE:
            return self._promote(cohort, _on_trial(cohort), found.why, BY_ITSELF, now, found)
        return self._take_back(cohort, _on_trial(cohort), found.why, BY_ITSELF, now, found)

    def promote(self, cohort: str, version: int, who: str, now: datetime) -> GlobalModel:
        """Make a version the stable one: a canary, or an earlier version, which takes all later ones back.

        Raises
        ------
        NotThere
            where there is no such version
        Conflict
            where it is the stable one already
        """
        with self._books.current() as memory:
            state = _known(memory.cohorts, cohort)
            if state.model and state.model.version == version:
                raise Conflict(f"version {version} of {cohort!r} is the stable one already")
            return self._promote(state, self.get(cohort, version), f"promoted by {who}", who, now)

    def roll_back(self, cohort: str, version: int, who: str, now: datetime) -> GlobalModel:
        """Take a version back: a canary, or the stable one, before which the one before it comes back.

        Raises
        ------
        NotThere
            where there is no such version
        Conflict
            where it is neither, or there is nothing to go back to
        """
        with self._books.current() as memory:
            state = _known(memory.cohorts, cohort)
            model = self.get(cohort, version)
            if state.trial and state.trial.version == version:
                return self._take_back(state, model, f"rolled back by {who}", who, now)
            if state.model is None or state.model.version != version:
                raise Conflict(f"version {version} of {cohort!r} is neither the stable one nor on trial")
            earlier = self._books.repository.stable_before(cohort, version)
            if earlier is None:
                raise Conflict(f"version {version} of {cohort!r} is the first stable one: there is none to go back to")
            self._promote(state, earlier, f"version {version} was rolled back by {who}", who, now)
            return self.get(cohort, version)

    def get(self, cohort: str, version: int) -> GlobalModel:
        """Read a version; raises `NotThere`."""
        model = self._books.repository.version_of(cohort, version)
        if model is None:
            raise NotThere(f"cohort {cohort!r} has no version {version}: GET /api/models lists those that there are")
        return model

    def about(self, cohort: str, version: int) -> dict[str, Any]:
        """What was decided about a version: `verdict`, `decided_by`, `decided_at`, `published_at`."""
        return self._books.repository.decision(cohort, version)

    def trial(self, cohort: str, now: datetime) -> dict[str, Any] | None:
        """How the trial of a cohort's canary goes; None where there is none.

        `version`, `since`, `until` (judged by then at the latest), `share`; `expected` canaries and `others` that
        report their errors, `canaries` and `controls` of them that have since; `rise`, `verdict` and `why` as of now;
        whether it is `automatic`.
        """
        with self._books.lock:
            state = self._books.memory.cohorts.get(cohort)
            if state is None or state.trial is None:
                return None
            trial = copy(state.trial)
            trial.canaries, trial.controls = dict(trial.canaries), dict(trial.controls)
            rollout = self._books.rules(cohort).rollout
        found = trial.judge(rollout, now)
        return {
            "version": trial.version,
            "since": trial.since,
            "until": trial.since + timedelta(seconds=rollout.limit_s),
            "share": trial.share,
            "expected": len(trial.picked),
            "others": len(trial.before) - len(trial.picked),
            "canaries": found.canaries,
            "controls": found.controls,
            "rise": found.rise,
            "verdict": found.verdict.value,
            "why": found.why,
            "automatic": rollout.automatic,
        }

    def restore(self, backup: GlobalModel, who: str, now: datetime) -> GlobalModel:
        """Make a backup the stable model, as a version of its own.

        Raises
        ------
        ForgedModel
            where this server did not sign it
        BadModel
            where it is of another architecture than the cohort
        """
        self._check(backup)
        _, architecture = network.from_message(backup.weights)
        with self._books.current() as memory:
            state = memory.cohorts.setdefault(backup.cohort, Cohort(backup.cohort, architecture))
            if state.architecture != architecture:
                raise BadModel(f"cohort {backup.cohort!r} is {state.architecture}, the backup is {architecture}")
            changes: dict[str, Any] = {"version": max(state.version, backup.version) + 1, "parent": backup.version}
            changes |= {"timestamp": as_kept(now), "stage": Stage.STABLE, "share": 1.0}
            model = self._sign(backup.model_copy(update=changes))
            superseded = state.canary.version if state.trial and state.canary else None
            self._books.repository.store_round(model, [], Memo(superseded=superseded), instead_of=state.version + 1)
            self._books.load()
        LOG.info("version %d of %s is a backup of version %d (%s)", model.version, model.cohort, backup.version, who)
        return model

    def compare(self, cohort: str, a: int, b: int) -> Difference:
        """How version b differs from version a; raises `NotThere`."""
        (one, architecture), (other, _) = (network.from_message(self.get(cohort, v).weights) for v in (a, b))
        apart = other - one
        lengths = float(np.linalg.norm(one)), float(np.linalg.norm(other))
        product = lengths[0] * lengths[1]
        return Difference(
            distance=float(np.linalg.norm(apart)),
            relative=float(np.linalg.norm(apart)) / lengths[0] if lengths[0] else 0.0,
            cosine=float(one @ other) / product if product else 0.0,
            layers=[float(np.linalg.norm(layer)) for layer in network.layers(apart, architecture)],
        )

    def _promote(
        self, cohort: Cohort, model: GlobalModel, why: str, who: str, now: datetime, found: Judgement | None = None
    ) -> GlobalModel:
        stable = self._staged(model, Stage.STABLE, found)
        later = [
            self._staged(one, Stage.ROLLED_BACK)
            for one in self._books.repository.in_use_after(cohort.name, model.version)
        ]
        verdict = _verdict(why, who, now)
        over = _verdict(f"version {model.version} took its place: {why}", who, now)
        self._books.repository.restage(
            [(stable, verdict), *((one, over) for one in later)], [one.version for one in later], cohort.version + 1
        )
        LOG.info("version %d of %s is stable: %s", model.version, cohort.name, why)
        if later:
            self._books.load()  # what is pending, and who has what, changed for many
        else:
            cohort.take(stable)
            self._books.work.set()
        return stable

    def _take_back(
        self, cohort: Cohort, model: GlobalModel, why: str, who: str, now: datetime, found: Judgement | None = None
    ) -> GlobalModel:
        back = self._staged(model, Stage.ROLLED_BACK, found)
        self._books.repository.restage([(back, _verdict(why, who, now))], [model.version], cohort.version + 1)
        LOG.warning("version %d of %s is rolled back: %s", model.version, cohort.name, why)
        self._books.load()
        return back

    def _staged(self, model: GlobalModel, stage: Stage, found: Judgement | None = None) -> GlobalModel:
        metrics = dict(model.metrics)
        if found is not None:
            metrics |= {"canaries": float(found.canaries), "controls": float(found.controls)}
            metrics |= {} if found.rise is None else {"rise": found.rise}
        share = 1.0 if stage is Stage.STABLE else model.share
        return self._sign(model.model_copy(update={"stage": stage, "share": share, "metrics": metrics}))


def _verdict(why: str, who: str, now: datetime) -> dict[str, Any]:
    return {"verdict": why, "decided_by": who, "decided_at": now}


def _on_trial(cohort: Cohort) -> GlobalModel:
    assert cohort.canary is not None  # noqa: S101  # there is no trial without one
    return cohort.canary


def _known(cohorts: dict[str, Cohort], name: str) -> Cohort:
    if name not in cohorts:
        raise NotThere(f"there is no cohort {name[:128]!r}: GET /api/status names those that there are")
    return cohorts[name]
