"""All cohorts and devices as MongoDB holds them, and the decision on each update. No lock, no clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from flead.errors import BadInput, BadUpdate
from flead.network import Architecture
from global_server.cohort import Cohort
from storage.rounds import RoundRepository, Update


class Accepted(StrEnum):
    """What became of an update that was not refused."""

    NEW = "accepted"
    DUPLICATE = "duplicate"


@dataclass(slots=True)
class Memory:
    """The cohorts by name, and the highest training counter of each device that gives one."""

    cohorts: dict[str, Cohort] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, repository: RoundRepository) -> Memory:
        """Read rounds, pending updates and counters; raises `Unavailable`."""
        memory, given = cls(), repository.contributions()
        for name, model in repository.latest_rounds().items():
            cohort = Cohort(name, Architecture.from_message(model.weights.architecture), model)
            cohort.accepted = {part.device_id: part.updates for part in given.get(name, ())}
            memory.cohorts[name] = cohort
        for part in (part for parts in given.values() for part in parts):
            memory._raise_counter(part.device_id, part.samples_seen)
        for update in repository.pending():
            memory.count(update)
        return memory

    def decide(self, update: Update, known: set[str], new: list[Update]) -> Accepted | BadInput:
        """Count an update in, unless it was before or does not fit its cohort.

        Parameters
        ----------
        known:
            keys of updates that were accepted before; a new one is added
        new:
            a new update is appended
        """
        if update.key in known or self._is_stale(update):
            return Accepted.DUPLICATE
        cohort = self.cohorts.get(update.cohort)
        if cohort and cohort.architecture != update.architecture:
            return BadUpdate(f"cohort {update.cohort!r} is {cohort.architecture}, the update is {update.architecture}")
        version = cohort.version if cohort else 0
        if (update.base_version or 0) > version:
            return BadUpdate(
                f"base_version is {update.base_version}, the newest round of {update.cohort!r} is {version}"
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

    def _is_stale(self, update: Update) -> bool:
        """Say whether the device's training counter did not go up."""
        return update.samples_seen is not None and update.samples_seen <= self.seen.get(update.device_id, -1)

    def _raise_counter(self, device_id: str, samples_seen: int | None) -> None:
        if samples_seen is not None:
            self.seen[device_id] = max(samples_seen, self.seen.get(device_id, -1))
