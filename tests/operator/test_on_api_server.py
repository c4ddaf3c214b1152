"""The operator process on a real API server.

It applies, prunes, writes status, scales, holds its lease, survives SIGKILL, and sets no finalizer.
"""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import NotFound, Unreachable
from fairlead.kube.resources import (
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    EVENTS,
    LEASES,
    MODEL_DEPLOYMENTS,
    NAMESPACES,
    SERVICES,
    Manifest,
    Resource,
    label_selector,
)
from fairlead.kube.transport.http_transport import HttpRequest
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.manifests import simulated_model
from fairlead_testing.kube.operator_process import OperatorProcesses, apply_crds_and_namespaces, run_deployments
from fairlead_testing.pytest_hooks.nightly import shortened
from fairlead_testing.waiting import wait_until

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]


@pytest.fixture
def operators(api_server: ApiServer, tmp_path: Path) -> Iterator[Callable[..., OperatorProcesses]]:
    started: list[OperatorProcesses] = []

    def make(namespace: str, **settings: str) -> OperatorProcesses:
        started.append(OperatorProcesses(api_server.kubeconfig, namespace, tmp_path, settings))
        return started[-1]

    yield make
    for processes in started:
        processes.close()


@asynccontextmanager
async def namespace_api(server: ApiServer, namespace: str) -> AsyncIterator[KubeApi]:
    """Fairlead's kinds and a namespace of one's own."""

    async with KubeApi(server.config(), SystemClock(), lambda: 0.5, limits=Limits(kube_attempts=2)) as api:
        await apply_crds_and_namespaces(api, namespace)
        assert await api.has_resource(NAMESPACES)
        yield api


def model(namespace: str, *pools: str, **spec: Any) -> Manifest:
    named = [{"name": name, "acceleratorClassName": "cpu"} for name in pools or ("main",)]
    return simulated_model("qwen", namespace, pools=named, **spec)


async def child(api: KubeApi, namespace: str, name: str) -> Manifest | None:
    try:
        return await api.get(DEPLOYMENTS, namespace, name)
    except NotFound:
        return None


async def wait_children(api: KubeApi, namespace: str, *names: str) -> None:
    """Waits for exactly these Deployments; the test acts as their controller."""

    async def same() -> bool:
        return await run_deployments(api, namespace) == list(names)

    await wait_until(same)


async def wait_ready(api: KubeApi, namespace: str, generation: int) -> Manifest:
    """Until the model is Ready at this generation, or a later one; its status."""
    status: Manifest = {}

    async def said() -> bool:
        nonlocal status
        status = (await api.get(MODEL_DEPLOYMENTS, namespace, "qwen")).get("status") or {}
        conditions = {condition["type"]: condition["status"] for condition in status.get("conditions") or []}
        return conditions == {"Ready": "True"} and status.get("observedGeneration", 0) >= generation

    await wait_until(said)
    return status


async def test_model_life_cycle_with_two_operators_and_one_kill(
    api_server: ApiServer, operators: Callable[..., OperatorProcesses]
) -> None:
    namespace = "life"
    async with namespace_api(api_server, namespace) as api:
        some = operators(namespace, lease="4s")
        first = some.start()
        await wait_until(lambda: asyncio.to_thread(some.is_leading, first))
        second = some.start()

        applied = await api.apply(model(namespace), "kubectl")
        await wait_children(api, namespace, "qwen-main")
        status = await wait_ready(api, namespace, applied["metadata"]["generation"])
        assert (status["ready"], status["clientName"]) == ("1/1", "qwen")
        assert not (await api.get(MODEL_DEPLOYMENTS, namespace, "qwen"))["metadata"].get("finalizers")
        assert not (await api.get(MODEL_DEPLOYMENTS, namespace, "qwen"))["metadata"].get("annotations")

        scale = {"spec": {"replicas": 3}}
        await api.patch_merge(DEPLOYMENTS, namespace, "qwen-main", scale, "hpa", subresource="scale")
        await api.apply(model(namespace, engine={"type": "Sim", "args": ["--max-num-seqs=3"]}), "kubectl")
        await wait_until(lambda: _revisions(api, namespace, 2))
        await wait_children(api, namespace, "qwen-main")
        workload = await child(api, namespace, "qwen-main")
        assert workload is not None
        assert workload["spec"]["replicas"] == 3

        some.running[first].stop(signal.SIGKILL)
        moved = await api.apply(model(namespace, "other"), "kubectl")
        await wait_until(lambda: asyncio.to_thread(some.is_leading, second))
        await wait_children(api, namespace, "qwen-other")
        await wait_ready(api, namespace, moved["metadata"]["generation"])
        await wait_until(lambda: asyncio.to_thread(some.is_idle, second))
        services = (await api.list(SERVICES, namespace, label_selector({"fairlead.io/model": "qwen"}))).items
        assert {service["metadata"]["labels"]["fairlead.io/pool"] for service in services} == {"other"}

        versions = await _versions(api, namespace)
        assert some.running[second].stop() == 0
        lease = await api.get(LEASES, namespace, "fairlead-operator")
        assert lease["spec"].get("holderIdentity", "") == ""
        third = some.start()
        await wait_until(lambda: asyncio.to_thread(some.is_leading, third))
        await wait_until(lambda: asyncio.to_thread(some.is_idle, third))
        assert await _versions(api, namespace) == versions, "a new process writes nothing"
        assert "every watch delivers" in some.running[third].read("/healthz")
        assert some.running[third].stop() == 0
        reasons = {event["reason"] for event in (await api.list(EVENTS, namespace)).items}
        assert {"Created", "AllReady", "Removed"} <= reasons


