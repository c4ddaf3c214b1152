"""What the API server has of models, workloads and pods → the models that are scaled, as they are.
Pure.

A pool is held by somebody else when its workload's number has another writer than the operator, who
only begins with it, and us: a person with ``kubectl scale``, an HPA, KEDA. ``spec.replicas`` holds
the only pool of its model likewise.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from fairlead.api import AcceleratorClassSpec, ModelDeploymentSpec, Pool, ScalingMode
from fairlead.engine_profile import EngineProfile
from fairlead.errors import FairleadError
from fairlead.fleet.kubernetes.spec_cache import ParsedModel
from fairlead.fleet.labels import (
    AUTOSCALER_FIELD_MANAGER,
    FIELD_MANAGER,
    POD_REVISION_LABEL,
    POOL_LABEL,
    SURGE_ANNOTATION,
    SleepPhase,
    parse_engine_info,
    parse_sleep_mark,
)
from fairlead.fleet.model import Role
from fairlead.kube.errors import NotFound
from fairlead.kube.field_managers import replicas_managers
from fairlead.kube.resources import (
    ACCELERATOR_CLASSES,
    LEADER_WORKER_SETS,
    Manifest,
    Resource,
    annotations_of,
    is_deleting,
    is_ready,
    labels_of,
    metadata_of,
    name_of,
    uid_of,
)
from fairlead_autoscaler.core import PoolSpec, ReplicaState
from fairlead_autoscaler.kubernetes.scale_writer import foreign_writer
from fairlead_autoscaler.kubernetes.sleep_labels import (
    SleepStatus,
    is_engine_pod,
    pod_revision,
    pool_sleep_state,
    split_desired,
)
from fairlead_autoscaler.model_spec import replica_cost, replica_usd, scaled_model, sleep_tier
from fairlead_autoscaler.target import ModelState, PoolState, Replica


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """What is known of the cluster. Workloads and pods are those of each model, by its key;
    ``wall`` is Unix time.
    """

    models: Sequence[ParsedModel]
    workloads: Mapping[str, Sequence[Manifest]] = field(default_factory=dict)
    pods: Mapping[str, Sequence[Manifest]] = field(default_factory=dict)
    classes: Mapping[str, AcceleratorClassSpec] = field(default_factory=dict)
    profiles: Mapping[str, EngineProfile] = field(default_factory=dict)
    wall: float = 0.0
    interval_seconds: float = 5.0
    sleep_status: SleepStatus = field(default_factory=SleepStatus)


def model_states(snapshot: ClusterSnapshot) -> dict[str, ModelState]:
    """Every model whose numbers the autoscaler is asked about."""
    return {
        model.key: _model_state(snapshot, model, model.spec)
        for model in snapshot.models
        if model.spec is not None and is_scaled(model.spec)
    }


def is_scaled(spec: ModelDeploymentSpec) -> bool:
    """Is there anything for the autoscaler to say?"""
    return spec.autoscaling.mode is not ScalingMode.OFF and not spec.is_external


@dataclass(frozen=True, slots=True)
class WatchStatus:
    """How well a kind is followed: it was listed once, and what is wrong with its watch now."""

    resource: Resource
    synced: bool
    problem: FairleadError | None = None


def sync_blocked_reason(kinds: Iterable[WatchStatus]) -> str:
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


def foreign_writers(
    models: Iterable[ParsedModel], workloads: Mapping[str, Sequence[Manifest]]
) -> dict[str, dict[str, str]]:
    """Every model that the autoscaler is asked about, or that cannot be read: by pool, who else
    sets its number.
    """
    found: dict[str, dict[str, str]] = {}
    for model in models:
        if model.spec is None:
            found[model.key] = {}
        elif is_scaled(model.spec):
            there = [one for one in workloads.get(model.key, ()) if not is_deleting(one)]
            held = {labels_of(one).get(POOL_LABEL, ""): replicas_owner(model.spec, one) for one in there}
            found[model.key] = {pool: holder for pool, holder in held.items() if holder is not None}
    return found


def _model_state(known: ClusterSnapshot, model: ParsedModel, spec: ModelDeploymentSpec) -> ModelState:
    workloads = {
        labels_of(one).get(POOL_LABEL, ""): one for one in known.workloads.get(model.key, ()) if not is_deleting(one)
    }
    facts, pools = [], {}
    for pool in spec.pools:
        there = workloads.get(pool.name)
        pods = [one for one in known.pods.get(model.key, ()) if labels_of(one).get(POOL_LABEL) == pool.name]
        tier = sleep_tier(spec)
        if any((model.key, pool.name, pod_revision(pod)) in known.sleep_status.rejecting_pools for pod in pods):
            tier = None
        facts.append(replace(_pool_spec(known, pool, _is_replacing_only_group(there, pods)), tier=tier))
        if there is not None:
            wished = known.sleep_status.desired_asleep.get((model.key, pool.name), 0) if tier is not None else 0
            pools[pool.name] = _pool_state(known, spec, there, pods, pool.accelerator or "", wished)
    name, objectives = model.key, spec.objectives.to_targets()
    scaled = scaled_model(
        name, objectives, facts, interval_seconds=known.interval_seconds, replicas_most=spec.autoscaling.max
    )
    return ModelState(scaled, spec.autoscaling, pools)


def _pool_spec(known: ClusterSnapshot, pool: Pool, is_replacing: bool) -> PoolSpec:
    """``two``: a lone group is being replaced, which takes a second one."""
    low, high = pool.replicas.min, pool.replicas.max
    most = low if high is None else high
    return PoolSpec(
        name=pool.name,
        role=Role(pool.role.value),
        cost_per_hour=replica_cost(known.classes.get(pool.accelerator or ""), pool),
        minimum=min(max(low, 2), most) if is_replacing else low,
        maximum=most,
        profile=known.profiles.get(pool.accelerator or ""),
        usd_per_hour=replica_usd(known.classes.get(pool.accelerator or ""), pool),
    )


def _pool_state(
    known: ClusterSnapshot,
    spec: ModelDeploymentSpec,
    workload: Manifest,
    pods: Sequence[Manifest],
    accelerator: str,
    wished: int,
) -> PoolState:
    asked = (workload.get("spec") or {}).get("replicas")
    more, holder = _surge_groups(workload), replicas_owner(spec, workload)
    total = max(0, (1 if asked is None else int(asked)) - more)
    desired, asleep = split_desired(total, pool_sleep_state([one for one in pods if is_engine_pod(one)]), wished)
    return PoolState(
        desired=desired,
        asleep=asleep,
        replicas=tuple(_replicas(pods, known.wall, accelerator, known.sleep_status)),
        replicas_owner=holder,
        pause_reason="its groups are being replaced, with one more than asked" if more and holder is None else None,
    )


def replicas_owner(spec: ModelDeploymentSpec, workload: Manifest) -> str | None:
    """Who else sets the number of this workload, in words; None where it is ours to set."""
    if spec.replicas is not None:
        return "spec.replicas"
    return foreign_writer(workload)


def is_released(spec: ModelDeploymentSpec, workload: Manifest) -> bool:
    """Is the mode another than Auto, or the number somebody else's?"""
    return spec.autoscaling.mode is not ScalingMode.AUTO or replicas_owner(spec, workload) is not None


