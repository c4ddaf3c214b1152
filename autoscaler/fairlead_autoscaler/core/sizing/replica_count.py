"""From a need to a number: what guards the way down and hurries the way up.

Up at once, in one step: a pending replica counts as one that is there, so nothing is ordered twice. Where requests wait already, up
to twice what is missing is ordered (**hedged starts**): start-up times differ by a factor of four, and of twice as many the first
half is ready as soon as a typical one, not as the slowest (where starts take all the same time nothing is hedged, nor is a single
one beside others that serve, but where it is a quarter of a role: a fourth prefill engine that took 250 s cost two minutes of first
tokens). Where what arrives takes a quarter more than is ready, a queue grows that nothing but a start ends: there it is up to three
times what is missing. As soon as enough are ready, the rest is cancelled. Without metrics a rise is hedged in any case: nobody sees
how much is missing.

Down only where nothing is in doubt: metrics are there and consistent, the core has watched for two minutes (five after a time
without them), the pool was not lowered just now, and what would be left carries the largest need of the window also with the caches
that go (the **what-if**)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from fairlead.decision import DecisionInput
from fairlead_autoscaler.core.settings import ScalingSettings
from fairlead_autoscaler.core.state import PoolMemory
from fairlead_autoscaler.core.types import PoolObservation, PoolPlan


class Rule(StrEnum):
    """What decided about a number."""

    FROZEN = "frozen"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    ENOUGH = "enough"
    UP = "up"
    HEDGED = "hedged"
    CANCELLED = "cancelled"
    METRICS_MISSING = "blind"
    METRICS_MISSING_UP = "blind-up"
    METRICS_INCONSISTENT = "lying"
    WATCHING = "watching"
    WHAT_IF = "what-if"
    STEP = "step"
    DOWN = "down"
    WAKE = "wake"
    ZERO = "zero"
    SHARED = "shared"
    ASLEEP = "asleep"


_LOAD_CARRIED_RULES = frozenset({Rule.ENOUGH, Rule.UP})
"""Rules that say that the number carries the load."""
_ROUNDING = 1e-6
_MIN_NEED_SHOWN = 0.005
"""Replicas that are worth saying."""


@dataclass(frozen=True, slots=True)
class PoolRequest:
    """What the load asks of a pool: ``target`` replicas, of which ``needed`` exactly. ``urgent``: requests wait. ``apart``: nobody
    else does what it does for a request. ``overloaded``: what arrives takes far more than is ready. ``asleep``: nothing is needed.
    ``capacity_after`` is what a replica carries when one fewer shares the caches, as a share of now."""

    target: int
    needed: float
    is_urgent: bool
    is_separate_role: bool
    is_overloaded: bool
    to_zero: bool
    startup_seconds: tuple[float, float]
    capacity_after: float
    inputs: Mapping[str, DecisionInput]
    bound: str

    @property
    def needed_text(self) -> str:
        """``needed`` with two digits, or three where the third makes it one replica more: 1.003 of them take two."""
        hidden = math.ceil(round(self.needed, 2)) < math.ceil(self.needed - _ROUNDING)
        return f"{self.needed:.3f}" if hidden else f"{self.needed:.2f}"

    @property
    def need_reason(self) -> str:
        """What is needed, and what of a replica ends first."""
        return (
            f"{self.needed_text} are needed, by {self.bound}"
            if self.needed >= _MIN_NEED_SHOWN
            else "next to nothing is needed"
        )


@dataclass(frozen=True, slots=True)
class SignalDoubt:
    """Why nothing may be lowered: seconds since arrivals were known (None = they are), what lies, and whether it just began."""

    missing_seconds: float | None
    inconsistency: str | None
    warming_up: bool


def plan_pool(
    state: PoolMemory,
    observed: PoolObservation,
    request: PoolRequest,
    doubt: SignalDoubt,
    bounds: tuple[int, int],
    now: float,
    settings: ScalingSettings,
) -> tuple[PoolMemory, PoolPlan]:
    """The pool's number and why."""
    least, most = bounds
    if settings.freeze:
        return state, _pool_plan(observed.desired, Rule.FROZEN, "scaling is frozen", observed, request, 0, bounds)
    hedged = min(state.hedged, observed.desired)
    plain = observed.desired - hedged
    target, rule, reason = _choose_target(state, observed, plain, request, doubt, now, settings)
    if target < least:
        target, rule, reason = least, Rule.MINIMUM, f"fewer than {least} are not allowed"
    if target > most:
        target, rule, reason = most, Rule.MAXIMUM, f"{target} are needed, more than {most} are not allowed"
    elif target == most and rule in _LOAD_CARRIED_RULES and request.needed > most + _ROUNDING:
        # The need was divided within the bounds already.
        rule, reason = Rule.MAXIMUM, f"{request.needed_text} are needed, more than {most} are not allowed"
    elif rule is Rule.ENOUGH and request.needed <= target - 1 + 2.0 * _ROUNDING:
        rule, reason = _surplus_reason(target, least, request)
    extra = _hedged_starts(hedged, observed, target, request, doubt, most, settings)
    if extra > hedged and rule is Rule.METRICS_MISSING_UP:
        reason = f"{reason}; {extra} more than {target} are started, so that the first are ready sooner"
    elif extra > hedged:
        rule, reason = (
            Rule.HEDGED,
            f"what is ready does not carry it: {extra} more than {target} are started, to keep the first that are ready",
        )
    elif extra < hedged and target == plain:
        rule, reason = (
            Rule.CANCELLED,
            f"{observed.ready} are ready: {hedged - extra} that were started beside are not needed",
        )
    total = target + extra
    lowered = target < plain
    after = replace(state, hedged=extra, lowered_at=now if lowered else state.lowered_at)
    return after, _pool_plan(total, rule, reason, observed, request, extra, bounds)


