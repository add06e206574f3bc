"""The fields of a line: numbers, times and cells from text, and times as keys to sort by."""

from __future__ import annotations

import csv
import math
from contextlib import suppress
from datetime import UTC, datetime

KEY_WIDTH = 26
"""Bytes of a sort key: `2004-03-04 00:00:00.154051`."""

NO_TIME = b" " * KEY_WIDTH
"""The key of a line whose time cannot be read: before every time."""


def number(text: str, what: str) -> float | None:
    """Read a sensor's value: None for an empty field, else finite.

    Raises
    ------
    ValueError
        it is not a finite number; the text begins with `what`

    >>> number("19.3", "light"), number("", "light")
    (19.3, None)
    >>> number("inf", "light")
    Traceback (most recent call last):
    ValueError: light: 'inf' is not a finite number
    """
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{what}: {text!r} is not a number") from None
    if "_" in text or not math.isfinite(value):  # Python reads 1_000 as a number, no instrument writes it
        raise ValueError(f"{what}: {text!r} is not a finite number")
    return value


def utc(text: str) -> datetime:
    """Read an ISO 8601 time, in UTC; one without an offset is taken as UTC.

    Digits alone are a date at most: Python would read 1612111122334, ms since 1970, as 1612-11-11 23:34.

    Raises
    ------
    ValueError
        it is none, or lies outside the years 1 to 9999 in UTC

    >>> utc("2014-04-01 02:00:00+02:00")
    datetime.datetime(2014, 4, 1, 0, 0, tzinfo=datetime.timezone.utc)
    """
    if not (text.isdigit() and len(text) > 8):
        with suppress(ValueError, OverflowError):
            moment = datetime.fromisoformat(text)
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    raise ValueError(f"timestamp: {text!r} is not an ISO 8601 time like 2024-01-01T00:00:00Z")


def time_key(moment: datetime) -> bytes:
    """Write an aware UTC time as `KEY_WIDTH` bytes that sort as the time does.

    >>> time_key(datetime(2004, 3, 4, tzinfo=UTC))
    b'2004-03-04 00:00:00.000000'
    """
    return moment.replace(tzinfo=None).isoformat(" ", "microseconds").encode()


def text_of(line: bytes) -> str:
    """Decode a line; raises `ValueError` naming the first byte that is not UTF-8."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text at byte {error.start}") from None


def cells_of(line: bytes) -> list[str]:
    """Split a CSV line; raises `ValueError` where its quotes do not hold.

    >>> cells_of(b'2014-04-01,"hall, north",21.9')
    ['2014-04-01', 'hall, north', '21.9']
    """
    text = text_of(line)
    if '"' not in text:  # the csv module is slower, and only quotes need it
        return text.split(",")
    try:
        return next(csv.reader([text], strict=True), [])
    except csv.Error as error:
        raise ValueError(f"not CSV: {error}") from None
