"""A run from start to verdict: start the parts in order, watch, stop all of it, and say whether it was well."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from config.settings import Settings
from flead.errors import CorruptRunFolder, FleadError, Unavailable
from flink.rest import FlinkRest
from kafka.topics import LOCAL_UPDATES, READINGS, ensure_topics
from orchestration.files import write_atomically
from orchestration.monitor import Monitor
from orchestration.producing import Progress
from orchestration.services import Part, declare, preflight
from orchestration.supervision import State, Supervisor
from storage.archive import ArchiveRepository
from storage.connection import connect, open_database

log = logging.getLogger(__name__)

READY_LIMIT_S = 90.0
JOB_LIMIT_S = 120.0
DRAIN_LIMIT_S = 45.0
REFRESH_S = 1.0
STATUS_FILE = "status.json"
SUMMARY_FILE = "summary.json"
LOCK_FILE = "up.lock"


@dataclass
class Options:
    """What `flead up` was asked for."""

    producer: list[str] | None
    for_s: float | None = None
    without: frozenset[str] = frozenset()


@dataclass
class Status:
    """One look at a run; what `flead status --json` prints and `summary.json` keeps."""

    state: str
    updated: str
    run_dir: str
    services: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)
    lag: dict[str, int] = field(default_factory=dict)
    archive_lag: dict[str, int] = field(default_factory=dict)
    latency_ms: dict[str, float | None] = field(default_factory=dict)
    latency_ms_whole_run: dict[str, float | None] = field(default_factory=dict)
    error: dict[str, float | None] = field(default_factory=dict)
    dead_letter_reasons: dict[str, int] = field(default_factory=dict)
    producer: dict[str, Any] = field(default_factory=dict)
    job: dict[str, Any] = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        """As one JSON object."""
        return json.dumps(asdict(self), indent=1)


class Interrupted(FleadError):
    """Somebody asked the run to end: Ctrl-C, SIGTERM or `flead down`."""


class Run:
    """One run of everything.

    Parameters
    ----------
    show:
        called with each new status
    say:
        called with one line for people at every step
    """

    def __init__(
        self, settings: Settings, options: Options, show: Callable[[Status], None], say: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._options = options
        self._show = show
        self._say = say
        self._begun = time.monotonic()
        self._timings: dict[str, float] = {}
        self._stopping = threading.Event()
        self._status = self._new_status("starting")
        self._monitor: Monitor | None = None
        self._rounds_before = 0
        self._first_reading: float | None = None
        self._produce_file = settings.run_dir / "produce.json"

    def execute(self) -> Status:
        """Start, watch and stop; returns the last status, with its checks.

        Raises
        ------
        FleadError
            where it could not start; everything that was started is stopped again
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._interrupt)
        settings = self._settings
        parts = declare(settings, self._options.producer, self._options.without)
        with ExitStack() as stack:
            stack.enter_context(_only_run(settings.run_dir))
            preflight(settings, parts)
            self._produce_file.unlink(missing_ok=True)
            self._flink = stack.enter_context(FlinkRest(settings.flink.url, timeout_s=2.0))
            self._http = stack.enter_context(httpx.Client(timeout=2.0))
            client = stack.enter_context(connect(settings.mongodb))
            self._archive = ArchiveRepository(open_database(client, settings.mongodb))
            with Supervisor([part.service for part in parts], settings.run_dir) as supervisor:
                try:
                    self._start(supervisor, parts)
                    self._watch(supervisor, parts)
                    self._wind_down(supervisor, parts)
                finally:
                    if self._monitor is not None:
                        self._monitor.stop()
                    self._stop_in_order(supervisor, parts)
            self._status.state = "stopped"
            for service in self._status.services.values():
                service |= {"state": "stopped", "pid": None}
            self._save()
            write_atomically(self._settings.run_dir / SUMMARY_FILE, self._status.to_json())
        return self._status

    def _interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        if self._stopping.is_set():
            return
        self._stopping.set()

    def _start(self, supervisor: Supervisor, parts: list[Part]) -> None:
        """Start the servers side by side, wait until each is ready, then what uses them."""
        users = {"server", "learner", "archive", "producer"}
        servers = [part for part in parts if part.service.name not in users]
        for part in servers:
            part.prepare()
            supervisor.start(part.service.name)
        names = {part.service.name for part in parts}
        for part in servers:
            if part.service.name.startswith("taskmanager") and "learner" in names:
                supervisor.start("learner")  # the job can be submitted while the workers start
                names.discard("learner")
            self._say(f"waiting for {part.service.name}")
            self._wait(supervisor, part.service.name, part.ready, READY_LIMIT_S)
        ensure_topics(self._settings.kafka.servers, self._settings.kafka)
        self._timings["servers_ready"] = self._elapsed()
        for name in ("server", "learner", "archive"):
            if name in names:
                supervisor.start(name)
        self._wait(supervisor, "server", self._server_status, READY_LIMIT_S)
        self._rounds_before = self._rounds()
        self._monitor = Monitor(self._settings.kafka.servers, archived="archive" not in self._options.without)
        self._monitor.start()
        self._say("waiting for the learning job")
        self._wait(supervisor, "learner", self._job_runs, JOB_LIMIT_S)
        self._timings["job_running"] = self._elapsed()
        if "producer" in names:
            supervisor.start("producer")
        self._say(f"everything is up after {self._elapsed():.0f} s")

    def _wait(self, supervisor: Supervisor, name: str, ready: Callable[[], object], limit_s: float) -> None:
        """Wait until a part is ready, no longer than its process lives or `limit_s`."""
        deadline = time.monotonic() + limit_s
        while True:
            if self._stopping.is_set():
                raise Interrupted("interrupted while starting")
            try:
                ready()
            except Unavailable as error:
                trouble = error
            else:
                return
            state = supervisor.states()[name]
            if state.given_up or time.monotonic() > deadline:
                why = "keeps ending" if state.given_up else f"was not ready within {limit_s:g} s ({trouble})"
                raise Unavailable(f"{name} {why}: {_log_hint(supervisor, name)}")
            self._refresh(supervisor)
            time.sleep(0.2)

    def _watch(self, supervisor: Supervisor, parts: list[Part]) -> None:
        """Refresh the status until the end that was asked for."""
        self._status.state = "running"
        while not self._stopping.is_set():
            self._refresh(supervisor)
            for name, service in self._status.services.items():
                if service["state"] == "fatal":
                    self._say(f"{name} was given up: {_log_hint(supervisor, name)}")
                    return
            producer = self._status.producer
            if producer.get("finished"):
                self._say("the producer has sent everything")
                return
            first = producer.get("first_sent_ms") if self._options.producer else self._first_reading_ms()
            if self._options.for_s and first and time.time() - first / 1000 >= self._options.for_s:
                return
            self._stopping.wait(REFRESH_S)

    def _wind_down(self, supervisor: Supervisor, parts: list[Part]) -> None:
        """Stop the source, let what is on its way arrive, stop the job with a savepoint, and judge."""
        self._status.state = "stopping"
        names = {part.service.name for part in parts}
        if "producer" in names:
            supervisor.stop("producer")
        self._say("letting what is on its way arrive")
        self._drain(supervisor, lambda status: status.lag.get(READINGS, 0) == 0)
        # What the learners have sent becomes visible with the savepoint; the server and the archive then take it in.
        in_flight = self._status.lag.get(READINGS, 0)
        job_at_the_end = dict(self._status.job)
        supervisor.stop("learner")
        self._drain(
            supervisor,
            lambda status: status.lag.get(LOCAL_UPDATES, 0) == 0 and not sum(status.archive_lag.values()),
        )
        self._status.job = job_at_the_end
        self._status.counts["in_flight_at_stop"] = in_flight
        self._status.checks = self._verdict()

    def _drain(self, supervisor: Supervisor, done: Callable[[Status], bool]) -> None:
        deadline = time.monotonic() + DRAIN_LIMIT_S
        while True:
            self._refresh(supervisor)
            if done(self._status) or time.monotonic() > deadline:
                return
            time.sleep(0.3)

    def _stop_in_order(self, supervisor: Supervisor, parts: list[Part]) -> None:
        """Stop users before the servers they use."""
        self._say("stopping")
        for part in reversed(parts):
            with suppress(Unavailable):
                supervisor.stop(part.service.name)

    # ------------------------------------------------------------------ looking

    def _refresh(self, supervisor: Supervisor) -> None:
        """Look at everything once; what does not answer keeps its last value."""
        status = self._status
        states = supervisor.states()
        status.services = {name: self._service(supervisor, name, state) for name, state in states.items()}
        with suppress(Unavailable):
            self._look_at_job()
        with suppress(Unavailable):
            if self._monitor is not None:
                for name, value in self._monitor.snapshot().items():
                    if name == "counts":
                        status.counts |= value
                    else:
                        setattr(status, name, value)
        with suppress(Unavailable):
            if self._monitor is not None:
                status.counts["rounds"] = self._rounds()
                status.counts["rounds_this_run"] = status.counts["rounds"] - self._rounds_before
        with suppress(Unavailable):
            if self._monitor is not None:
                status.counts |= self._stored()
        with suppress(OSError, ValueError):
            status.producer = json.loads(self._produce_file.read_text())
        if status.counts.get("rounds_this_run") and "first_round" not in self._timings:
            self._timings["first_round"] = self._elapsed()
            self._say(f"first round {self._elapsed():.0f} s after the start")
        self._save()

    def _save(self) -> None:
        self._status.updated = _now()
        self._status.timings_s = {**self._timings, "total": self._elapsed()}
        write_atomically(self._settings.run_dir / STATUS_FILE, self._status.to_json())
        self._show(self._status)

    def _service(self, supervisor: Supervisor, name: str, state: State) -> dict[str, Any]:
        port = supervisor.services[name].port
        shown = state.state
        if shown == "exited":  # by itself, for good: what had no more to do, or could not go on
            shown = "finished" if name == "producer" and self._status.producer.get("finished") else "fatal"
        return {"state": shown, "pid": state.pid, "port": port, "restarts": state.restarts}

    def _look_at_job(self) -> None:
        job = self._flink.job()
        if job is not None:
            state = "INITIALIZING" if job.state == "RUNNING" and not job.is_processing else job.state
            self._status.job = {"id": job.job_id, "state": state, "restarts": self._flink.restarts(job.job_id)}

    def _job_runs(self) -> None:
        self._look_at_job()
        if self._status.job.get("state") != "RUNNING":
            raise Unavailable(f"the job is {self._status.job.get('state', 'not submitted yet')}")

    def _server_status(self) -> dict[str, Any]:
        url = f"{self._settings.server.url}/api/status"
        try:
            answer = self._http.get(url)
            answer.raise_for_status()
            return dict(answer.json())
        except (httpx.HTTPError, ValueError) as error:
            raise Unavailable(f"the global server does not answer at {url} ({error or type(error).__name__})") from None

    def _rounds(self) -> int:
        return sum(cohort["rounds"] for cohort in self._server_status()["cohorts"].values())

    def _stored(self) -> dict[str, int]:
        counts = self._archive.counts()
        return {"device_data": counts["device_data"], "predictions_stored": counts["predictions"]}

    def _first_reading_ms(self) -> float | None:
        if self._first_reading is None and self._status.counts.get("readings"):
            self._first_reading = time.time() * 1000
        return self._first_reading

    # ------------------------------------------------------------------ judging

    def _verdict(self) -> dict[str, dict[str, Any]]:
        """The run's own health conditions."""
        status, counts = self._status, self._status.counts
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
        if producer is not None:
            checks["delivered"] = (
                producer.failed == 0 and producer.delivered == producer.sent,
                f"{producer.sent} sent, {producer.delivered} delivered, {producer.failed} failed, "
                f"{producer.rejected} rows rejected",
            )
        if counts.get("devices_updating", 0) >= self._settings.aggregation.min_devices:
            rounds = counts.get("rounds_this_run", 0)
            checks["rounds"] = (
                rounds > 0,
                f"{rounds} rounds, {counts.get('devices_adopted', 0)} devices adopted a global model",
            )
        return {name: {"ok": bool(ok), "detail": detail} for name, (ok, detail) in checks.items()}

    def _elapsed(self) -> float:
        return round(time.monotonic() - self._begun, 2)

    def _new_status(self, state: str) -> Status:
        return Status(state=state, updated=_now(), run_dir=str(self._settings.run_dir))


@contextmanager
def _only_run(run_dir: Path) -> Iterator[None]:
    """Hold the run folder; its lock file names our process for `flead down`."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / LOCK_FILE).open("a+")
    except OSError as error:
        raise CorruptRunFolder(
            f"the run folder {run_dir} cannot be used ({error.strerror}): name another with --run-dir"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Unavailable(
                f"another run uses {run_dir}: stop it with `flead down --run-dir {run_dir}`, or name another folder"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def running_pid(run_dir: Path) -> int | None:
    """The process that holds a run folder; None where no run does."""
    path = run_dir / LOCK_FILE
    if not path.exists():
        return None
    with path.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return int(path.read_text() or 0) or None
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _log_hint(supervisor: Supervisor, name: str) -> str:
    """The end of a service's log, on one line, and where the rest is."""
    lines = " | ".join(line.strip() for line in supervisor.last_lines(name, 3))
    return f"{lines[-400:] or 'it said nothing'} (all of it: {supervisor.logs / name}.log)"
