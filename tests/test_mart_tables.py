"""Documents become rows of the declared types, whatever they hold; what does not fit says why."""

from __future__ import annotations

import hashlib
import json
import math
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from bson import Decimal128, Int64, ObjectId
from bson.datetime_ms import DatetimeMS
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from storage.documents import COLLECTIONS
from tests.fixtures_mart import NOON, Mart, prediction, reading
from visualization.mart import schema
from visualization.mart.connection import connect
from visualization.mart.tables import LAYOUT, SOURCES, TABLES, Type, Unfit, key_of, rows_of, tables_of
from visualization.mart.views import VIEWS
from visualization.mart.writer import Change, Writer

MODELS = {collection.name: collection.model for collection in COLLECTIONS}
NOT_IN_THE_MART = {"analysis_days", "analysis_evaluations", "analysis_reports", "schema_version"}
NOT_IN_THE_MART |= {"users", "device_keys", "audit_log", "server_rules", "strategy_state"}  # for administrators only

PYTHON = {
    Type.TEXT: str, Type.DOUBLE: float, Type.BIGINT: int, Type.BOOLEAN: bool, Type.TIME: datetime, Type.JSON: str,
}  # fmt: skip

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)
wholes = st.integers(-(2**63), 2**63 - 1)
numbers = st.floats(allow_nan=False, allow_infinity=False)
times = st.datetimes(timezones=st.just(UTC))
anything = st.recursive(
    st.none() | st.booleans() | wholes | numbers | texts | times,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


def named(key: str, names: st.SearchStrategy[Any], **more: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Lists of objects, each with another name."""
    return st.lists(st.fixed_dictionaries({key: names, **more}), unique_by=lambda item: item[key], max_size=4)


OPEN = {
    "metadata": st.dictionaries(texts, anything, max_size=3),
    "observed": st.dictionaries(texts, st.none() | numbers | wholes),
    "expected": st.none() | st.dictionaries(texts, numbers),
    "forecast": st.dictionaries(texts, numbers),
    "source": st.fixed_dictionaries({"topic": texts, "partition": wholes, "offset": wholes}),
    "devices": named("device_id", texts, samples=wholes),
    "scores": named("version", wholes, error=numbers),
}
"""What the models leave open, as the parts of the system write it."""


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values that a field of a model may have."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    plain = {
        str: texts, bytes: st.binary(max_size=16), bool: st.booleans(), float: numbers | wholes, datetime: times,
        type(None): st.none(),
    }  # fmt: skip
    if annotation in plain:
        return plain[annotation]
    if annotation is int:
        return st.integers(1, 2**63 - 1)
    if origin is Annotated:
        return st.floats(0, 1) if arguments[0] is float else values(arguments[0])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.just([]) if arguments[0] is Any else st.lists(values(arguments[0]), max_size=4)
    if origin is dict:
        return st.just({}) if arguments[1] is Any else st.dictionaries(texts, values(arguments[1]), max_size=4)
    if isinstance(annotation, type):
        return documents_of(annotation)
    return st.one_of(*map(values, arguments))


def documents_of(model: type[BaseModel], **more: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Documents that a model accepts; what may be absent sometimes is."""
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    for name, info in model.model_fields.items():
        annotation = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
        left_open = name in OPEN and "Any" in str(annotation)
        (required if info.is_required() else optional)[name] = OPEN[name] if left_open else values(annotation)
    return st.fixed_dictionaries({**more, **required}, optional=optional)


documents = st.sampled_from([source.collection for source in SOURCES]).flatmap(
    lambda name: st.tuples(st.just(name), documents_of(MODELS[name], _id=texts))
)


@given(documents)
@settings(max_examples=300)
def test_what_the_models_accept_becomes_rows_of_the_declared_types(given_as: tuple[str, dict[str, Any]]) -> None:
    collection, document = given_as
    MODELS[collection].model_validate(document)
    rows = rows_of(collection, document)
    assert tuple(rows) == tables_of(collection)
    assert [row[0] for row in rows[collection]] == [document["_id"]]
    for name, made in rows.items():
        table = TABLES[name]
        assert len({row[: len(table.key)] for row in made}) == len(made)
        for row in made:
            assert row[0] == document["_id"]
            for column, value in zip(table.columns, row, strict=True):
                assert column.nullable if value is None else type(value) is PYTHON[column.type]
                assert not isinstance(value, float) or math.isfinite(value)


@pytest.fixture(scope="module")
def empty_tables(postgres: Mart) -> Mart:
    with connect(postgres.uri()) as connection:
        schema.drop(connection, "mart")
        schema.ensure(connection)
    return postgres


@pytest.mark.servers
@given(documents)
@settings(max_examples=60, deadline=None)
def test_postgresql_gives_back_what_the_rows_say(empty_tables: Mart, given_as: tuple[str, dict[str, Any]]) -> None:
    collection, document = given_as
    with connect(empty_tables.uri()) as connection:
        Writer(connection, "mart").apply([Change(collection, document["_id"], document)])
        assert connection.execute("SELECT * FROM mart.rejected").fetchall() == []
        for name, made in rows_of(collection, document).items():
            query: Any = f'SELECT * FROM mart."{name}" WHERE id = %s'  # noqa: S608
            found = connection.execute(query, [document["_id"]]).fetchall()
            assert by_key(name, found) == by_key(name, made)


def by_key(name: str, rows: list[tuple[Any, ...]]) -> dict[tuple[Any, ...], list[Any]]:
    table = TABLES[name]
    return {
        row[: len(table.key)]: [
            json.loads(value) if column.type is Type.JSON and isinstance(value, str) else value
            for column, value in zip(table.columns, row, strict=True)
        ]
        for row in rows
    }


def test_every_collection_and_every_field_has_its_place() -> None:
    assert set(MODELS) - {source.collection for source in SOURCES} == NOT_IN_THE_MART
    for source in SOURCES:
        columns = set(TABLES[source.collection].names)
        elsewhere = {*source.left_out, *source.flat, *(name for part in source.parts for name in part.fields)}
        assert set(MODELS[source.collection].model_fields) == (columns - {"id"} - flattened(columns)) | elsewhere


def flattened(columns: set[str]) -> set[str]:
    return {name for name in columns if name.startswith("source_")}


def test_weights_and_payloads_stay_behind() -> None:
    assert not {"weights", "payload_base64"} & {name for table in TABLES.values() for name in table.names}


def test_what_is_measured_is_never_a_whole_number() -> None:
    measured = {"value", "error", "observed", "expected", "forecast", "mean", "min", "max", "sum", "anomaly_score"}
    for table in TABLES.values():
        for column in table.columns:
            if column.name in measured and (table.name, column.name) != ("window_aggregates", "expected"):
                assert column.type is Type.DOUBLE, (table.name, column.name)


def test_every_column_says_what_it_is() -> None:
    assert [(t.name, c.name) for t in schema.ALL for c in t.columns if not c.says] == []


def test_other_tables_need_a_higher_layout() -> None:
    """Where this fails: raise LAYOUT in visualization/mart/tables.py, so that every mart is made anew."""
    made_of = [(t.name, t.key, t.indexes, [(c.name, c.type, c.nullable) for c in t.columns]) for t in schema.ALL]
    digest = hashlib.sha256(repr((made_of, VIEWS)).encode()).hexdigest()[:16]
    assert (LAYOUT, digest) == (3, "8ea39f73c1e930ab")


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("device_id", None, "device_id is missing or null"),
        ("device_id", 5, "device_id is no text"),
        ("device_id", "a\0", "device_id holds a zero character"),
        ("device_id", "\ud800", "device_id is no valid Unicode"),
        ("timestamp", "2024-01-01", "timestamp is no date"),
        ("timestamp", datetime(2024, 1, 1), "timestamp is no date"),  # noqa: DTZ001
        ("timestamp", DatetimeMS(2**60), "timestamp is no date"),
        ("sensors", None, "sensors is no object"),
        ("sensors", [1.0], "sensors is no object"),
        ("sensors", {"t": math.nan}, "sensors.t is no finite number"),
        ("sensors", {"t": math.inf}, "sensors.t is no finite number"),
        ("sensors", {"t": True}, "sensors.t is no number"),
        ("sensors", {"t": Decimal128("NaN")}, "sensors.t is no finite number"),
        ("sensors", {"t\0": 1.0}, "holds a zero character"),
        ("metadata", [], "metadata is no object"),
        ("metadata", {"a": "\0"}, "metadata holds a zero character"),
        ("metadata", {"a": "\ud800"}, "metadata cannot be written as JSON"),
        ("_id", "\0", "holds a zero character"),
    ],
)
def test_what_does_not_fit_says_why(field: str, value: Any, why: str) -> None:
    with pytest.raises(Unfit, match=why.replace(".", r"\.")):
        rows_of("device_data", reading(1) | {field: value})


