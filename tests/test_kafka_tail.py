"""The consumer tool's engine: what it yields, where it ends, what a check finds."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from confluent_kafka import Producer

from flead.errors import Unavailable
from kafka.client import make_producer
from kafka.offsets import Offsets
from kafka.tail import CheckReport, Record, check_topic, tail
from kafka.topics import ALERTS, PREDICTIONS

pytestmark = pytest.mark.servers

Plant = Callable[..., None]


@pytest.fixture
def device() -> str:
    return f"device-{uuid.uuid4().hex[:8]}"


@pytest.fixture
def producer(kafka_servers: str) -> Producer:
    return make_producer(kafka_servers)


def test_a_check_finds_the_planted_records_and_no_others(kafka_servers: str, producer: Producer, device: str) -> None:
    before = check_topic(kafka_servers, ALERTS)
    good = b'{"device_id": "%s"}' % device.encode()
    producer.produce(ALERTS, good, device, partition=0)
    producer.produce(ALERTS, good, device, partition=1)
    producer.produce(ALERTS, b"{", device, partition=1)
    producer.produce(ALERTS, good, f"{device}-other", partition=2)
    producer.flush(10)

    after = check_topic(kafka_servers, ALERTS)

    assert after.records - before.records == 4
    assert after.by_partition - before.by_partition == {0: 1, 1: 2, 2: 1}
    assert after.reasons - before.reasons == {"not_json": 1, "wrong_key": 1}
    assert after.bad - before.bad == 2
    assert after.scattered.keys() - before.scattered.keys() == {device}
    assert after.scattered[device] == [0, 1]
    assert not after.ok
    assert after.as_dict()["scattered"][device] == [0, 1]


def test_keys_that_are_no_text_are_told_apart() -> None:
    report = CheckReport(ALERTS)
    for partition, key in enumerate((b"\xfe", b"\xff")):
        report.add(Record(ALERTS, partition, 0, key, None, b"{}"))
    assert report.scattered == {}
    assert report.as_dict()["keys"] == 2


def test_an_empty_report_is_fine() -> None:
    assert CheckReport("flead.alerts").as_dict()["ok"] is True


def test_a_report_keeps_few_examples_however_bad_a_topic_is(
    kafka_servers: str, producer: Producer, device: str
) -> None:
    for _ in range(30):
        producer.produce(PREDICTIONS, b"?", device)
    producer.flush(10)
    report = check_topic(kafka_servers, PREDICTIONS)
    assert report.bad >= 30
    assert len(report.examples) == CheckReport.MAX_EXAMPLES


def test_a_tail_ends_at_its_limit(kafka_servers: str, producer: Producer, device: str) -> None:
    for number in range(5):
        producer.produce(PREDICTIONS, str(number).encode(), device)
    producer.flush(10)
    assert len(list(tail(kafka_servers, PREDICTIONS, from_beginning=True, limit=3, follow=True))) == 3


def test_following_yields_what_comes_later_and_ends_when_nothing_comes(
    kafka_servers: str, producer: Producer, device: str
) -> None:
    everything = tail(kafka_servers, ALERTS, from_beginning=True, follow=True, timeout_s=2.0)
    for _ in range(sum(Offsets(kafka_servers).end(ALERTS).values())):
        next(everything)

    producer.produce(ALERTS, b"later", device)
    producer.flush(10)

    assert [(record.value, record.problem) for record in everything] == [(b"later", None)]


def test_from_the_end_without_following_there_is_nothing(kafka_servers: str) -> None:
    assert list(tail(kafka_servers, ALERTS)) == []


def test_a_missing_topic_is_named(kafka_servers: str) -> None:
    with pytest.raises(Unavailable, match=r"has no topic flead\.nothing"):
        next(tail(kafka_servers, "flead.nothing"))
