"""Replica count: the number of replicas of one pool, from demand, bounds and signals.

**Up**: the number rises at once and in one step. A pending replica counts as one that is there, so
nothing is ordered twice. If requests wait already, up to twice the missing replicas are started
(**hedged starts**). Startup times differ by a factor of four. Of twice as many starts, the first
half is ready after a usual startup time, not after the slowest. Once enough are ready, the others
are cancelled. Some cases differ:

- Nothing is hedged if all starts take the same time.
- While others serve, one missing replica is not hedged.
- If the load needs a quarter more than is ready, only starts end the growth of the queue. Then up
  to three times the missing replicas are started.
- Without metrics, a rise is hedged even if no requests are known to wait, and however few replicas
  are missing. The shortage is unknown then.

**Down**: the number falls only if nothing is in doubt. Metrics are there and consistent, the core
has watched for two minutes (five after missing metrics), and the pool was not lowered just now.
What stays must carry the highest demand of the window, also without the caches that go
(**what-if**).

A start is finished if all ready replicas are needed and the demand has fallen by one. Noise of the
demand would otherwise cancel a start and order it again, and pay for both.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from fairlead.decision import DecisionInput
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.state import PoolMemory
from fairlead_autoscaler.core.types import PoolObservation, PoolPlan

MIN_DOWN_SECONDS: Final = 15.0
"""Shortest time between two steps down."""

_ROUNDING = 1e-6
_MIN_NEED_SHOWN = 0.005
"""The smallest demand that a reason names."""


class Rule(StrEnum):
    """The rule that decided the number of a pool."""

    FROZEN = "frozen"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    ENOUGH = "enough"
    UP = "up"
    HEDGED = "hedged"
    CANCELLED = "cancelled"
    METRICS_MISSING = "metrics-missing"
    METRICS_MISSING_UP = "metrics-missing-up"
    METRICS_INCONSISTENT = "metrics-inconsistent"
    WATCHING = "watching"
    WHAT_IF = "what-if"
    STEP = "step"
    STARTING = "starting"
    DOWN = "down"
    WAKE = "wake"
    ZERO = "zero"
    SHARED = "shared"
    ASLEEP = "asleep"
    REPLACE = "replace"


_LOAD_CARRIED_RULES = frozenset({Rule.ENOUGH, Rule.UP})
"""Rules after which the number carries the load."""


@dataclass(frozen=True, slots=True)
class PoolDemand:
    """The replicas of a pool that the load needs, and the facts that decide how they are reached.

    target: whole replicas; needed: the exact demand.
    is_urgent: requests wait.
    is_overloaded: the load needs far more replicas than are ready.
    to_zero: the group has been idle for so long that a cold start costs less than idle replicas.
    startup_seconds: of usual and of slow starts.
    capacity_after: capacity of a replica when one fewer shares the caches, as a share of that of
        now.
    bound: what limits the capacity of a replica, for reasons.
    shares_limit: groups have a maximum in common.
    """

    target: int
    needed: float
    is_urgent: bool
    is_overloaded: bool
    to_zero: bool
    startup_seconds: tuple[float, float]
    capacity_after: float
    inputs: Mapping[str, DecisionInput]
    bound: str
    shares_limit: bool = False

    @property
    def needed_text(self) -> str:
        is_hidden = math.ceil(round(self.needed, 2)) < math.ceil(self.needed - _ROUNDING)
        return f"{self.needed:.3f}" if is_hidden else f"{self.needed:.2f}"

    @property
    def need_reason(self) -> str:
        """The demand, and the bound that limits a replica."""
        if self.needed < _MIN_NEED_SHOWN:
            return "almost none are needed"
        return f"{self.needed_text} are needed, limited by {self.bound}"


@dataclass(frozen=True, slots=True)
class SignalDoubt:
    """Why a pool must not be lowered.

    missing_seconds: how long arrivals have been missing; None: they are known.
    inconsistency: the contradiction of the metrics, in words; None: there is none.
    warming_up: the core began, or a gap ended, a short time ago.
    """

    missing_seconds: float | None
    inconsistency: str | None
    warming_up: bool


@dataclass(frozen=True, slots=True)
class StatelessPoolPlanner:
    """The planner of one pool at one tick. It keeps nothing: memory is an input and a result.

    bounds: minimum and maximum number of replicas.
    now: monotonic seconds.
    """

    memory: PoolMemory
    observed: PoolObservation
    doubt: SignalDoubt
    bounds: tuple[int, int]
    now: float
    settings: ScalingSettings

    def next_memory_and_plan(self, demand: PoolDemand) -> tuple[PoolMemory, PoolPlan]:
        """Returns the next memory, and the number of replicas with its reason.

        The number includes hedged starts, and is within the bounds. While scaling is frozen, memory
        and number stay as they are, even out of bounds.
        """
        observed, plain, hedged = self.observed, self._plain, self._hedged
        if self.settings.freeze:
            return self.memory, self._pool_plan(observed.desired, Rule.FROZEN, "scaling is frozen", demand, 0)
        target, rule, reason = self._bounded_target(demand)
        extra = self._hedged_starts(target, demand)
        if extra > hedged and rule is Rule.METRICS_MISSING_UP:
            reason = f"{reason}; {extra} more than {target} are started, so that {target} are ready sooner"
        elif extra > hedged:
            rule = Rule.HEDGED
            reason = f"ready replicas do not carry the load: {extra} more than {target} start, the first {target} stay"
        elif extra < hedged and target == plain:
            rule = Rule.CANCELLED
            reason = f"{observed.ready} are ready: {hedged - extra} extra starts are not needed"
        lowered_at = self.now if target < plain else self.memory.lowered_at
        memory = replace(self.memory, hedged=extra, lowered_at=lowered_at)
        return memory, self._pool_plan(target + extra, rule, reason, demand, extra)

    @property
    def _hedged(self) -> int:
        return min(self.memory.hedged, self.observed.desired)

    @property
    def _plain(self) -> int:
        return self.observed.desired - self._hedged

    def _bounded_target(self, demand: PoolDemand) -> tuple[int, Rule, str]:
        """Returns the number of replicas within the bounds, without hedged starts.

        Also returns the rule that decided it, and the reason.
        """
        least, most = self.bounds
        target, rule, reason = self._choose_target(demand)
        if target < least:
            target, rule, reason = least, Rule.MINIMUM, f"the minimum is {least}"
        if target > most:
            return most, Rule.MAXIMUM, f"{target} are needed, the maximum is {most}"
        if target == most and rule in _LOAD_CARRIED_RULES and demand.needed > most + _ROUNDING:
            # Demand was allocated within the bounds already.
            return target, Rule.MAXIMUM, f"{demand.needed_text} are needed, the maximum is {most}"
        if rule is Rule.ENOUGH and demand.needed <= target - 1 + 2.0 * _ROUNDING:
            return (target, *self._surplus_reason(target, demand))
        return target, rule, reason

    def _surplus_reason(self, target: int, demand: PoolDemand) -> tuple[Rule, str]:
        """Returns the rule and the reason why a pool is not lowered to its demand."""
        min_replicas = self.bounds[0]
        if target <= min_replicas:
            return Rule.MINIMUM, f"{demand.needed_text} are needed, the minimum is {min_replicas}"
        if target == 1:
            return Rule.ENOUGH, "almost none are needed; the last one stays until idling costs more than a cold start"
        return Rule.ENOUGH, demand.need_reason

    def _choose_target(self, demand: PoolDemand) -> tuple[int, Rule, str]:
        """Returns the replicas before bounds and hedged starts, with the rule and the reason."""
        doubt, plain, target = self.doubt, self._plain, demand.target
        if doubt.missing_seconds is not None:
            cause = doubt.inconsistency or "arrivals are unknown"
            rule = Rule.METRICS_INCONSISTENT if doubt.inconsistency else Rule.METRICS_MISSING
            if target > plain and doubt.missing_seconds >= self.settings.missing_hold_seconds:
                reason = f"{cause} for {doubt.missing_seconds:.0f} s: a quarter more than the recent demand"
                return target, Rule.METRICS_MISSING_UP, reason
            return plain, rule, f"{cause}: no change"
        if target > plain:
            if plain == 0:
                return target, Rule.WAKE, "there is no replica: a request came, or the minimum is above zero"
            return target, Rule.UP, demand.need_reason
        if target == plain:
            return plain, Rule.ENOUGH, demand.need_reason
        if doubt.inconsistency is not None:
            return plain, Rule.METRICS_INCONSISTENT, f"{doubt.inconsistency}: no change"
        if doubt.warming_up:
            return plain, Rule.WATCHING, "no scale-down this soon after a start or after missing metrics"
        if demand.to_zero and target == 0:
            return 0, Rule.ZERO, "idle for so long that idling costs more than a cold start"
        return self._scale_down(demand)

    def _scale_down(self, demand: PoolDemand) -> tuple[int, Rule, str]:
        """Returns the replicas to which the pool may be lowered, with the rule and the reason."""
        settings, plain = self.settings, self._plain
        floor = max(demand.target, 1 if demand.needed > 0.0 else 0)
        # A replica that is kept to have room is one that another group under the same limit lacks.
        room = 0.0 if demand.shares_limit else settings.down_room
        while floor < plain and demand.needed > floor * demand.capacity_after - room and floor > 1:
            floor += 1
        ready = self.observed.ready
        if ready <= floor == plain - 1 and not demand.shares_limit:
            reason = f"{demand.needed_text} are needed, and all {ready} that are ready: the last start is not cancelled"
            return plain, Rule.STARTING, reason
        if floor >= plain:
            caches = "without the caches that go, " if demand.capacity_after < 1.0 else ""
            reason = f"{caches}{plain - 1} would only just carry {demand.needed_text}, limited by {demand.bound}"
            return plain, Rule.WHAT_IF, reason
        pause = min(settings.down_every_seconds, max(MIN_DOWN_SECONDS, demand.startup_seconds[1]))
        lowered_at = self.memory.lowered_at
        if lowered_at is not None and self.now - lowered_at < pause:
            return plain, Rule.STEP, f"lowered {self.now - lowered_at:.0f} s ago"
        max_step = max(1, math.floor(plain * settings.down_share))
        reason = f"at most {demand.needed_text} were needed within the window"
        if floor < plain - max_step:
            return plain - max_step, Rule.DOWN, f"{reason}, at most {max_step} fewer in one step"
        return floor, Rule.DOWN, reason

    def _hedged_starts(self, target: int, demand: PoolDemand) -> int:
        """Returns how many replicas to start beyond `target`."""
        observed, doubt, settings = self.observed, self.doubt, self.settings
        # Sleeping replicas are ready sooner than starts.
        missing = target - observed.ready - observed.asleep - observed.waking
        room = max(0, self.bounds[1] - target)
        kept = min(self._hedged, room)
        usual, slow = demand.startup_seconds
        times = settings.hedge_overloaded if demand.is_overloaded else settings.hedge
        extra = math.ceil((times - 1.0) * min(1.0, slow / usual - 1.0) * missing)
        more = min(room, max(self._hedged, extra))
        if doubt.missing_seconds is not None:
            is_long = doubt.missing_seconds >= self.settings.missing_hold_seconds
            return more if target > self._plain and is_long and missing > 0 else kept
        if doubt.inconsistency is not None:
            return kept
        if missing <= 0:
            return kept if doubt.warming_up else 0
        return more if demand.is_urgent and (missing > 1 or observed.ready == 0) else kept

    def _pool_plan(self, replicas: int, rule: Rule, reason: str, demand: PoolDemand, hedged: int) -> PoolPlan:
        observed = self.observed
        inputs = {
            **demand.inputs,
            "needed_here_replicas": DecisionInput(demand.needed),
            "target_replicas": DecisionInput(float(demand.target)),
            "desired_replicas": DecisionInput(float(observed.desired)),
            "ready_replicas": DecisionInput(float(observed.ready)),
            "pending_replicas": DecisionInput(float(observed.pending)),
            "hedged_replicas": DecisionInput(float(hedged)),
            "minimum_replicas": DecisionInput(float(self.bounds[0])),
            "maximum_replicas": DecisionInput(float(self.bounds[1])),
        }
        return PoolPlan(replicas, rule.value, reason, inputs)
