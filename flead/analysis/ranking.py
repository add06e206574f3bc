"""Which devices need attention: faults of all kinds in one unit, and the reasons in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flead.analysis.judging import mean_known

LARGE_SHIFT = 3.0
"""Standard deviations that a day may lie from the days before it without being worth a word."""


def rank(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Devices, most in need of attention first.

    A point is one per cent: of the time silent; of values missing, impossible or stuck (beyond the median device's
    share for that sensor); of readings with a wrong clock; of error above that of no change. Each standard deviation
    beyond `LARGE_SHIFT` by which the last day lies from those before counts ten.
    """
    quality, newest = report["quality"], _newest(report["evaluation"])
    usual = _usual_stuck(quality)
    ranking = []
    for device, own in quality.items():
        parts: list[tuple[float, str]] = []
        silent = 100.0 * (1.0 - own["uptime"])
        parts.append((silent, f"silent {silent:.0f} % of the time"))
        wrong_clock = 100.0 * (own["clock"]["future"] + (own["clock"]["out_of_order"] or 0)) / max(own["readings"], 1)
        parts.append((wrong_clock, f"{wrong_clock:.1f} % of readings out of order or from the future"))
        for sensor, q in own["sensors"].items():
            count = report["devices"][device][sensor]["count"]
            missing, stuck = 100.0 * q["missing"], 100.0 * max(q["stuck"] - usual[sensor], 0.0)
            outside = 100.0 * (q["out_of_range"] or 0) / max(count, 1)
            parts.append((missing, f"{missing:.0f} % of {sensor} missing"))
            parts.append((stuck, f"{sensor} stuck {100.0 * q['stuck']:.0f} % of the time"))
            parts.append((outside, f"{outside:.1f} % of {sensor} out of range"))
            drift = report["drift"][device][sensor]
            shift = drift["shift"][-1]
            if shift is not None and len(report["days"]) > 1 and drift["days"][-1] == report["days"][-1]:
                beyond = max(abs(shift) - LARGE_SHIFT, 0.0)
                parts.append((10.0 * beyond, f"{sensor} {shift:+.1f} sd from the days before"))
        for horizon, cells in newest.get(own["cohort"], {}).get(device, {}).items():
            skill = mean_known([cell["skill"] for cell in cells.values()])
            if skill is not None and skill < 0.0:
                parts.append((-100.0 * skill, f"forecasts ({horizon}) {-100.0 * skill:.0f} % worse than no change"))
        reasons = [text for points, text in sorted(parts, key=lambda p: -p[0]) if points >= 0.5]
        ranking.append({"device": device, "points": round(sum(p for p, _ in parts), 1), "reasons": reasons})
    return sorted(ranking, key=lambda row: (-row["points"], row["device"]))


def _usual_stuck(quality: Mapping[str, Any]) -> dict[str, float]:
    """The median device's share of stuck values, by sensor: light is dark every night."""
    shares: dict[str, list[float]] = {}
    for own in quality.values():
        for sensor, q in own["sensors"].items():
            shares.setdefault(sensor, []).append(q["stuck"])
    return {sensor: float(np.median(each)) for sensor, each in shares.items()}


def _newest(evaluation: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The figures by device of each cohort's newest model."""
    return {e["cohort"]: e["devices"] for e in sorted(evaluation, key=lambda e: e["version"]) if "devices" in e}
