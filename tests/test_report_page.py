"""The report's page: nothing fetched, nothing run, every figure the report's own, bounded in size, and on paper."""

from __future__ import annotations

import builtins
import copy
import json
import logging
import math
import re
import zlib
from datetime import date, timedelta
from html.parser import HTMLParser
from typing import Any
from urllib.request import OpenerDirector
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flead.errors import Reason, Unavailable
from visualization.report import report_page, report_pdf
from visualization.report_words import REASONS

HORIZONS = ("next", "10min")
SENSORS = {"temperature": (21.0, 3.0), "humidity": (40.0, 6.0), "light": (180.0, 240.0), "voltage": (2.55, 0.09)}
NAUGHTY = "<script>alert(1)</script> $x^2$ & \"'温度\x00\ud800"
PARTS = (
    "source",
    "days",
    "rejected",
    "devices",
    "quality",
    "correlation",
    "evaluation",
    "drift",
    "ranking",
    "previous",
)


class Fleet:
    """A fleet that is not there, and the report that `flead analyze` would make of it: the same for the same seed."""

    def __init__(self, devices: int, days: int, versions: int, sensors: dict[str, tuple[float, float]]) -> None:
        self.rng = np.random.default_rng(0)
        self.names = [f"mote-{i + 1}" for i in range(devices)]
        self.days = [(date(2004, 2, 28) + timedelta(days=k)).isoformat() for k in range(days)]
        self.versions = versions
        self.sensors = sensors

    def report(self) -> dict[str, Any]:
        quality = {name: self.quality(i) for i, name in enumerate(self.names)}
        first, last = self.days[0] + "T00:00:11.5+00:00", self.days[-1] + "T23:59:41.5+00:00"
        found = {
            "layout": 1,
            "source": {"kind": "mongodb", "name": "flead"},
            "created": "2026-11-23T07:00:00+00:00",
            "from": first,
            "to": last,
            "days": self.days,
            "readings": sum(each["readings"] for each in quality.values()),
            "duplicates": sum(each["duplicates"] for each in quality.values()),
            "rejected": {"corrupt_row": 526, "out_of_range": 1_204, "bad_time": 3},
            "devices": {name: self.statistics() for name in self.names},
            "quality": quality,
            "correlation": self.correlation(),
            "evaluation": [self.evaluation(version) for version in range(1, self.versions + 1)],
            "drift": {name: {s: self.drift(i, s) for s in self.sensors} for i, name in enumerate(self.names)},
            "ranking": [
                {"device": name, "points": 90.0 - i, "reasons": [f"silent {90 - i} % of the time", "light stuck"]}
                for i, name in enumerate(self.names[3::7])
            ],
            "previous": self.previous(),
            "remarks": ["The newest version was judged on the days after it was made."],
        }
        result: dict[str, Any] = json.loads(json.dumps(found))
        return result

    def statistics(self) -> dict[str, Any]:
        return {
            s: {
                "count": int(self.rng.integers(1_000, 99_000)),
                "missing": int(self.rng.integers(0, 90)),
                "mean": float(mean + sd * self.rng.normal() / 3),
                "sd": float(sd * self.rng.uniform(0.7, 1.3)),
                "min": mean - 3 * sd,
                "max": mean + 4 * sd,
            }
            for s, (mean, sd) in self.sensors.items()
        }

    def quality(self, i: int) -> dict[str, Any]:
        worn = i % 11 == 4
        return {
            "cohort": "default",
            "readings": int(self.rng.integers(9_000, 99_000)),
            "duplicates": int(self.rng.integers(0, 40)),
            "first": self.days[0] + "T00:00:11.5+00:00",
            "last": self.days[-1] + "T23:59:41.5+00:00",
            "interval_s": 31.0,
            "uptime": float(self.rng.uniform(0.4, 0.6) if worn else self.rng.uniform(0.86, 1.0)),
            "gaps": int(self.rng.integers(1, 400)),
            "longest_gap_s": float(self.rng.lognormal(9, 1)),
            "clock": {"out_of_order": int(self.rng.integers(0, 9)), "future": 0},
            "sensors": {
                s: {"missing": 0.01, "stuck": 0.4 * worn, "longest_stuck_s": 5_000.0 * worn, "out_of_range": 7}
                for s in self.sensors
            },
        }

    def correlation(self) -> dict[str, Any]:
        sensors = {"names": list(self.sensors), "matrix": self.matrix(len(self.sensors)), "count": 1_234_567}
        devices = {
            s: {"names": self.names, "matrix": self.matrix(len(self.names)), "bin_s": 600.0} for s in self.sensors
        }
        return {"sensors": {"default": sensors}, "devices": devices if len(self.names) > 1 else {}}

    def matrix(self, n: int) -> list[list[float | None]]:
        common = self.rng.uniform(0.2, 0.98, n)
        found: list[list[float | None]] = np.where(np.eye(n) > 0, 1.0, np.outer(common, common)).tolist()
        if n > 3:
            found[0][1] = found[1][0] = None
        return found

    def evaluation(self, version: int) -> dict[str, Any]:
        level = 0.35 * (1 - 2.2 * math.exp(-version / 5))
        overall = self.by_horizon(level)
        detailed: dict[str, Any] = {
            "devices": {name: self.by_horizon(level - 0.5 * (i % 17 == 3)) for i, name in enumerate(self.names)},
            "hours": {str(hour): self.by_horizon(level - 0.4 * (7 <= hour <= 9)) for hour in range(24)},
        }
        return {
            "cohort": "default",
            "version": version,
            "timestamp": f"2004-02-28T{version % 24:02}:00:00+00:00",
            "num_devices": len(self.names),
            "count": 9_000 * len(self.names),
            "sensors": overall,
            "skill": {h: float(np.mean([each["skill"] for each in overall[h].values()])) for h in HORIZONS},
            **(detailed if version > self.versions - 3 else {}),
        }

    def by_horizon(self, level: float) -> dict[str, Any]:
        return {h: {s: self.five(level + 0.15 * (h == "10min")) for s in self.sensors} for h in HORIZONS}

    def five(self, level: float) -> dict[str, Any]:
        skill, rmse = float(self.rng.normal(level, 0.08)), float(self.rng.lognormal(-1.0, 0.5))
        return {"count": 1_000, "rmse": rmse, "mae": 0.7 * rmse, "r2": 0.9 * skill, "skill": skill}

    def drift(self, i: int, sensor: str) -> dict[str, Any]:
        mean, sd = self.sensors[sensor]
        days = np.arange(len(self.days))
        level = mean + 0.1 * sd * self.rng.normal(size=len(days)).cumsum() + 3 * sd * (i % 23 == 2) * (days > 3)
        shift = [None, *((level[k] - level[:k].mean()) / sd for k in days[1:])]
        return {"days": self.days, "mean": level.tolist(), "sd": [sd] * len(days), "shift": shift}

    def previous(self) -> dict[str, Any]:
        changes = [
            {"what": "readings", "before": 1_000_000.0, "after": 1_404_000.0, "device": None, "better": None},
            {"what": "skill, 10min", "before": 0.31, "after": 0.352, "device": None, "better": True},
            {"what": "uptime", "before": 0.97, "after": 0.41, "device": "mote-5", "better": False},
        ]
        return {
            "created": "2026-11-22T07:00:00+00:00",
            "changes": changes,
            "new_devices": ["mote-4"],
            "gone_devices": ["mote-100", "mote-99"],
        }


