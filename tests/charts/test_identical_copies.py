"""Files that the chart copies from elsewhere are identical."""

from pathlib import Path

from fairlead import __version__
from fairlead_testing.kube.helm import CHART_FOLDER, pod_specs, render_chart
from fairlead_testing.yaml_documents import load_document

ROOT = CHART_FOLDER.parents[1]


def test_chart_crds_equal_the_generated_ones() -> None:
    ours = {path.name: path.read_bytes() for path in (ROOT / "crds").glob("*.yaml")}
    assert {path.name: path.read_bytes() for path in (CHART_FOLDER / "crds").iterdir()} == ours


def test_chart_version_equals_the_package_version() -> None:
    described = load_document((CHART_FOLDER / "Chart.yaml").read_text())
    assert (described["version"], described["appVersion"]) == (__version__, __version__)


def test_chart_images_equal_those_of_the_test_cluster(program: Path) -> None:
    """By the names of e2e/cluster/images.py."""
    images = {
        container["image"] for pod in pod_specs(render_chart(program)).values() for container in pod["containers"]
    }
    assert images == {
        f"serving.fairlead.io/{name}:{__version__}"
        for name in ("autoscaler", "operator", "gateway", "kvstore", "valkey")
    }
