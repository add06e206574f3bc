"""A user for dashboards, who may read one database and nothing else."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr
from pymongo.database import Database
from pymongo.errors import OperationFailure

from config.settings import MongoSettings
from flead.errors import CorruptRunFolder, FleadError
from storage.connection import Document, connect, translated

NAME = "flead-reader"
_USER_EXISTS = 51_003
_URI = re.compile(r"(?P<scheme>mongodb(?:\+srv)?://)(?:[^@/]*@)?(?P<hosts>[^/?]+)(?:/[^?]*)?(?:\?(?P<options>.*))?")
_OF_ANOTHER_USER = ("authsource=", "authmechanism=", "authmechanismproperties=", "tlscertificatekeyfile")


@dataclass(frozen=True, slots=True)
class Reader:
    """Who may read, and whether the server holds anybody to what he may."""

    uri: SecretStr
    enforced: bool


def renew_reader(database: Database[Document], settings: MongoSettings) -> Reader:
    """Make the user, or give him a new password; the old one no longer works.

    Raises
    ------
    Unavailable
        where MongoDB does not answer, or does not let us make users
    """
    password = secrets.token_urlsafe(32)
    role = {"role": "read", "db": database.name}
    with translated():
        try:
            database.command("createUser", NAME, pwd=password, roles=[role])
        except OperationFailure as error:
            if error.code != _USER_EXISTS:
                raise
            database.command("updateUser", NAME, pwd=password, roles=[role])
    uri = SecretStr(_uri_of(settings.address.get_secret_value(), password, database.name))
    return Reader(uri, _is_held_to_it(settings.model_copy(update={"uri": uri})))


def keep_secret(path: Path, secret: SecretStr, *, replace: bool = True) -> None:
    """Write a file that only its owner can read, whole or not at all.

    Parameters
    ----------
    replace:
        take the place of a file that is there; else it stays as it is

    Raises
    ------
    FleadError
        where it cannot be written
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.unlink(missing_ok=True)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secret.get_secret_value() + "\n")
        if replace:
            temporary.replace(path)
        else:
            with suppress(FileExistsError):
                path.hardlink_to(temporary)
            temporary.unlink()
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise FleadError(f"{path} cannot be written ({error.strerror}): name another --run-dir") from None


def kept_secret(path: Path) -> SecretStr:
    """Read what a file of ours holds; made at random when it is first asked for.

    Raises
    ------
    CorruptRunFolder
        where the file is not ours to read
    FleadError
        where it cannot be made
    """
    if not path.exists():
        # Two processes may ask first at once: both get that of the one that was earlier.
        keep_secret(path, SecretStr(secrets.token_urlsafe(32)), replace=False)
    try:
        return SecretStr(path.read_text().strip())
    except OSError as error:
        raise CorruptRunFolder(f"{path} cannot be read ({error.strerror}): whose run folder is it?") from None


def _uri_of(address: str, password: str, database: str) -> str:
    """The address with the reader in place of whoever it names.

    >>> _uri_of("mongodb://admin:x@a:1,b:2/?authSource=admin&replicaSet=rs", "secret", "flead")
    'mongodb://flead-reader:secret@a:1,b:2/flead?replicaSet=rs&authSource=flead'
    >>> _uri_of("mongodb+srv://cluster.example", "secret", "flead")
    'mongodb+srv://flead-reader:secret@cluster.example/flead?authSource=flead'
    """
    match = _URI.fullmatch(address)
    assert match  # noqa: S101  # connected by it already
    options = [part for part in (match["options"] or "").split("&") if part]
    kept = [part for part in options if not part.lower().startswith(_OF_ANOTHER_USER)]
    tail = "&".join([*kept, f"authSource={database}"])
    return f"{match['scheme']}{NAME}:{password}@{match['hosts']}/{database}?{tail}"


def _is_held_to_it(reading: MongoSettings) -> bool:
    """Whether the server refuses the reader something that readers may not; also proves that he can log in."""
    with translated(), connect(reading, "flead reader") as client:
        client[reading.database].command("ping")
        try:
            client.admin.command("getCmdLineOpts")
        except OperationFailure as error:
            if error.code != 13:  # Unauthorized
                raise
            return True
        return False
