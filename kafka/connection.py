"""The boundary to Kafka: what every client has in common, and how foreign errors become those of `flead.errors`."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ClusterMetadata  # type: ignore[attr-defined]  # public, not in __all__

from flead.errors import Unavailable

LOG = logging.getLogger("kafka.librdkafka")
"""What librdkafka logs. Errors that matter arrive as exceptions and delivery reports, so this stays quiet."""
LOG.addHandler(logging.NullHandler())

REQUEST_TIMEOUT_S = 10.0
"""How long an administrative request may take before the broker counts as not answering, s."""

_NO_ANSWER = frozenset(
    {
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TIMED_OUT,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT_QUEUE,
        KafkaError._MSG_TIMED_OUT,
    }
)


def base_config(servers: str) -> dict[str, Any]:
    """Give what every client of ours sets.

    Reconnects are tried at least every second: librdkafka's own limit of ten would keep a restarted broker waiting.
    Of librdkafka's log only critical lines pass (`log_level` 2): connection refusals, 3, would flood stderr.
    """
    return {
        "bootstrap.servers": servers,
        "client.id": "flead",
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1_000,
        "socket.nagle.disable": True,
        "enable.metrics.push": False,
        "log_level": 2,
    }


def make_admin(servers: str) -> AdminClient:
    """Make a client for administrative requests; it connects when it is first used.

    Raises
    ------
    Unavailable
        if `servers` is no list of addresses
    """
    config = base_config(servers) | {"reconnect.backoff.max.ms": 250}
    with translated("connecting", servers):
        return AdminClient(config, logger=LOG)


def one_line(error: KafkaError, servers: str) -> str:
    """Say what went wrong and the mend, for people.

    >>> one_line(KafkaError(KafkaError._TRANSPORT), "127.0.0.1:9092")
    'no Kafka broker answers at 127.0.0.1:9092: start one (`flead up`) or correct kafka.bootstrap_servers'
    >>> one_line(KafkaError(KafkaError.TOPIC_EXCEPTION, "no such name"), "127.0.0.1:9092")
    'Kafka at 127.0.0.1:9092 refused: no such name (TOPIC_EXCEPTION)'
    """
    if error.code() in _NO_ANSWER:
        return f"no Kafka broker answers at {servers}: start one (`flead up`) or correct kafka.bootstrap_servers"
    if error.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
        return f"Kafka at {servers} has no such topic: declare it in kafka/topics.py and run ensure_topics (`flead up`)"
    return f"Kafka at {servers} refused: {error.str()} ({error.name()})"


@contextmanager
def translated(doing: str, servers: str) -> Iterator[None]:
    """Turn a `KafkaException` into `Unavailable`.

    Parameters
    ----------
    doing:
        what was being done, the message's beginning
    """
    try:
        yield
    except KafkaException as error:
        cause = error.args[0]
        line = one_line(cause, servers) if isinstance(cause, KafkaError) else str(cause)
        raise Unavailable(f"{doing}: {line}") from error


def metadata(admin: AdminClient, servers: str, *, timeout_s: float = REQUEST_TIMEOUT_S) -> ClusterMetadata:
    """List the cluster's brokers and topics.

    Raises
    ------
    Unavailable
        if no broker answers within `timeout_s`
    """
    with translated("asking for topics", servers):
        return admin.list_topics(timeout=timeout_s)


def wait_until_ready(servers: str, timeout_s: float) -> None:
    """Return as soon as a broker has joined the cluster and answers.

    Raises
    ------
    Unavailable
        if none has after `timeout_s`
    """
    admin = make_admin(servers)
    deadline = time.monotonic() + timeout_s
    while (left := deadline - time.monotonic()) > 0:
        try:
            if metadata(admin, servers, timeout_s=min(left, 1.0)).brokers:
                return
        except Unavailable:
            continue
        time.sleep(0.02)
    raise Unavailable(f"no Kafka broker answered at {servers} within {timeout_s:g} s: its log says why")
