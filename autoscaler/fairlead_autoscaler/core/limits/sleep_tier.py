"""The tier between serving and ended: replicas that sleep, and are woken in seconds where a start takes minutes.

**Who may sleep.** What a start must foresee need not be awake. The need is worked out twice: with a start-up ahead of it, as without
a tier, and with only a waking ahead of it (``group``). As many as the first says are there; of these as many as the second says serve
and the rest sleep, as far as the tier has room. So a tier takes over what spread, forecast and window hold for the minutes that a
start would take.

**Who goes on sleeping.** Who is not needed at all sleeps on for as long as its return is worth it: sleeping costs
``sleep_price`` of an hour awake, ending and starting anew costs the start-up instead of the waking, ``cold_start_price`` times
over. Without knowing when it returns the best is to keep it until sleeping has cost as much as the start would have (the rule of
renting skis), so the most that was needed in a window of that length stays. Where nothing serves at all the odds of the silences
decide as they do about zero (``zero``).

**Order.** Who sleeps is woken before anybody is started, and who is not needed goes to sleep before anybody ends. In doubt nobody
ends, asleep or not. What sleeps counts as an instance where bounds are counted, since it keeps its accelerator."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from fairlead.decision import DecisionInput
from fairlead.units import format_duration
from fairlead_autoscaler.core.performance.startup_time import StartupTimes
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.signals.tick import Tick
from fairlead_autoscaler.core.sizing import stabilization_window
from fairlead_autoscaler.core.sizing.replica_count import Rule
from fairlead_autoscaler.core.sizing.schedule_bounds import replica_bounds
from fairlead_autoscaler.core.state import CoreState, PoolMemory
from fairlead_autoscaler.core.types import PoolObservation, PoolPlan, PoolSpec, SleepTier
from fairlead_autoscaler.core.workload import idle_gaps

WHOLE_REPLICAS_INPUT = "whole_replicas"
"""The input that says how many replicas are to be there, awake or asleep."""
_STARTUP_SECONDS = 120.0
_WAKE_SHARE = {1: 0.1, 2: 0.5}
"""Of a start, until a waking was seen and where nobody knows: weights come back from memory, or are loaded anew, and the process is
there already."""
_WAKE_SECONDS = {1: 5.0, 2: 30.0}
"""And no more than this."""


def wake_seconds(state: PoolMemory, facts: PoolSpec, tier: SleepTier, share: float) -> float:
    """Within how many seconds that share of wakings is over."""
    known, level = state.wakes.get(str(tier.level), StartupTimes()), 1 if tier.level == 1 else 2
    guess = min(_WAKE_SECONDS[level], _WAKE_SHARE[level] * _startup_seconds(state, facts))
    return known.quantile(share, tier.wake_seconds, guess)


def _startup_seconds(state: PoolMemory, facts: PoolSpec) -> float:
    return state.starts.quantile(0.5, facts.startup_p50_seconds, _STARTUP_SECONDS)


def keep_asleep_seconds(state: PoolMemory, facts: PoolSpec, tier: SleepTier, settings: ScalingSettings) -> float:
    """For how long a replica that nobody needs sleeps on."""
    if tier.after_seconds is not None:
        return tier.after_seconds
    saved = max(0.0, _startup_seconds(state, facts) - wake_seconds(state, facts, tier, 0.5))
    return settings.cold_start_price * saved / settings.sleep_price


def apply_sleep_tier(
    state: CoreState, look: Tick, plans: Mapping[str, PoolPlan]
) -> tuple[CoreState, dict[str, PoolPlan]]:
    """``plans`` with how many of each pool are to sleep beside those that serve."""
    found, pools = dict(plans), dict(state.pools)
    left = look.model.replicas_most
    if left is not None:
        left = max(0, left - sum([plan.replicas for plan in plans.values()]))
    for facts in look.model.pools:
        if facts.name not in plans or facts.tier is None:
            continue
        name = facts.name
        rest = _SleepPlanner(pools[name], facts, facts.tier, look.pools[name], plans[name], look)
        pools[name], found[name] = rest.plan_sleep(state.silence, left)
        if left is not None:
            left -= found[name].asleep
    return replace(state, pools=pools), found


@dataclass(frozen=True, slots=True)
class _SleepPlanner:
    """One pool whose replicas may sleep, and the plan for those that serve."""

    state: PoolMemory
    facts: PoolSpec
    tier: SleepTier
    observed: PoolObservation
    plan: PoolPlan
    tick: Tick

    def plan_sleep(self, silence: idle_gaps.IdleGaps, left: int | None) -> tuple[PoolMemory, PoolPlan]:
        """The pool after this, and its plan; ``left``: no more than so many of all pools may be asleep beside those that serve."""
        look, awake = self.tick, self.plan.replicas
        if look.settings.freeze:
            return self.state, replace(self.plan, asleep=self.observed.asleep_desired)
        seconds = keep_asleep_seconds(self.state, self.facts, self.tier, look.settings)
        whole = max(awake - self.state.hedged, self._whole_replicas())
        needs = stabilization_window.add_need(self.state.rest, look.now, float(whole), seconds)
        idle = max(0, self.observed.ready + self.observed.waking + self.observed.asleep - awake)
        kept = max(0, int(needs.largest) - awake)
        if awake == 0 and self.tier.after_seconds is None:
            kept = max(1, kept) if self._is_likely_to_return(silence, seconds) else 0
        asleep = max(min(kept, idle, self.tier.most), min(whole - awake, self.tier.most), self.tier.least)
        if look.forbids_scale_down:
            asleep = max(
                asleep, min(self.observed.asleep_desired, self.observed.desired + self.observed.asleep_desired - awake)
            )
        room = replica_bounds(self.facts, look.wall)[1] - awake
        asleep = max(0, min(asleep, room if left is None else min(room, left)))
        told = {
            "wake_seconds": DecisionInput(wake_seconds(self.state, self.facts, self.tier, 0.5)),
            "asleep_replicas": DecisionInput(float(self.observed.asleep)),
            "asleep_planned_replicas": DecisionInput(float(asleep)),
        }
        plan = replace(self.plan, asleep=asleep, inputs={**self.plan.inputs, **told})
        return replace(self.state, rest=needs), self._with_reason(plan, int(needs.largest), seconds)

    def _whole_replicas(self) -> int:
        value = self.plan.inputs[WHOLE_REPLICAS_INPUT].value if WHOLE_REPLICAS_INPUT in self.plan.inputs else None
        return 0 if value is None else int(value)

    def _is_likely_to_return(self, silence: idle_gaps.IdleGaps, seconds: float) -> bool:
        """Is something likely to be asked again before sleeping on has cost more than a start?"""
        if silence.last_arrival is None:
            return True
        return idle_gaps.is_worth_keeping(silence, self.tick.now - silence.last_arrival, seconds)

    def _with_reason(self, plan: PoolPlan, held: int, seconds: float) -> PoolPlan:
        """``plan`` with what it says about those that sleep."""
        awake, seen = plan.replicas, self.observed
        moved = min(seen.asleep_desired, max(0, awake - seen.desired))
        wakes = min(seen.asleep, moved)
        more = plan.asleep - seen.asleep_desired + moved
        parts = [] if not wakes else [f"{wakes} wake, in {wake_seconds(self.state, self.facts, self.tier, 0.5):.0f} s"]
        lately = f"{held} needed within {format_duration(round(seconds))}"
        if more > 0:
            parts.append(
                f"{more} go to sleep: {lately}, at least {self.tier.least} and at most {self.tier.most} asleep"
            )
        elif more < 0:
            parts.append(f"{-more} that sleep end: {lately}, at most {self.tier.most} asleep")
        if not parts:
            return plan
        if awake == seen.desired:
            return replace(plan, rule=Rule.ASLEEP.value, reason="; ".join([*parts, plan.reason]))
        return replace(plan, reason="; ".join([plan.reason, *parts]))
