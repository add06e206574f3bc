"""The stream's raw records into MongoDB: readings, predictions, alerts and dead letters, each once.

A document's `_id` comes from its content, so a micro-batch that is written again leaves one of each. A record that
cannot be kept stops nothing: the learning job sends readings that are none to the dead letters.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import orjson
import pyarrow as pa
from pyspark.sql import DataFrame

from flead.errors import Unavailable
from flead.messages import ReadingLimits
from kafka.topics import ALERTS, DEAD_LETTERS, PREDICTIONS, READINGS
from spark.mongo import Target, database_of
from spark.stream_windows import EARLIEST, LATEST
from spark.worker import settle
from storage.archive import ArchiveRepository, Stored, valid_readings

log = logging.getLogger(__name__)

OUTCOME = (
    "topic string, new long, known long, skipped long, why string, away string, cohort string, low double, high double"
)
_SCHEMA = pa.schema(
    [
        ("topic", pa.string()),
        ("new", pa.int64()),
        ("known", pa.int64()),
        ("skipped", pa.int64()),
        ("why", pa.string()),
        ("away", pa.string()),
        ("cohort", pa.string()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True)
class Touched:
    """A stretch of event time in which alerts of a cohort came: s since 1970."""

    cohort: str
    low: float
    high: float


def storing(target: Target, limits: ReadingLimits) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """What workers do with records of Kafka: store them, and say how many; for `mapInArrow` with `OUTCOME`.

    Where MongoDB does not answer, a row says so in `away`: the driver then gives the batch again.
    """

    def store(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        settle()
        repository = ArchiveRepository(database_of(target))
        for batch in batches:
            try:
                rows = list(_stored(batch, repository, limits))
            except Unavailable as error:
                yield _rows([{"away": str(error)}])
                return
            yield _rows(rows)

    return store


def archive(records: DataFrame, target: Target, limits: ReadingLimits, tasks: int) -> list[Touched]:
    """Store one micro-batch.

    Parameters
    ----------
    records:
        with `topic` and `value`, as Kafka's source gives them
    tasks:
        how many parts it is stored in

    Returns
    -------
    where alerts came, in event time

    Raises
    ------
    Unavailable
        where MongoDB does not answer: what is stored already is known the next time
    """
    chosen = records.select("topic", "value").coalesce(tasks)
    outcomes = chosen.mapInArrow(storing(target, limits), OUTCOME).collect()
    for outcome in outcomes:
        if outcome.away:
            raise Unavailable(outcome.away)
        if outcome.why:
            log.warning("%d records of %s cannot be stored: %s", outcome.skipped, outcome.topic, outcome.why)
    return [Touched(o.cohort, o.low, o.high) for o in outcomes if o.cohort is not None]


def _rows(rows: list[dict[str, Any]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, schema=_SCHEMA)


def _stored(batch: pa.RecordBatch, repository: ArchiveRepository, limits: ReadingLimits) -> Iterator[dict[str, Any]]:
    """Store the records of one Arrow batch, and yield what became of them, a row per topic and cohort."""
    values = _by_topic(batch)
    yield _row(READINGS, repository.add_readings(valid_readings(values[READINGS], limits)))
    yield _row(PREDICTIONS, repository.add_predictions(values[PREDICTIONS]))
    yield _row(ALERTS, repository.add_alerts(values[ALERTS]))
    yield _row(DEAD_LETTERS, repository.add_dead_letters(values[DEAD_LETTERS]))
    yield from _touched(values[ALERTS])


def _by_topic(batch: pa.RecordBatch) -> dict[str, list[bytes]]:
    values: dict[str, list[bytes]] = defaultdict(list)
    for topic, value in zip(batch.column("topic").to_pylist(), batch.column("value").to_pylist(), strict=True):
        if value is not None:
            values[topic].append(value)
    return values


def _row(topic: str, outcome: Stored) -> dict[str, Any]:
    why = outcome.refused[0].why if outcome.refused else None
    return {
        "topic": topic,
        "new": outcome.new,
        "known": outcome.known,
        "skipped": len(outcome.refused),
        "why": why,
    }


def _touched(alerts: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Where alerts came, by cohort and hour; what is no alert was not stored either."""
    spans: dict[tuple[str, float], tuple[float, float]] = {}
    for value in alerts:
        try:
            fields = orjson.loads(value)
            cohort, at = fields["cohort"], datetime.fromisoformat(fields["timestamp"]).timestamp()
        except (ValueError, TypeError, KeyError):
            continue
        if isinstance(cohort, str) and EARLIEST < at < LATEST:
            hour = cohort, at // 3_600.0
            low, high = spans.get(hour, (at, at))
            spans[hour] = min(low, at), max(high, at)
    for (cohort, _), (low, high) in spans.items():
        yield {"cohort": cohort, "low": low, "high": high}
