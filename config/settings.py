"""Every setting of FLEAD, typed, with its unit, default and source.

What wins, from strongest: environment variables (`FLEAD_KAFKA__PORT=9192`), `config/environment.env`, the YAML file
(`config/project_config.yaml`, or the file that `FLEAD_CONFIG` names), the defaults here.

An address that is left empty (`kafka.bootstrap_servers`, `mongodb.uri`, `flink.rest_url`) means that FLEAD starts the
real server itself, on 127.0.0.1, and stops it again.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from config.aggregation import AggregationSettings
from config.secure import SecureSettings
from flead.errors import BadConfiguration
from flead.learner_config import LearnerConfig
from flead.messages import ReadingLimits

HERE = Path(__file__).parent
PROJECT = HERE.parent

Port = Annotated[int, Field(ge=1, le=65_535)]
LocalPath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]
"""A place on this machine; a relative one is meant from where the command was given."""

_PREFIX, _DELIMITER = "FLEAD_", "__"
_NO_SETTINGS = {
    f"{_PREFIX}{name}" for name in ("CONFIG", "TOKEN", "CACHE", "PYTHON", "IVY_SETTINGS", "SUPERSET", "DATA")
}
"""Variables with our prefix that other parts read by themselves."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class KafkaSettings(_Section):
    """The broker. Topics are declared in `kafka/topics.py`."""

    bootstrap_servers: str | None = Field(None, description="host:port[,host:port]; empty: the embedded broker")
    port: Port = Field(9092, description="of the embedded broker")
    controller_port: Port = Field(9093, description="of the embedded broker's KRaft controller")
    partitions: int = Field(4, ge=1, description="of the topics keyed by device")
    replication: int = Field(1, ge=1, description="copies of each partition; 3 on a cluster")
    heap_mb: int = Field(512, ge=128, description="of the embedded broker, MiB")

    @property
    def servers(self) -> str:
        """The address to connect to."""
        return self.bootstrap_servers or f"127.0.0.1:{self.port}"


Expiring = Literal[
    "device_data", "local_models", "predictions", "alerts", "dead_letters", "window_aggregates", "shared_anomalies",
    "model_scores", "analysis_days", "analysis_evaluations", "analysis_reports", "pipeline_samples", "audit_log",
]  # fmt: skip
"""The collections that may be given a time to keep."""
_KEPT_DAYS: dict[Expiring, float | None] = {
    "local_models": 7.0, "dead_letters": 30.0, "pipeline_samples": 30.0, "audit_log": 365.0,
}  # fmt: skip


class MongoSettings(_Section):
    """The database. Collections are declared in `storage/documents.py`."""

    uri: SecretStr | None = Field(None, description="mongodb://...; empty: the embedded mongod")
    port: Port = Field(27017, description="of the embedded mongod")
    database: str = Field("flead", min_length=1, max_length=63, pattern=r"^[^/\\. \"$*<>:|?\x00]+$")
    max_pool_size: int = Field(32, ge=1, le=1_000, description="connections of each process at most")
    retention_days: dict[Expiring, Annotated[float, Field(gt=0, le=24_855)] | None] = Field(
        _KEPT_DAYS,
        description="how long what a collection stores is kept, days; null: for ever. What is not named stays as it is",
    )

    @field_validator("retention_days")
    @classmethod
    def _beside_the_defaults(cls, given: dict[Expiring, float | None]) -> dict[Expiring, float | None]:
        """Who names one collection does not mean the others."""
        return {**_KEPT_DAYS, **given}

    @model_validator(mode="before")
    @classmethod
    def _former_name(cls, given: Any) -> Any:
        """`local_models_days` is what `retention_days.local_models` was called before."""
        if not isinstance(given, dict) or "local_models_days" not in given:
            return given
        others = {name: value for name, value in given.items() if name != "local_models_days"}
        days = others.get("retention_days") or {}
        return {**others, "retention_days": {"local_models": given["local_models_days"], **days}}

    @property
    def address(self) -> SecretStr:
        """The URI to connect to."""
        return self.uri or SecretStr(f"mongodb://127.0.0.1:{self.port}/?replicaSet=flead&directConnection=true")


