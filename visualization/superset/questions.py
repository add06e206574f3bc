"""From a chart's settings to the queries that a browser sends for it, so that charts can be asked without one.

A browser makes them in JavaScript, by rules of each type of chart; here are those of the types that our dashboards
have. `tests/test_dashboards_browser.py` holds them against what a real browser sends.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flead.errors import FleadError

Form = Mapping[str, Any]
Filter = dict[str, Any]
Query = dict[str, Any]

_SECOND = "_b"
"""What the settings of a mixed chart's second query end with."""


def context_of(form: Form, more: Sequence[Filter] = (), *, force: bool = False) -> dict[str, Any]:
    """What `POST /api/v1/chart/data` takes for a chart.

    Parameters
    ----------
    more:
        what a dashboard filters by beside
    force:
        ask the database, whatever the cache holds

    Raises
    ------
    FleadError
        where it is of a type that no dashboard of ours has
    """
    number, _, kind = str(form["datasource"]).partition("__")
    queries = [{**query, "filters": [*query["filters"], *more]} for query in queries_of(form)]
    return {
        "datasource": {"id": int(number), "type": kind}, "queries": queries, "force": force,
        "result_format": "json", "result_type": "full",
    }  # fmt: skip


def queries_of(form: Form) -> list[Query]:
    """The queries of a chart.

    >>> form = {"viz_type": "pie", "groupby": ["kind"], "metric": "Anomalies", "row_limit": 20}
    >>> [(query["columns"], query["metrics"], query["orderby"]) for query in queries_of(form)]
    [(['kind'], ['Anomalies'], [('Anomalies', False)])]
    """
    kind = form["viz_type"]
    if kind == "mixed_timeseries":
        second = {key: value for key, value in form.items() if f"{key}{_SECOND}" not in form}
        second |= {key.removesuffix(_SECOND): form[key] for key in form if key.endswith(_SECOND)}
        return [_over_axis(form), _over_axis(second)]
    if kind.startswith("echarts_timeseries"):
        return [_over_axis(form)]
    if kind not in _TYPES:
        raise FleadError(f"charts of type {kind} can be seen in the browser only: `check` knows no query of theirs")
    columns, metrics, order = _TYPES[kind](form)
    return [_query(form, columns, metrics, order)]


def _over_axis(form: Form) -> Query:
    groups, metrics = form.get("groupby", []), form["metrics"]
    order = [(metrics[0], not form.get("order_desc", True))]
    return {**_query(form, [_axis(form), *groups], metrics, order), "series_columns": groups}


def _big_number(form: Form) -> tuple[list[Any], list[Any], list[Any]]:
    return [], [form["metric"]], []


def _pie(form: Form) -> tuple[list[Any], list[Any], list[Any]]:
    return form["groupby"], [form["metric"]], [(form["metric"], False)]


def _bubbles(form: Form) -> tuple[list[Any], list[Any], list[Any]]:
    return [form["entity"], form["series"]], [form["x"], form["y"], form["size"]], []


def _heatmap(form: Form) -> tuple[list[Any], list[Any], list[Any]]:
    group = form["groupby"]
    return [_axis(form), group], [form["metric"]], [(form["x_axis"], True), (group, True)]


def _table(form: Form) -> tuple[list[Any], list[Any], list[Any]]:
    if form["query_mode"] == "raw":
        return form["all_columns"], [], [tuple(json.loads(order)) for order in form["order_by_cols"]]
    order = [(form["timeseries_limit_metric"], not form["order_desc"])]
    return form["groupby"], form["metrics"], order


_TYPES = {
    "big_number_total": _big_number,
    "pie": _pie,
    "bubble_v2": _bubbles,
    "heatmap_v2": _heatmap,
    "table": _table,
}


def _query(form: Form, columns: list[Any], metrics: list[Any], order: list[Any]) -> Query:
    conditions = form.get("adhoc_filters", [])
    extras = {"having": "", "where": " AND ".join(_written(conditions))}
    if grain := form.get("time_grain_sqla"):
        extras["time_grain_sqla"] = grain
    query = {"columns": columns, "metrics": metrics, "orderby": order, "filters": list(_simple(conditions))}
    limit = {"row_limit": form["row_limit"]} if "row_limit" in form else {}
    return {**query, **limit, "extras": extras}


def _axis(form: Form) -> dict[str, Any]:
    axis = {
        "columnType": "BASE_AXIS", "sqlExpression": form["x_axis"], "label": form["x_axis"], "expressionType": "SQL",
        "isColumnReference": True,
    }  # fmt: skip
    grain = form.get("time_grain_sqla")
    return {"timeGrain": grain, **axis} if grain else axis


def _simple(conditions: Iterable[Mapping[str, Any]]) -> Iterator[Filter]:
    for one in conditions:
        if one["expressionType"] == "SIMPLE":
            yield {"col": one["subject"], "op": one["operator"], "val": one["comparator"]}


def _written(conditions: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for one in conditions:
        if one["expressionType"] == "SQL":
            yield f"({one['sqlExpression']})"
