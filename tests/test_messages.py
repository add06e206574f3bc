"""What is read from a topic is a valid message, or refused with a reason; nothing else can happen."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flead.errors import BadModel, BadReading, BadUpdate, Reason
from flead.messages import (
    MAX_PAYLOAD,
    DeadLetter,
    GlobalModel,
    LocalUpdate,
    Reading,
    ReadingLimits,
    Source,
    cohort_of,
    parse_reading,
)

NOW = datetime(2024, 1, 1, tzinfo=UTC)
LIMITS = ReadingLimits()
TINY = {
    "weights": [[[1.0], [2.0]]],
    "biases": [[0.5]],
    "architecture": {"input_size": 2, "hidden_sizes": [], "output_size": 1},
}

names = st.text(st.characters(exclude_categories=["C"]), min_size=1, max_size=128)
moments = st.datetimes(datetime(2000, 1, 2), datetime(2023, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001
sensors = st.dictionaries(names, st.none() | st.floats(-1e15, 1e15), min_size=1, max_size=8)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
metadata = st.dictionaries(texts, json_values, max_size=4)
readings = st.builds(Reading, device_id=names, timestamp=moments, sensors=sensors, metadata=metadata)


def parse(raw: bytes | None) -> Reading:
    return parse_reading(raw, now=NOW, limits=LIMITS)


def body(**changes: str) -> bytes:
    """A good record with some fields' JSON replaced, or left out where it is empty."""
    fields = {"device_id": '"m"', "timestamp": '"2004-03-04T00:00:00+00:00"', "sensors": '{"t": 19.3}'} | changes
    return ("{" + ", ".join(f'"{name}": {text}' for name, text in fields.items() if text) + "}").encode()


class TestReading:
    @settings(deadline=None, max_examples=200)
    @given(readings)
    def test_comes_back_as_it_was_sent(self, reading: Reading) -> None:
        assert parse(reading.to_json()) == reading

    @given(moments, st.integers(-1439, 1439))
    def test_keeps_its_moment_whatever_the_zone_it_was_written_in(self, moment: datetime, minutes: int) -> None:
        written = moment.astimezone(timezone(timedelta(minutes=minutes))).isoformat()
        reading = parse(body(timestamp=json.dumps(written)))
        assert reading.timestamp == moment
        assert reading.timestamp.tzinfo is UTC

    def test_keeps_unknown_fields_in_its_metadata(self) -> None:
        reading = parse(body(site='"lab"', floor="3", __class__="null", model_config="[1]", metadata='{"by": "us"}'))
        assert reading.metadata == {"site": "lab", "floor": 3, "__class__": None, "model_config": [1], "by": "us"}
        assert parse(reading.to_json()) == reading

    def test_lets_its_own_metadata_win_over_an_unknown_field_of_the_same_name(self) -> None:
        assert parse(body(site='"field"', metadata='{"site": "metadata"}')).metadata == {"site": "metadata"}

    @pytest.mark.parametrize("digits", [19, 20, 40, 400, 4000])
    def test_keeps_integers_of_any_size_in_its_metadata(self, digits: int) -> None:
        reading = parse(body(metadata=f'{{"serial": {"9" * digits}, "name": "m"}}'))
        assert reading.metadata["serial"] == int("9" * digits)
        assert parse(reading.to_json()) == reading

    def test_takes_the_last_of_two_fields_of_one_name(self) -> None:
        assert parse(body()[:-1] + b', "device_id": "b"}').device_id == "b"
        assert parse(body(sensors='{"t": 1, "t": 2}')).sensors == {"t": 2.0}

    @pytest.mark.parametrize("value", ["1", "-0.0", "1e-400", "1e15", "-1e15", "1000000000000000", "null"])
    def test_takes_every_finite_number_and_null(self, value: str) -> None:
        assert parse(body(sensors=f'{{"t": {value}}}')).sensors == {"t": json.loads(value)}

    def test_may_be_as_far_ahead_as_the_limit_and_no_further(self) -> None:
        latest = NOW + timedelta(seconds=LIMITS.max_future_s)
        assert parse(body(timestamp=json.dumps(latest.isoformat()))).timestamp == latest
        with pytest.raises(BadReading, match="future"):
            parse(body(timestamp=json.dumps((latest + timedelta(microseconds=1)).isoformat())))

    def test_may_be_as_large_as_the_limit_and_no_larger(self) -> None:
        room = LIMITS.max_bytes - len(body(site='""'))
        assert parse(body(site=f'"{"x" * room}"')).metadata == {"site": "x" * room}
        with pytest.raises(BadReading, match="too_large"):
            parse(body(site=f'"{"x" * (room + 1)}"'))

    def test_may_have_as_many_sensors_as_the_limit_and_no_more(self) -> None:
        many = {f"s{i}": 1.0 for i in range(LIMITS.max_sensors)}
        assert parse(body(sensors=json.dumps(many))).sensors == many
        with pytest.raises(BadReading, match="too_many_sensors"):
            parse(body(sensors=json.dumps(many | {"one more": 1.0})))


