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

from fairlead.decision import Input
from fairlead_autoscaler.scaling.settings import ScalingSettings
from fairlead_autoscaler.scaling.state import PoolState
from fairlead_autoscaler.scaling.values import PoolPlan, PoolSeen


class Rule(StrEnum):
    """What decided about a number."""

    FROZEN = "frozen"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    ENOUGH = "enough"
    UP = "up"
    HEDGED = "hedged"
    CANCELLED = "cancelled"
    BLIND = "blind"
    BLIND_UP = "blind-up"
    LYING = "lying"
    WATCHING = "watching"
    WHAT_IF = "what-if"
    STEP = "step"
    DOWN = "down"
    WAKE = "wake"
    ZERO = "zero"
    SHARED = "shared"
    ASLEEP = "asleep"


_CARRIED = frozenset({Rule.ENOUGH, Rule.UP})
"""Rules that say that the number carries the load."""
_ROUNDING = 1e-6
_SOME = 0.005
"""Replicas that are worth saying."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the load asks of a pool: ``target`` replicas, of which ``needed`` exactly. ``urgent``: requests wait. ``apart``: nobody
    else does what it does for a request. ``overloaded``: what arrives takes far more than is ready. ``asleep``: nothing is needed.
    ``capacity_after`` is what a replica carries when one fewer shares the caches, as a share of now."""

    target: int
    needed: float
    urgent: bool
    apart: bool
    overloaded: bool
    asleep: bool
    startup_seconds: tuple[float, float]
    capacity_after: float
    inputs: Mapping[str, Input]
    bound: str

    @property
    def amount(self) -> str:
        """``needed`` with two digits, or three where the third makes it one replica more: 1.003 of them take two."""
        hidden = math.ceil(round(self.needed, 2)) < math.ceil(self.needed - _ROUNDING)
        return f"{self.needed:.3f}" if hidden else f"{self.needed:.2f}"

    @property
    def said(self) -> str:
        """What is needed, and what of a replica ends first."""
        return f"{self.amount} are needed, by {self.bound}" if self.needed >= _SOME else "next to nothing is needed"


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why nothing may be lowered: seconds since arrivals were known (None = they are), what lies, and whether it just began."""

    blind_seconds: float | None
    lie: str | None
    calm: bool


def planned(
    state: PoolState,
    seen: PoolSeen,
    wanted: Wanted,
    doubt: Doubt,
    bounds: tuple[int, int],
    now: float,
    settings: ScalingSettings,
) -> tuple[PoolState, PoolPlan]:
    """The pool's number and why."""
    least, most = bounds
    if settings.freeze:
        return state, _plan(seen.desired, Rule.FROZEN, "scaling is frozen", seen, wanted, 0, bounds)
    hedged = min(state.hedged, seen.desired)
    plain = seen.desired - hedged
    target, rule, reason = _number(state, seen, plain, wanted, doubt, now, settings)
    if target < least:
        target, rule, reason = least, Rule.MINIMUM, f"fewer than {least} are not allowed"
    if target > most:
        target, rule, reason = most, Rule.MAXIMUM, f"{target} are needed, more than {most} are not allowed"
    elif target == most and rule in _CARRIED and wanted.needed > most + _ROUNDING:
        # The need was divided within the bounds already.
        rule, reason = Rule.MAXIMUM, f"{wanted.amount} are needed, more than {most} are not allowed"
    elif rule is Rule.ENOUGH and wanted.needed <= target - 1 + 2.0 * _ROUNDING:
        rule, reason = _kept(target, least, wanted)
    extra = _extra(hedged, seen, target, wanted, doubt, most, settings)
    if extra > hedged and rule is Rule.BLIND_UP:
        reason = f"{reason}; {extra} more than {target} are started, so that the first are ready sooner"
    elif extra > hedged:
        rule, reason = (
            Rule.HEDGED,
            f"what is ready does not carry it: {extra} more than {target} are started, to keep the first that are ready",
        )
    elif extra < hedged and target == plain:
        rule, reason = (
            Rule.CANCELLED,
            f"{seen.ready} are ready: {hedged - extra} that were started beside are not needed",
        )
    total = target + extra
    lowered = target < plain
    after = replace(state, hedged=extra, lowered_at=now if lowered else state.lowered_at)
    return after, _plan(total, rule, reason, seen, wanted, extra, bounds)


def _kept(target: int, least: int, wanted: Wanted) -> tuple[Rule, str]:
    """Why there are more than the load takes, where nothing is lowered."""
    if target <= least:
        return Rule.MINIMUM, f"{wanted.amount} are needed, fewer than {least} are not allowed"
    if target == 1:
        return Rule.ENOUGH, "next to nothing comes; the last one stays until silence is longer than idling is worth"
    return Rule.ENOUGH, wanted.said


