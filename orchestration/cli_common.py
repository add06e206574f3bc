"""What the subcommands share: their options, the settings they run under, and how they talk to people.

The `cli*.py` modules import the project inside the commands, not at their head: `flead --help` must not wait for
numpy, Kafka's client or the settings.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from config.settings import Settings

out = Console(width=None if sys.stdout.isatty() else 120)
"""For results."""
err = Console(stderr=True)
"""For progress, remarks and errors."""

INTEL_LAB = "intel-lab"

RunDir = Annotated[
    Path | None, typer.Option("--run-dir", help="Everything a run writes: logs, databases, checkpoints.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for scripts.")]
Data = Annotated[
    str,
    typer.Option(
        "--data", help="A file of readings (Intel Lab, CSV, JSON lines; gzip or plain), `simulated`, or `intel-lab`."
    ),
]
Rate = Annotated[float, typer.Option("--rate", min=0, help="Readings per second; 0: as fast as it goes.")]
Devices = Annotated[int, typer.Option("--devices", min=1, help="Size of the simulated fleet.")]
Loop = Annotated[bool, typer.Option("--loop/--once", help="Begin again at the end of the file, with shifted dates.")]
ForS = Annotated[
    float | None,
    typer.Option("--for", min=0, help="Stop by itself after so many seconds, counted from the first reading sent."),
]


def settings_for(run_dir: Path | None) -> Settings:
    """The settings, also for the child processes: a given run folder wins over theirs."""
    from config.settings import load_settings, strangers

    if run_dir is not None:
        os.environ["FLEAD_RUN_DIR"] = str(run_dir.expanduser().absolute())
    if os.environ.get("FLEAD_CONFIG"):  # services run in folders of their own
        os.environ["FLEAD_CONFIG"] = str(Path(os.environ["FLEAD_CONFIG"]).expanduser().absolute())
    settings = load_settings()
    for variable, meant in strangers():
        say(f"warning: {variable} means nothing to FLEAD{meant}")
    return settings


def find_data(data: str, settings: Settings) -> str:
    """What `--data` means: the simulator, the public file (fetched once), or a path, made absolute."""
    from data.sources import open_dataset

    if data == "simulated":
        return data
    if data == INTEL_LAB:
        return str(fetch_intel_lab(intel_lab_path(settings)))
    path = Path(data).expanduser().absolute()
    open_dataset(path)  # what is no file of readings is refused before anything starts
    return str(path)


def intel_lab_path(settings: Settings) -> Path:
    """Where the public file lies unless told otherwise."""
    return settings.run_dir / "data" / "intel-lab.txt.gz"


def fetch_intel_lab(path: Path) -> Path:
    """Have the public file at `path`; what is there already is not fetched again."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    from data.download import download_intel_lab

    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err) as progress:
        task = progress.add_task("Intel Lab readings", total=None)
        return download_intel_lab(
            path, on_progress=lambda done, total: progress.update(task, completed=done, total=total)
        )


@contextmanager
def bar(title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing elsewhere; without a total it only shows that something goes on."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def progress() -> Iterator[Callable[[str, float | None], None]]:
    """A bar on a terminal, nothing elsewhere; called with what is done and its share, None where that is not known."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as progress:
        task = progress.add_task("", total=None)

        def advance(what: str, share: float | None) -> None:
            total = None if share is None else 1.0
            progress.update(task, description=what, total=total, completed=share or 0.0)

        yield advance


def say(line: str) -> None:
    """One line for people, as it is: what it quotes is no markup."""
    if line:
        err.print(Text(line), soft_wrap=True)


def quiet() -> None:
    """Say nothing of servers that start and end for the time being: it is not this command's news."""
    logging.getLogger().setLevel(logging.WARNING)


def stop_event() -> threading.Event:
    """Set by SIGTERM and SIGINT."""
    event = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: event.set())
    return event
