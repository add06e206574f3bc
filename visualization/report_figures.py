"""The figures of the report: each a pure function of a part of it, drawn small enough for a page of paper.

Colour says one thing only: blue is more than zero, red less, the stronger the further away, and grey is not known. The
neutral middle is transparent, so that a figure reads on light and on dark.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from visualization.page import BLUE, FAINT, GREEN, INK, ORANGE, PURPLE, RED, is_known, new_figure, short, with_unit
from visualization.report_words import lookup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Matrix = NDArray[np.float64]
Evaluation = Mapping[str, Any]

HORIZON_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
WIDTH = 8.5
"""Of every figure, inches: the text block of A4 paper, at 84 %."""
WORST_SHOWN, FULL_SKILL, FULL_SHIFT = -0.5, 0.8, 4.0
"""Skills below the first are drawn at the edge; colour is full from these skills and shifts on, standard deviations."""
STRENGTH = 0.75
"""Opacity of the full colour: figures on it stay readable."""
MOST_COHORTS, MOST_SENSORS, MOST_MATRICES, MOST_LINES, MOST_DAYS = 4, 12, 6, 6, 62
LABELS_ALONG = 30
"""More names than this beside a side of a picture: every second or third is written."""


def tint(value: float | None, full: float) -> tuple[float, float, float, float]:
    """Colour of a number: red, green and blue and opacity, 0 to 1.

    >>> tint(0.0, 1.0)[3], tint(None, 1.0)[3], tint(9.0, 1.0)[3]
    (0.0, 0.3, 0.75)
    """
    if value is None or not math.isfinite(value):
        return (*_rgb(FAINT), 0.3)
    return (*_rgb(BLUE if value >= 0 else RED), min(abs(value) / full, 1.0) * STRENGTH)


def skill_by_version(
    cohorts: Mapping[str, Sequence[Evaluation]], horizons: Sequence[str], letters: Mapping[str, str]
) -> Figure:
    """Skill of each version of the global model: the mean, and each sensor in a panel of its own."""
    drawn = [
        (cohort, sensor, versions)
        for cohort, versions in list(cohorts.items())[:MOST_COHORTS]
        for sensor in (None, *sensors_of(versions, horizons)[: MOST_SENSORS - 1])
    ]
    across = min(3, len(drawn))
    down = math.ceil(len(drawn) / across)
    figure = _figure(WIDTH, 1.55 * down + 0.45)
    grid = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes in grid[len(drawn) :]:
        axes.set_visible(False)
    for axes, (cohort, sensor, versions) in zip(grid, drawn, strict=False):
        axes.axhline(0.0, color=FAINT, linewidth=0.8)
        at = [each["version"] for each in versions]
        for horizon, colour in zip(horizons, HORIZON_COLOURS, strict=False):
            skills = [skill_of(each, horizon, sensor) for each in versions]
            marker = "o" if len(at) < 60 else ""
            axes.plot(at, _at_the_edge(skills), color=colour, linewidth=1.3, marker=marker, markersize=2, label=horizon)
        name = "mean of the sensors" if sensor is None else short(sensor)
        axes.set_title(name if len(cohorts) == 1 else f"{letters[cohort]}: {name}", loc="left")
        axes.locator_params(axis="x", integer=True, nbins=6)
    for axes in grid[max(0, len(drawn) - across) : len(drawn)]:
        axes.set_xlabel("version")
    for axes in grid[::across]:
        axes.set_ylabel("skill")
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False)
    return figure


def skill_by_device(evaluation: Evaluation, horizons: Sequence[str]) -> Figure:
    """A dot for each device and horizon, from the device served worst to the one served best."""
    figure = _figure(WIDTH, 2.1)
    grid = figure.subplots(1, len(horizons), squeeze=False, sharey=True)[0]
    for axes, horizon, colour in zip(grid, horizons, HORIZON_COLOURS, strict=False):
        means = (device_skill(each, horizon) for each in evaluation["devices"].values())
        shown = _at_the_edge(sorted(value for value in means if value is not None))
        axes.axhline(0.0, color=FAINT, linewidth=0.8)
        axes.plot(range(1, len(shown) + 1), shown, "o", color=colour, markersize=3)
        axes.set_title(horizon, loc="left")
        axes.set_xlabel("devices, worst first")
        axes.locator_params(axis="x", integer=True)
        axes.margins(x=0.04, y=0.12)
    grid[0].set_ylabel("skill, mean of the sensors")
    return figure


def skill_by_hour(evaluation: Evaluation, horizons: Sequence[str]) -> Figure:
    """Skill by hour of day (across) and sensor (down), a panel for each horizon."""
    hours = evaluation["hours"]
    sensors = sensors_by_hour(evaluation, horizons)[:MOST_SENSORS]
    figure = _figure(WIDTH, (0.24 * len(sensors) + 0.5) * len(horizons) + 0.2)
    grid = figure.subplots(len(horizons), 1, squeeze=False)[:, 0]
    for axes, horizon in zip(grid, horizons, strict=True):
        values = [[lookup(hours, str(h), horizon, sensor, "skill") for h in range(24)] for sensor in sensors]
        _heat(axes, values, FULL_SKILL, "{:.2f}")
        axes.set_yticks(range(len(sensors)), [short(sensor) for sensor in sensors])
        axes.set_xticks(range(24), [f"{hour:02}" for hour in range(24)])
        axes.set_title(horizon, loc="left")
    grid[-1].set_xlabel("hour of day, UTC")
    return figure


def availability(
    names: Sequence[str], days: Sequence[str], present: Mapping[str, set[str]], uptime: Mapping[str, float | None]
) -> Figure:
    """Devices (down) by days (across): a mark where a device sent readings; uptime at the right."""
    figure = _figure(WIDTH, 0.14 * len(names) + 0.7)
    axes = figure.subplots()
    there = [[0.6 if day in present.get(name, ()) else 0.0 for day in days] for name in names]
    _heat(axes, there, 1.0)
    _names_along(axes.yaxis, names, most=60)
    _days_along(axes, days)
    axes.set_xlabel(f"day, UTC, from {days[0]} on; at the right: uptime")
    right = axes.secondary_yaxis("right")
    every = max(1, math.ceil(len(names) / 60))
    texts = ["" if (value := uptime.get(name)) is None else f"{value:.1%}" for name in names[::every]]
    right.set_yticks(range(0, len(names), every), texts, fontsize=_small(len(texts)))
    right.tick_params(length=0)
    right.spines[:].set_visible(False)
    return figure


def levels(names: Sequence[str], sensors: Sequence[str], statistics: Mapping[str, Any]) -> Figure:
    """Mean of each device's readings, and one standard deviation to both sides, a panel for each sensor."""
    shown = sensors[:8]
    figure = _figure(WIDTH, 1.25 * len(shown) + 0.6)
    grid = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
    for axes, sensor in zip(grid, shown, strict=True):
        mean = _vector(lookup(statistics, name, sensor, "mean") for name in names)
        sd = np.nan_to_num(_vector(lookup(statistics, name, sensor, "sd") for name in names))
        places = np.arange(len(names))
        axes.vlines(places, mean - sd, mean + sd, color=BLUE, alpha=0.4, linewidth=2)
        axes.plot(places, mean, "o", color=BLUE, markersize=3)
        axes.axhline(float(np.nanmedian(mean)), color=FAINT, linewidth=0.8) if np.isfinite(mean).any() else None
        axes.set_title(with_unit(sensor), loc="left")
        axes.locator_params(axis="y", nbins=4)
    _names_along(grid[-1].xaxis, names, most=60, rotation=90)
    grid[-1].set_xlim(-0.8, len(names) - 0.2)
    return figure


