"""A standalone Spark cluster on this machine, from the pyspark wheel: a master and workers, on 127.0.0.1 only.

For tests, and to try what a foreign cluster needs: its workers see nothing of the checkout but what a job ships.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pyspark

from config.child import ends_with_parent, free_port, stop
from flead.errors import Unavailable
from spark.session import SparkHome

WHEEL = Path(pyspark.__file__).parent
START_TIMEOUT_S = 60.0
_FLAGS = ("-Xmx256m", "-Duser.timezone=UTC")
_PASSED_ON = ("PATH", "HOME", "LANG", "XDG_CACHE_HOME", "FLEAD_CACHE")


@contextmanager
def standalone_cluster(home: SparkHome, workers: int = 2, cores: int = 1, memory_mb: int = 1_024) -> Iterator[str]:
    """Run a master and workers as long as the context lasts; they log into `home.folder/cluster`.

    Parameters
    ----------
    cores, memory_mb:
        of each worker; an executor takes `spark.executor_mb` of the memory

    Yields
    ------
    str
        the master's address, for `spark.master`

    Raises
    ------
    Unavailable
        where the workers have not registered in time
    """
    folder = home.folder / "cluster"
    folder.mkdir(parents=True, exist_ok=True)
    port, page = free_port(), free_port()
    url = f"spark://127.0.0.1:{port}"
    with ExitStack() as running:
        log = folder / "master.log"
        master = _command(home, "master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", str(page))
        running.enter_context(_process(home, master, folder, log))
        _wait(log, r"New state: ALIVE", 1)
        for number in range(1, workers + 1):
            own = folder / f"worker-{number}"
            own.mkdir(exist_ok=True)
            sizes = ["--cores", str(cores), "--memory", f"{memory_mb + 256}m", "--work-dir", str(own)]
            worker = _command(home, "worker.Worker", "--host", "127.0.0.1", "--webui-port", "0", *sizes, url)
            running.enter_context(_process(home, worker, own, folder / f"worker-{number}.log"))
        _wait(log, r"Registering worker", workers)
        yield url


def _command(home: SparkHome, name: str, *arguments: str) -> list[str]:
    java = str(home.java_home / "bin" / "java")
    return [java, *_FLAGS, "-cp", f"{WHEEL / 'jars'}/*", f"org.apache.spark.deploy.{name}", *arguments]


@contextmanager
def _process(home: SparkHome, command: list[str], folder: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {
        "JAVA_HOME": str(home.java_home),
        "SPARK_HOME": str(WHEEL),
        "SPARK_LOCAL_DIRS": str(folder / "spill"),
        "SPARK_LOCAL_IP": "127.0.0.1",  # its pages too are for this machine only
        "SPARK_LOCAL_HOSTNAME": "127.0.0.1",
        "JDK_JAVA_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC",  # the executors: they live for minutes
        "SPARK_SCALA_VERSION": "2.13",  # else it looks for a build folder
        "PYSPARK_PYTHON": sys.executable,
    }
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603
            ends_with_parent(command, signal.SIGTERM), cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=out, stderr=out,
        )  # fmt: skip
    try:
        yield process
    finally:
        stop(process)


def _wait(log: Path, what: str, times: int) -> None:
    """Wait until a log says something so many times."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while len(re.findall(what, log.read_text(errors="replace"))) < times:
        if time.monotonic() > deadline:
            raise Unavailable(f"the Spark cluster did not start within {START_TIMEOUT_S:g} s: see {log.parent}")
        time.sleep(0.05)