def _surge_groups(workload: Manifest) -> int:
    """Groups beyond the number that is asked, which the operator has added to replace one after the
    other.
    """
    told = annotations_of(workload).get(SURGE_ANNOTATION, "")
    ours = any(one != FIELD_MANAGER for one in replicas_managers(workload))
    return int(told) if told.isdecimal() and not ours else 0


def _is_replacing_only_group(workload: Manifest | None, pods: Iterable[Manifest]) -> bool:
    """Is there a LeaderWorkerSet whose number is ours, with groups of another template than its
    own?

    Its controller replaces none that is the only one, since nothing would serve.
    """
    if workload is None or workload.get("kind") != LEADER_WORKER_SETS.kind:
        return False
    if AUTOSCALER_FIELD_MANAGER not in replicas_managers(workload):
        return False
    made = annotations_of(workload).get(POD_REVISION_LABEL, "")
    return any(labels_of(one).get(POD_REVISION_LABEL, "") != made for one in pods if not is_deleting(one))


def _replicas(pods: Iterable[Manifest], wall: float, accelerator: str, nursed: SleepStatus) -> Iterable[Replica]:
    """One for each pod that answers HTTP and has not ended, by name."""
    for pod in sorted(pods, key=name_of):
        if not is_engine_pod(pod):
            continue
        created = _parse_time(metadata_of(pod).get("creationTimestamp"), wall)
        ready_at = _ready_since(pod, wall)
        notes = parse_engine_info(annotations_of(pod))
        yield Replica(
            id=name_of(pod),
            state=_replica_state(pod, nursed),
            age_seconds=max(0.0, wall - created),
            startup_seconds=None if ready_at is None else max(0.0, ready_at - created),
            instances=tuple(f"{uid_of(pod)}/{notes.port}/{rank}" for rank in range(notes.data_parallel)),
            node=accelerator,
            last_wake=nursed.last_wakes.get(uid_of(pod)),
        )


def _replica_state(pod: Manifest, nursed: SleepStatus) -> ReplicaState:
    mark = parse_sleep_mark(annotations_of(pod))
    if is_deleting(pod) or (mark is not None and mark.phase is SleepPhase.STUCK):
        return ReplicaState.DRAINING
    if not is_ready(pod):
        return ReplicaState.PENDING
    if mark is None:
        return ReplicaState.READY
    if mark.phase is SleepPhase.WAKING:
        return ReplicaState.WAKING
    return ReplicaState.ASLEEP if uid_of(pod) in nursed.asleep else ReplicaState.FALLING_ASLEEP


def _ready_since(pod: Manifest, wall: float) -> float | None:
    """When it became ready; None while it is not. That of a pod whose engine was started again is
    the later one, and no start-up
    time: those are told by a container that never ended."""
    if not is_ready(pod):
        return None
    status = pod.get("status") or {}
    if any(int(one.get("restartCount") or 0) for one in status.get("containerStatuses") or []):
        return None
    ready = next(one for one in status["conditions"] if one.get("type") == "Ready")
    return _parse_time(ready.get("lastTransitionTime"), wall)


def _parse_time(text: object, default: float) -> float:
    """A time as the API server writes it; ``otherwise`` where there is none."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return default