def _number(
    state: PoolState,
    seen: PoolSeen,
    plain: int,
    wanted: Wanted,
    doubt: Doubt,
    now: float,
    settings: ScalingSettings,
) -> tuple[int, Rule, str]:
    """The number without bounds and hedges."""
    target = wanted.target
    if doubt.blind_seconds is not None:
        why = doubt.lie or "arrivals are not known"
        held = Rule.LYING if doubt.lie else Rule.BLIND
        if target > plain and doubt.blind_seconds >= settings.blind_hold_seconds:
            return (
                target,
                Rule.BLIND_UP,
                f"{why} for {doubt.blind_seconds:.0f} s: a quarter more than what was needed lately",
            )
        return plain, held, f"{why}: what there is stays"
    if target > plain:
        if plain == 0:
            return target, Rule.WAKE, "a request has come and there is no replica"
        return target, Rule.UP, wanted.said
    if target == plain:
        return plain, Rule.ENOUGH, wanted.said
    if doubt.lie is not None:
        return plain, Rule.LYING, f"{doubt.lie}: what there is stays"
    if doubt.calm:
        return plain, Rule.WATCHING, "nothing is lowered so soon after the start, or after a time without metrics"
    if wanted.asleep and target == 0:
        return 0, Rule.ZERO, "silent for longer than idling is worth"
    return _down(state, plain, wanted, now, settings)


def _down(state: PoolState, plain: int, wanted: Wanted, now: float, settings: ScalingSettings) -> tuple[int, Rule, str]:
    """How far down, where down it may go."""
    floor = max(wanted.target, 1 if wanted.needed > 0.0 else 0)
    while floor < plain and wanted.needed > floor * wanted.capacity_after * settings.what_if_share and floor > 1:
        floor += 1
    if floor >= plain:
        return plain, Rule.WHAT_IF, f"{plain - 1} would carry {wanted.amount} only just, without the caches that go"
    pause = min(settings.down_every_seconds, max(settings.down_least_seconds, wanted.startup_seconds[1]))
    if state.lowered_at is not None and now - state.lowered_at < pause:
        return plain, Rule.STEP, f"lowered {now - state.lowered_at:.0f} s ago"
    most = max(1, math.floor(plain * settings.down_share))
    if floor < plain - most:
        return plain - most, Rule.DOWN, f"{wanted.amount} were needed at most within the window, {most} less a step"
    return floor, Rule.DOWN, f"{wanted.amount} were needed at most within the window"


def _extra(
    hedged: int, seen: PoolSeen, target: int, wanted: Wanted, doubt: Doubt, most: int, settings: ScalingSettings
) -> int:
    """How many more than ``target`` to have started."""
    missing = target - seen.ready - seen.asleep - seen.waking  # who sleeps is there sooner than who is started
    room = max(0, most - target)
    usual, slow = wanted.startup_seconds
    times = settings.hedge_overloaded if wanted.overloaded else settings.hedge
    beside = math.ceil((times - 1.0) * min(1.0, slow / usual - 1.0) * missing)
    if doubt.blind_seconds is not None:
        rises = target > seen.desired - hedged and doubt.blind_seconds >= settings.blind_hold_seconds
        return min(room, max(hedged, beside)) if rises and missing > 0 else min(hedged, room)
    if doubt.lie is not None:
        return min(hedged, room)
    if missing <= 0:
        return min(hedged, room) if doubt.calm else 0
    alone = wanted.apart and slow > settings.hedge_lone_slow * usual and missing >= settings.hedge_lone_share * target
    few = 1.0 if alone or seen.ready == 0 else max(2.0, settings.hedge_missing_share * target)
    if wanted.urgent and missing >= few:
        return min(room, max(hedged, beside))
    return min(hedged, room)


def _plan(
    replicas: int, rule: Rule, reason: str, seen: PoolSeen, wanted: Wanted, extra: int, bounds: tuple[int, int]
) -> PoolPlan:
    inputs = {
        **wanted.inputs,
        "needed_here_replicas": Input(wanted.needed),
        "target_replicas": Input(float(wanted.target)),
        "desired_replicas": Input(float(seen.desired)),
        "ready_replicas": Input(float(seen.ready)),
        "pending_replicas": Input(float(seen.pending)),
        "hedged_replicas": Input(float(extra)),
        "minimum_replicas": Input(float(bounds[0])),
        "maximum_replicas": Input(float(bounds[1])),
    }
    return PoolPlan(replicas, rule.value, reason, inputs)
