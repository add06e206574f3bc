"""What malicious devices do to the global model: `python -m benchmarks.federation.poisoning`; see `--help`.

Federates over Intel Lab, 4-6 March, with some of the motes malicious, and tests the outcome on 7 March. Every mote
takes part in every round, so a round has just the share of malicious devices that the table names; strategies and the
defence keep their defaults whatever that share is. A few motes are reference devices: they do not take part, and their
readings of 4-6 March are what the defence judges models on.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import PrivateAttr
from rich.console import Console
from rich.progress import Progress

from benchmarks.detection.data import folder, intel_days
from benchmarks.federation.attacks import ATTACKS, PUSH, Attack, Crowd, pushed_output, triggered
from benchmarks.machine import describe
from benchmarks.report import keep, table, write
from config.settings import PROJECT
from data.frames import Frame
from flead import network, state
from flead.defence import Defence, Reputation, inspect, losses_on, should_quarantine
from flead.evaluation import Series, Task, changes_of, examples_of, followed, joined
from flead.federation import FedAvg, Merge, Rule, Updates, parse_strategy
from flead.federation.strategies import NOTHING, State
from flead.learner_config import LearnerConfig
from flead.learning import LARGEST_STEP, LARGEST_SWING
from flead.network import Architecture, Vector
from flead.training import Examples, Federation, federate

DOCS = PROJECT / "docs" / "defence.md"
CUT = datetime(2004, 3, 7, tzinfo=UTC).timestamp()
STRIDE, TEST_STRIDE = 16, 4
"""Of the readings that devices learn from, and of those that models are tested on, one in so many is taken."""
REFERENCES = 4
ROBUST = ("median", "trimmed_mean", "krum", "multi_krum", "bulyan", "geometric_median")
DEFENDED, BLIND = "defended", "defended, nothing held out"
METHODS = ("fedavg", *ROBUST, DEFENDED, BLIND)
NONE = Attack("none")


@dataclass(frozen=True)
class Fleet:
    """The motes that take part: what they learn from, and what they are asked on the test day."""

    architecture: Architecture
    devices: list[Examples]
    tasks: list[Task]
    held_out: Examples

    @property
    def sensors(self) -> int:
        """How many a mote has."""
        return self.architecture.output_size // 2


@dataclass(frozen=True)
class Case:
    """One federation: who attacks how, and what the server does about it."""

    attack: Attack
    share: float
    method: str


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Attributes
    ----------
    rmse: (2 n,) by output
    pushed: how far the trigger moves the forecast, in typical swings
    caught, falsely: share of malicious and of honest updates that were flagged; None where nothing looks at them
    """

    rmse: Vector
    pushed: float
    caught: float | None
    falsely: float | None


def fleet_of(frames: list[Frame], seed: int) -> Fleet:
    """Some motes as references, the others as the fleet."""
    config, rng = LearnerConfig(), np.random.default_rng(seed)
    order = rng.permutation(len(frames))
    devices, tasks, held_out = [], [], []
    for place, i in enumerate(order):
        old, new = _split(frames[i])
        known = examples_of(old, config)
        if place < REFERENCES:
            held_out.append(known[slice(0, None, 2 * STRIDE)])
            continue
        devices.append(known[slice(int(rng.integers(STRIDE)), None, STRIDE)])
        tasks.append(_task(old, new, config))
    architecture = state.architecture_of(config, len(frames[0].sensors))
    return Fleet(architecture, devices, tasks, Examples.together(held_out))


def _split(frame: Frame) -> tuple[Series, Series]:
    old, new = frame.between(-np.inf, CUT), frame.between(CUT, np.inf)
    return Series(frame.device, old.times, old.values), Series(frame.device, new.times, new.values)


def _task(old: Series, new: Series, config: LearnerConfig) -> Task:
    """What is asked on the test day, the device's scaling going on from the days before."""
    whole, rows = joined(old, new), slice(len(old.times), None, TEST_STRIDE)
    features, scales = followed(whole, config)
    changes = changes_of(whole, config.horizon_s)
    return Task(features, changes, np.zeros_like(changes), scales)[rows]


