"""The decision: what was seen and what is remembered in, a plan and what to remember out. Nothing else is read, nothing is changed.

The order is that of the files. Signals are cleaned (``clean``) and believed or not (``trust``); what they teach is learned
(``learned``, ``load``); each group of pools gets its need (``need``, from the knee of ``capacity``), the largest need of a window
holds (``window``), zero is left to the odds (``zero``), the need is divided among the group's pools (``split``), and each pool's
number is set with what guards the way down and hurries the way up (``replicas``). Where there may be only so many in all, groups
share them (``together``).

Where arrivals are not known, nothing is lowered: the last need holds, and after a minute it rises by a quarter and by its last
trend."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fairlead.decision import Input
from fairlead.fleet import Role
from fairlead_autoscaler.scaling import clean, learned, trust, window, zero
from fairlead_autoscaler.scaling.bounds import bounds
from fairlead_autoscaler.scaling.capacity import Capacity
from fairlead_autoscaler.scaling.convertible import with_slack
from fairlead_autoscaler.scaling.load import Bin, Level, Price, changed, forget, level, note, recurring, swing
from fairlead_autoscaler.scaling.need import (
    Group,
    Need,
    Queue,
    capacity_of,
    groups,
    longer,
    mix_of,
    need_of,
    objectives_of,
    price_of,
)
from fairlead_autoscaler.scaling.replicas import Doubt, Wanted, planned
from fairlead_autoscaler.scaling.settings import ScalingSettings
from fairlead_autoscaler.scaling.split import Part, divide, own_share
from fairlead_autoscaler.scaling.state import Clock, GroupState, PoolState, State
from fairlead_autoscaler.scaling.together import Share, together
from fairlead_autoscaler.scaling.trust import Believed
from fairlead_autoscaler.scaling.values import (
    GatewaySeen,
    Observation,
    Plan,
    PoolFacts,
    PoolPlan,
    PoolSeen,
    ScaledModel,
)

_STARTUP_SECONDS = 120.0
"""Until a start was seen, and where nobody knows."""


@dataclass(frozen=True, slots=True)
class Look:
    """One look, cleaned and judged. ``seconds`` since the last one (0 for the first, and where clocks did not go on)."""

    model: ScaledModel
    settings: ScalingSettings
    now: float
    seconds: float
    wall: float | None
    pools: Mapping[str, PoolSeen]
    believed: Believed
    blind_seconds: float | None
    calm: bool
    arrived: bool


def decide(state: State, observation: Observation, model: ScaledModel, settings: ScalingSettings) -> tuple[State, Plan]:
    """What to do now, and what to remember. Pools that the observation does not name are left alone."""
    pools = {pool.name: _api(observation.pools[pool.name]) for pool in model.pools if pool.name in observation.pools}
    clock, seconds, gap = _tick(state.clock, observation.now, model, settings)
    counted = {
        pool.name: clean.totals(pools[pool.name], pool, model.itl_seconds) if not gap and seconds > 0.0 else None
        for pool in model.pools
        if pool.name in pools
    }
    gateway = clean.gateway(observation.gateway) if not gap and seconds > 0.0 else None
    trusted, believed = trust.judge(state.trust, clock.now, gateway, counted, settings)
    clock, tick = _arrivals(clock, believed.gateway, seconds, model)
    if believed.lie is not None or clock.blind_since is not None:
        clock = replace(clock, calm_at=max(clock.calm_at, clock.now + settings.doubt_seconds))
    arrived = believed.gateway is not None and (believed.gateway.arrivals > 0.0 or believed.gateway.held > 0.0)
    blind = None if clock.blind_since is None else clock.now - clock.blind_since
    look = Look(
        model,
        settings,
        clock.now,
        seconds,
        clean.number(observation.wall),
        pools,
        believed,
        blind,
        clock.now < clock.calm_at,
        arrived,
    )
    state = replace(state, clock=clock, trust=trusted, silence=_silence(state.silence, look))
    state = _learn(state, look, tick)
    plans: dict[str, PoolPlan] = {}
    for group in groups(model):
        present = tuple(pool for pool in group.pools if pool.name in pools)
        if present:
            state, planned_now = _group(state, look, Group(group.role, present))
            plans.update(planned_now)
    if model.replicas_most is not None:
        plans = _together(model.replicas_most, state, look, plans)
    return state, Plan(with_slack(model, plans, pools))


def _together(most: int, state: State, look: Look, plans: Mapping[str, PoolPlan]) -> dict[str, PoolPlan]:
    """``plans`` within what there may be of all pools. In doubt nothing is lowered for it, only raised less."""
    shares = [
        Share(group.role, present, state.groups[group.role.value].need)
        for group in groups(look.model)
        if (present := tuple(pool for pool in group.pools if pool.name in plans))
    ]
    doubt = look.blind_seconds is not None or look.believed.lie is not None or look.calm or look.settings.freeze
    return together(most, shares, plans, look.pools, lower=not doubt)


def _api(seen: PoolSeen) -> PoolSeen:
    """What the API server says, with counts that can be."""
    counts = tuple(clean.whole(value) for value in (seen.desired, seen.ready, seen.pending, seen.draining))
    if counts == (seen.desired, seen.ready, seen.pending, seen.draining):
        return seen
    return replace(seen, desired=counts[0], ready=counts[1], pending=counts[2], draining=counts[3])


def _tick(clock: Clock, told: float, model: ScaledModel, settings: ScalingSettings) -> tuple[Clock, float, bool]:
    """The clock after a look at ``told``, the seconds since the last, and whether there is a gap between them."""
    if clean.number(told) is None:
        return clock, 0.0, False
    if clock.told is None:
        return replace(clock, told=told, calm_at=clock.now + settings.restart_seconds), 0.0, True
    seconds = told - clock.told
    if seconds <= 0.0:
        return replace(clock, told=told), 0.0, False
    if seconds > settings.gap_intervals * model.interval_seconds:
        now = clock.now + model.interval_seconds
        later = max(clock.calm_at, now + settings.restart_seconds)
        return replace(clock, told=told, now=now, calm_at=later), model.interval_seconds, True
    return replace(clock, told=told, now=clock.now + seconds), seconds, False


def _arrivals(clock: Clock, seen: GatewaySeen | None, seconds: float, model: ScaledModel) -> tuple[Clock, Bin | None]:
    """What arrived as a tick of at least half an interval (looks between are added up), and since when nobody knows."""
    if seen is None:
        since = clock.now if clock.blind_since is None else clock.blind_since
        return replace(clock, blind_since=since, open_seconds=0.0, open_requests=0.0, open_prompt=0.0), None
    clock = replace(
        clock,
        blind_since=None,
        open_seconds=clock.open_seconds + seconds,
        open_requests=clock.open_requests + seen.arrivals,
        open_prompt=clock.open_prompt + seen.prompt_tokens,
    )
    if clock.open_seconds < model.interval_seconds / 2:
        return clock, None
    tick = Bin(clock.now, clock.open_seconds, clock.open_requests, clock.open_prompt, 0.0)
    return replace(clock, open_seconds=0.0, open_requests=0.0, open_prompt=0.0), tick


def _silence(before: zero.Silence, look: Look) -> zero.Silence:
    busy = look.arrived or any(
        totals is not None and totals.running + totals.waiting > 0.0 for totals in look.believed.pools.values()
    )
    if busy or before.last_arrival is None or look.believed.gateway is None:
        return zero.heard(before, look.now) if busy or before.last_arrival is None else before
    return before


def _learn(state: State, look: Look, tick: Bin | None) -> State:
    """``state`` with what this look teaches about pools, lengths and load."""
    settings = look.settings
    pools = dict(state.pools)
    generated = finished = prompt = cached = 0.0
    for facts in look.model.pools:
        if facts.name not in look.pools:
            continue
        before = pools.get(facts.name, PoolState())
        totals = look.believed.pools.get(facts.name)
        speed = before.speed
        if totals is not None:
            if facts.role is not Role.PREFILL:
                speed = learned.speed(speed, totals, facts, look.seconds, settings)
                generated, finished = generated + totals.generated_tokens, finished + totals.finished
            prompt, cached = prompt + totals.prompt_tokens, cached + totals.cached_tokens
        pools[facts.name] = replace(before, speed=speed, starts=learned.starts(before.starts, look.pools[facts.name]))
    lengths = state.lengths
    if finished or generated:
        lengths = replace(lengths, output=lengths.output.plus(generated, finished, look.seconds, settings))
    if prompt:
        lengths = replace(lengths, cached=lengths.cached.plus(min(cached, prompt), prompt, look.seconds, settings))
    load = state.load
    if tick is not None:
        if tick.requests:
            lengths = learned.prompts(lengths, tick.prompt, tick.requests, tick.seconds, settings)
        load = note(load, replace(tick, output=mix_of(lengths, Role.SERVE).output), settings)
    return replace(state, pools=pools, lengths=lengths, load=load)


def _group(state: State, look: Look, group: Group) -> tuple[State, dict[str, PoolPlan]]:
    """Need, window, division and numbers of one group."""
    settings = look.settings
    reference = group.pools[0]
    mix = mix_of(state.lengths, group.role)
    objectives = objectives_of(look.model, group.role, mix.prompt)
    factors = {pool.name: state.pools[pool.name].speed.factor(settings) for pool in group.pools}
    known = state.groups.get(group.role.value)
    share = float(sum(look.pools[pool.name].desired for pool in group.pools))
    if known is not None and known.need is not None:
        share = known.need
    capacities = {
        pool.name: capacity_of(pool, mix, factors[pool.name], objectives, share, settings) for pool in group.pools
    }
    before = known or _seeded(look, group, capacities)
    startup, ahead = _startup(state, group, settings)
    need, growth = None, 1.0
    if look.blind_seconds is None:
        price = price_of(reference, mix, factors[reference.name], capacities[reference.name])
        before = _past(before, state, look, price, startup, ahead)
        state, seen = _level(state, look, price, capacities[reference.name], before.bursts > 0.0)
        if seen is not None:
            capacity = capacities[reference.name]
            growth = longer(state.lengths, state.load, ahead, settings)
            then = mix if group.role is Role.PREFILL else replace(mix, output=mix.output * growth)

            def crowd(replicas: float) -> float:
                other = capacity_of(reference, then, factors[reference.name], objectives, replicas, settings)
                return other.requests_per_second / capacity.requests_per_second

            queue = _queue(look, group, capacities, ahead)
            margin = settings.margin * before.budget.margin
            need = need_of(seen, before.swing or 0.0, before.bursts, capacity, crowd, margin, ahead, queue, settings)
    held, after = _held(before, look, need, startup)
    if need is not None and _short(look, group, need, capacities):
        after = replace(after, short_at=look.now)
    after = replace(after, budget=_budget(after, look, group, need))
    asleep = group.to_zero and not look.calm and _may_sleep(state, look, startup)
    if asleep:
        held = 0.0
    elif group.to_zero and (look.arrived or any(look.pools[pool.name].desired for pool in group.pools)):
        held = max(held, 1e-6)  # and none where there is none and nobody asks: a restart wakes nobody
    parts = [_part(look, pool, capacities, reference.name, startup) for pool in group.pools]
    targets = divide(held, parts, settings.switch_share)
    told = {
        "prompt_tokens": Input(mix.prompt),
        "output_tokens": Input(mix.output),
        "output_growth": Input(growth),
        "cached_share": Input(mix.cached),
        **(need.inputs if need is not None else {"need_replicas": Input(before.need, look.blind_seconds)}),
        "window_max_replicas": Input(held),
    }
    plans: dict[str, PoolPlan] = {}
    pools = dict(state.pools)
    for pool in group.pools:
        capacity = capacities[pool.name]
        wanted = Wanted(
            targets[pool.name],
            own_share(held, parts, targets, pool.name),
            _urgent(look, group, need),
            asleep,
            (max(1.0, ahead - settings.ready_extra_seconds), startup),
            _what_if(pool, state, look, factors[pool.name]),
            {
                "speed_factor": Input(factors[pool.name]),
                "capacity_requests_per_second": Input(capacity.requests_per_second),
                **told,
            },
            capacity.bound.value,
        )
        doubt = Doubt(look.blind_seconds, look.believed.lie, look.calm)
        least, most = bounds(pool, look.wall)
        pools[pool.name], plans[pool.name] = planned(
            pools[pool.name], look.pools[pool.name], wanted, doubt, (least, most), look.now, settings
        )
    return replace(state, pools=pools, groups={**state.groups, group.role.value: after}), plans


def _startup(state: State, group: Group, settings: ScalingSettings) -> tuple[float, float]:
    """How long the slower starts of a group take, and how far ahead to look."""
    slow = usual = 0.0
    for pool in group.pools:
        starts = state.pools[pool.name].starts
        slow = max(slow, starts.quantile(0.9, pool.startup_p90_seconds, _STARTUP_SECONDS))
        prior = pool.startup_p50_seconds if settings.ahead_quantile < 0.9 else pool.startup_p90_seconds
        usual = max(usual, starts.quantile(settings.ahead_quantile, prior, _STARTUP_SECONDS))
    return slow, usual + settings.ready_extra_seconds


def _level(state: State, look: Look, price: Price, capacity: Capacity, bursty: bool) -> tuple[State, Level | None]:
    """The level of the load; where it changed, of what arrives since."""
    shot = 1.0 / capacity.requests_per_second
    seen = level(state.load, price, shot, look.settings)
    ticks = 0 if seen is None else changed(state.load, seen, price, bursty, look.settings)
    if ticks:
        state = replace(state, load=forget(state.load, ticks))
        seen = level(state.load, price, shot, look.settings)
    return state, seen


def _past(before: GroupState, state: State, look: Look, price: Price, startup: float, ahead: float) -> GroupState:
    """``before`` with what the last while teaches, looked at again when a bin was closed."""
    settings = look.settings
    if before.swing is None:
        before = replace(before, swing=settings.swing_guess)
    if not state.load.past or state.load.past[-1].at <= before.past_at:
        return before
    within = settings.recur_share * (startup + window.usual(startup, settings))
    return replace(
        before,
        bursts=settings.burst_room * recurring(state.load, price, within),
        swing=swing(state.load, price, ahead, settings),
        past_at=state.load.past[-1].at,
    )


def _seeded(look: Look, group: Group, capacities: Mapping[str, Capacity]) -> GroupState:
    """A group that is met for the first time: what it has is taken for what it needed."""
    unit = capacities[group.pools[0].name].requests_per_second
    need = sum(look.pools[pool.name].desired * capacities[pool.name].requests_per_second / unit for pool in group.pools)
    return GroupState(window=window.Window(needs=((look.now, need),)), need=need)


def _held(before: GroupState, look: Look, need: Need | None, startup: float) -> tuple[float, GroupState]:
    """The need that holds now, and the group with it."""
    settings = look.settings
    length = window.usual(startup, settings)
    if need is None:
        last = before.need or 0.0
        if look.blind_seconds is not None and look.blind_seconds >= settings.blind_hold_seconds:
            last = last * settings.blind_rise + max(0.0, before.trend) * look.blind_seconds
        needs = window.push(before.window, look.now, last, length)
        return max(needs.held, last + before.backlog.held), replace(before, window=needs)
    needs = window.push(before.window, look.now, need.replicas, length)
    backlog = window.push(before.backlog, look.now, need.backlog, settings.backlog_seconds)
    after = replace(before, window=needs, backlog=backlog, need=need.replicas, trend=need.trend)
    return max(needs.held, need.replicas + backlog.held), after


def _backlog(look: Look, group: Group) -> float:
    held = look.believed.gateway.held if look.believed.gateway is not None else 0.0
    waiting = (look.believed.pools.get(pool.name) for pool in group.pools)
    return held + sum(totals.waiting for totals in waiting if totals is not None)


def _queue(look: Look, group: Group, capacities: Mapping[str, Capacity], ahead: float) -> Queue:
    unit = capacities[group.pools[0].name].requests_per_second
    asked = sum(
        look.pools[pool.name].desired * capacities[pool.name].requests_per_second / unit for pool in group.pools
    )
    grows = ahead if look.model.patience_seconds is None else min(ahead, look.model.patience_seconds)
    return Queue(_backlog(look, group), _ready(look, group, capacities), asked, grows)


def _ready(look: Look, group: Group, capacities: Mapping[str, Capacity]) -> float:
    """What is ready, in replicas of the group's first pool."""
    unit = capacities[group.pools[0].name].requests_per_second
    return sum(look.pools[pool.name].ready * capacities[pool.name].requests_per_second / unit for pool in group.pools)


