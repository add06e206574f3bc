"""What each rule of adoption is worth on Intel Lab days: `python -m benchmarks.personalisation [--json OUT] [--write]`.

Lets the 52 motes stream through three days and a fourth, on which they are judged, once under each `learner.adoption`,
as `flead evaluate --personalisation` does; each of the four days is the judged one once (where it is not the last, its
clocks are shifted to come a week later). The tables go into `docs/personalisation.md`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.detection.data import folder, intel_days
from benchmarks.forecasting import series_of
from benchmarks.machine import describe
from benchmarks.report import keep, table, write
from config.settings import PROJECT
from flead.learner_config import LearnerConfig
from flead.personalisation import compare_rules

PAGE = PROJECT / "docs" / "personalisation.md"
MARCH = (4, 5, 6, 7)
TESTED = {7: "Sunday 7 March", 6: "Saturday 6 March", 5: "Friday 5 March", 4: "Thursday 4 March"}
PROXIMAL = 1.0
HORIZONS = ("next", "10min")


def _table(found: dict[str, Any], held: dict[str, Any], day: int) -> str:
    """Mean skill by rule, in percent, of devices and of newcomers; and of `mix` with a proximal term."""
    header = (f"Tested on {TESTED[day]}: skill over persistence, %", "next", "10 min")
    rows = []
    for name, rule, figures in (*((rule, rule, found) for rule in found["rules"]), (_HELD, "mix", held)):
        means = [100.0 * figures[who]["mean_skill"][h][rule] for who in ("devices", "newcomers") for h in HORIZONS]
        taken = figures["taken"][rule]
        rows.append((name, *means, 100.0 * taken if taken == taken else None))  # not NaN
    return table((*header, "next, newcomer", "10 min, newcomer", "models taken, %"), rows)


_HELD = f"mix, proximal {PROXIMAL:g}"


def main() -> None:
    """Judge every rule on every day, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.personalisation", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure there")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/personalisation.md")
    asked = parser.parse_args()
    frames = intel_days(next((folder() / "intel-lab").glob("data_*.txt.gz")))
    report: dict[str, Any] = {"machine": describe()}
    tables, sensors = [], frames[0].sensors
    for day, name in TESTED.items():
        train = series_of(frames, tuple(other for other in MARCH if other != day))
        test = series_of(frames, (day,), 0.0 if day == max(MARCH) else 7.0)
        found = compare_rules(train, test, sensors, LearnerConfig()).as_dict()
        held = compare_rules(train, test, sensors, LearnerConfig(proximal=PROXIMAL), rules=("mix",)).as_dict()
        report[name] = {"rules": found, _HELD: held}
        tables.append(_table(found, held, day))
        print(tables[-1], end="\n\n", flush=True)
    keep(asked.json, report)
    if asked.write:
        text = "\n\n".join(tables)
        write(PAGE, "personalisation", text + f"\n\n`python -m benchmarks.personalisation --write` on {describe()}.")


if __name__ == "__main__":
    main()
