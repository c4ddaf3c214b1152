"""The cluster as a World: informers of models, their workloads, pods and accelerator classes.

Nothing is told while a watch is broken or was never listed: whoever decides then would decide on
what was. What a watch has been told of, though, is how things are, however little happens: the API
server sends a bookmark each minute, and one that stays away breaks it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

from pydantic import ValidationError

from fairlead.api import AcceleratorClassSpec, ModelDeploymentSpec, builtin_accelerators
from fairlead.errors import FairleadError, Unavailable
from fairlead.fleet.kubernetes.spec_cache import ParsedModel, SpecCache
from fairlead.fleet.labels import FIELD_MANAGER, MANAGED_BY_LABEL, MODEL_LABEL, POOL_LABEL, parse_sleep_mark
from fairlead.kube.client import KubeApi
from fairlead.kube.field_managers import replicas_managers
from fairlead.kube.informer import Informer, log_failures_once
from fairlead.kube.resources import (
    ACCELERATOR_CLASSES,
    DEPLOYMENTS,
    LEADER_WORKER_SETS,
    MODEL_DEPLOYMENTS,
    PODS,
    Manifest,
    Resource,
    annotations_of,
    is_deleting,
    label_selector,
    labels_of,
    metadata_of,
    name_of,
    namespace_of,
    uid_of,
)
from fairlead.kube.store import drop_managed_fields
from fairlead.runtime.clock import Clock
from fairlead_autoscaler.kubernetes.cluster_state import (
    ClusterSnapshot,
    WatchStatus,
    foreign_writers,
    is_released,
    model_states,
    sync_blocked_reason,
)
from fairlead_autoscaler.kubernetes.sleep_labels import SleepStatus
from fairlead_autoscaler.model_spec import sleep_tier
from fairlead_autoscaler.target import ModelState

_LOG = logging.getLogger("fairlead.autoscaler")
_MANAGED_SELECTOR: Final = label_selector({MANAGED_BY_LABEL: FIELD_MANAGER})
_METADATA_FIELDS: Final = ("name", "namespace", "uid", "labels", "annotations", "resourceVersion", "ownerReferences")
_STATUS_FIELDS: Final = ("phase", "conditions", "containerStatuses", "podIP")
_DISCOVERY_SECONDS: Final = 60.0
"""How often it is looked whether the cluster has come to know LeaderWorkerSets."""


class KubernetesTarget:
    """A World, and the Places of a scaler. ``namespaces`` are those whose models are scaled, all
    when empty.

    ``chance`` draws evenly from 0 to 1; ``pause`` waits for seconds; ``nursed`` tells of the pods
    that sleep.
    """

    def __init__(
        self,
        api: KubeApi,
        clock: Clock,
        random: Callable[[], float],
        *,
        namespaces: Sequence[str] = (),
        interval_seconds: float = 5.0,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        sleep_status: Callable[[], SleepStatus] = SleepStatus,
    ) -> None:
        self._sleep_status = sleep_status
        self._api = api
        self._clock = clock
        self._random = random
        self._pause = pause
        self._interval_seconds = interval_seconds
        self._namespaces: tuple[str | None, ...] = tuple(dict.fromkeys(namespaces)) or (None,)
        self._specs = SpecCache()
        self._informers: dict[tuple[Resource, str | None], Informer] = {}
        for place in self._namespaces:
            self._add_informer(MODEL_DEPLOYMENTS, place, None)
            self._add_informer(DEPLOYMENTS, place, _MANAGED_SELECTOR, trim_workload)
            self._add_informer(PODS, place, MODEL_LABEL, trim_pod)
        self._add_informer(ACCELERATOR_CLASSES, None, None)

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        async with asyncio.TaskGroup() as group:
            for informer in tuple(self._informers.values()):
                group.create_task(informer.run())
            group.create_task(self._watch_leader_worker_sets(group))

    async def _watch_leader_worker_sets(self, group: asyncio.TaskGroup) -> None:
        """LeaderWorkerSets may not be known to the cluster, and may come to be."""
        while True:
            try:
                if await self._api.has_resource(LEADER_WORKER_SETS):
                    break
            except FairleadError as error:
                _LOG.warning("it cannot be told whether there are LeaderWorkerSets: %s", error)
            await self._pause(_DISCOVERY_SECONDS)
        for place in self._namespaces:
            group.create_task(self._add_informer(LEADER_WORKER_SETS, place, _MANAGED_SELECTOR, trim_workload).run())

    def _add_informer(
        self,
        resource: Resource,
        place: str | None,
        labels: str | None,
        trim: Callable[[Manifest], Manifest] = drop_managed_fields,
    ) -> Informer:
        made = Informer(
            self._api,
            resource,
            self._clock,
            self._random,
            namespace=place,
            labels=labels,
            report=log_failures_once(_LOG, resource, lambda: made.problem),
            trim=trim,
        )
        self._informers[resource, place] = made
        return made

    # --- what is told
    # ---------------------------------------------------------------------------------------------------

    async def observe(self) -> Mapping[str, ModelState]:
        """Every model with a pool to scale. Raises Unavailable while the cluster cannot be
        followed.
        """
        if why := self.sync_blocked_reason():
            raise Unavailable(why)
        profiles, _ = self._specs.profiles(self._items(ACCELERATOR_CLASSES))
        return model_states(
            ClusterSnapshot(
                models=self._read_models(),
                workloads=self._by_model((DEPLOYMENTS, LEADER_WORKER_SETS)),
                pods=self._by_model((PODS,)),
                classes=self._accelerator_classes(),
                profiles=profiles,
                wall=self._clock.wall(),
                interval_seconds=self._interval_seconds,
                sleep_status=self._sleep_status(),
            )
        )

    def sync_blocked_reason(self) -> str:
        """Why the cluster cannot be followed, in words; empty while it can."""
        return sync_blocked_reason(
            WatchStatus(one.resource, one.is_synced, one.problem) for one in self._informers.values()
        )

    def models(self) -> dict[str, Manifest]:
        """Every ModelDeployment, by ``namespace/name``."""
        return dict(self._models())

    def model(self, key: str) -> Manifest | None:
        """One ModelDeployment, by ``namespace/name``."""
        found = (one.items.get(key) for (kind, _), one in self._informers.items() if kind is MODEL_DEPLOYMENTS)
        return next((one for one in found if one is not None), None)

    def foreign_writers(self) -> dict[str, dict[str, str]]:
        """Every model that the autoscaler is asked about: by pool, who else sets its number."""
        return foreign_writers(self._read_models(), self._by_model((DEPLOYMENTS, LEADER_WORKER_SETS)))

    def _spec(self, key: str) -> ModelDeploymentSpec | None:
        """What is wanted of one model; None where there is none, or it cannot be read."""
        return next((one.spec for one in self._read_models() if one.key == key), None)

    def _read_models(self) -> Sequence[ParsedModel]:
        return self._specs.models({key: one for key, one in self._models() if not is_deleting(one)})

    def workload(self, key: str, pool: str) -> Manifest | None:
        """The Deployment or LeaderWorkerSet of a pool of the model that has this name now."""
        uid = uid_of(self.model(key) or {})
        for one in self._by_model((DEPLOYMENTS, LEADER_WORKER_SETS)).get(key, ()):
            owners = metadata_of(one).get("ownerReferences") or []
            if (
                labels_of(one).get(POOL_LABEL) == pool
                and not is_deleting(one)
                and any(own.get("uid") == uid for own in owners)
            ):
                return one
        return None

    def pods(self, key: str, pool: str) -> Sequence[Manifest]:
        """The pods of a pool."""
        return [one for one in self._by_model((PODS,)).get(key, ()) if labels_of(one).get(POOL_LABEL) == pool]

    def sleep_level(self, key: str) -> int:
        """How the engines of a model are to sleep."""
        spec = self._spec(key)
        tier = None if spec is None else sleep_tier(spec)
        return 1 if tier is None else tier.level

    def marked_pods(self) -> Mapping[str, Sequence[Manifest]]:
        """Every pod that carries a mark of sleep, by its model's key."""
        found = {
            key: [one for one in pods if parse_sleep_mark(annotations_of(one)) is not None]
            for key, pods in self._by_model((PODS,)).items()
        }
        return {key: pods for key, pods in found.items() if pods}

    def is_released(self, key: str, pool: str) -> bool:
        """Does nobody here decide any more how many of this pool serve? Not where that cannot be
        told.
        """
        spec, workload = self._spec(key), self.workload(key, pool)
        return spec is not None and workload is not None and is_released(spec, workload)

    def _models(self) -> Iterable[tuple[str, Manifest]]:
        for (resource, _), informer in self._informers.items():
            if resource is MODEL_DEPLOYMENTS:
                yield from informer.items.items()

    def _items(self, resource: Resource) -> Iterable[Manifest]:
        for (kind, _), informer in self._informers.items():
            if kind is resource:
                yield from informer.items.values()

    def _by_model(self, resources: Sequence[Resource]) -> dict[str, list[Manifest]]:
        found: dict[str, list[Manifest]] = {}
        for resource in resources:
            for one in self._items(resource):
                found.setdefault(f"{namespace_of(one)}/{labels_of(one).get(MODEL_LABEL)}", []).append(one)
        return found

    def _accelerator_classes(self) -> dict[str, AcceleratorClassSpec]:
        found = {name: one.spec for name, one in builtin_accelerators().items()}
        for one in self._items(ACCELERATOR_CLASSES):
            try:
                found[name_of(one)] = AcceleratorClassSpec.model_validate(one.get("spec") or {})
            except ValidationError:
                continue  # the operator says so where a pool names it
        return found


def trim_workload(workload: Manifest) -> Manifest:
    """What is kept of a Deployment or LeaderWorkerSet: its number, who writes that, and whose it
    is.
    """
    metadata: Manifest = {
        name: metadata_of(workload)[name] for name in _METADATA_FIELDS if name in metadata_of(workload)
    }
    if is_deleting(workload):
        metadata["deletionTimestamp"] = metadata_of(workload)["deletionTimestamp"]
    fields: Manifest = {"f:spec": {"f:replicas": {}}}
    metadata["managedFields"] = [{"manager": one, "fieldsV1": fields} for one in replicas_managers(workload)]
    spec = {"replicas": (workload.get("spec") or {}).get("replicas")}
    return {"apiVersion": workload["apiVersion"], "kind": workload["kind"], "metadata": metadata, "spec": spec}


def trim_pod(pod: Manifest) -> Manifest:
    """What is kept of a pod: whose it is, and how it is; not what it was made of."""
    metadata = {name: value for name, value in metadata_of(pod).items() if name != "managedFields"}
    status = {name: value for name, value in (pod.get("status") or {}).items() if name in _STATUS_FIELDS}
    return {"apiVersion": pod["apiVersion"], "kind": pod["kind"], "metadata": metadata, "status": status}
