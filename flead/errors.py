"""Every error that FLEAD raises on purpose, as one tree.

::

    FleadError
    ├── BadInput                something from outside breaks a contract; the sender can mend it
    │   ├── BadReading          a record of `flead.readings`: goes to the dead letters, with its `Reason`
    │   ├── BadUpdate           a local update: refused with a problem document or a dead letter
    │   ├── BadModel            weights whose shapes, numbers or architecture do not hold
    │   │   └── ForgedModel     a global model that no trusted server signed
    │   └── BadRules            rules for making rounds that cannot be
    ├── BadDataset              a file of readings that cannot be read at all
    ├── Refused                 who asks may not
    │   ├── BadCredentials      nothing that shows who asks, or nothing that holds
    │   ├── Forbidden           known, and not allowed to
    │   └── TooOften            allowed to, and asks too often
    ├── BudgetSpent             a round would tell more about a device than is allowed
    ├── BadSecureSum            a step of a secure sum that does not hold: keys, shares, or what is asked of a device
    ├── NotThere                what is asked about does not exist
    ├── Conflict                what is asked cannot be done as things stand
    │   └── WrongPhase          a step of a secure sum that is over, or has not begun
    ├── BadConfiguration        a setting that cannot work; names the setting and the mend
    └── Unavailable             a part of the system that does not answer (broker, database, Flink, network)
        ├── PortTaken           another process listens where ours should
        └── CorruptRunFolder    what an earlier run left cannot be continued from

Errors of foreign libraries are translated at the boundary where they arise. Each message says what is wrong,
where, and what to do about it.
"""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a record was refused; the code in a dead letter."""

    EMPTY = "empty"
    TOO_LARGE = "too_large"
    NOT_JSON = "not_json"
    NOT_AN_OBJECT = "not_an_object"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    BAD_NAME = "bad_name"
    NO_SENSORS = "no_sensors"
    TOO_MANY_SENSORS = "too_many_sensors"
    NOT_FINITE = "not_finite"
    OUT_OF_RANGE = "out_of_range"
    BAD_TIME = "bad_time"
    TIME_OUT_OF_RANGE = "time_out_of_range"
    CORRUPT_ROW = "corrupt_row"
    BAD_UPDATE = "bad_update"
    BAD_MODEL = "bad_model"
    FORGED = "forged"
    LEARNER_FAILED = "learner_failed"


class FleadError(Exception):
    """The root: catch this to catch everything that FLEAD raises on purpose."""

    exit_code = 1
    """What a command ends with when this stops it."""


class BadInput(FleadError):
    """Something from outside breaks a contract.

    Parameters
    ----------
    reason:
        the code that scripts and dashboards group by
    detail:
        one line for people: what, where, what to do
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class BadReading(BadInput):
    """A record of `flead.readings` that is not a reading."""


class BadUpdate(BadInput):
    """A local update that must not enter a round."""

    def __init__(self, detail: str, reason: Reason = Reason.BAD_UPDATE) -> None:
        super().__init__(reason, detail)


class BadModel(BadInput):
    """Weights whose shapes, numbers or architecture do not hold."""

    def __init__(self, detail: str, reason: Reason = Reason.BAD_MODEL) -> None:
        super().__init__(reason, detail)


class ForgedModel(BadModel):
    """A global model that no trusted server signed."""

    def __init__(self, detail: str) -> None:
        super().__init__(detail, Reason.FORGED)


class BadRules(BadInput):
    """Rules for making rounds that cannot be."""

    def __init__(self, detail: str) -> None:
        super().__init__(Reason.OUT_OF_RANGE, detail)


class BadDataset(FleadError):
    """A file of readings that cannot be read at all: missing, empty, of no known format."""


class Refused(FleadError):
    """Who asks may not."""


class BadCredentials(Refused):
    """Nothing shows who asks, or what does is wrong, expired or revoked."""


class Forbidden(Refused):
    """It is known who asks, and that is not allowed to them."""


class TooOften(Refused):
    """Who asks does so too often.

    Parameters
    ----------
    retry_after_s:
        when to try again, s
    """

    def __init__(self, detail: str, retry_after_s: int) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class BudgetSpent(FleadError):
    """A round would tell more about a device than `max_epsilon` allows."""


class BadSecureSum(FleadError):
    """A step of a secure sum that does not hold: keys, shares, or what is asked of a device."""


class NotThere(FleadError):
    """What is asked about does not exist; the message says how to see what does."""


class Conflict(FleadError):
    """What is asked cannot be done as things stand; the message says why."""


class WrongPhase(Conflict):
    """A step of a secure sum that is over, or has not begun."""


class BadConfiguration(FleadError):
    """A setting that cannot work; the message names it and the mend."""


class Unavailable(FleadError):
    """A part of the system does not answer."""


class PortTaken(Unavailable):
    """Another process listens where ours should."""


class CorruptRunFolder(Unavailable):
    """What an earlier run left in the run folder cannot be continued from."""
