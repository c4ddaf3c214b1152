"""`serving.fairlead.io/v1alpha1`: the kinds of this release, as written in manifests.

The CRDs in `crds/` and `docs/reference/api.md` are generated from these types; run `make generate`
after a change. A field is added together with the code that honours it; until then, its name is in
`planned`. The sections of a spec are in `fairlead/api/spec/`.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from fairlead.api.price import Price
from fairlead.api.spec.accelerator_class import AcceleratorClassSpec
from fairlead.api.spec.adapter.spec import ModelAdapterSpec
from fairlead.api.spec.adapters import Adapters
from fairlead.api.spec.autoscaling import Autoscaling, ScalingMode
from fairlead.api.spec.engine import Engine, EngineType
from fairlead.api.spec.kv_cache import KvCache, PeerTransfer, Transfer
from fairlead.api.spec.model_source import API_SCHEME, ModelSource
from fairlead.api.spec.pools import (
    MAX_TEMPLATE_DEPTH,
    MAX_TEMPLATES_VALUES,
    Parallelism,
    Pool,
    PoolRole,
    is_oversized,
)
from fairlead.api.spec.rollout import Rollout
from fairlead.api.spec.route.spec import ModelRouteSpec, check_models
from fairlead.api.spec.routing import Routing
from fairlead.api.spec.slo import Slo
from fairlead.api.spec.tenant.spec import ModelTenantSpec
from fairlead.api.strict_model import FieldPath, Rule, StrictModel, api_field, field_error, list_map_schema
from fairlead.api.value_types import MAX_LABEL_VALUE_LENGTH, AllowedRoutes, Int32, Label, ObjectName
from fairlead.fleet.model import Model, TokenPrice
from fairlead.routes.model import Route
from fairlead.tenants.model import Tenant

GROUP = "serving.fairlead.io"
VERSION = "v1alpha1"
API_VERSION: Final = "serving.fairlead.io/v1alpha1"

_HAS_PREFILL_CEL = "self.pools.exists(pool, pool.role == 'Prefill')"
_EXTERNAL_CEL = "self.engine.type in ['External', 'OpenAI']"
_OPAQUE_ENGINE_CEL = "self.engine.type in ['Custom', 'External', 'LlamaCpp', 'OpenAI', 'TRTLLM']"
_KEPT_REPLICAS_CEL = "oldSelf.hasValue() && oldSelf.value().?replicas == optional.of(self.replicas)"
"""The operator's number of a model with one pool stays for a moment when the model changes."""
_SERVED_NAME_FLAG = "--served-model-name"
_NO_SLEEP_CEL = "!has(self.autoscaling.sleep)"


def _is_api(spec: Any) -> bool:
    return spec.engine.type is EngineType.OPENAI


def _in_pools(spec: Any, find: Callable[[Pool], FieldPath | None]) -> FieldPath | bool:
    found = ((index, path) for index, pool in enumerate(spec.pools) if (path := find(pool)) is not None)
    return next((("pools", index, *path) for index, path in found), False)


def _selection(pool: Pool) -> FieldPath | None:
    return ("selector",) if pool.selector is not None else ("role",) if pool.role is not PoolRole.SERVE else None


def _unsafe_token(pool: Pool) -> FieldPath | None:
    for index, endpoint in enumerate(pool.endpoints):
        if endpoint.token_secret_key_ref is not None and not endpoint.url.startswith("https://"):
            return ("endpoints", index, "url")
    return None


def _unsupported_external_field(pool: Pool) -> FieldPath | None:
    given = {
        "minReplicas": pool.min_replicas != 1,
        "maxReplicas": pool.max_replicas is not None,
        "parallelism": pool.parallelism != Parallelism(),
        "args": bool(pool.args),
        "template": pool.template is not None,
    }
    return next(((name,) for name, is_given in given.items() if is_given), None)


