"""Looking at a round's updates before they are merged: which are too long, too odd, too alike, or do harm.

Each check compares the devices of one round with one another, or with what held-out readings say. None can tell a lie
from an honest device that differs from all others in the same way: that is why what is found ends as a reason that
people can read, a reputation, and a quarantine that a person decides on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from flead.errors import BadUpdate
from flead.federation import Updates
from flead.federation.robust import distances_to, median
from flead.messages import Name
from flead.network import Architecture, Vector
from flead.training import HUBER, Examples

Flags = NDArray[np.bool_]

MAD = 1.4826
"""Times the median absolute deviation it is the standard deviation of a normal distribution (Hampel, 1974)."""
LEAST_SPREAD = 0.2
"""Of the logarithm of distances: devices that crowd together must not make everybody else look odd."""
FEWEST_PARAMETERS = 32
"""In fewer dimensions directions are alike by chance."""
FEWEST_ALIKE = 3
"""Two devices may be twins, side by side in one room."""
PASSES = 4
"""Those that are left out no longer hide others: what is odd is looked for so many times at most."""
_BLOCK = 2**22
"""Numbers worked on at once: 32 MiB."""
_TINY = 1e-9


class Defence(BaseModel):
    """What is looked at; None switches a check off. The defaults leave an honest fleet alone: docs/defence.md."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    enabled: bool = Field(default=False, description="whether the server looks at updates; a merge is plain without")
    clip: float | None = Field(2.0, ge=1, description="longest update, in times the round's median length")
    distance: float | None = Field(
        2.5, gt=0, description="farthest from the round's median, in robust standard deviations of the logarithm"
    )
    direction: float | None = Field(
        0.5,
        ge=0,
        le=1,
        description="an update whose cosine with the round's median is below minus this goes against it",
    )
    alike: float | None = Field(
        0.95,
        gt=0,
        lt=1,
        description="cosine between deviations from the round's median that three devices must not share",
    )
    loss: float | None = Field(
        0.05,
        ge=0,
        description="how much worse than the last global model an update may do on held-out readings, a share",
    )
    most_samples: float | None = Field(
        10.0, ge=1, description="most samples that a device may claim, in times the round's median"
    )
    fewest_devices: int = Field(
        5, ge=3, description="fewer are not compared with one another: then only held-out readings say something"
    )
    held_out_devices: tuple[Name, ...] = Field(
        (), description="reference devices: their readings reach the global server, and judge updates"
    )
    held_out_readings: int = Field(2_000, ge=100, le=100_000, description="newest readings kept of each of them")
    memory: float = Field(0.9, gt=0, lt=1, description="what is left of a reputation's evidence after each round")
    trust: float = Field(0.5, ge=0, le=1, description="a reputation below it leads to quarantine")
    flags: int = Field(3, ge=1, description="and so much evidence as this many flags in a row")


@dataclass(frozen=True, eq=False)
class Verdict:
    """What the checks found.

    Attributes
    ----------
    models: (d, p) as given, too long updates shortened
    samples: (d,) as given, too large claims lowered
    kept: (d,) whether nothing was found
    reasons: why not, for people; None where nothing was found
    scales: (d,) what each update was shortened by, 1: not at all
    """

    models: Vector
    samples: Vector
    kept: Flags
    reasons: list[str | None]
    scales: Vector

    def of_kept(self, updates: Updates) -> Updates:
        """The round without those that were found out.

        Raises
        ------
        BadUpdate
            where nobody is left
        """
        if not self.kept.any():
            raise BadUpdate("no update of this round is left: every one was found suspicious")
        if self.kept.all():
            return replace(updates, models=self.models, samples=self.samples)
        rows = self.kept
        return replace(
            updates,
            models=self.models[rows],
            samples=self.samples[rows],
            staleness=None if updates.staleness is None else updates.staleness[rows],
            bases=None if updates.bases is None else updates.bases[rows],
            controls=None if updates.controls is None else updates.controls[rows],
        )


