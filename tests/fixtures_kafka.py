"""A real broker for the tests: one for the session, on free ports, in a temporary folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from config.child import free_port
from config.settings import PROJECT, KafkaSettings
from kafka.embedded import embedded_broker
from kafka.topics import ensure_topics

JARS = PROJECT / ".jvm" / "jars" / "kafka"


@pytest.fixture(scope="session")
def kafka_jars() -> Path:
    """Kafka's jars; without them the tests that need a broker are skipped."""
    if not any(JARS.glob("kafka_*.jar")):
        pytest.skip(f"no Kafka in {JARS}: orchestration/run_all.sh fetches it")
    return JARS


@pytest.fixture(scope="session")
def kafka_settings() -> KafkaSettings:
    """Settings of the session's broker."""
    return KafkaSettings(port=free_port(), controller_port=free_port())


@pytest.fixture(scope="session")
def kafka_servers(
    tmp_path_factory: pytest.TempPathFactory, kafka_jars: Path, kafka_settings: KafkaSettings
) -> Iterator[str]:
    """The address of a broker that has every declared topic.

    All tests of the session write to it: use device names of your own, and count differences.
    """
    folder = tmp_path_factory.mktemp("kafka")
    with embedded_broker(folder, kafka_settings.port, kafka_settings.controller_port, kafka_jars):
        ensure_topics(kafka_settings.servers, kafka_settings)
        yield kafka_settings.servers
