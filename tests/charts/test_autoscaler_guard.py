"""The admission policy of the autoscaler on a real API server, with its service account."""

import asyncio
import functools
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead.fleet.labels import DELETION_COST_ANNOTATION, SLEEP_ANNOTATION
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import KubeError
from fairlead.kube.resources import DEPLOYMENTS, LEADER_WORKER_SETS, MODEL_DEPLOYMENTS, PODS, Manifest, Resource
from fairlead.kube.transport.kubeconfig import ClusterConfig, config_from_kubeconfig
from fairlead.runtime.clock import SystemClock
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.helm import apply_rights, kubeconfig_for_account, kubectl, render_chart
from fairlead_testing.kube.lws_controllers import worker_set, worker_set_crd
from fairlead_testing.waiting import wait_until

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
PLACE = "guarded"
POLICY = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
MANAGED = {"app.kubernetes.io/managed-by": "fairlead", "fairlead.io/model": "m"}
ONLY_MANAGED = "only objects that Fairlead manages"
OWNERS = "may not change owner references or finalizers"
REPLICAS_ONLY = "only the replica count of a LeaderWorkerSet"


def pod(name: str, labels: dict[str, str]) -> Manifest:
    metadata = {"name": name, "namespace": PLACE, "labels": labels}
    return {**_kind(PODS), "metadata": metadata, "spec": {"containers": [{"name": "engine", "image": "a"}]}}


def deployment(name: str, labels: dict[str, str]) -> Manifest:
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "engine", "image": "a"}]}}
    spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}
    return {**_kind(DEPLOYMENTS), "metadata": {"name": name, "namespace": PLACE, "labels": labels}, "spec": spec}


def group(name: str, labels: dict[str, str]) -> Manifest:
    template = {"spec": {"containers": [{"name": "engine", "image": "a"}]}}
    workload = worker_set({"name": name, "namespace": PLACE, "labels": labels}, template)
    workload["spec"]["networkConfig"] = {"subdomainPolicy": "Shared"}
    return workload


def _kind(resource: Resource) -> Manifest:
    return {"apiVersion": resource.api_version, "kind": resource.kind}


Patch = Callable[..., Awaitable[str]]
"""Patches an object as the autoscaler, and returns why that was refused."""


@pytest.fixture(scope="module")
def account(api_server: ApiServer, program: Path, tmp_path_factory: pytest.TempPathFactory) -> ClusterConfig:
    """Installs rights and guard, and returns the autoscaler's access once the guard refuses."""

    async def install() -> ClusterConfig:
        manifests = render_chart(program, f"--namespace={PLACE}")
        async with KubeApi(api_server.config(), SystemClock(), lambda: 0.5) as admin:
            await apply_rights(admin, manifests, PLACE)
            await admin.apply(worker_set_crd(), "test")
            await wait_until(lambda: admin.has_resource(LEADER_WORKER_SETS))
            policy = yaml.safe_dump_all(manifest for manifest in manifests if manifest["kind"] in POLICY)
            await asyncio.to_thread(kubectl, api_server, "apply", "-f", "-", text=policy)
            await admin.apply(pod("probe", MANAGED), "test")
            file = tmp_path_factory.mktemp("account") / "kubeconfig"
            file.write_text(await kubeconfig_for_account(api_server, PLACE, "fairlead-autoscaler"))
        config = config_from_kubeconfig([file])
        tries = itertools.count()
        async with KubeApi(config, SystemClock(), lambda: 0.5) as api:

            async def is_guarded() -> bool:
                """Another image each time: until the policy is known, each is taken."""
                container = {"name": "engine", "image": f"b{next(tries)}"}
                reason = await refusal(api, PODS, "probe", {"spec": {"containers": [container]}})
                return "only the deletion cost and the sleep annotation of a pod" in reason

            await wait_until(is_guarded)
        return config

    return asyncio.run(install())


async def refusal(api: KubeApi, kind: Resource, name: str, patch: Manifest, **more: Any) -> str:
    """Patches an object, and returns why that was refused."""
    try:
        await api.patch_merge(kind, PLACE, name, patch, "fairlead-autoscaler", **more)
    except KubeError as error:
        return error.message
    return ""


@asynccontextmanager
async def guarded(server: ApiServer, account: ClusterConfig, *objects: Manifest) -> AsyncIterator[Patch]:
    """Applies these objects, and yields patches of the autoscaler."""
    async with KubeApi(server.config(), SystemClock(), lambda: 0.5) as admin:
        for manifest in objects:
            await admin.apply(manifest, "test")
    async with KubeApi(account, SystemClock(), lambda: 0.5) as api:
        yield functools.partial(refusal, api)


