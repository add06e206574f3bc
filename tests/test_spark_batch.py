"""`flead analyze batch` on real readings, on a real Spark and a real MongoDB, beside Polars."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from pydantic import SecretStr

from config.child import free_port, port_is_taken
from config.settings import PROJECT, MongoSettings, Settings
from data.plausible import INTEL_LAB
from data.sources import open_dataset
from flead import network, state
from flead.errors import BadConfiguration, BadDataset, Unavailable
from flead.evaluation import Series, changes_of, followed
from flead.learner_config import LearnerConfig
from flead.messages import GlobalModel, Reading, WeightsMessage
from storage.archive import ArchiveRepository
from storage.rounds import RoundRepository
from tests.fixtures_cli import Flead
from tests.fixtures_spark import SOCKETS
from tests.fixtures_storage import Mongo, wait_until

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from orchestration.analyzing import Made

FOLDER = Path(os.environ.get("FLEAD_DATA", PROJECT / "../shared/data"))
INTEL = FOLDER / "intel-lab/data_2004-03-04_2004-03-07.txt.gz"
REAL = pytest.mark.skipif(not INTEL.exists(), reason=f"needs {INTEL}; name its folder in FLEAD_DATA")
SENSORS = ("humidity", "light", "temperature", "voltage")
COHORT = "+".join(SENSORS)
MOTES = ("1", "2", "3", "8", "22")
DAY = 86_400.0
CONFIG = LearnerConfig()

pytestmark = [pytest.mark.servers, SOCKETS]

Analyze = Callable[..., "Made"]


@pytest.fixture
def analyze(spark: SparkSession, mongo: Mongo, tmp_path: Path) -> Analyze:
    """A report, on the session that all tests share."""
    from orchestration.analyzing import Request
    from orchestration.analyzing import analyze as run

    def open_session(_settings: Settings) -> AbstractContextManager[SparkSession]:
        return nullcontext(spark)

    def make(data: Path | str | None, versions: tuple[int, ...] | None = None, **changed: Any) -> Made:
        settings = Settings(run_dir=tmp_path / "run", mongodb=mongo.settings, **changed)
        request = Request(None if data is None else str(data), versions)
        return run(request, settings, lambda _what, _share: None, open_session)

    return make


@pytest.fixture(scope="module")
def intel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days of five motes, one of which has a reading of -8983 % humidity, and the one corrupt line of the file."""
    path = tmp_path_factory.mktemp("intel") / "two-days.txt"
    with gzip.open(INTEL, "rt") as lines:
        kept = [line for line in lines if line[:10] in ("2004-03-05", "2004-03-06") and wanted(line)]
    path.write_text("".join(kept))
    return path


def wanted(line: str) -> bool:
    mote = line.split(" ")[3]
    return mote in MOTES or mote == "65407"


@pytest.fixture(scope="module")
def table(intel: Path) -> pl.DataFrame:
    """The same readings as Polars reads them."""
    columns: dict[str, Any] = dict.fromkeys(("date", "time", "epoch", "mote"), pl.String)
    columns |= dict.fromkeys(("temperature", "humidity", "light", "voltage"), pl.Float64)
    raw = pl.read_csv(intel, separator=" ", has_header=False, schema=columns)
    moment = (pl.col("date") + " " + pl.col("time")).str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us")
    valid = raw.filter(pl.col("mote").is_in(MOTES)).with_columns(
        moment.alias("at"), ("mote-" + pl.col("mote")).alias("device")
    )
    return valid.with_row_index("arrival").sort("device", "at", maintain_order=True)


def global_model(version: int, seed: int, cohort: str = COHORT, sensors: int = 4) -> GlobalModel:
    architecture = state.architecture_of(CONFIG, sensors)
    theta = network.initial(architecture, np.random.default_rng(seed))
    return GlobalModel(
        cohort=cohort, version=version, weights=WeightsMessage.model_validate(network.to_message(theta, architecture)),
        timestamp=datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=version), num_devices=5, total_samples=100,
        aggregation_strategy="fedavg",
    )  # fmt: skip


