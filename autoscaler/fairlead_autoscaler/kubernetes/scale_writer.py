"""Writes numbers of instances: by ``/scale`` of the pool's workload, under a field manager of our
own.

The operator begins with a number; the first one that we write takes it over, and from then on the
operator leaves it out of what it applies. Anybody else who writes it keeps it: each write names the
version at which nobody else had, so that the API server refuses it when somebody was faster. A
LeaderWorkerSet is applied itself, with nothing but its number: the API server (1.36) converts no
Scale that is applied to a kind of a definition of one's own, and what is merged into one loses its
owner at zero.

Who leaves when a Deployment shrinks its controller chooses, by
``controller.kubernetes.io/pod-deletion-cost`` before anything that
serves: those that are to go get a cost below the usual zero, in their order, and those that were to
    go once and stay lose it. Each
drains as any pod does that is deleted: gateways send it nothing new at once, and its hook waits for
what it has.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from fairlead.errors import Unavailable
from fairlead.fleet.labels import (
    AUTOSCALER_FIELD_MANAGER,
    FIELD_MANAGER,
    SLEEP_ANNOTATION,
    SleepMark,
    SleepPhase,
    parse_sleep_mark,
)
from fairlead.kube.client_protocol import KubeClient
from fairlead.kube.errors import Conflict, NotFound
from fairlead.kube.field_managers import replicas_managers
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
from fairlead_autoscaler.kubernetes.sleep_labels import SleepSteps, is_engine_pod, plan_sleep_steps, pool_sleep_state

DELETION_COST: Final = "controller.kubernetes.io/pod-deletion-cost"
_MAX_ATTEMPTS: Final = 4
"""Times that a write is tried when the object changed under it: its controllers write its status
often while it is scaled."""


class WorkloadSource(Protocol):
    """Where a pool is in the cluster."""

    def workload(self, key: str, pool: str) -> Manifest | None:
        """The Deployment or LeaderWorkerSet of a pool, as last heard of; None where there is
        none.
        """
        ...

    def pods(self, key: str, pool: str) -> Sequence[Manifest]:
        """The pods of a pool, likewise."""
        ...

    def sleep_level(self, key: str) -> int:
        """How the engines of a model are to sleep."""
        ...


def foreign_writer(live: Manifest) -> str | None:
    """Who else has written the number of a workload; None where it is ours to write."""
    return min(
        (one for one in replicas_managers(live) if one not in (FIELD_MANAGER, AUTOSCALER_FIELD_MANAGER)), default=None
    )


def deletion_costs(pods: Sequence[Manifest], removal_order: Sequence[str]) -> Mapping[str, str | None]:
    """The deletion costs to write, by the pod's name, None to remove one. ``leave`` are the names
    of those that are to go, the first of them first."""
    wanted = {name: str(place - len(removal_order)) for place, name in enumerate(removal_order)}
    found: dict[str, str | None] = {}
    for pod in pods:
        if is_deleting(pod):
            continue
        name, now = name_of(pod), annotations_of(pod).get(DELETION_COST)
        if name in wanted:
            if now != wanted[name]:
                found[name] = wanted[name]
        elif now is not None and now.startswith("-"):  # a cost of somebody else's making is left alone
            found[name] = None
    return found


class ScaleWriter:
    """A ``fairlead.fleet.model.Scaler``. ``wished`` is how many are to sleep, by model and pool, as
    it was asked for last.
    """

    def __init__(self, api: KubeClient, workloads: WorkloadSource) -> None:
        self._api = api
        self._workloads = workloads
        self.desired_asleep: dict[tuple[str, str], int] = {}

    async def scale(self, key: str, pool: str, replicas: int, leaving: Sequence[str] = (), asleep: int = 0) -> None:
        """Ask for ``replicas`` of a pool that serve and ``asleep`` that sleep. Raises Unavailable
        when there is no such workload or its number is somebody else's, and KubeError for what the
        API server says."""
        found = self._workloads.workload(key, pool)
        if found is None:
            raise Unavailable(f"pool {pool} of {key} has no workload")
        stuck = 0
        if resource_of(found) is DEPLOYMENTS:
            pods = self._workloads.pods(key, pool)
            now = pool_sleep_state([one for one in pods if is_engine_pod(one)])
            stuck = len(now.stuck)
            todo = plan_sleep_steps(now, replicas, asleep, leaving)
            over = len(now.serving) + len(now.asleep) - replicas - asleep
            await self._mark_sleep(key, pods, todo)
            await self._write_deletion_costs(pods, todo.removal_order[: max(0, over)])
        self.desired_asleep[key, pool] = asleep
        for attempt in range(_MAX_ATTEMPTS):
            live = await self._get_live(found, key, pool)
            if (other := foreign_writer(live)) is not None:
                raise Unavailable(f"{other} sets the number of pool {pool} of {key}")
            try:
                await self._write(live, replicas + asleep + stuck)
                return
            except (Conflict, NotFound):  # it is another now, or gone
                if attempt == _MAX_ATTEMPTS - 1:
                    raise

    async def _get_live(self, found: Manifest, key: str, pool: str) -> Manifest:
        try:
            return await self._api.get(resource_of(found), namespace_of(found), name_of(found))
        except NotFound:
            raise Unavailable(f"pool {pool} of {key} has no workload any more") from None

    async def _write(self, live: Manifest, replicas: int) -> None:
        if resource_of(live) is DEPLOYMENTS:
            await self._api.apply_scale(live, replicas, AUTOSCALER_FIELD_MANAGER)
            return
        # With its uid, or one that was deleted meanwhile would be made anew, of nothing but a
        # number.
        metadata = {name: metadata_of(live)[name] for name in ("name", "namespace", "uid", "resourceVersion")}
        body = {"apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": metadata}
        await self._api.apply({**body, "spec": {"replicas": replicas}}, AUTOSCALER_FIELD_MANAGER)

    async def _mark_sleep(self, key: str, pods: Sequence[Manifest], todo: SleepSteps) -> None:
        """Mark who is to sleep, so that gateways send nothing there; and who is to be woken."""
        for pod in pods:
            mark = parse_sleep_mark(annotations_of(pod))
            if name_of(pod) in todo.sleep and mark is None:
                wanted = SleepMark(self._workloads.sleep_level(key))
            elif name_of(pod) in todo.wake and mark is not None:
                wanted = SleepMark(mark.level, SleepPhase.WAKING)
            else:
                continue
            await self.write_sleep_mark(pod, wanted)

    async def write_sleep_mark(self, pod: Manifest, mark: SleepMark | None) -> None:
        """Write a pod's mark, or remove it; one that has gone by itself is left."""
        patch = {"metadata": {"annotations": {SLEEP_ANNOTATION: None if mark is None else mark.annotation_value()}}}
        with contextlib.suppress(NotFound):
            await self._api.patch_merge(PODS, namespace_of(pod), name_of(pod), patch, AUTOSCALER_FIELD_MANAGER)

    async def _write_deletion_costs(self, pods: Sequence[Manifest], leave: Sequence[str]) -> None:
        places = {name_of(one): namespace_of(one) for one in pods}
        for name, cost in deletion_costs(pods, leave).items():
            patch = {"metadata": {"annotations": {DELETION_COST: cost}}}
            try:
                await self._api.patch_merge(PODS, places[name], name, patch, AUTOSCALER_FIELD_MANAGER)
            except NotFound:
                continue  # it has gone by itself
