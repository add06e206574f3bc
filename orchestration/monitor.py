"""Watches a run from outside: reads what flows and says what came of it, exactly.

Every prediction and every dead letter names the partition and offset of the reading that it came from, so the readings
that were taken up are known one by one: nothing is estimated from rates.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from confluent_kafka import KafkaException, Message, TopicPartition

from global_server.feed import GROUP as SERVER_GROUP
from kafka.client import make_consumer
from kafka.offsets import Offsets
from kafka.topics import (
    ALERTS,
    ARCHIVE_GROUP,
    ARCHIVED,
    DEAD_LETTERS,
    GLOBAL_MODEL,
    LOCAL_UPDATES,
    PREDICTIONS,
    READINGS,
)
from orchestration.ledger import OffsetLedger

log = logging.getLogger(__name__)

ANSWER_S = 3.0
"""How long a broker may take to say how far topics and groups are, s: whoever looks at a run waits for it."""
WINDOW_S = 60
LONGEST_MS = 60_000


@dataclass
class Observed:
    """What has been read from the topics since the monitor started."""

    predictions: int = 0
    repeated: int = 0
    anomalies: int = 0
    local_updates: int = 0
    dead_letters: int = 0
    dead_letter_reasons: dict[str, int] = field(default_factory=dict)
    unread_readings: int = 0
    devices: set[str] = field(default_factory=set)
    adopted: set[str] = field(default_factory=set)
    updating: set[str] = field(default_factory=set)
    counters_fell: int = 0
    refused_updates: int = 0


class Monitor:
    """Reads a run's topics in a thread of its own.

    Parameters
    ----------
    servers:
        bootstrap servers
    archived:
        whether the archive is part of the run
    clock:
        monotonic seconds
    """

    def __init__(self, servers: str, *, archived: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._servers = servers
        self._archived = archived
        self._clock = clock
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._offsets = Offsets(servers, limit_s=ANSWER_S)
        self._begin = self._offsets.end(READINGS)
        self._ledgers = {partition: OffsetLedger(end) for partition, end in self._begin.items()}
        self._observed = Observed()
        self._latest: dict[str, int] = {}
        self._latency = np.zeros(LONGEST_MS + 1, dtype=np.int64)
        self._recent: deque[tuple[int, np.ndarray[Any, Any]]] = deque()  # second, latencies in it (ms)
        self._errors: dict[int, list[float]] = {}  # second since the first prediction -> [sum, count]
        self._first: float | None = None
        fetches: dict[str, Any] = {"fetch.min.bytes": 65_536, "fetch.wait.max.ms": 200}
        self._consumer = make_consumer(servers, f"flead-monitor-{time.time_ns()}", from_beginning=False, **fetches)
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def start(self) -> None:
        """Begin to read, from the records to come."""
        # Places of its own, not a group's: a group that a broker forgot would begin again at the end.
        self._consumer.assign(
            [
                TopicPartition(topic, partition, end)
                for topic in (PREDICTIONS, LOCAL_UPDATES, ALERTS, DEAD_LETTERS)
                for partition, end in self._offsets.end(topic).items()
            ]
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop reading."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(10.0)
        self._consumer.close()

    def snapshot(self) -> dict[str, Any]:
        """Counts, lag, latency and error as they are now; raises `Unavailable` where Kafka does not answer."""
        end = self._offsets.end(READINGS)
        with self._lock:
            seen = self._observed
            taken = sum(ledger.count for ledger in self._ledgers.values())
            produced = sum(end[p] - self._begin.get(p, 0) for p in end)
            answer: dict[str, Any] = {
                "counts": {
                    "readings": produced,
                    "taken_up": taken - seen.unread_readings,
                    "predictions": seen.predictions,
                    "predictions_repeated": seen.repeated,
                    "anomalies": seen.anomalies,
                    "local_updates": seen.local_updates,
                    "dead_letters": seen.dead_letters,
                    "dead_readings": seen.unread_readings,
                    "devices": len(seen.devices),
                    "devices_updating": len(seen.updating),
                    "devices_adopted": len(seen.adopted),
                    "update_counters_fell": seen.counters_fell,
                    "updates_refused": seen.refused_updates,
                },
                "dead_letter_reasons": dict(seen.dead_letter_reasons),
                "lag": {READINGS: produced - taken},
                "latency_ms": self._quantiles(),
                "latency_ms_whole_run": _histogram_quantiles(self._latency),
                "error": self._error(),
            }
        answer["lag"][LOCAL_UPDATES] = sum(self._offsets.lag(SERVER_GROUP, LOCAL_UPDATES).values())
        if self._archived:
            behind = {topic: sum(self._offsets.lag(ARCHIVE_GROUP, topic).values()) for topic in ARCHIVED}
            answer["archive_lag"] = behind
            answer["lag"] |= {topic: behind[topic] for topic in (PREDICTIONS, ALERTS, DEAD_LETTERS)}
        return answer

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._take(self._consumer.consume(2_000, 0.2))
            except KafkaException as error:
                log.warning("the monitor cannot read: %s", error)
                self._stopping.wait(1.0)

    def _take(self, messages: list[Message]) -> None:
        latencies: list[int] = []
        with self._lock:
            for message in messages:
                if message.error() is None:
                    # Anybody may write to a topic: what is none of ours is not counted.
                    with suppress(ValueError, KeyError, TypeError, AttributeError):
                        self._note(message, latencies)
            if latencies:
                self._note_latencies(latencies)

    def _note(self, message: Message, latencies: list[int]) -> None:
        seen, topic, value = self._observed, message.topic(), orjson.loads(message.value() or b"{}")
        if topic == PREDICTIONS:
            self._note_prediction(value, message.timestamp()[1], latencies)
        elif topic == LOCAL_UPDATES:
            seen.local_updates += 1
            device, counter = value["device_id"], int(value.get("metadata", {}).get("samples_seen", 0))
            seen.updating.add(device)
            seen.counters_fell += counter < self._latest.get(device, 0)
            self._latest[device] = counter
        elif topic == ALERTS:
            seen.anomalies += 1
        elif topic == DEAD_LETTERS:
            seen.dead_letters += 1
            seen.dead_letter_reasons[value["reason"]] = seen.dead_letter_reasons.get(value["reason"], 0) + 1
            source = value["source"]
            if source["topic"] == READINGS and self._ledger(source["partition"]).add(source["offset"]):
                seen.unread_readings += 1
            seen.refused_updates += source["topic"] in (LOCAL_UPDATES, GLOBAL_MODEL)

    def _note_prediction(self, value: dict[str, Any], published_ms: int, latencies: list[int]) -> None:
        seen, source = self._observed, value["source"]
        seen.predictions += 1
        if not self._ledger(source["partition"]).add(source["offset"]):
            seen.repeated += 1
            return
        seen.devices.add(value["device_id"])
        if value["model_version"]:
            seen.adopted.add(value["device_id"])
        latencies.append(min(max(published_ms - value["produced_ms"], 0), LONGEST_MS))
        if value["error"] is not None:
            now = self._clock()
            self._first = self._first or now
            second = int(now - self._first)
            total = self._errors.setdefault(second, [0.0, 0.0])
            total[0] += value["error"]
            total[1] += 1
            self._errors.pop(max(second - WINDOW_S, WINDOW_S), None)  # only the first and the last minute are wanted

    def _ledger(self, partition: int) -> OffsetLedger:
        return self._ledgers.setdefault(partition, OffsetLedger(0))

    def _note_latencies(self, latencies: list[int]) -> None:
        values = np.array(latencies)
        self._latency += np.bincount(values, minlength=LONGEST_MS + 1)
        now = int(self._clock())
        self._recent.append((now, values))
        while self._recent[0][0] < now - WINDOW_S:
            self._recent.popleft()

    def _quantiles(self) -> dict[str, float | None]:
        """Of the last minute."""
        since = self._clock() - WINDOW_S
        recent = [values for second, values in self._recent if second >= since]
        if not recent:
            return {"p50": None, "p99": None}
        p50, p99 = np.percentile(np.concatenate(recent), [50, 99])
        return {"p50": float(p50), "p99": float(p99)}

    def _error(self) -> dict[str, float | None]:
        """The mean prediction error in the first and last minute of the stream, in standard deviations."""
        if not self._errors:
            return {"first_minute": None, "last_minute": None}
        last = max(self._errors)
        if last < 2 * WINDOW_S:
            return {"first_minute": self._mean_error(0, WINDOW_S), "last_minute": None}
        return {
            "first_minute": self._mean_error(0, WINDOW_S),
            "last_minute": self._mean_error(last - WINDOW_S + 1, last + 1),
        }

    def _mean_error(self, begin: int, end: int) -> float | None:
        parts = [self._errors[second] for second in range(begin, end) if second in self._errors]
        count = sum(part[1] for part in parts)
        return sum(part[0] for part in parts) / count if count else None


def _histogram_quantiles(histogram: np.ndarray[Any, Any]) -> dict[str, float | None]:
    total = int(histogram.sum())
    if not total:
        return {"p50": None, "p99": None}
    p50, p99 = np.searchsorted(np.cumsum(histogram), [0.5 * total, 0.99 * total])
    return {"p50": float(p50), "p99": float(p99)}
