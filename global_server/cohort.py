"""One cohort between two rounds: what is pending, what each device gave so far, and where its model stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from flead import network
from flead.federation import fedavg
from flead.messages import GlobalModel, Stage
from flead.network import Architecture, Vector
from flead.rollout import Rollout, share_for
from global_server.trial import Trial
from storage.rounds import Update

REMEMBERED = 16
"""Versions whose parameters are kept, for updates that began from an older one; and rounds after which a device that
has sent nothing no longer counts as one that reports its errors."""


@dataclass(slots=True)
class Pending:
    """A sender's updates since its last use in a round.

    Of one device the latest weights and the samples of all; of one that sends sums over many, the mean of the sums,
    each weighted by its samples: another sum may be of other devices, and none is lost.
    """

    latest: Update
    samples: int = 0
    updates: int = 0
    since: datetime | None = None

    def add(self, update: Update) -> None:
        """Count an update in; of two, the weights with more training behind them stay, else the later ones."""
        if self.updates and max(self.latest.devices, update.devices) > 1:
            self.latest = _together(self.latest, self.samples, update)
        elif _order(update) >= _order(self.latest):
            self.latest = self._with_earlier_control(update)
        self.samples += update.sample_count
        self.updates += 1
        self.since = min(self.since or update.received_at, update.received_at)

    def _with_earlier_control(self, update: Update) -> Update:
        """The update with all that the sender's control variate changed by since its last use in a round."""
        if not self.updates or update.control is None or self.latest.control is None:
            return update
        return replace(update, control=self.latest.control + update.control)


def _together(earlier: Update, samples: int, update: Update) -> Update:
    """Two sums as one; how many devices are in both is not known, so the larger number of them counts."""
    newer = update if _order(update) >= _order(earlier) else earlier
    began = [one.base_version for one in (earlier, update) if one.base_version is not None]
    return replace(
        newer,
        theta=fedavg([earlier.theta, update.theta], [samples, update.sample_count]),
        devices=max(earlier.devices, update.devices),
        base_version=min(began, default=None),
    )


def _order(update: Update) -> tuple[int, datetime]:
    return update.samples_seen or 0, update.timestamp


@dataclass(frozen=True, slots=True)
class Report:
    """What a device said last of its errors, and after which version."""

    loss: float
    version: int


@dataclass(slots=True)
class Cohort:
    """The state of a cohort. `architecture` is that of its first accepted update.

    Attributes
    ----------
    version:
        the newest round's number, 0 before the first
    model:
        the stable model
    canary:
        the newest version, where it is not stable: on trial, or rolled back
    published, announced:
        whether the model, and what became of the canary, were delivered since this process started
    accepted:
        updates accepted of each device, ever
    thetas:
        the parameters of the newest versions
    """

    name: str
    architecture: Architecture
    version: int = 0
    model: GlobalModel | None = None
    canary: GlobalModel | None = None
    published: bool = False
    announced: bool = False
    pending: dict[str, Pending] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    reports: dict[str, Report] = field(default_factory=dict)
    trial: Trial | None = None
    thetas: dict[int, Vector] = field(default_factory=dict)

    def add(self, update: Update) -> None:
        """Count an accepted update in."""
        self.pending.setdefault(update.device_id, Pending(update)).add(update)
        self.accepted[update.device_id] = self.accepted.get(update.device_id, 0) + 1
        if update.loss is not None:
            self.hear(update.device_id, update.base_version, update.loss)

    def hear(self, device_id: str, base_version: int | None, loss: float) -> None:
        """Take in what a device says of its errors."""
        if self.trial:
            self.trial.hear(device_id, base_version, loss)
        self.reports[device_id] = Report(loss, self.version)

    @property
    def waiting(self) -> int:
        """Devices whose updates wait for a round."""
        return sum(part.latest.devices for part in self.pending.values())

    @property
    def newest_round_at(self) -> datetime | None:
        """When the newest round was made."""
        newest = self.canary or self.model
        return newest.timestamp if newest else None

    def was_taken_back(self, version: int) -> bool:
        """Whether this version is newer than the stable one, and not on trial."""
        stable = self.model.version if self.model else 0
        return version > stable and not (self.trial and self.trial.version == version)

    def due_at(self) -> datetime | None:
        """Say since when the pending updates wait for a round: the later of the first of them and the last round."""
        since = [p.since for p in self.pending.values() if p.since]
        if not since:
            return None
        return max(min(since), self.newest_round_at) if self.newest_round_at else min(since)

    def staged(self, model: GlobalModel, rollout: Rollout) -> GlobalModel:
        """A new round's model as it goes out: to a few devices, where enough report their errors, else to all."""
        reporting = self.reporting()
        if self.model is None or not rollout.share or len(reporting) < rollout.min_devices:
            return model
        share = share_for(reporting, self.name, model.version, rollout.share)
        return model.model_copy(update={"stage": Stage.CANARY, "share": share})

    def reporting(self) -> list[str]:
        """The devices that lately said something of their errors."""
        return [name for name, said in self.reports.items() if said.version >= self.version - REMEMBERED]

    def begin(self, model: GlobalModel) -> None:
        """Go on from a round that is stored."""
        self.version = model.version
        self.pending.clear()
        if model.stage is Stage.STABLE:
            self.take(model)
        else:
            self.remember(model)
            self.canary, self.announced = model, False
            before = {name: self.reports[name].loss for name in self.reporting()}
            self.trial = Trial(self.name, model.version, model.share, model.timestamp, before)

    def take(self, model: GlobalModel) -> None:
        """Make a version the stable one; its parameters are what the next round begins from."""
        self.model, self.published = model, False
        self.remember(model)
        self.trial = None
        if self.canary is not None and self.canary.version <= model.version:
            self.canary = None

    def remember(self, model: GlobalModel) -> None:
        """Keep a version's parameters, and forget the oldest."""
        self.thetas[model.version] = network.from_message(model.weights)[0]
        stable = self.model.version if self.model else 0
        for version in sorted(self.thetas)[:-REMEMBERED]:
            if version != stable:
                del self.thetas[version]

    def announcements(self) -> Sequence[GlobalModel]:
        """What is to be published: the stable model before what became of the canary."""
        stable = [self.model] if self.model and not self.published else []
        return stable + ([self.canary] if self.canary and not self.announced else [])

    def delivered(self, model: GlobalModel) -> None:
        """Note that this was published, if it is still what there is to say."""
        if model is self.model:
            self.published = True
        elif model is self.canary:
            self.announced = True
