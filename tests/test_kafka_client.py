"""Producer, consumer and offsets against a real broker, and without one."""

from __future__ import annotations

import os
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka import Consumer, Message, TopicPartition

from config.child import free_port
from flead.errors import Reason, Unavailable
from flead.messages import MAX_PAYLOAD, DeadLetter, Reading, Source
from kafka.client import Delivery, ReadingProducer, make_consumer, make_producer, next_message
from kafka.codecs import decode_dead_letter
from kafka.offsets import Offsets
from kafka.tail import Record, tail
from kafka.topics import ALERTS, DEAD_LETTERS, READINGS

NOW = datetime(2024, 1, 1, tzinfo=UTC)

# Kafka's own test vectors: org.apache.kafka.common.utils.UtilsTest.testMurmur2
JAVA_MURMUR2 = {
    "21": -973932308,
    "foobar": -790332482,
    "a-little-bit-long-string": -985981536,
    "a-little-bit-longer-string": -1486304829,
}


def reading(device: str, number: int = 0) -> Reading:
    return Reading(device_id=device, timestamp=NOW, sensors={"light": 1.0}, metadata={"number": number})


def send_many(producer: ReadingProducer, count: int) -> None:
    for number in range(count):
        producer.send(reading("mote-1", number))


def records_of(servers: str, topic: str, key_prefix: str) -> list[Record]:
    everything = tail(servers, topic, from_beginning=True)
    return [record for record in everything if (record.key or b"").decode().startswith(key_prefix)]


def drain(consumer: Consumer, servers: str, partitions: int) -> list[Message]:
    """What there is to read, until every partition has ended."""
    messages: list[Message] = []
    ended = 0
    while ended < partitions:
        message = next_message(consumer, 10, servers)
        assert message is not None
        if message.error():
            ended += 1
        else:
            messages.append(message)
    return messages


@pytest.fixture
def fleet() -> str:
    """A prefix of device names that no other test uses."""
    return f"fleet-{uuid.uuid4().hex[:8]}-"


@pytest.mark.servers
def test_readings_of_one_device_stay_in_one_partition_in_order(kafka_servers: str, fleet: str) -> None:
    with ReadingProducer(kafka_servers) as producer:
        for number in range(500):
            producer.send(reading(f"{fleet}{number % 10}", number))

    records = records_of(kafka_servers, READINGS, fleet)

    assert producer.snapshot() == Delivery(sent=500, delivered=500, failed=0, last_error=None)
    assert len({record.partition for record in records}) > 1
    for device in range(10):
        own = [record for record in records if record.key == f"{fleet}{device}".encode()]
        assert len({record.partition for record in own}) == 1
        numbers = [Reading.model_validate_json(record.value or b"").metadata["number"] for record in own]
        assert numbers == list(range(device, 500, 10))


@pytest.mark.servers
def test_a_device_goes_where_java_clients_put_it(kafka_servers: str) -> None:
    partitions = len(Offsets(kafka_servers).partitions(READINGS))
    with ReadingProducer(kafka_servers) as producer:
        for device in JAVA_MURMUR2:
            producer.send(reading(device))

    actual = {
        (record.key or b"").decode(): record.partition for record in tail(kafka_servers, READINGS, from_beginning=True)
    }

    for device, murmur2 in JAVA_MURMUR2.items():
        assert actual[device] == (murmur2 & 0x7FFFFFFF) % partitions


@pytest.mark.servers
def test_the_largest_dead_letter_arrives_whole(kafka_servers: str, fleet: str) -> None:
    letter = DeadLetter(Reason.TOO_LARGE, "too large", Source(READINGS, 0, 7), b"\xff" * MAX_PAYLOAD, NOW)
    with ReadingProducer(kafka_servers) as producer:
        producer.send_dead_letter(letter, fleet)

    (record,) = records_of(kafka_servers, DEAD_LETTERS, fleet)
    assert decode_dead_letter(record.value or b"") == letter


@pytest.mark.servers
@pytest.mark.parametrize("size", [2_000_000, 5_000_000], ids=["refused by the broker", "refused by the client"])
def test_a_record_that_is_too_large_is_counted_and_does_not_stop_the_rest(kafka_servers: str, size: int) -> None:
    with ReadingProducer(kafka_servers) as producer:
        producer.send_raw("large", os.urandom(size))
        producer.send_raw("small", b"{}")

    assert (producer.snapshot().delivered, producer.snapshot().failed) == (1, 1)
    assert "MSG_SIZE_TOO_LARGE" in str(producer.snapshot().last_error)


