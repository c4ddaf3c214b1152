"""Scale target of a cluster: informers of models, workloads, pods and accelerator classes.

Nothing is observed while a watch is broken or was never listed: decisions would rest on old
objects. A watch without changes is up to date, since the API server sends a bookmark each minute;
without it the watch counts as broken.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from pydantic import ValidationError

from fairlead.api.builtin_accelerators import builtin_accelerators
from fairlead.api.spec.accelerator_class import AcceleratorClassSpec
from fairlead.api.v1alpha1 import ModelDeploymentSpec
from fairlead.errors import FairleadError, Unavailable
from fairlead.fleet.kubernetes.spec_cache import ParsedModel, SpecCache, trim_model
from fairlead.fleet.labels import (
    ENDPOINT_LABEL,
    FIELD_MANAGER,
    INSTALLATION_LABEL,
    MANAGED_BY_LABEL,
    MODEL_LABEL,
    POD_REVISION_LABEL,
    POOL_LABEL,
    SURGE_ANNOTATION,
    installation_of,
    parse_sleep_mark,
    used_pod_annotations,
)
from fairlead.kube.client import KubeApi
from fairlead.kube.field_managers import replicas_managers
from fairlead.kube.informer import Informer
from fairlead.kube.resources import (
    ACCELERATOR_CLASSES,
    DEPLOYMENTS,
    LEADER_WORKER_SETS,
    MODEL_DEPLOYMENTS,
    PODS,
    Manifest,
    ObjectSelection,
    Resource,
    annotations_of,
    is_deleting,
    key_of,
    label_selector,
    labels_of,
    metadata_of,
    name_of,
    namespace_of,
    selected_fields,
    uid_of,
)
from fairlead.kube.store import ObjectStore, drop_managed_fields
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead.runtime.clock import Clock, Pacing
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
_METADATA_FIELDS: Final = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp")
_LABELS: Final = (MODEL_LABEL, POOL_LABEL, ENDPOINT_LABEL, POD_REVISION_LABEL, INSTALLATION_LABEL)
_WORKLOAD_ANNOTATIONS: Final = (SURGE_ANNOTATION, POD_REVISION_LABEL)
_STATUS_FIELDS: Final = ("phase", "conditions", "containerStatuses", "podIP")
_DISCOVERY_SECONDS: Final = 60.0
"""Time between checks whether the cluster has the kind LeaderWorkerSet."""


class ModelIndex:
    """Objects by the key of their model. It follows the changes of one or more informers.

    Why: each write of a tick looks up the objects of one model, among those of all models.
    """

    def __init__(self) -> None:
        self._objects: dict[str, dict[tuple[str, str], Manifest]] = {}
        self._models: dict[tuple[str, str], str] = {}

    def apply(self, event: WatchEvent) -> None:
        """Applies the difference that an informer reports."""
        found = event.object
        key = (str(found.get("kind", "")), key_of(found))
        before = self._models.pop(key, None)
        if before is not None:
            del self._objects[before][key]
            if not self._objects[before]:
                del self._objects[before]
        if event.type is not WatchEventType.DELETED:
            model = f"{namespace_of(found)}/{labels_of(found).get(MODEL_LABEL)}"
            self._models[key] = model
            self._objects.setdefault(model, {})[key] = found

    def of_model(self, model: str) -> Sequence[Manifest]:
        return tuple(self._objects.get(model, {}).values())

    def by_model(self) -> dict[str, Sequence[Manifest]]:
        return {model: tuple(objects.values()) for model, objects in self._objects.items()}


class KubernetesTarget:
    """The scale target of a cluster, and the source of its workloads and pods.

    namespaces: of the models that are scaled; empty: all.
    random: returns a uniform random number from 0 to 1.
    sleep_status: returns the state of sleeping pods.
    """

    def __init__(
        self,
        api: KubeApi,
        clock: Clock,
        random: Callable[[], float],
        *,
        namespaces: Sequence[str] = (),
        interval_seconds: float = 5.0,
        sleep_status: Callable[[], SleepStatus] = SleepStatus,
    ) -> None:
        self._sleep_status = sleep_status
        self._api = api
        self._clock = clock
        self._random = random
        self._interval_seconds = interval_seconds
        self.installation = ""
        """The id of ours. Models of other ones are unknown here."""
        self._notes: list[str] = []
        self._namespaces: tuple[str | None, ...] = tuple(dict.fromkeys(namespaces)) or (None,)
        self._specs = SpecCache()
        self._informers: dict[tuple[Resource, str | None], Informer] = {}
        self._workload_index = ModelIndex()
        self._pod_index = ModelIndex()
        for namespace in self._namespaces:
            self._add_informer(MODEL_DEPLOYMENTS, namespace, None, trim_model)
            self._add_informer(DEPLOYMENTS, namespace, _MANAGED_SELECTOR, trim_workload)
            self._add_informer(PODS, namespace, MODEL_LABEL, trim_pod)
        self._add_informer(ACCELERATOR_CLASSES, None, None)

    async def run(self) -> None:
        """Follows the cluster until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for informer in tuple(self._informers.values()):
                group.create_task(informer.run())
            group.create_task(self._watch_leader_worker_sets(group))

    async def _watch_leader_worker_sets(self, group: asyncio.TaskGroup) -> None:
        """Adds informers of LeaderWorkerSets once the cluster has this kind."""
        while True:
            try:
                if await self._api.has_resource(LEADER_WORKER_SETS):
                    break
            except FairleadError as error:
                _LOG.warning("it is unknown whether the cluster has LeaderWorkerSets: %s", error)
            await asyncio.sleep(_DISCOVERY_SECONDS)
        for namespace in self._namespaces:
            group.create_task(self._add_informer(LEADER_WORKER_SETS, namespace, _MANAGED_SELECTOR, trim_workload).run())

    def _add_informer(
        self,
        resource: Resource,
        namespace: str | None,
        labels: str | None,
        trim: Callable[[Manifest], Manifest] = drop_managed_fields,
    ) -> Informer:
        informer = Informer(
            self._api,
            ObjectSelection(resource, namespace, labels),
            Pacing(self._clock, self._random),
            store=ObjectStore(trim),
            on_change=self._indexes().get(resource),
        )
        informer.warn = partial(_LOG.warning, "cannot watch %s: %s", resource.plural)
        self._informers[resource, namespace] = informer
        return informer

    def _indexes(self) -> dict[Resource, Callable[[WatchEvent], None]]:
        workloads, pods = self._workload_index.apply, self._pod_index.apply
        return {DEPLOYMENTS: workloads, LEADER_WORKER_SETS: workloads, PODS: pods}

    async def observe(self) -> Mapping[str, ModelState]:
        """Returns every model with a pool to scale. Raises Unavailable while the cluster cannot be
        followed.
        """
        if reason := self.sync_blocked_reason():
            raise Unavailable(reason)
        if (notes := self.notes()) != self._notes:
            self._notes = notes
            _LOG.warning("%s", notes[0] if notes else "no model is left to another installation")
        accelerators, _ = self._specs.accelerators(self._items(ACCELERATOR_CLASSES))
        return model_states(
            ClusterSnapshot(
                models=self._read_models(),
                workloads=self._workload_index.by_model(),
                pods=self._pod_index.by_model(),
                classes=self._accelerator_classes(),
                profiles={name: known.profile for name, known in accelerators.items()},
                wall=self._clock.wall(),
                interval_seconds=self._interval_seconds,
                sleep_status=self._sleep_status(),
            )
        )

    def sync_blocked_reason(self) -> str:
        """Returns the reason why the cluster cannot be watched; empty if it can.

        Namespaces in which lists are refused do not count, unless it is all of them.
        """
        allowed = [informer for informer in self._informers.values() if not informer.is_refused]
        if not any(informer.resource is MODEL_DEPLOYMENTS for informer in allowed):
            allowed = list(self._informers.values())
        return sync_blocked_reason(
            WatchStatus(informer.resource, informer.is_synced, informer.problem) for informer in allowed
        )

    def models(self) -> dict[str, Manifest]:
        return dict(self._models())

    def model(self, key: str) -> Manifest | None:
        """Returns our ModelDeployment by `namespace/name`; None if there is none."""
        informers = (informer for (resource, _), informer in self._informers.items() if resource is MODEL_DEPLOYMENTS)
        model = next((informer.items[key] for informer in informers if key in informer.items), None)
        return None if model is None or self._other_installation(model) else model

    def notes(self) -> list[str]:
        """Returns a text on the models of other installations; empty if there are none."""
        others = sorted(self._other_installations().items())
        text = "models that are left to another installation"
        return [f"{text}: {len(others)}, such as {' of '.join(others[0])}"] if others else []

    def _other_installations(self) -> dict[str, str]:
        found = {key_of(model): self._other_installation(model) for model in self._items(MODEL_DEPLOYMENTS)}
        return {key: installation for key, installation in found.items() if installation}

    def _other_installation(self, model: Manifest) -> str:
        found = installation_of(map(labels_of, self._owned_workloads(model)))
        return "" if found == self.installation else found

    def foreign_writers(self) -> dict[str, dict[str, str]]:
        return foreign_writers(self._read_models(), self._workload_index.by_model())

    def _spec(self, key: str) -> ModelDeploymentSpec | None:
        """Returns the specification of one model; None if there is none, or it cannot be read."""
        model = self.model(key)
        if model is None or is_deleting(model):
            return None
        return self._specs.find(key, model).spec

    def _read_models(self) -> Sequence[ParsedModel]:
        return self._specs.models({key: model for key, model in self._models() if not is_deleting(model)})

    def workload(self, key: str, pool: str) -> Manifest | None:
        """Returns the Deployment or LeaderWorkerSet of a pool; None if the current model of this
        name has none.
        """
        return self._workloads_by_pool(key).get(pool)

    def _workloads_by_pool(self, key: str) -> dict[str, Manifest]:
        """Returns the workloads of the current model of this name, the first one of each pool."""
        pools: dict[str, Manifest] = {}
        model = self.model(key)
        for workload in () if model is None else self._owned_workloads(model):
            pools.setdefault(labels_of(workload).get(POOL_LABEL, ""), workload)
        return pools

    def _owned_workloads(self, model: Manifest) -> Iterable[Manifest]:
        for workload in self._workload_index.of_model(key_of(model)):
            owners = metadata_of(workload).get("ownerReferences") or []
            if not is_deleting(workload) and any(owner.get("uid") == uid_of(model) for owner in owners):
                yield workload

    def pods(self, key: str, pool: str) -> Sequence[Manifest]:
        return [pod for pod in self._pod_index.of_model(key) if labels_of(pod).get(POOL_LABEL) == pool]

    def sleep_level(self, key: str) -> int:
        """Returns the sleep level of a model's engines; 1 if the model has no sleep tier."""
        spec = self._spec(key)
        tier = None if spec is None else sleep_tier(spec)
        return 1 if tier is None else tier.level

    def marked_pods(self) -> Mapping[str, Sequence[Manifest]]:
        """Returns all pods of this installation with a sleep mark, by the key of their model."""
        others = self._other_installations()
        marked = {
            key: [pod for pod in pods if parse_sleep_mark(annotations_of(pod)) is not None]
            for key, pods in self._pod_index.by_model().items()
            if key not in others
        }
        return {key: pods for key, pods in marked.items() if pods}

    def released_pools(self) -> frozenset[tuple[str, str]]:
        """Returns the pools, by model and pool, about which the autoscaler no longer decides.

        A pool without a workload, or of a model that cannot be read, is none of them.
        """
        return frozenset(
            (model.key, pool)
            for model in self._read_models()
            if model.spec is not None
            for pool, workload in self._workloads_by_pool(model.key).items()
            if is_released(model.spec, workload)
        )

    def _models(self) -> Iterable[tuple[str, Manifest]]:
        models = self._items(MODEL_DEPLOYMENTS)
        return ((key_of(model), model) for model in models if not self._other_installation(model))

    def _items(self, resource: Resource) -> Iterable[Manifest]:
        for (kind, _), informer in self._informers.items():
            if kind is resource:
                yield from informer.items.values()

    def _accelerator_classes(self) -> dict[str, AcceleratorClassSpec]:
        classes = {name: accelerator.spec for name, accelerator in builtin_accelerators().items()}
        for manifest in self._items(ACCELERATOR_CLASSES):
            try:
                classes[name_of(manifest)] = AcceleratorClassSpec.model_validate(manifest.get("spec") or {})
            except ValidationError:
                continue  # the operator reports it where a pool names it
        return classes


