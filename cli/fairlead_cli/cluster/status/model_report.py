"""The report of one model: model → pools → pods → engine signals. Pure: facts in, report out.

Engine figures are the same at every gateway, so the freshest copy counts; the gateways' own counts
add up.

The operator reads no events. A pod in `ContainerCreating` says nothing of its own. The same
is true of a LeaderWorkerSet whose pods are refused: only its StatefulSets have events.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fairlead.api.conditions import ConditionType
from fairlead.fleet.labels import ENDPOINT_LABEL, POOL_LABEL, SleepPhase, parse_sleep_mark
from fairlead.kube.conditions import parse_time
from fairlead.kube.resources import (
    Manifest,
    annotations_of,
    is_deleting,
    is_ready,
    key_of,
    metadata_of,
    name_of,
    namespace_of,
    uid_of,
)
from fairlead_cli.cluster.object_fields import (
    Condition,
    MissingValue,
    condition_of,
    conditions_of,
    is_on_lost_node,
    label_of,
    restart_count,
    shorten,
    spec_of,
    status_of,
    waiting_reason,
)
from fairlead_cli.cluster.pod_http import MetricsPage, PodReport
from fairlead_operator.status.diagnosis import advice_for, rejection_reason

_REFUSED: Final = "FailedCreate"
_PODS_OF_GROUPS: Final = (_REFUSED, "SuccessfulCreate")
_CREATING: Final = ("ContainerCreating", "PodInitializing")
_KINDS: Final = {
    "FailedAttachVolume": "look at the volume with kubectl describe pvc, and at its storage",
    "FailedMount": "look at the volume with kubectl describe pvc, and at its storage",
    "FailedMapVolume": "look at the volume with kubectl describe pvc, and at its storage",
    "FailedCreatePodSandBox": "look at the network plugin and the container runtime of the node",
}
"""Reasons of events that stop a start, each with advice for unknown messages."""
_SHARED: Final = (
    "only one node at a time has a ReadWriteOnce volume: give the claim ReadWriteMany or ReadOnlyMany, "
    "or give each pod a volume of its own with model.cache.size"
)
_REMEDIES: Final = (
    (re.compile("Multi-Attach error|exclusively attached"), _SHARED),
    (re.compile(r'secret "([^"]+)" not found'), "create the Secret {} in {namespace}"),
    (re.compile(r'configmap "([^"]+)" not found'), "create the ConfigMap {} in {namespace}"),
    (re.compile(r"non-existent secret key: (\S+)"), "add the entry {} to the Secret of the volume"),
    (re.compile(r"non-existent config key: (\S+)"), "add the entry {} to the ConfigMap of the volume"),
    (re.compile(r"driver name (\S+) not found"), "install the CSI driver {} on the node"),
    (re.compile(r'(?:no runtime for|RuntimeHandler) "([^"]+)"'), "install the container runtime {} on the node"),
)
"""Part of an event's message to what helps; ``{}`` is its group."""

_STARTUP_PROBE: Final = "Startup probe failed"
MAX_EVENTS = 5


@dataclass(frozen=True, slots=True)
class StartObstacle:
    """The last warning about a pod whose containers do not start. ``remedy``: what helps."""

    message: str
    remedy: str


def group_names(model: Manifest) -> frozenset[str]:
    """Returns the beginnings of the names of the StatefulSets that run pools on several nodes."""
    pools = spec_of(model).get("pools") or []
    several = [pool for pool in pools if int((pool.get("parallelism") or {}).get("nodes") or 1) > 1]
    return frozenset(f"{name_of(model)}-{pool.get('name') or 'main'}" for pool in several)


def is_about_group(event: Manifest, names: Collection[str]) -> bool:
    """Whether an event is about a StatefulSet of a group with one of these names."""
    regarding = event.get("regarding") or {}
    name = f"{regarding.get('name')}-"
    return regarding.get("kind") == "StatefulSet" and any(name.startswith(f"{one}-") for one in names)


def find_rejection(model: Manifest, events: Sequence[Manifest]) -> StartObstacle | None:
    """Returns why the pods of a model's groups are refused, by its last event.

    events: the newest last.
    """
    names = group_names(model)
    about = [event for event in events if event.get("reason") in _PODS_OF_GROUPS and is_about_group(event, names)]
    if not about or about[-1]["reason"] != _REFUSED:
        return None
    note = shorten(" ".join(str(about[-1].get("note") or "").split()))
    reason = rejection_reason(note)
    return StartObstacle(note, advice_for(reason).rstrip(".") if reason else "read what the API server says")


