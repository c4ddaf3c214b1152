"""`spec.pools[]`: replicas of one template, on one accelerator, in one role."""

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, model_validator

from fairlead.api.strict_model import Rule, StrictModel, field_error
from fairlead.api.value_types import EndpointUrl, Label, Labels, ShortName, Subdomain, check_unique, list_map_schema

_INT32 = {"format": "int32"}


class PoolRole(StrEnum):
    """The role of a pool's instances in serving a request."""

    SERVE = "Serve"
    PREFILL = "Prefill"
    DECODE = "Decode"


class Parallelism(StrictModel):
    """The spread of one instance over devices and nodes. It has tensor × pipeline × data ranks."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="(self.tensor * self.pipeline * self.data) % self.nodes == 0",
            message="the ranks (tensor × pipeline × data) cannot be shared evenly by the nodes",
            fix="make their product a multiple of nodes",
            at=("nodes",),
            violation=lambda shape: shape.ranks % shape.nodes != 0,
        ),
        Rule(
            cel="(self.nodes > 1) == (oldSelf.nodes > 1)",
            message="a pool cannot change between one node and several: the two are run by different objects",
            fix="add a pool of another name, and remove this one once that is ready",
            at=("nodes",),
        ),
    )

    tensor: Annotated[
        int,
        Field(
            ge=1, le=64, description="devices over which each layer is split", examples=["4"], json_schema_extra=_INT32
        ),
    ] = 1
    pipeline: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="stages into which the layers are divided",
            examples=["2"],
            json_schema_extra=_INT32,
        ),
    ] = 1
    data: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="data-parallel copies behind one address, each with its own batch",
            examples=["2"],
            json_schema_extra=_INT32,
        ),
    ] = 1
    nodes: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            description="pods of one instance, each on its own node; more than 1 needs LeaderWorkerSet",
            examples=["2"],
            json_schema_extra=_INT32,
        ),
    ] = 1

    @property
    def ranks(self) -> int:
        """Number of ranks of one instance; each has one device."""
        return self.tensor * self.pipeline * self.data

    @property
    def ranks_per_pod(self) -> int:
        """Number of ranks in each pod of an instance."""
        return self.ranks // self.nodes


class TemplateMetadata(StrictModel):
    """Labels and annotations of pods, in addition to Fairlead's own."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.labels) || self.labels.all(key, !key.startsWith('fairlead.io/'))",
            message="labels that begin with fairlead.io/ are how Fairlead finds its pods",
            fix="use a prefix of your own",
            at=("labels",),
            violation=lambda metadata: any(key.startswith("fairlead.io/") for key in metadata.labels),
        ),
    )

    labels: Labels = Field(
        default_factory=dict,
        max_length=32,
        description="labels of the pods",
        examples=["{team: search}"],
    )
    annotations: dict[str, Annotated[str, Field(max_length=65_536)]] = Field(
        default_factory=dict,
        max_length=32,
        description="annotations of the pods",
        examples=['{example.com/scrape: "true"}'],
    )


MAX_TEMPLATE_DEPTH = 50
MAX_TEMPLATE_VALUES = 4096
MAX_TEMPLATES_VALUES = 2 * MAX_TEMPLATE_VALUES
"""Values of the templates of all pools of a model."""


def is_oversized(value: Any, max_values: int = MAX_TEMPLATE_VALUES, max_depth: int = MAX_TEMPLATE_DEPTH) -> bool:
    """Returns True if a value is nested deeper, or has more values, than a pod template may."""
    level, count = [value], 1
    for _ in range(max_depth):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        count += len(level)
        if not level or count > max_values:
            break
    return bool(level)


def _check_size(spec: dict[str, Any]) -> dict[str, Any]:
    if is_oversized(spec):
        raise field_error(
            f"has more than {MAX_TEMPLATE_VALUES} values ({MAX_TEMPLATES_VALUES} in all pools together),"
            f" or more than {MAX_TEMPLATE_DEPTH} levels",
            "shorten it; put long lists into a ConfigMap",
        )
    return spec


class PodTemplate(StrictModel):
    """A strategic merge patch for the pod template. Lists are merged by name, scalars replaced."""

    metadata: Annotated[TemplateMetadata, Field(examples=["{labels: {team: search}}"])] = TemplateMetadata()
    spec: Annotated[dict[str, Any], AfterValidator(_check_size)] = Field(
        default_factory=dict,
        description="parts of a PodSpec; the engine's container is called engine",
        examples=["{priorityClassName: high}"],
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )


class EndpointSecretKey(StrictModel):
    """An entry of a Secret that the installation gives to the model's namespace."""

    name: Annotated[
        Subdomain,
        Field(
            description="a Secret of the installation's namespace that the chart value externalEngines.secrets lists",
            examples=["provider"],
        ),
    ]
    key: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            pattern=r"^[-_a-zA-Z0-9][-._a-zA-Z0-9]*$",
            description="key of the entry",
            examples=["token"],
        ),
    ]


