"""One Spark session for all tests that need one: in this process's JVM, in a temporary folder."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from config.settings import PROJECT, SparkSettings
from flead.errors import Unavailable
from orchestration.java import find_java_home

if TYPE_CHECKING:  # importing it takes a second, and most tests need none
    from pyspark.sql import SparkSession

    from spark.session import SparkHome

SOCKETS = pytest.mark.filterwarnings(
    "ignore:unclosed <socket:ResourceWarning", "ignore:.*unclosed <socket:pytest.PytestUnraisableExceptionWarning",
    r"ignore:.*<socket.socket fd=:pytest.PytestUnraisableExceptionWarning",
)  # fmt: skip
"""For tests that use a session: PySpark leaves the sockets that results came by to the garbage collector."""

SPARK_JARS = PROJECT / ".jvm" / "jars" / "spark"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Py4J leaves its sockets to the garbage collector: in tests that use Spark, that is no error."""
    for item in items:
        if "spark" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"))


@pytest.fixture(scope="session")
def spark_home(tmp_path_factory: pytest.TempPathFactory) -> SparkHome:
    """What a session needs; without Spark's connectors or a Java, the tests that need one are skipped."""
    from spark.session import SparkHome

    if not any(SPARK_JARS.glob("spark-sql-kafka*.jar")):
        pytest.skip(f"no connectors in {SPARK_JARS}: orchestration/run_all.sh fetches them")
    try:
        java = find_java_home()
    except Unavailable as error:
        pytest.skip(str(error))
    return SparkHome(java, SPARK_JARS, PROJECT, tmp_path_factory.mktemp("with spaces"))


@pytest.fixture(scope="session")
def spark(spark_home: SparkHome) -> Iterator[SparkSession]:
    """The session of all tests, on two cores.

    A process has one session at a time: a test of what starts its own must run in another process.
    """
    from spark.session import spark_session

    with spark_session(SparkSettings(master="local[2]"), spark_home, "tests") as session:
        yield session
