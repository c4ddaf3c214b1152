"""Rounds of the restarter on a cluster in memory: what it writes, and what it does not repeat."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from fairlead.errors import FairleadError
from fairlead.fleet.hung_engines import EjectionReport
from fairlead.kube.conditions import find_condition
from fairlead.kube.errors import Unreachable
from fairlead.kube.events.event import EventDraft
from fairlead.kube.resources import Manifest, name_of, uid_of
from fairlead.runtime.clock import ManualClock, Pacing
from fairlead_operator.hung_engines.engine_restarter import EngineRestarter, RestartOptions
from fairlead_operator.hung_engines.gateway_reports import GatewayReport, InstanceReport
from fairlead_operator.kube.object_cache import ObjectCache
from fairlead_testing.kube.in_memory import InMemoryKube
from fairlead_testing.kube.operator_harness import NAMESPACE, model_manifest

EJECTED = EjectionReport(90.0, "3 timeouts", 0, 1)


@dataclass
class Scene:
    """A model with two pods, and gateways that report what `ejected` says.

    drops_events: the watch delivers nothing.
    """

    kube: InMemoryKube = field(default_factory=InMemoryKube)
    cache: ObjectCache = field(default_factory=ObjectCache)
    clock: ManualClock = field(default_factory=ManualClock)
    events: list[EventDraft] = field(default_factory=list)
    ejected: dict[str, tuple[str, ...]] = field(default_factory=dict)
    is_leading: bool = True
    stale: str = ""
    drops_events: bool = False

    def __post_init__(self) -> None:
        self.kube.listeners.append(self._on_change)
        self.cache.replace_models([self.kube.put(model_manifest())])
        self.pods = {name: self.add_pod(name) for name in ("one", "two")}
        self.restarter = EngineRestarter(
            self.kube,
            self.cache,
            self,
            self,
            Pacing(self.clock, lambda: 0.5),
            RestartOptions(60.0, 60.0),
        )

    def _on_change(self, change: Any) -> None:
        if not self.drops_events:
            self.cache.apply(change)

    def add_pod(self, name: str, **more: str) -> Manifest:
        labels = {
            "app.kubernetes.io/managed-by": "fairlead",
            "fairlead.io/model": "qwen",
            "fairlead.io/pool": "main",
            "fairlead.io/endpoint": "true",
            **more,
        }
        metadata = {"name": name, "namespace": NAMESPACE, "labels": labels}
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        return self.kube.put({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}, "kubelet")

    async def read(self) -> list[GatewayReport]:
        return [
            GatewayReport(
                gateway,
                tuple(
                    InstanceReport(f"{uid_of(pod)}/8000/0", EJECTED if name in names else None, 1.0)
                    for name, pod in self.pods.items()
                ),
            )
            for gateway, names in self.ejected.items()
        ]

    def stale_cache_reason(self) -> str:
        return self.stale

    def record_event(self, model: Manifest, event: EventDraft) -> None:
        assert name_of(model) in ("qwen", "second")
        self.events.append(event)

    def round(self, seconds: float = 0.0) -> list[str]:
        """Advances the clock, runs a round and returns its writes."""
        self.clock.advance(seconds)
        before = len(self.kube.writes)
        asyncio.run(self.restarter.run_once())
        return self.kube.writes[before:]

    def condition(self, name: str) -> dict[str, Any]:
        (pod,) = (manifest for manifest in self.kube.objects_of("Pod") if name_of(manifest) == name)
        return dict(find_condition(pod["status"], "fairlead.io/Serving") or {})


def test_pod_that_hangs_is_marked_then_deleted_once() -> None:
    scene = Scene(ejected={"a": ("one",), "b": ("one",)})
    assert scene.round() == ["status Pod one"]
    assert (scene.condition("one")["status"], scene.condition("one")["reason"]) == ("False", "EngineHung")
    assert "reported by a, b" in scene.condition("one")["message"]
    assert scene.round(30.0) == []
    assert scene.round(30.0) == ["delete Pod one"]
    assert scene.round(30.0) == []
    assert [event.reason for event in scene.events] == ["EngineHung", "EngineRestarted"]
    assert scene.restarter.counts.restarts == 1


def test_deleted_pod_that_the_watch_still_reports_is_not_deleted_again() -> None:
    scene = Scene(ejected={"a": ("one", "two"), "b": ("one", "two")})
    scene.round()
    scene.drops_events = True
    assert scene.round(60.0) == ["delete Pod one"]
    assert scene.round(15.0) == []
    assert scene.round(15.0) == []


def test_second_pod_is_not_deleted_before_the_first_one_is_replaced() -> None:
    scene = Scene(ejected={"a": ("one", "two"), "b": ("one", "two")})
    labels = {"app.kubernetes.io/managed-by": "fairlead", "fairlead.io/model": "qwen", "fairlead.io/pool": "main"}
    metadata = {"name": "qwen-main", "namespace": NAMESPACE, "labels": labels}
    scene.kube.put({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {"replicas": 2}})
    scene.round()
    assert scene.round(60.0) == ["delete Pod one"]
    assert scene.round(15.0) == scene.round(600.0) == []  # its workload's controller is slow
    scene.add_pod("three")
    assert scene.round(15.0) == ["delete Pod two"]


def test_engine_that_answers_again_loses_the_mark() -> None:
    scene = Scene(ejected={"a": ("one",), "b": ("one",)})
    scene.round()
    scene.ejected = {"a": (), "b": ()}
    assert scene.round(60.0) == ["status Pod one"]
    assert (scene.condition("one")["status"], scene.condition("one")["reason"]) == ("True", "EngineAnswers")
    assert scene.round(60.0) == []
    assert scene.events[-1].type == "Normal"


def test_one_gateway_of_two_without_probes_changes_nothing() -> None:
    scene = Scene(ejected={"a": ("one",)})
    assert scene.round() == scene.round(600.0) == []
    scene.ejected = {"a": ("one",), "b": ()}
    assert scene.round(600.0) == []
    assert scene.events == []


@pytest.mark.parametrize("change", [{"is_leading": False}, {"stale": "the watch of pods is silent"}])
def test_nothing_is_written_without_the_lease_or_a_fresh_cache(change: dict[str, Any]) -> None:
    scene = Scene(ejected={"a": ("one",), "b": ("one",)})
    scene.round()
    for name, value in change.items():
        setattr(scene, name, value)
    scene.ejected = {"a": ("one", "two"), "b": ("one", "two")}
    assert scene.round(600.0) == []


def test_round_that_fails_is_repeated_and_deletes_then() -> None:
    scene = Scene(ejected={"a": ("one",), "b": ("one",)})
    scene.round()

    def fail(write: str) -> None:
        raise Unreachable(f"{write}: the API server is away")

    scene.kube.before_write = fail
    with pytest.raises(FairleadError):
        scene.round(60.0)
    scene.kube.before_write = lambda _: None
    assert scene.round(15.0) == ["delete Pod one"]


def test_leader_of_a_group_is_deleted_with_its_workers() -> None:
    scene = Scene()
    group = {"leaderworkerset.sigs.k8s.io/name": "big", "leaderworkerset.sigs.k8s.io/group-index": "0"}
    scene.pods["big-0"] = scene.add_pod("big-0", **{"fairlead.io/pool": "big", **group})
    scene.ejected = {"a": ("big-0",), "b": ("big-0",)}
    assert scene.round() == ["status Pod big-0"]
    assert scene.round(60.0) == ["delete Pod big-0 in the foreground"]


def test_write_that_fails_for_one_model_holds_up_no_other_model() -> None:
    scene = Scene(ejected={"a": ("one", "other"), "b": ("one", "other")})
    scene.cache.replace_models([model_manifest(), scene.kube.put(model_manifest(name="second"))])
    scene.pods["other"] = scene.add_pod("other", **{"fairlead.io/model": "second"})

    def fail(write: str) -> None:
        if write.endswith(" one"):
            raise Unreachable(f"{write}: the request is too large")

    scene.kube.before_write = fail
    with pytest.raises(Unreachable, match="too large"):
        scene.round()
    assert scene.condition("other")["reason"] == "EngineHung"
    assert scene.condition("one") == {}


def test_thousands_of_hung_pods_of_a_namespace_hold_up_no_other_one_in_a_round() -> None:
    scene = Scene()
    many = {f"p{number}": scene.add_pod(f"p{number}") for number in range(150)}
    scene.pods |= many
    scene.ejected = {"a": tuple(many), "b": tuple(many)}
    assert [len(scene.round(15.0)) for _ in range(4)] == [64, 64, 22, 0]
