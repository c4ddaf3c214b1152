"""A group of pools: what it needs, what of that holds, and how it is divided.

The need follows from what arrives (``need``) at the knee of the group's first pool; it is known only where arrivals are. Without
them the last need holds, and after a minute the number rises from the most that was needed lately: from the last need alone it would
rise by less than rounding and window had added already."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fairlead.decision import Input
from fairlead.fleet import Role
from fairlead_autoscaler.scaling import window, zero
from fairlead_autoscaler.scaling.asleep import WHOLE, wake_seconds
from fairlead_autoscaler.scaling.blend import Question
from fairlead_autoscaler.scaling.bounds import bounds
from fairlead_autoscaler.scaling.budget import Budget, Late, beyond, spent
from fairlead_autoscaler.scaling.capacity import Capacity, Mix, Objectives, Step, unmet
from fairlead_autoscaler.scaling.clean import Totals
from fairlead_autoscaler.scaling.dividing import divided
from fairlead_autoscaler.scaling.load import Level, Price, changed, forget, growing, level, recurring, swing
from fairlead_autoscaler.scaling.look import Look
from fairlead_autoscaler.scaling.need import (
    NOTHING_KEPT,
    Group,
    Kept,
    Need,
    Queue,
    as_seen,
    capacity_of,
    kept_of,
    longer,
    mix_of,
    need_of,
    objectives_of,
    price_of,
    profile_of,
    sized_of,
)
from fairlead_autoscaler.scaling.replicas import Doubt, Wanted, planned
from fairlead_autoscaler.scaling.settings import ScalingSettings
from fairlead_autoscaler.scaling.split import Part, own_share
from fairlead_autoscaler.scaling.state import GroupState, State
from fairlead_autoscaler.scaling.values import Candidate, MixAsked, PoolFacts, PoolPlan, Tier

_STARTUP_SECONDS = 120.0
"""Until a start was seen, and where nobody knows."""


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What a group's replicas are worth now: the mix and the objectives they serve, what decode engines keep of prefill, how many
    times as slow as its profile each pool is, what one replica of each carries; how long its slow starts take and how far ahead to
    look."""

    group: Group
    mix: Mix
    converted: Kept
    objectives: Objectives
    factors: Mapping[str, float]
    capacities: Mapping[str, Capacity]
    worths: Mapping[str, float]
    startup: float
    ahead: float

    @property
    def first(self) -> PoolFacts:
        """The pool whose replicas needs are counted in."""
        return self.group.pools[0]

    @property
    def capacity(self) -> Capacity:
        """What one of those carries."""
        return self.capacities[self.first.name]

    def worth(self, pool: str) -> float:
        """A replica of ``pool``, in those of the first."""
        return self.worths[pool]

    def ready(self, look: Look) -> float:
        """What is ready, in replicas of the first pool."""
        return sum(look.pools[pool.name].ready * self.worth(pool.name) for pool in self.group.pools)

    def asked(self, look: Look) -> float:
        """What is asked for, ready or not."""
        return sum(look.pools[pool.name].desired * self.worth(pool.name) for pool in self.group.pools)

    def kept(self, look: Look, state: State) -> float:
        """What is asked for without what was started beside it."""
        hedged = {
            name: min(pool.hedged, look.pools[name].desired) for name, pool in state.pools.items() if name in look.pools
        }
        return self.asked(look) - sum(hedged[pool.name] * self.worth(pool.name) for pool in self.group.pools)

    def asleep(self, look: Look) -> float:
        """What is to sleep beside it."""
        return sum(look.pools[pool.name].asleep_desired * self.worth(pool.name) for pool in self.group.pools)

    def most(self, look: Look) -> float:
        """What there may be."""
        return sum(bounds(pool, look.wall)[1] * self.worth(pool.name) for pool in self.group.pools)