EXTERNAL_API_RULES: Final = (
    Rule(
        # Objects of the first release may have no uri: the API server checks them, too.
        cel="(self.engine.type == 'OpenAI') == (has(self.model.uri) && self.model.uri.startsWith('openai://'))",
        message="an openai:// uri and an engine of type OpenAI need each other",
        fix="write both, for example `uri: openai://gpt-4o-mini`, or neither",
        at=("model", "uri"),
        violation=lambda spec: _is_api(spec) != (spec.model.scheme == API_SCHEME),
    ),
    Rule(
        cel="self.engine.type != 'OpenAI' || self.pools.all(pool, !has(pool.selector) && pool.role == 'Serve')",
        message="an API that others run has addresses, and the role Serve",
        fix="give the pool `endpoints: [{url: ...}]`, and remove selector and role",
        at=("pools",),
        violation=lambda spec: _is_api(spec) and _in_pools(spec, _selection),
    ),
    Rule(
        cel="self.engine.type != 'OpenAI' || self.pools.all(pool, !has(pool.endpoints) || pool.endpoints.all(endpoint, "
        "!has(endpoint.tokenSecretKeyRef) || endpoint.url.startsWith('https://')))",
        message="a token leaves the cluster over TLS only",
        fix="write an https:// url, or remove tokenSecretKeyRef",
        at=("pools",),
        violation=lambda spec: _is_api(spec) and _in_pools(spec, _unsafe_token),
    ),
)


class Metadata(StrictModel):
    """Object metadata. Fields that a cluster adds, such as resourceVersion, are ignored."""

    model_config = ConfigDict(alias_generator=None)

    name: Annotated[ObjectName, Field(examples=["qwen3-8b"])]
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


def _unknown_schedule_pool(spec: "ModelDeploymentSpec") -> FieldPath | bool:
    known = {pool.name for pool in spec.pools}
    unknown = [
        index
        for index, schedule in enumerate(spec.autoscaling.schedules)
        if schedule.pool is not None and schedule.pool not in known
    ]
    return ("autoscaling", "schedules", unknown[0], "pool") if unknown else False