class Defended(Rule):
    """FedAvg of what the defence leaves, without the devices that it put into quarantine."""

    linear: ClassVar[bool] = False
    defence: Defence
    _fleet: Fleet = PrivateAttr()
    _picked: NDArray[np.int64] = PrivateAttr()
    _reputations: dict[int, Reputation] = PrivateAttr(default_factory=dict)
    _out: set[int] = PrivateAttr(default_factory=set)
    _flags: list[tuple[int, bool]] = PrivateAttr(default_factory=list)

    @staticmethod
    def of(fleet: Fleet, defence: Defence) -> Defended:
        """A defence at the beginning, knowing nobody."""
        made = Defended(defence=defence)
        made._fleet = fleet
        return made

    def hear(self, picked: NDArray[np.int64]) -> None:
        """Learn whose updates come next."""
        self._picked = picked

    @property
    def flags(self) -> list[tuple[int, bool]]:
        """Every update so far: whose, and whether it was flagged. Those in quarantine count as flagged."""
        return self._flags

    def merge(self, updates: Updates, state: State = NOTHING) -> Merge:
        """Look, remember, and average the rest."""
        trusted = np.array([device not in self._out for device in self._picked.tolist()])
        self._flags += [(int(device), True) for device in self._picked[~trusted]]
        rest = replace(updates, models=updates.models[trusted], samples=updates.samples[trusted])
        losses, baseline = None, None
        if self.defence.loss is not None and updates.previous is not None:
            models = np.vstack((rest.models, updates.previous))
            *each, baseline = losses_on(self._fleet.held_out, models, self._fleet.architecture).tolist()
            losses = np.array(each)
        verdict = inspect(rest, self.defence, losses, baseline)
        for device, fine in zip(self._picked[trusted].tolist(), verdict.kept, strict=True):
            known = self._reputations.get(device, Reputation(memory=self.defence.memory))
            self._reputations[device] = known.after(flagged=not fine)
            self._flags.append((device, not fine))
            if should_quarantine(self._reputations[device], self.defence):
                self._out.add(device)
        shares = np.zeros(len(updates))
        if updates.previous is not None and not verdict.kept.any():
            return Merge(updates.previous, shares)
        merged = FedAvg().merge(verdict.of_kept(rest), state)
        shares[np.flatnonzero(trusted)[verdict.kept]] = merged.shares
        return Merge(merged.theta, shares)


def rule_of(method: str, fleet: Fleet) -> Rule:
    """The strategy that a method stands for, with its defaults."""
    if method == DEFENDED:
        return Defended.of(fleet, Defence())
    return Defended.of(fleet, Defence(loss=None)) if method == BLIND else parse_strategy(method)


def run(fleet: Fleet, case: Case, rounds: int, seed: int) -> Outcome:
    """One federation and its test."""
    count, rng = len(fleet.devices), np.random.default_rng([seed, 1])
    malicious = np.zeros(count, dtype=bool)
    malicious[np.random.default_rng([seed, 2]).permutation(count)[: round(case.share * count)]] = True
    lies = np.random.default_rng([seed, 3])
    devices = [case.attack.teach(e, lies) if bad else e for e, bad in zip(fleet.devices, malicious, strict=True)]
    rule = rule_of(case.method, fleet)

    def tamper(_round: int, picked: NDArray[np.int64], trained: Vector, theta: Vector) -> Vector:
        if isinstance(rule, Defended):
            rule.hear(picked)
        bad, sent = malicious[picked], trained.copy()
        if bad.any():
            sent[bad] = case.attack.send(Crowd(trained[bad], theta, len(picked)), lies)
        return sent

    start = network.initial(fleet.architecture, rng)
    plan = Federation(rounds=rounds, share=1.0)
    theta = federate(start, fleet.architecture, devices, rng, plan, strategy=rule, tamper=tamper)
    caught = falsely = None
    if isinstance(rule, Defended):
        flags = np.array(rule.flags)
        bad = malicious[flags[:, 0]]
        caught = float(flags[bad, 1].mean()) if bad.any() else None
        falsely = float(flags[~bad, 1].mean())
    return Outcome(rmse_of(fleet, theta), pushed_by(fleet, theta), caught, falsely)


def rmse_of(fleet: Fleet, theta: Vector) -> Vector:
    """The error of the forecasts on the test day, (2 n,), over all motes."""
    wrong = [_forecast(fleet, theta, task.features) * task.scales - task.changes for task in fleet.tasks]
    found: Vector = np.sqrt(np.nanmean(np.concatenate(wrong) ** 2, axis=0))
    return found


def pushed_by(fleet: Fleet, theta: Vector) -> float:
    """How far the back door's trigger moves the forecast that it is to move, on average, in typical swings."""
    features = np.concatenate([task.features for task in fleet.tasks])[::8]
    moved = _forecast(fleet, theta, triggered(features)) - _forecast(fleet, theta, features)
    return float(moved[:, pushed_output(moved.shape[1])].mean())


def _forecast(fleet: Fleet, theta: Vector, features: Vector) -> Vector:
    """As devices use it: cut where it is absurd, in the model's units."""
    largest = np.repeat((LARGEST_STEP, LARGEST_SWING), fleet.sensors)
    with np.errstate(over="ignore", invalid="ignore"):
        said: Vector = np.clip(network.forward(theta, fleet.architecture, features), -largest, largest)
    return said


_fleet: Fleet | None = None


def _remember(fleet: Fleet) -> None:
    global _fleet
    _fleet = fleet


def _run(case: Case, rounds: int, seed: int) -> Outcome:
    assert _fleet is not None  # noqa: S101
    return run(_fleet, case, rounds, seed)


