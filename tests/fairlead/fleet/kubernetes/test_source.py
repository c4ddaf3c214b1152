"""The fleet source with manual time and a fake API server that fails on demand."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from fairlead.api.spec.profile import Profile
from fairlead.engine_profile import EngineProfile
from fairlead.fleet.kubernetes.pod_instances import trim_pod
from fairlead.fleet.kubernetes.source import KubeFleetSource
from fairlead.fleet.model import Fleet, FleetSource, InstanceState
from fairlead.kube.client import KubeApi
from fairlead.kube.informer import KUBE_WATCH_SILENCE_SECONDS
from fairlead.kube.resources import (
    ACCELERATOR_CLASSES,
    CONFIG_MAPS,
    MODEL_ADAPTERS,
    MODEL_DEPLOYMENTS,
    MODEL_ROUTES,
    PODS,
    SERVICES,
    Resource,
)
from fairlead.limits import Limits
from fairlead.runtime.clock import Pacing
from fairlead.runtime.tasks import cancel_and_wait
from fairlead_testing.kube.fake_server import FakeApiServer, OrderedResponse, fake_api_server
from fairlead_testing.waiting import FakeTime, wait_until

pytestmark = pytest.mark.simulated

LIMITS = Limits()
MARKS = {"fairlead.io/pool": "main", "fairlead.io/role": "Serve", "fairlead.io/endpoint": "true"}


@dataclass
class SourceHarness:
    """A source that is followed, and everything around it."""

    fake: FakeApiServer
    time: FakeTime
    source: KubeFleetSource
    fleets: list[Fleet] = field(default_factory=list)

    def model(self, name: str = "tiny", namespace: str = "x", **spec: Any) -> None:
        whole = {"model": {"uri": "hf://a/b"}, "pools": [{"acceleratorClassName": "cpu"}], **spec}
        self.fake.put(MODEL_DEPLOYMENTS, namespace, name, spec=whole)

    def pod(self, name: str, namespace: str = "x", *, ready: bool = True, **labels: str) -> None:
        manifest = self.fake.put(PODS, namespace, name)  # the fake's put takes no labels
        manifest["metadata"]["labels"] = {**MARKS, "fairlead.io/model": "tiny", **labels}
        conditions = [{"type": "Ready", "status": str(ready)}]
        self.change(name, namespace, status={"podIP": "10.0.0.1", "conditions": conditions})

    def change(self, name: str, namespace: str = "x", **parts: Any) -> None:
        path = PODS.path(namespace, name)
        self.fake._store(path, {**self.fake.objects[path], **parts})

    def go(self, name: str) -> None:
        metadata = self.fake.objects[PODS.path("x", name)]["metadata"]
        self.change(name, metadata={**metadata, "deletionTimestamp": "2026-11-20T18:00:00Z"})

    def states(self) -> list[str]:
        if not self.fleets:
            return []
        return [str(instance.state) for group in self.fleets[-1].instances.values() for instance in group]

    async def passing(self, condition: Callable[[], bool]) -> None:
        """Let every pause but the watch for silence be over, until ``condition`` holds."""
        await self.time.advance_until(condition, KUBE_WATCH_SILENCE_SECONDS / 2)


@asynccontextmanager
async def followed_source(
    *, before: Callable[[SourceHarness], None] | None = None, **more: Any
) -> AsyncIterator[SourceHarness]:
    """A source that is followed. At the end, all its watches must close."""
    async with fake_api_server() as fake:
        time = FakeTime()
        api = KubeApi(fake.config(), time, lambda: 0.5, pause=time.pause)
        source = KubeFleetSource(api, Pacing(time, lambda: 0.5, time.pause), **more)
        lab = SourceHarness(fake, time, source)
        if before is not None:
            before(lab)
        task = asyncio.create_task(_follow(lab.source, lab.fleets))
        try:
            yield lab
        finally:
            await cancel_and_wait(task)
        await wait_until(lambda: fake.watch_count == 0)


async def _follow(source: FleetSource, fleets: list[Fleet]) -> None:
    async for fleet in source.watch():
        fleets.append(fleet)


def one_engine(lab: SourceHarness) -> None:
    lab.model()
    lab.pod("a")


async def test_namespace_that_refuses_lists_keeps_no_fleet_of_others_waiting() -> None:
    def before(lab: SourceHarness) -> None:
        one_engine(lab)
        lab.model("llama", "y")
        lab.fake.refused_paths = {kind.path("y") for kind in (MODEL_DEPLOYMENTS, PODS)}

    async with followed_source(before=before, namespaces=("x", "y")) as lab:
        await lab.passing(lambda: lab.states() == ["Ready"])
        assert set(lab.fleets[-1].models) == {"x/tiny"}
        (warning,) = lab.source.warnings()
        assert "was never listed" in warning
        assert lab.source.age_seconds() is not None
        lab.fake.refused_paths.clear()
        await lab.passing(lambda: set(lab.fleets[-1].models) == {"x/tiny", "y/llama"})
        lab.fake.refused_paths = {MODEL_DEPLOYMENTS.path("y"), PODS.path("y")}
        lab.fake.end_watches()
        await lab.passing(lambda: bool(lab.source.warnings()))
        assert set(lab.fleets[-1].models) == {"x/tiny", "y/llama"}


async def test_fleet_appears_after_listing_and_follows_changes() -> None:
    async with followed_source(before=one_engine) as lab:
        await lab.passing(lambda: lab.states() == ["Ready"])
        assert [fleet.version for fleet in lab.fleets] == [1]
        assert (lab.source.warnings(), lab.source.age_seconds()) == ([], pytest.approx(lab.time.now(), abs=1.0))
        lab.pod("b")
        await lab.passing(lambda: lab.states() == ["Ready", "Ready"])
        lab.go("a")
        await lab.passing(lambda: sorted(lab.states()) == ["Draining", "Ready"])
        lab.fake.remove(PODS, "x", "a")
        await lab.passing(lambda: lab.states() == ["Ready"])
        lab.fake.remove(MODEL_DEPLOYMENTS, "x", "tiny")
        await lab.passing(lambda: lab.fleets[-1].models == {})


async def test_templates_labels_and_annotations_of_models_take_no_memory() -> None:
    template = {"spec": {"x": [{}] * 5_000}}

    def large(lab: SourceHarness) -> None:
        one_engine(lab)
        lab.model("large", pools=[{"acceleratorClassName": "cpu", "template": template}])
        metadata = lab.fake.objects[MODEL_DEPLOYMENTS.path("x", "large")]["metadata"]
        metadata["annotations"] = {"fairlead.io/release-names": "true", "other": "y" * 5_000}
        metadata["labels"] = {f"label{number}": "z" for number in range(100)}

    async with followed_source(before=large) as lab:
        await lab.passing(lambda: lab.states() == ["Ready"])
        lab.model("later", pools=[{"acceleratorClassName": "cpu", "template": template}])
        await lab.passing(lambda: "x/later" in lab.fleets[-1].models)
        kept = lab.source._objects_of(MODEL_DEPLOYMENTS)
        assert sorted(kept) == ["x/large", "x/later", "x/tiny"]
        assert len(json.dumps(kept)) < 2_000
        assert kept["x/large"]["metadata"]["annotations"] == {"fairlead.io/release-names": "true"}
        assert lab.source.warnings() == []


def test_pod_keeps_only_the_annotations_that_a_fleet_uses() -> None:
    used = {"fairlead.io/port": "8001", "fairlead.io/sleep": "1-asleep", "leaderworkerset.sigs.k8s.io/size": "2"}
    unused = {"other": "x" * 100_000, "fairlead.io/transfer": "y" * 100_000, "fairlead.io/unknown": "z"}
    pod = {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "p", "annotations": {**used, **unused}}}
    trimmed = trim_pod(pod)
    assert trimmed["metadata"] == {"name": "p", "annotations": used}
    assert trim_pod(trimmed) == trimmed
    assert trim_pod({"kind": "Pod", "metadata": {"name": "p"}})["metadata"] == {"name": "p"}


async def test_model_nested_10000_levels_stops_no_fleet() -> None:
    deep = b'{"a":' * 10_000 + b"1" + b"}" * 10_000
    pools = b'[{"acceleratorClassName": "cpu", "template": {"spec": %s}}]' % deep
    spec = b'{"model": {"uri": "hf://a/b"}, "pools": %s}' % pools
    async with followed_source(before=one_engine) as lab:
        await lab.passing(lambda: lab.states() == ["Ready"])
        metadata = b'{"name": "deep", "namespace": "x", "uid": "u", "resourceVersion": "900"}'
        model = b'{"kind": "ModelDeployment", "metadata": %s, "spec": %s}' % (metadata, spec)
        await wait_until(lambda: lab.fake.watch_count == 3)
        lab.fake._notify(b'{"type": "ADDED", "object": %s}\n' % model)
        await wait_until(lambda: "x/deep" in lab.source._objects_of(MODEL_DEPLOYMENTS))
        lab.model("later")
        await lab.passing(lambda: "x/later" in lab.fleets[-1].models)


async def test_empty_cluster_is_a_fleet() -> None:
    async with followed_source() as lab:
        await lab.passing(lambda: len(lab.fleets) == 1)
        assert (lab.fleets[0].version, lab.fleets[0].models) == (1, {})


async def test_irrelevant_change_is_no_new_fleet() -> None:
    async with followed_source(before=one_engine) as lab:
        await lab.passing(lambda: lab.states() == ["Ready"])
        lab.change("a", spec={"nodeName": "n"})
        lab.fake.put(MODEL_DEPLOYMENTS, "x", "tiny", spec=_spec(lab), status={"ready": "1/1"})
        lab.pod("b")
        await lab.passing(lambda: len(lab.states()) == 2)
        assert [fleet.version for fleet in lab.fleets] == list(range(1, len(lab.fleets) + 1))
        assert lab.fleets[0].membership_epoch == 1


def _spec(lab: SourceHarness) -> Any:
    return lab.fake.objects[MODEL_DEPLOYMENTS.path("x", "tiny")]["spec"]


async def test_only_named_namespaces_are_requested() -> None:
    def before(lab: SourceHarness) -> None:
        for namespace in ("x", "y", "z"):
            lab.model(namespace=namespace)
            lab.pod("a", namespace)

    async with followed_source(before=before, namespaces=("x", "y")) as lab:
        await lab.passing(lambda: len(lab.fleets) == 1)
        assert sorted(lab.fleets[0].instances) == ["x/tiny", "y/tiny"]
        assert {call.path for call in lab.fake.calls if "pods" in call.path} == {
            PODS.path("x"),
            PODS.path("y"),
        }
        assert {call.query["labelSelector"] for call in lab.fake.calls if "pods" in call.path} == {"fairlead.io/model"}


async def test_unreachable_api_server_changes_nothing_and_is_a_warning() -> None:
    async with followed_source(before=one_engine) as lab:
        await lab.passing(lambda: lab.states() == ["Ready"] and lab.fake.watch_count == 3)
        lab.fake.ordered_watch_responses.extend([OrderedResponse(503, "ServiceUnavailable")] * 100)
        lab.fake.ordered_responses.extend([OrderedResponse(503, "ServiceUnavailable")] * 1_000)
        lab.fake.objects.clear()
        lab.fake.end_watches()
        await lab.passing(lambda: bool(lab.source.warnings()))
        lab.time.advance(25.0)
        (note,) = lab.source.warnings()
        assert note.startswith(
            "cannot watch the cluster; the last fleet stays: ModelDeployment had its last event more"
        )
        assert "503" in note or "on purpose" in note
        assert (lab.states(), len(lab.fleets)) == (["Ready"], 1)


async def test_failed_relist_changes_nothing() -> None:
    async with followed_source(before=one_engine) as lab:
        await lab.passing(lambda: lab.states() == ["Ready"] and lab.fake.watch_count == 3)
        lab.fake.ordered_responses.extend([OrderedResponse(403, "Forbidden", "no more")] * 3)
        lab.fake.put(CONFIG_MAPS, "x", "moves the version on")
        lab.fake.forget()
        lab.fake.end_watches()
        await lab.passing(lambda: not lab.fake.ordered_responses and lab.source.warnings() == [])
        assert lab.fake.call_count("GET") == 3 + 3 + 3
        lab.pod("b")
        await lab.passing(lambda: lab.states() == ["Ready", "Ready"])
        assert all(fleet.instances["x/tiny"] for fleet in lab.fleets)


async def test_frozen_watch_is_a_warning_and_reopened() -> None:
    async with followed_source(before=one_engine) as lab:
        await lab.passing(lambda: lab.states() == ["Ready"] and lab.fake.watch_count == 3)
        lab.fake.frozen = True
        lab.pod("b")
        lab.time.advance(KUBE_WATCH_SILENCE_SECONDS)
        await lab.passing(lambda: len(lab.states()) == 2)
        lab.fake.frozen = False


async def test_start_waits_for_read_permission(caplog: pytest.LogCaptureFixture) -> None:
    def before(lab: SourceHarness) -> None:
        one_engine(lab)
        lab.fake.token = "another"

    async with followed_source(before=before) as lab:
        await lab.passing(lambda: len(lab.fake.calls) > 8)
        assert lab.fleets == []
        assert lab.source.age_seconds() is None
        assert "ModelDeployment was never listed" in lab.source.warnings()[0]
        lab.fake.token = None
        await lab.passing(lambda: lab.states() == ["Ready"] and not lab.source.warnings())
        assert lab.source.warnings() == []
    assert len([line for line in caplog.messages if "cannot watch the cluster: pods:" in line]) == 1


async def test_missing_accelerator_classes_are_a_warning() -> None:
    async with followed_source(before=one_engine) as lab:
        served = lab.fake._serve

        async def but_classes(request: Any, asked: Any, body: bytes) -> Any:
            if asked.path.endswith("/acceleratorclasses"):
                lab.fake.ordered_responses.appendleft(OrderedResponse(403, "Forbidden", "not for you"))
                return await lab.fake.handle(request)
            return await served(request, asked, body)

        lab.fake._serve = but_classes  # type: ignore[method-assign]  # a fault by path, which the fake has none of
        await lab.passing(lambda: lab.states() == ["Ready"])
        assert "AcceleratorClass was never listed" in lab.source.warnings()[0]


async def test_external_pods_are_watched_while_a_model_selects_them() -> None:
    def before(lab: SourceHarness) -> None:
        lab.model(engine={"type": "External"}, pools=[{"selector": {"matchLabels": {"app": "vllm"}}}])
        lab.pod("a", **{"fairlead.io/model": "", "app": "vllm"})

    async with followed_source(before=before, endpoint_namespaces={"x"}) as lab:
        await lab.passing(lambda: lab.states() == ["Ready"])
        assert "app=vllm" in {call.query.get("labelSelector") for call in lab.fake.calls}
        await wait_until(lambda: lab.fake.watch_count == 5)
        lab.model(engine={"type": "External"}, pools=[{"endpoints": [{"url": "http://10.0.0.9:80"}]}])
        await lab.passing(lambda: lab.fake.watch_count == 4)
        await lab.passing(lambda: [instance.id for instance in lab.fleets[-1].instances["x/tiny"]] == ["10.0.0.9/80/0"])


async def test_many_selectors_of_a_namespace_cost_one_watch() -> None:
    def before(lab: SourceHarness) -> None:
        for number in range(3):
            pools = [{"selector": {"matchLabels": {"app": f"vllm-{number}"}}}]
            lab.model(f"m{number}", engine={"type": "External"}, pools=pools)
            lab.pod(f"p{number}", **{"fairlead.io/model": "", "app": f"vllm-{number}"})

    async with followed_source(before=before) as lab:
        await lab.passing(lambda: lab.states() == ["Ready"] * 3)
        await wait_until(lambda: lab.fake.watch_count == 4)
        assert [len(group) for group in lab.fleets[-1].instances.values()] == [1, 1, 1]


@pytest.mark.parametrize("allowed", [frozenset({"b"}), frozenset()])
async def test_services_are_watched_only_where_models_may_name_endpoints(allowed: frozenset[str]) -> None:
    def before(lab: SourceHarness) -> None:
        one_engine(lab)
        endpoints = [{"endpoints": [{"url": "http://10.96.0.1:80"}, {"url": "http://vllm.example:80"}]}]
        lab.model("steal", "b", engine={"type": "External"}, pools=endpoints)
        lab.fake.put(SERVICES, "x", "tiny-main", spec={"clusterIPs": ["10.96.0.1"], "ports": []})

    async with followed_source(before=before, endpoint_namespaces=allowed) as lab:
        await lab.passing(lambda: bool(lab.fleets))
        urls = [instance.url for instance in lab.fleets[-1].instances["b/steal"]]
        queries = [call.query for call in lab.fake.calls if call.path == "/api/v1/services"]
        if allowed:
            assert urls == ["http://vllm.example:80"]
            assert {query["labelSelector"] for query in queries} == {"fairlead.io/model"}
            lab.fake.put(SERVICES, "x", "tiny-other", spec={"clusterIPs": ["10.96.0.2"]})
            await lab.passing(lambda: lab.fleets[-1].service_addresses == {"10.96.0.1", "10.96.0.2"})
        else:
            assert (urls, queries) == ([], [])


async def test_unreadable_services_are_a_warning_and_stop_no_fleet() -> None:
    def before(lab: SourceHarness) -> None:
        one_engine(lab)
        lab.fake.refused_paths.add("/api/v1/services")

    async with followed_source(before=before, endpoint_namespaces=frozenset({"b"})) as lab:
        await lab.passing(lambda: lab.states() == ["Ready"])
        assert any("Service was never listed" in warning for warning in lab.source.warnings())


async def test_many_problems_are_truncated() -> None:
    def before(lab: SourceHarness) -> None:
        for number in range(8):
            lab.model(f"m{number}", pools=[])

    async with followed_source(before=before) as lab:
        await lab.passing(lambda: len(lab.fleets) == 1)
        notes = lab.source.warnings()
        assert len(notes) == 6
        assert notes[-1] == "and 3 more problems in the cluster"
        assert InstanceState.READY not in lab.states()


async def test_internal_error_about_one_object_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class once failed only in the compiled gateway, which then got no model any more."""
    value = Profile.to_engine_profile

    def broken(self: Profile, name: str) -> EngineProfile:
        if name == "broken":
            raise AttributeError("no such thing")
        return value(self, name)

    monkeypatch.setattr(Profile, "to_engine_profile", broken)
    async with followed_source(before=lambda lab: lab.model()) as lab:
        await lab.passing(lambda: bool(lab.fleets))
        lab.fake.put(ACCELERATOR_CLASSES, None, "broken", spec={"profile": {"preset": "tiny-cpu"}})
        await lab.passing(lambda: bool(lab.source.warnings()))
        assert (
            "cannot read the objects of the cluster; the last fleet stays: AttributeError" in lab.source.warnings()[0]
        )
        lab.fake.remove(ACCELERATOR_CLASSES, None, "broken")
        lab.model("later")
        await lab.passing(lambda: "x/later" in lab.fleets[-1].models)
        assert lab.source.warnings() == []


