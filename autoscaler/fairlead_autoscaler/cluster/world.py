"""The cluster as a World: informers of models, their workloads, pods and accelerator classes.

Nothing is told while a watch is broken or was never listed: whoever decides then would decide on what was. What a watch has been told
of, though, is how things are, however little happens: the API server sends a bookmark each minute, and one that stays away breaks it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

from pydantic import ValidationError

from fairlead.api import AcceleratorClassSpec, ModelDeploymentSpec, builtin_accelerators
from fairlead.clock import Clock
from fairlead.cluster_labels import MANAGED_BY, MANAGER, MODEL, POOL, sleep_mark
from fairlead.errors import FairleadError, Unavailable
from fairlead.kube.cache import without_owners
from fairlead.kube.client import KubeApi
from fairlead.kube.informer import Informer, logged_once
from fairlead.kube.managers import replicas_writers
from fairlead.kube.resource import (
    ACCELERATOR_CLASSES,
    DEPLOYMENTS,
    LEADER_WORKER_SETS,
    MODEL_DEPLOYMENTS,
    PODS,
    Manifest,
    Resource,
    annotations_of,
    labels_of,
    leaving,
    metadata_of,
    name_of,
    namespace_of,
    selector,
    uid_of,
)
from fairlead.kubefleet.specs import ModelRead, Specs
from fairlead_autoscaler.cluster.facts import Followed, Known, hindrance, released, standing, states
from fairlead_autoscaler.cluster.marks import Nursed
from fairlead_autoscaler.tiers import tier_of
from fairlead_autoscaler.world import ModelState

_LOG = logging.getLogger("fairlead.autoscaler")
_OURS: Final = selector({MANAGED_BY: MANAGER})
_KEPT: Final = ("name", "namespace", "uid", "labels", "annotations", "resourceVersion", "ownerReferences")
_TOLD: Final = ("phase", "conditions", "containerStatuses", "podIP")
_SERVED_SECONDS: Final = 60.0
"""How often it is looked whether the cluster has come to know LeaderWorkerSets."""


class KubeWorld:
    """A World, and the Places of a scaler. ``namespaces`` are those whose models are scaled, all when empty.

    ``chance`` draws evenly from 0 to 1; ``pause`` waits for seconds; ``nursed`` tells of the pods that sleep.
    """

    def __init__(
        self,
        api: KubeApi,
        clock: Clock,
        chance: Callable[[], float],
        *,
        namespaces: Sequence[str] = (),
        interval_seconds: float = 5.0,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
        nursed: Callable[[], Nursed] = Nursed,
    ) -> None:
        self._nursed = nursed
        self._api = api
        self._clock = clock
        self._chance = chance
        self._pause = pause
        self._interval_seconds = interval_seconds
        self._places: tuple[str | None, ...] = tuple(dict.fromkeys(namespaces)) or (None,)
        self._specs = Specs()
        self._informers: dict[tuple[Resource, str | None], Informer] = {}
        for place in self._places:
            self._follow(MODEL_DEPLOYMENTS, place, None)
            self._follow(DEPLOYMENTS, place, _OURS, trimmed)
            self._follow(PODS, place, MODEL, slim)
        self._follow(ACCELERATOR_CLASSES, None, None)

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        async with asyncio.TaskGroup() as group:
            for informer in tuple(self._informers.values()):
                group.create_task(informer.run())
            group.create_task(self._groups(group))

    async def _groups(self, group: asyncio.TaskGroup) -> None:
        """LeaderWorkerSets may not be known to the cluster, and may come to be."""
        while True:
            try:
                if await self._api.serves(LEADER_WORKER_SETS):
                    break
            except FairleadError as error:
                _LOG.warning("it cannot be told whether there are LeaderWorkerSets: %s", error)
            await self._pause(_SERVED_SECONDS)
        for place in self._places:
            group.create_task(self._follow(LEADER_WORKER_SETS, place, _OURS, trimmed).run())

    def _follow(
        self,
        resource: Resource,
        place: str | None,
        labels: str | None,
        trim: Callable[[Manifest], Manifest] = without_owners,
    ) -> Informer:
        made = Informer(
            self._api,
            resource,
            self._clock,
            self._chance,
            namespace=place,
            labels=labels,
            report=logged_once(_LOG, resource, lambda: made.problem),
            trim=trim,
        )
        self._informers[resource, place] = made
        return made

    # --- what is told ---------------------------------------------------------------------------------------------------

    async def look(self) -> Mapping[str, ModelState]:
        """Every model with a pool to scale. Raises Unavailable while the cluster cannot be followed."""
        if why := self.away():
            raise Unavailable(why)
        profiles, _ = self._specs.profiles(self._items(ACCELERATOR_CLASSES))
        return states(
            Known(
                models=self._read(),
                workloads=self._by_model((DEPLOYMENTS, LEADER_WORKER_SETS)),
                pods=self._by_model((PODS,)),
                classes=self._classes(),
                profiles=profiles,
                wall=self._clock.wall(),
                interval_seconds=self._interval_seconds,
                nursed=self._nursed(),
            )
        )

    def away(self) -> str:
        """Why the cluster cannot be followed, in words; empty while it can."""
        return hindrance(Followed(one.resource, one.synced, one.problem) for one in self._informers.values())

    def models(self) -> dict[str, Manifest]:
        """Every ModelDeployment, by ``namespace/name``."""
        return dict(self._models())

    def model(self, key: str) -> Manifest | None:
        """One ModelDeployment, by ``namespace/name``."""
        found = (one.items.get(key) for (kind, _), one in self._informers.items() if kind is MODEL_DEPLOYMENTS)
        return next((one for one in found if one is not None), None)

    def standing(self) -> dict[str, dict[str, str]]:
        """Every model that the autoscaler is asked about: by pool, who else sets its number."""
        return standing(self._read(), self._by_model((DEPLOYMENTS, LEADER_WORKER_SETS)))

    def _spec(self, key: str) -> ModelDeploymentSpec | None:
        """What is wanted of one model; None where there is none, or it cannot be read."""
        return next((one.spec for one in self._read() if one.key == key), None)

    def _read(self) -> Sequence[ModelRead]:
        return self._specs.models({key: one for key, one in self._models() if not leaving(one)})

    def workload(self, key: str, pool: str) -> Manifest | None:
        """The Deployment or LeaderWorkerSet of a pool of the model that has this name now."""
        uid = uid_of(self.model(key) or {})
        for one in self._by_model((DEPLOYMENTS, LEADER_WORKER_SETS)).get(key, ()):
            owners = metadata_of(one).get("ownerReferences") or []
            if labels_of(one).get(POOL) == pool and not leaving(one) and any(own.get("uid") == uid for own in owners):
                return one
        return None

    def pods(self, key: str, pool: str) -> Sequence[Manifest]:
        """The pods of a pool."""
        return [one for one in self._by_model((PODS,)).get(key, ()) if labels_of(one).get(POOL) == pool]

    def level(self, key: str) -> int:
        """How the engines of a model are to sleep."""
        spec = self._spec(key)
        tier = None if spec is None else tier_of(spec)
        return 1 if tier is None else tier.level

    def marked(self) -> Mapping[str, Sequence[Manifest]]:
        """Every pod that carries a mark of sleep, by its model's key."""
        found = {
            key: [one for one in pods if sleep_mark(annotations_of(one)) is not None]
            for key, pods in self._by_model((PODS,)).items()
        }
        return {key: pods for key, pods in found.items() if pods}

    def released(self, key: str, pool: str) -> bool:
        """Does nobody here decide any more how many of this pool serve? Not where that cannot be told."""
        spec, workload = self._spec(key), self.workload(key, pool)
        return spec is not None and workload is not None and released(spec, workload)

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
                found.setdefault(f"{namespace_of(one)}/{labels_of(one).get(MODEL)}", []).append(one)
        return found

    def _classes(self) -> dict[str, AcceleratorClassSpec]:
        found = {name: one.spec for name, one in builtin_accelerators().items()}
        for one in self._items(ACCELERATOR_CLASSES):
            try:
                found[name_of(one)] = AcceleratorClassSpec.model_validate(one.get("spec") or {})
            except ValidationError:
                continue  # the operator says so where a pool names it
        return found


def trimmed(workload: Manifest) -> Manifest:
    """What is kept of a Deployment or LeaderWorkerSet: its number, who writes that, and whose it is."""
    metadata: Manifest = {name: metadata_of(workload)[name] for name in _KEPT if name in metadata_of(workload)}
    if leaving(workload):
        metadata["deletionTimestamp"] = metadata_of(workload)["deletionTimestamp"]
    fields: Manifest = {"f:spec": {"f:replicas": {}}}
    metadata["managedFields"] = [{"manager": one, "fieldsV1": fields} for one in replicas_writers(workload)]
    spec = {"replicas": (workload.get("spec") or {}).get("replicas")}
    return {"apiVersion": workload["apiVersion"], "kind": workload["kind"], "metadata": metadata, "spec": spec}


def slim(pod: Manifest) -> Manifest:
    """What is kept of a pod: whose it is, and how it is; not what it was made of."""
    metadata = {name: value for name, value in metadata_of(pod).items() if name != "managedFields"}
    status = {name: value for name, value in (pod.get("status") or {}).items() if name in _TOLD}
    return {"apiVersion": pod["apiVersion"], "kind": pod["kind"], "metadata": metadata, "status": status}