def plan_group(state: State, look: Look, group: Group) -> tuple[State, dict[str, PoolPlan], MixAsked | None]:
    """Need, window, division and numbers of one group, all of whose pools the look has, and what a solver is to be asked about
    them."""
    settings = look.settings
    sizes = _sizes(state, look, group)
    before = state.groups.get(group.role.value) or GroupState(
        window=window.Window(needs=((look.now, sizes.asked(look)),)), need=sizes.asked(look)
    )  # met for the first time: what it has is taken for what it needed
    need: Need | None = None
    if look.blind_seconds is None:
        state, before, need = _need(state, before, look, sizes)
    held, after = _held(before, look, need, sizes, sizes.kept(look, state) + sizes.asleep(look))
    if need is not None and _short(look, sizes, need):
        after = replace(after, short_at=look.now)
    after = replace(after, budget=_budget(after, look, sizes, need))
    state, held, whole = _eased(state, look, sizes, after, held)
    asleep = group.to_zero and not look.calm and _may_sleep(state, look, _returns_in(state, look, sizes))
    if asleep:
        held, whole = 0.0, None
    elif group.to_zero and (look.arrived or any(look.pools[pool.name].desired for pool in group.pools)):
        held = max(held, 1e-6)  # and none where there is none and nobody asks: a restart wakes nobody
    parts = [_part(look, pool, sizes) for pool in group.pools]
    question = _question(state, look, sizes, parts, held)
    answer = look.mixes.get(group.role.value)
    division = divided(held, parts, before.blend, before.kept, look.now, question, answer, settings)
    after = replace(after, blend=division.blend, kept=division.kept, worths=sizes.worths)
    targets = division.targets
    told = {
        "prompt_tokens": Input(sizes.mix.prompt),
        "output_tokens": Input(sizes.mix.output),
        "cached_share": Input(sizes.mix.cached),
        **({"kept_token_share": Input(sizes.converted.tokens)} if group.role is not Role.SERVE else {}),
        **(need.inputs if need is not None else {"need_replicas": Input(before.need, look.blind_seconds)}),
        "window_max_replicas": Input(held),
        **({} if whole is None else {WHOLE: Input(float(math.ceil(whole - 1e-9)))}),
    }
    plans: dict[str, PoolPlan] = {}
    pools = dict(state.pools)
    for pool in group.pools:
        capacity = sizes.capacities[pool.name]
        wanted = Wanted(
            targets[pool.name],
            own_share(held, parts, targets, pool.name),
            _urgent(look, sizes, need),
            group.role is not Role.SERVE,
            _overloaded(look, sizes, need),
            asleep,
            (max(1.0, sizes.ahead - settings.ready_extra_seconds), sizes.startup),
            _what_if(pool, look, sizes),
            {
                "speed_factor": Input(sizes.factors[pool.name]),
                "capacity_requests_per_second": Input(capacity.requests_per_second),
                **told,
                **({"mix_replicas": division.mix[pool.name]} if pool.name in division.mix else {}),
            },
            capacity.bound.value + division.how,
        )
        doubt = Doubt(look.blind_seconds, look.believed.lie, look.calm)
        pools[pool.name], plan = planned(
            pools[pool.name], look.pools[pool.name], wanted, doubt, bounds(pool, look.wall), look.now, settings
        )
        plans[pool.name] = _told(plan, pool, sizes)
    return replace(state, pools=pools, groups={**state.groups, group.role.value: after}), plans, division.asks


def _sizes(state: State, look: Look, group: Group) -> _Sizes:
    settings = look.settings
    # Where pools share a number, what is kept is a consequence of how it is divided: by it any division would seem right.
    converted = kept_of(state.lengths) if look.model.replicas_most is None else NOTHING_KEPT
    mix = mix_of(state.lengths, group.role, converted)
    objectives = objectives_of(look.model, group.role, mix.prompt)
    factors = {pool.name: state.pools[pool.name].speed.factor(settings) for pool in group.pools}
    known = state.groups.get(group.role.value)
    share = float(sum(look.pools[pool.name].desired for pool in group.pools))
    if known is not None and known.need is not None:
        share = known.need
    capacities = {
        pool.name: capacity_of(pool, mix, factors[pool.name], objectives, share, settings) for pool in group.pools
    }
    worths = _worths(known, capacities, group, look)
    return _Sizes(group, mix, converted, objectives, factors, capacities, worths, *_startup(state, group, settings))


def _worths(
    known: GroupState | None, capacities: Mapping[str, Capacity], group: Group, look: Look
) -> Mapping[str, float]:
    """What a replica of each pool is worth in those of the first, on the mean of a window: from one tick's mix to the next the knees
    of unlike pools differ by some percent, which would start and stop the smallest ones again and again."""
    first = capacities[group.pools[0].name].requests_per_second
    before = {} if known is None else known.worths
    kept = math.exp(-look.seconds / look.settings.window_seconds)
    found = {}
    for pool in group.pools:
        now = capacities[pool.name].requests_per_second / first
        found[pool.name] = now + (before.get(pool.name, now) - now) * kept
    return found


