"""What each rule of adoption is worth: a fleet's stream with its rounds, imitated on recorded days.

Every device learns as it does on a stream, the readings of some minutes of all devices, then of the next. Devices send
what they have learned every `update_every` readings; when enough of them have, their mean is the next global model, and
each device makes of it what the rule says. Nothing is trained in batches, and nothing is known before its time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flead import metrics
from flead.errors import BadDataset
from flead.evaluation import Series, changes_of, horizon_names, joined, mean_by_method, put
from flead.federation import fedavg
from flead.learner import DeviceLearner
from flead.learner_config import Adoption, LearnerConfig
from flead.network import Vector

ALONE = "alone"
"""The rule of a device that takes part in no federation."""
RULES = (ALONE, *(rule.value for rule in Adoption))
REFERENCE = "persistence"


@dataclass(frozen=True)
class Rounds:
    """When rounds take place: looked for every so many seconds, made where so many devices have sent an update."""

    every_s: float = 600.0
    min_devices: int = 10


@dataclass(frozen=True)
class Ruled:
    """What became of a fleet under one rule.

    Attributes
    ----------
    errors: by device, (m, 2 n) forecast less truth on the test days; the device has learned since the training began
    newcomers: the same where the device joins its fleet on the first test day
    rounds: global models made
    taken: share of the models offered of which devices took anything; NaN where none was
    """

    errors: list[Vector]
    newcomers: list[Vector]
    rounds: int
    taken: float


@dataclass(frozen=True)
class Personalisation:
    """The rules side by side; `reference` is what persistence is off by, by device, (m, 2 n)."""

    sensors: tuple[str, ...]
    horizon_s: float
    devices: tuple[str, ...]
    reference: list[Vector]
    rules: Mapping[str, Ruled]

    def as_dict(self) -> dict[str, Any]:
        """As it is written to JSON: skill over persistence by horizon, sensor and rule, and the means over sensors."""
        found: dict[str, Any] = {
            "rules": list(self.rules),
            "rounds": {rule: ruled.rounds for rule, ruled in self.rules.items()},
            "taken": {rule: ruled.taken for rule, ruled in self.rules.items()},
        }
        for who in ("devices", "newcomers"):
            skill: dict[str, Any] = {}
            for h, horizon in enumerate(horizon_names(self.horizon_s)):
                for s, sensor in enumerate(self.sensors):
                    column = h * len(self.sensors) + s
                    base = np.concatenate([each[:, column] for each in self.reference])
                    for rule, ruled in self.rules.items():
                        errors = ruled.errors if who == "devices" else ruled.newcomers
                        off = np.concatenate([each[:, column] for each in errors])
                        put(skill, (horizon, sensor, rule), metrics.skill(off, base))
            found[who] = {"skill": skill, "mean_skill": mean_by_method(skill)}
        return found


def compare_rules(
    train_days: Sequence[Series], test_days: Sequence[Series], sensors: tuple[str, ...], config: LearnerConfig,
    rounds: Rounds = Rounds(), rules: Sequence[str] = RULES,
    on_progress: Callable[[str, float], None] = lambda _what, _share: None,
) -> Personalisation:  # fmt: skip
    """Let a fleet stream through its days once under each rule.

    Parameters
    ----------
    train_days, test_days:
        the same devices' readings; the test days come later
    rules:
        some of `RULES`

    Raises
    ------
    BadDataset
        where no device has readings on both sides
    """
    before = {series.device: series for series in train_days}
    fleet = [(before[new.device], new) for new in test_days if new.device in before and len(new.times)]
    if not fleet:
        raise BadDataset("no device has readings in both files: give days of the same fleet")
    changes = [changes_of(new, config.horizon_s) for _, new in fleet]
    found: dict[str, Ruled] = {}
    for i, rule in enumerate(rules):
        on_progress("adopting by each rule", i / len(rules))
        adopts = {} if rule == ALONE else {"adoption": Adoption(rule)}
        streamed = _Fleet(fleet, sensors, config.model_copy(update=adopts), adopts=bool(adopts))
        streamed.run(rounds)
        found[rule] = streamed.outcome(changes)
    devices = tuple(new.device for _, new in fleet)
    return Personalisation(sensors, config.horizon_s, devices, [-change for change in changes], found)


class _Fleet:
    """The learners of a fleet, and of as many devices that join it when the test begins."""

    def __init__(
        self, fleet: Sequence[tuple[Series, Series]], sensors: tuple[str, ...], config: LearnerConfig, *, adopts: bool
    ) -> None:
        self._series = [joined(old, new) for old, new in fleet]
        self._first_tests = [len(old.times) for old, _ in fleet]
        self._learners = [DeviceLearner(sensors, config) for _ in fleet]
        self._newcomers = [DeviceLearner(sensors, config) for _ in fleet]
        self._said, self._said_by_newcomers = (
            [np.full((len(new.times), 2 * len(sensors)), np.nan) for _, new in fleet] for _ in range(2)
        )
        self._adopts = adopts
        self._global: Vector | None = None
        self._version = self._offered = self._taken = 0
        self._waiting: dict[int, tuple[Vector, int]] = {}

    def run(self, rounds: Rounds) -> None:
        """Let all devices live through their days together."""
        enough = min(rounds.min_devices, len(self._series))
        begin = min(series.times[0] for series in self._series)
        end = max(series.times[-1] for series in self._series)
        edges = np.append(np.arange(begin, end, rounds.every_s), np.inf)
        cuts = [np.searchsorted(series.times, edges) for series in self._series]
        for look in range(len(edges) - 1):
            for i, cut in enumerate(cuts):
                self._live(i, int(cut[look]), int(cut[look + 1]))
            if len(self._waiting) >= enough:
                models, samples = zip(*self._waiting.values(), strict=True)
                self._global = fedavg(np.stack(models), np.array(samples, dtype=np.float64))
                self._version += 1
                self._waiting.clear()

    def _live(self, i: int, start: int, end: int) -> None:
        """Let the i-th device, and its newcomer, take their readings from `start` to `end`."""
        series, first, learner = self._series[i], self._first_tests[i], self._learners[i]
        middle = min(max(first, start), end)
        for a, b in ((start, middle), (middle, end)):
            if a < b:
                said = self._follow(learner, series, a, b)
                if a >= first:
                    self._said[i][a - first : b - first] = said
                    said = self._follow(self._newcomers[i], series, a, b)
                    self._said_by_newcomers[i][a - first : b - first] = said
        update = learner.take_update(series.device, "")
        if update is not None:
            _, waiting = self._waiting.get(i, (None, 0))
            self._waiting[i] = learner.theta.copy(), waiting + update["sample_count"]

    def _follow(self, learner: DeviceLearner, series: Series, start: int, end: int) -> Vector:
        """What a learner forecasts as changes, (m, 2 n), after it has weighed the newest global model."""
        if self._adopts and self._global is not None and learner.base_version < self._version:
            taken = learner.adopt(self._global, self._version)
            self._offered += 1
            self._taken += taken
        values = series.values[start:end]
        said = learner.process_frame(series.times[start:end], values)
        return np.concatenate((said.forecast - values, said.horizon - values), axis=1)

    def outcome(self, changes: Sequence[Vector]) -> Ruled:
        """How far the forecasts were off the changes that came, (m, 2 n) of each device."""
        errors, newcomers = (
            [said - change for said, change in zip(by_device, changes, strict=True)]
            for by_device in (self._said, self._said_by_newcomers)
        )
        taken = self._taken / self._offered if self._offered else float("nan")
        return Ruled(errors, newcomers, self._version, taken)