def sensor_correlation(cohorts: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Correlation of the sensors within a device, a panel for each cohort."""
    drawn = list(cohorts.items())[:MOST_COHORTS]
    side = min(0.45 * max(len(each["names"]) for _, each in drawn) + 1.0, 4.0)
    across = min(2, len(drawn))
    down = math.ceil(len(drawn) / across)
    figure = _figure(min(WIDTH, across * (side + 0.6)), down * side)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid[len(drawn) :]:
        axes.set_visible(False)
    for axes, (cohort, each) in zip(grid, drawn, strict=False):
        names = each["names"][: 2 * MOST_SENSORS]
        values = [list(row)[: len(names)] for row in each["matrix"][: len(names)]]
        _heat(axes, values, 1.0, "{:.2f}" if len(names) <= 8 else "", square=True)
        _names_along(axes.yaxis, names)
        _names_along(axes.xaxis, names, rotation=90 if len(names) > 4 or max(map(len, names)) > 11 else 0)
        axes.set_title(short(cohort, 30), loc="left") if len(cohorts) > 1 else None
    return figure


def device_correlation(sensors: Mapping[str, tuple[Sequence[str], Matrix]]) -> Figure:
    """Correlation of the devices' readings of one sensor, a panel for each sensor."""
    drawn = list(sensors.items())[:MOST_MATRICES]
    across = min(2, len(drawn))
    down = math.ceil(len(drawn) / across)
    figure = _figure(WIDTH * across / 2, 3.3 * down)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid[len(drawn) :]:
        axes.set_visible(False)
    for axes, (sensor, (names, matrix)) in zip(grid, drawn, strict=False):
        _heat(axes, matrix, 1.0, square=True)
        _names_along(axes.yaxis, names)
        _names_along(axes.xaxis, names, rotation=90)
        axes.set_title(short(sensor), loc="left")
    return figure


def shifts(drift: Mapping[str, Any], names: Sequence[str], sensors: Sequence[str], days: Sequence[str]) -> Figure:
    """Shift of each device (down) on each day (across), a panel for each sensor."""
    drawn = sensors[:MOST_MATRICES]
    across = min(2, len(drawn))
    down = math.ceil(len(drawn) / across)
    figure = _figure(WIDTH, down * min(0.1 * len(names) + 0.7, 4.9))
    grid = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes in grid[len(drawn) :]:
        axes.set_visible(False)
    for axes, sensor in zip(grid, drawn, strict=False):
        by_day = [_by_day(lookup(drift, name, sensor), "shift") for name in names]
        _heat(axes, [[known.get(day) for day in days] for known in by_day], FULL_SHIFT)
        _names_along(axes.yaxis, names)
        _days_along(axes, days, most=8)
        axes.set_title(short(sensor), loc="left")
    return figure


def daily_means(drift: Mapping[str, Any], pairs: Sequence[tuple[str, str]]) -> Figure:
    """Mean of each day and one standard deviation to both sides, of a few sensors of a few devices."""
    drawn = pairs[:MOST_LINES]
    across = min(3, len(drawn))
    down = math.ceil(len(drawn) / across)
    figure = _figure(WIDTH, 1.6 * down + 0.1)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes in grid[len(drawn) :]:
        axes.set_visible(False)
    for axes, (device, sensor) in zip(grid, drawn, strict=False):
        known = drift[device][sensor]
        days = sorted(known["days"])[-MOST_DAYS:]
        mean = _vector(_by_day(known, "mean").get(day) for day in days)
        sd = np.nan_to_num(_vector(_by_day(known, "sd").get(day) for day in days))
        places = np.arange(len(days))
        axes.fill_between(places, mean - sd, mean + sd, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(places, mean, color=BLUE, linewidth=1.2, marker="o", markersize=1.8)
        axes.set_title(f"{short(device)}: {with_unit(sensor)}", loc="left")
        axes.locator_params(axis="y", nbins=4)
        _days_along(axes, days, most=4)
    return figure


def sensors_of(versions: Sequence[Evaluation], horizons: Sequence[str]) -> list[str]:
    """The sensors that these versions were evaluated on."""
    return _in_order(sensor for each in versions for h in horizons for sensor in (each.get("sensors") or {}).get(h, ()))


def sensors_by_hour(evaluation: Evaluation, horizons: Sequence[str]) -> list[str]:
    """The sensors of which the skill is known by hour of day."""
    hours = evaluation.get("hours") or {}
    return _in_order(sensor for each in hours.values() for h in horizons for sensor in each.get(h) or ())


def skill_of(evaluation: Evaluation, horizon: str, sensor: str | None = None) -> float | None:
    """Skill of a version for a sensor; without one the mean over sensors that the report holds."""
    if sensor is not None:
        return _number(lookup(evaluation, "sensors", horizon, sensor, "skill"))
    given = _number(lookup(evaluation, "skill", horizon))
    return given if given is not None else device_skill(evaluation.get("sensors") or {}, horizon)


def device_skill(sensors_by_horizon: Mapping[str, Any], horizon: str) -> float | None:
    """The mean over the sensors of which the skill is known."""
    skills = [_number(lookup(each, "skill")) for each in (sensors_by_horizon.get(horizon) or {}).values()]
    known = [skill for skill in skills if skill is not None]
    return math.fsum(known) / len(known) if known else None


def _figure(width: float, height: float) -> Figure:
    """With room at its sides: no two renderers set a text equally wide."""
    figure = new_figure(width, height)
    figure.get_layout_engine().set(w_pad=0.08)  # type: ignore[union-attr, call-arg]
    return figure


def _by_day(known: Mapping[str, Any] | None, what: str) -> dict[str, float | None]:
    return dict(zip(known.get("days") or (), known.get(what) or (), strict=False)) if known else {}


def _heat(
    axes: Axes, values: Sequence[Sequence[float | None]] | Matrix, full: float, texts: str = "", *, square: bool = False
) -> None:
    """Cells tinted by their value, and their values in them where `texts` says how."""
    colours = np.array([[tint(value, full) for value in row] for row in values])
    m, n = colours.shape[:2]
    fine = np.kron(colours, np.ones((8, 8, 1)))  # so large that no viewer blurs one cell into the next
    axes.imshow(
        np.round(fine * 255).astype(np.uint8),
        interpolation="none",
        extent=(-0.5, n - 0.5, m - 0.5, -0.5),
        aspect="equal" if square else "auto",
    )
    axes.spines[:].set_color(FAINT)
    axes.spines[:].set_linewidth(0.5)
    axes.tick_params(length=0)
    for i, row in enumerate(values if texts else ()):
        for j, value in enumerate(row):
            if is_known(value):
                axes.text(j, i, texts.format(round(value, 2) + 0.0), ha="center", va="center", fontsize=6.5, color=INK)


def _names_along(axis: Any, names: Sequence[str], *, most: int = LABELS_ALONG, rotation: float = 0) -> None:
    every = max(1, math.ceil(len(names) / most))
    texts = [short(name) for name in names[::every]]
    axis.set_ticks(range(0, len(names), every), texts, rotation=rotation, fontsize=_small(len(texts)))


def _days_along(axes: Axes, days: Sequence[str], most: int = 10) -> None:
    every = max(1, math.ceil(len(days) / most))
    axes.set_xticks(range(0, len(days), every), [day[5:] for day in days[::every]])


def _small(names: int) -> float:
    return 8.0 if names <= 12 else 7.0 if names <= 25 else 6.2


def _at_the_edge(skills: Sequence[float | None]) -> Matrix:
    clipped: Matrix = np.maximum(_vector(skills), WORST_SHOWN)
    return clipped


def _vector(values: Any) -> Matrix:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _number(value: Any) -> float | None:
    return float(value) if is_known(value) else None


def _in_order(names: Any) -> list[str]:
    return list(dict.fromkeys(names))


def _rgb(colour: str) -> tuple[float, float, float]:
    return int(colour[1:3], 16) / 255, int(colour[3:5], 16) / 255, int(colour[5:7], 16) / 255
