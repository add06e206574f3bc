"""Pictures of what was found: PNG or SVG bytes, and one HTML page that needs nothing else.

Pure functions of data; `page` holds what all pages share.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from flead.errors import BadConfiguration
from visualization.page import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Section,
    as_dates,
    drawing_style,
    is_known,
    new_figure,
    page,
    time_axis,
    with_unit,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Vector = NDArray[np.float64]
Kind = Literal["png", "svg"]

METHODS: Mapping[str, tuple[str, str]] = {
    "persistence": (FAINT, "no change is expected"),
    "seasonal": (SKY, "the change of an earlier day at the same time"),
    "local": (ORANGE, "a model of the device's own data only"),
    "federated": (BLUE, "the global model, made of weights alone"),
    "personalised": (GREEN, "the global model, fine-tuned on the device"),
    "streamed": (PURPLE, "the stream's learner, given the global model, learning on"),
    "centralised": (RED, "one model on everybody's data, for comparison"),
}
"""Colour and explanation of each method."""
WORST_SHOWN = -0.25
"""Skills below it are drawn at the edge: a model that failed must not squeeze the others together."""
MOST_SENSORS, MOST_DEVICES, MOST_PANELS = 12, 12, 60
PIXELS = 1_100
"""Width of a long series, in steps of which each shows its lowest and its highest value."""


@dataclass(frozen=True)
class Forecasts:
    """Forecasts of one device: (m,) times at which they were made, s; (m, n) values then; (m, n) by method."""

    device: str
    sensors: tuple[str, ...]
    horizon: str
    horizon_s: float
    times: Vector
    values: Vector
    forecasts: Mapping[str, Vector]


@dataclass(frozen=True)
class Alarms:
    """One device's scored readings: (m,) times, s; (m, n) values; (m,) score, alarm and blamed sensor (-1: none)."""

    device: str
    sensors: tuple[str, ...]
    times: Vector
    values: Vector
    score: Vector
    is_anomaly: NDArray[np.bool_]
    sensor: NDArray[np.int64]


def thinned(times: Vector, values: Vector, steps: int = PIXELS) -> NDArray[np.int64]:
    """Which points to draw: the lowest and the highest of each of `steps` equal spans of time, so no spike is lost.

    Parameters
    ----------
    times, values:
        (m,), in time order; NaN where there is no value (a span of nothing else keeps one, and so the gap)

    >>> spike = np.zeros(10_000)
    >>> spike[7_777] = 1.0
    >>> 7_777 in thinned(np.arange(10_000.0), spike, 100)
    True
    """
    m = len(times)
    if m <= 2 * steps:
        return np.arange(m)
    edges = np.searchsorted(times, np.linspace(times[0], times[-1], steps + 1)[1:-1])
    kept: list[int] = [0, m - 1]
    for start, end in zip((0, *edges.tolist()), (*edges.tolist(), m), strict=True):
        part = values[start:end]
        known = np.flatnonzero(np.isfinite(part))
        if known.size:
            kept += [start + int(known[part[known].argmin()]), start + int(known[part[known].argmax()])]
        elif end > start:
            kept.append(start)
    return np.unique(np.array(kept, dtype=np.int64))


def skill_by_method(report: Mapping[str, Any]) -> Figure:
    """Skill of each method with its 95 % interval, a panel for each sensor and horizon."""

    def draw(axes: Axes, horizon: str, sensor: str, methods: Sequence[str]) -> None:
        skills, bounds = report["skill"][horizon][sensor], report["skill_interval_95"][horizon][sensor]
        for y, method in enumerate(methods):
            value, (low, high) = skills[method], bounds[method]
            if not is_known(value):
                continue
            colour = METHODS[method][0]
            shown = max(value, WORST_SHOWN)
            axes.plot([max(low, WORST_SHOWN), max(high, WORST_SHOWN)], [y, y], color=colour, linewidth=2)
            axes.plot(shown, y, marker="o" if value >= WORST_SHOWN else "<", color=colour, markersize=6)
            axes.annotate(f"{value:.2f}", (shown, y), (0, 5), textcoords="offset points", ha="center", fontsize=7)
        _methods_below(axes, methods)

    return _panels(report, draw)


