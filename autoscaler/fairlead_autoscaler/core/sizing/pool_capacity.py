"""Pool capacity: what one replica of a pool carries, in the role of the pool."""

from dataclasses import dataclass

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.performance.miss_corrections import NO_CORRECTIONS, MissCorrections
from fairlead_autoscaler.core.performance.replica_capacity import ReplicaModel
from fairlead_autoscaler.core.performance.step_model import LatencyTargets, MeanRequest, StepModel
from fairlead_autoscaler.core.types import ModelSpec, PoolSpec, ReplicaSchedule

_DAY_SECONDS = 86_400.0

_FALLBACK_PROFILE = "a100-qwen7b"
"""The profile of a pool whose profile is unknown; the measured speed corrects it."""


def replica_bounds(pool: PoolSpec, wall: float | None) -> tuple[int, int]:
    """Returns minimum and maximum of `pool`. The first active schedule applies.

    wall: Unix seconds, UTC; None: unknown, so no schedule is active.
    """
    minimum, maximum = pool.minimum, pool.maximum
    if wall is not None:
        active = next((schedule for schedule in pool.schedules if _is_active(schedule, wall)), None)
        if active is not None:
            minimum = active.minimum if active.minimum is not None else minimum
            maximum = active.maximum if active.maximum is not None else maximum
    minimum = max(0, minimum)
    return minimum, max(minimum, maximum)


def _is_active(schedule: ReplicaSchedule, wall: float) -> bool:
    now = wall + schedule.offset_seconds
    weekday = int(now // _DAY_SECONDS + 3) % 7  # 1 January 1970 was a Thursday
    second, start, end = now % _DAY_SECONDS, schedule.start_seconds, schedule.end_seconds
    if start < end:
        return weekday in schedule.days and start <= second < end
    # Across midnight, the hours after it belong to the day on which the interval began.
    return (weekday in schedule.days and second >= start) or ((weekday - 1) % 7 in schedule.days and second < end)


def pool_profile(pool: PoolSpec) -> EngineProfile:
    return pool.profile or builtin_profile(_FALLBACK_PROFILE)


def allowed_miss_share(model: ModelSpec) -> float:
    return min(0.5, max(1e-4, 1.0 - model.target))


def latency_targets(model: ModelSpec, role: Role, prompt_tokens: float) -> LatencyTargets:
    """Returns the targets of a group of `role`, for prompts of this length."""
    miss = allowed_miss_share(model)
    ttft = model.ttft_seconds
    if ttft is not None:
        ttft += model.ttft_per_kilo_token_seconds * prompt_tokens / 1000.0
    return LatencyTargets(
        None if role is Role.DECODE else ttft, None if role is Role.PREFILL else model.itl_seconds, miss
    )


@dataclass(frozen=True, slots=True)
class GroupService:
    """The mean request of a group of pools, its targets, and the factors on predicted misses."""

    request: MeanRequest
    targets: LatencyTargets
    corrections: MissCorrections = NO_CORRECTIONS


def replica_model(pool: PoolSpec, service: GroupService, slowdown: float) -> ReplicaModel:
    step = StepModel.from_profile(pool_profile(pool), slowdown)
    return ReplicaModel(step, service.request, service.targets, service.corrections)
