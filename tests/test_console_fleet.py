from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visualization.console import fleet as fleets
from visualization.console.fleet import ALARM_S, HISTORY, SILENT_S, Fleet, Kind, Record, State

NOW = 1_700_000_000.0


def prediction(device: str = "mote-1", at: float = NOW, **fields: Any) -> Record:
    said = {
        "device_id": device, "timestamp": "2024-01-01T00:00:30+00:00", "cohort": "t", "samples_seen": 100,
        "model_version": 1, "observed": {"t": 20.5}, "expected": {"t": 20.4}, "forecast": {"t": 20.6},
        "horizon_s": 600.0, "horizon": {"t": 21.0}, "error": 0.5, "anomaly_score": 0.3, "sensor_scores": {"t": 0.3},
        "is_anomaly": False, "sensor": None, "kind": None, "drift": False, "source": {"partition": 0, "offset": 1},
        "produced_ms": at * 1000 - 20,
    }  # fmt: skip
    return Record(Kind.PREDICTION, json.dumps(said | fields).encode(), at)


def alert(device: str = "mote-1", at: float = NOW, **fields: Any) -> Record:
    said = {
        "device_id": device, "timestamp": "2024-01-01T00:00:30+00:00", "cohort": "t", "kind": "residual",
        "sensor": "t", "observed": 29.0, "expected": 20.0, "anomaly_score": 0.9999,
    }  # fmt: skip
    return Record(Kind.ALERT, json.dumps(said | fields).encode(), at)


def fleet_of(*records: Record) -> Fleet:
    fleet = Fleet()
    fleet.take(records)
    return fleet


def states(fleet: Fleet, now: float) -> dict[str, str]:
    fleet.look(now)
    return {name: state for name, state, _ in fleet.changes(0)["devices"]}


def test_the_states_of_devices() -> None:
    fleet = fleet_of(
        prediction("well"), prediction("new", error=None), prediction("gone", NOW - 2 * SILENT_S), prediction("odd"),
        alert("odd"), prediction("bad"), *[alert("bad")] * 3,
    )  # fmt: skip
    assert states(fleet, NOW) == {
        "well": "ok", "new": "learning", "gone": "silent", "odd": "noted", "bad": "alarm",
    }  # fmt: skip
    assert fleet.tally() == {"alarm": 1, "noted": 1, "silent": 1, "learning": 1, "ok": 1}
    assert fleet.troubled(5) == ["bad", "odd"]


def test_a_few_alarms_among_many_readings_are_no_trouble() -> None:
    fleet = fleet_of(*(prediction(at=NOW + n / 10) for n in range(1_200)), *[alert(at=NOW + 119)] * 11)
    assert states(fleet, NOW + 120) == {"mote-1": "noted"}
    fleet.take([alert(at=NOW + 120)] * 2)
    assert states(fleet, NOW + 120) == {"mote-1": "alarm"}


def test_alarms_grow_old_and_a_device_that_sends_is_not_silent() -> None:
    fleet = fleet_of(prediction(), alert())
    assert states(fleet, NOW + 1) == {"mote-1": "noted"}
    fleet.take(prediction(at=NOW + n) for n in range(1, int(ALARM_S) + 1))
    assert states(fleet, NOW + ALARM_S + 1) == {"mote-1": "ok"}
    assert states(fleet, NOW + ALARM_S + SILENT_S + 1) == {"mote-1": "silent"}


def test_a_slow_device_is_given_more_time() -> None:
    fleet = fleet_of(*(prediction(at=NOW + 60 * n) for n in range(60)))
    last = NOW + 60 * 59
    assert states(fleet, last + 5 * 60) == {"mote-1": "ok"}
    assert states(fleet, last + 15 * 60) == {"mote-1": "silent"}


def test_a_screen_is_told_what_changed_and_no_more() -> None:
    fleet = fleet_of(prediction("a"), prediction("b"))
    seen = fleet.look(NOW)
    assert fleet.changes(0)["anew"]
    assert not any(fleet.changes(seen).values())
    fleet.take([prediction("b"), alert("a")])
    fleet.look(NOW)
    changes = fleet.changes(seen)
    assert changes["devices"] == [["a", State.NOTED, 1]]
    assert [episode["device"] for episode in changes["episodes"]] == ["a"]


