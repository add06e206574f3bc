"""What a line of a dataset becomes, in every format."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.fields import KEY_WIDTH, NO_TIME
from data.formats import FORMATS, Csv, Format, IntelLab, JsonLines, Rejected
from flead.errors import BadDataset, Reason
from flead.messages import Reading

HEADS: dict[type[Format], list[bytes]] = {
    IntelLab: [b"2004-03-04 00:00:26.983691 14285 1 20.5666 35.8876 46.92 2.65143"],
    Csv: [b"timestamp,device_id,value", b"2004-03-04T00:00:26.983691Z,mote-1,20.5666"],
    JsonLines: [b'{"device_id":"mote-1","timestamp":"2004-03-04T00:00:26.983691Z","sensors":{"temperature":20.5666}}'],
}
EARLIEST = datetime(1000, 1, 1)  # noqa: DTZ001 - hypothesis wants its bounds naive

every_format = pytest.mark.parametrize("kind", FORMATS)


def detected(kind: type[Format]) -> Format:
    found = kind.detect(HEADS[kind], "file")
    assert found is not None
    return found


def reading(found: Format, line: bytes) -> Reading:
    record = found.parse(line, 1)
    assert isinstance(record, Reading), record
    return record


def rejected(found: Format, line: bytes) -> Rejected:
    record = found.parse(line, 7)
    assert isinstance(record, Rejected), record
    assert (record.line, record.number) == (line, 7)
    return record


class TestEveryFormat:
    @every_format
    def test_recognises_its_own_files_and_no_others(self, kind: type[Format]) -> None:
        assert [isinstance(other.detect(HEADS[kind], "f"), kind) for other in FORMATS] == [o is kind for o in FORMATS]

    @every_format
    def test_reads_a_good_line_with_its_time_in_utc(self, kind: type[Format]) -> None:
        record = reading(detected(kind), HEADS[kind][-1])
        assert record.device_id == "mote-1"
        assert record.timestamp == datetime(2004, 3, 4, 0, 0, 26, 983691, tzinfo=UTC)
        assert record.timestamp.tzinfo is UTC
        assert 20.5666 in record.sensors.values()

    @every_format
    @settings(deadline=None)
    @given(line=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
    @example(line=b"")
    @example(line=b'"')
    @example(line=b"\xff\xfe")
    def test_any_bytes_are_a_reading_or_rejected_and_have_a_key(self, kind: type[Format], line: bytes) -> None:
        found = detected(kind)
        record = found.parse(line, 7)
        assert len(found.sort_key(line)) == KEY_WIDTH
        if isinstance(record, Rejected):
            assert record.line == line
            assert record.number == 7
            assert record.detail
            assert "\n" not in record.detail

    @every_format
    @settings(deadline=None)
    @given(data=st.data())
    def test_a_good_line_with_one_byte_changed_never_raises(self, kind: type[Format], data: st.DataObject) -> None:
        found, line = detected(kind), bytearray(HEADS[kind][-1])
        line[data.draw(st.integers(0, len(line) - 1))] = data.draw(st.integers(0, 255))
        record = found.parse(bytes(line), 1)
        if isinstance(record, Reading):
            assert record.to_json()
            assert all(value is None or math.isfinite(value) for value in record.sensors.values())

    @every_format
    @settings(deadline=None)
    @given(
        moments=st.lists(
            st.datetimes(min_value=EARLIEST, timezones=st.just(UTC)),
            min_size=2,
            max_size=2,
        )
    )
    def test_keys_sort_as_the_times_do(self, kind: type[Format], moments: list[datetime]) -> None:
        found = detected(kind)
        lines = [written(kind, moment) for moment in moments]
        keys = [found.sort_key(line) for line in lines]
        times = [reading(found, line).timestamp for line in lines]
        assert times == moments
        if times[0] != times[1]:
            assert (keys[0] < keys[1]) == (times[0] < times[1])

    @every_format
    def test_an_empty_line_is_rejected_like_any_other(self, kind: type[Format]) -> None:
        assert rejected(detected(kind), b"").detail


def written(kind: type[Format], moment: datetime) -> bytes:
    iso = moment.isoformat()
    if kind is IntelLab:  # as the original: a fraction loses its trailing zeros
        text = moment.replace(tzinfo=None).isoformat(" ")
        return f"{text.rstrip('0') if '.' in text else text} 1 1 1 1 1 1".encode()
    if kind is Csv:
        return f"{iso},mote-1,1".encode()
    return f'{{"device_id":"mote-1","timestamp":"{iso}","sensors":{{"t":1}}}}'.encode()


class TestIntelLab:
    def test_names_the_four_sensors_the_mote_and_the_epoch(self) -> None:
        record = reading(IntelLab(), HEADS[IntelLab][0])
        assert record.sensors == {"temperature": 20.5666, "humidity": 35.8876, "light": 46.92, "voltage": 2.65143}
        assert record.metadata == {"epoch": 14285}

    def test_an_empty_field_is_a_sensor_without_a_value(self) -> None:
        record = reading(IntelLab(), b"2004-03-04 03:29:02.617829 14702 8 18.6164 37.9503  2.63964")
        assert record.sensors == {"temperature": 18.6164, "humidity": 37.9503, "light": None, "voltage": 2.63964}

    def test_an_odd_but_finite_value_is_left_for_the_learner(self) -> None:
        record = reading(IntelLab(), b"2004-03-06 23:15:40.595268 22835 8 0.016 -8983.13 0 0.0346855")
        assert record.sensors["humidity"] == -8983.13

    @pytest.mark.parametrize(
        ("line", "detail"),
        [
            (b"2004-03-04 00:00:26.98 14285 1 20.5", "5 fields, expected 8"),
            (b"2004-03-04 00:00:26.98 14285 1  20.5 35.8 46.9 2.6", "9 fields, expected 8"),
            (b"2004-03-04 00:00:26.98 14285 65407 294.251   0.013", "moteid: '65407' is not one of 1-54"),
            (b"2004-03-04 00:00:26.98 14285  20.5 35.8 46.9 2.6", "moteid: '' is not one of 1-54"),
            (b"2004-03-04 00:00:26.98 14285 1 warm 35.8 46.9 2.6", "temperature: 'warm' is not a number"),
            (b"2004-03-04 00:00:26.98 14285 1 20.5 nan 46.9 2.6", "humidity: 'nan' is not a finite number"),
            (b"2004-03-04 00:00:26.98 14285 1 20.5 35.8 1e999 2.6", "light: '1e999' is not a finite number"),
            (b"2004-03-04 00:00:26.98 14285 1 20.5 35.8 46.9 2_6", "voltage: '2_6' is not a finite number"),
            (b"2004-03-04 00:00:26.98 one 1 20.5 35.8 46.9 2.6", "epoch: 'one' is not a whole number"),
            (b"2004-02-31 00:00:26.98 14285 1 20.5 35.8 46.9 2.6", "day is out of range for month"),
            (b"2004-W10-4 00:00:26.98 14285 1 20.5 35.8 46.9 2.6", "is not a time like"),
            (b"2004-03-04 00:00:26.98 14285 1 20.5 35.8 46.9 2.\xff", "not UTF-8 text at byte 48"),
        ],
    )
    def test_a_corrupt_row_says_what_is_wrong_with_it(self, line: bytes, detail: str) -> None:
        record = rejected(IntelLab(), line)
        assert record.reason is Reason.CORRUPT_ROW
        assert detail in record.detail

    def test_is_recognised_behind_a_corrupt_first_line(self) -> None:
        assert IntelLab.detect([b"garbage", *HEADS[IntelLab]], "f") is not None


def csv(header: bytes, stem: str = "pump") -> Csv:
    found = Csv.detect([header], stem)
    assert found is not None
    return found


class TestCsv:
    def test_every_other_column_is_a_sensor(self) -> None:
        record = reading(csv(b"load,timestamp,device_id,flow"), b"0.5,2024-01-01 00:00:00,p1,3")
        assert (record.device_id, record.sensors) == ("p1", {"load": 0.5, "flow": 3.0})

    def test_a_file_that_names_no_device_is_one_device_named_after_the_file(self) -> None:
        assert reading(csv(b"timestamp,x"), b"2024-01-01,1").device_id == "pump"
        assert reading(csv(b"timestamp,x", stem=""), b"2024-01-01,1").device_id == "device-1"
        assert reading(csv(b"timestamp,x", stem="a\x07b" * 99), b"2024-01-01,1").device_id.startswith("a_ba_b")

    @pytest.mark.parametrize("cell", [b"", b" ", b"NaN", b"nan", b"NA", b"null"])
    def test_an_empty_cell_is_a_sensor_without_a_value(self, cell: bytes) -> None:
        assert reading(csv(b"timestamp,x"), b"2024-01-01," + cell).sensors == {"x": None}

    @pytest.mark.parametrize(
        "cell", [b"2024-01-01 12:00:00", b"2024-01-01T12:00:00Z", b"2024-01-01T14:00:00+02:00", b" 2024-01-01T12 "]
    )
    def test_a_time_without_an_offset_is_utc(self, cell: bytes) -> None:
        assert reading(csv(b"timestamp,x"), cell + b",1").timestamp == datetime(2024, 1, 1, 12, tzinfo=UTC)

    def test_quotes_and_blanks_are_understood(self) -> None:
        found = csv(b'"timestamp", device_id ,"flow, l/s"')
        record = reading(found, b'"2024-01-01","hall, north","1.5"')
        assert (record.device_id, record.sensors) == ("hall, north", {"flow, l/s": 1.5})

    @pytest.mark.parametrize(
        ("line", "detail"),
        [
            (b"2024-01-01,p1", "2 columns, the header has 3"),
            (b"yesterday,p1,1", "timestamp: 'yesterday' is not an ISO 8601 time"),
            (b"9999-12-31T23:59:59-12:00,p1,1", "is not an ISO 8601 time"),
            (b"1612111122,p1,1", "timestamp: '1612111122' is not an ISO 8601 time"),
            (b"1612111122334,p1,1", "timestamp: '1612111122334' is not an ISO 8601 time"),  # to Python 1612-11-11
            (b"2024-01-01,p1,inf", "x: 'inf' is not a finite number"),
            (b"2024-01-01,p1,warm", "x: 'warm' is not a number"),
            (b"2024-01-01,,1", "device_id: String should have at least 1 character"),
            (b'2024-01-01,"p1,1', "not CSV"),
        ],
    )
    def test_a_corrupt_row_says_what_is_wrong_with_it(self, line: bytes, detail: str) -> None:
        record = rejected(csv(b"timestamp,device_id,x"), line)
        assert record.reason is Reason.CORRUPT_ROW
        assert detail in record.detail

    @pytest.mark.parametrize(
        "header",
        [
            b"timestamp,x,x",
            b",timestamp,x",
            b"timestamp",
            b"timestamp,device_id",
            b"timestamp," + b"x" * 129,
            b"timestamp,x\r2024-01-01,1\r",  # line ends of an old Macintosh: the whole file is one line
        ],
    )
    def test_a_header_that_cannot_work_is_refused(self, header: bytes) -> None:
        with pytest.raises(BadDataset, match="header"):
            Csv.detect([header], "f")


class TestJsonLines:
    def test_unknown_fields_are_kept_in_the_metadata(self) -> None:
        line = HEADS[JsonLines][0][:-1] + b',"site":"lab"}'
        assert reading(JsonLines(), line).metadata == {"site": "lab"}

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b'{"device_id":"m"', Reason.NOT_JSON),
            (b"[1]", Reason.NOT_AN_OBJECT),
            (b'{"device_id":"m","timestamp":"2024-01-01T00:00:00Z"}', Reason.MISSING_FIELD),
            (b'{"device_id":"m","timestamp":"2024-01-01T00:00:00","sensors":{"t":1}}', Reason.BAD_TIME),
            (b'{"device_id":"m","timestamp":"2024-01-01T00:00:00Z","sensors":{}}', Reason.NO_SENSORS),
        ],
    )
    def test_a_refused_line_has_the_reason_that_it_would_have_on_the_topic(self, line: bytes, reason: Reason) -> None:
        assert rejected(JsonLines(), line).reason is reason
        assert JsonLines().sort_key(line) == NO_TIME

    def test_times_are_ordered_across_offsets(self) -> None:
        line = b'{"device_id":"m","timestamp":"2024-01-01T01:00:00+02:00","sensors":{"t":1}}'
        assert JsonLines().sort_key(line) == b"2023-12-31 23:00:00.000000"
