"""How the report writes numbers, times and names; what is not known is a dash.

Everything here is a pure function of one value or one column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flead.errors import Reason

UNKNOWN = "\u2013"
"""A dash."""
REASONS: Mapping[str, str] = {
    Reason.EMPTY: "nothing in the record",
    Reason.TOO_LARGE: "longer than a reading may be",
    Reason.NOT_JSON: "not JSON",
    Reason.NOT_AN_OBJECT: "JSON, but not an object",
    Reason.MISSING_FIELD: "a field is missing",
    Reason.WRONG_TYPE: "a field has the wrong type",
    Reason.BAD_NAME: "a name that a device or sensor may not have",
    Reason.NO_SENSORS: "no sensor in the reading",
    Reason.TOO_MANY_SENSORS: "more sensors than a reading may have",
    Reason.NOT_FINITE: "a value that is no finite number",
    Reason.OUT_OF_RANGE: "a value that cannot be",
    Reason.BAD_TIME: "no time that can be read",
    Reason.TIME_OUT_OF_RANGE: "a time too far in the past or the future",
    Reason.CORRUPT_ROW: "a row that cannot be read",
    Reason.BAD_UPDATE: "a model update that breaks the contract",
    Reason.BAD_MODEL: "weights that do not fit their architecture",
    Reason.FORGED: "a global model that no trusted server signed",
    Reason.LEARNER_FAILED: "the device's model raised an error",
}
"""What each code of a rejected reading means."""

_FIGURE_SPACE, _POINT_SPACE = "\u2007", "\u2008"
_UNWRITABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def cleaned(value: Any) -> Any:
    r"""A JSON value of which every text can be written into XML, and every number is finite or null.

    >>> cleaned({"a\x00": [1.5, float("nan"), "b\ud800"]})
    {'a�': [1.5, None, 'b�']}
    """
    if isinstance(value, str):
        return _UNWRITABLE.sub("\ufffd", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {cleaned(str(key)): cleaned(each) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [cleaned(each) for each in value]
    return value


def lookup(value: Any, *keys: str) -> Any:
    """What lies under these keys, or nothing where one of them is missing.

    >>> lookup({"a": {"b": 1}}, "a", "b"), lookup({"a": None}, "a", "b")
    (1, None)
    """
    for key in keys:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def naturally(names: Iterable[str]) -> list[str]:
    """Names in the order that people expect.

    >>> naturally(["mote-10", "mote-9", "b"])
    ['b', 'mote-9', 'mote-10']
    """
    return sorted(names, key=lambda name: [(part.isdecimal(), part.zfill(20)) for part in re.split(r"(\d+)", name)])


def whole(value: float | None) -> str:
    """A count.

    >>> whole(1234567), whole(None) == UNKNOWN
    ('1,234,567', True)
    """
    return UNKNOWN if value is None else f"{value:,.0f}"


def counted(number: float | None, name: str) -> str:
    """So many of a thing.

    >>> counted(1, "device"), counted(54, "device")
    ('1 device', '54 devices')
    """
    return f"{whole(number)} {name}" + ("" if number == 1 else "s")


def fixed(value: float | None, digits: int) -> str:
    """A number with so many digits after the point; in powers of ten where it would be too long.

    >>> fixed(1234.5, 2), fixed(-0.001, 2), fixed(-1.5e30, 2)
    ('1,234.50', '0.00', '-1.50e+30')
    """
    if value is None:
        return UNKNOWN
    return f"{round(value, digits) + 0.0:,.{digits}f}" if abs(value) < 1e9 else f"{value:.2e}"


def skill(value: float | None) -> str:
    """A skill; far below zero its digits do not matter.

    >>> skill(0.12345), skill(-250.0)
    ('0.123', '-250')
    """
    return fixed(value, 3 if value is None or value > -10 else 0)


def alike(*values: float | None) -> list[str]:
    """Numbers of one kind, with digits enough for the largest to show four; none where all are whole.

    >>> alike(1000000.0, 1404000.0, 404000.0), alike(0.31, 0.352, None)[:2]
    (['1,000,000', '1,404,000', '404,000'], ['0.3100', '0.3520'])
    """
    known = [abs(value) for value in values if value is not None]
    all_whole = all(value == int(value) for value in known)
    digits = 0 if all_whole else min(6, max(0, 3 - math.floor(math.log10(max(known)))))
    return [fixed(value, digits) for value in values]


def share(value: float | None) -> str:
    """A part of the whole; never 0 or 100 % where it is not.

    >>> share(0.98765), share(0.9999), share(0.0001), share(1.0), share(0.0)
    ('98.8 %', '>99.9 %', '<0.1 %', '100.0 %', '0.0 %')
    """
    if value is None:
        return UNKNOWN
    if 0 < value < 0.0005:
        return "<0.1 %"
    if 0.9995 <= value < 1:
        return ">99.9 %"
    return f"{value:.1%}".replace("%", " %")


def duration(seconds: float | None) -> str:
    """A length of time in the unit that suits it.

    >>> [duration(s) for s in (0.5, 31.0, 600, 7200, 200_000)]
    ['0.5 s', '31 s', '10 min', '2.0 h', '2.3 d']
    """
    if seconds is None:
        return UNKNOWN
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7_200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3_600:.1f} h" if seconds < 172_800 else f"{seconds / 86_400:.1f} d"


def moment(text: str | None) -> str:
    """An ISO time, to the minute.

    >>> moment("2004-03-04T12:31:05.123+00:00")
    '2004-03-04 12:31'
    """
    return text[:16].replace("T", " ") if text else UNKNOWN


def digits_for(values: Iterable[float | None]) -> int:
    """Digits after the point that show three figures of a typical one of these numbers, six at most.

    >>> digits_for([21.0, 0.5, None]), digits_for([1500.0]), digits_for([0.0])
    (1, 0, 2)
    """
    sizes = sorted(abs(value) for value in values if value)
    return min(6, max(0, 2 - math.floor(math.log10(sizes[len(sizes) // 2])))) if sizes else 2


def aligned(column: Sequence[str]) -> list[str]:
    """The same numbers with spaces as wide as digits behind them, so that set to the right their points line up.

    >>> [text.replace("\u2007", "_").replace("\u2008", ".") for text in aligned(["1.25", "10.5", "7"])]
    ['1.25', '10.5_', '7.__']
    """
    behind = [len(text.partition(".")[2]) if "." in text else -1 for text in column]
    most = max(behind, default=-1)
    return [
        text + _POINT_SPACE * (most >= 0 > after) + _FIGURE_SPACE * (most - max(after, 0) if most > 0 else 0)
        for text, after in zip(column, behind, strict=True)
    ]


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names in a sentence, and how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown
