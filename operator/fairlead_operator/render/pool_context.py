"""What all children of a pool share: names, labels, owner, pin; and what the files of the single children are given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fairlead.api import ModelDeployment, Pool
from fairlead.kube.resources import Manifest, Resource
from fairlead_operator.object_metadata import owner_reference
from fairlead_operator.render.context import RenderContext
from fairlead_operator.render.names import child_labels
from fairlead_operator.render.revision import RenderPin


@dataclass(frozen=True, slots=True)
class PoolContext:
    """One pool about to become manifests.

    ``held``: what changes of the pods waits. Not of pods that are made for the first time, which nobody would ever see otherwise.
    """

    model: ModelDeployment
    pool: Pool
    name: str
    pin: RenderPin
    is_paused: bool
    context: RenderContext

    @property
    def namespace(self) -> str:
        """Of the model and all that it becomes."""
        return self.model.metadata.namespace or "default"

    def make_child(self, resource: Resource, spec: Mapping[str, Any] | None, *, name: str | None = None) -> Manifest:
        """One child; it goes with the model when that is deleted."""
        metadata: Manifest = {
            "name": name or self.name,
            "namespace": self.namespace,
            "labels": child_labels(self.model, self.pool),
            "ownerReferences": [owner_reference(self.model.metadata.name, str(self.model.metadata.uid or ""))],
        }
        found: Manifest = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata}
        if spec is not None:
            found["spec"] = dict(spec)
        return found
