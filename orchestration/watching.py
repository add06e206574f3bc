"""Looking at a run: what its parts say of themselves, gathered into one status, and the verdict on it at the end."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import httpx
from pydantic import SecretStr

from config.settings import Settings
from flead.errors import Unavailable
from flink.rest import FlinkRest
from global_server.access.tokens import SECRET_FILE, of_the_run
from orchestration.files import GB_TO_GO_ON, free_gb, write_atomically
from orchestration.monitor import Monitor
from orchestration.producing import Progress
from orchestration.status import STATUS_FILE, SUMMARY_FILE, Status
from orchestration.supervision import State, Supervisor
from storage.archive import ArchiveRepository
from storage.connection import connect, open_database
from storage.documents import PipelineSample
from storage.reader import kept_secret
from storage.samples import SampleRepository
from visualization.mart import server as postgres
from visualization.mart.lag import lag_of

SAMPLE_EVERY_S = 5.0
"""How often a look is kept in MongoDB, for dashboards."""
_DOWN = {"backoff", "fatal"}


class Watcher:
    """Looks at a run and keeps what it saw in `status`; as a context it holds the connections that this takes.

    Parameters
    ----------
    archived:
        whether the archive is part of the run
    show:
        called with the status after each look
    say:
        called with one line for people
    """

    def __init__(
        self, settings: Settings, *, archived: bool, show: Callable[[Status], None], say: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._archived = archived
        self._show = show
        self._say = say
        self._begun = time.monotonic()
        self._run = _now()
        self._timings: dict[str, float] = {}
        self._monitor: Monitor | None = None
        self._rounds_before = 0
        self._first_reading: float | None = None
        self._next_sample_s = 0.0
        self._produce_file = settings.run_dir / "produce.json"
        self.status = Status(state="starting", updated=_now(), run_dir=str(settings.run_dir))

    @cached_property
    def _mart(self) -> SecretStr:
        """The mart's address, which only a run with one has."""
        return postgres.address(self._settings.mart, self._settings.run_dir, postgres.Role.READER)

    def __enter__(self) -> Self:
        settings = self._settings
        for earlier in (self._produce_file, settings.run_dir / SUMMARY_FILE):
            earlier.unlink(missing_ok=True)
        with ExitStack() as stack:
            self._flink = stack.enter_context(FlinkRest(settings.flink.url, timeout_s=2.0))
            certificate = settings.server.tls_certificate
            verify = ssl.create_default_context(cafile=certificate) if certificate else True
            self._http = stack.enter_context(httpx.Client(timeout=2.0, verify=verify))
            client = stack.enter_context(connect(settings.mongodb))
            database = open_database(client, settings.mongodb)
            self._archive, self._samples = ArchiveRepository(database), SampleRepository(database)
            self.save()  # an earlier run's is not ours
            self._connections = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connections.__exit__(kind, error, trace)

    def start_counting(self) -> None:
        """Count from here what flows and how many rounds are made; Kafka and the server must answer."""
        self._rounds_before = self._rounds()
        self._monitor = Monitor(self._settings.kafka.servers, archived=self._archived)
        self._monitor.start()

    def stop_counting(self) -> None:
        """Count no more; not counting is fine."""
        if self._monitor is not None:
            self._monitor.stop()

    def mark(self, step: str) -> None:
        """Note the time since the start, s, at which a step was reached."""
        self._timings[step] = self.elapsed_s()

    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return round(time.monotonic() - self._begun, 2)

    def look(self, supervisor: Supervisor) -> None:
        """Look at everything once; what does not answer keeps its last value."""
        status = self.status
        status.disk_free_gb = round(free_gb(self._settings.run_dir), 2)
        states = supervisor.states()
        with suppress(OSError, ValueError):
            status.producer = json.loads(self._produce_file.read_text())
        status.services = {name: self._service(supervisor, name, state) for name, state in states.items()}
        with suppress(Unavailable):
            self._look_at_job()
        if self._monitor is not None:
            with suppress(Unavailable):
                self._take_counts(self._monitor)
            with suppress(Unavailable):
                status.counts["rounds"] = self._rounds()
                status.counts["rounds_this_run"] = status.counts["rounds"] - self._rounds_before
            with suppress(Unavailable):
                status.counts |= self._stored()
            with suppress(Unavailable):
                self._keep_sample()
        if "mart" in states:
            with suppress(Unavailable):
                status.mart = asdict(lag_of(self._mart))
        if status.counts.get("rounds_this_run") and "first_round" not in self._timings:
            self.mark("first_round")
            self._say(f"first round {self.elapsed_s():.0f} s after the start")
        self.save()

    def save(self) -> None:
        """Keep the status as it is for `flead status`, and show it."""
        self.status.updated = _now()
        self.status.timings_s = {**self._timings, "total": self.elapsed_s()}
        write_atomically(self._settings.run_dir / STATUS_FILE, self.status.to_json())
        self._show(self.status)

    def save_summary(self) -> None:
        """Keep the status as the run's last."""
        self.save()
        write_atomically(self._settings.run_dir / SUMMARY_FILE, self.status.to_json())

    def job_runs(self) -> None:
        """Return if the learning job runs; raises `Unavailable` where it does not (yet)."""
        self._look_at_job()
        if self.status.job.get("state") != "RUNNING":
            raise Unavailable(f"the job is {self.status.job.get('state', 'not submitted yet')}")

    def _credentials(self) -> dict[str, str]:
        """What shows the server who asks: we read the same run folder. The server makes the secret at its start."""
        secret = self._settings.run_dir / SECRET_FILE
        if self._settings.server.access == "open" or not secret.exists():
            return {}
        return {"Authorization": f"Bearer {of_the_run(kept_secret(secret))}"}

    def server_status(self) -> dict[str, Any]:
        """What the global server says of itself; raises `Unavailable` where it says nothing."""
        url = f"{self._settings.server.url}/api/status"
        try:
            answer = self._http.get(url, headers=self._credentials())
            answer.raise_for_status()
            return dict(answer.json())
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable(f"the global server does not answer at {url} ({error or type(error).__name__})") from None

    def first_reading_ms(self) -> float | None:
        """When a reading was first seen here, Unix time in ms; None before."""
        if self._first_reading is None and self.status.counts.get("readings"):
            self._first_reading = time.time() * 1000
        return self._first_reading

    def _keep_sample(self) -> None:
        """Keep this look for dashboards, if the last one that was kept is old enough."""
        if self._archived and self.elapsed_s() >= self._next_sample_s and self.status.latency_ms:
            self._next_sample_s = self.elapsed_s() + SAMPLE_EVERY_S
            self._samples.add(sample_of(self.status, self._run, datetime.now(UTC)))

    def _take_counts(self, monitor: Monitor) -> None:
        for name, value in monitor.snapshot().items():
            if name == "counts":
                self.status.counts |= value
            else:
                setattr(self.status, name, value)

    def _service(self, supervisor: Supervisor, name: str, state: State) -> dict[str, Any]:
        port = supervisor.services[name].port
        shown = state.state
        if shown == "exited":  # by itself, for good: what had no more to do, or could not go on
            shown = "finished" if name == "producer" and self.status.producer.get("finished") else "fatal"
        return {"state": shown, "pid": state.pid, "port": port, "restarts": state.restarts}

    def _look_at_job(self) -> None:
        job = self._flink.job()
        if job is not None:
            state = "INITIALIZING" if job.state == "RUNNING" and not job.is_processing else job.state
            self.status.job = {"id": job.job_id, "state": state, "restarts": self._flink.restarts(job.job_id)}

    def _rounds(self) -> int:
        return sum(cohort["rounds"] for cohort in self.server_status()["cohorts"].values())

    def _stored(self) -> dict[str, int]:
        counts = self._archive.counts(exact=self.status.state == "stopping")
        return {"device_data": counts["device_data"], "predictions_stored": counts["predictions"]}


