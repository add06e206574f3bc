"""A producer that is killed goes on where it was: nothing is left out, little comes twice, the order stays."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats import Rejected
from data.replay import Pace
from flead.errors import BadDataset, Reason, Unavailable
from flead.messages import DeadLetter, Reading
from kafka.client import Delivery, ReadingProducer
from orchestration import producing
from orchestration.producing import SIMULATED, Progress, Record, load_progress, open_source, saver, send

START = datetime(2024, 1, 1, tzinfo=UTC)
SOURCE = "readings.csv"


class Killed(Exception):
    """The process ends here."""


class Clock:
    """The time as `orchestration.producing` sees it; it moves when someone sleeps or works."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return int(self.now * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(producing, "time", clock)
    return clock


class Recorder:
    """Takes what is sent, as Kafka would; dies at a chosen record, or fails to deliver some."""

    def __init__(self, *, dies_at: int | None = None, fails: int = 0, waiting: int = 0) -> None:
        self.readings: list[Reading] = []
        self.letters: list[DeadLetter] = []
        self.dies_at, self.fails, self.waiting = dies_at, fails, waiting

    def send(self, reading: Reading) -> None:
        self._count()
        self.readings.append(reading)

    def send_dead_letter(self, letter: DeadLetter, device_id: str | None = None) -> None:
        self._count()
        self.letters.append(letter)

    def flush(self, timeout_s: float = 30.0) -> int:
        return self.waiting

    def snapshot(self) -> Delivery:
        sent = len(self.readings) + len(self.letters)
        return Delivery(sent, sent - self.fails - self.waiting, self.fails, "too large" if self.fails else None)

    def _count(self) -> None:
        if len(self.readings) + len(self.letters) == self.dies_at:
            raise Killed


def reading(number: int) -> Reading:
    return Reading(device_id="m", timestamp=START + timedelta(seconds=number), sensors={"x": float(number)})


def row(number: int) -> Rejected:
    return Rejected(Reason.CORRUPT_ROW, "not a number", b"x%d" % number, number)


def records(count: int, rejected: int = 0) -> list[Record]:
    return [row(n) for n in range(rejected)] + [reading(n) for n in range(count)]


def sent(
    stream: list[Record],
    recorder: Recorder,
    clock: Clock,
    progress: Progress | None = None,
    *,
    kept: list[Progress] | None = None,
    rate: float = 10.0,
    for_s: float | None = None,
    stops_after: int | None = None,
    in_time: bool = False,
) -> Progress:
    """Send a stream at a rate; `kept` gets what is saved on the way."""
    saved: list[Progress] = [] if kept is None else kept
    return send(
        iter(stream),
        cast(ReadingProducer, recorder),
        Pace(rate=rate, clock=clock.monotonic, sleep=clock.sleep),
        progress or Progress(source=SOURCE),
        save=lambda progress: saved.append(replace(progress)),
        for_s=for_s,
        stopping=lambda: stops_after is not None and len(recorder.readings) >= stops_after,
        in_time=in_time,
    )