def test_an_alarm_between_a_look_and_its_frame_is_not_missed() -> None:
    fleet = fleet_of(prediction())
    seen = fleet.look(NOW)
    fleet.take([alert()])
    fleet.changes(0)
    fleet.look(NOW)
    assert len(fleet.changes(seen)["episodes"]) == 1


def test_alarms_of_a_device_are_one_line_until_it_has_been_quiet() -> None:
    fleet = fleet_of(alert(at=NOW), alert(at=NOW + 60, observed=31.0), alert("b", NOW + 61))
    fleet.look(NOW + 61)
    first, other = fleet.changes(0)["episodes"]
    assert (first["device"], first["count"], first["first"], first["last"]) == ("mote-1", 2, NOW, NOW + 60)
    assert first["text"] == "t far from what was expected: 31, expected 20"
    assert other["count"] == 1
    fleet.take([alert(at=NOW + 61 + ALARM_S)])
    assert [episode["device"] for episode in fleet.changes(0)["episodes"]] == ["mote-1", "b", "mote-1"]


def test_a_device_that_is_forgotten_makes_screens_begin_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "MAX_DEVICES", 2)
    fleet = fleet_of(prediction("old", NOW - 5), prediction("b"))
    seen = fleet.look(NOW)
    fleet.take([prediction("c")])
    fleet.look(NOW)
    changes = fleet.changes(seen)
    assert changes["anew"]
    assert {name for name, _, _ in changes["devices"]} == {"b", "c"}


def test_the_page_of_a_device_gets_what_it_has_not_seen() -> None:
    fleet = fleet_of(*(prediction(at=NOW + n, observed={"t": float(n)}) for n in range(5)))
    whole = fleet.device("mote-1", 0)
    assert whole is not None
    assert whole["anew"]
    assert whole["rows"]["observed"] == [[0.0, 1.0, 2.0, 3.0, 4.0]]
    fleet.take([prediction(at=NOW + 5, observed={"t": 5.0}, is_anomaly=True, sensor="t")])
    more = fleet.device("mote-1", whole["written"])
    assert more is not None
    assert (more["anew"], more["rows"]["observed"], more["rows"]["anomalies"]) == (False, [[5.0]], [(0, 0)])
    assert fleet.device("nobody", 0) is None


def test_other_sensors_begin_another_history() -> None:
    fleet = fleet_of(*[prediction()] * 3, prediction(observed={"t": 1.0, "u": None}, expected={"t": 1.0, "u": None}))
    told = fleet.device("mote-1", 3)
    assert told is not None
    assert (told["anew"], told["sensors"], told["written"]) == (True, ["t", "u"], 1)
    assert np.isnan(told["rows"]["observed"][1]).all()


def test_how_far_off_forecasts_usually_are_leaves_anomalies_out() -> None:
    usual = [prediction(observed={"t": 20.0 + 0.1 * (-1) ** n}, expected={"t": 20.0}) for n in range(50)]
    fleet = fleet_of(*usual, *[prediction(observed={"t": 90.0}, expected={"t": 20.0}, is_anomaly=True)] * 10)
    told = fleet.device("mote-1", 0)
    assert told is not None
    assert told["miss"] == [pytest.approx(0.1)]


def test_skill_is_against_no_change_on_the_same_readings() -> None:
    fleet = Fleet()
    for n in range(100):  # it climbs by 1; forecasts are off by 0.5 with version 1, by 0.1 with version 2
        off = 0.5 if n < 50 else 0.1
        fleet.take([prediction(observed={"t": n}, expected={"t": n + off}, model_version=1 if n < 50 else 2)])
    skills = fleet.cohorts()["t"]["skills"]
    assert skills == [(1, 49, pytest.approx(0.5)), (2, 50, pytest.approx(0.9))]
    assert fleet.cohorts()["t"]["adopted"] == {2: 1}


def test_a_cohort_with_other_sensors_than_its_name_says() -> None:
    wide = {"t": 1.0, "u": 2.0}
    fleet = fleet_of(*[prediction()] * 3, *[prediction("wide", observed=wide, expected=wide)] * 3)
    assert fleet.unreadable == 0
    assert fleet.device("wide", 0)


