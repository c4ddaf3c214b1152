"""What to write: a pure comparison of the children that shall be with those that are.

Applied is what is new, different, or was changed by somebody else; the rest is left alone. Pruned is what carries our label, is owned
by this very model and is wanted no more. Where there is a doubt nothing is deleted, and ``kept`` says why.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from fairlead.cluster_labels import AUTOSCALER, MANAGER, ROLE
from fairlead.kube.resource import Manifest, leaving, name_of, uid_of
from fairlead_operator.marks import APPLIED, annotation, label, owned, owner_uid
from fairlead_operator.ownership import REPLICAS, Path, lost, scaler, taken, without

ChildKey = tuple[str, str]
"""(kind, name); a model's children share its namespace."""
WORKLOADS = ("Deployment", "LeaderWorkerSet")
# Supports first, so that no pod is made before what it needs; workloads last.
_ORDER = ("ControllerRevision", "ServiceAccount", "ConfigMap", "PersistentVolumeClaim", "Service", "NetworkPolicy")


@dataclass(frozen=True, slots=True)
class Apply:
    """One manifest to apply, complete. ``live`` is what is there now, None for nothing.

    ``corrects``: somebody else changed it; ``restores``: or took something away.
    """

    manifest: Manifest
    live: Manifest | None
    why: str
    corrects: bool = False
    restores: bool = False


@dataclass(frozen=True, slots=True)
class Kept:
    """Something that is not wanted any more and stays for now. ``blocks``: one that is wanted waits for its name."""

    manifest: Manifest
    why: str
    blocks: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write, in this order: ``applies``, then ``prunes``."""

    applies: tuple[Apply, ...] = ()
    prunes: tuple[Manifest, ...] = ()
    kept: tuple[Kept, ...] = ()

    @property
    def idle(self) -> bool:
        """Nothing is to be written."""
        return not self.applies and not self.prunes


@dataclass(frozen=True, slots=True)
class Doubts:
    """Reasons not to delete. ``stale``: what we read may be old, in words. ``incomplete``: not everything could be rendered."""

    stale: str = ""
    incomplete: bool = False
    paused: bool = False


def child_key(manifest: Manifest) -> ChildKey:
    """What names a child within its model."""
    return str(manifest.get("kind", "")), name_of(manifest)


def plan(
    model: Manifest,
    wanted: Sequence[Manifest],
    live: Mapping[ChildKey, Manifest],
    doubts: Doubts,
    unkept: Set[tuple[str, Path]] = frozenset(),
) -> Plan:
    """What to do about ``model``, whose children shall be ``wanted`` and are ``live``.

    ``unkept``: fields, by their object's uid, that the API server does not keep.
    """
    ordered = sorted(wanted, key=_rank)
    applies = [step for step in (_apply(model, one, live, unkept) for one in ordered) if step is not None]
    keys = {child_key(one) for one in wanted}
    prunes: list[Manifest] = []
    kept: list[Kept] = []
    for key, child in sorted(live.items()):
        if leaving(child):
            continue
        if owner_uid(child) != uid_of(model):  # the garbage collector's business, not ours
            if key in keys and owner_uid(child):
                kept.append(Kept(child, "it is of an earlier model of this name, and goes by itself", blocks=True))
            continue
        if key in keys:
            continue
        why = _doubt(child, wanted, live, doubts)
        if why:
            kept.append(Kept(child, why))
        else:
            prunes.append(child)
    return Plan(tuple(applies), tuple(prunes), tuple(kept))


def _rank(manifest: Manifest) -> tuple[int, str, str]:
    kind, name = child_key(manifest)
    if kind in _ORDER:
        return _ORDER.index(kind), kind, name
    return len(_ORDER) + (kind in WORKLOADS), kind, name


def _apply(
    model: Manifest, one: Manifest, live: Mapping[ChildKey, Manifest], unkept: Set[tuple[str, Path]]
) -> Apply | None:
    there = live.get(child_key(one))
    whole = owned(one, model)
    if there is None:
        return Apply(whole, None, "it is not there")
    if leaving(there) or owner_uid(there) not in ("", uid_of(model)):
        return None  # it is made anew once it is gone, which we shall hear of
    if _left_alone(model, there):
        whole = owned(without(one, REPLICAS), model)
    if annotation(there, APPLIED) != annotation(whole, APPLIED):
        return Apply(whole, there, "it is different")
    changed = taken(there, whole, MANAGER)
    removed = frozenset(path for path in lost(there, whole) if (uid_of(there), path) not in unkept)
    done = [f"{verb} {_named(paths)}" for verb, paths in (("changed", changed), ("removed", removed)) if paths]
    if done:
        return Apply(whole, there, f"somebody {' and '.join(done)}", corrects=True, restores=bool(removed))
    return None


def _left_alone(model: Manifest, live: Manifest) -> bool:
    """Is the number of a workload somebody else's? What the autoscaler wrote last stays too when it is switched off, until somebody
    says another number in the spec."""
    owner = scaler(live, MANAGER)
    said = (model.get("spec") or {}).get("replicas") is not None
    return bool(owner) and not (owner == AUTOSCALER and said)


def _named(paths: frozenset[Path]) -> str:
    return ", ".join(sorted(".".join(path) for path in paths)[:3])


def _doubt(child: Manifest, wanted: Sequence[Manifest], live: Mapping[ChildKey, Manifest], doubts: Doubts) -> str:
    """Why ``child`` stays although it is not wanted; empty when it may go."""
    if doubts.stale:
        return doubts.stale
    if doubts.incomplete:
        return "not everything that the model becomes could be worked out"
    if child["kind"] not in WORKLOADS:
        return ""
    if doubts.paused:
        return "the rollout is paused"
    return _still_serving(child, wanted, live)


def _still_serving(child: Manifest, wanted: Sequence[Manifest], live: Mapping[ChildKey, Manifest]) -> str:
    """A pool that goes serves until one that stays can: the new one of a renamed pool comes up first."""
    if not ready_of(child):
        return ""
    heirs = [one for one in wanted if one["kind"] in WORKLOADS and label(one, ROLE) == label(child, ROLE)]
    asked = [one for one in heirs if (one.get("spec") or {}).get("replicas", 1)]
    if not asked or any(ready_of(live.get(child_key(one)) or {}) for one in asked):
        return ""
    return f"it serves until an instance of {', '.join(name_of(one) for one in asked)} is ready"


def ready_of(workload: Manifest) -> int:
    """How many instances of a workload are ready."""
    return int((workload.get("status") or {}).get("readyReplicas") or 0)
