"""What forecasts are worth on Intel Lab days: `python -m benchmarks.forecasting [--json OUT] [--write]`.

Trains every method on 4-6 March and tests it on 7 March, as `flead evaluate` does, and puts the tables into
`docs/learning.md`. 7 March is a Sunday: quiet, and easier ten minutes ahead than a weekday, so the second table tests
on Friday 5 March what was trained on the other three days (their clocks shifted to come before it).
"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks.detection.__main__ import LEARNING
from benchmarks.detection.data import folder, intel_days
from benchmarks.machine import describe
from benchmarks.report import keep, table, write
from data.frames import Frame
from flead.evaluation import COLD_METHODS, METHODS, Plan, Series, evaluate
from flead.learner_config import LearnerConfig

SPLITS = {
    "4-6 March, tested on Sunday 7 March": ((4, 5, 6), 7),
    "4, 6, 7 March, tested on Friday 5 March": ((4, 6, 7), 5),
}
DAY = 86_400.0


def series_of(frames: list[Frame], days: tuple[int, ...], shift_days: float = 0.0) -> list[Series]:
    """These days of March 2004 of every mote."""
    out = []
    for frame in frames:
        starts = [datetime(2004, 3, day, tzinfo=UTC).timestamp() for day in days]
        parts = [frame.between(start, start + DAY) for start in starts]
        times = np.concatenate([part.times for part in parts]) + DAY * shift_days
        out.append(Series(frame.device, times, np.concatenate([part.values for part in parts])))
    return out


def _tables(found: dict[str, Any], title: str) -> str:
    """Mean skill by method, personalised by sensor, and the cold start, in percent."""
    mean, horizons = found["mean_skill"], ("next", "10min")
    rows = [(method, *(100.0 * mean[h][method] for h in horizons)) for method in METHODS]
    rows += [(f"cold start, {m}", *(100.0 * mean["cold_start"][h][m] for h in horizons)) for m in COLD_METHODS[1:]]
    rows += [
        (f"personalised, {sensor}", *(100.0 * found["skill"][h][sensor]["personalised"] for h in horizons))
        for sensor in found["sensors"]
    ]
    return table((f"Trained on {title}: skill over persistence, %", "next", "10 min"), rows)


def main() -> None:
    """Run both splits, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forecasting", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every figure there")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/learning.md")
    asked = parser.parse_args()
    path = next((folder() / "intel-lab").glob("data_*.txt.gz"))
    frames, tables = intel_days(path), []
    report: dict[str, Any] = {"machine": describe()}
    console = Console(stderr=True)
    for title, (train, test) in SPLITS.items():
        with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
            task = progress.add_task(title, total=1.0)
            later = 7.0 if test < max(train) else 0.0
            found = evaluate(
                series_of(frames, train), series_of(frames, (test,), later), frames[0].sensors, LearnerConfig(), Plan(),
                lambda what, share: progress.update(task, completed=share, description=what),  # noqa: B023  # called within this turn only
            ).as_dict()  # fmt: skip
        report[title] = found
        tables.append(_tables(found, title))
        print(tables[-1], end="\n\n", flush=True)
    keep(asked.json, report)
    if asked.write:
        text = "\n\n".join(tables)
        write(LEARNING, "forecasting", text + f"\n\n`python -m benchmarks.forecasting --write` on {describe()}.")


if __name__ == "__main__":
    main()
