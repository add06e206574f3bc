"""The subcommands that operate the federation, by asking the server: `flead models`, `quarantine`, `rules`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestration.cli_common import Json, RunDir, out, say, settings_for

if TYPE_CHECKING:
    from orchestration.asking import Server

models = typer.Typer(
    help="Versions of the global model: look, compare, promote, roll back, restore.", no_args_is_help=True
)
quarantine = typer.Typer(help="Devices whose updates are not used: look, and decide.", no_args_is_help=True)
rules = typer.Typer(help="How rounds are made: look, and change it while the server runs.", no_args_is_help=True)

Cohort = Annotated[str | None, typer.Option("--cohort", help="Whose; without it the only cohort there is.")]
Token = Annotated[
    str | None, typer.Option("--token", envvar="FLEAD_TOKEN", help="Of POST /api/token, where access is required.")
]
Version = Annotated[int, typer.Argument(min=1, help="The round that made it.")]
Device = Annotated[str, typer.Argument(help="The device's id.")]


def _server(token: str | None, run_dir: Path | None = None) -> Server:
    from orchestration.asking import Server

    return Server(settings_for(run_dir).server, token)


def _tell(said: dict[str, Any], line: str, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(said))
    else:
        say(line)


@models.command("list")
def list_models(
    cohort: Cohort = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The newest so many.")] = 20,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """List a cohort's versions, newest first."""
    said = _server(token).ask("GET", "/api/models", cohort=cohort, limit=limit)
    if as_json:
        typer.echo(json.dumps(said))
        return
    from rich.table import Table

    table = Table(
        "version", "stage", "from", "devices", "strategy", "loss", "rise", "why", box=None, header_style="bold"
    )
    for one in said["models"]:
        figures = [_figure(one["metrics"].get(name)) for name in ("loss", "rise")]
        table.add_row(
            str(one["version"]), one["stage"], str(one["parent"] or "-"), str(one["num_devices"]),
            one["aggregation_strategy"], *figures, one["verdict"] or "",
        )  # fmt: skip
    out.print(f"cohort {said['cohort']}: stable {said['stable'] or 'none'}, on trial {said['canary'] or 'none'}")
    out.print(table)


@models.command("compare")
def compare(a: Version, b: Version, cohort: Cohort = None, token: Token = None, as_json: Json = False) -> None:
    """Say how far version B is from version A."""
    said = _server(token).ask("GET", "/api/models/compare", cohort=cohort, a=a, b=b)
    layers = ", ".join(_figure(x) for x in said["layers"])
    line = (
        f"from version {a} to {b}: distance {_figure(said['distance'])} ({100 * said['relative']:.2g} % of its "
        f"length), cosine {said['cosine']:.6f}, by layer {layers}"
    )
    _tell(said, line, as_json=as_json)


@models.command("promote")
def promote(version: Version, cohort: Cohort = None, token: Token = None, as_json: Json = False) -> None:
    """Make a version the stable one: a canary, or an earlier version, which takes all later ones back."""
    said = _server(token).ask("POST", f"/api/models/{version}/promote", cohort=cohort)
    _tell(said, f"version {version} of {said['cohort']} is {said['stage']}", as_json=as_json)


@models.command("rollback")
def roll_back(version: Version, cohort: Cohort = None, token: Token = None, as_json: Json = False) -> None:
    """Take a version back: a canary, or the stable one, before which the one before it comes back."""
    said = _server(token).ask("POST", f"/api/models/{version}/rollback", cohort=cohort)
    _tell(said, f"version {version} of {said['cohort']} is {said['stage']}", as_json=as_json)


