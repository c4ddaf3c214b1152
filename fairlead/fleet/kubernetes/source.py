"""Watches the fleet of a cluster with informers of models, classes and pods.

A new snapshot follows shortly after a change. While the API server is away or refuses, the last
fleet stays in use; `warnings` says since when and why.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Container, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from fairlead.errors import FairleadError
from fairlead.fleet.client_names import NameHistory
from fairlead.fleet.endpoint_address import ENDPOINT_SECRETS_FOLDER
from fairlead.fleet.kubernetes.builder import (
    ClusterObjects,
    FleetResult,
    PodSelection,
    build_fleet,
    pod_selections,
    trim_service,
)
from fairlead.fleet.kubernetes.claimant_objects import adapter_cache, route_cache
from fairlead.fleet.kubernetes.pod_instances import trim_pod
from fairlead.fleet.kubernetes.spec_cache import ParsedModel, SpecCache, trim_model
from fairlead.fleet.labels import MODEL_LABEL
from fairlead.fleet.model import Fleet
from fairlead.kube.client import KubeApi
from fairlead.kube.informer import KUBE_WATCH_SILENCE_SECONDS, Informer
from fairlead.kube.resources import (
    ACCELERATOR_CLASSES,
    MODEL_ADAPTERS,
    MODEL_DEPLOYMENTS,
    MODEL_ROUTES,
    PODS,
    SERVICES,
    Manifest,
    ObjectSelection,
    Resource,
)
from fairlead.kube.store import ObjectStore
from fairlead.limits import Limits
from fairlead.runtime.clock import Pacing

KUBE_FLEET_BATCH_SECONDS: Final = 0.05
"""Limit: changes of the cluster are batched this long for a new fleet."""

_LOG = logging.getLogger("fairlead.fleet.model")
_MAX_SHOWN_PROBLEMS = 5
_AGE_STEP_SECONDS = 10
_NEEDED = frozenset({MODEL_DEPLOYMENTS, PODS})
"""Kinds without which there is no fleet."""
_CLAIMANTS = {MODEL_ROUTES: "routes", MODEL_ADAPTERS: "adapters"}
"""Kinds that clusters of an earlier release lack, with their name in messages."""
_TRIMS = {
    MODEL_DEPLOYMENTS: trim_model,
    **dict.fromkeys(_CLAIMANTS, trim_model),
    PODS: trim_pod,
    SERVICES: trim_service,
}


class KubeFleetSource:
    """A FleetSource for a cluster. It closes `api` when it ends.

    namespaces: namespaces whose models are served; all if empty.
    client_names: owners of client names that an administrator assigned.
    endpoint_namespaces: namespaces whose models may name endpoints.
    endpoint_secrets: folder of the Secrets of endpoints; set before `watch`.
    follows_claimants: the fleet has the cluster's routes and adapters; set before `watch`.
    """

    def __init__(
        self,
        api: KubeApi,
        pacing: Pacing,
        *,
        namespaces: Sequence[str] = (),
        client_names: Mapping[str, str] | None = None,
        endpoint_namespaces: Container[str] = frozenset(),
        limits: Limits | None = None,
    ) -> None:
        self._api = api
        self._pacing = pacing
        self._limits = limits or Limits()
        self._changed = asyncio.Event()
        self._specs = SpecCache()
        self._routes = route_cache()
        self._adapters = adapter_cache()
        self.follows_claimants = False
        self._namespaces: tuple[str | None, ...] = tuple(dict.fromkeys(namespaces)) or (None,)
        self._informers: dict[tuple[Resource, str | None], Informer] = {}
        self._selection_informers: dict[PodSelection, Informer] = {}
        self._endpoint_namespaces = endpoint_namespaces
        self.endpoint_secrets = ENDPOINT_SECRETS_FOLDER
        self._judges_services = endpoint_namespaces != frozenset()
        self._name_history = NameHistory(client_names or {})
        self._problems: tuple[str, ...] = ()
        self._fleet: Fleet | None = None
        self.excluded: Mapping[str, str] = {}

    async def watch(self) -> AsyncIterator[Fleet]:
        """Yields the fleet once models and pods have been listed, then a new one after every
        change.
        """
        try:
            for namespace in self._namespaces:
                self._informers[MODEL_DEPLOYMENTS, namespace] = self._start_informer(MODEL_DEPLOYMENTS, namespace)
                self._informers[PODS, namespace] = self._start_informer(PODS, namespace, MODEL_LABEL)
                for kind in _CLAIMANTS if self.follows_claimants else ():
                    self._informers[kind, namespace] = self._start_informer(kind, namespace)
                if self._judges_services:
                    self._informers[SERVICES, namespace] = self._start_informer(SERVICES, namespace, MODEL_LABEL)
            self._informers[ACCELERATOR_CLASSES, None] = self._start_informer(ACCELERATOR_CLASSES, None)
            while True:
                await self._changed.wait()
                self._changed.clear()
                fleet = await self._next_fleet_or_none()
                if fleet is not None:
                    yield fleet
                await self._pacing.pause(KUBE_FLEET_BATCH_SECONDS)
        finally:
            for informer in (*self._informers.values(), *self._selection_informers.values()):
                await informer.stop()
            await self._api.close()

    def warnings(self) -> list[str]:
        """Returns current problems: first with the connection to the cluster, then the first
        `_MAX_SHOWN_PROBLEMS` with its objects.
        """
        more = len(self._problems) - _MAX_SHOWN_PROBLEMS
        shown = [
            *self._problems[:_MAX_SHOWN_PROBLEMS],
            *([f"and {more} more problems in the cluster"] if more > 0 else []),
        ]
        away = self._staleness()
        lost = [] if away else self._lost_claimants()
        return [away, *shown] if away else [*lost, *shown]

    def age_seconds(self) -> float | None:
        """Returns the highest age of an informer's last contact with the API server, in seconds.

        None until every informer had contact. Informers of refused namespaces do not count.
        """
        informers = [one for one in self._all_informers() if one.resource not in _CLAIMANTS]
        ages = [informer.age_seconds() for informer in informers if not informer.is_refused]
        heard = [age for age in ages if age is not None]
        return max(heard) if heard and len(heard) == len(ages) else None

    def _lost_claimants(self) -> list[str]:
        """Returns warnings if routes or adapters cannot be watched: the kind may be missing."""
        problems: dict[Resource, FairleadError] = {}
        for (resource, _), informer in self._informers.items():
            if resource in _CLAIMANTS and informer.problem is not None:
                problems.setdefault(resource, informer.problem)
        return [
            f"cannot watch the {_CLAIMANTS[resource]} of the cluster; the last ones stay: {problem}"
            for resource, problem in problems.items()
        ]

    def _staleness(self) -> str | None:
        """Returns the reason why the fleet may be out of date; None if it is fresh."""
        for informer in self._all_informers():
            if informer.resource in _CLAIMANTS:
                continue
            age, problem = informer.age_seconds(), informer.problem
            stale = age is not None and age > 2 * KUBE_WATCH_SILENCE_SECONDS
            if problem is None and not stale:
                continue
            since = "was never listed" if age is None else f"had its last event {_format_age(age)} ago"
            why = f": {problem}" if problem is not None else ""
            return f"cannot watch the cluster; the last fleet stays: {informer.resource.kind} {since}{why}"
        return None

    def _all_informers(self) -> list[Informer]:
        return [*self._informers.values(), *self._selection_informers.values()]

    # --- informers -------------------------------------------------------------------------

    def _start_informer(self, resource: Resource, namespace: str | None, labels: str | None = None) -> Informer:
        informer = Informer(
            self._api,
            ObjectSelection(resource, namespace, labels),
            self._pacing,
            store=ObjectStore(_TRIMS.get(resource)),
            on_change=lambda _: self._changed.set(),
            report=lambda _: self._changed.set(),
        )
        informer.on_synced = self._changed.set  # also if there were no objects
        informer.warn = partial(_LOG.warning, "cannot watch the cluster: %s: %s", resource.plural)
        informer.start()
        return informer

    async def _watch_selections(self, models: Sequence[ParsedModel]) -> None:
        """Watches the pods that external pools select, with one watch per namespace."""
        wanted = pod_selections(models, self._limits)
        for gone in self._selection_informers.keys() - wanted:
            await self._selection_informers.pop(gone).stop()
        for namespace, labels in wanted - self._selection_informers.keys():
            self._selection_informers[namespace, labels] = self._start_informer(PODS, namespace, labels)

    # --- the fleet -------------------------------------------------------------------------

    async def _next_fleet_or_none(self) -> Fleet | None:
        """Returns the next fleet; None after an internal error.

        Why: an internal error about one object must not end the watch. The last fleet stays in use.
        """
        try:
            return await self._next_fleet()
        except Exception as error:  # noqa: BLE001  # logged, and shown in the warnings
            _LOG.exception("cannot read the objects of the cluster; the last fleet stays")
            self._problems = (f"cannot read the objects of the cluster; the last fleet stays: {error!r}",)
            return None

    async def _next_fleet(self) -> Fleet | None:
        """Returns the next fleet; None if nothing changed, or before models and pods are listed.

        A namespace in which lists are refused is left out, unless it was listed before.
        """
        needed = [informer for (resource, _), informer in self._informers.items() if resource in _NEEDED]
        if not all(informer.is_usable for informer in needed) or not any(informer.is_synced for informer in needed):
            return None
        models = self._specs.models(self._objects_of(MODEL_DEPLOYMENTS))
        await self._watch_selections(models)
        others = self._all_informers()
        if self._fleet is None and not all(informer.is_known for informer in others):
            return None
        return self._publish_if_changed(self._build(models))

    def _publish_if_changed(self, found: FleetResult) -> Fleet | None:
        for what in found.excluded.keys() - self.excluded.keys():
            _LOG.debug("not in the fleet: %s: %s", what, found.excluded[what])
        self.excluded = found.excluded
        if found.fleet is self._fleet:
            return None
        self._fleet = found.fleet
        return found.fleet

    def _build(self, models: Sequence[ParsedModel]) -> FleetResult:
        classes = self._informers[ACCELERATOR_CLASSES, None]
        accelerators, broken = self._specs.accelerators(classes.items.values())
        objects = ClusterObjects(
            models=models,
            accelerators=accelerators,
            pods=self._objects_of(PODS),
            selected_pods={
                where: informer.items for where, informer in self._selection_informers.items() if informer.is_synced
            },
            name_history=self._name_history,
            endpoint_namespaces=self._endpoint_namespaces,
            endpoint_secrets=self.endpoint_secrets,
            services=self._objects_of(SERVICES),
            routes=self._routes.parse(self._objects_of(MODEL_ROUTES)),
            adapters=self._adapters.parse(self._objects_of(MODEL_ADAPTERS)),
        )
        found = build_fleet(objects, self._fleet, self._limits)
        self._name_history = replace(self._name_history, remembered=found.name_owners)
        self._problems = (*broken, *found.problems)
        return found

    def _objects_of(self, resource: Resource) -> dict[str, Manifest]:
        return {
            key: one
            for (watched, _), informer in self._informers.items()
            if watched is resource
            for key, one in informer.items.items()
        }


def _format_age(seconds: float) -> str:
    rounded = int(seconds // _AGE_STEP_SECONDS) * _AGE_STEP_SECONDS
    return f"more than {rounded} s" if rounded else "a moment"
