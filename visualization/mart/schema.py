"""The schema `mart` in PostgreSQL: its tables, what the follower keeps beside them, and who may read.

A mart that is made anew grows in the schema `mart_next`, and takes the place of the old one in one transaction:
dashboards show the old figures until the new ones are whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from psycopg.sql import SQL, Composable, Identifier, Literal

from flead.errors import BadConfiguration
from visualization.mart.connection import Connection
from visualization.mart.tables import LAYOUT, POSITIONS, TABLES, Column, Index, Table, Type
from visualization.mart.views import VIEWS

SCHEMA, NEXT = "mart", "mart_next"
READER = "flead_reader"

_STATE = Table(
    "state",
    (
        Column("layout", Type.BIGINT, nullable=False, says="of the tables"),
        Column("source", Type.TEXT, says="tells the MongoDB it is a copy of from others"),
        Column("token", Type.TEXT, says="the place in the change stream that the rows are from; null: not copied yet"),
        Column("copied_until", Type.BIGINT, says="cluster time of the copy's end: the stream repeats what is before"),
        Column("events", Type.BIGINT, nullable=False, says="applied since the copy"),
        Column("events_per_s", Type.DOUBLE, nullable=False, says="applied of late", unit="1/s"),
        Column("applied", Type.TIME, says="when the newest applied event happened"),
        Column("behind_s", Type.DOUBLE, nullable=False, says="how far behind MongoDB the rows were then", unit="s"),
        Column("checked", Type.TIME, says="when the follower last wrote here"),
        Column("copied", Type.BIGINT, says="documents copied so far, while the mart is made anew; else null"),
        Column("to_copy", Type.BIGINT, says="about how many there are to copy"),
        Column("rebuild", Type.BOOLEAN, nullable=False, says="whether somebody asks that the mart be made anew"),
    ),
    ("layout",),
    "One row: how far the copy is. Rows and place are written in one transaction.",
)
_REJECTED = Table(
    "rejected",
    (
        Column("collection", Type.TEXT, nullable=False, says="the collection in MongoDB"),
        Column("id", Type.TEXT, nullable=False, says="its `_id`, as far as it can be said"),
        Column("why", Type.TEXT, nullable=False, says="which field, and what is wrong with it"),
        Column("at", Type.TIME, nullable=False, says="when it was refused"),
    ),
    ("collection", "id"),
    "Documents that do not fit their tables; they are in none.",
)
ALL: tuple[Table, ...] = (*TABLES.values(), POSITIONS, _STATE, _REJECTED)


def create(connection: Connection, schema: str) -> None:
    """Make the schema, its tables and an empty state; views, indexes and rights come with `finish`."""
    connection.execute(SQL("CREATE SCHEMA {}").format(Identifier(schema)))
    for table in ALL:
        _create_table(connection, schema, table)
    connection.execute(
        SQL(
            "INSERT INTO {} (layout, events, events_per_s, behind_s, rebuild) VALUES ({}, 0, 0, 0, false)"
        ).format(Identifier(schema, "state"), Literal(LAYOUT))
    )  # fmt: skip


def finish(connection: Connection, schema: str) -> None:
    """Make what is quicker made once the rows are there: indexes, statistics; and the views."""
    for table in ALL:
        for index in table.indexes:
            _create_index(connection, schema, table, index)
        connection.execute(SQL("ANALYZE {}").format(Identifier(schema, table.name)))
    with connection.transaction():
        connection.execute(SQL("SET LOCAL search_path = {}").format(Identifier(schema)))
        for name, query in VIEWS.items():
            connection.execute(SQL("CREATE VIEW {} AS {}").format(Identifier(name), SQL(query)))


def publish(connection: Connection) -> None:
    """Let `mart_next` be the mart, within the transaction of the caller."""
    connection.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(SCHEMA)))
    connection.execute(SQL("ALTER SCHEMA {} RENAME TO {}").format(Identifier(NEXT), Identifier(SCHEMA)))
    _grant(connection)


def ensure(connection: Connection, *, any_layout: bool = False) -> None:
    """Have a mart, if only an empty one.

    Parameters
    ----------
    any_layout:
        also that of a newer version of FLEAD: it is about to be made anew

    Raises
    ------
    BadConfiguration
        where the schema holds something else, or the tables of a newer version of FLEAD
    """
    if not _exists(connection, SCHEMA):
        with connection.transaction():
            create(connection, SCHEMA)
            _grant(connection)
        finish(connection, SCHEMA)
        return
    if connection.execute("SELECT to_regclass('mart.state')").fetchone() == (None,):
        raise BadConfiguration(
            f"the schema {SCHEMA} of mart.database holds something that is not FLEAD's: "
            "name another database, or drop the schema"
        )
    [(layout,)] = connection.execute("SELECT max(layout) FROM mart.state").fetchall()
    if layout > LAYOUT and not any_layout:
        raise BadConfiguration(
            f"the mart has layout {layout}, this version of FLEAD knows {LAYOUT}: update FLEAD, or make the mart anew "
            "for this version with `flead mart rebuild`"
        )


def drop(connection: Connection, schema: str) -> None:
    """Drop a schema with all it holds; none is fine."""
    connection.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(schema)))


def put_positions(connection: Connection, schema: str, positions: Mapping[str, tuple[float, float]]) -> None:
    """Let the table of positions be these."""
    with connection.transaction(), connection.cursor() as cursor:
        table = Identifier(schema, POSITIONS.name)
        cursor.execute(SQL("DELETE FROM {}").format(table))
        cursor.executemany(
            SQL("INSERT INTO {} VALUES (%s, %s, %s)").format(table),
            [(device, *at) for device, at in positions.items()],
        )


def _exists(connection: Connection, schema: str) -> bool:
    found = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [schema]).fetchone()
    return found is not None


def _grant(connection: Connection) -> None:
    """Let the reader read; on a PostgreSQL of the user's own there may be none."""
    if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [READER]).fetchone():
        reader, schema = Identifier(READER), Identifier(SCHEMA)
        connection.execute(SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, reader))
        connection.execute(SQL("GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}").format(schema, reader))


def _create_table(connection: Connection, schema: str, table: Table) -> None:
    columns: list[Composable] = [
        SQL("{} {}{}").format(
            Identifier(column.name), SQL(column.type.value), SQL("" if column.nullable else " NOT NULL")
        )
        for column in table.columns
    ]
    columns.append(SQL("PRIMARY KEY ({})").format(_names(table.key)))
    name = Identifier(schema, table.name)
    connection.execute(SQL("CREATE TABLE {} ({})").format(name, SQL(", ").join(columns)))
    connection.execute(SQL("COMMENT ON TABLE {} IS {}").format(name, Literal(table.says)))
    for column in table.columns:
        says = f"{column.says} [{column.unit}]" if column.unit else column.says
        connection.execute(
            SQL("COMMENT ON COLUMN {} IS {}").format(Identifier(schema, table.name, column.name), Literal(says))
        )


def _create_index(connection: Connection, schema: str, table: Table, index: Index) -> None:
    name = f"{table.name}_{'_'.join(index.columns)}{'_brin' if index.brin else ''}"[:63]
    connection.execute(
        SQL("CREATE INDEX IF NOT EXISTS {} ON {} USING {} ({})").format(
            Identifier(name),
            Identifier(schema, table.name),
            SQL("brin" if index.brin else "btree"),
            _names(index.columns),
        )
    )


def _names(names: Iterable[str]) -> Composable:
    return SQL(", ").join(map(Identifier, names))
