"""How many local updates a second the global server stores: `python -m benchmarks.federation.ingest rest|kafka`.

A real mongod, the real `flead serve` in a process of its own and, for `kafka`, a real broker; all on this machine, on
free ports of 127.0.0.1, in a temporary folder. Updates are encoded before the clock starts.

`rest`: a few kept connections of one process, each sending its next update when the last one is answered. The latency
is from the first byte sent to the last one of the answer. `kafka`: the topic is filled first; measured is from the
moment that the server takes the first updates off it to the moment that MongoDB counts all of them.

In both, every update must be found in MongoDB, and be counted once by the rounds and what is pending.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgpack
import numpy as np
import orjson
import psutil
from pydantic import SecretStr
from pymongo.database import Database

from benchmarks.machine import describe
from benchmarks.report import table
from config.child import ends_with_parent, free_port, stop
from config.settings import PROJECT, KafkaSettings, MongoSettings
from flead import network
from flead.network import Architecture
from kafka.client import make_producer
from kafka.embedded import embedded_broker
from kafka.topics import LOCAL_UPDATES, ensure_topics
from storage.connection import Document, connect, open_database
from storage.embedded import embedded_mongod

LIMIT_S = 300.0
"""The longest that anything is waited for, s."""
COHORT = "benchmark"
_INPUTS, _OUTPUTS = 4, 8
_VARIANTS = 64  # different sets of weights: encoding each update's own would take longer than sending it
_START = datetime(2024, 1, 1, tzinfo=UTC)

Encode = Callable[[dict[str, Any]], bytes]
ENCODERS: dict[str, tuple[str, Encode]] = {
    "json": ("application/json", orjson.dumps),
    "msgpack": ("application/msgpack", msgpack.packb),
}


@dataclass(frozen=True)
class Load:
    """What is sent, and how."""

    updates: int
    devices: int
    parameters: int
    connections: int = 32
    encoding: str = "json"
    packed: bool = False


@dataclass(frozen=True)
class Found:
    """What was measured; latencies in ms."""

    updates: int
    parameters: int
    body_bytes: int
    seconds: float
    per_s: float
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    stored: int
    counted: int
    rounds: int
    server_cores: float
    mongod_cores: float

    @property
    def lost(self) -> int:
        """Updates that were sent and are not there."""
        return self.updates - min(self.stored, self.counted)


def architecture_of(parameters: int) -> Architecture:
    """A network of about so many parameters.

    >>> architecture_of(1_000).parameter_count
    996
    """
    hidden = max(1, round((parameters - _OUTPUTS) / (_INPUTS + 1 + _OUTPUTS)))
    return Architecture(_INPUTS, (hidden,), _OUTPUTS)


def bodies(load: Load, rng: np.random.Generator) -> list[bytes]:
    """Every update, encoded; each device's in the order of its training counter."""
    architecture = architecture_of(load.parameters)
    weights = [
        network.to_message(rng.normal(0.0, 0.3, architecture.parameter_count), architecture) for _ in range(_VARIANTS)
    ]
    encode = ENCODERS[load.encoding][1]
    encoded = []
    for number in range(load.updates):
        turn, device = divmod(number, load.devices)
        body = encode(
            {
                "device_id": f"device-{device + 1}",
                "weights": weights[number % _VARIANTS],
                "sample_count": 100,
                "timestamp": (_START + timedelta(minutes=turn)).isoformat(),
                "metadata": {"cohort": COHORT, "samples_seen": 100 * (turn + 1)},
            }
        )
        encoded.append(gzip.compress(body, 1) if load.packed else body)
    return encoded


async def converse(port: int, requests: Iterator[bytes], took: list[float], accepted: list[bool]) -> None:
    """Send requests over one connection until none is left; how long each took, s."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for request in requests:
            begun = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            answer = await reader.readexactly(length)
            took.append(time.perf_counter() - begun)
            accepted.append(head.startswith(b"HTTP/1.1 200") and b'"accepted"' in answer)
    finally:
        writer.close()


def post(port: int, load: Load, ready: Any, answers: Any) -> None:
    """Send every update, in a process of its own; puts seconds, latencies and how many were accepted."""
    headers = (
        f"POST /api/local-update HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {ENCODERS[load.encoding][0]}\r\n"
    )
    headers += "Content-Encoding: gzip\r\n" if load.packed else ""
    parts = bodies(load, np.random.default_rng(0))
    sent = [f"{headers}Content-Length: {len(part)}\r\n\r\n".encode() + part for part in parts]
    took: list[float] = []
    accepted: list[bool] = []

    async def send() -> None:
        requests = iter(sent)
        await asyncio.gather(*(converse(port, requests, took, accepted) for _ in range(load.connections)))

    ready.wait(LIMIT_S)
    begun = time.perf_counter()
    asyncio.run(asyncio.wait_for(send(), LIMIT_S))
    answers.put((time.perf_counter() - begun, took, sum(accepted), sum(map(len, parts)) / len(parts)))


@contextmanager
def served(folder: Path, **environment: str) -> Iterator[tuple[int, psutil.Process]]:
    """The real server, answering; its port and process."""
    port = free_port()
    command = ends_with_parent([sys.executable, "-m", "orchestration", "serve", "--port", str(port)])
    whole = {**os.environ, "FLEAD_RUN_DIR": str(folder), **environment}
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=PROJECT, env=whole, stdout=log, stderr=log)  # noqa: S603
    try:
        wait_until(lambda: answers(port) or ended(process, folder))
        yield port, psutil.Process(process.pid)
    finally:
        stop(process)


def answers(port: int) -> bool:
    """Say whether the server answers."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/api/status").is_success
    except httpx.HTTPError:
        return False