async def test_model_nested_thousands_of_levels_stops_no_operator(
    api_server: ApiServer, operators: Callable[..., OperatorProcesses]
) -> None:
    namespace = "deep"
    async with namespace_api(api_server, namespace) as api:
        some = operators(namespace)
        first = some.start()
        await wait_until(lambda: asyncio.to_thread(some.is_leading, first))
        deep = model(namespace)
        deep["metadata"]["name"] = "deep"
        deep["spec"]["pools"][0]["template"] = {"spec": {"deep": "PLACE"}}
        body = json.dumps(deep).replace('"PLACE"', '{"a":' * 4_000 + "1" + "}" * 4_000).encode()
        path = MODEL_DEPLOYMENTS.path(namespace)
        await api._request(HttpRequest("POST", path, body=body, repeatable=False))
        await api.apply(model(namespace), "kubectl")
        await wait_children(api, namespace, "qwen-main")
        assert some.running[first].stop() == 0

        second = some.start()
        await wait_until(lambda: asyncio.to_thread(some.is_leading, second))
        await wait_ready(api, namespace, 1)

        async def is_refused() -> bool:
            status = (await api.get(MODEL_DEPLOYMENTS, namespace, "deep")).get("status") or {}
            return "more than 50 levels" in str(status.get("conditions"))

        await wait_until(is_refused)
        await api.apply(model(namespace, "other"), "kubectl")
        await wait_children(api, namespace, "qwen-other")
        assert some.running[second].stop() == 0


async def test_kill_and_unreachable_api_server_create_everything_once(
    api_server: ApiServer, operators: Callable[..., OperatorProcesses]
) -> None:
    namespace = "outage"
    names = [f"m{number:02d}" for number in range(shortened(10, 5))]
    async with namespace_api(api_server, namespace) as api:

        async def count(kind: Resource) -> int:
            return len((await api.list(kind, namespace, "app.kubernetes.io/managed-by=fairlead")).items)

        async def complete() -> bool:
            return all([await count(kind) == len(names) for kind in (DEPLOYMENTS, SERVICES, CONTROLLER_REVISIONS)])

        some = operators(namespace, lease="3s")

        async def outlived() -> bool:
            """Its Deployment starts another one when it ended, having lost the lease."""
            if not some.is_alive(len(some.running) - 1):
                some.start()
            return await complete()

        first = some.start()
        await wait_until(lambda: asyncio.to_thread(some.is_leading, first))
        for name in names:
            manifest = model(namespace)
            manifest["metadata"]["name"] = name
            await api.apply(manifest, "kubectl")
        some.running[first].stop(signal.SIGKILL)
        some.start()
        await wait_until(complete)

        api_server.kill()
        try:
            for name in names[: len(names) // 2]:
                with pytest.raises(Unreachable):
                    await api.get(DEPLOYMENTS, namespace, f"{name}-main")
        finally:
            await asyncio.to_thread(api_server.start)
        for name in names[: len(names) // 2]:
            assert await api.delete(DEPLOYMENTS, namespace, f"{name}-main")
        await wait_until(outlived)
        for name in names:
            assert await api.delete(MODEL_DEPLOYMENTS, namespace, name), "no finalizer holds it"
        assert some.running[-1].stop() == 0
        assert (await api.list(MODEL_DEPLOYMENTS, namespace)).items == []


async def _revisions(api: KubeApi, namespace: str, count: int) -> bool:
    return len((await api.list(CONTROLLER_REVISIONS, namespace)).items) >= count


async def _versions(api: KubeApi, namespace: str) -> dict[str, str]:
    """Every object of ours, and its version."""
    manifests = [
        manifest
        for kind in (DEPLOYMENTS, SERVICES, CONTROLLER_REVISIONS)
        for manifest in (await api.list(kind, namespace)).items
    ]
    manifests.append(await api.get(MODEL_DEPLOYMENTS, namespace, "qwen"))
    return {
        f"{manifest['kind']}/{manifest['metadata']['name']}": manifest["metadata"]["resourceVersion"]
        for manifest in manifests
    }
