"""helm and the other tools, which CI has from the cluster's build."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fairlead.testing.chart import NEEDED, TOOLS_NEEDED, Tools, helm, rendered, tools


@pytest.fixture(scope="session")
def program() -> Path:
    """The path of helm."""
    found = helm()
    if found is None:
        pytest.skip(NEEDED)
    return found


@pytest.fixture(scope="session", name="tools")
def _tools() -> Tools:
    """promtool, and the OpenAPI of two releases of Kubernetes."""
    found = tools()
    if found is None:
        pytest.skip(TOOLS_NEEDED)
    return found


@pytest.fixture
def groups(program: Path) -> Callable[..., list[dict[str, Any]]]:
    """The groups of alert rules as the chart makes them with these arguments."""

    def call(*arguments: str) -> list[dict[str, Any]]:
        found = rendered(program, "--set=alerts.enabled=true", *arguments)
        (rule,) = (one for one in found if one["kind"] == "PrometheusRule")
        groups: list[dict[str, Any]] = rule["spec"]["groups"]
        return groups

    return call
