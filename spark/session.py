"""Spark sessions: in this process or on a cluster, from the same settings."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from py4j.protocol import Py4JError
from pyspark import SparkContext
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from config.settings import SparkSettings
from flead.errors import Unavailable

SHIPPED = ("flead", "config", "data", "kafka", "storage", "spark")
"""Folders that the workers get as a zip: this one, and what it may import."""

ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class SparkHome:
    """What a session needs of the machine that it is started on.

    Attributes
    ----------
    java_home: of a Java that Spark runs on
    jars: the folder of the connectors for Kafka and MongoDB
    project: the checkout
    folder: what Spark writes: its log, spilled data, the zip for the workers
    """

    java_home: Path
    jars: Path
    project: Path
    folder: Path


def is_local(settings: SparkSettings) -> bool:
    """Whether Spark runs in this process's JVM."""
    return settings.master is None or settings.master.startswith("local")


@contextmanager
def spark_session(settings: SparkSettings, home: SparkHome, name: str, **options: str) -> Iterator[SparkSession]:
    """Start a session, and stop it with its JVM.

    Parameters
    ----------
    name:
        what the cluster shows
    options:
        Spark's own names, dots as two underscores: `spark__sql__shuffle__partitions="8"`

    Raises
    ------
    Unavailable
        where Spark does not start, or the master does not answer
    """
    home.folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("py4j").setLevel(logging.CRITICAL)  # it logs what it raises, and every connection
    logging.getLogger().addFilter(_not_of_py4j)
    os.environ["JAVA_HOME"] = str(home.java_home)
    os.environ["PYSPARK_PYTHON"] = settings.python or sys.executable
    os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    for variable in ONE_THREAD:  # workers inherit them: each core has one already
        os.environ.setdefault(variable, "1")
    for variable in ("SPARK_HOME", "SPARK_CONF_DIR", "PYSPARK_SUBMIT_ARGS"):  # another Spark's would win over ours
        os.environ.pop(variable, None)
    builder = SparkSession.builder.appName(name).master(settings.master or "local[*]")
    for key, value in (_options(settings, home) | {k.replace("__", "."): v for k, v in options.items()}).items():
        builder = builder.config(key, value)
    try:
        with _stderr_to(home.folder / "spark.err"):
            session = builder.getOrCreate()
    except (PySparkException, Py4JError, RuntimeError, OSError) as error:
        raise Unavailable(f"Spark does not start: {one_line(error)}; see {home.folder / 'spark.log'}") from None
    accumulators = getattr(session.sparkContext, "_accumulatorServer", None)
    if accumulators is not None:  # it prints a stack where the JVM is lost
        accumulators.handle_error = lambda *_: None
    try:
        session.sparkContext.addPyFile(str(package(home.project, home.folder / "flead-workers.zip")))
        yield session
    finally:
        _stop(session)


def _not_of_py4j(record: logging.LogRecord) -> bool:
    """Whether a record without a logger's name is somebody else's: so Py4J logs the stack where a JVM is lost."""
    return "py4j" not in record.pathname


def _options(settings: SparkSettings, home: SparkHome) -> dict[str, str]:
    """What differs from Spark's defaults, and why."""
    jars = ",".join(str(path) for path in sorted(home.jars.glob("*.jar")))
    # In quotes: a folder's name may hold spaces.
    log = (
        f'-Dlog4j2.configurationFile={(HERE / "log4j2.properties").as_uri()} "-Dflead.log={home.folder / "spark.log"}"'
    )
    # Compiled by C1 only: C2 takes the cores that the data needs for the first minutes, and a small run is over then.
    flags = f"{log} -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Duser.timezone=UTC"
    threads = {f"spark.executorEnv.{name}": "1" for name in ONE_THREAD}
    options = {
        "spark.jars": jars,
        "spark.driver.memory": f"{settings.driver_mb}m",
        "spark.executor.memory": f"{settings.executor_mb}m",
        "spark.driver.extraJavaOptions": flags,
        "spark.executor.extraJavaOptions": "-Duser.timezone=UTC",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": str(settings.partitions),
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "20000",
        "spark.ui.enabled": "false",  # nothing listens that is not asked for
        "spark.ui.showConsoleProgress": "false",
        "spark.local.dir": str(home.folder / "spill"),
        "spark.sql.warehouse.dir": str(home.folder / "warehouse"),
        **threads,
    }
    if is_local(settings) or urlsplit(settings.master or "").hostname in ("127.0.0.1", "localhost"):
        options |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    return options


def package(project: Path, target: Path) -> Path:
    """Write the zip that the workers import from."""
    partial = target.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for folder in SHIPPED:
            for path in sorted((project / folder).rglob("*")):
                if path.suffix in (".py", ".yaml") and "__pycache__" not in path.parts:
                    archive.write(path, path.relative_to(project))
    return partial.replace(target)


def one_line(error: BaseException) -> str:
    r"""What a Java or Spark error says, without its stack.

    >>> one_line(RuntimeError("no\n  way\n\tat java.lang.Thread.run"))
    'no way'
    """
    lines = str(error).splitlines()
    kept = [line.strip() for line in lines if not line.lstrip().startswith(("at ", "... "))]
    return " ".join(" ".join(kept).split())[:300]


def last_cause(error: BaseException) -> str:
    r"""What an error of Java's says in the end, without the stacks of all that failed because of it.

    >>> last_cause(RuntimeError("no\n\tat X.run\nCaused by: Y: half\n\tat Y.run\nCaused by: Z: disk full\n\tat Z.run"))
    'Z: disk full'
    """
    causes = re.findall(r"^\s*Caused by: (.+)$", str(error), re.MULTILINE)
    return one_line(RuntimeError(causes[-1])) if causes else one_line(error)


@contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """What is started meanwhile writes its standard error to a file: a JVM warns of its own modules there."""
    ours = os.dup(2)
    try:
        with path.open("ab") as file:
            os.dup2(file.fileno(), 2)
            yield
    finally:
        os.dup2(ours, 2)
        os.close(ours)


def _stop(session: SparkSession) -> None:
    """End the session and its JVM; a JVM that is gone already is no error."""
    gateway = SparkContext._gateway
    try:
        session.stop()
    except (Py4JError, OSError) as error:
        logging.getLogger(__name__).info("Spark was gone already: %s", type(error).__name__)
    SparkContext._gateway = SparkContext._jvm = None  # the next session starts a JVM of its own
    if gateway is not None:
        gateway.shutdown()  # else what Python still holds of Java would be given back to a JVM that has ended
        process: Any = gateway.proc
        process.stdin.close()  # the JVM ends with its standard input
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
