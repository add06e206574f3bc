"""The topics of `kafka/topics.py` on a real broker."""

from __future__ import annotations

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from config.child import free_port
from config.settings import KafkaSettings
from flead.errors import Unavailable
from kafka.connection import make_admin, metadata
from kafka.topics import ALERTS, DEAD_LETTERS, GLOBAL_MODEL, READINGS, declared_topics, ensure_topics, topic_id
from tests.fixtures_storage import wait_until

pytestmark = pytest.mark.servers


def test_the_topics_declared_are_the_topics_made(kafka_servers: str, kafka_settings: KafkaSettings) -> None:
    admin = make_admin(kafka_servers)
    actual = metadata(admin, kafka_servers).topics

    for topic in declared_topics(kafka_settings):
        assert len(actual[topic.name].partitions) == topic.partitions
        resource = ConfigResource(ResourceType.TOPIC, topic.name)
        config = admin.describe_configs([resource])[resource].result()
        assert {name: config[name].value for name in topic.config} == topic.config


def test_making_them_again_changes_nothing(kafka_servers: str, kafka_settings: KafkaSettings) -> None:
    assert not ensure_topics(kafka_servers, kafka_settings)


def test_a_setting_that_somebody_changed_is_set_again(kafka_servers: str, kafka_settings: KafkaSettings) -> None:
    entry = ConfigEntry("retention.ms", "60000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, ALERTS, incremental_configs=[entry])
    admin = make_admin(kafka_servers)
    admin.incremental_alter_configs([resource])[resource].result()

    def retention() -> str | None:
        value: str | None = admin.describe_configs([resource])[resource].result()["retention.ms"].value
        return value

    wait_until(lambda: retention() == "60000", 20)  # the controller has it before the broker does
    changes = ensure_topics(kafka_servers, kafka_settings)

    assert changes.altered == {ALERTS: {"retention.ms": str(30 * 86_400_000)}}
    wait_until(lambda: not ensure_topics(kafka_servers, kafka_settings), 20)


def test_a_topic_made_anew_has_another_id(kafka_servers: str) -> None:
    admin = make_admin(kafka_servers)

    def is_there() -> bool:
        return "anew" in metadata(admin, kafka_servers).topics

    ids = []
    for _ in range(2):
        admin.create_topics([NewTopic("anew", 1, 1)])["anew"].result()
        wait_until(is_there, 20)
        ids.append(topic_id(kafka_servers, "anew"))
        assert topic_id(kafka_servers, "anew") == ids[-1]
        admin.delete_topics(["anew"])["anew"].result()
        wait_until(lambda: not is_there(), 20)
    assert ids[0] != ids[1]
    with pytest.raises(Unavailable, match="has no such topic"):
        topic_id(kafka_servers, "anew")


def test_without_a_broker_the_error_names_the_address_and_the_mend() -> None:
    servers = f"127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match=f"no Kafka broker answers at {servers}: start one"):
        ensure_topics(servers, KafkaSettings(), timeout_s=0.3)


def test_the_declaration_keeps_its_promises() -> None:
    topics = {topic.name: topic for topic in declared_topics(KafkaSettings(partitions=7, replication=3))}

    assert {name for name, topic in topics.items() if topic.partitions != 7} == {GLOBAL_MODEL}
    assert topics[GLOBAL_MODEL].config["cleanup.policy"] == "compact"
    assert topics[READINGS].config["retention.ms"] == "-1", "event time may be years ago"
    assert topics[DEAD_LETTERS].config["max.message.bytes"] == "4194304"
    stamped = {name for name, topic in topics.items() if topic.config["message.timestamp.type"] == "LogAppendTime"}
    assert stamped == topics.keys() - {READINGS, GLOBAL_MODEL}
    assert all(topic.config["min.insync.replicas"] == "2" for topic in topics.values())
