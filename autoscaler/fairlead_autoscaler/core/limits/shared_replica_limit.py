"""Shared replica limit: the most replicas that all pools of a model may have together.

Prefill and decode share the limit by the ratio of their recent demands, at which both carry the
same part of the load (`prefill_decode_ratio`). A division stays until another carries a tenth more.
The highest demand of the last minute counts (`recent_need`), but no demand before a length shift. A
role that shrinks drains at once, and the other role waits for what it frees.

Why no stabilization window: what one role keeps in case the load returns, the other one lacks
today.

Why a minute: answers that began together end together, so lengths seem to change in turns.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fairlead.decision import DecisionInput
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.limits.prefill_decode_ratio import split_by_role
from fairlead_autoscaler.core.sizing.replica_count import Rule
from fairlead_autoscaler.core.sizing.stabilization_window import NeedWindow, add_need
from fairlead_autoscaler.core.types import PoolObservation, PoolPlan, PoolSpec


@dataclass(frozen=True, slots=True)
class LimitShare:
    """A group of pools that shares the limit.

    need: recent demand in replicas; None: unknown.
    """

    role: Role
    pools: tuple[PoolSpec, ...]
    need: float | None


@dataclass(frozen=True, slots=True)
class SharedLimit:
    """The limit, and the ways to meet it now.

    can_lower: without it no pool is lowered, so more than `max_replicas` may stay for a while.
    is_shifting: lengths shift, so the current division has no preference over others.
    """

    max_replicas: int
    can_lower: bool = True
    is_shifting: bool = False


def recent_need(before: NeedWindow, now: float, need: float, shifted_at: float | None, seconds: float) -> NeedWindow:
    """Returns the window with the demand of `now`, and without what precedes the last shift.

    seconds: entries older than this are dropped.
    """
    if shifted_at is not None:
        before = NeedWindow(tuple(entry for entry in before.needs if entry[0] > shifted_at))
    return add_need(before, now, need, seconds)


def apply_shared_limit(
    limit: SharedLimit,
    shares: Sequence[LimitShare],
    plans: Mapping[str, PoolPlan],
    observed: Mapping[str, PoolObservation],
) -> dict[str, PoolPlan]:
    """Returns the plans within the limit.

    The sum may exceed the limit by the pools' minima or, without `can_lower`, by their current
    numbers.
    """
    planned = {share.role: sum([plans[pool.name].replicas for pool in share.pools]) for share in shares}
    total, most = sum(planned.values()), limit.max_replicas
    if total <= most:
        return dict(plans)
    by_role = {share.role: share for share in shares}
    prefill, decode = by_role.get(Role.PREFILL), by_role.get(Role.DECODE)
    others = sum([count for role, count in planned.items() if role not in (Role.PREFILL, Role.DECODE)])
    # Each of the two roles needs a replica, so with fewer than two all roles shrink alike.
    if prefill is None or decode is None or most - others < 2:
        counts = {role: count * most // total for role, count in planned.items()}
        reason = f"all pools together need {total}, the limit is {most}"
        inputs: Mapping[str, DecisionInput] = {"together_most_replicas": DecisionInput(float(most))}
    else:
        needs = [float(planned[share.role]) if share.need is None else share.need for share in (prefill, decode)]
        now = None if limit.is_shifting else sum([observed[pool.name].desired for pool in prefill.pools])
        split = split_by_role(most - others, *needs, now=now)
        counts = {**planned, Role.PREFILL: split.prefill, Role.DECODE: split.decode}
        reason, inputs = split.reason, split.inputs
    floors = {
        pool.name: pool.minimum if limit.can_lower else max(pool.minimum, observed[pool.name].desired)
        for share in shares
        for pool in share.pools
    }
    if not limit.can_lower:
        counts = _raise_only(most, shares, counts, floors)
    made = dict(plans)
    for share in shares:
        for name, count in _trimmed_counts(share.pools, plans, counts[share.role], floors).items():
            plan = plans[name]
            made[name] = replace(
                plan,
                replicas=count,
                rule=Rule.SHARED.value,
                reason=f"{plan.replicas} are needed; {reason}",
                inputs={**plan.inputs, **inputs},
            )
    return made


def _raise_only(
    most: int, shares: Sequence[LimitShare], counts: Mapping[Role, int], floors: Mapping[str, int]
) -> dict[Role, int]:
    """Returns the replicas of each role if no pool may be lowered.

    Each role rises from its floors towards `counts`, as far as the limit leaves room.
    """
    kept = {share.role: sum([floors[pool.name] for pool in share.pools]) for share in shares}
    left = max(0, most - sum(kept.values()))
    raised: dict[Role, int] = {}
    for role, floor in kept.items():
        more = min(left, max(0, counts[role] - floor))
        left -= more
        raised[role] = floor + more
    return raised


def _trimmed_counts(
    pools: Sequence[PoolSpec], plans: Mapping[str, PoolPlan], count: int, floors: Mapping[str, int]
) -> dict[str, int]:
    """Returns the replicas of the pools to lower, so that the group has `count` in all.

    The most expensive pool comes first, and none falls below its floor.
    """
    trimmed: dict[str, int] = {}
    over = sum([plans[pool.name].replicas for pool in pools]) - count
    for pool in sorted(pools, key=lambda pool: -pool.cost_per_hour):
        replicas = plans[pool.name].replicas
        fewer = min(over, max(0, replicas - floors[pool.name]))
        if fewer > 0:
            over -= fewer
            trimmed[pool.name] = replicas - fewer
    return trimmed
