"""The dashboards as files: reading them, handing them to Superset, and writing back what was changed in the browser.

The files are what Superset itself exports, without what differs between two installations and without what it fills
in by itself, in one order of keys: a change in the browser is a change of the lines it is about, and no other.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from flead.errors import FleadError

FOLDER = Path(__file__).parent / "assets"
KINDS = ("databases", "datasets", "charts", "dashboards")

Asset = dict[str, Any]
Assets = dict[str, Asset]
"""Path within the bundle → what the file holds."""

_FIRST = (
    "dashboard_title", "slice_name", "table_name", "database_name", "column_name", "metric_name", "slug", "description",
    "viz_type", "expression", "schema", "main_dttm_col", "sql", "params", "position", "metadata", "metrics", "columns",
)  # fmt: skip
"""Keys that come first, in this order; the others follow by name."""
_OF_ONE_INSTALLATION = {
    "charts": {"query_context", "dashboards", "datasource", "slice_id", "url_params"},
    "datasets": {"catalog"},
    "dashboards": {
        "chartsInScope", "tabsInScope", "default_filters", "global_chart_configuration", "map_label_colors",
        "shared_label_colors",
    },
    "databases": {"catalog", "configuration_method", "impersonate_user", "password"},
}  # fmt: skip
_EMPTY_SAYS_NOTHING = {"annotation_layers"}
_DEFAULT_COLUMN = {"is_active": True, "groupby": True, "filterable": True, "is_dttm": False}


def read(folder: Path = FOLDER) -> Assets:
    """Read the files; raises `FleadError` where one is no YAML."""
    assets = {}
    for path in sorted(folder.rglob("*.yaml")):
        try:
            assets[path.relative_to(folder).as_posix()] = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise FleadError(f"{path} is no YAML: {' '.join(str(error).split())[:200]}") from None
    return assets


def fingerprint(folder: Path = FOLDER) -> str:
    """What tells these files from others."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.yaml")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def unpack(bundle: bytes) -> Assets:
    """What a bundle that Superset exported holds, normalised: dashboards of the mart, and what they are made of."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as file:
        found = {name.partition("/")[2]: yaml.safe_load(file.read(name)) for name in file.namelist()}
    assets = {path: normalised(kind_of(path), asset) for path, asset in found.items() if kind_of(path) in KINDS}
    return {path: asset for path, asset in assets.items() if _uuid(asset) in _of_the_mart(assets)}


def _of_the_mart(assets: Assets) -> set[str]:
    """The uuids of the dashboards whose charts are all of the mart, of these charts, and of what they are about."""
    database, datasets, charts, dashboards = (
        {_uuid(asset): asset for path, asset in assets.items() if kind_of(path) == kind} for kind in KINDS
    )
    mart = {uuid for uuid, asset in database.items() if "@mart/" in asset["sqlalchemy_uri"]}
    about = {uuid for uuid, asset in datasets.items() if asset["database_uuid"] in mart}
    drawn = {uuid for uuid, asset in charts.items() if asset["dataset_uuid"] in about}
    shown = {uuid: _charts_of(asset) for uuid, asset in dashboards.items() if _charts_of(asset) <= drawn}
    used = {uuid for charts_of_one in shown.values() for uuid in charts_of_one}
    asked = {charts[uuid]["dataset_uuid"] for uuid in used}
    filtering = {uuid for one in shown for uuid in _filtered_datasets(dashboards[one])}
    return {*mart, *asked, *filtering, *used, *shown}


def write_back(exported: Assets, folder: Path = FOLDER) -> list[str]:
    """Make the files say what was exported, each under the name it has; returns those that changed.

    What is no longer there is removed, and what is new gets a name made of its title.
    """
    names = {_uuid(asset): path for path, asset in read(folder).items() if "uuid" in asset}
    changed = []
    for asset, kind in ((asset, kind_of(path)) for path, asset in exported.items()):
        path = names.pop(_uuid(asset), None) or _new_name(kind, asset, folder)
        file = folder / path
        text = dump(asset)
        if not file.exists() or file.read_text() != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            changed.append(path)
    for path in names.values():
        (folder / path).unlink()
        changed.append(path)
    return sorted(changed)


def normalised(kind: str, asset: Asset) -> Asset:
    """The asset without what Superset fills in, or what differs between two installations.

    >>> normalised("charts", {"version": "1.0.0", "slice_name": "Lag", "params": {"slice_id": 7, "b": 1, "a": None}})
    {'slice_name': 'Lag', 'params': {'b': 1}, 'version': '1.0.0'}
    """
    if kind == "dashboards":
        asset = _with_lasting_ids(asset)
    if kind == "datasets":
        columns = [{k: v for k, v in c.items() if _DEFAULT_COLUMN.get(k) != v} for c in asset.get("columns", [])]
        metrics = asset.get("metrics", [])
        asset = {
            **{key: value for key, value in asset.items() if value not in (0, False)},
            "columns": sorted(columns, key=lambda column: str(column["column_name"])),
            "metrics": sorted(metrics, key=lambda metric: str(metric["metric_name"])),
        }
    cleaned: Asset = _cleaned(asset, _OF_ONE_INSTALLATION.get(kind, set()))
    return {key: value for key, value in cleaned.items() if value not in ("", [], {})}


def dump(asset: Asset) -> str:
    """The asset as YAML; text of several lines as a block."""
    return yaml.dump(asset, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def kind_of(path: str) -> str:
    """The folder that a path begins with."""
    return PurePosixPath(path).parts[0]


def lasting_id(uuid: str) -> int:
    """The number that stands for a chart in the files, in place of the one that it has in an installation.

    >>> lasting_id("00000a11-0000-4000-8000-000000000000")
    10
    """
    return int(uuid[:6], 16)


def _with_lasting_ids(dashboard: Asset) -> Asset:
    """The dashboard with every chart's number made of its uuid."""
    charts = [item["meta"] for item in dashboard.get("position", {}).values() if _is_chart(item)]
    numbers = {chart["chartId"]: lasting_id(str(chart["uuid"])) for chart in charts}
    position = {
        key: {**item, "meta": {**item["meta"], "chartId": numbers[item["meta"]["chartId"]]}}
        if _is_chart(item)
        else item
        for key, item in dashboard.get("position", {}).items()
    }
    metadata = dict(dashboard.get("metadata", {}))
    metadata["timed_refresh_immune_slices"] = _renumbered(metadata.get("timed_refresh_immune_slices", []), numbers)
    metadata["native_filter_configuration"] = [
        {**one, "scope": {**one["scope"], "excluded": _renumbered(one["scope"]["excluded"], numbers)}}
        if "scope" in one
        else one
        for one in metadata.get("native_filter_configuration", [])
    ]
    metadata["chart_configuration"] = {
        str(numbers[int(key)]): {**value, "id": numbers[int(key)]}
        for key, value in metadata.get("chart_configuration", {}).items()
        if int(key) in numbers and value.get("crossFilters", {}).get("scope") != "global"
    }
    return {**dashboard, "position": position, "metadata": metadata}


