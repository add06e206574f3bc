"""Measures the live console: `python -m benchmarks.console --write`.

Predictions of 1,000 devices at 5,000 a second go into a real broker, alarms among them, each of a device of its own.
The real `flead serve` reads them, and headless Chromium has the page open. Measured is from an alarm acknowledged by
Kafka to its line in the page's DOM, what the browser is sent and how long it is kept busy, what the server takes of a
core, and what becomes of `GET /api/status` meanwhile.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import psutil
from confluent_kafka import Message

from benchmarks.machine import describe
from benchmarks.report import keep, table, write
from config.child import ends_with_parent, free_port, stop
from config.settings import PROJECT, KafkaSettings
from kafka.client import make_producer
from kafka.embedded import embedded_broker
from kafka.topics import ALERTS, PREDICTIONS, ensure_topics
from visualization.browser import BROWSERS, OPTIONS, find_browser

SENSORS = ("humidity", "light", "temperature", "voltage")
TICK_S = 0.05
ALARMS_PER_S = 4.0
SETTLE_S = 8.0

WATCH = """
window.seen = {}; window.long = []; window.frames = 0;
const now = () => performance.timeOrigin + performance.now();
new MutationObserver((changes) => {
  for (const change of changes) for (const node of change.addedNodes) {
    if (node.nodeType !== 1) continue;
    const lines = node.matches("li[data-number]") ? [node] : node.querySelectorAll("li[data-number]");
    for (const line of lines) window.seen[line.querySelector(".who").firstChild.data] ??= now();
  }
}).observe(document, { subtree: true, childList: true });
new PerformanceObserver((list) => window.long.push(...list.getEntries().map((entry) => entry.duration)))
  .observe({ entryTypes: ["longtask"] });
const count = () => { window.frames += 1; requestAnimationFrame(count); };
requestAnimationFrame(count);
"""


def predictions(devices: int, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Predictions of a fleet, one device after the other, each 30 s apart."""
    levels = rng.normal([45.0, 300.0, 21.0, 2.6], [5.0, 80.0, 2.0, 0.1], (devices, 4))
    start, seen = datetime(2024, 1, 1, tzinfo=UTC), 100
    while True:
        noise = rng.normal(0.0, [0.2, 5.0, 0.05, 0.005], (2, devices, 4))
        moment = (start + timedelta(seconds=30 * seen)).isoformat()
        for number in range(devices):
            observed = dict(zip(SENSORS, (levels[number] + noise[0, number]).tolist(), strict=True))
            expected = dict(zip(SENSORS, (levels[number] + noise[1, number]).tolist(), strict=True))
            yield {
                "device_id": f"device-{number + 1}", "timestamp": moment, "cohort": "+".join(SENSORS),
                "samples_seen": seen, "model_version": 1 + seen // 100, "observed": observed, "expected": expected,
                "forecast": expected, "horizon_s": 600.0, "horizon": expected, "error": 0.4, "anomaly_score": 0.4,
                "sensor_scores": dict.fromkeys(SENSORS, 0.4), "is_anomaly": False, "sensor": None, "kind": None,
                "drift": False, "source": {"partition": 0, "offset": seen}, "produced_ms": int(time.time() * 1000) - 20,
            }  # fmt: skip
        seen += 1


def send(servers: str, devices: int, rate: float, done: Event, acknowledged: Any) -> None:
    """Send predictions and alarms until done; put each alarm's device and the time of its acknowledgement."""

    def note(_error: object, message: Message) -> None:
        acknowledged.put(((message.key() or b"").decode(), time.time() * 1000))

    rng = np.random.default_rng(0)
    producer = make_producer(servers)
    stream, alarms = predictions(devices, rng), 0
    begun = time.monotonic()
    sent = 0
    while not done.is_set():
        wanted = int((time.monotonic() - begun) * rate)
        for said in (next(stream) for _ in range(wanted - sent)):
            producer.produce(PREDICTIONS, orjson.dumps(said), said["device_id"])
        sent = wanted
        if (time.monotonic() - begun) * ALARMS_PER_S > alarms:
            alarms += 1
            name = f"alarm-{alarms}"
            said = {
                "device_id": name, "timestamp": datetime.now(UTC).isoformat(), "cohort": "+".join(SENSORS),
                "kind": "residual", "sensor": "temperature", "observed": 29.0, "expected": 21.0, "anomaly_score": 0.99,
            }  # fmt: skip
            producer.produce(ALERTS, orjson.dumps(said), name, on_delivery=note)
        producer.poll(0)
        time.sleep(TICK_S)
    producer.flush(5.0)


@dataclass
class Phase:
    """What was measured with so many pages open."""

    pages: int
    cpu: float
    status_ms: list[float]
    latencies_ms: list[float] = field(default_factory=list)
    longest_ms: float | None = None
    bytes_per_s: float | None = None
    frames_per_s: float | None = None
    missing: int = 0


@contextmanager
def served(folder: Path, kafka: KafkaSettings) -> Iterator[tuple[str, psutil.Process]]:
    """The real server on free ports; its address and process."""
    port = free_port()
    environment = {
        **os.environ, "FLEAD_RUN_DIR": str(folder), "FLEAD_KAFKA__PORT": str(kafka.port),
        "FLEAD_MONGODB__PORT": str(free_port()),
    }  # fmt: skip
    command = ends_with_parent([sys.executable, "-m", "orchestration", "serve", "--port", str(port)])
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=log, stderr=log)  # noqa: S603
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"{url}/api/status").raise_for_status()
                break
            except httpx.HTTPError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        yield url, psutil.Process(process.pid)
    finally:
        stop(process)


