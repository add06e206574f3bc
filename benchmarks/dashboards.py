"""Superset over a mart of a million predictions, and how long its set-up and its start take.

::

    python -m benchmarks.dashboards [--predictions 1000000] [--json FILE] [--write]

The predictions are drawn (seeded) and copied straight into PostgreSQL; what else dashboards show stays empty. Every
chart over predictions is asked again and again, past Superset's cache; then ten at once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe
from benchmarks.report import keep, table, write
from config.child import ends_with_parent, free_port, stop
from config.settings import PROJECT, DashboardSettings, MartSettings, Settings
from flead.errors import Unavailable
from visualization.mart import schema
from visualization.mart.connection import Connection, connect
from visualization.mart.server import address, embedded_postgres
from visualization.superset import assets, service
from visualization.superset.check import filters_at_first
from visualization.superset.client import Superset
from visualization.superset.questions import context_of

DEVICES = 54
INTERVAL_S = 31.0
ROUNDS = 10
AT_ONCE = 10
SEED = 7
START_LIMIT_S = 300.0


@dataclass
class Report:
    """What was measured: s."""

    machine: str
    predictions: int
    first_start_s: float
    second_start_s: float
    charts: dict[str, float]
    """Title → 95th percentile."""
    all_p95_s: float
    ten_at_once_s: float


def fill(connection: Connection, predictions: int) -> None:
    """Put predictions of a fleet into the mart, two sensors each."""
    rng = np.random.default_rng(SEED)
    start = 1_078_099_200.0  # 1 March 2004
    columns = "id, device_id, timestamp, cohort, error, anomaly_score, is_anomaly, sensor, kind, drift, model_version"
    with connection.cursor() as cursor, cursor.copy(f"COPY mart.predictions ({columns}) FROM STDIN") as copy:
        for number in range(predictions):
            device, slot = number % DEVICES, number // DEVICES
            strange = bool(rng.random() < 0.005)
            copy.write_row((
                f"mote-{device}@{slot}", f"mote-{device}", _at(start, slot), "humidity+temperature",
                rng.random(), rng.random(), strange, "humidity" if strange else None, "spike" if strange else None,
                False, slot // 200,
            ))  # fmt: skip
    connection.execute(
        "INSERT INTO mart.predictions_sensors (id, sensor, device_id, timestamp, observed, expected) "
        "SELECT id, one, device_id, timestamp, 20 + error, 20 FROM mart.predictions, "
        "unnest(ARRAY['humidity', 'temperature']) AS one"
    )
    connection.execute(
        "INSERT INTO mart.alerts (id, device_id, timestamp, cohort, kind, sensor, anomaly_score) "
        "SELECT id, device_id, timestamp, cohort, kind, sensor, anomaly_score FROM mart.predictions WHERE is_anomaly"
    )
    connection.execute("VACUUM ANALYZE")


def _at(start: float, slot: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S+00", time.gmtime(start + slot * INTERVAL_S))


@contextmanager
def served(settings: Settings) -> Iterator[float]:
    """A Superset that answers, and how long that took, s."""
    service.prepare(settings)
    began = time.perf_counter()
    with (settings.run_dir / "superset.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603  # the command line is ours
            ends_with_parent(service.command(settings)),
            env={**os.environ, **service.environment(settings)}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        while True:
            try:
                service.ready(settings)
                break
            except Unavailable:
                if process.poll() is not None or time.perf_counter() - began > START_LIMIT_S:
                    raise
                time.sleep(0.1)
        yield time.perf_counter() - began
    finally:
        stop(process)


def questions(superset: Superset) -> dict[str, dict[str, Any]]:
    """What a browser asks for each chart over predictions, by dashboard and title."""
    files = assets.read().values()
    over = {one["uuid"] for one in files if one.get("table_name") in ("predictions", "devices", "readings")}
    titles = {one["slice_name"] for one in files if one.get("dataset_uuid") in over}
    found = {}
    for dashboard in superset.dashboards():
        first = list(filters_at_first(superset, dashboard))
        for chart in superset.charts(dashboard["id"]):
            more = [one for one, excluded in first if chart["id"] not in excluded]
            if chart["slice_name"] in titles:
                title = f"{dashboard['dashboard_title']}: {chart['slice_name']}"
                found[title] = context_of(chart["form_data"], more, force=True)
    return found


def measure(superset: Superset, predictions: int) -> tuple[dict[str, list[float]], float]:
    """The times of each chart, s, and the time of ten at once, the median of a few."""
    asked = questions(superset)
    times: dict[str, list[float]] = {title: [] for title in asked}
    for _ in range(ROUNDS):
        for title, context in asked.items():
            began = time.perf_counter()
            superset.ask(context)
            times[title].append(time.perf_counter() - began)
    together = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in range(5):
            ten = (list(asked.values()) * AT_ONCE)[:AT_ONCE]
            began = time.perf_counter()
            list(pool.map(superset.ask, ten))
            together.append(time.perf_counter() - began)
    return times, float(np.median(together))


def run(predictions: int) -> Report:
    """All of it, in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="flead-dashboards-") as name:
        settings = Settings(
            run_dir=Path(name),
            mart=MartSettings(port=free_port()),
            dashboards=DashboardSettings(port=free_port()),
        )
        with embedded_postgres(settings.run_dir, settings.mart):
            with connect(address(settings.mart, settings.run_dir)) as connection:
                schema.ensure(connection)
                with served(settings) as first:
                    pass
                fill(connection, predictions)
            with (
                served(settings) as second,
                Superset(settings.dashboards.url, service.ADMIN, service.admin_password(settings)) as superset,
            ):
                times, at_once = measure(superset, predictions)
    charts = {title: float(np.percentile(of_one, 95)) for title, of_one in times.items()}
    everything = float(np.percentile([one for of_one in times.values() for one in of_one], 95))
    return Report(describe(), predictions, first, second, charts, everything, at_once)


def text(report: Report) -> str:
    """For people."""
    rows = [(title, seconds * 1_000) for title, seconds in sorted(report.charts.items(), key=lambda one: -one[1])]
    return "\n\n".join([
        f"{report.predictions:,} predictions of {DEVICES} devices, each with two sensors, on {report.machine}; "
        f"`python -m benchmarks.dashboards`. Superset is ready {report.first_start_s:.0f} s after its first start "
        f"(database, administrator, dashboards) and {report.second_start_s:.0f} s after the next. A chart over all "
        f"predictions, past the cache: 95 of 100 answers within {report.all_p95_s * 1_000:.0f} ms; ten at once: all "
        f"after {report.ten_at_once_s:.2f} s.",
        table(("chart", "p95, ms"), rows),
    ])  # fmt: skip


def main() -> None:
    """Measure, print, and write where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--write", action="store_true", help="put it into docs/performance.md")
    options = parser.parse_args()
    report = run(options.predictions)
    keep(options.json, asdict(report))
    print(text(report))
    if options.write:
        write(PROJECT / "docs" / "performance.md", "dashboards", text(report))


if __name__ == "__main__":
    main()