def _surplus_reason(target: int, least: int, request: PoolRequest) -> tuple[Rule, str]:
    """Why there are more than the load takes, where nothing is lowered."""
    if target <= least:
        return Rule.MINIMUM, f"{request.needed_text} are needed, fewer than {least} are not allowed"
    if target == 1:
        return Rule.ENOUGH, "next to nothing comes; the last one stays until silence is longer than idling is worth"
    return Rule.ENOUGH, request.need_reason


def _choose_target(
    state: PoolMemory,
    observed: PoolObservation,
    plain: int,
    request: PoolRequest,
    doubt: SignalDoubt,
    now: float,
    settings: ScalingSettings,
) -> tuple[int, Rule, str]:
    """The number without bounds and hedges."""
    target = request.target
    if doubt.missing_seconds is not None:
        why = doubt.inconsistency or "arrivals are not known"
        held = Rule.METRICS_INCONSISTENT if doubt.inconsistency else Rule.METRICS_MISSING
        if target > plain and doubt.missing_seconds >= settings.blind_hold_seconds:
            return (
                target,
                Rule.METRICS_MISSING_UP,
                f"{why} for {doubt.missing_seconds:.0f} s: a quarter more than what was needed lately",
            )
        return plain, held, f"{why}: what there is stays"
    if target > plain:
        if plain == 0:
            return target, Rule.WAKE, "a request has come and there is no replica"
        return target, Rule.UP, request.need_reason
    if target == plain:
        return plain, Rule.ENOUGH, request.need_reason
    if doubt.inconsistency is not None:
        return plain, Rule.METRICS_INCONSISTENT, f"{doubt.inconsistency}: what there is stays"
    if doubt.warming_up:
        return plain, Rule.WATCHING, "nothing is lowered so soon after the start, or after a time without metrics"
    if request.to_zero and target == 0:
        return 0, Rule.ZERO, "silent for longer than idling is worth"
    return _scale_down(state, plain, request, now, settings)


def _scale_down(
    state: PoolMemory, plain: int, request: PoolRequest, now: float, settings: ScalingSettings
) -> tuple[int, Rule, str]:
    """How far down, where down it may go."""
    floor = max(request.target, 1 if request.needed > 0.0 else 0)
    while floor < plain and request.needed > floor * request.capacity_after * settings.what_if_share and floor > 1:
        floor += 1
    if floor >= plain:
        return (
            plain,
            Rule.WHAT_IF,
            f"{plain - 1} would carry {request.needed_text} only just, without the caches that go",
        )
    pause = min(settings.down_every_seconds, max(settings.down_least_seconds, request.startup_seconds[1]))
    if state.lowered_at is not None and now - state.lowered_at < pause:
        return plain, Rule.STEP, f"lowered {now - state.lowered_at:.0f} s ago"
    most = max(1, math.floor(plain * settings.down_share))
    if floor < plain - most:
        return (
            plain - most,
            Rule.DOWN,
            f"{request.needed_text} were needed at most within the window, {most} less a step",
        )
    return floor, Rule.DOWN, f"{request.needed_text} were needed at most within the window"


def _hedged_starts(
    hedged: int,
    observed: PoolObservation,
    target: int,
    request: PoolRequest,
    doubt: SignalDoubt,
    most: int,
    settings: ScalingSettings,
) -> int:
    """How many more than ``target`` to have started."""
    missing = (
        target - observed.ready - observed.asleep - observed.waking
    )  # who sleeps is there sooner than who is started
    room = max(0, most - target)
    usual, slow = request.startup_seconds
    times = settings.hedge_overloaded if request.is_overloaded else settings.hedge
    beside = math.ceil((times - 1.0) * min(1.0, slow / usual - 1.0) * missing)
    if doubt.missing_seconds is not None:
        rises = target > observed.desired - hedged and doubt.missing_seconds >= settings.blind_hold_seconds
        return min(room, max(hedged, beside)) if rises and missing > 0 else min(hedged, room)
    if doubt.inconsistency is not None:
        return min(hedged, room)
    if missing <= 0:
        return min(hedged, room) if doubt.warming_up else 0
    alone = (
        request.is_separate_role
        and slow > settings.hedge_lone_slow * usual
        and missing >= settings.hedge_lone_share * target
    )
    few = 1.0 if alone or observed.ready == 0 else max(2.0, settings.hedge_missing_share * target)
    if request.is_urgent and missing >= few:
        return min(room, max(hedged, beside))
    return min(hedged, room)


def _pool_plan(
    replicas: int,
    rule: Rule,
    reason: str,
    observed: PoolObservation,
    request: PoolRequest,
    extra: int,
    bounds: tuple[int, int],
) -> PoolPlan:
    inputs = {
        **request.inputs,
        "needed_here_replicas": DecisionInput(request.needed),
        "target_replicas": DecisionInput(float(request.target)),
        "desired_replicas": DecisionInput(float(observed.desired)),
        "ready_replicas": DecisionInput(float(observed.ready)),
        "pending_replicas": DecisionInput(float(observed.pending)),
        "hedged_replicas": DecisionInput(float(extra)),
        "minimum_replicas": DecisionInput(float(bounds[0])),
        "maximum_replicas": DecisionInput(float(bounds[1])),
    }
    return PoolPlan(replicas, rule.value, reason, inputs)
