"""Every kind with what a cluster must know of it besides its fields: names, scope and the columns that kubectl prints."""

from dataclasses import dataclass

from fairlead.api.status import ModelDeploymentStatus
from fairlead.api.v1alpha1 import AcceleratorClass, ModelDeployment
from fairlead.strict import Strict


@dataclass(frozen=True, slots=True)
class Column:
    """One column of ``kubectl get``; ``wide`` ones only with ``-o wide``."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False


def _condition(type_: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{type_}")].{field}'


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of the API. ``says`` is its line in the reference; one with a ``status`` has it written as a subresource.

    ``scaled``: ``spec.replicas``, ``status.replicas`` and ``status.selector`` make up its scale subresource.
    """

    model: type[Strict]
    plural: str
    short: str
    namespaced: bool
    says: str
    columns: tuple[Column, ...]
    status: type[Strict] | None = None
    scaled: bool = False

    @property
    def name(self) -> str:
        """As in ``kind:``."""
        return self.model.__name__


def kinds() -> tuple[Kind, ...]:
    """The kinds that this release honours, in the order of the reference."""
    return (
        Kind(
            ModelDeployment,
            plural="modeldeployments",
            short="mdep",
            namespaced=True,
            says="A model that is served: source, engine, pools, objectives, routing.",
            columns=(
                Column("Client-Name", ".status.clientName"),
                Column("Ready", ".status.ready"),
                Column("Objectives", _condition("ObjectivesMet", "status")),
                Column("Reason", _condition("Ready", "reason")),
                Column("Age", ".metadata.creationTimestamp", "date"),
                Column("Source", ".spec.model.source", wide=True),
                Column("Engine", ".spec.engine.kind", wide=True),
                Column("Routing", ".spec.routing.preset", wide=True),
                Column("TTFT", ".spec.objectives.ttft", wide=True),
                Column("Autoscaling", _condition("Autoscaling", "reason"), wide=True),
                Column("Message", _condition("Ready", "message"), wide=True),
            ),
            status=ModelDeploymentStatus,
            scaled=True,
        ),
        Kind(
            AcceleratorClass,
            plural="acceleratorclasses",
            short="accel",
            namespaced=False,
            says="A kind of accelerator: how pods get it, and what an engine on it costs.",
            columns=(
                Column("Resource", ".spec.resource"),
                Column("Cost-Per-Hour", ".spec.costPerHour"),
                Column("Profile", ".spec.profile.preset"),
                Column("KV-Tokens", ".spec.profile.kvTokens", "integer"),
                Column("Age", ".metadata.creationTimestamp", "date"),
            ),
        ),
    )


PLANNED_KINDS = ("ModelAdapter", "ModelRoute", "ModelTenant")
"""Kinds of the design that nothing honours yet; naming one gets a message that says so."""
