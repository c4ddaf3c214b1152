"""Failures on a real node: the model says what is wrong and what to do, and running instances go on
serving."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from e2e.kube.cluster_access.kubectl import Kubectl
from e2e.kube.workloads.client_pods import ClientPod
from e2e.kube.workloads.helm_release import HelmRelease
from e2e.kube.workloads.manifests import image, model, paced_engine
from e2e.kube.workloads.model_deployments import DeployedModel

pytestmark = pytest.mark.lane("requests", position=30)

GPU = "nvidia.com/gpu"


def serving(here: Kubectl, installed: HelmRelease, manifest: dict[str, Any]) -> tuple[ClientPod, DeployedModel]:
    here.apply(paced_engine())
    here.apply(manifest)
    name = manifest["metadata"]["name"]
    client, found = ClientPod(here, installed).start(), DeployedModel(here, name)
    client.first_token(name)
    found.wait_until_settled(pods=1)
    return client, found


@contextmanager
def devices(kubectl: Kubectl, count: int) -> Iterator[None]:
    """So many GPUs on a node, as a device plugin would tell of them."""
    open_to_pods = [node for node in kubectl.get("nodes")["items"] if not node["spec"].get("taints")]
    node = open_to_pods[0]["metadata"]["name"]
    paths = [f"/status/{where}/{GPU.replace('/', '~1')}" for where in ("capacity", "allocatable")]

    def patch(steps: list[dict[str, str]]) -> None:
        kubectl.run("patch", "node", node, "--subresource=status", "--type=json", "-p", json.dumps(steps))

    patch([{"op": "add", "path": path, "value": str(count)} for path in paths])
    try:
        yield
    finally:
        patch([{"op": "remove", "path": path} for path in paths])


def test_too_few_devices(here: Kubectl, installed: HelmRelease) -> None:
    serve = ["--listen=0.0.0.0:$(PORT)", "--served-model-name=$(MODEL_NAME)"]
    engine = {
        "type": "Custom",
        "image": image("sim"),
        "command": ["python3", "-m", "fairlead_sim", "engine"],
        "args": serve,
    }
    pools = [{"acceleratorClassName": "nvidia-l4"}]
    with devices(here, 1):
        client, found = serving(here, installed, model("gpus", engine=engine, pools=pools))
        here.run("scale", "modeldeployment/gpus", "--replicas=2")
        said = found.wait_until_stalled("InsufficientCapacity")
        assert f"Insufficient {GPU}" in said
        assert "Add nodes, lower replicas or parallelism" in said
        assert client.send("gpus").status == 200
    with devices(here, 2):
        found.wait_until_settled(pods=2)


def test_a_quota_that_is_used_up(here: Kubectl, installed: HelmRelease) -> None:
    client, found = serving(here, installed, model("many"))
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}}
    here.apply({**quota, "spec": {"hard": {"pods": "2"}}})
    here.run("scale", "modeldeployment/many", "--replicas=3")
    said = found.wait_until_stalled("QuotaExceeded")
    assert "exceeded quota: few" in said
    assert "Raise the quota that the message names" in said
    assert client.send("many").status == 200
    here.run("scale", "modeldeployment/many", "--replicas=1")
    found.wait_until_settled(pods=1)


def test_an_image_that_cannot_be_pulled(here: Kubectl, installed: HelmRelease) -> None:
    client, found = serving(here, installed, model("pulled"))
    found.patch({"engine": {"image": image("nowhere", "1")}})
    said = found.wait_until_stalled("ImagePullFailed")
    assert image("nowhere", "1") in said
    assert "Check engine.image" in said
    assert found.condition("Ready")["status"] == "True"
    assert client.send("pulled").status == 200
    here.run("patch", "modeldeployment/pulled", "--type=json", "-p", '[{"op": "remove", "path": "/spec/engine/image"}]')
    found.wait_until_settled(pods=1)


def test_a_secret_that_is_not_there(here: Kubectl, installed: HelmRelease) -> None:
    client, found = serving(here, installed, model("secret"))
    reference = {"secretKeyRef": {"name": "later", "key": "token"}}
    found.patch({"engine": {"env": [{"name": "TOKEN", "valueFrom": reference}]}})
    said = found.wait_until_stalled("MissingSecret")
    assert '"later" not found' in said
    assert "Create it in the model's namespace" in said
    assert found.condition("Ready")["status"] == "True"
    assert client.send("secret").status == 200
    before = found.pods()
    here.run("create", "secret", "generic", "later", "--from-literal=token=x")
    assert found.wait_until_settled(pods=1).keys() <= before.keys()  # the pod that waited starts by itself
