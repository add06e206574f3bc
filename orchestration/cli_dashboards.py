"""The subcommands about dashboards: `flead dashboards ...`."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from orchestration.cli_common import Json, RunDir, out, say, settings_for

if TYPE_CHECKING:
    from config.settings import Settings
    from visualization.superset.check import Asked
    from visualization.superset.client import Superset

app = typer.Typer(
    help="Dashboards in Superset: set up, checked, opened, and what was changed in the browser brought back.",
    no_args_is_help=True,
)


@app.command()
def setup(run_dir: RunDir = None) -> None:
    """Bring Superset's database up to date and make its dashboards those of visualization/superset/assets.

    A run does this by itself when Superset or these files have changed. What was changed in the browser and not
    exported is lost. Works whether a run is on or not; a running Superset shows the new dashboards at once.
    """
    from visualization.mart.server import mart_of
    from visualization.superset import service

    settings = settings_for(run_dir)
    with mart_of(settings.mart, settings.run_dir) as mart:
        service.set_up(settings.model_copy(update={"mart": mart}), say)
    say(f"the dashboards are set up: a run shows them at {settings.dashboards.url}")


@app.command()
def check(run_dir: RunDir = None, as_json: Json = False) -> None:
    """Ask every chart of every dashboard of a run that is on, past the cache. Exits 1 if any fails.

    Tells for each chart how many rows it draws and how long the answer took, or what went wrong.
    """
    from visualization.superset.check import ask_all

    with _superset(settings_for(run_dir)) as superset:
        asked = list(ask_all(superset))
    if as_json:
        typer.echo(json.dumps([_as_json(one) for one in asked]))
    else:
        _print(asked)
    raise typer.Exit(1 if any(one.error for one in asked) or not asked else 0)


@app.command("open")
def open_browser(
    run_dir: RunDir = None,
    show: Annotated[bool, typer.Option("--print", help="Only print the address.")] = False,
) -> None:
    """Open the dashboards of a run in a browser, and say who may log in."""
    from visualization.superset import service

    settings = settings_for(run_dir)
    url = f"{settings.dashboards.url}/dashboard/list/"
    if not show:
        service.ready(settings)
        typer.launch(url)
    typer.echo(url)
    say(f"user {service.ADMIN}; the password is in {service.password_file(settings)}")


@app.command()
def export(run_dir: RunDir = None, as_json: Json = False) -> None:
    """Write what was changed in the browser back into visualization/superset/assets: `git diff` shows it.

    Names the files that changed; none where nothing did.
    """
    from visualization.superset import assets

    with _superset(settings_for(run_dir)) as superset:
        changed = assets.write_back(assets.unpack(superset.export()))
    if as_json:
        typer.echo(json.dumps({"folder": str(assets.FOLDER), "changed": changed}))
    else:
        say("\n".join(changed) or f"nothing has changed: {assets.FOLDER} is what Superset shows")


def _superset(settings: Settings) -> AbstractContextManager[Superset]:
    from visualization.superset import service
    from visualization.superset.client import Superset

    return Superset(settings.dashboards.url, service.ADMIN, service.admin_password(settings))


def _as_json(one: Asked) -> dict[str, object]:
    return {
        "dashboard": one.dashboard, "chart": one.chart, "ok": one.error is None, "error": one.error, "rows": one.rows,
        "took_s": round(one.took_s, 3),
    }  # fmt: skip


def _print(asked: list[Asked]) -> None:
    from rich.table import Column, Table
    from rich.text import Text

    table = Table("dashboard", "chart", Column("rows", justify="right"), Column("s", justify="right"), "")
    for one in asked:
        result = Text("ok", "green") if one.error is None else Text(one.error, "red")
        table.add_row(one.dashboard, one.chart, f"{one.rows:,}", f"{one.took_s:.2f}", result)
    out.print(table)
    failed = sum(one.error is not None for one in asked)
    say(f"{len(asked)} charts, {failed} failed" if asked else "there is no dashboard: run `flead dashboards setup`")
