"""A global server that is killed at one moment after another, each time a little later: run by test_killed_rounds.py.

It forks before it opens anything, so that each life costs milliseconds. A moment is before or after anything that is
said to MongoDB (its driver tells) or to Kafka.
"""

from __future__ import annotations

import os
import signal
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import orjson
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import SecretStr
from pymongo import monitoring

from config.aggregation import AggregationSettings
from config.settings import MongoSettings
from flead import network
from flead.messages import GlobalModel, LocalUpdate
from flead.network import Architecture
from global_server.publisher import ModelPublisher
from global_server.rounds import RoundService
from storage.connection import connect, open_database
from storage.rounds import RoundRepository

NOW = datetime(2024, 6, 1, tzinfo=UTC)
SIZES = Architecture(1, (), 1)
DEVICES, WAVES = 12, 4
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
SAID = {"insert", "update", "find", "aggregate", "commitTransaction", "bulkWrite"}


class Moments(monitoring.CommandListener):
    """Counts moments, and ends the process at one of them, as `kill -9` does."""

    def __init__(self, last: int | None) -> None:
        self.passed = 0
        self._last = last

    def moment(self) -> None:
        """One more."""
        self.passed += 1
        if self.passed == self._last:
            os.kill(os.getpid(), signal.SIGKILL)

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """Before something is said to MongoDB."""
        if event.command_name in SAID:
            self.moment()

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """After it was done."""
        if event.command_name in SAID:
            self.moment()

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """Nothing is expected to fail."""


def wave(service: RoundService, cohort: str, number: int) -> list[LocalUpdate]:
    """An update of each device, from the version that it would have; after a restart Kafka brings them again."""
    weights = network.to_message(np.full(SIZES.parameter_count, float(number)), SIZES)
    at = NOW + timedelta(minutes=number)
    messages = []
    for name in (f"{cohort}-{i}" for i in range(DEVICES)):
        model = service.model(cohort, name)
        said = {"cohort": cohort, "samples_seen": 100 * (number + 1), "loss": 1.0}
        said["base_version"] = model.version if model else 0
        sent = {"device_id": name, "weights": weights, "sample_count": 100, "timestamp": at, "metadata": said}
        messages.append(LocalUpdate.model_validate(sent))
    return messages


def live(mongodb: MongoSettings, servers: str, cohort: str, last: int | None) -> int:
    """One life of the server: everything that was ever sent comes again. Returns the moments that passed."""
    moments = Moments(last)
    monitoring.register(moments)
    publisher = ModelPublisher(servers)

    def publish(model: GlobalModel) -> None:
        moments.moment()
        publisher(model)
        moments.moment()

    with connect(mongodb) as client:
        settings = AggregationSettings(min_devices=DEVICES)
        service = RoundService(RoundRepository(open_database(client, mongodb)), settings, publish, key=KEY)
        service.load()
        for number in range(WAVES):
            now = NOW + timedelta(minutes=number, seconds=1)
            service.accept_many(wave(service, cohort, number), now)
            service.aggregate_ready(now + timedelta(seconds=1))
            service.publish_pending()
    return moments.passed


def in_a_fork(mongodb: MongoSettings, servers: str, cohort: str, last: int | None) -> int:
    """How a life ended: its moments, or 0 where it was killed."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writes, b"%d" % live(mongodb, servers, cohort, last))
        finally:
            os._exit(0)
    os.close(writes)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reads, "rb") as pipe:
        said = pipe.read()
    return int(said) if said and not os.WIFSIGNALED(status) else 0


def main(uri: str, database: str, servers: str, points: int) -> None:
    """Live once undisturbed, then be killed at moments spread over such a life, and live on after each."""
    mongodb = MongoSettings(uri=SecretStr(uri), database=database)
    whole = in_a_fork(mongodb, servers, "killed-never", None)
    killed = []
    for moment in sorted({round(1 + at * (whole - 1) / (points - 1)) for at in range(points)}):
        cohort = f"killed-{moment}"
        if in_a_fork(mongodb, servers, cohort, moment) == 0:
            killed.append(cohort)
        assert in_a_fork(mongodb, servers, cohort, None)
    sys.stdout.buffer.write(orjson.dumps({"moments": whole, "killed": killed}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
