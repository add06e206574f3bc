from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import bson
import numpy as np
import orjson
import pandas as pd
import polars as pl
import pytest
from confluent_kafka import OFFSET_END, TopicPartition
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]  # public, not in __all__
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import SecretStr

from config.child import free_port
from config.settings import PROJECT, KafkaSettings, MongoSettings, Settings, SparkSettings
from flead import network, state
from flead.errors import CorruptRunFolder, Unavailable
from flead.evaluation import Series, _task
from flead.learner import DeviceLearner
from flead.learner_config import LearnerConfig
from flead.messages import cohort_of
from kafka.client import make_producer
from kafka.connection import make_admin
from kafka.offsets import Offsets
from kafka.topics import ALERTS, ARCHIVED, DEAD_LETTERS, PREDICTIONS, READINGS
from tests.fixtures_storage import Mongo, wait_until

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark.streaming import Analytics

START = datetime(2024, 3, 4, 23, 30, tzinfo=UTC)
CONFIG = LearnerConfig()


@dataclass
class Fleet:
    """Devices whose readings and predictions are made by the real learner, sent or kept."""

    servers: str
    sensors: tuple[str, ...]
    learners: dict[str, DeviceLearner] = field(default_factory=dict)
    readings: list[dict[str, Any]] = field(default_factory=list)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    records: list[tuple[str, str, bytes]] = field(default_factory=list)

    @property
    def cohort(self) -> str:
        return cohort_of(tuple(sorted(self.sensors)))

    def read(self, device: str, at: datetime, values: Iterable[float | None], **said: Any) -> dict[str, Any]:
        """One reading and the learner's prediction; gives the prediction."""
        sensors = dict(zip(self.sensors, values, strict=True))
        learner = self.learners.setdefault(device, DeviceLearner(tuple(sorted(self.sensors)), CONFIG))
        outcome = learner.process(at.timestamp(), sensors)
        self.readings.append({"device_id": device, "timestamp": at.isoformat(), "sensors": sensors, "metadata": {}})
        prediction = {
            "device_id": device, "timestamp": at.isoformat(), "cohort": learner.cohort, "model_version": 0,
            "observed": sensors, "expected": outcome.expected, "error": outcome.error,
            "sensor_scores": outcome.scores, "is_anomaly": outcome.is_anomaly,
        } | said  # fmt: skip
        self.predictions.append(prediction)
        self.records.append((READINGS, device, orjson.dumps(self.readings[-1])))
        self.records.append((PREDICTIONS, device, orjson.dumps(prediction)))
        return prediction

    def alert(self, device: str, at: datetime, sensor: str | None = None) -> None:
        fields = {
            "device_id": device, "timestamp": at.isoformat(), "cohort": self.cohort, "anomaly_score": 0.999,
            "sensor": sensor or self.sensors[0], "kind": "jump", "observed": 1.0, "expected": 0.0,
        }  # fmt: skip
        self.records.append((ALERTS, device, orjson.dumps(fields)))

    def send(self) -> None:
        send(self.servers, self.records)
        self.records.clear()


def send(servers: str, records: Iterable[tuple[str, str, bytes | None]]) -> None:
    producer = make_producer(servers)
    for topic, key, value in records:
        producer.produce(topic, value, key)
    assert producer.flush(30.0) == 0


def walk(fleet: Fleet, device: str, minutes: float, start: datetime = START, seed: int = 0, **said: Any) -> None:
    """A device that reads about every ten seconds; a value is missing now and then."""
    rng = np.random.default_rng([seed, len(device)])
    values = rng.normal(20.0, 5.0, len(fleet.sensors))
    at = start
    while at < start + timedelta(minutes=minutes):
        values = values + rng.normal(0.0, 0.3, len(values))
        given = [None if rng.random() < 0.05 else float(x) for x in values]
        fleet.read(device, at, given, **said)
        at += timedelta(seconds=float(rng.uniform(8.0, 12.0)))


def forget_records(servers: str) -> None:
    """Delete what other tests sent: each query here begins with all that Kafka holds."""
    admin = make_admin(servers)
    topics = admin.list_topics(timeout=10.0).topics
    ends = [TopicPartition(name, part, OFFSET_END) for name in ARCHIVED for part in topics[name].partitions]
    for deleted in admin.delete_records(ends).values():
        deleted.result()


