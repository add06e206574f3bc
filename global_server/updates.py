"""What an update must be before it may enter a round, as far as the update alone can tell."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from flead.errors import BadUpdate, Reason
from flead.updates import ReadUpdate
from storage.rounds import Update

MAX_PARAMETERS = 40_000
"""A float64 takes up to 24 characters of JSON, and a Kafka record 1 MB unless the broker says otherwise: a global
model that could not be published must not come about."""


def check_update(read: ReadUpdate, now: datetime, max_norm: Callable[[str], float]) -> Update:
    """Check the size of an update, and note when it came.

    Parameters
    ----------
    now:
        when it was received, aware
    max_norm:
        cohort → the largest Euclidean norm of all parameters

    Raises
    ------
    BadUpdate
        where it is too large
    """
    if read.theta.size > MAX_PARAMETERS:
        raise BadUpdate(f"the model has {read.theta.size} parameters, the limit is {MAX_PARAMETERS}", Reason.TOO_LARGE)
    norm = read.norm
    if not norm <= (limit := max_norm(read.cohort)):
        raise BadUpdate(f"the parameters' norm is {norm:.6g}, the limit is {limit:g}", Reason.OUT_OF_RANGE)
    said = {name: getattr(read, name) for name in ReadUpdate.__slots__}
    return Update(**said, received_at=now.astimezone(UTC))
