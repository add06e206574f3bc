"""The report of `flead analyze batch --report DIR`: one HTML page that needs nothing else, and the same on paper.

Pure functions of the report (`report.json`). The page says in the order in which people decide: how things stand, which
devices need somebody, whether the global model gets better, then what these findings rest on. Sections are blocks of a
few kinds, which `templates/report.html` writes down.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from flead.errors import Unavailable
from visualization.report_blocks import Tile
from visualization.report_content import MOST_COHORTS, Content, content_of, mapped
from visualization.report_figures import Evaluation, skill_of
from visualization.report_models import better_since
from visualization.report_sections import SECTIONS
from visualization.report_words import cleaned, counted, lookup, moment, share, skill, whole

PANGO = (
    "report.pdf needs the library Pango, which this machine lacks: install it (Debian, Ubuntu: `apt install "
    "libpango-1.0-0 libpangoft2-1.0-0`) and run again, or print report.html from a browser"
)


def report_page(report: Mapping[str, Any]) -> str:
    """The whole report as one page of HTML: no script, and nothing that is fetched from anywhere.

    Parameters
    ----------
    report:
        the content of `report.json`; parts may be missing or empty, and numbers null
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    content = content_of(cleaned(report))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html").render(
        title="FLEAD report" + _span(content.report),
        source=_source(content.report),
        tiles=_tiles(content),
        lines=_headlines(content),
        sections=[make(content) for make in SECTIONS],
    )


def report_pdf(page: str) -> bytes:
    """The page on A4 paper.

    Raises
    ------
    Unavailable
        where the machine lacks the library Pango
    """
    with _quietly("weasyprint", "fontTools"):
        try:
            with redirect_stdout(io.StringIO()):  # where a library is missing, WeasyPrint prints an advice of its own
                from weasyprint import HTML  # type: ignore[import-untyped]
                from weasyprint.urls import URLFetcher  # type: ignore[import-untyped]
        except OSError as error:
            raise Unavailable(PANGO) from error
        nothing_but_data = URLFetcher(allowed_protocols=("data",), allow_redirects=False)
        pdf: bytes = HTML(string=page, url_fetcher=nothing_but_data).write_pdf()
    return pdf


def _span(report: Mapping[str, Any]) -> str:
    first, last = ((report.get(key) or "")[:10] for key in ("from", "to"))
    return f", {first} to {last}" if first and last and first != last else f", {first or last}" if first or last else ""


def _source(report: Mapping[str, Any]) -> str:
    kind, name = lookup(report, "source", "kind"), lookup(report, "source", "name")
    read = f"Read from {kind} {name}" if kind and name else "Read from an unnamed source"
    return f"{read}; made {moment(report.get('created'))} UTC. All figures are in report.json as well."


def _tiles(content: Content) -> list[Tile]:
    report, days = content.report, content.report.get("days") or ()
    rejected = sum(number or 0 for number in mapped(report, "rejected").values())
    worst = next((each["device"] for each in report.get("ranking") or () if each.get("reasons")), None)
    tiles = [
        Tile(
            "Readings",
            whole(report.get("readings")),
            f"{counted(report.get('duplicates'), 'duplicate')}, {whole(rejected)} rejected",
        ),
        Tile("Devices", whole(len(content.devices)), f"worst: {worst}" if worst else "none stands out"),
        Tile("Days", whole(len(days)), f"{min(days)} to {max(days)}" if days else "none"),
    ]
    for cohort, versions in list(content.cohorts.items())[:1]:
        for horizon in content.horizons:
            value = skill_of(versions[-1], horizon)
            mood = "" if value is None else "good" if value > 0 else "bad"
            note = f"global model {versions[-1]['version']}" + (
                "" if len(content.cohorts) == 1 else f" of cohort {content.letters[cohort]}"
            )
            tiles.append(Tile(f"Skill, {horizon}", skill(value), note, mood))
    return tiles


def _headlines(content: Content) -> list[str]:
    if not content.cohorts:
        return ["There is no global model to compare with persistence yet; see below how to get one."]
    shown = list(content.cohorts.items())[:MOST_COHORTS]
    lines = [_headline(cohort, versions, content) for cohort, versions in shown]
    left_out = len(content.cohorts) - len(shown)
    return [*lines, f"{left_out} smaller cohorts are in report.json."] if left_out else lines


def _headline(cohort: str, versions: Sequence[Evaluation], content: Content) -> str:
    newest = versions[-1]
    name = "The newest global model" + (
        f" of cohort {content.letters[cohort]}, {cohort}" if len(content.cohorts) > 1 else ""
    )
    said = []
    for horizon in content.horizons:
        value = skill_of(newest, horizon)
        if value is None:
            said.append(f"{horizon}: not known")
        elif value > 0:
            first = better_since(versions, horizon)
            said.append(f"{horizon}: errors {share(value)} smaller than persistence's, and so since version {first}")
        else:
            said.append(f"{horizon}: errors {share(-value)} larger than persistence's")
    made = f"version {newest['version']} of {moment(newest.get('timestamp'))}"
    return f"{name}, {made}, made by {counted(newest.get('num_devices'), 'device')}. {'; '.join(said)}."


@contextmanager
def _quietly(*names: str) -> Iterator[None]:
    """Without what these libraries log about style sheets and fonts, and warn of for their later versions."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
