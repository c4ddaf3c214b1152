"""The admission policy of the operator on a real API server, with its service account."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import KubeError
from fairlead.kube.resources import LEADER_WORKER_SETS, PODS, Manifest, resource_of
from fairlead.kube.transport.kubeconfig import config_from_kubeconfig
from fairlead.runtime.clock import SystemClock
from fairlead_operator.scale_placeholder import PLACEHOLDER_FIELD_MANAGER
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.kube.helm import apply_rights, kubeconfig_for_account, kubectl, render_chart
from fairlead_testing.kube.lws_controllers import worker_set, worker_set_crd
from fairlead_testing.kube.manifests import manifest, simulated_model
from fairlead_testing.kube.operator_process import apply_crds_and_namespaces
from fairlead_testing.waiting import wait_until

pytestmark = [pytest.mark.api_server, pytest.mark.timeout(300)]
PLACE = "restarting"
POLICY = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
MANAGED = {"app.kubernetes.io/managed-by": "fairlead", "fairlead.io/model": "m"}
ONLY_MODELS = "may change only pods of models"
ONLY_SERVING = "only the condition fairlead.io/Serving"
NO_METADATA = "may not change the metadata"
NO_ADDRESS = "may not change the phase, the addresses or the containers"


def pod(name: str, labels: dict[str, str]) -> Manifest:
    spec = {"containers": [{"name": "engine", "image": "a"}]}
    return manifest(PODS, name, PLACE, {"labels": labels}, spec=spec)


def serving(status: str = "False") -> dict[str, Any]:
    return {"type": "fairlead.io/Serving", "status": status, "lastTransitionTime": "2026-11-20T17:43:20Z"}


@pytest.fixture(scope="module")
def guarded(api_server: ApiServer, program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kubeconfig of the operator's account on a server with its rights and its guard."""
    config = tmp_path_factory.mktemp("operator") / "kubeconfig"
    config.write_text(asyncio.run(_install(api_server, program)))
    return config


async def _install(server: ApiServer, program: Path) -> str:
    manifests = render_chart(program, f"--namespace={PLACE}", "--set=operator.serviceAccounts={cloud}")
    async with KubeApi(server.config(), SystemClock(), lambda: 0.5) as admin:
        await apply_rights(admin, manifests, PLACE)
        await admin.apply(worker_set_crd(), "test")
        await wait_until(lambda: admin.has_resource(LEADER_WORKER_SETS))
    names = ("-operator", "-operator-objects", "-operator-accounts", "-operator-models")
    policy = [guard for guard in manifests if guard["kind"] in POLICY and guard["metadata"]["name"].endswith(names)]
    assert len(policy) == 8
    await asyncio.to_thread(kubectl, server, "apply", "-f", "-", text=yaml.safe_dump_all(policy))
    return await kubeconfig_for_account(server, PLACE, "fairlead-operator")


@asynccontextmanager
async def clients(server: ApiServer, config: Path) -> AsyncIterator[tuple[KubeApi, KubeApi]]:
    """Yields those of the administrator and of the operator."""
    async with (
        KubeApi(server.config(), SystemClock(), lambda: 0.5) as admin,
        KubeApi(config_from_kubeconfig([config]), SystemClock(), lambda: 0.5) as operator,
    ):
        yield admin, operator


async def refusal(write: Awaitable[object]) -> str:
    """Awaits a write, and returns why it was refused."""
    try:
        await write
    except KubeError as error:
        return error.message
    return ""


async def write_status(api: KubeApi, name: str, status: dict[str, Any]) -> str:
    """Applies a status as the operator does, and returns why that was refused."""
    return await refusal(api.apply_status(manifest(PODS, name, PLACE, status=status), "fairlead-operator"))


async def write_metadata(api: KubeApi, name: str, metadata: dict[str, Any]) -> str:
    """Patches metadata through the status, and returns why that was refused."""
    patch = {"metadata": metadata}
    return await refusal(api.patch_merge(PODS, PLACE, name, patch, "fairlead-operator", subresource="status"))