async def test_admission_guard_limits_it_to_two_pod_annotations(api_server: ApiServer, account: ClusterConfig) -> None:
    async with guarded(api_server, account, pod("pod", MANAGED), pod("other", {})) as patched:
        for metadata, expected in (
            ({"labels": {"a": "b"}}, "may not change labels"),
            ({"annotations": {"a": "b"}}, "not change other annotations"),
            ({"annotations": {DELETION_COST_ANNOTATION: "-1"}}, ""),
            ({"annotations": {DELETION_COST_ANNOTATION: None}}, ""),
            ({"annotations": {SLEEP_ANNOTATION: "1-asleep"}}, ""),
            ({"annotations": {SLEEP_ANNOTATION: None}}, ""),
        ):
            message = await patched(PODS, "pod", {"metadata": metadata})
            assert (expected in message) if expected else message == "", (metadata, message)
        message = await patched(PODS, "other", {"metadata": {"annotations": {DELETION_COST_ANNOTATION: "-1"}}})
        assert ONLY_MANAGED in message


async def test_admission_guard_leaves_no_way_to_delete_pods_by_their_owners(
    api_server: ApiServer, account: ClusterConfig
) -> None:
    owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "7b1a3b1e-0000-4000-8000-000000000000"}
    objects = (pod("pod", MANAGED), group("set", MANAGED))
    async with guarded(api_server, account, *objects) as patched:
        for kind, name in ((PODS, "pod"), (LEADER_WORKER_SETS, "set")):
            for metadata in ({"ownerReferences": [owner]}, {"finalizers": ["fairlead.io/keep"]}):
                message = await patched(kind, name, {"metadata": metadata})
                assert OWNERS in message, (kind.kind, metadata, message)


async def test_admission_guard_lets_only_replicas_of_fairleads_workloads_change(
    api_server: ApiServer, account: ClusterConfig
) -> None:
    theirs = {"app": "web"}
    objects = [deployment("ours", MANAGED), deployment("theirs", theirs)]
    objects += [group("ours", MANAGED), group("theirs", theirs)]
    async with guarded(api_server, account, *objects) as patched:
        replicas = {"spec": {"replicas": 0}}
        assert await patched(DEPLOYMENTS, "ours", replicas, subresource="scale") == ""
        assert ONLY_MANAGED in await patched(DEPLOYMENTS, "theirs", replicas, subresource="scale")
        assert await patched(LEADER_WORKER_SETS, "ours", replicas) == ""
        assert ONLY_MANAGED in await patched(LEADER_WORKER_SETS, "theirs", replicas)
        for spec in (
            {"startupPolicy": "LeaderReady"},
            {"networkConfig": None},
            {"networkConfig": {"subdomainPolicy": "UniquePerReplica"}},
            {"leaderWorkerTemplate": {"size": 9}},
            {"leaderWorkerTemplate": {"subGroupPolicy": {"subGroupSize": 1}}},
        ):
            assert REPLICAS_ONLY in await patched(LEADER_WORKER_SETS, "ours", {"spec": spec}), spec


async def test_admission_guard_leaves_names_and_conditions_of_the_operator_alone(
    api_server: ApiServer, account: ClusterConfig
) -> None:
    times = {"lastTransitionTime": "2026-11-20T18:00:00Z", "message": ""}
    ready = {"type": "Ready", "status": "True", "reason": "AllReady", **times}
    other = {"type": "Available", "status": "True", "reason": "Any", **times}
    own = [{"type": name, "status": "True", "reason": "Any", **times} for name in ("Autoscaling", "SLOMet")]
    spec = {"model": {"uri": "hf://a/b"}, "engine": {"type": "Sim"}, "pools": [{"acceleratorClassName": "cpu"}]}
    model = {**_kind(MODEL_DEPLOYMENTS), "metadata": {"name": "m", "namespace": PLACE}, "spec": spec}
    async with guarded(api_server, account, model) as patched:
        async with KubeApi(api_server.config(), SystemClock(), lambda: 0.5) as admin:
            written = {"clientName": "m", "conditions": [ready, other]}
            await admin.apply_status({**model, "status": written}, "operator")
        for status, expected in (
            ({"clientName": "other"}, "only conditions of a model"),
            ({"servedNames": ["llama"]}, "only conditions of a model"),
            ({"replicas": 7}, "only conditions of a model"),
            ({"conditions": []}, "only its own conditions"),
            ({"conditions": [{**ready, "status": "False"}]}, "only its own conditions"),
            ({"conditions": [ready, {**other, "status": "False"}]}, "only its own conditions"),
            ({"conditions": [ready, other, *own]}, ""),
            ({"conditions": [ready, *own]}, "only its own conditions"),
            ({"conditions": [ready, other]}, ""),
        ):
            message = await patched(MODEL_DEPLOYMENTS, "m", {"status": status}, subresource="status")
            assert (expected in message) if expected else message == "", (status, message)
