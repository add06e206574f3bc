"""Producers and consumers with the settings that this system needs, and how far a consumer group has come."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer

from flead.errors import Unavailable
from flead.messages import DeadLetter, Reading
from kafka.connection import LOG as LIBRDKAFKA_LOG
from kafka.connection import base_config, one_line, translated
from kafka.topics import DEAD_LETTERS, MAX_DEAD_LETTER, READINGS

LOG = logging.getLogger(__name__)


def make_producer(servers: str, **overrides: Any) -> Producer:
    """Make a producer that neither loses, repeats nor reorders what the broker acknowledges.

    Parameters
    ----------
    overrides:
        librdkafka's own names: `make_producer(servers, **{"linger.ms": 0})`

    Raises
    ------
    Unavailable
        if a setting is refused

    Notes
    -----
    The partitioner is the one of Kafka's Java clients, so Flink and Spark put a device where we do. `linger.ms`
    is time added to every record's latency; at 3 ms, batches are already full at the rates where they matter.
    """
    config = base_config(servers) | {
        "enable.idempotence": True,
        "acks": "all",
        "compression.type": "lz4",
        "linger.ms": 3,
        "partitioner": "murmur2_random",
        "delivery.timeout.ms": 120_000,
        "queue.buffering.max.messages": 100_000,
        "queue.buffering.max.kbytes": 65_536,
        "message.max.bytes": MAX_DEAD_LETTER,
    }
    with translated("making a producer", servers):
        return Producer(config | overrides, logger=LIBRDKAFKA_LOG)


def make_consumer(
    servers: str,
    group: str,
    *,
    read_committed: bool = True,
    from_beginning: bool = True,
    partition_eof: bool = False,
    **overrides: Any,
) -> Consumer:
    """Make a consumer that commits only what it is told to.

    Parameters
    ----------
    read_committed:
        withhold records of open and aborted transactions
    from_beginning:
        where a group without committed offsets begins: at the first record, or at those to come
    partition_eof:
        let `next_message` also return the ends of partitions, as messages whose error is `_PARTITION_EOF`

    Raises
    ------
    Unavailable
        if a setting is refused
    """
    config = base_config(servers) | {
        "group.id": group,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest" if from_beginning else "latest",
        "isolation.level": "read_committed" if read_committed else "read_uncommitted",
        "enable.partition.eof": partition_eof,
        "session.timeout.ms": 10_000,
        "heartbeat.interval.ms": 2_000,
        "fetch.error.backoff.ms": 100,
        "queued.max.messages.kbytes": 16_384,
    }
    with translated("making a consumer", servers):
        return Consumer(config | overrides, logger=LIBRDKAFKA_LOG)


def next_message(consumer: Consumer, timeout_s: float, servers: str) -> Message | None:
    """Return the next record, or None if none came within `timeout_s` or the connection is being restored.

    Raises
    ------
    Unavailable
        if the consumer cannot go on by itself
    """
    with translated("reading", servers):
        message = consumer.poll(timeout_s)
        error = message.error() if message is not None else None
        if error is None or error.code() == KafkaError._PARTITION_EOF:
            return message
        if error.retriable() or error.code() in _PASSING:
            return None
        raise KafkaException(error)


_PASSING = (
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._MAX_POLL_EXCEEDED,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
)


_GIVEN_UP = (KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT)


@dataclass(frozen=True, slots=True)
class Delivery:
    """How many records a producer was given, and what became of them."""

    sent: int
    delivered: int
    failed: int
    last_error: str | None

    @property
    def waiting(self) -> int:
        """Records neither acknowledged nor given up."""
        return self.sent - self.delivered - self.failed


class ReadingProducer:
    """Sends readings and dead letters, keyed by device; counts what the broker acknowledged.

    Sending does not wait for the broker until 100,000 records or 64 MiB are on their way. For use by one thread.

    Parameters
    ----------
    full_timeout_s:
        how long to wait for room when so many are on their way, s
    overrides:
        librdkafka's settings, as for `make_producer`
    """

    def __init__(self, servers: str, *, full_timeout_s: float = 60.0, **overrides: Any) -> None:
        self.servers = servers
        self.full_timeout_s = full_timeout_s
        self._sent = self._delivered = self._failed = 0
        self._last_error: str | None = None
        self._producer = make_producer(servers, error_cb=self._note, **overrides)

    def send(self, reading: Reading) -> None:
        """Send one reading; raises as `send_raw`."""
        self.send_raw(reading.device_id, reading.to_json())

    def send_raw(self, device_id: str, value: bytes) -> None:
        """Send bytes to the readings as they are, be they a reading or not.

        A record that cannot be sent (too large) counts as failed.

        Raises
        ------
        Unavailable
            if there was no room for `full_timeout_s`, or the producer cannot go on
        """
        self._produce(READINGS, value, device_id)

    def send_dead_letter(self, letter: DeadLetter, device_id: str | None = None) -> None:
        """Send what was refused, keyed by its device where that is known; raises as `send_raw`."""
        self._produce(DEAD_LETTERS, letter.to_json(), device_id)

    def snapshot(self) -> Delivery:
        """Count as of this moment; serves outstanding delivery reports first."""
        self._producer.poll(0)
        return Delivery(self._sent, self._delivered, self._failed, self._last_error)

    def flush(self, timeout_s: float = 30.0) -> int:
        """Wait until nothing is on its way; returns how many records still are after `timeout_s`."""
        return self._producer.flush(timeout_s)

    def close(self, timeout_s: float = 30.0) -> Delivery:
        """Flush, give up what is left after `timeout_s` (it counts as failed), and return the final counts."""
        left = self.flush(timeout_s)
        if left:
            LOG.warning("%d records were not delivered to %s: %s", left, self.servers, self._last_error)
            self._producer.purge()
            self._producer.flush(1.0)
        return self.snapshot()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self.close()

    def _produce(self, topic: str, value: bytes, key: str | None) -> None:
        self._sent += 1
        deadline = None
        while True:
            try:
                self._producer.produce(topic, value, key, on_delivery=self._on_delivery)
            except BufferError:
                deadline = deadline or time.monotonic() + self.full_timeout_s
                self._wait_for_room(deadline)
            except KafkaException as error:
                self._refused(error.args[0])
                return
            else:
                self._producer.poll(0)
                return

    def _wait_for_room(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            self._sent -= 1
            raise Unavailable(
                f"{len(self._producer)} records wait for Kafka at {self.servers} since {self.full_timeout_s:g} s: "
                f"{self._last_error or 'it does not keep up'}"
            )
        self._producer.poll(0.05)

    def _on_delivery(self, error: KafkaError | None, _message: Message) -> None:
        if error is None:
            self._delivered += 1
        else:
            self._failed += 1
            if error.code() not in _GIVEN_UP or self._last_error is None:
                self._note(error)

    def _refused(self, error: KafkaError) -> None:
        self._failed += 1
        self._note(error)
        if error.fatal():
            raise Unavailable(f"sending: {self._last_error}")

    def _note(self, error: KafkaError) -> None:
        self._last_error = one_line(error, self.servers)
