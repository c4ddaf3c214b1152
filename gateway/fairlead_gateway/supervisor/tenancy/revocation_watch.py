"""The revocation list of a cluster: a ConfigMap, followed by an informer.

Why a ConfigMap: the kubelet brings a change of a Secret to a pod within about a minute, and a watch
within milliseconds. To watch a Secret, the gateway would need a right to read it with all its
entries, one of which is a key. Digests are no secret: ModelTenants show them, too.
"""

from collections.abc import Callable, Mapping

from fairlead.kube.client import KubeApi
from fairlead.kube.field_managers import CHANGED_BY_ANNOTATION, last_author
from fairlead.kube.resources import CONFIG_MAPS, Manifest, ObjectSelection, metadata_of
from fairlead.kube.watch_events import WatchEvent, WatchEventType
from fairlead.limits import Limits
from fairlead.runtime.clock import Pacing
from fairlead.tenants.documents import REVOKED_ENTRY, describe_wrong_lines, parse_revocations
from fairlead_gateway.supervisor.tenancy.followed_objects import FollowedObjects, open_cluster


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
        """Starts following the list."""
        self._on_change = on_change
        await self._objects.start(on_change, on_change)

    async def stop(self) -> None:
        """Stops, and closes the client."""
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


def _trim(manifest: Manifest) -> Manifest:
    """Keeps what identifies the object, the list, and who changed it last."""
    kept = ("name", "namespace", "uid", "resourceVersion")
    metadata = {key: value for key, value in metadata_of(manifest).items() if key in kept}
    metadata["annotations"] = {CHANGED_BY_ANNOTATION: last_author(manifest)}
    data = {key: value for key, value in (manifest.get("data") or {}).items() if key == REVOKED_ENTRY}
    return {
        **{key: manifest[key] for key in ("apiVersion", "kind") if key in manifest},
        "metadata": metadata,
        "data": data,
    }
