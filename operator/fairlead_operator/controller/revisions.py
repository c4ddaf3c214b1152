"""Chooses the revision of a model to run. Pure; the workload's controller replaces the instances.

A revision is a spec without the fields that do not affect engines: replica counts, the SLO,
routing and rollout settings. `rollout.drainTimeout` is part of a revision: pods contain it, as
grace period and in their hook. Each revision is stored as a ControllerRevision. `spec` is never
edited. To go back, users name an earlier revision in an annotation. It applies until it is removed
or, if it says from which revision, until `spec` changes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.api.spec.rollout import Rollout
from fairlead.api.status import CanaryPhase
from fairlead.kube.resources import CONTROLLER_REVISIONS, Manifest, name_of
from fairlead.names import shorten_name
from fairlead_operator.canary.progress import CanaryState, parse_state
from fairlead_operator.kube.object_trimming import revision_data
from fairlead_operator.object_metadata import (
    MODEL_REVISION_ANNOTATION,
    UNDO_ANNOTATION,
    WORKLOAD_KINDS,
    annotation,
    is_of_canary,
    json_digest,
)
from fairlead_operator.render.revision import POOL_BOUNDS, engine_fields

MAX_KEPT_REVISIONS = 10
_FIELDS_WITHOUT_RESTART = ("replicas", "autoscaling", "rollout", "slo", "routing", "allowedRoutes")


@dataclass(frozen=True, slots=True)
class ModelRevision:
    """A spec that ran or will run. `number` grows with each change."""

    number: int
    hash: str
    spec: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RevisionChoice:
    """The revision to run.

    revision: the engines to run, with the replica counts and the SLO of the current spec in
        `spec`.
    current: the revision of the model's own spec, which is stored even while another one runs.
    held_by_pause: `revision` runs because the rollout is paused.
    problem: why a requested revision cannot run.
    canary: `current`, if it has instances of its own: it is tried, or has just been promoted.
    """

    revision: ModelRevision
    current: ModelRevision
    spec: dict[str, Any]
    reason: str
    problem: str = ""
    held_by_pause: bool = False
    canary: ModelRevision | None = None

    @property
    def is_pending(self) -> bool:
        """True if the model's own spec does not run yet."""
        return self.revision.hash != self.current.hash


def revision_hash(spec: dict[str, Any]) -> str:
    """Returns a hash that is equal for specs with the same engines."""
    fields = {name: value for name, value in spec.items() if name not in _FIELDS_WITHOUT_RESTART}
    drain = _drain_timeout(spec)
    drain_field = {} if drain in (None, Rollout().drain_timeout) else {"drain": drain}
    return json_digest({**engine_fields(fields), **drain_field})


def _drain_timeout(spec: dict[str, Any]) -> str | None:
    return (spec.get("rollout") or {}).get("drainTimeout")


def stored_revisions(live: Iterable[Manifest]) -> tuple[ModelRevision, ...]:
    """Returns the stored revisions, oldest first.

    The controller of LeaderWorkerSets stores its own ControllerRevisions with our labels and a
    spec; these are skipped.
    """
    revisions = []
    for child in live:
        revision = annotation(child, MODEL_REVISION_ANNOTATION)
        if child.get("kind") != CONTROLLER_REVISIONS.kind or not revision:
            continue
        data = revision_data(child)
        if isinstance(data.get("spec"), dict):
            revisions.append(ModelRevision(int(child.get("revision") or 0), revision, dict(data["spec"])))
    return tuple(sorted(revisions, key=lambda child: (child.number, child.hash)))


def choose_revision(model: Manifest, stored: Sequence[ModelRevision], running: frozenset[str]) -> RevisionChoice:
    """Returns the revision to run.

    running: hashes of the specs that workloads were made from.
    """
    spec = dict(model.get("spec") or {})
    current = _current_revision(spec, stored)
    requested = annotation(model, UNDO_ANNOTATION)
    state = parse_state(model.get("status") or {})
    state = state if state is not None and state.hash == current.hash else None
    if requested:
        revision, problem = _requested_revision(requested, current, stored)
        if revision is not None and revision.hash != current.hash:
            reason = f"the annotation {UNDO_ANNOTATION} asks for revision {revision.number}"
            return RevisionChoice(revision, current, with_current_numbers(revision.spec, spec), reason)
        is_promoted = revision is not None
    else:
        problem, is_promoted = "", False
    before = next((candidate for candidate in reversed(stored) if candidate.hash in running), None)
    if not is_promoted and _is_tried(spec, state) and before is not None and current.hash not in running:
        return _choose_canary(before, current, state, spec, problem)
    if (spec.get("rollout") or {}).get("paused") and before is not None and current.hash not in running:
        return RevisionChoice(
            before,
            current,
            with_current_numbers(before.spec, spec),
            f"the rollout is paused; revision {before.number} runs on",
            problem,
            held_by_pause=True,
        )
    return RevisionChoice(
        current, current, spec, "it is the model's spec", problem, canary=_canary_being_promoted(state, current)
    )


