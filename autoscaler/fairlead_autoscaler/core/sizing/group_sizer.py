"""A group of pools: what it needs, what of that holds, and how it is divided.

The need follows from what arrives (``need``) at the knee of the group's first pool; it is known only where arrivals are. Without
them the last need holds, and after a minute the number rises from the most that was needed lately: from the last need alone it would
rise by less than rounding and window had added already."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fairlead.decision import DecisionInput
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.limits.sleep_tier import WHOLE_REPLICAS_INPUT, wake_seconds
from fairlead_autoscaler.core.performance.capacity import (
    LatencyTargets,
    MeanRequest,
    ReplicaCapacity,
    StepModel,
    find_unreachable_target,
)
from fairlead_autoscaler.core.performance.error_budget import (
    ErrorBudget,
    MissedRequests,
    count_missed,
    update_error_budget,
)
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.signals.tick import Tick
from fairlead_autoscaler.core.signals.validation import PoolTotals
from fairlead_autoscaler.core.sizing import stabilization_window
from fairlead_autoscaler.core.sizing.allocation_policy import allocate
from fairlead_autoscaler.core.sizing.mix_requests import MixQuestion
from fairlead_autoscaler.core.sizing.pool_allocation import PoolShare, own_need
from fairlead_autoscaler.core.sizing.pool_capacity import (
    NO_DECODE_PREFILL,
    Backlog,
    DecodePrefillShare,
    Demand,
    PoolGroup,
    bin_price,
    decode_prefill_share,
    estimate_demand,
    latency_targets,
    mean_request,
    output_growth,
    pool_profile,
    replica_capacity,
    replicas_for_pool,
    request_for_role,
)
from fairlead_autoscaler.core.sizing.replica_count import PoolRequest, SignalDoubt, plan_pool
from fairlead_autoscaler.core.sizing.schedule_bounds import replica_bounds
from fairlead_autoscaler.core.state import CoreState, GroupMemory
from fairlead_autoscaler.core.types import MixRequest, PoolCandidate, PoolPlan, PoolSpec, SleepTier
from fairlead_autoscaler.core.workload import idle_gaps
from fairlead_autoscaler.core.workload.arrivals import (
    BinPrice,
    LoadLevel,
    change_point_ticks,
    estimate_level,
    keep_last_ticks,
    prompt_growth,
    recurring_burst_level,
    upward_swing,
)

_STARTUP_SECONDS = 120.0
"""Until a start was seen, and where nobody knows."""


@dataclass(frozen=True, slots=True)
class GroupInputs:
    """What a group's replicas are worth now: the mix and the objectives they serve, what decode engines keep of prefill, how many
    times as slow as its profile each pool is, what one replica of each carries; how long its slow starts take and how far ahead to
    look."""

    group: PoolGroup
    mean_request: MeanRequest
    decode_prefill: DecodePrefillShare
    targets: LatencyTargets
    slowdowns: Mapping[str, float]
    capacities: Mapping[str, ReplicaCapacity]
    replica_equivalents: Mapping[str, float]
    startup_seconds: float
    ahead_seconds: float

    @property
    def first_pool(self) -> PoolSpec:
        """The pool whose replicas needs are counted in."""
        return self.group.pools[0]

    @property
    def capacity(self) -> ReplicaCapacity:
        """What one of those carries."""
        return self.capacities[self.first_pool.name]

    def equivalent_of(self, pool: str) -> float:
        """A replica of ``pool``, in those of the first."""
        return self.replica_equivalents[pool]

    def ready_replicas(self, look: Tick) -> float:
        """What is ready, in replicas of the first pool."""
        return sum(look.pools[pool.name].ready * self.equivalent_of(pool.name) for pool in self.group.pools)

    def desired_replicas(self, look: Tick) -> float:
        """What is asked for, ready or not."""
        return sum(look.pools[pool.name].desired * self.equivalent_of(pool.name) for pool in self.group.pools)

    def desired_without_hedges(self, look: Tick, state: CoreState) -> float:
        """What is asked for without what was started beside it."""
        hedged = {
            name: min(pool.hedged, look.pools[name].desired) for name, pool in state.pools.items() if name in look.pools
        }
        return self.desired_replicas(look) - sum(
            hedged[pool.name] * self.equivalent_of(pool.name) for pool in self.group.pools
        )

    def asleep_replicas(self, look: Tick) -> float:
        """What is to sleep beside it."""
        return sum(look.pools[pool.name].asleep_desired * self.equivalent_of(pool.name) for pool in self.group.pools)

    def max_replicas(self, look: Tick) -> float:
        """What there may be."""
        return sum(replica_bounds(pool, look.wall)[1] * self.equivalent_of(pool.name) for pool in self.group.pools)


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


def group_inputs(state: CoreState, tick: Tick, group: PoolGroup) -> GroupInputs:
    settings = tick.settings
    # Where pools share a number, what is kept is a consequence of how it is divided: by it any division would seem right.
    converted = decode_prefill_share(state.lengths) if tick.model.replicas_most is None else NO_DECODE_PREFILL
    mix = mean_request(state.lengths, group.role, converted)
    objectives = latency_targets(tick.model, group.role, mix.prompt_tokens)
    factors = {pool.name: state.pools[pool.name].speed.slowdown(settings) for pool in group.pools}
    known = state.groups.get(group.role.value)
    share = float(sum(tick.pools[pool.name].desired for pool in group.pools))
    if known is not None and known.need is not None:
        share = known.need
    capacities = {
        pool.name: replica_capacity(pool, mix, factors[pool.name], objectives, share, settings) for pool in group.pools
    }
    worths = _replica_equivalents(known, capacities, group, tick)
    return GroupInputs(
        group, mix, converted, objectives, factors, capacities, worths, *_startup_times(state, group, settings)
    )


def _replica_equivalents(
    known: GroupMemory | None, capacities: Mapping[str, ReplicaCapacity], group: PoolGroup, tick: Tick
) -> Mapping[str, float]:
    """What a replica of each pool is worth in those of the first, on the mean of a window: from one tick's mix to the next the knees
    of unlike pools differ by some percent, which would start and stop the smallest ones again and again."""
    first = capacities[group.pools[0].name].requests_per_second
    before = {} if known is None else known.worths
    kept = math.exp(-tick.seconds / tick.settings.window_seconds)
    found = {}
    for pool in group.pools:
        now = capacities[pool.name].requests_per_second / first
        found[pool.name] = now + (before.get(pool.name, now) - now) * kept
    return found


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


def _startup_times(state: CoreState, group: PoolGroup, settings: ScalingSettings) -> tuple[float, float]:
    """How long the slower starts of a group take, and how far ahead to look."""
    slow = usual = 0.0
    for pool in group.pools:
        starts = state.pools[pool.name].starts
        slow = max(slow, starts.quantile(0.9, pool.startup_p90_seconds, _STARTUP_SECONDS))
        prior = pool.startup_p50_seconds if settings.ahead_quantile < 0.9 else pool.startup_p90_seconds
        usual = max(usual, starts.quantile(settings.ahead_quantile, prior, _STARTUP_SECONDS))
    return slow, usual + settings.ready_extra_seconds


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
