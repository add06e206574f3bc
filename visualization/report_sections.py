"""The sections of the report, in the order in which people decide."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from visualization import report_figures as figures
from visualization.page import UNITS, short
from visualization.report_blocks import (
    Block,
    Cell,
    Items,
    Key,
    Section,
    Table,
    Words,
    ground,
    left_out,
    line_up,
    minus,
    scale,
    sensors_left_out,
)
from visualization.report_content import MOST_DEVICES, MOST_NAMED, MOST_ROWS, MOST_SENSORS, Content, mapped, shown_of
from visualization.report_models import models
from visualization.report_words import (
    REASONS,
    alike,
    digits_for,
    duration,
    fixed,
    listed,
    lookup,
    moment,
    naturally,
    share,
    whole,
)


def _attention(content: Content) -> Section:
    ranking = [each for each in content.report.get("ranking") or () if each.get("points") or each.get("reasons")]
    rows = [
        [each["device"], "; ".join(each.get("reasons") or ()), fixed(each.get("points"), 1)]
        for each in ranking[:MOST_NAMED]
    ]
    blocks: list[Block] = [Table(("device", "why", "points"), rows, left=(0, 1))] if rows else []
    blocks += [] if rows else [Words("No device stands out.")]
    if len(ranking) > len(rows):
        blocks.append(Words(f"{len(ranking) - len(rows):,} more devices have points; see report.json.", faint=True))
    says = (
        "Devices that somebody should look at, the worst first. A point is one per cent: of the time silent; of values "
        "missing, impossible, or stuck more than usual; of readings with a wrong clock; of error above that of no "
        "change. A last day beyond 3 standard deviations from the days before counts ten for each further one."
    )
    return Section("attention", "Devices that need attention", says, blocks)


def _quality(content: Content) -> Section:
    quality = mapped(content.report, "quality")
    shown = shown_of(content, quality)
    says = (
        "How complete and how plausible each device's data are. Uptime is the share of all spans of 10 minutes in "
        "which a reading came; a gap is longer than 10 usual intervals; a value that stayed exactly the same for an "
        "hour or longer is stuck. Missing, out of range and stuck are those of the device's worst sensor; what is "
        "usual (light is dark every night) counts as good."
    )
    if not shown:
        return Section("quality", "Data quality", says, [Words("Nothing is known about it.")])
    many = len({each.get("cohort") for each in quality.values()}) > 1
    head = (
        "device",
        *(("cohort",) if many else ()),
        *("readings", "dupli\u00adcates", "every", "uptime", "gaps", "longest gap", "out\u00a0of order"),
        *("in the future", "missing", "stuck", "out\u00a0of range"),
    )
    usual = _usually_stuck(quality)
    letters = [content.letters.get(quality[device].get("cohort"), "") if many else None for device in shown]
    rows = [
        [device, *_quality_row(quality[device], usual, letter)] for device, letter in zip(shown, letters, strict=True)
    ]
    blocks: list[Block] = [Table(head, rows, left=(0, 1) if many else (0,)), *left_out(len(quality) - len(shown))]
    if many:
        names = [f"{letter}: {cohort}" for cohort, letter in content.letters.items()]
        blocks.append(Words(f"Cohorts are {listed(names, MOST_SENSORS)}.", faint=True))
    if content.days:
        uptime = {device: quality[device].get("uptime") for device in shown}
        caption = "Days on which each device sent readings; at the right its uptime."
        present = {device: _days_of(device, content) for device in shown}
        blocks.append(content.draw(lambda: figures.availability(shown, content.days, present, uptime), caption))
    return Section("quality", "Data quality", says, blocks)


def _quality_row(known: Mapping[str, Any], usual: Mapping[str, float], letter: str | None) -> list[str | Cell]:
    by_sensor = known.get("sensors") or {}
    sensors = list(by_sensor.values())
    uptime = known.get("uptime")
    missing = _largest(each.get("missing") for each in sensors)
    stuck = [(value - usual[name], value) for name in by_sensor if (value := by_sensor[name].get("stuck")) is not None]
    excess, stuck_most = max(stuck, default=(None, None))
    return [
        *([] if letter is None else [letter]),
        whole(known.get("readings")),
        whole(known.get("duplicates")),
        duration(known.get("interval_s")),
        Cell(share(uptime), ground(None if uptime is None else uptime - 1, 1.0)),
        whole(known.get("gaps")),
        duration(known.get("longest_gap_s")),
        whole(lookup(known, "clock", "out_of_order")),
        whole(lookup(known, "clock", "future")),
        Cell(share(missing), ground(minus(missing), 1.0)),
        Cell(share(stuck_most), _stuck_ground(excess)),
        whole(_largest(each.get("out_of_range") for each in sensors)),
    ]


def _usually_stuck(quality: Mapping[str, Any]) -> dict[str, float]:
    """The median device's share of stuck values, by sensor."""
    shares: dict[str, list[float]] = {}
    for own in quality.values():
        for sensor, each in (own.get("sensors") or {}).items():
            if each.get("stuck") is not None:
                shares.setdefault(sensor, []).append(each["stuck"])
    return {sensor: float(np.median(each)) for sensor, each in shares.items()}