def _is_tried(spec: dict[str, Any], state: CanaryState | None) -> bool:
    """Returns True if the spec is to be tried as a canary, or was rolled back as one.

    A pause holds a canary where it is, and starts none.
    """
    rollout = spec.get("rollout") or {}
    if not rollout.get("canary") or (state is not None and state.phase is CanaryPhase.PROMOTED):
        return False
    return state is not None or not rollout.get("paused")


def _choose_canary(
    before: ModelRevision, current: ModelRevision, state: CanaryState | None, spec: dict[str, Any], problem: str
) -> RevisionChoice:
    """Returns the choice while `current` is tried, or after it was rolled back."""
    if state is not None and state.is_refused:
        reason, canary = f"revision {before.number} runs on; {state.message}", None
    else:
        reason, canary = f"revision {before.number} runs on while revision {current.number} is a canary", current
    return RevisionChoice(before, current, with_current_numbers(before.spec, spec), reason, problem, canary=canary)


def _canary_being_promoted(state: CanaryState | None, current: ModelRevision) -> ModelRevision | None:
    """Returns the revision whose canary serves on until it has replaced the earlier one.

    Why: else its conversations would go back to the earlier revision for a while.
    """
    return None if state is None or state.phase is CanaryPhase.ROLLED_BACK else current


def _current_revision(spec: dict[str, Any], stored: Sequence[ModelRevision]) -> ModelRevision:
    """Returns the revision of `spec`: the stored one, renumbered as the newest, or a new one."""
    spec_hash, highest = revision_hash(spec), stored[-1].number if stored else 0
    for revision in stored:
        if revision.hash == spec_hash:
            return ModelRevision(revision.number if revision is stored[-1] else highest + 1, spec_hash, revision.spec)
    return ModelRevision(highest + 1, spec_hash, spec)


def _requested_revision(
    text: str, current: ModelRevision, stored: Sequence[ModelRevision]
) -> tuple[ModelRevision | None, str]:
    """Returns the revision of the annotation `NUMBER` or `NUMBER/FROM`, or a problem.

    With `FROM`, it applies only while that is the number of the spec's own revision.
    """
    wanted, _, origin = text.partition("/")
    if origin and origin != str(current.number):
        return None, ""
    revision = next((candidate for candidate in stored if str(candidate.number) == wanted), None)
    if revision is not None:
        return revision, ""
    available = ", ".join(str(candidate.number) for candidate in stored) or "none yet"
    return (
        None,
        f"the annotation {UNDO_ANNOTATION} asks for revision {text!r}, which is not kept; there are: {available}",
    )


def with_current_numbers(old: dict[str, Any], current: dict[str, Any]) -> dict[str, Any]:
    """Returns the engines of `old` with replica counts, SLO and rollout settings of `current`."""
    spec = {name: value for name, value in old.items() if name not in _FIELDS_WITHOUT_RESTART}
    spec.update({name: current[name] for name in _FIELDS_WITHOUT_RESTART if name in current})
    rollout = {name: value for name, value in (current.get("rollout") or {}).items() if name != "drainTimeout"}
    drain = _drain_timeout(old)
    spec["rollout"] = {**rollout, "drainTimeout": drain} if drain else rollout
    bounds_by_pool = {str(pool.get("name", "main")): _bounds(pool) for pool in current.get("pools") or []}
    pools = []
    for pool in old.get("pools") or []:
        rest = {name: value for name, value in pool.items() if name not in POOL_BOUNDS}
        pools.append({**rest, **(bounds_by_pool.get(str(pool.get("name", "main"))) or _bounds(pool))})
    spec["pools"] = pools
    if len(pools) != 1:
        spec.pop("replicas", None)  # `replicas` of the model is for its only pool
    return spec


def _bounds(pool: dict[str, Any]) -> dict[str, Any]:
    return {name: pool[name] for name in POOL_BOUNDS if name in pool}


def controller_revision(model: Manifest, revision: ModelRevision) -> Manifest:
    """Returns the ControllerRevision that stores `revision`."""
    name = shorten_name(f"{name_of(model)}-{revision.hash}")
    return {
        "apiVersion": CONTROLLER_REVISIONS.api_version,
        "kind": CONTROLLER_REVISIONS.kind,
        "metadata": {"name": name, "annotations": {MODEL_REVISION_ANNOTATION: revision.hash}},
        "revision": revision.number,
        "data": {"spec": revision.spec},
    }


def revisions_to_keep(stored: Sequence[ModelRevision], choice: RevisionChoice) -> tuple[ModelRevision, ...]:
    """Returns the revisions to keep: the running one, the current one, and the newest others."""
    required = {choice.current.hash: choice.current}
    if choice.is_pending:
        required[choice.revision.hash] = choice.revision
    free = max(0, MAX_KEPT_REVISIONS - len(required))
    others = [revision for revision in stored if revision.hash not in required]
    return tuple(sorted((*required.values(), *others[len(others) - free :]), key=lambda revision: revision.number))


def running_hashes(children: Iterable[Manifest]) -> frozenset[str]:
    """Returns the revision hashes of the workloads, without those of canaries."""
    return frozenset(
        annotation(child, MODEL_REVISION_ANNOTATION)
        for child in children
        if child.get("kind") in WORKLOAD_KINDS and not is_of_canary(child)
    ) - {""}
