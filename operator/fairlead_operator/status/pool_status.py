"""What each pool of a model has: a pure function of its workload, or of the pods that it adopts."""

from collections.abc import Mapping, Sequence

from fairlead.api import ModelDeploymentSpec, Pool
from fairlead.fleet.labels import ENDPOINT_LABEL, POOL_LABEL, parse_sleep_mark
from fairlead.fleet.labels import POD_REVISION_LABEL as POD_REVISION
from fairlead.kube.resources import Manifest, annotations_of, is_deleting, is_ready
from fairlead_operator.controller.group_rollout import is_group_workload, surplus_groups
from fairlead_operator.object_metadata import (
    MODEL_REVISION_ANNOTATION,
    WORKLOAD_KINDS,
    ChildKey,
    annotation,
    child_key,
    generation_of,
    label,
)
from fairlead_operator.status.model_status import PoolState


def pool_states(
    spec: ModelDeploymentSpec,
    wanted: Sequence[Manifest],
    live: Mapping[ChildKey, Manifest],
    revision: str,
    adopted: Mapping[str, int],
    pods: Sequence[Manifest] = (),
    notes: Mapping[str, str] | None = None,
) -> tuple[PoolState, ...]:
    """Every pool in the order of ``spec``. ``adopted``: how many endpoints a pool has that Fairlead does not run. ``pods`` are all of
    the model's; ``notes`` say how the instances of a pool are replaced."""
    made = {label(one, POOL_LABEL): one for one in wanted if one["kind"] in WORKLOAD_KINDS}
    return tuple(
        _external_state(pool, adopted.get(pool.name, 0))
        if pool.is_external
        else _workload_state(
            pool,
            spec.desired_instances(pool),
            _live_workload(pool.name, made.get(pool.name), live),
            revision,
            pods,
            notes or {},
        )
        for pool in spec.pools
    )


def _live_workload(pool: str, wanted: Manifest | None, live: Mapping[ChildKey, Manifest]) -> Manifest | None:
    """What runs of a pool; also of one of which nothing can be made now, since that serves on."""
    if wanted is not None:
        return live.get(child_key(wanted))
    running = (one for one in live.values() if one["kind"] in WORKLOAD_KINDS and not is_deleting(one))
    return next((one for one in running if label(one, POOL_LABEL) == pool), None)


def _external_state(pool: Pool, count: int) -> PoolState:
    return PoolState(pool.name, str(pool.role), count, count, count, count, is_external=True)


def _workload_state(
    pool: Pool, asked: int, workload: Manifest | None, revision: str, pods: Sequence[Manifest], notes: Mapping[str, str]
) -> PoolState:
    if workload is None:
        return PoolState(pool.name, str(pool.role), asked, 0, 0, 0, is_settled=False, exists_in_cluster=False)
    status = workload.get("status") or {}
    # Who owns the number (an autoscaler, `kubectl scale`) has said how many are asked.
    desired = (workload.get("spec") or {}).get("replicas")
    current = annotation(workload, MODEL_REVISION_ANNOTATION) == revision
    groups = is_group_workload(workload)
    more = surplus_groups(workload) if groups else 0
    desired = asked if desired is None else int(desired) - more
    updated = _updated_groups(workload, pods, desired) if groups else int(status.get("updatedReplicas") or 0)
    return PoolState(
        name=pool.name,
        role=str(pool.role),
        desired=desired,
        ready=int(status.get("readyReplicas") or 0),
        updated=updated if current else 0,
        existing=int(status.get("replicas") or 0),
        is_settled=not more if groups else _is_settled(workload, pods),
        asleep=sum(
            label(pod, POOL_LABEL) == pool.name and is_ready(pod) and parse_sleep_mark(annotations_of(pod)) is not None
            for pod in pods
            if not is_deleting(pod)
        ),
        note=notes.get(pool.name, ""),
    )


def _is_settled(workload: Manifest, pods: Sequence[Manifest]) -> bool:
    """Are the numbers of a Deployment about its present template? Where only its number of instances was changed since they were
    told, they are: none of its pods is of another template, and nothing is replaced."""
    status = workload.get("status") or {}
    if int(status.get("observedGeneration") or 0) >= generation_of(workload):
        return True
    pool, made = label(workload, POOL_LABEL), annotation(workload, POD_REVISION)
    ours = [pod for pod in pods if label(pod, POOL_LABEL) == pool and not is_deleting(pod)]
    counted = min(int(status.get("replicas") or 0), int((workload.get("spec") or {}).get("replicas") or 0))
    return len(ours) >= counted and all(label(pod, POD_REVISION) == made for pod in ours)


def _updated_groups(workload: Manifest, pods: Sequence[Manifest], desired: int) -> int:
    """Groups of a LeaderWorkerSet that are made of its present template, by their leaders, of the ``desired`` ones: one that is there
    beyond them replaces none yet. Its own numbers do not say which template they are about: it has no ``observedGeneration``."""
    pool, made = label(workload, POOL_LABEL), annotation(workload, POD_REVISION)
    leaders = [
        pod
        for pod in pods
        if label(pod, POOL_LABEL) == pool and label(pod, ENDPOINT_LABEL) == "true" and not is_deleting(pod)
    ]
    new = sum(label(pod, POD_REVISION) == made for pod in leaders)
    return max(0, min(new, desired - (len(leaders) - new)))


def count_ready_pods(pods: Sequence[Manifest]) -> int:
    """How many of these pods are ready and not about to go."""
    return sum(is_ready(pod) and not is_deleting(pod) for pod in pods)
