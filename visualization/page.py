"""What every page shares: its colours, its type, its figures as SVG inside it, and the frame around them.

The colours are those of Okabe and Ito (2008, "Color Universal Design"), which people with any colour vision tell apart.
Matplotlib is imported when first needed, without its global state (`pyplot`).
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#24292f", "#8b949e"
"""Text and axes, and what should not be looked at; a page shows the ink in its own text colour."""
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
UNITS: Mapping[str, str] = {"temperature": "°C", "humidity": "%", "light": "lx", "voltage": "V"}

Section = tuple[str, str, "Callable[[], Figure] | str"]
"""Title, a line of text, and a figure or a piece of HTML."""


def page(title: str, sections: Sequence[Section]) -> str:
    """One HTML page with its figures inside: nothing is fetched, and it reads on light and on dark."""
    parts = []
    for number, (heading, text, content) in enumerate(sections):
        body = content if isinstance(content, str) else f"<figure>{inline(content, number)}</figure>"
        parts.append(
            "<section>"
            + (f"<h2>{html.escape(heading)}</h2>" if heading else "")
            + (f"<p>{html.escape(text)}</p>" if text else "")
            + body
            + "</section>"
        )
    return _PAGE.format(title=html.escape(title), sections="\n".join(parts))


def time_axis(axes: Axes, span: tuple[Any, Any] | None = None, *, labels: bool = True) -> None:
    """Dates below, UTC; the axis goes from the first to the last of `span`."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator()  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=labels))  # type: ignore[no-untyped-call]
    if span and span[0] < span[1]:
        axes.set_xlim(*span)
    axes.tick_params(labelbottom=labels)


def as_dates(times: NDArray[np.float64]) -> NDArray[Any]:
    """In the form that Matplotlib draws as dates, UTC."""
    moments: NDArray[Any] = np.round(times * 1e6).astype("datetime64[us]")
    return moments


def short(name: str, most: int = 18) -> str:
    """A name that fits beside an axis."""
    return name if len(name) <= most else name[: most - 1] + "…"


def with_unit(sensor: str) -> str:
    """A sensor's name, with its unit where that is known."""
    name = short(sensor)
    return f"{name}, {UNITS[sensor]}" if sensor in UNITS else name


def is_known(value: float | None) -> bool:
    """Whether there is a number to show."""
    return value is not None and bool(np.isfinite(value))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, inches; its parts are laid out when it is drawn."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


@contextmanager
def drawing_style() -> Iterator[None]:
    """The settings that figures are drawn under."""
    import matplotlib as mpl

    settings: Any = {
        "font.family": "sans-serif",
        "font.size": 8.0,
        "axes.titlesize": 8.5,
        "axes.labelsize": 8.0,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.facecolor": "none",
        "svg.fonttype": "none",
        "svg.hashsalt": "flead",
        "text.parse_math": False,
        "timezone": "UTC",
        "axes.formatter.useoffset": False,
    }
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a device's name may be in a script that the font lacks
        yield


def inline(make: Callable[[], Figure], number: int) -> str:
    """A figure as SVG inside a page: its ids are its own, its ink is the page's."""
    out = io.BytesIO()
    with drawing_style():
        make().savefig(out, format="svg", facecolor="none", metadata={"Date": None})
    svg = out.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>f{number}-", svg)
    return svg.replace(INK, "currentColor").replace("'DejaVu Sans', ", "")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --ink: #24292f; --paper: #ffffff; --rule: #d0d7de; }}
@media (prefers-color-scheme: dark) {{ :root {{ --ink: #e6edf3; --paper: #0d1117; --rule: #30363d; }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
figure {{ margin: 1rem 0; overflow-x: auto; }} svg {{ max-width: 100%; height: auto; }}
table {{ border-collapse: collapse; }} th, td {{ padding: .25rem .9rem .25rem 0; text-align: right; }}
th:first-child {{ text-align: left; }} thead th {{ border-bottom: 1px solid var(--rule); font-weight: 600; }}
dl {{ display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }}
dd {{ margin: 0; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>{title}</h1>
{sections}
</body>
</html>
"""
