"""What the services of a run are: their commands, ports and health, from the settings."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

from config.child import check_port_free
from config.settings import PROJECT, MongoSettings, Settings
from flead.errors import CorruptRunFolder, Unavailable
from flead.signatures import public_text
from flink.cluster import Cluster
from flink.job_config import JobConfig
from flink.job_config import Topics as JobTopics
from flink.rest import FlinkRest
from flink.submit import JobGivenUp, file_uri
from global_server.signing import signing_key
from kafka import topics
from kafka.connection import wait_until_ready
from kafka.embedded import broker_command, broker_environment
from kafka.embedded_storage import prepare_broker
from kafka.topics import ensure_topics
from orchestration.files import GB_TO_START, free_gb
from orchestration.java import find_java_home
from orchestration.supervision import Service
from storage.connection import connect, open_database, translated
from storage.embedded import initiate, mongod_command
from storage.migrations import check_usable
from visualization.mart import server as postgres
from visualization.superset import service as superset

JARS = PROJECT / ".jvm" / "jars"
_FLINK_PATH = re.compile(r"[\w./+@,=~-]+")
OPTIONAL = ("analytics", "archive", "dashboards", "producer")
"""What a run may do without. Analytics store what flows; without them, the small archive does. Dashboards are Superset
and the mart that it reads."""


@dataclass(frozen=True)
class Part:
    """A service, how it is prepared before it starts, and how to tell that it is ready.

    Attributes
    ----------
    prepare:
        lays out what it needs; may raise `CorruptRunFolder`
    ready:
        returns once it is ready; raises `Unavailable` where it is not (yet)
    setting:
        the setting that moves its port
    """

    service: Service
    prepare: Callable[[], object] = lambda: None
    ready: Callable[[], object] = lambda: None
    setting: str = ""


def flink_cluster(settings: Settings) -> Cluster:
    """The embedded Flink cluster of a run."""
    return Cluster(
        folder=settings.run_dir / "flink",
        java_home=find_java_home(),
        connector_jars=JARS / "flink",
        rest_port=settings.flink.rest_port,
        rpc_port=settings.flink.rpc_port,
        jobmanager_mb=settings.flink.jobmanager_mb,
        taskmanager_mb=settings.flink.taskmanager_mb,
    )


def job_config(settings: Settings) -> JobConfig:
    """What the learning job is told: a setting of Flink whose name it shares goes as it is."""
    flink = settings.flink
    return JobConfig(
        bootstrap_servers=settings.kafka.servers,
        topics=JobTopics(
            readings=topics.READINGS,
            predictions=topics.PREDICTIONS,
            local_updates=topics.LOCAL_UPDATES,
            global_model=topics.GLOBAL_MODEL,
            alerts=topics.ALERTS,
            dead_letters=topics.DEAD_LETTERS,
        ),
        checkpoints=flink.checkpoints or file_uri((settings.run_dir / "flink" / "checkpoints").absolute()),
        parallelism=flink.task_managers,
        learner=settings.learner,
        reading=settings.reading,
        trusted_keys=flink.trusted_keys or (public_text(signing_key(settings).public_key()),),
        partial_sums=settings.aggregation.partial_sums,
        partial_every_s=settings.aggregation.partial_every_s,
        **flink.model_dump(include=JobConfig.model_fields.keys() - {"checkpoints", "trusted_keys"}),
    )


def flead_command(*arguments: str) -> list[str]:
    """A `flead` command as a child process."""
    return [sys.executable, "-m", "orchestration", *arguments]


def declare(
    settings: Settings,
    producer: list[str] | None,
    without: frozenset[str] = frozenset(),
    show: Callable[[str], object] = lambda _: None,
) -> list[Part]:
    """The parts of a run in the order of their start; what the settings point elsewhere is not among them.

    Parameters
    ----------
    producer:
        the command that sends readings; None for a run that others send to
    show:
        called with a line for people's eyes only when a password is made
    """
    environment = {
        "PYTHONPATH": str(PROJECT),
        **settings.local_paths(),
        "FLEAD_MONGODB__URI": settings.mongodb.address.get_secret_value(),
        "PYTHONUNBUFFERED": "1",
        "OPENBLAS_NUM_THREADS": "1",  # the matrices are tiny: more threads only get in each other's way
    }
    parts = [*_mongodb(settings), *_kafka(settings), *_flink(settings)]
    if "dashboards" not in without:
        parts += _postgres(settings)
    parts.append(
        Part(
            Service(
                "server", flead_command("serve", "--port", str(settings.server.port)), environment, settings.server.port
            ),
            setting="server.port",
        )
    )
    parts.append(
        Part(Service("learner", flead_command("learn"), environment, None, (JobGivenUp.exit_code,), stop_limit_s=75))
    )
    if "archive" not in without:
        parts.append(Part(_archive(without, environment)))
    if "dashboards" not in without:
        parts += _dashboards(settings, environment, show)
    if producer and "producer" not in without:
        parts.append(Part(Service("producer", producer, environment, final_exits=(0, 1))))
    return parts


def _archive(without: frozenset[str], environment: dict[str, str]) -> Service:
    """Who stores what flows: streaming analytics on Spark, or where nobody wants them, the small archive."""
    if "analytics" in without:
        return Service("archive", flead_command("archive"), environment)
    return Service("analytics", flead_command("analyze", "stream"), environment, stop_limit_s=30)


def _postgres(settings: Settings) -> list[Part]:
    if settings.mart.uri:
        return []
    folder, port = settings.run_dir / postgres.FOLDER, settings.mart.port
    return [
        Part(
            Service("postgres", postgres.postgres_command(folder, port), port=port, stop_signal=postgres.STOP_SIGNAL),
            prepare=lambda: postgres.prepare(folder, settings.mart, settings.run_dir),
            ready=lambda: postgres.ready(settings.mart, settings.run_dir),
            setting="mart.port",
        )
    ]


def _dashboards(settings: Settings, environment: dict[str, str], show: Callable[[str], object]) -> list[Part]:
    """The mart's follower, and Superset."""
    port = settings.dashboards.port
    return [
        Part(Service("mart", flead_command("mart", "follow"), environment)),
        Part(
            Service("superset", superset.command(settings), superset.environment(settings), port),
            prepare=lambda: superset.prepare(settings, show),
            setting="dashboards.port",
        ),
    ]


