"""Revisions of a model: which one runs, which one an undo selects, and the patches of pause, resume
and undo.

Pure; it uses the operator's own code to choose the revision.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.errors import BadInput
from fairlead.fleet.labels import SURGE_ANNOTATION
from fairlead.kube.field_managers import CHANGED_BY_ANNOTATION
from fairlead.kube.resources import LEADER_WORKER_SETS, Manifest, key_of, metadata_of
from fairlead_cli.cluster.object_fields import is_condition_true
from fairlead_operator.controller.revisions import (
    ModelRevision,
    RevisionChoice,
    choose_revision,
    running_hashes,
    stored_revisions,
)
from fairlead_operator.object_metadata import MODEL_REVISION_ANNOTATION, UNDO_ANNOTATION, annotation


@dataclass(frozen=True, slots=True)
class RevisionEntry:
    """A revision of a model. ``created`` is the API server's timestamp, empty while the revision is
    not stored.
    """

    revision: ModelRevision
    created: str
    changed_fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """Rollout status of a model. ``revisions``: newest first. ``is_settled``: every instance has
    the running revision and is ready.
    """

    model: Manifest
    choice: RevisionChoice
    revisions: tuple[RevisionEntry, ...]
    is_paused: bool
    is_settled: bool


def summarize_rollout(model: Manifest, records: Sequence[Manifest], workloads: Sequence[Manifest]) -> RolloutStatus:
    """Returns the status from a model, its ControllerRevisions and its workloads."""
    stored = stored_revisions(records)
    choice = choose_revision(model, stored, running_hashes(workloads))
    hashes = {revision.hash for revision in stored}
    known_revisions = stored if choice.current.hash in hashes else (*stored, choice.current)
    times = {
        _number(revision): str(metadata_of(revision).get("creationTimestamp") or "")
        for revision in records
        if annotation(revision, MODEL_REVISION_ANNOTATION)
    }
    entries = [
        RevisionEntry(
            revision,
            times.get(revision.number, ""),
            changed_fields(known_revisions[position - 1].spec, revision.spec) if position else (),
        )
        for position, revision in enumerate(known_revisions)
    ]
    paused = bool(((model.get("spec") or {}).get("rollout") or {}).get("paused"))
    settled = _settled(model, choice) and _replaced(workloads, choice)
    return RolloutStatus(model, choice, tuple(reversed(entries)), paused, settled)


def choose_undo_revision(status: RolloutStatus, to: int | None) -> ModelRevision:
    """Returns the revision that an undo selects: ``to``, or the one before the running revision.

    While a canary is under way, that is the running one: the canary ends.

    Raises BadInput when the rollout is paused, no such revision is stored, or an undo would have no
    effect.
    """
    name, running, present = key_of(status.model), status.choice.revision, status.choice.current
    if status.is_paused:
        raise BadInput(
            f"the rollout of {name} is paused, and an undo would wait as well",
            field="pause",
            hint="run `fairlead rollout resume` first",
        )
    if is_canary_under_way(status) and to in (None, running.number):
        return running  # the canary ends
    stored = {entry.revision.number: entry.revision for entry in status.revisions}
    earlier = sorted(number for number in stored if number < running.number)
    if to is None and not earlier:
        raise BadInput(f"no revision of {name} before {running.number} is stored", field="--to", hint=_there(stored))
    number = earlier[-1] if to is None else to
    if number not in stored:
        raise BadInput(f"--to: revision {number} of {name} is not stored", field="--to", hint=_there(stored))
    if number == running.number:
        raise BadInput(f"--to: revision {number} of {name} runs already", field="--to", hint=_there(stored))
    if number == present.number:
        raise BadInput(
            f"--to: revision {number} is what the spec of {name} says",
            field="--to",
            hint="`fairlead rollout resume` runs it",
        )
    return stored[number]


def is_canary_under_way(status: RolloutStatus) -> bool:
    """Whether the spec of a model is tried on instances of its own."""
    return status.choice.canary is not None and status.choice.is_pending


def promote_patch(status: RolloutStatus) -> Manifest:
    """Returns the patch that runs the spec without a canary, until the spec changes again.

    Raises BadInput when the spec runs already, or waits for something else.
    """
    name, choice = key_of(status.model), status.choice
    if not choice.is_pending:
        raise BadInput(f"revision {choice.current.number}, the spec of {name}, runs already", field="promote")
    if status.is_paused:
        raise BadInput(
            f"the rollout of {name} is paused, and a promotion would wait as well",
            field="promote",
            hint="run `fairlead rollout resume` first",
        )
    number = choice.current.number
    return {"metadata": {"annotations": {UNDO_ANNOTATION: f"{number}/{number}"}}}


def pause_patch() -> Manifest:
    """Returns the patch that pauses the rollout of a model."""
    return {"spec": {"rollout": {"paused": True}}}


def resume_patch() -> Manifest:
    """Returns the patch that applies the spec: it ends a pause and an undo."""
    return {"metadata": {"annotations": {UNDO_ANNOTATION: None}}, "spec": {"rollout": {"paused": False}}}


def undo_patch(status: RolloutStatus, revision: ModelRevision) -> Manifest:
    """Returns the patch that runs ``revision`` until the spec changes again."""
    return {"metadata": {"annotations": {UNDO_ANNOTATION: f"{revision.number}/{status.choice.current.number}"}}}


def with_author(patch: Manifest, author: str) -> Manifest:
    """Returns a patch that also says who made it, for the audit records of the operator."""
    metadata = patch.get("metadata") or {}
    annotations = {**(metadata.get("annotations") or {}), CHANGED_BY_ANNOTATION: author}
    return {**patch, "metadata": {**metadata, "annotations": annotations}}


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the changed fields that affect engines, such as ``engine.args`` and
    ``pools[main].template``; no deeper.
    """
    found: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old == new or name in ("replicas", "autoscaling", "slo", "routing"):
            continue
        if name == "rollout":
            drains = {(part or {}).get("drainTimeout") for part in (old, new)}
            found += ["rollout.drainTimeout"] if len(drains) > 1 else []
        elif name == "pools":
            found += _pools(old or [], new or [])
        elif isinstance(old, dict) and isinstance(new, dict):
            found += [
                f"{name}.{field}" for field in sorted(old.keys() | new.keys()) if old.get(field) != new.get(field)
            ]
        else:
            found.append(name)
    return tuple(found)


