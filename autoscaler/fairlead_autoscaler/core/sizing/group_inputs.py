"""Group inputs: workload, targets, speed and capacity of one group, as sizing uses them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from fairlead.fleet.model import Role
from fairlead_autoscaler.core.float_sum import float_sum
from fairlead_autoscaler.core.performance.error_budget import ErrorBudget
from fairlead_autoscaler.core.performance.miss_corrections import MissCorrections
from fairlead_autoscaler.core.performance.replica_capacity import ReplicaCapacity, ReplicaModel
from fairlead_autoscaler.core.performance.startup_time import DEFAULT_STARTUP_SECONDS
from fairlead_autoscaler.core.performance.step_model import LatencyTargets, MeanRequest
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.signals.tick import Tick
from fairlead_autoscaler.core.sizing.pool_capacity import (
    GroupService,
    allowed_miss_share,
    latency_targets,
    replica_bounds,
    replica_model,
)
from fairlead_autoscaler.core.state import CoreState, GroupMemory
from fairlead_autoscaler.core.types import ModelSpec, PoolGroup, PoolObservation, PoolSpec
from fairlead_autoscaler.core.workload.arrivals import ArrivalBin
from fairlead_autoscaler.core.workload.length_shift import MIN_SHIFT_FACTOR
from fairlead_autoscaler.core.workload.load_forecast import BinPrice
from fairlead_autoscaler.core.workload.mean_request import (
    NO_DECODE_PREFILL,
    DecodePrefillShare,
    decode_prefill_share,
    mean_request,
)

READY_EXTRA_SECONDS: Final = 10.0
"""Seconds from the start of an engine to its first requests."""

_OTHER_TARGETS: Mapping[str, float] = {"need_at_95_replicas": 0.95, "need_at_99_9_replicas": 0.999}
"""Targets whose demand is shown next to that at the model's own, by the name of the input."""


@dataclass(frozen=True, slots=True)
class GroupInputs:
    """The inputs of sizing one group.

    slowdowns: by pool, against the profile.
    replica_equivalents: by pool, one replica in replicas of the first pool.
    startup_seconds: of slow starts.
    ahead_seconds: the forecast horizon.
    other_goals: shares of requests that might miss next under other targets, by the name of the
        input that shows the demand at this target.
    """

    group: PoolGroup
    mean_request: MeanRequest
    decode_prefill: DecodePrefillShare
    targets: LatencyTargets
    corrections: MissCorrections
    slowdowns: Mapping[str, float]
    capacities: Mapping[str, ReplicaCapacity]
    replica_equivalents: Mapping[str, float]
    startup_seconds: float
    ahead_seconds: float
    other_goals: Mapping[str, float] = field(default_factory=dict)

    @property
    def first_pool(self) -> PoolSpec:
        return self.group.pools[0]

    @property
    def capacity(self) -> ReplicaCapacity:
        return self.capacities[self.first_pool.name]

    def replica_model(self, pool: PoolSpec) -> ReplicaModel:
        service = GroupService(self.mean_request, self.targets, self.corrections)
        return replica_model(pool, service, self.slowdowns[pool.name])

    def ready_replicas(self, tick: Tick) -> float:
        return self._sum(tick, lambda pool: pool.ready)

    def desired_replicas(self, tick: Tick) -> float:
        return self._sum(tick, lambda pool: pool.desired)

    def asleep_replicas(self, tick: Tick) -> float:
        return self._sum(tick, lambda pool: pool.asleep_desired)

    def desired_without_hedges(self, tick: Tick, state: CoreState) -> float:
        """Returns desired replicas without hedged starts, counted in those of the first pool."""
        hedged = (
            min(state.pools[pool.name].hedged, tick.pools[pool.name].desired) * self.replica_equivalents[pool.name]
            for pool in self.group.pools
        )
        return self.desired_replicas(tick) - sum(hedged)

    def max_replicas(self, tick: Tick) -> float:
        maxima = ((replica_bounds(pool, tick.wall)[1], pool.name) for pool in self.group.pools)
        return float_sum([maximum * self.replica_equivalents[name] for maximum, name in maxima])

    def bin_price(self, tick: Tick, *, has_settled_prompts: bool) -> BinPrice:
        """Returns the function that prices a bin of arrivals in replicas of the first pool.

        Every bin is priced as if outputs and decode prefill had always been as they are now. Until
        prompts are settled, prompts also count as if they had always had the mean length. That mean
        moves with each tick: as prompts grow longer, bins of shorter prompts would seem cheaper.

        If each group has its own replicas, the memory of a decode engine is priced by the prompts
        of the bin. Much longer prompts count only in part: the length of their outputs is unknown.
        """
        role, request, capacity = self.group.role, self.mean_request, self.capacity
        rate = capacity.requests_per_second
        if not has_settled_prompts:
            share = 1.0 - self.decode_prefill.requests if role is Role.PREFILL else 1.0
            return lambda arrivals: arrivals.requests / arrivals.seconds * share / rate
        step = self.replica_model(self.first_pool).step
        per_prompt_token = step.prompt_seconds(request) / request.prompt_tokens
        per_request = request.output_tokens * step.token_seconds(request.context_tokens)
        per_resident_token = 0.0
        max_prompt_tokens = request.prompt_tokens * MIN_SHIFT_FACTOR
        replicas_per_second = 1.0 / (rate * capacity.engine_seconds)
        if role is Role.PREFILL:
            per_prompt_token *= 1.0 - self.decode_prefill.tokens
            per_request *= 1.0 - self.decode_prefill.requests
        elif role is Role.DECODE and tick.model.replicas_most is None:
            per_request = request.output_tokens * step.token_seconds(request.output_tokens / 2)
            per_resident_token = request.output_tokens * step.resident_token_seconds

        def price(arrivals: ArrivalBin) -> float:
            resident = min(arrivals.prompt, arrivals.requests * max_prompt_tokens)
            seconds = arrivals.prompt * per_prompt_token + arrivals.requests * per_request
            return (seconds + resident * per_resident_token) / arrivals.seconds * replicas_per_second

        return price

    def _sum(self, tick: Tick, count: Callable[[PoolObservation], int]) -> float:
        return float_sum(
            [count(tick.pools[pool.name]) * self.replica_equivalents[pool.name] for pool in self.group.pools]
        )


