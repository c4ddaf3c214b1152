"""A release as strangers install it: chart and images by digest from a registry, nothing from the
tree, default values.

The tests share one installation, which they have alone, and are in the order of the story.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from e2e.cluster.addons import oci_registry
from e2e.kube.cluster_access.kubectl import Kubectl, Manifest
from e2e.kube.workloads import client_pods
from e2e.kube.workloads.client_pods import ClientPod
from e2e.kube.workloads.helm_release import HelmRelease, PublishedRelease, publish_build
from e2e.kube.workloads.manifests import model, paced_engine
from e2e.kube.workloads.model_deployments import DeployedModel
from e2e.resource_locks import INSTALLATION_LOCK, file_lock
from fairlead import __version__
from fairlead_testing.reports import ReportLine
from fairlead_testing.yaml_documents import load_documents

pytestmark = [pytest.mark.lane("release"), pytest.mark.extended]

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FILES = [*sorted(EXAMPLES.glob("*.yaml")), *sorted(EXAMPLES.glob("*/simulated*.yaml"))]
THEIRS = EXAMPLES / "external-engines" / "their-engines.yaml"
PODS_AT_ONCE = 8
"""Pods of examples for which a node of two processors has room, next to default values."""
READY_SECONDS = 180


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublishedRelease]:
    """A build of the working tree, in a registry of this machine."""
    folder = tmp_path_factory.mktemp("release")
    with oci_registry(folder / "registry") as address:
        yield publish_build(ROOT, folder / "dist", f"{address}/fairlead")


@pytest.fixture(scope="module")
def released(kubectl: Kubectl, build: PublishedRelease) -> Iterator[HelmRelease]:
    """The build, installed with default values."""
    with file_lock(INSTALLATION_LOCK, alone=True):
        release = HelmRelease(kubectl, build.helm_words, defaults={})
        release.remove()
        release.install()
        try:
            yield release
        finally:
            release.remove()


def digests(pods: list[Manifest]) -> dict[str, str]:
    """Returns image → the name by which the node pulled it."""
    return {
        status["image"]: status["imageID"]
        for pod in pods
        for status in pod["status"]["containerStatuses"]
        if "fairlead" in status["imageID"]
    }


def pod_count(file: Path) -> int:
    """Returns the pods that an example starts with."""
    pools = [
        pool
        for document in load_documents(file.read_text())
        if document["kind"] == "ModelDeployment"
        for pool in document["spec"]["pools"]
    ]
    return sum(pool.get("minReplicas", 1) * pool.get("parallelism", {}).get("nodes", 1) for pool in pools)


def groups(files: list[Path]) -> list[list[Path]]:
    """Returns files in groups that a small node has room for."""
    found: list[list[Path]] = []
    room = 0
    for file in files:
        if room < pod_count(file):
            found.append([])
            room = PODS_AT_ONCE
        found[-1].append(file)
        room -= pod_count(file)
    return found


def test_nodes_pull_every_image_by_the_digest_of_the_release(
    here: Kubectl, released: HelmRelease, build: PublishedRelease
) -> None:
    here.apply(model("pulled"), paced_engine())
    DeployedModel(here, "pulled").wait_until_settled(pods=1, seconds=READY_SECONDS)
    pods = [*released.here.get("pods")["items"], *here.get("pods", "-l", "fairlead.io/model=pulled")["items"]]
    wanted = {f"{build.prefix}/{name}@{digest}" for name, digest in build.images.items()}
    assert {container["image"] for pod in pods for container in pod["spec"]["containers"]} == wanted
    assert {name.rpartition("@")[2] for name in digests(pods).values()} <= set(build.images.values())
    labels = {
        pod["metadata"]["labels"]["app.kubernetes.io/version"] for pod in released.here.get("deployments")["items"]
    }
    assert labels == {__version__}


def test_the_first_token_comes_soon_after_the_installation(
    here: Kubectl, released: HelmRelease, build: PublishedRelease
) -> None:
    released.remove()
    begun = time.time()
    released.install()
    installed = time.time() - begun
    here.apply(paced_engine(), model("tiny"))
    first = ClientPod(here, released).start().first_token("tiny") - begun
    bar = ReportLine("from helm install to the first token, images present: at most 60 s", round(first, 1), first <= 60)
    seconds = {"helm_install": round(installed, 1), "helm_install_to_first_token": round(first, 1)}
    client_pods.record_result("installation", [bar], into="e2e-release", seconds=seconds)
    assert "200" in released.test()


@pytest.mark.timeout(900, func_only=True)
def test_every_example_becomes_ready_with_default_values(here: Kubectl, released: HelmRelease) -> None:
    waited: dict[str, float] = {}
    for group in groups(FILES):
        begun = time.monotonic()
        spaces = [_apply(here, file) for file in group]
        for kubectl in [space for found in spaces for space in found]:
            kubectl.wait("condition=Ready", "modeldeployments", "--all", seconds=READY_SECONDS)
        waited |= {str(file.relative_to(EXAMPLES)): round(time.monotonic() - begun, 1) for file in group}
        for file, found in zip(group, spaces, strict=True):
            _remove(found, file)
    here.wait("delete", "namespace/chat", "namespace/code", seconds=120)  # for a run that follows on this cluster
    client_pods.record_result("examples", [], into="e2e-release", seconds_to_ready=waited)
    assert len(waited) == len(FILES) >= 11


def _apply(here: Kubectl, file: Path) -> list[Kubectl]:
    """Applies an example as it stands, in a namespace of its own and those that it names; returns
    them."""
    documents = [document for document in load_documents(file.read_text()) if document["kind"] == "ModelDeployment"]
    own = f"{here.namespace}-{FILES.index(file)}"
    spaces = list(dict.fromkeys(document["metadata"].get("namespace", own) for document in documents))
    for name in spaces:
        here.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    space = here.in_namespace(spaces[0])
    if file.parent == THEIRS.parent:
        space.run("apply", "-f", str(THEIRS))
    # Objects that name their namespace are refused by a command that names another.
    document = "\n---\n".join(
        yaml.safe_dump(_in_namespace(document, own)) for document in load_documents(file.read_text())
    )
    here.in_namespace("").run("apply", "-f", "-", given=document)
    return [here.in_namespace(name) for name in spaces]


def _remove(spaces: list[Kubectl], file: Path) -> None:
    """Begins to remove an example. Its pods end at once, so that the next has room."""
    for space in spaces:
        space.delete_models()
        space.run("delete", "namespace", space.namespace, "--wait=false")
        space.run("delete", "pods", "--all", "--force", "--grace-period=0")
    classes = [document for document in load_documents(file.read_text()) if document["kind"] == "AcceleratorClass"]
    for class_ in classes:
        spaces[0].run("delete", "acceleratorclass", class_["metadata"]["name"], "--wait=false")


def _in_namespace(document: Manifest, namespace: str) -> Manifest:
    """The object in its own namespace, else in this one."""
    if document["kind"] == "AcceleratorClass":
        return document
    return document | {"metadata": {"namespace": namespace, **document["metadata"]}}
