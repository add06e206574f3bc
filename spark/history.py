"""Where a history of readings comes from - a file, Kafka, MongoDB - as one shape of rows."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as f

from config.settings import Settings
from data.formats import Format, Rejected
from data.plausible import ranges_of
from data.sources import open_dataset
from flead.errors import BadReading
from flead.messages import Reading, ReadingLimits, parse_reading
from kafka.topics import READINGS
from spark.worker import settle
from storage.history import HistoryRepository

ROWS = "device string, time long, names string, values array<double>, arrival long, reason string"
"""A reading: device, µs since 1970-01-01 UTC, sensor names joined by `SEPARATOR`, their values, and in which order it
came (null: not known). A line that is no reading has its `reason` and nothing else."""
SEPARATOR = "\x1f"
"""Between names, which hold no control characters."""
DAY_US, DAY_MS = 86_400_000_000, 86_400_000
_SCHEMA = pa.schema(
    [
        ("device", pa.string()),
        ("time", pa.int64()),
        ("names", pa.string()),
        ("values", pa.list_(pa.float64())),
        ("arrival", pa.int64()),
        ("reason", pa.string()),
    ]
)
_MICROSECONDS = 1e6
_PACKED = {".bz2", ".deflate", ".lz4", ".snappy", ".zst"}
"""Endings by which Hadoop unpacks a file, whatever is in it."""
_PIECE = 250_000
"""Bytes of a file that are worth a task of their own."""


@dataclass(frozen=True, slots=True)
class Counted:
    """One day of one device: how many readings, and what tells them from others."""

    device: str
    day: int
    count: int
    mark: int


class History(ABC):
    """Readings to report on.

    Attributes
    ----------
    kind, name:
        what the report says of the source; together they are the source's name in the database
    ranges:
        lowest and highest value that can be true, by sensor; empty where nobody said
    """

    kind: str
    name: str
    ranges: Mapping[str, tuple[float, float]]

    @property
    def source(self) -> str:
        """The source's name in the database."""
        return f"{self.kind}:{self.name}"

    @abstractmethod
    def days(self) -> list[Counted]:
        """Every day of every device."""

    @abstractmethod
    def rejected(self) -> dict[str, int]:
        """How many records were no readings, by reason."""

    @abstractmethod
    def rows(self, days: Iterable[int]) -> DataFrame:
        """The readings of these days (since 1970-01-01, UTC), as `ROWS`."""

    def close(self) -> None:  # noqa: B027  # most keep nothing
        """Give back what was kept."""


@dataclass
class _Parsed(History):
    """Records that are parsed by workers, once, and kept on disk until the report is made."""

    spark: SparkSession
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @abstractmethod
    def read(self) -> DataFrame:
        """Every record, as `ROWS`."""

    @cached_property
    def _kept(self) -> DataFrame:
        return self.read().persist(StorageLevel.DISK_ONLY)

    @cached_property
    def _counted(self) -> list[Any]:
        # A hash skips nulls, which NaN is not; sums tell equal readings apart, and 32 bits of each cannot overflow.
        one = "xxhash64(time, names, transform(values, value -> nvl(value, double('NaN'))))"
        mark = f.expr(f"sum({one} & 4294967295L)")
        return self._kept.groupBy("device", _day().alias("day"), "reason").agg(f.count("*").alias("n"), mark).collect()

    def days(self) -> list[Counted]:
        """Every day of every device."""
        return [Counted(row[0], row[1], row[3], row[4]) for row in self._counted if row[2] is None]

    def rejected(self) -> dict[str, int]:
        """How many records were no readings, by reason."""
        return {row[2]: row[3] for row in self._counted if row[2] is not None}

    def rows(self, days: Iterable[int]) -> DataFrame:
        """The readings of these days."""
        return self._kept.where(f.col("reason").isNull() & _day().isin(list(days)))

    def close(self) -> None:
        """Give the disk back."""
        self._kept.unpersist()


@dataclass
class FileHistory(_Parsed):
    """A file of readings of any known format, gzip or plain."""

    path: Path = Path()
    format: Format | None = None
    kind = "file"

    @classmethod
    def open(cls, spark: SparkSession, path: Path, ranges: Mapping[str, tuple[float, float]]) -> FileHistory:
        """Recognise a file; raises `BadDataset`."""
        found = open_dataset(path)
        return cls(spark, {**ranges_of(found.format), **ranges}, path.absolute(), found.format)

    @property
    def name(self) -> str:  # type: ignore[override]
        """Its path."""
        return str(self.path)

    @property
    def _links(self) -> Path:
        return Path(self.spark.sparkContext.getConf().get("spark.local.dir") or ".") / "links"

    def read(self) -> DataFrame:
        """Every line."""
        assert self.format is not None  # noqa: S101  # open() set it
        lines = self.spark.read.option("lineSep", "\n").text(_readable(self.path, self._links))
        lines = lines.select(f.col("value").cast("binary").alias("raw"), f.monotonically_increasing_id().alias("at"))
        lines = lines.where(f.col("at") >= self.format.header_lines)
        parse = self.format.parse
        pieces = 1 + self.path.stat().st_size // _PIECE
        return _spread(lines, self.spark, pieces).mapInArrow(lambda batches: _parse_lines(batches, parse), ROWS)


