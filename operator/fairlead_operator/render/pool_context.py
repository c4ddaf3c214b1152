"""The input of a pool's renderers, and the metadata that all its objects share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairlead.api.spec.pools import Pool
from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.kube.resources import Manifest, Resource
from fairlead_operator.object_metadata import owner_reference
from fairlead_operator.render.context import RenderContext
from fairlead_operator.render.names import child_labels
from fairlead_operator.render.revision import RenderPin


@dataclass(frozen=True, slots=True)
class PoolContext:
    """A pool to render.

    is_paused: changes of the pods wait. False for pods that do not exist yet, which would otherwise
        never start.
    """

    model: ModelDeployment
    pool: Pool
    name: str
    pin: RenderPin
    is_paused: bool
    context: RenderContext

    @property
    def namespace(self) -> str:
        return self.model.metadata.namespace or "default"

    def make_child(self, resource: Resource, spec: Mapping[str, Any] | None, *, name: str | None = None) -> Manifest:
        """Returns a child object. It is deleted together with the model."""
        metadata: Manifest = {
            "name": name or self.name,
            "namespace": self.namespace,
            "labels": child_labels(self.model, self.pool),
            "ownerReferences": [owner_reference(self.model.metadata.name, str(self.model.metadata.uid or ""))],
        }
        child: Manifest = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
        if spec is not None:
            child["spec"] = dict(spec)
        return child
