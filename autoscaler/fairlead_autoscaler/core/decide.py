"""The decision: what was seen and what is remembered in, a plan and what to remember out. Nothing else is read, nothing is changed.

The order is that of the files. Signals are cleaned (``clean``), timed (``look``) and believed or not (``trust``); what they teach
is learned (``learned``, ``load``); each group of pools gets its need (``need``, from the knee of ``capacity``), the largest need of
a window holds (``window``), zero is left to the odds (``zero``), the need is divided among the group's pools (``dividing``), and each
pool's number is set with what guards the way down and hurries the way up (``replicas``). Where there may be only so many in all,
groups share them (``together``). Beside those that serve some may sleep (``asleep``).

Where arrivals are not known, nothing is lowered: the last need holds, and after a minute the number rises, by a quarter above the
most that was needed lately and by the last trend."""

from collections.abc import Mapping
from dataclasses import replace

from fairlead.fleet.model import Role
from fairlead_autoscaler.core.cost import add_cost
from fairlead_autoscaler.core.limits.shared_replica_limit import LimitShare, apply_shared_limit, recent_need
from fairlead_autoscaler.core.limits.sleep_tier import apply_sleep_tier
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.signals.tick import Tick, take_sample
from fairlead_autoscaler.core.sizing.decode_slack import add_decode_slack
from fairlead_autoscaler.core.sizing.group_sizer import plan_group
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


def decide(
    state: CoreState, observation: Observation, model: ModelSpec, settings: ScalingSettings
) -> tuple[CoreState, ScalingPlan]:
    """What to do now, and what to remember. Pools that the observation does not name are left alone, and for a minute so are the
    others of their role."""
    state, look = take_sample(state, observation, model, settings)
    plans: dict[str, PoolPlan] = {}
    asks: dict[str, MixRequest] = {}
    left = _roles_with_missing_pools(state, look)
    for group in pool_groups(model):
        present = tuple(pool for pool in group.pools if pool.name in look.pools)
        if present and group.role not in left:
            state, planned_now, asked = plan_group(state, look, PoolGroup(group.role, present))
            plans.update(planned_now)
            if asked is not None:
                asks[group.role.value] = asked
    if model.replicas_most is not None:
        state, plans = _apply_shared_limit(model.replicas_most, state, look, plans)
    state, plans = apply_sleep_tier(state, look, plans)
    return state, ScalingPlan(add_cost(model, add_decode_slack(model, plans, look.pools)), asks)


def _roles_with_missing_pools(state: CoreState, tick: Tick) -> frozenset[Role]:
    """Groups of which a pool that was there lately is not named: what it has may serve on, so nobody takes its place yet. Where
    groups share a number of replicas it is all of them."""
    settings, now = tick.settings, tick.now
    gone = {
        pool.role
        for pool in tick.model.pools
        if pool.name not in tick.pools
        and (known := state.pools.get(pool.name)) is not None
        and known.seen_at is not None
        and now - known.seen_at < settings.blind_hold_seconds
    }
    return frozenset(Role if gone and tick.model.replicas_most is not None else gone)


def _apply_shared_limit(
    most: int, state: CoreState, tick: Tick, plans: Mapping[str, PoolPlan]
) -> tuple[CoreState, dict[str, PoolPlan]]:
    """``plans`` within what there may be of all pools. In doubt nothing is lowered for it, only raised less."""
    shares: list[LimitShare] = []
    known = dict(state.groups)
    for group in pool_groups(tick.model):
        if present := tuple(pool for pool in group.pools if pool.name in plans):
            before = known[group.role.value]
            if before.need is not None:
                seconds = tick.settings.backlog_seconds
                needs = recent_need(before.shared, tick.now, before.need, state.lengths.turned_at, seconds)
                known[group.role.value] = before = replace(before, shared=needs)
            shares.append(LimitShare(group.role, present, before.shared.largest if before.need is not None else None))
    lower = not tick.forbids_scale_down and not tick.settings.freeze
    turns = is_shifting(state.lengths, tick.now, tick.settings)
    return replace(state, groups=known), apply_shared_limit(
        most, shares, plans, tick.pools, can_lower=lower, is_shifting=turns
    )