@pytest.mark.parametrize(
    ("value", "why"),
    [(2**63, "more than 64 bits"), (1.5, "no whole number"), (math.nan, "no whole number"), (True, "no number")],
)
def test_counts_that_are_none(value: Any, why: str) -> None:
    with pytest.raises(Unfit, match=f"samples_seen (is|has) {why}"):
        rows_of("predictions", prediction(1) | {"samples_seen": value})


@pytest.mark.parametrize(
    ("collection", "field", "value", "why"),
    [
        ("window_aggregates", "sensors", {"t": 5}, "sensors.t is no object"),
        ("window_aggregates", "scores", [{"version": 1}, {"version": 1}], "scores holds a version twice"),
        ("window_aggregates", "scores", [1], "scores holds something else than objects"),
        ("window_aggregates", "scores", {"version": 1}, "scores is no array"),
        ("shared_anomalies", "devices", [["a"]], "devices is no text"),
        ("dead_letters", "source", "flead.readings", "source is no object"),
        ("dead_letters", "source", {"partition": "0"}, "source partition is no number"),
    ],
)
def test_nested_fields_that_do_not_fit(collection: str, field: str, value: Any, why: str) -> None:
    with pytest.raises(Unfit, match=why.replace(".", r"\.")):
        rows_of(collection, DOCUMENTS[collection] | {field: value})


