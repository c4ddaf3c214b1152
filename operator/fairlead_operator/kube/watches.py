"""The operator's watches: models through kopf, all other kinds through informers.

kopf watches the models with `on.event` only: no finalizers, no annotations, no writes. It reports
neither bookmarks nor objects that were deleted during a broken watch. All models are therefore also
listed periodically, which finds missed changes and deletions, and shows that the API server
responds. Children, pods and accelerators are watched by label through `Informer`, which reports
deletions after every gap.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from functools import partial
from urllib.parse import urlsplit

from fairlead.errors import FairleadError
from fairlead.kube.client import KubeApi
from fairlead.kube.errors import Forbidden, NotFound, Unauthenticated
from fairlead.kube.informer import Informer
from fairlead.kube.resources import (
    ACCELERATOR_CLASSES,
    MODEL_ADAPTERS,
    MODEL_DEPLOYMENTS,
    MODEL_ROUTES,
    PODS,
    SECURITY_CONTEXT_CONSTRAINTS,
    SERVICES,
    Manifest,
    ObjectSelection,
    Resource,
    key_of,
    namespace_of,
    resource_version_of,
)
from fairlead.kube.store import ObjectStore
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead.runtime.clock import Pacing
from fairlead_operator.health import HealthState
from fairlead_operator.kube.object_cache import (
    OPTIONAL_CHILD_KINDS,
    STANDARD_CHILD_KINDS,
    ObjectCache,
)
from fairlead_operator.kube.object_trimming import trim_child, trim_model, trim_pod
from fairlead_operator.object_metadata import CHILDREN_SELECTOR
from fairlead_operator.render.context import ClusterCapabilities

_CLAIMANTS = (MODEL_ROUTES, MODEL_ADAPTERS)
"""Kinds that clusters of an earlier release lack. They are watched if they are served."""
_LOG = logging.getLogger("fairlead.operator")


class ClusterWatcher:
    """The watcher that keeps the object cache up to date.

    add: called with the key of each changed model.
    namespaces: watched namespaces; all if empty.
    """

    def __init__(
        self,
        api: KubeApi,
        cache: ObjectCache,
        add: Callable[[str], None],
        pacing: Pacing,
        *,
        namespaces: tuple[str, ...] = (),
        resync_seconds: float = 60.0,
    ) -> None:
        self.capabilities = ClusterCapabilities()
        self._api = api
        self._cache = cache
        self._add = add
        self._pacing = pacing
        self._clock, self._chance, self._pause = pacing.clock, pacing.chance, pacing.pause
        self._namespaces: tuple[str | None, ...] = namespaces or (None,)
        self._resync_seconds = resync_seconds
        self._informers: list[Informer] = []
        self._answered_at: float | None = None
        self._seen_versions: dict[str, int] = {}
        self._overdue: dict[str, float] = {}
        self._refused_lists: frozenset[str] = frozenset()
        self._store_version = 0
        self._is_behind = False
        self._restored = asyncio.Event()

    async def discover(self) -> None:
        """Discovers the served kinds and lists the models. Retries every 2 to 3 seconds until both
        succeed.
        """
        while True:
            try:
                if not await self._api.has_resource(MODEL_DEPLOYMENTS):
                    raise FairleadError("the cluster does not know ModelDeployments", hint="apply Fairlead's CRDs")
                await self._discover_kinds()
                await self.list_models()
                return
            except FairleadError as error:
                _LOG.warning("waiting: %s", error)
            await self._pause(2.0 + self._chance())

    async def run(self) -> None:
        """Watches until cancelled. Call `discover` first."""
        async with asyncio.TaskGroup() as group:
            for informer in self._informers:
                group.create_task(informer.run())
            group.create_task(self._resync_loop())

    async def wait_synced(self) -> None:
        for informer in self._informers:
            await informer.wait_known()

    async def wait_restored(self) -> None:
        """Returns once the cluster has been restored from a backup: versions have gone back.

        The process must then end. What it knows may be newer than what is there, and it ignores
        objects that are older than what it knows.
        """
        await self._restored.wait()

    def _check_version(self, listed: str) -> int:
        """Returns the version of a list; 0 if it has none. Raises a FairleadError if the list is
        older than an earlier one.

        Why: the version of a list is that of the whole store, which only a backup takes back. One
        such list may be of a server that is behind. The second one counts.
        """
        version, before = int(listed) if listed.isdecimal() else 0, self._store_version
        if 0 < version < before:
            if self._is_behind:
                self._restored.set()
            self._is_behind = True
            raise FairleadError(f"the cluster may have been restored: its version went back from {before} to {version}")
        self._is_behind = False
        self._store_version = max(version, before)
        return version

    def refused_namespaces(self) -> frozenset[str]:
        refused = {
            informer.namespace for informer in self._informers if informer.is_refused and informer.namespace is not None
        }
        return self._refused_lists | refused

    def health(self, leading: bool) -> HealthState:
        """Returns the contact with the cluster, without namespaces that refuse lists."""
        now = self._clock.now()
        ages: dict[str, float | None] = {}
        refused = self.refused_namespaces()
        informers = [informer for informer in self._informers if informer.namespace not in refused]
        for informer in informers:
            age, other_age = informer.age_seconds(), ages.get(informer.resource.plural, 0.0)
            ages[informer.resource.plural] = None if age is None or other_age is None else max(age, other_age)
        return HealthState(
            leading=leading,
            synced=len(informers) > 1 and all(informer.is_synced for informer in informers),
            watch_ages=ages,
            answer_age_seconds=None if self._answered_at is None else now - self._answered_at,
            overdue_seconds=now - min(self._overdue.values()) if self._overdue else None,
        )

    def on_model_event(self, type: str | None, model: Manifest) -> None:
        """Applies an event of the watch of models, and queues the affected models.

        type: None for listed models.
        """
        deleted, key = type == "DELETED", key_of(model)
        if deleted:
            self._seen_versions.pop(key, None)
        else:
            self._seen_versions[key] = max(self._seen_versions.get(key, 0), resource_version_of(model))
        self._overdue.pop(key, None)
        self._on_change(WatchEvent(WatchEventType.DELETED if deleted else WatchEventType.MODIFIED, model))

    def _on_change(self, event: WatchEvent) -> None:
        for key in self._cache.apply(event):
            self._add(key)

    async def _discover_kinds(self) -> None:
        optional = [kind for kind in OPTIONAL_CHILD_KINDS if await self._api.has_resource(kind)]
        claimants = [kind for kind in _CLAIMANTS if await self._api.has_resource(kind)]
        served = frozenset((kind.api_version, kind.kind) for kind in optional)
        self.capabilities = ClusterCapabilities(
            served,
            is_ipv6_first(await self._api_server_service(), self._api.config.server),
            await self._api.has_resource(SECURITY_CONTEXT_CONSTRAINTS),
        )
        kinds: list[tuple[Resource, str | None]] = [
            (kind, CHILDREN_SELECTOR) for kind in (*STANDARD_CHILD_KINDS, *optional, PODS)
        ]
        self._informers = [
            self._make_informer(kind, labels, namespace) for kind, labels in kinds for namespace in self._namespaces
        ]
        self._informers.append(self._make_informer(ACCELERATOR_CLASSES, None, None))
        self._informers += [
            self._make_informer(kind, None, namespace) for kind in claimants for namespace in self._namespaces
        ]

    async def _api_server_service(self) -> Manifest | None:
        """Returns the API server's own Service; None without permission."""
        try:
            return await self._api.get(SERVICES, "default", "kubernetes")
        except (Forbidden, NotFound):
            return None

    def _make_informer(self, kind: Resource, labels: str | None, namespace: str | None) -> Informer:
        if kind is PODS:
            store = ObjectStore(trim_pod)
        elif kind in _CLAIMANTS:
            store = ObjectStore(trim_model)
        else:
            known = self._cache.find_same_version if labels == CHILDREN_SELECTOR else None
            store = ObjectStore(trim_child, known)
        selection = ObjectSelection(kind, namespace, labels)
        informer = Informer(self._api, selection, self._pacing, store=store, on_change=self._on_change)
        informer.warn = partial(_LOG.warning, "cannot watch %s: %s", kind.plural)
        return informer

    async def _resync_loop(self) -> None:
        while True:
            await self._pause(self._resync_seconds * (0.9 + 0.2 * self._chance()))
            try:
                await self.list_models()
            except FairleadError as error:
                _LOG.warning("models could not be listed: %s", error)

    async def list_models(self) -> None:
        """Lists the models. Of a namespace that refuses it, those that are known stay. So does a
        model that is newer than the list, which may lack it.

        Raises a FairleadError if no namespace can be listed, or if the cluster was restored.
        """
        listed: list[Manifest] = []
        list_versions: dict[str | None, float] = {}
        refusals: dict[str, Forbidden] = {}
        for namespace in self._namespaces:
            try:
                found = await self._api.list(MODEL_DEPLOYMENTS, namespace, trim=trim_model)
                list_versions[namespace] = self._check_version(found.resource_version) or math.inf
                listed += found.items
            except Forbidden as error:
                if namespace is None or isinstance(error, Unauthenticated):
                    raise
                refusals[namespace] = error
        for namespace in refusals.keys() - self._refused_lists:
            _LOG.warning("models of %s are left alone: %s", namespace, refusals[namespace])
        self._refused_lists = frozenset(refusals)
        if len(refusals) == len(self._namespaces):
            raise next(iter(refusals.values()))
        now = self._answered_at = self._clock.now()
        versions = {key_of(model): resource_version_of(model) for model in listed}
        missed = {key for key, version in versions.items() if version > self._seen_versions.get(key, 0)}
        self._overdue = {key: self._overdue.get(key, now) for key in missed}
        default = list_versions.get(None, math.inf)
        kept = [
            model
            for model in self._cache.models.values()
            if namespace_of(model) in refusals
            or resource_version_of(model) > list_versions.get(namespace_of(model), default)
        ]
        for key in self._cache.replace_models([*listed, *kept]):
            self._add(key)


def is_ipv6_first(service: Manifest | None, server: str) -> bool:
    """Returns True if pods have IPv6 addresses, only or first.

    The API server's Service has the primary IP family of the cluster. Without it, the address of
    the API server decides, which inside the cluster is that Service's.
    """
    if service is None:
        return ":" in (urlsplit(server).hostname or "")
    return list((service.get("spec") or {}).get("ipFamilies") or [])[:1] == ["IPv6"]
