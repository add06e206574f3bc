"""Every chart of every dashboard shows what MongoDB holds: its figures are those of an aggregation of MongoDB's own."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from storage.connection import Document
from tests.fixtures_mart import NOON
from tests.fixtures_superset import FIRST, FIRST_SENSOR, HOUR, MINUTE, POSITIONS, Held, Served
from visualization.superset.check import Answers

pytestmark = pytest.mark.servers

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def answers(superset: Served, held: Held) -> dict[tuple[str, str], Answers]:
    return superset.ask_all()


# What MongoDB itself says: its figures are named as the chart's metrics, its groups as the columns that it groups by.

COUNT: Document = {"$sum": 1}
SHARE: Document = {"$avg": {"$cond": ["$is_anomaly", 1.0, 0.0]}}
OURS: Document = {"$match": {"device_id": FIRST}}
HOURS: Document = {"$match": {"window": "1h"}}
MINUTES: Document = {"$match": {"window": "1m"}}  # global models are scored by no other
SENSORS: tuple[Document, ...] = (
    HOURS, {"$set": {"part": {"$objectToArray": "$sensors"}}}, {"$unwind": "$part"}, {"$set": {"sensor": "$part.k"}},
)  # fmt: skip


def truncated(field: str, unit: str, size: int = 1) -> Document:
    return {"$dateTrunc": {"date": f"${field}", "unit": unit, "binSize": size}}


def flagged(field: str) -> Document:
    return {"$sum": {"$cond": [f"${field}", 1, 0]}}


def ask(collection: str, *stages: Document, by: Document | None = None, **figures: Document) -> Callable[[Held], Rows]:
    """Group what the stages leave of a collection, and tell the figures of each group."""

    def rows(held: Held) -> Rows:
        named = {f"f{place}": figure for place, figure in enumerate(figures.values())}
        found = held[collection].aggregate([*stages, {"$group": {"_id": by, **named}}])
        return [
            {**(row["_id"] or {}), **{name.replace("_", " "): row[f"f{n}"] for n, name in enumerate(figures)}}
            for row in found
        ]

    return rows


def ratio(name: str, over: str, under: str, asked: Callable[[Held], Rows], base: float = 0.0) -> Callable[[Held], Rows]:
    """Put `base` plus or minus one figure over another in the place of both."""

    def rows(held: Held) -> Rows:
        answer = []
        for row in asked(held):
            quotient = row.pop(over) / row.pop(under)
            answer.append({**row, name: base - quotient if base else quotient})
        return answer

    return rows


def lost(by: Document | None = None) -> Callable[[Held], Rows]:
    known = {"$match": {"expected": {"$ne": None}}}
    sums = {"came": {"$sum": "$readings"}, "due": {"$sum": "$expected"}}
    return ratio("Lost", "came", "due", ask("window_aggregates", HOURS, known, by=by, **sums), base=1.0)


def missing(by: Document | None = None) -> Callable[[Held], Rows]:
    values: dict[str, Document] = {
        "none": {"$sum": "$part.v.missing"},
        "all": {"$sum": {"$add": ["$part.v.count", "$part.v.missing"]}},
    }
    return ratio("Missing", "none", "all", ask("window_aggregates", *SENSORS, by=by, **values))


def skill(by: Document | None = None) -> Callable[[Held], Rows]:
    sums = {
        "ours": {"$sum": {"$multiply": ["$error", "$count"]}},
        "theirs": {"$sum": {"$multiply": ["$persistence", "$count"]}},
    }
    return ratio("Skill", "ours", "theirs", ask("model_scores", MINUTES, by=by, **sums), base=1.0)


def errors_by_hour(held: Held) -> Rows:
    rows = []
    for figure, field in (("Error", "error"), ("Error of no change", "persistence")):
        total: Document = {"$sum": {"$multiply": [f"${field}", "$count"]}}
        by = {"start": truncated("start", "hour")}
        asked = ratio(figure, "sum", "count", ask("model_scores", MINUTES, by=by, sum=total, count={"$sum": "$count"}))
        rows.append({row["start"]: row for row in asked(held)})
    return [{**rows[0][start], **rows[1][start]} for start in rows[0]]


def devices(held: Held) -> Rows:
    """Each device as it is now, in Python."""
    found: dict[str, Rows] = {}
    for prediction in held.predictions.find().sort("timestamp"):
        found.setdefault(prediction["device_id"], []).append(prediction)
    newest = max(of_one[-1]["timestamp"] for of_one in found.values())
    rows = []
    for device, of_one in found.items():
        last = of_one[-1]["timestamp"]
        strange = [one["timestamp"] for one in of_one if one["is_anomaly"]]
        errors = [one["error"] for one in of_one if one["error"] is not None]
        silent = (newest - last) / MINUTE
        state = "silent" if silent > 10 else "anomalous" if strange and strange[-1] > last - HOUR else "well"
        x, y = POSITIONS.get(device, (None, None))
        rows.append({
            "device_id": device, "state": state, "last_heard": last, "Silent for": silent, "Readings": len(of_one),
            "Anomaly share": len(strange) / len(of_one), "Mean error": sum(errors) / len(errors),
            "Model version": max(one["model_version"] for one in of_one), "x": x, "y": y,
        })  # fmt: skip
    return rows


def columns_of(asked: Callable[[Held], Rows], *columns: str) -> Callable[[Held], Rows]:
    return lambda held: [{name: row[name] for name in columns} for row in asked(held)]


def looks(held: Held) -> Rows:
    """Each look at a run, with what flowed since the one before."""
    rows: Rows = []
    for look in held.pipeline_samples.find().sort([("run", 1), ("timestamp", 1)]):
        before = rows[-1] if rows and rows[-1]["run"] == look["run"] else None
        for rate, counter in (("Sent", "readings"), ("Predicted", "predictions"), ("Refused", "dead_letters")):
            look[rate] = before and (look[counter] - before[counter]) / 5.0
        rows.append(look)
    return rows


def by_minute(**figures: Callable[[list[Any]], Any]) -> Callable[[Held], Rows]:
    """The looks of each minute, summed up; what a look lacks does not count."""

    def rows(held: Held) -> Rows:
        minutes: dict[datetime, Rows] = {}
        for look in looks(held):
            minutes.setdefault(look["timestamp"].replace(second=0), []).append(look)
        answer = []
        for minute, found in minutes.items():
            row: dict[str, Any] = {"timestamp": minute}
            for name, sum_up in figures.items():
                row[NAMES.get(name, name)] = sum_up([look[name] for look in found if look[name] is not None])
            answer.append(row)
        return answer

    return rows


NAMES = {
    "latency_p50_ms": "Latency, median", "latency_p99_ms": "Latency, 99 of 100", "services_down": "Services down",
}  # fmt: skip


def newest_look(figure: str, name: str) -> Callable[[Held], Rows]:
    return lambda held: [{name: max(looks(held), key=lambda look: look["timestamp"])[figure]}]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def lag_by_minute(held: Held) -> Rows:
    most: dict[tuple[datetime, str], int] = {}
    for look in looks(held):
        for topic, records in look["lag"].items():
            key = look["timestamp"].replace(second=0), topic
            most[key] = max(most.get(key, 0), records)
    return [{"timestamp": minute, "topic": topic, "Waiting": records} for (minute, topic), records in most.items()]


def events(held: Held) -> Rows:
    return [
        {
            "start": event["start"], "end": event["end"], "cohort": event["cohort"], "count": event["count"],
            "devices": ", ".join(sorted(event["devices"])), "sensors": ", ".join(sorted(event["sensors"])) or None,
            "score": event["score"],
        }
        for event in held.shared_anomalies.find({"kind": "shared"})
    ]  # fmt: skip


def versions(held: Held) -> Rows:
    keys = ("timestamp", "cohort", "round", "verdict", "decided_by", "num_devices", "aggregation_strategy")
    metrics = {"loss": "loss", "rise": "rise", "epsilon": "epsilon_total", "left_out": "left_out"}
    return [
        {
            **{key: one.get(key) for key in keys}, "stage": one.get("stage", "stable"),
            "published_at": one["published_at"],
            **{name: one.get("metrics", {}).get(metric) for name, metric in metrics.items()},
        }
        for one in held.global_model.find()
    ]  # fmt: skip


def kept_out(held: Held) -> Rows:
    keys = ("changed_at", "device_id", "cohort", "state", "reason", "decided_by")
    return [
        {**{key: one[key] for key in keys}, "reputation": (one["good"] + 1) / (one["good"] + one["bad"] + 2)}
        for one in held.device_trust.find({"state": {"$ne": "trusted"}})
    ]


def alarms(held: Held) -> Rows:
    keys = ("timestamp", "device_id", "sensor", "kind", "observed", "expected", "anomaly_score")
    named = {"sensor": "whole device", "kind": "unknown"}
    return [{key: one[key] or named.get(key) for key in keys} for one in held.alerts.find({"device_id": FIRST})]


def readings_and_forecast(held: Held) -> Rows:
    of_sensor = {"$match": {f"observed.{FIRST_SENSOR}": {"$ne": None}}}
    figures = {"Observed": {"$avg": f"$observed.{FIRST_SENSOR}"}, "Forecast": {"$avg": f"$expected.{FIRST_SENSOR}"}}
    return ask("predictions", OURS, of_sensor, by={"timestamp": truncated("timestamp", "minute", 5)}, **figures)(held)


def alarms_of_sensor(held: Held) -> Rows:
    """The highest reading of each bucket that raised an alert about the sensor, or about the whole device."""
    strange = {one["_id"] for one in held.alerts.find({"device_id": FIRST, "sensor": {"$in": [FIRST_SENSOR, None]}})}
    highest: dict[datetime, float | None] = {}
    for one in held.predictions.find({"device_id": FIRST}):
        at = one["timestamp"].replace(minute=one["timestamp"].minute // 5 * 5)
        value, before = one["observed"][FIRST_SENSOR], highest.setdefault(at, None)
        if one["_id"] in strange:
            highest[at] = value if before is None else max(value, before)
    return [{"timestamp": at, "Alarm": value} for at, value in highest.items()]


def with_names(asked: Callable[[Held], Rows], **names: str) -> Callable[[Held], Rows]:
    def rows(held: Held) -> Rows:
        return [{key: names[key] if value is None else value for key, value in row.items()} for row in asked(held)]

    return rows


UNNAMED = {"kind": "unknown", "sensor": "whole device"}
BY_FIVE = {"timestamp": truncated("timestamp", "minute", 5)}
NEWEST: tuple[Document, ...] = (
    {"$lookup": {"from": "global_model", "localField": "cohort", "foreignField": "cohort", "as": "rounds"}},
    {"$set": {"newest": {"$max": "$rounds.round"}}},
)
USED = (*NEWEST, {"$match": {"$expr": {"$lte": ["$round", "$newest"]}}})
WAITING = (*NEWEST, {"$match": {"$expr": {"$gt": ["$round", "$newest"]}}})
BEHIND: Document = {"$subtract": [{"$subtract": ["$round", 1]}, "$base_version"]}
UNPUBLISHED: Document = {"$sum": {"$cond": [{"$eq": ["$published_at", None]}, 1, 0]}}
OF_DEVICES: tuple[Document, ...] = ({"$unwind": "$devices"}, {"$set": {"device_id": "$devices.device_id"}})
DISTINCT: tuple[Document, ...] = ({"$group": {"_id": "$device_id"}},)

EXPECTED: dict[tuple[str, str], Callable[[Held], Rows] | tuple[Callable[[Held], Rows], ...]] = {
    ("Fleet", "Devices"): ask("predictions", *DISTINCT, Devices=COUNT),
    ("Fleet", "Silent devices"): lambda held: [{"Silent": sum(row["state"] == "silent" for row in devices(held))}],
    ("Fleet", "Anomaly share"): ask("predictions", Anomaly_share=SHARE),
    ("Fleet", "Readings lost"): lost(),
    ("Fleet", "Values missing"): missing(),
    ("Fleet", "Dead letters"): ask("dead_letters", Dead_letters=COUNT),
    ("Fleet", "Where devices stand: silent, anomalous or well"): lambda held: [
        row
        for row in columns_of(devices, "device_id", "state", "x", "y", "Anomaly share")(held)
        if row["x"] is not None
    ],
    ("Fleet", "Devices, longest silent first"): columns_of(
        devices, "device_id", "state", "last_heard", "Silent for", "Readings", "Anomaly share", "Mean error",
        "Model version",
    ),
    ("Fleet", "Readings lost, share by hour"): lost({"start": truncated("start", "hour"), "cohort": "$cohort"}),
    ("Fleet", "Values missing, share by sensor and hour"): missing(
        {"start": truncated("start", "hour"), "sensor": "$sensor"}
    ),
    ("Fleet", "Readings that came too late, by hour"): ask(
        "window_aggregates", HOURS, by={"start": truncated("start", "hour")}, Late={"$sum": "$late"}
    ),
    ("Fleet", "Dead letters by reason"): ask("dead_letters", by={"reason": "$reason"}, Dead_letters=COUNT),
    ("Device", "Readings"): ask("predictions", OURS, Readings=COUNT),
    ("Device", "Alarms"): ask("predictions", OURS, Anomalies=flagged("is_anomaly")),
    ("Device", "Mean error"): ask("predictions", OURS, Mean_error={"$avg": "$error"}),
    ("Device", "Drifts"): ask("predictions", OURS, Drifts=flagged("drift")),
    ("Device", "Model adopted"): ask("predictions", OURS, Model_version={"$max": "$model_version"}),
    ("Device", "Readings, their forecast, and alarms (the sensor's own unit)"): (
        readings_and_forecast, alarms_of_sensor,
    ),
    ("Device", "Mean error (standard deviations)"): ask("predictions", OURS, by=BY_FIVE, Mean_error={"$avg": "$error"}),
    ("Device", "Global model adopted, by round"): ask(
        "predictions", OURS, by=BY_FIVE, Model_version={"$max": "$model_version"}
    ),
    ("Device", "Drifts and when"): ask(
        "predictions", OURS, {"$match": {"drift": True}}, by={"timestamp": truncated("timestamp", "hour")}, Drifts=COUNT
    ),
    ("Device", "Alarms, newest first"): alarms,
    ("Global model", "Skill"): skill(),
    ("Global model", "Rounds"): ask("global_model", Rounds=COUNT),
    ("Global model", "Round size"): ask("global_model", Devices_per_round={"$avg": "$num_devices"}),
    ("Global model", "Staleness"): ask("local_models", *USED, Staleness={"$avg": BEHIND}),
    ("Global model", "Updates waiting"): ask("local_models", *WAITING, Pending=COUNT),
    ("Global model", 'Error of global models, and of "nothing changes" (typical changes)'): errors_by_hour,
    ("Global model", "Skill by version of the global model"): skill({"version": "$version", "cohort": "$cohort"}),
    ("Global model", "What each device gave (readings learned from)"): ask(
        "global_model", *OF_DEVICES, by={"device_id": "$device_id", "cohort": "$cohort"},
        Samples={"$sum": "$devices.samples"},
    ),
    ("Global model", "Rounds per hour"): ask(
        "global_model", by={"timestamp": truncated("timestamp", "hour"), "cohort": "$cohort"}, Rounds=COUNT
    ),
    ("Global model", "Updates by staleness (rounds behind)"): ask(
        "local_models", *USED, by={"staleness": BEHIND}, Updates=COUNT
    ),
    ("Global model", "Cohorts"): ask(
        "global_model", by={"cohort": "$cohort"}, Rounds=COUNT, Newest_round={"$max": "$round"},
        Newest={"$max": "$timestamp"}, Devices_per_round={"$avg": "$num_devices"},
        Samples={"$sum": "$total_samples"}, Unpublished=UNPUBLISHED,
    ),
    ("Global model", "Versions, newest first"): versions,
    ("Global model", "Versions taken back, share by day"): ask(
        "global_model", by={"timestamp": truncated("timestamp", "day"), "cohort": "$cohort"},
        **{"Rolled back, share": {"$avg": {"$cond": [{"$eq": ["$stage", "rolled_back"]}, 1.0, 0.0]}}},
    ),
    ("Global model", "Updates left out, by reason"): ask(
        "global_model", *OF_DEVICES, {"$match": {"devices.flag": {"$ne": None}}}, by={"flag": "$devices.flag"},
        Left_out=COUNT,
    ),
    ("Global model", "Weight of each device in its rounds (mean share)"): ask(
        "global_model", *OF_DEVICES, {"$match": {"devices.share": {"$ne": None}}},
        by={"device_id": "$device_id", "cohort": "$cohort"}, Mean_share={"$avg": "$devices.share"},
    ),
    ("Global model", "Quarantine: devices whose updates are not used"): kept_out,
    ("Anomalies", "Anomalies"): ask("alerts", Anomalies=COUNT),
    ("Anomalies", "Share of readings"): ask("predictions", Anomaly_share=SHARE),
    ("Anomalies", "Devices with anomalies"): ask("alerts", *DISTINCT, Devices=COUNT),
    ("Anomalies", "Shared events"): ask("shared_anomalies", {"$match": {"kind": "shared"}}, Shared=COUNT),
    ("Anomalies", "Anomalies by hour and kind"): with_names(
        ask("alerts", by={"timestamp": truncated("timestamp", "hour"), "kind": "$kind"}, Anomalies=COUNT), **UNNAMED
    ),
    ("Anomalies", "By kind"): with_names(ask("alerts", by={"kind": "$kind"}, Anomalies=COUNT), **UNNAMED),
    ("Anomalies", "By sensor"): with_names(ask("alerts", by={"sensor": "$sensor"}, Anomalies=COUNT), **UNNAMED),
    ("Anomalies", "The 20 devices with most anomalies"): ask("alerts", by={"device_id": "$device_id"}, Anomalies=COUNT),
    ("Anomalies", "By device and hour of the day (UTC)"): ask(
        "alerts", by={"hour": {"$hour": "$timestamp"}, "device_id": "$device_id"}, Anomalies=COUNT
    ),
    ("Anomalies", "Shared events: several neighbouring devices at once"): events,
    ("Pipeline", "Services down"): newest_look("services_down", "Services down"),
    ("Pipeline", "Throughput"): newest_look("Predicted", "Predicted"),
    ("Pipeline", "Records waiting"): lambda held: [
        {"Waiting in all": sum(max(looks(held), key=lambda look: look["timestamp"])["lag"].values())}
    ],
    ("Pipeline", "Latency, p99"): newest_look("latency_p99_ms", "Latency, 99 of 100"),
    ("Pipeline", "Readings sent and predicted on (per second)"): by_minute(Sent=mean, Predicted=mean),
    ("Pipeline", "Records waiting, by topic"): lag_by_minute,
    ("Pipeline", "Latency, reading sent to prediction published (ms)"): by_minute(
        latency_p50_ms=mean, latency_p99_ms=max
    ),
    ("Pipeline", "Dead letters (per second)"): by_minute(Refused=mean),
    ("Pipeline", "Services down over time"): by_minute(services_down=max),
}  # fmt: skip
"""What each chart must show, from MongoDB alone; one for each of its queries."""

BY_THE_CLOCK = {("Pipeline", "Newest look"), ("Pipeline", "Mart behind")}
"""Charts that tell how old something is at this moment."""


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row with times as Superset writes them, in ms."""
    return {key: value.timestamp() * 1_000 if isinstance(value, datetime) else value for key, value in row.items()}