def _renumbered(ids: list[int], numbers: Mapping[int, int]) -> list[int]:
    return sorted(numbers[one] for one in ids if one in numbers)


def _is_chart(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type") == "CHART"


def _charts_of(dashboard: Asset) -> set[str]:
    return {str(item["meta"]["uuid"]) for item in dashboard.get("position", {}).values() if _is_chart(item)}


def _cleaned(value: Any, without: set[str]) -> Any:
    """The value with its keys in order, and without those that are named or hold nothing."""
    if isinstance(value, dict):
        rank = {key: place for place, key in enumerate(_FIRST)}
        keys = sorted(value, key=lambda key: (rank.get(key, len(rank)), str(key)))
        return {
            key: _cleaned(value[key], without)
            for key in keys
            if key not in without and value[key] is not None and not (key in _EMPTY_SAYS_NOTHING and not value[key])
        }
    if isinstance(value, list):
        return [_cleaned(item, without) for item in value]
    return value


def _filtered_datasets(dashboard: Asset) -> set[str]:
    filters = dashboard.get("metadata", {}).get("native_filter_configuration", [])
    return {target["datasetUuid"] for one in filters for target in one.get("targets", []) if "datasetUuid" in target}


def _uuid(asset: Asset) -> str:
    return str(asset.get("uuid"))


def _new_name(kind: str, asset: Asset, folder: Path) -> str:
    title = next(str(asset[key]) for key in _FIRST if key in asset)
    slug = re.sub(r"[^a-z0-9]+", "_", title.lower()).strip("_") or "unnamed"
    path = f"{kind}/{slug}.yaml"
    return path if not (folder / path).exists() else f"{kind}/{slug}_{_uuid(asset)[:8]}.yaml"


class _Dumper(yaml.SafeDumper):
    """Writes text of several lines as a block, and repeats what occurs twice rather than refer to it."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
