"""Sleep tier: replicas that sleep, and wake within seconds instead of starting within minutes.

**Which replicas may sleep**: those that a startup needs ahead of demand, and a wake does not
(`sizing.group_sizer`). So the tier takes over what spread, forecast and window hold for the minutes
of a startup.

**How long an unneeded replica stays asleep**: as long as its return is worth it.
Sleeping costs `sleep_price` of an hour awake. A removal and a new start cost a startup instead of a
wake, `cold_start_price` times over. By the ski-rental rule, a replica sleeps until that has cost as
much as the start. So the highest demand of a window of that length stays. If no replica serves at
all, the odds of idle gaps decide, as they do about zero (`workload.idle_gaps`).

**Order**: sleeping replicas wake before any replica starts, and replicas fall asleep before any is
removed. In doubt none is removed, asleep or not. A sleeping replica counts within the pool's
bounds, since it keeps its accelerator.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from fairlead.decision import DecisionInput
from fairlead.units import format_duration
from fairlead_autoscaler.core.performance.startup_time import median_startup_seconds, wake_seconds
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.signals.tick import Tick
from fairlead_autoscaler.core.sizing import stabilization_window
from fairlead_autoscaler.core.sizing.group_sizer import WHOLE_REPLICAS_INPUT
from fairlead_autoscaler.core.sizing.pool_capacity import replica_bounds
from fairlead_autoscaler.core.sizing.replica_count import Rule
from fairlead_autoscaler.core.state import CoreState, PoolMemory
from fairlead_autoscaler.core.types import PoolObservation, PoolPlan, PoolSpec, SleepTier
from fairlead_autoscaler.core.workload.idle_gaps import IdleGaps, is_worth_keeping

SLEEP_PRICE: Final = 0.1
"""Price of a sleeping replica, as a share of a serving one."""


def apply_sleep_tier(
    state: CoreState, tick: Tick, plans: Mapping[str, PoolPlan]
) -> tuple[CoreState, dict[str, PoolPlan]]:
    """Returns the next state, and the plans with the replicas of each pool that should sleep."""
    tiered, pools = dict(plans), dict(state.pools)
    left = tick.model.replicas_most
    if left is not None:
        left = max(0, left - sum([plan.replicas for plan in plans.values()]))
    for spec in tick.model.pools:
        if spec.name not in plans or spec.tier is None:
            continue
        name = spec.name
        planner = _SleepPlanner(pools[name], spec, spec.tier, tick.pools[name], plans[name], tick)
        pools[name], tiered[name] = planner.plan_sleep(state.silence, left)
        if left is not None:
            left -= tiered[name].asleep
    return replace(state, pools=pools), tiered


def keep_asleep_seconds(memory: PoolMemory, spec: PoolSpec, tier: SleepTier, settings: ScalingSettings) -> float:
    """Returns the seconds for which a replica that is not needed stays asleep."""
    if tier.after_seconds is not None:
        return tier.after_seconds
    startup = median_startup_seconds(memory.starts, spec)
    saved = max(0.0, startup - wake_seconds(memory.wakes, memory.starts, spec, tier, 0.5))
    return settings.cold_start_price * saved / SLEEP_PRICE


@dataclass(frozen=True, slots=True)
class _SleepPlanner:
    """The planner of one pool's sleeping replicas, in addition to those that serve by `plan`."""

    memory: PoolMemory
    spec: PoolSpec
    tier: SleepTier
    observed: PoolObservation
    plan: PoolPlan
    tick: Tick

    def plan_sleep(self, silence: IdleGaps, left: int | None) -> tuple[PoolMemory, PoolPlan]:
        """Returns the next memory, and the plan.

        left: the most replicas that may sleep by the shared limit; None: there is no such limit.
        """
        tick, tier, observed, awake = self.tick, self.tier, self.observed, self.plan.replicas
        if tick.settings.freeze:
            return self.memory, replace(self.plan, asleep=observed.asleep_desired)
        seconds = keep_asleep_seconds(self.memory, self.spec, tier, tick.settings)
        whole = max(awake - self.memory.hedged, self._whole_replicas())
        window = stabilization_window.add_need(self.memory.rest, tick.now, float(whole), seconds)
        idle = max(0, observed.ready + observed.waking + observed.asleep - awake)
        kept = max(0, int(window.largest) - awake)
        if awake == 0 and tier.after_seconds is None:
            kept = max(1, kept) if self._is_likely_to_return(silence, seconds) else 0
        asleep = max(min(kept, idle, tier.most), min(whole - awake, tier.most), tier.least)
        if tick.forbids_scale_down:
            present = observed.desired + observed.asleep_desired
            asleep = max(asleep, min(observed.asleep_desired, present - awake))
        room = replica_bounds(self.spec, tick.wall)[1] - awake
        asleep = max(0, min(asleep, room if left is None else min(room, left)))
        inputs = {
            "wake_seconds": DecisionInput(self._wake_seconds()),
            "asleep_replicas": DecisionInput(float(observed.asleep)),
            "asleep_planned_replicas": DecisionInput(float(asleep)),
        }
        plan = replace(self.plan, asleep=asleep, inputs={**self.plan.inputs, **inputs})
        return replace(self.memory, rest=window), self._with_reason(plan, int(window.largest), seconds)

    def _wake_seconds(self) -> float:
        return wake_seconds(self.memory.wakes, self.memory.starts, self.spec, self.tier, 0.5)

    def _whole_replicas(self) -> int:
        shown = self.plan.inputs.get(WHOLE_REPLICAS_INPUT)
        return 0 if shown is None or shown.value is None else int(shown.value)

    def _is_likely_to_return(self, silence: IdleGaps, seconds: float) -> bool:
        """Whether a request will probably arrive before staying asleep costs more than a start."""
        if silence.last_arrival is None:
            return True
        return is_worth_keeping(silence, self.tick.now - silence.last_arrival, seconds)

    def _with_reason(self, plan: PoolPlan, held: int, seconds: float) -> PoolPlan:
        """Returns the plan with a reason that also says which replicas wake, sleep or go."""
        awake, observed, tier = plan.replicas, self.observed, self.tier
        moved = min(observed.asleep_desired, max(0, awake - observed.desired))
        wakes = min(observed.asleep, moved)
        more = plan.asleep - observed.asleep_desired + moved
        parts = [] if not wakes else [f"{wakes} wake, in {self._wake_seconds():.0f} s"]
        recent = f"{held} needed within {format_duration(round(seconds))}"
        if more > 0:
            parts.append(f"{more} fall asleep: {recent}, at least {tier.least} and at most {tier.most} asleep")
        elif more < 0:
            parts.append(f"{-more} sleeping ones are removed: {recent}, at most {tier.most} asleep")
        if not parts:
            return plan
        if awake == observed.desired:
            return replace(plan, rule=Rule.ASLEEP.value, reason="; ".join([*parts, plan.reason]))
        return replace(plan, reason="; ".join([plan.reason, *parts]))
