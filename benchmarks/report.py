"""How the benchmarks print what they found: a Markdown table for people, one JSON object for scripts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; floats to one decimal, None as a dash.

    >>> print(table(("rate", "p50"), [(1_000, 8.26), (5_000, None)]))
    | rate | p50 |
    |---|---|
    | 1,000 | 8.3 |
    | 5,000 | - |
    """
    lines = [header, *([_cell(value) for value in row] for row in rows)]
    shown = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([shown[0], "|" + "---|" * len(header), *shown[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def keep(path: Path | None, report: dict[str, Any]) -> None:
    """Write a report as JSON where a file was named."""
    if path is not None:
        path.write_text(json.dumps(report, indent=1) + "\n")


def write(path: Path, section: str, text: str) -> None:
    """Put a text between a document's `<!-- section -->` and `<!-- /section -->`; ends where it has none."""
    whole = path.read_text()
    opening, closing = f"<!-- {section} -->", f"<!-- /{section} -->"
    before, _, rest = whole.partition(opening)
    _, found, after = rest.partition(closing)
    if not found:
        sys.exit(f"{path} has no {opening} ... {closing}")
    path.write_text(f"{before}{opening}\n\n{text}\n\n{closing}{after}")
