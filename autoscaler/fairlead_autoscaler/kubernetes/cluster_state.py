"""Cluster state: the objects of the API server as models to scale. Pure.

The operator sets the first number of a pool. If something other than the operator and the
autoscaler wrote the number, the pool has another owner: a user with `kubectl scale`, an HPA, KEDA.
`spec.replicas` also owns the number of the only pool of its model.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fairlead.api.spec.accelerator_class import AcceleratorClassSpec
from fairlead.api.spec.autoscaling import ScalingMode
from fairlead.api.spec.pools import Pool
from fairlead.api.v1alpha1 import ModelDeploymentSpec
from fairlead.engine_profile import EngineProfile
from fairlead.errors import FairleadError
from fairlead.fleet.kubernetes.spec_cache import ParsedModel
from fairlead.fleet.labels import (
    AUTOSCALER_FIELD_MANAGER,
    FIELD_MANAGER,
    POD_REVISION_LABEL,
    POOL_LABEL,
    SleepPhase,
    parse_engine_info,
    parse_sleep_mark,
    parse_surge_groups,
)
from fairlead.kube.conditions import parse_time
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
from fairlead.limits import Limits
from fairlead_autoscaler.core import PoolSpec, ReplicaState
from fairlead_autoscaler.kubernetes.sleep_labels import (
    SleepStatus,
    is_engine_pod,
    pod_revision,
    pool_sleep_state,
    split_desired,
)
from fairlead_autoscaler.model_spec import replica_cost, replica_usd, scaled_model, sleep_tier
from fairlead_autoscaler.target import ModelState, PoolState, Replica

_LOG = logging.getLogger("fairlead.autoscaler")


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """The known objects of the cluster.

    workloads, pods: by the key of their model.
    wall: Unix seconds.
    most_instances: instances of a namespace that are looked up; a fleet has no more of them.
    """

    models: Sequence[ParsedModel]
    workloads: Mapping[str, Sequence[Manifest]] = field(default_factory=dict)
    pods: Mapping[str, Sequence[Manifest]] = field(default_factory=dict)
    classes: Mapping[str, AcceleratorClassSpec] = field(default_factory=dict)
    profiles: Mapping[str, EngineProfile] = field(default_factory=dict)
    wall: float = 0.0
    interval_seconds: float = 5.0
    sleep_status: SleepStatus = field(default_factory=SleepStatus)
    most_instances: int = Limits().instances


def model_states(snapshot: ClusterSnapshot) -> dict[str, ModelState]:
    """Returns the state of every model that is scaled.

    A model whose objects cannot be read is left out, and keeps its numbers.
    """
    states: dict[str, ModelState] = {}
    listed: Counter[str] = Counter()
    for model in snapshot.models:
        if model.spec is None or not is_scaled(model.spec):
            continue
        try:
            room = _InstanceRoom(listed, model.namespace, snapshot.most_instances)
            states[model.key] = _model_state(snapshot, model, model.spec, room)
        except Exception as error:  # noqa: BLE001  # objects of one namespace must not stop all others
            _LOG.error("%s is not scaled: its objects cannot be read (%s)", model.key, type(error).__name__)
    return states


@dataclass(frozen=True, slots=True)
class _InstanceRoom:
    """The instances that a namespace may still have.

    Why: each tick looks up each instance in all metrics of all gateways. The annotations of a pod
    may say that it has 1,024.

    listed: instances so far, by namespace.
    """

    listed: Counter[str]
    namespace: str
    most: int

    def take(self, pod: Manifest) -> tuple[str, ...]:
        """Returns the instances of a pod; none if there is no room for all of them."""
        engine = parse_engine_info(annotations_of(pod))
        if self.listed[self.namespace] + engine.data_parallel > self.most:
            return ()
        self.listed[self.namespace] += engine.data_parallel
        return tuple(f"{uid_of(pod)}/{engine.port}/{rank}" for rank in range(engine.data_parallel))


def is_scaled(spec: ModelDeploymentSpec) -> bool:
    return spec.autoscaling.mode is not ScalingMode.DISABLED and not spec.is_external


@dataclass(frozen=True, slots=True)
class WatchStatus:
    """The state of the watch of one kind.

    synced: the kind was listed once.
    problem: the current problem of the watch; None: there is none.
    """

    resource: Resource
    synced: bool
    problem: FairleadError | None = None


def sync_blocked_reason(kinds: Iterable[WatchStatus]) -> str:
    """Returns why the known objects may be out of date, in words; empty if they are not."""
    for watch in kinds:
        if watch.resource is ACCELERATOR_CLASSES and not watch.synced and watch.problem is not None:
            continue  # without permission to read them, the built-in classes apply
        if watch.resource is LEADER_WORKER_SETS and isinstance(watch.problem, NotFound):
            continue  # the kind was removed from the cluster, with all of its objects
        problem = f": {watch.problem}" if watch.problem is not None else ""
        if not watch.synced:
            return f"{watch.resource.plural} have not been listed yet{problem}"
        if watch.problem is not None:
            return f"cannot watch {watch.resource.plural}{problem}"
    return ""


def foreign_writers(
    models: Iterable[ParsedModel], workloads: Mapping[str, Sequence[Manifest]]
) -> dict[str, dict[str, str]]:
    """Returns the other owners of numbers, by model and pool.

    The result has every model that is scaled, and those that cannot be read.
    """
    writers: dict[str, dict[str, str]] = {}
    for model in models:
        if model.spec is None:
            writers[model.key] = {}
        elif is_scaled(model.spec):
            owners = {
                labels_of(workload).get(POOL_LABEL, ""): replicas_owner(model.spec, workload)
                for workload in workloads.get(model.key, ())
                if not is_deleting(workload)
            }
            writers[model.key] = {pool: owner for pool, owner in owners.items() if owner is not None}
    return writers


def _model_state(
    snapshot: ClusterSnapshot, model: ParsedModel, spec: ModelDeploymentSpec, room: _InstanceRoom
) -> ModelState:
    workloads = {
        labels_of(workload).get(POOL_LABEL, ""): workload
        for workload in snapshot.workloads.get(model.key, ())
        if not is_deleting(workload)
    }
    status = snapshot.sleep_status
    specs, pools = [], {}
    for pool in spec.pools:
        workload = workloads.get(pool.name)
        pods = [pod for pod in snapshot.pods.get(model.key, ()) if labels_of(pod).get(POOL_LABEL) == pool.name]
        tier = sleep_tier(spec)
        if any((model.key, pool.name, pod_revision(pod)) in status.rejecting_pools for pod in pods):
            tier = None
        specs.append(replace(_pool_spec(snapshot, pool, _is_replacing_only_group(workload, pods)), tier=tier))
        if workload is not None:
            desired_asleep = status.desired_asleep.get((model.key, pool.name), 0) if tier is not None else 0
            state = _pool_state(spec, workload, pods, desired_asleep)
            replicas = tuple(_replicas(pods, snapshot.wall, pool.accelerator_class_name or "", status, room))
            pools[pool.name] = replace(state, replicas=replicas)
    scaled = scaled_model(
        model.key,
        spec.slo.to_targets(),
        specs,
        interval_seconds=snapshot.interval_seconds,
        replicas_most=spec.autoscaling.max_replicas,
    )
    return ModelState(scaled, spec.autoscaling, pools)


def _pool_spec(snapshot: ClusterSnapshot, pool: Pool, is_replacing: bool) -> PoolSpec:
    """Returns the properties of a pool as the core needs them.

    is_replacing: its only group is being replaced, which takes a second one.
    """
    low, high = pool.min_replicas, pool.max_replicas
    high_bound = low if high is None else high
    return PoolSpec(
        name=pool.name,
        role=pool.role,
        cost_per_hour=replica_cost(snapshot.classes.get(pool.accelerator_class_name or ""), pool),
        minimum=min(max(low, 2), high_bound) if is_replacing else low,
        maximum=high_bound,
        profile=snapshot.profiles.get(pool.accelerator_class_name or ""),
        usd_per_hour=replica_usd(snapshot.classes.get(pool.accelerator_class_name or ""), pool),
    )


def _pool_state(
    spec: ModelDeploymentSpec, workload: Manifest, pods: Sequence[Manifest], desired_asleep: int
) -> PoolState:
    """Returns the state of a pool; its `replicas` are left empty."""
    replicas = (workload.get("spec") or {}).get("replicas")
    surge, owner = _surge_groups(workload), replicas_owner(spec, workload)
    total = max(0, (1 if replicas is None else int(replicas)) - surge)
    sleep_state = pool_sleep_state([pod for pod in pods if is_engine_pod(pod)])
    desired, asleep = split_desired(total, sleep_state, desired_asleep)
    pause_reason = "its groups are being replaced, with one extra group" if surge and owner is None else None
    return PoolState(desired, replicas_owner=owner, pause_reason=pause_reason, asleep=asleep)


def replicas_owner(spec: ModelDeploymentSpec, workload: Manifest) -> str | None:
    """Returns the other owner of a workload's number, in words; None if the autoscaler owns it."""
    if spec.replicas is not None:
        return "spec.replicas"
    return foreign_writer(workload)


