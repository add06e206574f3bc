"""A run from start to verdict: start the parts in order, watch, stop all of it, and say whether it was well."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

from config.settings import Settings
from flead.errors import CorruptRunFolder, FleadError, Unavailable
from kafka.topics import LOCAL_UPDATES, READINGS, ensure_topics
from orchestration.files import GB_TO_GO_ON
from orchestration.services import Part, declare, preflight
from orchestration.status import Status, only_run
from orchestration.supervision import Supervisor
from orchestration.watching import Watcher, judge

READY_LIMIT_S = 90.0
JOB_LIMIT_S = 120.0
DRAIN_LIMIT_S = 45.0
LATER_AFTER_S = 30.0
"""What only looks at the stream begins so long after everything is up, if there is no round before."""
DASHBOARDS = ("mart", "superset")
"""A run goes on without them."""
LATER = ("analytics", *DASHBOARDS)
"""In the order of their start."""
BETWEEN_STARTS_S = 8.0
"""Each of them is busy for about so long at first."""
REFRESH_S = 1.0
Told = TypeVar("Told")


@dataclass
class Options:
    """What `flead up` was asked for."""

    producer: list[str] | None
    for_s: float | None = None
    without: frozenset[str] = frozenset()


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
    reveal:
        called with a line that holds a password, once, when it is made; not for a log
    """

    def __init__(
        self,
        settings: Settings,
        options: Options,
        show: Callable[[Status], None],
        say: Callable[[str], None],
        reveal: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._options = options
        self._say = _while_somebody_listens(say)
        self._reveal = _while_somebody_listens(reveal)
        self._stopping = threading.Event()
        self._watcher = Watcher(
            settings,
            archived="archive" not in options.without,
            show=_while_somebody_listens(show),
            say=self._say,
        )
        self._status = self._watcher.status
        self._later: list[str] = []
        self._next_start = 0.0

    def execute(self) -> Status:
        """Start, watch and stop; returns the last status, with its checks.

        Raises
        ------
        FleadError
            where it could not start; everything that was started is stopped again
        """
        self._listen_to_signals()
        settings = self._settings
        parts = declare(settings, self._options.producer, self._options.without, self._reveal)
        with ExitStack() as stack:
            stack.enter_context(only_run(settings.run_dir))
            preflight(settings, parts)
            stack.enter_context(self._watcher)
            try:
                with Supervisor([part.service for part in parts], settings.run_dir) as supervisor:
                    try:
                        self._start(supervisor, parts)
                        self._watch(supervisor)
                        self._wind_down(supervisor, parts)
                    finally:
                        self._watcher.stop_counting()
                        self._stop_in_order(supervisor, parts)
            finally:
                self._status.mark_stopped()
                self._watcher.save_summary()
        return self._status

    def _listen_to_signals(self) -> None:
        def interrupt(_signal: int, _frame: FrameType | None) -> None:
            self._stopping.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, interrupt)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup ignores it for us
            signal.signal(signal.SIGHUP, interrupt)

    def _start(self, supervisor: Supervisor, parts: list[Part]) -> None:
        """Start the servers side by side, wait until each is ready, then what uses them."""
        watcher = self._watcher
        users = {"server", "learner", "archive", "producer", *LATER}
        servers = [part for part in parts if part.service.name not in users]
        for part in parts:
            if part not in servers:
                part.prepare()
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
        watcher.mark("servers_ready")
        for name in ("server", "learner", "archive"):
            if name in names:
                supervisor.start(name)
        self._wait(supervisor, "server", watcher.server_status, READY_LIMIT_S)
        watcher.start_counting()
        self._say("waiting for the learning job")
        self._wait(supervisor, "learner", watcher.job_runs, JOB_LIMIT_S)
        watcher.mark("job_running")
        self._later = [name for name in LATER if name in names]
        if "producer" in names:
            supervisor.start("producer")
        self._say(f"everything is up after {watcher.elapsed_s():.0f} s: {self._settings.server.url}/console")

    def _wait(self, supervisor: Supervisor, name: str, ready: Callable[[], object], limit_s: float) -> None:
        """Wait until a part is ready, no longer than its process lives or `limit_s`."""
        deadline = time.monotonic() + limit_s
        while True:
            if self._stopping.is_set():
                raise Interrupted("interrupted while starting")
            try:
                ready()
            except CorruptRunFolder:  # waiting does not mend it
                raise
            except Unavailable as error:
                trouble = error
            else:
                return
            state = supervisor.states()[name]
            if state.given_up or time.monotonic() > deadline:
                why = "keeps ending" if state.given_up else f"was not ready within {limit_s:g} s ({trouble})"
                raise Unavailable(f"{name} {why}: {_log_hint(supervisor, name)}")
            self._watcher.look(supervisor)
            time.sleep(0.2)

    def _watch(self, supervisor: Supervisor) -> None:
        """Refresh the status until the end that was asked for."""
        self._status.state = "running"
        began, said = self._watcher.elapsed_s(), set[str]()
        while not self._stopping.is_set():
            self._watcher.look(supervisor)
            if self._status.counts.get("rounds") or self._watcher.elapsed_s() - began > LATER_AFTER_S:
                self._start_next(supervisor)
            given_up = {name for name, service in self._status.services.items() if service["state"] == "fatal"}
            for name in sorted(given_up - said):
                self._say(f"{name} was given up: {_log_hint(supervisor, name)}")
            said |= given_up
            if given_up - set(DASHBOARDS) or self._is_over():
                return
            self._stopping.wait(REFRESH_S)

    def _is_over(self) -> bool:
        """Whether the end that was asked for has come, or one that nobody asked for comes near: a full disk."""
        free, producer = self._status.disk_free_gb, self._status.producer
        if free is not None and free < GB_TO_GO_ON:
            self._say(
                f"stopping while there is room for a savepoint: only {free:.1f} GB are free under "
                f"{self._settings.run_dir}; make room, and start again with the same folder"
            )
            return True
        if producer.get("finished"):
            self._say("the producer has sent everything")
            return True
        if self._options.for_s is None:
            return False
        first = producer.get("first_sent_ms") if self._options.producer else self._watcher.first_reading_ms()
        return first is not None and time.time() - first / 1000 >= self._options.for_s

    def _start_next(self, supervisor: Supervisor) -> None:
        """Start the next of what only looks on: after the first round, and not all at once, for all want the cores."""
        if self._later and time.monotonic() >= self._next_start:
            self._next_start = time.monotonic() + BETWEEN_STARTS_S
            name = self._later.pop(0)
            supervisor.start(name)
            if name == "superset":
                self._say(f"dashboards within half a minute, the first time two: {self._settings.dashboards.url}")

    def _wind_down(self, supervisor: Supervisor, parts: list[Part]) -> None:
        """Stop the source, let what is on its way arrive, stop the job with a savepoint, and judge."""
        self._status.state = "stopping"
        if "analytics" in self._later:  # a short run: what has flowed is still to be stored
            supervisor.start("analytics")
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
        self._status.checks = judge(self._status, self._settings.aggregation.min_devices)

    def _drain(self, supervisor: Supervisor, done: Callable[[Status], bool]) -> None:
        deadline = time.monotonic() + DRAIN_LIMIT_S
        while True:
            self._watcher.look(supervisor)
            if done(self._status) or time.monotonic() > deadline:
                return
            time.sleep(0.3)

    def _stop_in_order(self, supervisor: Supervisor, parts: list[Part]) -> None:
        """Stop users before the servers they use."""
        self._say("stopping")
        for part in reversed(parts):
            with suppress(Unavailable):
                supervisor.stop(part.service.name)


def _while_somebody_listens(tell: Callable[[Told], object]) -> Callable[[Told], None]:
    """Tell people how a run goes; where their terminal or pipe is gone, the run goes on and stops in order."""

    def told(what: Told) -> None:
        with suppress(OSError, SystemExit):  # rich ends a process whose pipe has no reader
            tell(what)

    return told


def _log_hint(supervisor: Supervisor, name: str) -> str:
    """The end of a service's log, on one line, and where the rest is."""
    lines = " | ".join(line.strip() for line in supervisor.last_lines(name, 3))
    return f"{lines[-400:] or 'it said nothing'} (all of it: {supervisor.logs / name}.log)"
