"""The subcommands of `flead mart`: the SQL copy of MongoDB that dashboards read."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flead.errors import NotThere
from orchestration.cli_common import Json, RunDir, out, progress, quiet, say, settings_for, stop_event

if TYPE_CHECKING:
    from config.settings import Settings
    from visualization.mart.follower import Follower

app = typer.Typer(
    help="The SQL copy of MongoDB that dashboards read: PostgreSQL, kept equal by MongoDB's changes.",
    no_args_is_help=True,
)


@app.command()
def follow(run_dir: RunDir = None) -> None:
    """Keep the mart equal to MongoDB: copy what is there, then follow every change.

    Runs until it is stopped; killed at any moment it goes on where it was.
    """
    from visualization.mart.connection import translated

    stop = stop_event()
    settings = settings_for(run_dir)
    logging.getLogger("pymongo").setLevel(logging.ERROR)  # that it is away is said here, once
    with translated(), _follower(settings) as follower:
        follower.run(stop)


@app.command()
def rebuild(run_dir: RunDir = None) -> None:
    """Make the mart anew from MongoDB; dashboards show the old figures until it is whole. The run may be on."""
    from storage.connection import translated as mongodb_translated
    from visualization.mart.connection import translated

    stop = stop_event()
    with translated(), mongodb_translated(), _follower(settings_for(run_dir)) as follower:
        done = follower.rebuild(stop)
    if not done:
        say("the follower that runs makes it anew: `flead mart status` shows how far it is")
    elif stop.is_set():
        say("stopped: the mart is as it was")
        raise typer.Exit(130)
    else:
        say("the mart has been made anew")


@app.command()
def status(run_dir: RunDir = None, as_json: Json = False) -> None:
    """Show how far the mart is behind MongoDB."""
    from visualization.mart.lag import lag_of
    from visualization.mart.server import address, mart_of

    settings = _with_a_mart(run_dir)
    quiet()
    with mart_of(settings.mart, settings.run_dir) as mart:
        lag = lag_of(address(mart, settings.run_dir))
    if as_json:
        typer.echo(json.dumps(asdict(lag)))
        return
    if lag.behind_s is None:
        out.print("not copied yet", highlight=False)
    else:
        out.print(f"{lag.behind_s:,.1f} s behind MongoDB, {lag.events_per_s:,.0f} changes/s", highlight=False)
    if lag.to_copy is not None:
        out.print(f"made anew at the moment: {lag.copied:,} of about {lag.to_copy:,} documents", highlight=False)
    if not lag.follows:
        out.print("nobody follows: `flead mart follow` does", highlight=False)
    if lag.rejected:
        out.print(f"{lag.rejected:,} documents do not fit: see the table mart.rejected", highlight=False)


@app.command()
def uri(
    run_dir: RunDir = None,
    owner: Annotated[bool, typer.Option("--owner", help="Of who may write; without it, of who may only read.")] = False,
    password: Annotated[bool, typer.Option("--password", help="Print the password too.")] = False,
) -> None:
    """Print the address to read the mart from, and where its password lies."""
    from psycopg.conninfo import conninfo_to_dict

    from visualization.mart.server import FOLDER, Role, address, find_running, password_file

    settings = _with_a_mart(run_dir)
    role = Role.OWNER if owner else Role.READER
    running = None if settings.mart.uri else find_running(settings.run_dir / FOLDER)
    mart = settings.mart.model_copy(update={"port": running.port}) if running else settings.mart
    secret = address(mart, settings.run_dir, role).get_secret_value()
    if password:
        typer.echo(secret)
        return
    parts = conninfo_to_dict(secret)
    typer.echo(f"postgresql://{parts['user']}@{parts['host']}:{parts.get('port', 5432)}/{parts['dbname']}")
    if not (owner and settings.mart.uri):
        say(f"password: {password_file(settings.run_dir, role)}")


def _with_a_mart(run_dir: Path | None) -> Settings:
    """The settings of a run that has a mart: to look at one must not make one."""
    from visualization.mart.server import FOLDER

    settings = settings_for(run_dir)
    if not settings.mart.uri and not (settings.run_dir / FOLDER).exists():
        raise NotThere(f"there is no mart in {settings.run_dir}: `flead mart rebuild` makes it of what MongoDB holds")
    return settings


@contextmanager
def _follower(settings: Settings) -> Iterator[Follower]:
    """A follower between a run's MongoDB and its mart; where the run is on, its servers are waited for, not started."""
    from data.positions import read_positions
    from orchestration.status import running_pid
    from storage.connection import connect, open_database
    from storage.running import database_of
    from visualization.mart.follower import Follower
    from visualization.mart.server import address, mart_of

    positions = read_positions(settings.spark.positions) if settings.spark.positions else None
    with ExitStack() as stack:
        mongodb, mart = settings.mongodb, settings.mart
        if running_pid(settings.run_dir) is None:
            mongodb = stack.enter_context(database_of(mongodb, settings.run_dir))
            mart = stack.enter_context(mart_of(mart, settings.run_dir))
        client = stack.enter_context(connect(mongodb, "flead mart"))
        advance = stack.enter_context(progress())

        def copied(done: int, total: int) -> None:
            advance(f"copying {done:,} of about {total:,} documents", min(1.0, done / (total or 1)))

        database = open_database(client, mongodb)
        yield Follower(database, address(mart, settings.run_dir), positions, copied)
