"""Audit records of what the operator has done to workloads and pods. Pure.

They come from the same drafts as the Kubernetes Events, which are dropped after an hour and when
there are too many.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fairlead.audit import Action, AuditEvent
from fairlead.kube.events.event import EventDraft
from fairlead.kube.field_managers import CHANGED_BY_ANNOTATION
from fairlead.kube.resources import Manifest, annotations_of, metadata_of, name_of, namespace_of

ACTOR: Final = "fairlead-operator"
_ACTIONS: Final[Mapping[str, Action]] = MappingProxyType(
    {
        "Created": Action.WORKLOAD_CREATED,
        "Corrected": Action.WORKLOAD_CHANGED,
        "RolloutStarted": Action.WORKLOAD_CHANGED,
        "Scaled": Action.SCALED,
        "Removed": Action.WORKLOAD_REMOVED,
        "EngineRestarted": Action.ENGINE_RESTARTED,
    }
)
"""The action of each reason of an event that reports a write. Other events report states."""
_BY_AUTHOR: Final = frozenset({"Created", "RolloutStarted", "Scaled", "Removed"})
"""Reasons of writes that follow a change of the model. The others follow its workloads and pods."""


def audit_event(model: Manifest, draft: EventDraft) -> AuditEvent | None:
    """Returns the audit event of an event about a model; None if it reports no action.

    The operator acts, and `changedBy` is who wrote the model last.
    """
    action = _ACTIONS.get(draft.reason)
    if action is None:
        return None
    generation = metadata_of(model).get("generation")
    after: dict[str, int | str] = {"event": draft.reason}
    if isinstance(generation, int):
        after["generation"] = generation
    author = annotations_of(model).get(CHANGED_BY_ANNOTATION)
    if author and draft.reason in _BY_AUTHOR:
        after["changedBy"] = author
    name = f"ModelDeployment/{namespace_of(model)}/{name_of(model)}"
    return AuditEvent(action, name, ACTOR, after=after, reason=draft.note)
