"""A cleaned report, and what several of its sections take from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from visualization import report_figures as figures
from visualization.page import inline
from visualization.report_blocks import Picture
from visualization.report_figures import Evaluation
from visualization.report_words import naturally

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOST_DEVICES, MOST_SENSORS, MOST_ROWS = 60, 12, 480
"""Of a table or figure: devices, sensors, and rows of the tables per sensor together. The rest is in report.json."""
MOST_VERSIONS, MOST_COHORTS, MOST_NAMED = 40, 4, 20


@dataclass(frozen=True)
class Content:
    """A cleaned report, and what several sections take from it.

    Attributes
    ----------
    devices:
        every device named anywhere, those most in need of attention first
    cohorts:
        the versions of each cohort's global model, oldest first; the largest cohort first
    letters:
        what each cohort is called where its name would be too long
    """

    report: Mapping[str, Any]
    devices: Sequence[str]
    sensors: Sequence[str]
    days: Sequence[str]
    cohorts: Mapping[str, Sequence[Evaluation]]
    letters: Mapping[str, str]
    horizons: Sequence[str]
    draw: Callable[[Callable[[], Figure], str], Picture] = field(repr=False)


def content_of(report: Mapping[str, Any]) -> Content:
    """What the sections take from a cleaned report."""
    devices = _devices(report)
    sensors = list(dict.fromkeys(s for part in ("devices", "drift") for d in mapped(report, part).values() for s in d))
    evaluations = sorted(report.get("evaluation") or (), key=lambda each: each["version"])
    cohorts: dict[str, list[Evaluation]] = {}
    for each in evaluations:
        cohorts.setdefault(each["cohort"], []).append(each)
    largest = sorted(cohorts, key=lambda cohort: (-(cohorts[cohort][-1].get("num_devices") or 0), cohort))
    others = {each.get("cohort") for each in mapped(report, "quality").values()} - {None}
    horizons = list(dict.fromkeys(h for each in evaluations for h in (each.get("skill") or each.get("sensors") or ())))
    numbers = count(1)

    def draw(make: Callable[[], Figure], caption: str) -> Picture:
        from markupsafe import Markup

        return Picture(Markup(inline(make, next(numbers))), caption)  # noqa: S704 (Matplotlib escapes every text)

    return Content(
        report,
        devices,
        naturally(sensors) if len(sensors) > MOST_SENSORS else sensors,
        _days(report),
        {cohort: cohorts[cohort] for cohort in largest},
        {cohort: _letter(place) for place, cohort in enumerate(dict.fromkeys([*largest, *naturally(others)]))},
        horizons,
        draw,
    )


def _letter(place: int) -> str:
    return chr(ord("A") + place) if place < 26 else str(place + 1)


def _devices(report: Mapping[str, Any]) -> list[str]:
    ranked = [each["device"] for each in report.get("ranking") or ()]
    named = {device for part in ("devices", "quality", "drift") for device in mapped(report, part)}
    return list(dict.fromkeys([*ranked, *naturally(named)]))


def _days(report: Mapping[str, Any]) -> list[str]:
    in_drift = {day for d in mapped(report, "drift").values() for s in d.values() for day in s.get("days") or ()}
    return sorted({*(report.get("days") or ()), *in_drift})[-figures.MOST_DAYS :]


def shown_of(content: Content, known: Mapping[str, Any]) -> list[str]:
    """Of the devices of which something is known those most in need of attention, in the order of their names."""
    return naturally([device for device in content.devices if device in known][:MOST_DEVICES])


def mapped(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a report that is a map; empty where the report lacks it."""
    found: Mapping[str, Any] = report.get(name) or {}
    return found
