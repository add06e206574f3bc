"""`flead evaluate`, `flead detect` and `flead export` as people and scripts meet them."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.sources import open_dataset
from flead import network
from flead.export import LiteModel, from_npz, metadata_of
from flead.learner import DeviceLearner
from flead.learner_config import LearnerConfig
from flead.messages import Reading
from orchestration.evaluating import Days
from storage.rounds import RoundRepository, Update
from tests.fixtures_cli import Ended, Flead
from tests.fixtures_storage import Mongo

PROJECT = Path(__file__).parent.parent
FOLDER = Path(os.environ.get("FLEAD_DATA", PROJECT / "../shared/data"))
INTEL = FOLDER / "intel-lab/data_2004-03-04_2004-03-07.txt.gz"
SERIES = FOLDER / "nab/realKnownCause/ambient_temperature_system_failure.csv"


def needs(path: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not path.exists(), reason=f"needs {path}; name its folder in FLEAD_DATA")


pytestmark = pytest.mark.usefixtures("run_dir")


def refused(done: Ended) -> str:
    """The one line that says why a command was refused."""
    (line,) = done.err.splitlines()
    assert (done.code, done.out) == (1, "")
    assert line.startswith("flead: ")
    return line


START = datetime(2024, 1, 1, tzinfo=UTC)


def wave(device: int, i: int, step_s: float) -> float:
    """A day's course, a slower one, and noise that is the same each time."""
    t = i * step_s
    noise = math.sin(12.9898 * (i + 1) * (device + 1)) * 43758.5453 % 1.0
    return 20.0 + device + 3.0 * math.sin(2 * math.pi * t / 86_400.0) + math.sin(t / 2_000.0) + 0.2 * noise