def group_inputs(state: CoreState, tick: Tick, group: PoolGroup) -> GroupInputs:
    """Returns the inputs of a group; the tick must have all of its pools."""
    settings = tick.settings
    # If groups share their replicas, the decode prefill follows from the division between them.
    # With it, any division would seem right.
    decode_prefill = decode_prefill_share(state.lengths) if tick.model.replicas_most is None else NO_DECODE_PREFILL
    request = mean_request(state.lengths, group.role, decode_prefill)
    answers = state.pools[group.pools[0].name].answers.factor(request.output_tokens)
    request = replace(request, running_answer=answers)
    slowdowns = {pool.name: state.pools[pool.name].speed.slowdown() for pool in group.pools}
    memory = state.groups.get(group.role.value)
    budget = ErrorBudget() if memory is None else memory.budget
    goal = budget.goal(allowed_miss_share(tick.model), settings)
    targets = replace(latency_targets(tick.model, group.role, request.prompt_tokens), allowed_miss_share=goal)
    corrections = budget.corrections(settings)
    service = GroupService(request, targets, corrections)
    sharing = float(sum([tick.pools[pool.name].desired for pool in group.pools]))
    if memory is not None and memory.need is not None:
        sharing = memory.need
    capacities = {
        pool.name: replica_model(pool, service, slowdowns[pool.name]).capacity(sharing) for pool in group.pools
    }
    return GroupInputs(
        group,
        request,
        decode_prefill,
        targets,
        corrections,
        slowdowns,
        capacities,
        _replica_equivalents(memory, capacities, group, tick),
        *_startup_times(state, group, settings),
        _other_goals(tick.model, targets),
    )


def _other_goals(model: ModelSpec, targets: LatencyTargets) -> Mapping[str, float]:
    """Returns the goals under other targets, with the same part of the error budget left."""
    if targets.ttft_seconds is None and targets.itl_seconds is None:
        return {}
    part = targets.allowed_miss_share / allowed_miss_share(model)
    return {
        name: (1.0 - target) * part
        for name, target in _OTHER_TARGETS.items()
        if not math.isclose(target, model.target, abs_tol=1e-9)
    }


def _replica_equivalents(
    memory: GroupMemory | None, capacities: Mapping[str, ReplicaCapacity], group: PoolGroup, tick: Tick
) -> Mapping[str, float]:
    """Returns, by pool, how many replicas of the first pool equal one replica; a decaying mean.

    Why: between two ticks, the capacities of unlike pools differ by some percent. That would start
    and stop the smallest replicas again and again.
    """
    first = capacities[group.pools[0].name].requests_per_second
    before = {} if memory is None else memory.worths
    keep = math.exp(-tick.seconds / tick.settings.window_seconds)
    equivalents = {}
    for pool in group.pools:
        now = capacities[pool.name].requests_per_second / first
        equivalents[pool.name] = now + (before.get(pool.name, now) - now) * keep
    return equivalents


def _startup_times(state: CoreState, group: PoolGroup, settings: ScalingSettings) -> tuple[float, float]:
    """Returns the seconds of slow starts of the group, and its forecast horizon."""
    slow = usual = 0.0
    for pool in group.pools:
        starts = state.pools[pool.name].starts
        slow = max(slow, starts.quantile(0.9, pool.startup_p90_seconds, DEFAULT_STARTUP_SECONDS))
        prior = pool.startup_p50_seconds if settings.ahead_quantile < 0.9 else pool.startup_p90_seconds
        usual = max(usual, starts.quantile(settings.ahead_quantile, prior, DEFAULT_STARTUP_SECONDS))
    return slow, usual + READY_EXTRA_SECONDS
