"""The embedded broker: killed, moved, and started on what must not be started on."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest

from config.child import free_port
from config.settings import KafkaSettings
from flead.errors import BadConfiguration, CorruptRunFolder, PortTaken, Unavailable
from kafka.client import ReadingProducer
from kafka.connection import wait_until_ready
from kafka.embedded import broker_command, embedded_broker
from kafka.embedded_storage import prepare_broker
from kafka.offsets import Offsets
from kafka.tail import tail
from kafka.topics import GLOBAL_MODEL, READINGS, ensure_topics

pytestmark = pytest.mark.servers


def fresh_settings(partitions: int = 4) -> KafkaSettings:
    return KafkaSettings(port=free_port(), controller_port=free_port(), partitions=partitions)


@pytest.fixture(scope="module")
def formatted(tmp_path_factory: pytest.TempPathFactory, kafka_jars: Path) -> Path:
    """A broker's folder, formatted and never started."""
    folder = tmp_path_factory.mktemp("formatted") / "kafka"
    prepare_broker(folder, 9092, 9093, kafka_jars)
    return folder


@pytest.fixture
def folder(formatted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(formatted, tmp_path / "kafka"))


def test_a_killed_broker_restarts_and_has_every_acknowledged_record_once(folder: Path, kafka_jars: Path) -> None:
    settings = fresh_settings()
    where = (folder, settings.port, settings.controller_port, kafka_jars)
    producer, offsets = ReadingProducer(settings.servers), Offsets(settings.servers, limit_s=2.0)

    with embedded_broker(*where) as broker:
        ensure_topics(settings.servers, settings)
        number = 0
        while producer.snapshot().delivered < 1_000:
            producer.send_raw(f"mote-{number % 9}", str(number).encode())
            number += 1
        assert sum(offsets.lag("nobody", READINGS).values()) >= 1_000
        broker.kill()
        assert broker.wait() == -9
        with pytest.raises(Unavailable):
            offsets.lag("nobody", READINGS)
        for unacknowledged in range(number, number + 500):
            producer.send_raw(f"mote-{unacknowledged % 9}", str(unacknowledged).encode())
    assert producer.snapshot().waiting >= 500

    with embedded_broker(*where):
        final = producer.close()
        assert sum(offsets.lag("nobody", READINGS).values()) == final.delivered
        records = list(tail(settings.servers, READINGS, from_beginning=True))

    assert (final.delivered, final.failed) == (final.sent, 0)
    by_device: dict[bytes | None, list[int]] = {}
    for record in records:
        by_device.setdefault(record.key, []).append(int(record.value or b""))
    assert by_device == {f"mote-{i}".encode(): list(range(i, number + 500, 9)) for i in range(9)}


def test_a_broker_moves_to_other_ports_and_topics_grow_and_never_shrink(folder: Path, kafka_jars: Path) -> None:
    before = fresh_settings(partitions=2)
    with embedded_broker(folder, before.port, before.controller_port, kafka_jars):
        ensure_topics(before.servers, before)

    after = fresh_settings(partitions=3)
    with embedded_broker(folder, after.port, after.controller_port, kafka_jars):
        changes = ensure_topics(after.servers, after)
        assert not changes.created
        assert READINGS in changes.grown
        assert GLOBAL_MODEL not in changes.grown
        assert set(changes.grown.values()) == {3}
        assert not ensure_topics(after.servers, before)


def test_preparing_again_keeps_the_storage(folder: Path, kafka_jars: Path) -> None:
    meta = (folder / "data" / "meta.properties").read_bytes()
    properties = prepare_broker(folder, 1234, 1235, kafka_jars)
    assert (folder / "data" / "meta.properties").read_bytes() == meta
    assert "BROKER://127.0.0.1:1234" in properties.read_text()


