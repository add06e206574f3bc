"""The subcommands that are processes of a run, started by the supervisor, or by people on machines of their own."""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from orchestration.cli_common import (
    Data,
    Devices,
    ForS,
    Json,
    Loop,
    Rate,
    RunDir,
    bar,
    find_data,
    out,
    say,
    settings_for,
    stop_event,
)

app = typer.Typer()


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
    from kafka.offsets import Offsets
    from kafka.topics import READINGS
    from orchestration.producing import SIMULATED, Progress, load_progress, open_source, saver, send

    settings = settings_for(None)
    source = find_data(data, settings)
    if progress_file is None:  # what keeps progress, as a run's producer does, waits for a broker that comes back
        Offsets(settings.kafka.servers).partitions(READINGS)
    stopping = stop_event()
    earlier = load_progress(progress_file, source) if progress_file else Progress(source=source)
    keep = saver(progress_file) if progress_file else lambda _: None
    with bar("sending") as advance:

        def save(progress: Progress) -> None:
            keep(progress)
            advance(progress.sent)

        pace = Pace(rate=0.0 if speed else rate, speed=speed, sleep=stopping.wait)
        with ReadingProducer(settings.kafka.servers) as producer:
            records = open_source(source, loop=loop, devices=devices, on_progress=advance)
            done = send(
                records, producer, pace, earlier, save=save, for_s=for_s, stopping=stopping.is_set,
                in_time=loop or source == SIMULATED,
            )  # fmt: skip
    say(f"{done.sent:,} readings sent, {done.delivered:,} delivered, {done.rejected:,} rows to the dead letters")


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

    settings = settings_for(None)
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
            out.print(Text.assemble((place, "dim"), f" {value}"), soft_wrap=True)
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
    # Before NumPy is loaded: rounds are small, and threads that wait for the next one take a whole core.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from fastapi import FastAPI

    from data.positions import read_positions
    from global_server.access.audit import Audit
    from global_server.access.guard import Guard
    from global_server.main import Pages
    from global_server.main import serve as run
    from global_server.rounds import RoundService
    from orchestration.console import mount_console
    from visualization.console.pages import PATH

    settings = settings_for(run_dir)
    positions = read_positions(settings.spark.positions) if settings.spark.positions else {}

    def mount(app: FastAPI, service: RoundService, guard: Guard, audit: Audit) -> AbstractContextManager[None]:
        return mount_console(app, service, guard, audit, settings, positions)

    run(settings, port, settings.run_dir, own_mongod=True, pages=Pages(PATH, mount))


@app.command()
def learn(run_dir: RunDir = None) -> None:
    """Keep the learning job on Flink: submit, watch, resume from the newest checkpoint; stop with a savepoint."""
    from config.settings import PROJECT
    from flink.submit import JobKeeper, package, submit
    from kafka.topics import READINGS, ensure_topics, topic_id
    from orchestration.services import flink_cluster, job_config

    settings = settings_for(run_dir)
    ensure_topics(settings.kafka.servers, settings.kafka)
    config = job_config(settings).model_copy(update={"readings_id": topic_id(settings.kafka.servers, READINGS)})
    cluster = flink_cluster(settings)
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
        stopping=stop_event().is_set,
    )
    keeper.run()


@app.command()
def archive(run_dir: RunDir = None) -> None:
    """Store readings, predictions, alerts and dead letters in MongoDB, each once."""
    from orchestration.archiver import archive as run
    from storage.archive import ArchiveRepository
    from storage.connection import connect, open_database
    from storage.schema import apply_schema

    settings = settings_for(run_dir)
    os.nice(5)  # what is stored a moment later harms nobody; a prediction that is late does
    with connect(settings.mongodb) as client:
        database = open_database(client, settings.mongodb)
        apply_schema(database, settings.mongodb)
        run(settings.kafka.servers, ArchiveRepository(database), settings.reading, stop_event().is_set)
