"""What the API server has of models, workloads and pods → the models that are scaled, as they are. Pure.

A pool is held by somebody else when its workload's number has another writer than the operator, who only begins with it, and us: a
person with ``kubectl scale``, an HPA, KEDA. ``spec.replicas`` holds the only pool of its model likewise.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from fairlead.api import AcceleratorClassSpec, ModelDeploymentSpec, Pool, ScalingMode
from fairlead.cluster_labels import (
    AUTOSCALER,
    MANAGER,
    POOL,
    REVISION,
    SURGE,
    SleepPhase,
    engine_notes,
    sleep_mark,
)
from fairlead.errors import FairleadError
from fairlead.fleet import Role
from fairlead.kube.errors import NotFound
from fairlead.kube.managers import replicas_writers
from fairlead.kube.resource import (
    ACCELERATOR_CLASSES,
    LEADER_WORKER_SETS,
    Manifest,
    Resource,
    annotations_of,
    labels_of,
    leaving,
    metadata_of,
    name_of,
    says_ready,
    uid_of,
)
from fairlead.kubefleet.specs import ModelRead
from fairlead.profile import EngineProfile
from fairlead_autoscaler.cluster.marks import Nursed, answers, rests, revision_of, split
from fairlead_autoscaler.cluster.scaler import holder
from fairlead_autoscaler.prices import replica_cost, replica_usd
from fairlead_autoscaler.scaling import PoolFacts, ReplicaState
from fairlead_autoscaler.seen import scaled_model
from fairlead_autoscaler.tiers import tier_of
from fairlead_autoscaler.world import ModelState, PoolState, Replica


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the cluster. Workloads and pods are those of each model, by its key; ``wall`` is Unix time."""

    models: Sequence[ModelRead]
    workloads: Mapping[str, Sequence[Manifest]] = field(default_factory=dict)
    pods: Mapping[str, Sequence[Manifest]] = field(default_factory=dict)
    classes: Mapping[str, AcceleratorClassSpec] = field(default_factory=dict)
    profiles: Mapping[str, EngineProfile] = field(default_factory=dict)
    wall: float = 0.0
    interval_seconds: float = 5.0
    nursed: Nursed = field(default_factory=Nursed)


def states(known: Known) -> dict[str, ModelState]:
    """Every model whose numbers the autoscaler is asked about."""
    return {
        model.key: _model(known, model, model.spec)
        for model in known.models
        if model.spec is not None and asked_about(model.spec)
    }


def asked_about(spec: ModelDeploymentSpec) -> bool:
    """Is there anything for the autoscaler to say?"""
    return spec.autoscaling.mode is not ScalingMode.OFF and not spec.external


@dataclass(frozen=True, slots=True)
class Followed:
    """How well a kind is followed: it was listed once, and what is wrong with its watch now."""

    resource: Resource
    synced: bool
    problem: FairleadError | None = None


def hindrance(kinds: Iterable[Followed]) -> str:
    """Why what is known of the cluster is not how things are, in words; empty while it is."""
    for one in kinds:
        if one.resource is ACCELERATOR_CLASSES and not one.synced and one.problem is not None:
            continue  # whoever may not read them has the built-in ones
        if one.resource is LEADER_WORKER_SETS and isinstance(one.problem, NotFound):
            continue  # the cluster has forgotten the kind, and with it all there were
        why = f": {one.problem}" if one.problem is not None else ""
        if not one.synced:
            return f"{one.resource.plural} have not been listed yet{why}"
        if one.problem is not None:
            return f"{one.resource.plural} cannot be followed{why}"
    return ""


def standing(models: Iterable[ModelRead], workloads: Mapping[str, Sequence[Manifest]]) -> dict[str, dict[str, str]]:
    """Every model that the autoscaler is asked about, or that cannot be read: by pool, who else sets its number."""
    found: dict[str, dict[str, str]] = {}
    for model in models:
        if model.spec is None:
            found[model.key] = {}
        elif asked_about(model.spec):
            there = [one for one in workloads.get(model.key, ()) if not leaving(one)]
            held = {labels_of(one).get(POOL, ""): held_by(model.spec, one) for one in there}
            found[model.key] = {pool: holder for pool, holder in held.items() if holder is not None}
    return found


def _model(known: Known, model: ModelRead, spec: ModelDeploymentSpec) -> ModelState:
    workloads = {labels_of(one).get(POOL, ""): one for one in known.workloads.get(model.key, ()) if not leaving(one)}
    facts, pools = [], {}
    for pool in spec.pools:
        there = workloads.get(pool.name)
        pods = [one for one in known.pods.get(model.key, ()) if labels_of(one).get(POOL) == pool.name]
        tier = tier_of(spec)
        if any((model.key, pool.name, revision_of(pod)) in known.nursed.unwilling for pod in pods):
            tier = None
        facts.append(replace(_facts(known, pool, _replaced_alone(there, pods)), tier=tier))
        if there is not None:
            wished = known.nursed.wished.get((model.key, pool.name), 0) if tier is not None else 0
            pools[pool.name] = _pool(known, spec, there, pods, pool.accelerator or "", wished)
    name, objectives = model.key, spec.objectives.values()
    scaled = scaled_model(
        name, objectives, facts, interval_seconds=known.interval_seconds, replicas_most=spec.autoscaling.max
    )
    return ModelState(scaled, spec.autoscaling, pools)


