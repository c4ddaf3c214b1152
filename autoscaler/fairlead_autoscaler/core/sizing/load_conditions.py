"""Load conditions: what queues, idle time and late requests say about a group, beyond demand."""

from collections.abc import Sequence
from typing import Final

from fairlead.fleet.model import Role
from fairlead_autoscaler.core.float_sum import float_sum
from fairlead_autoscaler.core.performance.counted_misses import CountedMisses, CountsAroundTarget, counts_around
from fairlead_autoscaler.core.signals.tick import Tick
from fairlead_autoscaler.core.signals.validation import PoolTotals
from fairlead_autoscaler.core.sizing.group_inputs import GroupInputs
from fairlead_autoscaler.core.sizing.replicas_needed import USUAL_QUEUE, Demand
from fairlead_autoscaler.core.state import CoreState
from fairlead_autoscaler.core.types import PoolGroup
from fairlead_autoscaler.core.workload import idle_gaps

OVERLOADED_SHARE: Final = 1.25
"""A load of this multiple of the ready replicas is an overload."""


def waiting_requests(tick: Tick, group: PoolGroup) -> float:
    """Returns the number of requests that wait at gateways and at the engines of the group."""
    held = tick.signals.gateway.held if tick.signals.gateway is not None else 0.0
    waiting = (tick.signals.pools.get(pool.name) for pool in group.pools)
    return held + float_sum([totals.waiting for totals in waiting if totals is not None])


def has_long_queue(tick: Tick, inputs: GroupInputs) -> bool:
    ready = inputs.ready_replicas(tick)
    return waiting_requests(tick, inputs.group) > USUAL_QUEUE * max(1.0, ready)


def is_short_of_replicas(tick: Tick, inputs: GroupInputs, demand: Demand) -> bool:
    return inputs.ready_replicas(tick) < demand.current_level or has_long_queue(tick, inputs)


def has_waiting_requests(tick: Tick, inputs: GroupInputs, demand: Demand | None) -> bool:
    """Whether requests wait for replicas that are not ready yet."""
    if demand is None:
        return False
    ready = inputs.ready_replicas(tick)
    return demand.current_level > ready or (has_long_queue(tick, inputs) and demand.replicas + demand.backlog > ready)


def is_overloaded(tick: Tick, inputs: GroupInputs, demand: Demand | None) -> bool:
    """Whether the load needs far more replicas than are ready.

    Never for separate roles: after a length shift, their demand rests on outputs that are
    unfinished.
    """
    if demand is None or inputs.group.role is not Role.SERVE:
        return False
    return demand.current_level > OVERLOADED_SHARE * inputs.ready_replicas(tick)


def can_scale_to_zero(state: CoreState, tick: Tick, return_seconds: float) -> bool:
    """Whether an idle group may go to zero: it certainly has no request, and is not worth its cost.

    Also True if no pool has metrics or a ready replica, and no request arrives.

    return_seconds: time until a removed replica serves again.
    """
    if tick.missing_seconds is not None or tick.signals.inconsistency is not None or tick.has_arrivals:
        return False
    known = tick.signals.pools.values()
    if any(totals is None or totals.unread_replicas or totals.running + totals.waiting > 0.0 for totals in known):
        return all(totals is None and tick.pools[name].ready == 0 for name, totals in tick.signals.pools.items())
    last = state.silence.last_arrival
    cost = return_seconds * tick.settings.cold_start_price
    if tick.model.ttft_seconds is not None and return_seconds < tick.model.ttft_seconds:
        cost = return_seconds
    return last is not None and not idle_gaps.is_worth_keeping(state.silence, tick.now - last, cost)


def counted_misses(tick: Tick, inputs: GroupInputs, known: Sequence[PoolTotals]) -> CountedMisses:
    """Returns the requests of the tick that missed the group's targets.

    known: the totals of the group's pools.

    Where histograms count answers, they alone say which answers were slow. Those of engines count
    single gaps: there are many more gaps than finished answers. Then engines whose mean gap is
    beyond the target say it.
    """
    role, model = inputs.group.role, tick.model
    finished = float_sum([totals.finished for totals in known])
    first_tokens = gaps = CountsAroundTarget()
    for totals in known:
        first_tokens = first_tokens.plus(
            1.0, counts_around(totals.ttft_counts, model.ttft_bounds, inputs.targets.ttft_seconds)
        )
        gaps = gaps.plus(1.0, counts_around(totals.itl_counts, model.itl_bounds, model.itl_seconds))
    abandoned = tick.signals.gateway.abandoned if tick.signals.gateway is not None else 0.0
    requests = finished if role is Role.DECODE else first_tokens.judged + abandoned
    if role is Role.DECODE:
        first_tokens, abandoned = CountsAroundTarget(), 0.0
    slow = 0.0
    generated = float_sum([totals.generated_tokens for totals in known])
    if role is Role.PREFILL:
        gaps = CountsAroundTarget()
    elif not 0.0 < gaps.judged <= 2.0 * finished:
        gaps = CountsAroundTarget()
        if generated > 0.0:
            slow = requests * float_sum([totals.slow_tokens for totals in known]) / generated
    return CountedMisses(requests, first_tokens, gaps, abandoned, slow)
