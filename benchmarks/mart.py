"""How long what MongoDB acknowledged takes to be seen in the mart, and how fast a mart is made anew.

::

    python -m benchmarks.mart --write

An embedded MongoDB and an embedded PostgreSQL on this machine, and `flead mart follow` between them. Half of the
documents are readings, half predictions, with four sensors each: five rows a document. Now and then, what MongoDB has
just acknowledged is looked for in the mart, as its reader, until it is there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pydantic import SecretStr
from pymongo.database import Database

from benchmarks.machine import describe
from benchmarks.report import table, write
from config.child import ends_with_parent, free_port, stop
from config.settings import PROJECT, MartSettings, MongoSettings
from storage.connection import Document, connect, open_database
from storage.embedded import embedded_mongod
from storage.schema import apply_schema
from visualization.mart.connection import connect as connect_mart
from visualization.mart.follower import Follower
from visualization.mart.lag import lag_of
from visualization.mart.server import Role, address, embedded_postgres

RATE = 5_000
SECONDS = 60
DEVICES = 200
SENSORS = ("humidity", "light", "temperature", "voltage")
BATCHES_PER_S = 10
PROBE_S = 0.2
"""How often something is looked for, s."""
POLL_S = 0.005


@dataclass
class Load:
    """What has been written and found.

    Attributes
    ----------
    probes:
        how long a document took to be seen, from its acknowledgement, s; with the time since the start, s
    behind:
        what the mart says of its own lag, s; with the time since the start, s
    late_s:
        by how much the last batch was sent later than planned, s
    """

    written: int = 0
    probes: list[tuple[float, float]] = field(default_factory=list)
    behind: list[tuple[float, float]] = field(default_factory=list)
    late_s: float = 0.0


def batch_of(number: int, size: int) -> tuple[list[Document], list[Document]]:
    """A tenth of a second of readings, and of predictions of them; half of `size` each."""
    random = np.random.default_rng(number)
    values = random.normal(20.0, 5.0, (size // 2, len(SENSORS)))
    start, now = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=number / BATCHES_PER_S), datetime.now(UTC)
    readings, predictions = [], []
    for place, row in enumerate(values.tolist()):
        device, at = f"device-{place % DEVICES}", start + timedelta(milliseconds=place // DEVICES)
        about = {"_id": f"{device}@{at.isoformat()}", "device_id": device, "timestamp": at, "stored_at": now}
        sensors = dict(zip(SENSORS, row, strict=True))
        readings.append(about | {"sensors": sensors, "metadata": {"firmware": "1.2"}})
        predictions.append(
            about
            | {"cohort": "c-1", "observed": sensors, "expected": sensors, "forecast": sensors, "error": row[0] / 100}
            | {"anomaly_score": 0.25, "is_anomaly": False, "sensor": None, "kind": None, "model_version": 3}
            | {"samples_seen": number, "produced_ms": 1_704_067_200_000 + number, "drift": False}
        )
    return readings, predictions


def feed(database: Database[Document], load: Load, found: Any, rate: int, seconds: float) -> None:
    """Write at a rate; `found` looks for something that was just acknowledged, in a thread of its own."""
    size, began, next_probe = rate // BATCHES_PER_S, time.perf_counter(), 0.0
    prober: threading.Thread | None = None
    for number in range(int(seconds * BATCHES_PER_S)):
        readings, predictions = batch_of(number, size)
        due = number / BATCHES_PER_S
        time.sleep(max(0.0, due - (time.perf_counter() - began)))
        load.late_s = max(0.0, time.perf_counter() - began - due)
        database.device_data.insert_many(readings, ordered=False)
        database.predictions.insert_many(predictions, ordered=False)
        acknowledged = time.perf_counter()
        load.written += len(readings) + len(predictions)
        if acknowledged - began >= next_probe and not (prober and prober.is_alive()):
            next_probe = acknowledged - began + PROBE_S
            wanted = (predictions[-1]["_id"], acknowledged, acknowledged - began)
            prober = threading.Thread(target=found, args=wanted)
            prober.start()
    if prober:
        prober.join()


@contextmanager
def servers(folder: Path) -> Iterator[tuple[MongoSettings, MartSettings]]:
    """A MongoDB with its schema, and a PostgreSQL."""
    mart = MartSettings(port=free_port())
    with embedded_mongod(folder / "mongodb", free_port()) as mongod, embedded_postgres(folder, mart):
        mongodb = MongoSettings(uri=SecretStr(mongod.uri))
        with connect(mongodb) as client:
            apply_schema(open_database(client, mongodb), mongodb)
        yield mongodb, mart


@contextmanager
def following(folder: Path, mongodb: MongoSettings, mart: MartSettings) -> Iterator[psutil.Process]:
    """`flead mart follow`, once it follows."""
    uri = address(mart, folder)
    environment = {
        **os.environ,
        "FLEAD_RUN_DIR": str(folder),
        "FLEAD_MONGODB__URI": mongodb.address.get_secret_value(),
        "FLEAD_MART__URI": uri.get_secret_value(),
    }
    process = subprocess.Popen(  # noqa: S603
        ends_with_parent([sys.executable, "-m", "orchestration", "mart", "follow"]), cwd=PROJECT, env=environment
    )
    try:
        with connect_mart(uri) as connection:
            while connection.execute("SELECT to_regclass('mart.state')").fetchone() == (None,):
                time.sleep(0.1)
        while lag_of(uri).behind_s != 0.0:
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        stop(process)


def latency(folder: Path, mongodb: MongoSettings, mart: MartSettings, rate: int, seconds: float) -> dict[str, Any]:
    """Feed MongoDB, and see when the mart has it."""
    load, ended = Load(), threading.Event()
    uri = address(mart, folder, Role.READER)
    with (
        following(folder, mongodb, mart) as follower,
        connect_mart(uri) as reader,
        connect(mongodb) as client,
    ):
        began = time.perf_counter()

        def look(key: str, acknowledged: float, at: float) -> None:
            while reader.execute("SELECT 1 FROM predictions WHERE id = %s", [key]).fetchone() is None:
                time.sleep(POLL_S)
            load.probes.append((at, time.perf_counter() - acknowledged))

        def watch() -> None:
            while not ended.wait(1.0):
                load.behind.append((time.perf_counter() - began, lag_of(uri).behind_s or 0.0))

        watcher = threading.Thread(target=watch)
        watcher.start()
        used = _cpu(follower)
        feed(open_database(client, mongodb), load, look, rate, seconds)
        took = time.perf_counter() - began
        used = _cpu(follower) - used
        ended.set()
        watcher.join()
        memory = follower.memory_full_info().pss
    waits = np.array([wait for _, wait in load.probes])
    thirds = [
        np.median([wait for at, wait in load.probes if low <= at / took < low + 1 / 3]) for low in (0, 1 / 3, 2 / 3)
    ]
    return {
        "per_s": load.written / took,
        "p50": float(np.quantile(waits, 0.5)),
        "p99": float(np.quantile(waits, 0.99)),
        "max": float(waits.max()),
        "probes": len(waits),
        "thirds": [float(third) for third in thirds],
        "behind": max(behind for _, behind in load.behind),
        "late_s": load.late_s,
        "cpu": used / took,
        "memory_mb": memory / 2**20,
        "documents": load.written,
    }


def rebuild(folder: Path, mongodb: MongoSettings, mart: MartSettings) -> float:
    """How long it takes to make the mart anew, s."""
    with connect(mongodb) as client:
        began = time.perf_counter()
        Follower(open_database(client, mongodb), address(mart, folder)).rebuild(threading.Event())
        return time.perf_counter() - began


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def text_of(found: dict[str, Any], rebuilt_s: float) -> str:
    """The section of the documentation."""
    first, second, third = (f"{third * 1000:,.0f}" for third in found["thirds"])
    rows = [
        ("documents written, 1/s", found["per_s"]),
        ("acknowledged → seen in the mart, p50, ms", found["p50"] * 1000),
        ("the same, p99, ms", found["p99"] * 1000),
        ("the same, longest, ms", found["max"] * 1000),
        ("the same, p50 of each third of the time, ms", f"{first}, {second}, {third}"),
        ("behind by the mart's own account, at most, s", found["behind"]),
        ("follower, cores", f"{found['cpu']:.2f}"),
        ("follower, memory (PSS), MB", found["memory_mb"]),
        ("made anew, documents/s", found["documents"] / rebuilt_s),
    ]
    return "\n".join(
        [
            f"{found['documents']:,} documents in {found['documents'] / found['per_s']:.0f} s, half readings, half "
            f"predictions, four sensors each, so {found['documents'] * 5:,} rows; {found['probes']} looked for. "
            "MongoDB, PostgreSQL, the follower and who writes share the machine; "
            f"`python -m benchmarks.mart --write` on {describe()}.",
            "",
            table(("", "measured"), rows),
        ]
    )


def main() -> None:
    """Measure, print, and write the section into docs/performance.md where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=RATE, help="documents/s")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--write", action="store_true", help="put the section into docs/performance.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="flead-mart-") as name:
        folder = Path(name)
        with servers(folder) as (mongodb, mart):
            found = latency(folder, mongodb, mart, options.rate, options.seconds)
            rebuilt_s = rebuild(folder, mongodb, mart)
    text = text_of(found, rebuilt_s)
    print(text)
    if options.write:
        write(PROJECT / "docs" / "performance.md", "mart", text)


if __name__ == "__main__":
    main()
