"""Which revision of a model runs. Pure functions; the replacing itself, instance by instance, is the workload's own controller's.

A revision is a spec as far as engines notice it: numbers of instances, objectives, routing and the pace of a rollout are left out of
its hash, so that changing them replaces nothing. ``rollout.drain`` is in it: pods carry it, as their grace and in their hook. Each is
kept as a ControllerRevision. ``spec`` is never edited; to go back, people name an earlier revision in an annotation, which stands
until it is removed or, where it says from which revision, ``spec`` changes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fairlead.api import Rollout
from fairlead.kube.resources import CONTROLLER_REVISIONS, Manifest, name_of
from fairlead.names import shorten_name
from fairlead_operator.object_metadata import (
    MODEL_REVISION_ANNOTATION,
    UNDO_ANNOTATION,
    WORKLOAD_KINDS,
    annotation,
    json_digest,
)

MAX_KEPT_REVISIONS = 10
_FIELDS_WITHOUT_RESTART = ("replicas", "autoscaling", "rollout", "objectives", "routing")


@dataclass(frozen=True, slots=True)
class ModelRevision:
    """One spec that ran, or is to run. ``number`` grows with each change."""

    number: int
    hash: str
    spec: dict[str, Any]


@dataclass(frozen=True, slots=True)
class RevisionChoice:
    """What runs: ``revision``, whose engines get the numbers and objectives of the present spec in ``spec``.

    ``present`` is the revision of the model's own spec, which is kept even while another one runs; ``held``: by a pause. ``problem``:
    what was asked for and cannot be done.
    """

    revision: ModelRevision
    current: ModelRevision
    spec: dict[str, Any]
    reason: str
    problem: str = ""
    held_by_pause: bool = False

    @property
    def is_pending(self) -> bool:
        """The model's own spec is not what runs."""
        return self.revision.hash != self.current.hash


def revision_hash(spec: dict[str, Any]) -> str:
    """The same for two specs that make the same engines."""
    rest = {name: value for name, value in spec.items() if name not in _FIELDS_WITHOUT_RESTART}
    pools = [{name: value for name, value in pool.items() if name != "replicas"} for pool in spec.get("pools") or []]
    drain = _drain(spec)
    usual = {} if drain in (None, Rollout().drain) else {"drain": drain}
    return json_digest({**rest, **usual, "pools": pools})


def _drain(spec: dict[str, Any]) -> str | None:
    return (spec.get("rollout") or {}).get("drain")


def stored_revisions(live: Iterable[Manifest]) -> tuple[ModelRevision, ...]:
    """Those that are kept, oldest first. What is no revision of ours is left out: the controller of LeaderWorkerSets keeps its own,
    of the same kind and with the labels of ours, and a spec in them too."""
    found = []
    for one in live:
        data, hashed = one.get("data") or {}, annotation(one, MODEL_REVISION_ANNOTATION)
        if one.get("kind") == CONTROLLER_REVISIONS.kind and hashed and isinstance(data.get("spec"), dict):
            found.append(ModelRevision(int(one.get("revision") or 0), hashed, dict(data["spec"])))
    return tuple(sorted(found, key=lambda one: (one.number, one.hash)))


def choose_revision(model: Manifest, kept: Sequence[ModelRevision], running: frozenset[str]) -> RevisionChoice:
    """What shall run. ``running`` are the hashes that workloads were made of."""
    spec = dict(model.get("spec") or {})
    present = _current_revision(spec, kept)
    asked = annotation(model, UNDO_ANNOTATION)
    if asked:
        found, problem = _requested_revision(asked, present, kept)
        if found is not None and found.hash != present.hash:
            why = f"the annotation {UNDO_ANNOTATION} asks for revision {found.number}"
            return RevisionChoice(found, present, with_current_numbers(found.spec, spec), why)
    else:
        problem = ""
    if (spec.get("rollout") or {}).get("paused") and running and present.hash not in running:
        held = next((one for one in reversed(kept) if one.hash in running), None)
        if held is not None:
            why = f"the rollout is paused; revision {held.number} runs on"
            return RevisionChoice(
                held, present, with_current_numbers(held.spec, spec), why, problem, held_by_pause=True
            )
    return RevisionChoice(present, present, spec, "it is the model's spec", problem)


