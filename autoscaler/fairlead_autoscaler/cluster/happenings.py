"""What people are told in ``kubectl describe``: pure functions from two looks, and from two statuses, to sentences.

An event is said of a change, never of a state: the same looked at twice says nothing new. The recorder counts repetitions.
"""

from collections.abc import Iterable

from fairlead.api import ConditionStatus, ConditionType, Reason
from fairlead.kube.ledger import EventType
from fairlead.kube.news import News
from fairlead_autoscaler.cluster.conditions import Said
from fairlead_autoscaler.governor import Ruling
from fairlead_autoscaler.recording import Look


def of_looks(before: Look, after: Look) -> list[News]:
    """The numbers that were to be written, and are there now."""
    told = []
    for name, ruling in before.rulings.items():
        pool = after.observation.pools.get(name)
        wanted = ruling.replicas, ruling.asleep
        if pool is None or not ruling.writes or (pool.desired, pool.asleep_desired) != wanted:
            continue
        told.append(_scaled(name, ruling))
    return told


def _scaled(name: str, ruling: Ruling) -> News:
    changes = []
    if ruling.replicas != ruling.desired:
        changes.append(f"from {ruling.desired} to {ruling.replicas}")
    if ruling.asleep != ruling.asleep_desired:
        changes.append(f"asleep from {ruling.asleep_desired} to {ruling.asleep}")
    up = ruling.grows if ruling.replicas == ruling.desired else ruling.replicas > ruling.desired
    note = f"Pool {name} {', '.join(changes)} by {ruling.rule}: {ruling.reason}"
    return News(EventType.NORMAL, "ScaledUp" if up else "ScaledDown", "Scale", note)


def of_conditions(before: Iterable[Said], after: Iterable[Said]) -> list[News]:
    """What became different in what is said of the model; nothing is told of the first time."""
    told = []
    was = {one.type: one for one in before}
    for now in after:
        then = was.get(now.type)
        if then is None or (then.status, then.reason) == (now.status, now.reason):
            continue
        if now.type is ConditionType.AUTOSCALING:
            grave = now.reason in (Reason.AT_MAXIMUM, Reason.BLIND)
            told.append(_of(grave, str(now.reason), "Decide", now.message))
        elif ConditionStatus.UNKNOWN not in (then.status, now.status):
            told.append(_of(now.status is ConditionStatus.FALSE, str(now.reason), "Measure", now.message))
    return told


def _of(grave: bool, reason: str, action: str, message: str) -> News:
    note = message[:1].upper() + message[1:]
    return News(EventType.WARNING if grave else EventType.NORMAL, reason, action, note)
