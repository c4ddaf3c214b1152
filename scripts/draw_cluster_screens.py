"""Pictures of ``kubectl fairlead status`` below ``docs/images``.

Starts a kube-apiserver, an operator, a gateway and two simulated engines. The script stands in for
the rest of a cluster: the controller of Deployments and the kubelets. It draws a model under load,
and the same model after an update to an image that does not exist.
"""

import asyncio
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import yaml
from rich.text import Text

from fairlead.fleet.labels import PORT_ANNOTATION
from fairlead.kube.client import KubeApi
from fairlead.kube.resources import DEPLOYMENTS, MODEL_DEPLOYMENTS, PODS, Manifest
from fairlead.runtime.clock import SystemClock
from fairlead_cli.cluster.components import COMPONENT_LABEL, GATEWAY, NAME_LABEL
from fairlead_cli.formatting import UNKNOWN
from fairlead_testing.engines.disaggregated import engine_process
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.kube.api_server import binaries_folder, running_api_server
from fairlead_testing.kube.helm import apply_crds, apply_namespace
from fairlead_testing.kube.operator_process import operator_process
from fairlead_testing.processes import unused_port
from fairlead_testing.waiting import wait_until
from scripts.draw_screens import ROOT, draw_terminal, output

MODEL = ROOT / "examples" / "single-model" / "simulated.yaml"
NAME, MODELS, INSTALLATION = "qwen3-8b", "chat", "fairlead"
WORKLOAD = f"{NAME}-main"
STATUS = ("kubectl", "fairlead", "status", NAME, "--namespace", MODELS)
PROFILE = "a100-qwen7b"
MISSING_IMAGE = "registry.example.com/sim:v9"
NODES = ("node-a", "node-b")
POD_NAMES = (f"{WORKLOAD}-58d7f9c6b4-x2kd7", f"{WORKLOAD}-58d7f9c6b4-t9wqz", f"{WORKLOAD}-6c9f8d7b54-p0lm4")
CLIENTS = 24
"""Requests that run at the same time."""


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running_api_server(Path(folder) / "run") as server:
        os.environ.update(KUBECONFIG=str(server.kubeconfig), FAIRLEAD_MANAGE_TOKEN="token-of-a-picture")
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{binaries_folder()}:{os.environ['PATH']}"
        async with AsyncExitStack() as stack, KubeApi(server.config(), SystemClock(), lambda: 0.5) as api:
            await apply_crds(api)
            for namespace in (INSTALLATION, MODELS):
                await apply_namespace(api, namespace)
            log = Path(folder) / "operator.log"
            await stack.enter_async_context(operator_process(server.kubeconfig, log, "--lease-namespace", INSTALLATION))
            gateway = await stack.enter_async_context(run_gateway(api))
            model = {**yaml.safe_load(MODEL.read_text()), "metadata": {"name": NAME, "namespace": MODELS}}
            await api.apply(model, "kubectl")
            for name in POD_NAMES[:2]:
                engine = await stack.enter_async_context(engine_process("--profile", PROFILE, model=NAME))
                await run_engine_pod(api, name, urlsplit(engine.url).port or 0)
            await report_workload(api, ready=2, total=2, updated=2)
            await stack.enter_async_context(traffic(gateway))
            await draw("terminal-cluster-status", "Ready True  AllReady", " running, ")

            update = {"spec": {"engine": {"image": MISSING_IMAGE}}}
            await api.patch_merge(MODEL_DEPLOYMENTS, MODELS, NAME, update, "kubectl")
            await fail_engine_pod(api, POD_NAMES[2])
            await report_workload(api, ready=2, total=3, updated=1)
            await draw("terminal-cluster-problem", "Stalled True  ImagePullFailed", POD_NAMES[2])


@asynccontextmanager
async def run_gateway(api: KubeApi) -> AsyncIterator[GatewayProcess]:
    """Runs a gateway of the cluster, and creates the pod by which the API server reaches it."""
    address, port = own_address(), unused_port()
    options = ("--kube", MODELS, "--insecure", "--manage", f"{address}:{port}")
    async with gateway_process(None, *options) as gateway:
        container = {"name": "gateway", "image": "gateway", "ports": [{"name": "manage", "containerPort": port}]}
        metadata = {
            "name": "fairlead-gateway-0",
            "namespace": INSTALLATION,
            "labels": {NAME_LABEL: "fairlead", COMPONENT_LABEL: GATEWAY},
        }
        await create_pod(api, metadata, container, running_status(address))
        yield gateway


