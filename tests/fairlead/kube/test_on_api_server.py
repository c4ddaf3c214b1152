"""The client with a real etcd and kube-apiserver: what the fake server of other tests imitates."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fairlead.kube.client import KubeApi
from fairlead.kube.errors import (
    AlreadyExists,
    Conflict,
    EvictionBlocked,
    Forbidden,
    Invalid,
    NotFound,
    Unauthenticated,
    Unreachable,
)
from fairlead.kube.events.event import EventType
from fairlead.kube.events.recorder import EventRecorder
from fairlead.kube.resources import (
    CONFIG_MAPS,
    CONTROLLER_REVISIONS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    EVENTS,
    MODEL_DEPLOYMENTS,
    NAMESPACES,
    NETWORK_POLICIES,
    PODS,
    SERVICE_ACCOUNTS,
    SERVICES,
    Manifest,
    ObjectSelection,
    Resource,
)
from fairlead.kube.transport.http_transport import HttpRequest
from fairlead.kube.watch_events import WatchEventType
from fairlead.limits import Limits
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_testing.kube.api_server import ApiServer
from fairlead_testing.waiting import FakeTime, wait_until
from fairlead_testing.yaml_documents import load_document

pytestmark = pytest.mark.api_server
ROOT = Path(__file__).parents[3]


def of(resource: Resource, namespace: str | None, name: str, **more: Any) -> Manifest:
    metadata = {"name": name} if namespace is None else {"name": name, "namespace": namespace}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, **more}


def deployment(namespace: str, **spec: Any) -> Manifest:
    labels = {"app": "x"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    whole = {"selector": {"matchLabels": labels}, "template": pod, **spec}
    return of(DEPLOYMENTS, namespace, "d", spec=whole)


def pod(namespace: str, name: str) -> Manifest:
    return of(PODS, namespace, name, spec={"containers": [{"name": "c", "image": "i"}]})


def client(server: ApiServer, **access: Any) -> KubeApi:
    return KubeApi(replace(server.config(), **access), SystemClock(), lambda: 0.5)


@asynccontextmanager
async def client_in_namespace(server: ApiServer, request: pytest.FixtureRequest) -> AsyncIterator[tuple[KubeApi, str]]:
    """A client, and a namespace that is named after the test."""
    name = request.node.name.replace("_", "-").partition("[")[0][:60].strip("-")
    async with client(server) as api:
        await api.apply(of(NAMESPACES, None, name), "test")
        yield api, name


async def test_repeated_apply_writes_nothing(api_server: ApiServer, request: pytest.FixtureRequest) -> None:
    async with client_in_namespace(api_server, request) as (api, namespace):
        first = await api.apply(deployment(namespace, replicas=2), "operator")
        second = await api.apply(deployment(namespace, replicas=2), "operator")
        assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]
        tried = await api.apply(deployment(namespace, replicas=5), "operator", dry_run=True)
        assert tried["spec"]["replicas"] == 5
        assert (await api.get(DEPLOYMENTS, namespace, "d"))["spec"]["replicas"] == 2
        stale = deployment(namespace)
        stale["metadata"]["resourceVersion"] = "1"
        with pytest.raises(Conflict):
            await api.apply(stale, "operator")


async def test_conflict_names_the_field_owner(api_server: ApiServer, request: pytest.FixtureRequest) -> None:
    async with client_in_namespace(api_server, request) as (api, namespace):
        await api.apply(deployment(namespace, replicas=2), "operator")
        scaled = {"spec": {"replicas": 7}}
        await api.patch_merge(DEPLOYMENTS, namespace, "d", scaled, "autoscaler", subresource="scale")
        with pytest.raises(Conflict) as raised:
            await api.apply(deployment(namespace, replicas=2), "operator", force=False)
        assert [cause.field for cause in raised.value.causes] == [".spec.replicas"]
        assert "autoscaler" in raised.value.causes[0].message
        assert (await api.apply(deployment(namespace), "operator", force=False))["spec"]["replicas"] == 7


NEW = {
    "Service": {"spec": {"ports": [{"port": 80}]}},
    "ServiceAccount": {},
    "PodDisruptionBudget": {"spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}},
    "NetworkPolicy": {"spec": {"podSelector": {}}},
    "ControllerRevision": {"revision": 1, "data": {"a": "b"}},
    "Deployment": {
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {
                "metadata": {"labels": {"a": "b"}},
                "spec": {"containers": [{"name": "c", "image": "i"}]},
            },
        }
    },
}
KINDS = {
    kind.kind: kind
    for kind in (SERVICES, SERVICE_ACCOUNTS, DISRUPTION_BUDGETS, NETWORK_POLICIES, CONTROLLER_REVISIONS, DEPLOYMENTS)
}


@pytest.mark.parametrize("kind", NEW)
async def test_apply_new_creates_once_and_changes_nothing_existing(
    api_server: ApiServer, request: pytest.FixtureRequest, kind: str
) -> None:
    async with client_in_namespace(api_server, request) as (api, namespace):
        two, repeated = (of(KINDS[kind], namespace, "s", **NEW[kind]) for _ in range(2))
        two["metadata"]["labels"], repeated["metadata"]["labels"] = {"a": "1", "b": "2"}, {"a": "1"}
        created = await api.apply_new(two, "me")
        assert [(field["manager"], field["operation"]) for field in created["metadata"]["managedFields"]] == [
            ("me", "Apply")
        ]
        with pytest.raises(AlreadyExists):
            await api.apply_new(repeated, "me")
        assert (await api.get(KINDS[kind], namespace, "s"))["metadata"] == created["metadata"]
        applied = await api.apply(repeated, "me")
        assert applied["metadata"]["labels"] == {"a": "1"}
        assert applied["metadata"]["uid"] == created["metadata"]["uid"]


async def test_two_managers_share_a_status(api_server: ApiServer, request: pytest.FixtureRequest) -> None:
    async with client_in_namespace(api_server, request) as (api, namespace):
        await api.apply(deployment(namespace), "operator")

        def condition(kind: str, status: str) -> Manifest:
            entry = {"type": kind, "status": status, "reason": "R", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            return {**deployment(namespace), "status": {"conditions": [entry]}}

        await api.apply_status(condition("Ready", "True"), "operator")
        await api.apply_status(condition("Autoscaling", "True"), "autoscaler")
        applied = await api.apply_status(condition("Ready", "False"), "operator")
        states = {entry["type"]: entry["status"] for entry in applied["status"]["conditions"]}
        assert states == {"Ready": "False", "Autoscaling": "True"}
        assert applied["metadata"]["generation"] == 1


async def test_invalid_object_is_reported_by_field(api_server: ApiServer, request: pytest.FixtureRequest) -> None:
    async with client_in_namespace(api_server, request) as (api, namespace):
        with pytest.raises(Invalid) as raised:
            await api.apply(deployment(namespace, replicas=-1), "operator")
        assert [(cause.field, cause.reason) for cause in raised.value.causes] == [
            ("spec.replicas", "FieldValueInvalid")
        ]
        with pytest.raises(Invalid) as raised:
            await api.apply(deployment(namespace, replicaz=1), "operator")
        assert [cause.field for cause in raised.value.causes] == ["spec.replicaz"]
        double = deployment(namespace)
        double["spec"]["template"]["spec"]["containers"] *= 2
        with pytest.raises(Invalid) as raised:
            await api.apply(double, "operator")
        assert [cause.field for cause in raised.value.causes] == ["spec.template.spec.containers"]
        with pytest.raises(NotFound):
            await api.apply(deployment("no-such-namespace"), "operator")


async def test_create_delete_evict(api_server: ApiServer, request: pytest.FixtureRequest) -> None:
    async with client_in_namespace(api_server, request) as (api, namespace):
        created = await api.create(pod(namespace, "p"), "test")
        with pytest.raises(AlreadyExists):
            await api.create(pod(namespace, "p"), "test")
        assert not await api.delete(PODS, namespace, "p", uid="00000000-0000-0000-0000-000000000000")
        assert await api.delete(PODS, namespace, "p", uid=created["metadata"]["uid"])
        assert not await api.delete(PODS, namespace, "p")
        budget = {"minAvailable": 1, "selector": {"matchLabels": {"app": "kept"}}}
        await api.apply(of(DISRUPTION_BUDGETS, namespace, "b", spec=budget), "test")
        kept = pod(namespace, "kept")
        kept["metadata"]["labels"] = {"app": "kept"}
        await api.create(kept, "test")
        await api.apply_status({**kept, "status": {"phase": "Running"}}, "kubelet")
        with pytest.raises(EvictionBlocked) as raised:
            await api.evict(namespace, "kept")
        assert raised.value.status == 429
        await api.create(pod(namespace, "free"), "test")
        assert await api.evict(namespace, "free")
        assert not await api.evict(namespace, "free")


async def test_custom_kinds_are_served_after_their_definition(
    api_server: ApiServer, request: pytest.FixtureRequest
) -> None:
    async with client_in_namespace(api_server, request) as (api, namespace):
        assert (await api.version()).startswith("v1.")
        assert await api.has_resource(PODS)
        for file in sorted((ROOT / "crds").glob("*.yaml")):
            await api.apply(load_document(file.read_text()), "test")
        await wait_until(lambda: api.has_resource(MODEL_DEPLOYMENTS))
        assert (await api.list(MODEL_DEPLOYMENTS, namespace)).items == []
        with pytest.raises(Invalid, match=r"spec\.unheard"):
            await api.apply(of(MODEL_DEPLOYMENTS, namespace, "m", spec={"unheard": 1}), "test")


async def test_forbidden_and_unauthenticated_are_distinguished(
    api_server: ApiServer, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    async with client_in_namespace(api_server, request) as (api, namespace):
        async with client(
            api_server, impersonate_user="nobody", impersonate_groups=("system:authenticated",)
        ) as nobody:
            with pytest.raises(Forbidden, match='User "nobody" cannot list resource "secrets"'):
                await nobody.list(Resource("", "v1", "secrets", "Secret"))
        await api.apply(of(Resource("", "v1", "serviceaccounts", "ServiceAccount"), namespace, "robot"), "test")
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/robot/token"
        body = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}).encode()
        token = (await api._request(HttpRequest("POST", path, body=body)))["status"]["token"]
        file = tmp_path / "token"
        file.write_text("nonsense")
        bare = {"certificate": None, "key": None, "certificate_file": None, "key_file": None}
        async with client(api_server, **bare, token_file=file) as robot:
            with pytest.raises(Unauthenticated):
                await robot.list(PODS, namespace)
            file.write_text(token)
            with pytest.raises(Forbidden, match=f"system:serviceaccount:{namespace}:robot"):
                await robot.list(PODS, namespace)
        async with client(api_server, ca_data=None, ca_file=None) as trusting:
            trusting.limits = replace(Limits(), kube_attempts=1)
            with pytest.raises(Unreachable, match=r"certificate verify failed"):
                await trusting.list(PODS)


async def test_api_server_accepts_our_events(api_server: ApiServer, request: pytest.FixtureRequest) -> None:
    async with client_in_namespace(api_server, request) as (api, namespace):
        time = FakeTime()
        recorder = EventRecorder(api, "fairlead.io/operator", "pod-1", time, pause=time.pause)
        about = await api.create(pod(namespace, "p"), "test")
        task = asyncio.create_task(recorder.run())
        try:
            recorder.record(about, EventType.WARNING, "NoAccelerator", "Reconcile", "no node has enough accelerators")
            recorder.record(about, EventType.NORMAL, "Long", "Reconcile", "ü" * 5000)
            await wait_until(lambda: recorder._aggregator.waiting == 0)
            for _ in range(4):
                recorder.record(
                    about, EventType.WARNING, "NoAccelerator", "Reconcile", "no node has enough accelerators"
                )
            await wait_until(lambda: 10.0 in time.pending_pauses)
            time.advance(10.0)

            async def counts() -> dict[str, int]:
                events = (await api.list(EVENTS, namespace)).items
                return {event["reason"]: event.get("series", {}).get("count", 1) for event in events}

            async def counted() -> bool:
                return await counts() == {"NoAccelerator": 5, "Long": 1}

            await wait_until(counted)
            assert (recorder.dropped, recorder.problem) == (0, None)
            kube = await api.get(NAMESPACES, None, namespace)
            recorder.record(kube, EventType.NORMAL, "Wide", "Reconcile", "about an object of the whole cluster")
            await wait_until(lambda: recorder._aggregator.waiting == 0)
            assert (recorder.dropped, recorder.problem) == (0, None)
        finally:
            await cancel_and_wait(task)


# --- watching -----------------------------------------------------------------------------------------------------------


async def test_watch_continues_after_the_api_server_ends_it(
    api_server: ApiServer, request: pytest.FixtureRequest
) -> None:
    async with client_in_namespace(api_server, request) as (api, namespace):
        await api.create(of(CONFIG_MAPS, namespace, "a"), "test")
        version = (await api.list(CONFIG_MAPS, namespace, limit=1)).resource_version
        await api.create(of(CONFIG_MAPS, namespace, "b"), "test")
        await api.delete(CONFIG_MAPS, namespace, "a")
        changes = [
            (change.type, change.object["metadata"].get("name"))
            async for change in api.watch(ObjectSelection(CONFIG_MAPS, namespace), resource_version=version, seconds=1)
        ]
        object_changes = [pair for pair in changes if pair[0] is not WatchEventType.BOOKMARK]
        assert object_changes == [(WatchEventType.ADDED, "b"), (WatchEventType.DELETED, "a")]