def test_the_broker_listens_on_this_machine_only(folder: Path) -> None:
    lines = (folder / "server.properties").read_text().splitlines()
    listeners = [line for line in lines if "://" in line]
    assert listeners
    assert all(item.split("://")[1].startswith("127.0.0.1:") for line in listeners for item in line.split(","))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: (data / "meta.properties").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
        (lambda data: (data / "meta.properties").unlink(), "cannot be read"),
        (lambda data: (data / "meta.properties").write_text(""), "version is missing, expected 1"),
        (
            lambda data: (data.parent / "cluster.id").write_text("AnotherClusterAltogether"),
            "cluster.id is .* expected Ano",
        ),
        (lambda data: shutil.rmtree(data / "__cluster_metadata-0"), "lost its cluster metadata"),
        (
            lambda data: [file.unlink() for file in (data / "__cluster_metadata-0").iterdir()],
            "lost its cluster metadata",
        ),
    ],
    ids=["unreadable", "missing", "empty", "of another cluster", "without metadata", "empty metadata"],
)
def test_a_corrupt_folder_is_refused_with_the_mend(
    folder: Path, kafka_jars: Path, damage: object, message: str
) -> None:
    assert callable(damage)
    damage(folder / "data")
    with pytest.raises(CorruptRunFolder, match=message) as caught:
        prepare_broker(folder, 9092, 9093, kafka_jars)
    assert f"move {folder} away, or delete it" in str(caught.value)


def test_a_folder_may_have_any_name_but_one_with_a_comma(tmp_path: Path, kafka_jars: Path) -> None:
    folder = tmp_path / "Jürgens Läufe 🏃" / "kafka"
    prepare_broker(folder, 9092, 9093, kafka_jars)
    assert (folder / "data" / "meta.properties").is_file()
    assert [entry.name for entry in tmp_path.iterdir()] == ["Jürgens Läufe 🏃"]
    with pytest.raises(BadConfiguration, match="holds a comma: name another"):
        prepare_broker(tmp_path / "a, b", 9092, 9093, kafka_jars)


def test_formatting_that_was_cut_off_is_done_again(folder: Path, kafka_jars: Path) -> None:
    (folder / "data").rename(folder / "data.new")
    (folder / "data.new" / "meta.properties").unlink()
    prepare_broker(folder, 9092, 9093, kafka_jars)
    prepare_broker(folder, 9092, 9093, kafka_jars)
    assert not (folder / "data.new").exists()


def test_a_taken_port_is_named(folder: Path, kafka_jars: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(PortTaken, match=f"port {port}, which Kafka needs, is taken"),
            embedded_broker(folder, port, free_port(), kafka_jars),
        ):
            pass


def test_missing_jars_and_missing_java_are_told_apart(tmp_path: Path, kafka_jars: Path) -> None:
    with pytest.raises(Unavailable, match=r"no Kafka in .*: run orchestration/run_all"):
        prepare_broker(tmp_path / "a", 9092, 9093, tmp_path)
    with pytest.raises(Unavailable, match="cannot run /no/java"):
        prepare_broker(tmp_path / "b", 9092, 9093, kafka_jars, java="/no/java")


def test_a_broker_that_ends_at_once_is_reported_with_its_log(folder: Path, kafka_jars: Path) -> None:
    too_little = embedded_broker(folder, free_port(), free_port(), kafka_jars, heap_mb=1)
    with pytest.raises(Unavailable, match=r"(?s)the embedded Kafka ended with 1; .*heap"), too_little:
        pass


def test_waiting_for_nobody_ends_in_time() -> None:
    with pytest.raises(Unavailable, match=r"within 0\.2 s"):
        wait_until_ready(f"127.0.0.1:{free_port()}", 0.2)


def test_the_command_is_data_for_a_supervisor() -> None:
    command = broker_command("/usr/bin/java", Path("/jars"), Path("/run/kafka/server.properties"), heap_mb=300)
    assert command[:2] == ["/usr/bin/java", "-Xmx300m"]
    assert command[-4:] == ["-cp", "/jars/*", "kafka.Kafka", "/run/kafka/server.properties"]
