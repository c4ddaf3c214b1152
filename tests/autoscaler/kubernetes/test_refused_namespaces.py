"""The target on a fake API server that refuses one of two namespaces."""

import asyncio

from fairlead.kube.client import KubeApi
from fairlead.kube.resources import DEPLOYMENTS, MODEL_DEPLOYMENTS, PODS
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_autoscaler.kubernetes.target import KubernetesTarget
from fairlead_testing.kube.fake_server import fake_api_server
from fairlead_testing.waiting import wait_until

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
