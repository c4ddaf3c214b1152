"""Computes what to write: a comparison of the desired children with the existing ones. Pure.

Children are applied if they are new, different, or changed by other writers. Children are pruned if
they carry our label, are owned by this very model, and are no longer desired. In doubt nothing is
deleted, and `retained` says why.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from fairlead.fleet.labels import AUTOSCALER_FIELD_MANAGER, FIELD_MANAGER, ROLE_LABEL, SURGE_ANNOTATION
from fairlead.kube.resources import CONTROLLER_REVISIONS, Manifest, is_deleting, name_of, namespace_of, uid_of
from fairlead_operator.controller.field_ownership import (
    REPLICAS_PATH,
    FieldPath,
    missing_fields,
    overwritten_fields,
    replica_field_owner,
    without_field,
)
from fairlead_operator.controller.group_rollout import surplus_groups
from fairlead_operator.kube.object_trimming import is_too_large
from fairlead_operator.object_metadata import (
    APPLIED_ANNOTATION,
    MODEL_REVISION_ANNOTATION,
    WORKLOAD_KINDS,
    ChildKey,
    annotation,
    child_key,
    controller_uid,
    label,
    with_ownership,
)

# Workloads last, so that no pod is created before the objects that it needs.
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
    """A complete manifest to apply. `live` is the existing object, if any.

    corrects: another writer changed it.
    restores: another writer removed fields.
    """

    manifest: Manifest
    live: Manifest | None
    reason: str
    corrects: bool = False
    restores: bool = False


@dataclass(frozen=True, slots=True)
class RetainedObject:
    """An object that is no longer desired, or not in this form, but stays as it is for now.

    blocks_name: a desired object waits for its name.
    """

    manifest: Manifest
    reason: str
    blocks_name: bool = False


@dataclass(frozen=True, slots=True)
class ApplyPlan:
    """The writes, in this order: `steps`, then `prunes`."""

    steps: tuple[ApplyStep, ...] = ()
    prunes: tuple[Manifest, ...] = ()
    retained: tuple[RetainedObject, ...] = ()

    @property
    def is_empty(self) -> bool:
        """True if nothing is to be written."""
        return not self.steps and not self.prunes


@dataclass(frozen=True, slots=True)
class PruneGuard:
    """Reasons not to delete.

    stale: why the observed state may be out of date; empty if it is fresh.
    incomplete: not everything could be rendered.
    """

    stale: str = ""
    incomplete: bool = False
    paused: bool = False


def make_plan(
    model: Manifest,
    wanted: Sequence[Manifest],
    live: Mapping[ChildKey, Manifest],
    guard: PruneGuard,
    dropped_fields: Set[tuple[str, FieldPath]] = frozenset(),
    installation: str = "",
) -> ApplyPlan:
    """Returns the writes for `model`, whose children should be `wanted` and are `live`.

    dropped_fields: fields, by object uid, that the API server does not keep.
    installation: the id that children get; empty for none.
    """
    wanted = [_as_scaled(model, manifest, live.get(child_key(manifest))) for manifest in wanted]
    keys = {child_key(manifest) for manifest in wanted}
    emptied = {
        child_key(manifest) for manifest in wanted if manifest["kind"] in WORKLOAD_KINDS and not _count_of(manifest)
    }
    prunes: list[Manifest] = []
    retained: list[RetainedObject] = []
    for key, child in sorted(live.items()):
        if is_deleting(child):
            continue
        if controller_uid(child) != uid_of(model):  # left to the garbage collector
            if key in keys and controller_uid(child):
                retained.append(
                    RetainedObject(
                        child, "it is of an earlier model of this name; Kubernetes deletes it", blocks_name=True
                    )
                )
            continue
        # A workload that goes to zero ends its instances, so it waits as a removed one does.
        if key in keys - emptied:
            continue
        reason = _reason_to_keep(child, wanted, live, PruneGuard() if key in emptied else guard)
        if reason:
            retained.append(RetainedObject(child, reason))
        elif key not in keys:
            prunes.append(child)
    kept = {child_key(entry.manifest) for entry in retained}
    ordered = sorted((manifest for manifest in wanted if child_key(manifest) not in kept), key=_apply_order)
    steps = (_apply_step(model, manifest, live, dropped_fields, installation) for manifest in ordered)
    return ApplyPlan(tuple(filter(None, steps)), tuple(prunes), tuple(retained))


def count_only(live: Manifest, replicas: int) -> Manifest:
    """Returns what is merged into a workload that cannot be rendered: its number of instances.

    Without the hash of what was applied, it is applied again as soon as it can be rendered.
    """
    notes = dict.fromkeys((APPLIED_ANNOTATION, *(() if replicas else (SURGE_ANNOTATION,))))
    notes |= {MODEL_REVISION_ANNOTATION: annotation(live, MODEL_REVISION_ANNOTATION)}
    labels = {ROLE_LABEL: label(live, ROLE_LABEL)}
    metadata = {"name": name_of(live), "namespace": namespace_of(live), "labels": labels, "annotations": notes}
    spec = {"replicas": replicas + surplus_groups(live) if replicas else 0}
    return {"apiVersion": live["apiVersion"], "kind": live["kind"], "metadata": metadata, "spec": spec}


def is_count_only(manifest: Manifest) -> bool:
    return manifest["kind"] in WORKLOAD_KINDS and manifest["spec"].keys() == {"replicas"}


def _apply_order(manifest: Manifest) -> tuple[int, str, str]:
    kind, name = child_key(manifest)
    if kind in _SUPPORT_ORDER:
        return _SUPPORT_ORDER.index(kind), kind, name
    return len(_SUPPORT_ORDER) + (kind in WORKLOAD_KINDS), kind, name


def _apply_step(
    model: Manifest,
    manifest: Manifest,
    live: Mapping[ChildKey, Manifest],
    dropped_fields: Set[tuple[str, FieldPath]],
    installation: str,
) -> ApplyStep | None:
    existing = live.get(child_key(manifest))
    complete = with_ownership(manifest, model, installation)
    if existing is None:
        return ApplyStep(complete, None, "it is not there")
    if is_deleting(existing) or controller_uid(existing) not in ("", uid_of(model)):
        return None  # it is created again after the deletion event
    if is_count_only(manifest):
        is_right = _count_of(manifest) == _count_of(existing)
        return None if is_right else ApplyStep(manifest, existing, "its number is different")
    if _has_foreign_replicas(model, existing):
        complete = with_ownership(without_field(manifest, REPLICAS_PATH), model, installation)
    if annotation(existing, APPLIED_ANNOTATION) != annotation(complete, APPLIED_ANNOTATION):
        return ApplyStep(complete, existing, "it is different")
    if is_too_large(existing):
        return None  # what other writers changed is unknown
    overwritten = overwritten_fields(existing, complete, FIELD_MANAGER)
    missing = frozenset(
        path for path in missing_fields(existing, _mutable(complete)) if (uid_of(existing), path) not in dropped_fields
    )
    changes = [
        f"{verb} {_format_paths(paths)}" for verb, paths in (("changed", overwritten), ("removed", missing)) if paths
    ]
    if changes:
        return ApplyStep(
            complete, existing, f"another writer {' and '.join(changes)}", corrects=True, restores=bool(missing)
        )
    return None


def _as_scaled(model: Manifest, wanted: Manifest, existing: Manifest | None) -> Manifest:
    """Returns a child with the number of instances of another writer, if one owns it."""
    if existing is None or not _has_foreign_replicas(model, existing):
        return wanted
    return {**wanted, "spec": {**wanted["spec"], "replicas": _count_of(existing)}}


def _count_of(workload: Manifest) -> int:
    return int((workload.get("spec") or {}).get("replicas", 1))


def _mutable(manifest: Manifest) -> Manifest:
    """Returns a manifest without the data of a ControllerRevision, which no writer can change."""
    if manifest.get("kind") != CONTROLLER_REVISIONS.kind:
        return manifest
    return {name: value for name, value in manifest.items() if name != "data"}


def _has_foreign_replicas(model: Manifest, live: Manifest) -> bool:
    """Returns True if another writer owns the replica count.

    The autoscaler's last number stays until the spec gives a number, even if autoscaling is off.
    """
    owner = replica_field_owner(live, FIELD_MANAGER)
    spec_sets_replicas = (model.get("spec") or {}).get("replicas") is not None
    return bool(owner) and not (owner == AUTOSCALER_FIELD_MANAGER and spec_sets_replicas)


def _format_paths(paths: frozenset[FieldPath]) -> str:
    return ", ".join(sorted(".".join(path) for path in paths)[:3])


def _reason_to_keep(
    child: Manifest, wanted: Sequence[Manifest], live: Mapping[ChildKey, Manifest], guard: PruneGuard
) -> str:
    """Returns why `child` stays although it is not desired; empty if it may be deleted."""
    if guard.stale:
        return guard.stale
    if guard.incomplete:
        return "not all of the model's children could be rendered"
    if child["kind"] not in WORKLOAD_KINDS:
        return ""
    if guard.paused:
        return "the rollout is paused"
    return _serving_until(child, wanted, live)


def _serving_until(child: Manifest, wanted: Sequence[Manifest], live: Mapping[ChildKey, Manifest]) -> str:
    """Returns why a pool must stay until another one of its role is ready; empty if not."""
    if not ready_replicas(child):
        return ""
    successors = [
        workload
        for workload in wanted
        if workload["kind"] in WORKLOAD_KINDS and label(workload, ROLE_LABEL) == label(child, ROLE_LABEL)
    ]
    active = [workload for workload in successors if _count_of(workload)]
    if not active or any(ready_replicas(live.get(child_key(workload)) or {}) for workload in active):
        return ""
    return f"it serves until an instance of {', '.join(name_of(workload) for workload in active)} is ready"


def ready_replicas(workload: Manifest) -> int:
    return int((workload.get("status") or {}).get("readyReplicas") or 0)