def inspect(updates: Updates, defence: Defence, losses: Vector | None = None, baseline: float | None = None) -> Verdict:
    """Look at a round's updates.

    Parameters
    ----------
    losses:
        (d,) each update's loss on held-out examples (`losses_on`); None: there are none
    baseline:
        the same of the previous global model; without it the round's median loss is the reference

    >>> rng = np.random.default_rng(0)
    >>> models = np.vstack((rng.normal(size=(9, 40)), np.full(40, 50.0)))
    >>> verdict = inspect(Updates(models, np.ones(10), np.zeros(40)), Defence())
    >>> verdict.kept.tolist().index(False), verdict.reasons[9]
    (9, "19.5 robust deviations from the round's median, the limit is 2.5")
    """
    count = len(updates)
    found = _Findings(np.ones(count, dtype=bool), [None] * count)
    if losses is not None and defence.loss is not None:
        _by_loss(found, losses, baseline, 1.0 + defence.loss)
    models, samples, scales = updates.models, updates.samples, np.ones(count)
    if count >= defence.fewest_devices:
        base = updates.previous if updates.bases is None else updates.bases
        steps = models if base is None else models - base
        _compare(found, steps, defence, towards=base is not None)
        limit = (defence.clip or 0.0) * usual_length(steps[found.kept]) if found.kept.any() else 0.0
        if base is not None and limit > 0.0:  # 0: hardly anybody learned anything
            models, scales = clip_to(models, base, limit)
        if defence.most_samples is not None:
            samples = np.minimum(samples, defence.most_samples * max(float(np.median(samples)), _TINY))
    return Verdict(models, samples, found.kept, found.reasons, scales)


@dataclass(frozen=True, eq=False)
class _Findings:
    """What was found so far; the first reason stays."""

    kept: Flags
    reasons: list[str | None]

    def add(self, suspicious: Flags, why: Callable[[int], str]) -> bool:
        """Whether any of them is new."""
        new = np.flatnonzero(suspicious & self.kept).tolist()
        for i in new:
            self.reasons[i] = why(i)
        self.kept[new] = False
        return bool(new)


def _by_loss(found: _Findings, losses: Vector, baseline: float | None, limit: float) -> None:
    worse = _times_worse(losses, baseline)
    found.add(
        worse > limit,
        lambda i: f"its loss on held-out readings is {worse[i]:.4g} times the reference, the limit is {limit:.4g}",
    )


def _compare(found: _Findings, steps: Vector, defence: Defence, *, towards: bool) -> None:
    """Compare the devices of a round with one another; without `towards`, updates are whole models and have no way."""
    if defence.alike is not None:
        others = alike(steps, defence.alike)
        found.add(others > 0, lambda i: f"{others[i]} others of the round differ from it in the same way")
    if defence.distance is not None:
        _by_distance(found, steps, defence.distance)
    if defence.direction is not None and towards and steps.shape[1] >= FEWEST_PARAMETERS and found.kept.any():
        cosine = cosines(steps, median(steps[found.kept])[0])
        found.add(cosine < -defence.direction, lambda i: f"it goes against the round: their cosine is {cosine[i]:.2f}")


def _by_distance(found: _Findings, steps: Vector, limit: float) -> None:
    for _ in range(PASSES):
        odd = oddness(steps, found.kept) if found.kept.any() else np.zeros(len(steps))
        said = [f"{x:.3g} robust deviations from the round's median, the limit is {limit:g}" for x in odd]
        if not found.add(odd > limit, said.__getitem__):
            return