@pytest.mark.servers
def test_what_is_computed_has_the_time_of_the_broker_and_a_reading_its_own(kafka_servers: str, fleet: str) -> None:
    began, long_ago = datetime.now(UTC), datetime(2004, 3, 4, tzinfo=UTC)
    producer = make_producer(kafka_servers)
    for topic in (READINGS, ALERTS):
        producer.produce(topic, b'{"device_id": "x"}', fleet, timestamp=int(long_ago.timestamp() * 1000))
    assert producer.flush(10) == 0

    (sent,), (computed,) = (records_of(kafka_servers, topic, fleet) for topic in (READINGS, ALERTS))
    assert sent.timestamp == long_ago
    assert computed.timestamp is not None
    assert began - timedelta(seconds=1) < computed.timestamp


@pytest.mark.servers
def test_lag_is_what_a_group_has_not_committed(kafka_servers: str, fleet: str) -> None:
    with ReadingProducer(kafka_servers) as producer:
        for number in range(10):
            producer.send(reading(fleet, number))
    (partition,) = {record.partition for record in records_of(kafka_servers, READINGS, fleet)}
    offsets = Offsets(kafka_servers)
    end, begin = offsets.end(READINGS), offsets.beginning(READINGS)
    assert offsets.lag(fleet, READINGS) == {number: end[number] - begin[number] for number in end}

    with make_consumer(kafka_servers, fleet) as consumer:
        consumer.commit(offsets=[TopicPartition(READINGS, partition, end[partition] - 3)], asynchronous=False)

    assert offsets.committed(fleet, READINGS) == {partition: end[partition] - 3}
    assert offsets.lag(fleet, READINGS)[partition] == 3

    with make_consumer(kafka_servers, fleet) as consumer:  # as if the topic had been made anew since
        consumer.commit(offsets=[TopicPartition(READINGS, partition, end[partition] + 7)], asynchronous=False)

    assert offsets.lag(fleet, READINGS)[partition] == end[partition] - begin[partition]


@pytest.mark.servers
def test_a_consumer_in_a_group_receives_and_continues_where_it_committed(kafka_servers: str, fleet: str) -> None:
    with ReadingProducer(kafka_servers) as producer:
        producer.send(reading(fleet))

    for received in (True, False):
        with make_consumer(kafka_servers, fleet, partition_eof=True) as consumer:
            consumer.subscribe([READINGS])
            messages = drain(consumer, kafka_servers, partitions=4)
            assert (fleet.encode() in [message.key() for message in messages]) is received
            if received:
                ends = [
                    TopicPartition(READINGS, number, end)
                    for number, end in Offsets(kafka_servers).end(READINGS).items()
                ]
                consumer.commit(offsets=ends, asynchronous=False)


@pytest.mark.servers
def test_a_topic_that_is_missing_is_named(kafka_servers: str) -> None:
    with pytest.raises(Unavailable, match=r"has no topic flead\.nothing: run ensure_topics"):
        Offsets(kafka_servers).end("flead.nothing")


def test_without_a_broker_every_reading_counts_as_failed() -> None:
    servers = f"127.0.0.1:{free_port()}"
    producer = ReadingProducer(servers, **{"delivery.timeout.ms": 200})
    for number in range(3):
        producer.send(reading("mote-1", number))

    assert producer.flush(20) == 0
    assert producer.snapshot() == Delivery(3, 0, 3, producer.snapshot().last_error)
    assert f"no Kafka broker answers at {servers}" in str(producer.snapshot().last_error)


def test_what_is_left_when_the_producer_closes_counts_as_failed() -> None:
    producer = ReadingProducer(f"127.0.0.1:{free_port()}")
    producer.send(reading("mote-1"))
    assert producer.snapshot().waiting == 1
    assert producer.flush(0.1) == 1

    final = producer.close(timeout_s=0.1)

    assert (final.failed, final.waiting) == (1, 0)


def test_memory_is_bounded_when_the_broker_does_not_keep_up() -> None:
    overrides = {"queue.buffering.max.messages": 10}
    producer = ReadingProducer(f"127.0.0.1:{free_port()}", full_timeout_s=0.1, **overrides)
    with pytest.raises(Unavailable, match=r"10 records wait for Kafka at 127\.0\.0\.1"):
        send_many(producer, 20)
    assert producer.snapshot().sent == 10
    assert producer.close(timeout_s=0).failed == 10


def test_a_setting_that_does_not_exist_is_refused_in_one_line() -> None:
    with pytest.raises(Unavailable, match='No such configuration property: "linger"'):
        make_producer("127.0.0.1:1", linger=3)
