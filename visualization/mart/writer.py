"""Applies changes to the mart: what documents have become, in as few statements as there are tables.

A document that PostgreSQL will not take stops nobody: it is looked for by halves, and noted in `mart.rejected`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.sql import SQL, Composed, Identifier

from visualization.mart.connection import Connection, line
from visualization.mart.tables import TABLES, Row, Unfit, rows_of, tables_of

log = logging.getLogger(__name__)

_OF_THE_DATA = {"22", "23", "54"}
"""What PostgreSQL says of values, not of itself: data exception, integrity violation, limit exceeded."""

Rejected = tuple[str, str, str]
"""A document that does not fit: collection, id, why."""


@dataclass(slots=True)
class Change:
    """What a document has become.

    Attributes
    ----------
    document:
        as it is now; None: it is gone
    fresh:
        whether the mart cannot hold anything of it yet
    """

    collection: str
    key: str
    document: Mapping[str, Any] | None
    fresh: bool = False


class Writer:
    """Writes into one schema; every method belongs into a transaction of the caller's."""

    def __init__(self, connection: Connection, schema: str) -> None:
        self._connection = connection
        self._schema = schema
        self._copy = {
            table.name: SQL("COPY {} ({}) FROM STDIN").format(
                Identifier(schema, table.name), SQL(", ").join(map(Identifier, table.names))
            )
            for table in TABLES.values()
        }

    def clear(self, collection: str) -> None:
        """Remove all that came from a collection."""
        for table in tables_of(collection):
            self._connection.execute(SQL("DELETE FROM {}").format(Identifier(self._schema, table)))
        self._connection.execute(self._sql("DELETE FROM {} WHERE collection = %s"), [collection])

    def apply(self, changes: Sequence[Change]) -> None:
        """Apply changes, at most one of a document."""
        rejected = self._apply(changes)
        if rejected:
            collection, key, why = (printable(part) for part in rejected[0])
            log.warning(
                "documents that do not fit: %d, see mart.rejected; the first: %s %s %s",
                len(rejected), collection, key, why,
            )  # fmt: skip

    def _apply(self, changes: Sequence[Change]) -> list[Rejected]:
        """Apply changes; returns what has been rejected."""
        try:
            with self._connection.transaction():
                return self._write(changes)
        except psycopg.Error as error:
            if (error.sqlstate or "")[:2] not in _OF_THE_DATA:
                raise
            why = line(error)
        if len(changes) > 1:
            half = len(changes) // 2
            return self._apply(changes[:half]) + self._apply(changes[half:])
        [change] = changes
        if change.fresh:
            change.fresh = False
            return self._apply(changes)
        rejected = [(change.collection, change.key, why)]
        with self._connection.transaction():
            self._remove(change.collection, [change.key])
            self._reject(rejected)
        return rejected

    def _write(self, changes: Sequence[Change]) -> list[Rejected]:
        stale: dict[str, list[str]] = {}
        rows: dict[str, list[Row]] = {}
        rejected: list[Rejected] = []
        for change in changes:
            if not change.fresh:
                stale.setdefault(change.collection, []).append(change.key)
            if change.document is None:
                continue
            try:
                for table, made in rows_of(change.collection, change.document).items():
                    rows.setdefault(table, []).extend(made)
            except Unfit as error:
                rejected.append((change.collection, change.key, str(error)))
        for collection, keys in stale.items():
            self._remove(collection, keys)
        with self._connection.cursor() as cursor:
            for table, made in rows.items():
                if made:
                    with cursor.copy(self._copy[table]) as copy:
                        for row in made:
                            copy.write_row(row)
        self._reject(rejected)
        return rejected

    def _reject(self, rejected: Iterable[Rejected]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(
                self._sql(
                    "INSERT INTO {} VALUES (%s, %s, %s, now()) "
                    "ON CONFLICT (collection, id) DO UPDATE SET why = excluded.why, at = excluded.at"
                ),
                [tuple(printable(part) for part in parts) for parts in rejected],
            )

    def _remove(self, collection: str, keys: list[str]) -> None:
        for table in tables_of(collection):
            self._connection.execute(
                SQL("DELETE FROM {} WHERE id = ANY(%s)").format(Identifier(self._schema, table)), [keys]
            )
        self._connection.execute(self._sql("DELETE FROM {} WHERE collection = %s AND id = ANY(%s)"), [collection, keys])

    def _sql(self, text: Any) -> Composed:
        return SQL(text).format(Identifier(self._schema, "rejected"))


def printable(text: str) -> str:
    r"""As text that PostgreSQL and a log can hold, on one line, and no longer than an index allows.

    >>> printable("a\0b\n")
    'a\\x00b\\n'
    """
    safe = text.encode("utf-8", "backslashreplace").decode()[:500]
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in safe)
