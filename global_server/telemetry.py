"""What Prometheus reads at `/metrics`. Labels are bounded: declared routes, reasons, and so many cohorts."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import islice

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flead.errors import BadInput
from flead.messages import GlobalModel
from global_server.memory import Accepted
from global_server.rounds import RoundService
from storage.rounds import Update

MOST_COHORTS = 100
"""Cohorts with figures of their own; more would be a time series each, for ever."""
_REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_ROUND_S = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_OTHER = "other"


class Telemetry:
    """The figures of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "flead_requests", "Requests answered.", ["method", "route", "status"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "flead_request_seconds", "From a request to its answer.", ["route"], buckets=_REQUEST_S,
            registry=self.registry,
        )  # fmt: skip
        self.updates = Counter(
            "flead_updates", "Local updates by what became of them.", ["outcome", "reason"], registry=self.registry
        )
        self.rounds = Counter("flead_rounds", "Rounds made by this process.", registry=self.registry)
        self.round_seconds = Histogram(
            "flead_round_seconds", "To merge and store a round.", buckets=_ROUND_S, registry=self.registry
        )
        self.up = Gauge("flead_up", "Whether a part of the system answers.", ["part"], registry=self.registry)

    def count_updates(self, outcomes: Iterable[Accepted | BadInput]) -> None:
        """Count updates."""
        named = collections.Counter(
            ("refused", o.reason.value) if isinstance(o, BadInput) else (o.value, "") for o in outcomes
        )
        for labels, count in named.items():
            self.updates.labels(*labels).inc(count)

    def count_round(self, seconds: float) -> None:
        """Count a round."""
        self.rounds.inc()
        self.round_seconds.observe(seconds)

    def watch(self, service: RoundService) -> None:
        """Show what a service holds, as it is when it is asked."""
        self.registry.register(_Cohorts(service.summary))

    def page(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry)


class MeasuredService(RoundService):
    """A round service whose updates and rounds are counted, whether they come from REST or from Kafka."""

    telemetry: Telemetry | None = None

    def accept_read(self, read: Sequence[Update | BadInput]) -> list[Accepted | BadInput]:
        """Take updates in order, and count them."""
        outcomes = super().accept_read(read)
        if self.telemetry:
            self.telemetry.count_updates(outcomes)
        return outcomes

    def aggregate(self, cohort: str, now: datetime) -> GlobalModel | None:
        """Make a round, and measure it."""
        begun = time.perf_counter()
        model = super().aggregate(cohort, now)
        if model and self.telemetry:
            self.telemetry.count_round(time.perf_counter() - begun)
        return model


class _Cohorts(Collector):
    """The cohorts' figures, read at each scrape."""

    def __init__(self, summary: Callable[[], dict[str, dict[str, int]]]) -> None:
        self._summary = summary

    def collect(self) -> Iterable[Metric]:
        """Give the families."""
        version = GaugeMetricFamily("flead_model_version", "The newest round of a cohort.", labels=["cohort"])
        pending = GaugeMetricFamily("flead_pending_updates", "Devices that wait for a round.", labels=["cohort"])
        devices = GaugeMetricFamily("flead_devices", "Devices ever heard of.", labels=["cohort"])
        found = self._summary()
        for name, figures in islice(sorted(found.items()), MOST_COHORTS):
            version.add_metric([name], figures["rounds"])
            pending.add_metric([name], figures["pending_updates"])
            devices.add_metric([name], figures["unique_devices"])
        yield from (version, pending, devices)
        yield GaugeMetricFamily("flead_cohorts", "Cohorts that there are.", value=len(found))


class Measured:
    """ASGI middleware: counts requests and measures how long answers take."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, pages: str | None) -> None:
        self._app = app
        self._telemetry = telemetry
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and look at the clock."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            route, method = self._route(scope), scope["method"]
            known = method if method in ("GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS", "PATCH") else _OTHER
            self._telemetry.requests.labels(known, route, str(status)).inc()
            self._telemetry.request_seconds.labels(route).observe(time.perf_counter() - begun)

    def _route(self, scope: Scope) -> str:
        """The route as it was declared: what is in a path is nobody's label."""
        declared = getattr(scope.get("route"), "path", None)
        if declared:
            return str(declared)
        return self._pages if self._pages and scope["path"].startswith(self._pages) else _OTHER
