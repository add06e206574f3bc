"""Lag and latency of the whole pipeline at several rates: `python -m benchmarks.pipeline`.

python -m benchmarks.pipeline [--rates 10,100,1000,2000,5000] [--seconds 60] [--data PATH|simulated]
                              [--without analytics,dashboards] [--json OUT]

A rate is sustained where the lag does not grow from one third of the sending to its end. The lag is that of what can
be seen from outside, so about half a second's worth of readings is always on its way.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.report import keep, table
from benchmarks.run import RunEnded, data_named, public_or_simulated, running, written
from kafka.topics import READINGS
from orchestration.status import Status


def measure(rate: float, seconds: float, data: str, without: list[str]) -> dict[str, Any]:
    """One run at one rate."""
    lags: dict[str, int | None] = {"one_third": None, "two_thirds": None}
    last: Status | None = None
    left_out = [option for part in without for option in ("--without", part)]
    with running(rate, seconds, data, *left_out) as run:
        for status in run.statuses():
            first_ms = status.producer.get("first_sent_ms")
            if status.state != "running" or first_ms is None:
                continue
            last = status  # in the end, the last look before the sending ended
            sending_s = written(status) - first_ms / 1000
            for name, share in (("one_third", 1 / 3), ("two_thirds", 2 / 3)):
                if lags[name] is None and sending_s >= share * seconds:
                    lags[name] = status.lag.get(READINGS)
        summary = run.summary()
        exit_code = run.process.returncode
    return {
        "rate": rate,
        "seconds": seconds,
        "readings": summary.counts["readings"],
        "taken_up": summary.counts["taken_up"],
        "lag": {**lags, "end": last.lag.get(READINGS) if last else None},
        "latency_ms": last.latency_ms if last else {},
        "timings_s": summary.timings_s,
        "exit_code": exit_code,
        "failed": {name: check["detail"] for name, check in summary.checks.items() if not check["ok"]},
    }


def main() -> None:
    """Measure each rate and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rates", default="10,100,1000,2000,5000", help="readings per second")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to send at each rate")
    parser.add_argument(
        "--data", help="a file of readings or `simulated`; default: the Intel Lab's where they lie here"
    )
    parser.add_argument("--without", default="", help="parts that `flead up` is to leave out, commas between them")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all of it here as JSON")
    options = parser.parse_args()
    try:
        rates = [float(rate) for rate in options.rates.split(",")]
    except ValueError:
        parser.error(f"--rates {options.rates}: give numbers with commas between them")
    without = [part for part in options.without.split(",") if part]
    data = data_named(options.data) if options.data else public_or_simulated()
    machine, source = describe(), Path(data).name
    rows: list[dict[str, Any]] = []
    for number, rate in enumerate(rates, start=1):
        print(f"{number}/{len(rates)}: {rate:g} readings per second for {options.seconds:g} s", file=sys.stderr)
        try:
            rows.append(measure(rate, options.seconds, data, without))
        except RunEnded as error:  # the other rates still count
            print(f"{rate:g} per second is left out: {error}", file=sys.stderr)
        keep(options.json, {"machine": machine, "data": source, "rates": rows})
    print(f"{machine}\nReadings: {source}\nLeft out: {', '.join(without) or 'nothing'}\n")
    print(_lags(rows), _starts(rows), sep="\n\n")
    for row in rows:
        for name, detail in row["failed"].items():
            print(f"\n{row['rate']:g} per second, {name}: {detail}")


def _lags(rows: list[dict[str, Any]]) -> str:
    header = ("rate", "seconds", "readings", "lag at 1/3", "at 2/3", "at the end", "p50, ms", "p99, ms", "well")
    return table(
        header,
        [
            (
                f"{row['rate']:,g}",
                f"{row['seconds']:g}",
                row["readings"],
                *row["lag"].values(),
                row["latency_ms"].get("p50"),
                row["latency_ms"].get("p99"),
                "yes" if row["exit_code"] == 0 else f"no ({row['exit_code']})",
            )
            for row in rows
        ],
    )


def _starts(rows: list[dict[str, Any]]) -> str:
    names = ("servers_ready", "job_running", "first_round")
    return table(
        ("rate", "servers ready, s", "job running, s", "first round, s"),
        [(f"{row['rate']:,g}", *(row["timings_s"].get(name) for name in names)) for row in rows],
    )


if __name__ == "__main__":
    main()
