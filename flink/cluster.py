"""The embedded Flink cluster: a real JobManager and TaskManagers from the wheel, configured and ready to start.

This module only lays out folders and says what to run; a supervisor (`orchestration/`) runs it.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pyflink

HOME = Path(pyflink.__file__).parent


@dataclass(frozen=True)
class Cluster:
    """Where a cluster lives and listens, and how large it may get (MiB, whole processes)."""

    folder: Path
    java_home: Path
    connector_jars: Path
    rest_port: int
    rpc_port: int
    jobmanager_mb: int = 1024
    taskmanager_mb: int = 1536

    @property
    def environment(self) -> dict[str, str]:
        """What every Flink process needs in its environment."""
        return {
            "JAVA_HOME": str(self.java_home),
            "FLINK_HOME": str(HOME),
            "FLINK_CONF_DIR": str(self.folder / "conf"),
            "FLINK_LIB_DIR": str(self.folder / "lib"),
            "FLINK_LOG_DIR": str(self.folder / "log"),
            "FLINK_PID_DIR": str(self.folder / "tmp"),
            "FLINK_PLUGINS_DIR": str(self.folder / "plugins"),
            # Thread mode embeds the interpreter in the TaskManager: it looks for packages here.
            "PYTHONPATH": sysconfig.get_path("purelib"),
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))),
        }

    @property
    def jobmanager_command(self) -> list[str]:
        """Run the JobManager in the foreground."""
        return ["bash", str(HOME / "bin" / "jobmanager.sh"), "start-foreground"]

    @property
    def taskmanager_command(self) -> list[str]:
        """Run one TaskManager in the foreground."""
        return ["bash", str(HOME / "bin" / "taskmanager.sh"), "start-foreground"]

    def prepare(self) -> None:
        """Lay out configuration and libraries; safe to repeat."""
        for name in ("conf", "lib", "log", "plugins", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for shipped in (HOME / "conf").iterdir():
            if shipped.name != "config.yaml":
                (self.folder / "conf" / shipped.name).write_bytes(shipped.read_bytes())
        (self.folder / "conf" / "config.yaml").write_text(self._configuration())
        jars = [
            *(HOME / "lib").glob("*.jar"),
            *(HOME / "opt").glob("flink-python-*.jar"),
        ]
        for stale in (self.folder / "lib").iterdir():
            stale.unlink()
        for jar in jars:
            (self.folder / "lib" / jar.name).symlink_to(jar)

    def _configuration(self) -> str:
        """`config.yaml`: loopback only, quick to notice a dead process, Python taken from this environment."""
        options = {
            "jobmanager.rpc.address": "127.0.0.1",
            "jobmanager.rpc.port": self.rpc_port,
            "jobmanager.bind-host": "127.0.0.1",
            "jobmanager.memory.process.size": f"{self.jobmanager_mb}m",
            "jobmanager.memory.jvm-metaspace.size": "192m",
            "jobmanager.memory.jvm-overhead.max": "128m",
            "jobmanager.memory.jvm-overhead.min": "128m",
            "jobmanager.memory.off-heap.size": "64m",
            "rest.address": "127.0.0.1",
            "rest.bind-address": "127.0.0.1",
            "rest.port": self.rest_port,
            "rest.bind-port": self.rest_port,
            "taskmanager.host": "127.0.0.1",
            "taskmanager.bind-host": "127.0.0.1",
            "taskmanager.numberOfTaskSlots": 1,
            "taskmanager.memory.process.size": f"{self.taskmanager_mb}m",
            "taskmanager.memory.managed.size": "256m",
            "taskmanager.memory.network.min": "64m",
            "taskmanager.memory.network.max": "64m",
            "io.tmp.dirs": self.folder / "tmp",
            "blob.storage.directory": self.folder / "tmp",
            "web.upload.dir": self.folder / "tmp",
            "heartbeat.interval": "2 s",
            "heartbeat.timeout": "12 s",
            "pekko.ask.timeout": "20 s",
            "slot.request.timeout": "60 s",
            "metrics.fetcher.update-interval": "1 s",
            "python.executable": sys.executable,
            "python.client.executable": sys.executable,
        }
        options |= _JVM_OPTIONS
        lines = [f'{key}: "{value}"' for key, value in options.items()]
        return "\n".join([_shipped_java_options(), *lines]) + "\n"


_JVM_OPTIONS = {
    # A few cores run everything: compiling less, and collecting in one thread, leaves them to the stream.
    "env.java.opts.client": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "env.java.opts.jobmanager": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
    "env.java.opts.taskmanager": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",
}


def _shipped_java_options() -> str:
    """The `env.java.opts.all` line of the wheel's own configuration: without it Flink does not run on Java 17."""
    shipped = (HOME / "conf" / "config.yaml").read_text().splitlines()
    exports = next(line.strip() for line in shipped if line.strip().startswith("all: --add-exports"))
    return f'env.java.opts.all: "{exports.removeprefix("all: ")} -Dlog4j2.formatMsgNoLookups=true"'
