"""The real Intel Lab readings, every line of them."""

import os
from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path

import pytest

from data.formats import IntelLab, Rejected
from data.replay import replay
from data.sources import open_dataset
from flead.errors import Reason
from flead.messages import Reading

PROJECT = Path(__file__).parent.parent
FOLDER = Path(os.environ.get("FLEAD_DATA", PROJECT / "../shared/data"))
INTEL = FOLDER / "intel-lab/data_2004-03-04_2004-03-07.txt.gz"
SERIES = FOLDER / "nab/artificialNoAnomaly/art_daily_small_noise.csv"

pytestmark = pytest.mark.skipif(not INTEL.exists(), reason=f"needs {INTEL}; name its folder in FLEAD_DATA")


LINES = 375_311


@pytest.fixture(scope="module")
def stream() -> list[Reading | Rejected]:
    """The whole first round and a little of the second."""
    return list(islice(replay(INTEL, loop=True), LINES + 200))


@pytest.fixture(scope="module")
def records(stream: list[Reading | Rejected]) -> list[Reading | Rejected]:
    return stream[:LINES]


@pytest.fixture(scope="module")
def readings(records: list[Reading | Rejected]) -> list[Reading]:
    return [record for record in records if isinstance(record, Reading)]


def test_every_line_is_accounted_for(records: list[Reading | Rejected], readings: list[Reading]) -> None:
    assert sum(1 for _ in open_dataset(INTEL).lines()) == len(records) == LINES
    assert len(readings) == LINES - 1


def test_the_one_corrupt_row_is_rejected_with_its_line(records: list[Reading | Rejected]) -> None:
    assert [record for record in records if isinstance(record, Rejected)] == [
        Rejected(
            Reason.CORRUPT_ROW,
            "moteid: '65407' is not one of 1-54",
            b"2004-03-05 08:29:04.505813 18182 65407 294.251   0.0130561",
            375_311,
        )
    ]


def test_52_motes_stream_together_in_order_of_time(readings: list[Reading]) -> None:
    assert {r.device_id for r in readings} == {f"mote-{i}" for i in range(1, 55) if i not in (5, 15)}
    assert all(a.timestamp <= b.timestamp for a, b in pairwise(readings))
    assert readings[0].timestamp == datetime(2004, 3, 4, 0, 0, 0, 154051, tzinfo=UTC)
    assert readings[-1].timestamp == datetime(2004, 3, 7, 23, 59, 44, 731657, tzinfo=UTC)
    assert len({r.device_id for r in readings[:200]}) > 40


def test_missing_values_are_sensors_without_a_value(readings: list[Reading]) -> None:
    missing = Counter(name for r in readings for name, value in r.sensors.items() if value is None)
    assert missing == {"light": 13_234}
    assert {tuple(r.sensors) for r in readings} == {("temperature", "humidity", "light", "voltage")}


def test_the_glitch_of_mote_8_is_left_for_the_learner(readings: list[Reading]) -> None:
    (glitch,) = [r for r in readings if (r.sensors["humidity"] or 0.0) < -1000]
    assert (glitch.device_id, glitch.sensors["humidity"]) == ("mote-8", -8983.13)


def test_the_second_round_is_the_first_four_days_later(
    stream: list[Reading | Rejected], readings: list[Reading]
) -> None:
    for before, after in zip(readings[:200], stream[LINES:], strict=True):
        assert isinstance(after, Reading)
        assert after.timestamp - before.timestamp == timedelta(days=4)
        assert (after.device_id, after.sensors) == (before.device_id, before.sensors)


def test_the_format_is_recognised() -> None:
    assert isinstance(open_dataset(INTEL).format, IntelLab)


@pytest.mark.skipif(not SERIES.exists(), reason=f"needs {SERIES}; name its folder in FLEAD_DATA")
def test_a_series_of_the_numenta_benchmark_is_one_device() -> None:
    records = list(replay(SERIES))
    assert len(records) == 4032
    assert {(r.device_id, tuple(r.sensors)) for r in records if isinstance(r, Reading)} == {
        ("art_daily_small_noise", ("value",))
    }
