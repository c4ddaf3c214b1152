"""Which revision of a model runs, which one an undo means, and what to write for it. Pure, and by the operator's own code."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.errors import BadInput
from fairlead.fleet.labels import SURGE_ANNOTATION
from fairlead.kube.resources import LEADER_WORKER_SETS, Manifest, key_of, metadata_of
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
    """One revision: when it was first seen (as the API server writes times; empty where it is not kept yet), and what it changed."""

    revision: ModelRevision
    created: str
    changed_fields: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """How a model stands. ``kept`` has the newest first; ``settled``: every instance is of what runs, and ready."""

    model: Manifest
    choice: RevisionChoice
    revisions: tuple[RevisionEntry, ...]
    is_paused: bool
    is_settled: bool


def rollout_status(model: Manifest, records: Sequence[Manifest], workloads: Sequence[Manifest]) -> RolloutStatus:
    """What the cluster has of it: the model, its ControllerRevisions, its Deployments and LeaderWorkerSets."""
    kept = stored_revisions(records)
    choice = choose_revision(model, kept, running_hashes(workloads))
    known = {one.hash for one in kept}
    every = kept if choice.current.hash in known else (*kept, choice.current)
    times = {
        _number(one): str(metadata_of(one).get("creationTimestamp") or "")
        for one in records
        if annotation(one, MODEL_REVISION_ANNOTATION)
    }
    shown = [
        RevisionEntry(one, times.get(one.number, ""), changed_fields(every[at - 1].spec, one.spec) if at else ())
        for at, one in enumerate(every)
    ]
    paused = bool(((model.get("spec") or {}).get("rollout") or {}).get("paused"))
    settled = _settled(model, choice) and _replaced(workloads, choice)
    return RolloutStatus(model, choice, tuple(reversed(shown)), paused, settled)


def choose_undo_revision(status: RolloutStatus, to: int | None) -> ModelRevision:
    """The revision that an undo means. Raises BadInput where there is none, or where it would not begin."""
    name, runs, present = key_of(status.model), status.choice.revision, status.choice.current
    if status.is_paused:
        raise BadInput(
            f"the rollout of {name} is paused, and an undo would wait as well",
            field="pause",
            hint="`fairlead rollout resume` first",
        )
    kept = {one.revision.number: one.revision for one in status.revisions}
    earlier = sorted(number for number in kept if number < runs.number)
    if to is None and not earlier:
        raise BadInput(f"no revision of {name} before {runs.number} is kept", field="--to", hint=_there(kept))
    wanted = earlier[-1] if to is None else to
    if wanted not in kept:
        raise BadInput(f"--to: revision {wanted} of {name} is not kept", field="--to", hint=_there(kept))
    if wanted == runs.number:
        raise BadInput(f"--to: revision {wanted} of {name} runs already", field="--to", hint=_there(kept))
    if wanted == present.number:
        raise BadInput(
            f"--to: revision {wanted} is what the spec of {name} says",
            field="--to",
            hint="`fairlead rollout resume` runs it",
        )
    return kept[wanted]


def pause_patch() -> Manifest:
    """The change of the model that holds its rollout."""
    return {"spec": {"rollout": {"paused": True}}}


def resume_patch() -> Manifest:
    """The change that lets its spec through: no pause, no undo."""
    return {"metadata": {"annotations": {UNDO_ANNOTATION: None}}, "spec": {"rollout": {"paused": False}}}


def undo_patch(status: RolloutStatus, revision: ModelRevision) -> Manifest:
    """The change that runs ``revision`` until the spec changes again."""
    return {"metadata": {"annotations": {UNDO_ANNOTATION: f"{revision.number}/{status.choice.current.number}"}}}


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields of a spec that differ and that engines notice, as ``engine.args`` and ``pools[main].template``; no deeper."""
    found: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        one, other = before.get(name), after.get(name)
        if one == other or name in ("replicas", "autoscaling", "objectives", "routing"):
            continue
        if name == "rollout":
            drains = {(part or {}).get("drain") for part in (one, other)}
            found += ["rollout.drain"] if len(drains) > 1 else []
        elif name == "pools":
            found += _pools(one or [], other or [])
        elif isinstance(one, dict) and isinstance(other, dict):
            found += [
                f"{name}.{field}" for field in sorted(one.keys() | other.keys()) if one.get(field) != other.get(field)
            ]
        else:
            found.append(name)
    return tuple(found)


def _pools(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[str]:
    olds, news = ({str(one.get("name", "main")): one for one in pools} for pools in (before, after))
    found = []
    for name in sorted(olds.keys() | news.keys()):
        one, other = olds.get(name), news.get(name)
        if one is None or other is None:
            found.append(f"pools[{name}]")
            continue
        fields = sorted((one.keys() | other.keys()) - {"replicas"})
        found += [f"pools[{name}].{field}" for field in fields if one.get(field) != other.get(field)]
    return found


def _settled(model: Manifest, choice: RevisionChoice) -> bool:
    """The operator has looked at this spec, nothing moves, and all that is asked for is ready."""
    status = model.get("status") or {}
    if int(status.get("observedGeneration") or 0) < int(metadata_of(model).get("generation") or 0):
        return False
    holds = {one.get("type"): one.get("status") == "True" for one in status.get("conditions") or []}
    return bool(holds.get("Ready")) and not holds.get("Reconciling") and not holds.get("Stalled") and not choice.problem


def _replaced(workloads: Sequence[Manifest], choice: RevisionChoice) -> bool:
    """Everything that runs was applied from what shall run, and has replaced its instances.

    An annotation changes no generation, so that the status may still be about how things were before an undo.
    """
    return all(annotation(one, MODEL_REVISION_ANNOTATION) == choice.revision.hash and _done(one) for one in workloads)


def _done(workload: Manifest) -> bool:
    status, asked = workload.get("status") or {}, (workload.get("spec") or {}).get("replicas")
    counts = {name: int(status.get(name) or 0) for name in ("replicas", "updatedReplicas", "readyReplicas")}
    if asked is not None and set(counts.values()) != {int(asked)}:
        return False
    if annotation(workload, SURGE_ANNOTATION):
        return False
    if workload.get("kind") == LEADER_WORKER_SETS.kind:  # it does not count its generations
        moving = [
            one for one in status.get("conditions") or [] if one.get("type") in ("Progressing", "UpdateInProgress")
        ]
        return not any(one.get("status") == "True" for one in moving)
    return int(status.get("observedGeneration") or 0) >= int(metadata_of(workload).get("generation") or 0)


def _there(kept: Mapping[int, ModelRevision]) -> str:
    return f"there are: {', '.join(map(str, sorted(kept))) or 'none yet'}"


def _number(record: Manifest) -> int:
    return int(record.get("revision") or 0)
