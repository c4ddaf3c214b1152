"""``spec.behavior`` of a HorizontalPodAutoscaler: stabilisation windows, rate limits and tolerances
for each direction.

An autoscaler that sets ``behavior`` is treated by other code in Kubernetes than one that does not
(hpa.py has that path). The wanted number is first kept within what was wanted lately: not above the
smallest of the up window, not below the largest of the down window. Then the rates: each policy
allows so many pods, or so many percent, on top of what there was when its period began, which is
found by taking back the changes made since. ``select`` takes the policy that changes most (Max),
least (Min), or forbids the direction (Disabled).

Source: kubernetes/kubernetes v1.36.3, pkg/controller/podautoscaler/horizontal.go,
stabilizeRecommendationWithBehaviors, convertDesiredReplicasWithBehaviorRate,
calculateScale{Up,Down}LimitWith…, storeScaleEvent; defaults from
pkg/apis/autoscaling/v2/defaults.go. Apache-2.0. Changed: histories are values that are pruned, not
slices whose old places are used again; what is decided is the same, on 200 vectors that the Go code
made (tests/autoscaler/golden).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

History = tuple[tuple[float, int], ...]  # (when, how many)


class PolicyKind(StrEnum):
    """What a policy counts."""

    PODS = "Pods"
    PERCENT = "Percent"


class PolicySelect(StrEnum):
    """Which of several policies holds."""

    MAX = "Max"
    MIN = "Min"
    DISABLED = "Disabled"


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """At most ``value`` pods or percent in any ``period_seconds``."""

    kind: PolicyKind
    value: int
    period_seconds: float


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """One direction. ``window_seconds`` None: the controller's own; ``tolerance`` None:
    likewise.
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
    """Both directions, as the API server fills them in."""

    up: ScalingRules = DEFAULT_UP
    down: ScalingRules = DEFAULT_DOWN


@dataclass(frozen=True, slots=True)
class ScaleEvents:
    """Changes made: (when, by how many replicas), both positive."""

    up: History = ()
    down: History = ()

    def plus(self, now: float, before: int, after: int, behavior: ScalingBehavior) -> "ScaleEvents":
        """With the change from ``before`` to ``after``."""
        if after > before:
            return replace(self, up=(*_recent(self.up, now, behavior.up), (now, after - before)))
        return replace(self, down=(*_recent(self.down, now, behavior.down), (now, before - after)))


def stabilize(
    wanted: int, current: int, history: History, now: float, behavior: ScalingBehavior, down_window: float
) -> int:
    """The current number, moved only as far as all that was wanted within both windows agrees
    with.
    """
    up_window = behavior.up.window_seconds or 0.0
    ceiling = min([wanted, *(n for at, n in history if at > now - up_window)])
    floor = max([wanted, *(n for at, n in history if at > now - down_window_seconds(behavior, down_window))])
    return min(max(current, ceiling), floor)


def limit_rate(
    wanted: int, current: int, events: ScaleEvents, now: float, behavior: ScalingBehavior, least: int, most: int
) -> int:
    """``wanted`` within the rates of its direction and the bounds."""
    if wanted > current:
        rules, choose = behavior.up, max if behavior.up.select is PolicySelect.MAX else min
        limit = _limit(rules, current, events, now, choose, _upper_limit)
        return min(wanted, most, max(limit, current))
    if wanted < current:
        rules, choose = behavior.down, min if behavior.down.select is PolicySelect.MAX else max
        limit = _limit(rules, current, events, now, choose, _lower_limit)
        return max(wanted, least, min(limit, current))
    return wanted


def down_window_seconds(behavior: ScalingBehavior, down_window: float) -> float:
    """The down window that holds: the object's own, or the controller's."""
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
