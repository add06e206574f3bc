"""One declaration: validators, indexes, retention and the page of documentation are what it says."""

from __future__ import annotations

import types
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, SecretStr
from pymongo.database import Database
from pymongo.errors import WriteError

from config.settings import PROJECT, Expiring, MongoSettings
from storage.archive import ArchiveRepository
from storage.connection import Document, connect, open_database
from storage.describe import page
from storage.documents import COLLECTIONS, RANGE, VALUE, Collection, Query
from storage.schema import apply_schema, collections
from storage.validators import schema_of
from tests.fixtures_storage import Mongo, mongod_with, wait_until

servers = pytest.mark.servers
START = datetime(2004, 3, 1, tzinfo=UTC)
DOCUMENTS = 3_000
ASKED = [collection for collection in COLLECTIONS if collection.queries]


def example(annotation: Any, name: str, i: int) -> Any:
    """The i-th of a series of varied values of a field."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return example(arguments[0], name, i)
    if origin in (Union, types.UnionType):
        return None if i % 11 == 0 else example(arguments[0], name, i)
    if origin is Literal:
        return arguments[i % len(arguments)]
    if origin is list:
        return [example(arguments[0], name, i + k) for k in range(i % 3 + 1)]
    if origin is dict:
        return {f"{name}-{k}": example(arguments[1], name, i + k) for k in range(2)}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {key: example(info.annotation, key, i) for key, info in annotation.model_fields.items()}
    simple = {
        bool: i % 2 == 0,
        datetime: START + timedelta(hours=i * 7 % 211),
        str: f"{name}-{i % (17, 19, 23)[name.encode()[-1] % 3]}",
        int: i // 17 + 1,
        float: 0.5,
        bytes: bytes(8),
    }
    return simple.get(annotation, i)


def documents(collection: Collection) -> Iterator[Document]:
    return ({"_id": i} | example(collection.model, collection.name, i) for i in range(DOCUMENTS))


def filled_in(query: Query, stored: list[Document]) -> Document:
    """The query's filter with what a stored document answers to."""
    constants = {name: given for name, given in query.filter.items() if given not in (VALUE, RANGE)}
    wanted = next(d for d in stored[500:] if all(d[name] == given for name, given in constants.items()) and all(
        d[name] is not None for name in query.filter.keys() - constants.keys()))  # fmt: skip
    filled: Document = {}
    for name, given in query.filter.items():
        value = wanted[name][0] if isinstance(wanted[name], list) else wanted[name]
        wide = timedelta(hours=20) if isinstance(value, datetime) else 20
        filled[name] = {"$gte": value, "$lt": value + wide} if given is RANGE else value
    return filled


def stages(plan: Any) -> Iterator[Document]:
    """Every stage of a plan, however deep."""
    if isinstance(plan, dict):
        if "stage" in plan:
            yield plan
        for part in plan.values():
            yield from stages(part)
    elif isinstance(plan, list):
        for part in plan:
            yield from stages(part)


def explained(database: Database[Document], name: str, query: Query, asked: Document) -> Document:
    find: Document = {"find": name, "filter": asked}
    if query.sort:
        find["sort"] = dict(query.sort)
    if query.only:
        find["projection"] = dict.fromkeys(query.only, 1) | {"_id": 0}
    answer: Document = database.command("explain", find, verbosity="executionStats")
    return answer


@servers
@pytest.mark.parametrize("collection", ASKED, ids=lambda collection: collection.name)
def test_every_query_has_an_index_and_every_index_a_query(mongo: Mongo, collection: Collection) -> None:
    stored = list(documents(collection))
    mongo.database[collection.name].insert_many(stored)
    used = set()
    for query in collection.queries:
        answer = explained(mongo.database, collection.name, query, filled_in(query, stored))
        plan = list(stages(answer["queryPlanner"]["winningPlan"]))
        figures = answer["executionStats"]
        names = {stage["stage"] for stage in plan}
        assert "IXSCAN" in names, query.asks
        assert not names & {"COLLSCAN", "SORT"}, query.asks
        assert 0 < figures["nReturned"] <= 1_000 or not query.filter, query.asks
        assert figures["totalDocsExamined"] <= (0 if query.only else 1.1 * figures["nReturned"]), query.asks
        used |= {stage["indexName"] for stage in plan if "indexName" in stage}
    assert used == {index.name for index in collection.indexes}


@servers
def test_the_validators_take_what_the_models_take(mongo: Mongo) -> None:
    """Whole numbers where fractions may be and fractions where whole numbers may be, null, and fields of nobody."""
    for collection in COLLECTIONS:
        document = example(collection.model, collection.name, 1) | {"of_nobody": [1]}
        collection.model.model_validate(document)
        mongo.database[collection.name].insert_one({"_id": "one"} | document)
        doubles = {k: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in document.items()}
        mongo.database[collection.name].replace_one({"_id": "one"}, doubles)
        mongo.database[collection.name].delete_one({"_id": "one"})


