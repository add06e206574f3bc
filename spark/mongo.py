"""MongoDB from Spark's workers: one client per worker process, and one way to wait for a database that is away.

With pymongo and not the Mongo connector: `storage.archive` knows what MongoDB refuses, an aggregate is replaced by its
`_id` in one call either way, and the connector would turn every document into a Spark row first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import SecretStr
from pymongo import ReplaceOne
from pymongo.database import Database
from pymongo.errors import BulkWriteError

from config.settings import MongoSettings
from flead.errors import Unavailable
from storage.archive import DOCUMENT_CODES
from storage.connection import Document, connect, open_database, translated

log = logging.getLogger(__name__)

Outcome = TypeVar("Outcome")

RETRY_S = 0.5
"""Between two attempts while MongoDB is away, s."""


class Stopping(Exception):
    """It is time to stop, and a micro-batch is not done: the next start does it again."""


@dataclass(frozen=True, slots=True)
class Target:
    """The database to write to, as it travels to workers."""

    uri: str = field(repr=False)  # it may hold a password
    database: str

    @classmethod
    def of(cls, settings: MongoSettings) -> Target:
        """The one that the settings name."""
        return cls(settings.address.get_secret_value(), settings.database)


@lru_cache(maxsize=4)
def database_of(target: Target) -> Database[Document]:
    """The database, over a client that lives as long as this process."""
    settings = MongoSettings(uri=SecretStr(target.uri), database=target.database)
    return open_database(connect(settings), settings)


def until_done(
    attempt: Callable[[], Outcome], stopping: Callable[[], bool], sleep: Callable[[float], None] = time.sleep
) -> Outcome:
    """Call until it does not raise `Unavailable`.

    Raises
    ------
    Stopping
        where it is time to stop before that
    """
    said = ""
    while not stopping():
        try:
            return attempt()
        except Unavailable as error:
            if str(error)[:60] != said:  # once, not twice a second
                log.warning("waiting: %s", error)
            said = str(error)[:60]
            sleep(RETRY_S)
    raise Stopping


def replace_all(collection: Any, documents: Iterable[Any]) -> list[str]:
    """Put documents in the place of those with their `_id`; gives a line for what MongoDB refuses for good.

    Raises
    ------
    Unavailable
        where it does not answer: doing it again is harmless
    """
    requests = [ReplaceOne({"_id": document["_id"]}, document, upsert=True) for document in documents]
    if not requests:
        return []
    with translated():
        try:
            collection.bulk_write(requests, ordered=False)
        except BulkWriteError as error:
            wrong = error.details["writeErrors"]
            if error.details["writeConcernErrors"] or any(item["code"] not in DOCUMENT_CODES for item in wrong):
                raise
            return [f"{len(wrong)} documents of {collection.name} are refused: {wrong[0]['errmsg']}"[:300]]
    return []
