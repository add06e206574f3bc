"""Milliseconds that each strategy takes for one round, beside Flower: `python -m benchmarks.federation.strategies`.

10,000 devices of 1,000 parameters (float64), as a stack that is there already; checking it (`Updates`) is counted in,
as no round goes without. Flower is in no environment of this project: `--flower PYTHON` names an interpreter that has
it (`python3.11 -m venv E && E/bin/pip install flwr==1.41.0`, then `--flower E/bin/python`). Its functions get the same
numbers in the form that they take: mean, median and trimmed mean as lists of arrays, Krum and Bulyan as its records,
which they decode. Its Bulyan takes all that it chooses from one Multi-Krum, where ours follows the paper and repeats
Krum.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from benchmarks.machine import describe
from benchmarks.report import keep, table, write
from config.settings import PROJECT
from flead.errors import Unavailable
from flead.federation import STRATEGIES, Rule, Updates
from flead.network import Vector

DOCS = PROJECT / "docs" / "federation.md"
DEVICES, PARAMETERS, SEED = 10_000, 1_000, 20
REPEATS = 5
ONCE = ("krum", "multi_krum", "bulyan")
"""Seconds each: measured once."""
TARGETS_MS = {"fedavg": 60.0, "trimmed_mean": 1_000.0, "krum": 10_000.0}
"""What was asked for."""
SHARE = 0.2
"""Of devices that may lie; Bulyan holds for no more than a quarter."""

FLOWER = """
import json, sys, time
import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.server.strategy import aggregate as flower
from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
from flwr.serverapp.strategy.multikrum import select_multikrum
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

devices, parameters, seed, share, repeats, once = json.loads(sys.argv[1])
models = np.random.default_rng(seed).normal(size=(devices, parameters))
results = [([model], 100) for model in models]
records = [
    RecordDict({"a": ArrayRecord({"w": Array(model)}), "m": MetricRecord({"n": 100})}) for model in models
]
malicious = int(share * devices)

def bulyan():
    theta = devices - 2 * malicious
    chosen = [[part["a"]["w"].numpy()] for part in select_multikrum(records, malicious, theta)]
    middle = [np.median(part, axis=0) for part in zip(*chosen)]
    return aggregate_n_closest_weights(middle, chosen, theta - 2 * malicious)

calls = {
    "fedavg": lambda: flower.aggregate(results),
    "median": lambda: flower.aggregate_median(results),
    "trimmed_mean": lambda: flower.aggregate_trimmed_avg(results, share),
    "krum": lambda: select_multikrum(records, malicious, 1),
    "multi_krum": lambda: aggregate_arrayrecords(select_multikrum(records, malicious, devices - malicious), "n"),
    "bulyan": bulyan,
}
for name, call in calls.items():
    taken = []
    for _ in range(1 if name in once else repeats):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    print(json.dumps([name, sorted(taken)[len(taken) // 2] * 1e3]), flush=True)
"""


def rules() -> list[Rule]:
    """Every strategy, all that ask for it with the same share of liars."""
    given = [{"malicious": SHARE} if "malicious" in each.model_fields else {} for each in STRATEGIES]
    return [each.model_validate(settings) for each, settings in zip(STRATEGIES, given, strict=True)]


def taken_ms(rule: Any, models: Vector, repeats: int) -> float:
    """The median time of a round from stacked models to the new one, ms."""
    samples, previous = np.full(len(models), 100.0), np.zeros(models.shape[1])
    state = rule.merge(Updates(models[:2], samples[:2], previous)).state
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        rule.merge(Updates(models, samples, previous), state)
        taken.append(time.perf_counter() - begun)
    return float(np.median(taken)) * 1e3


def flowers_ms(python: Path, devices: int) -> dict[str, float]:
    """Flower's times by strategy, ms, in an interpreter that has Flower."""
    argument = json.dumps([devices, PARAMETERS, SEED, SHARE, REPEATS, ONCE])
    done = subprocess.run([str(python), "-c", FLOWER, argument], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2] or f"it ended with {done.returncode}"
        raise Unavailable(f"{python} cannot run Flower: {said}; install flwr there")
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


def measure(devices: int, flower: Path | None) -> dict[str, Any]:
    """What is printed and kept."""
    theirs = flowers_ms(flower, devices) if flower else {}
    models, ours = np.random.default_rng(SEED).normal(size=(devices, PARAMETERS)), {}
    for rule in track(rules(), description="strategies", transient=True):
        name = rule.model_dump()["name"]
        ours[name] = taken_ms(rule, models, 1 if name in ONCE else REPEATS)
    return {
        "machine": describe(),
        "load": os.getloadavg()[0],
        "devices": devices,
        "parameters": PARAMETERS,
        "malicious": SHARE,
        "ms": ours,
        "flower_ms": theirs,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
        "targets": {name: {"asked_ms": asked, "met": ours[name] <= asked} for name, asked in TARGETS_MS.items()},
    }


def rows(found: dict[str, Any]) -> list[tuple[Any, ...]]:
    """The table: a line for each strategy."""
    flower = found["flower_ms"]
    return [
        (name, ms, TARGETS_MS.get(name), flower.get(name), flower[name] / ms if name in flower else None)
        for name, ms in found["ms"].items()
    ]


def main() -> None:
    """Measure, print the table, and keep the figures where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=DEVICES, help="10,000 unless given")
    parser.add_argument("--flower", type=Path, metavar="PYTHON", help="an interpreter that has flwr 1.41.0")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--write", action="store_true", help="put the table into docs/federation.md")
    options = parser.parse_args()
    found = measure(options.devices, options.flower)
    text = shown(found)
    print(text)
    if not found["flower_ms"]:
        print("\nFlower's column: python3.11 -m venv E && E/bin/pip install flwr==1.41.0, then --flower E/bin/python")
    keep(options.json, found)
    if options.write:
        write(DOCS, "cost of strategies", text)


def shown(found: dict[str, Any]) -> str:
    """What was measured on what, and the table."""
    of = f"{found['devices']:,} devices, {PARAMETERS:,} parameters, a share of {SHARE} may lie"
    lines = table(("strategy", "ms", "asked for, ms", "Flower, ms", "times as fast"), rows(found))
    return f"""{found["machine"]}; load {found["load"]:.1f}.
One round of {of}; peak memory {found["peak_mib"]:,.0f} MiB.

{lines}"""


if __name__ == "__main__":
    main()
