"""All cohorts and devices as MongoDB holds them, and the decision on each update. No lock, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from config.aggregation import Rules, RulesPatch
from flead.errors import BadInput, BadUpdate
from flead.messages import Stage
from flead.network import Architecture
from global_server.cohort import REMEMBERED, Cohort
from global_server.trial import Trial
from storage.rounds import RoundRepository, Standing, Trust, Update


class Accepted(StrEnum):
    """What became of an update that was not refused."""

    NEW = "accepted"
    DUPLICATE = "duplicate"
    """It was counted before."""
    OUTDATED = "outdated"
    """It began from a version that was taken back: it is not used, and the device gets the stable model."""
    QUARANTINED = "quarantined"
    """Its device is kept out until somebody decides."""


@dataclass(slots=True)
class Memory:
    """The cohorts by name, and the highest training counter of each device that gives one.

    Beside them whom the defence thinks badly of, and what operators changed in the rules (by cohort, `*` for all).
    """

    cohorts: dict[str, Cohort] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    trust: dict[str, Trust] = field(default_factory=dict)
    patches: dict[str, RulesPatch] = field(default_factory=dict)

    @classmethod
    def read(cls, repository: RoundRepository) -> Memory:
        """Read rounds, pending updates and counters; raises `Unavailable`."""
        memory, given = cls(), repository.contributions()
        memory.trust = {trust.device_id: trust for trust in repository.trust()}
        memory.patches = repository.patches()
        for name, standing in repository.standings().items():
            cohort = memory.cohorts[name] = _cohort(name, standing)
            cohort.accepted = {part.device_id: part.updates for part in given.get(name, ())}
            _hear_again(cohort, repository)
        for part in (part for parts in given.values() for part in parts):
            memory._raise_counter(part.device_id, part.samples_seen)
        for update in repository.pending():
            memory.count(update)
        return memory

    def decide(self, update: Update, rules: Rules, known: set[str], new: list[Update]) -> Accepted | BadInput:
        """Count an update in, unless it was before or does not fit its cohort.

        Parameters
        ----------
        rules:
            of its cohort
        known:
            keys of updates that were accepted before; a new one is added
        new:
            a new update is appended
        """
        if update.key in known or self._is_stale(update):
            return Accepted.DUPLICATE
        if self.is_kept_out(update.device_id):
            return Accepted.QUARANTINED
        cohort = self.cohorts.get(update.cohort)
        if cohort and cohort.architecture != update.architecture:
            return BadUpdate(f"cohort {update.cohort!r} is {cohort.architecture}, the update is {update.architecture}")
        version = cohort.version if cohort else 0
        if (update.base_version or 0) > version:
            return BadUpdate(
                f"base_version is {update.base_version}, the newest round of {update.cohort!r} is {version}"
            )
        if cohort and cohort.was_taken_back(update.base_version or 0):
            return Accepted.OUTDATED
        if update.devices > 1 and (looks := _looks_at_each(rules)):
            return BadUpdate(
                f"metadata.devices is {update.devices}, and {looks} looks at each device by itself: "
                "send each device's update, or choose a strategy that averages"
            )
        self.count(update)
        known.add(update.key)
        new.append(update)
        return Accepted.NEW

    def count(self, update: Update) -> None:
        """Count an accepted update in."""
        cohort = self.cohorts.setdefault(update.cohort, Cohort(update.cohort, update.architecture))
        cohort.add(update)
        self._raise_counter(update.device_id, update.samples_seen)

    def is_kept_out(self, device_id: str) -> bool:
        """Whether a device's updates are not used."""
        trust = self.trust.get(device_id)
        return trust is not None and trust.state != "trusted"

    def _is_stale(self, update: Update) -> bool:
        """Say whether the device's training counter did not go up."""
        return update.samples_seen is not None and update.samples_seen <= self.seen.get(update.device_id, -1)

    def _raise_counter(self, device_id: str, samples_seen: int | None) -> None:
        if samples_seen is not None:
            self.seen[device_id] = max(samples_seen, self.seen.get(device_id, -1))


def _looks_at_each(rules: Rules) -> str | None:
    """What in the rules cannot do with a sum over several devices; None where nothing."""
    if not rules.strategy.linear:
        return rules.strategy.name
    return "privacy" if rules.privacy.enabled else None


def _cohort(name: str, standing: Standing) -> Cohort:
    newest = standing.canary or standing.model
    assert newest is not None  # noqa: S101  # a cohort stands in the database by its rounds
    cohort = Cohort(
        name, Architecture.from_message(newest.weights.architecture), standing.version, standing.model, standing.canary
    )
    for model in (standing.model, standing.canary):
        if model is not None:
            cohort.remember(model)
    return cohort


def _hear_again(cohort: Cohort, repository: RoundRepository) -> None:
    """Take in what devices said of their errors, as if it came now; a canary's trial goes on."""
    canary = cohort.canary if cohort.canary and cohort.canary.stage is Stage.CANARY else None
    said = repository.losses(cohort.name, max(0, cohort.version - REMEMBERED))
    for one in said:
        if canary is None or one.received_at <= canary.timestamp:
            cohort.hear(one.device_id, one.base_version, one.loss)
    if canary is not None:
        before = {name: report.loss for name, report in cohort.reports.items()}
        cohort.trial = Trial(cohort.name, canary.version, canary.share, canary.timestamp, before)
        for one in said:
            if one.received_at > canary.timestamp:
                cohort.hear(one.device_id, one.base_version, one.loss)