def store_models(mongo: Mongo, *models: GlobalModel) -> None:
    for model in models:
        RoundRepository(mongo.database).store_round(model, [])


def csv(path: Path, days: list[int], devices: tuple[str, ...] = ("a", "b"), seed: int = 0) -> Path:
    """A small fleet's CSV, a reading every ten minutes."""
    lines = ["timestamp,device_id,t,u"]
    for day in days:
        for device in devices:
            rng = np.random.default_rng((seed, day, len(device), ord(device[0])))
            for minute in range(0, 1_440, 10):
                at = datetime(2024, 1, day, tzinfo=UTC) + timedelta(minutes=minute)
                lines.append(f"{at.isoformat()},{device},{20 + rng.normal():.3f},{rng.normal():.3f}")
    path.write_text("\n".join(lines) + "\n")
    return path


@REAL
class TestEveryFigureOfTheReport:
    """Computed twice: by us, and by Polars from the same lines."""

    @pytest.fixture
    def report(self, analyze: Analyze, intel: Path, mongo: Mongo) -> dict[str, Any]:
        store_models(mongo, global_model(1, seed=1), global_model(2, seed=2))
        return analyze(intel).report

    def test_agrees(self, report: dict[str, Any], table: pl.DataFrame) -> None:
        self.counts(report, table)
        self.statistics(report, table)
        self.quality(report, table)
        self.correlations(report, table)
        self.drift(report, table)
        self.evaluation(report, table)
        self.ranking(report)

    def counts(self, report: dict[str, Any], table: pl.DataFrame) -> None:
        assert report["readings"] == len(table)
        assert report["rejected"] == {"corrupt_row": 1}
        assert report["duplicates"] == len(table) - table.select("device", "at").n_unique()
        assert report["days"] == ["2004-03-05", "2004-03-06"]
        assert datetime.fromisoformat(report["from"]) == utc(table["at"].min())
        assert datetime.fromisoformat(report["to"]) == utc(table["at"].max())

    def statistics(self, report: dict[str, Any], table: pl.DataFrame) -> None:
        for (device,), own in table.group_by("device"):
            for sensor in SENSORS:
                column, found = own[sensor], report["devices"][device][sensor]
                assert found["count"] == column.count()
                assert found["missing"] == column.null_count()
                for name, value in (
                    ("mean", column.mean()), ("sd", column.std()), ("min", column.min()), ("max", column.max()),
                ):  # fmt: skip
                    assert found[name] == pytest.approx(value, rel=1e-9), (device, sensor, name)

    def quality(self, report: dict[str, Any], table: pl.DataFrame) -> None:
        slots = pl.col("at").dt.truncate("10m")
        span = int((floor10(table["at"].max()) - floor10(table["at"].min())) / timedelta(minutes=10)) + 1
        for (device,), own in table.group_by("device"):
            found = report["quality"][device]
            days = [day for _, day in own.group_by(pl.col("at").dt.date())]
            assert found["cohort"] == COHORT
            assert found["readings"] == len(own)
            assert found["uptime"] == pytest.approx(own.select(slots.n_unique()).item() / span)
            steps = [seconds(day["at"].diff()) for day in days]
            usual = [number(each.filter(each > 0).median()) for each in steps]
            assert found["interval_s"] == pytest.approx(np.median(usual))
            gaps = sum(int((each > 10.0 * median).sum()) for each, median in zip(steps, usual, strict=True))
            assert found["gaps"] == gaps
            assert found["longest_gap_s"] == pytest.approx(seconds(own["at"].diff()).max(), abs=1e-5)
            arrived = own.sort("arrival")
            late = arrived.with_columns(pl.col("at").cum_max().alias("newest")).filter(pl.col("at") < pl.col("newest"))
            assert found["clock"] == {"out_of_order": sum(backwards(day) for day in days), "future": 0}
            assert found["clock"]["out_of_order"] == len(late)
            for sensor in SENSORS:
                cell, column = found["sensors"][sensor], own[sensor]
                low, high = INTEL_LAB[sensor]
                assert cell["missing"] == pytest.approx(column.null_count() / len(own))
                assert cell["out_of_range"] == int(((column < low) | (column > high)).sum())
                stuck, longest = zip(*(stuck_of(day, sensor) for day in days), strict=True)
                assert cell["stuck"] == pytest.approx(sum(stuck) / max(column.count(), 1))
                assert cell["longest_stuck_s"] == pytest.approx(max(longest), abs=1e-5)

    def correlations(self, report: dict[str, Any], table: pl.DataFrame) -> None:
        found = report["correlation"]["sensors"][COHORT]
        assert tuple(found["names"]) == SENSORS
        for i, a in enumerate(SENSORS):
            for j, b in enumerate(SENSORS):
                both = table.drop_nulls([a, b])
                assert found["matrix"][i][j] == pytest.approx(both.select(pl.corr(a, b)).item(), abs=1e-9), (a, b)
        slot = pl.col("at").dt.truncate("10m").alias("slot")
        for sensor in SENSORS:
            cell = report["correlation"]["devices"][sensor]
            wide = table.group_by(slot, "device").agg(pl.col(sensor).mean()).pivot("device", index="slot")
            for i, a in enumerate(cell["names"]):
                for j, b in enumerate(cell["names"]):
                    expected = wide.drop_nulls([a, b]).select(pl.corr(a, b)).item() if a != b else 1.0
                    assert cell["matrix"][i][j] == pytest.approx(expected, abs=1e-9), (sensor, a, b)

    def drift(self, report: dict[str, Any], table: pl.DataFrame) -> None:
        for (device,), own in table.group_by("device"):
            first, second = (own.filter(pl.col("at").dt.date() == date(2004, 3, day)) for day in (5, 6))
            for sensor in SENSORS:
                found = report["drift"][device][sensor]
                assert found["mean"] == pytest.approx([first[sensor].mean(), second[sensor].mean()])
                assert found["sd"] == pytest.approx([first[sensor].std(), second[sensor].std()])
                shift = (number(second[sensor].mean()) - number(first[sensor].mean())) / number(first[sensor].std())
                assert found["shift"] == [None, pytest.approx(shift)]

    def evaluation(self, report: dict[str, Any], table: pl.DataFrame) -> None:
        assert [made["version"] for made in report["evaluation"]] == [1, 2]
        for seed, made in zip((1, 2), report["evaluation"], strict=True):
            truth = pl.concat([forecasts(own, device, seed) for (device,), own in table.group_by("device")])
            self.same(made["sensors"], truth)
            for (device,), own in truth.group_by("device"):
                self.same(made["devices"][device], own)
            for (hour,), own in truth.group_by("hour"):
                self.same(made["hours"][str(hour)], own)
            for horizon in ("next", "10min"):
                skills = [cell["skill"] for cell in made["sensors"][horizon].values()]
                assert made["skill"][horizon] == pytest.approx(np.mean(skills))

    def same(self, cells: dict[str, Any], truth: pl.DataFrame) -> None:
        for (horizon, sensor), own in truth.group_by("horizon", "sensor"):
            error, still = own["said"] - own["came"], own["now"] - own["came"]
            rmse, reference = number((error**2).mean()) ** 0.5, number((still**2).mean()) ** 0.5
            found = cells[horizon][sensor]
            assert found["count"] == len(own)
            assert found["rmse"] == pytest.approx(rmse, rel=1e-9)
            assert found["mae"] == pytest.approx(error.abs().mean(), rel=1e-9)
            if reference > 0:
                assert found["skill"] == pytest.approx(1 - rmse / reference, abs=1e-9)
            spread = number(((own["came"] - own["came"].mean()) ** 2).sum())
            if found["r2"] is not None:
                assert found["r2"] == pytest.approx(1 - number((error**2).sum()) / spread, rel=1e-5)
            else:
                assert spread == pytest.approx(0.0, abs=1e-6 * max(number((own["came"] ** 2).sum()), 1.0))

    def ranking(self, report: dict[str, Any]) -> None:
        """By the figures that were checked above."""
        points = [row["points"] for row in report["ranking"]]
        assert points == sorted(points, reverse=True)
        assert {row["device"] for row in report["ranking"]} == set(report["devices"])
        for row in report["ranking"]:
            silent = 100 * (1 - report["quality"][row["device"]]["uptime"])
            assert row["points"] >= silent - 0.05
            assert (f"silent {silent:.0f} % of the time" in row["reasons"]) == (silent >= 0.5)


