"""What to write: a pure comparison of the children that shall be with those that are.

Applied is what is new, different, or was changed by somebody else; the rest is left alone. Pruned is what carries our label, is owned
by this very model and is wanted no more. Where there is a doubt nothing is deleted, and ``kept`` says why.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from fairlead.fleet.labels import AUTOSCALER_FIELD_MANAGER, FIELD_MANAGER, ROLE_LABEL
from fairlead.kube.resources import Manifest, is_deleting, name_of, uid_of
from fairlead_operator.controller.field_ownership import (
    REPLICAS_PATH,
    FieldPath,
    missing_fields,
    overwritten_fields,
    replica_field_owner,
    without_field,
)
from fairlead_operator.object_metadata import (
    APPLIED_ANNOTATION,
    WORKLOAD_KINDS,
    ChildKey,
    annotation,
    child_key,
    controller_uid,
    label,
    with_ownership,
)

# Supports first, so that no pod is made before what it needs; workloads last.
_SUPPORT_ORDER = (
    "ControllerRevision",
    "ServiceAccount",
    "ConfigMap",
    "PersistentVolumeClaim",
    "Service",
    "NetworkPolicy",
)


@dataclass(frozen=True, slots=True)
class ApplyStep:
    """One manifest to apply, complete. ``live`` is what is there now, None for nothing.

    ``corrects``: somebody else changed it; ``restores``: or took something away.
    """

    manifest: Manifest
    live: Manifest | None
    reason: str
    corrects: bool = False
    restores: bool = False


@dataclass(frozen=True, slots=True)
class RetainedObject:
    """Something that is not wanted any more and stays for now. ``blocks``: one that is wanted waits for its name."""

    manifest: Manifest
    reason: str
    blocks_name: bool = False


@dataclass(frozen=True, slots=True)
class ApplyPlan:
    """What to write, in this order: ``applies``, then ``prunes``."""

    steps: tuple[ApplyStep, ...] = ()
    prunes: tuple[Manifest, ...] = ()
    retained: tuple[RetainedObject, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Nothing is to be written."""
        return not self.steps and not self.prunes


@dataclass(frozen=True, slots=True)
class PruneGuard:
    """Reasons not to delete. ``stale``: what we read may be old, in words. ``incomplete``: not everything could be rendered."""

    stale: str = ""
    incomplete: bool = False
    paused: bool = False


def make_plan(
    model: Manifest,
    wanted: Sequence[Manifest],
    live: Mapping[ChildKey, Manifest],
    guard: PruneGuard,
    dropped_fields: Set[tuple[str, FieldPath]] = frozenset(),
) -> ApplyPlan:
    """What to do about ``model``, whose children shall be ``wanted`` and are ``live``.

    ``unkept``: fields, by their object's uid, that the API server does not keep.
    """
    ordered = sorted(wanted, key=_apply_order)
    applies = [step for step in (_apply_step(model, one, live, dropped_fields) for one in ordered) if step is not None]
    keys = {child_key(one) for one in wanted}
    prunes: list[Manifest] = []
    kept: list[RetainedObject] = []
    for key, child in sorted(live.items()):
        if is_deleting(child):
            continue
        if controller_uid(child) != uid_of(model):  # the garbage collector's business, not ours
            if key in keys and controller_uid(child):
                kept.append(
                    RetainedObject(
                        child, "it is of an earlier model of this name, and goes by itself", blocks_name=True
                    )
                )
            continue
        if key in keys:
            continue
        why = _reason_to_keep(child, wanted, live, guard)
        if why:
            kept.append(RetainedObject(child, why))
        else:
            prunes.append(child)
    return ApplyPlan(tuple(applies), tuple(prunes), tuple(kept))


def _apply_order(manifest: Manifest) -> tuple[int, str, str]:
    kind, name = child_key(manifest)
    if kind in _SUPPORT_ORDER:
        return _SUPPORT_ORDER.index(kind), kind, name
    return len(_SUPPORT_ORDER) + (kind in WORKLOAD_KINDS), kind, name


def _apply_step(
    model: Manifest, one: Manifest, live: Mapping[ChildKey, Manifest], dropped_fields: Set[tuple[str, FieldPath]]
) -> ApplyStep | None:
    there = live.get(child_key(one))
    whole = with_ownership(one, model)
    if there is None:
        return ApplyStep(whole, None, "it is not there")
    if is_deleting(there) or controller_uid(there) not in ("", uid_of(model)):
        return None  # it is made anew once it is gone, which we shall hear of
    if _has_foreign_replicas(model, there):
        whole = with_ownership(without_field(one, REPLICAS_PATH), model)
    if annotation(there, APPLIED_ANNOTATION) != annotation(whole, APPLIED_ANNOTATION):
        return ApplyStep(whole, there, "it is different")
    changed = overwritten_fields(there, whole, FIELD_MANAGER)
    removed = frozenset(path for path in missing_fields(there, whole) if (uid_of(there), path) not in dropped_fields)
    done = [f"{verb} {_format_paths(paths)}" for verb, paths in (("changed", changed), ("removed", removed)) if paths]
    if done:
        return ApplyStep(whole, there, f"somebody {' and '.join(done)}", corrects=True, restores=bool(removed))
    return None


def _has_foreign_replicas(model: Manifest, live: Manifest) -> bool:
    """Is the number of a workload somebody else's? What the autoscaler wrote last stays too when it is switched off, until somebody
    says another number in the spec."""
    owner = replica_field_owner(live, FIELD_MANAGER)
    said = (model.get("spec") or {}).get("replicas") is not None
    return bool(owner) and not (owner == AUTOSCALER_FIELD_MANAGER and said)


def _format_paths(paths: frozenset[FieldPath]) -> str:
    return ", ".join(sorted(".".join(path) for path in paths)[:3])


def _reason_to_keep(
    child: Manifest, wanted: Sequence[Manifest], live: Mapping[ChildKey, Manifest], doubts: PruneGuard
) -> str:
    """Why ``child`` stays although it is not wanted; empty when it may go."""
    if doubts.stale:
        return doubts.stale
    if doubts.incomplete:
        return "not everything that the model becomes could be worked out"
    if child["kind"] not in WORKLOAD_KINDS:
        return ""
    if doubts.paused:
        return "the rollout is paused"
    return _serving_until(child, wanted, live)


def _serving_until(child: Manifest, wanted: Sequence[Manifest], live: Mapping[ChildKey, Manifest]) -> str:
    """A pool that goes serves until one that stays can: the new one of a renamed pool comes up first."""
    if not ready_replicas(child):
        return ""
    heirs = [
        one for one in wanted if one["kind"] in WORKLOAD_KINDS and label(one, ROLE_LABEL) == label(child, ROLE_LABEL)
    ]
    asked = [one for one in heirs if (one.get("spec") or {}).get("replicas", 1)]
    if not asked or any(ready_replicas(live.get(child_key(one)) or {}) for one in asked):
        return ""
    return f"it serves until an instance of {', '.join(name_of(one) for one in asked)} is ready"


def ready_replicas(workload: Manifest) -> int:
    """How many instances of a workload are ready."""
    return int((workload.get("status") or {}).get("readyReplicas") or 0)