@servers
@pytest.mark.parametrize(
    ("collection", "change"),
    [
        ("device_data", {"sensors": {"light": "bright"}}),
        ("device_data", {"device_id": ""}),
        ("device_data", {"timestamp": "2004-03-01"}),
        ("local_models", {"sample_count": 0}),
        ("local_models", {"weights": {"weights": []}}),
        ("global_model", {"round": 0}),
        ("window_aggregates", {"window": "2m"}),
        ("window_aggregates", {"uptime": 1.5}),
        ("window_aggregates", {"sensors": {"light": {"count": 1}}}),
        ("shared_anomalies", {"devices": ["a", 1]}),
    ],
)
def test_the_validators_refuse_what_is_no_document_of_ours(mongo: Mongo, collection: str, change: Document) -> None:
    [declared] = [found for found in COLLECTIONS if found.name == collection]
    document = example(declared.model, collection, 1)
    mongo.database[collection].insert_one({"_id": "right"} | document)
    with pytest.raises(WriteError):
        mongo.database[collection].insert_one({"_id": "wrong"} | document | change)


@servers
def test_a_document_lacks_no_required_field(mongo: Mongo) -> None:
    for declared in COLLECTIONS:
        with pytest.raises(WriteError):
            mongo.database[declared.name].insert_one({})


def test_an_annotation_that_nobody_knows_is_no_validator_that_lets_all_pass() -> None:
    with pytest.raises(TypeError, match=r"teach storage\.validators"):
        schema_of(complex)


def test_the_page_is_what_the_declaration_makes() -> None:
    again = "run `python -m storage.describe docs/collections.md`"
    assert (PROJECT / "docs" / "collections.md").read_text() == page(), again


def expiries(database: Database[Document]) -> dict[str, int]:
    found = {c.name: database[c.name].index_information() for c in COLLECTIONS}
    return {
        name: index["expireAfterSeconds"]
        for name, indexes in found.items() for index in indexes.values() if "expireAfterSeconds" in index
    }  # fmt: skip


def with_days(mongo: Mongo, **days: float | None) -> MongoSettings:
    return MongoSettings(**(mongo.settings.model_dump() | {"retention_days": days}))


class TestRetention:
    def test_is_offered_for_just_what_may_expire(self) -> None:
        assert {c.name for c in COLLECTIONS if c.expires_from} == set(get_args(Expiring))

    @pytest.mark.servers
    def test_follows_the_setting(self, mongo: Mongo) -> None:
        days = 86_400
        usual = {"local_models": 7 * days, "dead_letters": 30 * days, "pipeline_samples": 30 * days}
        usual["audit_log"] = 365 * days
        assert expiries(mongo.database) == usual
        apply_schema(mongo.database, with_days(mongo, local_models=0.5, predictions=3))
        assert expiries(mongo.database) == usual | {"local_models": days // 2, "predictions": 3 * days}
        apply_schema(mongo.database, with_days(mongo, dead_letters=None, pipeline_samples=None))
        assert expiries(mongo.database) == {"local_models": 7 * days, "audit_log": 365 * days}
        apply_schema(mongo.database, mongo.settings)

    @pytest.mark.servers
    def test_counts_from_when_a_thing_was_stored(self, tmp_path: Path) -> None:
        """A reading of 2004 that is replayed today stays for its days, and one stored before there were dates stays."""
        reading = {"timestamp": START, "sensors": {"light": 1}}
        with mongod_with(tmp_path / "db", "--setParameter", "ttlMonitorSleepSecs=1") as server:
            settings = MongoSettings(uri=SecretStr(server.uri), retention_days={"device_data": 1})
            with connect(settings) as client:
                database = open_database(client, settings)
                apply_schema(database, settings)
                for device, days_ago in (("of two days ago", 2), ("of now", 0)):
                    stored = datetime.now(UTC) - timedelta(days=days_ago)
                    archive = ArchiveRepository(database, iter([stored]).__next__)
                    archive.add_readings([reading | {"device_id": device}])
                database.device_data.insert_one(reading | {"device_id": "of layout 0"})
                wait_until(lambda: database.device_data.count_documents({}) < 3)
                assert sorted(database.device_data.distinct("device_id")) == ["of layout 0", "of now"]


@servers
def test_the_schema_again_changes_nothing(mongo: Mongo) -> None:
    def look() -> Any:
        names = sorted(mongo.database.list_collection_names())
        options = {found["name"]: found["options"] for found in mongo.database.list_collections()}
        return names, options, {name: mongo.database[name].index_information() for name in names}

    before = look()
    apply_schema(mongo.database, mongo.settings)
    assert look() == before
    assert set(before[0]) >= {collection.name for collection in collections(mongo.settings)}


@servers
def test_an_index_of_other_keys_under_our_name_is_made_anew_and_one_of_somebody_else_is_left_alone(
    mongo: Mongo,
) -> None:
    scores = mongo.database.model_scores
    scores.drop_indexes()
    scores.create_index("skill", name="version_time")
    scores.create_index([("cohort", 1), ("start", -1)], name="of somebody else")
    apply_schema(mongo.database, mongo.settings)
    assert {name: list(index["key"]) for name, index in scores.index_information().items()} == {
        "_id_": [("_id", 1)],
        "version_time": [("cohort", 1), ("version", 1), ("start", -1)],
        "of somebody else": [("cohort", 1), ("start", -1)],
    }
    scores.drop_index("of somebody else")
    apply_schema(mongo.database, mongo.settings)


def test_every_part_of_the_declaration_is_described() -> None:
    for collection in COLLECTIONS:
        assert collection.model.__doc__
        for info in collection.model.model_fields.values():
            assert info.description
    assert Path(PROJECT / "docs" / "collections.md").read_text().count("\n## ") == len(COLLECTIONS)
