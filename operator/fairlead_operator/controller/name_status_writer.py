"""Writes the status of routes and adapters: their names, and whether what they refer to exists.

Neither has children: gateways read them from the cluster themselves.
"""

from typing import Any

from fairlead.fleet.client_names import adapter_key
from fairlead.kube.client_protocol import KubeClient
from fairlead.kube.conditions import format_time
from fairlead.kube.errors import NotFound
from fairlead.kube.resources import Manifest, is_deleting
from fairlead.runtime.clock import Clock
from fairlead_operator.kube.object_cache import ObjectCache
from fairlead_operator.kube.object_trimming import trim_model
from fairlead_operator.kube.writer import WriteCounts
from fairlead_operator.object_metadata import STATUS_FIELD_MANAGER, generation_of, request_state
from fairlead_operator.status.adapter_status import adapter_status
from fairlead_operator.status.applied_status import has_changed, status_manifest
from fairlead_operator.status.route_status import route_status


class NameStatusWriter:
    """The control loop of routes and adapters."""

    def __init__(self, api: KubeClient, cache: ObjectCache, clock: Clock, counts: WriteCounts) -> None:
        self._api = api
        self._cache = cache
        self._clock = clock
        self._counts = counts

    async def reconcile(self, key: str) -> float | None:
        """Writes the status of a route or an adapter if it has changed. Raises KubeError.

        Returns 0 if it was changed meanwhile, else None. The event of that change is not new.

        key: of the claim of its names.
        """
        described = self._describe_adapter(key) if adapter_key(key) is not None else self._describe_route(key)
        if described is None:
            return None
        manifest, status = described
        if not has_changed(manifest, status):
            return None
        try:
            updated = await self._api.apply_status(status_manifest(manifest, status), STATUS_FIELD_MANAGER)
        except NotFound:
            return None  # it was deleted meanwhile
        self._cache.record_write(updated)
        self._counts.statuses += 1
        return 0.0 if request_state(trim_model(updated)) != request_state(manifest) else None

    def _describe_route(self, key: str) -> tuple[Manifest, dict[str, Any]] | None:
        """Returns a route with its status; None if there is nothing to write."""
        snapshot = self._cache.route_snapshot(key)
        if snapshot is None or is_deleting(snapshot.route):
            return None
        route, now = snapshot.route, format_time(self._clock.wall())
        return route, route_status(route, snapshot.names, snapshot.models, generation_of(route), now)

    def _describe_adapter(self, key: str) -> tuple[Manifest, dict[str, Any]] | None:
        """Returns an adapter with its status; None if there is nothing to write."""
        snapshot = self._cache.adapter_snapshot(key)
        if snapshot is None or is_deleting(snapshot.adapter):
            return None
        adapter, now = snapshot.adapter, format_time(self._clock.wall())
        return adapter, adapter_status(adapter, snapshot.names, snapshot.base, generation_of(adapter), now)