def find_obstacle(pod: Manifest, events: Sequence[Manifest]) -> StartObstacle | None:
    """Returns what keeps a pod's containers from starting; None for a pod that may go on by itself.

    events: the newest last.
    """
    if is_deleting(pod) or not _is_creating(pod):
        return None
    about = [event for event in events if (event.get("regarding") or {}).get("uid") == uid_of(pod)]
    last = next((event for event in reversed(about) if event.get("reason") in _KINDS), None)
    if last is None:
        return None
    note = " ".join(str(last.get("note") or "").split())
    for pattern, remedy in _REMEDIES:
        if found := pattern.search(note):
            text = remedy.format(*found.groups(), namespace=namespace_of(pod))
            return StartObstacle(f"{last['reason']}: {shorten(note)}", text)
    return StartObstacle(f"{last['reason']}: {shorten(note)}", _KINDS[str(last["reason"])])


def _is_creating(pod: Manifest) -> bool:
    """Whether a pod has a node, and none of its containers was started or fetched yet."""
    ready_to_start = condition_of(pod, "PodReadyToStartContainers")
    if ready_to_start is not None and ready_to_start.get("status") == "True":
        return False
    states: list[dict[str, Any]] = [
        container.get("state") or {}
        for kind in ("initContainerStatuses", "containerStatuses")
        for container in status_of(pod).get(kind) or []
    ]
    return bool(states) and all((state.get("waiting") or {}).get("reason") in _CREATING for state in states)


_ENGINE, _GATEWAY = "fairlead_gateway_engine_", "fairlead_gateway_instance_"


@dataclass(frozen=True, slots=True)
class EngineSignals:
    """Signals of one instance; None is unknown.

    in_flight: sum over the gateways.

    age_seconds: of the engine's own figures.
    """

    id: str
    pool: str | None = None
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    hit_share: float | None = None
    preemptions: float | None = None
    sleeping: bool = False
    age_seconds: float | None = None
    in_flight: float | None = None


def signals_by_instance(pages: Sequence[MetricsPage], model: str) -> dict[str, EngineSignals]:
    """Returns signals by instance id; ``model`` is ``namespace/name``."""
    signals: dict[str, EngineSignals] = {}
    for page in pages:
        for sample in page.matching(f"{_ENGINE}signals_age_seconds", model=model):
            instance = sample.labels.get("instance", "")
            known = signals.get(instance)
            if known is None or known.age_seconds is None or sample.value < known.age_seconds:
                signals[instance] = _read(page, model, instance, sample.labels.get("pool"), sample.value)
        for sample in page.matching(f"{_GATEWAY}in_flight", model=model):
            signals.setdefault(sample.labels.get("instance", ""), EngineSignals(sample.labels.get("instance", "")))
    return {
        instance: _with_in_flight(instance_signals, pages, model)
        for instance, instance_signals in sorted(signals.items())
    }


def ready_instances(page: MetricsPage, model: str) -> float | None:
    """Returns how many instances a gateway routes to; None when it does not know the model."""
    return page.value("fairlead_gateway_instances", model=model, state="Ready")


def _read(page: MetricsPage, model: str, name: str, pool: str | None, age: float) -> EngineSignals:
    def read(what: str) -> float | None:
        return page.value(f"{_ENGINE}{what}", model=model, instance=name)

    queries, hits = read("prefix_queries_total"), read("prefix_hits_total")
    return EngineSignals(
        id=name,
        pool=pool,
        running=read("running"),
        waiting=read("waiting"),
        kv_usage=read("kv_usage"),
        hit_share=hits / queries if queries and hits is not None else None,
        preemptions=read("preemptions_total"),
        sleeping=read("sleeping") == 1.0,
        age_seconds=age,
    )


