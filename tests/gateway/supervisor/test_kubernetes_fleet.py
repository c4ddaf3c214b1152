"""The gateway process in a cluster, with a fake API server that fails and with a real one."""

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from fairlead.kube.client import KubeApi
from fairlead.kube.resources import CUSTOM_RESOURCE_DEFINITIONS, MODEL_DEPLOYMENTS, NAMESPACES, PODS, Manifest
from fairlead.kube.transport.kubeconfig import ClusterConfig
from fairlead.runtime.clock import SystemClock
from fairlead_gateway.__main__ import main as gateway_main
from fairlead_testing.engines.scripted import scripted_engine
from fairlead_testing.gateway.gateway_process import GatewayProcess, gateway_process
from fairlead_testing.http.raw_client import request
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.fake_server import fake_api_server
from fairlead_testing.waiting import wait_until
from fairlead_testing.yaml_documents import load_document

pytestmark = pytest.mark.sockets

ROOT = Path(__file__).parents[3]
GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
SPEC = {"model": {"uri": "hf://a/b"}, "pools": [{"acceleratorClassName": "cpu"}]}
MARKS = {
    "fairlead.io/model": "tiny",
    "fairlead.io/pool": "main",
    "fairlead.io/role": "Serve",
    "fairlead.io/endpoint": "true",
}
READY = [{"type": "Ready", "status": "True"}]


def kubeconfig(access: ClusterConfig, path: Path) -> Path:
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": access.server}}],
        "users": [{"name": "u", "user": {"token": "right"}}],
    }
    path.write_text(yaml.safe_dump(document))
    return path


def pod(namespace: str, url: str) -> Manifest:
    marks = {"fairlead.io/port": str(urlsplit(url).port)}
    metadata = {"name": "p", "namespace": namespace, "labels": MARKS, "annotations": marks}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {"containers": [{"name": "engine", "image": "i"}]},
    }


async def answers(gateway: GatewayProcess, status: int) -> None:
    async def so() -> bool:
        return (await request(gateway.url, GOOD)).status == status

    await wait_until(so)


async def states(gateway: GatewayProcess, *wanted: str) -> None:
    async def so() -> bool:
        (model,) = (await gateway.get_json("/api/fleet"))["models"]
        return [instance["state"] for instance in model["instances"]] == list(wanted)

    await wait_until(so)


async def test_it_serves_what_the_cluster_has_and_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_api_server() as fake, scripted_engine() as engine:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(fake.config(), tmp_path / "config")))
        path = PODS.path("x", "p")
        fake.put(MODEL_DEPLOYMENTS, "x", "tiny", spec=SPEC)
        stored = fake._store(path, {**pod("x", engine.url), "status": {"podIP": "127.0.0.1", "conditions": READY}})
        async with gateway_process(None, "--kube", "x") as gateway:
            await answers(gateway, 200)
            assert "cluster" not in await gateway.warnings()
            fake.token = "another"
            fake.end_watches()

            async def is_reported() -> bool:
                return "cannot watch the cluster; the last fleet stays" in await gateway.warnings()

            await wait_until(is_reported)
            await answers(gateway, 200)
            fake.token = None
            gone = {**stored["metadata"], "deletionTimestamp": "2026-11-20T18:00:00Z"}
            fake._store(path, {**fake.objects[path], "metadata": gone})
            await states(gateway, "Draining")
            await answers(gateway, 503)

            async def followed() -> bool:
                return "cluster" not in await gateway.warnings()

            await wait_until(followed)
            fake.remove(MODEL_DEPLOYMENTS, "x", "tiny")
            await answers(gateway, 404)
            gateway.process.terminate()
            assert await gateway.wait() == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--kube"], "no Kubernetes cluster is configured"),
        (["--kube", "a,B_"], "--kube: 'B_' is not a namespace"),
    ],
)
def test_without_a_way_to_a_cluster_it_does_not_start(
    options: list[str], error: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert gateway_main(["--listen", "127.0.0.1:0", *options]) == 2
    assert error in capsys.readouterr().err


def test_a_fleet_comes_from_one_place(capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--kube", "--fleet", "fleet.yaml"]):
        with pytest.raises(SystemExit):
            gateway_main(["--listen", "127.0.0.1:0", *options])
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.api_server
async def test_before_a_real_api_server(api_server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Covers the server's selectors, its defaults of the spec, and deletionTimestamp."""
    namespace = "discovered"
    async with KubeApi(api_server.config(), SystemClock(), lambda: 0.5) as api, scripted_engine() as engine:
        await prepared(api, namespace)
        await api.create(model(namespace), "test")
        await api.create(pod(namespace, engine.url), "test")
        await api.create(
            {**pod(namespace, engine.url), "metadata": {"name": "foreign", "namespace": namespace}}, "test"
        )
        monkeypatch.setenv("KUBECONFIG", str(api_server.kubeconfig))
        async with gateway_process(None, "--kube", namespace) as gateway:
            await answers(gateway, 503)
            status = {"status": {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}}
            await api.patch_merge(PODS, namespace, "p", status, "test", subresource="status")
            await states(gateway, "Starting")
            status["status"]["conditions"] = READY  # type: ignore[assignment]  # a list among texts
            await api.patch_merge(PODS, namespace, "p", status, "test", subresource="status")
            await answers(gateway, 200)
            held = {"metadata": {"finalizers": ["example.com/hold"]}}  # no kubelet ends containers here
            await api.patch_merge(PODS, namespace, "p", held, "test")
            await api.delete(PODS, namespace, "p")
            await states(gateway, "Draining")
            await api.patch_merge(PODS, namespace, "p", {"metadata": {"finalizers": None}}, "test")
            await states(gateway)


def model(namespace: str) -> Manifest:
    return {
        "apiVersion": MODEL_DEPLOYMENTS.api_version,
        "kind": MODEL_DEPLOYMENTS.kind,
        "metadata": {"name": "tiny", "namespace": namespace},
        "spec": SPEC,
    }


async def prepared(api: KubeApi, namespace: str) -> None:
    """Creates our CRDs, and a namespace with the service account that pods need."""
    for path in sorted((ROOT / "crds").glob("*.yaml")):
        await api.apply(load_document(path.read_text()), "test")
    await api.apply({"apiVersion": "v1", "kind": NAMESPACES.kind, "metadata": {"name": namespace}}, "test")
    account: dict[str, Any] = {"name": "default", "namespace": namespace}
    await api.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}, "test")

    async def served() -> bool:
        return await api.has_resource(MODEL_DEPLOYMENTS)

    await wait_until(served)
    assert await api.has_resource(CUSTOM_RESOURCE_DEFINITIONS)
