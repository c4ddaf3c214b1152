"""What people are told in ``kubectl describe``: pure functions from what was and what is to sentences.

An event is said of a change, never of a state: the same state looked at twice says nothing new. The recorder counts repetitions.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from fairlead.api import ConditionType, Reason
from fairlead.kube.events.event import EventDraft, EventType
from fairlead.kube.resources import Manifest, name_of
from fairlead_operator.controller.apply_plan import ApplyStep
from fairlead_operator.object_metadata import MODEL_REVISION_ANNOTATION, WORKLOAD_KINDS, annotation
from fairlead_operator.status.model_status import find_condition


def events_of_writes(applied: Iterable[ApplyStep], pruned: Iterable[Manifest]) -> list[EventDraft]:
    """What was done, once it is done. Supports are not told of: people think in pools."""
    told = []
    for step in applied:
        name = name_of(step.manifest)
        if step.manifest["kind"] not in WORKLOAD_KINDS:
            continue
        if step.live is None:
            told.append(
                _normal("Created", "Create", f"Made {step.manifest['kind']} {name}{_instance_suffix(step.manifest)}")
            )
        elif step.corrects:
            told.append(_normal("Corrected", "Apply", f"Set {name} right again: {step.reason}"))
        elif annotation(step.manifest, MODEL_REVISION_ANNOTATION) != annotation(step.live, MODEL_REVISION_ANNOTATION):
            told.append(_normal("RolloutStarted", "Apply", f"Applied a change to {name}; its instances follow"))
        elif (numbers := _replica_change(step.live, step.manifest)) is not None:
            told.append(_normal("Scaled", "Scale", f"Scaled {name} from {numbers[0]} to {numbers[1]} instances"))
    for child in pruned:
        if child["kind"] in WORKLOAD_KINDS:
            told.append(_normal("Removed", "Delete", f"Removed {name_of(child)}, which the spec has no more"))
    return told


def events_of_status(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[EventDraft]:
    """What became different in the conditions."""
    told = []
    was, now = find_condition(before, ConditionType.READY) or {}, find_condition(after, ConditionType.READY) or {}
    if was.get("status") != now.get("status") and now.get("status") == "True":
        told.append(_normal(str(now["reason"]), "Serve", _capitalize(str(now["message"]))))
    lost = was.get("status") == "True" and now.get("status") == "False"
    worse = was.get("reason") != now.get("reason") and now.get("reason") in (Reason.NO_INSTANCE, Reason.NO_ENDPOINT)
    stalled = find_condition(after, ConditionType.STALLED)
    grows = was.get("status") == "True" and not _has_fewer_ready(before, after)  # more are asked for, and none is gone
    if (lost or worse) and stalled is None and not grows:
        told.append(_warning(str(now["reason"]), "Serve", _capitalize(str(now["message"]))))
    stuck = find_condition(before, ConditionType.STALLED)
    if stalled is not None and (stuck is None or stuck.get("reason") != stalled["reason"]):
        told.append(_warning(str(stalled["reason"]), "Reconcile", _capitalize(str(stalled["message"]))))
    if stalled is None and stuck is not None:
        told.append(_normal("Recovered", "Reconcile", f"No longer stalled by {stuck.get('reason')}"))
    told += _progress_events(before, after)
    return told


def _has_fewer_ready(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Has some pool fewer ready than it had?"""
    now = {one.get("name"): int(one.get("ready") or 0) for one in after.get("pools") or ()}
    return any(now.get(one.get("name"), 0) < int(one.get("ready") or 0) for one in before.get("pools") or ())


def _progress_events(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[EventDraft]:
    told = []
    was, now = (
        find_condition(before, ConditionType.RECONCILING) or {},
        find_condition(after, ConditionType.RECONCILING) or {},
    )
    if now.get("reason") == Reason.PAUSED != was.get("reason"):
        told.append(_normal("Paused", "Rollout", _capitalize(str(now["message"]))))
    if (
        was.get("reason") == Reason.ROLLING_OUT != now.get("reason")
        and find_condition(after, ConditionType.STALLED) is None
    ):
        told.append(_normal("RolloutDone", "Rollout", f"All instances are replaced: {after.get('ready')} ready"))
    taken = find_condition(after, ConditionType.NAME_TAKEN)
    if taken is not None and find_condition(before, ConditionType.NAME_TAKEN) is None:
        told.append(_warning(str(taken["reason"]), "Name", _capitalize(str(taken["message"]))))
    return told


def _normal(reason: str, action: str, note: str) -> EventDraft:
    return EventDraft(EventType.NORMAL, reason, action, note)


def _warning(reason: str, action: str, note: str) -> EventDraft:
    return EventDraft(EventType.WARNING, reason, action, note)


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]


def _instance_suffix(manifest: Manifest) -> str:
    count = (manifest.get("spec") or {}).get("replicas")
    return "" if count is None else f" with {count} instance{'' if count == 1 else 's'}"


def _replica_change(live: Manifest | None, manifest: Manifest) -> tuple[int, int] | None:
    was, now = ((one or {}).get("spec", {}).get("replicas") for one in (live, manifest))
    return None if was is None or now is None or was == now else (int(was), int(now))