REFUSED: list[tuple[str, bytes | None, Reason]] = [
    ("a tombstone", None, Reason.EMPTY),
    ("no bytes", b"", Reason.EMPTY),
    ("a blank", b" ", Reason.NOT_JSON),
    ("1 MB of text", b"a" * 1_000_000, Reason.TOO_LARGE),
    ("text", b"hello", Reason.NOT_JSON),
    ("a NUL", b"\0", Reason.NOT_JSON),
    ("not UTF-8", b"\xff\xfe", Reason.NOT_JSON),
    ("UTF-16", body().decode().encode("utf-16"), Reason.NOT_JSON),
    ("a byte order mark", b"\xef\xbb\xbf" + body(), Reason.NOT_JSON),
    ("half a record", body()[:-1], Reason.NOT_JSON),
    ("a record and a half", body() + b"{", Reason.NOT_JSON),
    ("Python's quotes", body().replace(b'"', b"'"), Reason.NOT_JSON),
    ("brackets in brackets without end", b"[" * 100_000, Reason.NOT_JSON),
    ("deep metadata", body(metadata='{"a": ' + "[" * 50_000 + "]" * 50_000 + "}"), Reason.NOT_JSON),
    ("a lone surrogate for a device", body(device_id=r'"\ud800"'), Reason.NOT_JSON),
    ("a lone surrogate in the metadata", body(metadata=r'{"a": "\ud800"}'), Reason.NOT_JSON),
    ("an integer of 5,000 digits", body(metadata='{"a": ' + "9" * 5000 + "}"), Reason.NOT_JSON),
    ("null", b"null", Reason.NOT_AN_OBJECT),
    ("a number", b"1", Reason.NOT_AN_OBJECT),
    ("a list", b"[]", Reason.NOT_AN_OBJECT),
    ("the NaN token", b"NaN", Reason.NOT_AN_OBJECT),
    ("an empty object", b"{}", Reason.MISSING_FIELD),
    ("no device", body(device_id=""), Reason.MISSING_FIELD),
    ("no time", body(timestamp=""), Reason.MISSING_FIELD),
    ("no sensors field", body(sensors=""), Reason.MISSING_FIELD),
    ("a device that is null", body(device_id="null"), Reason.WRONG_TYPE),
    ("a device that is a number", body(device_id="7"), Reason.WRONG_TYPE),
    ("a device that is true", body(device_id="true"), Reason.WRONG_TYPE),
    ("an empty device name", body(device_id='""'), Reason.BAD_NAME),
    ("a device name of 129 characters", body(device_id=f'"{"x" * 129}"'), Reason.BAD_NAME),
    ("a line break in a device name", body(device_id=r'"a\nb"'), Reason.BAD_NAME),
    ("a NUL in a device name", body(device_id=r'"\u0000"'), Reason.BAD_NAME),
    ("an invisible character in a device name", body(device_id=r'"a\u200b"'), Reason.BAD_NAME),
    ("an empty sensor name", body(sensors='{"": 1}'), Reason.BAD_NAME),
    ("a sensor name of 129 characters", body(sensors=f'{{"{"x" * 129}": 1}}'), Reason.BAD_NAME),
    ("a NUL in a sensor name", body(sensors=r'{"a\u0000b": 1}'), Reason.BAD_NAME),
    ("no sensor", body(sensors="{}"), Reason.NO_SENSORS),
    ("sensors that are null", body(sensors="null"), Reason.WRONG_TYPE),
    ("sensors in a list", body(sensors="[1]"), Reason.WRONG_TYPE),
    ("a value that is true", body(sensors='{"t": true}'), Reason.WRONG_TYPE),
    ("a value that is text", body(sensors='{"t": "19.3"}'), Reason.WRONG_TYPE),
    ("a value that is a list", body(sensors='{"t": [1]}'), Reason.WRONG_TYPE),
    ("a second value that is text", body(sensors='{"t": 1, "t": "x"}'), Reason.WRONG_TYPE),
    ("NaN", body(sensors='{"t": NaN}'), Reason.NOT_FINITE),
    ("Infinity", body(sensors='{"t": Infinity}'), Reason.NOT_FINITE),
    ("-Infinity", body(sensors='{"t": -Infinity}'), Reason.NOT_FINITE),
    ("1e400", body(sensors='{"t": 1e400}'), Reason.NOT_FINITE),
    ("a value of 400 digits", body(sensors='{"t": ' + "9" * 400 + "}"), Reason.NOT_FINITE),
    ("a value beyond 1e15", body(sensors='{"t": -1.1e15}'), Reason.OUT_OF_RANGE),
    ("an integer beyond 64 bits", body(sensors='{"t": 123456789012345678901}'), Reason.OUT_OF_RANGE),
    ("65 sensors", body(sensors=json.dumps({f"s{i}": 1 for i in range(65)})), Reason.TOO_MANY_SENSORS),
    ("a time that is null", body(timestamp="null"), Reason.WRONG_TYPE),
    ("a time in numbers", body(timestamp="1078358400"), Reason.WRONG_TYPE),
    ("a time that is no time", body(timestamp='"yesterday"'), Reason.BAD_TIME),
    ("a time without a zone", body(timestamp='"2004-03-04T00:00:00"'), Reason.BAD_TIME),
    ("a day without a time", body(timestamp='"2004-03-04"'), Reason.BAD_TIME),
    ("February 30th", body(timestamp='"2004-02-30T00:00:00Z"'), Reason.BAD_TIME),
    ("an offset of 25 hours", body(timestamp='"2004-03-04T00:00:00+25:00"'), Reason.BAD_TIME),
    ("the year 0", body(timestamp='"0000-01-01T00:00:00Z"'), Reason.BAD_TIME),
    ("the year 1, ahead of UTC", body(timestamp='"0001-01-01T00:00:00+14:00"'), Reason.TIME_OUT_OF_RANGE),
    ("the year 9999, behind UTC", body(timestamp='"9999-12-31T23:59:59-12:00"'), Reason.TIME_OUT_OF_RANGE),
    ("a clock that was never set", body(timestamp='"1970-01-01T00:00:12Z"'), Reason.TIME_OUT_OF_RANGE),
    ("a clock two days ahead", body(timestamp='"2024-01-03T00:00:00Z"'), Reason.TIME_OUT_OF_RANGE),
    ("metadata that is a list", body(metadata="[]"), Reason.WRONG_TYPE),
]


