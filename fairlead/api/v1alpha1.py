"""``serving.fairlead.io/v1alpha1``: the kinds that this release honours, as they are written in a manifest.

CRDs in ``crds/`` and ``docs/reference/api.md`` are generated from here; run ``make generate`` after a change. A field is added
together with the code that honours it, and until then its name stands in ``planned``. Parts of a spec have files of their own.
"""

from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from fairlead.api.metadata import Metadata
from fairlead.api.spec.accelerator_class import AcceleratorClassSpec
from fairlead.api.spec.adapters import Adapters
from fairlead.api.spec.autoscaling import Autoscaling, ScalingMode
from fairlead.api.spec.engine import Engine, EngineKind
from fairlead.api.spec.kv_cache import KvCache, PeerTransfer, Transfer
from fairlead.api.spec.model import ModelSource
from fairlead.api.spec.pools import Parallelism, Pool, PoolRole, Replicas
from fairlead.api.spec.rollout import Rollout
from fairlead.api.spec.routing import Routing
from fairlead.api.spec.slo import Slo
from fairlead.api.strict_model import FieldPath, Rule, StrictModel, field_error
from fairlead.api.value_types import MAX_LABEL_VALUE_LENGTH, check_unique, list_map_schema

GROUP = "serving.fairlead.io"
VERSION = "v1alpha1"
API_VERSION: Final = "serving.fairlead.io/v1alpha1"


def _first_pool(spec: "ModelDeploymentSpec", field: str, broken: list[bool]) -> FieldPath | bool:
    """The first pool that breaks a rule, with the field in it."""
    return ("pools", broken.index(True), field) if True in broken else False


def _missing_endpoints(spec: "ModelDeploymentSpec") -> FieldPath | bool:
    broken = [not pool.is_external for pool in spec.pools]
    return ("pools", broken.index(True)) if spec.is_external and True in broken else False


def _unexpected_endpoints(spec: "ModelDeploymentSpec") -> FieldPath | bool:
    found = next((pool for pool in spec.pools if pool.is_external), None)
    field = "endpoints" if found is not None and found.endpoints else "selector"
    return False if spec.is_external else _first_pool(spec, field, [pool.is_external for pool in spec.pools])


def _missing_accelerator(spec: "ModelDeploymentSpec") -> FieldPath | bool:
    broken = [pool.accelerator is None for pool in spec.pools]
    return False if spec.is_external else _first_pool(spec, "accelerator", broken)


def _unsupported_external_fields(spec: "ModelDeploymentSpec") -> FieldPath | bool:
    if not spec.is_external:
        return False
    for index, pool in enumerate(spec.pools):
        given = {
            "replicas": pool.replicas != Replicas(),
            "parallelism": pool.parallelism != Parallelism(),
            "template": pool.template is not None,
        }
        if field := next((name for name, found in given.items() if found), None):
            return ("pools", index, field)
    return False


def _unknown_schedule_pool(spec: "ModelDeploymentSpec") -> FieldPath | bool:
    known = {pool.name for pool in spec.pools}
    found = [n for n, one in enumerate(spec.autoscaling.schedules) if one.pool is not None and one.pool not in known]
    return ("autoscaling", "schedules", found[0], "pool") if found else False


_HAS_PREFILL_CEL = "self.pools.exists(pool, pool.role == 'Prefill')"
_OPAQUE_ENGINE_CEL = "self.engine.kind in ['custom', 'external']"
_NO_SLEEP_CEL = "!has(self.autoscaling.sleep)"


