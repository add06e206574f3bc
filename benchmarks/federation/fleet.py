"""What a simulated fleet takes per round on this machine, and an update on its way through a shard.

`python -m benchmarks.federation.fleet`: two minutes. Each fleet is simulated by `flead simulate` in a process of its
own, so that its peak of memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import orjson

from benchmarks.machine import describe
from benchmarks.report import keep, table, write
from config.settings import PROJECT
from edge.buffer import UpdateBuffer
from flead import network
from flead.network import Architecture
from flead.partial import Part, partial_updates
from flead.updates import parse_update

ROUNDS = 5
FLEETS: tuple[tuple[int, int, str, float], ...] = (
    (1_000, 161, "fedavg", 0.0),
    (10_000, 161, "fedavg", 0.0),
    (100_000, 161, "fedavg", 0.0),
    (100_000, 161, "fedbuff", 0.0),
    (100_000, 1_001, "fedavg", 0.0),
    (100_000, 161, "fedavg", 0.3),
    (100_000, 161, "multi_krum", 0.3),
)
"""Devices, parameters, strategy and share of liars."""
NOW = datetime(2024, 1, 1, tzinfo=UTC)
UPDATES, ARCHITECTURE = 1_000, Architecture(98, (10,), 1)


def simulated(devices: int, parameters: int, strategy: str, malicious: float) -> dict[str, Any]:
    """One row: a fifth drops out of each round, a tenth of the others is late."""
    command = [sys.executable, "-m", "orchestration", "simulate", "--json", "--devices", str(devices)]
    command += ["--rounds", str(ROUNDS), "--parameters", str(parameters), "--strategy", strategy]
    command += ["--malicious", str(malicious), "--drop-out", "0.2", "--stragglers", "0.1"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600, check=True)  # noqa: S603
    said = json.loads(done.stdout)
    rounds = said["rounds"]
    return {
        "devices": devices,
        "parameters": said["parameters"],
        "strategy": strategy,
        "merged_by": said["merged_by"],
        "malicious": malicious,
        "merged": rounds[-1]["merged"],
        "seconds": median(each["seconds"] for each in rounds),
        "peak_mb": rounds[-1]["peak_mb"],
        "losses": [each["loss"] for each in rounds],
    }


def updates() -> list[bytes]:
    """What `UPDATES` devices send."""
    rng = np.random.default_rng(0)
    return [
        orjson.dumps(
            {
                "device_id": f"d-{i}",
                "weights": network.to_message(rng.normal(size=ARCHITECTURE.parameter_count), ARCHITECTURE),
                "sample_count": 100,
                "timestamp": NOW,
                "metadata": {"cohort": "x", "samples_seen": 100, "base_version": 1, "loss": 0.5},
            }
        )
        for i in range(UPDATES)
    ]


def through_a_shard(records: list[bytes]) -> dict[str, float]:
    """Microseconds of processor time that an update takes on its way through a shard, by step."""
    found: dict[str, float] = {}
    begun = time.process_time()

    def took(what: str) -> None:
        nonlocal begun
        now = time.process_time()
        found[what] = (now - begun) / UPDATES * 1e6
        begun = now

    parts = [Part.from_update(parse_update(raw)) for raw in records]
    took("its JSON read")
    packed = [part.to_bytes() for part in parts]
    took("packed")
    parts = [Part.from_bytes(raw) for raw in packed]
    took("unpacked")
    orjson.dumps(partial_updates(parts, device_id="partial-0", timestamp=NOW, samples_before=0))
    took("summed up")
    found["through a shard, together"] = sum(found.values())
    return found


def in_an_aggregator(records: list[bytes]) -> dict[str, float]:
    """Microseconds on the wall that an update takes until it is on the disk, and its part of the sum."""
    parts = [Part.from_update(parse_update(raw)) for raw in records]
    with TemporaryDirectory() as folder, UpdateBuffer(Path(folder) / "updates.sqlite") as buffer:
        begun = time.perf_counter()
        for part in parts:
            buffer.accept(part, NOW)
        stored = time.perf_counter()
        buffer.close(NOW)
        closed = time.perf_counter()
    return {
        "stored by an aggregator, on the disk": (stored - begun) / UPDATES * 1e6,
        "summed up by it": (closed - stored) / UPDATES * 1e6,
    }


def text(report: dict[str, Any]) -> str:
    """The tables, and what they were measured on."""
    header = (
        "devices",
        "parameters",
        "strategy",
        "liars",
        "merged in the last round",
        "s per round",
        "peak MB",
        "loss",
    )
    rows = [
        (
            f["devices"], f["parameters"], f["strategy"], f"{f['malicious']:.0%}", f["merged"], f"{f['seconds']:.2f}",
            round(f["peak_mb"]), f"{f['losses'][0]:.2f} to {f['losses'][-1]:.2f}",
        )
        for f in report["fleets"]
    ]  # fmt: skip
    steps = table((f"an update of {ARCHITECTURE.parameter_count:,} parameters", "µs"), report["microseconds"].items())
    return (
        f"{table(header, rows)}\n\n{ROUNDS} rounds each, the median of their seconds; a fifth of the devices drops out "
        f"of each round, a tenth of the updates is late.\n\n{steps}\n\n"
        f"`python -m benchmarks.federation.fleet --write` on {report['machine']}; load {report['load']:.1f}."
    )


def main() -> None:
    """Measure, print the tables, and keep the figures where a file is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/scale.md")
    arguments = parser.parse_args()
    load, records = os.getloadavg()[0], updates()
    fleets = [simulated(*fleet) for fleet in FLEETS]
    steps = through_a_shard(records) | in_an_aggregator(records)
    report = {"machine": describe(), "load": load, "fleets": fleets, "microseconds": steps}
    print(text(report))
    keep(arguments.json, report)
    if arguments.write:
        write(PROJECT / "docs" / "scale.md", "fleet", text(report))


if __name__ == "__main__":
    main()
