"""The subcommands that learn from files, without a run: `flead evaluate`, `flead detect`, `flead export`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flead.errors import BadConfiguration
from orchestration.cli_common import Json, RunDir, out, progress, quiet, say, settings_for
from orchestration.files import check_writable, output_file

if TYPE_CHECKING:
    from rich.table import Table

    from flead.learner_config import LearnerConfig

app = typer.Typer()


@app.command()
def evaluate(
    train: Annotated[list[Path], typer.Option("--train", help="A file of readings to learn from. Repeatable.")],
    test: Annotated[list[Path], typer.Option("--test", help="A file of later readings to test on. Repeatable.")],
    train_days: Annotated[
        str | None, typer.Option(metavar="FROM..TO", help="Learn from these days only (UTC, both inclusive).")
    ] = None,
    test_days: Annotated[
        str | None, typer.Option(metavar="FROM..TO", help="Test on these days only; the file may be the same.")
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write all figures as JSON; - prints them.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--page", metavar="OUT.html", help="Write one HTML page with pictures.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, max=10_000, help="Rounds of the federation; default 48.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same figures.")] = 0,
    plausible: Annotated[
        bool,
        typer.Option("--plausible/--all-values", help="Take values that no Intel Lab sensor can have as missing."),
    ] = True,
    personalisation: Annotated[
        bool,
        typer.Option("--personalisation", help="Also let a fleet stream through the days by each learner.adoption."),
    ] = False,
) -> None:
    """Compare federated, local and centralised learning on recorded days: who forecasts later days best."""
    from orchestration.evaluating import Days, Request, compare

    settings = settings_for(None)
    request = Request(
        train=tuple(train),
        test=tuple(test),
        train_days=Days.parse(train_days, "--train-days") if train_days is not None else None,
        test_days=Days.parse(test_days, "--test-days") if test_days is not None else None,
        plausible=plausible,
        rounds=rounds,
        seed=seed,
        personalisation=personalisation,
    )
    printed = as_json is not None and str(as_json) == "-"
    for path in (page, None if printed else as_json):
        if path is not None:
            check_writable(path, *train, *test)
    with progress() as advance:
        found = compare(request, settings.learner, advance)
    for remark in found.remarks:
        say(f"warning: {remark}")
    if as_json is not None and not printed:
        with output_file(as_json) as temporary:
            temporary.write_text(found.to_json())
    if page is not None:
        from visualization.plots import evaluation_page

        with output_file(page) as temporary:
            temporary.write_text(evaluation_page(found.report, found.forecasts), encoding="utf-8")
    if printed:
        typer.echo(found.to_json(), nl=False)
        return
    _print_evaluation(found.report)
    for path in (as_json, page):
        if path is not None:
            say(f"written: {path}")


@app.command()
def detect(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="A file of readings: CSV with a `timestamp`, or another known format.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write: one line for each record read.")],
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the readings, alarms and scores: .png, .svg or .html.")
    ] = None,
    false_alarms_per_day: Annotated[
        float | None, typer.Option(help="False alarms accepted of a device, per day; default: as configured.")
    ] = None,
    sensors: Annotated[
        str | None, typer.Option(metavar="A,B", help="Columns to look at; default: all numbers.")
    ] = None,
    ignore: Annotated[
        str | None, typer.Option(metavar="C,D", help="Columns to leave out, for instance a label.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Add which sensor was strangest, how, and what was expected.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find anomalies in a file, record by record in time order, as the stream would."""
    from orchestration.detecting import Choice
    from orchestration.detecting import detect as run

    if plot is not None:
        from visualization.plots import check_suffix

        check_suffix(plot.suffix.lower())
    choice = Choice(_names(sensors), _names(ignore))
    settings = settings_for(None)
    config = _with_false_alarms(settings.learner, false_alarms_per_day)
    for path in (output, plot):
        if path is not None:
            check_writable(path, source)
    with output_file(output) as temporary, progress() as advance:
        report, tracks = run(
            source,
            temporary,
            config,
            choice,
            lambda what, done, total: advance(f"{what} {done:,}" if done else what, done / total if total else None),
            largest=settings.reading.max_abs_value,
            explain=explain,
        )
    if plot is not None:
        from visualization.plots import Alarms, alarms_file

        shown = [
            Alarms(t.frame.device, t.frame.sensors, t.frame.times, t.frame.values, t.score, t.is_anomaly, t.sensor)
            for t in tracks
        ]
        with output_file(plot) as temporary:
            temporary.write_bytes(alarms_file(shown, plot.suffix.lower(), f"FLEAD: anomalies in {source.name}"))
    if report.rejected:
        say(f"lines that are no reading and score 0: {report.rejected:,}; the first, {report.first_rejected}")
    for name in report.labels:
        say(f"{name} was taken as a sensor: if it is a label, leave it out with --ignore {name}")
    if as_json:
        typer.echo(json.dumps(report.as_dict()))
    else:
        say(report.summary())


