"""The whole system, running: what flows, what is refused, what is killed, and what is left at the end.

The tests of this file share one run and stand in order: the last ones end it.
"""

from __future__ import annotations

import base64
import json
import os
import signal
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pymongo import MongoClient

from config.child import port_is_taken
from config.settings import PROJECT
from flead import network
from flead.errors import BadReading
from flead.export import LiteModel
from flead.messages import ReadingLimits, parse_reading
from flead.scoring import KINDS
from kafka.client import make_consumer, make_producer
from kafka.offsets import Offsets
from kafka.topics import DEAD_LETTERS, GLOBAL_MODEL, LOCAL_UPDATES, PREDICTIONS, READINGS
from storage.weights import unpacked
from tests.fixtures_run import LiveRun, flead, left_over, run_environment, start
from tests.fixtures_storage import wait_until

pytestmark = [pytest.mark.servers, pytest.mark.timeout(400)]


def decoded(value: bytes | None) -> dict[str, Any]:
    """A record's object; empty for what the tests planted that is none."""
    with suppress(ValueError):
        return dict(orjson.loads(value or b"{}"))
    return {}


def read(servers: str, topic: str, begin: dict[int, int] | None = None) -> list[tuple[bytes | None, dict[str, Any]]]:
    """Every record of a topic up to its present end: key and value."""
    ends = Offsets(servers).end(topic)
    consumer: Consumer = make_consumer(servers, "test-reader", partition_eof=True)
    found: list[tuple[bytes | None, dict[str, Any]]] = []
    open_partitions = {p for p, e in ends.items() if e > (begin or {}).get(p, 0)}
    try:
        consumer.assign([TopicPartition(topic, p, (begin or {}).get(p, 0)) for p in open_partitions])
        while open_partitions:
            for message in consumer.consume(500, 5.0):
                if message.error() is not None:
                    open_partitions.discard(message.partition() or 0)
                else:
                    found.append((message.key(), decoded(message.value())))
    finally:
        consumer.close()
    return found


def stored_model(run: LiveRun, device: str, samples_seen: int) -> tuple[network.Vector, network.Architecture]:
    """The model that a device sent when its counter stood there, as the database has it."""
    uri = f"mongodb://127.0.0.1:{run.port('MONGODB__PORT')}/?directConnection=true"
    with MongoClient[dict[str, Any]](uri) as client:
        stored = client["flead"]["local_models"].find_one({"device_id": device, "samples_seen": samples_seen})
    assert stored is not None
    assert stored["sensors"] == stored["cohort"].split("+")
    return unpacked(stored["weights"])


