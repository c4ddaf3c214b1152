"""The interface of the Kubernetes client that control loops use, and tests replace."""

from typing import Protocol

from fairlead.kube.json_decoding import ObjectList
from fairlead.kube.resources import Manifest, Resource


class KubeClient(Protocol):
    """The part of `KubeApi` that control loops use."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Manifest:
        """Returns one object. Raises NotFound."""

    async def list(self, resource: Resource, namespace: str | None = None, labels: str | None = None) -> ObjectList:
        """Returns all objects of a kind that match the label selector.

        namespace: None for all namespaces.
        """

    async def apply_new(self, manifest: Manifest, manager: str) -> Manifest:
        """Creates an object with server-side apply. Raises AlreadyExists."""

    async def apply(self, manifest: Manifest, manager: str) -> Manifest:
        """Applies an object with force. Raises Conflict if its resource version is old."""

    async def apply_status(self, manifest: Manifest, manager: str) -> Manifest:
        """Applies an object's status. Raises NotFound."""

    async def apply_scale(self, live: Manifest, replicas: int, manager: str) -> Manifest:
        """Sets the replica count of an unchanged object. Raises Conflict if it has changed."""

    async def patch_merge(
        self, resource: Resource, namespace: str | None, name: str, patch: Manifest, manager: str
    ) -> Manifest:
        """Changes the fields in `patch`."""

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        uid: str | None = None,
        propagation: str = "Background",
        *,
        grace_seconds: int | None = None,
    ) -> bool:
        """Starts the deletion of an object. Returns False if none has this name (and `uid`).

        grace_seconds: until a pod is killed; None: as its spec says.
        """