class ModelDeploymentSpec(StrictModel):
    """What to serve, on what, and how well."""

    planned: ClassVar[frozenset[str]] = frozenset({"price"})
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="self.engine.kind == 'external' || self.pools.all(pool, has(pool.accelerator))",
            message="a pool needs an accelerator",
            fix="add it, for example `accelerator: nvidia-l4`",
            at=("pools",),
            violation=_missing_accelerator,
        ),
        Rule(
            cel="self.engine.kind != 'external' || self.pools.all(pool, has(pool.selector) || has(pool.endpoints) && "
            "pool.endpoints.size() > 0)",
            message="a pool of an external engine needs to know where its engines are",
            fix="add `endpoints: [{url: ...}]` or `selector: {matchLabels: {...}}`",
            at=("pools",),
            violation=_missing_endpoints,
        ),
        Rule(
            cel="self.engine.kind == 'external' || self.pools.all(pool, !has(pool.selector) && (!has(pool.endpoints) || "
            "pool.endpoints.size() == 0))",
            message="endpoints and selector are for engines that run already",
            fix="write `engine: {kind: external}`, or remove endpoints and selector",
            at=("pools",),
            violation=_unexpected_endpoints,
        ),
        Rule(
            cel="self.engine.kind != 'external' || self.pools.all(pool, !has(pool.template) && pool.replicas.min == 1 && "
            "!has(pool.replicas.max) && pool.parallelism.tensor == 1 && pool.parallelism.pipeline == 1 && "
            "pool.parallelism.data == 1 && pool.parallelism.nodes == 1)",
            message="an external engine is not run by Fairlead, which cannot set its replicas, parallelism or template",
            fix="remove them",
            at=("pools",),
            violation=_unsupported_external_fields,
        ),
        Rule(
            cel=f"{_HAS_PREFILL_CEL} == self.pools.exists(pool, pool.role == 'Decode')",
            message="the roles Prefill and Decode need one another",
            fix="add a pool of the other role, or use Serve",
            at=("pools",),
            violation=lambda one: one.has_role(PoolRole.PREFILL) != one.has_role(PoolRole.DECODE),
        ),
        Rule(
            cel=f"!{_HAS_PREFILL_CEL} || self.kvCache.transfer != 'None'",
            message="pools of role Prefill hand their KV to those of role Decode",
            fix="say how, for example `kvCache: {transfer: Nixl}`",
            at=("pools",),
            violation=lambda one: one.has_role(PoolRole.PREFILL) and one.kv_cache.transfer is Transfer.NONE,
        ),
        Rule(
            cel=f"{_HAS_PREFILL_CEL} || self.kvCache.transfer == 'None'",
            message="nothing is handed over without pools of role Prefill and Decode",
            fix="remove transfer, or give pools those roles",
            at=("kvCache", "transfer"),
            violation=lambda one: not one.has_role(PoolRole.PREFILL) and one.kv_cache.transfer is not Transfer.NONE,
        ),
        Rule(
            cel=f"!has(self.kvCache.offload) || !({_OPAQUE_ENGINE_CEL})",
            message="Fairlead does not know how an engine of this kind offloads",
            fix="say so in its own arguments, and remove offload",
            at=("kvCache", "offload"),
            violation=lambda one: one.kv_cache.offload is not None and one.has_opaque_engine,
        ),
        Rule(
            cel="!has(self.kvCache.offload) || !has(self.kvCache.offload.peers) || self.engine.kind in ['vllm', 'sim']",
            message="Fairlead does not know how engines of this kind borrow KV from one another",
            fix="remove peers",
            at=("kvCache", "offload", "peers"),
            violation=lambda one: one.peers is not None and one.engine.kind not in (EngineKind.VLLM, EngineKind.SIM),
        ),
        Rule(
            cel=f"!has(self.kvCache.offload) || !has(self.kvCache.offload.peers) || !{_HAS_PREFILL_CEL}",
            message="where prefill and decode are split, KV goes from one to the other and not between peers",
            fix="remove peers",
            at=("kvCache", "offload", "peers"),
            violation=lambda one: one.peers is not None and one.has_role(PoolRole.PREFILL),
        ),
        Rule(
            cel=f"!has(self.adapters) || !({_OPAQUE_ENGINE_CEL})",
            message="Fairlead does not know how an engine of this kind takes adapters",
            fix="say so in its own arguments, and remove adapters",
            at=("adapters",),
            violation=lambda one: one.adapters is not None and one.has_opaque_engine,
        ),
        Rule(
            cel="!has(self.replicas) || self.pools.size() == 1",
            message="replicas is for a model with one pool",
            fix="remove it, and give each pool its own replicas",
            at=("replicas",),
            violation=lambda one: one.replicas is not None and len(one.pools) > 1,
        ),
        Rule(
            cel="!has(self.replicas) || self.engine.kind != 'external'",
            message="an external engine is not run by Fairlead, which cannot set its replicas",
            fix="remove replicas",
            at=("replicas",),
            violation=lambda one: one.replicas is not None and one.is_external,
        ),
        Rule(
            cel="self.autoscaling.mode == 'Off' || self.engine.kind == 'external' || self.pools.exists(pool, "
            "has(pool.replicas.max) && pool.replicas.max > pool.replicas.min) || has(self.autoscaling.schedules)",
            message="there is nothing to scale: no pool may have more instances than its min",
            fix="give a pool a max above its min, for example `replicas: {min: 1, max: 8}`",
            at=("autoscaling", "mode"),
            violation=lambda one: (
                one.autoscaling.mode is not ScalingMode.OFF
                and not one.is_external
                and not any(pool.replicas.is_scalable for pool in one.pools)
                and not one.autoscaling.schedules
            ),
        ),
        Rule(
            cel="self.autoscaling.mode == 'Off' || self.engine.kind != 'external'",
            message="an external engine is not run by Fairlead, which cannot set its replicas",
            fix="write `mode: Off`",
            at=("autoscaling", "mode"),
            violation=lambda one: one.autoscaling.mode is not ScalingMode.OFF and one.is_external,
        ),
        Rule(
            cel="!has(self.autoscaling.schedules) || self.autoscaling.schedules.all(schedule, !has(schedule.pool) || "
            "self.pools.exists(pool, pool.name == schedule.pool))",
            message="a schedule names a pool that there is not",
            fix="write the name of a pool, or leave it out for all of them",
            at=("autoscaling",),
            violation=_unknown_schedule_pool,
        ),
        Rule(
            cel=f"{_NO_SLEEP_CEL} || self.engine.kind in ['vllm', 'sim']",
            message="Fairlead does not know how engines of this kind sleep",
            fix="remove sleep",
            at=("autoscaling", "sleep"),
            violation=lambda one: one.can_sleep and one.engine.kind not in (EngineKind.VLLM, EngineKind.SIM),
        ),
        Rule(
            cel=f"{_NO_SLEEP_CEL} || self.pools.all(pool, pool.parallelism.nodes == 1)",
            message="an instance that spans nodes does not sleep",
            fix="remove sleep, or give each instance one node",
            at=("autoscaling", "sleep"),
            violation=lambda one: one.can_sleep and any(pool.parallelism.nodes > 1 for pool in one.pools),
        ),
        Rule(
            cel=f"{_NO_SLEEP_CEL} || !{_HAS_PREFILL_CEL} && !(has(self.kvCache.offload) && has(self.kvCache.offload.peers))",
            message="an engine whose KV others read over the network does not sleep: its memory is registered there",
            fix="remove sleep",
            at=("autoscaling", "sleep"),
            violation=lambda one: one.can_sleep and (one.has_role(PoolRole.PREFILL) or one.peers is not None),
        ),
        Rule(
            cel=f"{_NO_SLEEP_CEL} || self.autoscaling.sleep.level == 1 || !has(self.adapters)",
            message="an engine that has forgotten its weights does not get its adapters back",
            fix="write `level: 1`, or remove adapters",
            at=("autoscaling", "sleep", "level"),
            violation=lambda one: one.can_sleep and one.autoscaling.sleep.level > 1 and one.adapters is not None,
        ),
    )

    model: Annotated[ModelSource, Field(examples=['{source: "hf://Qwen/Qwen3-8B"}'])]
    engine: Annotated[Engine, Field(examples=["{kind: vllm}"])] = Engine()
    replicas: Annotated[
        int | None,
        Field(
            ge=0,
            le=4096,
            description="instances of the only pool, held within its min and max; written by `kubectl scale`, an HPA or KEDA. "
            "Left out = the pool's min",
            examples=["2"],
            json_schema_extra={"format": "int32"},
        ),
    ] = None
    pools: list[Pool] = Field(
        min_length=1,
        max_length=16,
        description="where the instances run",
        examples=["[{accelerator: nvidia-l4}]"],
        json_schema_extra=list_map_schema("name"),
    )
    kv_cache: Annotated[KvCache, Field(examples=["{transfer: Nixl}"])] = KvCache()
    adapters: Annotated[Adapters | None, Field(examples=["{slots: 8, maxRank: 64}"])] = None
    objectives: Annotated[Slo, Field(examples=["{ttft: 800ms, itl: 40ms}"])] = Slo()
    routing: Annotated[Routing, Field(examples=["{preset: dual-hash}"])] = Routing()
    autoscaling: Annotated[Autoscaling, Field(examples=["{mode: Auto}"])] = Autoscaling()
    rollout: Annotated[Rollout, Field(examples=["{surge: 2, drain: 10m}"])] = Rollout()

    @model_validator(mode="after")
    def _check_unique_names(self) -> Self:
        check_unique("pools", [pool.name for pool in self.pools])
        return self

    @property
    def is_external(self) -> bool:
        """Its engines run already, and Fairlead only adopts them."""
        return self.engine.kind is EngineKind.EXTERNAL

    @property
    def has_opaque_engine(self) -> bool:
        """How its engines are started is not Fairlead's business."""
        return self.engine.kind in (EngineKind.CUSTOM, EngineKind.EXTERNAL)

    @property
    def peers(self) -> PeerTransfer | None:
        """How its instances borrow KV from one another; None where they do not."""
        offload = self.kv_cache.offload
        return None if offload is None else offload.peers

    @property
    def can_sleep(self) -> bool:
        """Its engines must know how to sleep, whether anybody puts them to sleep now or not."""
        return self.autoscaling.sleep is not None

    @property
    def scales_from_zero(self) -> bool:
        """It may have no instance at all, and gets one when a request waits for it. Prompts of a model whose prefill and decode are
        split cannot wait for a first one: of these, one of each always runs."""
        if self.autoscaling.mode is not ScalingMode.AUTO or self.has_role(PoolRole.PREFILL):
            return False
        hours = self.autoscaling.schedules
        return all(
            pool.replicas.min == 0 or any(one.min == 0 and one.pool in (None, pool.name) for one in hours)
            for pool in self.pools
        )

    def has_role(self, role: PoolRole) -> bool:
        """Some pool has it."""
        return any(pool.role is role for pool in self.pools)

    def desired_instances(self, pool: Pool) -> int:
        """How many instances of ``pool`` this spec asks for; zero of one that adopts, whose number is what is found."""
        if pool.is_external:
            return 0
        if self.replicas is None:
            return pool.replicas.min
        most = pool.replicas.max if pool.replicas.max is not None else self.replicas
        return max(pool.replicas.min, min(self.replicas, most))