def _stuck_ground(excess: float | None) -> str:
    return "" if excess is None else ground(-max(excess, 0.0), 1.0)


def _days_of(device: str, content: Content) -> set[str]:
    """Days with a mean of some sensor, and where there are none the days from the first reading to the last."""
    known = mapped(content.report, "drift").get(device)
    if known:
        return {
            day
            for each in known.values()
            for day, mean in zip(each.get("days") or (), each.get("mean") or (), strict=False)
            if mean is not None
        }
    first, last = (lookup(content.report, "quality", device, key) for key in ("first", "last"))
    return {day for day in content.days if first and last and first[:10] <= day <= last[:10]}


def _statistics(content: Content) -> Section:
    devices = mapped(content.report, "devices")
    names = shown_of(content, devices)
    says = (
        "Each device's valid readings, a table for each sensor so that devices can be compared; sd is the standard "
        "deviation of the sample, missing the readings in which this sensor gave no value."
    )
    sensors = [s for s in content.sensors if any(s in devices[name] for name in names)]
    if not sensors:
        return Section("statistics", "Statistics", says, [Words("There are none.")])
    shown = sensors[:MOST_SENSORS]
    caption = "Mean (dot) and one standard deviation to both sides (line); the grey line is the median of the devices."
    blocks: list[Block] = []
    if len(names) > 1:
        blocks.append(content.draw(lambda: figures.levels(names, shown, devices), caption))
    usual = _usually_stuck(mapped(content.report, "quality"))
    most = max(5, MOST_ROWS // len(shown))
    few = set(content.devices[:most])
    for sensor in shown:
        unit = f", {UNITS[sensor]}" if sensor in UNITS else ""
        having = [name for name in names if sensor in devices[name]]
        some = having if len(having) <= most else [name for name in having if name in few] or having[:most]
        total = sum(1 for each in devices.values() if sensor in each)
        blocks += [
            Words(f"{sensor}{unit}", "h3"),
            _sensor_table(sensor, some, content.report, usual.get(sensor, 0.0)),
            *left_out(total - len(some)),
        ]
    blocks += sensors_left_out(len(sensors) - len(shown))
    return Section("statistics", "Statistics", says, blocks)


def _sensor_table(sensor: str, names: Sequence[str], report: Mapping[str, Any], usual: float) -> Table:
    found = [report["devices"][name][sensor] for name in names]
    quality = [lookup(report, "quality", name, "sensors", sensor) or {} for name in names]
    digits = digits_for([each.get("sd") for each in found])
    rows: list[list[str | Cell]] = [
        [
            name,
            whole(each.get("count")),
            whole(each.get("missing")),
            *(fixed(each.get(key), digits) for key in ("mean", "sd", "min", "max")),
            whole(known.get("out_of_range")),
            Cell(share(stuck), _stuck_ground(None if stuck is None else stuck - usual)),
            duration(known.get("longest_stuck_s")),
        ]
        for name, each, known in zip(names, found, quality, strict=True)
        for stuck in [known.get("stuck")]
    ]
    columns = ("readings", "missing", "mean", "sd", "min", "max", "out\u00a0of range", "stuck", "longest stuck")
    return Table(("device", *columns), rows)


def _correlation(content: Content) -> Section:
    says = (
        "Pearson's correlation: of the sensors within the devices of a cohort, reading by reading, and of devices, by "
        "the means of equal spans of time. Blue moves together, red against each other, grey is not known."
    )
    blocks: list[Block] = []
    cohorts = {c: m for c, m in (lookup(content.report, "correlation", "sensors") or {}).items() if m.get("names")}
    if cohorts:
        counts = ", ".join(f"{whole(each.get('count'))} readings of {cohort}" for cohort, each in cohorts.items())
        blocks.append(content.draw(lambda: figures.sensor_correlation(cohorts), f"Sensors: {counts}."))
    sensors = {s: m for s, m in (lookup(content.report, "correlation", "devices") or {}).items() if len(m["names"]) > 1}
    if sensors:
        parts = {sensor: _submatrix(each, content.devices) for sensor, each in sensors.items()}
        spans = {duration(each.get("bin_s")) for each in sensors.values() if each.get("bin_s")}
        caption = f"Devices, by means of {listed(sorted(spans))}." if spans else "Devices."
        blocks.append(content.draw(lambda: figures.device_correlation(parts), caption))
        blocks.append(Items([_least_alike(sensor, each) for sensor, each in list(sensors.items())[:MOST_SENSORS]]))
        blocks += sensors_left_out(len(sensors) - figures.MOST_MATRICES)
        blocks += left_out(len(content.devices) - MOST_DEVICES)
    return Section("correlation", "Correlations", says, blocks or [Words("There are none.")])


def _submatrix(known: Mapping[str, Any], worst_first: Sequence[str]) -> tuple[list[str], figures.Matrix]:
    at = {name: place for place, name in enumerate(known["names"])}
    names = naturally([name for name in worst_first if name in at][:MOST_DEVICES] or list(at)[:MOST_DEVICES])
    places = [at[name] for name in names]
    return names, np.array(known["matrix"], dtype=np.float64)[np.ix_(places, places)]


def _least_alike(sensor: str, known: Mapping[str, Any]) -> str:
    """The devices that move least with the others: by the median of their correlations."""
    matrix = np.array(known["matrix"], dtype=np.float64)
    np.fill_diagonal(matrix, np.nan)
    medians = sorted(
        (float(np.median(r)), n)
        for n, row in zip(known["names"], matrix, strict=True)
        for r in [row[np.isfinite(row)]]
        if r.size
    )
    return f"{sensor}: least like the others " + (
        ", ".join(f"{short(n, 40)} ({m:.2f} in the median)" for m, n in medians[:3]) or "no device"
    )


def _drift(content: Content) -> Section:
    drift = mapped(content.report, "drift")
    says = (
        "How far each day's mean lies from the days before it, in standard deviations of those days: a level that "
        "moves for good is a sensor that ages or a device that was moved."
    )
    largest = _largest_shifts(drift)
    names = shown_of(content, drift)
    sensors = [s for s in content.sensors if any(s in drift[name] for name in names)]
    if not (largest and sensors):
        return Section("drift", "Drift over time", says, [Words("There are too few days to say.")])
    blocks: list[Block] = [
        Key(scale(figures.FULL_SHIFT), "standard deviations; grey is not known"),
        content.draw(
            lambda: figures.shifts(drift, names, sensors, content.days),
            "Shift of each device on each day: blue above the days before, red below.",
        ),
        *left_out(len(drift) - len(names)),
        *sensors_left_out(len(sensors) - figures.MOST_MATRICES),
        Words("Largest shifts", "h3"),
        content.draw(
            lambda: figures.daily_means(drift, [(device, sensor) for _, device, sensor, _ in largest]),
            "Daily mean, and one standard deviation to both sides, where the shifts are largest.",
        ),
        _shift_table(largest[:MOST_NAMED], drift),
    ]
    return Section("drift", "Drift over time", says, blocks)


Shift = tuple[float, str, str, int]


def _largest_shifts(drift: Mapping[str, Any]) -> list[Shift]:
    """The largest shift of each sensor of each device, with the place of its day; the largest first."""
    found: list[Shift] = []
    for device, sensors in drift.items():
        for sensor, known in sensors.items():
            by_day = zip(known.get("shift") or (), known.get("days") or (), strict=False)
            shifts = [(abs(value), k) for k, (value, _) in enumerate(by_day) if value is not None]
            if shifts:
                size, k = max(shifts)
                found.append((size, device, sensor, k))
    return sorted(found, key=lambda each: (-each[0], each[1:]))


def _shift_table(largest: Sequence[Shift], drift: Mapping[str, Any]) -> Table:
    rows: list[list[str | Cell]] = []
    spreads: dict[str, list[float | None]] = {}
    for _, device, sensor, _ in largest:
        spreads.setdefault(sensor, []).extend(drift[device][sensor].get("sd") or ())
    for _, device, sensor, k in largest:
        known = drift[device][sensor]
        digits = digits_for(spreads[sensor])
        mean, sd = (fixed(value[k], digits) if (value := known.get(key)) else "" for key in ("mean", "sd"))
        shift = known["shift"][k]
        rows.append(
            [device, sensor, known["days"][k], mean, sd, Cell(f"{shift:+.1f}", ground(shift, figures.FULL_SHIFT))]
        )
    line_up(rows, (3, 4))
    return Table(("device", "sensor", "day", "mean", "sd", "shift"), rows, left=(0, 1, 2))


def _changes(content: Content) -> Section:
    previous = content.report.get("previous")
    title = "What changed since the previous report"
    if not previous:
        return Section("changes", title, "There is no previous report to compare with.", ())
    says = f"This report beside the one of {moment(previous.get('created'))} UTC: what got worse first."
    changes = sorted(previous.get("changes") or (), key=lambda each: {False: 0, None: 1, True: 2}[each.get("better")])
    rows = [_change(each) for each in changes[:MOST_DEVICES]]
    line_up(rows, (2, 3, 4))
    head = ("what", "device", "before", "now", "change", "")
    blocks: list[Block] = [Table(head, rows, left=(0, 1, 5))] if rows else [Words("Nothing changed.")]
    if len(changes) > len(rows):
        blocks.append(Words(f"{len(changes) - len(rows):,} more changes are in report.json.", faint=True))
    for key, name in (("new_devices", "New devices"), ("gone_devices", "Devices that sent nothing any more")):
        if names := previous.get(key):
            blocks.append(Words(f"{name}: {listed(naturally(names))}."))
    return Section("changes", title, says, blocks)


def _change(each: Mapping[str, Any]) -> list[str | Cell]:
    before, after, better = each.get("before"), each.get("after"), each.get("better")
    change = None if before is None or after is None else after - before
    verdict = (
        Cell("", "")
        if better is None
        else Cell("better", ground(0.4, 1.0))
        if better
        else Cell("worse", ground(-0.4, 1.0))
    )
    return [each.get("what") or "", each.get("device") or "", *alike(before, after, change), verdict]


def _rejected(content: Content) -> Section:
    rejected = {reason: number or 0 for reason, number in mapped(content.report, "rejected").items()}
    says = "Records that were not counted as readings, by the reason for which they were refused."
    if not any(rejected.values()):
        return Section("rejected", "What was rejected", says, [Words("Nothing was rejected.")])
    total = sum(rejected.values())
    rows = [
        [reason, REASONS.get(reason, ""), whole(number), share(number / total)]
        for reason, number in sorted(rejected.items(), key=lambda each: (-each[1], each[0]))[:MOST_DEVICES]
    ]
    table = Table(("reason", "meaning", "records", "of all rejected"), rows, left=(0, 1))
    return Section("rejected", "What was rejected", says, [table])


def _remarks(content: Content) -> Section:
    remarks = content.report.get("remarks") or ()
    says = "What whoever made this report should know about how it was made."
    return Section("remarks", "Remarks", says, [Items(remarks[:MOST_DEVICES]) if remarks else Words("None.")])


def _largest(values: Iterator[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


SECTIONS: Sequence[Callable[[Content], Section]] = (
    _attention,
    models,
    _quality,
    _statistics,
    _correlation,
    _drift,
    _changes,
    _rejected,
    _remarks,
)
