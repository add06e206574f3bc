"""Simulates a fleet on this machine and measures what it takes: the command is in `cli_federation.py`."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from flead.federation import Strategy
from flead.simulation import Fleet, Round, Training, simulate

PARTIAL_SUMS, SAMPLE = "partial sums of the whole fleet", "each update of a sample"


@dataclass(frozen=True)
class Measured:
    """A round, the seconds that it took, and the most memory that this process had so far, MB."""

    round: Round
    seconds: float
    peak_mb: float


def measure(
    fleet: Fleet, rounds: int, strategy: Strategy, training: Training, *, workers: int | None = None,
    on_round: Callable[[Measured], object] = lambda _: None, on_devices: Callable[[int], object] = lambda _: None,
) -> list[Measured]:  # fmt: skip
    """Simulate, on all cores unless `workers` says otherwise."""
    found: list[Measured] = []
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        begun = time.perf_counter()
        for each, _ in simulate(fleet, rounds, strategy, training, mapper=pool.map, on_devices=on_devices):
            now = time.perf_counter()
            found.append(Measured(each, now - begun, peak_mb()))
            on_round(found[-1])
            begun = now
    return found


def peak_mb() -> float:
    """The most memory that this process has had, MB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


def report(fleet: Fleet, strategy: Strategy, training: Training, found: list[Measured]) -> dict[str, Any]:
    """What was simulated and measured, for scripts."""
    return {
        "fleet": asdict(fleet),
        "parameters": fleet.architecture.parameter_count,
        "strategy": strategy.model_dump(),
        "merged_by": PARTIAL_SUMS if strategy.linear else SAMPLE,
        "training": asdict(training),
        "rounds": [asdict(each.round) | {"seconds": each.seconds, "peak_mb": each.peak_mb} for each in found],
    }
