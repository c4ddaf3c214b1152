"""A laboratory for the loop: a cluster in memory, a small rendering, and a Deployment controller that a test turns by hand."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from fairlead.api import Reason
from fairlead.kube.events.event import EventDraft
from fairlead.kube.resources import Manifest
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead.names import shorten_name
from fairlead.runtime.clock import ManualClock
from fairlead_operator.controller.reconciler import Reconciler
from fairlead_operator.kube.object_cache import OPTIONAL_CHILD_KINDS, STANDARD_CHILD_KINDS, ObjectCache
from fairlead_operator.render.context import ClusterCapabilities
from fairlead_testing.kube.in_memory import InMemoryKube


@dataclass(frozen=True)
class FakeProblem:
    reason: Reason
    message_with_fix: str


@dataclass(frozen=True)
class FakeRendering:
    manifests: tuple[Manifest, ...]
    problems: tuple[FakeProblem, ...] = ()


def fake_render(model: Any, accelerators: Any, world: Any) -> FakeRendering:
    """A Service and a Deployment for each pool; no pool of an accelerator called `unknown`."""
    manifests, problems = [], []
    there = {one["metadata"]["labels"]["fairlead.io/pool"]: one["metadata"]["name"] for one in world.workloads}
    for pool in model.spec.pools:
        if pool.is_external:
            continue
        if pool.accelerator == "unknown":
            problems.append(
                FakeProblem(Reason.UNKNOWN_ACCELERATOR, f"pool {pool.name}: no accelerator is called unknown")
            )
            continue
        name = there.get(pool.name) or shorten_name(f"{model.metadata.name}-{pool.name}", taken=world.foreign)
        labels = {"fairlead.io/pool": pool.name, "fairlead.io/role": str(pool.role)}
        metadata = {"name": name, "labels": labels}
        containers = [
            {"name": "engine", "image": model.spec.engine.image or "sim:1", "args": list(model.spec.engine.args)}
        ]
        manifests += [
            {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": labels}},
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": metadata,
                "spec": {
                    "replicas": model.spec.instances(pool),
                    "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
                },
            },
        ]
    return FakeRendering(tuple(manifests), tuple(problems))


def model(name: str = "qwen", namespace: str = "chat", **spec: Any) -> Manifest:
    return {
        "apiVersion": "serving.fairlead.io/v1alpha1",
        "kind": "ModelDeployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"source": "hf://Qwen/Qwen3-8B"},
            "engine": {"kind": "sim"},
            "pools": [{"name": "main", "accelerator": "cpu", "replicas": {"min": 2}}],
            **spec,
        },
    }


@dataclass
class OperatorHarness:
    """``kube`` is the truth. ``fresh`` starts a new process with what it lists; news reaches it at once unless ``deaf``."""

    kube: InMemoryKube = field(default_factory=InMemoryKube)
    clock: ManualClock = field(default_factory=ManualClock)
    told: list[EventDraft] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    render: Callable[..., Any] = fake_render
    deaf: bool = False
    stale: str = ""
    grace: float = 0.0
    served: frozenset[tuple[str, str]] = frozenset()
    shelf: ObjectCache = field(init=False)
    reconciler: Reconciler = field(init=False)

    def __post_init__(self) -> None:
        self.kube.listeners.append(self._on_change)
        self.restart()

    def restart(self) -> None:
        """A new process: nothing is remembered but what the cluster holds."""
        self.shelf = ObjectCache()
        for kind in (*(one.kind for one in (*STANDARD_CHILD_KINDS, *OPTIONAL_CHILD_KINDS)), "Pod", "AcceleratorClass"):
            for one in self.kube.objects_of(kind):
                self.shelf.apply(WatchEvent(WatchEventType.ADDED, one))
        self.keys = self.shelf.replace_models(self.kube.objects_of("ModelDeployment"))
        self.reconciler = Reconciler(
            self.kube,
            self.shelf,
            lambda *given: self.render(*given),
            self.clock,
            cluster=lambda: ClusterCapabilities(self.served),
            staleness=lambda: self.stale,
            record_event=lambda _, happening: self.told.append(happening),
            capacity_grace_seconds=self.grace,
        )

    def _on_change(self, change: WatchEvent) -> None:
        if not self.deaf:
            self.keys += self.shelf.apply(change)

    def reconcile(self, key: str = "chat/qwen") -> float | None:
        """Reconcile once."""
        return asyncio.run(self.reconciler.reconcile(key))

    def run_until_idle(self, *, controller: bool = True, most: int = 40) -> None:
        """Work off all news, and let the Deployment controller do its part, until nothing happens any more."""
        self.keys += list(self.shelf.models)
        for _ in range(most):
            if not self.keys:
                return
            keys, self.keys = list(dict.fromkeys(self.keys)), []
            for key in keys:
                again = self.reconcile(key)
                if again == 0.0:
                    self.keys.append(key)
            if controller:
                self.run_controllers()
        raise AssertionError(f"it does not come to rest: {self.kube.writes[-10:]}")

    def run_controllers(self) -> None:
        """Every Deployment has the instances it asks for, ready, of its present template."""
        for one in self.kube.objects_of("Deployment"):
            self.run_deployment(one, ready=one["spec"].get("replicas", 1))

    def run_deployment(self, one: Manifest, *, ready: int, **more: Any) -> None:
        asked = one["spec"].get("replicas", 1)
        status = {
            "replicas": asked,
            "readyReplicas": ready,
            "updatedReplicas": asked,
            "observedGeneration": one["metadata"]["generation"],
            **more,
        }
        names = {"name": one["metadata"]["name"], "namespace": one["metadata"]["namespace"]}
        self.kube.put(
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": names, "status": status},
            "kube-controller-manager/status",
        )

    def status(self, name: str = "qwen", namespace: str = "chat") -> dict[str, Any]:
        (one,) = (
            one
            for one in self.kube.objects_of("ModelDeployment")
            if (one["metadata"]["name"], one["metadata"]["namespace"]) == (name, namespace)
        )
        return dict(one.get("status") or {})

    def conditions(self, **which: str) -> dict[str, tuple[str, str]]:
        return {one["type"]: (one["status"], one["reason"]) for one in self.status(**which).get("conditions", [])}

    def message(self, type: str) -> str:
        return next(one["message"] for one in self.status()["conditions"] if one["type"] == type)

    def names(self, kind: str = "Deployment") -> list[str]:
        return [one["metadata"]["name"] for one in self.kube.objects_of(kind)]

    def edit(self, name: str = "qwen", **spec: Any) -> None:
        """`kubectl apply` of a changed model."""
        self.kube.put(model(name, **spec), "kubectl")


@pytest.fixture
def lab() -> OperatorHarness:
    return OperatorHarness()


@pytest.fixture
def a_model() -> Callable[..., Manifest]:
    return model


@pytest.fixture
def labs() -> type[OperatorHarness]:
    return OperatorHarness
