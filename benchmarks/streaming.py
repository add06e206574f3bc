"""What streaming analytics sustain, and what is left of it after kills: `python -m benchmarks.streaming [--json OUT]`.

Starts a broker, a mongod and `flead analyze stream`, sends readings and the real learners' predictions of them in real
time, kills Spark's JVM, its driver and mongod with kill -9 on the way and starts them again. Says how far MongoDB was
behind over time, and whether everything is there exactly once in the end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
from pydantic import SecretStr

from benchmarks.machine import describe
from benchmarks.report import keep, table
from config.child import ends_with_parent, free_port, stop
from config.settings import PROJECT, KafkaSettings, MongoSettings
from flead.errors import Unavailable
from flead.learner import DeviceLearner
from flead.learner_config import LearnerConfig
from kafka.client import make_producer
from kafka.embedded import embedded_broker
from kafka.offsets import Offsets
from kafka.topics import ARCHIVE_GROUP, PREDICTIONS, READINGS, ensure_topics
from orchestration.java import find_java_home
from storage.connection import connect, open_database, translated
from storage.embedded import initiate, mongod_command

SENSORS = ("humidity", "light", "temperature", "voltage")
START = datetime(2024, 1, 1, tzinfo=UTC)
CATCH_UP_S = 300.0


@dataclass(frozen=True)
class Plan:
    """What is done when; times in s since sending began."""

    rate: float
    seconds: float
    devices: int
    jvm_kill: float | None
    driver_kill: float | None
    mongod_kill: float | None

    @property
    def total(self) -> int:
        """Readings, all of them distinct."""
        return int(self.rate * self.seconds)


def make_records(plan: Plan) -> list[tuple[str, bytes, bytes]]:
    """Device, reading and prediction, in the order they are sent: made before, so that sending costs little."""
    rng = np.random.default_rng(0)
    levels = rng.normal(20.0, 5.0, (plan.devices, len(SENSORS)))
    learners = [DeviceLearner(SENSORS, LearnerConfig()) for _ in range(plan.devices)]
    records = []
    for i in range(plan.total):
        device = i % plan.devices
        levels[device] += rng.normal(0.0, 0.1, len(SENSORS))
        at = START + timedelta(seconds=i / plan.rate)
        sensors = dict(zip(SENSORS, levels[device].round(4).tolist(), strict=True))
        learner, name, moment = learners[device], f"dev-{device}", at.isoformat()
        said = learner.process(at.timestamp(), sensors)
        reading = {"device_id": name, "timestamp": moment, "sensors": sensors, "metadata": {}}
        prediction = {
            "device_id": name, "timestamp": moment, "cohort": learner.cohort, "samples_seen": learner.samples_seen,
            "model_version": 0, "observed": sensors, "expected": said.expected, "forecast": said.forecast,
            "horizon_s": 600.0, "horizon": said.horizon, "error": said.error, "anomaly_score": said.score,
            "sensor_scores": said.scores, "is_anomaly": said.is_anomaly, "sensor": said.sensor, "kind": said.kind,
            "drift": said.drift, "source": {"partition": 0, "offset": i}, "produced_ms": 0,
        }  # fmt: skip
        records.append((name, orjson.dumps(reading), orjson.dumps(prediction)))
    return records


class Mongo:
    """A mongod that may be killed and started again over its folder."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.settings = MongoSettings(
            uri=SecretStr(f"mongodb://127.0.0.1:{self.port}/?replicaSet=flead&directConnection=true")
        )
        self._command = mongod_command(folder, self.port, folder.with_suffix(".log"))
        folder.mkdir(parents=True)
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(ends_with_parent(self._command), stdout=subprocess.DEVNULL, start_new_session=True)  # noqa: S603

    def kill(self) -> None:
        """End it with SIGKILL, and start it again."""
        self.process.kill()
        self.process.wait()
        self.process = self._started()

    def close(self) -> None:
        """Stop it."""
        stop(self.process)


class Stream:
    """`flead analyze stream`, started again when it ends, as the supervisor would."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._environment = environment
        self._log = log.open("ab")
        self.starts = 0
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        command = [sys.executable, "-m", "orchestration", "analyze", "stream"]
        return subprocess.Popen(  # noqa: S603
            ends_with_parent(command), cwd=PROJECT, env=self._environment, stdin=subprocess.DEVNULL, stdout=self._log,
            stderr=self._log,
        )  # fmt: skip

    def look(self) -> None:
        """Start it again where it has ended."""
        if self.process.poll() is not None:
            self.process = self._started()

    def kill_jvm(self) -> None:
        """End Spark's JVM with SIGKILL: its driver has to notice, and to end."""
        for child in psutil.Process(self.process.pid).children():
            if "java" in child.name():
                child.kill()

    def kill(self) -> None:
        """End the driver with SIGKILL: its JVM has to notice, and to end."""
        self.process.kill()
        self.process.wait()

    def pid_of(self, name: str) -> int:
        """The driver's (`python`), or that of Spark's JVM (`java`)."""
        found = [child.pid for child in psutil.Process(self.process.pid).children() if name in child.name()]
        return found[0] if found else self.process.pid

    def close(self) -> float:
        """Stop it; gives how long that took, s."""
        began = time.monotonic()
        stop(self.process, 60.0)
        self._log.close()
        return time.monotonic() - began