class TestWhatFlows:
    def test_every_reading_is_predicted_and_nothing_is_lost(self, live_run: LiveRun) -> None:
        live_run.wait(lambda s: s["counts"]["taken_up"] > 3_000)
        predictions = read(live_run.servers, PREDICTIONS)
        places = {(p["source"]["partition"], p["source"]["offset"]) for _, p in predictions}
        begin: dict[int, int] = {}
        for partition, offset in sorted(places):
            assert offset == begin.get(partition, 0), f"partition {partition} has a hole before {offset}"
            begin[partition] = offset + 1
        assert {key for key, _ in predictions} == {p["device_id"].encode() for _, p in predictions}

    def test_a_prediction_is_made_before_its_reading_is_seen(self, live_run: LiveRun) -> None:
        by_device: dict[str, list[dict[str, Any]]] = {}
        for _, prediction in read(live_run.servers, PREDICTIONS):
            by_device.setdefault(prediction["device_id"], []).append(prediction)
        for predictions in by_device.values():
            assert [p["samples_seen"] for p in predictions] == list(range(1, len(predictions) + 1))
            for earlier, later in pairwise(predictions):
                assert later["expected"] == earlier["forecast"]

    def test_a_prediction_looks_one_horizon_ahead_and_says_what_is_strange(self, live_run: LiveRun) -> None:
        predictions = [prediction for _, prediction in read(live_run.servers, PREDICTIONS)]
        for p in predictions:
            assert p["horizon_s"] > 0
            assert p["horizon"].keys() <= p["observed"].keys()
            assert (p["kind"] is None) == (p["sensor"] is None)
            assert p["kind"] is None or p["kind"] in KINDS
            assert isinstance(p["drift"], bool)
        assert any(p["horizon"].keys() == p["observed"].keys() for p in predictions)

    def test_rounds_merge_many_devices_and_come_back_to_all_of_them(self, live_run: LiveRun) -> None:
        live_run.wait(lambda s: s["counts"].get("devices_adopted") == 20, 90.0)
        history = httpx.get(f"{live_run.url}/api/history").json()
        assert all(10 <= r["num_devices"] == len(set(r["device_ids"])) for r in history["aggregation_history"])
        models = [model for _, model in read(live_run.servers, GLOBAL_MODEL)]
        versions = [model["version"] for model in models]
        assert versions == sorted(versions)
        assert set(range(1, max(versions) + 1)) == set(versions)
        said = [(model["version"], model["stage"]) for model in models]
        assert len(said) == len(set(said)), "a version is published once as a canary and once as the stable one"
        adopted = {u["metadata"]["base_version"] for _, u in read(live_run.servers, LOCAL_UPDATES)}
        assert max(adopted) >= 1

    def test_everything_is_stored_once(self, live_run: LiveRun) -> None:
        live_run.wait(lambda s: s["counts"].get("device_data", 0) > 3_000)
        uri = f"mongodb://127.0.0.1:{live_run.port('MONGODB__PORT')}/?directConnection=true"
        with MongoClient[dict[str, Any]](uri, tz_aware=True) as client:
            database = client["flead"]
            ours = {"device_id": "sim-1"}  # its partition may be stored after others
            wait_until(lambda: database["device_data"].find_one(ours) is not None, 90.0)
            one = database["device_data"].find_one(ours)
            assert one is not None
            assert one["_id"] == f"sim-1@{one['timestamp'].isoformat()}" or one["timestamp"].microsecond % 1_000 == 0
            wait_until(lambda: database["predictions"].count_documents({}) > 3_000, 90.0)
            assert database["global_model"].count_documents({"published_at": None}) <= 1

    def test_windows_and_the_global_models_scores_are_kept(self, live_run: LiveRun) -> None:
        uri = f"mongodb://127.0.0.1:{live_run.port('MONGODB__PORT')}/?directConnection=true"
        with MongoClient[dict[str, Any]](uri) as client:
            database = client["flead"]
            wait_until(lambda: database["model_scores"].find_one({"count": {"$gt": 0}}) is not None, 90.0)
            hours = {"window": "1h", "scope": "device", "readings": {"$gt": 1}}
            wait_until(lambda: database["window_aggregates"].find_one(hours) is not None, 90.0)
            one = database["window_aggregates"].find_one(hours)
            assert one is not None
            minutes = {"window": "1m", "scope": "device", "device_id": one["device_id"]}
            within = minutes | {"start": {"$gte": one["start"], "$lt": one["end"]}}

            def of_its_minutes() -> int:
                return sum(minute["readings"] for minute in database["window_aggregates"].find(within))

            wait_until(lambda: of_its_minutes() >= one["readings"], 90.0)

    def test_a_report_is_made_while_the_run_is_on(self, live_run: LiveRun, tmp_path: Path) -> None:
        made = live_run.flead("analyze", "batch", "--report", str(tmp_path / "report"))
        assert made.returncode == 0, made.stderr
        report = json.loads((tmp_path / "report/report.json").read_text())
        assert len(report["devices"]) >= 20
        assert report["readings"] == sum(own["readings"] for own in report["quality"].values())
        versions = [model["version"] for model in report["evaluation"]]
        assert versions == list(range(1, len(versions) + 1))
        assert versions

    def test_every_chart_of_every_dashboard_answers(self, live_run: LiveRun) -> None:
        live_run.wait(lambda status: port_is_taken(live_run.port("DASHBOARDS__PORT")), 240.0)
        live_run.wait(lambda status: status["mart"]["follows"] and status["mart"]["behind_s"] is not None)
        charts: list[dict[str, Any]] = []

        def are_filled() -> bool:
            charts[:] = json.loads(live_run.flead("dashboards", "check", "--json").stdout)
            rows = {one["chart"]: one["rows"] for one in charts}
            names = ("Readings sent and predicted on (per second)", "Skill by version of the global model")
            return all(rows[name] > 0 for name in names)

        wait_until(are_filled, 120.0)
        assert [one for one in charts if not one["ok"]] == []
        assert {one["dashboard"] for one in charts} == {"Fleet", "Device", "Global model", "Anomalies", "Pipeline"}

    def test_a_devices_model_is_exported_while_it_learns(self, live_run: LiveRun, tmp_path: Path) -> None:
        output = tmp_path / "model.tflite"
        options = ("--device", "sim-1", "--format", "tflite", "--output", str(output), "--json")
        done = live_run.flead("export", *options, "--run-dir", str(live_run.folder))
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["sensors"] == "humidity,light,temperature,voltage"
        assert said["agreement"]["max_abs"] < 1e-4
        theta, architecture = stored_model(live_run, "sim-1", int(said["samples_seen"]))
        lite = LiteModel(output.read_bytes())
        for x in np.random.default_rng(1).normal(0.0, 1.0, (20, architecture.input_size)):
            np.testing.assert_allclose(lite.predict(x), network.forward(theta, architecture, x), atol=1e-4)

    def test_the_workers_know_only_what_was_shipped_to_them(self, live_run: LiveRun) -> None:
        worker = psutil.Process(live_run.status()["services"]["taskmanager"]["pid"])
        assert str(PROJECT) not in [worker.cwd(), *worker.environ()["PYTHONPATH"].split(":")]

    def test_what_people_ask_is_answered(self, live_run: LiveRun) -> None:
        status = json.loads(live_run.flead("status", "--json").stdout)
        assert {"services", "counts", "lag", "latency_ms"} <= status.keys()
        assert all(service["state"] == "running" for service in status["services"].values())
        assert status["latency_ms"]["p50"] > 0
        assert "submitted" in live_run.flead("logs", "learner").stdout
        checked = live_run.flead("consume", READINGS, "--check", "-n", "500", "--json")
        assert checked.returncode == 0, checked.stdout
        assert live_run.flead("logs", "nobody").stderr.startswith("flead: no log of nobody")

    def test_a_second_run_in_the_same_folder_is_refused_in_one_line(self, live_run: LiveRun) -> None:
        refused = live_run.flead("up", "--for", "1")
        assert refused.returncode == 1
        assert "another run uses" in refused.stderr
        assert "Traceback" not in refused.stderr

    def test_a_taken_port_is_named_with_its_mend(self, live_run: LiveRun, tmp_path: Path) -> None:
        refused = flead("up", "--for", "1", environment={**live_run.environment, "FLEAD_RUN_DIR": str(tmp_path)})
        assert refused.returncode == 1
        assert "is taken" in refused.stderr
        assert "FLEAD_" in refused.stderr


