"""One model as ``fairlead status NAME`` tells it: model → pools → pods → what engines say. Pure: facts in, a report out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fairlead.api import ConditionType
from fairlead.fleet.labels import ENDPOINT_LABEL, POOL_LABEL, SleepPhase, parse_sleep_mark
from fairlead.kube.resources import Manifest, annotations_of, is_deleting, is_ready, metadata_of, name_of, uid_of
from fairlead_cli.cluster.missing_value import MissingValue
from fairlead_cli.cluster.object_fields import (
    Condition,
    condition_of,
    conditions_of,
    label_of,
    object_key,
    restart_count,
    spec_of,
    status_of,
    waiting_reason,
)
from fairlead_cli.cluster.pod_http import PodReport
from fairlead_cli.cluster.status import engine_signals as signals
from fairlead_cli.cluster.status.engine_signals import EngineSignals
from fairlead_cli.cluster.timestamps import parse_time

MAX_EVENTS = 5


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is known of a model. ``gateways``: what each gateway's pod said, or why none could be asked. ``now``: Unix time."""

    model: Manifest
    pods: Sequence[Manifest] | MissingValue
    events: Sequence[Manifest] | MissingValue
    gateways: Sequence[PodReport] | MissingValue
    now: float


@dataclass(frozen=True, slots=True)
class InstanceReport:
    """A pod, or an engine of somebody else's. ``why``: what keeps it from being ready. ``signals``: one for each rank."""

    name: str
    state: str
    why: str = ""
    node: str = ""
    restarts: int = 0
    since: float | None = None
    signals: tuple[EngineSignals, ...] = ()

    @property
    def is_ready(self) -> bool:
        """Does it get requests?"""
        return self.state == "Ready"


@dataclass(frozen=True, slots=True)
class PoolReport:
    """A pool of the spec, or one that is going. Numbers are the operator's, None where it has not said any."""

    name: str
    role: str
    accelerator: str
    desired: int | None
    ready: int | None
    updated: int | None
    instances: tuple[InstanceReport, ...]


@dataclass(frozen=True, slots=True)
class EventReport:
    """One event, about the model or a pod of it."""

    at: float | None
    warning: bool
    about: str
    reason: str
    note: str
    count: int


@dataclass(frozen=True, slots=True)
class ModelReport:
    """All of it. ``unheard``: why what engines say could not be had; empty when it was."""

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

    def condition(self, type: ConditionType) -> Condition | None:
        """One of its conditions, whatever its status."""
        return next((one for one in self.conditions if one.get("type") == type), None)

    def instances(self) -> Iterator[InstanceReport]:
        """Of all pools."""
        for pool in self.pools:
            yield from pool.instances


def build_report(facts: ModelFacts) -> ModelReport:
    """Everything in its place; what is not known stays None or has its reason."""
    model = facts.model
    told = () if isinstance(facts.gateways, MissingValue) else facts.gateways
    pages = [one.metrics for one in told if not isinstance(one.metrics, MissingValue)]
    said = signals.signals_by_instance(pages, object_key(model))
    routed = [count for page in pages if (count := signals.ready_instances(page, object_key(model))) is not None]
    return ModelReport(
        key=object_key(model),
        client_name=status_of(model).get("clientName"),
        engine=str((spec_of(model).get("engine") or {}).get("kind") or "vllm"),
        source=str((spec_of(model).get("model") or {}).get("source") or ""),
        ready=status_of(model).get("ready"),
        since=parse_time(metadata_of(model).get("creationTimestamp")),
        conditions=tuple(conditions_of(model)),
        pools=tuple(_pools(facts, said)),
        events=tuple(_events(facts)),
        gateways_reached=len(pages),
        signals_problem=_signals_problem(facts.gateways),
        routed_instances=max(routed) if routed else None,
        pods_problem=facts.pods.reason if isinstance(facts.pods, MissingValue) else "",
        facts=facts,
    )


