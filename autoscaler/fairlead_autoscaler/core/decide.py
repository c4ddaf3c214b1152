"""Decision: observation and state in, plan and next state out. Nothing else is read or changed.

Without known arrivals no pool is lowered. The last demand holds, and after a minute the number
rises by a quarter above the highest recent demand, and by the last trend.
"""

from collections.abc import Mapping
from dataclasses import replace

from fairlead.fleet.model import Role
from fairlead_autoscaler.core.float_sum import float_sum
from fairlead_autoscaler.core.learning import learn
from fairlead_autoscaler.core.limits.ejected_replicas import hide_ejected, order_replacements
from fairlead_autoscaler.core.limits.shared_replica_limit import (
    LimitShare,
    SharedLimit,
    apply_shared_limit,
    recent_need,
)
from fairlead_autoscaler.core.limits.sleep_tier import apply_sleep_tier
from fairlead_autoscaler.core.plan_inputs import add_cost, add_decode_slack
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.signals.tick import CountedArrivals, Tick, take_sample
from fairlead_autoscaler.core.sizing.group_sizer import BACKLOG_SECONDS, plan_group
from fairlead_autoscaler.core.state import CoreState
from fairlead_autoscaler.core.types import (
    MixRequest,
    ModelSpec,
    Observation,
    PoolGroup,
    PoolPlan,
    ScalingPlan,
    pool_groups,
)
from fairlead_autoscaler.core.workload.length_shift import is_shifting


class ScalingCore:
    """The scaling core of one model. Its state, model and settings may be replaced between two
    ticks.
    """

    def __init__(
        self, model: ModelSpec, settings: ScalingSettings | None = None, state: CoreState | None = None
    ) -> None:
        self.model = model
        self.settings = settings or ScalingSettings()
        self.state = state or CoreState()

    def step(self, observation: Observation) -> ScalingPlan:
        self.state, plan = decide(self.state, observation, self.model, self.settings)
        return plan


def decide(
    state: CoreState, observation: Observation, model: ModelSpec, settings: ScalingSettings
) -> tuple[CoreState, ScalingPlan]:
    """Returns the next state and the plan.

    Pools that the observation does not have keep their number, and for a minute so do all of their
    role.
    """
    state, observation = hide_ejected(state, observation, model)
    known = state.load.bins or state.load.recent
    usual = CountedArrivals(
        float_sum([arrivals.seconds for arrivals in known]), float_sum([arrivals.requests for arrivals in known])
    )
    clock, trust, tick = take_sample(state.clock, state.trust, usual, observation, model, settings)
    state = learn(replace(state, clock=clock, trust=trust), tick, observation)
    plans: dict[str, PoolPlan] = {}
    queries: dict[str, MixRequest] = {}
    unchanged = _roles_with_missing_pools(state, tick)
    for group in pool_groups(model):
        present = tuple(pool for pool in group.pools if pool.name in tick.pools)
        if present and group.role not in unchanged:
            state, group_plans, query = plan_group(state, tick, PoolGroup(group.role, present))
            plans.update(group_plans)
            if query is not None:
                queries[group.role.value] = query
    if model.replicas_most is not None:
        state, plans = _limit_all_pools(model.replicas_most, state, tick, plans)
    state, plans = apply_sleep_tier(state, tick, plans)
    state, plans = order_replacements(state, tick, plans)
    return state, ScalingPlan(add_cost(model, add_decode_slack(model, plans, tick.pools)), queries)


def _roles_with_missing_pools(state: CoreState, tick: Tick) -> frozenset[Role]:
    """Returns the roles with a pool that was observed a short time ago, and is missing now.

    Its replicas may still serve, so no other pool takes its place yet. If groups share a limit, all
    roles are returned.
    """
    settings, now = tick.settings, tick.now
    missing = {
        pool.role
        for pool in tick.model.pools
        if pool.name not in tick.pools
        and (memory := state.pools.get(pool.name)) is not None
        and memory.seen_at is not None
        and now - memory.seen_at < settings.missing_hold_seconds
    }
    return frozenset(Role if missing and tick.model.replicas_most is not None else missing)


def _limit_all_pools(
    most: int, state: CoreState, tick: Tick, plans: Mapping[str, PoolPlan]
) -> tuple[CoreState, dict[str, PoolPlan]]:
    """Returns the next state, and the plans within the shared limit.

    In doubt the limit lowers no pool; it only makes pools rise less.
    """
    shares: list[LimitShare] = []
    groups = dict(state.groups)
    for group in pool_groups(tick.model):
        present = tuple(pool for pool in group.pools if pool.name in plans)
        if not present:
            continue
        memory = groups[group.role.value]
        need = None
        if memory.need is not None:
            seconds = BACKLOG_SECONDS
            window = recent_need(memory.shared, tick.now, memory.need, state.lengths.turned_at, seconds)
            groups[group.role.value] = replace(memory, shared=window)
            need = window.largest
        shares.append(LimitShare(group.role, present, need))
    limit = SharedLimit(
        most,
        can_lower=not tick.forbids_scale_down and not tick.settings.freeze,
        is_shifting=is_shifting(state.lengths, tick.now),
    )
    return replace(state, groups=groups), apply_shared_limit(limit, shares, plans, tick.pools)