class FlinkSettings(_Section):
    """The learning job and the cluster it runs on."""

    rest_url: str | None = Field(None, description="http://host:port; empty: the embedded standalone cluster")
    rest_port: Port = Field(8081, description="of the embedded JobManager")
    rpc_port: Port = Field(6123, description="of the embedded JobManager")
    task_managers: int = Field(1, ge=1, le=64, description="one slot each; also the job's parallelism")
    jobmanager_mb: int = Field(1024, ge=768, description="whole process, MiB")
    taskmanager_mb: int = Field(1536, ge=1024, description="whole process, MiB")
    execution_mode: Literal["thread", "process"] = Field("thread", description="how Python functions run")
    state_backend: Literal["hashmap", "rocksdb"] = Field("hashmap", description="rocksdb: state larger than memory")
    checkpoint_interval_ms: int = Field(5_000, ge=200, description="also how often updates are committed, ms")
    checkpoints: str | None = Field(None, description="URI that every TaskManager can write; empty: the run folder")
    buffer_timeout_ms: int = Field(5, ge=0, description="longest wait of a record in a network buffer, ms")
    max_restarts: int = Field(10, ge=0, description="of the job within ten minutes, before it is given up")

    python: str | None = Field(None, description="the interpreter on a foreign cluster's machines; empty: this one")
    trusted_keys: tuple[str, ...] = Field(
        (), description="public keys of the servers whose global models are adopted; empty: this run folder's server"
    )

    @model_validator(mode="after")
    def _reachable_checkpoints(self) -> Self:
        if self.rest_url and not self.checkpoints:
            raise ValueError(
                "flink.checkpoints must name a folder that every TaskManager can write, as flink.rest_url is set"
            )
        return self

    @property
    def url(self) -> str:
        """Where the REST interface answers."""
        return (self.rest_url or f"http://127.0.0.1:{self.rest_port}").rstrip("/")


class SparkSettings(_Section):
    """Analytics: where they run, and what streaming analytics hold on to."""

    master: str | None = Field(
        None, description="spark://host:port, or any other master; empty: in this process, on all cores"
    )
    driver_mb: int = Field(
        1024, ge=512, description="heap of the driver, MiB; the workers' too where there is no master"
    )
    executor_mb: int = Field(1024, ge=512, description="heap of each executor of a cluster, MiB")
    partitions: int = Field(
        2, ge=1, le=10_000, description="of a shuffle: the cores that there are, or a few times them"
    )
    python: str | None = Field(None, description="the interpreter on a foreign cluster's machines; empty: this one")
    checkpoints: str | None = Field(None, description="URI that every worker can write; empty: the run folder")
    trigger_s: float = Field(2.0, ge=0, description="of streaming analytics: one micro-batch at most so often, s")
    most_per_trigger: int = Field(
        60_000, ge=100, description="records of a micro-batch, so that a backlog fits in memory"
    )
    evaluation_rows: int = Field(
        2_880, ge=10, description="readings of a device and day that global models are judged on"
    )
    ranges: dict[str, tuple[float, float]] = Field(
        {}, description="lowest and highest value that can be true, by sensor"
    )
    watermark_s: float = Field(
        600.0, ge=0, description="how late, in event time, a reading may still enter a window, s"
    )
    positions: LocalPath | None = Field(
        None, description="CSV `device_id,x,y` or Intel Lab's mote_locs.txt; empty: positions are not known"
    )
    neighbour_distance: float = Field(6.0, gt=0, description="up to which two devices are neighbours, in its units")
    neighbour_s: float = Field(180.0, gt=0, le=1_800, description="up to which two anomalies are one event, s")

    @model_validator(mode="after")
    def _reachable_checkpoints(self) -> Self:
        if self.master and not self.master.startswith("local") and not self.checkpoints:
            raise ValueError("spark.checkpoints must name a folder that every worker can write, as spark.master is set")
        return self


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, seen from itself only.

    >>> [is_loopback(host) for host in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "example.org")]
    [True, True, True, False, False]
    """
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Local(_Section):
    """A server of pages or REST that only this machine may reach; `_why_here` says why."""

    host: str = "127.0.0.1"
    port: Port
    _why_here: ClassVar[str]

    @property
    def url(self) -> str:
        """Where it answers."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @field_validator("host")
    @classmethod
    def _only_this_machine(cls, host: str) -> str:
        if not is_loopback(host):
            raise ValueError(
                f"{host!r} is reachable from outside, and {cls._why_here}: "
                "use 127.0.0.1 and a tunnel or an authenticating proxy"
            )
        return host


