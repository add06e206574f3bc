"""From what is pending to a new global model: defence, privacy and the strategy, in that order. Changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from config.aggregation import Rules
from flead import network
from flead.defence import Reputation, Verdict, inspect, should_quarantine
from flead.federation import Merge, Scaffold, Updates
from flead.messages import GlobalModel, WeightsMessage
from flead.network import Architecture, Vector
from flead.privacy import Spent, private_mean
from global_server.cohort import Cohort, Pending
from storage.rounds import Contribution, Memo, Trust

Flags = Sequence[str | None]


class Judge(Protocol):
    """Judges models on readings that no device learned from; `global_server.held_out.HeldOut` is one."""

    def losses(self, cohort: str, models: Vector, architecture: Architecture) -> Vector | None:
        """The loss of each of (d, p) models, (d,); None where there is nothing to judge them on."""


@dataclass(frozen=True)
class Aids:
    """What a round is made with beside its updates.

    Attributes
    ----------
    state:
        what the strategy left behind after the round before
    trust:
        device → what is thought of it
    spend:
        what a private round costs with this noise multiplier; raises `BudgetSpent` where it must not be made
    start:
        the parameters that devices began from before there was a global model
    """

    state: Mapping[str, Vector]
    trust: Mapping[str, Trust]
    held_out: Judge | None
    spend: Callable[[Rules], Spent]
    start: Callable[[Architecture], Vector]
    rng: np.random.Generator = field(default_factory=np.random.default_rng)


@dataclass(frozen=True, slots=True)
class Made:
    """A round that was made and is not stored yet."""

    model: GlobalModel
    used: list[Contribution]
    memo: Memo


def make_round(cohort: Cohort, rules: Rules, aids: Aids, now: datetime) -> Made:
    """Make the next round of what is pending. There must be something pending.

    Raises
    ------
    BudgetSpent
        where privacy allows no further round
    """
    parts = list(cohort.pending.values())
    updates = gather(cohort, parts)
    looked = _looks_at_updates(parts, rules)
    verdict = _inspected(cohort, updates, rules, aids) if looked else _nothing_found(updates)
    flags = verdict.reasons
    metrics = _metrics(parts, verdict.kept)
    merge = _merged(cohort, updates, verdict, rules, aids, metrics)
    model = GlobalModel(
        cohort=cohort.name,
        version=cohort.version + 1,
        weights=WeightsMessage.model_validate(network.to_message(merge.theta, cohort.architecture)),
        timestamp=now,
        num_devices=sum(part.latest.devices for part in parts),
        total_samples=sum(part.samples for part in parts),
        aggregation_strategy=rules.strategy.name,
        parent=cohort.model.version if cohort.model else None,
        metrics=metrics,
    )
    used = [
        Contribution(name, p.samples, p.updates, p.latest.samples_seen, float(share), flag)
        for (name, p), share, flag in zip(cohort.pending.items(), merge.shares, flags, strict=True)
    ]
    trust = _trust_after(cohort, flags, rules, aids.trust, now) if looked else []
    superseded = cohort.canary.version if cohort.trial and cohort.canary else None
    return Made(model, used, Memo(rules.strategy.name, merge.state, trust, superseded))


def gather(cohort: Cohort, parts: Sequence[Pending]) -> Updates:
    """The pending updates as arrays."""
    previous = cohort.thetas.get(cohort.model.version) if cohort.model else None
    models = np.stack([part.latest.theta for part in parts])
    began = [part.latest.base_version or 0 for part in parts]
    controls = [part.latest.control for part in parts if part.latest.control is not None]
    bases = None
    if previous is not None:
        bases = np.stack([cohort.thetas.get(version, previous) for version in began])
    return Updates(
        models=models,
        samples=np.array([part.samples for part in parts], dtype=np.float64),
        previous=previous,
        staleness=np.array([max(0, cohort.version - version) for version in began], dtype=np.float64),
        bases=bases,
        controls=np.stack(controls) if len(controls) == len(parts) else None,
    )


def _looks_at_updates(parts: Sequence[Pending], rules: Rules) -> bool:
    """Whether the defence looks at a round.

    Not at a private one: whom it leaves out would tell about them without noise. Nor at sums over many devices: they
    lie nearer to each other than a device does, which then looks odd beside them.
    """
    sums = any(part.latest.devices > 1 for part in parts)
    return rules.defence.enabled and not rules.privacy.enabled and not sums


def _nothing_found(updates: Updates) -> Verdict:
    count = len(updates)
    return Verdict(updates.models, updates.samples, np.ones(count, dtype=bool), [None] * count, np.ones(count))


def _inspected(cohort: Cohort, updates: Updates, rules: Rules, aids: Aids) -> Verdict:
    """What the defence finds in the updates."""
    if aids.held_out is None or updates.previous is None:
        return inspect(updates, rules.defence)
    judged = np.vstack((updates.previous, updates.models))
    losses = aids.held_out.losses(cohort.name, judged, cohort.architecture)
    if losses is None:
        return inspect(updates, rules.defence)
    return inspect(updates, rules.defence, losses[1:], float(losses[0]))


def _merged(
    cohort: Cohort, updates: Updates, verdict: Verdict, rules: Rules, aids: Aids, metrics: dict[str, float]
) -> Merge:
    """The strategy's outcome over what is kept; the others' shares are 0. Adds to the metrics what privacy cost."""
    previous, shares = updates.previous, np.zeros(len(updates))
    if not verdict.kept.any():  # nobody is believed: what there was stays
        return Merge(_reference(cohort, previous, aids), shares, dict(aids.state))
    chosen = verdict.of_kept(updates)
    if not rules.privacy.enabled:
        strategy = rules.strategy
        if isinstance(strategy, Scaffold):
            heard = len(chosen) / max(len(cohort.accepted), len(chosen))
            strategy = strategy.model_copy(update={"participation": heard})
        merge = strategy.merge(chosen, aids.state)
        shares[verdict.kept] = merge.shares
        return replace(merge, shares=shares)
    spent = aids.spend(rules)
    mean = private_mean(chosen.models, _reference(cohort, previous, aids), rules.privacy, aids.rng)
    merge = rules.strategy.merge(Updates(mean[None], chosen.samples.sum(keepdims=True), previous), aids.state)
    metrics["epsilon_round"], metrics["epsilon_total"] = spent.epsilon_round, spent.epsilon_total
    metrics["delta"], metrics["noise_multiplier"] = spent.delta, rules.privacy.noise_multiplier
    shares[verdict.kept] = 1.0 / verdict.kept.sum()
    return replace(merge, shares=shares)


def _reference(cohort: Cohort, previous: Vector | None, aids: Aids) -> Vector:
    return previous if previous is not None else aids.start(cohort.architecture)


def _metrics(parts: Sequence[Pending], kept: NDArray[np.bool_]) -> dict[str, float]:
    """What is known of a round when it is made: its devices' mean error, and how many were left out."""
    said = [(part.latest.loss, part.samples) for part in parts if part.latest.loss is not None]
    found = {"left_out": float((~kept).sum())}
    if said:
        losses, samples = np.array(said, dtype=np.float64).T
        found["loss"] = float(losses @ samples / samples.sum())
    return found


def _trust_after(cohort: Cohort, flags: Flags, rules: Rules, trust: Mapping[str, Trust], now: datetime) -> list[Trust]:
    """What is thought of the round's devices now, of those that were ever flagged."""
    changed = []
    for name, flag in zip(cohort.pending, flags, strict=True):
        known = trust.get(name)
        if known is None and flag is None:
            continue
        reputation = Reputation(known.good if known else 0.0, known.bad if known else 0.0, rules.defence.memory)
        reputation = reputation.after(flagged=flag is not None)
        state = known.state if known else "trusted"
        out = state == "trusted" and should_quarantine(reputation, rules.defence)
        changed.append(
            Trust(
                name, cohort.name, reputation.good, reputation.bad,
                "quarantined" if out else state,
                flag or (known.reason if known else None),
                now if out or known is None else known.changed_at,
                None if out or known is None else known.decided_by,
            )
        )  # fmt: skip
    return changed
