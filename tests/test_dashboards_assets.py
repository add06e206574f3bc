"""The files of dashboards: whole, in one form, and about nothing that is not there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from visualization.mart.tables import TABLES
from visualization.superset import assets

ALL = assets.read()
OF_KIND = {kind: {p: a for p, a in ALL.items() if assets.kind_of(p) == kind} for kind in assets.KINDS}
CHARTS = {asset["uuid"]: asset for asset in OF_KIND["charts"].values()}
DATASETS = {asset["uuid"]: asset for asset in OF_KIND["datasets"].values()}


def shown(dashboard: assets.Asset) -> list[dict[str, Any]]:
    return [
        item["meta"]
        for item in dashboard["position"].values()
        if isinstance(item, dict) and "uuid" in item.get("meta", {})
    ]


@pytest.mark.parametrize("path", [path for path in ALL if assets.kind_of(path) in assets.KINDS])
def test_a_file_is_as_export_would_write_it(path: str) -> None:
    asset = assets.normalised(assets.kind_of(path), ALL[path])
    assert (assets.FOLDER / path).read_text() == assets.dump(asset)


def test_no_two_assets_are_taken_for_each_other() -> None:
    assert [uuid for uuid, count in Counter(a["uuid"] for a in ALL.values() if "uuid" in a).items() if count > 1] == []
    assert len({assets.lasting_id(uuid) for uuid in CHARTS}) == len(CHARTS)


@pytest.mark.parametrize("path", OF_KIND["dashboards"])
def test_a_dashboard_shows_charts_that_there_are_by_names_of_their_own(path: str) -> None:
    charts = shown(ALL[path])
    assert 8 <= len(charts) <= 16
    assert all(CHARTS[meta["uuid"]]["slice_name"] == meta["sliceName"] for meta in charts)
    assert len({meta["sliceName"] for meta in charts}) == len(charts)
    for one in ALL[path]["metadata"]["native_filter_configuration"]:
        for target in filter(None, one["targets"]):
            columns = {column["column_name"] for column in DATASETS[target["datasetUuid"]]["columns"]}
            assert "column" not in target or target["column"]["name"] in columns


def test_every_chart_is_on_a_dashboard_and_says_what_it_shows() -> None:
    assert {meta["uuid"] for dashboard in OF_KIND["dashboards"].values() for meta in shown(dashboard)} == CHARTS.keys()
    assert all(chart["description"] for chart in CHARTS.values())


@pytest.mark.parametrize("path", OF_KIND["charts"])
def test_a_chart_asks_for_metrics_that_its_dataset_has(path: str) -> None:
    dataset, params = DATASETS[ALL[path]["dataset_uuid"]], ALL[path]["params"]
    known = {metric["metric_name"] for metric in dataset["metrics"]}
    asked = {*params.get("metrics", []), *params.get("metrics_b", []), *filter(None, [params.get("metric")])}
    assert asked <= known


@pytest.mark.parametrize("path", OF_KIND["datasets"])
def test_a_dataset_that_is_a_table_has_its_columns(path: str) -> None:
    dataset = ALL[path]
    if "sql" not in dataset:
        table = TABLES[dataset["table_name"]]
        assert {column["column_name"] for column in dataset["columns"]} <= set(table.names)
    assert all(column.get("description") for column in dataset["columns"])
    assert all(metric["description"] for metric in dataset["metrics"])


def test_write_back_keeps_names_removes_what_is_gone_and_names_what_is_new(tmp_path: Path) -> None:
    kept = {"uuid": "00000001-0000", "slice_name": "Kept", "params": {"b": 1, "a": 2}}
    gone = {"uuid": "00000002-0000", "slice_name": "Gone"}
    new = {"uuid": "00000003-0000", "slice_name": "New: 99 % of all"}
    for name, asset in (("named_by_hand", kept), ("gone", gone)):
        path = tmp_path / "charts" / f"{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(assets.dump(asset))
    changed = assets.write_back({"charts/Kept_7.yaml": kept, "charts/New_8.yaml": new}, tmp_path)
    assert changed == ["charts/gone.yaml", "charts/new_99_of_all.yaml"]
    assert sorted(assets.read(tmp_path)) == ["charts/named_by_hand.yaml", "charts/new_99_of_all.yaml"]


def test_numbers_of_an_installation_become_lasting_ones() -> None:
    uuids = ["00000a11-0000-4000-8000-000000000000", "00000b11-0000-4000-8000-000000000000"]
    dashboard = {
        "dashboard_title": "D",
        "position": {
            f"CHART-{number}": {"type": "CHART", "meta": {"chartId": number, "uuid": uuid}}
            for number, uuid in zip((7, 8), uuids, strict=True)
        },
        "metadata": {
            "native_filter_configuration": [{"id": "F", "scope": {"rootPath": ["ROOT_ID"], "excluded": [8, 99]}}],
            "chart_configuration": {
                "7": {"id": 7, "crossFilters": {"scope": {"excluded": []}}},
                "8": {"id": 8, "crossFilters": {"scope": "global"}},
            },
            "timed_refresh_immune_slices": [8],
        },
    }
    normalised = assets.normalised("dashboards", dashboard)
    assert [item["meta"]["chartId"] for item in normalised["position"].values()] == [10, 11]
    metadata = normalised["metadata"]
    assert metadata["native_filter_configuration"][0]["scope"]["excluded"] == [11]
    assert list(metadata["chart_configuration"]) == ["10"]
    assert metadata["timed_refresh_immune_slices"] == [11]
