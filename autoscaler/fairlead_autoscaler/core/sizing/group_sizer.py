"""A group of pools: what it needs, what of that holds, and how it is divided.

The need follows from what arrives (``need``) at the knee of the group's first pool; it is known only where arrivals are. Without
them the last need holds, and after a minute the number rises from the most that was needed lately: from the last need alone it would
rise by less than rounding and window had added already."""

import math
from collections.abc import Sequence
from dataclasses import replace

from fairlead.decision import DecisionInput
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.limits.sleep_tier import WHOLE_REPLICAS_INPUT, wake_seconds
from fairlead_autoscaler.core.performance.capacity import (
    MeanRequest,
    StepModel,
    find_unreachable_target,
)
from fairlead_autoscaler.core.performance.error_budget import (
    ErrorBudget,
    MissedRequests,
    count_missed,
    update_error_budget,
)
from fairlead_autoscaler.core.signals.tick import Tick
from fairlead_autoscaler.core.sizing import stabilization_window
from fairlead_autoscaler.core.sizing.allocation_policy import allocate
from fairlead_autoscaler.core.sizing.demand import Backlog, Demand, estimate_demand
from fairlead_autoscaler.core.sizing.group_inputs import GroupInputs, group_inputs
from fairlead_autoscaler.core.sizing.load_conditions import (
    can_scale_to_zero,
    has_waiting_requests,
    is_overloaded,
    is_short_of_replicas,
    late_answer_share,
    waiting_requests,
)
from fairlead_autoscaler.core.sizing.mix_requests import MixQuestion
from fairlead_autoscaler.core.sizing.pool_allocation import PoolShare, own_need
from fairlead_autoscaler.core.sizing.pool_capacity import (
    bin_price,
    latency_targets,
    pool_profile,
    replica_capacity,
    replicas_for_pool,
)
from fairlead_autoscaler.core.sizing.replica_count import PoolRequest, SignalDoubt, plan_pool
from fairlead_autoscaler.core.sizing.schedule_bounds import replica_bounds
from fairlead_autoscaler.core.state import CoreState, GroupMemory
from fairlead_autoscaler.core.types import MixRequest, PoolCandidate, PoolGroup, PoolPlan, PoolSpec, SleepTier
from fairlead_autoscaler.core.workload.arrivals import keep_last_ticks
from fairlead_autoscaler.core.workload.level import (
    BinPrice,
    LoadLevel,
    change_point_ticks,
    estimate_level,
    recurring_burst_level,
    upward_swing,
)
from fairlead_autoscaler.core.workload.mean_request import (
    output_growth,
    prompt_growth,
    request_for_role,
)


def plan_group(
    state: CoreState, tick: Tick, group: PoolGroup
) -> tuple[CoreState, dict[str, PoolPlan], MixRequest | None]:
    """Need, window, division and numbers of one group, all of whose pools the look has, and what a solver is to be asked about
    them."""
    settings = tick.settings
    sizes = group_inputs(state, tick, group)
    before = state.groups.get(group.role.value) or GroupMemory(
        window=stabilization_window.NeedWindow(needs=((tick.now, sizes.desired_replicas(tick)),)),
        need=sizes.desired_replicas(tick),
    )  # met for the first time: what it has is taken for what it needed
    need: Demand | None = None
    if tick.missing_seconds is None:
        state, before, need = _estimate_need(state, before, tick, sizes)
    held, after = _stabilize(
        before, tick, need, sizes, sizes.desired_without_hedges(tick, state) + sizes.asleep_replicas(tick)
    )
    if need is not None and is_short_of_replicas(tick, sizes, need):
        after = replace(after, short_at=tick.now)
    after = replace(after, budget=_error_budget(after, tick, sizes, need))
    state, held, whole = _split_awake(state, tick, sizes, after, held)
    asleep = (
        group.allows_zero
        and not tick.warming_up
        and can_scale_to_zero(state, tick, _return_seconds(state, tick, sizes))
    )
    if asleep:
        held, whole = 0.0, None
    elif group.allows_zero and (tick.has_arrivals or any(tick.pools[pool.name].desired for pool in group.pools)):
        held = max(held, 1e-6)  # and none where there is none and nobody asks: a restart wakes nobody
    parts = [_pool_share(tick, pool, sizes) for pool in group.pools]
    question = _mix_question(state, tick, sizes, parts, held)
    answer = tick.mix_results.get(group.role.value)
    division = allocate(held, parts, before.blend, before.kept, tick.now, question, answer, settings)
    after = replace(after, blend=division.followed_mix, kept=division.previous, worths=sizes.replica_equivalents)
    targets = division.targets
    told = {
        "prompt_tokens": DecisionInput(sizes.mean_request.prompt_tokens),
        "output_tokens": DecisionInput(sizes.mean_request.output_tokens),
        "cached_share": DecisionInput(sizes.mean_request.cached_share),
        **({"kept_token_share": DecisionInput(sizes.decode_prefill.tokens)} if group.role is not Role.SERVE else {}),
        **(need.inputs if need is not None else {"need_replicas": DecisionInput(before.need, tick.missing_seconds)}),
        "window_max_replicas": DecisionInput(held),
        **({} if whole is None else {WHOLE_REPLICAS_INPUT: DecisionInput(float(math.ceil(whole - 1e-9)))}),
    }
    plans: dict[str, PoolPlan] = {}
    pools = dict(state.pools)
    for pool in group.pools:
        capacity = sizes.capacities[pool.name]
        wanted = PoolRequest(
            targets[pool.name],
            own_need(held, parts, targets, pool.name),
            has_waiting_requests(tick, sizes, need),
            group.role is not Role.SERVE,
            is_overloaded(tick, sizes, need),
            asleep,
            (max(1.0, sizes.ahead_seconds - settings.ready_extra_seconds), sizes.startup_seconds),
            _capacity_share_after_removal(pool, tick, sizes),
            {
                "speed_factor": DecisionInput(sizes.slowdowns[pool.name]),
                "capacity_requests_per_second": DecisionInput(capacity.requests_per_second),
                **told,
                **({"mix_replicas": division.mix_inputs[pool.name]} if pool.name in division.mix_inputs else {}),
            },
            capacity.bound.value + division.explanation,
        )
        doubt = SignalDoubt(tick.missing_seconds, tick.signals.inconsistency, tick.warming_up)
        pools[pool.name], plan = plan_pool(
            pools[pool.name], tick.pools[pool.name], wanted, doubt, replica_bounds(pool, tick.wall), tick.now, settings
        )
        plans[pool.name] = _with_unreachable_target(plan, pool, sizes)
    return replace(state, pools=pools, groups={**state.groups, group.role.value: after}), plans, division.mix_request


