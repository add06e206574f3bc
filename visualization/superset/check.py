"""Asks every chart of every dashboard, as a browser would, and says how each answered."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from flead.errors import FleadError, Unavailable
from visualization.superset.client import Superset
from visualization.superset.questions import Filter, context_of

Answers = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Asked:
    """How a chart answered.

    Attributes
    ----------
    answers:
        of each of its queries
    error:
        what went wrong; None where nothing did
    took_s:
        from question to answer, s
    """

    dashboard: str
    chart: str
    answers: Answers
    error: str | None
    took_s: float

    @property
    def rows(self) -> int:
        """How many it draws."""
        return sum(int(answer["rowcount"]) for answer in self.answers)


def ask_all(superset: Superset, clock: Callable[[], float] = time.perf_counter) -> Iterator[Asked]:
    """Ask every chart past the cache, with what its dashboard filters by when it is opened.

    Raises
    ------
    Unavailable
        where Superset no longer answers
    FleadError
        where it refuses to name its dashboards
    """
    for dashboard in superset.dashboards():
        filters = list(filters_at_first(superset, dashboard))
        for chart in superset.charts(dashboard["id"]):
            more = [one for one, excluded in filters if chart["id"] not in excluded]
            began = clock()
            answers, error = _tried(superset, chart["form_data"], more)
            yield Asked(dashboard["dashboard_title"], chart["slice_name"], answers, error, clock() - began)


def filters_at_first(superset: Superset, dashboard: dict[str, Any]) -> Iterator[tuple[Filter, list[int]]]:
    """The filters of a dashboard that begin with their first item, and the charts that each does not touch."""
    for one in json.loads(dashboard["json_metadata"] or "{}").get("native_filter_configuration", []):
        if not one.get("controlValues", {}).get("defaultToFirstItem"):
            continue
        [target] = one["targets"]
        column = target["column"]["name"]
        query = {"columns": [column], "metrics": [], "filters": [], "orderby": [(column, True)], "row_limit": 1}
        context = {"datasource": {"id": target["datasetId"], "type": "table"}, "queries": [query]}
        try:
            rows = superset.ask(context)[0]["data"]
        except Unavailable:
            raise
        except FleadError:
            continue  # its charts will tell
        for row in rows:
            yield {"col": column, "op": "IN", "val": [row[column]]}, one["scope"]["excluded"]


def _tried(superset: Superset, form: dict[str, Any], more: list[Filter]) -> tuple[Answers, str | None]:
    try:
        return superset.ask(context_of(form, more, force=True)), None
    except Unavailable:
        raise
    except FleadError as error:
        return [], str(error)
