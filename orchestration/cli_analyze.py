"""The subcommands of `flead analyze`: reports over the whole history, and analytics of the running stream."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from flead.errors import BadConfiguration, FleadError
from orchestration.cli_common import Json, RunDir, out, progress, quiet, say, settings_for
from orchestration.files import output_file

app = typer.Typer(
    help="Reports over the whole history (batch), and analytics of the running stream (stream).", no_args_is_help=True
)


@app.command()
def batch(
    report: Annotated[Path, typer.Option("--report", metavar="DIR", help="Where report.html, .pdf and .json go.")],
    data: Annotated[
        str | None,
        typer.Option("--data", help="A file of readings, or `kafka` for its topic; default: all that MongoDB holds."),
    ] = None,
    versions: Annotated[
        str | None, typer.Option(metavar="1,2,...", help="Global models to judge; default: every one stored.")
    ] = None,
    run_dir: RunDir = None,
    as_json: Json = False,
) -> None:
    """Report on all readings: quality, statistics, correlation, every global model, drift, who needs attention.

    A day that is done is not done again: run it as often as you like, kill it when you like.
    """
    from orchestration.analyzing import Request, analyze
    from visualization.report import report_page, report_pdf

    settings = settings_for(run_dir)
    quiet()
    _check_folder(report)
    with progress() as advance:
        made = analyze(Request(data, _numbers(versions)), settings, advance)
        advance("drawing report.html", None)
        page = report_page(made.report)
        advance("drawing report.pdf", None)
        pdf = report_pdf(page)
    report.mkdir(parents=True, exist_ok=True)
    parts = {"report.json": json.dumps(made.report, indent=1).encode(), "report.html": page.encode(), "report.pdf": pdf}
    for name, raw in parts.items():
        with output_file(report / name) as temporary:
            temporary.write_bytes(raw)
    if as_json:
        summary = {"units": made.units, "done": made.done, "durations_s": made.durations_s, "report": str(report)}
        typer.echo(json.dumps(summary))
        return
    for remark in made.report["remarks"]:
        say(f"note: {remark}")
    out.print(
        f"{made.report['readings']:,} readings of {len(made.report['devices'])} devices on "
        f"{len(made.report['days'])} days; {made.done} of {made.units} days were new; "
        f"{len(made.report['evaluation'])} global models judged",
        highlight=False,
    )
    say(f"written: {report / 'report.html'}, report.pdf, report.json")


@app.command()
def stream(run_dir: RunDir = None) -> None:
    """Store what flows, score it by the current global model, sum it up by minute, hour and day, find shared anomalies.

    Runs until it is stopped; killed at any moment it goes on where it was.
    """
    from orchestration.analyzing import spark_home
    from orchestration.cli_common import stop_event
    from spark.streaming import run

    settings = settings_for(run_dir)
    os.nice(10)  # what is stored a moment later harms nobody; a prediction that is late does
    run(settings, spark_home(settings), stop_event().is_set)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise BadConfiguration(f"--versions takes numbers with commas between them, not {text!r}") from None


def _check_folder(folder: Path) -> None:
    """Refuse a place where no report can be written before the work, not after it."""
    if folder.exists() and not folder.is_dir():
        raise FleadError(f"{folder} is a file: name a folder with --report")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FleadError(f"{folder} cannot be made ({error.strerror}): name another folder with --report") from None
