"""``spec.behavior`` of a HorizontalPodAutoscaler: windows, rates and tolerances per direction.

Kubernetes has separate code for an autoscaler without a ``behavior``; that path is in ``hpa``. The
windows come first. An increase goes to the smallest number of the up window at most. A decrease
goes to the largest number of the down window at least.

Then the rates apply. Each policy allows a change by a number of pods, or by a percentage, from the
replicas at the start of its period. That start is found by taking back the changes made since.
``select`` takes the policy that changes most (Max) or least (Min), or forbids the direction
(Disabled).

Source: kubernetes/kubernetes v1.36.3, pkg/controller/podautoscaler/horizontal.go,
stabilizeRecommendationWithBehaviors, convertDesiredReplicasWithBehaviorRate,
calculateScale{Up,Down}LimitWith…, storeScaleEvent; defaults from
pkg/apis/autoscaling/v2/defaults.go. Apache-2.0.

Changed: histories are values that are pruned, not slices that reuse old places. The decisions equal
those of the Go code on 200 vectors (tests/sim/autoscalers/golden).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

History = tuple[tuple[float, int], ...]  # (time, number)


class PolicyKind(StrEnum):
    """The unit of a policy."""

    PODS = "Pods"
    PERCENT = "Percent"


class PolicySelect(StrEnum):
    """The rule that selects among several policies."""

    MAX = "Max"
    MIN = "Min"
    DISABLED = "Disabled"


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """A limit of ``value`` pods or percent in any ``period_seconds``."""

    kind: PolicyKind
    value: int
    period_seconds: float


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """The rules of one direction.

    window_seconds, tolerance: None for the controller's own.
    """

    policies: tuple[ScalingPolicy, ...]
    window_seconds: float | None = None
    select: PolicySelect = PolicySelect.MAX
    tolerance: float | None = None


DEFAULT_UP = ScalingRules(
    (ScalingPolicy(PolicyKind.PODS, 4, 15.0), ScalingPolicy(PolicyKind.PERCENT, 100, 15.0)), window_seconds=0.0
)
DEFAULT_DOWN = ScalingRules((ScalingPolicy(PolicyKind.PERCENT, 100, 15.0),))


@dataclass(frozen=True, slots=True)
class ScalingBehavior:
    """The rules of both directions; the defaults are those of the API server."""

    up: ScalingRules = DEFAULT_UP
    down: ScalingRules = DEFAULT_DOWN


@dataclass(frozen=True, slots=True)
class ScaleEvents:
    """The changes made, as (time, number of replicas); the numbers are positive."""

    up: History = ()
    down: History = ()

    def plus(self, now: float, before: int, after: int, behavior: ScalingBehavior) -> "ScaleEvents":
        """Returns the events with the change from ``before`` to ``after``."""
        if after > before:
            return replace(self, up=(*_recent(self.up, now, behavior.up), (now, after - before)))
        return replace(self, down=(*_recent(self.down, now, behavior.down), (now, before - after)))


def stabilize(
    wanted: int, current: int, history: History, now: float, behavior: ScalingBehavior, down_window: float
) -> int:
    """Returns the current number, moved as far as all numbers wanted in both windows allow."""
    up_window = behavior.up.window_seconds or 0.0
    ceiling = min([wanted, *(n for at, n in history if at > now - up_window)])
    floor = max([wanted, *(n for at, n in history if at > now - down_window_seconds(behavior, down_window))])
    return min(max(current, ceiling), floor)


def limit_rate(wanted: int, current: int, events: ScaleEvents, now: float, behavior: ScalingBehavior) -> int:
    """Returns ``wanted``, limited by the rates of its direction."""
    if wanted > current:
        rules, choose = behavior.up, max if behavior.up.select is PolicySelect.MAX else min
        limit = _limit(rules, current, events, now, choose, _upper_limit)
        return min(wanted, max(limit, current))
    if wanted < current:
        rules, choose = behavior.down, min if behavior.down.select is PolicySelect.MAX else max
        limit = _limit(rules, current, events, now, choose, _lower_limit)
        return max(wanted, min(limit, current))
    return wanted


def down_window_seconds(behavior: ScalingBehavior, down_window: float) -> float:
    """Returns the down window: the object's own, or else the controller's."""
    own = behavior.down.window_seconds
    return down_window if own is None else own


def _limit(
    rules: ScalingRules,
    current: int,
    events: ScaleEvents,
    now: float,
    choose: Callable[[Iterable[int]], int],
    moved: Callable[[int, ScalingPolicy], int],
) -> int:
    if rules.select is PolicySelect.DISABLED or not rules.policies:
        return current
    began = []
    for policy in rules.policies:
        added = sum(n for at, n in events.up if at > now - policy.period_seconds)
        taken = sum(n for at, n in events.down if at > now - policy.period_seconds)
        began.append(moved(current - added + taken, policy))
    return choose(began)


def _upper_limit(start: int, policy: ScalingPolicy) -> int:
    return start + policy.value if policy.kind is PolicyKind.PODS else math.ceil(start * (1 + policy.value / 100))


def _lower_limit(start: int, policy: ScalingPolicy) -> int:
    return start - policy.value if policy.kind is PolicyKind.PODS else int(start * (1 - policy.value / 100))


def _recent(history: History, now: float, rules: ScalingRules) -> History:
    longest = max((policy.period_seconds for policy in rules.policies), default=0.0)
    return tuple(one for one in history if one[0] >= now - longest)