def skill_by_device(report: Mapping[str, Any]) -> Figure:
    """Skill of each method on each device, a dot each; the bar is the median."""
    by_device = report["skill_by_device"]

    def draw(axes: Axes, horizon: str, sensor: str, methods: Sequence[str]) -> None:
        rng = np.random.default_rng(0)
        for y, method in enumerate(methods):
            known = [each[horizon][sensor][method] for each in by_device.values()]
            values = np.array([value for value in known if is_known(value)])
            if not values.size:
                continue
            shown, colour = np.maximum(values, WORST_SHOWN), METHODS[method][0]
            at = y + rng.uniform(-0.25, 0.25, values.size)
            axes.plot(shown, at, ".", color=colour, alpha=0.55, markersize=5, markeredgewidth=0)
            axes.plot([max(np.median(values), WORST_SHOWN)] * 2, [y - 0.38, y + 0.38], color=INK, linewidth=1.5)
        _methods_below(axes, methods)

    return _panels(report, draw)


def cold_start(report: Mapping[str, Any]) -> Figure:
    """Skill on a device of which one hour is known, by horizon and sensor."""
    found = report["skill"]["cold_start"]
    horizons, sensors = list(found), list(next(iter(found.values())))[:MOST_SENSORS]
    figure = new_figure(8.5, 0.8 + 0.42 * len(sensors) * ((len(horizons) + 1) // 2))
    grid = figure.subplots(1, len(horizons), sharey=True, squeeze=False)[0]
    for axes, horizon in zip(grid, horizons, strict=True):
        methods = [method for method in next(iter(found[horizon].values())) if method != "persistence"]
        for j, method in enumerate(methods):
            height = 0.7 / len(methods)
            for i, sensor in enumerate(sensors):
                value = found[horizon][sensor][method]
                if is_known(value):
                    y = i + (j - (len(methods) - 1) / 2) * height
                    label = method if i == 0 else None
                    axes.barh(y, max(value, WORST_SHOWN), height * 0.9, color=METHODS[method][0], label=label)
        axes.set_yticks(range(len(sensors)), sensors)
        axes.set_title(horizon, loc="left")
        axes.set_xlabel("skill over persistence")
        axes.axvline(0.0, color=FAINT, linewidth=1)
        if sensors and not axes.yaxis_inverted():
            axes.invert_yaxis()
    if grid[0].get_legend_handles_labels()[0]:
        figure.legend(*grid[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def skill_by_round(report: Mapping[str, Any]) -> Figure:
    """Mean skill of the global model after each round."""
    rounds = [np.nan if value is None else value for value in report["skill_by_round"]]
    figure = new_figure(8.5, 2.6)
    axes = figure.subplots()
    axes.plot(range(1, len(rounds) + 1), rounds, color=BLUE, marker="o", markersize=3)
    axes.axhline(0.0, color=FAINT, linewidth=1)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("round")
    axes.set_ylabel("mean skill over persistence")
    return figure


def forecasts_beside_truth(devices: Sequence[Forecasts]) -> Figure:
    """What was forecast and what came, some hours of a few devices; forecasts stand at the time they were made for."""
    sensors = devices[0].sensors[:4]
    figure = new_figure(8.5, 1.5 * len(devices) * len(sensors) + 0.6)
    grid = figure.subplots(len(devices) * len(sensors), 1, squeeze=False)[:, 0]
    for k, each in enumerate(devices):
        moments, ahead = as_dates(each.times), as_dates(each.times + each.horizon_s)
        for j, sensor in enumerate(sensors):
            axes = grid[k * len(sensors) + j]
            axes.plot(moments, each.values[:, j], color=INK, linewidth=1, label="measured")
            for method, values in each.forecasts.items():
                axes.plot(ahead, values[:, j], color=METHODS[method][0], linewidth=1, alpha=0.9, label=method)
            axes.set_title(each.device, loc="left") if j == 0 else None
            axes.set_ylabel(with_unit(sensor))
            time_axis(axes)
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
    return figure


def alarms_figure(devices: Sequence[Alarms]) -> Figure:
    """Each device's sensors with their alarms, and the score below; the strangest devices first, a dozen at most."""
    most = max(1, min(MOST_DEVICES, MOST_PANELS // (1 + max(min(len(d.sensors), MOST_SENSORS) for d in devices))))
    strangest = sorted(devices, key=lambda d: (-int(d.is_anomaly.sum()), -float(d.score.max()), d.device))[:most]
    drawn = [(device, _sensors_shown(device)) for device in strangest]
    rows = sum(len(shown) + 1 for _, shown in drawn)
    figure = new_figure(12.0, 1.25 * rows + 0.5)
    grid = iter(figure.subplots(rows, 1, squeeze=False)[:, 0])
    for device, shown in drawn:
        span = (as_dates(device.times[:1])[0], as_dates(device.times[-1:])[0])
        for j in shown:
            axes = next(grid)
            values = device.values[:, j]
            rows_ = thinned(device.times, values)
            style = {"marker": "."} if len(rows_) < 3 else {}
            axes.plot(as_dates(device.times[rows_]), values[rows_], color=BLUE, linewidth=0.8, **style)
            _mark(axes, device, j, values)
            axes.set_ylabel(with_unit(device.sensors[j]))
            axes.set_title(f"{device.device}: {int(device.is_anomaly.sum()):,} alarms", loc="left") if j == shown[
                0
            ] else None
            time_axis(axes, span, labels=False)
        axes = next(grid)
        surprise = -np.log10(np.maximum(1.0 - device.score, 1e-17))
        rows_ = thinned(device.times, surprise)
        axes.plot(as_dates(device.times[rows_]), surprise[rows_], color=FAINT, linewidth=0.8)
        at = np.flatnonzero(device.is_anomaly)
        at = at[thinned(device.times[at], surprise[at])] if at.size else at
        axes.plot(as_dates(device.times[at]), surprise[at], ".", color=RED, markersize=4)
        axes.set_ylabel("surprise")
        axes.set_ylim(bottom=0.0)
        time_axis(axes, span)
    figure.supxlabel("time, UTC; surprise is -log10(1 - anomaly score); dots: alarms", fontsize=8)
    return figure


def render(make: Callable[[], Figure], kind: Kind) -> bytes:
    """Draw a figure: PNG (white, 110 dpi) or SVG (texts stay text)."""
    out = io.BytesIO()
    with drawing_style():
        make().savefig(out, format=kind, dpi=110, facecolor="white", metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def alarms_file(devices: Sequence[Alarms], suffix: str, title: str) -> bytes:
    """The picture of `flead detect`, in the form that a file name's suffix asks for: .png, .svg or .html.

    Raises
    ------
    BadConfiguration
        for another suffix
    """
    check_suffix(suffix)

    def make() -> Figure:
        return alarms_figure(devices)

    if suffix == ".html":
        return page(title, [("", "", make)]).encode()
    return render(make, "png" if suffix == ".png" else "svg")


def check_suffix(suffix: str) -> None:
    """Refuse what `alarms_file` cannot write, before anything is computed."""
    if suffix not in (".png", ".svg", ".html"):
        raise BadConfiguration(f"--plot writes .png, .svg or .html, not {suffix or 'a file without a suffix'}")


def evaluation_page(report: Mapping[str, Any], forecasts: Sequence[Forecasts] = ()) -> str:
    """The page of `flead evaluate`."""
    sections: list[Section] = [
        ("", _what(report), _mean_table(report)),
        (
            "Skill by method",
            "1 - RMSE / RMSE of persistence on the days tested: 0 is no better than expecting no change, 1 is perfect. "
            "Lines are 95 % confidence intervals over devices; what lies below "
            f"{WORST_SHOWN} is drawn at the left edge.",
            lambda: skill_by_method(report),
        ),
        ("", "", _legend(report)),
        ("Skill by device", "A dot for each device, the bar is the median.", lambda: skill_by_device(report)),
        (
            "Cold start",
            "A device of which one hour is known: a model of its own beside the global one.",
            lambda: cold_start(report),
        ),
        (
            "Skill by round",
            "The global model on the days tested, the mean over sensors and horizons.",
            lambda: skill_by_round(report),
        ),
    ]
    if "personalisation" in report:
        sections.append(("What a device does with the global model", _RULES, _rules_table(report)))
    if forecasts:
        ahead = forecasts[0].horizon
        text = f"{ahead} ahead, each forecast at the time it was made for; some hours of the first day tested, in UTC."
        sections.append(("Forecasts beside the truth", text, lambda: forecasts_beside_truth(forecasts)))
    sections.append(("How it was made", "", _facts(report)))
    return page("FLEAD: federated, local and centralised learning compared", sections)


def _panels(report: Mapping[str, Any], draw: Callable[[Axes, str, str, Sequence[str]], None]) -> Figure:
    """A row of panels for each horizon and up to four sensors."""
    sensors = report["sensors"][:MOST_SENSORS]
    methods = [method for method in METHODS if method in report["methods"] and method != "persistence"]
    across = min(4, len(sensors))
    lines = [(h, sensors[i : i + across]) for h in report["horizons"] for i in range(0, len(sensors), across)]
    figure = new_figure(2.2 * across + 1.2, (0.32 * len(methods) + 0.75) * len(lines))
    grid = figure.subplots(len(lines), across, squeeze=False, sharey=True)
    for row, (horizon, shown) in zip(grid, lines, strict=True):
        for axes in row[len(shown) :]:
            axes.set_visible(False)
        for axes, sensor in zip(row, shown, strict=False):
            axes.axvline(0.0, color=FAINT, linewidth=1)
            draw(axes, horizon, sensor, methods)
            axes.set_title(f"{sensor}, {horizon}", loc="left")
            axes.margins(x=0.12)
    for axes in grid[-1]:
        axes.set_xlabel("skill")
    return figure


def _methods_below(axes: Axes, methods: Sequence[str]) -> None:
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -0.7)


def _sensors_shown(device: Alarms) -> list[int]:
    """The sensors that are drawn: all of them, or where there are too many those most often blamed."""
    blamed = [int(((device.sensor == j) & device.is_anomaly).sum()) for j in range(len(device.sensors))]
    return sorted(sorted(range(len(device.sensors)), key=lambda j: -blamed[j])[:MOST_SENSORS])


def _mark(axes: Axes, device: Alarms, j: int, values: Vector) -> None:
    """Alarms on the sensor that is blamed; where it gave no value, at the foot of the panel."""
    at = np.flatnonzero(device.is_anomaly & (device.sensor == j))
    if not at.size:
        return
    at = at[thinned(device.times[at], values[at])]
    there = np.isfinite(values[at])
    axes.plot(as_dates(device.times[at[there]]), values[at[there]], "o", color=RED, markersize=3.5)
    foot = np.zeros(int((~there).sum()))
    axes.plot(
        as_dates(device.times[at[~there]]), foot, "^", color=RED, markersize=4, transform=axes.get_xaxis_transform()
    )


def _what(report: Mapping[str, Any]) -> str:
    readings = report.get("readings", {})
    return (
        f"{len(report['devices'])} devices with {', '.join(report['sensors'])}; trained on "
        f"{readings.get('train', 0):,} readings, tested on {readings.get('test', 0):,} later ones. "
        "The table shows the mean skill over the sensors."
    )


def _mean_table(report: Mapping[str, Any]) -> str:
    means = report["mean_skill"]
    cold = means["cold_start"]
    header = [*report["horizons"], *(f"{horizon}, cold start" for horizon in report["horizons"])]
    lines = []
    for method in report["methods"]:
        cells = [means[horizon].get(method) for horizon in report["horizons"]]
        cells += [cold[horizon].get(method) for horizon in report["horizons"]]
        shown = "".join(f"<td>{value:.3f}</td>" if is_known(value) else "<td></td>" for value in cells)
        lines.append(f"<tr><th>{html.escape(method)}</th>{shown}</tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


_RULES = (
    "Mean skill over the sensors on the days tested, of the stream's own learners in rounds of their own, by "
    "learner.adoption: devices that have learned through all the days before, newcomers that join on the first day "
    "tested, and the share of the global models offered of which a device took anything."
)


def _rules_table(report: Mapping[str, Any]) -> str:
    found, horizons = report["personalisation"], report["horizons"]
    header = [*horizons, *(f"{horizon}, newcomer" for horizon in horizons), "models taken"]
    lines = []
    for rule in found["rules"]:
        cells = [found[who]["mean_skill"][h][rule] for who in ("devices", "newcomers") for h in horizons]
        shown = "".join(f"<td>{value:.3f}</td>" if is_known(value) else "<td></td>" for value in cells)
        taken = f"{100.0 * found['taken'][rule]:.0f} %" if is_known(found["taken"][rule]) else ""
        lines.append(f"<tr><th>{html.escape(rule)}</th>{shown}<td>{taken}</td></tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    return f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def _legend(report: Mapping[str, Any]) -> str:
    items = (
        f'<dt style="color:{colour}">&#9679; {method}</dt><dd>{html.escape(meaning)}</dd>'
        for method, (colour, meaning) in METHODS.items()
        if method in report["methods"]
    )
    return f"<dl>{''.join(items)}</dl>"


def _facts(report: Mapping[str, Any]) -> str:
    files = report.get("files", {})
    facts = {
        "trained on": ", ".join(files.get("train", ()))
        + (f" ({files['train_days']})" if files.get("train_days") else ""),
        "tested on": ", ".join(files.get("test", ())) + (f" ({files['test_days']})" if files.get("test_days") else ""),
        "network": str(report.get("architecture", "")),
        "plan": str(report.get("settings", {}).get("plan", "")),
        "machine": report.get("machine", ""),
        "duration": f"{report.get('durations_s', {}).get('total', 0.0):.0f} s",
        "remarks": "; ".join(report.get("remarks", ())) or "none",
    }
    return "<dl>" + "".join(f"<dt>{k}</dt><dd>{html.escape(v)}</dd>" for k, v in facts.items()) + "</dl>"