def made_report(
    devices: int = 5, days: int = 6, versions: int = 4, sensors: dict[str, tuple[float, float]] = SENSORS
) -> dict[str, Any]:
    return Fleet(devices, days, versions, sensors).report()


SMALL = made_report(2, 3, 2, {"temperature": (21.0, 3.0), "light": (180.0, 240.0)})
TINY = made_report(4, 3, 1, {"temperature": (21.0, 3.0)})
"""Every part, with as little to draw as there can be."""


class Seen(HTMLParser):
    """What a reader gets of a page: its tables by heading, and what a browser would fetch or run."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.headings: list[str] = []
        self.rows: dict[str, dict[str, list[str]]] = {}
        self._row: list[str] = []
        self._text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.fetched.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag == "tr":
            self._row = []
        if tag in ("td", "th", "h2", "h3"):
            self._text = ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h2", "h3"):
            self.headings.append(self._text)
        if tag in ("td", "th"):
            self._row.append(self._text.strip(" \u2007\u2008"))
        if tag == "tr" and self._row:
            self.rows.setdefault(self.headings[-1], {})[self._row[0]] = self._row[1:]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return made_report()


@pytest.fixture(scope="module")
def page(report: dict[str, Any]) -> str:
    return report_page(report)


@pytest.fixture(scope="module")
def seen(page: str) -> Seen:
    return Seen(page)


class TestThePage:
    def test_fetches_nothing_and_runs_nothing(self, page: str, seen: Seen) -> None:
        assert all(each.startswith(("#", "data:image/png;base64,")) for each in seen.fetched)
        assert not {"script", "link", "iframe", "object", "embed"} & seen.tags
        assert not re.search(r"@import|url\((?!#)", page)
        assert "://" not in re.sub(r' xmlns(:\w+)?="[^"]*"', "", page)

    def test_gives_every_figure_ids_of_its_own_and_leads_to_its_sections(self, seen: Seen) -> None:
        assert len(set(seen.ids)) == len(seen.ids) > 0
        links = {each[1:] for each in seen.fetched if each.startswith("#")}
        assert links <= set(seen.ids)

    def test_answers_in_the_order_in_which_people_decide(self, page: str) -> None:
        titles = re.findall(r"<h2>(.*?)</h2>", page)
        assert titles == [
            "Devices that need attention",
            "How the global model got better",
            "Data quality",
            "Statistics",
            "Correlations",
            "Drift over time",
            "What changed since the previous report",
            "What was rejected",
            "Remarks",
        ]
        assert len(re.findall(r'<h2>.*?</h2>\s*<p class="says">[^<]{20,}</p>', page)) == len(titles)

    def test_is_read_on_light_and_on_dark_and_on_paper(self, page: str) -> None:
        assert "prefers-color-scheme: dark" in page
        assert "@media print" in page
        assert 'name="viewport"' in page
        svg = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
        assert "currentColor" in svg
        assert not re.search(r"fill: ?(#ffffff|white|#000000|black)", svg)

    def test_is_the_same_for_the_same_report_and_leaves_it_as_it_is(self, report: dict[str, Any], page: str) -> None:
        before = copy.deepcopy(report)
        assert report_page(report) == page
        assert report == before

    def test_begins_with_how_things_stand(self, report: dict[str, Any], page: str) -> None:
        head = page[page.index("<header>") : page.index("</header>")]
        newest = report["evaluation"][-1]
        assert f"{report['readings']:,}" in head
        assert "<b>5</b>" in head
        assert "worst: mote-4" in head
        for horizon in HORIZONS:
            assert f"<b>{newest['skill'][horizon]:.3f}</b>" in head
        assert "version 4 of 2004-02-28 04:00, made by 5 devices" in head


class TestEveryFigureIsTheReports:
    def test_of_versions(self, report: dict[str, Any], seen: Seen) -> None:
        rows = seen.rows["Versions"]
        for each in report["evaluation"]:
            skills = [f"{each['skill'][horizon]:.3f}" for horizon in HORIZONS]
            assert rows[str(each["version"])][1:] == ["5", "45,000", *skills]

    def test_of_devices(self, report: dict[str, Any], seen: Seen) -> None:
        rows = seen.rows["Version 4 by device"]
        for device, each in report["evaluation"][-1]["devices"].items():
            expected = []
            for horizon in HORIZONS:
                skills = [each[horizon][sensor]["skill"] for sensor in SENSORS]
                expected += [f"{value:.3f}" for value in (sum(skills) / len(skills), *skills)]
            assert rows[device] == expected

    def test_of_statistics(self, report: dict[str, Any], seen: Seen) -> None:
        for sensor, unit, digits in (("temperature", "°C", 2), ("light", "lx", 0), ("voltage", "V", 4)):
            for device, each in report["devices"].items():
                row = seen.rows[f"{sensor}, {unit}"][device]
                shown = [f"{each[sensor][key]:,.{digits}f}" for key in ("mean", "sd", "min", "max")]
                assert row[:6] == [f"{each[sensor]['count']:,}", f"{each[sensor]['missing']:,}", *shown]

    def test_of_quality(self, report: dict[str, Any], seen: Seen) -> None:
        for device, each in report["quality"].items():
            row = seen.rows["Data quality"][device]
            assert row[0] == f"{each['readings']:,}"
            assert row[3] == f"{100 * each['uptime']:.1f} %"
            assert row[9] == f"{100 * each['sensors']['light']['stuck']:.1f} %"

    def test_of_what_was_rejected_and_what_changed(self, seen: Seen) -> None:
        assert seen.rows["What was rejected"]["corrupt_row"] == ["a row that cannot be read", "526", "30.4 %"]
        changed = seen.rows["What changed since the previous report"]
        assert changed["uptime"] == ["mote-5", "0.9700", "0.4100", "-0.5600", "worse"]
        assert changed["skill, 10min"] == ["", "0.3100", "0.3520", "0.0420", "better"]


class TestWhatIsMissing:
    def test_is_no_reason_to_fail(self) -> None:
        assert "<h2>Remarks</h2>" in report_page({})

    @pytest.mark.parametrize("part", PARTS)
    def test_part_by_part(self, part: str) -> None:
        assert TINY[part]
        assert report_page({**TINY, part: None})
        assert report_page({**TINY, part: type(TINY[part])()})

    @settings(deadline=None, max_examples=10)
    @given(st.integers(0, 2**32), st.sampled_from([0.02, 0.2, 0.7]))
    def test_number_by_number(self, seed: int, part: float) -> None:
        rng = np.random.default_rng(seed)

        def holes(value: Any) -> Any:
            if isinstance(value, dict):
                kept = {"cohort", "version", "names", "matrix", "device", "what", "days", "mean", "sd", "shift"}
                return {k: holes(v) for k, v in value.items() if k in kept or rng.random() > part / 4}
            if isinstance(value, list):
                return [holes(each) for each in value]
            return None if isinstance(value, int | float) and rng.random() < part else value

        def versions(value: dict[str, Any]) -> dict[str, Any]:
            return {**value, "evaluation": [{**e, "version": k} for k, e in enumerate(value.get("evaluation") or ())]}

        assert report_page(versions(holes(SMALL)))

    def test_models_are_said_to_be_missing_and_how_to_get_them(self, report: dict[str, Any]) -> None:
        page = report_page({**report, "evaluation": []})
        assert "No global model is stored" in page
        assert "`flead up`" in page
        assert "flead analyze batch --data" in page

    def test_what_is_not_finite_is_not_known(self, report: dict[str, Any]) -> None:
        odd = copy.deepcopy(report)
        odd["devices"]["mote-1"]["light"]["mean"] = float("nan")
        odd["evaluation"][-1]["skill"]["next"] = float("inf")
        assert "\u2013" in Seen(report_page(odd)).rows["light, lx"]["mote-1"]

    def test_every_reason_has_a_meaning(self) -> None:
        assert set(REASONS) == set(Reason)


class TestOddFleets:
    def test_of_one_device_on_one_day(self) -> None:
        page = report_page(made_report(1, 1, 1))
        assert "made by 1 device." in page
        assert "There are too few days to say." in page

    def test_names_are_shown_as_they_are(self, report: dict[str, Any]) -> None:
        text = json.dumps(report).replace("mote-3", "@@").replace('"light"', '"@@"').replace("default", "@@")
        naughty = json.loads(text.replace("@@", json.dumps(NAUGHTY)[1:-1]))
        naughty["source"]["name"] = naughty["remarks"][0] = NAUGHTY
        page = report_page(naughty)
        assert "<script" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt; $x^2$" in page
        for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
            ElementTree.fromstring(svg)  # noqa: S314
        assert Seen(page).fetched
        assert report_pdf(page).startswith(b"%PDF")

    def test_of_a_thousand_devices_are_bounded_and_say_what_is_left_out(self) -> None:
        large = made_report(1_000, 10, 3, {"temperature": (21.0, 3.0), "light": (180.0, 240.0)})
        large["correlation"]["devices"].clear()
        page = report_page(large)
        assert len(page.encode()) < 3_000_000
        assert "940 devices that need less attention are left out here" in page
        assert "940 devices that are served better are left out here" in page
        rows = Seen(page).rows
        assert len(rows["Data quality"]) == 61
        assert set(rows["Data quality"]) >= {each["device"] for each in large["ranking"][:60]}

    def test_of_fifty_sensors_and_many_cohorts_are_bounded(self) -> None:
        large = made_report(6, 3, 2, {f"s{i}": (1.0, 0.1) for i in range(50)})
        large["evaluation"] = [{**e, "cohort": f"c{i}"} for e in large["evaluation"] for i in range(9)]
        for i, each in enumerate(large["quality"].values()):
            each["cohort"] = f"c{i}"
        page = report_page(large)
        assert len(page.encode()) < 3_000_000
        assert "38 more sensors are in report.json" in page
        assert "5 smaller cohorts are in report.json" in page
        assert "Cohorts are A: c0" in page


class TestThePdf:
    def test_has_pages_with_text_on_them(self, page: str) -> None:
        pdf = report_pdf(page)
        assert pdf.startswith(b"%PDF")
        streams = re.findall(rb"/FlateDecode.*?stream\r?\n(.*?)endstream", pdf, re.DOTALL)
        objects = b"".join(zlib.decompressobj().decompress(stream) for stream in streams)
        assert len(re.findall(rb"/Type\s*/Page\b", objects)) > 3
        assert b"/ToUnicode" in objects

    def test_fetches_nothing(self, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[str] = []
        monkeypatch.setattr(OpenerDirector, "open", lambda _, request, *__, **___: opened.append(request.full_url))
        images = "".join(f'<img src="{url}">' for url in ("http://127.0.0.1:9/x.png", "file:///etc/hostname", "x.png"))
        assert report_pdf(f"<h1>Report</h1>{images}").startswith(b"%PDF")
        assert opened == []

    def test_says_nothing_on_the_way(
        self, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
    ) -> None:
        caplog.set_level(logging.DEBUG)
        before = logging.getLogger("fontTools").level
        report_pdf("<p style='nothing: at all'>Report</p>")
        assert caplog.records == []
        assert capsys.readouterr() == ("", "")
        assert logging.getLogger("fontTools").level == before

    def test_without_pango_says_how_to_get_it(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        real = builtins.__import__

        def without_pango(name: str, *arguments: Any, **named: Any) -> Any:
            if name.startswith("weasyprint"):
                print("WeasyPrint could not import some external libraries")  # noqa: T201
                raise OSError("cannot load library 'libpango-1.0-0'")
            return real(name, *arguments, **named)

        monkeypatch.setattr(builtins, "__import__", without_pango)
        with pytest.raises(Unavailable, match=r"libpango-1\.0-0 libpangoft2-1\.0-0.*report\.html"):
            report_pdf("<p>Report</p>")
        assert capsys.readouterr().out == ""
