"""What the operator hears: models by kopf, everything else by informers, and all models listed now and then.

kopf is the watch engine of the models: ``on.event`` only, so no finalizer, no annotation, no write of its own. It tells neither
bookmarks nor what was deleted while a watch was broken, hence the list: it finds what was missed and what is gone, and it shows
that the API server answers. Children, pods and accelerators are watched by label through ``Informer``, which tells deletions after
every gap.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from fairlead.errors import FairleadError
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Forbidden, NotFound
from fairlead.kube.informer import Informer, log_failures_once
from fairlead.kube.resources import (
    ACCELERATOR_CLASSES,
    MODEL_DEPLOYMENTS,
    PODS,
    SERVICES,
    Manifest,
    Resource,
    key_of,
    resource_version_of,
)
from fairlead.kube.store import drop_managed_fields
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead.runtime.clock import Clock
from fairlead_operator.health import HealthState
from fairlead_operator.kube.object_cache import (
    OPTIONAL_CHILD_KINDS,
    STANDARD_CHILD_KINDS,
    ObjectCache,
    drop_own_managed_fields,
)
from fairlead_operator.object_metadata import CHILDREN_SELECTOR
from fairlead_operator.render.context import ClusterCapabilities

_LOG = logging.getLogger("fairlead.operator")


class ClusterWatcher:
    """Keeps ``shelf`` as the cluster is, and calls ``add`` with the key of each model that something happened to.

    ``namespaces``: those watched, all when empty. ``chance`` draws evenly from 0 to 1; ``pause`` waits for seconds.
    """

    def __init__(
        self,
        api: KubeApi,
        cache: ObjectCache,
        add: Callable[[str], None],
        clock: Clock,
        chance: Callable[[], float],
        *,
        namespaces: tuple[str, ...] = (),
        resync_seconds: float = 60.0,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.capabilities = ClusterCapabilities()
        self._api = api
        self._cache = cache
        self._add = add
        self._clock = clock
        self._chance = chance
        self._namespaces: tuple[str | None, ...] = namespaces or (None,)
        self._resync_seconds = resync_seconds
        self._pause = pause
        self._informers: list[Informer] = []
        self._answered_at: float | None = None
        self._seen_versions: dict[str, int] = {}
        self._overdue: dict[str, float] = {}

    async def discover(self) -> None:
        """See what the cluster knows, and list the models for the first time; tried until the API server answers."""
        while True:
            try:
                if not await self._api.has_resource(MODEL_DEPLOYMENTS):
                    raise FairleadError("the cluster does not know ModelDeployments", hint="apply Fairlead's CRDs")
                await self._discover_kinds()
                await self._list_models()
                return
            except FairleadError as error:
                _LOG.warning("waiting: %s", error)
            await self._pause(2.0 + self._chance())

    async def run(self) -> None:
        """Watch until cancelled; begin first."""
        async with asyncio.TaskGroup() as group:
            for informer in self._informers:
                group.create_task(informer.run())
            group.create_task(self._resync_loop())

    async def wait_synced(self) -> None:
        """Return once every kind has been listed."""
        for informer in self._informers:
            await informer.wait_synced()

    def health(self, leading: bool) -> HealthState:
        """How well the cluster is heard."""
        now = self._clock.now()
        ages: dict[str, float | None] = {}
        for one in self._informers:
            age, before = one.age_seconds(), ages.get(one.resource.plural, 0.0)
            ages[one.resource.plural] = None if age is None or before is None else max(age, before)
        return HealthState(
            leading=leading,
            synced=bool(self._informers) and all(one.is_synced for one in self._informers),
            watch_ages=ages,
            answer_age_seconds=None if self._answered_at is None else now - self._answered_at,
            overdue_seconds=now - min(self._overdue.values()) if self._overdue else None,
        )

    def on_model_event(self, type: str | None, model: Manifest) -> None:
        """One event of the watch of models. ``type`` is None for what was listed."""
        gone, key = type == "DELETED", key_of(model)
        if gone:
            self._seen_versions.pop(key, None)
        else:
            self._seen_versions[key] = max(self._seen_versions.get(key, 0), resource_version_of(model))
        self._overdue.pop(key, None)
        self._on_change(WatchEvent(WatchEventType.DELETED if gone else WatchEventType.MODIFIED, model))

    def _on_change(self, change: WatchEvent) -> None:
        for key in self._cache.apply(change):
            self._add(key)

    async def _discover_kinds(self) -> None:
        optional = [one for one in OPTIONAL_CHILD_KINDS if await self._api.has_resource(one)]
        served = frozenset((one.api_version, one.kind) for one in optional)
        self.capabilities = ClusterCapabilities(
            served, is_ipv6_first(await self._api_server_service(), self._api.config.server)
        )
        kinds: list[tuple[Resource, str | None]] = [
            (one, CHILDREN_SELECTOR) for one in (*STANDARD_CHILD_KINDS, *optional, PODS)
        ]
        self._informers = [
            self._make_informer(kind, labels, place) for kind, labels in kinds for place in self._namespaces
        ]
        self._informers.append(self._make_informer(ACCELERATOR_CLASSES, None, None))

    async def _api_server_service(self) -> Manifest | None:
        """The API server's own Service; None where we may not read it."""
        try:
            return await self._api.get(SERVICES, "default", "kubernetes")
        except (Forbidden, NotFound):
            return None

    def _make_informer(self, kind: Resource, labels: str | None, place: str | None) -> Informer:
        made = Informer(
            self._api,
            kind,
            self._clock,
            self._chance,
            namespace=place,
            labels=labels,
            trim=drop_managed_fields if kind is PODS else drop_own_managed_fields,
            find_known=self._cache.find_same_version if labels == CHILDREN_SELECTOR and kind is not PODS else None,
            on_change=self._on_change,
            report=log_failures_once(_LOG, kind, lambda: made.problem),
        )
        return made

    async def _resync_loop(self) -> None:
        while True:
            await self._pause(self._resync_seconds * (0.9 + 0.2 * self._chance()))
            try:
                await self._list_models()
            except FairleadError as error:
                _LOG.warning("models could not be listed: %s", error)

    async def _list_models(self) -> None:
        listed = [one for place in self._namespaces for one in (await self._api.list(MODEL_DEPLOYMENTS, place)).items]
        now = self._answered_at = self._clock.now()
        versions = {key_of(one): resource_version_of(one) for one in listed}
        late = {key for key, version in versions.items() if version > self._seen_versions.get(key, 0)}
        self._overdue = {key: self._overdue.get(key, now) for key in late}
        for key in self._cache.replace_models(listed):
            self._add(key)


def is_ipv6_first(service: Manifest | None, server: str) -> bool:
    """Do pods have IPv6 addresses, only or first? The API server's Service has the family that the cluster puts first.

    Without it the API server's address tells, which within the cluster is that Service's.
    """
    if service is None:
        return ":" in (urlsplit(server).hostname or "")
    return list((service.get("spec") or {}).get("ipFamilies") or [])[:1] == ["IPv6"]
