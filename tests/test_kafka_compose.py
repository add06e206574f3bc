"""The compose file: three brokers that need no outside, and nothing that the outside reaches."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from config.settings import PROJECT

BROKERS = ["kafka-1", "kafka-2", "kafka-3"]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((PROJECT / "kafka" / "docker-compose.yml").read_text(encoding="utf-8"))
    return loaded


def test_three_brokers_form_one_quorum(compose: dict[str, Any]) -> None:
    environments = [compose["services"][name]["environment"] for name in BROKERS]
    voters = ",".join(f"{number}@kafka-{number}:9093" for number in (1, 2, 3))
    assert [environment["KAFKA_NODE_ID"] for environment in environments] == [1, 2, 3]
    assert {environment["KAFKA_CONTROLLER_QUORUM_VOTERS"] for environment in environments} == {voters}
    assert len({environment["CLUSTER_ID"] for environment in environments}) == 1
    assert {environment["KAFKA_DEFAULT_REPLICATION_FACTOR"] for environment in environments} == {3}


def test_every_port_is_bound_to_this_machine(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert len(ports) == len(set(ports)) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_a_broker_advertises_the_port_that_is_published_for_it(compose: dict[str, Any]) -> None:
    for name in BROKERS:
        service = compose["services"][name]
        published = service["ports"][0].rsplit(":", 1)[0]
        assert service["environment"]["KAFKA_ADVERTISED_LISTENERS"] == f"INTERNAL://{name}:9092,HOST://{published}"


def test_every_image_is_pinned_and_every_service_is_checked(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        tag = service["image"].rpartition(":")[2]
        assert any(character.isdigit() for character in tag)
        assert service["healthcheck"]["test"]


def test_each_broker_keeps_its_records_in_a_volume_of_its_own(compose: dict[str, Any]) -> None:
    volumes = [compose["services"][name]["volumes"][0].split(":")[0] for name in BROKERS]
    assert sorted(volumes) == sorted(compose["volumes"]) == BROKERS
