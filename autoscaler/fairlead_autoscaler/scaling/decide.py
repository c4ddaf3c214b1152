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

from fairlead.fleet import Role
from fairlead_autoscaler.scaling.asleep import rested
from fairlead_autoscaler.scaling.convertible import with_slack
from fairlead_autoscaler.scaling.cost import with_cost
from fairlead_autoscaler.scaling.group import plan_group
from fairlead_autoscaler.scaling.look import Look, look_at
from fairlead_autoscaler.scaling.need import Group, groups
from fairlead_autoscaler.scaling.settings import ScalingSettings
from fairlead_autoscaler.scaling.state import State
from fairlead_autoscaler.scaling.together import Share, lately, together
from fairlead_autoscaler.scaling.turn import turning
from fairlead_autoscaler.scaling.values import MixAsked, Observation, Plan, PoolPlan, ScaledModel


def decide(state: State, observation: Observation, model: ScaledModel, settings: ScalingSettings) -> tuple[State, Plan]:
    """What to do now, and what to remember. Pools that the observation does not name are left alone, and for a minute so are the
    others of their role."""
    state, look = look_at(state, observation, model, settings)
    plans: dict[str, PoolPlan] = {}
    asks: dict[str, MixAsked] = {}
    left = _left_alone(state, look)
    for group in groups(model):
        present = tuple(pool for pool in group.pools if pool.name in look.pools)
        if present and group.role not in left:
            state, planned_now, asked = plan_group(state, look, Group(group.role, present))
            plans.update(planned_now)
            if asked is not None:
                asks[group.role.value] = asked
    if model.replicas_most is not None:
        state, plans = _together(model.replicas_most, state, look, plans)
    state, plans = rested(state, look, plans)
    return state, Plan(with_cost(model, with_slack(model, plans, look.pools)), asks)


def _left_alone(state: State, look: Look) -> frozenset[Role]:
    """Groups of which a pool that was there lately is not named: what it has may serve on, so nobody takes its place yet. Where
    groups share a number of replicas it is all of them."""
    settings, now = look.settings, look.now
    gone = {
        pool.role
        for pool in look.model.pools
        if pool.name not in look.pools
        and (known := state.pools.get(pool.name)) is not None
        and known.seen_at is not None
        and now - known.seen_at < settings.blind_hold_seconds
    }
    return frozenset(Role if gone and look.model.replicas_most is not None else gone)


def _together(most: int, state: State, look: Look, plans: Mapping[str, PoolPlan]) -> tuple[State, dict[str, PoolPlan]]:
    """``plans`` within what there may be of all pools. In doubt nothing is lowered for it, only raised less."""
    shares: list[Share] = []
    known = dict(state.groups)
    for group in groups(look.model):
        if present := tuple(pool for pool in group.pools if pool.name in plans):
            before = known[group.role.value]
            if before.need is not None:
                seconds = look.settings.backlog_seconds
                needs = lately(before.shared, look.now, before.need, state.lengths.turned_at, seconds)
                known[group.role.value] = before = replace(before, shared=needs)
            shares.append(Share(group.role, present, before.shared.held if before.need is not None else None))
    lower = not look.doubtful and not look.settings.freeze
    turns = turning(state.lengths, look.now, look.settings)
    return replace(state, groups=known), together(most, shares, plans, look.pools, lower=lower, turns=turns)