def test_a_folder_that_flink_cannot_use_is_refused_in_one_line(tmp_path: Path) -> None:
    refused = flead("up", "--for", "1", environment=run_environment(tmp_path / "a run #1"))
    assert refused.returncode == 1
    assert "special sign: name another with --run-dir" in refused.stderr


VALID: dict[str, Any] = {
    "device_id": "bad-1",
    "timestamp": "2024-01-01T00:00:00+00:00",
    "sensors": {"temperature": 19.3, "humidity": 38.1},
}
BAD_TIMES: list[Any] = ["1970-01-01T00:00:00+00:00", "2100-01-01T00:00:00+00:00", "x", 7]
BAD_SENSORS: list[Any] = [{}, [], None, "x", {"t": "1"}, {"t": True}, {"t": 1e300}, {"": 1}]
TABLE = [
    b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff\xfe\x00", b"not json", b'"' + b"x" * 900_000 + b'"',
    *(orjson.dumps({k: v for k, v in VALID.items() if k != missing}) for missing in VALID),
    *(orjson.dumps({**VALID, "timestamp": t}) for t in BAD_TIMES),
    *(orjson.dumps({**VALID, "sensors": s}) for s in BAD_SENSORS),
    *(orjson.dumps({**VALID, "device_id": d}) for d in ("", 7, None, "a\nb", "x" * 200)),
    json.dumps({**VALID, "sensors": {"t": float("nan")}}).encode(),
    json.dumps({**VALID, "sensors": {"t": float("inf")}}).encode(),
    orjson.dumps({**VALID, "sensors": {f"s{i}": 1.0 for i in range(65)}}),
    json.dumps({**VALID, "sensors": {"t": 10**400}}).encode(),
    b"[" * 5_000 + b"]" * 5_000,
]  # fmt: skip


def is_bad(raw: bytes) -> bool:
    try:
        parse_reading(raw, now=datetime.now(UTC), limits=ReadingLimits())
    except BadReading:
        return True
    return False