def _need(state: State, before: GroupState, look: Look, sizes: _Sizes) -> tuple[State, GroupState, Need | None]:
    """What the group needs, where anything has arrived yet."""
    settings, first = look.settings, sizes.first
    settled, own = state.lengths.known is not None, look.model.replicas_most is None
    price = price_of(
        first, sizes.mix, sizes.factors[first.name], sizes.capacity, sizes.converted, settled, own, settings
    )
    before = _past(before, state, look, price, sizes)
    state, seen = _level(state, before, look, price, sizes)
    if seen is None:
        return state, before, None
    growth = 1.0 if sizes.group.role is Role.PREFILL else longer(state.lengths, state.load, sizes.ahead, settings)
    prompts = 1.0 if seen.slope > 0.0 else growing(state.load, sizes.ahead, settings)
    then = replace(sizes.mix, prompt=sizes.mix.prompt * prompts, output=sizes.mix.output * growth)

    factor, objectives = sizes.factors[first.name], sizes.objectives
    sized = sized_of(first, then, factor, objectives, settings)
    steeply = sized_of(first, then, factor, objectives, replace(settings, hurt_share=math.inf))
    grows = sizes.ahead if look.model.patience_seconds is None else min(sizes.ahead, look.model.patience_seconds)
    queue = Queue(_backlog(look, sizes.group), sizes.ready(look), sizes.asked(look), grows)
    margin = settings.margin * before.budget.margin
    need = need_of(
        seen,
        before.swing or 0.0,
        before.bursts,
        sizes.capacity,
        sized,
        steeply,
        margin,
        before.budget.spared(settings),
        sizes.ahead,
        queue,
        settings,
    )
    return (
        state,
        before,
        replace(need, inputs={"output_growth": Input(growth), "prompt_growth": Input(prompts), **need.inputs}),
    )


def _startup(state: State, group: Group, settings: ScalingSettings) -> tuple[float, float]:
    """How long the slower starts of a group take, and how far ahead to look."""
    slow = usual = 0.0
    for pool in group.pools:
        starts = state.pools[pool.name].starts
        slow = max(slow, starts.quantile(0.9, pool.startup_p90_seconds, _STARTUP_SECONDS))
        prior = pool.startup_p50_seconds if settings.ahead_quantile < 0.9 else pool.startup_p90_seconds
        usual = max(usual, starts.quantile(settings.ahead_quantile, prior, _STARTUP_SECONDS))
    return slow, usual + settings.ready_extra_seconds


def _level(state: State, before: GroupState, look: Look, price: Price, sizes: _Sizes) -> tuple[State, Level | None]:
    """The level of the load; where it changed, of what arrives since."""
    settings, shot = look.settings, 1.0 / sizes.capacity.requests_per_second
    seen = level(state.load, price, shot, settings)
    ticks = 0 if seen is None else changed(state.load, seen, price, shot, before.bursts > 0.0, settings)
    if seen is None or not ticks:
        return state, seen
    state = replace(state, load=forget(state.load, ticks))
    now = level(state.load, price, shot, settings)
    if now is not None and now.now > seen.now:
        now = replace(now, least=seen.upper(settings.spread_sigmas, before.swing or 0.0, sizes.ahead))
    return state, now


def _past(before: GroupState, state: State, look: Look, price: Price, sizes: _Sizes) -> GroupState:
    """``before`` with what the last while teaches, looked at again when a bin was closed."""
    settings = look.settings
    if before.swing is None:
        before = replace(before, swing=settings.swing_guess)
    if not state.load.past or state.load.past[-1].at <= before.past_at:
        return before
    within = settings.recur_share * (sizes.startup + window.usual(sizes.startup, settings))
    shot = 1.0 / sizes.capacity.requests_per_second
    return replace(
        before,
        bursts=recurring(state.load, price, within, shot, settings),
        swing=swing(state.load, price, sizes.ahead, shot, settings),
        past_at=state.load.past[-1].at,
    )


def _held(before: GroupState, look: Look, need: Need | None, sizes: _Sizes, there: float) -> tuple[float, GroupState]:
    """The need that holds now, and the group with it. What there may not be is not remembered, nor what bounds or steps did not let
    be: ``there`` is what became of the need before this one."""
    settings = look.settings
    length, most = window.usual(sizes.startup, settings), sizes.most(look)
    known = window.granted(before.window, there)
    if need is None:
        last = before.need or 0.0
        if look.blind_seconds is not None and look.blind_seconds >= settings.blind_hold_seconds:
            seen_until = look.now - look.blind_seconds
            most_seen = max([last, *[value for at, value in known.needs if at <= seen_until]])
            last = most_seen * settings.blind_rise + max(0.0, before.trend) * look.blind_seconds
        needs = window.push(known, look.now, min(last, most), length)
        return max(_kept(needs, sizes, there), last + before.backlog.held), replace(before, window=needs)
    needs = window.push(known, look.now, min(need.replicas, most), length)
    backlog = window.push(before.backlog, look.now, min(need.backlog, most), settings.backlog_seconds)
    after = replace(before, window=needs, backlog=backlog, need=need.replicas, trend=need.trend)
    return max(_kept(needs, sizes, there), need.replicas + backlog.held), after


