"""The subcommands about the database: backup, restore, and the user that dashboards read with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestration.cli_common import Json, RunDir, bar, quiet, say, settings_for

if TYPE_CHECKING:
    from pymongo.database import Database

    from config.settings import MongoSettings, Settings
    from storage.backup import Manifest

app = typer.Typer()

READER_FILE = Path("secrets", "mongodb-reader.uri")
"""Where in the run folder dashboards find the address to read from."""


@app.command()
def backup(
    path: Annotated[Path, typer.Argument(help="The file to write.")],
    run_dir: RunDir = None,
    as_json: Json = False,
) -> None:
    """Write all that MongoDB holds of a run to one file, as of one instant; the run may be on."""
    from orchestration.files import output_file
    from storage.backup import write_backup

    settings = settings_for(run_dir)
    with (
        _database(settings) as (database, _),
        bar("backing up", _documents(database)) as advance,
        output_file(path) as temporary,
    ):
        manifest = write_backup(database, temporary, ours=not settings.mongodb.uri, on_progress=advance)
    _report("backed up", path, manifest, as_json=as_json)


@app.command()
def restore(
    path: Annotated[Path, typer.Argument(help="A file that `flead backup` wrote.")],
    run_dir: RunDir = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Drop all that the database holds. Without it, it must be empty.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put a backup into the database of a run folder, which must not be running."""
    from orchestration.status import only_run
    from storage.backup import APP_NAME, check_backup, restore_backup

    settings = settings_for(run_dir)
    with bar("checking") as advance:
        total = check_backup(path, advance).documents
    with (
        only_run(settings.run_dir),
        _database(settings, create=True, name=APP_NAME) as (database, mongodb),
        bar("restoring", total) as advance,
    ):
        manifest = restore_backup(database, mongodb, path, replace=replace, on_progress=advance)
    _report("restored", path, manifest, as_json=as_json)


@app.command()
def reader(run_dir: RunDir = None) -> None:
    """Make the user that dashboards read with, or give him a new password; his address goes into a file."""
    from storage.reader import keep_secret, renew_reader

    settings = settings_for(run_dir)
    with _database(settings) as (database, mongodb):
        made = renew_reader(database, mongodb)
    file = settings.run_dir / READER_FILE
    keep_secret(file, made.uri)
    say(f"{file} holds the address of a user who may only read database {settings.mongodb.database}")
    if not made.enforced:
        say("but this MongoDB runs without access control: whoever reaches its port may write, with no user at all")


@contextmanager
def _database(
    settings: Settings, *, create: bool = False, name: str | None = None
) -> Iterator[tuple[Database[dict[str, Any]], MongoSettings]]:
    from storage.connection import connect, open_database
    from storage.running import database_of

    quiet()
    with database_of(settings.mongodb, settings.run_dir, create=create) as mongodb, connect(mongodb, name) as client:
        yield open_database(client, mongodb), mongodb


def _documents(database: Database[dict[str, Any]]) -> int:
    """About how many there are."""
    from storage.connection import translated

    with translated():
        names = database.list_collection_names(filter={"type": "collection"})
        return sum(database[name].estimated_document_count() for name in names)


def _report(done: str, path: Path, manifest: Manifest, *, as_json: bool) -> None:
    counts = {name: part.documents for name, part in manifest.collections.items()}
    if as_json:
        fields = {"path": str(path), "layout": manifest.layout, "created": manifest.created.isoformat()}
        typer.echo(json.dumps(fields | {"documents": manifest.documents, "collections": counts}))
    else:
        say(f"{done}: {manifest.documents:,} documents of {len(counts)} collections, {path}")