def forecasts(own: pl.DataFrame, device: str, seed: int) -> pl.DataFrame:
    """What a global model says after each reading of each day, beside what came; a day begins with the day before."""
    architecture = state.architecture_of(CONFIG, 4)
    theta = network.initial(architecture, np.random.default_rng(seed))
    ranged = own.with_columns(
        pl.when(pl.col(s).is_between(*INTEL_LAB[s])).then(pl.col(s)).otherwise(None).alias(s) for s in SENSORS
    )
    times = ranged["at"].dt.replace_time_zone("UTC").dt.epoch("us").to_numpy() / 1e6
    values = ranged.select(SENSORS).to_numpy().astype(float)
    rows = []
    for day in sorted(set(ranged["at"].dt.date())):
        start = datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()
        own_day = (times >= start) & (times < start + DAY)
        upto = (times >= start - DAY) & (times < start + DAY)
        features, scales = followed(Series(device, times[upto], values[upto]), CONFIG)
        at = own_day[upto]
        said = (
            np.clip(network.forward(theta, architecture, features[at]), [-20] * 4 + [-8] * 4, [20] * 4 + [8] * 4)
            * scales[at]
        )
        came = changes_of(Series(device, times[own_day], values[own_day]), 600.0)
        for i, horizon in enumerate(("next", "10min")):
            for j, sensor in enumerate(SENSORS):
                known = np.isfinite(came[:, 4 * i + j])
                now = values[own_day][known, j]
                rows.append(
                    pl.DataFrame(
                        {
                            "now": now,
                            "came": now + came[known, 4 * i + j],
                            "said": now + said[known, 4 * i + j],
                            "hour": ((times[own_day][known] - start) // 3_600).astype(int),
                        }
                    ).with_columns(device=pl.lit(device), horizon=pl.lit(horizon), sensor=pl.lit(sensor))
                )
    return pl.concat(rows)


def stuck_of(day: pl.DataFrame, sensor: str) -> tuple[int, float]:
    """Values in runs of one value of an hour and ten readings at least, and the longest run, s."""
    known = day.drop_nulls([sensor])
    runs = known.group_by(pl.col(sensor).rle_id().alias("run")).agg(
        pl.len().alias("n"), (pl.col("at").max() - pl.col("at").min()).dt.total_microseconds().alias("us")
    )
    stuck = runs.filter((pl.col("n") >= 10) & (pl.col("us") >= 3_600_000_000))
    return int(stuck["n"].sum()), number(stuck["us"].max() or 0) / 1e6


def backwards(day: pl.DataFrame) -> int:
    newest = day.sort("arrival").with_columns(pl.col("at").cum_max().alias("newest"))
    return len(newest.filter(pl.col("at") < pl.col("newest")))


def seconds(differences: pl.Series) -> pl.Series:
    return differences.dt.total_microseconds() / 1e6


def number(value: Any) -> float:
    return float(value)


def utc(moment: Any) -> datetime:
    found: datetime = moment.replace(tzinfo=UTC)
    return found


def floor10(moment: Any) -> datetime:
    found: datetime = moment.replace(minute=moment.minute // 10 * 10, second=0, microsecond=0)
    return found


class TestWhereReadingsComeFrom:
    def test_mongodb_gives_the_report_that_the_file_gives(self, analyze: Analyze, mongo: Mongo, tmp_path: Path) -> None:
        path = csv(tmp_path / "fleet.csv", [1, 2])
        readings = [r.model_dump() for r in open_dataset(path).readings() if isinstance(r, Reading)]
        ArchiveRepository(mongo.database).add_readings(readings)
        store_models(mongo, global_model(1, 1, "t+u", 2))
        stored, filed = analyze(None).report, analyze(path).report
        assert stored["source"] == {"kind": "mongodb", "name": mongo.settings.database}
        for part in ("readings", "devices", "days", "correlation", "evaluation", "drift"):
            assert near(stored[part], filed[part]), part
        assert {d: q["clock"]["out_of_order"] for d, q in stored["quality"].items()} == {"a": None, "b": None}

    def test_kafka_gives_what_its_topic_holds(self, analyze: Analyze, kafka_servers: str) -> None:
        from config.settings import KafkaSettings
        from kafka.client import ReadingProducer

        at = datetime(2024, 5, 1, tzinfo=UTC)
        with ReadingProducer(kafka_servers) as producer:
            for i in range(50):
                reading = Reading(device_id="batch-1", timestamp=at + timedelta(minutes=i), sensors={"t": float(i)})
                producer.send(reading)
            producer.send_raw("batch-1", b"no reading")
        report = analyze("kafka", kafka=KafkaSettings(bootstrap_servers=kafka_servers)).report
        assert report["devices"]["batch-1"]["t"]["mean"] == 24.5
        assert report["rejected"]["not_json"] >= 1

    def test_gzip_is_told_by_its_bytes(self, analyze: Analyze, tmp_path: Path) -> None:
        plain = csv(tmp_path / "fleet.csv", [1])
        packed = tmp_path / "fleet.data"
        packed.write_bytes(gzip.compress(plain.read_bytes()))
        assert analyze(packed).report["devices"] == analyze(plain).report["devices"]

    def test_a_file_may_be_called_anything(self, spark: SparkSession, tmp_path: Path) -> None:
        from spark.history import FileHistory

        for name in ("my data [1].csv", "{a}*50%20?#.csv", "at 2024-01-01T00:00.csv", ".hidden.csv", "x.snappy"):
            history = FileHistory.open(spark, csv(tmp_path / name, [1], ("a",)), {})
            assert [(day.device, day.count) for day in history.days()] == [("a", 144)], name
            history.close()

    def test_a_device_may_change_its_sensors(self, analyze: Analyze, tmp_path: Path) -> None:
        path = tmp_path / "changing.jsonl"
        at = datetime(2024, 1, 1, tzinfo=UTC)
        lines = []
        for i in range(20):
            sensors: dict[str, float | None] = {"t": float(i)} if i < 10 else {"u": 1.0, "t": float(i)}
            lines.append(Reading(device_id="m", timestamp=at + timedelta(hours=2 * i), sensors=sensors).to_json())
        path.write_bytes(b"\n".join(lines))
        devices = analyze(path).report["devices"]["m"]
        assert (devices["t"]["count"], devices["u"]["count"]) == (20, 10)


class TestADayAlreadyDone:
    def test_is_not_done_again(self, analyze: Analyze, tmp_path: Path) -> None:
        path = csv(tmp_path / "fleet.csv", [1, 2])
        first, second = analyze(path), analyze(path)
        assert (first.done, second.done, second.units) == (2, 0, 2)
        assert second.report["devices"] == first.report["devices"]
        assert second.report["previous"]["created"] == first.report["created"]

    def test_is_done_again_where_its_readings_changed(self, analyze: Analyze, tmp_path: Path) -> None:
        path = csv(tmp_path / "fleet.csv", [1, 2, 3, 4])
        analyze(path)
        changed = path.read_text().replace("2024-01-02T00:00:00+00:00,a,", "2024-01-02T00:00:00+00:00,a,9")
        path.write_text(changed)
        again = analyze(path)
        assert again.done == 2, "the day, and the next one, which begins with it"
        fresh = analyze(csv_copy(path))
        assert again.report["devices"] == fresh.report["devices"]

    @pytest.mark.parametrize(
        ("before", "after"),
        [("1,", ",1"), ("1,2", "2,1"), ("1,2\n2024-01-02T00:00Z,1,2", "3,4\n2024-01-02T00:00Z,3,4")],
        ids=["another sensor", "the other way round", "all of it was there twice"],
    )
    def test_its_mark_tells_its_readings(self, spark: SparkSession, tmp_path: Path, before: str, after: str) -> None:
        from spark.history import FileHistory

        path, days = tmp_path / "one.csv", []
        for values in (before, after):
            path.write_text(f"timestamp,t,u\n2024-01-01T00:00Z,5,6\n2024-01-02T00:00Z,{values}\n")
            history = FileHistory.open(spark, path, {})
            days.append(sorted(history.days(), key=lambda found: found.day))
            history.close()
        (first, changed), (same, other) = days
        assert first == same
        assert changed.count == other.count
        assert changed.mark != other.mark

    def test_a_new_day_alone_is_new(self, analyze: Analyze, tmp_path: Path) -> None:
        path = csv(tmp_path / "fleet.csv", [1, 2])
        analyze(path)
        csv(path, [1, 2, 3])
        assert analyze(path).done == 1

    def test_a_device_that_is_gone_from_it_leaves_the_report(self, analyze: Analyze, tmp_path: Path) -> None:
        path = csv(tmp_path / "fleet.csv", [1], ("a", "b"))
        analyze(path)
        csv(path, [1], ("a",))
        report = analyze(path).report
        assert list(report["devices"]) == ["a"]
        assert report["previous"]["gone_devices"] == ["b"]

    def test_a_new_global_model_is_judged_on_every_day(self, analyze: Analyze, mongo: Mongo, tmp_path: Path) -> None:
        path = csv(tmp_path / "fleet.csv", [1, 2])
        store_models(mongo, global_model(1, 1, "t+u", 2))
        before = analyze(path).report["evaluation"]
        store_models(mongo, global_model(2, 2, "t+u", 2))
        after = analyze(path)
        assert after.done == 2
        assert after.report["evaluation"][0] == before[0]
        assert [made["version"] for made in after.report["evaluation"]] == [1, 2]

    def test_a_large_fleet_is_looked_at_in_parts(
        self, analyze: Analyze, mongo: Mongo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store_models(mongo, global_model(1, 1, "t+u", 2))
        path = csv(tmp_path / "fleet.csv", [1, 2], ("a", "b", "c", "d", "e"))
        whole = analyze(path).report
        monkeypatch.setattr("spark.batch.READINGS_OF_A_UNIT", 300)
        parts = analyze(csv_copy(path))
        assert parts.units > 2
        for part in ("devices", "evaluation", "correlation", "drift"):
            assert near(parts.report[part], whole[part]), part
        copy = path.with_name("copy-of-" + path.name)
        copy.write_text(copy.read_text().replace("2024-01-02T00:00:00+00:00,a,", "2024-01-02T00:00:00+00:00,a,9"))
        assert analyze(copy).done == 1, "the part of the fleet that changed, on the day when it did"


def csv_copy(path: Path) -> Path:
    """The same readings in another file: another source, of which nothing is done."""
    copy = path.with_name("copy-of-" + path.name)
    copy.write_bytes(path.read_bytes())
    return copy


def near(a: Any, b: Any) -> bool:
    """Equal, numbers to what rounding leaves: sums in another order."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(near(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(near, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return bool(a == pytest.approx(b, rel=1e-9, abs=1e-9))
    return bool(a == b)


class TestBadInput:
    def test_an_empty_database_has_nothing_to_report(self, analyze: Analyze) -> None:
        with pytest.raises(BadDataset, match="mongodb flead_test holds no readings"):
            analyze(None)

    def test_a_file_without_one_good_line_has_nothing_to_report(self, analyze: Analyze, tmp_path: Path) -> None:
        path = tmp_path / "bad.csv"
        path.write_text("timestamp,t\nyesterday,1\n2024-01-01,x\n2024-01-01T00:00:00Z,1,2\n")
        with pytest.raises(BadDataset, match="holds no readings"):
            analyze(path)

    def test_a_gzip_file_that_ends_early_is_one_line(self, analyze: Analyze, tmp_path: Path) -> None:
        path = tmp_path / "cut.csv.gz"
        path.write_bytes(gzip.compress(csv(tmp_path / "fleet.csv", [1]).read_bytes())[:-200])
        with pytest.raises(BadDataset, match=r"cut.csv.gz cannot be read: .*Unexpected end of input stream$") as raised:
            analyze(path)
        assert "\n" not in str(raised.value)

    def test_an_unknown_version_is_named_beside_those_there_are(
        self, analyze: Analyze, mongo: Mongo, tmp_path: Path
    ) -> None:
        store_models(mongo, global_model(3, 1), global_model(4, 1))
        with pytest.raises(BadConfiguration, match="no global model has version 7: there are 3 to 4"):
            analyze(csv(tmp_path / "fleet.csv", [1]), versions=(3, 7))
        assert not mongo.database["analysis_days"].count_documents({}), "nothing is half-written"

    def test_a_model_of_other_sensors_or_settings_is_remarked_on(
        self, analyze: Analyze, mongo: Mongo, tmp_path: Path
    ) -> None:
        store_models(mongo, global_model(1, 1), global_model(1, 1, "t+u", 3))
        made = analyze(csv(tmp_path / "fleet.csv", [1]))
        assert made.report["evaluation"] == []
        assert any(f"{COHORT}#1" in remark for remark in made.report["remarks"])
        assert analyze(tmp_path / "fleet.csv").done == 0

    def test_one_device_one_sensor_one_reading(self, analyze: Analyze, tmp_path: Path) -> None:
        path = tmp_path / "one.csv"
        path.write_text("timestamp,t\n2024-01-01T00:00:00Z,5\n")
        report = analyze(path).report
        assert report["devices"]["one"]["t"]["sd"] is None
        assert report["quality"]["one"]["interval_s"] is None

    def test_a_database_that_goes_away_is_one_line(self, analyze: Analyze, tmp_path: Path, mongo: Mongo) -> None:
        gone = MongoSettings(uri=SecretStr(f"mongodb://127.0.0.1:{free_port()}/?serverSelectionTimeoutMS=200"))
        object.__setattr__(mongo, "settings", gone)
        with pytest.raises(Unavailable, match="MongoDB does not answer"):
            analyze(csv(tmp_path / "fleet.csv", [1]))


class TestTheCommand:
    """In a process of its own, with its own Spark and its own MongoDB."""

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "orchestration", "analyze", "batch", *map(str, arguments)]

    def environment(self, run_dir: Path) -> dict[str, str]:
        return {**os.environ, "FLEAD_RUN_DIR": str(run_dir), "FLEAD_MONGODB__PORT": str(free_port())}

    def test_killed_in_the_middle_it_goes_on(self, spark_home: Any, tmp_path: Path) -> None:
        del spark_home  # only for its skip
        days = list(range(1, 15))
        path = csv(tmp_path / "fleet.csv", days, tuple("abcdefgh"))
        environment = self.environment(tmp_path / "run")
        command = self.command("--data", path, "--report", tmp_path / "report", "--json")
        killed = subprocess.Popen(  # noqa: S603
            command, cwd=PROJECT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        port = environment["FLEAD_MONGODB__PORT"]
        try:
            wait_until(lambda: stored_days(port) > 0 or killed.poll() is not None, 120.0)
        finally:
            killed.kill()
            killed.wait(30)
        wait_until(lambda: not port_is_taken(int(port)), 30.0)
        ended = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
        assert ended.returncode == 0, ended.stderr[-2_000:]
        summary = json.loads(ended.stdout)
        assert summary["units"] == len(days)
        report = json.loads((tmp_path / "report/report.json").read_text())
        counts = {d: s["t"]["count"] for d, s in report["devices"].items()}
        assert counts == dict.fromkeys("abcdefgh", 14 * 144)
        assert (tmp_path / "report/report.pdf").read_bytes().startswith(b"%PDF")
        assert "<html" in (tmp_path / "report/report.html").read_text()
        assert [line for line in ended.stderr.splitlines() if "Traceback" in line or "WARN" in line] == []

    def test_runs_on_a_cluster_of_two_workers(self, spark_home: Any, mongo: Mongo, tmp_path: Path) -> None:
        from spark.cluster import standalone_cluster
        from spark.session import SparkHome

        store_models(mongo, global_model(1, 1, "t+u", 2))
        path = csv(tmp_path / "fleet.csv", [1, 2, 3])
        home = SparkHome(spark_home.java_home, spark_home.jars, PROJECT, tmp_path / "cluster")
        with standalone_cluster(home, workers=2, memory_mb=512) as master:
            environment = self.environment(tmp_path / "run") | {
                "PYTHONPATH": str(PROJECT),
                "FLEAD_SPARK__MASTER": master,
                "FLEAD_SPARK__CHECKPOINTS": (tmp_path / "checkpoints").as_uri(),
                "FLEAD_SPARK__EXECUTOR_MB": "512",
                "FLEAD_MONGODB__URI": mongo.settings.address.get_secret_value(),
                "FLEAD_MONGODB__DATABASE": mongo.settings.database,
            }
            ended = subprocess.run(  # noqa: S603
                self.command("--data", path, "--report", tmp_path / "report"), cwd=tmp_path, env=environment,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
        assert ended.returncode == 0, ended.stderr[-2_000:]
        report = json.loads((tmp_path / "report/report.json").read_text())
        assert report["devices"]["a"]["t"]["count"] == 3 * 144
        assert [made["version"] for made in report["evaluation"]] == [1]

    def test_what_is_no_file_of_readings_is_one_line(self, flead: Flead, run_dir: Path, tmp_path: Path) -> None:
        del run_dir
        ended = flead("analyze", "batch", "--data", tmp_path / "none.csv", "--report", tmp_path / "report")
        assert ended.code == 1
        assert "none.csv cannot be read: No such file or directory" in ended.err
        assert not list((tmp_path / "report").iterdir())

    def test_a_run_folder_without_a_database_is_one_line(self, flead: Flead, run_dir: Path, tmp_path: Path) -> None:
        ended = flead("analyze", "batch", "--report", tmp_path / "report")
        assert ended.code == 1
        assert f"{run_dir} holds no database" in ended.err

    def test_versions_are_numbers(self, flead: Flead, run_dir: Path, tmp_path: Path) -> None:
        del run_dir
        ended = flead("analyze", "batch", "--report", tmp_path / "report", "--versions", "newest")
        assert "--versions takes numbers with commas between them, not 'newest'" in ended.err


def stored_days(port: str) -> int:
    """How many days of devices a run's MongoDB holds by now."""
    from pymongo import MongoClient
    from pymongo.errors import PyMongoError

    address = f"mongodb://127.0.0.1:{port}/?directConnection=true"
    try:
        with MongoClient[dict[str, Any]](address, serverSelectionTimeoutMS=300) as client:
            return client["flead"]["analysis_days"].count_documents({})
    except PyMongoError:
        return 0
