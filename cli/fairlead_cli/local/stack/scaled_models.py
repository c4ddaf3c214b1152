"""The models of a stack that the autoscaler scales, from the manifests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.api.spec.autoscaling import ScalingMode
from fairlead.api.spec.pools import Pool
from fairlead.api.v1alpha1 import ModelDeployment
from fairlead.fleet.model import Role, SloTargets
from fairlead.manifests.loader import Manifests
from fairlead_autoscaler.core import PoolSpec, SleepTier
from fairlead_autoscaler.model_spec import replica_cost, replica_usd, sleep_tier
from fairlead_cli.local.stack.engine_process import EnginePoolSpec


@dataclass(frozen=True, slots=True)
class ScaledModelSpec:
    """A scaled model: policy and pools as in the manifest. The autoscaler's time runs as fast as
    the engines'.
    """

    key: str
    objectives: SloTargets
    policy: Mapping[str, Any]
    pools: tuple[PoolSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class ScalingPlan:
    """The scaled models, and notes on others that ask for scaling but are not scaled."""

    models: tuple[ScaledModelSpec, ...] = ()
    notes: tuple[str, ...] = ()


def plan_scaling(manifests: Manifests, pools: Sequence[EnginePoolSpec]) -> ScalingPlan:
    """Returns the models to scale, and notes on those that request scaling but cannot be scaled
    here.
    """
    models, notes = [], []
    for deployment in manifests.models:
        spec, name = deployment.spec, deployment.metadata.name
        if spec.autoscaling.mode is ScalingMode.DISABLED:
            continue
        engine_pools = {pool.name: pool for pool in pools if pool.model.key == deployment.key and not pool.adopted}
        if spec.replicas is not None:
            notes.append(f"{name}: not scaled, since spec.replicas sets the number")
        elif any(pool.engines_per_process > 1 for pool in engine_pools.values()):
            notes.append(f"{name}: not scaled, since its engines share processes")
        elif engine_pools:
            models.append(_scaled_model(manifests, deployment, engine_pools))
    return ScalingPlan(tuple(models), tuple(notes))


def _scaled_model(
    manifests: Manifests, deployment: ModelDeployment, engine_pools: Mapping[str, EnginePoolSpec]
) -> ScaledModelSpec:
    policy = deployment.spec.autoscaling.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    tier = sleep_tier(deployment.spec)
    pools = tuple(_pool_spec(manifests, pool, tier) for pool in deployment.spec.pools if pool.name in engine_pools)
    return ScaledModelSpec(deployment.key, deployment.spec.slo.to_targets(), policy, pools)


def _pool_spec(manifests: Manifests, pool: Pool, tier: SleepTier | None) -> PoolSpec:
    accelerator = manifests.accelerators.get(pool.accelerator_class_name or "")
    return PoolSpec(
        name=pool.name,
        role=Role(pool.role.value),
        cost_per_hour=replica_cost(None if accelerator is None else accelerator.spec, pool),
        minimum=pool.min_replicas,
        maximum=pool.min_replicas if pool.max_replicas is None else pool.max_replicas,
        profile=manifests.engine_profile(pool),
        usd_per_hour=replica_usd(None if accelerator is None else accelerator.spec, pool),
        tier=tier,
    )