def _kept(needs: window.Window, sizes: _Sizes, there: float) -> float:
    """What the window holds. Among several pools it raises nothing that is there: their replicas are worth now more, now less of one
    another, and what was remembered in those of the first would be started anew for that."""
    return needs.held if len(sizes.group.pools) < 2 or there <= 0.0 else min(needs.held, there)


def _tiered(look: Look, group: Group) -> tuple[PoolFacts, Tier] | None:
    """The only pool of a group, where its replicas may sleep."""
    if len(group.pools) != 1 or (tier := group.pools[0].tier) is None or tier.most < 1:
        return None
    return group.pools[0], tier


def _eased(
    state: State, look: Look, sizes: _Sizes, group: GroupState, held: float
) -> tuple[State, float, float | None]:
    """Of the need that holds, what is to be awake, and the whole of it where the rest may sleep (``asleep``): what is needed with no
    more than a waking ahead, and what the tier has no room for."""
    if (found := _tiered(look, sizes.group)) is None:
        return state, held, None
    pool, tier = found
    slow, usual = (wake_seconds(state.pools[pool.name], pool, tier, share) for share in (0.9, 0.5))
    ttft = sizes.objectives.ttft_seconds
    if ttft is not None and slow > ttft:
        slow = (
            sizes.startup
        )  # what comes back misses its objective by a waking, too: windows and bursts stay those of a start
    quick = replace(sizes, startup=slow, ahead=usual + look.settings.ready_extra_seconds)
    key = f"{sizes.group.role.value} awake"
    before = state.groups.get(key) or GroupState(window=group.window, need=group.need)
    before = replace(before, budget=group.budget)
    need: Need | None = None
    if look.blind_seconds is None:
        state, before, need = _need(state, before, look, quick)
    awake, after = _held(before, look, need, quick, quick.kept(look, state))
    state = replace(state, groups={**state.groups, key: after})
    return state, min(held, max(awake, held - tier.most)), held


def _returns_in(state: State, look: Look, sizes: _Sizes) -> float:
    """Seconds until a replica serves again that was sent away when nothing was asked."""
    if (found := _tiered(look, sizes.group)) is None:
        return sizes.startup
    pool, tier = found
    return wake_seconds(state.pools[pool.name], pool, tier, 0.9)


def _backlog(look: Look, group: Group) -> float:
    held = look.believed.gateway.held if look.believed.gateway is not None else 0.0
    waiting = (look.believed.pools.get(pool.name) for pool in group.pools)
    return held + sum(totals.waiting for totals in waiting if totals is not None)


def _short(look: Look, sizes: _Sizes, need: Need) -> bool:
    """Is less ready than what arrives takes, or more waiting than usual?"""
    ready = sizes.ready(look)
    return ready < need.level_now or _backlog(look, sizes.group) > look.settings.queue_usual * max(1.0, ready)


def _budget(after: GroupState, look: Look, sizes: _Sizes, need: Need | None) -> Budget:
    """The margin after what the objectives saw; only where what is ready has carried what arrives for a while."""
    role, model = sizes.group.role, look.model
    known = [look.believed.pools.get(pool.name) for pool in sizes.group.pools]
    totals = [each for each in known if each is not None]
    if need is None or not totals or look.seconds <= 0.0:
        return after.budget
    late, place = Late(), 0.0
    if role is Role.DECODE:
        late = Late(judged=sum(each.finished for each in totals))
    else:
        for each in totals:
            seen, where = beyond(each.ttft_counts, model.ttft_bounds, sizes.objectives.ttft_seconds)
            late, place = late.plus(1.0, seen), max(place, where)
        abandoned = look.believed.gateway.abandoned if look.believed.gateway is not None else 0.0
        late = late.plus(1.0, Late(otherwise=abandoned, judged=abandoned))
    generated = sum(each.generated_tokens for each in totals)
    if role is not Role.PREFILL and generated > 0.0:
        slow = late.judged * max(sum(each.slow_tokens for each in totals) / generated, _paced(look, totals))
        late = late.plus(1.0, Late(otherwise=slow))
    learn = look.now - after.short_at > look.settings.short_seconds
    return spent(after.budget, late, place, look.seconds, max(1e-4, 1.0 - model.target), learn, look.settings)