def table(path: Path, *, devices: int = 2, days: float = 1.0, first: datetime = START, step_s: float = 120.0) -> Path:
    """A CSV of some devices in time order, with a text column, a label and some cells without a value."""
    lines = ["timestamp,device_id,temperature,power,note,label"]
    for i in range(int(days * 86_400 / step_s)):
        moment = (first + timedelta(seconds=i * step_s)).isoformat()
        for device in range(devices):
            value = wave(device, i, step_s)
            power = "" if i % 17 == 3 else f"{40 - value:.4f}"
            lines.append(f"{moment},pump-{device},{value:.4f},{power},fine,{int(i % 100 == 99)}")
    path.write_text("\n".join(lines) + "\n")
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestDetect:
    def test_rejects_what_the_settings_reject_of_a_stream(
        self, tmp_path: Path, flead: Flead, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, output = table(tmp_path / "in.csv", devices=1, days=0.1), tmp_path / "out.csv"
        rejected = "lines that are no reading"
        assert rejected not in flead("detect", source, "-o", output).err
        monkeypatch.setenv("FLEAD_READING__MAX_ABS_VALUE", "21")
        done = flead("detect", source, "-o", output)
        assert rejected in done.err
        assert "a value is beyond 21" in done.err

    def test_writes_a_line_for_each_line_in_their_order(self, tmp_path: Path, flead: Flead) -> None:
        source, output = table(tmp_path / "in.csv"), tmp_path / "out.csv"
        done = flead("detect", source, "--output", output)
        assert (done.code, done.out) == (0, "")
        assert "1,440 records of 2 devices" in done.err
        given, found = rows_of(source), rows_of(output)
        assert output.read_text().splitlines()[0] == "timestamp,device_id,anomaly_score,is_anomaly"
        assert [(r["timestamp"], r["device_id"]) for r in found] == [(r["timestamp"], r["device_id"]) for r in given]
        assert all(0.0 <= float(row["anomaly_score"]) <= 1.0 for row in found)
        assert {row["is_anomaly"] for row in found} <= {"0", "1"}
        assert all(repr(float(row["anomaly_score"])) == row["anomaly_score"] for row in found)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]

    def test_scores_as_the_stream_does_one_by_one(self, tmp_path: Path, flead: Flead) -> None:
        source, output = table(tmp_path / "in.csv", days=7.0), tmp_path / "out.csv"
        flead("detect", source, "--output", output, "--ignore", "label")
        learners = {f"pump-{d}": DeviceLearner(("power", "temperature"), LearnerConfig()) for d in range(2)}
        for record, row in zip(open_dataset(source).readings(), rows_of(output), strict=True):
            assert isinstance(record, Reading)
            sensors = {name: value for name, value in record.sensors.items() if name != "label"}
            said = learners[record.device_id].process(record.timestamp.timestamp(), sensors)
            # NumPy's power and Python's may differ in the last bit.
            assert abs(float(row["anomaly_score"]) - said.score) < 1e-15
            assert row["is_anomaly"] == str(int(said.is_anomaly))

    def test_leaves_a_column_out_as_if_it_were_not_there(self, tmp_path: Path, flead: Flead) -> None:
        source = table(tmp_path / "in.csv")
        without = tmp_path / "without.csv"
        without.write_text("".join(line.rpartition(",")[0] + "\n" for line in source.read_text().splitlines()))
        outputs = [tmp_path / name for name in ("ignored.csv", "named.csv", "without.csv.out", "with.csv")]
        said = [
            flead("detect", source, "-o", outputs[0], "--ignore", "label").err,
            flead("detect", source, "-o", outputs[1], "--sensors", "temperature, power").err,
            flead("detect", without, "-o", outputs[2]).err,
            flead("detect", source, "-o", outputs[3]).err,
        ]
        ignored, named, absent, counted = (path.read_bytes() for path in outputs)
        assert ignored == named == absent != counted
        assert ["--ignore label" in text for text in said] == [False, False, False, True]

    def test_takes_a_wrong_cell_of_a_column_left_out_as_it_is(self, tmp_path: Path, flead: Flead) -> None:
        source, output = tmp_path / "in.csv", tmp_path / "out.csv"
        source.write_text("timestamp,x,label\n2024-01-01,1,0\n2024-01-02,2,yes\n2024-01-03,3,0\n")
        done = flead("detect", source, "-o", output, "--ignore", "label", "--json")
        assert json.loads(done.out)["rejected"] == 0

    def test_goes_by_time_where_the_file_does_not(self, tmp_path: Path, flead: Flead) -> None:
        source = table(tmp_path / "in.csv", devices=1)
        header, *lines = source.read_text().splitlines()
        order = np.random.default_rng(0).permutation(len(lines))
        shuffled = tmp_path / "shuffled.csv"
        shuffled.write_text("\n".join([header, *(lines[i] for i in order)]) + "\n")
        one, other = tmp_path / "one.csv", tmp_path / "other.csv"
        flead("detect", source, "-o", one)
        flead("detect", shuffled, "-o", other)
        sorted_rows = rows_of(one)
        assert rows_of(other) == [sorted_rows[i] for i in order]

    def test_accounts_for_every_line_that_is_no_reading(self, tmp_path: Path, flead: Flead) -> None:
        source, output = tmp_path / "in.csv", tmp_path / "out.csv"
        source.write_text(
            'timestamp,device_id,x\n2024-01-01T00:00:00Z,a,1\nyesterday,a,1\n\n"2024-01-01 00:01",b,[x]\n'
            "2024-01-01T00:02,a\n2024-01-01T00:03+01:00,a,1e300\n2024-01-01T00:04, a ,nan\n\n"
        )
        done = flead("detect", source, "-o", output)
        assert "lines that are no reading and score 0: 4; the first, line 3: timestamp: 'yesterday'" in done.err
        assert output.read_text().splitlines()[1:] == [
            "2024-01-01T00:00:00Z,a,0.0,0",
            "yesterday,a,0.0,0",
            "2024-01-01 00:01,b,0.0,0",
            "2024-01-01T00:02,a,0.0,0",
            "2024-01-01T00:03+01:00,a,0.0,0",
            "2024-01-01T00:04, a ,0.0,0",
        ]

    @pytest.mark.parametrize(
        ("content", "why"),
        [
            (None, "cannot be read: No such file"),
            (b"", "holds no readings"),
            (b"timestamp,x\n", "holds no reading; there is nothing below its header"),
            (b"timestamp,x\nnever,1\nsoon,2\n", "holds no reading; line 2: timestamp: 'never'"),
            (b"time,x\n2024-01-01,1\n", "has no known format"),
        ],
    )
    def test_says_what_cannot_be_scored_and_leaves_the_old_output(
        self, content: bytes | None, why: str, tmp_path: Path, flead: Flead
    ) -> None:
        source, output = tmp_path / "in.csv", tmp_path / "out.csv"
        output.write_text("old")
        if content is not None:
            source.write_bytes(content)
        flead_said = flead("detect", source, "-o", output)
        line, *_ = flead_said.err.splitlines()
        assert flead_said.code == 1
        assert why in line
        assert output.read_text() == "old"
        assert len(list(tmp_path.iterdir())) == 2 - (content is None)

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            (["--ignore", "nonsense"], "there is no column nonsense: the file has label, note, power, temperature"),
            (["--sensors", "x"], "there is no column x"),
            (["--ignore", "label,power,temperature"], "leave no column"),
            (["--plot", "x.pdf"], "not .pdf"),
            (["--false-alarms-per-day", "0"], "must be above 0"),
        ],
    )
    def test_refuses_options_that_cannot_work(self, options: list[str], why: str, tmp_path: Path, flead: Flead) -> None:
        source = table(tmp_path / "in.csv", days=0.1)
        assert why in refused(flead("detect", source, "-o", tmp_path / "out.csv", *options))
        assert not (tmp_path / "out.csv").exists()

    def test_refuses_an_output_that_cannot_be_written_before_it_works(self, tmp_path: Path, flead: Flead) -> None:
        source = table(tmp_path / "in.csv", days=0.1)
        for output in (tmp_path, tmp_path / "nowhere" / "out.csv"):
            assert f"{output} cannot be written" in refused(flead("detect", source, "-o", output))

    def test_reads_json_lines_and_intel_lab_lines(self, tmp_path: Path, flead: Flead) -> None:
        reading = {"device_id": "a", "timestamp": "2024-01-01T01:00:00+01:00", "sensors": {"t": 1.5, "p": None}}
        files = {
            "lines.jsonl": json.dumps(reading).encode() + b'\n{"broken\n',
            "lab.txt.gz": gzip.compress(b"2004-03-04 00:00:00.154 14284 7 19.3 38.1  2.69\n2004-03-04 00 1 99\n"),
        }
        found = []
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
            output = tmp_path / f"{name}.csv"
            assert flead("detect", tmp_path / name, "-o", output).code == 0
            found.append(output.read_text().splitlines()[1:])
        assert found == [
            ["2024-01-01T01:00:00+01:00,a,0.0,0", ",,0.0,0"],
            ["2004-03-04 00:00:00.154,mote-7,0.0,0", "2004-03-04 00,mote-99,0.0,0"],
        ]

    def test_finds_and_explains_a_spike(self, tmp_path: Path, flead: Flead) -> None:
        source, output = table(tmp_path / "in.csv", devices=1, days=2.0), tmp_path / "out.csv"
        lines = source.read_text().splitlines()
        cells = lines[1_301].split(",")
        cells[2] = "95.0"
        lines[1_301] = ",".join(cells)
        source.write_text("\n".join(lines) + "\n")
        done = flead("detect", source, "-o", output, "--explain", "--ignore", "label", "--json")
        found = rows_of(output)
        assert max(range(1_440), key=lambda i: float(found[i]["anomaly_score"])) in range(1_300, 1_303)
        spike = found[1_300]
        assert (spike["sensor"], float(spike["observed"])) == ("temperature", 95.0)
        assert 10.0 < float(spike["expected"]) < 30.0
        assert spike["is_anomaly"] == "1"
        report = json.loads(done.out)
        assert report["records"] == 1_440
        assert report["alarms"] == sum(int(row["is_anomaly"]) for row in found) > 0
        assert report["by_device"]["pump-0"]["records"] == 1_440

    @pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("html", b"<!doctype")])
    def test_draws_what_it_found(self, suffix: str, begins: bytes, tmp_path: Path, flead: Flead) -> None:
        source, plot = table(tmp_path / "in.csv", days=0.5), tmp_path / f"plot.{suffix}"
        assert flead("detect", source, "-o", tmp_path / "out.csv", "--plot", plot).code == 0
        assert plot.read_bytes().startswith(begins)

    @needs(SERIES)
    def test_takes_a_series_of_the_numenta_benchmark(self, tmp_path: Path, flead: Flead) -> None:
        output = tmp_path / "out.csv"
        assert flead("detect", SERIES, "-o", output).code == 0
        found = rows_of(output)
        assert list(found[0]) == ["timestamp", "anomaly_score", "is_anomaly"]
        assert [row["timestamp"] for row in found] == [row["timestamp"] for row in rows_of(SERIES)]