@pytest.fixture
def fleet(kafka_servers: str, request: pytest.FixtureRequest) -> Fleet:
    """Devices of this test alone: no other test has its sensors."""
    forget_records(kafka_servers)
    name = request.node.name.split("[")[0].removeprefix("test_")[:40]
    return Fleet(kafka_servers, (f"{name}.a", f"{name}.b"))


@pytest.fixture
def chosen(kafka_settings: KafkaSettings, kafka_servers: str, mongo: Mongo, tmp_path: Path) -> Settings:
    assert kafka_servers
    return Settings(
        run_dir=tmp_path, kafka=kafka_settings, mongodb=mongo.settings, spark=SparkSettings(), learner=CONFIG
    )


def analytics(spark: SparkSession, chosen: Settings, folder: Path, **options: Any) -> Analytics:
    from spark.stream_shared import Neighbourhood
    from spark.streaming import Analytics, Checkpoints

    settings = chosen.model_copy(update={"spark": chosen.spark.model_copy(update=options)})
    checkpoints = Checkpoints(spark, folder.as_uri())
    checkpoints.check()
    return Analytics(spark, settings, Neighbourhood.of(settings.spark), checkpoints, lambda: False)


@pytest.fixture
def stream(spark: SparkSession, chosen: Settings, tmp_path: Path) -> Iterator[Analytics]:
    made = analytics(spark, chosen, tmp_path / "checkpoints")
    yield made
    made.stop()


def archive_all(stream: Analytics) -> None:
    query = stream.start_archive(processingTime="0 seconds")
    query.processAllAvailable()
    stream._committer.commit(query)
    query.stop()


def devices_all(stream: Analytics) -> None:
    query = stream.start_devices(processingTime="0 seconds")
    query.processAllAvailable()
    query.stop()


def stored(mongo: Mongo, name: str, **query: Any) -> list[dict[str, Any]]:
    return sorted(mongo.database[name].find(query, {"stored_at": 0}), key=lambda found: str(found["_id"]))


BAD: tuple[bytes | None, ...] = (
    None, b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"device_id": 5}', b'{"device_id": "x", "timestamp": 7}',
    b'{"device_id": "x", "timestamp": "2024-01-01T00:00:00"}', b'{"device_id":"x","timestamp":"9999-12-31T23:59:59Z"}',
    b'{"device_id": "bad", "timestamp": "2024-01-01T00:00:00Z", "sensors": {"a": 1e999}}',
    b'{"device_id": "bad", "timestamp": "2024-01-01T00:00:00Z", "sensors": {}, "observed": {"a": "x"}, "cohort": 5}',
    b'{"device_id": "bad", "timestamp": "2024-01-01T00:00:00Z", "observed": {"a\\u0000b": 1}, "cohort": "c"}',
    b'{"device_id": "bad", "timestamp": "2024-01-01T00:00:00Z", "observed": {"a": 1}, "model_version": 1e400}',
    b"[" * 5_000, orjson.dumps({"device_id": "bad", "timestamp": 2**80 % 2**63, "observed": {"a": 1}}),
)  # fmt: skip


@pytest.mark.servers
def test_every_reading_is_stored_once_and_bad_records_stop_nothing(
    spark: SparkSession, fleet: Fleet, stream: Analytics, mongo: Mongo, chosen: Settings, tmp_path: Path
) -> None:
    for device in ("archived-1", "archived-2"):
        walk(fleet, device, 5)
    fleet.alert("archived-1", START)
    repeated = [*fleet.records, *fleet.records[:20]]
    bad = [(topic, "bad", value) for topic in (READINGS, PREDICTIONS, ALERTS, DEAD_LETTERS) for value in BAD]
    send(fleet.servers, [*bad, *repeated, *bad])
    devices = {"$in": ["archived-1", "archived-2"]}
    archive_all(stream)
    distinct = {(one["device_id"], one["timestamp"]) for one in fleet.readings}
    before = {name: stored(mongo, name, device_id=devices) for name in ("device_data", "predictions", "alerts")}
    assert [len(found) for found in before.values()] == [len(distinct), len(distinct), 1]
    assert all(sum(Offsets(fleet.servers).lag("flead-archive", t).values()) == 0 for t in (READINGS, PREDICTIONS))
    # All of it again, by a stream that knows nothing of the first: nothing is stored twice.
    again = analytics(spark, chosen, tmp_path / "other")
    archive_all(again)
    again.stop()
    assert {name: stored(mongo, name, device_id=devices) for name in before} == before
    devices_all(stream)
    assert stored(mongo, "window_aggregates", device_id="bad", readings={"$gt": 1}) == []