async def delete(api: KubeApi, name: str) -> str:
    pods = (await api.list(PODS, PLACE)).items
    uid = next(pod["metadata"]["uid"] for pod in pods if pod["metadata"]["name"] == name)
    return await refusal(api.delete(PODS, PLACE, name, uid, grace_seconds=30))


async def test_guard_lets_the_operator_mark_and_delete_only_pods_of_models(
    api_server: ApiServer, guarded: Path
) -> None:
    async with clients(api_server, guarded) as (admin, operator):
        for name, labels in (("ours", MANAGED), ("theirs", {"app": "web"})):
            await admin.apply(pod(name, labels), "test")
            ready = {"type": "Ready", "status": "True"}
            status = {"phase": "Running", "podIP": "10.0.0.1", "conditions": [ready]}
            await admin.patch_merge(PODS, PLACE, name, {"status": status}, "kubelet", subresource="status")

        async def is_guarded() -> bool:
            return ONLY_MODELS in await write_status(operator, "theirs", {"conditions": [serving()]})

        await wait_until(is_guarded)
        assert ONLY_MODELS in await delete(operator, "theirs")
        unready = {"type": "Ready", "status": "False"}
        assert ONLY_SERVING in await write_status(operator, "ours", {"conditions": [serving(), unready]})
        assert NO_ADDRESS in await write_status(operator, "ours", {"podIP": "10.0.0.9"})
        assert NO_ADDRESS in await write_status(operator, "ours", {"phase": "Failed"})
        assert NO_ADDRESS in await write_status(operator, "ours", {"nominatedNodeName": "a"})
        for change in ({"labels": {"fairlead.io/model": "other"}}, {"annotations": {"fairlead.io/port": "1"}}):
            assert NO_METADATA in await write_metadata(operator, "ours", change)
        assert NO_METADATA in await write_metadata(operator, "ours", {"finalizers": ["fairlead.io/never"]})
        for status in ("False", "True"):
            assert await write_status(operator, "ours", {"conditions": [serving(status)]}) == ""
        assert await delete(operator, "ours") == ""


INSTALLATION = {"fairlead.io/installation": f"{PLACE}.fairlead"}
OWNER = {"apiVersion": "serving.fairlead.io/v1alpha1", "kind": "ModelDeployment", "name": "m", "controller": True}
OURS: dict[str, Any] = {
    "namespace": PLACE,
    "labels": MANAGED | INSTALLATION,
    "ownerReferences": [{**OWNER, "uid": "00000000-0000-4000-8000-000000000001"}],
}
LABELS = {"app.kubernetes.io/component": "engine", "fairlead.io/model": "m"}


def child(
    kind: str, name: str = "m-main", spec: dict[str, Any] | None = None, account: str = "cloud", **metadata: Any
) -> Manifest:
    """Returns an object as the operator makes it, but for what is given.

    account: of its pods. By default one that the chart lists, since two policies look at others.
    """
    pods: Manifest = {
        "metadata": {"labels": LABELS},
        "spec": {"serviceAccountName": account, "containers": [{"name": "a", "image": "a"}]},
    }
    if kind == "LeaderWorkerSet":
        return worker_set(OURS | {"name": name} | metadata, pods, pods)
    version, own = {
        "Deployment": ("apps/v1", {"selector": {"matchLabels": LABELS}, "template": pods}),
        "Service": ("v1", {"selector": LABELS, "ports": [{"port": 80}]}),
        "ServiceAccount": ("v1", None),
        "PodDisruptionBudget": ("policy/v1", {"maxUnavailable": 1, "selector": {"matchLabels": LABELS}}),
        "NetworkPolicy": ("networking.k8s.io/v1", {"podSelector": {"matchLabels": LABELS}}),
        "ControllerRevision": ("apps/v1", None),
    }[kind]
    document: Manifest = {"apiVersion": version, "kind": kind, "metadata": OURS | {"name": name} | metadata}
    if own is not None:
        document["spec"] = own | (spec or {})
    return document | ({"revision": 1, "data": {"spec": {}}} if kind == "ControllerRevision" else {})


