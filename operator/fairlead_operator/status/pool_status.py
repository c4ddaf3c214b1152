"""Counts the instances of each pool, from its workload or its external pods. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fairlead.api.spec.pools import Pool
from fairlead.api.v1alpha1 import ModelDeploymentSpec
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


@dataclass(frozen=True, slots=True)
class ObservedPools:
    """The objects of a model in the cluster.

    endpoints: number of endpoints of each external pool.
    """

    children: Mapping[ChildKey, Manifest]
    pods: Sequence[Manifest] = ()
    endpoints: Mapping[str, int] = field(default_factory=dict)


def pool_states(
    spec: ModelDeploymentSpec,
    wanted: Sequence[Manifest],
    revision: str,
    observed: ObservedPools,
    notes: Mapping[str, str] | None = None,
) -> tuple[PoolState, ...]:
    """Returns the state of every pool, in the order of `spec`.

    notes: how the instances of a pool are being replaced.
    """
    workloads = {label(manifest, POOL_LABEL): manifest for manifest in wanted if manifest["kind"] in WORKLOAD_KINDS}
    return tuple(
        _external_state(pool, observed.endpoints.get(pool.name, 0))
        if pool.is_external
        else _workload_state(
            pool,
            spec.desired_instances(pool),
            _live_workload(pool.name, workloads.get(pool.name), observed.children),
            revision,
            observed.pods,
            notes or {},
        )
        for pool in spec.pools
    )


def _live_workload(pool: str, wanted: Manifest | None, live: Mapping[ChildKey, Manifest]) -> Manifest | None:
    """Returns the workload of a pool; None if there is none.

    A workload that cannot be rendered now counts too, since it still serves.
    """
    if wanted is not None:
        return live.get(child_key(wanted))
    running = (one for one in live.values() if one["kind"] in WORKLOAD_KINDS and not is_deleting(one))
    return next((one for one in running if label(one, POOL_LABEL) == pool), None)


def _external_state(pool: Pool, count: int) -> PoolState:
    return PoolState(pool.name, str(pool.role), count, count, count, count, is_external=True)


def _workload_state(
    pool: Pool,
    desired_by_spec: int,
    workload: Manifest | None,
    revision: str,
    pods: Sequence[Manifest],
    notes: Mapping[str, str],
) -> PoolState:
    if workload is None:
        return PoolState(pool.name, str(pool.role), desired_by_spec, 0, 0, 0, is_settled=False, exists_in_cluster=False)
    status = workload.get("status") or {}
    # The owner of the replica count (an autoscaler, `kubectl scale`) sets the desired number.
    desired = (workload.get("spec") or {}).get("replicas")
    is_current = annotation(workload, MODEL_REVISION_ANNOTATION) == revision
    is_group = is_group_workload(workload)
    surge = surplus_groups(workload) if is_group else 0
    desired = desired_by_spec if desired is None else int(desired) - surge
    existing = int(status.get("replicas") or 0)
    counted = _group_counts(workload, pods) if is_group else (int(status.get("updatedReplicas") or 0), existing)
    return PoolState(
        name=pool.name,
        role=str(pool.role),
        desired=desired,
        ready=int(status.get("readyReplicas") or 0),
        updated=_replaced_count(*counted, desired) if is_current else 0,
        existing=existing,
        is_settled=not surge if is_group else _is_settled(workload, pods),
        asleep=sum(
            label(pod, POOL_LABEL) == pool.name and is_ready(pod) and parse_sleep_mark(annotations_of(pod)) is not None
            for pod in pods
            if not is_deleting(pod)
        ),
        note=notes.get(pool.name, ""),
    )


def _is_settled(workload: Manifest, pods: Sequence[Manifest]) -> bool:
    """Returns True if the counts of a Deployment are about its current template.

    That is also the case if only its replica count changed since they were reported: none of its
    pods has another template.
    """
    status = workload.get("status") or {}
    if int(status.get("observedGeneration") or 0) >= generation_of(workload):
        return True
    pool, revision = label(workload, POOL_LABEL), annotation(workload, POD_REVISION)
    pool_pods = [pod for pod in pods if label(pod, POOL_LABEL) == pool and not is_deleting(pod)]
    counted = min(int(status.get("replicas") or 0), int((workload.get("spec") or {}).get("replicas") or 0))
    return len(pool_pods) >= counted and all(label(pod, POD_REVISION) == revision for pod in pool_pods)


def _replaced_count(updated: int, existing: int, desired: int) -> int:
    """Returns how many of the desired instances have the current template.

    An instance that starts in addition to an old one replaces nothing yet.
    """
    return max(0, min(updated, desired - (existing - updated)))


def _group_counts(workload: Manifest, pods: Sequence[Manifest]) -> tuple[int, int]:
    """Returns the number of groups with the current template, and of all groups.

    The LeaderWorkerSet's own counts do not say which template they are about: it has no
    `observedGeneration`. The groups are therefore counted by their leader pods.
    """
    pool, revision = label(workload, POOL_LABEL), annotation(workload, POD_REVISION)
    leaders = [
        pod
        for pod in pods
        if label(pod, POOL_LABEL) == pool and label(pod, ENDPOINT_LABEL) == "true" and not is_deleting(pod)
    ]
    return sum(label(pod, POD_REVISION) == revision for pod in leaders), len(leaders)


def count_ready_pods(pods: Sequence[Manifest]) -> int:
    return sum(is_ready(pod) and not is_deleting(pod) for pod in pods)
