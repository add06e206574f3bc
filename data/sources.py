"""A file of readings: opened, recognised and read lazily, gzip or plain, in the order of the file."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import IO, cast

from data.formats import FORMATS, Format, Rejected
from flead.errors import BadDataset
from flead.messages import Reading

_HEAD_LINES = 50
_HEAD_BYTES = 65_536
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Dataset:
    """A file whose format is known. Reading it twice gives the same twice."""

    path: Path
    format: Format

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Every record's line with its number in the file, from 1; headers are left out.

        Raises
        ------
        BadDataset
            the gzip data is corrupt or ends early, or the file cannot be read on
        """
        skip = self.format.header_lines
        with _opened(self.path) as file:
            for number, line in enumerate(file, 1):
                if number > skip:
                    yield number, line.rstrip(b"\r\n")

    def readings(self) -> Iterator[Reading | Rejected]:
        """Every record, in the order of the file; raises what `lines` raises."""
        parse = self.format.parse
        for number, line in self.lines():
            yield parse(line, number)


def open_dataset(path: str | Path) -> Dataset:
    """Recognise the format of a file by its first lines.

    Raises
    ------
    BadDataset
        there is no such file, it is empty, or it has none of the known formats

    >>> open_dataset("missing.csv")
    Traceback (most recent call last):
    flead.errors.BadDataset: missing.csv cannot be read: No such file or directory
    """
    path = Path(path)
    head = _head(path)
    if not any(line.strip() for line in head):
        raise BadDataset(f"{path} holds no readings: it is empty, or starts with empty lines only")
    stem = path.name.split(".")[0]
    for candidate in FORMATS:
        try:
            found = candidate.detect(head, stem)
        except BadDataset as error:
            raise BadDataset(f"{path}: {error}") from None
        if found is not None:
            return Dataset(path, found)
    known = "".join(f"\n  - {candidate.name}" for candidate in FORMATS)
    raise BadDataset(f"{path} has no known format: its first line is {head[0][:80]!r}. Known formats are:{known}")


def _head(path: Path) -> list[bytes]:
    """Read the first lines, each cut at `_HEAD_BYTES`: a file without line ends must not fill the memory."""
    with _opened(path) as file:
        return [line.rstrip(b"\r\n") for line in islice(iter(lambda: file.readline(_HEAD_BYTES), b""), _HEAD_LINES)]


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Give the file's plain bytes behind a byte order mark; gzip is told by its first two bytes, not by the name."""
    try:
        with path.open("rb") as raw:
            if not raw.peek(2).startswith(b"\x1f\x8b"):
                yield _behind_mark(raw)
                return
            with gzip.GzipFile(fileobj=raw) as unpacked:
                yield _behind_mark(unpacked)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadDataset(f"{path} is a corrupt or truncated gzip file ({error}): fetch it again") from error
    except OSError as error:
        raise BadDataset(f"{path} cannot be read: {error.strerror or error}") from error


def _behind_mark(file: BufferedReader | gzip.GzipFile) -> IO[bytes]:
    """Skip the byte order mark that Windows' tools write: it is part of no reading."""
    if file.peek(3).startswith(_BYTE_ORDER_MARK):
        file.read(3)
    return cast("IO[bytes]", file)