def ended(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """End with the server's log where the server has ended."""
    if process.poll() is not None:
        sys.exit((folder / "server.log").read_text(errors="replace")[-4_000:])
    return False


def wait_until(condition: Callable[[], bool], every_s: float = 0.2) -> None:
    """Look until something is so; ends the benchmark after `LIMIT_S`."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"it did not happen within {LIMIT_S:g} s")
        time.sleep(every_s)


def cpu_of(process: psutil.Process) -> float:
    """CPU time of a process so far, s."""
    times = process.cpu_times()
    return float(times.user + times.system)


def counted(database: Database[Document], port: int) -> tuple[int, int]:
    """How many updates the server counts, and the rounds it made of them."""
    status = httpx.get(f"http://127.0.0.1:{port}/api/status", params={"cohort": COHORT}).raise_for_status().json()
    in_rounds = sum(
        part["updates"] for found in database.global_model.find({}, {"devices": 1}) for part in found["devices"]
    )
    newest = database.global_model.find_one({"cohort": COHORT}, {"round": 1}, sort=[("round", -1)]) or {"round": 0}
    pending = database.local_models.count_documents({"cohort": COHORT, "round": {"$gt": newest["round"]}})
    total = sum(status["device_contributions"].values())
    if total != in_rounds + pending:
        sys.exit(f"the server counts {total} updates, its rounds {in_rounds}, and {pending} are pending")
    return total, status["aggregation_rounds"]


@dataclass
class Bench:
    """What both ways need: the database, its server's process, and a folder."""

    folder: Path
    database: Database[Document]
    mongod: psutil.Process
    environment: dict[str, str]

    def stored(self) -> int:
        """Updates in MongoDB."""
        return self.database.local_models.estimated_document_count()


@contextmanager
def bench(min_devices: int) -> Iterator[Bench]:
    """A folder and a MongoDB of its own."""
    with tempfile.TemporaryDirectory(prefix="flead-ingest-") as name, ExitStack() as stack:
        folder = Path(name)
        mongod = stack.enter_context(embedded_mongod(folder / "mongodb", free_port()))
        settings = MongoSettings(uri=SecretStr(mongod.uri))
        database = open_database(stack.enter_context(connect(settings)), settings)
        environment = {
            "FLEAD_MONGODB__URI": mongod.uri,
            "FLEAD_KAFKA__PORT": str(free_port()),
            "FLEAD_AGGREGATION__MIN_DEVICES": str(min_devices),
        }
        yield Bench(folder, database, psutil.Process(mongod.pid), environment)


def rest(load: Load, min_devices: int) -> Found:
    """Send updates by REST."""
    context = multiprocessing.get_context("spawn")
    with bench(min_devices) as here, served(here.folder, **here.environment) as (port, server):
        ready, queue = context.Event(), context.Queue()
        sender = context.Process(target=post, args=(port, load, ready, queue), daemon=True)
        sender.start()
        used = cpu_of(server), cpu_of(here.mongod)
        ready.set()
        seconds, took, accepted, size = queue.get(timeout=LIMIT_S)
        used = cpu_of(server) - used[0], cpu_of(here.mongod) - used[1]
        sender.join(10.0)
        if accepted != load.updates:
            sys.exit(
                f"only {accepted} of {load.updates} were accepted: {(here.folder / 'server.log').read_text()[-2_000:]}"
            )
        latency = np.quantile(np.array(took) * 1000, [0.5, 0.99, 1.0]).tolist()
        return found_of(here, port, load, seconds, size, latency, used)


def kafka(load: Load, min_devices: int) -> Found:
    """Let the server take updates off a topic that holds them all."""
    jars = PROJECT / ".jvm" / "jars" / "kafka"
    settings = KafkaSettings(port=free_port(), controller_port=free_port())
    with bench(min_devices) as here, ExitStack() as stack:
        stack.enter_context(embedded_broker(here.folder / "kafka", settings.port, settings.controller_port, jars))
        ensure_topics(settings.servers, settings)
        parts = bodies(load, np.random.default_rng(0))
        fill(settings.servers, parts, load.devices)
        environment = {**here.environment, "FLEAD_KAFKA__PORT": str(settings.port)}
        port, server = stack.enter_context(served(here.folder, **environment))
        wait_until(lambda: here.stored() > 0, 0.01)
        used = cpu_of(server), cpu_of(here.mongod)
        wait_until(lambda: here.stored() >= load.updates, 0.01)
        done = datetime.now(UTC)
        used = cpu_of(server) - used[0], cpu_of(here.mongod) - used[1]
        first = here.database.local_models.find_one({}, sort=[("received_at", 1)])
        if first is None:
            sys.exit("nothing was stored")
        seconds = (done - first["received_at"]).total_seconds()
        size = sum(map(len, parts)) / len(parts)
        wait_until(lambda: sum(counted(here.database, port)[:1]) >= load.updates)
        return found_of(here, port, load, seconds, size, None, used)


def fill(servers: str, parts: list[bytes], devices: int) -> None:
    """Put updates into the topic, keyed by device."""
    producer = make_producer(servers, **{"queue.buffering.max.kbytes": 1_048_576})
    for number, part in enumerate(parts):
        producer.produce(LOCAL_UPDATES, part, f"device-{number % devices + 1}")
        producer.poll(0)
    if producer.flush(60.0):
        sys.exit("the broker did not take all updates")


def found_of(
    here: Bench, port: int, load: Load, seconds: float, size: float, latency: list[float] | None,
    used: tuple[float, float],
) -> Found:  # fmt: skip
    """Put together what was measured, and count what is there."""
    total, rounds = counted(here.database, port)
    p50, p99, longest = latency or (None, None, None)
    return Found(
        updates=load.updates,
        parameters=architecture_of(load.parameters).parameter_count,
        body_bytes=round(size),
        seconds=seconds,
        per_s=load.updates / seconds,
        p50_ms=p50,
        p99_ms=p99,
        max_ms=longest,
        stored=here.database.local_models.count_documents({}),
        counted=total,
        rounds=rounds,
        server_cores=used[0] / seconds,
        mongod_cores=used[1] / seconds,
    )


def text_of(way: str, load: Load, found: Found) -> str:
    """The figures for people."""
    how = f"{load.connections} connections" if way == "rest" else "one topic"
    how += f", {load.encoding}{' packed with gzip' if load.packed else ''}, {found.body_bytes:,} bytes each"
    rows = [
        ("updates/s", found.per_s),
        ("latency p50, ms", found.p50_ms),
        ("latency p99, ms", found.p99_ms),
        ("latency at most, ms", found.max_ms),
        ("lost", found.lost),
        ("rounds made meanwhile", found.rounds),
        ("server, cores", f"{found.server_cores:.2f}"),
        ("mongod, cores", f"{found.mongod_cores:.2f}"),
    ]
    shown = table(("", "measured"), [row for row in rows if row[1] is not None])
    return (
        f"{found.updates:,} updates of {found.parameters:,} parameters of {load.devices:,} devices by {way}, {how}, in "
        f"{found.seconds:.1f} s; {describe()}.\n\n{shown}"
    )


def main() -> None:
    """Measure and print; exits 1 where an update was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=("rest", "kafka"))
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--devices", type=int, default=1_000)
    parser.add_argument("--parameters", type=int, default=1_000, help="of each update, about")
    parser.add_argument("--connections", type=int, default=32, help="rest: how many send at once")
    parser.add_argument("--encoding", choices=tuple(ENCODERS), default="json", help="rest: of the bodies")
    parser.add_argument("--gzip", action="store_true", help="rest: pack the bodies")
    parser.add_argument("--min-devices", type=int, default=10, help="that start a round")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if not 1 <= options.devices <= options.updates <= 200_000 or not 1 <= options.connections <= 512:
        parser.error("1 <= devices <= updates <= 200,000, and 1 to 512 connections")
    encoding, packed = (options.encoding, options.gzip) if options.way == "rest" else ("json", False)
    load = Load(options.updates, options.devices, options.parameters, options.connections, encoding, packed)
    found = (rest if options.way == "rest" else kafka)(load, options.min_devices)
    said = {"way": options.way, **asdict(load), **asdict(found), "lost": found.lost, "machine": describe()}
    print(json.dumps(said) if options.json else text_of(options.way, load, found))
    sys.exit(1 if found.lost else 0)


if __name__ == "__main__":
    main()