def own_address() -> str:
    """Returns an address of this machine outside loopback. API servers connect to no pod on
    loopback.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("198.51.100.1", 9))  # chooses an interface, and sends nothing
        return str(probe.getsockname()[0])


async def run_engine_pod(api: KubeApi, name: str, port: int) -> None:
    """Creates a ready pod of the model, whose engine listens on a port of loopback."""
    metadata = await pod_metadata(api, name)
    metadata["annotations"] = {**metadata.get("annotations", {}), PORT_ANNOTATION: str(port)}
    await create_pod(api, metadata, {"name": "engine", "image": "sim"}, running_status("127.0.0.1"))


async def fail_engine_pod(api: KubeApi, name: str) -> None:
    """Creates a pod of the model's next revision, whose image cannot be pulled."""

    async def is_updated() -> bool:
        return MISSING_IMAGE in str(await workload(api))

    await wait_until(is_updated)
    waiting = {"reason": "ImagePullBackOff", "message": f'Back-off pulling image "{MISSING_IMAGE}": not found'}
    container = {"name": "engine", "image": MISSING_IMAGE}
    state = {**container, "imageID": "", "ready": False, "restartCount": 0, "state": {"waiting": waiting}}
    status = {"phase": "Pending", "containerStatuses": [state]}
    await create_pod(api, await pod_metadata(api, name), container, status)


async def create_pod(api: KubeApi, metadata: Manifest, container: Manifest, status: Manifest) -> None:
    node = NODES[metadata["name"] != POD_NAMES[0]]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"nodeName": node, "containers": [container]},
    }
    await api.apply(pod, "kube-controller-manager")
    await api.patch_merge(
        PODS, metadata["namespace"], metadata["name"], {"status": status}, "kubelet", subresource="status"
    )


def running_status(address: str) -> Manifest:
    """Returns the status of a ready pod."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": now}
    return {"phase": "Running", "podIP": address, "startTime": now, "conditions": [ready]}


async def pod_metadata(api: KubeApi, name: str) -> dict[str, Any]:
    """Returns the metadata of a pod of the model's Deployment."""
    template = (await workload(api))["spec"]["template"]["metadata"]
    return {
        "labels": template["labels"],
        "annotations": template.get("annotations", {}),
        "name": name,
        "namespace": MODELS,
    }


async def report_workload(api: KubeApi, *, ready: int, total: int, updated: int) -> None:
    """Writes the status of the model's Deployment."""
    status = {
        "replicas": total,
        "readyReplicas": ready,
        "updatedReplicas": updated,
        "observedGeneration": (await workload(api))["metadata"]["generation"],
    }
    await api.patch_merge(
        DEPLOYMENTS, MODELS, WORKLOAD, {"status": status}, "kube-controller-manager", subresource="status"
    )


async def workload(api: KubeApi) -> Manifest:
    """Returns the model's Deployment, once the operator has created it."""
    found: list[Manifest] = []

    async def exists() -> bool:
        objects = (await api.list(DEPLOYMENTS, MODELS)).items
        found[:] = [one for one in objects if one["metadata"]["name"] == WORKLOAD]
        return bool(found)

    await wait_until(exists)
    return found[0]


@asynccontextmanager
async def traffic(gateway: GatewayProcess) -> AsyncIterator[None]:
    """Sends conversations until the end of the block."""

    async def converse(client: httpx.AsyncClient, number: int) -> None:
        messages = [{"role": "user", "content": f"You are assistant {number % 6}. " + "Explain Kubernetes. " * 1_000}]
        while True:
            body = {"model": NAME, "messages": messages, "max_tokens": 400}
            answer = await client.post(f"{gateway.url}/v1/chat/completions", json=body)
            if answer.status_code != 200:
                await asyncio.sleep(0.2)  # the pods are not known yet

    async with httpx.AsyncClient(timeout=120.0) as client:
        tasks = [asyncio.create_task(converse(client, number)) for number in range(CLIENTS)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def draw(name: str, *pieces: str) -> None:
    """Writes a picture of the status, once it has these pieces and figures of every engine."""

    async def has_pieces() -> bool:
        nonlocal text
        text = await asyncio.to_thread(output, os.environ, *STATUS)
        plain = Text.from_ansi(text).plain
        return all(piece in plain for piece in pieces) and f"prefix hits {UNKNOWN}" not in plain

    text = ""
    await wait_until(has_pieces, poll_seconds=1.0)
    draw_terminal(name, " ".join(STATUS), text)


if __name__ == "__main__":
    asyncio.run(main())
