"""`metadata` of every object."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from fairlead.api.strict_model import StrictModel
from fairlead.api.value_types import Label, Subdomain


class Metadata(StrictModel):
    """Object metadata. Fields that a cluster adds, such as resourceVersion, are ignored."""

    model_config = ConfigDict(alias_generator=None)

    name: Annotated[Subdomain, Field(examples=["qwen3-8b"])]
    namespace: Annotated[Label | None, Field(examples=["default"])] = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    uid: Any = Field(default=None, exclude=True)
    generation: Any = Field(default=None, exclude=True)
    # Spelled as in Kubernetes; accepted and ignored.
    generateName: Any = Field(default=None, exclude=True)  # noqa: N815
    selfLink: Any = Field(default=None, exclude=True)  # noqa: N815
    resourceVersion: Any = Field(default=None, exclude=True)  # noqa: N815
    creationTimestamp: Any = Field(default=None, exclude=True)  # noqa: N815
    deletionTimestamp: Any = Field(default=None, exclude=True)  # noqa: N815
    deletionGracePeriodSeconds: Any = Field(default=None, exclude=True)  # noqa: N815
    managedFields: Any = Field(default=None, exclude=True)  # noqa: N815
    finalizers: Any = Field(default=None, exclude=True)
    ownerReferences: Any = Field(default=None, exclude=True)  # noqa: N815
