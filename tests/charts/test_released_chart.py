"""The chart of a release: its images by digest in its registry, unless the values say otherwise."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fairlead.api.kinds import served_kinds
from fairlead_testing.yaml_documents import load_documents
from scripts.release.artefacts import package_chart

COMPONENTS = ("autoscaler", "gateway", "kvstore", "operator", "sim", "valkey")
DIGESTS = {name: f"sha256:{number:064x}" for number, name in enumerate(COMPONENTS)}
REGISTRY = "registry.example.org/team"
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def released(tmp_path: Path) -> Path:
    path = tmp_path / "fairlead-1.2.3.tgz"
    path.write_bytes(package_chart("1.2.3", DIGESTS, REGISTRY))
    return path


def rendered(program: Path, chart: Path, *arguments: str) -> list[dict[str, Any]]:
    command = [str(program), "template", "fairlead", str(chart), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [document for document in load_documents(done.stdout) if document]


def images(manifests: list[dict[str, Any]]) -> dict[str, str]:
    """Returns component → image of its Deployment, and of simulated engines."""
    by_component = {}
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            (container,) = manifest["spec"]["template"]["spec"]["containers"]
            by_component[manifest["metadata"]["labels"]["app.kubernetes.io/component"]] = container["image"]
            for variable in container.get("env", ()):
                if variable["name"] == "FAIRLEAD_ENGINE_IMAGES":
                    by_component |= dict(pair.split("=", 1) for pair in variable["value"].split(","))
    return by_component


def test_every_image_is_the_one_of_the_release(program: Path, released: Path) -> None:
    by_component = images(rendered(program, released))
    names = {"indexer": "kvstore", "redis": "valkey"}
    own = {name: image for name, image in by_component.items() if name not in ("vllm", "sglang")}
    assert own == {name: f"{REGISTRY}/{names.get(name, name)}@{DIGESTS[names.get(name, name)]}" for name in own}
    assert own.keys() == {"autoscaler", "gateway", "indexer", "operator", "redis", "sim"}


def test_values_go_before_the_release(program: Path, released: Path) -> None:
    mirror = images(rendered(program, released, "--set=global.imageRegistry=mirror.example.org"))
    assert mirror["gateway"] == f"mirror.example.org/gateway@{DIGESTS['gateway']}"
    assert mirror["sim"] == f"mirror.example.org/sim@{DIGESTS['sim']}"
    tagged = images(rendered(program, released, "--set=gateway.image.tag=other"))
    assert tagged["gateway"] == f"{REGISTRY}/gateway:other"
    other = images(rendered(program, released, f"--set=gateway.image.digest={DIGESTS['sim']}"))
    assert other["gateway"] == f"{REGISTRY}/gateway@{DIGESTS['sim']}"


def test_labels_and_chart_have_the_version_of_the_release(program: Path, released: Path) -> None:
    labels = [
        manifest["metadata"]["labels"] for manifest in rendered(program, released) if manifest["kind"] == "Deployment"
    ]
    assert {label["app.kubernetes.io/version"] for label in labels} == {"1.2.3"}
    assert {label["helm.sh/chart"] for label in labels} == {"fairlead-1.2.3"}


def test_a_package_of_helm_can_be_read_by_helm(program: Path, released: Path) -> None:
    shown = subprocess.run([str(program), "show", "crds", str(released)], check=True, capture_output=True, text=True)
    assert shown.stdout.count("kind: CustomResourceDefinition") == len(served_kinds())
    linted = subprocess.run(
        [str(program), "lint", "--strict", str(released)], capture_output=True, text=True, check=False
    )
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_engines_have_an_image_with_the_version_of_the_examples(program: Path, released: Path, engine: str) -> None:
    image = images(rendered(program, released))[engine]
    assert re.fullmatch(r"[a-z]+/[a-z-]+:v\d+\.\d+\.\d+", image)
    used = {
        spec["engine"]["image"]
        for path in sorted(EXAMPLES.glob("*/gpu*.yaml"))
        for document in load_documents(path.read_text())
        if (spec := document["spec"]).get("engine", {}).get("image")
    }
    assert image in used
    assert {reference for reference in used if engine in reference} == {image}