def expected_minutes(predictions: list[dict[str, Any]], watermark_s: float) -> pl.DataFrame:
    """Minutes of each device from predictions in the order they were sent, computed by other means."""
    rows, latest, seen = [], dict[str, float](), set[tuple[str, str]]()
    for one in predictions:
        device, time = one["device_id"], datetime.fromisoformat(one["timestamp"]).timestamp()
        if (device, one["timestamp"]) in seen:
            continue
        seen.add((device, one["timestamp"]))
        start = time // 60 * 60
        late = start + 60 + watermark_s <= latest.get(device, time)
        if not late:
            latest[device] = max(latest.get(device, time), time)
        for sensor, value in one["observed"].items():
            rows.append((device, start, sensor, value, one["error"], one["is_anomaly"], late, one["timestamp"]))
    columns = ["device", "start", "sensor", "value", "error", "anomaly", "late", "timestamp"]
    frame = pl.DataFrame(rows, schema=columns, orient="row").filter(~pl.col("late"))
    return frame.group_by("device", "start", "sensor").agg(
        readings=pl.len(),
        count=pl.col("value").count(),
        sum=pl.col("value").sum(),
        mean=pl.col("value").mean(),
        min=pl.col("value").min(),
        max=pl.col("value").max(),
        error=pl.col("error").mean(),
        anomalies=pl.col("anomaly").sum(),
    )


