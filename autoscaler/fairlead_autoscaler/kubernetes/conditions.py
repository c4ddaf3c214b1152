"""What ``Autoscaling`` and ``ObjectivesMet`` say of a model, and when that is worth a write. Pure
functions.

A number that moves is no news: what is written again at once is another status, another reason, or
another number of instances that is wanted. The rest of a message is brought up to date once a
minute.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fairlead.api import ConditionStatus, ConditionType, Reason, ScalingMode
from fairlead.decision import DecisionInput
from fairlead.kube.conditions import MAX_MESSAGE_LENGTH, ConditionValue
from fairlead_autoscaler.core.plan_inputs import usd_per_hour
from fairlead_autoscaler.enforcer import EnforcedPlan, describe_replicas
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_autoscaler.kubernetes.slo_attainment import WINDOW_SECONDS, SLOAttainment

CONDITION_TYPES: Final = (ConditionType.AUTOSCALING, ConditionType.OBJECTIVES_MET)
REFRESH_SECONDS: Final = 60.0
_SHOWN_INPUTS: Final = {
    "need_replicas": "need",
    "capacity_requests_per_second": "capacity, requests/s each",
    "margin": "margin",
    "forecast_replicas": "forecast",
    "ready_replicas": "ready",
    "pending_replicas": "starting",
}
"""Of the numbers of a plan those that people are told, by their names in it."""
_MISSING_RULES: Final = ("blind", "blind-up", "lying")


@dataclass(frozen=True, slots=True)
class PublishedStatus:
    """What was said last, ``at`` which moment, and how many instances were wanted of each pool."""

    conditions: tuple[ConditionValue, ...]
    at: float
    instances: Mapping[str, int] = field(default_factory=dict)


def autoscaling_condition(record: TickRecord, owners: Mapping[str, str], frozen: bool) -> ConditionValue:
    """``held``: by pool, who else sets its number."""
    pools = "; ".join(_describe_pool(name, record, ruling, owners.get(name)) for name, ruling in record.rulings.items())
    pools = (pools or "none of its pools has been made yet") + _describe_cost(record)

    def said(status: ConditionStatus, reason: Reason, why: str) -> ConditionValue:
        return ConditionValue(ConditionType.AUTOSCALING, status, reason, f"{why}{pools}"[:MAX_MESSAGE_LENGTH])

    if record.mode == ScalingMode.ADVISE:
        return said(ConditionStatus.FALSE, Reason.ADVISING, "nothing is written: ")
    if frozen:
        return said(ConditionStatus.FALSE, Reason.FROZEN, "all scaling is frozen: ")
    if record.rulings and all(name in owners for name in record.rulings):
        return said(ConditionStatus.FALSE, Reason.SET_ELSEWHERE, "")
    if record.observation.gateway is None or any(one.rule in _MISSING_RULES for one in record.rulings.values()):
        notes = f" ({'; '.join(record.notes[:2])})" if record.notes else ""
        return said(ConditionStatus.TRUE, Reason.BLIND, f"what is asked of it cannot be told{notes}: ")
    short = [name for name, one in record.rulings.items() if name not in owners and _is_at_maximum(one)]
    if short:
        return said(ConditionStatus.TRUE, Reason.AT_MAXIMUM, f"pool {', '.join(short)} needs more than its max: ")
    return said(ConditionStatus.TRUE, Reason.DECIDING, "")


def slo_condition(record: TickRecord, found: SLOAttainment) -> ConditionValue | None:
    """None where the model has no objective."""
    if record.model.ttft_seconds is None and record.model.itl_seconds is None:
        return None
    shares, target = found.shares(), record.model.target
    if not shares:
        number, minutes = f"{found.judged():.0f}", f"{WINDOW_SECONDS / 60:.0f}"
        told = f"{number} requests in {minutes} minutes are too few to tell (of those that are answered, streams count)"
        return ConditionValue(ConditionType.OBJECTIVES_MET, ConditionStatus.UNKNOWN, Reason.TOO_FEW_REQUESTS, told)
    parts = ", ".join(f"{name} kept in {100 * share:.1f} %" for name, share in shares.items())
    message = (
        f"{parts} of {found.judged():.0f} requests in {WINDOW_SECONDS / 60:.0f} minutes; target {100 * target:g} %"
    )
    if min(shares.values()) >= target:
        return ConditionValue(ConditionType.OBJECTIVES_MET, ConditionStatus.TRUE, Reason.WITHIN_TARGET, message)
    return ConditionValue(ConditionType.OBJECTIVES_MET, ConditionStatus.FALSE, Reason.BELOW_TARGET, message)


def desired_instances(record: TickRecord) -> dict[str, int]:
    """How many instances each pool should have, awake or asleep."""
    return {name: one.instances for name, one in record.rulings.items()}


def is_write_due(
    before: PublishedStatus | None, conditions: Iterable[ConditionValue], numbers: Mapping[str, int], now: float
) -> bool:
    """Is this to be written now?"""
    if before is None:
        return True
    after = tuple(conditions)
    if _essentials(before.conditions) != _essentials(after) or before.instances != numbers:
        return True
    return after != before.conditions and now - before.at >= REFRESH_SECONDS


def has_own_condition(live: Mapping[str, Any]) -> bool:
    """Does a status hold a condition of ours?"""
    return any(one.get("type") in CONDITION_TYPES for one in live.get("conditions") or [])


def _essentials(said: Iterable[ConditionValue]) -> list[tuple[str, str, str]]:
    return sorted((str(one.type), str(one.status), str(one.reason)) for one in said)


def _is_at_maximum(ruling: EnforcedPlan) -> bool:
    if ruling.rule == "maximum":
        return True
    return ruling.rule == "bounds" and ruling.planned is not None and ruling.planned > ruling.replicas


def _describe_pool(name: str, look: TickRecord, ruling: EnforcedPlan, held: str | None) -> str:
    now, wanted = (
        describe_replicas(ruling.desired, ruling.asleep_desired),
        describe_replicas(ruling.replicas, ruling.asleep),
    )
    number = now if now == wanted else f"{now} -> {wanted}"
    if held is not None:
        number = f"{now}, set by {held}; it would be {wanted}"
    elif ruling.unwritten is not None and now != wanted:
        number = f"{now}, would be {wanted}"
    plan = look.plan.pools.get(name)
    numbers = (
        []
        if plan is None
        else [_describe_input(_SHOWN_INPUTS[key], one) for key, one in plan.inputs.items() if key in _SHOWN_INPUTS]
    )
    told = f" ({', '.join(numbers)})" if numbers else ""
    return f"pool {name} {number} by {ruling.rule}: {ruling.reason}{told}"


def _describe_cost(look: TickRecord) -> str:
    """What is wanted costs; nothing where no price is known."""
    usd = usd_per_hour(look.model, desired_instances(look))
    return "" if usd is None or not look.rulings else f"; {usd:.2f} USD an hour"


def _describe_input(name: str, one: DecisionInput) -> str:
    value = "unknown" if one.value is None else f"{one.value:.3g}"
    return f"{name} {value}" if one.age_seconds is None else f"{name} {value}, {one.age_seconds:.0f} s old"