def _paced(look: Look, totals: Sequence[Totals]) -> float:
    """The share of answers whose mean gap passed the objective, where answers are what the histograms count (as gateways do); 0
    where these count single gaps (as engines do), of which there are many more than answers."""
    late, place, ended = Late(), 0.0, 0.0
    for each in totals:
        seen, where = beyond(each.itl_counts, look.model.itl_bounds, look.model.itl_seconds)
        late, place, ended = late.plus(1.0, seen), max(place, where), ended + each.finished
    return late.missed(place) / late.judged if 0.0 < late.judged <= 2.0 * ended else 0.0


def _may_sleep(state: State, look: Look, startup: float) -> bool:
    """Has it been silent for longer than the odds allow, and is nothing under way that anybody knows of?"""
    if look.blind_seconds is not None or look.believed.lie is not None or look.arrived:
        return False
    known = look.believed.pools.values()
    if any(totals is None or totals.unseen or totals.running + totals.waiting > 0.0 for totals in known):
        return all(totals is None and look.pools[name].ready == 0 for name, totals in look.believed.pools.items())
    last = state.silence.last_arrival
    cost = startup * look.settings.cold_start_price
    if look.model.ttft_seconds is not None and startup < look.model.ttft_seconds:
        cost = startup
    return last is not None and not zero.keep_warm(state.silence, look.now - last, cost)


def _urgent(look: Look, sizes: _Sizes, need: Need | None) -> bool:
    """Do requests wait for replicas that are not there yet?"""
    if need is None:
        return False
    ready = sizes.ready(look)
    waits = _backlog(look, sizes.group) > look.settings.queue_usual * max(1.0, ready)
    return need.level_now > ready or (waits and need.replicas + need.backlog > ready)


def _overloaded(look: Look, sizes: _Sizes, need: Need | None) -> bool:
    """Does what arrives take far more than is ready? Not asked of roles apart: what one of them needs where traffic turns rests on
    lengths of answers that have not ended."""
    if need is None or sizes.group.role is not Role.SERVE:
        return False
    return need.level_now > look.settings.overloaded_share * sizes.ready(look)


def _part(look: Look, pool: PoolFacts, sizes: _Sizes) -> Part:
    seen = look.pools[pool.name]
    least, most = bounds(pool, look.wall)
    cost = max(1e-6, pool.cost_per_hour)
    start_price = look.settings.start_price * sizes.startup / 3_600.0
    return Part(pool.name, sizes.worth(pool.name), cost, least, most, seen.desired, seen.ready, start_price)


def _question(state: State, look: Look, sizes: _Sizes, parts: Sequence[Part], held: float) -> Question | None:
    """What to ask a solver about the group; None where there is no choice or no load, and where nobody knows the shapes."""
    if len(parts) < 2 or held <= 0.0 or state.shapes is None or look.blind_seconds is not None:
        return None
    if state.shapes.watched_seconds < look.settings.mix_seconds / 2.0:  # a few requests are no mix
        return None
    if look.now - state.shapes.at > look.settings.mix_seconds:  # and what nobody tells any more is none of today
        return None
    role, cached, startup = sizes.group.role, sizes.mix.cached, sizes.startup
    steps = {pool.name: Step.of(profile_of(pool), sizes.factors[pool.name]) for pool in sizes.group.pools}
    return Question(
        state.shapes,
        held * sizes.capacity.requests_per_second,
        [Candidate(one.name, one.cost, (), one.minimum, one.maximum, one.desired, startup) for one in parts],
        sizes.capacities,
        steps,
        lambda prompt, output: as_seen(role, Mix(prompt, output, cached)),
        lambda prompt: objectives_of(look.model, role, prompt),
    )


def _told(plan: PoolPlan, pool: PoolFacts, sizes: _Sizes) -> PoolPlan:
    """``plan`` with what no number of replicas can keep."""
    cannot = unmet(Step.of(profile_of(pool), sizes.factors[pool.name]), sizes.mix, sizes.objectives)
    return plan if cannot is None else replace(plan, reason=f"{plan.reason}; {cannot}")


def _what_if(pool: PoolFacts, look: Look, sizes: _Sizes) -> float:
    """What a replica carries when one fewer shares the caches, as a share of what it carries now."""
    count, mix = look.pools[pool.name].ready, sizes.mix
    if mix.cached <= 0.0 or count <= 1 or pool.role is Role.DECODE:
        return 1.0
    fewer = replace(mix, cached=mix.cached * (1.0 - 1.0 / count))
    rates = [
        capacity_of(pool, each, sizes.factors[pool.name], sizes.objectives, count, look.settings).requests_per_second
        for each in (mix, fewer)
    ]
    return rates[1] / rates[0]