def _short(look: Look, group: Group, need: Need, capacities: Mapping[str, Capacity]) -> bool:
    """Is less ready than what arrives takes, or more waiting than usual?"""
    ready = _ready(look, group, capacities)
    return ready < need.level_now or _backlog(look, group) > look.settings.queue_usual * max(1.0, ready)


def _budget(after: GroupState, look: Look, group: Group, need: Need | None) -> learned.Budget:
    """The margin after what the objectives saw; only where what is ready has carried what arrives for a while."""
    known = [look.believed.pools.get(pool.name) for pool in group.pools]
    totals = [each for each in known if each is not None]
    if need is None or not totals or look.seconds <= 0.0:
        return after.budget
    model = look.model
    missed = judged = 0.0
    if group.role is not Role.DECODE:
        for each in totals:
            over, count = learned.beyond(each.ttft_counts, model.ttft_bounds, model.ttft_seconds)
            missed, judged = missed + over, judged + count
        abandoned = look.believed.gateway.abandoned if look.believed.gateway is not None else 0.0
        missed, judged = missed + abandoned, judged + abandoned
    generated = sum(each.generated_tokens for each in totals)
    if group.role is Role.DECODE:
        judged = sum(each.finished for each in totals)
    if group.role is not Role.PREFILL and generated > 0.0:
        missed += judged * sum(each.slow_tokens for each in totals) / generated
    learn = look.now - after.short_at > look.settings.short_seconds
    return learned.budget(
        after.budget, min(missed, judged), judged, look.seconds, max(1e-4, 1.0 - model.target), learn, look.settings
    )


