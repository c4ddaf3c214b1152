"""The chart, its CRDs and rendered models use only kinds and fields of both Kubernetes releases."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from fairlead_testing.kube.api_server import KubernetesRelease
from fairlead_testing.kube.helm import CHART_FOLDER, ChartTools, render_chart
from fairlead_testing.yaml_documents import load_document, load_documents

ENGINES = Path(__file__).parents[1] / "operator" / "render" / "golden"
RELEASES = ("v1.35.4", "v1.36.3")
OTHERS = {
    "monitoring.coreos.com/v1",
    "gateway.networking.k8s.io/v1",
    "leaderworkerset.x-k8s.io/v1",
    "inference.networking.k8s.io/v1",
}
"""Groups that are no part of Kubernetes."""


@pytest.fixture(scope="session", params=RELEASES)
def release(request: pytest.FixtureRequest, tools: ChartTools) -> KubernetesRelease:
    return KubernetesRelease(tools.openapi[request.param])


def against(release: KubernetesRelease, manifests: list[dict[str, Any]]) -> list[str]:
    ours = [manifest for manifest in manifests if manifest["apiVersion"] not in OTHERS]
    assert ours
    return [f"{our['kind']} {our['metadata']['name']}{problem}" for our in ours for problem in release.problems(our)]


def test_every_release_knows_every_chart_field(release: KubernetesRelease, program: Path, case: Path) -> None:
    assert against(release, render_chart(program, f"--values={case}")) == []


def test_every_release_knows_every_crd_field(release: KubernetesRelease) -> None:
    crds = [load_document(path.read_text()) for path in sorted((CHART_FOLDER / "crds").glob("*.yaml"))]
    assert against(release, crds) == []


def test_every_release_knows_every_rendered_field(release: KubernetesRelease) -> None:
    manifests = [
        document
        for path in sorted(ENGINES.rglob("*.yaml"))
        for document in load_documents(path.read_text())
        if document is not None
    ]
    assert against(release, manifests) == []


def pod(**fields: Any) -> dict[str, Any]:
    spec = {"containers": [{"name": "one", "image": "x"}], **fields}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec}


@pytest.mark.parametrize(
    ("manifest", "problem"),
    [
        (pod(restartpolicy="Never"), ".spec.restartpolicy: no such field"),
        (pod(restartPolicy=1), ".spec.restartPolicy: not of type string: 1"),
        (pod(containers=[{"image": "x"}]), ".spec.containers[0].name: missing"),
        (pod(containers={}), ".spec.containers: not of type array: {}"),
        (pod(hostNetwork="true"), ".spec.hostNetwork: not of type boolean: 'true'"),
        (pod(priority=True), ".spec.priority: not of type integer: True"),
        (pod(nodeSelector={"a": 1}), ".spec.nodeSelector.a: not of type string: 1"),
        ({**pod(), "kind": "Pods"}, "no kind Pods in v1"),
        ({**pod(), "apiVersion": "v2"}, "no kind Pod in v2"),
    ],
)
def test_violation_is_found_by_its_path(release: KubernetesRelease, manifest: dict[str, Any], problem: str) -> None:
    assert release.problems(pod()) == []
    assert release.problems(manifest) == [problem]


def test_value_with_two_types_is_one_of_them(release: KubernetesRelease) -> None:
    limits = {"name": "one", "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}}
    assert release.problems(pod(containers=[limits])) == []
    (problem,) = release.problems(pod(containers=[{"name": "one", "resources": {"limits": {"cpu": []}}}]))
    assert problem.startswith(".spec.containers[0].resources.limits.cpu: fits none")


def test_wrong_word_deep_in_a_crd_is_found(release: KubernetesRelease) -> None:
    crd = load_document((CHART_FOLDER / "crds" / "modeldeployments.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"]["pools"]["items"]["properties"]["name"]["minimumLength"] = 1
    (problem,) = release.problems(crd)
    assert problem.endswith(".properties.pools.items.properties.name.minimumLength: no such field")


def test_two_releases_differ_and_are_checked_separately(tools: ChartTools) -> None:
    former, latter = (KubernetesRelease(tools.openapi[name]) for name in RELEASES)
    assert former.problems(pod(schedulingGroup={"podGroupName": "g"})) == [".spec.schedulingGroup: no such field"]
    assert latter.problems(pod(schedulingGroup={"podGroupName": "g"})) == []
    assert latter.problems(pod(workloadRef={"name": "w", "podGroup": "g"})) == [".spec.workloadRef: no such field"]
    assert former.problems(pod(workloadRef={"name": "w", "podGroup": "g"})) == []


def test_lint_knows_the_fields_of_a_pod(tools: ChartTools) -> None:
    """The module `fairlead_testing.kube.api_server` writes them."""
    known = json.loads(files("fairlead.manifests").joinpath("pod_fields.json").read_text(encoding="utf-8"))
    assert known == KubernetesRelease(tools.openapi[RELEASES[-1]]).pod_fields()