class ModelDeploymentSpec(StrictModel):
    """The desired state of a model: what to serve, on what hardware, and how fast."""

    unique: ClassVar[Mapping[str, str]] = {"pools": "name"}
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            # A custom engine's arguments are its own affair, and may hold $(MODEL_NAME).
            cel="!has(self.model.servedNames) || self.model.servedNames.size() == 0 || !has(self.engine.args) || "
            "self.engine.type == 'Custom' || "
            f"!self.engine.args.exists(arg, arg == '{_SERVED_NAME_FLAG}' || arg.startsWith('{_SERVED_NAME_FLAG}='))",
            message="the engine gets its name twice",
            fix=f"remove {_SERVED_NAME_FLAG} from args, or remove servedNames",
            at=("model", "servedNames"),
            violation=lambda one: (
                bool(one.model.served_names)
                and one.engine.type is not EngineType.CUSTOM
                and any(arg.partition("=")[0] == _SERVED_NAME_FLAG for arg in one.engine.args)
            ),
        ),
        Rule(
            cel=f"{_EXTERNAL_CEL} || self.pools.all(pool, has(pool.acceleratorClassName))",
            message="a pool needs an accelerator class",
            fix="add it, for example `acceleratorClassName: nvidia-l4`",
            at=("pools",),
            violation=lambda spec: (
                not spec.is_external
                and _in_pools(spec, lambda pool: None if pool.accelerator_class_name else ("acceleratorClassName",))
            ),
        ),
        Rule(
            cel=f"!({_EXTERNAL_CEL}) || self.pools.all(pool, has(pool.selector) || has(pool.endpoints) && "
            "pool.endpoints.size() > 0)",
            message="a pool of an external engine needs the location of its engines",
            fix="add `endpoints: [{url: ...}]` or `selector: {matchLabels: {...}}`",
            at=("pools",),
            violation=lambda spec: spec.is_external and _in_pools(spec, lambda pool: None if pool.is_external else ()),
        ),
        Rule(
            cel=f"{_EXTERNAL_CEL} || self.pools.all(pool, !has(pool.selector) && (!has(pool.endpoints) || "
            "pool.endpoints.size() == 0))",
            message="endpoints and selector are for external engines",
            fix="write `engine: {type: External}`, or remove endpoints and selector",
            at=("pools",),
            violation=lambda spec: (
                not spec.is_external
                and _in_pools(
                    spec,
                    lambda pool: ("endpoints",) if pool.endpoints else ("selector",) if pool.selector else None,
                )
            ),
        ),
        Rule(
            cel=f"!({_EXTERNAL_CEL}) || self.pools.all(pool, !has(pool.template) && pool.minReplicas == 1 && "
            "!has(pool.maxReplicas) && pool.parallelism.tensor == 1 && pool.parallelism.pipeline == 1 && "
            "pool.parallelism.data == 1 && pool.parallelism.nodes == 1 && (!has(pool.args) || pool.args.size() == 0))",
            message="Fairlead does not run an external engine and cannot set its replicas, parallelism, args or template",
            fix="remove them",
            at=("pools",),
            violation=lambda spec: spec.is_external and _in_pools(spec, _unsupported_external_field),
        ),
        Rule(
            cel=f"{_HAS_PREFILL_CEL} == self.pools.exists(pool, pool.role == 'Decode')",
            message="the roles Prefill and Decode need each other",
            fix="add a pool of the other role, or use Serve",
            at=("pools",),
            violation=lambda spec: spec.has_role(PoolRole.PREFILL) != spec.has_role(PoolRole.DECODE),
        ),
        Rule(
            cel=f"!{_HAS_PREFILL_CEL} || self.kvCache.transfer != 'None'",
            message="pools of role Prefill transfer their KV to pools of role Decode",
            fix="set it, for example `kvCache: {transfer: NIXL}`",
            at=("pools",),
            violation=lambda spec: spec.has_role(PoolRole.PREFILL) and spec.kv_cache.transfer is Transfer.NONE,
        ),
        Rule(
            cel=f"{_HAS_PREFILL_CEL} || self.kvCache.transfer == 'None'",
            message="a KV transfer needs pools of role Prefill and Decode",
            fix="remove transfer, or give pools those roles",
            at=("kvCache", "transfer"),
            violation=lambda spec: not spec.has_role(PoolRole.PREFILL) and spec.kv_cache.transfer is not Transfer.NONE,
        ),
        Rule(
            cel=f"!has(self.kvCache.offload) || !({_OPAQUE_ENGINE_CEL})",
            message="Fairlead does not know the offload flags of an engine of this type",
            fix="set them in args, and remove offload",
            at=("kvCache", "offload"),
            violation=lambda spec: spec.kv_cache.offload is not None and spec.has_opaque_engine,
        ),
        Rule(
            cel="!has(self.kvCache.offload) || !has(self.kvCache.offload.peers) || self.engine.type in ['VLLM', 'Sim']",
            message="engines of this type do not share KV with peers",
            fix="remove peers",
            at=("kvCache", "offload", "peers"),
            violation=lambda spec: spec.peers is not None and spec.engine.type not in (EngineType.VLLM, EngineType.SIM),
        ),
        Rule(
            cel=f"!has(self.kvCache.offload) || !has(self.kvCache.offload.peers) || !{_HAS_PREFILL_CEL}",
            message="with disaggregated prefill, KV goes from prefill to decode and not between peers",
            fix="remove peers",
            at=("kvCache", "offload", "peers"),
            violation=lambda spec: spec.peers is not None and spec.has_role(PoolRole.PREFILL),
        ),
        Rule(
            cel=f"!has(self.adapters) || !({_OPAQUE_ENGINE_CEL})",
            message="Fairlead does not know the adapter flags of an engine of this type",
            fix="set them in args, and remove adapters",
            at=("adapters",),
            violation=lambda spec: spec.adapters is not None and spec.has_opaque_engine,
        ),
        Rule(
            cel=f"!has(self.replicas) || self.pools.size() == 1 || {_KEPT_REPLICAS_CEL}",
            compares_old=True,
            message="replicas is for a model with one pool",
            fix="remove it, and give each pool its own minReplicas",
            at=("replicas",),
            violation=lambda spec: spec.replicas is not None and len(spec.pools) > 1,
        ),
        Rule(
            cel=f"!has(self.replicas) || !({_EXTERNAL_CEL}) || {_KEPT_REPLICAS_CEL}",
            compares_old=True,
            message="Fairlead does not run an external engine and cannot set its replicas",
            fix="remove replicas",
            at=("replicas",),
            violation=lambda spec: spec.replicas is not None and spec.is_external,
        ),
        Rule(
            cel=f"self.autoscaling.mode == 'Disabled' || {_EXTERNAL_CEL} || self.pools.exists(pool, "
            "has(pool.maxReplicas) && pool.maxReplicas > pool.minReplicas) || has(self.autoscaling.schedules)",
            message="there is nothing to scale: no pool has a maxReplicas above its minReplicas",
            fix="give a pool a maxReplicas above its minReplicas, for example `maxReplicas: 8`",
            at=("autoscaling", "mode"),
            violation=lambda spec: (
                spec.autoscaling.mode is not ScalingMode.DISABLED
                and not spec.is_external
                and not any(pool.is_scalable for pool in spec.pools)
                and not spec.autoscaling.schedules
            ),
        ),
        Rule(
            cel=f"self.autoscaling.mode == 'Disabled' || !({_EXTERNAL_CEL})",
            message="Fairlead does not run an external engine and cannot set its replicas",
            fix="write `mode: Disabled`",
            at=("autoscaling", "mode"),
            violation=lambda spec: spec.autoscaling.mode is not ScalingMode.DISABLED and spec.is_external,
        ),
        Rule(
            cel="!has(self.autoscaling.schedules) || self.autoscaling.schedules.all(schedule, !has(schedule.pool) || "
            "self.pools.exists(pool, pool.name == schedule.pool))",
            message="a schedule names a pool that does not exist",
            fix="write the name of a pool, or leave it out for all pools",
            at=("autoscaling",),
            violation=_unknown_schedule_pool,
        ),
        Rule(
            cel=f"{_NO_SLEEP_CEL} || self.engine.type in ['VLLM', 'Sim']",
            message="engines of this type have no sleep mode",
            fix="remove sleep",
            at=("autoscaling", "sleep"),
            violation=lambda spec: spec.can_sleep and spec.engine.type not in (EngineType.VLLM, EngineType.SIM),
        ),
        Rule(
            cel=f"{_NO_SLEEP_CEL} || self.pools.all(pool, pool.parallelism.nodes == 1)",
            message="an instance on several nodes cannot sleep",
            fix="remove sleep, or give each instance one node",
            at=("autoscaling", "sleep"),
            violation=lambda spec: spec.can_sleep and any(pool.parallelism.nodes > 1 for pool in spec.pools),
        ),
        Rule(
            cel=f"{_NO_SLEEP_CEL} || !{_HAS_PREFILL_CEL} && !(has(self.kvCache.offload) && has(self.kvCache.offload.peers))",
            message="an engine whose KV is read over the network cannot sleep: its memory is registered",
            fix="remove sleep",
            at=("autoscaling", "sleep"),
            violation=lambda spec: spec.can_sleep and (spec.has_role(PoolRole.PREFILL) or spec.peers is not None),
        ),
        Rule(
            cel=f"{_NO_SLEEP_CEL} || self.autoscaling.sleep.level == 1 || !has(self.adapters)",
            message="an engine that dropped its weights loses its adapters",
            fix="write `level: 1`, or remove adapters",
            at=("autoscaling", "sleep", "level"),
            violation=lambda spec: spec.can_sleep and spec.autoscaling.sleep.level > 1 and spec.adapters is not None,
        ),
        Rule(
            cel=f"!has(self.rollout.canary) || !({_EXTERNAL_CEL}) && self.pools.all(pool, "
            "pool.role == 'Serve' && pool.parallelism.nodes == 1)",
            message="a canary needs pools of role Serve on one node each, which Fairlead runs",
            fix="remove canary",
            at=("rollout", "canary"),
            violation=lambda spec: (
                spec.rollout.canary is not None
                and (
                    spec.is_external
                    or any(pool.role is not PoolRole.SERVE or pool.parallelism.nodes > 1 for pool in spec.pools)
                )
            ),
        ),
        *EXTERNAL_API_RULES,
    )

    model: Annotated[ModelSource, Field(examples=['{uri: "hf://Qwen/Qwen3-8B"}'])]
    engine: Annotated[Engine, Field(examples=["{type: VLLM}"])] = Engine()
    replicas: Annotated[
        Int32 | None,
        api_field(
            "instances of the only pool, within its bounds; written by `kubectl scale`, an HPA or KEDA. "
            "Left out = the pool's minReplicas; until then the operator shows here what runs",
            "2",
            ge=0,
            le=4096,
        ),
    ] = None
    pools: Annotated[
        list[Pool],
        api_field(
            "groups of instances",
            "[{acceleratorClassName: nvidia-l4}]",
            min_length=1,
            max_length=16,
            json_schema_extra=list_map_schema("name"),
        ),
    ]
    kv_cache: Annotated[KvCache, Field(examples=["{transfer: NIXL}"])] = KvCache()
    adapters: Annotated[Adapters | None, Field(examples=["{slots: 8, maxRank: 64}"])] = None
    slo: Annotated[Slo, Field(examples=["{ttft: 800ms, tpot: 40ms}"])] = Slo()
    routing: Annotated[Routing, Field(examples=["{preset: dual-hash}"])] = Routing()
    autoscaling: Annotated[Autoscaling, Field(examples=["{mode: Auto}"])] = Autoscaling()
    rollout: Annotated[Rollout, Field(examples=["{maxSurge: 2, drainTimeout: 10m}"])] = Rollout()
    price: Annotated[Price | None, Field(examples=['{input: "0.40", cachedInput: "0.10", output: "1.20"}'])] = None
    allowed_routes: AllowedRoutes = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_template_sizes(self) -> Self:
        specs = [pool.template.spec for pool in self.pools if pool.template is not None]
        if is_oversized(specs, MAX_TEMPLATES_VALUES, MAX_TEMPLATE_DEPTH + 1):
            message = f"the templates of all pools have more than {MAX_TEMPLATES_VALUES} values"
            raise field_error(message, "shorten them; put long lists into a ConfigMap", ("pools",))
        return self

    @property
    def is_external(self) -> bool:
        """True if the engines already run and Fairlead only routes to them."""
        return self.engine.type in (EngineType.EXTERNAL, EngineType.OPENAI)

    def to_model(self, namespace: str, name: str) -> Model:
        """Returns the model as gateways route it, with the names that it claims."""
        return Model(
            namespace,
            name,
            self.slo.to_targets(),
            self.routing.to_routing(),
            wakes=self.scales_from_zero,
            served_names=tuple(self.model.served_names),
            requests=self.engine.to_request_policy(),
            price=self.token_price,
            route_namespaces=frozenset(self.allowed_routes),
            context_length=self.model.context_length,
        )

    @property
    def has_opaque_engine(self) -> bool:
        """True if Fairlead knows no flags of the engine for adapters and offloading."""
        flagless = (EngineType.CUSTOM, EngineType.EXTERNAL, EngineType.LLAMA_CPP, EngineType.OPENAI)
        return self.engine.type in (*flagless, EngineType.TRTLLM)

    @property
    def token_price(self) -> TokenPrice | None:
        """The price of a token of each kind; None if the model has no price."""
        return None if self.price is None else self.price.to_token_price()

    @property
    def peers(self) -> PeerTransfer | None:
        """The settings for copying KV between instances; None if they do not copy any."""
        offload = self.kv_cache.offload
        return None if offload is None else offload.peers

    @property
    def can_sleep(self) -> bool:
        """True if engines must be started with sleep mode, even if no instance sleeps now."""
        return self.autoscaling.sleep is not None

    @property
    def scales_from_zero(self) -> bool:
        """True if the model may have no instance, and gets one when a request is queued.

        False unless `autoscaling.mode` is Auto, and for models with disaggregated prefill.

        Why: disaggregated prompts cannot wait for a first instance, so one instance of each role
        always runs.
        """
        if self.autoscaling.mode is not ScalingMode.AUTO or self.has_role(PoolRole.PREFILL):
            return False
        schedules = self.autoscaling.schedules
        return all(
            pool.min_replicas == 0
            or any(schedule.min_replicas == 0 and schedule.pool in (None, pool.name) for schedule in schedules)
            for pool in self.pools
        )

    def has_role(self, role: PoolRole) -> bool:
        """Returns True if a pool has this role."""
        return any(pool.role is role for pool in self.pools)

    def desired_instances(self, pool: Pool) -> int:
        """Returns the desired number of instances; 0 for an external pool."""
        if pool.is_external:
            return 0
        if self.replicas is None:
            return pool.min_replicas
        maximum = pool.max_replicas if pool.max_replicas is not None else self.replicas
        return max(pool.min_replicas, min(self.replicas, maximum))


