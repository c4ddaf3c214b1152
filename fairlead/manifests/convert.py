"""Conversion of manifests of release 0.1 to fields and values of this release. Pure.

`convert_document` converts one object; `convert_text.py` converts files and keeps their comments.
A converted object describes the same pods: no engine restarts.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fairlead.api.v1alpha1 import API_VERSION
from fairlead.manifests.yaml_nodes import format_path
from fairlead.units import format_percentage, format_quantity

FieldPath = tuple[str | int, ...]

EARLIER_ENGINE_TYPES: Final = {
    "vllm": "VLLM",
    "sglang": "SGLang",
    "sim": "Sim",
    "custom": "Custom",
    "external": "External",
}
_PROFILE_SECONDS: Final = (
    "prefillTokenSeconds",
    "attentionSeconds",
    "weightsSeconds",
    "stepSeconds",
    "sequenceSeconds",
    "residentTokenSeconds",
    "hitTokenSeconds",
)


@dataclass(frozen=True, slots=True)
class Change:
    """One edit of a document. `path` is the place in the earlier document.

    key: the new name of the field; None if it keeps its name.
    value: the new value, in a tuple of one; None if the field keeps its value.
    children: (earlier, new) names of the entries of a mapping that move up to its parent.
    parent: the mapping that the field moves to; None if it stays.
    """

    path: FieldPath
    key: str | None = None
    value: tuple[Any] | None = None
    children: tuple[tuple[str, str], ...] | None = None
    parent: FieldPath | None = None

    def describe(self) -> str:
        """Returns a line for people: the earlier field, and what the new manifest says."""
        earlier = format_path(self.path)
        above = tuple("slo" if step == "objectives" else step for step in self.path[:-1])
        if self.children is not None:
            return f"{earlier} is now {' and '.join(new for _, new in self.children) or 'left out'}"
        if self.key is None:
            assert self.value is not None
            return f"{earlier}: {json.dumps(self.value[0])}"
        name = "secretRef.name" if self.key == "secretRef" else self.key
        return f"{earlier} is now {format_path((*(self.parent or above), name))}"


@dataclass(frozen=True, slots=True)
class Conversion:
    """A document with the fields and values of this release, and the changes that were needed."""

    document: dict[str, Any]
    changes: tuple[Change, ...] = field(default=())


def convert_document(document: Mapping[str, Any]) -> Conversion:
    """Returns a copy of the document in which the fields and values of release 0.1 are replaced."""
    changes = tuple(_changes_of_object(document, ()))
    converted = copy.deepcopy(dict(document))
    for change in sorted(changes, key=lambda change: -len(change.path)):
        _apply(converted, change)
    return Conversion(converted, changes)


def convert_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the spec of a ModelDeployment with the fields and values of this release."""
    wrapped = {"apiVersion": API_VERSION, "kind": "ModelDeployment", "spec": spec}
    converted: dict[str, Any] = convert_document(wrapped).document["spec"]
    return converted


def _apply(document: dict[str, Any], change: Change) -> None:
    *above, name = change.path
    holder = value_at(document, tuple(above))
    if change.children is not None:
        _replace_entry(holder, name, [(new, holder[name][old]) for old, new in change.children])
        return
    value = holder[name] if change.value is None else change.value[0]
    if change.parent is None:
        _replace_entry(holder, name, [(change.key or name, value)])
        return
    value_at(document, change.parent)[change.key] = value
    del holder[name]
    if not holder:
        del value_at(document, tuple(above[:-1]))[above[-1]]


def _replace_entry(holder: dict[str, Any], name: str | int, entries: list[tuple[Any, Any]]) -> None:
    """Puts `entries` at the place of the entry `name`, so that fields keep their order."""
    before = list(holder.items())
    holder.clear()
    for key, value in before:
        holder.update(entries if key == name else [(key, value)])


def value_at(document: Any, path: FieldPath) -> Any:
    """Returns the value at `path`. Raises KeyError or IndexError when there is none."""
    for step in path:
        document = document[step]
    return document


def _changes_of_object(document: Any, path: FieldPath) -> Iterator[Change]:
    if not isinstance(document, Mapping):
        return
    kind, spec = document.get("kind"), document.get("spec")
    if document.get("apiVersion") == "v1" and kind == "List" and isinstance(document.get("items"), list):
        for index, item in enumerate(document["items"]):
            yield from _changes_of_object(item, (*path, "items", index))
    if document.get("apiVersion") != API_VERSION or not isinstance(spec, Mapping):
        return
    if kind == "ModelDeployment":
        yield from _changes_of_model(spec, (*path, "spec"))
    elif kind == "AcceleratorClass":
        yield from _changes_of_profile(spec, (*path, "spec"))