def _facts(known: Known, pool: Pool, two: bool) -> PoolFacts:
    """``two``: a lone group is being replaced, which takes a second one."""
    low, high = pool.replicas.min, pool.replicas.max
    most = low if high is None else high
    return PoolFacts(
        name=pool.name,
        role=Role(pool.role.value),
        cost_per_hour=replica_cost(known.classes.get(pool.accelerator or ""), pool),
        minimum=min(max(low, 2), most) if two else low,
        maximum=most,
        profile=known.profiles.get(pool.accelerator or ""),
        usd_per_hour=replica_usd(known.classes.get(pool.accelerator or ""), pool),
    )


def _pool(
    known: Known, spec: ModelDeploymentSpec, workload: Manifest, pods: Sequence[Manifest], accelerator: str, wished: int
) -> PoolState:
    asked = (workload.get("spec") or {}).get("replicas")
    more, holder = _surplus(workload), held_by(spec, workload)
    total = max(0, (1 if asked is None else int(asked)) - more)
    desired, asleep = split(total, rests([one for one in pods if answers(one)]), wished)
    return PoolState(
        desired=desired,
        asleep=asleep,
        replicas=tuple(_replicas(pods, known.wall, accelerator, known.nursed)),
        held_by=holder,
        paused="its groups are being replaced, with one more than asked" if more and holder is None else None,
    )


def held_by(spec: ModelDeploymentSpec, workload: Manifest) -> str | None:
    """Who else sets the number of this workload, in words; None where it is ours to set."""
    if spec.replicas is not None:
        return "spec.replicas"
    return holder(workload)


def released(spec: ModelDeploymentSpec, workload: Manifest) -> bool:
    """Is the mode another than Auto, or the number somebody else's?"""
    return spec.autoscaling.mode is not ScalingMode.AUTO or held_by(spec, workload) is not None


def _surplus(workload: Manifest) -> int:
    """Groups beyond the number that is asked, which the operator has added to replace one after the other."""
    told = annotations_of(workload).get(SURGE, "")
    ours = any(one != MANAGER for one in replicas_writers(workload))
    return int(told) if told.isdecimal() and not ours else 0


def _replaced_alone(workload: Manifest | None, pods: Iterable[Manifest]) -> bool:
    """Is there a LeaderWorkerSet whose number is ours, with groups of another template than its own?

    Its controller replaces none that is the only one, since nothing would serve.
    """
    if workload is None or workload.get("kind") != LEADER_WORKER_SETS.kind:
        return False
    if AUTOSCALER not in replicas_writers(workload):
        return False
    made = annotations_of(workload).get(REVISION, "")
    return any(labels_of(one).get(REVISION, "") != made for one in pods if not leaving(one))


def _replicas(pods: Iterable[Manifest], wall: float, accelerator: str, nursed: Nursed) -> Iterable[Replica]:
    """One for each pod that answers HTTP and has not ended, by name."""
    for pod in sorted(pods, key=name_of):
        if not answers(pod):
            continue
        created = _time(metadata_of(pod).get("creationTimestamp"), wall)
        ready_at = _ready_since(pod, wall)
        notes = engine_notes(annotations_of(pod))
        yield Replica(
            id=name_of(pod),
            state=_state(pod, nursed),
            age_seconds=max(0.0, wall - created),
            startup_seconds=None if ready_at is None else max(0.0, ready_at - created),
            instances=tuple(f"{uid_of(pod)}/{notes.port}/{rank}" for rank in range(notes.data_parallel)),
            node=accelerator,
            woken=nursed.woken.get(uid_of(pod)),
        )


def _state(pod: Manifest, nursed: Nursed) -> ReplicaState:
    mark = sleep_mark(annotations_of(pod))
    if leaving(pod) or (mark is not None and mark.phase is SleepPhase.STUCK):
        return ReplicaState.DRAINING
    if not says_ready(pod):
        return ReplicaState.PENDING
    if mark is None:
        return ReplicaState.READY
    if mark.phase is SleepPhase.WAKING:
        return ReplicaState.WAKING
    return ReplicaState.ASLEEP if uid_of(pod) in nursed.asleep else ReplicaState.FALLING_ASLEEP


def _ready_since(pod: Manifest, wall: float) -> float | None:
    """When it became ready; None while it is not. That of a pod whose engine was started again is the later one, and no start-up
    time: those are told by a container that never ended."""
    if not says_ready(pod):
        return None
    status = pod.get("status") or {}
    if any(int(one.get("restartCount") or 0) for one in status.get("containerStatuses") or []):
        return None
    ready = next(one for one in status["conditions"] if one.get("type") == "Ready")
    return _time(ready.get("lastTransitionTime"), wall)


def _time(text: object, otherwise: float) -> float:
    """A time as the API server writes it; ``otherwise`` where there is none."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return otherwise