def ask(url: str, seconds: float) -> list[float]:
    """Ask for the status twenty times a second; how long each answer took, ms."""
    took = []
    with httpx.Client() as client:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            begun = time.perf_counter()
            client.get(f"{url}/api/status").raise_for_status()
            took.append((time.perf_counter() - begun) * 1000)
            time.sleep(0.05)
    return took


def measure(url: str, server: psutil.Process, pages: int, seconds: float, acknowledged: Any) -> Phase:
    """Open so many pages, let them settle, and measure."""
    from playwright.sync_api import sync_playwright

    executable = find_browser()
    if executable is None:
        raise SystemExit(f"no browser: one of {', '.join(BROWSERS)} must be on PATH")
    with ExitStack() as stack:
        browser = None
        opened, received = [], [0]
        if pages:
            playwright = stack.enter_context(sync_playwright())
            browser = playwright.chromium.launch(executable_path=executable, args=list(OPTIONS))
            stack.callback(browser.close)
            for _ in range(pages):
                page = browser.new_page()
                page.add_init_script(WATCH)
                page.on("websocket", lambda socket: socket.on("framereceived", lambda part: count(received, part)))
                page.goto(f"{url}/console/")
                page.wait_for_selector("li[data-number]")
                opened.append(page)
            opened[0].wait_for_timeout(SETTLE_S * 1000)
            for page in opened:
                page.evaluate("window.seen = {}; window.long = []; window.frames = 0")
        while not acknowledged.empty():
            acknowledged.get()
        received[0] = 0
        begun, cpu = time.monotonic(), sum(server.cpu_times()[:2])
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            asking = pool.apply_async(ask, (url, seconds))
            while not asking.ready():
                if opened:
                    opened[0].wait_for_timeout(100)
                else:
                    time.sleep(0.1)
            status_ms = asking.get()
        elapsed = time.monotonic() - begun
        phase = Phase(pages, (sum(server.cpu_times()[:2]) - cpu) / elapsed, status_ms)
        if not opened:
            return phase
        phase.bytes_per_s = received[0] / elapsed / pages
        opened[0].wait_for_timeout(2_000)  # those sent last may still be on their way
        known = {}
        while not acknowledged.empty():
            name, at = acknowledged.get()
            if at < (time.time() - 2.0) * 1000:
                known[name] = at
        longest = []
        for page in opened:
            seen, long, frames = page.evaluate("[window.seen, window.long, window.frames]")
            phase.latencies_ms += [seen[name] - at for name, at in known.items() if name in seen]
            phase.missing += sum(name not in seen for name in known)
            phase.frames_per_s = min(phase.frames_per_s or 1e9, frames / (elapsed + 2.0))
            longest += long
        phase.longest_ms = max(longest, default=None)
        return phase


def count(received: list[int], part: str | bytes) -> None:
    """Add up what a socket brought."""
    received[0] += len(part)


def text_of(phases: list[Phase], devices: int, rate: float) -> str:
    """The tables of the documentation."""

    def p(values: list[float], quantile: float) -> float | None:
        return float(np.percentile(values, quantile)) if values else None

    rows = [
        (
            phase.pages or "none", p(phase.latencies_ms, 50), p(phase.latencies_ms, 99),
            phase.longest_ms, phase.frames_per_s, phase.bytes_per_s and phase.bytes_per_s / 1024,
            f"{100 * phase.cpu:.0f} %", p(phase.status_ms, 50), p(phase.status_ms, 99),
        )
        for phase in phases
    ]  # fmt: skip
    header = (
        "pages open", "alarm to page, p50 ms", "p99 ms", "longest task in a page, ms", "frames/s", "KiB/s to each",
        "server, of one core", "`GET /api/status` p50 ms", "p99 ms",
    )  # fmt: skip
    alarms, missing = (sum(found) for found in zip(*((len(f.latencies_ms), f.missing) for f in phases), strict=True))
    return (
        f"{devices:,} devices, {rate:,.0f} predictions/s, {alarms} alarms seen, {missing} missed; "
        f"`python -m benchmarks.console --write` on {describe()}. Broker, producer, server and Chromium (which draws "
        f"without a GPU) share the cores. The first row is before anything flows.\n\n{table(header, rows)}"
    )


def main() -> None:
    """Measure, print, and write the table into docs/performance.md where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1_000)
    parser.add_argument("--rate", type=float, default=5_000.0, help="predictions per second")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each phase")
    parser.add_argument("--json", type=Path, help="keep the figures here")
    parser.add_argument("--write", action="store_true", help="put the table into docs/performance.md")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="flead-console-") as folder, ExitStack() as stack:
        kafka = KafkaSettings(port=free_port(), controller_port=free_port())
        jars = PROJECT / ".jvm" / "jars" / "kafka"
        stack.enter_context(embedded_broker(Path(folder, "kafka"), kafka.port, kafka.controller_port, jars))
        ensure_topics(kafka.servers, kafka)
        url, server = stack.enter_context(served(Path(folder), kafka))
        print(url, flush=True)
        acknowledged: Any = context.Queue()
        phases = [measure(url, server, 0, 5.0, acknowledged)]
        done = context.Event()
        arguments = (kafka.servers, options.devices, options.rate, done, acknowledged)
        sender = context.Process(target=send, args=arguments, daemon=True)
        sender.start()
        stack.callback(sender.join, 10.0)
        stack.callback(done.set)
        time.sleep(SETTLE_S)
        phases += [measure(url, server, pages, options.seconds, acknowledged) for pages in (0, 1, 3)]
    text = text_of(phases, options.devices, options.rate)
    print(text)
    keep(options.json, {"phases": [vars(phase) for phase in phases]})
    if options.write:
        write(PROJECT / "docs" / "performance.md", "console", text)


if __name__ == "__main__":
    main()
