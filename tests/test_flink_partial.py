"""A shard in Flink sums up what can be summed up, and passes on the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from pyflink.common import Row

from flead import network
from flead.network import Architecture
from flead.partial import Part
from flink.partial import LARGEST, UNREADABLE, Shard


def update(largest: float) -> bytes:
    """An update of a device whose weights go up to this."""
    return orjson.dumps(
        {
            "device_id": "d",
            "weights": network.to_message(np.array([largest, -largest]), Architecture(1, (), 1)),
            "sample_count": 1_000_000_000,
            "timestamp": "2024-01-01T00:00:00Z",
        }
    )


def sent(raw: bytes) -> Any:
    (row,) = Shard(2).process_element(Row(b"d", raw), None)
    return row


def test_an_update_goes_to_its_shard() -> None:
    name, part = sent(update(LARGEST))
    assert name.startswith("partial-")
    assert Part.from_bytes(part).theta.tolist() == [LARGEST, -LARGEST]


@pytest.mark.parametrize("raw", [b"?", update(1e300)], ids=["unreadable", "too large to be summed up"])
def test_what_cannot_be_summed_up_goes_on_as_it_is(raw: bytes) -> None:
    # Summed up, 1e300 over so many samples is infinite: an error in the timer would end the job each time anew.
    assert sent(raw) == (UNREADABLE, Row(b"d", raw))
