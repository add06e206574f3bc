"""The page about MongoDB, from the declaration: `python -m storage.describe docs/collections.md`."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from config.settings import MongoSettings
from storage.documents import Collection, Operand, Query
from storage.migrations import MIGRATIONS
from storage.schema import collections

_HEAD = """\
# Collections

Made by `python -m storage.describe docs/collections.md` from `storage/documents.py`: change it there.

Database `mongodb.database` (`flead`). Times are BSON dates (milliseconds, UTC). `_id` comes from the content, so what
is written twice is there once. The validators check what is listed here and let further fields pass; a number may be
of any numeric type. Each query listed is served by an index, which a test proves with `explain`.
"""
_PLAIN = {
    str: "text", bool: "true or false", int: "whole number", float: "number", bytes: "binary", datetime: "date",
    Any: "anything",
}  # fmt: skip


def page() -> str:
    """The whole page, in Markdown."""
    return "\n".join([_HEAD, *(line for declared in collections(MongoSettings()) for line in _section(declared))])


def _section(collection: Collection) -> Iterator[str]:
    key = collection.key if "`" in collection.key else f"`{collection.key}`"
    yield f"## {collection.name}\n"
    yield f"{collection.model.__doc__}\n"
    yield f"`_id`: {key}. {_kept(collection)}\n"
    yield "| field | type | unit | what |\n|---|---|---|---|"
    yield from _rows(collection.model)
    if collection.indexes:
        yield "\n| index | fields |\n|---|---|"
        yield from (
            f"| `{index.name}` | {_keys(index.keys)}{' (unique)' if index.unique else ''} |"
            for index in collection.indexes
        )
        yield "\n| query | filter | sort |\n|---|---|---|"
        yield from (_query(query) for query in collection.queries)
    if collection.name == "schema_version":
        yield "\n| layout | step to it |\n|---|---|"
        yield from (f"| {step.version} | {step.does} |" for step in MIGRATIONS)
    yield ""


def _kept(collection: Collection) -> str:
    if collection.expires_from is None:
        return "Kept for ever."
    days = "for ever" if collection.keep_days is None else f"{collection.keep_days:g} days"
    return f"Kept {days}, counted from `{collection.expires_from}`; `mongodb.retention_days.{collection.name}` sets it."


def _rows(model: type[BaseModel], path: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        optional = "" if info.is_required() else ", may be absent"
        yield f"| `{path}{name}` | {_type(info.annotation)}{optional} | {_unit(info)} | {info.description} |"
        inner, many = _inner(info.annotation)
        if inner:
            yield from _rows(inner, f"{path}{name}.{'*.' if many else ''}")


def _unit(info: FieldInfo) -> str:
    extra = info.json_schema_extra
    return str(extra["unit"]) if isinstance(extra, dict) else ""


def _inner(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model that a field consists of, and whether there are many, by name."""
    if get_origin(annotation) is dict:
        return _inner(get_args(annotation)[1])[0], True
    return (annotation, False) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else (None, False)


def _type(annotation: Any) -> str:
    """Say a type for people.

    >>> _type(dict[str, float | None] | None)
    'object of number or null, or null'
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in (Union, types.UnionType):
        [inner] = [_type(argument) for argument in arguments if argument is not type(None)]
        return f"{inner}{',' if ' of ' in inner else ''} or null"
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin is list:
        return f"array of {_type(arguments[0])}"
    if origin is dict:
        return f"object of {_type(arguments[1])}"
    return _PLAIN.get(annotation, "object")


def _keys(keys: Mapping[str, int]) -> str:
    return ", ".join(f"`{name}`{'' if order > 0 else ' descending'}" for name, order in keys.items()) or "-"


def _query(query: Query) -> str:
    given = ", ".join(f"`{name}`: {_operand(operand)}" for name, operand in query.filter.items())
    asks = f"{query.asks} (from the index alone)" if query.only else query.asks
    return f"| {asks} | {given or '-'} | {_keys(query.sort)} |"


def _operand(operand: Any) -> str:
    if isinstance(operand, Operand):
        return operand.value
    return "null" if operand is None else f"`{operand}`"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page())
