"""Files that are there whole or not at all, whoever reads them while we write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flead.errors import FleadError


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its place at the end; where the work fails, nothing is left."""
    path = path.expanduser().absolute()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise FleadError(f"{path} cannot be written ({error.strerror or error}): name another file") from None
    finally:
        temporary.unlink(missing_ok=True)