@dataclass
class KafkaHistory(_Parsed):
    """All readings that the topic still holds."""

    servers: str = ""
    limits: ReadingLimits = field(default_factory=ReadingLimits)
    kind = "kafka"
    name = READINGS

    def read(self) -> DataFrame:
        """Every record of the topic."""
        options = {
            "kafka.bootstrap.servers": self.servers,
            "subscribe": READINGS,
            "kafka.isolation.level": "read_committed",
        }
        records = self.spark.read.format("kafka").options(**options).load()
        records = records.select(f.col("value").alias("raw"), f.col("offset").alias("at"))
        now, limits = datetime.now(UTC), self.limits

        def parse(raw: bytes, _number: int) -> Reading | Rejected:
            try:
                return parse_reading(raw, now=now, limits=limits)
            except BadReading as bad:
                return Rejected(bad.reason, bad.detail, b"", 0)

        return _spread(records, self.spark).mapInArrow(lambda batches: _parse_lines(batches, parse), ROWS)


@dataclass
class MongoHistory(History):
    """All readings that MongoDB holds: what came by the stream."""

    spark: SparkSession
    settings: Settings
    repository: HistoryRepository
    kind = "mongodb"
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:  # type: ignore[override]
        """The database."""
        return self.settings.mongodb.database

    def days(self) -> list[Counted]:
        """Every day of every device, from an index; what a day's readings are is told by their count."""
        return [Counted(device, day, count, 0) for device, day, count in self.repository.days()]

    def rejected(self) -> dict[str, int]:
        """The dead letters, by reason."""
        return self.repository.dead_letters()

    def rows(self, days: Iterable[int]) -> DataFrame:
        """The documents of these days."""
        spans = [
            {"timestamp": {"$gte": {"$date": first * DAY_MS}, "$lt": {"$date": (last + 1) * DAY_MS}}}
            for first, last in _runs(sorted(days))
        ]
        options = {
            "connection.uri": self.settings.mongodb.address.get_secret_value(),
            "database": self.name,
            "collection": "device_data",
            "aggregation.pipeline": json.dumps([{"$match": {"$or": spans}}]),
            "partitioner": "com.mongodb.spark.sql.connector.read.partitioner.SamplePartitioner",
        }
        schema = "device_id string, timestamp timestamp, sensors map<string,double>"
        found = self.spark.read.format("mongodb").options(**options).schema(schema).load()
        return found.select(
            f.col("device_id").alias("device"),
            f.unix_micros("timestamp").alias("time"),
            f.array_join(f.map_keys("sensors"), SEPARATOR).alias("names"),
            f.map_values("sensors").alias("values"),
            f.lit(None).cast("long").alias("arrival"),
            f.lit(None).cast("string").alias("reason"),
        )


def _day() -> Column:
    return f.floor(f.col("time") / DAY_US).cast("int")


def _runs(days: list[int]) -> Iterator[tuple[int, int]]:
    """Consecutive days as first and last.

    >>> list(_runs([1, 2, 3, 7]))
    [(1, 3), (7, 7)]
    """
    first = previous = None
    for day in days:
        if previous is not None and day == previous + 1:
            previous = day
            continue
        if first is not None and previous is not None:
            yield first, previous
        first = previous = day
    if first is not None and previous is not None:
        yield first, previous


def _readable(path: Path, links: Path) -> str:
    """The file under a name that Hadoop reads as what it is: it tells gzip by the name, we by the first bytes."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    hidden, scheme = path.name[0] in "_.", ":" in path.name  # as Hadoop reads names
    if packed == (path.suffix == ".gz") and path.suffix not in _PACKED and not (hidden or scheme):
        return _literal(path)
    links.mkdir(parents=True, exist_ok=True)
    link = links / f"{mark_of(str(path))}{'.gz' if packed else '.txt'}"
    link.unlink(missing_ok=True)
    link.symlink_to(path)
    return _literal(link)


def _literal(path: Path) -> str:
    r"""A path that Spark takes letter by letter: nothing in it is percent-encoded, or a pattern.

    >>> _literal(Path("/my data/a[1].csv"))
    'file:///my data/a\\[1\\].csv'
    """
    return "file://" + re.sub(r"([][{}*?\\])", r"\\\1", str(path))


def _spread(lines: DataFrame, spark: SparkSession, most: int | None = None) -> DataFrame:
    """Over all cores, in `most` pieces: a gzip file is one piece."""
    pieces = 4 * spark.sparkContext.defaultParallelism
    return lines.repartition(pieces if most is None else min(pieces, most))


def _parse_lines(batches: Iterable[pa.RecordBatch], parse: Any) -> Iterator[pa.RecordBatch]:
    """Parse what came, on a worker: (raw, at) to `ROWS`."""
    settle()
    joined: dict[tuple[str, ...], str] = {}
    for batch in batches:
        columns: tuple[list[Any], ...] = ([], [], [], [], [], [])
        for raw, at in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
            found = parse((raw or b"").rstrip(b"\r"), 0)
            if isinstance(found, Rejected):
                row: tuple[Any, ...] = (None, None, None, None, None, str(found.reason))
            else:
                key = tuple(found.sensors)
                name = joined.get(key) or joined.setdefault(key, SEPARATOR.join(key))
                at_us = round(found.timestamp.timestamp() * _MICROSECONDS)
                row = (found.device_id, at_us, name, list(found.sensors.values()), at, None)
            for column, value in zip(columns, row, strict=True):
                column.append(value)
        yield pa.RecordBatch.from_arrays(
            [pa.array(column, type=kind.type) for column, kind in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA
        )


def mark_of(*parts: object) -> str:
    """A short hash of values.

    >>> mark_of(1, "a") == mark_of(1, "a") != mark_of(1, "b")
    True
    """
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:20]