def foreign_writer(workload: Manifest) -> str | None:
    """Returns another owner of a workload's number; None if the autoscaler owns it."""
    return min(
        (name for name in replicas_managers(workload) if name not in (FIELD_MANAGER, AUTOSCALER_FIELD_MANAGER)),
        default=None,
    )


def is_released(spec: ModelDeploymentSpec, workload: Manifest) -> bool:
    return spec.autoscaling.mode is not ScalingMode.AUTO or replicas_owner(spec, workload) is not None


def _surge_groups(workload: Manifest) -> int:
    has_other_writer = any(manager != FIELD_MANAGER for manager in replicas_managers(workload))
    return 0 if has_other_writer else parse_surge_groups(annotations_of(workload))


def _is_replacing_only_group(workload: Manifest | None, pods: Iterable[Manifest]) -> bool:
    """Whether a LeaderWorkerSet, whose number the autoscaler wrote, has groups of an older
    template.

    Why: the controller of LeaderWorkerSets does not replace the only group, since nothing would
    serve meanwhile.
    """
    if workload is None or workload.get("kind") != LEADER_WORKER_SETS.kind:
        return False
    if AUTOSCALER_FIELD_MANAGER not in replicas_managers(workload):
        return False
    revision = annotations_of(workload).get(POD_REVISION_LABEL, "")
    return any(labels_of(pod).get(POD_REVISION_LABEL, "") != revision for pod in pods if not is_deleting(pod))


