"""The report of one model: model → pools → pods → engine signals. Pure: facts in, report out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fairlead.api.conditions import ConditionType
from fairlead.fleet.labels import ENDPOINT_LABEL, POOL_LABEL, SleepPhase, parse_sleep_mark
from fairlead.kube.resources import (
    Manifest,
    annotations_of,
    is_deleting,
    is_ready,
    key_of,
    metadata_of,
    name_of,
    uid_of,
)
from fairlead_cli.cluster.missing_value import MissingValue
from fairlead_cli.cluster.object_fields import (
    Condition,
    condition_of,
    conditions_of,
    label_of,
    restart_count,
    spec_of,
    status_of,
    waiting_reason,
)
from fairlead_cli.cluster.pod_http import PodReport
from fairlead_cli.cluster.status import engine_signals as signals
from fairlead_cli.cluster.status.engine_signals import EngineSignals
from fairlead_cli.cluster.status.start_obstacles import StartObstacle, find_obstacle, find_rejection
from fairlead_cli.cluster.timestamps import parse_time

_STARTUP_PROBE: Final = "Startup probe failed"
MAX_EVENTS = 5


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
        """Whether the instance is ready and awake, so that gateways may route to it."""
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
        """Yields the instances of all pools."""
        for pool in self.pools:
            yield from pool.instances


def build_report(facts: ModelFacts) -> ModelReport:
    """Returns the report; an unknown value stays None or has its reason."""
    model = facts.model
    reports = () if isinstance(facts.gateways, MissingValue) else facts.gateways
    pages = [report.metrics for report in reports if not isinstance(report.metrics, MissingValue)]
    signals_ = signals.signals_by_instance(pages, key_of(model))
    routed = [count for page in pages if (count := signals.ready_instances(page, key_of(model))) is not None]
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
    """Returns the events, the newest last; none where they could not be read."""
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
        return "Starting"
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
