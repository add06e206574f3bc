"""What has changed since the report before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TOLD = 0.05
"""A change since the previous report, as a share, that is worth a line."""


def compared(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What has changed since an earlier report of the same source."""
    changes = [_change("readings", before["readings"], after["readings"])]
    changes.append(_change("rejected", _sum(before["rejected"]), _sum(after["rejected"]), good=-1))
    old, new = _skills(before["evaluation"]), _skills(after["evaluation"])
    for (cohort, horizon), skill in new.items():
        what = f"skill of the newest global model, {horizon} ({cohort})"
        changes.append(_change(what, old.get((cohort, horizon)), skill, good=1))
    for device, own in after["quality"].items():
        then = before["quality"].get(device)
        if then is not None:
            changes.append(_change("uptime", then["uptime"], own["uptime"], device, good=1))
            for sensor, q in own["sensors"].items():
                if sensor in then["sensors"]:
                    for name in ("missing", "stuck"):
                        was = then["sensors"][sensor][name]
                        changes.append(_change(f"{name}, {sensor}", was, q[name], device, good=-1))
    return {
        "created": before["created"],
        "changes": [c for c in changes if _worth_telling(c)],
        "new_devices": sorted(after["quality"].keys() - before["quality"].keys()),
        "gone_devices": sorted(before["quality"].keys() - after["quality"].keys()),
    }


def _skills(evaluation: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float | None]:
    """Mean skill of each cohort's newest model, by cohort and horizon."""
    ordered = sorted(evaluation, key=lambda e: e["version"])
    return {(e["cohort"], horizon): skill for e in ordered for horizon, skill in e["skill"].items()}


def _change(
    what: str, before: float | None, after: float | None, device: str | None = None, *, good: int = 0
) -> dict[str, Any]:
    """One line; `good`: 1 where more is better, -1 where less is, 0 where neither."""
    better = None
    if good and before is not None and after is not None and before != after:
        better = (after > before) == (good > 0)
    return {"what": what, "before": before, "after": after, "device": device, "better": better}


def _worth_telling(change: Mapping[str, Any]) -> bool:
    before, after = change["before"], change["after"]
    if before is None or after is None:
        return before is not after
    return bool(abs(after - before) > (TOLD if change["device"] is not None else 0.0))


def _sum(counts: Mapping[str, int]) -> int:
    return sum(counts.values())