async def test_routes_are_followed_where_they_are_wanted() -> None:
    def before(lab: SourceHarness) -> None:
        one_engine(lab)
        lab.source.follows_claimants = True

    async with followed_source(before=before) as lab:
        await lab.passing(lambda: lab.states() == ["Ready"])
        assert (lab.fleets[-1].routes, lab.source.warnings()) == ({}, [])
        lab.fake.put(MODEL_ROUTES, "x", "assistant", spec={"targets": [{"model": "tiny"}]})
        await lab.passing(lambda: set(lab.fleets[-1].routes) == {"x/assistant"})
        lab.fake.remove(MODEL_ROUTES, "x", "assistant")
        await lab.passing(lambda: lab.fleets[-1].routes == {})


async def test_adapters_are_followed_with_routes() -> None:
    def before(lab: SourceHarness) -> None:
        one_engine(lab)
        lab.source.follows_claimants = True

    def names(lab: SourceHarness) -> list[str]:
        return [adapter.name for adapter in lab.fleets[-1].models["x/tiny"].adapters]

    async with followed_source(before=before) as lab:
        await lab.passing(lambda: lab.states() == ["Ready"])
        lab.fake.put(MODEL_ADAPTERS, "x", "sql", spec={"base": "tiny", "source": "hf://acme/sql"})
        lab.model(adapters={"slots": 2})
        await lab.passing(lambda: names(lab) == ["sql"])
        lab.fake.remove(MODEL_ADAPTERS, "x", "sql")
        await lab.passing(lambda: names(lab) == [])


@pytest.mark.parametrize(("kind", "noun"), [(MODEL_ROUTES, "routes"), (MODEL_ADAPTERS, "adapters")])
async def test_fleet_is_served_where_routes_or_adapters_cannot_be_watched(kind: Resource, noun: str) -> None:
    def before(lab: SourceHarness) -> None:
        one_engine(lab)
        lab.source.follows_claimants = True
        lab.fake.refused_paths = {kind.path()}

    async with followed_source(before=before) as lab:
        await lab.passing(lambda: lab.states() == ["Ready"])
        assert lab.source.age_seconds() is not None
        (warning,) = lab.source.warnings()
        assert warning.startswith(f"cannot watch the {noun} of the cluster; the last ones stay: ")