def cpu_s(pid: int, *, below: bool = False) -> float:
    """Processor time of a process, or of those that it started and that live, s."""
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for one in process.children(recursive=True) if below else (process,):
            with suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                total += times.user + times.system
    return total


@dataclass
class Run:
    """What was seen."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)


def measure(plan: Plan, records: list[tuple[str, bytes, bytes]]) -> dict[str, Any]:
    """Send, kill, watch and count."""
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="flead-streaming-")))
        kafka = KafkaSettings(port=free_port(), controller_port=free_port())
        java = find_java_home() / "bin" / "java"
        broker = (folder / "kafka", kafka.port, kafka.controller_port, PROJECT / ".jvm" / "jars" / "kafka", java)
        kafka_process = running.enter_context(embedded_broker(*broker))
        ensure_topics(kafka.servers, kafka)
        mongo = Mongo(folder / "mongodb")
        running.callback(mongo.close)
        initiate(mongo.port)
        database = open_database(running.enter_context(connect(mongo.settings)), mongo.settings)
        environment = os.environ | {
            "FLEAD_RUN_DIR": str(folder),
            "FLEAD_KAFKA__BOOTSTRAP_SERVERS": kafka.servers,
            "FLEAD_MONGODB__URI": mongo.settings.address.get_secret_value(),
        }
        stream = Stream(environment, folder / "stream.log")
        run = Run()
        seen = Watch(database, Offsets(kafka.servers))
        began = time.monotonic()
        warm = records[: plan.devices]  # the first micro-batch compiles and connects: it is not what is measured
        send(kafka.servers, warm)
        seen.wait(lambda now: now["windows"] >= len(warm), stream)
        ready = time.monotonic() - began
        kills: list[tuple[float | None, str, Callable[[], None]]] = [
            (plan.jvm_kill, "Spark's JVM", stream.kill_jvm),
            (plan.driver_kill, "Spark's driver", stream.kill),
            (plan.mongod_kill, "mongod", mongo.kill),
        ]
        pending = sorted((at, what, act) for at, what, act in kills if at is not None)
        producer = make_producer(kafka.servers)
        parts: dict[str, Callable[[], float]] = {
            "Spark's driver": lambda: cpu_s(stream.process.pid),
            "Spark's JVM": lambda: cpu_s(stream.pid_of("java")),
            "Spark's Python workers": lambda: cpu_s(stream.pid_of("java"), below=True),
            "mongod": lambda: cpu_s(mongo.process.pid),
            "broker": lambda: cpu_s(kafka_process.pid),
        }
        before = {name: measured() for name, measured in parts.items()}
        start = time.monotonic()
        sent, looked = len(warm), 0.0
        while sent < plan.total:
            now = time.monotonic() - start
            due = min(plan.total, int(now * plan.rate) + len(warm))
            for device, reading, prediction in records[sent:due]:
                producer.produce(READINGS, reading, device)
                producer.produce(PREDICTIONS, prediction, device)
            sent = due
            producer.poll(0)
            if pending and now >= pending[0][0]:
                _, what, act = pending.pop(0)
                act()
                seen.exact = seen.exact or what == "mongod"
                run.events.append((round(now, 1), f"kill -9 of {what}"))
            stream.look()
            if now - looked >= 1.0:
                looked = now
                run.rows.append({"second": round(now, 1), "sent": sent, **seen.now()})
            time.sleep(0.02)
        producer.flush()
        ended = time.monotonic()
        done = seen.wait(lambda now: now["stored"] >= plan.total and now["windows"] >= plan.total, stream)
        caught_up = time.monotonic() - ended
        run.rows.append({"second": round(time.monotonic() - start, 1), "sent": sent, **done})
        cpu = {name: measured() - before[name] for name, measured in parts.items()}
        stopped = stream.close()
        said = (folder / "stream.log").read_text(errors="replace").splitlines()
        return {
            "ready_s": ready,
            "sent": sent,
            "distinct": plan.total,
            **seen.counts(),
            "caught_up_s": caught_up,
            "stopped_s": stopped,
            "starts": stream.starts,
            "cpu_s": cpu if not run.events else None,  # of processes that live from the beginning to the end
            "kills": run.events,
            "over_time": run.rows,
            "said": said[-40:],
        }


def send(servers: str, records: list[tuple[str, bytes, bytes]]) -> None:
    """Send at once."""
    producer = make_producer(servers)
    for device, reading, prediction in records:
        producer.produce(READINGS, reading, device)
        producer.produce(PREDICTIONS, prediction, device)
    producer.flush()


@dataclass
class Watch:
    """Looks at what has come of it.

    Attributes
    ----------
    exact: whether documents are counted one by one: a mongod that was killed no longer knows how many there are
    """

    database: Any
    offsets: Offsets
    exact: bool = False

    def now(self) -> dict[str, Any]:
        """Readings stored, readings in windows, and the lag that Kafka knows; None where nobody answers."""
        found: dict[str, Any] = {"stored": None, "windows": None, "lag": None}
        with suppress(Unavailable), translated():
            readings = self.database.device_data
            found["stored"] = readings.count_documents({}) if self.exact else readings.estimated_document_count()
            query = {"window": "1d", "scope": "device"}
            found["windows"] = sum(row["readings"] for row in self.database.window_aggregates.find(query))
        with suppress(Unavailable):
            found["lag"] = sum(self.offsets.lag(ARCHIVE_GROUP, READINGS).values())
        return found

    def wait(self, holds: Callable[[dict[str, Any]], bool], stream: Stream) -> dict[str, Any]:
        """Wait until what is seen is as it should be, or for a long time."""
        deadline = time.monotonic() + CATCH_UP_S
        while True:
            stream.look()
            now = {name: value or 0 for name, value in self.now().items()}
            if holds(now) or time.monotonic() > deadline:
                return now
            time.sleep(0.25)

    def counts(self) -> dict[str, int]:
        """Exact counts at the end."""
        query = {"scope": "device"}
        sums = {
            row["_id"]: row["readings"]
            for row in self.database.window_aggregates.aggregate(
                [{"$match": query}, {"$group": {"_id": "$window", "readings": {"$sum": "$readings"}}}]
            )
        }
        return {
            "device_data": self.database.device_data.count_documents({}),
            "predictions": self.database.predictions.count_documents({}),
            **{f"windows_{length}": sums.get(length, 0) for length in ("1m", "1h", "1d")},
        }


def main() -> None:
    """Measure, print, and exit 0 only where everything is there exactly once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.streaming", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=5_000.0, help="readings per second, and as many predictions")
    parser.add_argument("--seconds", type=float, default=90.0, help="how long to send")
    parser.add_argument("--devices", type=int, default=500, help="that take turns")
    parser.add_argument("--kills", default="25,45,65", help="when to kill JVM, driver and mongod, s; - for none")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all of it here as JSON")
    options = parser.parse_args()
    try:
        kills = [None if part == "-" else float(part) for part in options.kills.split(",")]
        plan = Plan(options.rate, options.seconds, options.devices, *kills)
    except (ValueError, TypeError):
        parser.error(f"--kills {options.kills}: give three numbers or - with commas between them")
    print(f"making {plan.total:,} readings and predictions", file=sys.stderr)
    found = measure(plan, make_records(plan))
    machine = describe()
    keep(options.json, {"machine": machine, "rate": plan.rate, "devices": plan.devices, **found})
    print(f"{machine}\n{plan.rate:,g} readings per second of {plan.devices} devices, and as many predictions\n")
    print("\n".join(_lines(found)))
    exact = all(found[name] == plan.total for name in ("device_data", "predictions", *_WINDOWS))
    sys.exit(0 if exact else 1)


_WINDOWS = ("windows_1m", "windows_1h", "windows_1d")


def _lines(found: dict[str, Any]) -> Iterator[str]:
    names = (
        "ready_s",
        "sent",
        "distinct",
        "device_data",
        "predictions",
        *_WINDOWS,
        "caught_up_s",
        "stopped_s",
        "starts",
    )
    yield table(("figure", "value"), [(name, found[name]) for name in names])
    yield ""
    if found["cpu_s"]:
        each = {name: f"{1e6 * spent / found['sent']:.0f} µs" for name, spent in found["cpu_s"].items()}
        yield f"processor time for a reading and its prediction: {each}"
    for at, what in found["kills"]:
        yield f"{at:5.1f} s: {what}"
    yield ""
    rows = found["over_time"]
    chosen = [*rows[:: max(1, len(rows) // 20)], rows[-1]]
    behind = [row["sent"] - row["stored"] if row["stored"] is not None else None for row in chosen]
    shown = [
        (row["second"], row["sent"], row["stored"], late, row["windows"], row["lag"])
        for row, late in zip(chosen, behind, strict=True)
    ]
    yield table(("s", "sent", "stored", "not yet stored", "in windows", "lag"), shown)


if __name__ == "__main__":
    main()
