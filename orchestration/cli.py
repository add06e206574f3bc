"""The `flead` command: one function per subcommand, each no more than options, a call and what to print."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from config.settings import PROJECT, Settings, load_settings
from flead.errors import BadConfiguration, FleadError

app = typer.Typer(
    help="Federated learning on sensor streams: a model per device, merged into a global model that flows back.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Datasets: download, simulate, check.", no_args_is_help=True)
app.add_typer(data_app, name="data")

out = Console(width=None if sys.stdout.isatty() else 120)
err = Console(stderr=True)

INTEL_LAB = "intel-lab"
NOT_RUNNING = 3

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


def main() -> None:
    """Run the command; what goes wrong on purpose is one line, not a stack trace."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        app()
    except FleadError as error:
        err.print(f"[bold red]flead:[/] {error}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


@app.command()
def up(
    data: Data = "simulated",
    rate: Rate = 1_000.0,
    for_s: ForS = None,
    loop: Loop = True,
    without: Annotated[
        list[str] | None, typer.Option("--without", help="Leave a service out: archive, producer. Repeatable.")
    ] = None,
    devices: Devices = 50,
    run_dir: RunDir = None,
    as_json: Json = False,
) -> None:
    """Start everything, watch it live, and stop all of it again on Ctrl-C or after --for seconds.

    With --for it exits 0 only if the run was well: nothing lost, every update accepted, rounds made, all stored.
    """
    from orchestration.display import picture, verdict
    from orchestration.services import OPTIONAL, flead_command
    from orchestration.up import Interrupted, Options, Run, Status

    left_out = frozenset(without or ())
    if left_out - set(OPTIONAL):
        raise BadConfiguration(
            f"--without knows {', '.join(OPTIONAL)}, not {', '.join(sorted(left_out - set(OPTIONAL)))}"
        )
    settings = _settings(run_dir)
    source = _dataset(data, settings)
    if source == "simulated":
        _say(f"the readings come from the simulator ({devices} devices); --data names a file of real ones")
    producer = flead_command("produce", "--data", source, "--rate", str(rate), "--devices", str(devices))
    producer += ["--loop" if loop else "--once", "--progress-file", str(settings.run_dir / "produce.json")]
    producer += ["--for", str(for_s)] if for_s else []
    live = Live(console=err, refresh_per_second=2, transient=True)
    interactive, next_line_s = err.is_terminal, 10.0

    def show(status: Status) -> None:
        nonlocal next_line_s
        if interactive:
            live.update(picture(status))
        elif status.timings_s["total"] >= next_line_s:
            next_line_s += 10.0
            err.print(_one_line(status), highlight=False, soft_wrap=True)

    run = Run(settings, Options(producer if "producer" not in left_out else None, for_s, left_out), show, _say)
    try:
        if interactive:
            with live:
                status = run.execute()
        else:
            status = run.execute()
    except Interrupted:
        _say("stopped")
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(status.to_json())
    else:
        out.print(picture(status))
        out.print(verdict(status))
    raise typer.Exit(0 if all(check["ok"] for check in status.checks.values()) else 1)


@app.command()
def down(run_dir: RunDir = None) -> None:
    """Stop the run in a run folder, in order."""
    from orchestration.up import running_pid

    settings = _settings(run_dir)
    pid = running_pid(settings.run_dir)
    if pid is None:
        _say(f"nothing runs in {settings.run_dir}")
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + 180.0
    with _spinner("stopping"):
        while running_pid(settings.run_dir) is not None:
            if time.monotonic() > deadline:
                raise FleadError(f"process {pid} has not ended within 180 s: see {settings.run_dir}/logs")
            time.sleep(0.2)
    _say("stopped")


@app.command()
def status(run_dir: RunDir = None, as_json: Json = False) -> None:
    """Show the services, counts, lag and latency of the run in a run folder. Exits 3 where nothing runs."""
    from orchestration.display import picture
    from orchestration.up import STATUS_FILE, Status, running_pid

    settings = _settings(run_dir)
    path = settings.run_dir / STATUS_FILE
    if not path.exists():
        raise FleadError(f"there has been no run in {settings.run_dir}: start one with `flead up`")
    try:
        last = Status(**json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise FleadError(f"{path} was written by another version: start the run again") from None
    alive = running_pid(settings.run_dir) is not None
    if not alive:
        last.state = "stopped"
        for service in last.services.values():
            service |= {"state": "stopped", "pid": None}
    if as_json:
        typer.echo(last.to_json())
    else:
        out.print(picture(last))
    raise typer.Exit(0 if alive else NOT_RUNNING)


@app.command()
def logs(
    service: Annotated[str | None, typer.Argument(help="Which service; without it, the names.")] = None,
    lines: Annotated[int, typer.Option("-n", "--lines", min=1, help="How many of the last lines.")] = 50,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as lines come.")] = False,
    run_dir: RunDir = None,
) -> None:
    """Print the log of one service of a run."""
    folder = _settings(run_dir).run_dir / "logs"
    known = sorted(path.stem for path in folder.glob("*.log"))
    if service is None:
        typer.echo("\n".join(known) or f"no logs in {folder}")
        return
    path = folder / f"{service}.log"
    if service not in known:
        raise FleadError(f"no log of {service} in {folder}: there are {', '.join(known) or 'none'}")
    with path.open(errors="replace") as file:
        typer.echo("".join(file.readlines()[-lines:]), nl=False)
        while follow:
            line = file.readline()
            if line:
                typer.echo(line, nl=False)
            else:
                time.sleep(0.2)


@app.command()
def produce(
    data: Data = "simulated",
    rate: Rate = 1_000.0,
    speed: Annotated[
        float,
        typer.Option(
            "--speed", min=0, help="Event time over wall time, in place of --rate: 60 plays an hour in a minute."
        ),
    ] = 0.0,
    for_s: ForS = None,
    loop: Loop = False,
    devices: Devices = 50,
    progress_file: Annotated[Path | None, typer.Option(help="Keep progress here, and go on from it.")] = None,
) -> None:
    """Send readings to Kafka, merged by event time over all devices."""
    from data.replay import Pace
    from kafka.client import ReadingProducer
    from orchestration.producing import Progress as Sent
    from orchestration.producing import load_progress, open_source, saver, send

    settings = _settings(None)
    source = _dataset(data, settings)
    stopping = _stop_event()
    earlier = load_progress(progress_file, source) if progress_file else Sent(source=source)
    keep = saver(progress_file) if progress_file else lambda _: None
    with _bar("sending", total=None) as advance:

        def save(progress: Sent) -> None:
            keep(progress)
            advance(progress.sent)

        pace = Pace(rate=0.0 if speed else rate, speed=speed, sleep=stopping.wait)
        with ReadingProducer(settings.kafka.servers) as producer:
            records = open_source(source, loop=loop, devices=devices, on_progress=advance)
            done = send(records, producer, pace, earlier, save=save, for_s=for_s, stopping=stopping.is_set)
    _say(f"{done.sent:,} readings sent, {done.delivered:,} delivered, {done.rejected:,} rows to the dead letters")


@app.command()
def consume(
    topic: Annotated[str, typer.Argument(help="flead.readings, flead.predictions, ...")],
    limit: Annotated[int | None, typer.Option("-n", "--limit", min=1, help="Stop after so many records.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning/--new", help="Begin at the oldest record, or wait for new ones.")
    ] = True,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as records come.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Decode every record and report what is wrong; exits 1 if anything is.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Print a topic, or check it."""
    from kafka.tail import CheckReport, tail

    settings = _settings(None)
    records = tail(
        settings.kafka.servers,
        topic,
        from_beginning=from_beginning,
        limit=limit,
        follow=follow,
        check=check,
        limits=settings.reading,
    )
    report = CheckReport(topic)
    for record in records:
        if check:
            report.add(record)
            continue
        value = record.value.decode(errors="replace") if record.value is not None else None
        place = f"{record.partition}/{record.offset}"
        if as_json:
            fields = {"topic": record.topic, "partition": record.partition, "offset": record.offset, "value": value}
            typer.echo(json.dumps(fields))
        else:
            out.print(f"[dim]{place}[/] {value}", highlight=False, soft_wrap=True)
    if check:
        if as_json:
            typer.echo(json.dumps(report.as_dict()))
        else:
            out.print_json(json.dumps(report.as_dict()))
        raise typer.Exit(0 if report.ok else 1)


@app.command()
def serve(
    port: Annotated[int | None, typer.Option("--port", min=1, max=65_535, help="Of the REST interface.")] = None,
    run_dir: RunDir = None,
) -> None:
    """Run the global server alone: with the embedded MongoDB unless mongodb.uri is set; Kafka may come later."""
    from global_server.main import serve as run

    settings = _settings(run_dir)
    run(settings, port, settings.run_dir, own_mongod=True)


@app.command()
def learn(run_dir: RunDir = None) -> None:
    """Keep the learning job on Flink: submit, watch, resume from the newest checkpoint; stop with a savepoint."""
    from flink.submit import JobKeeper, package, submit
    from kafka.topics import ensure_topics
    from orchestration.services import flink_cluster, job_config

    settings = _settings(run_dir)
    ensure_topics(settings.kafka.servers, settings.kafka)
    config, cluster = job_config(settings), flink_cluster(settings)
    cluster.prepare()
    folder = settings.run_dir / "flink"
    archive = package(PROJECT, folder / "flead-job.zip")
    connector = next(cluster.connector_jars.glob("flink-sql-connector-kafka-*.jar"))
    python = settings.flink.python or sys.executable
    checkpoints = config.checkpoints
    keeper = JobKeeper(
        settings.flink.url,
        lambda restore: submit(settings.flink.url, archive, connector, python, config, cluster.environment, restore),
        checkpoints=checkpoints,
        savepoints=checkpoints.rstrip("/") + "/savepoints",
        remembered=folder / "newest-checkpoint",
        stopping=_stop_event().is_set,
    )
    keeper.run()


@app.command()
def archive(run_dir: RunDir = None) -> None:
    """Store readings, predictions, alerts and dead letters in MongoDB, each once."""
    from orchestration.archiver import archive as run
    from storage.archive import ArchiveRepository
    from storage.connection import connect, open_database
    from storage.schema import apply_schema

    settings = _settings(run_dir)
    os.nice(5)  # what is stored a moment later harms nobody; a prediction that is late does
    with connect(settings.mongodb) as client:
        database = open_database(client, settings.mongodb)
        apply_schema(database, settings.mongodb)
        run(settings.kafka.servers, ArchiveRepository(database), settings.reading, _stop_event().is_set)


@data_app.command("download")
def data_download(
    destination: Annotated[
        Path | None, typer.Argument(help="The file to make; default: RUN_DIR/data/intel-lab.txt.gz")
    ] = None,
) -> None:
    """Fetch the full Intel Lab file (34 MB, 2.3 million readings); resumes, and checks its checksum."""
    path = destination or _intel_lab_path(_settings(None))
    typer.echo(_download(path))


@data_app.command("simulate")
def data_simulate(
    output: Annotated[Path, typer.Argument(help="File of JSON lines to write.")],
    devices: Devices = 50,
    readings: Annotated[int, typer.Option(min=1, help="How many readings.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same file.")] = 7,
    faults: Annotated[bool, typer.Option("--faults/--no-faults", help="Inject labelled faults.")] = True,
) -> None:
    """Write a simulated fleet's readings to a file; faults are labelled in `metadata.fault`."""
    from itertools import islice

    from data.simulate import simulate

    with output.open("wb") as file, _bar("simulating", total=readings) as advance:
        for number, reading in enumerate(islice(simulate(devices, seed=seed, faults=faults), readings), start=1):
            file.write(reading.to_json() + b"\n")
            if number % 1_000 == 0 or number == readings:
                advance(number)
    _say(f"{readings:,} readings of {devices} devices in {output}")


@data_app.command("check")
def data_check(path: Annotated[Path, typer.Argument(help="A file of readings.")], as_json: Json = False) -> None:
    """Read a whole file and say what is in it: readings, devices, sensors, times, and every rejected row."""
    from data.formats import Rejected
    from data.sources import open_dataset

    dataset = open_dataset(path)
    devices: dict[str, int] = {}
    sensors: dict[str, int] = {}
    rejected: dict[str, int] = {}
    times: list[Any] = []
    with _bar("reading", total=None) as advance:
        for number, record in enumerate(dataset.readings(), start=1):
            if number % 10_000 == 0:
                advance(number)
            if isinstance(record, Rejected):
                rejected[record.reason] = rejected.get(record.reason, 0) + 1
                _say(f"line {record.number}: {record.detail}")
                continue
            devices[record.device_id] = devices.get(record.device_id, 0) + 1
            for name, value in record.sensors.items():
                sensors[name] = sensors.get(name, 0) + (value is not None)
            times = (
                [min(times[0], record.timestamp), max(times[1], record.timestamp)] if times else [record.timestamp] * 2
            )
    report = {
        "format": dataset.format.name,
        "readings": sum(devices.values()),
        "devices": len(devices),
        "values": sensors,
        "first": times[0].isoformat() if times else None,
        "last": times[1].isoformat() if times else None,
        "rejected": rejected,
    }
    typer.echo(json.dumps(report)) if as_json else out.print_json(json.dumps(report))


# ---------------------------------------------------------------------- helpers


def _settings(run_dir: Path | None) -> Settings:
    if run_dir is not None:
        os.environ["FLEAD_RUN_DIR"] = str(run_dir.expanduser().absolute())
    if os.environ.get("FLEAD_CONFIG"):  # services run in folders of their own
        os.environ["FLEAD_CONFIG"] = str(Path(os.environ["FLEAD_CONFIG"]).expanduser().absolute())
    settings = load_settings()
    return settings.model_copy(update={"run_dir": settings.run_dir.expanduser().absolute()})


def _dataset(data: str, settings: Settings) -> str:
    """What `--data` means: the simulator, the public file (fetched once), or a path, made absolute."""
    from data.sources import open_dataset

    if data == "simulated":
        return data
    if data == INTEL_LAB:
        return str(_download(_intel_lab_path(settings)))
    path = Path(data).expanduser().absolute()
    open_dataset(path)  # what is no file of readings is refused before anything starts
    return str(path)


def _intel_lab_path(settings: Settings) -> Path:
    return settings.run_dir / "data" / "intel-lab.txt.gz"


def _download(path: Path) -> Path:
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


def _stop_event() -> threading.Event:
    """Set by SIGTERM and SIGINT."""
    event = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: event.set())
    return event


@contextmanager
def _bar(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    columns = (SpinnerColumn(), TextColumn("{task.description} {task.completed:,}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def _spinner(title: str) -> Iterator[None]:
    with _bar(title, total=None):
        yield


def _say(line: str) -> None:
    if line:
        err.print(line, highlight=False, soft_wrap=True)


def _one_line(status: Any) -> str:
    """A status on one line, for logs."""
    counts, latency = status.counts, status.latency_ms
    return (
        f"{status.timings_s.get('total', 0):.0f} s {status.state}: {counts.get('readings', 0)} readings, "
        f"{counts.get('taken_up', 0)} taken up, {counts.get('rounds', 0)} rounds, "
        f"{counts.get('dead_letters', 0)} dead letters, "
        f"lag {status.lag.get('flead.readings', 0)}, p99 {latency.get('p99')} ms"
    )