def _with_in_flight(signals: EngineSignals, pages: Sequence[MetricsPage], model: str) -> EngineSignals:
    counts = [page.value(f"{_GATEWAY}in_flight", model=model, instance=signals.id) for page in pages]
    known = [count for count in counts if count is not None]
    return replace(signals, in_flight=sum(known) if known else None)


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Facts about a model. ``gateways``: report of each gateway's pod, or why none was queried.
    ``now``: Unix time.
    """

    model: Manifest
    pods: Sequence[Manifest] | MissingValue
    events: Sequence[Manifest] | MissingValue
    gateways: Sequence[PodReport] | MissingValue
    now: float


@dataclass(frozen=True, slots=True)
class InstanceReport:
    """A pod, or an adopted engine. ``why``: the reason why it is not ready. ``signals``: one for
    each rank. ``is_unscheduled``: the pod has no node yet. ``remedy``: what lets its containers
    start; empty when nothing keeps them from it.
    """

    name: str
    state: str
    why: str = ""
    node: str = ""
    restarts: int = 0
    since: float | None = None
    signals: tuple[EngineSignals, ...] = ()
    is_unscheduled: bool = False
    remedy: str = ""

    @property
    def is_ready(self) -> bool:
        return self.state == "Ready"


@dataclass(frozen=True, slots=True)
class PoolReport:
    """A pool of the spec, or one that is being removed. Numbers come from the operator; None is
    unknown.
    """

    name: str
    role: str
    accelerator: str
    desired: int | None
    ready: int | None
    updated: int | None
    instances: tuple[InstanceReport, ...]


@dataclass(frozen=True, slots=True)
class EventReport:
    """One Kubernetes event about the model or one of its pods."""

    at: float | None
    warning: bool
    about: str
    reason: str
    note: str
    count: int


@dataclass(frozen=True, slots=True)
class ModelReport:
    """The report of one model for ``status``. ``signals_problem``: why engine signals are missing;
    empty when they are not. ``rejection``: why pods of groups are refused.
    """

    key: str
    client_name: str | None
    engine: str
    source: str
    ready: str | None
    since: float | None
    conditions: tuple[Condition, ...]
    pools: tuple[PoolReport, ...]
    events: tuple[EventReport, ...]
    gateways_reached: int
    signals_problem: str
    routed_instances: float | None
    pods_problem: str
    facts: ModelFacts
    rejection: StartObstacle | None = None

    def condition(self, type: ConditionType) -> Condition | None:
        """Returns the condition of a type with any status, or None."""
        return next((condition for condition in self.conditions if condition.get("type") == type), None)

    def instances(self) -> Iterator[InstanceReport]:
        for pool in self.pools:
            yield from pool.instances


def build_report(facts: ModelFacts) -> ModelReport:
    """Returns the report; an unknown value stays None or has its reason."""
    model = facts.model
    reports = () if isinstance(facts.gateways, MissingValue) else facts.gateways
    pages = [report.metrics for report in reports if not isinstance(report.metrics, MissingValue)]
    signals_ = signals_by_instance(pages, key_of(model))
    routed = [count for page in pages if (count := ready_instances(page, key_of(model))) is not None]
    return ModelReport(
        key=key_of(model),
        client_name=status_of(model).get("clientName"),
        engine=str((spec_of(model).get("engine") or {}).get("type") or "VLLM"),
        source=str((spec_of(model).get("model") or {}).get("uri") or ""),
        ready=status_of(model).get("ready"),
        since=parse_time(metadata_of(model).get("creationTimestamp")),
        conditions=tuple(conditions_of(model)),
        pools=tuple(_pools(facts, signals_)),
        events=tuple(_events(facts)),
        gateways_reached=len(pages),
        signals_problem=_signals_problem(facts.gateways),
        routed_instances=max(routed) if routed else None,
        pods_problem=facts.pods.reason if isinstance(facts.pods, MissingValue) else "",
        facts=facts,
        rejection=find_rejection(model, _sorted_events(facts)),
    )


def _sorted_events(facts: ModelFacts) -> Sequence[Manifest]:
    return () if isinstance(facts.events, MissingValue) else sorted(facts.events, key=_event_time)


def _signals_problem(gateways: Sequence[PodReport] | MissingValue) -> str:
    if isinstance(gateways, MissingValue):
        return gateways.reason
    if not gateways:
        return "no gateway was found"
    if any(not isinstance(gateway.metrics, MissingValue) for gateway in gateways):
        return ""
    return next(gateway.metrics.reason for gateway in gateways if isinstance(gateway.metrics, MissingValue))


def _pools(facts: ModelFacts, signals: Mapping[str, EngineSignals]) -> Iterator[PoolReport]:
    model = facts.model
    numbers = {str(pool.get("name")): pool for pool in status_of(model).get("pools") or []}
    spec_pools = {str(pool.get("name") or "main"): pool for pool in spec_of(model).get("pools") or []}
    pods: dict[str, list[Manifest]] = {}
    for pool in () if isinstance(facts.pods, MissingValue) else facts.pods:
        pods.setdefault(label_of(pool, POOL_LABEL), []).append(pool)
    events = _sorted_events(facts)
    uids = {uid_of(pool) for group in pods.values() for pool in group}
    adopted_signals = {name: pool for name, pool in signals.items() if name.partition("/")[0] not in uids}
    for name in dict.fromkeys((*spec_pools, *numbers, *pods)):
        numbers_, pool_spec = numbers.get(name, {}), spec_pools.get(name, {})
        instances = [_instance(pod, signals, events) for pod in sorted(pods.get(name, []), key=name_of)]
        adopted = bool(pool_spec.get("endpoints") or pool_spec.get("selector"))
        if adopted:
            instances += [
                InstanceReport(pool.id, "Routed", signals=(pool,))
                for pool in adopted_signals.values()
                if pool.pool == name
            ]
        yield PoolReport(
            name=name,
            role=str(pool_spec.get("role") or numbers_.get("role") or "Serve"),
            accelerator=str(pool_spec.get("acceleratorClassName") or ""),
            desired=numbers_.get("desired"),
            ready=numbers_.get("ready"),
            updated=numbers_.get("updated"),
            instances=tuple(instances),
        )


def _instance(pod: Manifest, signals: Mapping[str, EngineSignals], events: Sequence[Manifest]) -> InstanceReport:
    uid, obstacle = uid_of(pod), find_obstacle(pod, events)
    return InstanceReport(
        name=name_of(pod),
        state=_state(pod),
        why="" if is_deleting(pod) else obstacle.message if obstacle else waiting_reason(pod),
        node=str(spec_of(pod).get("nodeName") or ""),
        restarts=restart_count(pod),
        since=parse_time(metadata_of(pod).get("creationTimestamp")),
        signals=tuple(rank_signals for instance, rank_signals in signals.items() if instance.partition("/")[0] == uid),
        is_unscheduled=(condition_of(pod, "PodScheduled") or {}).get("status") == "False",
        remedy=obstacle.remedy if obstacle else "",
    )


def _state(pod: Manifest) -> str:
    """Returns the state of a pod, such as ``Ready``; ``Worker`` is a pod of a multi-node instance.

    A worker pod receives no requests.
    """
    if is_deleting(pod):
        return "Draining"
    if str(status_of(pod).get("phase")) in ("Failed", "Succeeded"):
        return str(status_of(pod)["phase"])
    if not is_ready(pod):
        return "NodeNotReady" if is_on_lost_node(pod) else "Starting"
    if label_of(pod, ENDPOINT_LABEL) != "true":
        return "Worker"
    mark = parse_sleep_mark(annotations_of(pod))
    return "Ready" if mark is None else "Starting" if mark.phase is SleepPhase.WAKING else "Sleeping"


def _events(facts: ModelFacts) -> Iterator[EventReport]:
    """Yields the last MAX_EVENTS events of the model and its pods, the newest last.

    Without startup probes that failed before a pod was ready: each engine that starts has some.
    """
    if isinstance(facts.events, MissingValue):
        return
    pods = () if isinstance(facts.pods, MissingValue) else facts.pods
    ready = {f"pod {name_of(pod)}" for pod in pods if is_ready(pod)}
    events = [_event(event) for event in facts.events]
    events = [event for event in events if event.warning or not event.about.startswith("statefulset ")]
    events = [event for event in events if event.about not in ready or not event.note.startswith(_STARTUP_PROBE)]
    events.sort(key=lambda event: event.at or 0.0)
    yield from events[-MAX_EVENTS:]


def _event_time(event: Manifest) -> float:
    """Returns the Unix time of an event; 0 where it has none."""
    series = event.get("series") or {}
    times = [series.get("lastObservedTime"), event.get("deprecatedLastTimestamp"), event.get("eventTime")]
    known = [at for at in map(parse_time, filter(None, times)) if at is not None]
    return (known[0] if known else parse_time(metadata_of(event).get("creationTimestamp"))) or 0.0


def _event(event: Manifest) -> EventReport:
    series, regarding = event.get("series") or {}, event.get("regarding") or {}
    kind = str(regarding.get("kind") or "")
    return EventReport(
        at=_event_time(event) or None,
        warning=event.get("type") == "Warning",
        about="" if kind == "ModelDeployment" else f"{kind.lower()} {regarding.get('name')}",
        reason=str(event.get("reason") or ""),
        note=str(event.get("note") or ""),
        count=int(series.get("count") or event.get("deprecatedCount") or 1),
    )


def table_row(model: Manifest) -> tuple[str, str, str, str, str, str, str]:
    """Returns the row of ``kubectl get mdep``: namespace, name, client name, engine, ready,
    SLO met, reason.
    """
    ready, objectives = condition_of(model, ConditionType.READY), condition_of(model, ConditionType.SLO_MET)
    namespace, _, name = key_of(model).partition("/")
    return (
        namespace,
        name,
        str(status_of(model).get("clientName") or ""),
        str((spec_of(model).get("engine") or {}).get("type") or "VLLM"),
        str(status_of(model).get("ready") or ""),
        str(objectives.get("status")) if objectives else "",
        str(ready.get("reason")) if ready else "",
    )


def wide_cells(model: Manifest) -> tuple[str, str]:
    """Returns what ``-o wide`` adds to the row: pools with their replicas, and the model's URI."""
    pools = status_of(model).get("pools") or []
    counts = (f"{pool.get('name')} {pool.get('ready', 0)}/{pool.get('desired', 0)}" for pool in pools)
    return ", ".join(counts), str((spec_of(model).get("model") or {}).get("uri") or "")
