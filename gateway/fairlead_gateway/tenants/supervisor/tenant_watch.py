"""The tenants of a cluster: its ModelTenants, followed by an informer.

Objects of the cluster that a source of keys follows with an informer.

The revocation list of a cluster: a ConfigMap, followed by an informer.

Why a ConfigMap: the kubelet brings a change of a Secret to a pod within about a minute, and a watch
within milliseconds. To watch a Secret, the gateway would need a right to read it with all its
entries, one of which is a key. Digests are no secret: ModelTenants show them, too.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from fairlead.api.v1alpha1 import ModelTenant
from fairlead.errors import BadInput, FairleadError
from fairlead.kube.client import KubeApi
from fairlead.kube.field_managers import CHANGED_BY_ANNOTATION, last_author
from fairlead.kube.informer import Informer, InformerStep
from fairlead.kube.resources import CONFIG_MAPS, MODEL_TENANTS, Manifest, ObjectSelection, metadata_of, name_of
from fairlead.kube.store import ObjectStore
from fairlead.kube.transport.kubeconfig import ClusterConfig, load_config
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead.limits import Limits
from fairlead.manifests.loader import read_object
from fairlead.runtime.clock import Pacing
from fairlead.tenants.documents import (
    REVOKED_ENTRY,
    TenantDocument,
    describe_wrong_lines,
    digests_in,
    merge_documents,
    parse_revocations,
)
from fairlead.tenants.model import Tenant

_log: Final = logging.getLogger("fairlead.gateway")


class FollowedObjects:
    """An informer that also reports its first list, and that it failed. It closes `api` when it
    ends.

    trim: returns what is kept of an object.
    on_event: called with each change.
    """

    def __init__(
        self,
        api: KubeApi,
        selection: ObjectSelection,
        pacing: Pacing,
        trim: Callable[[Manifest], Manifest],
        on_event: Callable[[WatchEvent], None],
    ) -> None:
        self._api = api
        self._has_failed = False
        self._on_failed: Callable[[], None] = lambda: None
        self._informer = Informer(
            api, selection, pacing, store=ObjectStore(trim), on_change=on_event, report=self._on_step
        )
        self._informer.warn = partial(_log.warning, "cannot watch %s: %s", selection.resource.plural)

    @property
    def is_synced(self) -> bool:
        return self._informer.is_synced

    @property
    def is_loaded(self) -> bool:
        return self._informer.is_known

    @property
    def problem(self) -> FairleadError | None:
        """Why the objects cannot be followed now."""
        return self._informer.problem

    async def start(self, on_synced: Callable[[], None], on_failed: Callable[[], None]) -> None:
        """Starts following.

        on_synced: called after the first list.
        on_failed: called after the first failure, from which on the list is not waited for.
        """
        self._informer.on_synced, self._on_failed = on_synced, on_failed
        self._informer.start()

    async def stop(self) -> None:
        await self._informer.stop()
        await self._api.close()

    def _on_step(self, _: InformerStep) -> None:
        if self._informer.problem is not None and not self._has_failed:
            self._has_failed = True
            self._on_failed()


def open_cluster(environ: Mapping[str, str], pacing: Pacing, limits: Limits) -> tuple[KubeApi, ClusterConfig]:
    """Returns a client of the cluster that the environment configures, and its configuration.

    Raises BadInput without one.
    """
    access = load_config(environ, Path(environ.get("HOME", "/")))
    return KubeApi(access, pacing.clock, pacing.chance, agent="fairlead-gateway", limits=limits), access


class TenantWatch:
    """The tenants of a cluster. It closes `api` when it ends.

    An object that cannot be used, such as one of a newer release, leaves its tenant as it was last.
    is_loaded: whether the objects were listed once, or cannot be listed. Without the kind or the
        right to read it, a gateway serves the keys of its files.
    """

    def __init__(self, api: KubeApi, pacing: Pacing) -> None:
        self._on_change: Callable[[], None] = lambda: None
        self._documents: dict[str, TenantDocument] = {}
        self.problems: Sequence[str] = ()
        self._authors: dict[str, str] = {}
        self._batch: asyncio.Handle | None = None
        self.tenants: Mapping[str, Tenant] = {}
        self._objects = FollowedObjects(api, ObjectSelection(MODEL_TENANTS), pacing, _trim, self._on_event)

    @property
    def is_loaded(self) -> bool:
        return self._objects.is_loaded

    async def start(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        await self._objects.start(self._publish, on_change)

    async def stop(self) -> None:
        """Stops, and closes the client."""
        if self._batch is not None:
            self._batch.cancel()
        await self._objects.stop()

    def author_of(self, name: str) -> str:
        return self._authors.get(name, "the cluster")

    def warnings(self) -> list[str]:
        """Returns the problems with the cluster and with its objects."""
        problem = self._objects.problem
        away = [] if problem is None else [f"cannot watch the tenants of the cluster; the last ones stay: {problem}"]
        return [*away, *self.problems]

    def _on_event(self, event: WatchEvent) -> None:
        name = name_of(event.object)
        if event.type is WatchEventType.DELETED:
            self._documents.pop(name, None)
            self._authors.pop(name, None)
        else:
            self._authors[name] = metadata_of(event.object)["annotations"][CHANGED_BY_ANNOTATION]
            self._documents[name] = _document_of(name, event.object)
        if self._batch is None and self._objects.is_synced:  # a list has many events
            self._batch = asyncio.get_running_loop().call_soon(self._publish)

    def _publish(self) -> None:
        self._batch = None
        self.tenants, self.problems = merge_documents(self._documents.values(), self.tenants)
        self._on_change()


def open_tenant_watch(environ: Mapping[str, str], pacing: Pacing, limits: Limits) -> TenantWatch:
    """Returns the tenants of the cluster that the environment configures. Raises BadInput without
    one.
    """
    return TenantWatch(open_cluster(environ, pacing, limits)[0], pacing)


def _document_of(name: str, manifest: Manifest) -> TenantDocument:
    digests = digests_in(json.dumps(manifest.get("spec")))
    try:
        found = read_object(manifest)
    except BadInput as error:
        return TenantDocument(frozenset({name}), digests, problem=f"the ModelTenant {name} cannot be used: {error}")
    assert isinstance(found, ModelTenant)
    return TenantDocument(frozenset({name}), digests, found.to_tenant())


def _trim(manifest: Manifest) -> Manifest:
    """Keeps what identifies the object, its spec or its list of keys, and who changed it last."""
    kept = ("name", "namespace", "uid", "resourceVersion")
    metadata = {key: value for key, value in metadata_of(manifest).items() if key in kept}
    metadata["annotations"] = {CHANGED_BY_ANNOTATION: last_author(manifest)}
    trimmed: Manifest = {key: manifest[key] for key in ("apiVersion", "kind", "spec") if key in manifest}
    if manifest.get("data"):
        trimmed["data"] = {key: value for key, value in manifest["data"].items() if key == REVOKED_ENTRY}
    return {**trimmed, "metadata": metadata}


class RevocationWatch:
    """The digests of one ConfigMap. It closes `api` when it ends.

    digests: those of all good lines. A list that is deleted or cannot be read changes nothing, and
        one that does not exist yet is an empty one.
    author: who changed the list last.
    is_loaded: whether the list was read once, or cannot be read.
    """

    def __init__(self, api: KubeApi, namespace: str, name: str, pacing: Pacing) -> None:
        self._place = f"the ConfigMap {namespace}/{name}"
        self._on_change: Callable[[], None] = lambda: None
        self._content_problem: str | None = None
        self.digests: frozenset[bytes] = frozenset()
        self.author = "the cluster"
        selection = ObjectSelection(CONFIG_MAPS, namespace, fields=f"metadata.name={name}")
        self._objects = FollowedObjects(api, selection, pacing, _trim, self._on_event)

    @property
    def is_loaded(self) -> bool:
        return self._objects.is_loaded

    @property
    def problem(self) -> str | None:
        """The lines that are no digests, or why the list cannot be read; None if all is well."""
        error = self._objects.problem
        if error is not None:
            return f"cannot watch {self._place}; the last list of revoked keys stays: {error}"
        return self._content_problem

    async def start(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        await self._objects.start(on_change, on_change)

    async def stop(self) -> None:
        await self._objects.stop()

    def _on_event(self, event: WatchEvent) -> None:
        if event.type is WatchEventType.DELETED:
            self._content_problem = f"{self._place} was deleted; the last list of revoked keys stays"
        else:
            self.digests, wrong = parse_revocations(str((event.object.get("data") or {}).get(REVOKED_ENTRY) or ""))
            self._content_problem = describe_wrong_lines(self._place, wrong)
            self.author = metadata_of(event.object)["annotations"][CHANGED_BY_ANNOTATION]
        if self._objects.is_synced:
            self._on_change()


def open_revocation_watch(environ: Mapping[str, str], name: str, pacing: Pacing, limits: Limits) -> RevocationWatch:
    """Returns the revocation list of the gateway's namespace. Raises BadInput without a cluster."""
    api, access = open_cluster(environ, pacing, limits)
    return RevocationWatch(api, access.namespace, name, pacing)
