"""Where devices are, from a file."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path

from flead.errors import BadConfiguration


def read_positions(path: Path) -> dict[str, tuple[float, float]]:
    """Read where devices are: CSV with the header `device_id,x,y`, or lines `moteid x y` as Intel Lab has them.

    Raises
    ------
    BadConfiguration
        naming the file, the line and what is wrong with it
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise BadConfiguration(f"spark.positions: {path} cannot be read ({why})") from None
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    found: dict[str, tuple[float, float]] = {}
    for number, fields in _records(path, numbered):
        try:
            name, (x, y) = fields[0], (float(part) for part in fields[1:])
        except (ValueError, IndexError):
            raise _wrong(path, number, "it needs a device, x and y") from None
        if not (isfinite(x) and isfinite(y)):
            raise _wrong(path, number, "a position is no finite number")
        if found.setdefault(name, (x, y)) != (x, y):
            raise _wrong(path, number, f"{name} has two positions")
    if not found:
        raise BadConfiguration(f"spark.positions: {path} names no device")
    return found


def _records(path: Path, lines: Sequence[tuple[int, str]]) -> Iterable[tuple[int, list[str]]]:
    """The fields of each line, device, x and y first, and the line's number."""
    if not lines or "," not in lines[0][1]:
        for number, line in lines:
            mote, *rest = line.split()
            if not re.fullmatch(r"\d+", mote):
                raise _wrong(path, number, "it is neither CSV with the header device_id,x,y nor `moteid x y`")
            yield number, [f"mote-{int(mote)}", *rest]
        return
    header = [name.strip() for name in next(csv.reader([lines[0][1]]))]
    if not {"device_id", "x", "y"} <= set(header):
        raise _wrong(path, lines[0][0], f"the header must name device_id, x and y, it is {','.join(header)}"[:200])
    for number, line in lines[1:]:
        named = dict(zip(header, next(csv.reader([line])), strict=False))
        yield number, [named.get("device_id", "").strip(), named.get("x", ""), named.get("y", "")]


def _wrong(path: Path, number: int, why: str) -> BadConfiguration:
    return BadConfiguration(f"spark.positions: {path}, line {number}: {why}")
