"""Partial sums inside the job: of each shard of a cohort one update in a while, in place of each device's.

(One for each global model that its devices began from: two or three while a new one spreads.)

::

    learn ──► flead.local-updates          where `partial_sums` is 0
    learn ──► shard ──► key by (shard, cohort, architecture) ──► sum up ──► flead.local-updates

What a shard has waits in keyed state, a device's latest weights beside the samples of all its updates, as the global
server would keep them; a timer of processing time sends their weighted mean and forgets them. Both are in the same
checkpoint as the transaction in which the update travels, so a crash neither doubles nor loses a device's training.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
from pyflink.common import Row, Types
from pyflink.datastream import DataStream, KeyedProcessFunction, OutputTag, ProcessFunction, RuntimeContext
from pyflink.datastream.state import MapStateDescriptor, ValueStateDescriptor

from flead.errors import BadInput, BadUpdate
from flead.partial import Part, partial_updates, sender_name, shard_of
from flead.updates import parse_update
from flink.functions import BYTES, RECORD, STATE

SHARED = Types.ROW([Types.STRING(), BYTES])
"""A part on its way to its shard: the shard's name, and the part."""
UNREADABLE = OutputTag("unreadable", RECORD)
LARGEST = 1e100
"""A parameter beyond it could make a sum infinite, which could not be sent; the server refuses far smaller ones."""


class Shard(ProcessFunction):  # type: ignore[misc]
    """Local updates to parts under their shard.

    What cannot be read or summed up goes on as it is, for the server to refuse.
    """

    def __init__(self, shards: int) -> None:
        self._shards = shards

    def process_element(self, value: Row, ctx: ProcessFunction.Context) -> Iterator[Any]:
        """Yield the part, or the record as it came."""
        key, raw = value
        try:
            part = Part.from_update(parse_update(raw))
            if np.abs(part.theta).max() > LARGEST:
                raise BadUpdate(f"a parameter is beyond {LARGEST:g}")
        except BadInput:
            yield UNREADABLE, Row(key, raw)
        else:
            name = f"partial-{shard_of(part.device_id, self._shards)}"
            yield Row(sender_name(name, part.cohort, part.architecture), part.to_bytes())


class SumUp(KeyedProcessFunction):  # type: ignore[misc]
    """The devices of one shard: keeps what they gave until the timer, then sends it as one update."""

    def __init__(self, every_ms: int) -> None:
        self._every_ms = every_ms

    def open(self, runtime_context: RuntimeContext) -> None:
        """Bind the state: each device's part, and the samples sent so far."""
        self._parts = runtime_context.get_map_state(MapStateDescriptor("parts", Types.STRING(), STATE))
        self._sent = runtime_context.get_state(ValueStateDescriptor("samples-sent", STATE))

    def process_element(self, value: Row, ctx: KeyedProcessFunction.Context) -> None:
        """Add a device's update; the first one sets the timer."""
        _, raw = value
        part = Part.from_bytes(raw)
        if self._parts.is_empty():
            timers = ctx.timer_service()
            timers.register_processing_time_timer(timers.current_processing_time() + self._every_ms)
        earlier = self._parts.get(part.device_id)
        self._parts.put(part.device_id, raw if earlier is None else Part.from_bytes(earlier).then(part).to_bytes())

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[Any]:
        """Send what there is; nothing more comes for a shard that is silent."""
        parts = sorted(map(Part.from_bytes, self._parts.values()), key=lambda part: part.device_id)
        if not parts:
            return
        before = int(self._sent.value() or b"0")
        name = ctx.get_current_key()
        time = datetime.fromtimestamp(timestamp / 1_000, UTC)
        self._parts.clear()
        updates = partial_updates(parts, device_id=name, timestamp=time, samples_before=before)
        self._sent.update(str(updates[-1]["metadata"]["samples_seen"]).encode())
        for update in updates:
            yield Row(update["device_id"].encode(), orjson.dumps(update))


def partial_sums(updates: DataStream, shards: int, every_s: float) -> DataStream:
    """The stream of records that stands for a stream of local updates."""
    shared = updates.process(Shard(shards), SHARED).name("shard").uid("shard")
    summed = (
        shared.key_by(lambda row: row[0], key_type=SHARED.get_field_types()[0])
        .process(SumUp(round(every_s * 1_000)), RECORD)
        .name("sum up")
        .uid("sum-up")
    )
    return summed.union(shared.get_side_output(UNREADABLE))
