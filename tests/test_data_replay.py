"""A replayed file is the stream that it once was: whole, in the order of event time, and at the asked pace."""

import gzip
import tempfile
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.formats import Rejected
from data.replay import Pace, replay
from data.sorting import SortedLines
from flead.errors import BadConfiguration, BadDataset, Unavailable
from flead.messages import Reading

START = datetime(2024, 1, 1, tzinfo=UTC)


def write(path: Path, lines: list[str], header: str = "timestamp,device_id,x") -> Path:
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def readings(records: Iterator[Reading | Rejected], limit: int | None = None) -> list[Reading]:
    return [record for record in islice(records, limit) if isinstance(record, Reading)]


@pytest.fixture
def spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sorting puts its runs."""
    folder = tmp_path / "spills"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


rows = st.one_of(
    st.builds(
        lambda when, device, x: f"{when.isoformat()},d{device},{x}",
        st.datetimes(timezones=st.sampled_from([UTC]), min_value=datetime(1990, 1, 1), max_value=datetime(2050, 1, 1)),  # noqa: DTZ001
        st.integers(1, 4),
        st.floats(allow_nan=False, allow_infinity=False) | st.just(""),
    ),
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=30),
)


class TestOrder:
    @given(lines=st.lists(rows, max_size=60), chunk_bytes=st.integers(1, 3000))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
    def test_any_file_comes_sorted_and_complete(self, tmp_path: Path, lines: list[str], chunk_bytes: int) -> None:
        path = write(tmp_path / "any.csv", lines)
        records = list(replay(path, chunk_bytes=chunk_bytes))
        times = [record.timestamp for record in records if isinstance(record, Reading)]
        assert len(records) == len(lines)
        assert times == sorted(times)
        for record in records:
            if isinstance(record, Rejected):
                assert record.line.decode() == lines[record.number - 2]

    def test_devices_one_after_the_other_in_the_file_stream_together(self, tmp_path: Path) -> None:
        lines = [f"2024-01-01T00:0{minute}:00Z,d{device},1" for device in (1, 2) for minute in range(3)]
        devices = [record.device_id for record in readings(replay(write(tmp_path / "f.csv", lines)))]
        assert devices == ["d1", "d2", "d1", "d2", "d1", "d2"]

    def test_equal_times_keep_the_order_of_the_file(self, tmp_path: Path) -> None:
        lines = [f"2024-01-01,d1,{i}" for i in range(300)]
        path = write(tmp_path / "f.csv", lines)
        for chunk_bytes in (100, 10**6):
            values = [record.sensors["x"] for record in readings(replay(path, chunk_bytes=chunk_bytes))]
            assert values == list(range(300))

    def test_the_size_of_a_chunk_changes_nothing(self, tmp_path: Path, spills: Path) -> None:
        seconds = [i * 911 % 2000 for i in range(2000)]  # each once, in disorder
        moments = [START + timedelta(seconds=s) for s in seconds]
        path = write(tmp_path / "f.csv", [f"{m.isoformat()},d1,1" for m in moments])
        # 100 bytes of text make a thousand runs: more than may be open at once
        assert list(replay(path, chunk_bytes=100)) == list(replay(path, chunk_bytes=10_000)) == list(replay(path))

    def test_a_producer_goes_on_where_it_was_killed(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.csv", [f"2024-01-01T00:00:{s:02}Z,d{s % 3},1" for s in (5, 3, 9, 1, 7)])
        whole = list(islice(replay(path, loop=True), 40))
        assert list(islice(replay(path, loop=True), 17, 40)) == whole[17:]

    def test_progress_of_the_sorting_is_reported(self, tmp_path: Path) -> None:
        path = write(tmp_path / "f.csv", ["2024-01-01,d1,1"] * 25_000)
        seen: list[int] = []
        next(replay(path, on_progress=seen.append))
        assert seen == [10_000, 20_000, 25_000]

    def test_a_missing_file_is_said_at_once_and_not_at_the_first_record(self, tmp_path: Path) -> None:
        with pytest.raises(BadDataset):
            replay(tmp_path / "none.csv")


class TestTemporaryFiles:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return write(tmp_path / "f.csv", ["2024-01-01,d1,1"] * 1000)

    def test_are_gone_at_the_end(self, path: Path, spills: Path) -> None:
        stream = replay(path, chunk_bytes=1000)
        next(stream)
        assert len(list(spills.iterdir())) == 1
        list(stream)
        assert list(spills.iterdir()) == []

    def test_are_gone_when_the_stream_is_closed(self, path: Path, spills: Path) -> None:
        stream = replay(path, chunk_bytes=1000)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert list(spills.iterdir()) == []

    def test_are_gone_when_the_file_breaks_off(self, tmp_path: Path, spills: Path) -> None:
        whole = gzip.compress(b"timestamp,x\n" + b"".join(b"2024-01-01,%d\n" % (i * i) for i in range(50_000)))
        broken = tmp_path / "f.csv.gz"
        broken.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(BadDataset, match="truncated"):
            list(replay(broken, chunk_bytes=1000))
        assert list(spills.iterdir()) == []

    def test_are_not_needed_for_a_small_file(self, path: Path, spills: Path) -> None:
        stream = replay(path)
        next(stream)
        assert list(spills.iterdir()) == []

    def test_without_room_say_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "open", full)
        with (
            SortedLines(lambda line: line.ljust(26), chunk_bytes=1) as ordered,
            pytest.raises(Unavailable, match=r"No space left.*TMPDIR"),
        ):
            ordered.fill([(1, b"x")])


def test_memory_is_flat_however_long_the_file(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = write(tmp_path / "f.csv", [f"{START + timedelta(seconds=-i)},d{i % 50},{i}" for i in range(count)])
        tracemalloc.start()
        assert sum(1 for _ in replay(path, chunk_bytes=200_000)) == count
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    # Four times the file: a few more open runs of 8 KiB buffers each, and no more
    assert peak(24_000) < peak(6_000) + 500_000


class TestLoop:
    def looped(self, tmp_path: Path, lines: list[str], count: int) -> list[Reading | Rejected]:
        return list(islice(replay(write(tmp_path / "f.csv", lines), loop=True), count))

    def test_moves_the_dates_on_by_whole_days(self, tmp_path: Path) -> None:
        records = self.looped(tmp_path, ["2024-01-01T06:00:00Z,d1,1", "2024-01-02T18:00:00Z,d1,2"], 6)
        assert [r.timestamp.strftime("%d %H") for r in records if isinstance(r, Reading)] == [
            *("01 06", "02 18"),
            *("03 06", "04 18"),
            *("05 06", "06 18"),
        ]

    def test_rejected_rows_come_once(self, tmp_path: Path) -> None:
        records = self.looped(tmp_path, ["junk", "2024-01-01,d1,1"], 10)
        assert [type(record) for record in records] == [Rejected] + [Reading] * 9

    @given(seconds=st.lists(st.integers(0, 4 * 86_400), min_size=1, max_size=20, unique=True))
    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
    def test_times_of_a_device_rise_for_ever_and_keep_the_time_of_day(self, tmp_path: Path, seconds: list[int]) -> None:
        lines = [f"{START + timedelta(seconds=s)},d1,1" for s in seconds]
        times = [r.timestamp for r in self.looped(tmp_path, lines, 5 * len(seconds)) if isinstance(r, Reading)]
        assert all(a < b for a, b in pairwise(times))
        assert {t.time() for t in times} == {(START + timedelta(seconds=s)).time() for s in seconds}

    def test_a_span_of_exact_days_does_not_meet_itself(self, tmp_path: Path) -> None:
        records = self.looped(tmp_path, ["2024-01-01,d1,1", "2024-01-02,d1,1"], 4)
        assert [r.timestamp.day for r in records if isinstance(r, Reading)] == [1, 2, 3, 4]

    def test_a_file_without_a_single_reading_ends(self, tmp_path: Path) -> None:
        assert len(self.looped(tmp_path, ["junk", "more"], 100)) == 2

    def test_the_end_of_the_calendar_is_an_error_and_not_a_crash(self, tmp_path: Path) -> None:
        with pytest.raises(BadDataset, match="year 9999"):
            self.looped(tmp_path, ["9999-12-30,d1,1"], 10)


class FakeTime:
    """A clock that moves when someone sleeps, or by `cost` seconds each time it is read."""

    def __init__(self, cost: float = 0.0) -> None:
        self.now, self.cost = 1000.0, cost
        self.sleeps: list[float] = []

    def clock(self) -> float:
        self.now += self.cost
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.sleeps.append(seconds)
        self.now += seconds

    def when(self, pace: Pace, records: list[object]) -> list[float]:
        """Seconds after the first at which each record came."""
        times = [self.now for _ in pace.over(records)]
        return [round(t - times[0], 6) for t in times]


class TestPace:
    def test_without_a_rate_nothing_waits(self) -> None:
        fake = FakeTime()
        assert fake.when(Pace(clock=fake.clock, sleep=fake.sleep), [None] * 1000) == [0.0] * 1000
        assert fake.sleeps == []

    def test_a_low_rate_is_kept_record_by_record(self) -> None:
        fake = FakeTime()
        assert fake.when(Pace(rate=4, clock=fake.clock, sleep=fake.sleep), [None] * 5) == [0, 0.25, 0.5, 0.75, 1.0]

    def test_a_high_rate_sleeps_once_a_slice_and_does_not_drift(self) -> None:
        fake = FakeTime()
        times = fake.when(Pace(rate=5000, clock=fake.clock, sleep=fake.sleep), [None] * 50_001)
        assert abs(times[-1] - 10.0) <= 0.01
        assert len(fake.sleeps) <= 1001  # for 50,001 records
        assert all(-1e-6 <= i / 5000 - t < 0.01 + 1e-6 for i, t in enumerate(times))

    def test_time_spent_downstream_is_made_up_for(self) -> None:
        # due:       0    1    2    3    4    5
        # downstream    [---3.5 s---]
        # comes:     0    1         4.5  4.5  5     (2, 3 and 4 at once)
        fake = FakeTime()
        pace = Pace(rate=1, clock=fake.clock, sleep=fake.sleep)
        came = []
        for i in pace.over(range(6)):
            came.append(fake.now - 1000)
            if i == 1:
                fake.now += 3.5
        assert came == [0, 1, 4.5, 4.5, 4.5, 5]

    def test_a_speed_follows_the_event_times(self) -> None:
        fake = FakeTime()
        records: list[object] = [
            Reading(device_id="d", timestamp=START + timedelta(minutes=m), sensors={"x": 1.0}) for m in (0, 1, 1, 5)
        ]
        assert fake.when(Pace(speed=60, clock=fake.clock, sleep=fake.sleep), records) == [0, 1, 1, 5]

    def test_at_a_speed_a_rejected_row_does_not_wait(self) -> None:
        fake = FakeTime()
        junk: list[object] = [Rejected(reason, "", b"", 1) for reason in ("corrupt_row",)]  # type: ignore[arg-type]
        assert fake.when(Pace(speed=1, clock=fake.clock, sleep=fake.sleep), junk * 3) == [0, 0, 0]

    @pytest.mark.parametrize(
        "wrong", [{"rate": -1}, {"rate": float("nan")}, {"speed": float("inf")}, {"rate": 1, "speed": 1}]
    )
    def test_a_pace_that_cannot_be_kept_is_refused(self, wrong: dict[str, float]) -> None:
        with pytest.raises(BadConfiguration, match=r"rate|speed"):
            Pace(**wrong)  # type: ignore[arg-type]