def run_all(fleet: Fleet, cases: list[Case], rounds: int, seed: int, workers: int) -> Iterator[tuple[Case, Outcome]]:
    """Every case, in any order."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # the networks are small: processes pay, threads in them do not
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_remember, initargs=(fleet,)) as pool:
        asked = {pool.submit(_run, case, rounds, seed): case for case in cases}
        for done in as_completed(asked):
            yield asked[done], done.result()


@dataclass(frozen=True)
class Found:
    """All outcomes, and what they are measured by: the plain mean of an honest fleet."""

    outcomes: dict[tuple[str, float, str], Outcome]

    @property
    def clean(self) -> Outcome:
        """FedAvg where nobody is malicious."""
        return self.outcomes[NONE.name, 0.0, "fedavg"]

    def worse(self, rmse: Vector) -> tuple[float, float]:
        """How much larger an error is than the clean run's, %, mean over sensors: next and horizon."""
        times = rmse / self.clean.rmse
        n = times.size // 2
        return 100.0 * float(times[:n].mean() - 1.0), 100.0 * float(times[n:].mean() - 1.0)

    def success(self, outcome: Outcome) -> float:
        """How far the back door moves the forecast beyond what an honest model does, % of what was intended."""
        return 100.0 * (outcome.pushed - self.clean.pushed) / PUSH

    def as_dict(self) -> dict[str, Any]:
        """As it is written to JSON."""
        found: dict[str, Any] = {}
        for (attack, share, method), outcome in self.outcomes.items():
            near, far = self.worse(outcome.rmse)
            entry = {"worse_next": near, "worse_10min": far, "rmse": outcome.rmse.tolist()}
            entry |= {"caught": outcome.caught, "falsely": outcome.falsely, "back_door": self.success(outcome)}
            found.setdefault(f"{share:g}", {}).setdefault(attack, {})[method] = entry
        return found


def tables(found: Found, shares: list[float], persistence: Vector) -> str:
    """A table for each share: the worse of the two horizons."""
    near, far = found.worse(persistence)
    texts = [
        "How much larger the forecast error is than that of FedAvg in an honest fleet, %: the worse of the next "
        f"reading and ten minutes ahead, mean over sensors. Forecasting no change at all: {near:.0f} and {far:.0f}."
    ]
    for share in shares:
        rows = []
        for attack in (NONE, *ATTACKS):
            at = 0.0 if attack is NONE else share
            cells = [max(found.worse(found.outcomes[attack.name, at, method].rmse)) for method in METHODS]
            rows.append((attack.name, *cells))
        door = [found.success(found.outcomes[ATTACKS[-1].name, share, method]) for method in METHODS]
        rows.append(("back door: its success, %", *door))
        texts.append(table((f"{100 * share:.0f} % malicious", *METHODS), rows))
    texts += [_flags(found, shares, method) for method in (DEFENDED, BLIND)]
    return "\n\n".join(texts)


def _flags(found: Found, shares: list[float], method: str) -> str:
    """How much of what was sent the defence flagged, and how many honest updates with it."""
    rows = []
    for attack in (NONE, *ATTACKS):
        row: list[str | None] = [attack.name]
        for share in shares:
            outcome = found.outcomes[attack.name, 0.0 if attack is NONE else share, method]
            of_bad = "-" if outcome.caught is None else f"{100 * outcome.caught:.0f}"
            row.append(f"{of_bad} / {100 * (outcome.falsely or 0.0):.1f}")
        rows.append(row)
    header = (f"{method}: flagged, % of malicious / of honest updates", *(f"{100 * share:.0f} %" for share in shares))
    return table(header, rows)


def main() -> None:
    """Run every case, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.federation.poisoning", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of the Intel Lab file (data_*.txt.gz)")
    parser.add_argument("--rounds", type=int, default=30, help="of each federation (30)")
    parser.add_argument("--share", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4], help="of malicious devices")
    parser.add_argument("--seed", type=int, default=0, help="of who is malicious, who is held out, and all training")
    parser.add_argument("--workers", type=int, default=2, help="processes (2)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure there")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/defence.md")
    asked = parser.parse_args()
    path = next((asked.data or folder() / "intel-lab").glob("data_*.txt.gz"))
    console, outcomes = Console(stderr=True), dict[tuple[str, float, str], Outcome]()
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("reading Intel Lab", total=None)
        fleet = fleet_of(intel_days(path), asked.seed)
        cases = [Case(NONE, 0.0, method) for method in METHODS]
        cases += [Case(attack, share, method) for share in asked.share for attack in ATTACKS for method in METHODS]
        progress.update(task, total=len(cases), description="federating")
        for case, outcome in run_all(fleet, cases, asked.rounds, asked.seed, asked.workers):
            outcomes[case.attack.name, case.share, case.method] = outcome
            progress.advance(task)
    found = Found(outcomes)
    persistence = rmse_of(fleet, np.zeros(fleet.architecture.parameter_count))
    text = tables(found, asked.share, persistence)
    print(text)
    keep(asked.json, {"machine": describe(), "seed": asked.seed, "rounds": asked.rounds, "found": found.as_dict()})
    if asked.write:
        command = f"`python -m benchmarks.federation.poisoning --seed {asked.seed} --write`"
        write(DOCS, "poisoning", f"{text}\n\n{command} on {describe()}.")


if __name__ == "__main__":
    main()
