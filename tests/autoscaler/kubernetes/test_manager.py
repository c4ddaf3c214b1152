"""The parts of the autoscaler in a cluster, as one process."""

import pytest

from fairlead.kube.errors import NotLeading
from fairlead.kube.resources import PODS
from fairlead.limits import Limits
from fairlead_autoscaler.kubernetes.manager import KubernetesConfig, Manager
from fairlead_autoscaler.service import ServiceConfig
from fairlead_testing.kube.fake_server import fake_api_server
from fairlead_testing.waiting import FakeTime


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
