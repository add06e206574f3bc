"""MongoDB's `$jsonSchema` from a pydantic model.

Numbers are `number`, never `double`, which refuses whole numbers, nor `int`, which refuses 2.0. Only the kinds of
annotation that `storage.documents` uses are known; another one is an error at import, not a validator that lets
everything through.
"""

from __future__ import annotations

import types
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from storage.connection import Document

_PLAIN = {str: "string", bool: "bool", int: "number", float: "number", bytes: "binData", datetime: "date"}


def validator(model: type[BaseModel]) -> Document:
    """What MongoDB checks each document of a collection against."""
    return {"$jsonSchema": schema_of(model)}


def schema_of(annotation: Any, limits: Iterable[Any] = ()) -> Document:
    """The schema of a model or annotation; raises `TypeError` for a kind that is not known.

    >>> schema_of(Annotated[int, Ge(0)] | None)
    {'bsonType': ['number', 'null'], 'minimum': 0}
    >>> schema_of(dict[str, list[str]])
    {'bsonType': 'object', 'additionalProperties': {'bsonType': 'array', 'items': {'bsonType': 'string'}}}
    >>> schema_of(Literal["a", "b"])
    {'enum': ['a', 'b']}
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is Any:
        return {}
    if origin is Annotated:
        return schema_of(arguments[0], [*arguments[1:], *limits])
    if origin in (Union, types.UnionType):
        return _nullable(arguments, limits)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin is list:
        return _with("items", arguments[0], {"bsonType": "array"})
    if origin is dict:
        return _with("additionalProperties", arguments[1], {"bsonType": "object"})
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _object(annotation)
    if annotation in _PLAIN:
        return {"bsonType": _PLAIN[annotation], **dict(_limits(limits))}
    raise TypeError(f"no BSON type is known for {annotation}: teach storage.validators about it")


def _object(model: type[BaseModel]) -> Document:
    fields = model.model_fields
    return {
        "bsonType": "object",
        "required": [name for name, info in fields.items() if info.is_required()],
        "properties": {name: schema_of(info.annotation, info.metadata) for name, info in fields.items()},
    }


def _nullable(arguments: tuple[Any, ...], limits: Iterable[Any]) -> Document:
    [inner] = [argument for argument in arguments if argument is not type(None)]
    schema = schema_of(inner, limits)
    if "enum" in schema:
        return {"enum": [*schema["enum"], None]}
    return {**schema, "bsonType": [schema["bsonType"], "null"]}


def _with(keyword: str, inner: Any, outer: Document) -> Document:
    """Say of what an array or object consists; of anything is not said."""
    schema = schema_of(inner)
    return {**outer, keyword: schema} if schema else outer


def _limits(limits: Iterable[Any]) -> Iterable[tuple[str, Any]]:
    for limit in limits:
        if isinstance(limit, FieldInfo):
            yield from _limits(limit.metadata)
        elif isinstance(limit, Ge):
            yield "minimum", limit.ge
        elif isinstance(limit, Le):
            yield "maximum", limit.le
        elif isinstance(limit, MinLen):
            yield "minLength", limit.min_length
        else:
            raise TypeError(f"no rule of MongoDB is known for {limit}: teach storage.validators about it")