def about(value: Any) -> Any:
    return pytest.approx(value, rel=1e-9) if isinstance(value, float | int) else value


def in_order(rows: Rows) -> Rows:
    """The rows in an order that is the same on both sides, though the last digits of their figures may differ."""

    def key(row: dict[str, Any]) -> list[str]:
        return [f"{value:.6f}" if isinstance(value, float | int) else str(value) for _, value in sorted(row.items())]

    return sorted(rows, key=key)


@pytest.mark.parametrize("chart", EXPECTED, ids=" / ".join)
def test_a_chart_shows_what_mongodb_holds(
    answers: dict[tuple[str, str], Answers], held: Held, chart: tuple[str, str]
) -> None:
    expected = EXPECTED[chart]
    asked = expected if isinstance(expected, tuple) else (expected,)
    assert len(answers[chart]) == len(asked)
    for answer, rows_of in zip(answers[chart], asked, strict=True):
        rows = in_order([plain(row) for row in rows_of(held)])
        found = in_order(answer["data"])
        assert rows
        assert len(found) == len(rows)
        for ours, theirs in zip(found, rows, strict=True):
            assert ours == {key: about(value) for key, value in theirs.items()}


def test_every_chart_is_held_against_mongodb(answers: dict[tuple[str, str], Answers]) -> None:
    assert answers.keys() == EXPECTED.keys() | BY_THE_CLOCK


def test_what_is_by_the_clock_is_of_now(answers: dict[tuple[str, str], Answers]) -> None:
    [[age]] = [answer["data"] for answer in answers["Pipeline", "Newest look"]]
    assert age["Age"] > (datetime.now(NOON.tzinfo) - NOON).total_seconds() - 3 * 3_600
    [[behind]] = [answer["data"] for answer in answers["Pipeline", "Mart behind"]]
    assert behind["Behind"] < 60.0
