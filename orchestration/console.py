"""The console on the global server: what of the server its pages may do, and for whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime

from fastapi import FastAPI
from starlette.requests import Request

from config.settings import Settings
from global_server.access.audit import Audit
from global_server.access.guard import Guard
from global_server.access.roles import Role
from global_server.rounds import RoundService
from orchestration.status import STATUS_FILE
from visualization.console.desk import Desk, Person
from visualization.console.pages import console


class ServerActions:
    """What people may do from the page, done by the global server; `clock` gives the present, aware."""

    def __init__(self, service: RoundService, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._service = service
        self._clock = clock

    def promote(self, cohort: str, version: int, who: str) -> None:
        """Make a version the stable one."""
        self._service.versions.promote(cohort, version, who, self._clock())

    def roll_back(self, cohort: str, version: int, who: str) -> None:
        """Take a version back."""
        self._service.versions.roll_back(cohort, version, who, self._clock())

    def accept(self, device_id: str, who: str) -> None:
        """Let a device in again."""
        self._service.quarantine.accept(device_id, who, self._clock())

    def reject(self, device_id: str, who: str) -> None:
        """Keep a device out for good."""
        self._service.quarantine.reject(device_id, who, self._clock())


def desk_of(service: RoundService, guard: Guard, audit: Audit) -> Desk:
    """The desk at which a server takes what people ask for."""

    async def who(request: Request) -> Person:
        found = await guard.identify(request)
        return Person(found.name, found.role, found.may(Role.OPERATOR), signed_in=guard.required)

    return Desk(ServerActions(service), who, audit.note)


def mount_console(
    app: FastAPI, service: RoundService, guard: Guard, audit: Audit, settings: Settings,
    positions: Mapping[str, tuple[float, float]],
) -> AbstractContextManager[None]:  # fmt: skip
    """Put the console onto the server's application; what it returns is left when the server ends."""
    status_file = settings.run_dir / STATUS_FILE
    desk = desk_of(service, guard, audit)
    return console(app, service, settings.kafka.servers, status_file, positions, desk)