def _pools(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[str]:
    olds, news = ({str(old.get("name", "main")): old for old in specs} for specs in (before, after))
    found = []
    for name in sorted(olds.keys() | news.keys()):
        old, new = olds.get(name), news.get(name)
        if old is None or new is None:
            found.append(f"pools[{name}]")
            continue
        fields = sorted((old.keys() | new.keys()) - {"minReplicas", "maxReplicas"})
        found += [f"pools[{name}].{field}" for field in fields if old.get(field) != new.get(field)]
    return found


def _settled(model: Manifest, choice: RevisionChoice) -> bool:
    """Whether the operator has observed this spec, nothing is in progress, and all instances are
    ready.
    """
    status = model.get("status") or {}
    if int(status.get("observedGeneration") or 0) < int(metadata_of(model).get("generation") or 0):
        return False
    is_in_progress = is_condition_true(model, "Reconciling") or is_condition_true(model, "Stalled")
    return is_condition_true(model, "Ready") and not is_in_progress and not choice.problem


def _replaced(workloads: Sequence[Manifest], choice: RevisionChoice) -> bool:
    """Whether all workloads run the chosen revision and have replaced their instances.

    Why: an undo is an annotation and changes no generation, so the status may still describe the
    state before the undo.
    """
    return all(
        annotation(workload, MODEL_REVISION_ANNOTATION) == choice.revision.hash and _done(workload)
        for workload in workloads
    )


def _done(workload: Manifest) -> bool:
    status, desired = workload.get("status") or {}, (workload.get("spec") or {}).get("replicas")
    counts = {name: int(status.get(name) or 0) for name in ("replicas", "updatedReplicas", "readyReplicas")}
    if desired is not None and set(counts.values()) != {int(desired)}:
        return False
    if annotation(workload, SURGE_ANNOTATION):
        return False
    if workload.get("kind") == LEADER_WORKER_SETS.kind:  # it does not count its generations
        return not any(is_condition_true(workload, kind) for kind in ("Progressing", "UpdateInProgress"))
    return int(status.get("observedGeneration") or 0) >= int(metadata_of(workload).get("generation") or 0)


def _there(kept: Mapping[int, ModelRevision]) -> str:
    return f"there are: {', '.join(map(str, sorted(kept))) or 'none yet'}"


def _number(record: Manifest) -> int:
    return int(record.get("revision") or 0)
