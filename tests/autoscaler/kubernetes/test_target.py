"""The target on a real API server: the owner of a number, and the way engines sleep."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fairlead.errors import Unavailable
from fairlead.fleet.labels import AUTOSCALER_FIELD_MANAGER, FIELD_MANAGER, MANAGED_BY_LABEL, MODEL_LABEL, POOL_LABEL
from fairlead.kube.client import KubeApi
from fairlead.kube.resources import DEPLOYMENTS, MODEL_DEPLOYMENTS, Manifest, uid_of
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_autoscaler.kubernetes.scale_writer import ScaleWriter
from fairlead_autoscaler.kubernetes.target import KubernetesTarget
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.operator_process import apply_crds_and_namespaces
from fairlead_testing.waiting import wait_until

pytestmark = pytest.mark.api_server
KEY = "world/qwen"


def model(**autoscaling: Any) -> Manifest:
    pool = {"name": "main", "acceleratorClassName": "cpu", "minReplicas": 1, "maxReplicas": 8}
    return {
        "apiVersion": MODEL_DEPLOYMENTS.api_version,
        "kind": "ModelDeployment",
        "metadata": {"name": "qwen", "namespace": "world"},
        "spec": {
            "model": {"uri": "hf://Qwen/Qwen3-8B"},
            "engine": {"type": "Sim"},
            "pools": [pool],
            "autoscaling": autoscaling,
        },
    }


def workload(owner: Manifest) -> Manifest:
    labels = {MANAGED_BY_LABEL: FIELD_MANAGER, MODEL_LABEL: "qwen", POOL_LABEL: "main"}
    own = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": "qwen", "uid": uid_of(owner)}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    return {
        "apiVersion": DEPLOYMENTS.api_version,
        "kind": "Deployment",
        "metadata": {"name": "qwen-main", "namespace": "world", "labels": labels, "ownerReferences": [own]},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod},
    }


def within(server: ApiServer, check: Callable[[KubeApi, KubernetesTarget], Awaitable[None]]) -> None:
    """Runs with a scaled model, its Deployment, and the target that follows both."""

    async def main() -> None:
        async with KubeApi(server.config(), SystemClock(), lambda: 0.5, limits=Limits(kube_attempts=2)) as api:
            await apply_crds_and_namespaces(api, "world")
            deployment = await api.apply(model(mode="Auto", sleep={"max": 2, "level": 2}), "test")
            await api.apply(workload(deployment), FIELD_MANAGER)
            world = KubernetesTarget(api, SystemClock(), lambda: 0.5, namespaces=["world"])
            following = asyncio.ensure_future(world.run())
            try:
                await wait_until(lambda: not world.sync_blocked_reason() and world.workload(KEY, "main") is not None)
                await check(api, world)
            finally:
                await cancel_and_wait(following)

    asyncio.run(main())


def test_the_number_is_ours_until_another_writes_it_or_the_mode_is_another(api_server: ApiServer) -> None:
    async def desired(world: KubernetesTarget) -> tuple[int, str | None]:
        pool = (await world.observe())[KEY].pools["main"]
        return pool.desired, pool.replicas_owner

    async def check(api: KubeApi, world: KubernetesTarget) -> None:
        assert world.sleep_level(KEY) == 2
        await ScaleWriter(api, world).scale(KEY, "main", 3)

        async def ours() -> bool:
            return await desired(world) == (3, None)

        await wait_until(ours)
        assert (KEY, "main") not in world.released_pools()
        await api.apply(model(mode="Advise"), "test")
        await wait_until(lambda: (KEY, "main") in world.released_pools())  # who sleeps is let go
        assert world.sleep_level(KEY) == 1
        await api.apply(model(mode="Auto"), "test")
        await wait_until(lambda: (KEY, "main") not in world.released_pools())
        five = {"spec": {"replicas": 5}}
        await api.patch_merge(DEPLOYMENTS, "world", "qwen-main", five, "kube-controller-manager", subresource="scale")

        async def theirs() -> bool:
            return await desired(world) == (5, "kube-controller-manager")

        await wait_until(theirs)
        assert (KEY, "main") in world.released_pools()
        assert world.foreign_writers() == {KEY: {"main": "kube-controller-manager"}}
        with pytest.raises(Unavailable, match="kube-controller-manager sets the number"):
            await ScaleWriter(api, world).scale(KEY, "main", 2)
        live = await api.get(DEPLOYMENTS, "world", "qwen-main")
        assert live["spec"]["replicas"] == 5
        assert AUTOSCALER_FIELD_MANAGER not in str(live["metadata"]["managedFields"])

    within(api_server, check)