def trim_workload(workload: Manifest) -> Manifest:
    """Returns the parts of a Deployment or LeaderWorkerSet that are used: its number, the writers
    of that, and its owner.
    """
    metadata = selected_fields(metadata_of(workload), (*_METADATA_FIELDS, "ownerReferences"))
    metadata["labels"] = selected_fields(labels_of(workload), _LABELS)
    metadata["annotations"] = selected_fields(annotations_of(workload), _WORKLOAD_ANNOTATIONS)
    fields: Manifest = {"f:spec": {"f:replicas": {}}}
    metadata["managedFields"] = [{"manager": name, "fieldsV1": fields} for name in replicas_managers(workload)]
    spec = {"replicas": (workload.get("spec") or {}).get("replicas")}
    return {"apiVersion": workload["apiVersion"], "kind": workload["kind"], "metadata": metadata, "spec": spec}


def trim_pod(pod: Manifest) -> Manifest:
    """Returns the parts of a pod that are used, without its specification."""
    metadata = selected_fields(metadata_of(pod), _METADATA_FIELDS)
    metadata["labels"] = selected_fields(labels_of(pod), _LABELS)
    metadata["annotations"] = used_pod_annotations(annotations_of(pod))
    status = {name: value for name, value in (pod.get("status") or {}).items() if name in _STATUS_FIELDS}
    return {"apiVersion": pod["apiVersion"], "kind": pod["kind"], "metadata": metadata, "status": status}