def _estimate_need(
    state: CoreState, before: GroupMemory, tick: Tick, sizes: GroupInputs
) -> tuple[CoreState, GroupMemory, Demand | None]:
    """What the group needs, where anything has arrived yet."""
    settings, first = tick.settings, sizes.first_pool
    settled, own = state.lengths.settled_prompt is not None, tick.model.replicas_most is None
    price = bin_price(
        first,
        sizes.mean_request,
        sizes.slowdowns[first.name],
        sizes.capacity,
        sizes.decode_prefill,
        settled,
        own,
        settings,
    )
    before = _learn_bursts(before, state, tick, price, sizes)
    state, seen = _load_level(state, before, tick, price, sizes)
    if seen is None:
        return state, before, None
    growth = (
        1.0
        if sizes.group.role is Role.PREFILL
        else output_growth(state.lengths, state.load, sizes.ahead_seconds, settings)
    )
    prompts = 1.0 if seen.slope > 0.0 else prompt_growth(state.load, sizes.ahead_seconds, settings)
    then = replace(
        sizes.mean_request,
        prompt_tokens=sizes.mean_request.prompt_tokens * prompts,
        output_tokens=sizes.mean_request.output_tokens * growth,
    )

    factor, objectives = sizes.slowdowns[first.name], sizes.targets
    sized = replicas_for_pool(first, then, factor, objectives, settings)
    steeply = replicas_for_pool(first, then, factor, objectives, replace(settings, hurt_share=math.inf))
    grows = (
        sizes.ahead_seconds
        if tick.model.patience_seconds is None
        else min(sizes.ahead_seconds, tick.model.patience_seconds)
    )
    queue = Backlog(
        waiting_requests(tick, sizes.group), sizes.ready_replicas(tick), sizes.desired_replicas(tick), grows
    )
    margin = settings.margin * before.budget.margin
    need = estimate_demand(
        seen,
        before.swing or 0.0,
        before.bursts,
        sizes.capacity,
        sized,
        steeply,
        margin,
        before.budget.spare_replicas(settings),
        sizes.ahead_seconds,
        queue,
        settings,
    )
    return (
        state,
        before,
        replace(
            need,
            inputs={"output_growth": DecisionInput(growth), "prompt_growth": DecisionInput(prompts), **need.inputs},
        ),
    )


def _load_level(
    state: CoreState, before: GroupMemory, tick: Tick, price: BinPrice, sizes: GroupInputs
) -> tuple[CoreState, LoadLevel | None]:
    """The level of the load; where it changed, of what arrives since."""
    settings, shot = tick.settings, 1.0 / sizes.capacity.requests_per_second
    seen = estimate_level(state.load, price, shot, settings)
    ticks = 0 if seen is None else change_point_ticks(state.load, seen, price, shot, before.bursts > 0.0, settings)
    if seen is None or not ticks:
        return state, seen
    state = replace(state, load=keep_last_ticks(state.load, ticks))
    now = estimate_level(state.load, price, shot, settings)
    if now is not None and now.current > seen.current:
        now = replace(now, floor=seen.upper_bound(settings.spread_sigmas, before.swing or 0.0, sizes.ahead_seconds))
    return state, now


