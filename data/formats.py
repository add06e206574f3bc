"""The formats that a file of readings can have: how each is recognised, ordered by time and read.

A format is given one line at a time, as bytes without its line ending. A line is a `Reading` or it is `Rejected`;
no line raises, and none vanishes.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Self

from pydantic import TypeAdapter, ValidationError

from data.fields import KEY_WIDTH, NO_TIME, cells_of, number, text_of, time_key, utc
from flead.errors import BadDataset, BadReading, Reason
from flead.messages import Name, Reading, ReadingLimits, parse_reading


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line that is not a reading: why, its bytes without the line ending, and its number in the file, from 1."""

    reason: Reason
    detail: str
    line: bytes
    number: int


class Format(ABC):
    """One way to write readings, a line each."""

    name: ClassVar[str]
    """What people call it; error messages list it."""

    header_lines: ClassVar[int] = 0
    """Lines at the top of the file that are no records."""

    @classmethod
    @abstractmethod
    def detect(cls, head: Sequence[bytes], stem: str) -> Self | None:
        """Recognise a file by its first lines.

        Parameters
        ----------
        head:
            the first lines, never empty
        stem:
            the file's name without folder and suffixes: the device of a file that names none

        Raises
        ------
        BadDataset
            it is this format, but no line of it could ever be read
        """

    @abstractmethod
    def read(self, line: bytes) -> Reading:
        """Read one line; raises `BadReading`, or a `ValueError` whose text says what is wrong."""

    def sort_key(self, line: bytes) -> bytes:
        """Give the time of a line as `KEY_WIDTH` bytes that sort as the time does; `NO_TIME` without one."""
        reading = self.parse(line, 0)
        return NO_TIME if isinstance(reading, Rejected) else time_key(reading.timestamp)

    def parse(self, line: bytes, number: int) -> Reading | Rejected:
        """Read one line; whatever is in it, it is one or the other."""
        try:
            return self.read(line)
        except BadReading as error:
            return Rejected(error.reason, error.detail, line, number)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            return Rejected(Reason.CORRUPT_ROW, f"{where}: {first['msg']}"[:200], line, number)
        except ValueError as error:
            return Rejected(Reason.CORRUPT_ROW, str(error)[:200], line, number)


class IntelLab(Format):
    """`date time epoch moteid temperature humidity light voltage`, as the Intel Berkeley Research Lab published it.

    One space between fields, so a missing value is an empty field. Times are taken as UTC. The epoch counts slots of
    30 s and goes into the metadata. Finite values are kept however odd: telling them apart is the learner's work.

    >>> reading = IntelLab().read(b"2004-03-04 00:00:26.98 14285 7 20.5666 35.8876  2.65")
    >>> reading.device_id, reading.sensors
    ('mote-7', {'temperature': 20.5666, 'humidity': 35.8876, 'light': None, 'voltage': 2.65})
    >>> IntelLab().parse(b"2004-03-04 00:00:26.98 14285 99 20.5 35.9 1 2.65", 1).detail
    "moteid: '99' is not one of 1-54"
    """

    name = "Intel Lab lines (date time epoch moteid temperature humidity light voltage)"

    _MOTES: ClassVar = {str(i): f"mote-{i}" for i in range(1, 55)}
    _STARTS = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? ")
    # Only this shape sorts as text; `fromisoformat` alone would also take week dates and compact ones.
    _TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?")

    @classmethod
    def detect(cls, head: Sequence[bytes], stem: str) -> Self | None:
        """Recognise it by any line: the first may be corrupt."""
        return cls() if any(cls._STARTS.match(line) and line.count(b" ") == 7 for line in head) else None

    def sort_key(self, line: bytes) -> bytes:
        """Give the line's own beginning: a shorter fraction ends in a space, which sorts before every digit."""
        return line[:KEY_WIDTH].ljust(KEY_WIDTH)

    def read(self, line: bytes) -> Reading:
        """Read one line; raises `ValueError`."""
        fields = text_of(line).split(" ")
        if len(fields) != 8:
            raise ValueError(f"{len(fields)} fields, expected 8")
        date, time, epoch, mote, temperature, humidity, light, voltage = fields
        moment = f"{date} {time}"
        if not self._TIME.fullmatch(moment):
            raise ValueError(f"{moment!r} is not a time like 2004-03-04 00:00:26.983691")
        # JSON numbers end at 64 bits, and so does what a slot number can mean
        if not (epoch.isascii() and epoch.isdigit() and len(epoch) < 19):
            raise ValueError(f"epoch: {epoch!r} is not a whole number")
        if mote not in self._MOTES:
            raise ValueError(f"moteid: {mote!r} is not one of 1-54")
        return Reading(
            device_id=self._MOTES[mote],
            timestamp=datetime.fromisoformat(moment).replace(tzinfo=UTC),
            sensors={
                "temperature": number(temperature, "temperature"),
                "humidity": number(humidity, "humidity"),
                "light": number(light, "light"),
                "voltage": number(voltage, "voltage"),
            },
            metadata={"epoch": int(epoch)},
        )


_NAME = TypeAdapter(Name)