DOCUMENTS: dict[str, dict[str, Any]] = {
    "window_aggregates": {
        "_id": "1m/device/a@0", "window": "1m", "scope": "device", "device_id": "a", "cohort": "c", "start": NOON,
        "end": NOON, "stored_at": NOON, "readings": 1, "devices": 1, "sensors": {}, "errors": 0, "error": None,
        "anomalies": 0, "uptime": 1.0, "loss": None,
    },
    "shared_anomalies": {
        "_id": "c@0/a", "cohort": "c", "start": NOON, "end": NOON, "stored_at": NOON, "kind": "shared",
        "devices": ["a", "b", "a"], "sensors": [], "count": 2, "score": 1.0,
    },
    "dead_letters": {"_id": "t/0/1", "reason": "empty", "source": {"topic": "t"}, "timestamp": NOON},
}  # fmt: skip


def test_documents_of_earlier_versions_have_the_declared_defaults() -> None:
    [row] = rows_of("window_aggregates", DOCUMENTS["window_aggregates"])["window_aggregates"]
    found = dict(zip(TABLES["window_aggregates"].names, row, strict=True))
    assert (found["late"], found["expected"]) == (0, None)


def test_a_name_that_is_listed_twice_is_one() -> None:
    made = rows_of("shared_anomalies", DOCUMENTS["shared_anomalies"])["shared_anomalies_devices"]
    assert [row[1] for row in made] == ["a", "b"]


def test_numbers_of_any_numeric_type() -> None:
    document = prediction(1) | {"error": Decimal128("0.25"), "samples_seen": 7.0, "produced_ms": Int64(5)}
    [row] = rows_of("predictions", document)["predictions"]
    found = dict(zip(TABLES["predictions"].names, row, strict=True))
    assert (found["error"], found["samples_seen"], found["produced_ms"]) == (0.25, 7, 5)


def test_other_kinds_of_id_become_text() -> None:
    assert key_of(ObjectId("65920080a0a0a0a0a0a0a0a0")) == "65920080a0a0a0a0a0a0a0a0"
    assert key_of(5) == "5"


def test_an_escaped_zero_in_metadata_is_none() -> None:
    [row] = rows_of("device_data", reading(1) | {"metadata": {"a": "\\u0000"}})["device_data"]
    assert row[3] == '{"a":"\\\\u0000"}'