def _learn_bursts(
    before: GroupMemory, state: CoreState, tick: Tick, price: BinPrice, sizes: GroupInputs
) -> GroupMemory:
    """``before`` with what the last while teaches, looked at again when a bin was closed."""
    settings = tick.settings
    if before.swing is None:
        before = replace(before, swing=settings.swing_guess)
    if not state.load.past or state.load.past[-1].at <= before.past_at:
        return before
    within = settings.recur_share * (
        sizes.startup_seconds + stabilization_window.window_length(sizes.startup_seconds, settings)
    )
    shot = 1.0 / sizes.capacity.requests_per_second
    return replace(
        before,
        bursts=recurring_burst_level(state.load, price, within, shot, settings),
        swing=upward_swing(state.load, price, sizes.ahead_seconds, shot, settings),
        past_at=state.load.past[-1].at,
    )


def _stabilize(
    before: GroupMemory, tick: Tick, need: Demand | None, sizes: GroupInputs, there: float
) -> tuple[float, GroupMemory]:
    """The need that holds now, and the group with it. What there may not be is not remembered, nor what bounds or steps did not let
    be: ``there`` is what became of the need before this one."""
    settings = tick.settings
    length, most = stabilization_window.window_length(sizes.startup_seconds, settings), sizes.max_replicas(tick)
    known = stabilization_window.cap_newest_need(before.window, there)
    if need is None:
        last = before.need or 0.0
        if tick.missing_seconds is not None and tick.missing_seconds >= settings.blind_hold_seconds:
            seen_until = tick.now - tick.missing_seconds
            most_seen = max([last, *[value for at, value in known.needs if at <= seen_until]])
            last = most_seen * settings.blind_rise + max(0.0, before.trend) * tick.missing_seconds
        needs = stabilization_window.add_need(known, tick.now, min(last, most), length)
        return max(_window_need(needs, sizes, there), last + before.backlog.largest), replace(before, window=needs)
    needs = stabilization_window.add_need(known, tick.now, min(need.replicas, most), length)
    backlog = stabilization_window.add_need(before.backlog, tick.now, min(need.backlog, most), settings.backlog_seconds)
    after = replace(before, window=needs, backlog=backlog, need=need.replicas, trend=need.trend)
    return max(_window_need(needs, sizes, there), need.replicas + backlog.largest), after


def _window_need(needs: stabilization_window.NeedWindow, sizes: GroupInputs, there: float) -> float:
    """What the window holds. Among several pools it raises nothing that is there: their replicas are worth now more, now less of one
    another, and what was remembered in those of the first would be started anew for that."""
    return needs.largest if len(sizes.group.pools) < 2 or there <= 0.0 else min(needs.largest, there)


def _sleep_tier_pool(tick: Tick, group: PoolGroup) -> tuple[PoolSpec, SleepTier] | None:
    """The only pool of a group, where its replicas may sleep."""
    if len(group.pools) != 1 or (tier := group.pools[0].tier) is None or tier.most < 1:
        return None
    return group.pools[0], tier


def _split_awake(
    state: CoreState, tick: Tick, sizes: GroupInputs, group: GroupMemory, held: float
) -> tuple[CoreState, float, float | None]:
    """Of the need that holds, what is to be awake, and the whole of it where the rest may sleep (``asleep``): what is needed with no
    more than a waking ahead, and what the tier has no room for."""
    if (found := _sleep_tier_pool(tick, sizes.group)) is None:
        return state, held, None
    pool, tier = found
    slow, usual = (wake_seconds(state.pools[pool.name], pool, tier, share) for share in (0.9, 0.5))
    ttft = sizes.targets.ttft_seconds
    if ttft is not None and slow > ttft:
        slow = (
            sizes.startup_seconds
        )  # what comes back misses its objective by a waking, too: windows and bursts stay those of a start
    quick = replace(sizes, startup_seconds=slow, ahead_seconds=usual + tick.settings.ready_extra_seconds)
    key = f"{sizes.group.role.value} awake"
    before = state.groups.get(key) or GroupMemory(window=group.window, need=group.need)
    before = replace(before, budget=group.budget)
    need: Demand | None = None
    if tick.missing_seconds is None:
        state, before, need = _estimate_need(state, before, tick, quick)
    awake, after = _stabilize(before, tick, need, quick, quick.desired_without_hedges(tick, state))
    state = replace(state, groups={**state.groups, key: after})
    return state, min(held, max(awake, held - tier.most)), held