def clip_to(models: Vector, previous: Vector, limit: float) -> tuple[Vector, Vector]:
    """Shorten each update to a length; gives new models and what each was shortened by, (d,).

    Parameters
    ----------
    models:
        (d, p)
    previous:
        (p,) the global model that all began from, or (d, p) that of each

    Source: Sun et al., 2019, "Can you really backdoor federated learning?".

    >>> clip_to(np.array([[1.0, 6.0], [1.0, 2.0]]), np.array([1.0, 1.0]), 2.0)
    (array([[1., 3.],
           [1., 2.]]), array([0.4, 1. ]))
    """
    steps = models - previous
    lengths = distances_to(steps, np.zeros(models.shape[1]))
    long = lengths > limit
    scales = np.ones(len(models))
    scales[long] = limit / lengths[long]
    clipped = models.copy()
    clipped[long] = (previous if previous.ndim == 1 else previous[long]) + scales[long, None] * steps[long]
    return clipped, scales


def usual_length(steps: Vector) -> float:
    """The median length of a round's updates, (d, p)."""
    return float(np.median(distances_to(steps, np.zeros(steps.shape[1]))))


def oddness(steps: Vector, kept: Flags) -> Vector:
    """How far each update is from the median of those kept, (d,): above 0 farther than usual, in robust deviations.

    Distances spread as a logarithm does: a device that learned from twice as much is no outlier. Where half of the
    devices or more are the median itself, nothing is usual.
    """
    away = distances_to(steps, median(steps[kept])[0])
    if float(np.median(away[kept])) <= _TINY * usual_length(steps[kept]):
        return np.zeros(len(steps))
    logs = np.log(np.maximum(away, 1e-300))
    middle = float(np.median(logs[kept]))
    spread = MAD * float(np.median(np.abs(logs[kept] - middle)))
    by_chance = 1.1 / np.sqrt(steps.shape[1])  # of the logarithm of a normal vector's length, nearly
    found: Vector = (logs - middle) / max(spread, LEAST_SPREAD, by_chance)
    return found


def cosines(steps: Vector, towards: Vector) -> Vector:
    """The cosine of each update with a direction, (d,); 0 where either has no length.

    >>> cosines(np.array([[3.0, 0.0], [0.0, -2.0], [0.0, 0.0]]), np.array([1.0, 1.0])).round(2)
    array([ 0.71, -0.71,  0.  ])
    """
    lengths = distances_to(steps, np.zeros(towards.size)) * float(np.sqrt(towards @ towards))
    found: Vector = (steps @ towards) / np.maximum(lengths, 1e-300)
    return found


