"""Kubernetes Events about models, each from two states of a model. Pure.

An event reports a change, never a state. The recorder counts repetitions.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from fairlead.api.conditions import ConditionType, Reason
from fairlead.api.status import CanaryPhase
from fairlead.fleet.labels import INSTALLATION_LABEL
from fairlead.kube.conditions import find_condition
from fairlead.kube.events.event import EventDraft, EventType
from fairlead.kube.resources import Manifest, name_of
from fairlead_operator.controller.apply_plan import ApplyStep
from fairlead_operator.object_metadata import MODEL_REVISION_ANNOTATION, WORKLOAD_KINDS, annotation


def events_of_writes(applied: Iterable[ApplyStep], pruned: Iterable[Manifest]) -> list[EventDraft]:
    """Returns events about completed writes to workloads. Other children are not reported."""
    events = []
    for step in applied:
        name = name_of(step.manifest)
        if step.manifest["kind"] not in WORKLOAD_KINDS:
            continue
        if step.live is None:
            events.append(
                _normal("Created", "Create", f"Made {step.manifest['kind']} {name}{_instance_suffix(step.manifest)}")
            )
        elif step.corrects:
            events.append(_normal("Corrected", "Apply", f"Set {name} right again: {step.reason}"))
        elif annotation(step.manifest, MODEL_REVISION_ANNOTATION) != annotation(step.live, MODEL_REVISION_ANNOTATION):
            events.append(_normal("RolloutStarted", "Apply", f"Applied a change to {name}; its instances follow"))
        # A rollout that also changes the number is reported as a rollout alone.
        elif (numbers := _replica_change(step.live, step.manifest)) is not None:
            events.append(_normal("Scaled", "Scale", f"Scaled {name} from {numbers[0]} to {numbers[1]} instances"))
    for child in pruned:
        if child["kind"] in WORKLOAD_KINDS:
            events.append(_normal("Removed", "Delete", f"Removed {name_of(child)}, which the spec no longer has"))
    return events


def events_of_status(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[EventDraft]:
    """Returns events about changed conditions."""
    events = []
    ready_before, ready_now = (
        find_condition(before, ConditionType.READY) or {},
        find_condition(after, ConditionType.READY) or {},
    )
    if ready_before.get("status") != ready_now.get("status") and ready_now.get("status") == "True":
        events.append(_normal(str(ready_now["reason"]), "Serve", _capitalize(str(ready_now["message"]))))
    was_lost = ready_before.get("status") == "True" and ready_now.get("status") == "False"
    is_worse = ready_before.get("reason") != ready_now.get("reason") and ready_now.get("reason") in (
        Reason.NO_INSTANCE,
        Reason.NO_ENDPOINT,
    )
    stalled = find_condition(after, ConditionType.STALLED)
    is_growing = ready_before.get("status") == "True" and not _has_fewer_ready(
        before, after
    )  # more instances are desired, none was lost
    if (was_lost or is_worse) and stalled is None and not is_growing:
        events.append(_warning(str(ready_now["reason"]), "Serve", _capitalize(str(ready_now["message"]))))
    stalled_before = find_condition(before, ConditionType.STALLED)
    if stalled is not None and (stalled_before is None or stalled_before.get("reason") != stalled["reason"]):
        events.append(_warning(str(stalled["reason"]), "Reconcile", _capitalize(str(stalled["message"]))))
    if stalled is None and stalled_before is not None:
        events.append(_normal("Recovered", "Reconcile", f"No longer stalled by {stalled_before.get('reason')}"))
    events += _progress_events(before, after)
    events += _canary_events(before.get("canary") or {}, after.get("canary") or {})
    return events


def _canary_events(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[EventDraft]:
    """Returns the event of a canary's new phase or step."""
    names = ("hash", "phase", "weight")
    if not after or [before.get(name) for name in names] == [after.get(name) for name in names]:
        return []
    note = _capitalize(str(after["message"]))
    if after["phase"] in (CanaryPhase.ROLLED_BACK, CanaryPhase.PAUSED) and after["reason"] != Reason.ENDED_BY_HAND:
        return [_warning(f"Canary{after['phase']}", "Rollout", note)]
    return [_normal(f"Canary{after['phase']}", "Rollout", note)]


def other_installation(installation: str, own: str) -> EventDraft:
    """Returns the event of a model whose children another installation manages.

    own: the id of the reporting one; empty if it has none.
    """
    note = (
        f"The installation {installation} manages this model, so {own or 'this one, which has no id,'} changes nothing. "
        "Let only one of them watch the namespace. To take the model over, remove the label "
        f"{INSTALLATION_LABEL} from its children, or give this installation that id"
    )
    return _warning("OtherInstallation", "Reconcile", note)


def _has_fewer_ready(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    now = {pool.get("name"): int(pool.get("ready") or 0) for pool in after.get("pools") or ()}
    return any(now.get(pool.get("name"), 0) < int(pool.get("ready") or 0) for pool in before.get("pools") or ())


def _progress_events(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[EventDraft]:
    events = []
    was, now = (
        find_condition(before, ConditionType.RECONCILING) or {},
        find_condition(after, ConditionType.RECONCILING) or {},
    )
    if now.get("reason") == Reason.PAUSED != was.get("reason"):
        events.append(_normal("Paused", "Rollout", _capitalize(str(now["message"]))))
    goes_on = now.get("reason") in (Reason.ROLLING_OUT, Reason.PAUSED) or find_condition(after, ConditionType.STALLED)
    has_instances = any(pool["desired"] for pool in after.get("pools") or ())
    if was.get("reason") == Reason.ROLLING_OUT and not goes_on and has_instances:
        events.append(_normal("RolloutDone", "Rollout", f"All instances are replaced: {after.get('ready')} ready"))
    name_taken = find_condition(after, ConditionType.NAME_TAKEN)
    if name_taken is not None and find_condition(before, ConditionType.NAME_TAKEN) is None:
        events.append(_warning(str(name_taken["reason"]), "Name", _capitalize(str(name_taken["message"]))))
    return events


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
