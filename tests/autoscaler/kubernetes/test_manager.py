"""The manager of all models, and namespaces that refuse it."""

import asyncio
import logging

import pytest

from fairlead.fleet.labels import (
    FIELD_MANAGER,
    INSTALLATION_LABEL,
    MANAGED_BY_LABEL,
    MODEL_LABEL,
    POOL_LABEL,
    SLEEP_ANNOTATION,
)
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import NotLeading
from fairlead.kube.resources import DEPLOYMENTS, MODEL_DEPLOYMENTS, PODS, uid_of
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


LABELS = ("", "a.fairlead", "b.fairlead")
POOL = {"acceleratorClassName": "cpu", "maxReplicas": 8}


@pytest.mark.parametrize("own", LABELS)
async def test_models_of_another_installation_are_left_alone(own: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with fake_api_server() as fake, KubeApi(fake.config(), SystemClock(), lambda: 0.5, limits=LIMITS) as api:
        for number, label in enumerate((*LABELS, "old")):
            name = f"m{number}"
            spec = {
                "model": {"uri": "hf://a/b"},
                "engine": {"type": "Sim"},
                "pools": [POOL],
                "autoscaling": {"mode": "Auto"},
            }
            model = fake.put(MODEL_DEPLOYMENTS, "chat", name, spec=spec)
            # The last workload belonged to an earlier model of the name, of another installation.
            owner = {"uid": "gone" if label == "old" else uid_of(model)}
            labels = {MANAGED_BY_LABEL: FIELD_MANAGER, MODEL_LABEL: name, POOL_LABEL: "main", INSTALLATION_LABEL: label}
            metadata = {
                "name": name,
                "namespace": "chat",
                "labels": labels,
                "annotations": {SLEEP_ANNOTATION: "1-asleep"},
            }
            for kind in (DEPLOYMENTS, PODS):
                body = {
                    "apiVersion": kind.api_version,
                    "kind": kind.kind,
                    "metadata": metadata | {"ownerReferences": [owner]},
                }
                fake._store(kind.path("chat", name), body)
        ours = {f"chat/m{number}" for number, label in enumerate((*LABELS, "old")) if label in ("", own, "old")}
        others = {f"chat/m{number}" for number in range(4)} - ours
        target = KubernetesTarget(api, SystemClock(), lambda: 0.5)
        target.installation = own
        following = asyncio.ensure_future(target.run())
        try:
            await wait_until(lambda: not target.sync_blocked_reason() and len(target._pod_index.by_model()) == 4)
            seen = [await target.observe(), await target.observe(), target.models(), target.foreign_writers()]
            assert [set(models) for models in (*seen, target.marked_pods())] == [ours] * 5
            assert all(target.model(key) is None and target.workload(key, "main") is None for key in others)
            (note,) = target.notes()
        finally:
            await cancel_and_wait(following)
    assert f": {len(others)}, such as " in note
    assert caplog.messages.count(note) == 1