class TestWhatIsNoReading:
    @pytest.mark.parametrize(("raw", "reason"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
    def test_is_refused_with_its_reason_and_one_line(self, raw: bytes | None, reason: Reason) -> None:
        with pytest.raises(BadReading) as refused:
            parse(raw)
        assert refused.value.reason is reason
        assert refused.value.detail
        assert len(refused.value.detail) <= 500
        assert "\n" not in refused.value.detail

    @settings(deadline=None, max_examples=200)
    @given(st.binary(max_size=300) | json_values.map(lambda value: json.dumps(value).encode()))
    @example(b"[" * 262_144)
    @example(b'{"a":' * 50_000)
    @example(b'"' + b"\\u" * 100_000)
    @example(b"-" + b"9" * 200_000)
    def test_never_raises_anything_else(self, raw: bytes) -> None:
        with pytest.raises(BadReading):
            parse(raw)

    @settings(deadline=None, max_examples=200)
    @given(readings, st.data())
    def test_never_raises_anything_else_for_a_reading_with_a_few_bytes_changed(
        self, reading: Reading, data: st.DataObject
    ) -> None:
        raw = bytearray(reading.to_json())
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        self.parse_or_refuse(bytes(raw))

    @settings(deadline=None, max_examples=200)
    @given(st.fixed_dictionaries({"device_id": json_values, "timestamp": json_values, "sensors": json_values}))
    def test_never_raises_anything_else_for_an_object_with_the_right_fields(self, fields: dict[str, Any]) -> None:
        self.parse_or_refuse(json.dumps(fields).encode())

    def parse_or_refuse(self, raw: bytes) -> None:
        try:
            reading = parse(raw)
        except BadReading as refused:
            assert refused.detail  # noqa: PT017 - being read is as good
        else:
            assert reading.to_json()


class TestCohort:
    @settings(max_examples=200)
    @given(st.lists(st.lists(names, min_size=1, max_size=30, unique=True), min_size=2, max_size=2))
    def test_is_short_and_tells_sensor_sets_apart(self, sets: list[list[str]]) -> None:
        one, other = (tuple(sorted(name.replace("+", "-") for name in each)) for each in sets)
        assert 1 <= len(cohort_of(one)) <= 64
        assert (cohort_of(one) == cohort_of(other)) == (one == other)

    def test_is_readable_for_a_few_sensors_and_the_same_for_ever(self) -> None:
        assert cohort_of(("humidity", "temperature")) == "humidity+temperature"
        assert cohort_of(tuple(f"sensor-{i:02}" for i in range(50))) == "50-sensors-21da333a156f"


def update(**changes: Any) -> dict[str, Any]:
    return {
        "device_id": "m",
        "weights": TINY,
        "sample_count": 100,
        "timestamp": "2004-03-04T00:00:00Z",
        "metadata": {"cohort": "humidity+temperature"},
    } | changes


def model(**changes: Any) -> dict[str, Any]:
    return {
        "cohort": "humidity+temperature",
        "version": 3,
        "weights": TINY,
        "timestamp": "2004-03-04T00:00:00Z",
        "num_devices": 10,
        "total_samples": 1000,
        "aggregation_strategy": "fedavg",
    } | changes


def weights(**changes: Any) -> dict[str, Any]:
    return {**TINY, **changes}


BAD_WEIGHTS: list[Any] = [
    None,
    [],
    "weights",
    {},
    weights(weights=[[1.0]]),
    weights(weights=[[["x"]]]),
    weights(weights=[[[float("nan")]]]),
    weights(biases=[[float("inf")]]),
    weights(architecture={"input_size": 0, "hidden_sizes": [], "output_size": 1}),
    weights(architecture={"input_size": 10**9, "hidden_sizes": [], "output_size": 1}),
    weights(architecture={"input_size": 1, "hidden_sizes": [1] * 65, "output_size": 1}),
    weights(architecture={"input_size": 1, "hidden_sizes": [-1], "output_size": 1}),
]


class TestLocalUpdate:
    def test_comes_back_as_it_was_sent_with_what_it_did_not_know(self) -> None:
        sent = LocalUpdate.from_json(json.dumps(update(firmware="1.2")).encode())
        assert LocalUpdate.from_json(sent.model_dump_json().encode()) == sent
        assert sent.model_extra == {"firmware": "1.2"}
        assert sent.cohort == "humidity+temperature"

    @pytest.mark.parametrize("metadata", [{}, {"cohort": ""}, {"cohort": None}])
    def test_belongs_to_the_default_cohort_without_one(self, metadata: dict[str, Any]) -> None:
        assert LocalUpdate.from_json(json.dumps(update(metadata=metadata)).encode()).cohort == "default"

    @pytest.mark.parametrize(
        "changes",
        [
            {"device_id": ""},
            {"sample_count": 0},
            {"sample_count": -1},
            {"sample_count": 1e400},
            {"sample_count": 10**400},
            {"timestamp": "2004-03-04T00:00:00"},
            {"metadata": []},
            *({"weights": bad} for bad in BAD_WEIGHTS),
        ],
    )
    def test_is_refused_where_a_field_does_not_hold(self, changes: dict[str, Any]) -> None:
        with pytest.raises(BadUpdate):
            LocalUpdate.from_json(json.dumps(update(**changes)).encode())

    @settings(deadline=None, max_examples=200)
    @given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
    @example(b"[" * 100_000)
    @example(b"")
    def test_any_other_bytes_are_a_bad_update(self, raw: bytes) -> None:
        with pytest.raises(BadUpdate):
            LocalUpdate.from_json(raw)

    def test_a_large_body_of_nothing_but_errors_is_refused_with_one_line(self) -> None:
        with pytest.raises(BadUpdate) as refused:
            LocalUpdate.from_json(json.dumps(update(weights=weights(weights=[[["x"] * 300_000]]))).encode())
        assert len(refused.value.detail) <= 500


class TestGlobalModel:
    def test_comes_back_as_it_was_sent(self) -> None:
        sent = GlobalModel.from_json(json.dumps(model()).encode())
        assert GlobalModel.from_json(sent.model_dump_json().encode()) == sent

    @pytest.mark.parametrize(
        "changes",
        [
            {"cohort": "a\nb"},
            {"version": 0},
            {"version": "new"},
            {"num_devices": 0},
            {"total_samples": None},
            {"timestamp": "now"},
            *({"weights": bad} for bad in BAD_WEIGHTS),
        ],
    )
    def test_is_refused_where_a_field_does_not_hold(self, changes: dict[str, Any]) -> None:
        with pytest.raises(BadModel):
            GlobalModel.from_json(json.dumps(model(**changes)).encode())

    @settings(deadline=None, max_examples=200)
    @given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
    @example(b"[" * 100_000)
    @example(b"")
    def test_any_other_bytes_are_a_bad_model(self, raw: bytes) -> None:
        with pytest.raises(BadModel):
            GlobalModel.from_json(raw)


class TestDeadLetter:
    @staticmethod
    def written(payload: bytes) -> dict[str, Any]:
        letter = DeadLetter(Reason.NOT_JSON, "line 1", Source("flead.readings", 2, 7), payload, NOW)
        fields: dict[str, Any] = json.loads(letter.to_json())
        return fields

    @given(st.binary(max_size=300))
    def test_keeps_the_bytes_as_they_came(self, payload: bytes) -> None:
        fields = self.written(payload)
        assert base64.b64decode(fields["payload_base64"]) == payload
        assert (fields["size"], fields["truncated"]) == (len(payload), False)
        assert fields["sha256"] == hashlib.sha256(payload).hexdigest()

    def test_says_why_when_and_where_from(self) -> None:
        fields = self.written(b"?")
        assert (fields["reason"], fields["detail"]) == ("not_json", "line 1")
        assert fields["source"] == {"topic": "flead.readings", "partition": 2, "offset": 7}
        assert datetime.fromisoformat(fields["timestamp"]) == NOW

    @pytest.mark.parametrize("surplus", [0, 1])
    def test_says_so_where_it_could_not_keep_everything(self, surplus: int) -> None:
        payload = bytes(range(256)) * (MAX_PAYLOAD // 256 + 1)
        payload = payload[: MAX_PAYLOAD + surplus]
        fields = self.written(payload)
        assert base64.b64decode(fields["payload_base64"]) == payload[:MAX_PAYLOAD]
        assert fields["truncated"] is bool(surplus)
        assert fields["size"] == len(payload)
        assert fields["sha256"] == hashlib.sha256(payload).hexdigest()