def _current_revision(spec: dict[str, Any], kept: Sequence[ModelRevision]) -> ModelRevision:
    """The revision of ``spec``: the kept one, as the newest, or a new one."""
    hashed, highest = revision_hash(spec), kept[-1].number if kept else 0
    for one in kept:
        if one.hash == hashed:
            return ModelRevision(one.number if one is kept[-1] else highest + 1, hashed, one.spec)
    return ModelRevision(highest + 1, hashed, spec)


def _requested_revision(
    text: str, present: ModelRevision, kept: Sequence[ModelRevision]
) -> tuple[ModelRevision | None, str]:
    """The revision that ``NUMBER`` or ``NUMBER/FROM`` names. With ``FROM`` it is meant only while that is the spec's own revision."""
    wanted, _, origin = text.partition("/")
    if origin and origin != str(present.number):
        return None, ""
    found = next((one for one in kept if str(one.number) == wanted), None)
    if found is not None:
        return found, ""
    there = ", ".join(str(one.number) for one in kept) or "none yet"
    return None, f"the annotation {UNDO_ANNOTATION} asks for revision {text!r}, which is not kept; there are: {there}"


def with_current_numbers(old: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
    """The engines of ``old`` with the numbers of instances, the objectives and the pace of ``present``."""
    spec = {name: value for name, value in old.items() if name not in _FIELDS_WITHOUT_RESTART}
    spec.update({name: present[name] for name in _FIELDS_WITHOUT_RESTART if name in present})
    pace = {name: value for name, value in (present.get("rollout") or {}).items() if name != "drain"}
    drain = _drain(old)
    spec["rollout"] = {**pace, "drain": drain} if drain else pace
    numbers = {str(pool.get("name", "main")): pool.get("replicas") for pool in present.get("pools") or []}
    pools = []
    for pool in old.get("pools") or []:
        replicas = numbers.get(str(pool.get("name", "main"))) or pool.get("replicas")
        pools.append({**pool, **({"replicas": replicas} if replicas else {})})
    spec["pools"] = pools
    if len(pools) != 1:
        spec.pop("replicas", None)  # a number of the whole model is one for its only pool
    return spec


def controller_revision(model: Manifest, revision: ModelRevision) -> Manifest:
    """The ControllerRevision that keeps ``revision``."""
    name = shorten_name(f"{name_of(model)}-{revision.hash}")
    return {
        "apiVersion": CONTROLLER_REVISIONS.api_version,
        "kind": CONTROLLER_REVISIONS.kind,
        "metadata": {"name": name, "annotations": {MODEL_REVISION_ANNOTATION: revision.hash}},
        "revision": revision.number,
        "data": {"spec": revision.spec},
    }


def revisions_to_keep(kept: Sequence[ModelRevision], choice: RevisionChoice) -> tuple[ModelRevision, ...]:
    """The revisions to keep on: what runs, what is asked, and the newest others, so many."""
    now = {choice.current.hash: choice.current}
    if choice.is_pending:
        now[choice.revision.hash] = choice.revision
    room = max(0, MAX_KEPT_REVISIONS - len(now))
    others = [one for one in kept if one.hash not in now]
    return tuple(sorted((*now.values(), *others[len(others) - room :]), key=lambda one: one.number))


def running_hashes(children: Iterable[Manifest]) -> frozenset[str]:
    """The revisions that workloads were made of."""
    return frozenset(
        annotation(one, MODEL_REVISION_ANNOTATION) for one in children if one.get("kind") in WORKLOAD_KINDS
    ) - {""}
