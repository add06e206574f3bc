"""Files that are there whole or not at all, whoever reads them while we write; and the room that there is for them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flead.errors import FleadError

GB_TO_START, GB_TO_GO_ON = 2.0, 1.0
"""Free space that a run needs. The second is for its end: a savepoint, and what is still on its way."""


def free_gb(folder: Path) -> float:
    """Free space where a folder lies, GB."""
    return shutil.disk_usage(folder).free / 1e9


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise FleadError(f"{path} cannot be written ({error.strerror or error})") from None


def check_writable(path: Path, *read: Path) -> None:
    """Refuse, before the work and not after it, a place where no file can be written, and what is `read` for it."""
    path = path.expanduser().absolute()
    if path.exists() and any(source.exists() and path.samefile(source) for source in read):
        raise FleadError(f"{path} is read and would be overwritten: name another file")
    if path.is_dir():
        raise FleadError(f"{path} cannot be written (is a folder): name another file")
    place = path if _is_no_file(path) else path.parent
    if not (place.exists() and os.access(place, os.W_OK)):
        raise FleadError(f"{path} cannot be written (its folder does not exist or is not ours): name another file")


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its place at the end; where the work fails, nothing is left.

    What is no file, as `/dev/null` or `/dev/stdout`, is written to itself: nothing may take its place.
    """
    path = path.expanduser().absolute()
    if not _is_no_file(path):
        path = path.resolve()  # a link stays, and what it leads to is written
    temporary = path if _is_no_file(path) else path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        if temporary != path:
            temporary.replace(path)
    except OSError as error:
        raise FleadError(f"{path} cannot be written ({error.strerror or error}): name another file") from None
    finally:
        if temporary != path:
            temporary.unlink(missing_ok=True)


def _is_no_file(path: Path) -> bool:
    """Whether there is something that is neither a file nor a folder: a device, a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()