def alike(steps: Vector, limit: float) -> NDArray[np.int64]:
    """How many others differ from the round's median in nearly the same direction, (d,); 0 for the inconspicuous.

    Honest devices differ each in its own way, those of one puppeteer in the same. Twos may be twins, and half of a
    round or more is the round: they are left alone, and so is everybody in a model of few parameters.

    Source: after Fung et al., 2020, "The limitations of federated learning in Sybil settings" (FoolsGold), who compare
    whole updates over all rounds, and weigh down where this leaves out.
    """
    count, width = steps.shape
    none = np.zeros(count, dtype=np.int64)
    if width < FEWEST_PARAMETERS:
        return none
    off = steps - median(steps)[0]
    lengths = distances_to(off, np.zeros(width))
    moved = lengths > _TINY * usual_length(steps)
    off /= np.maximum(lengths, 1e-300)[:, None]
    off[~moved] = 0.0
    rows, others = off.astype(np.float32), none.copy()
    step = max(1, _BLOCK // count)
    for begin in range(0, count, step):
        found = rows[begin : begin + step] @ rows.T > limit
        others[begin : begin + step] = found.sum(axis=1)
    others[moved] -= 1  # itself
    others[others < FEWEST_ALIKE - 1] = 0
    return others if 2 * np.count_nonzero(others) < count else none


def losses_on(examples: Examples, models: Vector, architecture: Architecture) -> Vector:
    """The mean Huber loss of many models on the same examples, (d,), of the targets that are known.

    Parameters
    ----------
    models:
        (d, parameter_count)

    >>> line = Examples(np.array([[1.0], [2.0]]), np.array([[2.0], [4.0]]), np.ones((2, 1)))
    >>> losses_on(line, np.array([[2.0, 0.0], [2.0, 1.0]]), Architecture(1, (), 1))
    array([0. , 0.5])
    """
    widest = max(*architecture.sizes, *(n_in for n_in, _ in architecture.shapes))
    step = max(1, _BLOCK // max(len(examples) * widest, 1))
    found = [_losses(examples, models[at : at + step], architecture) for at in range(0, len(models), step)]
    return np.concatenate(found) if found else np.zeros(0)


def _losses(examples: Examples, models: Vector, architecture: Architecture) -> Vector:
    values, at = examples.features, 0
    for depth, (n_in, n_out) in enumerate(architecture.shapes):
        layer = models[:, at : at + (n_in + 1) * n_out].reshape(-1, n_in + 1, n_out)
        at += (n_in + 1) * n_out
        hidden = values.shape[-1]
        made = values @ layer[:, :hidden] + layer[:, -1:]
        if hidden < n_in:  # the last layer also sees the inputs
            made += examples.features @ layer[:, hidden:-1]
        values = made if depth == len(architecture.shapes) - 1 else np.tanh(made)
    off = np.abs(values - examples.targets)
    with np.errstate(over="ignore", invalid="ignore"):
        each = np.where(off <= HUBER, 0.5 * off * off, HUBER * (off - 0.5 * HUBER))
        total: Vector = np.einsum("dmo,mo->d", each, examples.weights) / max(float(examples.weights.sum()), 1e-300)
    return total


def _times_worse(losses: Vector, baseline: float | None) -> Vector:
    """Each loss by the last global model's, or by the median of the others' where that is worse.

    Where devices differ much, each model may do worse on others' readings than their mean does, and harm nobody.
    """
    known = np.where(np.isfinite(losses), losses, np.finfo(np.float64).max)
    count = len(known)
    usual = np.zeros(count)
    if count > 1:
        ordered, rank = np.sort(known), np.argsort(np.argsort(known))
        low, high = (count - 2) // 2, (count - 1) // 2  # the middle of those left, behind a gap where one is away
        usual = 0.5 * ordered[low + (low >= rank)] + 0.5 * ordered[high + (high >= rank)]
    elif baseline is None:
        return np.zeros(1)
    worse: Vector = known / np.maximum(usual, max(baseline or 0.0, 1e-300))
    return worse


@dataclass(frozen=True)
class Reputation:
    """How far a device can be trusted: a Beta posterior of its rounds, of which the older count less and less.

    Attributes
    ----------
    good, bad: rounds without and with a flag, each weighing `memory` to the power of the rounds since

    Source: Jøsang and Ismail, 2002, "The beta reputation system".

    >>> start = Reputation()
    >>> start.value, start.after(flagged=True).value, start.after(flagged=False).value
    (0.5, 0.3333333333333333, 0.6666666666666666)
    """

    good: float = 0.0
    bad: float = 0.0
    memory: float = 0.9

    @property
    def value(self) -> float:
        """The posterior's mean, in [0, 1], from a uniform prior."""
        return (self.good + 1.0) / (self.good + self.bad + 2.0)

    def after(self, flagged: bool) -> Reputation:  # noqa: FBT001  # what a round said
        """One round on."""
        return replace(self, good=self.memory * self.good + (not flagged), bad=self.memory * self.bad + flagged)


def should_quarantine(reputation: Reputation, defence: Defence) -> bool:
    """Whether a device is to be left out until a person has decided: little trust, and enough evidence for it.

    >>> one, three = Reputation(0.0, 1.0), Reputation().after(True).after(True).after(True)
    >>> should_quarantine(one, Defence()), should_quarantine(three, Defence())
    (False, True)
    """
    enough = sum(defence.memory**i for i in range(defence.flags))
    return reputation.value < defence.trust and reputation.bad >= enough - 1e-9
