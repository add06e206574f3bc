"""`flead users` and `flead keys`: who may ask the global server; in the database, whether the server runs or not."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flead.errors import FleadError
from orchestration.cli_common import Json, RunDir, quiet, say, settings_for

if TYPE_CHECKING:
    from global_server.access.audit import Audit
    from storage.access import AccessRepository, StoredKey

users = typer.Typer(help="Who may log in at the global server.", no_args_is_help=True)
keys = typer.Typer(help="Keys by which devices show the global server who they are.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The user.")]
FromStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input, one line.")]
Generate = Annotated[bool, typer.Option("--generate", help="Make a password, and print it once.")]


@users.command("add")
def add_user(
    name: Name,
    role: Annotated[
        Literal["viewer", "operator", "admin"],
        typer.Option(help="viewer: sees everything; operator: runs rounds, models and quarantine; admin: also keys."),
    ] = "viewer",
    from_stdin: FromStdin = False,
    generate: Generate = False,
    run_dir: RunDir = None,
    as_json: Json = False,
) -> None:
    """Add a user. The password is asked for, unless it comes from standard input or is made."""
    from global_server.access.passwords import hashed

    if not name.strip() or len(name) > 128 or not name.isprintable():
        raise FleadError("a user's name has 1 to 128 printable characters")
    password = _password(from_stdin=from_stdin, generate=generate)
    kept = hashed(password)
    with _access(run_dir, create=True) as (repository, audit):
        repository.add_user(name, role, kept)
        audit.note(_whoami(), "user.add", name, role=role)
    _tell_user(name, "added", password if generate else None, as_json=as_json, role=role)


@users.command("password")
def change_password(
    name: Name,
    from_stdin: FromStdin = False,
    generate: Generate = False,
    run_dir: RunDir = None,
    as_json: Json = False,
) -> None:
    """Give a user another password; whatever he was logged in with ends."""
    from global_server.access.passwords import hashed

    password = _password(from_stdin=from_stdin, generate=generate)
    kept = hashed(password)
    with _access(run_dir) as (repository, audit):
        if not repository.set_password(name, kept):
            raise FleadError(f"there is no user {name!r}: `flead users list` names them")
        audit.note(_whoami(), "user.password", name)
    _tell_user(name, "changed", password if generate else None, as_json=as_json)


@users.command("remove")
def remove_user(name: Name, run_dir: RunDir = None) -> None:
    """Let a user log in no longer; whatever he was logged in with ends."""
    with _access(run_dir) as (repository, audit):
        if not repository.remove_user(name):
            raise FleadError(f"there is no user {name!r}: `flead users list` names them")
        audit.note(_whoami(), "user.remove", name)
    say(f"{name} is removed")


@users.command("list")
def list_users(run_dir: RunDir = None, as_json: Json = False) -> None:
    """List users and their roles."""
    with _access(run_dir) as (repository, _):
        found = sorted((user for user in repository.users() if not user.removed), key=lambda user: user.name)
    if as_json:
        fields = [{"name": user.name, "role": user.role, "created_at": user.created_at.isoformat()} for user in found]
        typer.echo(json.dumps({"users": fields}))
        return
    for user in found:
        typer.echo(f"{user.name}\t{user.role}\tsince {user.created_at:%Y-%m-%d %H:%M} UTC")


@keys.command("add")
def add_key(
    device_id: Annotated[str, typer.Argument(help="The device.")],
    aggregator: Annotated[
        bool, typer.Option("--aggregator", help="It may send updates of other devices, too.")
    ] = False,
    public_key: Annotated[
        str | None, typer.Option("--public-key", help="Ed25519, base64: the device's updates must be signed.")
    ] = None,
    run_dir: RunDir = None,
    as_json: Json = False,
) -> None:
    """Make a key for a device, and print it once: only its hash is kept."""
    from pydantic import TypeAdapter, ValidationError

    from flead.messages import Name as DeviceName
    from global_server.access.keys import check_public_key, new_key

    try:
        TypeAdapter(DeviceName).validate_python(device_id)
    except ValidationError:
        raise FleadError("a device's id has 1 to 128 characters, none of control") from None
    if public_key is not None:
        check_public_key(public_key)
    made = new_key()
    with _access(run_dir, create=True) as (repository, audit):
        stored = repository.add_key(
            made.key_id, device_id, made.sha256, _whoami(), aggregator=aggregator, public_key=public_key
        )
        signs = public_key is not None
        audit.note(_whoami(), "key.make", device_id, key_id=made.key_id, aggregator=aggregator, signs=signs)
    if as_json:
        typer.echo(json.dumps(_fields(stored) | {"key": made.key}))
    else:
        say(f"the key {made.key_id} of {device_id}, shown here and never again:")
        typer.echo(made.key)


@keys.command("list")
def list_keys(
    device_id: Annotated[str | None, typer.Argument(help="Of this device only.")] = None,
    run_dir: RunDir = None,
    as_json: Json = False,
) -> None:
    """List keys by device, revoked ones too; never the keys themselves."""
    with _access(run_dir) as (repository, _):
        found = repository.list_keys(device_id, 1_000_000)
    if as_json:
        typer.echo(json.dumps({"keys": [_fields(key) for key in found]}))
        return
    for key in found:
        marks = [*(["aggregator"] if key.aggregator else []), *(["signs"] if key.public_key else [])]
        ended = f"revoked {key.revoked_at:%Y-%m-%d %H:%M} UTC" if key.revoked_at else "holds"
        typer.echo("\t".join([key.key_id, key.device_id, ended, *marks]))


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The key's name, as `flead keys list` shows it.")],
    run_dir: RunDir = None,
) -> None:
    """Let a key hold no longer. A running server knows within two seconds."""
    with _access(run_dir) as (repository, audit):
        revoked = repository.revoke_key(key_id)
        if revoked is None:
            raise FleadError(f"there is no key {key_id!r}: `flead keys list` names them")
        audit.note(_whoami(), "key.revoke", revoked.device_id, key_id=key_id)
    say(f"the key {key_id} of {revoked.device_id} holds no longer")


@contextmanager
def _access(run_dir: Path | None, *, create: bool = False) -> Iterator[tuple[AccessRepository, Audit]]:
    from global_server.access.audit import Audit
    from storage.access import AccessRepository, AuditRepository
    from storage.connection import connect, open_database
    from storage.running import database_of
    from storage.schema import apply_schema

    settings = settings_for(run_dir)
    quiet()
    with database_of(settings.mongodb, settings.run_dir, create=create) as mongodb, connect(mongodb) as client:
        database = open_database(client, mongodb)
        apply_schema(database, mongodb)
        yield AccessRepository(database), Audit(AuditRepository(database))


def _password(*, from_stdin: bool, generate: bool) -> str:
    import secrets

    if generate:
        return secrets.token_urlsafe(18)
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    if not sys.stdin.isatty():
        raise FleadError("a password is asked for on a terminal only: use --password-stdin or --generate")
    password = getpass.getpass("Password: ")
    if getpass.getpass("Again: ") != password:
        raise FleadError("these were two passwords: try again")
    return password


def _tell_user(name: str, done: str, password: str | None, *, as_json: bool, **fields: str) -> None:
    shown = {"password": password} if password else {}
    if as_json:
        typer.echo(json.dumps({"name": name, **fields, **shown}))
        return
    say(f"{name} is {done}" + (", with this password, shown here and never again:" if password else ""))
    if password:
        typer.echo(password)


def _whoami() -> str:
    """Who runs the command, as the operating system says."""
    try:
        return f"command of {getpass.getuser()}"
    except (KeyError, OSError):
        return "command"


def _fields(key: StoredKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "device_id": key.device_id,
        "aggregator": key.aggregator,
        "public_key": key.public_key,
        "created_by": key.created_by,
        "created_at": key.created_at.isoformat(),
        "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
    }
