from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from confluent_kafka import TopicPartition
from pydantic import SecretStr

from config.aggregation import AggregationSettings
from config.child import free_port, port_is_taken
from config.settings import PROJECT, MongoSettings, Settings
from flead.errors import PortTaken, Unavailable
from flead.messages import GlobalModel
from global_server.feed import UpdateFeed
from global_server.main import serve
from global_server.publisher import ModelPublisher
from global_server.rounds import RoundService
from global_server.schedule import Scheduler
from kafka.client import make_consumer, make_producer
from kafka.topics import DEAD_LETTERS, GLOBAL_MODEL, LOCAL_UPDATES
from storage.connection import connect, open_database
from storage.embedded import embedded_mongod
from storage.rounds import RoundRepository
from storage.schema import apply_schema
from tests.fixtures_storage import Mongo, wait_until

pytestmark = pytest.mark.servers


def body(device: str, cohort: str, value: float = 1.0, second: int = 0) -> bytes:
    weights = {
        "weights": [[[value]]],
        "biases": [[value]],
        "architecture": {"input_size": 1, "hidden_sizes": [], "output_size": 1},
    }
    metadata = {"cohort": cohort, "samples_seen": 10 * (second + 1)}
    time = f"2024-01-01T00:00:{second:02}Z"
    # All tests write to one topic, and a device's counter never goes down: each cohort has devices of its own.
    return json.dumps(
        {
            "device_id": f"{device}-{cohort}",
            "weights": weights,
            "sample_count": 10,
            "timestamp": time,
            "metadata": metadata,
        }
    ).encode()


def send(servers: str, *records: tuple[str, bytes | None]) -> None:
    producer = make_producer(servers)
    for key, value in records:
        producer.produce(LOCAL_UPDATES, value, key)
    assert producer.flush(20) == 0


def read(servers: str, topic: str, wanted: Callable[[bytes], bool]) -> bytes:
    """Read a topic from its beginning to the first record that is wanted."""
    with closing(make_consumer(servers, f"test-{uuid.uuid4()}")) as consumer:
        consumer.subscribe([topic])
        found: list[bytes] = []

        def look() -> bool:
            found.extend(m.value() or b"" for m in consumer.consume(100, 0.2) if m.error() is None)
            return any(map(wanted, found))

        wait_until(look)
        return next(filter(wanted, found))


def lag(servers: str, group: str) -> int:
    with closing(make_consumer(servers, group)) as consumer:
        partitions = consumer.list_topics(LOCAL_UPDATES, timeout=10).topics[LOCAL_UPDATES].partitions
        committed = consumer.committed([TopicPartition(LOCAL_UPDATES, p) for p in partitions], timeout=10)
        ends = [consumer.get_watermark_offsets(part, timeout=10)[1] for part in committed]
        return sum(end - max(part.offset, 0) for part, end in zip(committed, ends, strict=True))


@pytest.fixture
def group() -> str:
    return f"test-{uuid.uuid4()}"


@pytest.fixture
def cohort() -> str:
    return f"cohort-{uuid.uuid4()}"


def make_service(mongo: Mongo, publish: Callable[[GlobalModel], None], min_devices: int = 2) -> RoundService:
    service = RoundService(RoundRepository(mongo.database), AggregationSettings(min_devices=min_devices), publish)
    service.load()
    return service


def test_updates_in_models_out_bad_ones_aside(mongo: Mongo, kafka_servers: str, group: str, cohort: str) -> None:
    marker = uuid.uuid4().hex
    bad = f'{{"device_id": "{marker}"'.encode()
    wide = body(f"wide-{marker}", cohort).replace(b'"input_size": 1', b'"input_size": 2')
    send(
        kafka_servers,
        ("a", body("a", cohort, 1.0)),
        ("a", body("a", cohort, 1.0)),
        ("x", bad),
        ("x", wide),
        ("x", None),
    )
    send(kafka_servers, ("b", body("b", cohort, 3.0)))
    publisher = ModelPublisher(kafka_servers)
    service = make_service(mongo, publisher)
    feed, scheduler = UpdateFeed(service, kafka_servers, group=group), Scheduler(service, publisher.check)
    feed.start()
    scheduler.start()
    try:
        wait_until(lambda: service.model(cohort) is not None)
        model = GlobalModel.from_json(read(kafka_servers, GLOBAL_MODEL, lambda raw: cohort.encode() in raw))
        assert (model.version, model.num_devices, model.total_samples) == (1, 2, 20)
        assert model.weights.biases == [[2.0]]
        wait_until(lambda: service.history(cohort)[0]["published_at"] is not None)
        wait_until(lambda: lag(kafka_servers, group) == 0)
        assert publisher.connected
    finally:
        feed.stop()
        scheduler.stop()
    for reason in ("not_json", "bad_model", "empty"):
        letter = json.loads(read(kafka_servers, DEAD_LETTERS, partial(_is_update_refused_for, reason)))
        assert letter["detail"]


