"""Pools that may have only so many replicas together, as where the accelerators of a model are counted.

What all groups want is cut down to what there may be. Prefill and decode share it by the ratio of their needs of now, at
which both carry the same part of the load (``roles.split``: a division stays until another carries a tenth more). There
the largest need of five minutes does not hold: what one role keeps in case the load returns, the other lacks today. That of a minute
does (``lately``), since answers that began together end together and seem longer and shorter in turns; but nothing of before the
traffic turned. A role that shrinks drains at once, and what it frees is what the other one waits for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fairlead.decision import DecisionInput
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.sizing.replica_count import Rule
from fairlead_autoscaler.core.sizing.stabilization_window import NeedWindow, add_need
from fairlead_autoscaler.core.types import PoolObservation, PoolPlan, PoolSpec
from fairlead_autoscaler.roles import split_by_role


@dataclass(frozen=True, slots=True)
class LimitShare:
    """A group of pools as far as sharing goes: what it needs by now (``lately``), in replicas (None = nobody knows)."""

    role: Role
    pools: tuple[PoolSpec, ...]
    need: float | None


def recent_need(before: NeedWindow, now: float, need: float, turned_at: float | None, seconds: float) -> NeedWindow:
    """``before`` with the ``need`` of ``now``, and nothing that is older than so many seconds or than the last turn."""
    if turned_at is not None:
        before = NeedWindow(tuple(entry for entry in before.needs if entry[0] > turned_at))
    return add_need(before, now, need, seconds)


def apply_shared_limit(
    max_replicas: int,
    shares: Sequence[LimitShare],
    plans: Mapping[str, PoolPlan],
    observed: Mapping[str, PoolObservation],
    *,
    can_lower: bool = True,
    is_shifting: bool = False,
) -> dict[str, PoolPlan]:
    """``plans`` with no more than ``most`` replicas in all, as far as minima allow; as they are where they fit. Without
    ``lower`` no pool is set below what it has, so that there may be more than ``most`` for a while. While traffic ``turns`` no
    division is kept for its own sake."""
    planned = {share.role: sum([plans[pool.name].replicas for pool in share.pools]) for share in shares}
    total = sum(planned.values())
    if total <= max_replicas:
        return dict(plans)
    prefill = next((share for share in shares if share.role is Role.PREFILL), None)
    decode = next((share for share in shares if share.role is Role.DECODE), None)
    others = sum([count for role, count in planned.items() if role not in (Role.PREFILL, Role.DECODE)])
    if prefill is None or decode is None or max_replicas - others < 2:
        counts = {role: count * max_replicas // total for role, count in planned.items()}
        reason = f"{total} are wanted by all pools together, of which there may be {max_replicas}"
        inputs: Mapping[str, DecisionInput] = {"together_most_replicas": DecisionInput(float(max_replicas))}
    else:
        needs = [float(planned[share.role]) if share.need is None else share.need for share in (prefill, decode)]
        now = None if is_shifting else sum([observed[pool.name].desired for pool in prefill.pools])
        chosen = split_by_role(max_replicas - others, *needs, now=now)
        counts = {**planned, Role.PREFILL: chosen.prefill, Role.DECODE: chosen.decode}
        reason, inputs = chosen.reason, chosen.inputs
    floors = {
        pool.name: pool.minimum if can_lower else max(pool.minimum, observed[pool.name].desired)
        for share in shares
        for pool in share.pools
    }
    if not can_lower:
        counts = _raise_only(max_replicas, shares, counts, floors)
    made = dict(plans)
    for share in shares:
        made |= _trim_group(share.pools, plans, counts[share.role], floors, reason, inputs)
    return made


def _raise_only(
    most: int, shares: Sequence[LimitShare], counts: Mapping[Role, int], floors: Mapping[str, int]
) -> dict[Role, int]:
    """``counts`` where nobody is lowered: each group is raised as far as what the others keep leaves room."""
    kept = {share.role: sum([floors[pool.name] for pool in share.pools]) for share in shares}
    left = max(0, most - sum(kept.values()))
    raised: dict[Role, int] = {}
    for role, least in kept.items():
        more = min(left, max(0, counts[role] - least))
        left -= more
        raised[role] = least + more
    return raised


def _trim_group(
    pools: Sequence[PoolSpec],
    plans: Mapping[str, PoolPlan],
    count: int,
    floors: Mapping[str, int],
    reason: str,
    inputs: Mapping[str, DecisionInput],
) -> dict[str, PoolPlan]:
    """The pools of a group lowered to ``count`` replicas in all, the dearest first, none below its floor."""
    made: dict[str, PoolPlan] = {}
    over = sum([plans[pool.name].replicas for pool in pools]) - count
    for pool in sorted(pools, key=lambda pool: -pool.cost_per_hour):
        plan = plans[pool.name]
        fewer = min(over, max(0, plan.replicas - floors[pool.name]))
        if fewer <= 0:
            continue
        over -= fewer
        made[pool.name] = replace(
            plan,
            replicas=plan.replicas - fewer,
            rule=Rule.SHARED.value,
            reason=f"{plan.replicas} are wanted; {reason}",
            inputs={**plan.inputs, **inputs},
        )
    return made
