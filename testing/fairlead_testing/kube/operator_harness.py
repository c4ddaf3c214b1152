"""The operator's control loop on a cluster in memory, with a small rendering.

A test runs the Deployment controller step by step.

A cluster in memory, with the writer of the status of routes and adapters.

Objects of a cluster, and the fleet that they give.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fairlead.api.conditions import Reason
from fairlead.api.v1alpha1 import AcceleratorClass, ModelDeployment
from fairlead.fleet.client_names import ClaimKind
from fairlead.fleet.kubernetes.builder import ClusterObjects, FleetResult, build_fleet
from fairlead.fleet.kubernetes.spec_cache import SpecCache
from fairlead.fleet.model import Fleet
from fairlead.kube.events.event import EventDraft
from fairlead.kube.resources import MODEL_DEPLOYMENTS, PODS, Manifest, metadata_of, name_of, namespace_of
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead.limits import Limits
from fairlead.names import shorten_name
from fairlead.runtime.clock import ManualClock
from fairlead_operator.canary.judge import Judgement
from fairlead_operator.canary.progress import CanaryState
from fairlead_operator.controller.desired_state import Render
from fairlead_operator.controller.reconciler import Reconciler
from fairlead_operator.controller.status_writer import NameStatusWriter
from fairlead_operator.kube.object_cache import OPTIONAL_CHILD_KINDS, STANDARD_CHILD_KINDS, ObjectCache
from fairlead_operator.kube.writer import WriteCounts
from fairlead_operator.render.context import ClusterCapabilities, ExistingWorkload, InstallationDefaults, RenderContext
from fairlead_operator.render.errors import RenderProblem
from fairlead_operator.render.model import RenderedModel
from fairlead_testing.kube.in_memory import InMemoryKube
from fairlead_testing.kube.manifests import manifest, simulated_model

NAMESPACE = "chat"
KEY = f"{NAMESPACE}/qwen"

API = "serving.fairlead.io/v1alpha1"

LIMITS = Limits()
READY = {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
NOT_READY = {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "False"}]}
GONE = {"deletionTimestamp": "2026-11-20T18:00:00Z"}
LABELS = {
    "fairlead.io/model": "tiny",
    "fairlead.io/pool": "main",
    "fairlead.io/role": "Serve",
    "fairlead.io/engine": "vllm",
    "fairlead.io/endpoint": "true",
}
LWS = "leaderworkerset.sigs.k8s.io/"


def render_simply(
    model: ModelDeployment, accelerators: Mapping[str, AcceleratorClass], context: RenderContext
) -> RenderedModel:
    """Renders each pool as a Service and a Deployment, except those with accelerator `unknown`."""
    manifests: list[Manifest] = []
    problems = []
    for pool in model.spec.pools:
        if pool.is_external:
            continue
        if pool.accelerator_class_name == "unknown":
            field_path = f"pool {pool.name}"
            problems.append(
                RenderProblem(Reason.UNKNOWN_ACCELERATOR, field_path, "no accelerator is called unknown", "", pool.name)
            )
            continue
        existing = context.workloads.get(pool.name) or ExistingWorkload("")
        name = existing.name or shorten_name(f"{model.metadata.name}-{pool.name}", taken=context.foreign_names)
        labels = {"fairlead.io/pool": pool.name, "fairlead.io/role": str(pool.role)}
        metadata = {"name": name, "labels": labels}
        container = {"name": "engine", "image": model.spec.engine.image or "sim:1", "args": [*model.spec.engine.args]}
        spec = {
            "replicas": model.spec.desired_instances(pool),
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        }
        manifests += [
            {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"selector": labels}},
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec},
        ]
    return RenderedModel(tuple(manifests), tuple(problems))


def model_manifest(name: str = "qwen", namespace: str = NAMESPACE, **spec: Any) -> Manifest:
    pools = [{"name": "main", "acceleratorClassName": "cpu", "minReplicas": 2}]
    return simulated_model(name, namespace, **{"pools": pools, **spec})


def with_replicas(name: str, replicas: int) -> Manifest:
    metadata = {"name": name, "namespace": NAMESPACE}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": {"replicas": replicas}}


@dataclass
class OperatorHarness:
    """A reconciler on `kube`, which holds the true state.

    keys: models with unprocessed events.
    drops_events: the watches deliver nothing.
    stale: why the cache counts as out of date.
    canary_judgement: on every canary.
    """

    kube: InMemoryKube = field(default_factory=InMemoryKube)
    clock: ManualClock = field(default_factory=ManualClock)
    events: list[EventDraft] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    render: Render = render_simply
    installation: InstallationDefaults = field(default_factory=lambda: InstallationDefaults({}))
    drops_events: bool = False
    stale: str = ""
    canary_judgement: Judgement | None = None
    capacity_grace_seconds: float = 0.0
    served_kinds: frozenset[tuple[str, str]] = frozenset()
    cache: ObjectCache = field(init=False)
    reconciler: Reconciler = field(init=False)

    def __post_init__(self) -> None:
        self.kube.listeners.append(self._on_change)
        self.restart()

    def restart(self) -> None:
        """Starts a new process, which knows only the cluster."""
        self.cache = ObjectCache(on_affected=lambda key: self.keys.append(key))
        child_kinds = [resource.kind for resource in (*STANDARD_CHILD_KINDS, *OPTIONAL_CHILD_KINDS)]
        for kind in (*child_kinds, "Pod", "AcceleratorClass"):
            for child in self.kube.objects_of(kind):
                self.cache.apply(WatchEvent(WatchEventType.ADDED, child))
        self.keys = self.cache.replace_models(self.kube.objects_of(MODEL_DEPLOYMENTS.kind))
        self.reconciler = Reconciler(
            self.kube,
            self.cache,
            self.clock,
            self,
            self.installation,
            capacity_grace_seconds=self.capacity_grace_seconds,
            render=lambda *arguments: self.render(*arguments),
        )

    @property
    def is_leading(self) -> bool:
        return True

    @property
    def capabilities(self) -> ClusterCapabilities:
        return ClusterCapabilities(self.served_kinds)

    def stale_cache_reason(self) -> str:
        return self.stale

    def record_event(self, model: Manifest, event: EventDraft) -> None:
        self.events.append(event)

    def ignore_self_event(self, key: str) -> None:
        """Ignores the call."""

    def judgement(self, key: str, state: CanaryState | None) -> Judgement | None:
        return self.canary_judgement

    def _on_change(self, change: WatchEvent) -> None:
        if not self.drops_events:
            self.keys += self.cache.apply(change)

    def reconcile(self, key: str = KEY) -> float | None:
        return asyncio.run(self.reconciler.reconcile(key))

    def run_until_idle(self, *, with_controllers: bool = True, max_rounds: int = 40) -> None:
        """Processes all events, and runs the other controllers, until nothing happens any more."""
        self.keys += list(self.cache.models)
        for _ in range(max_rounds):
            if not self.keys:
                return
            keys, self.keys = list(dict.fromkeys(self.keys)), []
            self.keys += [key for key in keys if self.reconcile(key) == 0.0]
            if with_controllers:
                self.run_controllers()
        raise AssertionError(f"still busy: {self.kube.writes[-10:]}")

    def run_controllers(self) -> None:
        for deployment in self.kube.objects_of("Deployment"):
            self.run_deployment(deployment, ready=deployment["spec"].get("replicas", 1))

    def run_deployment(self, deployment: Manifest, *, ready: int, **status: Any) -> None:
        """Writes the status of a Deployment with `ready` ready instances."""
        replicas = deployment["spec"].get("replicas", 1)
        counts = {"replicas": replicas, "readyReplicas": ready, "updatedReplicas": replicas}
        status = {**counts, "observedGeneration": metadata_of(deployment)["generation"], **status}
        metadata = {"name": name_of(deployment), "namespace": namespace_of(deployment)}
        self.kube.put(
            {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "status": status},
            "kube-controller-manager/status",
        )

    def status(self, name: str = "qwen", namespace: str = NAMESPACE) -> dict[str, Any]:
        """Returns the status of a model."""
        (model,) = (
            model
            for model in self.kube.objects_of(MODEL_DEPLOYMENTS.kind)
            if (name_of(model), namespace_of(model)) == (name, namespace)
        )
        return dict(model.get("status") or {})

    def conditions(self, **names: str) -> dict[str, tuple[str, str]]:
        conditions = self.status(**names).get("conditions", [])
        return {condition["type"]: (condition["status"], condition["reason"]) for condition in conditions}

    def message(self, type: str) -> str:
        return str(next(condition["message"] for condition in self.status()["conditions"] if condition["type"] == type))

    def names(self, kind: str = "Deployment") -> list[str]:
        return [name_of(manifest) for manifest in self.kube.objects_of(kind)]

    def workload(self, kind: str = "Deployment") -> Manifest:
        (manifest,) = self.kube.objects_of(kind)
        return manifest

    def edit(self, name: str = "qwen", **spec: Any) -> None:
        self.kube.put(model_manifest(name, **spec), "kubectl")


class NameStatusCluster:
    """A cluster whose objects of one kind get their status, step by step.

    kind, claim_kind: of these objects.
    queued: the keys that the last change has queued.
    """

    def __init__(self, kind: str, claim_kind: ClaimKind) -> None:
        self.kube = InMemoryKube()
        self.cache = ObjectCache()
        self.queued: set[str] = set()
        self.kube.listeners.append(self._on_change)
        self.counts = WriteCounts()
        self._kind = kind
        self._claim_kind = claim_kind
        self._writer = NameStatusWriter(self.kube, self.cache, ManualClock(wall=1_800_000_000.0), self.counts)

    def put(self, kind: str, name: str, namespace: str = "chat", **parts: Any) -> None:
        """Creates or replaces an object."""
        self.queued = set()
        metadata = {"name": name, "namespace": namespace, **parts.pop("metadata", {})}
        self.kube.put({"apiVersion": API, "kind": kind, "metadata": metadata, **parts})

    def reconcile(self, name: str) -> float | None:
        """Writes the status of one object, and returns the seconds until the next pass."""
        return asyncio.run(self._writer.reconcile(f"{self._claim_kind}:chat/{name}"))

    def status(self, name: str) -> dict[str, Any]:
        """Returns the status of one object, after writing it."""
        self.reconcile(name)
        (found,) = [one for one in self.kube.objects_of(self._kind) if one["metadata"]["name"] == name]
        status: dict[str, Any] = found["status"]
        return status

    def conditions(self, name: str) -> dict[str, tuple[str, str, str]]:
        listed = self.status(name)["conditions"]
        return {one["type"]: (one["status"], one["reason"], one["message"]) for one in listed}

    def _on_change(self, event: WatchEvent) -> None:
        self.queued |= set(self.cache.apply(event))


def model(name: str = "tiny", namespace: str = "x", created: str = "2026-01-01T00:00:00Z", **spec: Any) -> Manifest:
    """Returns a ModelDeployment with one pool. `spec` replaces fields."""
    whole = {"model": {"uri": "hf://a/b"}, "pools": [{"acceleratorClassName": "cpu"}], **spec}
    metadata = {"uid": f"m-{namespace}-{name}", "creationTimestamp": created}
    return manifest(MODEL_DEPLOYMENTS, name, namespace, metadata, spec=whole)


def external(*pools: Mapping[str, Any], **more: Any) -> Manifest:
    return model(engine={"type": "External"}, pools=list(pools), **more)


def pod(
    name: str = "p",
    labels: Mapping[str, str] | None = None,
    notes: Mapping[str, Any] | None = None,
    status: Mapping[str, Any] = READY,
    namespace: str = "x",
    **metadata: Any,
) -> Manifest:
    """Returns a pod of the model `tiny`. `metadata` replaces fields."""
    marks = {"fairlead.io/port": "8000", **{key: str(value) for key, value in (notes or {}).items()}}
    own = {"labels": {**LABELS, **(labels or {})}, "uid": f"u-{name}", "annotations": marks, **metadata}
    return manifest(PODS, name, namespace, own, status=status)


def keyed(*items: Manifest) -> dict[str, Manifest]:
    return {f"{one['metadata']['namespace']}/{one['metadata']['name']}": one for one in items}


def build(
    models: list[Manifest],
    *pods: Manifest,
    previous: Fleet | None = None,
    classes: list[Manifest] | None = None,
    limits: Limits = LIMITS,
    **objects: Any,
) -> FleetResult:
    """Returns the fleet of these manifests. `objects` are further fields of `ClusterObjects`."""
    specs = SpecCache()
    accelerators, broken = specs.accelerators(classes or [])
    known = ClusterObjects(
        specs.models(keyed(*models)),
        accelerators,
        keyed(*pods),
        **{"endpoint_namespaces": {"x", "a", "b"}, **objects},
    )
    found = build_fleet(known, previous, limits)
    return replace(found, problems=(*broken, *found.problems))


def named(name: str, *served: str, namespace: str = "x", born: str = "1") -> Manifest:
    return model(name=name, namespace=namespace, created=born, model={"uri": "hf://a/b", "servedNames": list(served)})
