"""The embedded broker: a real Kafka, one KRaft node that is broker and controller, on 127.0.0.1 only.

Guarantee: a record that was acknowledged survives the death of the process (`kill -9`), since it is in the operating
system's page cache by then. It does not survive a power failure in the seconds before the cache is written; three
brokers on three machines do (`docker-compose.yml` shows the settings).
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from config.child import check_port_free, ends_with_parent, stop
from flead.errors import Unavailable
from kafka.connection import wait_until_ready
from kafka.embedded_storage import JAVA_ENVIRONMENT, java_command, prepare_broker

START_TIMEOUT_S = 60.0
"""How long a start may take on a busy machine, s (measured: 2-4 s)."""


def broker_command(java: Path | str, jars: Path, properties: Path, heap_mb: int = 512) -> list[str]:
    """Give the command that runs the broker in the foreground; it logs to stderr and ends on SIGTERM.

    Out of memory it ends itself, so that whoever supervises it can start it again.

    Parameters
    ----------
    jars:
        the folder with Kafka's jars, `.jvm/jars/kafka`
    properties:
        what `prepare_broker` returned
    heap_mb:
        MiB
    """
    folder = properties.parent
    flags = [
        f"-Xmx{heap_mb}m",
        "-XX:+ExitOnOutOfMemoryError",
        f"-XX:ErrorFile={folder / 'jvm-crash.log'}",
        f"-Djava.io.tmpdir={folder / 'tmp'}",
    ]
    return [*java_command(java, jars, flags), "kafka.Kafka", str(properties)]


def broker_environment() -> dict[str, str]:
    """Give what the broker's environment needs beside the caller's."""
    return dict(JAVA_ENVIRONMENT)


@contextmanager
def embedded_broker(
    folder: Path, port: int, controller_port: int, jars: Path, java: Path | str = "java", *, heap_mb: int = 256
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a broker for as long as the context lasts; it logs into `folder/broker.log`.

    On Linux it also dies with the thread that started it.

    Yields
    ------
    subprocess.Popen
        the running broker; it listens on `127.0.0.1:port`

    Raises
    ------
    PortTaken, BadConfiguration, CorruptRunFolder, Unavailable
        saying what kept it from starting, and the mend
    """
    check_port_free(port, "kafka.port", "Kafka")
    check_port_free(controller_port, "kafka.controller_port", "Kafka's controller")
    properties = prepare_broker(folder, port, controller_port, jars, java)
    command = broker_command(java, jars, properties, heap_mb)
    with (properties.parent / "broker.log").open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            ends_with_parent(command, signal.SIGKILL),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | broker_environment(),
        )
    try:
        _wait_for(process, f"127.0.0.1:{port}", properties.parent / "broker.log")
        yield process
    finally:
        stop(process)


def _wait_for(process: subprocess.Popen[bytes], servers: str, log: Path) -> None:
    """Wait until the broker answers, but no longer than it lives."""
    for _ in range(int(START_TIMEOUT_S)):
        with suppress(Unavailable):
            return wait_until_ready(servers, 1.0)
        if process.poll() is not None:
            tail = log.read_text(encoding="utf-8", errors="replace").strip()[-800:]
            raise Unavailable(f"the embedded Kafka ended with {process.returncode}; {log} ends: {tail}")
    return wait_until_ready(servers, 1.0)
