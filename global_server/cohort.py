"""One cohort between two rounds: what is pending, and what each device gave so far. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from flead import network
from flead.federation import fedavg
from flead.messages import GlobalModel, WeightsMessage
from flead.network import Architecture, Vector
from storage.rounds import Contribution, Update

STRATEGY = "fedavg"


@dataclass(slots=True)
class Pending:
    """A device's updates since its last use in a round: the latest weights, the samples of all."""

    latest: Update
    samples: int = 0
    updates: int = 0
    since: datetime | None = None

    def add(self, update: Update) -> None:
        """Count an update in; of two, the weights with more training behind them stay, else the later ones."""
        if _order(update) >= _order(self.latest):
            self.latest = update
        self.samples += update.sample_count
        self.updates += 1
        self.since = min(self.since or update.received_at, update.received_at)


def _order(update: Update) -> tuple[int, datetime]:
    return update.samples_seen or 0, update.timestamp


@dataclass(slots=True)
class Cohort:
    """The state of a cohort. `architecture` is that of its first accepted update."""

    name: str
    architecture: Architecture
    model: GlobalModel | None = None
    published: bool = False
    pending: dict[str, Pending] = field(default_factory=dict)
    accepted: dict[str, int] = field(default_factory=dict)
    """Updates accepted of each device, ever."""

    @property
    def version(self) -> int:
        """The newest round's number, 0 before the first."""
        return self.model.version if self.model else 0

    def add(self, update: Update) -> None:
        """Count an accepted update in."""
        self.pending.setdefault(update.device_id, Pending(update)).add(update)
        self.accepted[update.device_id] = self.accepted.get(update.device_id, 0) + 1

    def due_at(self) -> datetime | None:
        """Say since when the pending updates wait for a round: the later of the first of them and the last round."""
        since = [p.since for p in self.pending.values() if p.since]
        if not since:
            return None
        return max(min(since), self.model.timestamp) if self.model else min(since)

    def merge(self, now: datetime) -> tuple[GlobalModel, list[Contribution]]:
        """Make the next round of what is pending; changes nothing. There must be something pending."""
        parts = list(self.pending.values())
        stacked: Vector = np.stack([part.latest.theta for part in parts])
        theta = fedavg(stacked, [part.samples for part in parts])
        model = GlobalModel(
            cohort=self.name,
            version=self.version + 1,
            weights=WeightsMessage.model_validate(network.to_message(theta, self.architecture)),
            timestamp=now,
            num_devices=len(parts),
            total_samples=sum(part.samples for part in parts),
            aggregation_strategy=STRATEGY,
        )
        used = [Contribution(name, p.samples, p.updates, p.latest.samples_seen) for name, p in self.pending.items()]
        return model, used

    def begin(self, model: GlobalModel) -> None:
        """Go on from a round that is stored."""
        self.model, self.published = model, False
        self.pending.clear()