def _may_sleep(state: State, look: Look, startup: float) -> bool:
    """Has it been silent for longer than the odds allow, and is nothing under way that anybody knows of?"""
    if look.blind_seconds is not None or look.believed.lie is not None or look.arrived:
        return False
    if any(totals is None or totals.running + totals.waiting > 0.0 for totals in look.believed.pools.values()):
        return all(totals is None and look.pools[name].ready == 0 for name, totals in look.believed.pools.items())
    last = state.silence.last_arrival
    cost = startup * look.settings.cold_start_price
    if look.model.ttft_seconds is not None and startup < look.model.ttft_seconds:
        cost = startup
    return last is not None and not zero.keep_warm(state.silence, look.now - last, cost)


def _urgent(look: Look, group: Group, need: Need | None) -> bool:
    """Do requests wait for replicas that are not there yet?"""
    if need is None:
        return False
    ready = sum(look.pools[pool.name].ready for pool in group.pools)
    return need.level_now > ready or (
        _backlog(look, group) > 2.0 * max(1, ready) and need.replicas + need.backlog > ready
    )


def _part(look: Look, pool: PoolFacts, capacities: Mapping[str, Capacity], reference: str, startup: float) -> Part:
    seen = look.pools[pool.name]
    least, most = bounds(pool, look.wall)
    unit = capacities[reference].requests_per_second
    return Part(
        pool.name,
        capacities[pool.name].requests_per_second / unit,
        max(1e-6, pool.cost_per_hour),
        least,
        most,
        seen.desired,
        seen.ready,
        look.settings.start_price * startup / 3_600.0,
    )


def _what_if(pool: PoolFacts, state: State, look: Look, factor: float) -> float:
    """What a replica carries when one fewer shares the caches, as a share of what it carries now."""
    count = look.pools[pool.name].ready
    mix = mix_of(state.lengths, pool.role)
    if mix.cached <= 0.0 or count <= 1 or pool.role is Role.DECODE:
        return 1.0
    objectives = objectives_of(look.model, pool.role, mix.prompt)
    settings = look.settings
    fewer = replace(mix, cached=mix.cached * (1.0 - 1.0 / count))
    now = capacity_of(pool, mix, factor, objectives, count, settings)
    after = capacity_of(pool, fewer, factor, objectives, count, settings)
    return after.requests_per_second / now.requests_per_second
