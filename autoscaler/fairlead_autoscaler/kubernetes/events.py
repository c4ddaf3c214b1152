"""What people are told in ``kubectl describe``: pure functions from two looks, and from two
statuses, to sentences.

An event is said of a change, never of a state: the same looked at twice says nothing new. The
recorder counts repetitions.
"""

from collections.abc import Iterable

from fairlead.api import ConditionStatus, ConditionType, Reason
from fairlead.kube.conditions import ConditionValue
from fairlead.kube.events.event import EventDraft, EventType
from fairlead_autoscaler.enforcer import EnforcedPlan
from fairlead_autoscaler.history.recorder import TickRecord


def scaling_events(before: TickRecord, after: TickRecord) -> list[EventDraft]:
    """The numbers that were to be written, and are there now."""
    told = []
    for name, ruling in before.rulings.items():
        pool = after.observation.pools.get(name)
        wanted = ruling.replicas, ruling.asleep
        if pool is None or not ruling.needs_write or (pool.desired, pool.asleep_desired) != wanted:
            continue
        told.append(_scaled_event(name, ruling))
    return told


def _scaled_event(name: str, ruling: EnforcedPlan) -> EventDraft:
    changes = []
    if ruling.replicas != ruling.desired:
        changes.append(f"from {ruling.desired} to {ruling.replicas}")
    if ruling.asleep != ruling.asleep_desired:
        changes.append(f"asleep from {ruling.asleep_desired} to {ruling.asleep}")
    up = ruling.is_growing if ruling.replicas == ruling.desired else ruling.replicas > ruling.desired
    note = f"Pool {name} {', '.join(changes)} by {ruling.rule}: {ruling.reason}"
    return EventDraft(EventType.NORMAL, "ScaledUp" if up else "ScaledDown", "Scale", note)


def condition_events(before: Iterable[ConditionValue], after: Iterable[ConditionValue]) -> list[EventDraft]:
    """What became different in what is said of the model; nothing is told of the first time."""
    told = []
    was = {one.type: one for one in before}
    for now in after:
        then = was.get(now.type)
        if then is None or (then.status, then.reason) == (now.status, now.reason):
            continue
        if now.type is ConditionType.AUTOSCALING:
            grave = now.reason in (Reason.AT_MAXIMUM, Reason.BLIND)
            told.append(_condition_event(grave, str(now.reason), "Decide", now.message))
        elif ConditionStatus.UNKNOWN not in (then.status, now.status):
            told.append(_condition_event(now.status is ConditionStatus.FALSE, str(now.reason), "Measure", now.message))
    return told


def _condition_event(is_warning: bool, reason: str, action: str, message: str) -> EventDraft:
    note = message[:1].upper() + message[1:]
    return EventDraft(EventType.WARNING if is_warning else EventType.NORMAL, reason, action, note)
