"""Ejected replicas: ready by their pods, without an answer to any gateway. They are no capacity.

For each of them one more replica is ordered, its replacement. The core plans as if neither existed:
the pool has the other replicas, and the number that the load needs. `PoolMemory.replacing` says how
many desired replicas are replacements.

An ejected replica stays in the desired number, so nothing is ordered twice. If it answers again, or
if the operator deletes its pod, the order is taken back at once: the pod's workload replaces it
already. In doubt no order is taken back.

Why a missing count keeps the last one: missing is not zero.
"""

from collections.abc import Mapping
from dataclasses import replace

from fairlead.decision import DecisionInput
from fairlead_autoscaler.core.signals.tick import Tick
from fairlead_autoscaler.core.signals.validation import valid_count
from fairlead_autoscaler.core.sizing.pool_capacity import replica_bounds
from fairlead_autoscaler.core.sizing.replica_count import Rule
from fairlead_autoscaler.core.state import CoreState, PoolMemory
from fairlead_autoscaler.core.types import ModelSpec, Observation, PoolObservation, PoolPlan


def hide_ejected(state: CoreState, observation: Observation, model: ModelSpec) -> tuple[CoreState, Observation]:
    """Returns the state, and the observation without ejected replicas and their replacements.

    A core that has just begun takes it that the replacements were ordered before. An observation
    without them is returned as it is.
    """
    memories, pools = dict(state.pools), dict(observation.pools)
    for spec in model.pools:
        seen = pools.get(spec.name)
        if seen is None:
            continue
        memory = memories.get(spec.name, PoolMemory())
        ejected, desired = _ejected(seen), valid_count(seen.desired)
        replacing = memory.replacing
        if memory.seen_at is None and ejected:
            replacing = max(0, min(ejected, desired - spec.minimum))
        replacing = min(replacing, desired)
        lost = replacing if ejected is None else ejected
        if replacing or lost:
            pools[spec.name] = replace(
                seen, desired=desired - replacing, ready=max(0, valid_count(seen.ready) - lost), ejected=lost
            )
        if replacing != memory.replacing:
            memories[spec.name] = replace(memory, replacing=replacing)
    if memories == state.pools and pools == observation.pools:
        return state, observation
    return replace(state, pools=memories), replace(observation, pools=pools)


def order_replacements(
    state: CoreState, tick: Tick, plans: Mapping[str, PoolPlan]
) -> tuple[CoreState, dict[str, PoolPlan]]:
    """Returns the next state, and the plans with one more replica for each ejected one.

    The bounds of the pools and the shared limit hold for all replicas together. A pool that goes to
    zero gets no replacements. While scaling is frozen, the number stays as it is.
    """
    memories, replaced = dict(state.pools), dict(plans)
    left = tick.model.replicas_most
    if left is not None:
        left = max(0, left - sum([plan.replicas + plan.asleep for plan in plans.values()]))
    for spec in tick.model.pools:
        if spec.name not in plans:
            continue
        plan, memory, seen = plans[spec.name], memories[spec.name], tick.pools[spec.name]
        ejected = seen.ejected or 0
        if not ejected and not memory.replacing:
            continue
        room = max(0, replica_bounds(spec, tick.wall)[1] - plan.replicas - plan.asleep) if plan.replicas else 0
        replacing = min(ejected, room if left is None else min(room, left))
        if tick.settings.freeze:
            replacing = memory.replacing
        elif tick.forbids_scale_down:
            # Fewer replacements would be a scale-down.
            replacing = max(replacing, memory.replacing)
        if left is not None:
            left = max(0, left - replacing)
        memories[spec.name] = replace(memory, replacing=replacing)
        if replacing > memory.replacing and plan.replicas <= seen.desired:
            plan = replace(plan, rule=Rule.REPLACE.value)
        replaced[spec.name] = _with_replacements(plan, seen.desired + memory.replacing, ejected, replacing)
    return replace(state, pools=memories), replaced


def _ejected(seen: PoolObservation) -> int | None:
    return None if seen.ejected is None else min(valid_count(seen.ejected), valid_count(seen.ready))


def _with_replacements(plan: PoolPlan, desired: int, ejected: int, replacing: int) -> PoolPlan:
    """Returns the plan with the replacements, their reason and their inputs.

    desired: replicas that are desired now, former replacements included.
    """
    inputs = {
        "desired_replicas": DecisionInput(float(desired)),
        "ejected_replicas": DecisionInput(float(ejected)),
        "replacement_replicas": DecisionInput(float(replacing)),
    }
    return replace(
        plan,
        replicas=plan.replicas + replacing,
        reason=f"{plan.reason}; {_replacement_reason(ejected, replacing)}",
        inputs={**plan.inputs, **inputs},
    )


def _replacement_reason(ejected: int, replacing: int) -> str:
    if not ejected:
        return f"{replacing} replacements stay while signals are in doubt" if replacing else "replacements end"
    counted = f"every gateway has ejected {ejected} ready replica{'' if ejected == 1 else 's'}"
    return f"{counted}: {replacing} more in exchange" if replacing else f"{counted}: no room for more"
