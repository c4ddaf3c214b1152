"""Conditions `Autoscaling` and `SLOMet` of a model, and when a change of them is written.
Pure.

A new status, a new reason or another number of instances is written at once. Other changes of a
message are written once a minute.

An event reports a change, never a state: without a change there is no event. The recorder counts
repetitions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fairlead.api.conditions import ConditionType, Reason
from fairlead.api.spec.autoscaling import ScalingMode
from fairlead.api.status import ConditionStatus
from fairlead.decision import DecisionInput
from fairlead.kube.conditions import MAX_MESSAGE_LENGTH, ConditionValue
from fairlead.kube.events.event import EventDraft, EventType
from fairlead_autoscaler.core.plan_inputs import usd_per_hour
from fairlead_autoscaler.history.recorder import TickRecord
from fairlead_autoscaler.kubernetes.slo_attainment import WINDOW_SECONDS, SLOAttainment
from fairlead_autoscaler.scaling_policy import EnforcedPlan, describe_replicas

CONDITION_TYPES: Final = (ConditionType.AUTOSCALING, ConditionType.SLO_MET)
REFRESH_SECONDS: Final = 60.0
_SHOWN_INPUTS: Final = {
    "need_replicas": "need",
    "capacity_requests_per_second": "capacity, requests/s each",
    "allowed_miss_share": "share that may miss",
    "forecast_replicas": "forecast",
    "ready_replicas": "ready",
    "pending_replicas": "starting",
}
"""The inputs of a plan that a message shows, with their names for people."""
_MISSING_RULES: Final = ("metrics-missing", "metrics-missing-up", "metrics-inconsistent")


def scaling_events(before: TickRecord, after: TickRecord) -> list[EventDraft]:
    """Returns an event for each pool that now has the numbers that `before` planned to write."""
    drafts = []
    for name, ruling in before.rulings.items():
        pool = after.observation.pools.get(name)
        planned = ruling.replicas, ruling.asleep
        if pool is None or not ruling.needs_write or (pool.desired, pool.asleep_desired) != planned:
            continue
        drafts.append(_scaled_event(name, ruling))
    return drafts


def _scaled_event(name: str, ruling: EnforcedPlan) -> EventDraft:
    changes = []
    if ruling.replicas != ruling.desired:
        changes.append(f"from {ruling.desired} to {ruling.replicas}")
    if ruling.asleep != ruling.asleep_desired:
        changes.append(f"asleep from {ruling.asleep_desired} to {ruling.asleep}")
    is_up = ruling.is_growing if ruling.replicas == ruling.desired else ruling.replicas > ruling.desired
    note = f"Pool {name} {', '.join(changes)} by {ruling.rule}: {ruling.reason}"
    return EventDraft(EventType.NORMAL, "ScaledUp" if is_up else "ScaledDown", "Scale", note)


def condition_events(before: Iterable[ConditionValue], after: Iterable[ConditionValue]) -> list[EventDraft]:
    """Returns an event for each condition with a new status or reason.

    There is none for a condition's first status, nor for `SLOMet` to or from Unknown.
    """
    drafts = []
    former = {condition.type: condition for condition in before}
    for now in after:
        previous = former.get(now.type)
        if previous is None or (previous.status, previous.reason) == (now.status, now.reason):
            continue
        if now.type is ConditionType.AUTOSCALING:
            is_warning = now.reason in (Reason.AT_MAXIMUM, Reason.LOAD_UNKNOWN)
            drafts.append(_condition_event(is_warning, str(now.reason), "Decide", now.message))
        elif ConditionStatus.UNKNOWN not in (previous.status, now.status):
            drafts.append(
                _condition_event(now.status is ConditionStatus.FALSE, str(now.reason), "Measure", now.message)
            )
    return drafts


def _condition_event(is_warning: bool, reason: str, action: str, message: str) -> EventDraft:
    note = message[:1].upper() + message[1:]
    return EventDraft(EventType.WARNING if is_warning else EventType.NORMAL, reason, action, note)


@dataclass(frozen=True, slots=True)
class PublishedStatus:
    """The status that was last written, at the time `at`.

    instances: planned instances, by pool.
    """

    conditions: tuple[ConditionValue, ...]
    at: float
    instances: Mapping[str, int] = field(default_factory=dict)


def autoscaling_condition(record: TickRecord, owners: Mapping[str, str], is_frozen: bool) -> ConditionValue:
    """Returns the condition `Autoscaling`.

    owners: other owners of the number, by pool.
    """
    pools = "; ".join(_describe_pool(name, record, ruling, owners.get(name)) for name, ruling in record.rulings.items())
    pools = (pools or "none of its pools exists yet") + _describe_cost(record)

    def condition(status: ConditionStatus, reason: Reason, prefix: str) -> ConditionValue:
        return ConditionValue(ConditionType.AUTOSCALING, status, reason, f"{prefix}{pools}"[:MAX_MESSAGE_LENGTH])

    if record.mode == ScalingMode.ADVISE:
        return condition(ConditionStatus.FALSE, Reason.ADVISING, "nothing is written: ")
    if is_frozen:
        return condition(ConditionStatus.FALSE, Reason.FROZEN, "all scaling is frozen: ")
    if record.rulings and all(name in owners for name in record.rulings):
        return condition(ConditionStatus.FALSE, Reason.SET_ELSEWHERE, "")
    rules = {ruling.rule for ruling in record.rulings.values()}
    if record.observation.gateway is None or not rules.isdisjoint(_MISSING_RULES):
        notes = f" ({'; '.join(record.notes[:2])})" if record.notes else ""
        return condition(ConditionStatus.TRUE, Reason.LOAD_UNKNOWN, f"its load is unknown{notes}: ")
    limited = [name for name, ruling in record.rulings.items() if name not in owners and _is_at_maximum(ruling)]
    if limited:
        message = f"pool {', '.join(limited)} needs more than its max: "
        return condition(ConditionStatus.TRUE, Reason.AT_MAXIMUM, message)
    return condition(ConditionStatus.TRUE, Reason.DECIDING, "")


def slo_condition(record: TickRecord, attainment: SLOAttainment) -> ConditionValue | None:
    """Returns the condition `SLOMet`; None for a model without latency targets."""
    if record.model.ttft_seconds is None and record.model.itl_seconds is None:
        return None
    shares, target = attainment.shares(), record.model.target
    if not shares:
        number, minutes = f"{attainment.judged():.0f}", f"{WINDOW_SECONDS / 60:.0f}"
        message = f"{number} requests in {minutes} minutes are too few (only answered streams count)"
        return ConditionValue(ConditionType.SLO_MET, ConditionStatus.UNKNOWN, Reason.TOO_FEW_REQUESTS, message)
    parts = ", ".join(f"{name} met by {100 * share:.1f} %" for name, share in shares.items())
    message = (
        f"{parts} of {attainment.judged():.0f} requests in {WINDOW_SECONDS / 60:.0f} minutes; target {100 * target:g} %"
    )
    if min(shares.values()) >= target:
        return ConditionValue(ConditionType.SLO_MET, ConditionStatus.TRUE, Reason.WITHIN_TARGET, message)
    return ConditionValue(ConditionType.SLO_MET, ConditionStatus.FALSE, Reason.BELOW_TARGET, message)


def desired_instances(record: TickRecord) -> dict[str, int]:
    return {name: ruling.instances for name, ruling in record.rulings.items()}


def is_write_due(
    before: PublishedStatus | None, conditions: Iterable[ConditionValue], numbers: Mapping[str, int], now: float
) -> bool:
    """Whether the conditions have to be written now."""
    if before is None:
        return True
    after = tuple(conditions)
    if _essentials(before.conditions) != _essentials(after) or before.instances != numbers:
        return True
    return after != before.conditions and now - before.at >= REFRESH_SECONDS


def has_own_condition(status: Mapping[str, Any]) -> bool:
    return any(condition.get("type") in CONDITION_TYPES for condition in status.get("conditions") or [])


def _essentials(conditions: Iterable[ConditionValue]) -> list[tuple[str, str, str]]:
    return sorted((str(condition.type), str(condition.status), str(condition.reason)) for condition in conditions)


def _is_at_maximum(ruling: EnforcedPlan) -> bool:
    if ruling.rule == "maximum":
        return True
    return ruling.rule == "bounds" and ruling.planned is not None and ruling.planned > ruling.replicas


def _describe_pool(name: str, record: TickRecord, ruling: EnforcedPlan, owner: str | None) -> str:
    now, planned = (
        describe_replicas(ruling.desired, ruling.asleep_desired),
        describe_replicas(ruling.replicas, ruling.asleep),
    )
    number = now if now == planned else f"{now} -> {planned}"
    if owner is not None:
        number = f"{now}, set by {owner}; it would be {planned}"
    elif ruling.unwritten is not None and now != planned:
        number = f"{now}, would be {planned}"
    plan = record.plan.pools.get(name)
    parts = (
        []
        if plan is None
        else [_describe_input(_SHOWN_INPUTS[key], shown) for key, shown in plan.inputs.items() if key in _SHOWN_INPUTS]
    )
    shown_inputs = f" ({', '.join(parts)})" if parts else ""
    return f"pool {name} {number} by {ruling.rule}: {ruling.reason}{shown_inputs}"


def _describe_cost(record: TickRecord) -> str:
    usd = usd_per_hour(record.model, desired_instances(record))
    return "" if usd is None or not record.rulings else f"; {usd:.2f} USD an hour"


def _describe_input(name: str, shown: DecisionInput) -> str:
    value = "unknown" if shown.value is None else f"{shown.value:.3g}"
    return f"{name} {value}" if shown.age_seconds is None else f"{name} {value}, {shown.age_seconds:.0f} s old"
