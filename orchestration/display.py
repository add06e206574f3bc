"""What a run looks like on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kafka.topics import READINGS
from orchestration.status import Status

_COLOURS = {
    "running": "green",
    "finished": "green",
    "stopped": "dim",
    "starting": "yellow",
    "backoff": "red",
    "failed": "bold red",
    "fatal": "bold red",
}


def picture(status: Status) -> RenderableType:
    """The services beside the counts."""
    grid = Table.grid(padding=(0, 4))
    grid.add_row(_services(status), _counts(status))
    lasts = "after" if status.state == "stopped" else "for"
    total = status.timings_s.get("total", 0)
    parts: list[RenderableType] = [
        Text(f"FLEAD {status.state} {lasts} {total:.0f} s in {status.run_dir}", style="bold"),
        grid,
    ]
    if status.dead_letter_reasons:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(status.dead_letter_reasons.items()))
        parts.append(Text(f"dead letters: {reasons}", style="yellow"))
    return Group(*parts)


def verdict(status: Status) -> RenderableType:
    """The checks at the end of a run, and its figures."""
    table = Table("check", "", "what was found", box=None, header_style="bold")
    for name, check in status.checks.items():
        table.add_row(
            name, Text("ok", style="green") if check["ok"] else Text("FAILED", style="bold red"), check["detail"]
        )
    return table


def one_line(status: Status) -> str:
    """A status for logs."""
    counts, latency = status.counts, status.latency_ms
    return (
        f"{status.timings_s.get('total', 0):.0f} s {status.state}: {counts.get('readings', 0)} readings, "
        f"{counts.get('taken_up', 0)} taken up, {counts.get('rounds', 0)} rounds, "
        f"{counts.get('dead_letters', 0)} dead letters, "
        f"lag {status.lag.get(READINGS, 0)}, p99 {latency.get('p99')} ms"
    )


def _services(status: Status) -> Table:
    table = Table("service", "state", "pid", "port", "restarts", box=None, header_style="bold")
    for name, service in status.services.items():
        state = Text(service["state"], style=_COLOURS.get(service["state"], "yellow"))
        numbers = (service[name] for name in ("pid", "port", "restarts"))
        table.add_row(name, state, *("" if number is None else str(number) for number in numbers))
    if status.job and status.state != "stopped":
        state = status.job["state"].lower()
        table.add_row("learning job", Text(state, _COLOURS.get(state, "yellow")), "", "", str(status.job["restarts"]))
    return table


def _counts(status: Status) -> Table:
    counts, table = status.counts, Table(box=None, show_header=False)
    rows: list[tuple[str, Any]] = [
        ("readings sent", counts.get("readings")),
        ("taken up by learners", counts.get("taken_up")),
        ("devices", counts.get("devices")),
        ("local updates", counts.get("local_updates")),
        ("rounds", counts.get("rounds")),
        ("devices on a global model", counts.get("devices_adopted")),
        ("anomalies", counts.get("anomalies")),
        ("dead letters", counts.get("dead_letters")),
        ("stored readings", counts.get("device_data")),
        ("lag of the learners", status.lag.get(READINGS)),
    ]
    if status.mart:
        rows.append(("lag of the mart", _mart(status.mart)))
    for name, value in rows:
        table.add_row(name, Text(_plain(value), justify="right"))
    latency = status.latency_ms
    if latency.get("p50") is not None:
        table.add_row("latency p50 / p99", Text(f"{latency['p50']:.0f} / {latency['p99']:.0f} ms", justify="right"))
    first, last = status.error.get("first_minute"), status.error.get("last_minute")
    if first is not None:
        shown = f"{first:.3f}" + (f" → {last:.3f} sd" if last is not None else " sd")
        table.add_row("mean prediction error", Text(shown, justify="right"))
    return table


def _mart(lag: dict[str, Any]) -> str:
    if not lag["follows"]:
        return "nobody follows"
    return "copying" if lag["behind_s"] is None else f"{lag['behind_s']:.1f} s"


def _plain(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)


def some_of(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are.

    >>> some_of(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