HORIZONS, METHODS = {"next", "10min"}, {"persistence", "seasonal", "local", "federated", "personalised", "centralised"}


class TestEvaluate:
    def test_writes_what_the_contract_names(self, tmp_path: Path, flead: Flead) -> None:
        first = table(tmp_path / "a.csv", devices=3, days=1.0, step_s=300.0)
        second = table(tmp_path / "b.csv", devices=3, days=0.5, first=START + timedelta(days=1), step_s=300.0)
        out, page = tmp_path / "e.json", tmp_path / "e.html"
        options = ("--train", first, "--test", second, "--rounds", 2)
        done = flead("evaluate", *options, "--json", out, "--page", page)
        assert done.code == 0, done.err
        assert "personalised" in done.out
        assert "warning" not in done.err
        found = json.loads(out.read_text(), parse_constant=pytest.fail)
        assert set(found["rmse"]) == HORIZONS
        assert set(found["skill"]) == {*HORIZONS, "cold_start"}
        for horizon in HORIZONS:
            for sensor in ("temperature", "power"):
                assert set(found["rmse"][horizon][sensor]) >= METHODS
                assert set(found["skill"][horizon][sensor]) >= METHODS
                assert found["skill"][horizon][sensor]["persistence"] == 0.0
                assert set(found["skill"]["cold_start"][horizon][sensor]) >= {"persistence", "local", "federated"}
                rmse, skill = found["rmse"][horizon][sensor], found["skill"][horizon][sensor]
                assert skill["local"] == pytest.approx(1 - rmse["local"] / rmse["persistence"])
        assert len(found["skill_by_round"]) == 2
        assert found["devices"] == ["pump-0", "pump-1", "pump-2"]
        assert found["machine"]
        assert found["settings"]["plan"]["federation"]["rounds"] == 2
        assert found["durations_s"]["total"] > 0
        assert found["files"]["read"][str(first)]["readings"] == 864
        assert "<svg" in page.read_text()
        printed = json.loads(flead("evaluate", *options, "--json", "-").out)
        assert printed["rmse"] == found["rmse"]

    def test_cuts_one_file_into_days_as_if_it_were_two(self, tmp_path: Path, flead: Flead) -> None:
        both = table(tmp_path / "both.csv", days=2.0, step_s=300.0)
        one = table(tmp_path / "one.csv", days=1.0, step_s=300.0)
        header, *lines = both.read_text().splitlines()
        two = tmp_path / "two.csv"
        two.write_text("\n".join([header, *lines[len(one.read_text().splitlines()) - 1 :]]) + "\n")
        cut = ("--train-days", "2024-01-01", "--test-days", "2024-01-02..2024-01-05")
        by_day = flead("evaluate", "--train", both, "--test", both, *cut, "--rounds", 1, "--json", "-")
        by_file = flead("evaluate", "--train", one, "--test", two, "--rounds", 1, "--json", "-")
        assert json.loads(by_day.out)["rmse"] == json.loads(by_file.out)["rmse"]

    def test_takes_several_files_and_leaves_other_cohorts_and_the_past_out(self, tmp_path: Path, flead: Flead) -> None:
        files = [
            table(tmp_path / f"{i}.csv", days=0.5, step_s=300.0, first=START + timedelta(hours=12 * i))
            for i in range(3)
        ]
        odd = tmp_path / "odd.csv"
        odd.write_text("timestamp,device_id,flow\n2024-01-01,meter,1\n2024-01-02,meter,2\n")
        train = ("--train", files[0], "--train", files[1], "--train", odd)
        done = flead("evaluate", *train, "--test", files[1], "--test", files[2], "--rounds", 1, "--json", "-")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["readings"] == {"train": 2 * 288, "test": 2 * 144}
        assert "warning: left out, for their sensors are not" in done.err
        assert "meter" in done.err
        assert "warning: training and test overlap in time: 288 test readings" in done.err

    def test_takes_what_no_mote_can_measure_as_missing(self, tmp_path: Path, flead: Flead) -> None:
        path = tmp_path / "lab.txt"
        lines = []
        for i in range(500):
            moment = datetime(2004, 3, 4) + timedelta(seconds=300 * i)  # noqa: DTZ001
            warm = 122.153 if i == 40 else wave(1, i, 300.0)
            lines.append(f"{moment:%Y-%m-%d %H:%M:%S.%f} {i} 7 {warm:.4f} 40.0 {100 + i % 7} 2.{60 + i % 3}")
        path.write_text("\n".join(lines) + "\n")
        options = ("--train", path, "--test", path, "--train-days", "2004-03-04", "--test-days", "2004-03-05")
        kept, cut = (
            json.loads(flead("evaluate", *options, "--rounds", 1, "--json", "-", *more).out)
            for more in (["--all-values"], [])
        )
        assert [each["files"]["read"][str(path)]["implausible"] for each in (kept, cut)] == [{}, {"temperature": 1}]

    @pytest.mark.parametrize(
        ("train", "test", "more", "why"),
        [
            ("a.csv", "other.csv", [], "no device with the sensors"),
            ("a.csv", "a.csv", [], "no test reading is later than the training"),
            ("a.csv", "a.csv", ["--train-days", "2020-01-01"], "--train-days 2020-01-01..2020-01-01 holds no reading"),
            ("a.csv", "a.csv", ["--test-days", "soon"], "--test-days takes days like"),
            ("a.csv", "a.csv", ["--test-days", "2024-01-02..2024-01-01"], "ends before it begins"),
            ("empty.csv", "a.csv", [], "holds no reading; the first line that is none, 2: "),
            ("a.csv", "missing.csv", [], "missing.csv cannot be read"),
            ("a.csv", "a.csv", ["--json", "nowhere/e.json"], "cannot be written"),
        ],
    )
    def test_says_in_one_line_what_cannot_be_compared(
        self, train: str, test: str, more: list[str], why: str, tmp_path: Path, flead: Flead
    ) -> None:
        table(tmp_path / "a.csv", days=0.1)
        (tmp_path / "other.csv").write_text("timestamp,device_id,flow\n2025-01-01,meter,1\n")
        (tmp_path / "empty.csv").write_text("timestamp,x\nnever,1\n")
        done = flead("evaluate", "--train", tmp_path / train, "--test", tmp_path / test, *more)
        assert why in refused(done)

    def test_says_so_where_nothing_is_known_at_a_horizon(self, tmp_path: Path, flead: Flead) -> None:
        first = table(tmp_path / "a.csv", days=10.0, step_s=3_600.0)
        second = table(tmp_path / "b.csv", days=3.0, first=START + timedelta(days=10), step_s=3_600.0)
        done = flead("evaluate", "--train", first, "--test", second, "--rounds", 1, "--json", "-")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert found["mean_skill"]["10min"]["personalised"] is None
        later, sooner = sorted(remark for remark in found["remarks"] if "has no figures" in remark)
        assert "10min has no figures: no test reading lies 600 s after an earlier one, give or take 60 s" in later
        assert "every 3600 s); learner.horizon_s sets another" in later
        assert sooner.startswith("next has no figures")
        assert f"warning: {later}" in done.err

    @needs(INTEL)
    def test_learns_from_real_motes(self, tmp_path: Path, flead: Flead) -> None:
        few = tmp_path / "motes.txt"
        wanted = {b"1", b"2", b"3"}
        lines = (line for _, line in open_dataset(INTEL).lines())
        kept = [line for line in lines if line.split(b" ")[3] in wanted and line[:10] < b"2004-03-06"]
        few.write_bytes(b"\n".join(kept) + b"\n")
        days = ("--train-days", "2004-03-04", "--test-days", "2004-03-05")
        done = flead("evaluate", "--train", few, "--test", few, *days, "--rounds", 2, "--json", "-")
        found = json.loads(done.out)
        assert found["devices"] == ["mote-1", "mote-2", "mote-3"]
        assert found["rmse"]["next"]["temperature"]["persistence"] > 0


