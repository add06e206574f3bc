"""`flead data`: datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestration.cli_common import Devices, Json, bar, fetch_intel_lab, intel_lab_path, out, say, settings_for
from orchestration.files import check_writable, output_file

app = typer.Typer(help="Datasets: download, simulate, check.", no_args_is_help=True)


@app.command()
def download(
    destination: Annotated[
        Path | None, typer.Argument(help="The file to make; default: RUN_DIR/data/intel-lab.txt.gz")
    ] = None,
) -> None:
    """Fetch the full Intel Lab file (34 MB, 2.3 million readings); resumes, and checks its checksum."""
    path = destination or intel_lab_path(settings_for(None))
    typer.echo(fetch_intel_lab(path))


@app.command()
def simulate(
    output: Annotated[Path, typer.Argument(help="File of JSON lines to write.")],
    devices: Devices = 50,
    readings: Annotated[int, typer.Option(min=1, help="How many readings.")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same file.")] = 7,
    faults: Annotated[bool, typer.Option("--faults/--no-faults", help="Inject labelled faults.")] = True,
) -> None:
    """Write a simulated fleet's readings to a file; faults are labelled in `metadata.fault`."""
    from itertools import islice

    from data.simulate import simulate as fleet

    check_writable(output)
    with output_file(output) as temporary, temporary.open("wb") as file, bar("simulating", total=readings) as advance:
        for number, reading in enumerate(islice(fleet(devices, seed=seed, faults=faults), readings), start=1):
            file.write(reading.to_json() + b"\n")
            if number % 1_000 == 0 or number == readings:
                advance(number)
    say(f"{readings:,} readings of {devices} devices in {output}")


@app.command()
def check(path: Annotated[Path, typer.Argument(help="A file of readings.")], as_json: Json = False) -> None:
    """Read a whole file and say what is in it: readings, devices, sensors, times, and every rejected row."""
    from data.formats import Rejected
    from data.sources import open_dataset

    dataset = open_dataset(path)
    devices: dict[str, int] = {}
    sensors: dict[str, int] = {}
    rejected: dict[str, int] = {}
    times: list[Any] = []
    with bar("reading") as advance:
        for number, record in enumerate(dataset.readings(), start=1):
            if number % 10_000 == 0:
                advance(number)
            if isinstance(record, Rejected):
                rejected[record.reason] = rejected.get(record.reason, 0) + 1
                say(f"line {record.number}: {record.detail}")
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
