"""Files that the chart copies from elsewhere are identical."""

import importlib.metadata
from pathlib import Path

import yaml

from fairlead.distribution import DISTRIBUTION
from fairlead_testing.kube.helm import CHART_FOLDER, pod_specs, render_chart

ROOT = CHART_FOLDER.parents[1]


def test_chart_crds_equal_the_generated_ones() -> None:
    ours = {path.name: path.read_bytes() for path in (ROOT / "crds").glob("*.yaml")}
    assert {path.name: path.read_bytes() for path in (CHART_FOLDER / "crds").iterdir()} == ours


def test_chart_version_equals_the_package_version() -> None:
    described = yaml.safe_load((CHART_FOLDER / "Chart.yaml").read_text())
    version = importlib.metadata.version(DISTRIBUTION)
    assert (described["version"], described["appVersion"]) == (version, version)


def test_chart_images_equal_those_of_the_test_cluster(program: Path) -> None:
    """By the names of e2e/cluster/images.py."""
    found = {container["image"] for pod in pod_specs(render_chart(program)).values() for container in pod["containers"]}
    version = importlib.metadata.version(DISTRIBUTION)
    assert found == {
        f"serving.fairlead.io/{name}:{version}" for name in ("autoscaler", "operator", "gateway", "kvstore", "valkey")
    }