def many_bad_readings(count: int) -> list[bytes]:
    """Different records that are no readings: mutations of a valid one, and arbitrary bytes and JSON."""
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    values = st.recursive(
        scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3)
    )
    mutated = st.builds(
        lambda key, value: json.dumps({**VALID, key: value}).encode("utf-8", "surrogatepass"),
        st.sampled_from(["device_id", "timestamp", "sensors", "metadata"]), values,
    )  # fmt: skip
    found: dict[bytes, None] = dict.fromkeys(raw for raw in TABLE if is_bad(raw))

    @settings(
        max_examples=4 * count, database=None, derandomize=True, deadline=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],
    )  # fmt: skip
    @given(st.one_of(st.binary(max_size=200), values.map(lambda v: json.dumps(v).encode()), mutated))
    def collect(raw: bytes) -> None:
        if is_bad(raw):
            found[raw] = None

    collect()
    return list(found)[:count]


class TestWhatIsRefused:
    def test_each_of_hundreds_of_bad_readings_is_in_the_dead_letters_and_the_job_goes_on(
        self, live_run: LiveRun
    ) -> None:
        bad = many_bad_readings(400)
        assert len(bad) >= 300
        assert all(map(is_bad, TABLE))
        before, restarts = Offsets(live_run.servers).end(DEAD_LETTERS), live_run.status()["job"]["restarts"]
        producer: Producer = make_producer(live_run.servers)
        for raw in bad:
            producer.produce(READINGS, raw, b"bad-1")
        producer.produce(READINGS, None, b"bad-1")  # a tombstone
        assert producer.flush(30) == 0
        expected = {*bad, b""}

        def refused() -> set[bytes]:
            letters = [letter for key, letter in read(live_run.servers, DEAD_LETTERS, before) if key == b"bad-1"]
            assert all(letter["reason"] and letter["detail"] for letter in letters)
            assert all("\n" not in letter["detail"] for letter in letters)
            return {base64.b64decode(letter["payload_base64"]) for letter in letters}

        wait_until(lambda: refused() >= expected, 60.0)
        job = live_run.status()["job"]
        assert (job["state"], job["restarts"]) == ("RUNNING", restarts)
        taken = live_run.count("taken_up")
        live_run.wait(lambda s: s["counts"]["taken_up"] > taken + 300)

    def test_a_bad_update_poisons_nothing(self, live_run: LiveRun) -> None:
        good = {**read(live_run.servers, LOCAL_UPDATES)[-1][1], "device_id": "bad-2"}  # no real device's counter falls
        rounds = live_run.count("rounds")
        producer = make_producer(live_run.servers)
        narrow = json.loads(json.dumps(good))
        narrow["weights"]["weights"][0][0] = [1.0]
        for value in (b"?", b"{}", orjson.dumps(narrow), orjson.dumps({**good, "sample_count": -1})):
            producer.produce(LOCAL_UPDATES, value, b"bad-2")
        assert producer.flush(30) == 0
        live_run.wait(lambda s: s["counts"]["rounds"] > rounds + 1, 60.0)
        letters = [letter for _, letter in read(live_run.servers, DEAD_LETTERS)]
        assert sum(letter["source"]["topic"] == LOCAL_UPDATES for letter in letters) == 4

    def test_a_model_that_is_none_changes_nothing(self, live_run: LiveRun) -> None:
        producer = make_producer(live_run.servers)
        producer.produce(GLOBAL_MODEL, b'{"cohort": "x"}', b"x")
        assert producer.flush(30) == 0
        wait_until(lambda: any(d["reason"] == "bad_model" for _, d in read(live_run.servers, DEAD_LETTERS)), 30.0)
        assert live_run.status()["job"]["state"] == "RUNNING"

    def test_a_device_may_come_at_any_moment_with_any_sensors_and_change_them(self, live_run: LiveRun) -> None:
        producer = make_producer(live_run.servers)
        shapes: list[dict[str, float | None]] = [
            {"x": 1.0}, {"x": None}, {"x": 2.0, "y": 3.0}, {"y": 3.5}, {f"s{i}": float(i) for i in range(50)},
        ]  # fmt: skip
        for minute, sensors in enumerate(shapes):
            reading = {"device_id": "new-1", "timestamp": f"2024-01-01T00:0{minute}:00+00:00", "sensors": sensors}
            producer.produce(READINGS, orjson.dumps(reading), b"new-1")
        assert producer.flush(30) == 0

        def cohorts() -> list[str]:
            found = [p for key, p in read(live_run.servers, PREDICTIONS) if key == b"new-1"]
            return [p["cohort"] for p in sorted(found, key=lambda p: p["samples_seen"])]

        wait_until(lambda: len(cohorts()) == len(shapes), 30.0)
        assert cohorts()[:4] == ["x", "x", "x+y", "x+y"]
        assert cohorts()[4].startswith("52-sensors-")


class TestWhatIsKilled:
    @pytest.mark.parametrize(
        "name", ["server", "taskmanager", "jobmanager", "kafka", "mongodb", "analytics", "learner"]
    )
    def test_comes_back_by_itself_and_goes_on_where_it_was(self, name: str, live_run: LiveRun) -> None:
        before = live_run.status()
        pid, counts = before["services"][name]["pid"], before["counts"]
        os.kill(pid, signal.SIGKILL)
        # The issue asks for 60 s on a machine that does nothing else; CI's may be slower.
        live_run.wait(
            lambda s: (
                s["services"][name]["pid"] not in (None, pid)
                and s["counts"]["rounds"] > counts["rounds"]
                and s["counts"]["taken_up"] > counts["readings"] + 300
            ),
            120.0,
        )
        assert live_run.count("update_counters_fell") == 0

    def test_no_round_was_lost_or_doubled(self, live_run: LiveRun) -> None:
        history = httpx.get(f"{live_run.url}/api/history?cohort=humidity%2Blight%2Btemperature%2Bvoltage").json()
        assert history["total_rounds"] == len(history["aggregation_history"])
        uri = f"mongodb://127.0.0.1:{live_run.port('MONGODB__PORT')}/?directConnection=true"
        with MongoClient[dict[str, Any]](uri) as client:
            rounds = sorted(r["round"] for r in client["flead"]["global_model"].find({}, {"round": 1, "cohort": 1}))
        assert rounds == list(range(1, len(rounds) + 1))

    def test_a_devices_counter_never_went_down(self, live_run: LiveRun) -> None:
        counters: dict[str, int] = {}
        for key, update in read(live_run.servers, LOCAL_UPDATES):
            if key == b"bad-2":  # planted above
                continue
            counter = update["metadata"]["samples_seen"]
            assert counter > counters.get(update["device_id"], 0)
            counters[update["device_id"]] = counter
        assert len(counters) == 20


class TestTheEnd:
    def test_down_stops_everything_in_order_and_the_verdict_is_kept(self, live_run: LiveRun) -> None:
        stopped = live_run.flead("down")
        assert stopped.returncode == 0, stopped.stderr
        live_run.process.wait(30)
        summary = json.loads((live_run.folder / "summary.json").read_text())
        failed = {name: check["detail"] for name, check in summary["checks"].items() if not check["ok"]}
        assert failed.keys() <= {"updates"}, failed  # the bad updates above were meant to be refused
        assert summary["checks"]["disk"]["ok"]
        assert summary["counts"]["readings"] == summary["counts"]["taken_up"] + summary["counts"]["dead_readings"]
        assert left_over(live_run) == []
        for name, value in live_run.environment.items():
            if name.startswith("FLEAD_") and name.endswith("PORT"):
                assert not port_is_taken(int(value)), name
        assert live_run.flead("status").returncode == 3

    def test_a_killed_run_leaves_nothing_and_the_next_one_goes_on(self, live_run: LiveRun) -> None:
        rounds = json.loads((live_run.folder / "summary.json").read_text())["counts"]["rounds"]
        options = ("--rate", "300", "--devices", "20", "--loop", "--without", "analytics")
        run = start(live_run.folder, live_run.environment, *options)
        try:
            run.wait(lambda s: s["state"] == "running" and s["counts"].get("rounds", 0) > rounds, 150.0)
            counters = [u["metadata"]["samples_seen"] for _, u in read(run.servers, LOCAL_UPDATES)[-5:]]
            assert min(counters) > 100  # learners went on from their savepoint
            # The small archive goes on from where analytics were; the producer says the same again, so counts stay.
            run.wait(lambda s: s["archive_lag"] and sum(s["archive_lag"].values()) < 1_000, 60.0)
        finally:
            run.process.kill()
            run.process.wait(10)
        wait_until(lambda: not left_over(run), 60.0)
        wait_until(lambda: not port_is_taken(run.port("KAFKA__PORT")), 30.0)
