"""Load conditions."""

from collections.abc import Sequence

from fairlead.fleet.model import Role
from fairlead_autoscaler.core.performance.error_budget import (
    MissedRequests,
    count_missed,
)
from fairlead_autoscaler.core.signals.tick import Tick
from fairlead_autoscaler.core.signals.validation import PoolTotals
from fairlead_autoscaler.core.sizing.demand import Demand
from fairlead_autoscaler.core.sizing.group_inputs import GroupInputs
from fairlead_autoscaler.core.state import CoreState
from fairlead_autoscaler.core.types import PoolGroup
from fairlead_autoscaler.core.workload import idle_gaps


def waiting_requests(tick: Tick, group: PoolGroup) -> float:
    held = tick.signals.gateway.held if tick.signals.gateway is not None else 0.0
    waiting = (tick.signals.pools.get(pool.name) for pool in group.pools)
    return held + sum(totals.waiting for totals in waiting if totals is not None)


def is_short_of_replicas(tick: Tick, sizes: GroupInputs, need: Demand) -> bool:
    """Is less ready than what arrives takes, or more waiting than usual?"""
    ready = sizes.ready_replicas(tick)
    return ready < need.current_level or waiting_requests(tick, sizes.group) > tick.settings.queue_usual * max(
        1.0, ready
    )


def late_answer_share(tick: Tick, totals: Sequence[PoolTotals]) -> float:
    """The share of answers whose mean gap passed the objective, where answers are what the histograms count (as gateways do); 0
    where these count single gaps (as engines do), of which there are many more than answers."""
    late, place, ended = MissedRequests(), 0.0, 0.0
    for each in totals:
        seen, where = count_missed(each.itl_counts, tick.model.itl_bounds, tick.model.itl_seconds)
        late, place, ended = late.plus(1.0, seen), max(place, where), ended + each.finished
    return late.missed_count(place) / late.judged if 0.0 < late.judged <= 2.0 * ended else 0.0


def can_scale_to_zero(state: CoreState, tick: Tick, startup: float) -> bool:
    """Has it been silent for longer than the odds allow, and is nothing under way that anybody knows of?"""
    if tick.missing_seconds is not None or tick.signals.inconsistency is not None or tick.has_arrivals:
        return False
    known = tick.signals.pools.values()
    if any(totals is None or totals.unread_replicas or totals.running + totals.waiting > 0.0 for totals in known):
        return all(totals is None and tick.pools[name].ready == 0 for name, totals in tick.signals.pools.items())
    last = state.silence.last_arrival
    cost = startup * tick.settings.cold_start_price
    if tick.model.ttft_seconds is not None and startup < tick.model.ttft_seconds:
        cost = startup
    return last is not None and not idle_gaps.is_worth_keeping(state.silence, tick.now - last, cost)


def has_waiting_requests(tick: Tick, sizes: GroupInputs, need: Demand | None) -> bool:
    """Do requests wait for replicas that are not there yet?"""
    if need is None:
        return False
    ready = sizes.ready_replicas(tick)
    waits = waiting_requests(tick, sizes.group) > tick.settings.queue_usual * max(1.0, ready)
    return need.current_level > ready or (waits and need.replicas + need.backlog > ready)


def is_overloaded(tick: Tick, sizes: GroupInputs, need: Demand | None) -> bool:
    """Does what arrives take far more than is ready? Not asked of roles apart: what one of them needs where traffic turns rests on
    lengths of answers that have not ended."""
    if need is None or sizes.group.role is not Role.SERVE:
        return False
    return need.current_level > tick.settings.overloaded_share * sizes.ready_replicas(tick)
