"""`flead analyze batch` on 2.3 million readings, beside the same aggregates in Polars.

::

    python -m benchmarks.analytics --data ../shared/data/intel-lab/data_2004-03-04_2004-03-07.txt.gz

The four Intel Lab days are replayed with shifted dates until there are 2.3 million readings. A few global models, made
by a short federation over the first day, lie in an embedded MongoDB; every one is judged on every day. Memory is the
proportional set size (PSS) of all processes of the command, sampled four times a second.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.machine import describe
from benchmarks.report import write
from config.child import free_port
from config.settings import PROJECT, MongoSettings
from data.frames import frames_of
from data.plausible import INTEL_LAB, PlausibleOnly
from data.sources import open_dataset
from flead import evaluation, network, state
from flead.evaluation import Series
from flead.learner_config import LearnerConfig
from flead.messages import GlobalModel, WeightsMessage, cohort_of
from flead.training import Federation, federate
from storage.connection import connect, open_database
from storage.embedded import embedded_mongod
from storage.rounds import RoundRepository
from storage.schema import apply_schema

READINGS = 2_300_000
DAYS = 4
SAMPLE_S = 0.25
SENSORS = ("humidity", "light", "temperature", "voltage")


@dataclass
class Measured:
    """What a run took: s, and the largest memory of its processes, bytes."""

    seconds: float
    memory: int
    database_memory: int
    said: dict[str, Any]


def replay(source: Path, target: Path, readings: int) -> None:
    """Write the days again and again, with dates shifted on, until there are enough lines."""
    with gzip.open(source, "rt") as packed:
        lines = packed.readlines()
    dates = sorted({line[:10] for line in lines if line[:2] == "20"})
    written = 0
    with target.open("w") as out:
        for again in range(readings // len(lines) + 1):
            shift = timedelta(days=DAYS * again)
            shifted = {date: f"{datetime.fromisoformat(date) + shift:%Y-%m-%d}" for date in dates}
            kept = lines[: readings - written]
            out.writelines(shifted.get(line[:10], line[:10]) + line[10:] for line in kept)
            written += len(kept)


def federation(source: Path, rounds: int, config: LearnerConfig) -> Iterator[GlobalModel]:
    """The global models of a short federation over the first day."""
    kept = PlausibleOnly(INTEL_LAB)
    frames = frames_of(kept.of(open_dataset(source).readings()))
    first = min(frame.times[0] for frame in frames) // 86_400 * 86_400
    days = [Series(f.device, f.times, f.values) for f in (frame.between(first, first + 86_400) for frame in frames)]
    known = [evaluation.examples_of(day, config) for day in days if len(day.times) > 1]
    architecture = state.architecture_of(config, len(SENSORS))
    thetas: list[Any] = []
    start = network.initial_of_cohort(architecture, cohort_of(SENSORS), config.seed)
    plan = Federation(rounds=rounds)
    federate(start, architecture, known, np.random.default_rng(0), plan, lambda _round, theta: thetas.append(theta))
    for version, theta in enumerate(thetas, 1):
        yield GlobalModel(
            cohort=cohort_of(SENSORS), version=version, num_devices=len(known), total_samples=sum(map(len, known)),
            weights=WeightsMessage.model_validate(network.to_message(theta, architecture)),
            timestamp=datetime(2004, 3, 5, tzinfo=UTC) + timedelta(minutes=version), aggregation_strategy="fedavg",
        )  # fmt: skip


def store(run_dir: Path, models: Iterator[GlobalModel]) -> None:
    """Keep global models where the command will find them."""
    with embedded_mongod(run_dir / "mongodb", free_port()) as server:
        settings = MongoSettings(uri=server.uri)
        with connect(settings) as client:
            database = open_database(client, settings)
            apply_schema(database, settings)
            for model in models:
                RoundRepository(database).store_round(model, [])


def command(run_dir: Path, data: Path, report: Path) -> Measured:
    """Run `flead analyze batch`."""
    arguments = [sys.executable, "-m", "orchestration", "analyze", "batch", "--json"]
    arguments += ["--data", str(data), "--report", str(report)]
    environment = {**os.environ, "FLEAD_RUN_DIR": str(run_dir), "FLEAD_MONGODB__PORT": str(free_port())}
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(arguments, cwd=PROJECT, env=environment, stdout=out)  # noqa: S603
        measured = watched(process.pid, process.poll)
        if process.returncode:
            raise SystemExit(f"flead analyze batch ended with {process.returncode}")
        out.seek(0)
        measured.said = json.loads(out.read())
    return measured


def watched(pid: int, ended: Callable[[], int | None]) -> Measured:
    """Sample a process and its children until it has ended."""
    began, largest, largest_database = time.perf_counter(), 0, 0
    while ended() is None:
        ours, database = memory_of(pid)
        largest, largest_database = max(largest, ours), max(largest_database, database)
        time.sleep(SAMPLE_S)
    return Measured(time.perf_counter() - began, largest, largest_database, {})


def memory_of(pid: int) -> tuple[int, int]:
    """PSS of a process and its children, bytes: all but mongod, and mongod."""
    ours = database = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            pss = process.memory_full_info().pss
            if process.name() == "mongod":
                database += pss
            else:
                ours += pss
    except psutil.Error:  # it has just ended
        pass
    return ours, database


def polars_aggregates(path: str) -> None:
    """Statistics, gaps, uptime, runs of one value, both kinds of correlation, and drift, by day: as the report has."""
    import polars as pl

    columns: dict[str, Any] = dict.fromkeys(("date", "time", "epoch", "mote"), pl.String)
    columns |= dict.fromkeys(("temperature", "humidity", "light", "voltage"), pl.Float64)
    raw = pl.read_csv(path, separator=" ", has_header=False, schema=columns, ignore_errors=True)
    moment = (pl.col("date") + " " + pl.col("time")).str.to_datetime("%Y-%m-%d %H:%M:%S%.f", strict=False)
    table = raw.with_columns(moment.alias("at")).filter(pl.col("mote").cast(pl.Int32, strict=False) <= 54)
    table = table.with_columns(pl.col("at").dt.date().alias("day")).sort("mote", "at")
    step = pl.col("at").diff()
    table.group_by("mote", "day").agg(
        pl.len(), pl.col(*SENSORS).count().name.suffix("_n"), pl.col(*SENSORS).mean().name.suffix("_mean"),
        pl.col(*SENSORS).std().name.suffix("_sd"), pl.col(*SENSORS).min().name.suffix("_min"),
        pl.col(*SENSORS).max().name.suffix("_max"), step.median().alias("interval"), step.max().alias("gap"),
        (step > 10 * step.median()).sum().alias("gaps"), pl.col("at").dt.truncate("10m").n_unique().alias("slots"),
    )  # fmt: skip
    slots = table.group_by(pl.col("at").dt.truncate("10m").alias("slot"), "mote").agg(pl.col(*SENSORS).mean())
    for sensor in SENSORS:
        runs = table.drop_nulls([sensor]).group_by("mote", "day", pl.col(sensor).rle_id().alias("run"))
        runs.agg(pl.len(), pl.col("at").max() - pl.col("at").min())
        wide = slots.select("slot", "mote", sensor).pivot("mote", index="slot").drop("slot")
        wide.select(pl.corr(a, b).alias(f"{a}/{b}") for a in wide.columns for b in wide.columns if a < b)
    table.drop_nulls(list(SENSORS)).select(pl.corr(a, b).alias(f"{a}/{b}") for a in SENSORS for b in SENSORS if a < b)


def polars(path: Path) -> Measured:
    """Run the aggregates in a process of their own."""
    process = multiprocessing.get_context("spawn").Process(target=polars_aggregates, args=(str(path),))
    process.start()
    assert process.pid is not None  # noqa: S101  # it has started
    return watched(process.pid, lambda: process.exitcode)


def table_of(first: Measured, again: Measured, other: Measured, readings: int, models: int) -> str:
    """The table of the documentation."""
    took, repeat = first.said["durations_s"], again.said["durations_s"]
    after_start = first.seconds - took["database"] - took["spark"]

    def row(name: str, seconds: float, memory: int, what: str) -> str:
        return f"| {name} | {seconds:.1f} s | {memory / 2**30:.2f} GiB | {what} |"

    steps = f"read {took['read']:.0f} s, look at days {took['look']:.0f} s, fold {took['fold']:.1f} s"
    return "\n".join(
        [
            f"{readings:,} readings, 52 motes, {first.said['units']} days, {models} global models; "
            f"`python -m benchmarks.analytics --write` on {describe()}.",
            "",
            "| | time | memory (PSS) | |",
            "|---|---|---|---|",
            row(
                "`flead analyze batch`, after JVM start", after_start, first.memory,
                f"{steps}, the rest pages and PDF; mongod {first.database_memory / 2**30:.2f} GiB more",
            ),
            row(
                "the same again: no day is new", again.seconds - repeat["database"] - repeat["spark"], again.memory,
                f"read {repeat['read']:.0f} s, {again.said['done']} of {again.said['units']} days looked at",
            ),
            row("Polars, the aggregates alone", other.seconds, other.memory, "no models, no report, nothing stored"),
        ]
    )  # fmt: skip


def main() -> None:
    """Measure, print, and write the table into docs/performance.md where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the four Intel Lab days")
    parser.add_argument("--readings", type=int, default=READINGS)
    parser.add_argument("--models", type=int, default=12, help="global models to judge")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flead-analytics-") as folder:
        big, run_dir = Path(folder, "readings.txt"), Path(folder, "run")
        replay(options.data, big, options.readings)
        store(run_dir, federation(options.data, options.models, LearnerConfig()))
        first = command(run_dir, big, Path(folder, "report"))
        again = command(run_dir, big, Path(folder, "report"))
        other = polars(big)
    text = table_of(first, again, other, options.readings, options.models)
    print(text)
    if options.write:
        write(PROJECT / "docs" / "performance.md", "analytics", text)


if __name__ == "__main__":
    main()
