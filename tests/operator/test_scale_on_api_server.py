"""`/scale` of a model on a real API server: autoscalers read it at once, and then own it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import KubeError, NotFound
from fairlead.kube.field_managers import replicas_managers
from fairlead.kube.resources import DEPLOYMENTS, MODEL_DEPLOYMENTS, Manifest
from fairlead.kube.transport.http_transport import HttpRequest
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead_operator.scale_placeholder import PLACEHOLDER_FIELD_MANAGER as OURS
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.manifests import simulated_model
from fairlead_testing.kube.operator_process import OperatorProcesses, apply_crds_and_namespaces
from fairlead_testing.waiting import wait_until

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
NAMESPACE = "scaled"
HPA = "kube-controller-manager"
POOL = {"name": "main", "acceleratorClassName": "cpu"}


@asynccontextmanager
async def cluster(server: ApiServer, folder: Path) -> AsyncIterator[KubeApi]:
    """An operator and a namespace."""
    async with KubeApi(server.config(), SystemClock(), lambda: 0.5, limits=Limits(kube_attempts=2)) as api:
        await apply_crds_and_namespaces(api, NAMESPACE)
        processes = OperatorProcesses(server.kubeconfig, NAMESPACE, folder, {})
        try:
            number = processes.start()
            await wait_until(lambda: asyncio.to_thread(processes.is_leading, number))
            yield api
        finally:
            processes.close()


async def apply(api: KubeApi, name: str, *pools: dict[str, Any], **spec: Any) -> None:
    await api.apply(simulated_model(name, NAMESPACE, pools=[*(pools or (POOL,))], **spec), "kubectl")


async def read_scale(api: KubeApi, name: str) -> Manifest | None:
    """The Scale of a model, as an autoscaler reads it; None for an error of the API server."""
    try:
        return await api._request(HttpRequest("GET", MODEL_DEPLOYMENTS.path(NAMESPACE, name, "scale")))
    except KubeError:
        return None


async def write_scale(api: KubeApi, name: str, replicas: int) -> None:
    body = {"spec": {"replicas": replicas}}
    await api.patch_merge(MODEL_DEPLOYMENTS, NAMESPACE, name, body, HPA, subresource="scale")


def scale_is(api: KubeApi, name: str, number: int | None) -> Callable[[], Awaitable[bool]]:
    async def same() -> bool:
        found = await read_scale(api, name)
        return (None if found is None else found["spec"].get("replicas", 0)) == number

    return same


def runs(api: KubeApi, workload: str, number: int) -> Callable[[], Awaitable[bool]]:
    async def same() -> bool:
        try:
            return bool((await api.get(DEPLOYMENTS, NAMESPACE, workload))["spec"]["replicas"] == number)
        except NotFound:
            return False

    return same


async def owners(api: KubeApi, name: str) -> set[str]:
    return set(replicas_managers(await api.get(MODEL_DEPLOYMENTS, NAMESPACE, name)))


async def test_an_autoscaler_reads_the_number_writes_it_and_keeps_it(api_server: ApiServer, tmp_path: Path) -> None:
    async with cluster(api_server, tmp_path) as api:
        await apply(api, "taken", {**POOL, "minReplicas": 2})
        await wait_until(scale_is(api, "taken", 2))
        found = await read_scale(api, "taken")
        assert found is not None
        assert "fairlead.io/model=taken" in found["status"]["selector"]
        assert await owners(api, "taken") == {OURS}
        await apply(api, "taken", {**POOL, "minReplicas": 3})
        await wait_until(scale_is(api, "taken", 3))

        await write_scale(api, "taken", 5)
        await wait_until(runs(api, "taken-main", 5))
        assert await owners(api, "taken") == {HPA}
        await apply(api, "taken", {**POOL, "minReplicas": 0})
        await write_scale(api, "taken", 0)  # the API server drops the owner of this number
        await wait_until(runs(api, "taken-main", 0))
        await apply(api, "taken", {**POOL, "minReplicas": 0}, slo={"ttft": "2s"})
        await apply(api, "after", POOL)
        await wait_until(scale_is(api, "after", 1))  # the operator has seen the change of the first, too
        assert await scale_is(api, "taken", 0)()
        assert await owners(api, "taken") == set()
