"""What is drawn: nothing lost by thinning, one page that fetches nothing, ids and texts that cannot break out of it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flead.errors import BadConfiguration
from visualization.plots import (
    Alarms,
    Forecasts,
    Kind,
    Vector,
    alarms_figure,
    alarms_file,
    evaluation_page,
    render,
    thinned,
)

METHODS = ("persistence", "seasonal", "local", "federated", "personalised", "streamed", "centralised")
NAUGHTY = "<script>alert(1)</script> $x^2$ & 温度"


class TestThinning:
    @settings(deadline=None, max_examples=50)
    @given(st.integers(1, 3_000), st.integers(2, 50), st.integers(0, 2**32))
    def test_keeps_the_extremes_the_ends_and_the_order(self, m: int, steps: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        times, values = np.cumsum(rng.exponential(1.0, m)), rng.normal(size=m)
        values[rng.random(m) < 0.2] = np.nan
        kept = thinned(times, values, steps)
        assert np.all(np.diff(kept) > 0)
        assert kept[0] == 0
        assert kept[-1] == m - 1
        assert len(kept) <= max(2 * steps + 2, 2)
        if np.isfinite(values).any():
            assert {int(np.nanargmin(values)), int(np.nanargmax(values))} <= set(kept.tolist())

    def test_leaves_a_gap_a_gap(self) -> None:
        values = np.ones(10_000)
        values[4_000:6_000] = np.nan
        kept = thinned(np.arange(10_000.0), values, 100)
        assert np.isnan(values[kept]).sum() > 10

    def test_takes_all_at_one_time(self) -> None:
        assert len(thinned(np.zeros(1_000), np.arange(1_000.0), 10)) >= 2


def alarms(device: str = "mote-7", n: int = 2, m: int = 5_000) -> Alarms:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(m, n))
    values[100:200] = np.nan
    score = rng.random(m)
    sensor = rng.integers(-1, n, m)
    return Alarms(
        device, tuple(f"s{i}" for i in range(n)), 1e9 + 30.0 * np.arange(m), values, score, score > 0.99, sensor
    )


class TestAlarms:
    @pytest.mark.parametrize(("kind", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
    def test_are_drawn(self, kind: Kind, begins: bytes) -> None:
        assert render(lambda: alarms_figure([alarms()]), kind).startswith(begins)

    def test_of_many_devices_and_sensors_stay_readable(self) -> None:
        figure = alarms_figure([alarms(f"d{i}", 30, 50) for i in range(20)])
        assert 1 < len(figure.axes) <= 61

    @pytest.mark.parametrize("m", [1, 2])
    def test_of_next_to_nothing_are_drawn(self, m: int) -> None:
        assert render(lambda: alarms_figure([alarms(m=m)]), "svg")

    def test_are_the_same_bytes_for_the_same_data(self) -> None:
        assert alarms_file([alarms()], ".svg", "") == alarms_file([alarms()], ".svg", "")

    def test_refuse_what_cannot_be_written(self) -> None:
        with pytest.raises(BadConfiguration, match=r"not \.pdf"):
            alarms_file([alarms()], ".pdf", "")


def report(sensors: tuple[str, ...] = ("temperature", "light"), devices: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    horizons = ("next", "10min")

    def each(methods: tuple[str, ...], low: float = -2.0) -> dict[str, Any]:
        return {h: {s: {m: float(rng.uniform(low, 0.6)) for m in methods} for s in sensors} for h in horizons}

    skill, cold = each(METHODS), each(("persistence", "local", "federated"))
    skill["next"][sensors[0]]["local"] = float("nan")
    return {
        "sensors": list(sensors),
        "devices": [f"mote-{i}" for i in range(devices)],
        "horizons": list(horizons),
        "methods": list(METHODS),
        "skill": skill | {"cold_start": cold},
        "mean_skill": {h: dict.fromkeys(METHODS, 0.1) for h in horizons}
        | {"cold_start": {h: dict.fromkeys(("persistence", "local", "federated"), None) for h in horizons}},
        "skill_interval_95": {h: {s: {m: [-0.1, 0.3] for m in METHODS} for s in sensors} for h in horizons},
        "skill_by_device": {f"mote-{i}": each(METHODS) for i in range(devices)},
        "skill_by_round": [0.1, None, 0.3],
        "remarks": [NAUGHTY],
    }


def forecasts(device: str = "mote-1", m: int = 100) -> Forecasts:
    values: Vector = np.random.default_rng(0).normal(size=(m, 2))
    return Forecasts(
        device, ("temperature", "light"), "10min", 600.0, 1e9 + 30.0 * np.arange(m), values, {"federated": values + 0.1}
    )


class Attributes(HTMLParser):
    """Gathers what a page would fetch, its ids and its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not (value or "").startswith("#"):
                self.fetched.append(value or "")
            if name == "id":
                self.ids.append(value or "")


class TestThePage:
    def test_fetches_nothing_runs_nothing_and_has_every_figure(self) -> None:
        text = evaluation_page(report(), [forecasts()])
        found = Attributes(text)
        assert found.fetched == []
        assert "script" not in found.tags
        assert not re.search(r"@import|url\((?!#)", text)
        assert text.count("<svg") == 5
        for heading in (
            "Skill by method",
            "Skill by device",
            "Cold start",
            "Skill by round",
            "Forecasts beside the truth",
        ):
            assert f"<h2>{heading}</h2>" in text

    def test_gives_every_figure_ids_of_its_own(self) -> None:
        ids = Attributes(evaluation_page(report(), [forecasts()])).ids
        assert len(set(ids)) == len(ids) > 0

    def test_is_read_on_light_and_on_dark(self) -> None:
        text = evaluation_page(report())
        assert "prefers-color-scheme: dark" in text
        assert "currentColor" in text
        svg = "".join(re.findall(r"<svg.*?</svg>", text, re.DOTALL))
        assert not re.search(r"fill: ?(#ffffff|white|#000000|black)", svg)

    @pytest.mark.parametrize("count", [1, 5, 50])
    def test_holds_any_number_of_sensors(self, count: int) -> None:
        assert evaluation_page(report(tuple(f"s{i}" for i in range(count))))

    def test_shows_names_as_they_are(self) -> None:
        text = evaluation_page(report((NAUGHTY, "b")), [forecasts(NAUGHTY)])
        assert "<script>" not in text
        assert "$x^2$" in text
        for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
            ElementTree.fromstring(svg)  # noqa: S314