def check_windows(mongo: Mongo, fleet: Fleet, expected: pl.DataFrame, length: str, width: float) -> None:
    """Every row of this length is what its minutes add up to."""
    rows = stored(mongo, "window_aggregates", window=length, cohort=fleet.cohort)
    by_device = {(row["device_id"], row["start"].timestamp()): row for row in rows if row["scope"] == "device"}
    by_cohort = {row["start"].timestamp(): row for row in rows if row["scope"] == "cohort"}
    keyed = expected.with_columns(start=pl.col("start") // width * width)
    assert set(by_device) == set(keyed.select("device", "start").unique().iter_rows())
    assert set(by_cohort) == set(keyed["start"].to_list())
    for (device, start, sensor), part in keyed.group_by("device", "start", "sensor"):
        check_row(by_device[device, start], sensor, part)
    for (start, sensor), part in keyed.group_by("start", "sensor"):
        check_row(by_cohort[start], sensor, part)
        assert by_cohort[start]["devices"] == part["device"].n_unique()


def check_row(row: dict[str, Any], sensor: Any, part: pl.DataFrame) -> None:
    figures = row["sensors"][sensor]
    count, readings, total = (int(part[name].sum()) if name != "sum" else float(part[name].sum()) for name in _SUMMED)
    assert row["readings"] == readings
    assert (figures["count"], figures["missing"]) == (count, readings - count)
    assert figures["sum"] == pytest.approx(total)
    assert (figures["min"], figures["max"]) == (part["min"].min(), part["max"].max())
    assert figures["mean"] == (pytest.approx(total / count) if count else None)
    assert row["anomalies"] == part["anomalies"].sum()


_SUMMED = ("count", "readings", "sum")


@pytest.mark.servers
def test_windows_are_what_another_way_of_counting_says_after_a_death_between_batches(
    fleet: Fleet, stream: Analytics, mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        walk(fleet, f"window-{number}", 45 + number, seed=number)
    late = [orjson.loads(record[2]) for record in fleet.records if record[1:2] == ("window-1",)][1:12:2]
    repeats = fleet.predictions[-5:]
    for one in [*({**one, "timestamp": f"{one['timestamp'][:17]}59.5+00:00"} for one in late), *repeats]:
        fleet.predictions.append(one)
        fleet.records.append((PREDICTIONS, one["device_id"], orjson.dumps(one)))
    fleet.send()
    from spark import stream_devices
    from spark.streaming import is_after_replay

    monkeypatch.setattr(stream, "_settings", _with(stream._settings, most_per_trigger=400))
    written, deaths = stream_devices.sum_cohorts, [2]

    def dies(*arguments: Any) -> Any:
        deaths[0] -= 1
        if deaths[0] == 0:
            raise RuntimeError("killed after the devices' rows were written")
        return written(*arguments)

    monkeypatch.setattr(stream_devices, "sum_cohorts", dies)
    with pytest.raises(Exception, match="killed after"):
        devices_all(stream)
    with pytest.raises(Exception) as raised:  # noqa: PT011
        devices_all(stream)
    assert is_after_replay(str(raised.value))
    devices_all(stream)
    assert deaths[0] < 0
    expected = expected_minutes(fleet.predictions, 600.0)
    for length, width in (("1m", 60.0), ("1h", 3_600.0), ("1d", 86_400.0)):
        check_windows(mongo, fleet, expected, length, width)
    days = stored(mongo, "window_aggregates", window="1d", scope="device", cohort=fleet.cohort)
    assert sum(day["late"] for day in days) == len(late)
    errors = [one["error"] for one in fleet.predictions if one["device_id"] == "window-0" and one["error"] is not None]
    of_device = [day for day in days if day["device_id"] == "window-0"]
    total = sum(day["errors"] * day["error"] for day in of_device)
    assert total == pytest.approx(sum(errors))
    hour = next(
        row for row in stored(mongo, "window_aggregates", window="1h", device_id="window-0") if row["loss"] is not None
    )
    assert hour["uptime"] == pytest.approx(0.5)  # the device began at half past
    assert hour["loss"] < 0.1


def _with(settings: Settings, **options: Any) -> Settings:
    return settings.model_copy(update={"spark": settings.spark.model_copy(update=options)})


def publish(mongo: Mongo, cohort: str, version: int, theta: np.ndarray[Any, Any], n: int) -> None:
    mongo.database.global_model.insert_one(
        {
            "_id": f"{cohort}#{version}",
            "cohort": cohort,
            "round": version,
            "timestamp": START,
            "num_devices": 1,
            "weights": network.to_message(theta, state.architecture_of(CONFIG, n)),
            "total_samples": 1,
            "aggregation_strategy": "fedavg",
            "devices": [],
            "published_at": None,
        }
    )


@pytest.mark.servers
def test_the_global_model_is_scored_and_a_new_version_takes_over(
    fleet: Fleet, stream: Analytics, mongo: Mongo, caplog: pytest.LogCaptureFixture
) -> None:
    size = state.architecture_of(CONFIG, 2).parameter_count
    publish(mongo, fleet.cohort, 1, np.zeros(size), 2)
    publish(mongo, fleet.cohort, 2, np.random.default_rng(0).normal(0.0, 0.3, size), 2)
    walk(fleet, "scored", 10, model_version=1)
    fleet.send()
    devices_all(stream)
    walk(fleet, "scored", 10, START + timedelta(minutes=10), model_version=2)
    walk(fleet, "scored", 5, START + timedelta(minutes=20), model_version=77)
    fleet.send()
    devices_all(stream)
    scores = stored(mongo, "model_scores", cohort=fleet.cohort)
    assert {one["version"] for one in scores} == {1, 2}
    first = [one for one in scores if one["version"] == 1]
    assert all(one["error"] == pytest.approx(one["persistence"]) for one in first)  # a model of zeros says no change
    assert all(one["skill"] < 0.0 for one in scores if one["version"] == 2)
    assert min(one["start"] for one in scores if one["version"] == 2) == START + timedelta(minutes=10)
    assert sum(one["count"] for one in scores) > 80
    assert f"{fleet.cohort}#77, which predictions name, is not in MongoDB" in caplog.text
    assert "Traceback" not in caplog.text


@pytest.mark.servers
def test_alerts_of_neighbours_are_one_event_and_others_are_not(
    spark: SparkSession, fleet: Fleet, chosen: Settings, mongo: Mongo, tmp_path: Path
) -> None:
    positions = tmp_path / "positions.csv"
    positions.write_text("device_id,x,y\nshared-1,0,0\nshared-2,1,0\nshared-3,50,0\n")
    stream = analytics(spark, chosen, tmp_path / "checkpoints", positions=positions, neighbour_distance=2.0)
    fleet.alert("shared-1", START, "x")
    fleet.alert("shared-3", START + timedelta(seconds=20))
    fleet.send()
    archive_all(stream)
    assert [one["kind"] for one in stored(mongo, "shared_anomalies", cohort=fleet.cohort)] == ["single", "single"]
    fleet.alert("shared-2", START - timedelta(seconds=60))
    fleet.alert("shared-2", START + timedelta(hours=3))
    fleet.send()
    archive_all(stream)
    stream.stop()
    events = stored(mongo, "shared_anomalies", cohort=fleet.cohort)
    found = [(one["kind"], one["devices"], one["count"], one["start"]) for one in events]
    assert found == [
        ("shared", ["shared-1", "shared-2"], 2, START - timedelta(seconds=60)),
        ("single", ["shared-3"], 1, START + timedelta(seconds=20)),
        ("single", ["shared-2"], 1, START + timedelta(hours=3)),
    ]
    assert events[0]["sensors"] == sorted(["x", fleet.sensors[0]])


@pytest.mark.servers
@pytest.mark.parametrize("seed", range(2))
def test_every_alert_is_in_one_event_however_they_came(
    mongo: Mongo, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five hours of many alerts, in which an event must end somewhere, and some later ones, as they came or not."""
    from spark import stream_shared
    from spark.stream_archive import Touched
    from spark.stream_shared import Neighbourhood, regroup

    monkeypatch.setattr(stream_shared, "AT_ONCE", 7)
    rng = np.random.default_rng(seed)
    rule = Neighbourhood(None, 1.0, 180.0)
    seconds = np.concatenate((np.cumsum(rng.uniform(20.0, 190.0, 170)), 30_000.0 + np.cumsum(rng.uniform(0, 400, 30))))
    alerts: list[dict[str, Any]] = [
        {"device_id": f"d{rng.integers(6)}", "timestamp": START + timedelta(seconds=float(at)), "cohort": "c"}
        for at in seconds
    ]
    order = np.arange(len(alerts)) if seed == 0 else np.argsort(seconds + rng.normal(0.0, 2_000.0, len(alerts)))

    def keep(parts: list[Any]) -> list[dict[str, Any]]:
        mongo.database.alerts.delete_many({})
        mongo.database.shared_anomalies.delete_many({})
        for part in parts:
            some = [alerts[i] for i in part]
            mongo.database.alerts.insert_many([{"_id": f"{a['device_id']}@{a['timestamp']}", **a} for a in some])
            times = [one["timestamp"].timestamp() for one in some]
            regroup(mongo.database, [Touched("c", min(times), max(times))], rule)
        return stored(mongo, "shared_anomalies", cohort="c")

    at_once, as_they_came = keep([order]), keep(np.array_split(order, 30))
    assert as_they_came == at_once
    assert sum(event["count"] for event in at_once) == len(alerts)
    assert max(event["end"] - event["start"] for event in at_once) < timedelta(hours=2)


@pytest.mark.servers
def test_empty_topics_give_no_rows_and_no_failure(
    spark: SparkSession, kafka_servers: str, chosen: Settings, tmp_path: Path
) -> None:
    from spark import stream_devices
    from spark.mongo import Target
    from spark.stream_source import kafka_stream

    topic = NewTopic("test.empty", 2, 1)
    admin = make_admin(kafka_servers)
    for made in admin.create_topics([topic], operation_timeout=10.0).values():
        made.result()
    job = stream_devices.Job(Target.of(chosen.mongodb), CONFIG, 600.0)
    rows = stream_devices.changes(kafka_stream(spark, kafka_servers, ("test.empty",), 1_000), job)
    batches: list[int] = []
    writer = rows.writeStream.outputMode("update").foreachBatch(lambda batch, _: batches.append(batch.count()))
    query = writer.option("checkpointLocation", (tmp_path / "empty").as_uri()).start()
    query.processAllAvailable()
    assert query.isActive
    query.stop()
    assert sum(batches) == 0


@pytest.mark.servers
def test_without_positions_a_shared_anomaly_needs_three_devices(fleet: Fleet, stream: Analytics, mongo: Mongo) -> None:
    for device in ("far-1", "far-2"):
        fleet.alert(device, START)
    for device in ("far-1", "far-2", "far-3"):
        fleet.alert(device, START + timedelta(hours=1))
    fleet.send()
    archive_all(stream)
    events = stored(mongo, "shared_anomalies", cohort=fleet.cohort)
    assert [(one["kind"], one["devices"]) for one in events] == [
        ("single", ["far-1"]), ("single", ["far-2"]), ("shared", ["far-1", "far-2", "far-3"]),
    ]  # fmt: skip


@pytest.mark.servers
def test_mongodb_that_is_away_is_waited_for(
    spark: SparkSession, fleet: Fleet, mongo: Mongo, chosen: Settings, tmp_path: Path
) -> None:
    from spark import stream_archive
    from spark.mongo import Target, until_done

    walk(fleet, "waiting", 2)
    rows = [(topic, bytearray(value)) for topic, _, value in fleet.records]
    batch = spark.createDataFrame(rows, "topic string, value binary")
    away = Target(f"mongodb://127.0.0.1:{free_port()}/?serverSelectionTimeoutMS=200", mongo.settings.database)
    targets = iter([away, away, Target.of(mongo.settings)])
    waited: list[float] = []
    until_done(lambda: stream_archive.archive(batch, next(targets), chosen.reading, 2), lambda: False, waited.append)
    assert len(waited) == 2
    assert mongo.database.device_data.count_documents({"device_id": "waiting"}) == len(fleet.readings)


@pytest.mark.servers
def test_killed_on_the_way_it_goes_on_and_stores_each_thing_once(
    fleet: Fleet, chosen: Settings, mongo: Mongo, spark_home: object, tmp_path: Path
) -> None:
    assert spark_home
    for number in range(4):
        walk(fleet, f"killed-{number}", 20, seed=number)
    environment = os.environ | {
        "FLEAD_RUN_DIR": str(tmp_path),
        "FLEAD_KAFKA__BOOTSTRAP_SERVERS": fleet.servers,
        "FLEAD_MONGODB__URI": mongo.settings.address.get_secret_value(),
        "FLEAD_MONGODB__DATABASE": mongo.settings.database,
        "FLEAD_SPARK__MOST_PER_TRIGGER": "2000",
        "FLEAD_SPARK__TRIGGER_S": "0.1",
    }
    ours = {"device_id": {"$regex": "^killed-"}}
    database, log = mongo.database, tmp_path / "stream.log"

    def started() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "orchestration", "analyze", "stream"]
        with log.open("ab") as out:
            return subprocess.Popen(command, cwd=PROJECT, env=environment, stdout=out, stderr=out)  # noqa: S603

    def readings(length: str) -> int:
        query = {**ours, "window": length}
        return sum(row["readings"] for row in database.window_aggregates.find(query, {"readings": 1}))

    def count(collection: str) -> int:
        return database[collection].count_documents(ours)

    fleet.send()
    stream = started()
    try:
        wait_until(lambda: count("device_data") > 0, 100.0)
        stream.kill()
        stream.wait()
        stream = started()
        total = len(fleet.readings)
        wait_until(
            lambda: count("device_data") == count("predictions") == readings("1m") == readings("1d") == total, 100.0
        )
        stream.terminate()
        assert stream.wait(20.0) == 0
    finally:
        stream.kill()
        stream.wait()
    assert [readings(length) for length in ("1m", "1h", "1d")] == [total] * 3
    assert count("predictions") == count("device_data") == total
    assert "Traceback" not in log.read_text()


def test_waiting_ends_when_it_is_time_to_stop() -> None:
    from spark.mongo import Stopping, until_done

    def never() -> None:
        raise Unavailable("no")

    answers = iter([False, False, True])
    with pytest.raises(Stopping):
        until_done(never, lambda: next(answers), lambda _: None)


@pytest.mark.servers
def test_checkpoints_of_another_version_are_refused_in_one_line(spark: SparkSession, tmp_path: Path) -> None:
    from spark.streaming import Checkpoints

    fresh = Checkpoints(spark, (tmp_path / "new").as_uri())
    fresh.check()
    fresh.check()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "layout-0").touch()
    with pytest.raises(CorruptRunFolder, match=r"another version of FLEAD .* move the folder away") as raised:
        Checkpoints(spark, (tmp_path / "old").as_uri()).check()
    assert "\n" not in str(raised.value)


def test_nobody_answers_at_the_start(tmp_path: Path) -> None:
    from spark import streaming
    from spark.session import SparkHome

    uri = SecretStr(f"mongodb://127.0.0.1:{free_port()}/?serverSelectionTimeoutMS=200")
    settings = Settings(run_dir=tmp_path, mongodb=MongoSettings(uri=uri))
    with pytest.raises(Unavailable, match="MongoDB does not answer"):
        streaming.run(settings, SparkHome(tmp_path, tmp_path, tmp_path, tmp_path), lambda: True)


@hypothesis_settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_windows_do_not_depend_on_how_readings_fall_into_batches(data: st.DataObject) -> None:
    from spark.stream_windows import DeviceWindows, Row

    times = data.draw(st.lists(st.integers(1_700_000_000, 1_700_004_000), min_size=1, max_size=40))
    rows = [
        Row(
            float(t),
            t * 1_000_000,
            "c",
            ("a",),
            0,
            {"a": None if t % 7 == 0 else float(t % 11)},
            float(t % 3),
            t % 5 == 0,
        )
        for t in times
    ]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))

    def documents(parts: Iterable[list[Row]]) -> dict[str, Any]:
        held, found = DeviceWindows(120.0).to_bytes(), {}
        for part in parts:
            device = DeviceWindows.from_bytes(held, 120.0)
            before = device.latest
            _, changed = device.add(part)
            for key in changed | device.complete(before):
                document = device.document(device.windows[key], "d", 10.0)
                found[document["_id"]] = {k: v for k, v in document.items() if k != "stored_at"}
            device.close()
            held = device.to_bytes()
        return found

    parts = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    whole = documents([rows])
    assert documents(parts) == whole
    minutes = [one for one in whole.values() if one["window"] == "1m"]
    for length in ("1h", "1d"):
        longer = [one for one in whole.values() if one["window"] == length]
        assert sum(one["readings"] for one in longer) == sum(one["readings"] for one in minutes)
        assert sum(one["sensors"]["a"]["sum"] for one in longer) == sum(one["sensors"]["a"]["sum"] for one in minutes)


@dataclass
class Held:
    """Spark's state of one key."""

    value: tuple[bytes] | None = None
    timeout_ms: int = 0
    hasTimedOut: bool = False  # noqa: N815  # Spark's name

    @property
    def exists(self) -> bool:
        return self.value is not None

    @property
    def get(self) -> tuple[bytes] | None:
        return self.value

    def update(self, value: tuple[bytes]) -> None:
        self.value = value

    def remove(self) -> None:
        self.value = None

    def setTimeoutDuration(self, duration_ms: int) -> None:  # noqa: N802  # Spark's name
        self.timeout_ms = duration_ms


class TestADeviceThatFallsSilent:
    """What Spark calls for one device; `window_aggregates` as its documents leave it."""

    MORNING = datetime(2024, 3, 4, 1, tzinfo=UTC)

    @pytest.fixture(autouse=True)
    def _device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from spark import stream_devices
        from spark.mongo import Target

        monkeypatch.setattr(stream_devices, "models_of", lambda _target: lambda _cohort, _version: None)
        self.operator = stream_devices.Operator(stream_devices.Job(Target("", ""), CONFIG, 600.0))
        self.held = Held()
        self.rows: dict[str, dict[str, Any]] = {}

    def take(self, *times: datetime) -> None:
        one = {"device_id": "d", "cohort": "a", "observed": {"a": 1.0}, "error": 0.5, "is_anomaly": False}
        values = [orjson.dumps(one | {"timestamp": at.isoformat()}) for at in times]
        frame = {"partition": [0] * len(values), "offset": range(len(values)), "value": values}
        self._call([pd.DataFrame(frame)], timed_out=False)

    def wait(self) -> None:
        self._call([], timed_out=True)

    def _call(self, frames: list[pd.DataFrame], *, timed_out: bool) -> None:
        self.held.hasTimedOut = timed_out
        for said in self.operator(("d",), frames, cast(Any, self.held)):
            self.rows |= {row["_id"]: row for row in map(bson.decode, said["document"].dropna())}

    def day(self) -> dict[str, Any]:
        return self.rows["1d/device/d@2024-03-04T00:00:00+00:00"]

    def test_its_windows_are_told_as_over(self) -> None:
        self.take(*(self.MORNING + timedelta(seconds=30 * i) for i in range(20)))
        assert self.day()["loss"] is None
        self.wait()
        assert self.day()["loss"] == pytest.approx(1.0 - 20 / (23 * 120), abs=0.001)

    def test_back_on_the_same_day_it_goes_on_with_that_day(self) -> None:
        self.take(*(self.MORNING + timedelta(seconds=30 * i) for i in range(20)))
        self.wait()
        hour = dict(self.rows["1h/device/d@2024-03-04T01:00:00+00:00"])
        self.take(self.MORNING + timedelta(hours=9))
        assert self.day()["readings"] == self.day()["sensors"]["a"]["count"] == 21
        assert self.rows["1h/device/d@2024-03-04T01:00:00+00:00"] == hour
        self.take(self.MORNING + timedelta(hours=9), self.MORNING + timedelta(hours=24))
        assert self.day()["readings"] == 21

    def test_a_late_reading_after_the_silence_is_counted_as_late(self) -> None:
        self.take(self.MORNING)
        self.wait()
        self.take(self.MORNING - timedelta(hours=2))
        assert (self.day()["readings"], self.day()["late"]) == (1, 1)

    def test_after_a_week_nothing_is_left_of_it(self) -> None:
        self.take(self.MORNING)
        self.wait()
        assert self.held.timeout_ms == 7 * 86_400_000
        self.wait()
        assert self.held.value is None

    def test_what_is_no_prediction_leaves_no_state(self) -> None:
        frame = {"partition": [0], "offset": [0], "value": [b"{"]}
        self._call([pd.DataFrame(frame)], timed_out=False)
        assert (self.held.value, self.rows) == (None, {})


@pytest.mark.servers
def test_a_cohorts_windows_are_summed_however_many_there_are(mongo: Mongo, monkeypatch: pytest.MonkeyPatch) -> None:
    from spark import stream_devices
    from spark.stream_windows import DeviceWindows, cohort_key, read_row

    one = {"cohort": "c", "observed": {"a": 1.0}, "error": 0.5}
    for device in ("d", "e"):
        windows = DeviceWindows(600.0)
        said = [one | {"device_id": device, "timestamp": f"2024-03-04T01:{minute:02}:00Z"} for minute in range(7)]
        windows.add([row for row in (read_row(orjson.dumps(each), device) for each in said) if row])
        rows = [windows.document(window, device, 60.0) for window in windows.windows.values()]
        mongo.database.window_aggregates.insert_many(rows)
    at = datetime(2024, 3, 4, 1, tzinfo=UTC).timestamp()
    left = at - 60.0  # a window whose devices have gone to another cohort
    mongo.database.window_aggregates.insert_one(rows[0] | {"_id": cohort_key("1m", "c", left), "scope": "cohort"})
    monkeypatch.setattr(stream_devices, "_STARTS", 3)
    places = [stream_devices.Place("1m", "c", at + 60.0 * minute) for minute in range(-1, 7)]
    stream_devices.sum_cohorts(mongo.database, [*places, stream_devices.Place("1h", "c", at)])
    found = {row["_id"]: row["readings"] for row in stored(mongo, "window_aggregates", scope="cohort")}
    minutes = {cohort_key("1m", "c", at + 60.0 * minute): 2 for minute in range(7)}
    assert found == minutes | {cohort_key("1h", "c", at): 14}


def test_an_error_that_is_too_large_to_be_summed_is_none() -> None:
    from spark.stream_windows import DeviceWindows, read_row

    one = {"device_id": "d", "observed": {"a": 1.0}, "error": 1e308, "timestamp": "2024-03-04T00:00:00Z"}
    rows = [read_row(orjson.dumps(one | {"timestamp": f"2024-03-04T00:00:0{i}Z"}), "d") for i in range(3)]
    device = DeviceWindows(600.0)
    device.add([row for row in rows if row])
    again = DeviceWindows.from_bytes(device.to_bytes(), 600.0)
    assert [(window.readings, window.errors, window.error) for window in again.windows.values()] == [(3, 0, 0.0)] * 3


def test_features_are_those_of_offline_work_however_readings_are_cut() -> None:
    from spark.stream_scores import Follower

    rng = np.random.default_rng(0)
    times = 1.7e9 + np.cumsum(rng.uniform(20.0, 40.0, 300))
    values = 20.0 + np.cumsum(rng.normal(size=(300, 2)), axis=0)
    task = _task(Series("d", times, values), CONFIG)
    raw, features, changes = None, [], []
    for part in np.array_split(np.arange(300), 7):
        follower = Follower(("a", "b"), CONFIG, raw)
        asked = follower.follow(times[part], values[part])
        features.append(asked.features)
        changes.append(asked.changes)
        raw = follower.to_bytes()
    assert np.allclose(np.concatenate(features)[1:], task.features[:-1])
    came = task.changes[:-1, :2] / task.scales[:-1, :2]
    assert np.allclose(np.concatenate(changes)[40:], np.clip(came, -20.0, 20.0)[39:])
    assert len(raw or b"") < 40_000
