"""The cluster as it is followed, before a real API server: whose number it is, and how engines are to sleep."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fairlead.clock import SystemClock
from fairlead.cluster_labels import AUTOSCALER, MANAGED_BY, MANAGER, MODEL, POOL
from fairlead.errors import Unavailable
from fairlead.kube.client import KubeApi
from fairlead.kube.resource import DEPLOYMENTS, MODEL_DEPLOYMENTS, Manifest, uid_of
from fairlead.limits import Limits
from fairlead.tasks import ended
from fairlead.testing.kube import ApiServer
from fairlead.testing.operators import prepare
from fairlead.testing.waiting import until, until_async
from fairlead_autoscaler.cluster.scaler import KubeScaler
from fairlead_autoscaler.cluster.world import KubeWorld

pytestmark = pytest.mark.api_server
KEY = "world/qwen"


def model(**autoscaling: Any) -> Manifest:
    pool = {"name": "main", "accelerator": "cpu", "replicas": {"min": 1, "max": 8}}
    return {
        "apiVersion": MODEL_DEPLOYMENTS.api_version,
        "kind": "ModelDeployment",
        "metadata": {"name": "qwen", "namespace": "world"},
        "spec": {
            "model": {"source": "hf://Qwen/Qwen3-8B"},
            "engine": {"kind": "sim"},
            "pools": [pool],
            "autoscaling": autoscaling,
        },
    }


def workload(owner: Manifest) -> Manifest:
    labels = {MANAGED_BY: MANAGER, MODEL: "qwen", POOL: "main"}
    own = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "name": "qwen", "uid": uid_of(owner)}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    return {
        "apiVersion": DEPLOYMENTS.api_version,
        "kind": "Deployment",
        "metadata": {"name": "qwen-main", "namespace": "world", "labels": labels, "ownerReferences": [own]},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod},
    }


def within(server: ApiServer, check: Callable[[KubeApi, KubeWorld], Awaitable[None]]) -> None:
    """A model that scales, its Deployment, and the world that follows both."""

    async def main() -> None:
        async with KubeApi(server.access(), SystemClock(), lambda: 0.5, limits=Limits(kube_attempts=2)) as api:
            await prepare(api, "world")
            made = await api.apply(model(mode="Auto", sleep={"max": 2, "level": 2}), "test")
            await api.apply(workload(made), MANAGER)
            world = KubeWorld(api, SystemClock(), lambda: 0.5, namespaces=["world"])
            following = asyncio.ensure_future(world.run())
            try:
                await until(lambda: not world.away() and world.workload(KEY, "main") is not None)
                await check(api, world)
            finally:
                await ended(following)

    asyncio.run(main())


def test_the_number_is_ours_until_another_writes_it_or_the_mode_is_another(api_server: ApiServer) -> None:
    async def desired(world: KubeWorld) -> tuple[int, str | None]:
        pool = (await world.look())[KEY].pools["main"]
        return pool.desired, pool.held_by

    async def check(api: KubeApi, world: KubeWorld) -> None:
        assert world.level(KEY) == 2
        await KubeScaler(api, world).scale(KEY, "main", 3)

        async def ours() -> bool:
            return await desired(world) == (3, None)

        await until_async(ours)
        assert not world.released(KEY, "main")
        await api.apply(model(mode="Advise"), "test")
        await until(lambda: world.released(KEY, "main"))  # who sleeps is let go
        assert world.level(KEY) == 1
        await api.apply(model(mode="Auto"), "test")
        await until(lambda: not world.released(KEY, "main"))
        five = {"spec": {"replicas": 5}}
        await api.patch_merge(DEPLOYMENTS, "world", "qwen-main", five, "kube-controller-manager", subresource="scale")

        async def theirs() -> bool:
            return await desired(world) == (5, "kube-controller-manager")

        await until_async(theirs)
        assert world.released(KEY, "main")
        assert world.standing() == {KEY: {"main": "kube-controller-manager"}}
        with pytest.raises(Unavailable, match="kube-controller-manager sets the number"):
            await KubeScaler(api, world).scale(KEY, "main", 2)
        live = await api.get(DEPLOYMENTS, "world", "qwen-main")
        assert live["spec"]["replicas"] == 5
        assert AUTOSCALER not in str(live["metadata"]["managedFields"])

    within(api_server, check)
