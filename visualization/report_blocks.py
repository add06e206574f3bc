"""What the report is made of: sections of a few kinds of blocks, which `templates/report.html` writes down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from visualization import report_figures as figures
from visualization.report_words import aligned, skill


class Cell(NamedTuple):
    """A number on a ground that says how good it is."""

    text: str
    colour: str


@dataclass(frozen=True)
class Table:
    """Columns of numbers; those in `left` are words. `groups` are headings over several columns, with their widths."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    left: tuple[int, ...] = (0,)
    groups: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True)
class Picture:
    """A figure, as SVG that may stand in a page."""

    kind: ClassVar[str] = "picture"
    svg: Any
    caption: str


@dataclass(frozen=True)
class Words:
    """A paragraph, or with another tag a heading."""

    kind: ClassVar[str] = "words"
    text: str
    tag: str = "p"
    faint: bool = False


@dataclass(frozen=True)
class Key:
    """What the colours of a table or figure mean."""

    kind: ClassVar[str] = "key"
    entries: Sequence[tuple[str, str]]
    text: str


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    kind: ClassVar[str] = "items"
    texts: Sequence[str]


Block = Table | Picture | Words | Key | Items


@dataclass(frozen=True)
class Section:
    """A question, what it is answered with and how that is made, and the answer."""

    anchor: str
    title: str
    says: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Tile:
    """A number to remember."""

    name: str
    value: str
    note: str
    mood: str = ""


def tinted(value: float | None) -> Cell:
    """A skill on the colour of its size."""
    return Cell(skill(value), ground(value, figures.FULL_SKILL))


def ground(value: float | None, full: float) -> str:
    """The colour behind a number, as CSS; none behind what is not known."""
    if value is None:
        return ""
    *rgb, opacity = figures.tint(value, full)
    return f"rgba({','.join(str(round(part * 255)) for part in rgb)},{opacity:.2f})" if opacity >= 0.005 else ""


def skill_key() -> Key:
    """What the colours behind skills mean."""
    return Key(scale(figures.FULL_SKILL), "skill: blue is better than persistence, red worse")


def scale(full: float) -> list[tuple[str, str]]:
    """What some colours stand for."""
    return [(f"{part * full:+g}" if part else "0", ground(part * full, full)) for part in (-1.0, -0.5, 0.0, 0.5, 1.0)]


def left_out(number: int, which: str = "that need less attention") -> list[Block]:
    """How many devices a table or figure lacks, where there are any."""
    return (
        [Words(f"{number:,} devices {which} are left out here; report.json has them.", faint=True)]
        if number > 0
        else []
    )


def sensors_left_out(number: int) -> list[Block]:
    """How many sensors a section lacks, where there are any."""
    return [Words(f"{number:,} more sensors are in report.json.", faint=True)] if number > 0 else []


def line_up(rows: Sequence[list[str | Cell]], columns: Sequence[int]) -> None:
    """Set the points of the numbers in these columns below each other."""
    for column in columns:
        texts = [cell if isinstance(cell, str) else cell.text for cell in (row[column] for row in rows)]
        for row, text in zip(rows, aligned(texts), strict=True):
            row[column] = text


def minus(value: float | None) -> float | None:
    """What is bad where there is much of it, on a scale on which more is better."""
    return None if value is None else -value