def test_days_reach_from_midnight_to_midnight() -> None:
    days = Days.parse("2024-02-28..2024-03-01", "--train-days")
    assert days.end - days.start == 3 * 86_400
    assert Days.parse("2024-02-28", "--train-days").text == "2024-02-28..2024-02-28"


def predict(raw: bytes, form: str, x: Any) -> Any:
    if form == "npz":
        return network.forward(*from_npz(raw), x)
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
        return session.run(None, {"x": x[None].astype(np.float32)})[0][0]
    return LiteModel(raw).predict(x)


class TestExport:
    @pytest.mark.parametrize(("form", "within"), [("npz", 0.0), ("onnx", 1e-5), ("tflite", 1e-5), ("tflite-int8", 0.3)])
    def test_writes_the_model_that_the_device_would_have(
        self, form: str, within: float, tmp_path: Path, flead: Flead
    ) -> None:
        source, output = table(tmp_path / "in.csv"), tmp_path / "model"
        done = flead("export", "--device", "pump-1", "--format", form, "-o", output, "--data", source)
        assert done.code == 0, done.err
        assert f"{output.stat().st_size:,} bytes" in done.err
        learner = DeviceLearner(("label", "power", "temperature"), LearnerConfig())
        for record in open_dataset(source).readings():
            if isinstance(record, Reading) and record.device_id == "pump-1":
                learner.process(record.timestamp.timestamp(), record.sensors)
        raw, x = output.read_bytes(), learner.recent_features[-1]
        expected = network.forward(learner.theta, learner.architecture, x)
        assert np.abs(predict(raw, form, x) - expected).max() <= within * max(1.0, float(np.abs(expected).max()))
        about = metadata_of(raw)
        assert (about["device"], about["cohort"], about["samples_seen"]) == ("pump-1", learner.cohort, "720")
        assert about["sensors"] == "label,power,temperature"
        assert len(about["features"].split(",")) == learner.architecture.input_size

    @pytest.mark.servers
    def test_takes_the_newest_model_of_a_run(
        self, mongo: Mongo, tmp_path: Path, flead: Flead, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert mongo.settings.uri is not None
        monkeypatch.setenv("FLEAD_MONGODB__URI", mongo.settings.uri.get_secret_value())
        monkeypatch.setenv("FLEAD_MONGODB__DATABASE", mongo.settings.database)
        learner = DeviceLearner(("label", "power", "temperature"), LearnerConfig())
        updates = [
            Update(
                device_id="pump-1",
                cohort=learner.cohort,
                timestamp=START + timedelta(hours=hour),
                received_at=START + timedelta(hours=hour),
                theta=np.full(learner.theta.size, float(hour)),
                architecture=learner.architecture,
                sample_count=100,
                samples_seen=100 * hour,
                base_version=hour,
            )
            for hour in (1, 3, 2)
        ]
        many = tuple(f"s{i:02}" for i in range(30))  # too many for the cohort's name to spell them out
        wide = DeviceLearner(many, LearnerConfig())
        updates.append(
            replace(
                updates[0],
                device_id="pump-2",
                cohort=wide.cohort,
                theta=wide.theta,
                architecture=wide.architecture,
                sensors=many,
            )
        )
        output = tmp_path / "model.npz"
        options = ("export", "--device", "pump-1", "-o", output, "--format")
        assert "no device has sent one yet" in refused(flead(*options, "npz"))
        RoundRepository(mongo.database).add_updates(updates, dict.fromkeys((update.cohort for update in updates), 1))
        assert flead(*options, "npz").code == 0
        theta, architecture = from_npz(output.read_bytes())
        assert set(theta.tolist()) == {3.0}
        assert architecture == learner.architecture
        about = metadata_of(output.read_bytes())
        assert (about["version"], about["samples_seen"]) == ("3", "300")
        assert len(about["features"].split(",")) == architecture.input_size
        assert "name a file of them with --data" in refused(flead(*options, "tflite-int8"))
        source = table(tmp_path / "in.csv", days=0.5)
        more = ("--data", source, "--run-dir", tmp_path / "run")
        assert flead(*options, "tflite-int8", *more).code == 0
        assert LiteModel(output.read_bytes()).int8
        unknown = flead("export", "--device", "pump-9", "-o", output, "--format", "npz")
        assert "the run has no model of pump-9, only of pump-1, pump-2" in refused(unknown)
        assert flead("export", "--device", "pump-2", "-o", output, "--format", "npz").code == 0
        assert metadata_of(output.read_bytes())["sensors"] == ",".join(many)

    def test_says_in_one_line_what_is_missing(self, tmp_path: Path, flead: Flead) -> None:
        source = table(tmp_path / "in.csv", days=0.1)
        options = ("export", "-o", tmp_path / "model", "--format")
        unknown = refused(flead(*options, "npz", "--device", "pump-9", "--data", source))
        assert "has no reading of pump-9; it has pump-0, pump-1" in unknown
        assert "--format knows tflite, tflite-int8, onnx, npz" in refused(flead(*options, "pdf", "--device", "pump-1"))
        nothing_runs = refused(flead(*options, "npz", "--device", "pump-1"))
        assert "holds no database" in nothing_runs
        assert "--data FILE" in nothing_runs