def sample_of(status: Status, run: str, now: datetime) -> PipelineSample:
    """What dashboards show of one look at a run.

    Parameters
    ----------
    run:
        which run it is
    now:
        when it was looked at, aware
    """
    counts, error = status.counts, status.error
    flowed = ("readings", "predictions", "anomalies", "local_updates", "dead_letters", "devices")
    return PipelineSample(
        run=run,
        timestamp=now,
        **{name: counts.get(name, 0) for name in flowed},
        rounds=counts.get("rounds_this_run", 0),
        lag=status.lag,
        latency_p50_ms=status.latency_ms.get("p50"),
        latency_p99_ms=status.latency_ms.get("p99"),
        error=error.get("first_minute") if error.get("last_minute") is None else error.get("last_minute"),
        services_down=sum(service["state"] in _DOWN for service in status.services.values()),
    )


def judge(status: Status, min_devices: int) -> dict[str, dict[str, Any]]:
    """A run's own health conditions: each `ok` or not, and what was found.

    Parameters
    ----------
    min_devices:
        how many devices with updates start a round
    """
    counts = status.counts
    producer = Progress(**status.producer) if status.producer else None
    refused = counts.get("updates_refused", 0)
    given_up = [name for name, service in status.services.items() if service["state"] == "fatal"]
    readings, taken, dead = (counts.get(name, 0) for name in ("readings", "taken_up", "dead_readings"))
    in_flight = counts.get("in_flight_at_stop", 0)
    unstored = sum(status.archive_lag.values())
    checks = {
        "services": (
            not given_up,
            f"given up: {', '.join(given_up)}" if given_up else "all stayed up or came back",
        ),
        "job": (
            status.job.get("state") == "RUNNING",
            f"{status.job.get('state')}, {status.job.get('restarts')} restarts",
        ),
        "nothing_lost": (
            readings == taken + dead + in_flight and in_flight == 0,
            f"{readings} readings = {taken} taken up + {dead} dead letters + {in_flight} in flight at the stop",
        ),
        "updates": (not refused, f"{counts.get('local_updates', 0)} updates, {refused} refused"),
        "counters": (
            not counts.get("update_counters_fell"),
            f"a device's training counter went down {counts.get('update_counters_fell', 0)} times",
        ),
        "stored": (
            not unstored,
            f"{unstored} records not stored yet",
        ),
    }
    if status.disk_free_gb is not None:
        checks["disk"] = (status.disk_free_gb >= GB_TO_GO_ON, f"{status.disk_free_gb:.2f} GB are free")
    if producer is not None:
        checks["delivered"] = (
            producer.failed == 0 and producer.delivered == producer.sent,
            f"{producer.sent} sent, {producer.delivered} delivered, {producer.failed} failed, "
            f"{producer.rejected} rows rejected",
        )
    if counts.get("devices_updating", 0) >= min_devices:
        rounds = counts.get("rounds_this_run", 0)
        checks["rounds"] = (
            rounds > 0,
            f"{rounds} rounds, {counts.get('devices_adopted', 0)} devices adopted a global model",
        )
    return {name: {"ok": bool(ok), "detail": detail} for name, (ok, detail) in checks.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat()