def _mongodb(settings: Settings) -> list[Part]:
    if settings.mongodb.uri:
        return []
    folder, port = settings.run_dir / "mongodb", settings.mongodb.port

    def ready() -> None:
        initiate(port, limit_s=2.0)
        check_database(settings.mongodb)

    return [
        Part(
            Service("mongodb", mongod_command(folder, port), port=port),
            prepare=lambda: folder.mkdir(parents=True, exist_ok=True),
            ready=ready,
            setting="mongodb.port",
        )
    ]


def _kafka(settings: Settings) -> list[Part]:
    kafka = settings.kafka
    if kafka.bootstrap_servers:
        return []
    java = find_java_home() / "bin" / "java"
    folder = settings.run_dir / "kafka"

    def ready() -> None:
        wait_until_ready(kafka.servers, 2.0)
        ensure_topics(kafka.servers, kafka)

    return [
        Part(
            Service(
                "kafka",
                broker_command(java, JARS / "kafka", folder / "server.properties", kafka.heap_mb),
                broker_environment(),
                kafka.port,
            ),
            prepare=lambda: prepare_broker(folder, kafka.port, kafka.controller_port, JARS / "kafka", java),
            ready=ready,
            setting="kafka.port",
        )
    ]


def _flink(settings: Settings) -> list[Part]:
    if settings.flink.rest_url:
        return []
    cluster = flink_cluster(settings)
    rest, wanted = FlinkRest(settings.flink.url), settings.flink.task_managers

    def prepare() -> None:
        shutil.rmtree(cluster.folder / "tmp", ignore_errors=True)  # Flink, killed, leaves some 20 MB each time
        cluster.prepare()

    def workers_registered() -> None:
        if rest.task_managers() < wanted:
            raise Unavailable(f"fewer than {wanted} TaskManagers have registered")

    environment = {**cluster.environment, "OPENBLAS_NUM_THREADS": "1"}
    manager = Service("jobmanager", cluster.jobmanager_command, environment, settings.flink.rest_port)
    workers = [
        Service(f"taskmanager-{i}" if wanted > 1 else "taskmanager", cluster.taskmanager_command, environment)
        for i in range(1, wanted + 1)
    ]
    return [
        Part(manager, prepare=prepare, ready=rest.task_managers, setting="flink.rest_port"),
        *(Part(worker, ready=workers_registered) for worker in workers),
    ]


def check_database(settings: MongoSettings) -> None:
    """Raise `CorruptRunFolder` where this code must not touch the database, `Unavailable` where it does not answer."""
    with translated(), connect(settings) as client:
        check_usable(open_database(client, settings))


def preflight(settings: Settings, parts: list[Part]) -> None:
    """Find what would keep a run from starting, before anything is started.

    Raises
    ------
    Unavailable, PortTaken, CorruptRunFolder, BadConfiguration
        one line each, with the mend
    """
    from flead.learner import check  # only here: compiling machinery takes a second to import

    check(settings.learner, settings.reading.max_sensors)
    run_dir = settings.run_dir
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / ".writable").write_bytes(b"\0" * 4096)
        (run_dir / ".writable").unlink()
    except OSError as error:
        raise CorruptRunFolder(
            f"the run folder {run_dir} cannot be written ({error.strerror}): name another with --run-dir"
        ) from None
    if any(part.service.name == "jobmanager" for part in parts):
        for path in (run_dir, PROJECT):
            if not _FLINK_PATH.fullmatch(str(path)):
                raise Unavailable(
                    f"Flink's scripts cannot work under {path}, whose name holds a space or another special sign: "
                    f"{'name another with --run-dir' if path == run_dir else 'move the checkout'}"
                )
    free = free_gb(run_dir)
    if free < GB_TO_START:
        raise Unavailable(
            f"only {free:.1f} GB are free under {run_dir}, a run needs {GB_TO_START:g}: "
            "make room, delete an old run folder, or name another with --run-dir"
        )
    embedded = {"kafka", "jobmanager"} & {part.service.name for part in parts}
    if embedded and not (any((JARS / "kafka").glob("kafka_*.jar")) and any((JARS / "flink").glob("*.jar"))):
        raise Unavailable(f"the JVM parts are not in {JARS}: run orchestration/run_all.sh, which fetches them")
    for part in parts:
        if part.service.port is not None:
            check_port_free(part.service.port, part.setting, part.service.name)
    if settings.mongodb.uri:
        check_database(settings.mongodb)
    if "kafka" in embedded:
        check_port_free(settings.kafka.controller_port, "kafka.controller_port", "kafka")
    if "jobmanager" in embedded:
        check_port_free(settings.flink.rpc_port, "flink.rpc_port", "jobmanager")