def _replicas(
    pods: Iterable[Manifest], wall: float, accelerator: str, status: SleepStatus, room: _InstanceRoom
) -> Iterable[Replica]:
    """Yields one replica for each pod that serves HTTP and has not ended, by name."""
    for pod in sorted(pods, key=name_of):
        if not is_engine_pod(pod):
            continue
        created = parse_time(metadata_of(pod).get("creationTimestamp")) or wall
        ready_at = _ready_since(pod, wall)
        yield Replica(
            id=name_of(pod),
            state=_replica_state(pod, status),
            age_seconds=max(0.0, wall - created),
            startup_seconds=None if ready_at is None else max(0.0, ready_at - created),
            instances=room.take(pod),
            node=accelerator,
            last_wake=status.last_wakes.get(uid_of(pod)),
        )


def _replica_state(pod: Manifest, status: SleepStatus) -> ReplicaState:
    mark = parse_sleep_mark(annotations_of(pod))
    if is_deleting(pod) or (mark is not None and mark.phase is SleepPhase.STUCK):
        return ReplicaState.DRAINING
    if not is_ready(pod):
        return ReplicaState.PENDING
    if mark is None:
        return ReplicaState.READY
    if mark.phase is SleepPhase.WAKING:
        return ReplicaState.WAKING
    return ReplicaState.ASLEEP if uid_of(pod) in status.asleep else ReplicaState.FALLING_ASLEEP


def _ready_since(pod: Manifest, wall: float) -> float | None:
    """Returns the Unix time since which a pod is ready; None if it is not.

    A pod whose engine restarted has none, since only the first start is a startup time.
    """
    if not is_ready(pod):
        return None
    status = pod.get("status") or {}
    if any(int(container.get("restartCount") or 0) for container in status.get("containerStatuses") or []):
        return None
    ready = next(condition for condition in status["conditions"] if condition.get("type") == "Ready")
    return parse_time(ready.get("lastTransitionTime")) or wall
