"""The Kafka side, inwards: local updates from `flead.local-updates`, refused ones to `flead.dead-letters`.

Offsets are committed after everything before them is stored: at least once, and the rounds count once. While a batch is
stored, which is mostly waiting for MongoDB, the next one is read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message

from flead.errors import BadInput, BadUpdate, Reason, Unavailable
from flead.messages import DeadLetter, Source
from global_server.following import RETRY_S, Follower
from global_server.publisher import DELIVERY_S, deliver
from global_server.rounds import RoundService
from kafka.client import make_consumer, make_producer
from kafka.connection import translated
from kafka.offsets import positions
from kafka.topics import DEAD_LETTERS, LOCAL_UPDATES
from storage.rounds import Update

LOG = logging.getLogger(__name__)

GROUP = "flead-global-server"
BATCH = 500
WAIT_S = 0.1
"""How long a batch may take to fill, s: a lone update waits so long."""

# While MongoDB is away we hold on to a batch and do not poll; the group should not count us as dead for it.
_MAX_POLL_INTERVAL_MS = 3_600_000


class UpdateFeed(Follower):
    """Consumes local updates until it is stopped, whatever happens to Kafka or MongoDB meanwhile.

    Parameters
    ----------
    clock:
        gives the present, aware
    """

    def __init__(
        self,
        service: RoundService,
        servers: str,
        *,
        group: str = GROUP,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__("update-feed")
        self.service = service
        self.servers = servers
        self.group = group
        self._clock = clock
        self._producer = make_producer(servers, **{"delivery.timeout.ms": int(DELIVERY_S * 1000)})

    def _follow(self) -> None:
        overrides: dict[str, Any] = {
            "max.poll.interval.ms": _MAX_POLL_INTERVAL_MS,
            "fetch.queue.backoff.ms": 10,  # with a second, its default, nothing comes for half of the time
        }
        with (
            closing(make_consumer(self.servers, self.group, partition_eof=True, **overrides)) as consumer,
            ThreadPoolExecutor(1, "update-feed-store") as store,
        ):
            consumer.subscribe([LOCAL_UPDATES])
            last: list[Message] = []
            stored: Future[bool] | None = None
            while not self._stopping.is_set():
                with translated("reading local updates", self.servers):
                    messages = consumer.consume(BATCH, WAIT_S)
                now = self._clock()
                records = [message for message in messages if message.error() is None]
                read = [self._read(record.value(), now) for record in records]
                done = stored.result() if stored else False
                earlier, last = last, messages
                stored = store.submit(self._until_done, records, read, now)
                if done:  # while the next ones are stored
                    _commit(consumer, earlier)
            if stored and stored.result():
                _commit(consumer, last)

    def _read(self, value: bytes | None, now: datetime) -> Update | BadInput:
        """Read a record at once to what is kept of it: lists of numbers take four times the memory."""
        return self.service.read_json(value, now) if value else BadUpdate("the record has no value", Reason.EMPTY)

    def _until_done(self, records: list[Message], read: Sequence[Update | BadInput], now: datetime) -> bool:
        """Store the records, trying until it succeeds; False where we were stopped before."""
        while not self._stopping.is_set():
            try:
                if records:
                    self._store(records, read, now)
            except Unavailable as error:
                LOG.warning("%d local updates wait: %s", len(records), error)
                self._stopping.wait(RETRY_S)
            else:
                return True
        return False

    def _store(self, records: list[Message], read: Sequence[Update | BadInput], now: datetime) -> None:
        """Give the records to the service, and what it refuses to the dead letters; then see whether a round is due."""
        outcomes = self.service.accept_read(read)
        refused = [(r, error) for r, error in zip(records, outcomes, strict=True) if isinstance(error, BadInput)]
        if refused:
            letters = [(record.key(), _dead_letter(record, error, now).to_json()) for record, error in refused]
            deliver(self._producer, self.servers, DEAD_LETTERS, list(letters))
        self.service.aggregate_ready(now)


def _dead_letter(record: Message, error: BadInput, now: datetime) -> DeadLetter:
    source = Source(record.topic() or LOCAL_UPDATES, record.partition() or 0, record.offset() or 0)
    return DeadLetter(error.reason, error.detail, source, record.value() or b"", now)


def _commit(consumer: Consumer, messages: list[Message]) -> None:
    offsets = positions(messages)
    if not offsets:
        return
    try:
        consumer.commit(offsets=offsets, asynchronous=False)
    except KafkaException as error:
        # The records come again, to us or to whom the partitions went, and count once.
        LOG.warning("offsets of local updates were not committed: %s", error.args[0])