def _return_seconds(state: CoreState, tick: Tick, sizes: GroupInputs) -> float:
    """Seconds until a replica serves again that was sent away when nothing was asked."""
    if (found := _sleep_tier_pool(tick, sizes.group)) is None:
        return sizes.startup_seconds
    pool, tier = found
    return wake_seconds(state.pools[pool.name], pool, tier, 0.9)


def _error_budget(after: GroupMemory, tick: Tick, sizes: GroupInputs, need: Demand | None) -> ErrorBudget:
    """The margin after what the objectives saw; only where what is ready has carried what arrives for a while."""
    role, model = sizes.group.role, tick.model
    known = [tick.signals.pools.get(pool.name) for pool in sizes.group.pools]
    totals = [each for each in known if each is not None]
    if need is None or not totals or tick.seconds <= 0.0:
        return after.budget
    late, place = MissedRequests(), 0.0
    if role is Role.DECODE:
        late = MissedRequests(judged=sum(each.finished for each in totals))
    else:
        for each in totals:
            seen, where = count_missed(each.ttft_counts, model.ttft_bounds, sizes.targets.ttft_seconds)
            late, place = late.plus(1.0, seen), max(place, where)
        abandoned = tick.signals.gateway.abandoned if tick.signals.gateway is not None else 0.0
        late = late.plus(1.0, MissedRequests(otherwise=abandoned, judged=abandoned))
    generated = sum(each.generated_tokens for each in totals)
    if role is not Role.PREFILL and generated > 0.0:
        slow = late.judged * max(sum(each.slow_tokens for each in totals) / generated, late_answer_share(tick, totals))
        late = late.plus(1.0, MissedRequests(otherwise=slow))
    learn = tick.now - after.short_at > tick.settings.short_seconds
    return update_error_budget(
        after.budget, late, place, tick.seconds, max(1e-4, 1.0 - model.target), learn, tick.settings
    )


def _pool_share(tick: Tick, pool: PoolSpec, sizes: GroupInputs) -> PoolShare:
    seen = tick.pools[pool.name]
    least, most = replica_bounds(pool, tick.wall)
    cost = max(1e-6, pool.cost_per_hour)
    start_price = tick.settings.start_price * sizes.startup_seconds / 3_600.0
    return PoolShare(
        pool.name, sizes.equivalent_of(pool.name), cost, least, most, seen.desired, seen.ready, start_price
    )


def _mix_question(
    state: CoreState, tick: Tick, sizes: GroupInputs, parts: Sequence[PoolShare], held: float
) -> MixQuestion | None:
    """What to ask a solver about the group; None where there is no choice or no load, and where nobody knows the shapes."""
    if len(parts) < 2 or held <= 0.0 or state.shapes is None or tick.missing_seconds is not None:
        return None
    if state.shapes.watched_seconds < tick.settings.mix_seconds / 2.0:  # a few requests are no mix
        return None
    if tick.now - state.shapes.at > tick.settings.mix_seconds:  # and what nobody tells any more is none of today
        return None
    role, cached, startup = sizes.group.role, sizes.mean_request.cached_share, sizes.startup_seconds
    steps = {
        pool.name: StepModel.from_profile(pool_profile(pool), sizes.slowdowns[pool.name]) for pool in sizes.group.pools
    }
    return MixQuestion(
        state.shapes,
        held * sizes.capacity.requests_per_second,
        [PoolCandidate(one.name, one.cost, (), one.minimum, one.maximum, one.desired, startup) for one in parts],
        sizes.capacities,
        steps,
        lambda prompt, output: request_for_role(role, MeanRequest(prompt, output, cached)),
        lambda prompt: latency_targets(tick.model, role, prompt),
    )


def _with_unreachable_target(plan: PoolPlan, pool: PoolSpec, sizes: GroupInputs) -> PoolPlan:
    """``plan`` with what no number of replicas can keep."""
    cannot = find_unreachable_target(
        StepModel.from_profile(pool_profile(pool), sizes.slowdowns[pool.name]), sizes.mean_request, sizes.targets
    )
    return plan if cannot is None else replace(plan, reason=f"{plan.reason}; {cannot}")


def _capacity_share_after_removal(pool: PoolSpec, tick: Tick, sizes: GroupInputs) -> float:
    """What a replica carries when one fewer shares the caches, as a share of what it carries now."""
    count, mix = tick.pools[pool.name].ready, sizes.mean_request
    if mix.cached_share <= 0.0 or count <= 1 or pool.role is Role.DECODE:
        return 1.0
    fewer = replace(mix, cached_share=mix.cached_share * (1.0 - 1.0 / count))
    rates = [
        replica_capacity(
            pool, each, sizes.slowdowns[pool.name], sizes.targets, count, tick.settings
        ).requests_per_second
        for each in (mix, fewer)
    ]
    return rates[1] / rates[0]
