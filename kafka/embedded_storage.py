"""What the embedded broker has on disk: `server.properties`, written for every start, and `data`, formatted once."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import uuid
from pathlib import Path

from flead.errors import BadConfiguration, CorruptRunFolder, Unavailable

NODE_ID = 1

JAVA_ENVIRONMENT = {"LC_ALL": "C.UTF-8", "TZ": "UTC"}
"""What Kafka's processes need beside the caller's environment: names of files are UTF-8, times UTC."""

FORMAT_TIMEOUT_S = 60.0
"""How long formatting may take on a busy machine, s (measured: 1.4 s)."""

_PROPERTIES = """\
# Written by kafka/embedded.py at every start: change it there.
process.roles=broker,controller
node.id={node_id}
listeners=BROKER://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=BROKER://127.0.0.1:{port}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
log.dirs={data}
auto.create.topics.enable=false
# one node: one copy of everything
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
# few internal partitions: a first consumer or transaction waits until all of them exist
offsets.topic.num.partitions=4
transaction.state.log.num.partitions=4
share.coordinator.state.topic.num.partitions=4
group.initial.rebalance.delay.ms=0
# after a kill the controller, in the same process, still holds the dead broker's session for so long
# (measured: restart in 12 s with the default of 9 s)
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# Flink asks for transactions of up to this long
transaction.max.timeout.ms=900000
# small: the cleaner's default buffer alone is a quarter of the heap
log.cleaner.dedupe.buffer.size=16777216
num.network.threads=2
num.io.threads=4
background.threads=2
log.retention.check.interval.ms=60000
"""


def broker_properties(data: Path, port: int, controller_port: int) -> str:
    r"""Write out the text of `server.properties` for a broker that keeps its records in `data`.

    >>> [line for line in broker_properties(Path("/home/jürgen/data"), 9092, 9093).splitlines() if "log.dirs" in line]
    ['log.dirs=/home/j\\u00fcrgen/data']
    """
    where = _escaped(data.as_posix())  # a backslash would be an escape
    return _PROPERTIES.format(node_id=NODE_ID, port=port, controller_port=controller_port, data=where)


def _escaped(text: str) -> str:
    """Write text as Java's properties have it, in ASCII: Kafka reads its file as Latin-1."""
    units = text.encode("utf-16-be")
    codes = (int.from_bytes(units[i : i + 2]) for i in range(0, len(units), 2))
    return "".join(chr(code) if code < 128 else f"\\u{code:04x}" for code in codes)


_JVM_FLAGS = [
    "-XX:+UseSerialGC",
    # C2 compiles for the first half minute of a run and takes a core from the stream meanwhile (docs/performance.md).
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Djava.awt.headless=true",
]

_LOG_FLAGS = [
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
]


def java_command(java: Path | str, jars: Path, flags: list[str]) -> list[str]:
    """Java with Kafka's jars; the class and its arguments follow."""
    return [str(java), *flags, *_JVM_FLAGS, *_LOG_FLAGS, "-cp", f"{jars}{os.sep}*"]


def prepare_broker(folder: Path, port: int, controller_port: int, jars: Path, java: Path | str = "java") -> Path:
    """Make a folder ready for `broker_command`: write its properties, and format its storage if it is new.

    Doing it again changes nothing but the ports. The broker must not be running.

    Parameters
    ----------
    folder:
        the broker's own, made if missing

    Returns
    -------
    Path
        of `server.properties`

    Raises
    ------
    CorruptRunFolder
        if storage is there that this broker did not write completely
    BadConfiguration
        if the folder's name holds a comma, which Kafka takes for the end of it
    Unavailable
        if Java or the jars are missing, or formatting failed
    """
    folder = folder.resolve()
    if "," in str(folder):
        raise BadConfiguration(f"Kafka cannot keep records under {folder}, whose name holds a comma: name another")
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "tmp", ignore_errors=True)  # native libraries that a killed broker left
    (folder / "tmp").mkdir()
    properties = folder / "server.properties"
    properties.write_text(broker_properties(folder / "data", port, controller_port), encoding="ascii")
    if (folder / "data").exists():
        _check_storage(folder)
    else:
        _format(folder, broker_properties(folder / "data.new", port, controller_port), jars, java)
    return properties


def _format(folder: Path, properties: str, jars: Path, java: Path | str) -> None:
    """Format `data.new`, which these properties name, and rename it: so `data` is either whole or not there."""
    fresh, draft = folder / "data.new", folder / "format.properties"
    shutil.rmtree(fresh, ignore_errors=True)
    draft.write_text(properties, encoding="ascii")
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    tool = ["kafka.tools.StorageTool", "format", "--standalone", f"--cluster-id={cluster_id}", "-c", str(draft)]
    if not any(jars.glob("kafka_*.jar")):
        raise Unavailable(f"no Kafka in {jars}: run orchestration/run_all.sh, which fetches the jars")
    try:
        done = subprocess.run(  # noqa: S603
            [*java_command(java, jars, []), *tool],
            capture_output=True,
            text=True,
            timeout=FORMAT_TIMEOUT_S,
            env=os.environ | JAVA_ENVIRONMENT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"cannot run {java} to format Kafka's storage: {error}; Java 17 is needed") from error
    if done.returncode:
        raise Unavailable(
            f"formatting Kafka's storage in {folder} failed: {(done.stderr or done.stdout).strip()[-500:]}"
        )
    (folder / "cluster.id").write_text(cluster_id, encoding="utf-8")
    draft.unlink()
    fresh.rename(folder / "data")


def _check_storage(folder: Path) -> None:
    """Refuse storage that the broker would refuse, or that belongs to another cluster."""
    mend = f"move {folder} away, or delete it to begin anew (its records are lost)"
    try:
        lines = (folder / "data" / "meta.properties").read_text(encoding="utf-8").splitlines()
        expected = (folder / "cluster.id").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise CorruptRunFolder(f"Kafka's storage in {folder} cannot be read: {error}; {mend}") from error
    meta = dict(line.split("=", 1) for line in lines if "=" in line)
    for name, value in {"version": "1", "node.id": str(NODE_ID), "cluster.id": expected}.items():
        if meta.get(name) != value:
            found = meta.get(name, "missing")
            raise CorruptRunFolder(f"{folder}/data/meta.properties: {name} is {found}, expected {value}; {mend}")
    if not any((folder / "data" / "__cluster_metadata-0").glob("*[0-9].*")):  # the broker would wait for ever
        raise CorruptRunFolder(f"Kafka's storage in {folder} has lost its cluster metadata; {mend}")
