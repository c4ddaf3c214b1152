"""`spec.pools[]`: replicas of one template, on one accelerator, in one role."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field

from fairlead.api.strict_model import Rule, StrictModel, api_field, api_list, field_error
from fairlead.api.value_types import Choice, EndpointUrl, Int32, Label, Labels, ShortName, Subdomain
from fairlead.fleet.model import Role

PoolRole = Role
"""The role of a pool's instances in serving a request."""

MAX_TEMPLATE_DEPTH = 50
MAX_TEMPLATE_VALUES = 4096
MAX_TEMPLATES_VALUES = 2 * MAX_TEMPLATE_VALUES
"""Values of the templates of all pools of a model."""


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

    tensor: Annotated[Int32, api_field("devices over which each layer is split", "4", ge=1, le=64)] = 1
    pipeline: Annotated[Int32, api_field("stages into which the layers are divided", "2", ge=1, le=64)] = 1
    data: Annotated[
        Int32, api_field("data-parallel copies behind one address, each with its own batch", "2", ge=1, le=64)
    ] = 1
    nodes: Annotated[
        Int32,
        api_field("pods of one instance, each on its own node; more than 1 needs LeaderWorkerSet", "2", ge=1, le=64),
    ] = 1

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def ranks_per_pod(self) -> int:
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

    labels: Labels = api_field("labels of the pods", "{team: search}", default_factory=dict, max_length=32)
    annotations: dict[str, Annotated[str, Field(max_length=65_536)]] = api_field(
        "annotations of the pods", '{example.com/scrape: "true"}', default_factory=dict, max_length=32
    )


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
    spec: Annotated[dict[str, Any], AfterValidator(_check_size)] = api_field(
        "parts of a PodSpec; the engine's container is called engine",
        "{priorityClassName: high}",
        default_factory=dict,
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )


class EndpointSecretKey(StrictModel):
    """An entry of a Secret that the installation gives to the model's namespace."""

    name: Annotated[
        Subdomain,
        api_field(
            "a Secret of the installation's namespace that the chart value externalEngines.secrets lists", "provider"
        ),
    ]
    key: Annotated[
        str,
        api_field("key of the entry", "token", min_length=1, max_length=253, pattern=r"^[-_a-zA-Z0-9][-._a-zA-Z0-9]*$"),
    ]


class ExternalEndpoint(StrictModel):
    """An engine that already runs, or an API that others run."""

    url: Annotated[
        EndpointUrl,
        api_field(
            "scheme, host and port; and the path before /v1, if the API has one. A final /v1 is left out",
            "http://10.0.0.5:8000",
        ),
    ]
    token_secret_key_ref: Annotated[
        EndpointSecretKey | None,
        api_field("the bearer token that the endpoint expects; left out = none", "{name: provider, key: token}"),
    ] = None
    ca_secret_key_ref: Annotated[
        EndpointSecretKey | None,
        api_field(
            "the authority that its certificate is verified against; left out = those of the gateway's image",
            "{name: provider, key: ca.crt}",
        ),
    ] = None


class PodSelector(StrictModel):
    """Pods of the same namespace that already run an engine."""

    match_labels: Annotated[Labels, api_field("labels of the pods; a pod must have all of them", "{app: my-vllm}")] = (
        Field(min_length=1, max_length=16)
    )
    port: Annotated[Int32, api_field("port of the engine", "8000", ge=1, le=65_535)] = 8000


class Pool(StrictModel):
    """Replicas of one template: one accelerator, one role."""

    unique: ClassVar[Mapping[str, str]] = {"endpoints": "url"}
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

    name: Annotated[Label, api_field("unique within the model", "main")] = "main"
    role: Annotated[
        Choice[PoolRole],
        api_field(
            "Serve: prefill and decode on the same instance. Prefill and Decode: one after the other on "
            "different instances; both roles are needed",
            "Serve",
        ),
    ] = PoolRole.SERVE
    accelerator_class_name: Annotated[
        ShortName | None,
        api_field(
            "name of an AcceleratorClass, applied or built in; for engines of type Sim, also a built-in profile. "
            "Left out = none, for external engines only",
            "nvidia-l4",
        ),
    ] = None
    min_replicas: Annotated[Int32, api_field("instances that always run", "8", ge=0, le=4096)] = 1
    max_replicas: Annotated[
        Int32 | None,
        api_field(
            "upper bound for the autoscaler, an HPA, KEDA or `kubectl scale`; left out = no bound, and the "
            "autoscaler leaves the pool at minReplicas",
            "16",
            ge=1,
            le=4096,
        ),
    ] = None
    parallelism: Annotated[Parallelism, Field(examples=["{tensor: 4}"])] = Parallelism()
    args: list[Annotated[str, Field(min_length=1, max_length=4096)]] = api_list(
        "arguments of this pool's engines alone; they come after engine.args, and win",
        '["--max-num-seqs=16"]',
        max_length=64,
    )
    template: Annotated[PodTemplate | None, Field(examples=["{spec: {priorityClassName: high}}"])] = None
    endpoints: list[ExternalEndpoint] = api_list(
        "addresses of an external engine", '[{url: "http://10.0.0.5:8000"}]', max_length=256, key="url"
    )
    selector: Annotated[PodSelector | None, Field(examples=["{matchLabels: {app: my-vllm}}"])] = None

    @property
    def is_scalable(self) -> bool:
        """True if maxReplicas is above minReplicas, so that the autoscaler has a choice."""
        return self.max_replicas is not None and self.max_replicas > self.min_replicas

    @property
    def is_external(self) -> bool:
        """True if the pool names engines that already run."""
        return bool(self.endpoints) or self.selector is not None