def _signals_problem(gateways: Sequence[PodReport] | MissingValue) -> str:
    if isinstance(gateways, MissingValue):
        return gateways.reason
    if not gateways:
        return "no gateway was found"
    if any(not isinstance(one.metrics, MissingValue) for one in gateways):
        return ""
    return next(one.metrics.reason for one in gateways if isinstance(one.metrics, MissingValue))


def _pools(facts: ModelFacts, said: Mapping[str, EngineSignals]) -> Iterator[PoolReport]:
    model = facts.model
    numbers = {str(one.get("name")): one for one in status_of(model).get("pools") or []}
    wanted = {str(one.get("name") or "main"): one for one in spec_of(model).get("pools") or []}
    pods: dict[str, list[Manifest]] = {}
    for one in () if isinstance(facts.pods, MissingValue) else facts.pods:
        pods.setdefault(label_of(one, POOL_LABEL), []).append(one)
    uids = {uid_of(one) for group in pods.values() for one in group}
    others = {name: one for name, one in said.items() if name.partition("/")[0] not in uids}
    for name in dict.fromkeys((*wanted, *numbers, *pods)):
        have, asked = numbers.get(name, {}), wanted.get(name, {})
        instances = [_instance(one, said) for one in sorted(pods.get(name, []), key=name_of)]
        adopted = bool(asked.get("endpoints") or asked.get("selector"))
        if adopted:
            instances += [
                InstanceReport(one.id, "Routed", signals=(one,)) for one in others.values() if one.pool == name
            ]
        yield PoolReport(
            name=name,
            role=str(asked.get("role") or have.get("role") or "Serve"),
            accelerator=str(asked.get("accelerator") or ""),
            desired=have.get("desired"),
            ready=have.get("ready"),
            updated=have.get("updated"),
            instances=tuple(instances),
        )


def _instance(pod: Manifest, said: Mapping[str, EngineSignals]) -> InstanceReport:
    uid = uid_of(pod)
    return InstanceReport(
        name=name_of(pod),
        state=_state(pod),
        why="" if is_deleting(pod) else waiting_reason(pod),
        node=str(spec_of(pod).get("nodeName") or ""),
        restarts=restart_count(pod),
        since=parse_time(metadata_of(pod).get("creationTimestamp")),
        signals=tuple(one for name, one in said.items() if name.partition("/")[0] == uid),
    )


def _state(pod: Manifest) -> str:
    """As the fleet calls it; a worker of an instance over several nodes answers nobody."""
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
    """The newest last: of the model, and warnings of pods that it has."""
    if isinstance(facts.events, MissingValue):
        return
    found = [_event(one) for one in facts.events]
    found.sort(key=lambda one: one.at or 0.0)
    yield from found[-MAX_EVENTS:]


def _event(one: Manifest) -> EventReport:
    series, regarding = one.get("series") or {}, one.get("regarding") or {}
    times = [series.get("lastObservedTime"), one.get("deprecatedLastTimestamp"), one.get("eventTime")]
    known = [at for at in map(parse_time, filter(None, times)) if at is not None]
    kind = str(regarding.get("kind") or "")
    return EventReport(
        at=known[0] if known else parse_time(metadata_of(one).get("creationTimestamp")),
        warning=one.get("type") == "Warning",
        about="" if kind == "ModelDeployment" else f"{kind.lower()} {regarding.get('name')}",
        reason=str(one.get("reason") or ""),
        note=str(one.get("note") or ""),
        count=int(series.get("count") or one.get("deprecatedCount") or 1),
    )


def table_row(model: Manifest) -> tuple[str, str, str, str, str, str, str]:
    """Namespace, name, client name, engine, ready, objectives, reason: what ``kubectl get mdep`` shows."""
    ready, objectives = condition_of(model, ConditionType.READY), condition_of(model, ConditionType.OBJECTIVES_MET)
    namespace, _, name = object_key(model).partition("/")
    return (
        namespace,
        name,
        str(status_of(model).get("clientName") or ""),
        str((spec_of(model).get("engine") or {}).get("kind") or "vllm"),
        str(status_of(model).get("ready") or ""),
        str(objectives.get("status")) if objectives else "",
        str(ready.get("reason")) if ready else "",
    )
