"""The dashboards: the form that Grafana reads, valid expressions, and only exported metrics."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fairlead_gateway.telemetry.metrics import METRICS
from fairlead_testing.kube.helm import CHART_FOLDER, ChartTools, render_chart
from fairlead_testing.prometheus import AlertRules, expression_names

FILES = sorted((CHART_FOLDER / "dashboards").glob("*.json"))
BOARDS = {path.stem: json.loads(path.read_text()) for path in FILES}
TARGET = {"namespace", "pod", "job", "service", "endpoint", "container"}
VALUES = {"namespace": "fairlead", "model": ".*", "tenant": ".*", "__rate_interval": "2m"}


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (panel for panel in board["panels"] if panel["type"] != "row")


def targets(board: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for panel in panels(board):
        for target in panel["targets"]:
            yield f"{board['title']}, {panel['title']}", target


def plain(expression: str) -> str:
    """With the variables' values, as Grafana puts them in."""
    return re.sub(r"\$(\w+)", lambda variable: VALUES[variable[1]], expression)


def labels_of(metric: str) -> set[str] | None:
    """The labels of a gateway's metric; None for those of others."""
    if metric.startswith(("fairlead_operator_", "fairlead_indexer_", "fairlead_autoscaler_")):
        return None
    for family in METRICS:
        if metric == family.name:
            return set(family.labels)
        if family.kind == "histogram" and metric == f"{family.name}_bucket":
            return {*family.labels, "le"}
    raise AssertionError(f"no gateway tells {metric}")


@pytest.mark.parametrize("name", BOARDS)
def test_prometheus_accepts_every_expression(name: str, tools: ChartTools, tmp_path: Path) -> None:
    rules = [
        {"alert": f"A{index}", "expr": plain(target["expr"])} for index, (_, target) in enumerate(targets(BOARDS[name]))
    ]
    assert "rules found" in AlertRules(tools.promtool, [{"name": name, "rules": rules}], tmp_path).check()


@pytest.mark.parametrize("name", BOARDS)
def test_expressions_and_legends_use_only_exported_names(name: str) -> None:
    """Other tests compare the metrics of operator, indexer and autoscaler with scrapes of real
    processes.
    """
    for place, target in targets(BOARDS[name]):
        names = expression_names(plain(target["expr"]))
        assert names.metrics, place
        for metric, selected in names.metrics:
            assert "namespace" in selected, place
            labels = labels_of(metric)
            if labels is not None:
                assert selected <= labels | TARGET, place
                assert names.grouped <= labels | TARGET, place
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= names.grouped, place


@pytest.mark.parametrize("name", BOARDS)
def test_dashboard_has_the_fields_that_grafana_needs(name: str) -> None:
    board = BOARDS[name]
    assert board["uid"] == f"fairlead-{name}"
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    variables = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(board))) - {"__rate_interval", "__all"}
    assert used == variables
    places = [panel["gridPos"] for panel in board["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells), "two panels lie over one another"
    for panel in panels(board):
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_dashboards_become_config_maps_for_the_sidecar(program: Path) -> None:
    assert BOARDS.keys() == {"control-plane", "engines", "models", "tenants"}
    on = ("--set=dashboards.enabled=true", "--set=dashboards.annotations.grafana_folder=LLM")
    manifests = {manifest["metadata"]["name"]: manifest for manifest in render_chart(program, *on)}
    for name, board in BOARDS.items():
        config_map = manifests[f"fairlead-dashboard-{name}"]
        assert config_map["kind"] == "ConfigMap"
        assert config_map["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert config_map["metadata"]["annotations"] == {"grafana_folder": "LLM"}
        assert {key: json.loads(text) for key, text in config_map["data"].items()} == {f"{name}.json": board}
    assert not any("dashboard" in manifest["metadata"]["name"] for manifest in render_chart(program))
