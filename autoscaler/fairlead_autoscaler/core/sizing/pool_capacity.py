"""Pool capacity: what one replica of a pool carries, in the role of the pool."""

from dataclasses import dataclass, replace

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.performance.replica_capacity import (
    LatencyTargets,
    MeanRequest,
    ReplicaCapacity,
    StepModel,
    UnreachableTarget,
    find_unreachable_target,
    knee_capacity,
    replicas_for,
)
from fairlead_autoscaler.core.settings import CapacitySettings
from fairlead_autoscaler.core.types import ModelSpec, PoolSpec

_FALLBACK_PROFILE = "a100-qwen7b"
"""The profile of a pool whose profile is unknown; the measured speed corrects it."""


def pool_profile(pool: PoolSpec) -> EngineProfile:
    """Returns the profile of the pool, or the fallback."""
    return pool.profile or builtin_profile(_FALLBACK_PROFILE)


def latency_targets(model: ModelSpec, role: Role, prompt_tokens: float) -> LatencyTargets:
    """Returns the targets of a group of `role`, for prompts of this length."""
    miss = min(0.5, max(1e-4, 1.0 - model.target))
    ttft = model.ttft_seconds
    if ttft is not None:
        ttft += model.ttft_per_kilo_token_seconds * prompt_tokens / 1000.0
    return LatencyTargets(
        None if role is Role.DECODE else ttft, None if role is Role.PREFILL else model.itl_seconds, miss
    )


@dataclass(frozen=True, slots=True)
class ReplicaModel:
    """One replica of a pool under a workload: its steps, the mean request and the targets."""

    step: StepModel
    request: MeanRequest
    targets: LatencyTargets
    settings: CapacitySettings

    def capacity(self, replicas: float) -> ReplicaCapacity:
        """Returns the capacity of each of `replicas` that share the load."""
        return knee_capacity(self.step, self.request, self.targets, replicas, self.settings)

    def replicas_for(self, rate: float, near: float) -> float:
        """Returns the replicas that serve `rate` requests per second.

        near: a guess of the result.
        """
        return replicas_for(self.step, self.request, self.targets, rate, near, self.settings)

    def unreachable_target(self) -> UnreachableTarget | None:
        """Returns the target that no number of replicas can meet; None: there is none."""
        return find_unreachable_target(self.step, self.request, self.targets)


def replica_model(
    pool: PoolSpec, request: MeanRequest, slowdown: float, targets: LatencyTargets, settings: CapacitySettings
) -> ReplicaModel:
    """Returns a replica of `pool` that is `slowdown` times as slow as its profile."""
    if pool.role is Role.PREFILL:
        busy = min(settings.prefill_busy_most, settings.prefill_pool_busy)
        settings = replace(settings, prefill_busy_most=busy)
    return ReplicaModel(StepModel.from_profile(pool_profile(pool), slowdown), request, targets, settings)