@models.command("restore")
def restore(
    file: Annotated[Path | None, typer.Argument(help="A backup; without it the newest of the cohort.")] = None,
    cohort: Cohort = None,
    run_dir: RunDir = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Make a backup from the run folder the stable model again, as a version of its own."""
    from flead.errors import NotThere
    from global_server.backups import Backups, read_backup

    settings = settings_for(run_dir)
    backups = Backups(settings.run_dir, settings.aggregation.backups)
    if file is None:
        known = backups.cohorts()
        if not known:
            raise NotThere(f"there is no backup of a model in {settings.run_dir}: name one, or its --run-dir")
        if cohort is None and len(known) != 1:
            raise NotThere(f"say of which cohort, with --cohort: there are backups of {', '.join(known)}")
        file = backups.newest(cohort or known[0])
    model = read_backup(file)
    said = _server(token, run_dir).ask("POST", "/api/restore", model.model_dump(mode="json"))
    line = f"version {said['version']} of {said['cohort']} is the backup of version {model.version} ({file.name})"
    _tell(said, line, as_json=as_json)


@quarantine.command("list")
def list_quarantine(
    everybody: Annotated[bool, typer.Option("--all", help="Also those that were flagged and are trusted.")] = False,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """List the devices whose updates are not used."""
    said = _server(token).ask("GET", "/api/quarantine", everybody=everybody)
    if as_json:
        typer.echo(json.dumps(said))
        return
    from rich.table import Table

    table = Table("device", "state", "reputation", "since", "why", box=None, header_style="bold")
    for one in said["devices"]:
        since = one["changed_at"][:19].replace("T", " ")
        table.add_row(one["device_id"], one["state"], _figure(one["reputation"]), since, one["reason"] or "")
    out.print(table if said["devices"] else "no device is kept out")


@quarantine.command("add")
def add(
    device: Device,
    reason: Annotated[str, typer.Option("--reason", help="Why: others will read it.")],
    cohort: Cohort = None,
    token: Token = None,
    as_json: Json = False,
) -> None:
    """Keep a device out until somebody decides."""
    said = _server(token).ask("POST", f"/api/quarantine/{_quoted(device)}", {"reason": reason}, cohort=cohort)
    _tell(said, f"{device} is {said['state']}", as_json=as_json)


@quarantine.command("accept")
def accept(device: Device, token: Token = None, as_json: Json = False) -> None:
    """Let a device in again, its reputation as if nothing had been."""
    said = _server(token).ask("POST", f"/api/quarantine/{_quoted(device)}/accept")
    _tell(said, f"{device} is {said['state']}", as_json=as_json)


@quarantine.command("reject")
def reject(device: Device, token: Token = None, as_json: Json = False) -> None:
    """Keep a device out for good."""
    said = _server(token).ask("POST", f"/api/quarantine/{_quoted(device)}/reject")
    _tell(said, f"{device} is {said['state']}", as_json=as_json)


@rules.command("show")
def show(cohort: Cohort = None, token: Token = None) -> None:
    """Print how rounds are made, as JSON."""
    typer.echo(json.dumps(_server(token).ask("GET", "/api/config", cohort=cohort), indent=2))


@rules.command("set")
def change(
    given: Annotated[str, typer.Argument(metavar="JSON", help='For instance \'{"strategy": {"name": "median"}}\'.')],
    cohort: Cohort = None,
    token: Token = None,
) -> None:
    """Change how rounds are made, from the next one on; what is not named stays."""
    from flead.errors import BadConfiguration

    try:
        patch = json.loads(given)
    except ValueError as error:
        raise BadConfiguration(f"that is no JSON ({error}): quote it for the shell, as in --help") from None
    typer.echo(json.dumps(_server(token).ask("POST", "/api/config", patch, cohort=cohort)["rules"], indent=2))


@rules.command("reset")
def reset(cohort: Cohort = None, token: Token = None) -> None:
    """Go back to the settings."""
    typer.echo(json.dumps(_server(token).ask("DELETE", "/api/config", cohort=cohort)["rules"], indent=2))


def _quoted(device: str) -> str:
    from urllib.parse import quote

    return quote(device, safe="")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
