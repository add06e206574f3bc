"""The streaming jobs on a standalone cluster of two workers, which see nothing of the checkout but what is shipped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from config.settings import PROJECT, KafkaSettings
from tests.fixtures_storage import Mongo
from tests.test_spark_streaming import Fleet, forget_records, walk

if TYPE_CHECKING:
    from spark.session import SparkHome

pytestmark = pytest.mark.servers

DRIVER = """
import json, sys
from pathlib import Path
from config.settings import load_settings
from spark.session import SparkHome, spark_session
from spark.stream_shared import Neighbourhood
from spark.streaming import Analytics, Checkpoints

def where(batches):
    import pyarrow as pa
    import os, flead, spark.stream_devices as devices, storage.archive as archive
    for batch in batches:
        files = [module.__file__ for module in (flead, devices, archive)]
        yield pa.RecordBatch.from_pylist([{"files": files, "folder": os.getcwd()}])

settings = load_settings()
home = SparkHome(*map(Path, sys.argv[1:5]))
with spark_session(settings.spark, home, "cluster test") as spark:
    found = spark.range(0, 8, 1, 8).mapInArrow(where, "files array<string>, folder string").collect()
    checkpoints = Checkpoints(spark, settings.spark.checkpoints)
    checkpoints.check()
    stream = Analytics(spark, settings, Neighbourhood.of(settings.spark), checkpoints, lambda: False)
    for start in (stream.start_archive, stream.start_devices):
        query = start(availableNow=True)
        query.awaitTermination()
    stream.stop()
    print(json.dumps([[row.files, row.folder] for row in found]))
"""


def test_archive_and_windows_on_two_workers_need_only_the_zip_and_the_jars(
    kafka_servers: str, kafka_settings: KafkaSettings, mongo: Mongo, spark_home: SparkHome, tmp_path: Path
) -> None:
    from spark.cluster import standalone_cluster
    from spark.session import SparkHome

    forget_records(kafka_servers)
    fleet = Fleet(kafka_servers, ("cluster.a", "cluster.b"))
    for device in ("cluster-1", "cluster-2", "cluster-3"):
        walk(fleet, device, 10)
    fleet.send()
    home = SparkHome(spark_home.java_home, spark_home.jars, PROJECT, tmp_path / "spark")
    with standalone_cluster(home, workers=2, memory_mb=512) as master:
        environment = os.environ | {
            "PYTHONPATH": str(PROJECT),  # of the driver; the workers' environment is the cluster's
            "FLEAD_SPARK__MASTER": master,
            "FLEAD_SPARK__CHECKPOINTS": (tmp_path / "checkpoints").as_uri(),
            "FLEAD_SPARK__EXECUTOR_MB": "512",
            "FLEAD_KAFKA__PORT": str(kafka_settings.port),
            "FLEAD_MONGODB__URI": mongo.settings.address.get_secret_value(),
            "FLEAD_MONGODB__DATABASE": mongo.settings.database,
        }
        arguments = [str(part) for part in (home.java_home, home.jars, home.project, home.folder)]
        driver = subprocess.run(  # noqa: S603
            [sys.executable, "-c", DRIVER, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True,
            timeout=200, check=False,
        )  # fmt: skip
    assert driver.returncode == 0, driver.stderr[-3_000:]
    found = json.loads(driver.stdout)
    assert all("flead-workers.zip" in file for files, _ in found for file in files)
    assert {Path(folder).parents[1].name for _, folder in found} == {"worker-1", "worker-2"}
    database, ours = mongo.database, {"device_id": {"$regex": "^cluster-"}}
    assert database.device_data.count_documents(ours) == len(fleet.readings)
    minutes = list(database.window_aggregates.find(ours | {"window": "1m"}))
    assert sum(minute["readings"] for minute in minutes) == len(fleet.predictions)
    cohort = database.window_aggregates.find({"window": "1d", "scope": "cohort", "cohort": fleet.cohort})
    assert sum(day["readings"] for day in cohort) == len(fleet.predictions)