def _changes_of_model(spec: Mapping[str, Any], path: FieldPath) -> Iterator[Change]:
    yield from _changes_of_source(spec, path)
    yield from _changes_of_engine(spec, path)
    for index, pool in _items(spec.get("pools")):
        at = (*path, "pools", index)
        yield from _renames(pool, at, {"accelerator": "acceleratorClassName"})
        yield from _changes_of_bounds(pool, at)
    yield from _changes_of_slo(spec, path)
    yield from _changes_of_autoscaling(spec, path)
    yield from _changes_of_kv_cache(spec, path)
    yield from _renames(_mapping(spec, "rollout"), (*path, "rollout"), {"surge": "maxSurge", "drain": "drainTimeout"})


def _changes_of_source(spec: Mapping[str, Any], path: FieldPath) -> Iterator[Change]:
    model = _mapping(spec, "model")
    yield from _renames(model, (*path, "model"), {"source": "uri"})
    credentials = _mapping(model, "credentials")
    name = credentials.get("secretName")
    if isinstance(name, str) and "secretRef" not in credentials:
        yield Change((*path, "model", "credentials", "secretName"), key="secretRef", value=({"name": name},))


def _changes_of_engine(spec: Mapping[str, Any], path: FieldPath) -> Iterator[Change]:
    engine = _mapping(spec, "engine")
    if "kind" in engine and "type" not in engine:
        earlier = engine["kind"]
        word = EARLIER_ENGINE_TYPES.get(earlier) if isinstance(earlier, str) else None
        yield Change((*path, "engine", "kind"), key="type", value=None if word is None else (word,))
    name, model = engine.get("servedModelName"), spec.get("model")
    if isinstance(name, str) and isinstance(model, Mapping) and "servedNames" not in model:
        place = (*path, "engine", "servedModelName")
        yield Change(place, key="servedNames", value=([name],), parent=(*path, "model"))


def _changes_of_bounds(pool: Mapping[str, Any], path: FieldPath) -> Iterator[Change]:
    replicas = pool.get("replicas")
    if not isinstance(replicas, Mapping) or not {"min", "max"} >= set(replicas):
        return
    if "minReplicas" in pool or "maxReplicas" in pool:
        return
    names = tuple((name, f"{name}Replicas") for name in replicas)
    yield Change((*path, "replicas"), children=names)


def _changes_of_slo(spec: Mapping[str, Any], path: FieldPath) -> Iterator[Change]:
    name = "slo" if "slo" in spec else "objectives"
    objectives, place = _mapping(spec, name), (*path, name)
    yield from _renames(spec, path, {"objectives": "slo"})
    yield from _renames(objectives, place, {"itl": "tpot"})
    target = objectives.get("target")
    if isinstance(target, int | float) and not isinstance(target, bool) and 0 < target <= 1:
        yield Change((*place, "target"), value=(format_percentage(target),))


def _changes_of_autoscaling(spec: Mapping[str, Any], path: FieldPath) -> Iterator[Change]:
    scaling, place = _mapping(spec, "autoscaling"), (*path, "autoscaling")
    mode = scaling.get("mode")
    if mode is False or mode == "Off":
        yield Change((*place, "mode"), value=("Disabled",))
    yield from _renames(scaling, place, {"max": "maxReplicas", "downWindow": "stabilizationWindow"})
    for index, schedule in _items(scaling.get("schedules")):
        at = (*place, "schedules", index)
        yield from _renames(schedule, at, {"min": "minReplicas", "max": "maxReplicas"})


def _changes_of_kv_cache(spec: Mapping[str, Any], path: FieldPath) -> Iterator[Change]:
    cache, place = _mapping(spec, "kvCache"), (*path, "kvCache")
    if cache.get("transfer") == "Nixl":
        yield Change((*place, "transfer"), value=("NIXL",))
    yield from _renames(_mapping(cache, "offload"), (*place, "offload"), {"kind": "type"})


def _changes_of_profile(spec: Mapping[str, Any], path: FieldPath) -> Iterator[Change]:
    profile = _mapping(spec, "profile")
    for name in _PROFILE_SECONDS:
        value = profile.get(name)
        if isinstance(value, float) and 0 <= value < float("inf"):
            yield Change((*path, "profile", name), value=(format_quantity(value),))


def _renames(holder: Mapping[str, Any], path: FieldPath, names: Mapping[str, str]) -> Iterator[Change]:
    for earlier, name in names.items():
        if earlier in holder and name not in holder:
            yield Change((*path, earlier), key=name)


def _mapping(holder: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = holder.get(name)
    return found if isinstance(found, Mapping) else {}


def _items(found: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for index, item in enumerate(found if isinstance(found, list) else ()):
        if isinstance(item, Mapping):
            yield index, item
