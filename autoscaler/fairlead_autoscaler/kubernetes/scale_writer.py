"""Scale writer: writes numbers of instances through `/scale` of a pool's workload, under its own
field manager.

The operator begins with a number. The first write here takes it over, and from then on the operator
does not apply it. Any other writer keeps it: each write names the version that it is based on, so
that the API server refuses it after a change.

A LeaderWorkerSet is applied itself, with nothing but its number. The API server (1.36) does not
convert a Scale that is applied to a custom kind. A merged Scale loses its owner at zero.

The controller of a Deployment chooses the pods to delete by
`controller.kubernetes.io/pod-deletion-cost` first. The pods to remove get costs below the usual
zero, in their order. Pods that were to be removed once, and stay, lose theirs. Each drains like any
deleted pod: gateways send it nothing new at once, and its hook waits for its requests.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Final

from fairlead.errors import Unavailable
from fairlead.fleet.labels import (
    AUTOSCALER_FIELD_MANAGER,
    DELETION_COST_ANNOTATION,
    SLEEP_ANNOTATION,
    SleepMark,
    SleepPhase,
    parse_sleep_mark,
)
from fairlead.kube.client_protocol import KubeClient
from fairlead.kube.errors import Conflict, NotFound
from fairlead.kube.resources import (
    DEPLOYMENTS,
    PODS,
    Manifest,
    annotations_of,
    is_deleting,
    metadata_of,
    name_of,
    namespace_of,
    resource_of,
)
from fairlead_autoscaler.kubernetes.cluster_state import foreign_writer
from fairlead_autoscaler.kubernetes.sleep_labels import SleepSteps, is_engine_pod, plan_sleep_steps, pool_sleep_state
from fairlead_autoscaler.kubernetes.target import KubernetesTarget

_MAX_ATTEMPTS: Final = 4
"""The most attempts to write a number. The workload may change between read and write, since its
controllers write its status often while it is scaled.
"""


def deletion_costs(pods: Sequence[Manifest], removal_order: Sequence[str]) -> Mapping[str, str | None]:
    """Returns the deletion costs to write, by the pod's name; None removes one.

    removal_order: names of the pods to remove, the first of them first.
    """
    wanted = {name: str(place - len(removal_order)) for place, name in enumerate(removal_order)}
    costs: dict[str, str | None] = {}
    for pod in pods:
        if is_deleting(pod):
            continue
        name, now = name_of(pod), annotations_of(pod).get(DELETION_COST_ANNOTATION)
        if name in wanted:
            if now != wanted[name]:
                costs[name] = wanted[name]
        elif now is not None and now.startswith("-"):  # a cost that another writer set stays
            costs[name] = None
    return costs


class ScaleWriter:
    """The writer of the replica numbers of pools.

    desired_asleep: the last numbers of sleeping replicas, by model and pool.
    """

    def __init__(self, api: KubeClient, workloads: KubernetesTarget) -> None:
        self._api = api
        self._workloads = workloads
        self.desired_asleep: dict[tuple[str, str], int] = {}

    async def scale(self, key: str, pool: str, replicas: int, leaving: Sequence[str] = (), asleep: int = 0) -> None:
        """Writes the numbers of serving and sleeping replicas of a pool.

        For a Deployment it also writes sleep marks and deletion costs.

        leaving: names of the pods to remove first.

        Raises Unavailable if there is no workload or it has another owner, and KubeError for an
        error of the API server.
        """
        workload = self._workloads.workload(key, pool)
        if workload is None:
            raise Unavailable(f"pool {pool} of {key} has no workload")
        stuck = 0
        if resource_of(workload) is DEPLOYMENTS:
            pods = self._workloads.pods(key, pool)
            state = pool_sleep_state([pod for pod in pods if is_engine_pod(pod)])
            stuck = len(state.stuck)
            steps = plan_sleep_steps(state, replicas, asleep, leaving)
            surplus = len(state.serving) + len(state.asleep) - replicas - asleep
            await self._mark_sleep(key, pods, steps)
            await self._write_deletion_costs(pods, steps.removal_order[: max(0, surplus)])
        self.desired_asleep[key, pool] = asleep
        for attempt in range(_MAX_ATTEMPTS):
            live = await self._get_live(workload, key, pool)
            if (other := foreign_writer(live)) is not None:
                raise Unavailable(f"{other} sets the number of pool {pool} of {key}")
            try:
                await self._write(live, replicas + asleep + stuck)
                return
            except (Conflict, NotFound):
                if attempt == _MAX_ATTEMPTS - 1:
                    raise

    async def _get_live(self, workload: Manifest, key: str, pool: str) -> Manifest:
        try:
            return await self._api.get(resource_of(workload), namespace_of(workload), name_of(workload))
        except NotFound:
            raise Unavailable(f"pool {pool} of {key} no longer has a workload") from None

    async def _write(self, live: Manifest, replicas: int) -> None:
        if resource_of(live) is DEPLOYMENTS:
            await self._api.apply_scale(live, replicas, AUTOSCALER_FIELD_MANAGER)
            return
        # With its uid, so that a workload which was deleted meanwhile is not created again.
        metadata = {name: metadata_of(live)[name] for name in ("name", "namespace", "uid", "resourceVersion")}
        body = {"apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": metadata}
        await self._api.apply({**body, "spec": {"replicas": replicas}}, AUTOSCALER_FIELD_MANAGER)

    async def _mark_sleep(self, key: str, pods: Sequence[Manifest], steps: SleepSteps) -> None:
        """Marks pods that should sleep, so that gateways send them nothing, and pods that should
        wake.
        """
        level = self._workloads.sleep_level(key) if steps.sleep else 1
        to_sleep, to_wake = set(steps.sleep), set(steps.wake)
        for pod in pods:
            mark = parse_sleep_mark(annotations_of(pod))
            if name_of(pod) in to_sleep and mark is None:
                wanted = SleepMark(level)
            elif name_of(pod) in to_wake and mark is not None:
                wanted = SleepMark(mark.level, SleepPhase.WAKING)
            else:
                continue
            await self.write_sleep_mark(pod, wanted)

    async def write_sleep_mark(self, pod: Manifest, mark: SleepMark | None) -> None:
        """Writes or removes a pod's sleep mark. A pod that is gone is ignored."""
        patch = {"metadata": {"annotations": {SLEEP_ANNOTATION: None if mark is None else mark.annotation_value()}}}
        with contextlib.suppress(NotFound):
            await self._api.patch_merge(PODS, namespace_of(pod), name_of(pod), patch, AUTOSCALER_FIELD_MANAGER)

    async def _write_deletion_costs(self, pods: Sequence[Manifest], removal_order: Sequence[str]) -> None:
        namespaces = {name_of(pod): namespace_of(pod) for pod in pods}
        for name, cost in deletion_costs(pods, removal_order).items():
            patch = {"metadata": {"annotations": {DELETION_COST_ANNOTATION: cost}}}
            try:
                await self._api.patch_merge(PODS, namespaces[name], name, patch, AUTOSCALER_FIELD_MANAGER)
            except NotFound:
                continue
