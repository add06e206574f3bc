"""The engine of `flead consume`: follow a topic, or check every record of it. It joins no group and commits nothing."""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, Message, TopicPartition

from flead.messages import ReadingLimits
from kafka.client import make_consumer, next_message
from kafka.codecs import problem_with
from kafka.offsets import Offsets


@dataclass(frozen=True, slots=True)
class Record:
    """One record as the broker has it. `problem` is what a check found, None if nothing or if nothing was checked."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    timestamp: datetime | None
    value: bytes | None
    problem: str | None = None


@dataclass(slots=True)
class CheckReport:
    """What a check of a topic found.

    >>> report = CheckReport("flead.alerts")
    >>> report.add(Record("flead.alerts", 0, 0, b"mote-1", None, b"{}", "missing_field: device_id"))
    >>> report.add(Record("flead.alerts", 1, 0, b"mote-1", None, b"{}"))
    >>> report.ok, dict(report.reasons), report.scattered
    (False, {'missing_field': 1}, {'mote-1': [0, 1]})
    """

    MAX_EXAMPLES: ClassVar[int] = 10

    topic: str
    by_partition: Counter[int] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    examples: list[Record] = field(default_factory=list)
    places: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    def add(self, record: Record) -> None:
        """Count one record."""
        self.by_partition[record.partition] += 1
        if record.key is not None:
            self.places[record.key.decode(errors="backslashreplace")].add(record.partition)
        if record.problem is not None:
            self.reasons[record.problem.split(":", 1)[0]] += 1
            if len(self.examples) < self.MAX_EXAMPLES:
                self.examples.append(record)

    @property
    def records(self) -> int:
        """How many were checked."""
        return self.by_partition.total()

    @property
    def bad(self) -> int:
        """How many of them have a problem."""
        return self.reasons.total()

    @property
    def scattered(self) -> dict[str, list[int]]:
        """The keys whose records lie in several partitions: their order is lost."""
        return {key: sorted(where) for key, where in self.places.items() if len(where) > 1}

    @property
    def ok(self) -> bool:
        """Whether every record is valid and every key in one partition."""
        return not self.reasons and not self.scattered

    def as_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {
            "topic": self.topic,
            "ok": self.ok,
            "records": self.records,
            "bad": self.bad,
            "keys": len(self.places),
            "by_partition": {str(number): count for number, count in sorted(self.by_partition.items())},
            "reasons": dict(self.reasons),
            "scattered": self.scattered,
            "examples": [
                {"partition": bad.partition, "offset": bad.offset, "problem": bad.problem} for bad in self.examples
            ],
        }


def tail(
    servers: str,
    topic: str,
    *,
    from_beginning: bool = False,
    limit: int | None = None,
    follow: bool = False,
    timeout_s: float | None = None,
    check: bool = False,
    limits: ReadingLimits | None = None,
) -> Iterator[Record]:
    """Yield the records of a topic in the order in which they arrive; each partition's own order is kept.

    Parameters
    ----------
    from_beginning:
        begin at the oldest record, else at the end: then only what comes later, which takes `follow`
    limit:
        end after so many records
    follow:
        go on at the end and wait for what comes; else end once every partition's end was reached
    timeout_s:
        end when nothing came for so long, s
    check:
        set each record's `problem`
    limits:
        what a check counts as a reading

    Raises
    ------
    Unavailable
        if the broker does not answer or the topic is missing
    BadConfiguration
        if there is no codec to check the topic with
    """
    offsets = Offsets(servers)
    begin = offsets.beginning(topic) if from_beginning else offsets.end(topic)
    places = [TopicPartition(topic, number, offset) for number, offset in begin.items()]
    consumer = make_consumer(servers, "flead-tail", partition_eof=not follow, **_PROMPT)
    try:
        consumer.assign(places)
        messages = _messages(consumer, servers, partitions=len(places), timeout_s=timeout_s)
        for message in itertools.islice(messages, limit):
            record = _record(message)
            yield _checked(record, limits or ReadingLimits()) if check else record
    finally:
        consumer.close()


_PROMPT: dict[str, Any] = {"fetch.wait.max.ms": 50}
"""The end of a partition shows when a fetch came back empty: after half a second, were this left as it is."""


def check_topic(servers: str, topic: str, *, limits: ReadingLimits | None = None) -> CheckReport:
    """Check every record that a topic holds now; raises as `tail`."""
    report = CheckReport(topic)
    for record in tail(servers, topic, from_beginning=True, check=True, limits=limits):
        report.add(record)
    return report


def _messages(consumer: Consumer, servers: str, *, partitions: int, timeout_s: float | None) -> Iterator[Message]:
    """Yield records until as many partitions have ended or nothing came for `timeout_s`."""
    ended: set[int | None] = set()
    heard = time.monotonic()
    while len(ended) < partitions:
        message = next_message(consumer, 0.2 if timeout_s is None else min(0.2, timeout_s), servers)
        if message is None:
            if timeout_s is not None and time.monotonic() - heard >= timeout_s:
                return
        elif message.error() is not None:
            ended.add(message.partition())
        else:
            heard = time.monotonic()
            yield message


def _record(message: Message) -> Record:
    kind, millis = message.timestamp()
    return Record(
        topic=message.topic() or "",
        partition=_number(message.partition()),
        offset=_number(message.offset()),
        key=message.key(),
        timestamp=None if kind == TIMESTAMP_NOT_AVAILABLE else _EPOCH + timedelta(milliseconds=millis),
        value=message.value(),
    )


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _number(value: int | None) -> int:
    """Give a partition or an offset; librdkafka leaves them out of errors only."""
    return -1 if value is None else value


def _checked(record: Record, limits: ReadingLimits) -> Record:
    now = datetime.now(UTC)
    return replace(record, problem=problem_with(record.topic, record.key, record.value, now=now, limits=limits))
