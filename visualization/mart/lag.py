"""How far the mart is behind MongoDB: one row, read in a millisecond."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from pydantic import SecretStr

from flead.errors import Unavailable
from visualization.mart.connection import LOCK, Connection, connect, translated

SILENT_S = 3.0
"""What has not been looked at for so long, s, falls behind: a follower writes once a second, unless it waits."""

_ASK = """
SELECT token, behind_s, events_per_s, extract(epoch FROM clock_timestamp() - checked)::float8, copied, to_copy,
  (SELECT count(*) FROM mart.rejected),
  EXISTS (SELECT FROM pg_locks JOIN pg_database d ON d.oid = database AND datname = current_database()
          WHERE locktype = 'advisory' AND granted AND classid::bigint << 32 | objid::bigint = %s)
FROM mart.state
"""


@dataclass(frozen=True, slots=True)
class Lag:
    """How far the mart is.

    Attributes
    ----------
    behind_s:
        what happened in MongoDB before so long is in the mart, s; 0 where all is; None before the first copy
    events_per_s:
        changes applied per second, of late
    follows:
        whether a follower runs
    rejected:
        documents that do not fit
    copied, to_copy:
        documents, while the mart is made anew; else None
    """

    behind_s: float | None
    events_per_s: float
    follows: bool
    rejected: int
    copied: int | None = None
    to_copy: int | None = None


def lag_of(uri: SecretStr) -> Lag:
    """Ask the mart how far it is; the owner's address or the reader's.

    Raises
    ------
    Unavailable
        where it does not answer, or there is none yet
    """
    with translated(), connect(uri, "flead lag") as connection:
        # None also in the moment in which a new mart takes the old one's place: asked again, there is one.
        found = _asked(connection) or _asked(connection)
    if found is None:
        raise Unavailable("there is no mart yet: `flead mart follow` makes it")
    token, behind_s, per_s, age_s, copied, to_copy, rejected, follows = found
    if token is None:
        behind_s = None
    elif age_s > SILENT_S or copied is not None:
        behind_s += age_s
        per_s = 0.0
    return Lag(behind_s, per_s, follows, rejected, copied, to_copy)


def _asked(connection: Connection) -> tuple[Any, ...] | None:
    """The one row; None where there is no mart."""
    try:
        return connection.execute(_ASK, [LOCK]).fetchone()
    except psycopg.errors.UndefinedTable:
        return None
