"""The subcommands of large fleets: `flead simulate`, and `flead aggregator` between devices and server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flead.errors import BadConfiguration
from orchestration.cli_common import Json, RunDir, out, progress, say, settings_for

if TYPE_CHECKING:
    from rich.table import Table

    from flead.federation import Strategy
    from orchestration.simulating import Measured

app = typer.Typer()

_INPUTS = 8
"""Inputs of a simulated device's model."""


@app.command()
def simulate(
    devices: Annotated[int, typer.Option(min=1, help="Size of the fleet.")] = 100_000,
    rounds: Annotated[int, typer.Option(min=1, max=100_000, help="How many rounds.")] = 5,
    strategy: Annotated[
        str, typer.Option(help='A name (fedavg, median, krum, ...), or {"name": ..., and hyper-parameters}.')
    ] = "fedavg",
    drop_out: Annotated[float, typer.Option(min=0, max=1, help="Share of devices that do not send in a round.")] = 0.2,
    stragglers: Annotated[
        float, typer.Option(min=0, max=1, help="Share of updates that come one to three rounds late.")
    ] = 0.1,
    malicious: Annotated[
        float, typer.Option(min=0, max=1, help="Share of devices that send the opposite of what they learned.")
    ] = 0.0,
    parameters: Annotated[
        int, typer.Option(min=9, max=100_000, help="Of a device's model, about; its hidden layer follows.")
    ] = 161,
    sample: Annotated[
        int, typer.Option(min=1, max=20_000, help="Devices of a round where the strategy must see every update.")
    ] = 1_000,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Threads; without it, all cores.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same losses.")] = 0,
    as_json: Json = False,
) -> None:
    """Federate a simulated fleet on this machine, with drop-out, stragglers and liars: loss, time and memory per round.

    Strategies that are sums are given partial sums of the whole fleet; the robust ones see each update of a sample.
    """
    from flead.simulation import Fleet, Training
    from orchestration.simulating import measure, report

    hidden = round((parameters - 1) / (_INPUTS + 2)) if parameters > _INPUTS + 1 else 0
    rule, training = _strategy(strategy), Training(sample=sample)
    fleet = Fleet(
        devices, _INPUTS, hidden, drop_out=drop_out, stragglers=stragglers, malicious=malicious, seed=seed
    )  # fmt: skip
    of_a_round = devices if rule.linear else min(devices, sample)
    with progress() as advance:
        number = 1

        def show(done: int) -> None:
            advance(f"round {number} of {rounds}", (number - 1 + done / of_a_round) / rounds)

        def count(found: Measured) -> None:
            nonlocal number
            number = found.round.number + 1

        found = measure(fleet, rounds, rule, training, workers=workers, on_round=count, on_devices=show)
    said = report(fleet, rule, training, found)
    if as_json:
        typer.echo(json.dumps(said))
        return
    say(f"{devices:,} devices of {said['parameters']:,} parameters, {rule.name}: {said['merged_by']}")
    out.print(_rounds(found))


def _strategy(given: str) -> Strategy:
    from flead.federation import parse_strategy

    if not given.lstrip().startswith("{"):
        return parse_strategy(given)
    try:
        return parse_strategy(json.loads(given))
    except ValueError as error:
        raise BadConfiguration(f"--strategy is neither a name nor a JSON object: {error}") from None


def _rounds(found: list[Measured]) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for name in ("round", "asked", "dropped", "merged", "of them late", "under way", "liars", "loss", "s", "peak MB"):
        table.add_column(name, justify="right")
    for each in found:
        r = each.round
        counts = (r.number, r.asked, r.dropped, r.merged, r.late, r.waiting, r.malicious)
        table.add_row(*(f"{n:,}" for n in counts), f"{r.loss:.3f}", f"{each.seconds:.2f}", f"{each.peak_mb:.0f}")
    return table


@app.command()
def aggregator(
    upstream: Annotated[str, typer.Option(help="The global server, or another aggregator: http://host:port.")],
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Where devices near it find it.")] = 8100,
    run_dir: RunDir = None,
    every: Annotated[
        float, typer.Option(min=0.1, max=86_400, help="How often it sends what it has summed up, s.")
    ] = 30,
    name: Annotated[
        str | None, typer.Option(help="Under which it sends; without it, one that it makes up once and keeps.")
    ] = None,
    device_key_file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A file with its key at the upstream, one of an aggregator."),
    ] = None,
    host: Annotated[str, typer.Option(help="The address of this machine to listen on: 127.0.0.1 only.")] = "127.0.0.1",
) -> None:
    """Stand for the devices nearby: take their updates durably, send their weighted mean, pass the global model on."""
    from edge.aggregator import Aggregator, serve

    settings = settings_for(run_dir)
    key = device_key_file.read_text().strip() if device_key_file else None
    with Aggregator.open(
        settings.run_dir / "aggregator", upstream, name=name, device_key=key,
        max_norm=settings.aggregation.max_weight_norm,
    ) as running:  # fmt: skip
        serve(running, host, port, every)
