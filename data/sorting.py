"""Lines of any number sorted by time in flat memory: sorted runs in temporary files, merged as they are read."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from data.fields import KEY_WIDTH
from flead.errors import Unavailable

Progress = Callable[[int], None]
"""Called with the number of lines read so far."""

_NUMBER_WIDTH = 12
_LINE_START = KEY_WIDTH + _NUMBER_WIDTH
_REPORT_EVERY = 10_000
_MAX_RUNS = 128
"""Open files of one merge; the usual limit of a process is 1024."""


class SortedLines:
    """The lines of a file in the order of their keys, and of the file where keys are equal.

    Reading them is repeatable. A record of a run is `key (26 bytes), number (12 digits), line, line feed`: it sorts
    as plain bytes, without a key function, and keeps the line's number.

    Parameters
    ----------
    key:
        gives `KEY_WIDTH` bytes for a line
    chunk_bytes:
        how much text one run holds; memory in use is about four times as much
    """

    def __init__(self, key: Callable[[bytes], bytes], chunk_bytes: int = 8 * 2**20) -> None:
        self._key = key
        self._chunk_bytes = chunk_bytes
        self._buffer: list[bytes] = []
        self._runs: list[Path] = []
        self._made = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._buffer.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def fill(self, lines: Iterable[tuple[int, bytes]], on_progress: Progress | None = None) -> None:
        """Take all lines in, as (number, line without line feed).

        Raises
        ------
        Unavailable
            the temporary folder is full
        """
        key, held, count = self._key, 0, 0
        for number, line in lines:
            self._buffer.append(b"%b%012d%b\n" % (key(line), number, line))
            held += len(line) + _LINE_START
            count += 1
            if held >= self._chunk_bytes:
                self._spill()
                held = 0
            if on_progress is not None and count % _REPORT_EVERY == 0:
                on_progress(count)
        self._buffer.sort()
        if on_progress is not None:
            on_progress(count)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """Give (number, line) in order."""
        with ExitStack() as stack:
            for record in self._merged(stack):
                yield int(record[KEY_WIDTH:_LINE_START]), record[_LINE_START:-1]

    def _merged(self, stack: ExitStack) -> Iterable[bytes]:
        runs = [stack.enter_context(run.open("rb")) for run in self._runs]
        return heapq.merge(*runs, self._buffer) if runs else self._buffer

    def _spill(self) -> None:
        """Write the buffer out as a run; fold the runs into one before they are too many to open."""
        self._buffer.sort()
        self._write(self._buffer)
        self._buffer.clear()
        if len(self._runs) >= _MAX_RUNS:
            old = self._runs.copy()
            with ExitStack() as stack:
                self._write(self._merged(stack))
            for run in old:
                run.unlink()
            self._runs = self._runs[-1:]

    def _write(self, records: Iterable[bytes]) -> None:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="flead-replay-")
        run = Path(self._folder.name) / f"{self._made}.run"
        try:
            with run.open("wb") as file:
                file.writelines(records)
        except OSError as error:
            raise Unavailable(
                f"cannot sort in {self._folder.name}: {error.strerror}; "
                "make room there, or name another folder in the environment variable TMPDIR"
            ) from error
        self._made += 1
        self._runs.append(run)