def _can_name_a_sensor(text: str) -> bool:
    try:
        _NAME.validate_python(text)
    except ValidationError:
        return False
    return True


_MISSING = frozenset({"", "nan", "na", "n/a", "null", "none"})
"""What tools write into a cell without a value, in lower case."""


@dataclass(frozen=True)
class Csv(Format):
    """Comma-separated values with a header: `timestamp`, if need be `device_id`, and one numeric column per sensor.

    Times are ISO 8601, UTC unless they name an offset. Without a `device_id` the file is one device, named after the
    file. A column that holds text in every one of the first lines is no sensor; it goes into the metadata. Quoted
    fields may hold commas but no line breaks.

    >>> table = Csv.detect([b"timestamp,value"], "pump")
    >>> table.read(b"2014-04-01 00:05:00,21.97")
    Reading(device_id='pump', timestamp=datetime.datetime(2014, 4, 1, 0, 5, tzinfo=datetime.timezone.utc), \
sensors={'value': 21.97}, metadata={})
    """

    name: ClassVar[str] = "CSV with a header (timestamp,[device_id,]sensor,...)"
    header_lines: ClassVar[int] = 1

    columns: tuple[str, ...]
    time_column: int
    device_column: int | None
    device: str
    text_columns: frozenset[int] = frozenset()

    @classmethod
    def detect(cls, head: Sequence[bytes], stem: str) -> Self | None:
        """Recognise it by a first line that names a `timestamp` column."""
        try:
            columns = tuple(name.strip() for name in cells_of(head[0]))
        except ValueError:
            return None
        names = [name.lower() if name.lower() in ("timestamp", "device_id") else name for name in columns]
        if "timestamp" not in names:
            return None
        if "" in names or len(set(names)) < len(names):
            raise BadDataset(f"the header {','.join(names)[:200]!r} needs a name for every column, each of its own")
        special = {names.index(name) for name in ("timestamp", "device_id") if name in names}
        texts = frozenset(cls._texts(head[1:], len(columns)) - special)
        if len(special) + len(texts) == len(columns):
            raise BadDataset("the header names no sensor: no column beside timestamp and device_id holds a number")
        for i, name in enumerate(columns):
            if i not in special | texts and not _can_name_a_sensor(name):
                raise BadDataset(
                    f"the header names a sensor {name[:200]!r}: a name has 1-128 characters, none a control character"
                )
        device = re.sub(r"[^\w .-]", "_", stem)[:128] or "device-1"
        device_column = names.index("device_id") if "device_id" in names else None
        return cls(columns, names.index("timestamp"), device_column, device, texts)

    @staticmethod
    def _texts(lines: Sequence[bytes], width: int) -> set[int]:
        """The columns that hold something in these lines, and never a number."""
        numbers, words = set(), set()
        for line in lines:
            with suppress(ValueError):
                cells = cells_of(line)
                for i, cell in enumerate(cells if len(cells) == width else ()):
                    text = cell.strip()
                    if text.lower() in _MISSING:
                        continue
                    try:
                        float(text)
                        numbers.add(i)
                    except ValueError:
                        words.add(i)
        return words - numbers

    def sort_key(self, line: bytes) -> bytes:
        """Give the time column's."""
        try:
            return time_key(utc(cells_of(line)[self.time_column].strip()))
        except (ValueError, IndexError):
            return NO_TIME

    def read(self, line: bytes) -> Reading:
        """Read one line; raises `ValueError`."""
        cells = cells_of(line)
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} columns, the header has {len(self.columns)}")
        special = {self.time_column, self.device_column, *self.text_columns}
        return Reading(
            device_id=self.device if self.device_column is None else cells[self.device_column].strip(),
            timestamp=utc(cells[self.time_column].strip()),
            sensors={
                name: None if cell.strip().lower() in _MISSING else number(cell, name)
                for i, (name, cell) in enumerate(zip(self.columns, cells, strict=True))
                if i not in special
            },
            metadata={self.columns[i]: cells[i] for i in sorted(self.text_columns)},
        )


class JsonLines(Format):
    """One reading per line, as it travels on `flead.readings`.

    What is refused keeps the precise reason, as it would on the topic. How old or how far ahead a file's times may be
    is decided where the readings go, not here.

    >>> JsonLines().read(b'{"device_id": "m", "timestamp": "2024-01-01T00:00:00Z", "sensors": {"t": 1}}').sensors
    {'t': 1.0}
    """

    name = "JSON lines of readings (device_id, timestamp, sensors)"

    _LIMITS = ReadingLimits(earliest=datetime.min.replace(tzinfo=UTC))
    _NOW = datetime(9998, 12, 30, tzinfo=UTC)

    @classmethod
    def detect(cls, head: Sequence[bytes], stem: str) -> Self | None:
        """Recognise it by any line that is an object and names sensors."""
        return cls() if any(line.lstrip().startswith(b"{") and b'"sensors"' in line for line in head) else None

    def read(self, line: bytes) -> Reading:
        """Read one line; raises `BadReading`."""
        return parse_reading(line, now=self._NOW, limits=self._LIMITS)


FORMATS: tuple[type[Format], ...] = (IntelLab, JsonLines, Csv)
"""Every known format, in the order in which they are tried."""
