"""Every kind with what a cluster must know of it besides its fields: names, scope and the columns that kubectl prints."""

from dataclasses import dataclass

from fairlead.api.v1alpha1 import AcceleratorClass, ModelDeployment
from fairlead.strict import Strict


@dataclass(frozen=True, slots=True)
class Column:
    """One column of ``kubectl get``."""

    name: str
    path: str
    type: str = "string"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of the API. ``says`` is its line in the reference."""

    model: type[Strict]
    plural: str
    short: str
    namespaced: bool
    says: str
    columns: tuple[Column, ...]

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
                Column("Source", ".spec.model.source"),
                Column("Engine", ".spec.engine.kind"),
                Column("Routing", ".spec.routing.preset"),
                Column("TTFT", ".spec.objectives.ttft"),
                Column("Age", ".metadata.creationTimestamp", "date"),
            ),
        ),
        Kind(
            AcceleratorClass,
            plural="acceleratorclasses",
            short="accel",
            namespaced=False,
            says="A kind of accelerator and what an engine on it costs in time.",
            columns=(
                Column("Profile", ".spec.profile.preset"),
                Column("KV-Tokens", ".spec.profile.kvTokens", "integer"),
                Column("Age", ".metadata.creationTimestamp", "date"),
            ),
        ),
    )


PLANNED_KINDS = ("ModelAdapter", "ModelRoute", "ModelTenant")
"""Kinds of the design that nothing honours yet; naming one gets a message that says so."""
