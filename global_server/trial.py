"""A canary on trial: who has it, and what devices said of their errors before and since. Arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from flead.rollout import Judgement, Rollout, is_canary, judge

PATIENCE = 4
"""Reports of each other device, on average, after which a canary's silence is taken as it is."""


@dataclass(slots=True)
class Trial:
    """The trial of one version.

    Attributes
    ----------
    before:
        device → its error before, of those that report any; who joins later has nothing to be compared with
    canaries, controls:
        device → its mean error since, with the canary and without it
    reports:
        device → how often it said something since
    """

    cohort: str
    version: int
    share: float
    since: datetime
    before: dict[str, float]
    canaries: dict[str, float] = field(default_factory=dict)
    controls: dict[str, float] = field(default_factory=dict)
    reports: dict[str, int] = field(default_factory=dict)
    picked: frozenset[str] = field(init=False)
    """Which of the devices before are canaries: asked at every update, so it is found out once."""

    def __post_init__(self) -> None:
        self.picked = frozenset(n for n in self.before if is_canary(n, self.cohort, self.version, self.share))

    def hear(self, device_id: str, base_version: int | None, loss: float) -> None:
        """Take in what a device says of its errors since the version that it began from."""
        if device_id not in self.before:
            return
        if base_version == self.version:
            said = self.canaries
        elif device_id not in self.picked:
            said = self.controls
        else:  # a canary that has not got it yet
            return
        count = self.reports[device_id] = self.reports.get(device_id, 0) + 1
        known = said.get(device_id, 0.0)
        said[device_id] = known + (loss - known) / count

    def judge(self, rollout: Rollout, now: datetime) -> Judgement:
        """Judge it by what has been said."""
        expected = len(self.picked)
        pairs = [[(self.before[name], loss) for name, loss in said.items()] for said in (self.canaries, self.controls)]
        # Canaries that are silent while the others spoke several times over will not speak sooner for waiting.
        heard = sum(self.reports.get(name, 0) for name in self.controls)
        silent = heard >= PATIENCE * max(1, len(self.before) - expected)
        overdue = silent or now - self.since >= timedelta(seconds=rollout.limit_s)
        looks = min((self.reports.get(name, 0) for name in self.canaries), default=0)
        return judge(pairs[0], pairs[1], expected, rollout, overdue=overdue, looks=looks)