class _Object(StrictModel):
    """The base of every kind."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel=f"self.metadata.name.size() <= {MAX_LABEL_VALUE_LENGTH}",
            message=f"the name is longer than {MAX_LABEL_VALUE_LENGTH} characters, and it becomes a label",
            fix="shorten it",
            at=("metadata", "name"),
            violation=lambda model: len(model.metadata.name) > MAX_LABEL_VALUE_LENGTH,
        ),
    )

    api_version: Literal["serving.fairlead.io/v1alpha1"]
    kind: str
    metadata: Metadata
    spec: Any
    status: Any = Field(default=None, exclude=True)

    @property
    def key(self) -> str:
        return f"{self.metadata.namespace or 'default'}/{self.metadata.name}"


class _ClusterObject(_Object):
    """The base of the kinds without a namespace."""

    @field_validator("metadata")
    @classmethod
    def _check_cluster_scoped(cls, metadata: Metadata) -> Metadata:
        if metadata.namespace is not None:
            article = "an" if cls.__name__.startswith("A") else "a"
            message = f"{article} {cls.__name__} belongs to the cluster, not to a namespace"
            raise field_error(message, "remove it", at=("namespace",))
        return metadata

    @property
    def key(self) -> str:
        return self.metadata.name


class ModelDeployment(_Object):
    """A served model: the object that a platform team applies."""

    kind: Literal["ModelDeployment"]
    metadata: Annotated[Metadata, Field(examples=["{name: qwen3-8b}"])]
    spec: Annotated[ModelDeploymentSpec, Field(examples=["{model: {...}, pools: [...]}"])]


class AcceleratorClass(_ClusterObject):
    """A kind of accelerator that pools may name. Cluster-scoped."""

    kind: Literal["AcceleratorClass"]
    metadata: Annotated[Metadata, Field(examples=["{name: npu-910b4}"])]
    spec: Annotated[AcceleratorClassSpec, Field(examples=["{profile: {preset: 910b4}}"])]


class ModelTenant(_ClusterObject):
    """A team or an application that calls models. Cluster-scoped."""

    kind: Literal["ModelTenant"]
    metadata: Annotated[Metadata, Field(examples=["{name: acme}"])]
    spec: Annotated[ModelTenantSpec, Field(examples=["{keys: [...], limits: [...]}"])]

    def to_tenant(self) -> Tenant:
        return self.spec.to_tenant(self.metadata.name)


class ModelRoute(_Object):
    """A name for clients that stands for one model, or for several with weights."""

    kind: Literal["ModelRoute"]
    metadata: Annotated[Metadata, Field(examples=["{name: assistant}"])]
    spec: Annotated[ModelRouteSpec, Field(examples=["{targets: [{model: llama-70b}]}"])]

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        check_models(self.to_route(), at=("spec",))
        return self

    def to_route(self) -> Route:
        return self.spec.to_route(self.metadata.namespace or "default", self.metadata.name)


class ModelAdapter(_Object):
    """A LoRA adapter of a model, which clients request by names of its own."""

    kind: Literal["ModelAdapter"]
    metadata: Annotated[Metadata, Field(examples=["{name: sql}"])]
    spec: Annotated[ModelAdapterSpec, Field(examples=['{base: qwen3-8b, source: "pvc:adapters/sql-2"}'])]
