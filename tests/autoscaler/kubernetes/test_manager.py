"""The manager of all models, and namespaces that refuse it."""

import asyncio

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import NotLeading
from fairlead.kube.resources import DEPLOYMENTS, MODEL_DEPLOYMENTS, PODS
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_autoscaler.kubernetes.manager import KubernetesConfig, Manager
from fairlead_autoscaler.kubernetes.target import KubernetesTarget
from fairlead_autoscaler.service import ServiceConfig
from fairlead_testing.kube.fake_server import fake_api_server
from fairlead_testing.waiting import FakeTime, wait_until


async def test_a_process_that_does_not_lead_writes_nothing() -> None:
    async with fake_api_server() as fake:
        fake.put(PODS, "chat", "qwen-0")
        process = Manager(
            KubernetesConfig(fake.config(), "me", lease_namespace="x"),
            lambda target, scaler: ServiceConfig(target, scaler, ["http://127.0.0.1:1"], "127.0.0.1", 0),
            FakeTime(),
            lambda: 0.5,
            announce=lambda line: None,
            limits=Limits(),
        )
        patch = {"metadata": {"annotations": {"fairlead.io/sleep": "1"}}}
        try:
            with pytest.raises(NotLeading):
                await process._api.patch_merge(PODS, "chat", "qwen-0", patch, "fairlead-autoscaler")
            await process._election.acquire()
            await process._api.patch_merge(PODS, "chat", "qwen-0", patch, "fairlead-autoscaler")
        finally:
            await process._api.close()
            await process._lease_api.close()


LIMITS = Limits(kube_attempts=1, kube_pause_seconds=0.01)


async def test_namespace_that_refuses_lists_stops_no_scaling_of_others() -> None:
    async with fake_api_server() as fake, KubeApi(fake.config(), SystemClock(), lambda: 0.5, limits=LIMITS) as api:
        kinds = (MODEL_DEPLOYMENTS, DEPLOYMENTS, PODS)
        fake.put(MODEL_DEPLOYMENTS, "chat", "qwen", spec={"model": {"uri": "hf://a/b"}, "pools": []})
        fake.refused_paths = {kind.path("other") for kind in kinds}
        target = KubernetesTarget(api, SystemClock(), lambda: 0.5, namespaces=["chat", "other"])
        following = asyncio.ensure_future(target.run())
        try:
            await wait_until(lambda: not target.sync_blocked_reason())
            assert set(target.models()) == {"chat/qwen"}
            fake.refused_paths |= {kind.path("chat") for kind in kinds}
            fake.end_watches()
            await wait_until(lambda: bool(target.sync_blocked_reason()))
            fake.refused_paths = set()
            await wait_until(lambda: not target.sync_blocked_reason() and "chat/qwen" in target.models())
        finally:
            await cancel_and_wait(following)