class ExternalEndpoint(StrictModel):
    """An engine that already runs, or an API that others run."""

    url: Annotated[
        EndpointUrl,
        Field(
            description="scheme, host and port; and the path before /v1, if the API has one. A final /v1 is left out",
            examples=["http://10.0.0.5:8000"],
        ),
    ]
    token_secret_key_ref: Annotated[
        EndpointSecretKey | None,
        Field(
            description="the bearer token that the endpoint expects",
            examples=["{name: provider, key: token}"],
        ),
    ] = None
    ca_secret_key_ref: Annotated[
        EndpointSecretKey | None,
        Field(
            description="the authority that its certificate is verified against; left out = those of the gateway's image",
            examples=["{name: provider, key: ca.crt}"],
        ),
    ] = None


class PodSelector(StrictModel):
    """Pods of the same namespace that already run an engine."""

    match_labels: Labels = Field(
        min_length=1,
        max_length=16,
        description="labels of the pods; a pod must have all of them",
        examples=["{app: my-vllm}"],
    )
    port: Annotated[
        int,
        Field(ge=1, le=65_535, description="port of the engine", examples=["8000"], json_schema_extra=_INT32),
    ] = 8000


class Pool(StrictModel):
    """Replicas of one template: one accelerator, one role."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.maxReplicas) || self.maxReplicas >= self.minReplicas",
            message="maxReplicas is less than minReplicas",
            fix="raise maxReplicas, or lower minReplicas",
            at=("maxReplicas",),
            violation=lambda one: one.max_replicas is not None and one.max_replicas < one.min_replicas,
        ),
        Rule(
            cel="self.role == oldSelf.role",
            message="the role of a pool cannot be changed",
            fix="add a pool of another name with the new role, and remove this one once that is ready",
            at=("role",),
        ),
        Rule(
            cel="!(has(self.endpoints) && self.endpoints.size() > 0 && has(self.selector))",
            message="endpoints and selector exclude one another",
            fix="remove one of them, or make two pools",
            at=("selector",),
            violation=lambda pool: bool(pool.endpoints) and pool.selector is not None,
        ),
    )

    name: Annotated[Label, Field(description="unique within the model", examples=["main"])] = "main"
    role: Annotated[
        PoolRole,
        Field(
            strict=False,
            description="Serve: prefill and decode on the same instance. Prefill and Decode: one after the other on "
            "different instances; both roles are needed",
            examples=["Serve"],
        ),
    ] = PoolRole.SERVE
    accelerator_class_name: Annotated[
        ShortName | None,
        Field(
            description="name of an AcceleratorClass, applied or built in; needed unless the engine is external. "
            "For engines of type Sim, also a built-in profile",
            examples=["nvidia-l4"],
        ),
    ] = None
    min_replicas: Annotated[
        int,
        Field(ge=0, le=4096, description="instances that always run", examples=["8"], json_schema_extra=_INT32),
    ] = 1
    max_replicas: Annotated[
        int | None,
        Field(
            ge=1,
            le=4096,
            description="upper bound for the autoscaler, an HPA, KEDA or `kubectl scale`; left out = no bound, and the "
            "autoscaler leaves the pool at minReplicas",
            examples=["16"],
            json_schema_extra=_INT32,
        ),
    ] = None
    parallelism: Annotated[Parallelism, Field(examples=["{tensor: 4}"])] = Parallelism()
    args: list[Annotated[str, Field(min_length=1, max_length=4096)]] = Field(
        default_factory=list,
        max_length=64,
        description="arguments of this pool's engines alone; they come after engine.args, and win",
        examples=['["--max-num-seqs=16"]'],
    )
    template: Annotated[PodTemplate | None, Field(examples=["{spec: {priorityClassName: high}}"])] = None
    endpoints: list[ExternalEndpoint] = Field(
        default_factory=list,
        max_length=256,
        description="addresses of an external engine",
        examples=['[{url: "http://10.0.0.5:8000"}]'],
        json_schema_extra=list_map_schema("url"),
    )
    selector: Annotated[PodSelector | None, Field(examples=["{matchLabels: {app: my-vllm}}"])] = None

    @model_validator(mode="after")
    def _check_unique_names(self) -> Self:
        check_unique("endpoints", [endpoint.url for endpoint in self.endpoints])
        return self

    @property
    def is_scalable(self) -> bool:
        """True if maxReplicas is above minReplicas, so that the autoscaler has a choice."""
        return self.max_replicas is not None and self.max_replicas > self.min_replicas

    @property
    def is_external(self) -> bool:
        """True if the pool names engines that already run."""
        return bool(self.endpoints) or self.selector is not None
