"""The Kafka side, outwards: global models to `flead.global-model`."""

from __future__ import annotations

import logging

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from flead.errors import Unavailable
from flead.messages import GlobalModel
from kafka.client import make_producer
from kafka.connection import translated
from kafka.topics import GLOBAL_MODEL

LOG = logging.getLogger(__name__)

DELIVERY_S = 4.0
"""How long a broker may take to confirm, s; then it counts as not reachable and we try again later."""


def deliver(producer: Producer, servers: str, topic: str, records: list[tuple[str | bytes | None, bytes]]) -> None:
    """Send keyed records and wait until all of them are confirmed.

    Raises
    ------
    Unavailable
        where one was not; some may have been delivered
    """
    failures: list[KafkaError] = []

    def note(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            failures.append(error)

    with translated(f"sending to {topic}", servers):
        for key, value in records:
            producer.produce(topic, value, key, on_delivery=note)
            producer.poll(0)
        left = producer.flush(DELIVERY_S + 1.0)
        if failures:
            raise KafkaException(failures[0])
    if left:
        raise Unavailable(f"sending to {topic}: no Kafka broker confirmed at {servers} within {DELIVERY_S:g} s")


class ModelPublisher:
    """Publishes global models, each under its key. Connects when it is first used. For use by one thread."""

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self.connected = False
        """Whether a broker answered when it was last asked."""
        self._producer = self._make()

    def _make(self) -> Producer:
        return make_producer(self.servers, **{"delivery.timeout.ms": int(DELIVERY_S * 1000), "linger.ms": 0})

    def __call__(self, model: GlobalModel) -> None:
        """Publish a model; raises `Unavailable` where delivery was not confirmed."""
        if not self.connected:
            self.check()  # a second, where waiting for delivery would take four
        if not self.connected:
            raise Unavailable(f"publishing waits: no Kafka broker answers at {self.servers}")
        try:
            deliver(self._producer, self.servers, GLOBAL_MODEL, [(model.key, model.model_dump_json().encode())])
        except Unavailable as error:
            cause = error.__cause__
            if isinstance(cause, KafkaException) and cause.args[0].fatal():
                self._producer = self._make()  # an idempotent producer never recovers from a fatal error
            self.connected = False
            raise
        self.connected = True

    def check(self) -> None:
        """Ask the broker whether it is there."""
        try:
            self._producer.list_topics(timeout=1.0)
        except KafkaException:
            self.connected = False
        else:
            self.connected = True