@app.command()
def export(
    device: Annotated[str, typer.Option("--device", help="Whose model.")],
    form: Annotated[str, typer.Option("--format", help="tflite, tflite-int8, onnx or npz.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            help="Learn from the device's readings in this file; with --run-dir: calibrate the run's model on them.",
        ),
    ] = None,
    run_dir: RunDir = None,
    as_json: Json = False,
) -> None:
    """Write a device's model for another runtime: the newest one of a run, or one made from a file of readings."""
    from orchestration.exporting import Form, export_model, from_data, from_run, with_samples

    if form not in list(Form):
        raise BadConfiguration(f"--format knows {', '.join(Form)}, not {form}")
    settings = settings_for(run_dir)
    quiet()
    check_writable(output, *([data] if data else []))
    model = None if data is not None and run_dir is None else from_run(settings, device)
    if data is not None:
        with progress() as advance:
            learnt = from_data(data, device, settings.learner, lambda done: advance(f"reading {done:,}", None))
        model = learnt if model is None else with_samples(model, learnt)
    assert model is not None  # noqa: S101  # one of the two was taken
    exported = export_model(model, Form(form))
    with output_file(output) as temporary:
        temporary.write_bytes(exported.raw)
    agreed, inputs = exported.agreement, "its own" if exported.own_samples else "random"
    if as_json:
        report: dict[str, Any] = {**model.about, "format": form, "bytes": len(exported.raw), "inputs": inputs}
        typer.echo(json.dumps(report | {"agreement": agreed._asdict()}))
        return
    say(
        f"{output}: {len(exported.raw):,} bytes, the model of {device} ({model.architecture}); on {inputs} inputs it "
        f"differs from the network by {agreed.relative_rmse:.2g} of its outputs' size, at most {agreed.max_abs:.2g}"
    )


def _names(text: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else ()


def _with_false_alarms(config: LearnerConfig, per_day: float | None) -> LearnerConfig:
    if per_day is None:
        return config
    if not 0.0 < per_day < float("inf"):
        raise BadConfiguration(f"--false-alarms-per-day must be above 0, not {per_day:g}")
    return config.model_copy(update={"false_alarms_per_day": per_day})


def _print_evaluation(report: dict[str, Any]) -> None:
    from rich.table import Table

    horizons, means = report["horizons"], report["mean_skill"]
    table = Table("method", box=None, header_style="bold", title="mean skill over the sensors", title_justify="left")
    for horizon in (*horizons, *(f"{horizon}, cold start" for horizon in horizons)):
        table.add_column(horizon, justify="right")
    for method in report["methods"]:
        found = [means[horizon].get(method) for horizon in horizons]
        table.add_row(method, *map(_figure, [*found, *(means["cold_start"][h].get(method) for h in horizons)]))
    out.print(table)
    out.print(_personalised(report))
    if "personalisation" in report:
        out.print(_rules(report))
    out.print(
        f"{len(report['devices'])} devices, {report['readings']['train']:,} readings to learn from, "
        f"{report['readings']['test']:,} to test on, {report['durations_s']['total']:.0f} s"
    )


def _rules(report: dict[str, Any]) -> Table:
    from rich.table import Table

    found, horizons = report["personalisation"], report["horizons"]
    title = "mean skill on the stream, by learner.adoption"
    table = Table("rule", box=None, header_style="bold", title=title, title_justify="left")
    for name in (*horizons, *(f"{horizon}, newcomer" for horizon in horizons), "models taken"):
        table.add_column(name, justify="right")
    for rule in found["rules"]:
        means = [found[who]["mean_skill"][h][rule] for who in ("devices", "newcomers") for h in horizons]
        table.add_row(rule, *map(_figure, [*means, found["taken"][rule]]))
    return table


def _personalised(report: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table("sensor", box=None, header_style="bold", title="skill of personalised (95 %)", title_justify="left")
    for horizon in report["horizons"]:
        table.add_column(horizon, justify="right")
        table.add_column("RMSE", justify="right")
    for sensor in report["sensors"]:
        cells = []
        for horizon in report["horizons"]:
            low, high = report["skill_interval_95"][horizon][sensor]["personalised"]
            skill = _figure(report["skill"][horizon][sensor]["personalised"])
            cells += [
                f"{skill} ({_figure(low)} to {_figure(high)})",
                _figure(report["rmse"][horizon][sensor]["personalised"], ".4g"),
            ]
        table.add_row(sensor, *cells)
    return table


def _figure(value: float | None, form: str = ".3f") -> str:
    return f"{value:{form}}" if value is not None and value == value else "-"  # not NaN
