"""What goes wrong on a real node: the model says what it is and what to do, and what served before goes on serving."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kube.clients import Client
from kube.kubectl import Kubectl
from kube.manifests import image, model, paced
from kube.models import Model
from kube.release import Release

GPU = "nvidia.com/gpu"


def serving(here: Kubectl, installed: Release, manifest: dict[str, Any]) -> tuple[Client, Model]:
    here.apply(paced())
    here.apply(manifest)
    name = manifest["metadata"]["name"]
    client, found = Client(here, installed).start(), Model(here, name)
    client.first_token(name)
    found.settled(pods=1)
    return client, found


@contextmanager
def devices(kubectl: Kubectl, count: int) -> Iterator[None]:
    """So many GPUs on a node, as a device plugin would tell of them."""
    node = kubectl.get("nodes")["items"][0]["metadata"]["name"]
    paths = [f"/status/{where}/{GPU.replace('/', '~1')}" for where in ("capacity", "allocatable")]

    def patch(steps: list[dict[str, str]]) -> None:
        kubectl.run("patch", "node", node, "--subresource=status", "--type=json", "-p", json.dumps(steps))

    patch([{"op": "add", "path": path, "value": str(count)} for path in paths])
    try:
        yield
    finally:
        patch([{"op": "remove", "path": path} for path in paths])


def test_too_few_devices(here: Kubectl, installed: Release) -> None:
    serve = ["--listen=0.0.0.0:$(PORT)", "--served-model-name=$(MODEL_NAME)"]
    engine = {
        "kind": "custom",
        "image": image("sim"),
        "command": ["python3", "-m", "fairlead_sim", "engine"],
        "args": serve,
    }
    pools = [{"accelerator": "nvidia-l4"}]
    with devices(here, 1):
        client, found = serving(here, installed, model("gpus", engine=engine, pools=pools))
        here.run("scale", "modeldeployment/gpus", "--replicas=2")
        said = found.stalled("InsufficientCapacity")
        assert f"Insufficient {GPU}" in said
        assert "Add nodes, lower replicas or parallelism" in said
        assert client.ask("gpus").status == 200
    with devices(here, 2):
        found.settled(pods=2)


def test_a_quota_that_is_used_up(here: Kubectl, installed: Release) -> None:
    client, found = serving(here, installed, model("many"))
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}}
    here.apply({**quota, "spec": {"hard": {"pods": "2"}}})
    here.run("scale", "modeldeployment/many", "--replicas=3")
    said = found.stalled("QuotaExceeded")
    assert "exceeded quota: few" in said
    assert "Raise the quota that the message names" in said
    assert client.ask("many").status == 200
    here.run("scale", "modeldeployment/many", "--replicas=1")
    found.settled(pods=1)


def test_an_image_that_cannot_be_pulled(here: Kubectl, installed: Release) -> None:
    client, found = serving(here, installed, model("pulled"))
    found.patch({"engine": {"image": image("nowhere", "1")}})
    said = found.stalled("ImagePullFailed")
    assert image("nowhere", "1") in said
    assert "Check engine.image" in said
    assert found.condition("Ready")["status"] == "True"
    assert client.ask("pulled").status == 200
    here.run("patch", "modeldeployment/pulled", "--type=json", "-p", '[{"op": "remove", "path": "/spec/engine/image"}]')
    found.settled(pods=1)


def test_a_secret_that_is_not_there(here: Kubectl, installed: Release) -> None:
    client, found = serving(here, installed, model("secret"))
    reference = {"secretKeyRef": {"name": "later", "key": "token"}}
    found.patch({"engine": {"env": [{"name": "TOKEN", "valueFrom": reference}]}})
    said = found.stalled("MissingSecret")
    assert '"later" not found' in said
    assert "Create it in the model's namespace" in said
    assert found.condition("Ready")["status"] == "True"
    assert client.ask("secret").status == 200
    before = found.pods()
    here.run("create", "secret", "generic", "later", "--from-literal=token=x")
    assert found.settled(pods=1).keys() <= before.keys()  # the pod that waited starts by itself