class ServerSettings(_Section):
    """The global server: where it listens, who may ask it, and how often. `docs/security.md` says how to open it."""

    host: str = Field("127.0.0.1", description="beyond this machine only with credentials and TLS")
    port: Port = 8000
    signing_key: LocalPath | None = Field(
        None, description="PEM file of the Ed25519 key that signs global models; empty: one of the run folder's own"
    )
    access: Literal["open", "required"] = Field(
        "open", description="open: whoever is on this machine may do everything; required: users and devices show who"
    )
    tls_certificate: LocalPath | None = Field(None, description="PEM, with its chain")
    tls_key: LocalPath | None = Field(None, description="PEM")
    behind_proxy: bool = Field(
        default=False, description="a proxy in front speaks TLS; X-Forwarded-For and -Proto of `proxies` are believed"
    )
    proxies: list[str] = Field(["127.0.0.1", "::1"], description="addresses or networks of such proxies")
    token_minutes: float = Field(15.0, gt=0, le=1_440, description="how long a token of POST /api/token holds")
    session_hours: float = Field(8.0, gt=0, le=168, description="how long a log-in in the browser holds")
    scrape_token: SecretStr | None = Field(
        None, min_length=16, description="with which Prometheus may read /metrics; empty: as a viewer only"
    )
    logins_per_minute: int = Field(10, ge=1, description="attempts to log in from one address")
    requests_per_minute: int = Field(1_200, ge=1, description="of a user")
    updates_per_minute: int = Field(600, ge=1, description="and other requests, of a device")
    aggregator_updates_per_minute: int = Field(
        60_000, ge=1, description="and other requests, of a device that sends for many"
    )

    @property
    def url(self) -> str:
        """Where it answers on this machine."""
        here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        scheme = "https" if self.tls_certificate else "http"
        return f"{scheme}://{f'[{here}]' if ':' in here else here}:{self.port}"

    @model_validator(mode="after")
    def _closed_where_it_can_be_reached(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key belong together: set both, or none")
        if is_loopback(self.host):
            return self
        if self.access != "required":
            raise ValueError(
                f"server.host: {self.host!r} is reachable from outside, and access is open: set server.access to "
                "`required` and make users and keys (docs/security.md), or use 127.0.0.1"
            )
        if self.tls_certificate is None and not self.behind_proxy:
            raise ValueError(
                f"server.host: {self.host!r} is reachable from outside, and passwords and keys would cross the network "
                "in the clear: set server.tls_certificate and server.tls_key, or server.behind_proxy where a proxy "
                "speaks TLS"
            )
        return self


class MartSettings(_Section):
    """The SQL copy of MongoDB that dashboards read. Its tables follow `storage/documents.py`."""

    uri: SecretStr | None = Field(None, description="postgresql://...; empty: the embedded PostgreSQL")
    port: Port = Field(5433, description="of the embedded PostgreSQL")
    database: str = Field("flead", min_length=1, max_length=63, pattern=r"^[a-z_][a-z0-9_]*$")


class DashboardSettings(_Local):
    """Superset, in an environment of its own."""

    port: Port = 8088
    workers: int = Field(2, ge=1, le=64, description="processes that answer, of about 370 MB each")
    threads: int = Field(4, ge=1, le=64, description="requests that one of them answers at once")
    _why_here: ClassVar[str] = "Superset speaks plain HTTP here"


class Settings(BaseSettings):
    """All of it."""

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX,
        env_nested_delimiter=_DELIMITER,
        env_file=HERE / "environment.env",
        frozen=True,
        extra="forbid",
    )

    run_dir: LocalPath = Field(PROJECT / "run", description="everything a run writes: logs, databases, checkpoints")
    kafka: KafkaSettings = KafkaSettings()
    mongodb: MongoSettings = MongoSettings()
    flink: FlinkSettings = FlinkSettings()
    spark: SparkSettings = SparkSettings()
    server: ServerSettings = ServerSettings()
    mart: MartSettings = MartSettings()
    dashboards: DashboardSettings = DashboardSettings()
    aggregation: AggregationSettings = AggregationSettings()
    secure: SecureSettings = SecureSettings()
    reading: ReadingLimits = ReadingLimits()
    learner: LearnerConfig = LearnerConfig()

    @field_validator("run_dir", mode="before")
    @classmethod
    def _a_folder(cls, run_dir: Any) -> Any:
        if run_dir == "":  # it would be the folder that we happen to be in
            raise ValueError("names no folder")
        return run_dir

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        ports = {
            "kafka.port": self.kafka.port,
            "kafka.controller_port": self.kafka.controller_port,
            "mongodb.port": self.mongodb.port,
            "flink.rest_port": self.flink.rest_port,
            "flink.rpc_port": self.flink.rpc_port,
            "server.port": self.server.port,
            "mart.port": self.mart.port,
            "dashboards.port": self.dashboards.port,
        }
        for (one, a), (other, b) in combinations(ports.items(), 2):
            if a == b:
                raise ValueError(f"{one} and {other} are both {a}: give each its own port")
        return self

    def local_paths(self) -> dict[str, str]:
        """The settings that are places on this machine, as variables for a process in another folder."""
        found = {f"{_PREFIX}RUN_DIR": str(self.run_dir)}
        for section in type(self).model_fields:
            for name, value in getattr(self, section) if section != "run_dir" else ():
                if isinstance(value, Path):
                    found[f"{_PREFIX}{section}{_DELIMITER}{name}".upper()] = str(value)
        return found

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the YAML below the environment."""
        file = YamlConfigSettingsSource(settings_cls, os.environ.get("FLEAD_CONFIG") or HERE / "project_config.yaml")
        return init_settings, env_settings, dotenv_settings, file


def load_settings() -> Settings:
    """Read the settings.

    Raises
    ------
    BadConfiguration
        naming each setting that is wrong and what is allowed
    """
    named = os.environ.get("FLEAD_CONFIG")
    if named and not Path(named).is_file():
        raise BadConfiguration(f"FLEAD_CONFIG names {named}, which is no file: correct the path or unset it")
    for variable, meant in strangers():
        if _DELIMITER in variable:  # it can be nothing but a setting of ours
            raise BadConfiguration(f"{variable} is no setting{meant}: correct or unset it")
    where = named or "config/project_config.yaml"
    try:
        return Settings()
    except ValidationError as error:
        wrong, form = [], ""
        for each in error.errors():
            wrong.append(
                f"{'.'.join(map(str, each['loc'])) or 'settings'}: {each['msg'].removeprefix('Value error, ')}"
            )
            if each["type"].startswith(("tuple", "list", "dict")):
                form = ", there as JSON"
        raise BadConfiguration(
            f"{'; '.join(wrong)} "
            f"(set in {where}, in config/environment.env or as FLEAD_SECTION__NAME in the environment{form})"
        ) from None
    except SettingsError as error:
        raise BadConfiguration(
            f"a list or map in the environment cannot be read ({error}: {error.__cause__}): write it as JSON, "
            "as in FLEAD_LEARNER__DETECTORS='[\"half_space_trees\"]'"
        ) from None
    except (yaml.YAMLError, OSError, ValueError, TypeError) as error:  # a file of no known form
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise BadConfiguration(f"the settings in {where} cannot be read: {cause}") from None


def strangers() -> Iterator[tuple[str, str]]:
    """Variables with our prefix that mean nothing to us, each with a name that may have been meant, in brackets."""
    sections = {f"{_PREFIX}{name.upper()}": field.annotation for name, field in Settings.model_fields.items()}
    known = [
        f"{section}{_DELIMITER}{name.upper()}" if isinstance(kind, type) and issubclass(kind, BaseModel) else section
        for section, kind in sections.items()
        for name in getattr(kind, "model_fields", [""])
    ]
    for variable in sorted(os.environ):
        name = variable.upper()
        if not name.startswith(_PREFIX) or name.partition(_DELIMITER)[0] in sections or name in _NO_SETTINGS:
            continue
        meant = difflib.get_close_matches(name, known, 1, cutoff=0.8)
        yield variable, f" ({meant[0]}?)" if meant else ""