def _is_update_refused_for(reason: str, raw: bytes) -> bool:
    letter = json.loads(raw)
    return bool(letter["reason"] == reason and letter["source"]["topic"] == LOCAL_UPDATES)


def _is_read(servers: str, group: str) -> bool:
    return lag(servers, group) == 0


def test_offsets_wait_for_mongodb(tmp_path: Path, kafka_servers: str, group: str, cohort: str) -> None:
    port = free_port()
    uri = f"mongodb://127.0.0.1:{port}/?directConnection=true&serverSelectionTimeoutMS=200"
    settings = MongoSettings(uri=SecretStr(uri))
    with connect(settings) as client:
        mongo = Mongo(settings, open_database(client, settings))
        with embedded_mongod(tmp_path / "db", port) as server:
            apply_schema(mongo.database, settings)
            service = make_service(mongo, lambda _model: None)
            os.kill(server.pid, signal.SIGKILL)
            wait_until(lambda: not port_is_taken(port))
            send(kafka_servers, ("a", body("a", cohort)), ("b", body("b", cohort)))
            feed = UpdateFeed(service, kafka_servers, group=group)
            feed.start()
        try:
            assert lag(kafka_servers, group) >= 2
            with embedded_mongod(tmp_path / "db", port):
                wait_until(lambda: service.model(cohort) is not None)
                wait_until(lambda: lag(kafka_servers, group) == 0)
                feed.stop()
        finally:
            feed.stop()


def test_a_restart_of_the_feed_counts_nothing_twice(mongo: Mongo, kafka_servers: str, cohort: str) -> None:
    send(kafka_servers, *[("a", body("a", cohort, second=second)) for second in range(5)])
    service = make_service(mongo, lambda _model: None)
    for group in ("one", "two"):  # the second group reads everything again, as after lost offsets
        name = f"{group}-{uuid.uuid4()}"
        feed = UpdateFeed(service, kafka_servers, group=name)
        feed.start()
        try:
            wait_until(partial(_is_read, kafka_servers, name))
        finally:
            feed.stop()
        assert service.contributions(cohort) == {f"a-{cohort}": 5}


def test_without_kafka_publishing_waits(mongo: Mongo, cohort: str) -> None:
    publisher = ModelPublisher(f"127.0.0.1:{free_port()}")
    publisher.check()
    assert not publisher.connected
    model = {"cohort": cohort, "version": 1, "num_devices": 1, "total_samples": 1, "aggregation_strategy": "fedavg"}
    message: dict[str, Any] = {
        **model,
        "weights": json.loads(body("a", cohort))["weights"],
        "timestamp": "2024-01-01T00:00Z",
    }
    with pytest.raises(Unavailable):
        publisher(GlobalModel.model_validate(message))


def test_serve_alone_stops_on_sigterm_and_resumes(tmp_path: Path) -> None:
    port, nobody = free_port(), free_port()
    script = (
        "from pathlib import Path; from config.settings import *; from global_server.main import serve\n"
        f"settings = Settings(kafka=KafkaSettings(port={nobody}), mongodb=MongoSettings(port={free_port()}))\n"
        f"serve(settings, {port}, Path({str(tmp_path)!r}), own_mongod=True)"
    )
    for rounds in (1, 2):
        process = subprocess.Popen([sys.executable, "-c", script], cwd=PROJECT)  # noqa: S603  # ours
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                wait_until(lambda: port_is_taken(port))
                client.post("/api/local-update", content=body("a", "c", second=rounds)).raise_for_status()
                assert client.post("/api/aggregate").json()["round"] == rounds
                assert client.get("/api/status").json()["kafka"] == "unreachable"
            began = time.monotonic()
            process.terminate()
            assert process.wait(30) == 0
            assert time.monotonic() - began < 15
            assert (tmp_path / "server" / "signing-key.pem").exists()
        finally:
            process.kill()
            process.wait()


def test_serve_on_a_taken_port(mongo: Mongo) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(PortTaken, match="--port"):
            serve(Settings(mongodb=mongo.settings), other.getsockname()[1])
