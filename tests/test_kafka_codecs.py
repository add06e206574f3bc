"""What is written to a topic is what is read from it, and nothing else passes a check."""

from __future__ import annotations

import itertools
import string
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.settings import KafkaSettings
from flead.errors import BadConfiguration, BadInput, Reason
from flead.messages import DeadLetter, GlobalModel, LocalUpdate, Reading, ReadingLimits, Source, WeightsMessage
from kafka.codecs import CODECS, decode, decode_dead_letter, problem_with
from kafka.topics import ALERTS, DEAD_LETTERS, GLOBAL_MODEL, LOCAL_UPDATES, READINGS, declared_topics

NOW = datetime(2024, 1, 1, tzinfo=UTC)
LIMITS = ReadingLimits()

names = st.text(string.ascii_letters + string.digits + "-_. äßλ", min_size=1, max_size=20)
times = st.datetimes(datetime(2000, 1, 2), datetime(2024, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
numbers = st.floats(-1e15, 1e15)
readings = st.builds(
    Reading,
    device_id=names,
    timestamp=times,
    sensors=st.dictionaries(names, numbers | st.none(), min_size=1, max_size=8),
    metadata=st.dictionaries(names, st.text(max_size=9) | st.integers(-(2**53), 2**53) | st.booleans(), max_size=3),
)
letters = st.builds(
    DeadLetter,
    reason=st.sampled_from(Reason),
    detail=st.text(max_size=50),
    source=st.builds(Source, names, st.integers(0, 99), st.integers(0, 2**53)),
    payload=st.binary(max_size=300),
    timestamp=times,
)


@st.composite
def weights(draw: st.DrawFn) -> WeightsMessage:
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    pairs = list(itertools.pairwise(sizes))
    message: dict[str, Any] = {
        "weights": [
            draw(st.lists(st.lists(numbers, min_size=m, max_size=m), min_size=n, max_size=n)) for n, m in pairs
        ],
        "biases": [draw(st.lists(numbers, min_size=m, max_size=m)) for _, m in pairs],
        "architecture": {"input_size": sizes[0], "hidden_sizes": sizes[1:-1], "output_size": sizes[-1]},
    }
    return WeightsMessage.model_validate(message)


updates = st.builds(
    LocalUpdate, device_id=names, weights=weights(), sample_count=st.integers(1, 10**9), timestamp=times
)
models = st.builds(
    GlobalModel,
    cohort=names,
    version=st.integers(1, 10**9),
    weights=weights(),
    timestamp=times,
    num_devices=st.integers(1, 10**6),
    total_samples=st.integers(1, 10**12),
    aggregation_strategy=names,
)


def read(topic: str, value: bytes | None) -> Any:
    return decode(topic, value, now=NOW, limits=LIMITS)


def problem(topic: str, key: bytes | None, value: bytes | None) -> str | None:
    return problem_with(topic, key, value, now=NOW, limits=LIMITS)


def test_every_declared_topic_has_a_codec_and_no_other() -> None:
    assert set(CODECS) == {topic.name for topic in declared_topics(KafkaSettings())}


@given(readings)
def test_a_reading_comes_back_as_it_was_sent(reading: Reading) -> None:
    assert read(READINGS, reading.to_json()) == reading
    assert problem(READINGS, reading.device_id.encode(), reading.to_json()) is None


@settings(max_examples=50)
@given(updates)
def test_a_local_update_comes_back_as_it_was_sent(update: LocalUpdate) -> None:
    raw = update.model_dump_json().encode()
    assert read(LOCAL_UPDATES, raw) == update
    assert problem(LOCAL_UPDATES, update.device_id.encode(), raw) is None


@settings(max_examples=50)
@given(models)
def test_a_global_model_comes_back_as_it_was_sent_keyed_by_cohort(model: GlobalModel) -> None:
    raw = model.model_dump_json().encode()
    assert read(GLOBAL_MODEL, raw) == model
    assert problem(GLOBAL_MODEL, model.cohort.encode(), raw) is None


@given(letters)
def test_a_dead_letter_comes_back_with_its_bytes_under_any_key(letter: DeadLetter) -> None:
    assert decode_dead_letter(letter.to_json()) == letter
    assert problem(DEAD_LETTERS, None, letter.to_json()) is None


@given(letters.filter(lambda letter: len(letter.payload) > 0))
def test_a_dead_letter_whose_bytes_changed_is_refused(letter: DeadLetter) -> None:
    other = DeadLetter(letter.reason, letter.detail, letter.source, letter.payload[:-1], letter.timestamp)
    wrong = other.to_json().replace(b'"size":%d' % len(other.payload), b'"size":%d' % len(letter.payload))
    with pytest.raises(BadInput, match="not the bytes that size and sha256 describe"):
        decode_dead_letter(wrong)


@given(st.sampled_from(sorted(CODECS)), st.none() | st.binary(max_size=9), st.none() | st.binary(max_size=99))
def test_no_bytes_whatever_break_a_check(topic: str, key: bytes | None, value: bytes | None) -> None:
    assert isinstance(problem(topic, key, value), str) or (topic == GLOBAL_MODEL and value is None)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        (b"mote-1", b'{"device_id": "mote-1", "score": 0.9}', None),
        (b"mote-2", b'{"device_id": "mote-1"}', "wrong_key: 'mote-2', the value says 'mote-1'"),
        (None, b'{"device_id": "mote-1"}', "wrong_key: none, the value says 'mote-1'"),
        (b"\xff", b'{"device_id": "mote-1"}', "wrong_key: '\ufffd', the value says 'mote-1'"),
        (b"mote-1", b'{"score": 0.9}', "missing_field: device_id: a string is required"),
        (b"mote-1", b'["mote-1"]', "not_an_object: a list"),
        (b"mote-1", b"", "empty: the record has no value"),
        (b"mote-1", None, "empty: the record has no value"),
    ],
)
def test_an_alert_is_an_object_under_the_key_of_its_device(
    key: bytes | None, value: bytes | None, expected: str
) -> None:
    assert problem(ALERTS, key, value) == expected


def test_a_reading_from_the_future_is_a_problem() -> None:
    late = Reading(device_id="m", timestamp=NOW + timedelta(days=2), sensors={"t": 1.0})
    assert str(problem(READINGS, b"m", late.to_json())).startswith("time_out_of_range")


def test_a_payload_that_is_not_base64_is_a_problem() -> None:
    letter = DeadLetter(Reason.EMPTY, "", Source("t", 0, 0), b"?", NOW).to_json()
    for wrong in ("P", "ß"):
        found = problem(DEAD_LETTERS, None, letter.replace(b"Pw==", wrong.encode()))
        assert str(found).startswith("wrong_type: payload_base64")


def test_another_topic_cannot_be_checked() -> None:
    with pytest.raises(BadConfiguration, match=r"other is no topic of FLEAD: choose one of flead\.readings"):
        read("other", b"{}")
