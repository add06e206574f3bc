"""Seconds until each service is back after kill -9: `python -m benchmarks.recovery [--rate 1000] [--json OUT]`.

Back means: the service runs under another pid, learners have taken up more than 500 readings that came after the kill,
the lag is below two seconds' worth of readings, and (for all but the producer) there was another round; after a kill of
analytics or MongoDB also that more than 500 readings more are stored.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from benchmarks.report import keep, table
from benchmarks.run import RunEnded, Running, running, written
from kafka.topics import READINGS
from orchestration.status import Status

VICTIMS = ("server", "taskmanager", "jobmanager", "kafka", "mongodb", "analytics", "learner", "producer")
LIMIT_S = 120.0
SETTLE_S = 5.0
MORE = 500
"""Readings beyond those before the kill that count as work done again."""


@dataclass(frozen=True)
class Kill:
    """What was known when a service was killed.

    Attributes
    ----------
    produced:
        readings sent until then
    at:
        Unix time, s
    """

    name: str
    pid: int
    before: Status
    produced: float
    at: float
    rate: float

    def is_over(self, status: Status) -> bool:
        """Whether the service is back, and the readings flow as before."""
        service, counts, before = status.services[self.name], status.counts, self.before.counts
        return (
            service["state"] == "running"
            and service["pid"] not in (None, self.pid)
            and counts["taken_up"] > self.produced + MORE
            and status.lag[READINGS] < 2 * self.rate
            and (self.name == "producer" or counts["rounds"] > before["rounds"])
            and (self.name not in ("analytics", "mongodb") or counts["device_data"] > before["device_data"] + MORE)
        )


def kill(run: Running, victim: str, rate: float) -> dict[str, Any]:
    """Kill one service and wait until it is back; what it cost is counted until the next kill."""
    before = run.wait_for(lambda status: _pid(status, victim) is not None, LIMIT_S)
    if before is None:
        return {"killed": victim, "seconds": None, "repeated": None, "fell": None}
    name, pid = _pid(before, victim) or ("", 0)
    os.kill(pid, signal.SIGKILL)
    now = time.time()
    produced = before.counts["readings"] + rate * (now - written(before))
    death = Kill(name, pid, before, produced, now, rate)
    back = run.wait_for(death.is_over, LIMIT_S)
    seconds = written(back) - now if back else None
    time.sleep(SETTLE_S)
    after = run.wait_for(lambda _: True, LIMIT_S) or back or before
    return {
        "killed": victim,
        "seconds": seconds,
        "repeated": after.counts["predictions_repeated"] - before.counts["predictions_repeated"],
        "fell": after.counts["update_counters_fell"] - before.counts["update_counters_fell"],
    }


def _pid(status: Status, victim: str) -> tuple[str, int] | None:
    """The service of that name (the first, where there are several) and its process, if it runs."""
    for name, service in status.services.items():
        if name in (victim, f"{victim}-1") and service["state"] == "running" and service["pid"]:
            return name, service["pid"]
    return None


def main() -> None:
    """Kill one service after another in one run, and print the table and the run's verdict."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rate", type=float, default=1_000.0, help="readings per second, simulated")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write all of it here as JSON")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    checks: dict[str, dict[str, Any]] = {}
    try:
        with running(options.rate, None) as run:
            print("starting, then waiting for two rounds", file=sys.stderr)
            if run.wait_for(lambda status: status.counts.get("rounds_this_run", 0) >= 2, 3 * LIMIT_S) is None:
                raise SystemExit(f"there were no two rounds within {3 * LIMIT_S:g} s")
            for victim in VICTIMS:
                rows.append(kill(run, victim, options.rate))
                print(f"{victim}: {_seconds(rows[-1])}", file=sys.stderr)
            run.end()
            checks = run.summary().checks
    except RunEnded as error:  # what was measured before still counts
        print(error, file=sys.stderr)
    machine = describe()
    keep(options.json, {"machine": machine, "rate": options.rate, "kills": rows, "checks": checks})
    print(f"{machine}\nReadings: simulated, {options.rate:g} per second\n")
    header = ("killed", "seconds until back", "readings predicted again", "counters that fell")
    print(table(header, [(row["killed"], _seconds(row), row["repeated"], row["fell"]) for row in rows]))
    found = [(name, "ok" if check["ok"] else "FAILED", check["detail"]) for name, check in checks.items()]
    print("", table(("check", "verdict", "what was found"), found), sep="\n")
    all_back = len(rows) == len(VICTIMS) and all(row["seconds"] is not None for row in rows)
    sys.exit(0 if all_back and checks and all(check["ok"] for check in checks.values()) else 1)


def _seconds(row: dict[str, Any]) -> str:
    return f"not within {LIMIT_S:g}" if row["seconds"] is None else f"{row['seconds']:.1f}"


if __name__ == "__main__":
    main()
