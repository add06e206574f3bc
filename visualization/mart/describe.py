"""The tables in the page about the mart, from the declaration: `python -m visualization.mart.describe docs/mart.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from flead.errors import FleadError
from visualization.mart.schema import ALL
from visualization.mart.tables import Table

_OPENING, _CLOSING = "<!-- tables -->", "<!-- /tables -->"


def tables() -> str:
    """What the page says of every table, in Markdown."""
    return "\n".join(line for table in ALL for line in _section(table))


def put(page: str) -> str:
    """The page with its tables brought up to date.

    >>> put("Before <!-- tables -->old<!-- /tables --> after").startswith("Before <!-- tables -->")
    True

    Raises
    ------
    FleadError
        where the page has no place for them
    """
    before, opening, rest = page.partition(_OPENING)
    _, closing, after = rest.partition(_CLOSING)
    if not closing:
        raise FleadError(f"the page has no {_OPENING} ... {_CLOSING}: put it where the tables belong")
    return f"{before}{opening}\n\n{tables()}\n{closing}{after}"


def _section(table: Table) -> Iterator[str]:
    yield f"### {table.name}\n"
    yield f"{table.says} Primary key: {_names(table.key)}.\n"
    yield "| column | type | unit | what |\n|---|---|---|---|"
    for column in table.columns:
        nullable = ", may be null" if column.nullable else ""
        yield f"| `{column.name}` | {column.type}{nullable} | {column.unit} | {column.says} |"
    if table.indexes:
        indexes = (f"{_names(index.columns)}{' (BRIN)' if index.brin else ''}" for index in table.indexes)
        yield f"\nIndexes: {'; '.join(indexes)}."
    yield ""


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(put(path.read_text()))
