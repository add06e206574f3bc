"""An update that is read quickly is what the messages' own declaration makes of it, or refused in the same words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flead import network
from flead.errors import BadInput
from flead.messages import LocalUpdate
from flead.network import Architecture
from flead.updates import ReadUpdate, parse_update, read_message

ODD = ("true", "null", '"1.5"', "1e400", "NaN", "[1]", "[]", "{}", "-0", "7", "1" * 30, "18446744073709551615", "x", "")
NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")


SMALL = Architecture(2, (3,), 1)


def written(architecture: Architecture = SMALL, **changes: Any) -> str:
    theta = np.random.default_rng(0).normal(size=architecture.parameter_count)
    whole = {
        "device_id": "pump-1", "weights": network.to_message(theta, architecture), "sample_count": 5,
        "timestamp": "2024-01-01T00:00:00+01:00", "metadata": {"cohort": "light", "sensors": ["light"]}, "site": "lab",
    }  # fmt: skip
    return json.dumps(whole | changes)


def as_declared(raw: bytes) -> ReadUpdate:
    return read_message(LocalUpdate.from_json(raw))


def outcome(read: Callable[[bytes], ReadUpdate], raw: bytes) -> Any:
    try:
        return asdict(found := read(raw)) | {"theta": found.theta.tolist()}
    except BadInput as error:
        return type(error), str(error)


@given(
    st.builds(Architecture, st.integers(1, 4), st.lists(st.integers(1, 4), max_size=2).map(tuple), st.integers(1, 3)),
    st.integers(0, 2**64 - 1),
)
def test_it_is_what_was_sent(architecture: Architecture, extra: int) -> None:
    raw = written(architecture, metadata={"extra": extra}).encode()
    assert outcome(parse_update, raw) == outcome(as_declared, raw)
    assert parse_update(raw).architecture == architecture


@given(st.integers(0, 200), st.sampled_from(ODD))
def test_with_an_odd_value_in_place_of_a_number_it_is_taken_or_refused_alike(place: int, odd: str) -> None:
    raw = written()
    found = list(NUMBER.finditer(raw))
    number = found[place % len(found)]
    changed = (raw[: number.start()] + odd + raw[number.end() :]).encode()
    assert outcome(parse_update, changed) == outcome(as_declared, changed)


@given(st.integers(0, 2_000), st.binary(max_size=3))
def test_with_a_byte_changed_it_is_taken_or_refused_alike(place: int, put: bytes) -> None:
    raw = written().encode()
    at = place % len(raw)
    changed = raw[:at] + put + raw[at + 1 :]
    assert outcome(parse_update, changed) == outcome(as_declared, changed)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": []}, {"weights": {}}, {"weights": None}, {"weights": {"weights": "ab", "biases": "ab"}},
        {"weights": {"weights": {"a": 1}, "biases": {"a": 1}, "architecture": {"input_size": 1}}},
        {"metadata": None}, {"sample_count": 0}, {"timestamp": "2024-01-01"}, {"device_id": "\0"},
    ],
)  # fmt: skip
def test_what_is_no_update_is_refused_in_the_same_words(changes: dict[str, Any]) -> None:
    raw = written(**changes).encode()
    said = outcome(parse_update, raw)
    assert issubclass(said[0], BadInput)
    assert said == outcome(as_declared, raw)


@pytest.mark.parametrize("raw", [b"", b"[]", b"7", b"{", b"\xff", b"[" * 100_000])
def test_any_other_bytes_are_refused_in_the_same_words(raw: bytes) -> None:
    assert outcome(parse_update, raw) == outcome(as_declared, raw)