class TestAReplayThatHasComeToThePresent:
    def test_goes_on_with_it(self, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
        recorder, kept = Recorder(), list[Progress]()
        clock.now = START.timestamp() + 2.5
        sent(records(8), recorder, clock, kept=kept, rate=0.0, in_time=True)
        assert recorder.readings == records(8)
        assert clock.now == pytest.approx(START.timestamp() + 7)
        assert {progress.delivered for progress in kept} >= {3, 4, 5, 6, 7, 8}  # what waits for nothing is kept
        assert caplog.text.count("has come to the present") == 1

    def test_ends_when_it_is_told_to_all_the_same(self, clock: Clock) -> None:
        recorder = Recorder()
        clock.now = START.timestamp() + 2.5
        done = sent(records(1000), recorder, clock, rate=0.0, for_s=60.0, in_time=True)
        assert done.last_sent_ms is not None
        assert clock.now == pytest.approx(START.timestamp() + 62.5, abs=1.0)

    def test_is_not_held_back_where_it_is_sent_once(self, clock: Clock) -> None:
        recorder = Recorder()
        began = clock.now
        sent(records(8), recorder, clock, rate=0.0)
        assert recorder.readings == records(8)
        assert clock.now == began


class TestSending:
    def test_sends_every_reading_once_and_in_order_and_says_so(self, clock: Clock) -> None:
        recorder, kept = Recorder(), list[Progress]()
        began = clock.now
        done = sent(records(50), recorder, clock, kept=kept)
        assert recorder.readings == records(50)
        assert (done.position, done.sent, done.delivered, done.failed, done.rejected) == (50, 50, 50, 0, 0)
        assert done.finished
        assert kept[-1] == done
        assert (done.first_sent_ms, done.last_sent_ms) == (int(began * 1000), int(began * 1000) + 4900)

    def test_sends_a_rejected_row_to_the_dead_letters_with_where_it_came_from(self, clock: Clock) -> None:
        recorder = Recorder()
        done = sent(records(5, rejected=3), recorder, clock)
        assert recorder.readings == records(5)
        assert [letter.payload for letter in recorder.letters] == [b"x0", b"x1", b"x2"]
        assert [(letter.source.topic, letter.source.offset) for letter in recorder.letters] == [
            (SOURCE, 0),
            (SOURCE, 1),
            (SOURCE, 2),
        ]
        assert {letter.reason for letter in recorder.letters} == {Reason.CORRUPT_ROW}
        assert (done.position, done.sent, done.rejected) == (8, 5, 3)

    def test_saves_about_twice_a_second_and_only_what_kafka_has(self, clock: Clock) -> None:
        kept: list[Progress] = []
        sent(records(51), Recorder(), clock, kept=kept)
        assert [each.position for each in kept] == [6, 11, 16, 21, 26, 31, 36, 41, 46, 51, 51]
        assert all(each.delivered == each.sent == each.position for each in kept)

    def test_saves_nothing_while_kafka_has_not_answered(self, clock: Clock) -> None:
        kept: list[Progress] = []
        with pytest.raises(Unavailable, match=r"7 of 51 readings were not delivered: Kafka did not answer in time"):
            sent(records(51), Recorder(waiting=7), clock, kept=kept)
        assert [each.delivered for each in kept] == [44]

    def test_says_how_many_could_not_be_delivered_and_why(self, clock: Clock) -> None:
        with pytest.raises(Unavailable, match="2 of 20 readings were not delivered: too large"):
            sent(records(20), Recorder(fails=2), clock)

    def test_of_nothing_is_nothing(self, clock: Clock) -> None:
        done = sent([], Recorder(), clock)
        assert (done.sent, done.first_sent_ms, done.finished) == (0, None, True)


class TestAnEnd:
    def test_by_time_counts_from_the_first_reading(self, clock: Clock) -> None:
        recorder = Recorder()
        sent(records(100, rejected=40), recorder, clock, for_s=2.0)
        assert len(recorder.letters) == 40
        assert len(recorder.readings) == 20

    def test_by_time_does_not_begin_again_after_a_kill(self, clock: Clock) -> None:
        first, second, kept = Recorder(dies_at=15), Recorder(), list[Progress]()
        with pytest.raises(Killed):
            sent(records(100), first, clock, kept=kept, for_s=2.0)
        clock.sleep(0.1)
        sent(records(100), second, clock, replace(kept[-1]), for_s=2.0)
        assert len(first.readings) == 15
        assert 3 <= len(second.readings) <= 5

    def test_by_request_leaves_nothing_half_done(self, clock: Clock) -> None:
        recorder = Recorder()
        done = sent(records(100), recorder, clock, stops_after=33)
        assert done.position == done.sent == len(recorder.readings) == 33


class TestAKill:
    @settings(deadline=None, max_examples=100)
    @given(data=st.data(), count=st.integers(1, 60), rejected=st.integers(0, 5), kills=st.integers(1, 4))
    def test_at_any_record_loses_nothing_and_repeats_only_what_came_since_the_last_save(
        self, data: st.DataObject, count: int, rejected: int, kills: int
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            clock = Clock()
            patch.setattr(producing, "time", clock)
            stream, progress, lives = records(count, rejected), Progress(source=SOURCE), list[Recorder]()
            saved_before_death = list[int]()
            for _ in range(kills):
                life, kept = Recorder(dies_at=data.draw(st.integers(0, len(stream)))), list[Progress]()
                lives.append(life)
                try:
                    sent(stream, life, clock, replace(progress), kept=kept)
                except Killed:
                    progress = kept[-1] if kept else progress
                    saved_before_death.append(progress.position)
                    clock.sleep(1.0)
                else:
                    break
            else:
                lives.append(Recorder())
                sent(stream, lives[-1], clock, replace(progress))
        expected, begins = list[Record](), [0, *saved_before_death]
        for begin, life in zip(begins, lives, strict=False):
            came = [r for r in stream[begin:] if isinstance(r, Reading)][: len(life.readings)]
            assert life.readings == came  # each life goes on at the last save, in order
            expected += came
        assert {r.timestamp for r in expected if isinstance(r, Reading)} == {reading(n).timestamp for n in range(count)}
        letters = {letter.payload for life in lives for letter in life.letters}
        assert letters == {row(n).line for n in range(rejected)}
        # At 10 a second, and saved every 0.5 s, a life may repeat six records of the one before
        total = sum(len(life.readings) + len(life.letters) for life in lives)
        assert total <= len(stream) + 6 * len(saved_before_death)

    def test_keeps_the_counts_of_the_whole(self, clock: Clock) -> None:
        kept: list[Progress] = []
        with pytest.raises(Killed):
            sent(records(50, rejected=2), Recorder(dies_at=30), clock, kept=kept)
        before = kept[-1]
        done = sent(records(50, rejected=2), Recorder(), clock, replace(before))
        assert (done.position, done.sent, done.delivered, done.rejected) == (52, 50, 50, 2)
        assert done.first_sent_ms == before.first_sent_ms


class TestProgressInAFile:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "run" / "produce.json"

    def test_comes_back(self, path: Path) -> None:
        progress = Progress(source=SOURCE, position=7, sent=6, delivered=6, rejected=1, first_sent_ms=5)
        saver(path)(progress)
        assert load_progress(path, SOURCE) == progress
        assert list(path.parent.iterdir()) == [path]

    def test_is_replaced_by_what_came_later(self, path: Path) -> None:
        keep = saver(path)
        keep(Progress(source=SOURCE, position=7))
        keep(Progress(source=SOURCE, position=8))
        assert load_progress(path, SOURCE).position == 8

    @pytest.mark.parametrize(
        "text",
        ["", "{", "null", "[]", "7", '"x"', '{"unknown": 1}', "\x00\x01", json.dumps([asdict(Progress())])],
    )
    def test_begins_anew_where_the_file_is_corrupt(self, path: Path, text: str) -> None:
        path.parent.mkdir()
        path.write_text(text)
        assert load_progress(path, SOURCE) == Progress(source=SOURCE)

    def test_begins_anew_where_the_file_is_not_text(self, path: Path) -> None:
        path.parent.mkdir()
        path.write_bytes(b"\xff\xfe")
        assert load_progress(path, SOURCE) == Progress(source=SOURCE)

    def test_begins_anew_without_a_file(self, path: Path) -> None:
        assert load_progress(path, SOURCE) == Progress(source=SOURCE)

    def test_begins_anew_for_another_source(self, path: Path) -> None:
        saver(path)(Progress(source="another.csv", position=7))
        assert load_progress(path, SOURCE) == Progress(source=SOURCE)

    def test_begins_anew_where_the_earlier_one_had_finished(self, path: Path) -> None:
        saver(path)(Progress(source=SOURCE, position=7, finished=True))
        assert load_progress(path, SOURCE) == Progress(source=SOURCE)


class TestASource:
    def test_may_be_the_simulator_which_is_the_same_each_time(self) -> None:
        one, other = (open_source(SIMULATED, loop=False, devices=3) for _ in range(2))
        assert list(itertools.islice(one, 50)) == list(itertools.islice(other, 50))

    def test_may_be_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "f.csv"
        path.write_text("timestamp,x\n2024-01-01,1\nbroken\n")
        stream: Iterator[Record] = open_source(str(path), loop=False, devices=1)
        assert [type(record) for record in stream] == [Rejected, Reading]

    def test_that_does_not_exist_is_named_with_what_to_give_instead(self) -> None:
        with pytest.raises(BadDataset, match=r"nowhere\.csv does not exist.*simulated"):
            open_source("nowhere.csv", loop=False, devices=1)
