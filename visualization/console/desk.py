"""What people do from the page: promote, roll back, let in again, keep out. Asked who they are each time, and noted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.requests import Request

from flead.errors import BadCredentials, Conflict, FleadError, Forbidden, Refused
from flead.messages import Name

LOG = logging.getLogger(__name__)

NOBODY = "?"
"""Who asks, in the audit log, where nobody knows."""


class Person(NamedTuple):
    """Who looks at a page.

    Attributes
    ----------
    may_act:
        whether this person may change something
    signed_in:
        whether that had to be shown
    """

    name: str
    role: str
    may_act: bool
    signed_in: bool = True


Who = Callable[[Request], Awaitable[Person | None]]
"""Says who made a page's request, as of now; None, or `Refused`, where that no longer holds."""
Note = Callable[[str, str, str, str], None]
"""Notes in the audit log: who, action, target, outcome."""


class Actions(Protocol):
    """What can be done. Each may raise `Conflict`, `NotThere` or `Unavailable`; `who` is the person's name."""

    def promote(self, cohort: str, version: int, who: str) -> None:
        """Make a version the stable one."""

    def roll_back(self, cohort: str, version: int, who: str) -> None:
        """Take a version back."""

    def accept(self, device_id: str, who: str) -> None:
        """Let a device in again."""

    def reject(self, device_id: str, who: str) -> None:
        """Keep a device out for good."""


class _Wish(BaseModel):
    """What a page asks for; a page's browser may send anything."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class OfModel(_Wish):
    """About a version of a global model."""

    action: Literal["promote", "roll_back"]
    cohort: Name
    version: int = Field(ge=1, le=2**53 - 1)

    @property
    def audited(self) -> tuple[str, str]:
        """Action and target, as the REST interface notes them."""
        return f"model.{self.action.replace('_', '')}", f"{self.cohort}#{self.version}"

    def do(self, actions: Actions, who: str) -> str:
        """Do it; returns what to tell."""
        if self.action == "promote":
            actions.promote(self.cohort, self.version, who)
            return f"Version {self.version} of {self.cohort} is the stable one now."
        actions.roll_back(self.cohort, self.version, who)
        return f"Version {self.version} of {self.cohort} is taken back."


class OfDevice(_Wish):
    """About a device in quarantine."""

    action: Literal["accept", "reject"]
    device: Name

    @property
    def audited(self) -> tuple[str, str]:
        """Action and target, as the REST interface notes them."""
        return f"quarantine.{self.action}", self.device

    def do(self, actions: Actions, who: str) -> str:
        """Do it; returns what to tell."""
        if self.action == "accept":
            actions.accept(self.device, who)
            return f"{self.device} is let in again."
        actions.reject(self.device, who)
        return f"{self.device} is kept out for good."


_WISHES: TypeAdapter[OfModel | OfDevice] = TypeAdapter(Annotated[OfModel | OfDevice, Field(discriminator="action")])


class Desk:
    """Takes what people ask for, holds it against who they are at that moment, does it and has it noted."""

    def __init__(self, actions: Actions, who: Who, note: Note) -> None:
        self._actions = actions
        self._who = who
        self._note = note

    async def person(self, request: Request) -> Person | None:
        """Who made a request; None where nobody knows."""
        try:
            return await self._who(request)
        except FleadError as error:
            LOG.info("a page is shown to nobody in particular: %s", error)
            return None

    async def may_look(self, request: Request) -> bool:
        """Whether whoever made a request may still see the page: not once logged out, removed, or out of time."""
        try:
            return await self._who(request) is not None
        except Refused:
            return False
        except FleadError:  # nobody can say: what was known a moment ago holds
            return True

    async def act(self, request: Request, asked: Any) -> str:
        """Do what a page of this request asks for; returns what to tell.

        Raises
        ------
        FleadError
            where that person may not, or it cannot be done
        """
        try:
            wish = _WISHES.validate_python(asked)
        except ValidationError:
            raise Conflict("the page asks for something that there is not: reload it") from None
        name = NOBODY
        outcome = "failed"
        try:
            person = await self._who(request)
            name = person.name if person else NOBODY
            _check(person)
            told = await asyncio.to_thread(wish.do, self._actions, name)
            outcome = "done"
        except FleadError as error:
            outcome = f"refused: {error}"[:300]
            raise
        finally:
            await asyncio.to_thread(self._note, name, *wish.audited, outcome)
        return told


def _check(person: Person | None) -> None:
    if person is None:
        raise BadCredentials("nobody is signed in: log in again")
    if not person.may_act:
        raise Forbidden(f"{person.name} is {person.role}, and may only look on")