_NAME_RULE = Rule(
    cel=f"self.metadata.name.size() <= {MAX_LABEL_VALUE_LENGTH}",
    message=f"the name is longer than {MAX_LABEL_VALUE_LENGTH} characters, and it becomes a label",
    fix="shorten it",
    at=("metadata", "name"),
    violation=lambda one: len(one.metadata.name) > MAX_LABEL_VALUE_LENGTH,
)


class ModelDeployment(StrictModel):
    """A model that is served: the one object a platform team applies."""

    rules: ClassVar[tuple[Rule, ...]] = (_NAME_RULE,)

    api_version: Literal["serving.fairlead.io/v1alpha1"]
    kind: Literal["ModelDeployment"]
    metadata: Annotated[Metadata, Field(examples=["{name: qwen3-8b}"])]
    spec: Annotated[ModelDeploymentSpec, Field(examples=["{model: {...}, pools: [...]}"])]
    status: Any = Field(default=None, exclude=True)

    @property
    def key(self) -> str:
        """``namespace/name``, with the namespace ``default`` where none is written."""
        return f"{self.metadata.namespace or 'default'}/{self.metadata.name}"


class AcceleratorClass(StrictModel):
    """A kind of accelerator that pools may name. Cluster-scoped."""

    rules: ClassVar[tuple[Rule, ...]] = (_NAME_RULE,)

    api_version: Literal["serving.fairlead.io/v1alpha1"]
    kind: Literal["AcceleratorClass"]
    metadata: Annotated[Metadata, Field(examples=["{name: npu-910b4}"])]
    spec: Annotated[AcceleratorClassSpec, Field(examples=["{profile: {preset: 910b4}}"])]
    status: Any = Field(default=None, exclude=True)

    @field_validator("metadata")
    @classmethod
    def _check_cluster_scoped(cls, metadata: Metadata) -> Metadata:
        if metadata.namespace is not None:
            message = "an AcceleratorClass belongs to the cluster, not to a namespace"
            raise field_error(message, "remove it", at=("namespace",))
        return metadata
