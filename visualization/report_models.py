"""The section on the global models: do they get better, for whom, and when on a day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from visualization import report_figures as figures
from visualization.page import UNITS, short
from visualization.report_blocks import Block, Cell, Section, Table, Words, left_out, skill_key, tinted
from visualization.report_content import MOST_COHORTS, MOST_DEVICES, MOST_ROWS, MOST_VERSIONS, Content
from visualization.report_figures import Evaluation, device_skill, skill_of
from visualization.report_words import aligned, digits_for, fixed, listed, lookup, moment, naturally, skill, whole


def models(content: Content) -> Section:
    """Every version beside persistence; the newest by sensor, device and hour of day."""
    title = "How the global model got better"
    if not content.cohorts:
        says = (
            "No global model is stored, so there is nothing to evaluate. `flead up` makes them; then `flead analyze "
            "batch --data ... --report DIR` on the same run folder shows here how good each version is."
        )
        return Section("models", title, says, ())
    says = (
        "Skill is 1 - RMSE / RMSE of persistence, which expects no change: 0 is no better, 1 is perfect. Each version "
        "forecast what is analysed here as it came, as on a device that has just been given it."
    )
    caption = f"Skill of each version. What lies below {figures.WORST_SHOWN} is drawn at the lower edge."
    blocks: list[Block] = []
    if content.horizons and any(len(versions) > 1 for versions in content.cohorts.values()):
        blocks.append(
            content.draw(lambda: figures.skill_by_version(content.cohorts, content.horizons, content.letters), caption)
        )
    for cohort, versions in list(content.cohorts.items())[:MOST_COHORTS]:
        name = f", cohort {content.letters[cohort]}: {cohort}" if len(content.cohorts) > 1 else ""
        blocks += [Words(f"Versions{name}", "h3"), *_versions(versions, content)]
        blocks += [Words(f"Version {versions[-1]['version']} by sensor{name}", "h3"), _by_sensor(versions[-1], content)]
        blocks += _by_device(versions, content, name)
        blocks += _by_hour(versions, content, name)
    return Section("models", title, says, blocks)


def _versions(versions: Sequence[Evaluation], content: Content) -> list[Block]:
    shown = versions[::-1][:MOST_VERSIONS]
    rows: list[list[str | Cell]] = [
        [
            str(each["version"]),
            moment(each.get("timestamp")),
            whole(each.get("num_devices")),
            whole(each.get("count")),
            *(tinted(skill_of(each, horizon)) for horizon in content.horizons),
        ]
        for each in shown
    ]
    head = ("version", "made, UTC", "devices", "forecasts", *(f"skill, {horizon}" for horizon in content.horizons))
    blocks: list[Block] = [skill_key(), Table(head, rows)]
    if len(versions) > len(shown):
        blocks.append(Words(f"{len(versions) - len(shown):,} earlier versions are in report.json.", faint=True))
    return blocks


def _by_sensor(newest: Evaluation, content: Content) -> Table:
    pairs = [(s, h) for s in figures.sensors_of([newest], content.horizons) for h in content.horizons][:MOST_ROWS]
    found = [lookup(newest, "sensors", horizon, sensor) or {} for sensor, horizon in pairs]
    errors = []
    for key in ("rmse", "mae"):
        digits = [digits_for([each.get("rmse"), each.get("mae")]) for each in found]
        errors.append(aligned([fixed(each.get(key), d) for each, d in zip(found, digits, strict=True)]))
    rows = [
        [
            sensor,
            UNITS.get(sensor, ""),
            horizon,
            whole(each.get("count")),
            rmse,
            mae,
            skill(each.get("r2")),
            tinted(each.get("skill")),
        ]
        for (sensor, horizon), each, rmse, mae in zip(pairs, found, *errors, strict=True)
    ]
    return Table(("sensor", "unit", "horizon", "forecasts", "RMSE", "MAE", "R²", "skill"), rows, left=(0, 1, 2))


def _by_device(versions: Sequence[Evaluation], content: Content, name: str) -> list[Block]:
    newest = next((each for each in reversed(versions) if each.get("devices")), None)
    if newest is None or not content.horizons:
        return []
    horizons, sensors = content.horizons, figures.sensors_of([newest], content.horizons)
    by_device = newest["devices"]
    means = {device: [device_skill(each, h) for h in horizons] for device, each in by_device.items()}
    worst = sorted(naturally(by_device), key=lambda device: _mean(means[device], otherwise=-np.inf))[:MOST_DEVICES]
    each_sensor = sensors if len(sensors) > 1 and len(sensors) * len(horizons) <= 8 else []
    rows: list[list[str | Cell]] = [
        [
            device,
            *(
                tinted(value)
                for horizon, mean in zip(horizons, means[device], strict=True)
                for value in (mean, *(lookup(by_device, device, horizon, s, "skill") for s in each_sensor))
            ),
        ]
        for device in naturally(worst)
    ]
    columns = [short(sensor, 13) for sensor in each_sensor]
    head = ("device", *(column for _ in horizons for column in ("mean", *columns)))
    groups = [("", 1), *((horizon, 1 + len(each_sensor)) for horizon in horizons)]
    served = (f"{horizon}: {listed(_served_worst(means, k), 3)}" for k, horizon in enumerate(horizons))
    caption = f"Version {newest['version']}: a dot for each device. Served worst, {'; '.join(served)}."
    return [
        Words(f"Version {newest['version']} by device{name}", "h3"),
        *([content.draw(lambda: figures.skill_by_device(newest, horizons), caption)] if len(by_device) > 1 else []),
        skill_key(),
        Table(head, rows, groups=groups),
        *left_out(len(by_device) - len(rows), "that are served better"),
    ]


def _served_worst(means: Mapping[str, Sequence[float | None]], k: int) -> list[str]:
    known = sorted((value, device) for device, each in means.items() if (value := each[k]) is not None)
    return [f"{short(device, 40)} ({skill(value)})" for value, device in known[:3]]


def _by_hour(versions: Sequence[Evaluation], content: Content, name: str) -> list[Block]:
    newest = next((v for v in reversed(versions) if figures.sensors_by_hour(v, content.horizons)), None)
    if newest is None:
        return []
    caption = f"Skill of version {newest['version']} by hour of day and sensor: where the day is hard to foresee."
    return [
        Words(f"Version {newest['version']} by hour of day{name}", "h3"),
        skill_key(),
        content.draw(lambda: figures.skill_by_hour(newest, content.horizons), caption),
    ]


def better_since(versions: Sequence[Evaluation], horizon: str) -> int | None:
    """The version from which on the model was always better than persistence, as far as is known.

    >>> skills = enumerate([0.2, -0.1, 0.1, None, 0.3], 1)
    >>> better_since([{"version": v, "skill": {"next": skill}} for v, skill in skills], "next")
    3
    """
    since = None
    for each in reversed(versions):
        value = skill_of(each, horizon)
        if value is not None and value <= 0:
            break
        since = each["version"] if value is not None else since
    return since


def _mean(values: Sequence[float | None], *, otherwise: float) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else otherwise