def test_figures() -> None:
    fleet = fleet_of(*(prediction(at=NOW + n / 10) for n in range(50)), alert(at=NOW))
    letter = {"reason": "bad_time", "source": {}}
    fleet.take([Record(Kind.DEAD_LETTER, json.dumps(letter).encode(), NOW)])
    figures = fleet.figures(NOW + 5)
    assert figures["per_second"]["prediction"] == 10
    assert figures["last_minute"] | {"prediction": 0} == {"prediction": 0, "alert": 1, "dead_letter": 1}
    assert figures["latency_ms"]["p50"] == pytest.approx(20, rel=0.08)
    assert figures["reasons"] == {"bad_time": 1}
    assert (figures["unreadable"], figures["newest"]) == (0, NOW + 4.9)


@pytest.mark.parametrize("version", [1e300, 2**60, -1])
def test_a_version_that_no_page_can_be_sent_is_refused(version: float) -> None:
    fleet = fleet_of(prediction(), prediction(model_version=version))
    assert (fleet.unreadable, fleet.cohorts()["t"]["adopted"]) == (1, {1: 1})


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_changes: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    st.sampled_from(sorted(json.loads(prediction().value or b""))), _json, max_size=3
)
_values = (
    st.none() | st.binary(max_size=30) | _json.map(lambda value: json.dumps(value).encode())
    | _changes.map(lambda changes: prediction(**changes).value) | _changes.map(lambda changes: alert(**changes).value)
)  # fmt: skip
_records = st.lists(st.builds(Record, st.sampled_from(Kind), _values, st.floats(NOW - 300, NOW + 300)), max_size=20)


@settings(max_examples=100, deadline=None)
@given(records=_records)
def test_whatever_is_in_a_topic_is_counted_and_stops_nothing(records: list[Record]) -> None:
    fleet = fleet_of(*records, prediction("fine"))
    assert sum(fleet.counts.values()) == len(records) + 1
    assert fleet.unreadable <= len(records)
    fleet.look(NOW)
    assert "fine" in {name for name, _, _ in fleet.changes(0)["devices"]}
    told: list[Any] = [fleet.changes(0), fleet.figures(NOW), fleet.cohorts(), fleet.tally()]
    told += [fleet.device(name, 0) for name, _, _ in fleet.changes(0)["devices"]]
    orjson.dumps(told, option=orjson.OPT_NON_STR_KEYS)  # what a page is sent


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.integers(0, 9), min_size=1, max_size=60), most=st.integers(1, 40))
def test_changes_add_up_to_the_whole(rows: list[int], most: int) -> None:
    fleet, seen = Fleet(), 0
    shown: dict[str, tuple[str, int]] = {}
    for place, number in enumerate(rows):
        now = NOW + 7 * place
        fleet.take([prediction(f"d{number}", now), *([alert(f"d{number}", now)] if number % 2 else [])])
        if place % most == 0:
            revision = fleet.look(now)
            changes = fleet.changes(seen)
            shown |= {name: (state, alarms) for name, state, alarms in changes["devices"]}
            seen = revision
    assert shown == {name: (state, alarms) for name, state, alarms in fleet.changes(0)["devices"] if name in shown}


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "MAX_DEVICES", 20)
    wide = {f"s{n}": 1.0 for n in range(64)}
    fleet = Fleet()
    for n in range(HISTORY + 100):
        at = NOW + n
        fleet.take([
            prediction(f"d{n % 30}", at, model_version=n, cohort=f"c{n % 40}"), alert(f"d{n}", at),
            prediction("wide", at, observed=wide, expected=wide), prediction("narrow", at),
            Record(Kind.DEAD_LETTER, json.dumps({"reason": f"r{n}"}).encode(), at),
        ])  # fmt: skip
    fleet.look(NOW + HISTORY + 100)
    changes = fleet.changes(0)
    assert len(changes["devices"]) <= 20
    assert len(changes["episodes"]) <= fleets.EPISODES
    assert len(fleet.reasons) <= fleets.COHORTS
    told = [fleet.device(name, 0) for name in ("wide", "narrow")]
    kept = [len(one["rows"]["time"]) for one in told if one]
    assert kept == [fleets.HISTORY_NUMBERS // 130, HISTORY]
