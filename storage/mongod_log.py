"""What a mongod's log says: one JSON object a line since MongoDB 4.4."""

from __future__ import annotations

import json
from pathlib import Path


def first_error(log_file: Path, start: int = 0) -> str:
    """Find what a mongod's log from byte `start` on first calls an error, in short; without one, its last line."""
    try:
        with log_file.open("rb") as file:
            file.seek(start)
            lines = file.read(1_000_000).decode(errors="replace").splitlines()
    except OSError:
        return f"it wrote no log to {log_file}"
    entries = [entry for entry in map(_log_entry, lines) if entry]
    errors = [text for severity, text in entries if severity in "FE"]
    return " ".join((errors[0] if errors else entries[-1][1] if entries else "its log is empty").split())[:300]


def _log_entry(line: str) -> tuple[str, str] | None:
    """Read severity and text of one line.

    >>> _log_entry('{"s": "E", "msg": "No space", "attr": {"error": "28"}}')
    ('E', 'No space {"error": "28"}')
    """
    try:
        entry = json.loads(line)
        return entry["s"], f"{entry['msg']} {json.dumps(entry['attr'])}" if "attr" in entry else entry["msg"]
    except (ValueError, KeyError, TypeError):
        return ("I", line) if line.strip() else None
