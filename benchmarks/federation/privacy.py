"""What privacy costs: `python -m benchmarks.federation.privacy [--json OUT] [--write]`.

Differential privacy costs accuracy: federates over Intel Lab, 4-6 March, with clipped and noised means, and tests on
7 March. Fleets of more devices are the same motes several times over, so that only the noise differs: each copy sends
what its mote sends.

Secure sums cost traffic and time: a whole session in one process, a tenth of the devices leaving when their masks are
in the sum.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from statistics import mean
from typing import Any, ClassVar, TypeVar

import numpy as np
from pydantic import PrivateAttr

from benchmarks.detection.data import folder, intel_days
from benchmarks.machine import describe
from benchmarks.report import keep, table, write
from config.aggregation import Rules
from config.secure import SecureSettings
from config.settings import PROJECT
from data.frames import Frame
from flead import metrics, network, state
from flead.evaluation import Series, changes_of, examples_of, followed, joined
from flead.federation import FedAvg, Merge, Rule, Updates
from flead.federation.strategies import NOTHING, State
from flead.learner_config import LearnerConfig
from flead.learning import LARGEST_STEP, LARGEST_SWING
from flead.messages import GlobalModel, LocalUpdate
from flead.network import Architecture, Vector
from flead.privacy import Privacy, clipped, noise_multiplier_for, private_mean
from flead.secure_sum import MAX_TOTAL, Keys, Party
from flead.training import Examples, Federation, federate
from global_server.secure import SecureSums

DOCS = PROJECT / "docs" / "privacy.md"
CUT = datetime(2004, 3, 7, tzinfo=UTC).timestamp()
STRIDE = 16
"""Of the readings, one in so many is learned from and tested on."""
DELTA = 1e-6
EPSILONS = (0.25, 1.0, 4.0, 16.0)
FLEETS = ((1, 0.05), (1, 0.1), (1, 0.25), (1, 0.5), (10, 0.5), (100, 0.5))
"""How often each mote is there, and the clip."""
PLAN = Federation(rounds=8, share=1.0)
NOW = datetime(2024, 1, 1, tzinfo=UTC)
SAMPLES = 1_000
T = TypeVar("T")


@dataclass(frozen=True)
class Fleet:
    """What the motes learn from, and what they are asked on the test day."""

    architecture: Architecture
    devices: list[Examples]
    features: Vector
    changes: Vector
    scales: Vector

    def skill(self, theta: Vector) -> float:
        """How much better than persistence, %: the mean over sensors and horizons."""
        largest = np.repeat((LARGEST_STEP, LARGEST_SWING), self.architecture.output_size // 2)
        forecast = np.clip(network.forward(theta, self.architecture, self.features), -largest, largest) * self.scales
        wrong = forecast - self.changes
        each = [metrics.skill(wrong[:, j], self.changes[:, j]) for j in range(wrong.shape[1])]
        return 100.0 * float(np.nanmean(each))


class Noised(Rule):
    """A clipped and noised mean, as of a fleet in which each device is there `copies` times; without noise for 0."""

    linear: ClassVar[bool] = False
    privacy: Privacy
    copies: int
    _rng: np.random.Generator = PrivateAttr()

    @staticmethod
    def of(privacy: Privacy, copies: int, rng: np.random.Generator) -> Noised:
        """The rule and its noise."""
        made = Noised(privacy=privacy, copies=copies)
        made._rng = rng
        return made

    def merge(self, updates: Updates, state: State = NOTHING) -> Merge:
        """The next global model."""
        models, previous = updates.models, updates.previous
        assert previous is not None  # noqa: S101  # a federation names it
        shares = np.full(len(models), 1.0 / len(models))
        if not self.copies:
            return Merge(previous + clipped(models, previous, self.privacy.clip).mean(axis=0), shares)
        noise = self.privacy.noise_multiplier / self.copies
        privacy = self.privacy.model_copy(update={"noise_multiplier": noise})
        return Merge(private_mean(models, previous, privacy, self._rng), shares)


def fleet_of(frames: list[Frame]) -> Fleet:
    """Every mote, its scaling going on from the days before into the test day."""
    config = LearnerConfig()
    devices, features, changes, scales = [], [], [], []
    for frame in frames:
        old, new = (
            Series(part.device, part.times, part.values) for part in (frame.between(-inf, CUT), frame.between(CUT, inf))
        )
        devices.append(examples_of(old, config)[slice(None, None, STRIDE)])
        whole, rows = joined(old, new), slice(len(old.times), None, STRIDE)
        seen, units = followed(whole, config)
        features.append(seen[rows])
        scales.append(units[rows])
        changes.append(changes_of(whole, config.horizon_s)[rows])
    architecture = state.architecture_of(config, len(frames[0].sensors))
    return Fleet(architecture, devices, *(np.concatenate(parts) for parts in (features, changes, scales)))


def accuracy(fleet: Fleet, seeds: int) -> dict[str, Any]:
    """Skill of plain means, and by size of the fleet, clip and epsilon (0: clipped, and no noise); mean over seeds."""

    def skill(rule: Rule, seed: int) -> float:
        start = network.initial(fleet.architecture, np.random.default_rng(seed))
        rng = np.random.default_rng(seed)
        return fleet.skill(federate(start, fleet.architecture, fleet.devices, rng, PLAN, strategy=rule))

    def noised(noise: float, copies: int, clip: float) -> float:
        privacy = Privacy(clip=clip, noise_multiplier=noise, delta=DELTA)
        return mean(skill(Noised.of(privacy, copies, np.random.default_rng(seed)), seed) for seed in range(seeds))

    noises = {epsilon: noise_multiplier_for(epsilon, DELTA, PLAN.rounds) for epsilon in EPSILONS}
    return {
        "parameters": fleet.architecture.parameter_count,
        "rounds": PLAN.rounds,
        "delta": DELTA,
        "seeds": seeds,
        "fedavg": mean(skill(FedAvg(), seed) for seed in range(seeds)),
        "noise_multiplier": noises,
        "private": [
            {
                "devices": copies * len(fleet.devices),
                "clip": clip,
                "skill": {epsilon: noised(noise, copies, clip) for epsilon, noise in noises.items()},
                "no_noise": noised(1.0, 0, clip),
            }
            for copies, clip in FLEETS
        ],
    }


class _Rounds:
    """Takes the sum, and does nothing with it."""

    def __init__(self) -> None:
        self.updates: list[LocalUpdate] = []

    def accept(self, message: LocalUpdate, now: datetime) -> None:
        self.updates.append(message)

    def aggregate_ready(self, now: datetime) -> None:
        """Nothing waits."""

    def model(self, cohort: str) -> GlobalModel | None:
        return None

    def rules(self, cohort: str) -> Rules:
        return Rules()


class Held:
    """One session in one process, and what it took.

    Seconds are of a processor. Bytes are those of keys, shares and values in JSON, as `edge.secure` sends them, without
    looks at the session.
    """

    def __init__(self, devices: int, parameters: int) -> None:
        self.rounds = _Rounds()
        settings = SecureSettings(devices=devices, min_devices=3, max_samples=MAX_TOTAL // devices)
        self.sums, self.now = SecureSums(self.rounds, settings), NOW
        self.session = self.sums.open("light", Architecture(parameters - 1, (), 1), NOW)
        rng = np.random.default_rng(0)
        self.models = {f"device-{i}": rng.normal(size=parameters) for i in range(devices)}
        self.parties: dict[str, Party] = {}
        self.device_s = self.server_s = 0.0
        self.sent = self.received = self.roster_size = 0

    def by_device(self, step: Callable[[], T]) -> T:
        """What a device computes."""
        begun = time.process_time()
        found = step()
        self.device_s += time.process_time() - begun
        return found

    def by_server(self, step: Callable[[], T]) -> T:
        """What the server computes; it moves the session on before and after."""
        begun = time.process_time()
        with self.sums.at(self.session.id, self.now):
            found = step()
        self.server_s += time.process_time() - begun
        return found

    def hold(self, staying: Sequence[str]) -> float:
        """All four steps; devices that do not stay leave when their shares are given out. Seconds of the last step."""
        for name in self.models:
            self.keys(name)
        for name in self.models:
            self.shares(name)
        for name in staying:
            self.masked(name)
        self.now += timedelta(seconds=self.sums.settings.phase_s)
        self.sums.tick(self.now)
        before = self.server_s
        for name in staying:
            self.unmask(name)
        return self.server_s - before

    def keys(self, name: str) -> None:
        """Step 1."""
        party = self.parties[name] = self.by_device(lambda: Party(self.session.id, name, os.urandom))
        self.sent += _size(_shown(party.keys))
        self.by_server(lambda: self.session.add_keys(name, party.keys))

    def shares(self, name: str) -> None:
        """Step 2."""
        roster, threshold = self.by_server(self.session.roster)
        self.roster_size = self.roster_size or _size({peer: _shown(keys) for peer, keys in roster.items()})
        self.received += self.roster_size
        sealed = self.by_device(lambda: self.parties[name].share(roster, threshold))
        self.sent += _size(sealed)
        self.by_server(lambda: self.session.add_shares(name, sealed))

    def masked(self, name: str) -> None:
        """Step 3."""
        mine = self.by_server(lambda: self.session.sealed_for(name))
        self.received += _size(mine)
        encode = self.session.encoding.encode
        masked = self.by_device(lambda: self.parties[name].mask(encode(self.models[name], SAMPLES), mine))
        self.sent += _size(masked.tobytes())
        self.by_server(lambda: self.session.add_masked(name, masked))

    def unmask(self, name: str) -> None:
        """Step 4."""
        survivors = self.session.survivors
        self.received += _size(survivors)
        opened = self.by_device(lambda: self.parties[name].open(survivors))
        self.sent += _size({peer: {"kind": share.kind, "value": share.value} for peer, share in opened.items()})
        self.by_server(lambda: self.session.add_opened(name, opened))


def _shown(keys: Keys) -> dict[str, bytes]:
    return {"channel": keys.channel, "mask": keys.mask, "commitment": keys.commitment}


def _size(fields: object) -> int:
    """Bytes as JSON, binary fields in base64."""
    return len(json.dumps(fields, default=lambda value: base64.b64encode(value).decode()))


def secure_sum(devices: int, parameters: int) -> dict[str, float]:
    """Hold one session, a tenth of the devices leaving; what it took, and how far the mean is from the plain one.

    >>> found = secure_sum(10, 5)
    >>> found["threshold"], found["left"], found["error"] < 1e-6
    (7, 1, True)
    """
    held = Held(devices, parameters)
    staying = list(held.models)[: devices - devices // 10]
    unmask_s = held.hold(staying)
    theta, _ = network.from_message(held.rounds.updates[0].weights)
    exact = np.mean([held.models[name] for name in staying], axis=0)
    return {
        "devices": devices,
        "parameters": parameters,
        "threshold": held.session.threshold or 0,
        "left": devices - len(staying),
        "sent_bytes": held.sent / devices,
        "received_bytes": held.received / devices,
        "plain_bytes": _size(exact.tolist()),
        "device_ms": 1_000.0 * held.device_s / devices,
        "server_s": held.server_s,
        "unmask_s": unmask_s,
        "error": float(np.abs(theta - exact).max()),
    }


def accuracy_table(found: Mapping[str, Any]) -> str:
    """Skill by size of the fleet, clip and epsilon, %."""
    header = ["devices", "clip", *(f"ε = {epsilon:g}" for epsilon in EPSILONS), "clipped, no noise"]
    noises = ["noise multiplier", None, *(f"{noise:.2f}" for noise in found["noise_multiplier"].values()), "0"]
    rows = [
        [each["devices"], f"{each['clip']:g}", *each["skill"].values(), each["no_noise"]] for each in found["private"]
    ]
    about = (
        f"Skill over persistence, %, after {found['rounds']} rounds with every device in each, ε of all together; "
        f"δ = {found['delta']:g}, {found['parameters']:,} parameters, mean of {found['seeds']} seeds. "
        f"FedAvg: {found['fedavg']:.1f}."
    )
    return f"{about}\n\n{table(header, [noises, *rows])}"


def sums_table(held: Sequence[Mapping[str, float]]) -> str:
    """What secure sums take, by the number of devices."""
    header = ("devices", "must stay", "left", "sent, KB", "received, KB", "plain update, KB", "device, ms", "server, s",
              "of it unmasking, s")  # fmt: skip
    rows = [
        (each["devices"], each["threshold"], each["left"], each["sent_bytes"] / 1e3, each["received_bytes"] / 1e3,
         each["plain_bytes"] / 1e3, each["device_ms"], f"{each['server_s']:.2f}", f"{each['unmask_s']:.2f}")
        for each in held
    ]  # fmt: skip
    parameters, error = int(held[0]["parameters"]), max(each["error"] for each in held)
    about = f"{parameters:,} parameters; bytes and ms are of one device. Furthest from the plain mean: {error:.1e}."
    return f"{about}\n\n{table(header, rows)}"


def main() -> None:
    """Measure both, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.federation.privacy", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="federations behind each figure (2)")
    parser.add_argument("--sums", type=int, nargs="+", default=[10, 100, 500], help="devices of secure sums")
    parser.add_argument("--parameters", type=int, default=1_000, help="of the model that is summed (1,000)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure there")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/privacy.md")
    asked = parser.parse_args()
    path = next((folder() / "intel-lab").glob("data_*.txt.gz"))
    found = accuracy(fleet_of(intel_days(path)), asked.seeds)
    held = [secure_sum(devices, asked.parameters) for devices in asked.sums]
    texts = {"accuracy": accuracy_table(found), "sums": sums_table(held)}
    print("\n\n".join(texts.values()))
    keep(asked.json, {"machine": describe(), "accuracy": found, "secure_sums": held})
    if asked.write:
        command = f"`python -m benchmarks.federation.privacy --write` on {describe()}."
        for section, text in texts.items():
            write(DOCS, section, f"{text}\n\n{command}")


if __name__ == "__main__":
    main()
