"""Draws docs/running.svg, what a run looks like on a terminal: `python -m benchmarks.picture [--seconds 60]`."""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from rich.console import Console

from benchmarks.run import RunEnded, running
from config.settings import PROJECT
from orchestration.display import picture
from orchestration.status import Status

RATE = 1_000.0
WIDTH = 110
TITLE = "orchestration/run_all.sh"


def draw(status: Status, path: Path) -> None:
    """Save a status as SVG, without the paths of this machine."""
    status.run_dir = "run"
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(picture(status))
    console.save_svg(str(path), title=TITLE)


def main() -> None:
    """Run on simulated readings and draw the last look before their end."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to send")
    options = parser.parse_args()
    last: Status | None = None
    try:
        with running(RATE, options.seconds) as run:
            for status in run.statuses():
                last = status if status.state == "running" else last
            run.summary()
    except RunEnded as error:
        raise SystemExit(str(error)) from None
    if last is None:
        raise SystemExit("the run was over before it could be looked at: give more --seconds")
    path = PROJECT / "docs" / "running.svg"
    draw(last, path)
    print(path.relative_to(PROJECT))


if __name__ == "__main__":
    main()
