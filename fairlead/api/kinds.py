"""The custom resource kinds: their names, scope and printer columns."""

from dataclasses import dataclass
from typing import Final

from fairlead.api.status import ModelAdapterStatus, ModelDeploymentStatus, ModelRouteStatus
from fairlead.api.strict_model import StrictModel
from fairlead.api.v1alpha1 import AcceleratorClass, ModelAdapter, ModelDeployment, ModelRoute, ModelTenant


@dataclass(frozen=True, slots=True)
class PrinterColumn:
    """A column of `kubectl get`. Columns with `wide` appear only with `-o wide`."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False


def _condition_path(type_: str, field: str) -> str:
    return f'.status.conditions[?(@.type=="{type_}")].{field}'


@dataclass(frozen=True, slots=True)
class CustomResourceKind:
    """A custom resource kind of Fairlead's API.

    description: its line in the reference.
    status: type of the status subresource, if any.
    has_scale: the kind has a scale subresource, made of `spec.replicas`, `status.replicas` and
        `status.selector`.
    """

    model: type[StrictModel]
    plural: str
    short_name: str
    namespaced: bool
    description: str
    columns: tuple[PrinterColumn, ...]
    status: type[StrictModel] | None = None
    has_scale: bool = False

    @property
    def name(self) -> str:
        return self.model.__name__


_KINDS: Final = (
    CustomResourceKind(
        ModelDeployment,
        plural="modeldeployments",
        short_name="mdep",
        namespaced=True,
        description="A model that is served: weights, engine, pools, SLO, routing.",
        columns=(
            PrinterColumn("Client-Name", ".status.clientName"),
            PrinterColumn("Ready", ".status.ready"),
            PrinterColumn("SLO-Met", _condition_path("SLOMet", "status")),
            PrinterColumn("Reason", _condition_path("Ready", "reason")),
            PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
            PrinterColumn("URI", ".spec.model.uri", wide=True),
            PrinterColumn("Engine", ".spec.engine.type", wide=True),
            PrinterColumn("Routing", ".spec.routing.preset", wide=True),
            PrinterColumn("TTFT", ".spec.slo.ttft", wide=True),
            PrinterColumn("Autoscaling", _condition_path("Autoscaling", "reason"), wide=True),
            PrinterColumn("Message", _condition_path("Ready", "message"), wide=True),
        ),
        status=ModelDeploymentStatus,
        has_scale=True,
    ),
    CustomResourceKind(
        AcceleratorClass,
        plural="acceleratorclasses",
        short_name="accel",
        namespaced=False,
        description="A kind of accelerator: how pods get it, and what an engine on it costs.",
        columns=(
            PrinterColumn("Resource", ".spec.resource"),
            PrinterColumn("Cost-Per-Hour", ".spec.costPerHour"),
            PrinterColumn("Profile", ".spec.profile.preset"),
            PrinterColumn("KV-Tokens", ".spec.profile.kvTokens", "integer"),
            PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
        ),
    ),
    CustomResourceKind(
        ModelTenant,
        plural="modeltenants",
        short_name="mtenant",
        namespaced=False,
        description="A team or an application that calls models: its keys, models, limits and shares.",
        columns=(
            PrinterColumn("Tier", ".spec.tier"),
            PrinterColumn("Weight", ".spec.weight", "integer"),
            PrinterColumn("Budget-USD", ".spec.budget.usd"),
            PrinterColumn("Suspended", ".spec.suspended", "boolean"),
            PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
            PrinterColumn("Enforcement", ".spec.enforcement", wide=True),
            PrinterColumn("Cache-Sharing", ".spec.cacheSharing", wide=True),
        ),
    ),
    CustomResourceKind(
        ModelRoute,
        plural="modelroutes",
        short_name="mroute",
        namespaced=True,
        description="A name for clients that stands for one model, or for several with weights.",
        columns=(
            PrinterColumn("Client-Name", ".status.clientName"),
            PrinterColumn("Accepted", _condition_path("Accepted", "status")),
            PrinterColumn("Resolved", _condition_path("ResolvedRefs", "status")),
            PrinterColumn("Targets", ".status.targets"),
            PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
            PrinterColumn("Message", _condition_path("ResolvedRefs", "message"), wide=True),
        ),
        status=ModelRouteStatus,
    ),
    CustomResourceKind(
        ModelAdapter,
        plural="modeladapters",
        short_name="madp",
        namespaced=True,
        description="A LoRA adapter of a model, which gateways load when a request names it.",
        columns=(
            PrinterColumn("Client-Name", ".status.clientName"),
            PrinterColumn("Base", ".spec.base"),
            PrinterColumn("Ready", _condition_path("Ready", "status")),
            PrinterColumn("Reason", _condition_path("Ready", "reason")),
            PrinterColumn("Age", ".metadata.creationTimestamp", "date"),
            PrinterColumn("Source", ".spec.source", wide=True),
            PrinterColumn("Replicas", ".spec.replicas", "integer", wide=True),
            PrinterColumn("Message", _condition_path("Ready", "message"), wide=True),
        ),
        status=ModelAdapterStatus,
    ),
)


def served_kinds() -> tuple[CustomResourceKind, ...]:
    return _KINDS
