"""Group sizer: demand, stabilization, allocation and replica counts of one group of pools.

Demand is known only if arrivals are. Without them the last demand holds, and after a minute the
number rises from the highest recent demand. From the last demand alone it would rise by less than
rounding and window had added already.

**A group whose replicas may sleep** is sized twice: with a startup ahead, as without a sleep tier,
and with only a wake ahead. As many replicas as the first result stay; of these the second result
serves, and the rest sleeps as far as the tier has room.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

from fairlead.decision import DecisionInput
from fairlead.fleet.model import Role
from fairlead_autoscaler.core.performance.error_budget import BudgetSample, ErrorBudget, update_error_budget
from fairlead_autoscaler.core.performance.missed_share import MissedShares
from fairlead_autoscaler.core.performance.replica_capacity import ExpectedLoad
from fairlead_autoscaler.core.performance.startup_time import wake_seconds
from fairlead_autoscaler.core.performance.step_model import MeanRequest
from fairlead_autoscaler.core.signals.tick import Tick
from fairlead_autoscaler.core.sizing import stabilization_window
from fairlead_autoscaler.core.sizing.allocation_policy import Allocation, AllocationPolicy
from fairlead_autoscaler.core.sizing.group_demand import estimate_group_demand
from fairlead_autoscaler.core.sizing.group_inputs import READY_EXTRA_SECONDS, GroupInputs, group_inputs
from fairlead_autoscaler.core.sizing.load_conditions import (
    can_scale_to_zero,
    counted_misses,
    has_waiting_requests,
    is_overloaded,
    is_short_of_replicas,
)
from fairlead_autoscaler.core.sizing.mix_requests import MIX_SECONDS, MixQuestion
from fairlead_autoscaler.core.sizing.pool_allocation import PoolShare, demand_of_pool
from fairlead_autoscaler.core.sizing.pool_capacity import allowed_miss_share, latency_targets, replica_bounds
from fairlead_autoscaler.core.sizing.replica_count import PoolDemand, SignalDoubt, StatelessPoolPlanner
from fairlead_autoscaler.core.sizing.replicas_needed import Demand
from fairlead_autoscaler.core.state import CoreState, GroupMemory
from fairlead_autoscaler.core.types import MixRequest, PoolCandidate, PoolGroup, PoolPlan, PoolSpec
from fairlead_autoscaler.core.workload.mean_request import request_for_role

SHORT_SECONDS: Final = 60.0
"""Late requests teach nothing for so long after replicas were short."""
BACKLOG_SECONDS: Final = 60.0
"""The largest backlog of these seconds counts."""
START_PRICE: Final = 0.3
"""Price of a start, in startup times of a replica."""

WHOLE_REPLICAS_INPUT = "whole_replicas"
"""The input that says how many replicas should exist, serving or asleep."""
_MIN_NEED = 1e-6
"""The demand of a group that is not idle for long enough: at least one replica."""


@dataclass(frozen=True, slots=True)
class _StableDemand:
    """The demand that holds after stabilization.

    serving: replicas that should serve.
    whole: replicas that should exist, if the others may sleep; None: none may.
    to_zero: an idle group is not worth its cost.
    """

    serving: float
    whole: float | None
    to_zero: bool


def plan_group(
    state: CoreState, tick: Tick, group: PoolGroup
) -> tuple[CoreState, dict[str, PoolPlan], MixRequest | None]:
    """Returns the next state, the plans of the group, and a query about its mix that is due.

    group: with only pools that the tick has.
    """
    return _GroupSizer(tick, group, group_inputs(state, tick, group)).plan(state)


@dataclass(frozen=True, slots=True)
class _GroupSizer:
    tick: Tick
    group: PoolGroup
    inputs: GroupInputs

    def plan(self, state: CoreState) -> tuple[CoreState, dict[str, PoolPlan], MixRequest | None]:
        tick, inputs, role = self.tick, self.inputs, self.group.role.value
        desired = inputs.desired_replicas(tick)
        # A new group is taken to need what it has.
        first_window = stabilization_window.NeedWindow(needs=((tick.now, desired),))
        before = state.groups.get(role) or GroupMemory(window=first_window, need=desired)
        demand: Demand | None = None
        if tick.missing_seconds is None:
            state, before, demand = estimate_group_demand(state, before, tick, inputs)
        present = inputs.desired_without_hedges(tick, state) + inputs.asleep_replicas(tick)
        held, after = _stabilize(before, tick, demand, inputs, present)
        if demand is not None and is_short_of_replicas(tick, inputs, demand):
            after = replace(after, short_at=tick.now)
        after = replace(after, is_excused=self._is_excused(after))
        after = replace(after, budget=self._error_budget(after, demand))
        state, stable = self._stable_demand(state, after, held)
        shares = [self._pool_share(pool) for pool in self.group.pools]
        policy = AllocationPolicy(shares, before.blend, before.kept, tick.now, tick.settings)
        question = self._mix_question(state, shares, stable.serving)
        allocation = policy.allocate(stable.serving, question, tick.mix_results.get(role))
        after = replace(
            after, blend=allocation.followed_mix, kept=allocation.previous, worths=inputs.replica_equivalents
        )
        shown = self._shown_inputs(before, demand, stable)
        pools = dict(state.pools)
        plans: dict[str, PoolPlan] = {}
        usual = max(1.0, inputs.ahead_seconds - READY_EXTRA_SECONDS)
        for pool in self.group.pools:
            name, bounds = pool.name, replica_bounds(pool, tick.wall)
            doubt = SignalDoubt(tick.missing_seconds, tick.signals.inconsistency, tick.warming_up)
            planner = StatelessPoolPlanner(pools[name], tick.pools[name], doubt, bounds, tick.now, tick.settings)
            needed = demand_of_pool(stable.serving, shares, allocation.targets, name)
            pools[name], plan = planner.next_memory_and_plan(
                PoolDemand(
                    target=allocation.targets[name],
                    needed=needed,
                    is_urgent=has_waiting_requests(tick, inputs, demand),
                    shares_limit=tick.model.replicas_most is not None,
                    is_overloaded=is_overloaded(tick, inputs, demand),
                    to_zero=stable.to_zero,
                    startup_seconds=(usual, inputs.startup_seconds),
                    capacity_after=self._capacity_share_after_removal(pool),
                    inputs={**self._pool_inputs(pool), **shown, **_mix_input(allocation, name)},
                    bound=inputs.capacities[name].bound.value + allocation.explanation,
                )
            )
            plans[name] = self._with_unreachable_target(plan, pool)
        state = replace(state, pools=pools, groups={**state.groups, role: after})
        return state, plans, allocation.mix_request

    def _is_excused(self, memory: GroupMemory) -> bool:
        """Whether late requests are those of a start from zero, or of the first minutes."""
        tick = self.tick
        if self.inputs.ready_replicas(tick) <= 0.0 or tick.warming_up:
            return True
        return memory.is_excused and tick.now - memory.short_at <= SHORT_SECONDS

    def _error_budget(self, memory: GroupMemory, demand: Demand | None) -> ErrorBudget:
        """Returns the error budget after the tick.

        Misses teach something only while enough replicas are ready.
        """
        tick, inputs = self.tick, self.inputs
        known = [totals for pool in self.group.pools if (totals := tick.signals.pools.get(pool.name)) is not None]
        if demand is None or not known or tick.seconds <= 0.0:
            return memory.budget
        ready = inputs.ready_replicas(tick)
        predicted = MissedShares()
        if ready > 0.0 and demand.current_level > 0.0:
            load = ExpectedLoad(demand.current_level * inputs.capacity.requests_per_second)
            predicted = inputs.replica_model(inputs.first_pool).missed(load, ready)
        is_representative = ready > 0.0 and tick.now - memory.short_at > SHORT_SECONDS
        sample = BudgetSample(
            counted_misses(tick, inputs, known), predicted, tick.seconds, is_representative, memory.is_excused
        )
        return update_error_budget(memory.budget, sample, tick.settings, tick.model.period_seconds)

    def _stable_demand(self, state: CoreState, memory: GroupMemory, held: float) -> tuple[CoreState, _StableDemand]:
        """Returns the next state, and the demand `held` split into serving and sleeping
        replicas.
        """
        tick, group = self.tick, self.group
        state, serving, whole = self._split_awake(state, memory, held)
        if group.allows_zero and not tick.warming_up and can_scale_to_zero(state, tick, self._return_seconds(state)):
            return state, _StableDemand(0.0, None, to_zero=True)
        # Without replicas and requests it stays at none: a restart of the core wakes no pool.
        if group.allows_zero and (tick.has_arrivals or any(tick.pools[pool.name].desired for pool in group.pools)):
            serving = max(serving, _MIN_NEED)
        return state, _StableDemand(serving, whole, to_zero=False)

    def _split_awake(self, state: CoreState, memory: GroupMemory, held: float) -> tuple[CoreState, float, float | None]:
        """Returns the next state, the demand that must be awake, and the whole demand.

        The whole demand is None if no replica may sleep. The demand with only a wake ahead must be
        awake, and so must what the tier has no room for.
        """
        if (pool := self._sleeping_pool()) is None or (tier := pool.tier) is None:
            return state, held, None
        tick, inputs, known = self.tick, self.inputs, state.pools[pool.name]
        slow, usual = (wake_seconds(known.wakes, known.starts, pool, tier, share) for share in (0.9, 0.5))
        ttft = inputs.targets.ttft_seconds
        if ttft is not None and slow > ttft:
            # A request that waits for a wake misses its target, too: windows and bursts stay those
            # of a start.
            slow = inputs.startup_seconds
        ahead = usual + READY_EXTRA_SECONDS
        quick = replace(inputs, startup_seconds=slow, ahead_seconds=ahead, other_goals={})
        key = f"{self.group.role.value} awake"
        before = state.groups.get(key) or GroupMemory(window=memory.window, need=memory.need)
        before = replace(before, budget=memory.budget)
        demand: Demand | None = None
        if tick.missing_seconds is None:
            state, before, demand = estimate_group_demand(state, before, tick, quick)
        awake, after = _stabilize(before, tick, demand, quick, quick.desired_without_hedges(tick, state))
        state = replace(state, groups={**state.groups, key: after})
        return state, min(held, max(awake, held - tier.most)), held

    def _return_seconds(self, state: CoreState) -> float:
        """Returns the seconds until a removed replica of an idle group serves again."""
        if (pool := self._sleeping_pool()) is None or (tier := pool.tier) is None:
            return self.inputs.startup_seconds
        known = state.pools[pool.name]
        return wake_seconds(known.wakes, known.starts, pool, tier, 0.9)

    def _sleeping_pool(self) -> PoolSpec | None:
        pool = self.group.pools[0]
        return pool if len(self.group.pools) == 1 and pool.tier is not None and pool.tier.most >= 1 else None

    def _pool_share(self, pool: PoolSpec) -> PoolShare:
        tick, inputs, observed = self.tick, self.inputs, self.tick.pools[pool.name]
        minimum, maximum = replica_bounds(pool, tick.wall)
        return PoolShare(
            name=pool.name,
            capacity=inputs.replica_equivalents[pool.name],
            cost=max(1e-6, pool.cost_per_hour),
            minimum=minimum,
            maximum=maximum,
            desired=observed.desired,
            ready=observed.ready,
            start_price=START_PRICE * inputs.startup_seconds / 3_600.0,
        )

    def _mix_question(self, state: CoreState, shares: list[PoolShare], demand: float) -> MixQuestion | None:
        """Returns the description of the group for a query about its mix.

        None without a choice of pools, without load or metrics, or without recent shapes.
        """
        tick, inputs, shapes = self.tick, self.inputs, state.shapes
        mix_seconds = MIX_SECONDS
        if len(shares) < 2 or demand <= 0.0 or shapes is None or tick.missing_seconds is not None:
            return None
        if shapes.watched_seconds < mix_seconds / 2.0 or tick.now - shapes.at > mix_seconds:
            return None
        role, cached_share = self.group.role, inputs.mean_request.cached_share
        return MixQuestion(
            shapes=shapes,
            requests_per_second=demand * inputs.capacity.requests_per_second,
            pools=[
                PoolCandidate(
                    name=share.name,
                    cost_per_hour=share.cost,
                    throughput=(),
                    minimum=share.minimum,
                    maximum=share.maximum,
                    running=share.desired,
                    startup_seconds=inputs.startup_seconds,
                )
                for share in shares
            ],
            capacities=inputs.capacities,
            steps={pool.name: inputs.replica_model(pool).step for pool in self.group.pools},
            request_of_shape=lambda prompt, output: request_for_role(role, MeanRequest(prompt, output, cached_share)),
            targets_of_prompt=lambda prompt: latency_targets(tick.model, role, prompt),
        )

    def _pool_inputs(self, pool: PoolSpec) -> dict[str, DecisionInput]:
        return {
            "speed_factor": DecisionInput(self.inputs.slowdowns[pool.name]),
            "capacity_requests_per_second": DecisionInput(self.inputs.capacities[pool.name].requests_per_second),
        }

    def _shown_inputs(
        self, before: GroupMemory, demand: Demand | None, stable: _StableDemand
    ) -> dict[str, DecisionInput]:
        """Returns the inputs that all pools of the group have in common."""
        request = self.inputs.mean_request
        shown = {
            "prompt_tokens": DecisionInput(request.prompt_tokens),
            "output_tokens": DecisionInput(request.output_tokens),
            "cached_share": DecisionInput(request.cached_share),
            "missed_share": DecisionInput(before.budget.missed_share),
            "budget_left_requests": DecisionInput(before.budget.left(allowed_miss_share(self.tick.model))),
            "allowed_miss_share": DecisionInput(self.inputs.targets.allowed_miss_share),
            "first_token_miss_factor": DecisionInput(self.inputs.corrections.first_tokens),
            "gap_miss_factor": DecisionInput(self.inputs.corrections.gaps),
        }
        if self.group.role is not Role.SERVE:
            shown["kept_token_share"] = DecisionInput(self.inputs.decode_prefill.tokens)
        if demand is not None:
            shown |= demand.inputs
        else:
            shown["need_replicas"] = DecisionInput(before.need, self.tick.missing_seconds)
        shown["window_max_replicas"] = DecisionInput(stable.serving)
        if stable.whole is not None:
            shown[WHOLE_REPLICAS_INPUT] = DecisionInput(float(math.ceil(stable.whole - 1e-9)))
        return shown

    def _with_unreachable_target(self, plan: PoolPlan, pool: PoolSpec) -> PoolPlan:
        target = self.inputs.replica_model(pool).unreachable_target()
        return plan if target is None else replace(plan, reason=f"{plan.reason}; {target}")

    def _capacity_share_after_removal(self, pool: PoolSpec) -> float:
        """Returns the part of a replica's capacity that remains without another one's cache."""
        count, request = self.tick.pools[pool.name].ready, self.inputs.mean_request
        if request.cached_share <= 0.0 or count <= 1 or pool.role is Role.DECODE:
            return 1.0
        replica = self.inputs.replica_model(pool)
        # Prefixes are spread over all caches, so one of `count` has that part of the hits.
        fewer = replace(replica, request=replace(request, cached_share=request.cached_share * (1.0 - 1.0 / count)))
        return fewer.capacity(count).requests_per_second / replica.capacity(count).requests_per_second


def _mix_input(allocation: Allocation, pool: str) -> dict[str, DecisionInput]:
    return {"mix_replicas": allocation.mix_inputs[pool]} if pool in allocation.mix_inputs else {}


def _stabilize(
    before: GroupMemory, tick: Tick, demand: Demand | None, inputs: GroupInputs, present: float
) -> tuple[float, GroupMemory]:
    """Returns the demand that holds now, and the next memory.

    demand: None while signals are missing; the last one holds then, and rises after a minute.
    present: the replicas that the previous demand led to. Demand above them, which bounds or steps
        did not allow, is not remembered.
    """
    settings = tick.settings
    length = stabilization_window.window_length(inputs.startup_seconds, settings)
    most = inputs.max_replicas(tick)
    known = stabilization_window.cap_newest_need(before.window, present)
    if demand is None:
        last = before.need or 0.0
        if tick.missing_seconds is not None and tick.missing_seconds >= settings.missing_hold_seconds:
            known_until = tick.now - tick.missing_seconds
            kept = before.recent_needs[-1][1] if before.recent_needs else last
            # The window lacks the error of forecasts, by which a known demand is larger.
            allowance = last / kept if kept > 0.0 else 1.0
            highest = max([last, *[need * allowance for at, need in known.needs if at <= known_until]])
            last = highest * settings.missing_rise + max(0.0, before.trend) * tick.missing_seconds
        window = stabilization_window.add_need(known, tick.now, min(last, most), length)
        held = max(_window_need(window, inputs, present), last + before.backlog.largest)
        return held, replace(before, window=window)
    lasting = demand.certain if len(inputs.group.pools) == 1 else demand.replicas
    recent = stabilization_window.keep_recent(before.recent_needs, tick.now, min(lasting, most), settings)
    window = stabilization_window.add_need(known, tick.now, min(need for _, need in recent), length)
    backlog = stabilization_window.add_need(before.backlog, tick.now, min(demand.backlog, most), BACKLOG_SECONDS)
    held = max(_window_need(window, inputs, present), demand.replicas + backlog.largest)
    return held, replace(
        before, window=window, recent_needs=recent, backlog=backlog, need=demand.replicas, trend=demand.trend
    )


def _window_need(window: stabilization_window.NeedWindow, inputs: GroupInputs, present: float) -> float:
    """Returns the highest demand of the window, in replicas of the first pool; for several pools at
    most `present`, if that is above 0.

    present: replicas that the previous demand led to.

    Why: the capacity of other pools in replicas of the first pool changes from tick to tick. A
    remembered demand would start replicas for that.
    """
    if len(inputs.group.pools) < 2 or present <= 0.0:
        return window.largest
    return min(window.largest, present)