async def apply(api: KubeApi, wanted: Manifest) -> str:
    return await refusal(api.apply(wanted, "fairlead"))


async def remove(api: KubeApi, child: Manifest) -> str:
    resource, name = resource_of(child), child["metadata"]["name"]
    live = await api.get(resource, PLACE, name)
    return await refusal(api.delete(resource, PLACE, name, live["metadata"]["uid"]))


KINDS = (
    *("Deployment", "LeaderWorkerSet", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy"),
    "ControllerRevision",
)


async def test_guard_leaves_objects_of_others_alone(api_server: ApiServer, guarded: Path) -> None:
    async with clients(api_server, guarded) as (admin, operator):
        for kind in KINDS:
            await admin.apply(child(kind, "theirs", labels={"app": "web"}, ownerReferences=[]), "test")
            other = {"labels": MANAGED | {"fairlead.io/installation": "other"}}
            await admin.apply(child(kind, "others", **other), "test")

        async def is_guarded() -> bool:
            return "may change only objects of models" in await apply(operator, child("Deployment", "theirs"))

        await wait_until(is_guarded)
        for kind in KINDS:
            assert "may change only objects of models" in await apply(operator, child(kind, "theirs")), kind
            assert "may change only objects of models" in await remove(operator, child(kind, "theirs")), kind
            assert "objects of another installation" in await apply(operator, child(kind, "others")), kind
            assert "objects of another installation" in await remove(operator, child(kind, "others")), kind
            for wrong in ({"ownerReferences": []}, {"labels": {"app": "web"}}, {"labels": MANAGED}):
                assert "only objects that a model owns" in await apply(operator, child(kind, "new", **wrong)), kind
            assert await apply(operator, child(kind)) == "", kind
            assert await apply(operator, child(kind)) == "", kind
            unlabelled = child(kind, labels={})
            await admin.apply(unlabelled, "fairlead")
            assert await apply(operator, child(kind)) == "", kind
            assert await remove(operator, child(kind)) == "", kind


async def test_guard_keeps_the_operator_from_the_pods_and_accounts_of_others(
    api_server: ApiServer, guarded: Path
) -> None:
    async with clients(api_server, guarded) as (_, operator):

        async def is_guarded() -> bool:
            return "ServiceAccount" in await apply(operator, _with_account("builder"))

        await wait_until(is_guarded)
        assert await apply(operator, _with_account("cloud")) == ""
        gateway = {"app.kubernetes.io/name": "fairlead", "app.kubernetes.io/component": "gateway"}
        for wrong in (gateway, gateway | {"fairlead.io/model": "m"}, LABELS | {"fairlead.io/model": ""}):
            pods = child("Deployment")["spec"]["template"] | {"metadata": {"labels": wrong}}
            made = {"selector": {"matchLabels": wrong}, "template": pods}
            assert "engines of a model" in await apply(operator, child("Deployment", "g", made))
        select = "that select pods of models"
        assert select in await apply(operator, child("Service", "s", {"selector": {"app": "web"}}))
        assert select in await apply(
            operator, child("PodDisruptionBudget", "b", {"selector": {"matchLabels": {"a": "b"}}})
        )
        assert select in await apply(operator, child("NetworkPolicy", "p", {"podSelector": {}}))
        for spec in ({"externalIPs": ["192.0.2.1"]}, {"type": "NodePort"}):
            assert "only Services within the cluster" in await apply(operator, child("Service", "s", spec))


async def test_a_deployment_with_the_name_of_an_account_does_not_get_it(api_server: ApiServer, guarded: Path) -> None:
    """An attacker chooses the name of a workload, and so that of its account."""
    async with clients(api_server, guarded) as (admin, operator):
        foreign = "that belongs to others"
        for name, labels in (("cluster-admin", {}), ("builder", {"app.kubernetes.io/managed-by": "Helm"})):
            account = {"apiVersion": "v1", "kind": "ServiceAccount"}
            await admin.apply(account | {"metadata": {"name": name, "namespace": PLACE, "labels": labels}}, "test")

        async def is_guarded() -> bool:
            return foreign in await apply(operator, child("Deployment", "cluster-admin", account="cluster-admin"))

        await wait_until(is_guarded)
        assert foreign in await apply(operator, child("Deployment", "builder", account="builder"))
        assert "may change only objects of models" in await apply(operator, child("ServiceAccount", "builder"))
        assert await apply(operator, child("ServiceAccount", "m-own")) == ""
        assert await apply(operator, child("Deployment", "m-own", account="m-own")) == ""
        assert await apply(operator, _with_account("cloud")) == ""
        system = child("Deployment", "m-main", namespace="kube-system")
        assert "namespaces of the cluster itself" in await apply(operator, system)


async def test_both_templates_of_a_worker_set_have_listed_accounts(api_server: ApiServer, guarded: Path) -> None:
    """A group has a leader and workers, and each could run as another account."""
    async with clients(api_server, guarded) as (_, operator):

        async def is_guarded() -> bool:
            return "ServiceAccount" in await apply(operator, _group("nobody", "nobody"))

        await wait_until(is_guarded)
        for leader, worker in (("nobody", "m-group"), ("m-group", "nobody"), (None, "nobody"), (None, None)):
            assert "only the ServiceAccount" in await apply(operator, _group(leader, worker)), (leader, worker)
        for leader, worker in (("m-group", "cloud"), (None, "m-group"), ("m-group", "m-group")):
            assert await apply(operator, _group(leader, worker)) == "", (leader, worker)


def _group(leader: str | None, worker: str | None) -> Manifest:
    """Returns a LeaderWorkerSet with these accounts; without a leader's template for None."""
    templates: list[Manifest] = [
        {"metadata": {"labels": LABELS}, "spec": {"containers": [{"name": "a", "image": "a"}]} | account}
        for account in ({} if name is None else {"serviceAccountName": name} for name in (leader, worker))
    ]
    metadata = OURS | {"name": "m-group"}
    return worker_set(metadata, templates[1], None if leader is None else templates[0])


def _with_account(name: str) -> Manifest:
    return child("Deployment", "m-account", account=name)


async def test_of_a_model_the_operator_changes_only_the_number_that_autoscalers_read(
    api_server: ApiServer, guarded: Path
) -> None:
    from_people = simulated_model("m", PLACE, pools=[{"name": "main", "acceleratorClassName": "cpu"}])
    head = {name: from_people[name] for name in ("apiVersion", "kind")}
    named = {"name": "m", "namespace": PLACE}
    async with clients(api_server, guarded) as (admin, operator):
        await apply_crds_and_namespaces(admin, PLACE)
        await admin.apply(from_people, "kubectl")
        changed = await operator.apply({**head, "metadata": named, "spec": {"replicas": 1}}, PLACEHOLDER_FIELD_MANAGER)
        assert changed["spec"]["replicas"] == 1
        other, labelled = {"spec": {"slo": {"ttft": "1s"}}}, {**named, "labels": {"a": "b"}}
        for wrong, reason in (
            ({"metadata": named, **other}, "only spec.replicas"),
            ({"metadata": labelled}, "the metadata"),
        ):
            assert reason in await refusal(operator.apply({**head, **wrong}, PLACEHOLDER_FIELD_MANAGER))
        released = await operator.apply({**head, "metadata": named}, PLACEHOLDER_FIELD_MANAGER)
        assert "replicas" not in released["spec"]
