"""Writes the status of routes: which names they have, and whether their targets exist.

Routes have no children: gateways read them from the cluster themselves.
"""

from fairlead.kube.client_protocol import KubeClient
from fairlead.kube.conditions import format_time
from fairlead.kube.errors import NotFound
from fairlead.kube.resources import is_deleting
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead.runtime.clock import Clock
from fairlead_operator.kube.object_cache import ObjectCache
from fairlead_operator.kube.writer import WriteCounts
from fairlead_operator.object_metadata import STATUS_FIELD_MANAGER, generation_of
from fairlead_operator.status import route_status


class RouteReconciler:
    """The control loop of routes."""

    def __init__(self, api: KubeClient, cache: ObjectCache, clock: Clock, counts: WriteCounts) -> None:
        self._api = api
        self._cache = cache
        self._clock = clock
        self._counts = counts

    async def reconcile(self, key: str) -> None:
        """Writes the status of a route if it has changed. Raises KubeError.

        key: of the claim of its names.
        """
        snapshot = self._cache.route_snapshot(key)
        if snapshot is None or is_deleting(snapshot.route):
            return
        route, now = snapshot.route, format_time(self._clock.wall())
        status = route_status.route_status(route, snapshot.names, snapshot.models, generation_of(route), now)
        if not route_status.has_changed(route, status):
            return
        try:
            updated = await self._api.apply_status(route_status.status_manifest(route, status), STATUS_FIELD_MANAGER)
        except NotFound:
            return  # it was deleted meanwhile
        self._cache.apply(WatchEvent(WatchEventType.MODIFIED, updated))
        self._counts.statuses += 1
