"""The mart's tables, made by rule from `storage.documents`, and the rows that a document becomes. Pure.

A plain field is a column. What is nested becomes a table of its own with a row for each of its parts; it carries the
columns that charts filter by, so that none needs a join. Weights and payloads stay in MongoDB.

A document fits if its fields have the declared types: a number may be of any numeric type, as in the validators.
"""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import orjson
from bson import Decimal128
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from storage.documents import COLLECTIONS

LAYOUT = 3
"""Of the tables: raise it when they change, and every mart is made anew."""

Document = Mapping[str, Any]
Row = tuple[Any, ...]
Rows = dict[str, list[Row]]


class Unfit(ValueError):
    """A document that the mart cannot hold; says which field, and why."""


class Type(StrEnum):
    """A column's type, as PostgreSQL calls it."""

    TEXT = "text"
    DOUBLE = "double precision"
    BIGINT = "bigint"
    BOOLEAN = "boolean"
    TIME = "timestamptz"
    JSON = "jsonb"


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `nullable` where documents may lack it."""

    name: str
    type: Type
    nullable: bool = True
    says: str = ""
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Index:
    """An index; `brin` is one of a few kilobytes, for what comes about in order."""

    columns: tuple[str, ...]
    brin: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table; the first columns are its primary key."""

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    says: str
    indexes: tuple[Index, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names."""
        return tuple(column.name for column in self.columns)


@dataclass(frozen=True, slots=True)
class Part:
    """Nested fields as a table: what its rows are told apart by, what they carry, and what they hold.

    Attributes
    ----------
    fields:
        nested field → the column that takes its values; or the columns, where each is an object that the declaration
        leaves open; or nothing, where it says enough
    """

    name: str
    key: Column
    carried: tuple[str, ...]
    fields: Mapping[str, str | tuple[Column, ...]]
    says: str


@dataclass(frozen=True, slots=True)
class Source:
    """A collection in the mart: which of its nested fields become tables or columns, and which stay behind."""

    collection: str
    parts: tuple[Part, ...] = ()
    flat: Mapping[str, tuple[Column, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


_SENSOR = Column("sensor", Type.TEXT, nullable=False, says="the sensor")
_DEVICE = Column("device_id", Type.TEXT, nullable=False, says="the device")
_AT = ("device_id", "timestamp")
_WINDOW = ("window", "device_id", "cohort", "start")

SOURCES: tuple[Source, ...] = (
    Source("device_data", (Part("sensors", _SENSOR, _AT, {"sensors": "value"}, "The values of readings."),)),
    Source(
        "predictions",
        (
            Part(
                "sensors", _SENSOR, _AT, {name: name for name in ("observed", "expected", "forecast")},
                "What was observed, and what was expected instead.",
            ),
        ),
    ),
    Source("alerts"),
    Source(
        "dead_letters",
        flat={
            "source": (
                Column("topic", Type.TEXT, says="the topic, or of a file its path"),
                Column("partition", Type.BIGINT, says="the partition, of a file 0"),
                Column("offset", Type.BIGINT, says="the offset, or of a file the line"),
            )
        },
        left_out=("payload_base64",),
    ),
    Source("local_models", left_out=("weights", "sensors", "control")),
    Source(
        "global_model",
        (
            Part(
                "devices", _DEVICE, ("cohort", "round", "timestamp"),
                {
                    "devices": (
                        Column("samples", Type.BIGINT, says="that its updates learned from", unit="readings"),
                        Column("updates", Type.BIGINT, says="that it sent"),
                        Column("samples_seen", Type.BIGINT, says="its training counter", unit="readings"),
                        Column("share", Type.DOUBLE, says="its part in the result; 0: left out", unit="in [0, 1]"),
                        Column("flag", Type.TEXT, says="why the defence left it out"),
                    )
                },
                "The devices that took part in rounds.",
            ),
            Part(
                "metrics", Column("metric", Type.TEXT, nullable=False, says="which figure"),
                ("cohort", "round", "timestamp"), {"metrics": "value"}, "What versions were judged by, and cost.",
            ),
        ),
        left_out=("weights", "signature"),
    ),
    Source("device_trust"),
    Source(
        "window_aggregates",
        (
            Part(
                "sensors", _SENSOR, ("window", "scope", "device_id", "cohort", "start"), {"sensors": ()},
                "The sensors' figures in windows.",
            ),
            Part(
                "scores", Column("version", Type.BIGINT, nullable=False, says="the round of the global model"), _WINDOW,
                {
                    "scores": (
                        Column("count", Type.BIGINT, says="that it was scored on", unit="readings"),
                        Column("error", Type.DOUBLE, says="sum of its errors", unit="typical changes of the sensor"),
                        Column(
                            "persistence", Type.DOUBLE, says="the same of the forecast that nothing changes",
                            unit="typical changes of the sensor",
                        ),
                    )
                },
                "How global models did in devices' minutes.",
            ),
        ),
    ),
    Source(
        "shared_anomalies",
        (
            Part("devices", _DEVICE, ("cohort", "start", "kind"), {"devices": ()}, "The devices of shared anomalies."),
            Part("sensors", _SENSOR, ("cohort", "start", "kind"), {"sensors": ()}, "Their sensors."),
        ),
    ),
    Source("model_scores"),
    Source(
        "pipeline_samples",
        (
            Part(
                "lag", Column("topic", Type.TEXT, nullable=False, says="the topic"), ("run", "timestamp"),
                {"lag": "records"}, "What waits in topics.",
            ),
        ),
    ),
)  # fmt: skip

POSITIONS = Table(
    "device_positions",
    (
        _DEVICE,
        Column("x", Type.DOUBLE, nullable=False, says="where it is", unit="the file's own"),
        Column("y", Type.DOUBLE, nullable=False, says="where it is", unit="the file's own"),
    ),
    ("device_id",),
    "Where devices are: from the file that `spark.positions` names.",
)


def rows_of(collection: str, document: Document) -> Rows:
    """The rows that a document becomes, by table.

    Raises
    ------
    Unfit
        where a field has another type than declared, or is none that PostgreSQL can hold

    >>> from datetime import UTC
    >>> reading = {"_id": "a@1", "device_id": "a", "timestamp": datetime(2024, 1, 1, tzinfo=UTC), "sensors": {"t": 1}}
    >>> rows_of("device_data", reading)["device_data_sensors"]
    [('a@1', 't', 'a', datetime.datetime(2024, 1, 1, 0, 0, tzinfo=datetime.timezone.utc), 1.0)]
    >>> rows_of("device_data", reading | {"sensors": {"t": "warm"}})
    Traceback (most recent call last):
    visualization.mart.tables.Unfit: sensors.t is no number
    """
    return _PLANS[collection].rows(document)


def tables_of(collection: str) -> tuple[str, ...]:
    """The names of a collection's tables, its own first."""
    return tuple(_PLANS[collection].tables)


def fields_of(collection: str) -> tuple[str, ...]:
    """The fields of a collection's documents that the mart reads."""
    return _PLANS[collection].fields


def key_of(identity: object) -> str:
    """A document's `_id` as the text that its rows have; raises `Unfit`."""
    return _text(identity if isinstance(identity, str) else str(identity))


_LONGEST = 800
"""bytes"""


def _text(value: object) -> str:
    if type(value) is not str:
        raise Unfit("is no text")
    if "\0" in value:
        raise Unfit("holds a zero character, which PostgreSQL cannot keep")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise Unfit("is no valid Unicode") from None
    return value


def _name(value: object) -> str:
    """A text that is part of an index, whose entries may have 2,704 bytes: three names at most."""
    text = _text(value)
    if 4 * len(text) > _LONGEST and len(text.encode()) > _LONGEST:
        raise Unfit(f"has more than {_LONGEST} bytes")
    return text


def _double(value: object) -> float:
    if type(value) is not float:
        value = float(_number(value))
    if not math.isfinite(value):
        raise Unfit("is no finite number")
    return value


def _bigint(value: object) -> int:
    if type(value) is not int:
        number = _number(value)
        value = int(number) if math.isfinite(number) else 0
        if value != number:
            raise Unfit("is no whole number")
    if not -(2**63) <= value < 2**63:
        raise Unfit("has more than 64 bits")
    return value


def _number(value: object) -> Any:
    if isinstance(value, Decimal128):
        return value.to_decimal()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unfit("is no number")
    return value


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise Unfit("is neither true nor false")
    return value


def _time(value: object) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise Unfit("is no date between the years 1 and 9999")
    return value


_ZERO_CHARACTER = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def _json(value: object) -> str:
    if not isinstance(value, dict):
        raise Unfit("is no object")
    try:
        raw = orjson.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unfit(f"cannot be written as JSON ({error})") from None
    if _ZERO_CHARACTER.search(raw):
        raise Unfit("holds a zero character, which PostgreSQL cannot keep")
    return raw.decode()


Convert = Callable[[Any], Any]
_CONVERT: dict[Type, Convert] = {
    Type.TEXT: _text,
    Type.DOUBLE: _double,
    Type.BIGINT: _bigint,
    Type.BOOLEAN: _boolean,
    Type.TIME: _time,
    Type.JSON: _json,
}
_TYPES: dict[Any, Type] = {
    str: Type.TEXT,
    float: Type.DOUBLE,
    int: Type.BIGINT,
    bool: Type.BOOLEAN,
    datetime: Type.TIME,
    Any: Type.DOUBLE,  # of a device's sensors: the model leaves it open, the job writes numbers
}


def _type_of(annotation: Any) -> tuple[Any, bool]:
    """What an annotation comes to, and whether null is one of its values.

    >>> _type_of(Annotated[int, "ge 0"] | None)
    (<class 'int'>, True)
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_of(arguments[0])
    if origin is Literal:
        return str, False
    if origin in (Union, types.UnionType):
        [inner] = [argument for argument in arguments if argument is not type(None)]
        return _type_of(inner)[0], type(None) in arguments
    return annotation, annotation is Any


def _unit(info: FieldInfo) -> str:
    extra = info.json_schema_extra
    return str(extra["unit"]) if isinstance(extra, dict) else ""


def _default(info: FieldInfo) -> Any:
    return None if info.is_required() else info.get_default(call_default_factory=True)


def _column(name: str, info: FieldInfo) -> Column | None:
    """The column of a plain field; None where it is nested."""
    annotation, nullable = _type_of(info.annotation)
    found = Type.JSON if name == "metadata" else _TYPES.get(annotation)
    return Column(name, found, nullable, info.description or "", _unit(info)) if found else None


@dataclass(frozen=True, slots=True)
class _Cell:
    """How a field becomes a column's value."""

    field: str
    default: Any
    nullable: bool
    convert: Convert

    def value(self, document: Document) -> Any:
        found = document.get(self.field, self.default)
        if found is None and self.nullable:
            return None
        try:
            return self.convert(found)
        except Unfit as error:
            raise Unfit(f"{self.field} {error if found is not None else 'is missing or null'}") from None


def _cell(column: Column, default: Any = None, *, indexed: bool = False) -> _Cell:
    convert = _name if indexed and column.type is Type.TEXT else _CONVERT[column.type]
    return _Cell(column.name, default, column.nullable, convert)


def _values_of(cells: Sequence[_Cell], found: Any) -> Row:
    if not isinstance(found, dict):
        raise Unfit("is no object")
    return tuple([cell.value(found) for cell in cells])


Pairs = Iterator[tuple[Any, Any]]


def _of_map(found: Any, _key: str) -> Pairs:
    if not isinstance(found, dict):
        raise Unfit("is no object")
    yield from found.items()


def _of_names(found: Any, _key: str) -> Pairs:
    if not isinstance(found, list):
        raise Unfit("is no array")
    yield from ((name, None) for name in dict.fromkeys(map(_text, found)))


def _of_records(found: Any, key: str) -> Pairs:
    if not isinstance(found, list):
        raise Unfit("is no array")
    for item in found:
        if not isinstance(item, dict):
            raise Unfit("holds something else than objects")
        yield item.get(key), item


@dataclass(frozen=True, slots=True)
class _Nested:
    """How one nested field becomes rows: the pairs of key and value in it, and what values a value has."""

    name: str
    default: Any
    nullable: bool
    pairs: Callable[[Any, str], Pairs]
    values: Callable[[Any], Row]


def _nested(info: FieldInfo, name: str, into: str | tuple[Column, ...]) -> tuple[_Nested, tuple[Column, ...]]:
    """The way from a nested field to rows, and the columns that it fills."""
    annotation, nullable = _type_of(info.annotation)
    inner = _type_of(get_args(annotation)[-1])[0]
    about = (name, _default(info), nullable)
    if isinstance(into, str):
        column = Column(into, _TYPES[inner], says=info.description or "", unit=_unit(info))
        convert = _CONVERT[column.type]
        return _Nested(*about, _of_map, lambda value: (None if value is None else convert(value),)), (column,)
    if inner is str:
        return _Nested(*about, _of_names, lambda _name: ()), ()
    if isinstance(inner, type) and issubclass(inner, BaseModel):
        into = tuple(column for column in (_column(*item) for item in inner.model_fields.items()) if column)
    cells = [_cell(column) for column in into]
    pairs = _of_map if get_origin(annotation) is dict else _of_records
    return _Nested(*about, pairs, lambda value: _values_of(cells, value)), into


class _PartPlan:
    """Makes the rows of the nested fields that become one table."""

    def __init__(self, collection: str, part: Part, model: type[BaseModel], parents: Sequence[Column]) -> None:
        places = {column.name: place for place, column in enumerate(parents)}
        self._carried = tuple(places[name] for name in part.carried)
        self._key, self._convert_key = part.key.name, _CONVERT[part.key.type]
        self._fields: list[_Nested] = []
        held: list[Column] = []
        for name, into in part.fields.items():
            nested, columns = _nested(model.model_fields[name], name, into)
            self._fields.append(nested)
            held += columns
        first = Column("id", Type.TEXT, nullable=False, says=f"of {collection}")
        self.table = Table(
            f"{collection}_{part.name}",
            (first, part.key, *(parents[place] for place in self._carried), *held),
            ("id", part.key.name),
            part.says,
            tuple(_indexes(part)),
        )

    def rows(self, document: Document, parent: Sequence[Any]) -> list[Row]:
        """The rows of a document, whose own row begins with `parent`."""
        first = parent[0]
        carried = tuple([parent[place] for place in self._carried])
        found = [self._by_key(document.get(nested.name, nested.default), nested) for nested in self._fields]
        if len(found) == 1:
            return [(first, key, *carried, *values) for key, values in found[0].items()]
        keys = dict.fromkeys(key for values in found for key in values)
        nothing = (None,)
        return [
            (first, key, *carried, *(value for values in found for value in values.get(key, nothing))) for key in keys
        ]

    def _by_key(self, found: Any, nested: _Nested) -> dict[Any, Row]:
        rows: dict[Any, Row] = {}
        if found is None and nested.nullable:
            return rows
        seen, name = 0, None
        try:
            for name, value in nested.pairs(found, self._key):
                rows[self._convert_key(name)] = nested.values(value)
                seen += 1
        except Unfit as error:
            where = nested.name if name is None else f"{nested.name}.{name}"
            raise Unfit(f"{where[:100]} {error}") from None
        if seen > len(rows):
            raise Unfit(f"{nested.name} holds a {self._key} twice")
        return rows


def _indexes(part: Part) -> Iterator[Index]:
    """By time, where rows come about in order; and by device."""
    time = part.carried[-1] if part.carried[-1] in ("timestamp", "start") else ""
    if time:
        yield Index((time,), brin=True)
    if "device_id" in part.carried:
        yield Index(("device_id", time))
    elif part.key is _DEVICE:
        yield Index(("device_id",))


class _Plan:
    """Makes the rows of a collection's documents."""

    def __init__(self, source: Source) -> None:
        [declared] = [collection for collection in COLLECTIONS if collection.name == source.collection]
        model = declared.model
        nested = {name for part in source.parts for name in part.fields}
        indexed = {name for index in declared.indexes for name in index.keys}
        columns = [Column("id", Type.TEXT, nullable=False, says=f"`_id` in MongoDB: {declared.key}")]
        self._cells: list[_Cell] = []
        self._flat: list[tuple[str, list[_Cell]]] = []
        for name, info in model.model_fields.items():
            if name in source.left_out or name in nested or name in source.flat:
                continue
            column = _column(name, info)
            if column is None:
                raise TypeError(f"{source.collection}.{name} is nested: say in SOURCES what becomes of it")
            columns.append(column)
            self._cells.append(_cell(column, _default(info), indexed=name in indexed))
        for name, parts in source.flat.items():
            columns += [replace(part, name=f"{name}_{part.name}") for part in parts]
            self._flat.append((name, [_cell(part) for part in parts]))
        names = {column.name for column in columns}
        indexes = [Index(tuple(index.keys)) for index in declared.indexes if names.issuperset(index.keys)]
        own = Table(source.collection, tuple(columns), ("id",), model.__doc__ or "", tuple(indexes))
        self._parts = [_PartPlan(source.collection, part, model, columns) for part in source.parts]
        self.tables = {table.name: table for table in (own, *(part.table for part in self._parts))}
        self.fields = tuple(name for name in model.model_fields if name not in source.left_out)
        self._name = source.collection

    def rows(self, document: Document) -> Rows:
        """The rows that a document becomes, by table."""
        own = [key_of(document["_id"])]
        own += [cell.value(document) for cell in self._cells]
        for name, cells in self._flat:
            try:
                own += _values_of(cells, document.get(name))
            except Unfit as error:
                raise Unfit(f"{name} {error}") from None
        rows: Rows = {self._name: [tuple(own)]}
        for part in self._parts:
            rows[part.table.name] = part.rows(document, own)
        return rows


_PLANS = {source.collection: _Plan(source) for source in SOURCES}

TABLES: dict[str, Table] = {name: table for plan in _PLANS.values() for name, table in plan.tables.items()}
"""Every table that is made from a collection."""
