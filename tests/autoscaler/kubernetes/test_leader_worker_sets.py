"""The kind LeaderWorkerSet, which a cluster may get or lose at any time."""

import asyncio

import pytest

from fairlead.fleet.labels import FIELD_MANAGER, MANAGED_BY_LABEL, MODEL_LABEL, POOL_LABEL
from fairlead.kube.client import KubeApi
from fairlead.kube.resources import LEADER_WORKER_SETS, MODEL_DEPLOYMENTS
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_autoscaler.kubernetes import target
from fairlead_autoscaler.kubernetes.target import KubernetesTarget
from fairlead_testing.kube.fake_server import fake_api_server
from fairlead_testing.waiting import wait_until

DISCOVERY = "/apis/leaderworkerset.x-k8s.io/v1"
KEY = "chat/big"


def test_removed_kind_of_workload_does_not_stop_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "_DISCOVERY_SECONDS", 0.01)

    async def main() -> None:
        async with fake_api_server() as fake, KubeApi(fake.config(), SystemClock(), lambda: 0.0) as api:
            owner = fake.put(MODEL_DEPLOYMENTS, "chat", "big")["metadata"]["uid"]
            labels = {MANAGED_BY_LABEL: FIELD_MANAGER, MODEL_LABEL: "big", POOL_LABEL: "main"}
            metadata = {"name": "big-main", "namespace": "chat", "labels": labels, "ownerReferences": [{"uid": owner}]}
            group = {"apiVersion": LEADER_WORKER_SETS.api_version, "kind": LEADER_WORKER_SETS.kind}
            await api.apply({**group, "metadata": metadata, "spec": {"replicas": 2}}, "test")
            fake.objects[DISCOVERY] = {"resources": [{"name": "leaderworkersets"}]}
            here = KubernetesTarget(api, SystemClock(), lambda: 0.0)
            following = asyncio.ensure_future(here.run())
            try:
                await wait_until(lambda: here.workload(KEY, "main") is not None)
                del fake.objects[DISCOVERY]
                fake.refused_paths.add(LEADER_WORKER_SETS.path())
                fake.end_watches()
                await wait_until(lambda: here.workload(KEY, "main") is None and not here.sync_blocked_reason())
                fake.refused_paths.clear()
                fake.objects[DISCOVERY] = {"resources": [{"name": "leaderworkersets"}]}
                await wait_until(lambda: here.workload(KEY, "main") is not None)
            finally:
                await cancel_and_wait(following)

    asyncio.run(main())
