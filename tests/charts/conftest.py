"""helm and the other tools, which CI has from the cluster's build."""

import json
import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from fairlead_testing.kube.api_server import NO_CLUSTER_PROGRAMS
from fairlead_testing.kube.helm import (
    CHART_FOLDER,
    ChartTools,
    chart_tools,
    helm_program,
    render_chart,
)
from fairlead_testing.prometheus import AlertRules, Scrape, expression_names, expressions


@pytest.fixture(params=sorted((Path(__file__).parent / "values").glob("*.yaml")), ids=lambda path: str(path.stem))
def case(request: pytest.FixtureRequest) -> Path:
    """Each set of values in turn."""
    path: Path = request.param
    return path


@pytest.fixture(scope="session")
def program() -> Path:
    """The path of helm."""
    helm = helm_program()
    if helm is None:
        pytest.skip(NO_CLUSTER_PROGRAMS)
    return helm


@pytest.fixture(scope="session", name="tools")
def _tools() -> ChartTools:
    """promtool, and the OpenAPI of two releases of Kubernetes."""
    tools = chart_tools()
    if tools is None:
        pytest.skip(NO_CLUSTER_PROGRAMS)
    return tools


@pytest.fixture(scope="session")
def groups(program: Path) -> Callable[..., list[dict[str, Any]]]:
    """The groups of alert rules as the chart makes them with these arguments."""

    def call(*arguments: str) -> list[dict[str, Any]]:
        manifests = render_chart(program, "--set=alerts.enabled=true", *arguments)
        (rule,) = (manifest for manifest in manifests if manifest["kind"] == "PrometheusRule")
        groups: list[dict[str, Any]] = rule["spec"]["groups"]
        return groups

    return call


@pytest.fixture(scope="session")
def rules(groups: Callable[..., list[dict[str, Any]]], tools: ChartTools, tmp_path_factory: Any) -> AlertRules:
    """The alert rules of the chart, with a folder for promtool's files."""
    return AlertRules(tools.promtool, groups(), tmp_path_factory.mktemp("rules"))


@pytest.fixture(scope="session")
def assert_reported(groups: Callable[..., list[dict[str, Any]]]) -> Callable[..., None]:
    """Asserts that scrapes have the metrics that rules and dashboards query, with their labels."""
    boards = [json.loads(path.read_text()) for path in sorted((CHART_FOLDER / "dashboards").glob("*.json"))]
    shown = [target["expr"] for board in boards for panel in board["panels"] for target in panel.get("targets", ())]

    def call(prefix: str, *scrapes: Scrape, seldom: frozenset[str] = frozenset()) -> None:
        exported: dict[str, set[str]] = {}
        for name, labels in chain(*scrapes):
            exported.setdefault(name, {"pod", "namespace"}).update(key for key, _ in labels)
        for expression in (*(query for _, query in expressions(groups())), *shown):
            names = expression_names(re.sub(r"\$\w+", "2m", expression))
            for metric, selected in names.metrics:
                if metric.startswith(prefix) and metric not in seldom:
                    assert selected | names.grouped <= exported[metric], metric

    return call
