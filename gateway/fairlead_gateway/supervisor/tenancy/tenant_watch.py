"""The tenants of a cluster: its ModelTenants, followed by an informer."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence

from fairlead.api.v1alpha1 import ModelTenant
from fairlead.errors import BadInput
from fairlead.kube.client import KubeApi
from fairlead.kube.field_managers import CHANGED_BY_ANNOTATION, last_author
from fairlead.kube.resources import MODEL_TENANTS, Manifest, ObjectSelection, metadata_of, name_of
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead.limits import Limits
from fairlead.manifests.loader import read_object
from fairlead.runtime.clock import Pacing
from fairlead.tenants.documents import TenantDocument, digests_in, merge_documents
from fairlead.tenants.model import Tenant
from fairlead_gateway.supervisor.tenancy.followed_objects import FollowedObjects, open_cluster


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
        """Starts following the cluster."""
        self._on_change = on_change
        await self._objects.start(self._publish, on_change)

    async def stop(self) -> None:
        """Stops, and closes the client."""
        if self._batch is not None:
            self._batch.cancel()
        await self._objects.stop()

    def author_of(self, name: str) -> str:
        """Returns who changed a tenant last; of a deleted one, nothing says who deleted it."""
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
    """Keeps what identifies the object, its spec, and who changed it last."""
    metadata = {
        key: value for key, value in manifest.get("metadata", {}).items() if key in ("name", "uid", "resourceVersion")
    }
    metadata["annotations"] = {CHANGED_BY_ANNOTATION: last_author(manifest)}
    return {**{key: manifest[key] for key in ("apiVersion", "kind", "spec") if key in manifest}, "metadata": metadata}
