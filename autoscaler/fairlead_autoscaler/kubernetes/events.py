"""Events of a model, from two records or from two statuses. Pure.

An event reports a change, never a state: without a change there is no event. The recorder counts
repetitions.
"""

from collections.abc import Iterable

from fairlead.api.conditions import ConditionType, Reason
from fairlead.api.status import ConditionStatus
from fairlead.kube.conditions import ConditionValue
from fairlead.kube.events.event import EventDraft, EventType
from fairlead_autoscaler.enforcer import EnforcedPlan
from fairlead_autoscaler.history.recorder import TickRecord


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
