"""The owners of the fields of a live object, from `metadata.managedFields`.

A field that the operator would set and another manager owns is *overwritten*: the other manager
changed it, and the operator corrects it. A field that no longer exists is *missing*. `replicas` is
special: another writer (an autoscaler, `kubectl scale`) owns it from then on.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fairlead.kube.field_managers import field_entries, replicas_managers
from fairlead.kube.resources import Manifest

REPLICAS_PATH = ("spec", "replicas")
FieldPath = tuple[str, ...]
"""The path of a field: JSON names; list elements by key as in `managedFields` (`k:{"name":"x"}`).
"""
_LIST_KEYS = ("name", "mountPath", "containerPort", "port", "topologyKey", "uid")
"""The fields that identify list elements, in order of preference."""


def overwritten_fields(live: Manifest, wanted: Manifest, manager: str) -> frozenset[FieldPath]:
    """Returns the fields of `wanted` that other managers own in `live`, and `manager` does not."""
    own_paths: set[FieldPath] = set()
    other_paths: set[FieldPath] = set()
    for entry in field_entries(live):
        (own_paths if entry.get("manager") == manager else other_paths).update(_leaf_paths(entry.get("fieldsV1") or {}))
    elements = _ListElements()
    return frozenset(path for path in other_paths - own_paths if _has_value(wanted, path, elements))


def replica_field_owner(live: Manifest, manager: str) -> str:
    """Returns another manager that writes `spec.replicas`, even with the same number; empty if none
    does.

    The field is then left out of applies, and the API server keeps the other's value. Controllers
    that run a workload write only its status.
    """
    return next((owner for owner in replicas_managers(live) if owner != manager), "")


def missing_fields(live: Any, wanted: Any) -> frozenset[FieldPath]:
    """Returns the fields of `wanted` that do not exist in `live`.

    Values are not compared: changes are found by owner, and the API server stores some values in
    another form. It may omit empty values (0, false, "", {}).
    """
    paths: list[FieldPath] = []
    _collect_missing(live, wanted, (), paths)
    return frozenset(paths)


def _collect_missing(live: Any, wanted: Any, above: FieldPath, missing: list[FieldPath]) -> None:
    if type(wanted) is list:
        # Elements are matched by a field that each of them has; other lists are not compared.
        key = next(
            (key for key in _LIST_KEYS if all(type(element) is dict and key in element for element in wanted)), None
        )
        if key is None or type(live) is not list:
            return
        live = {str(element.get(key)): element for element in live if type(element) is dict}
        wanted = {str(element[key]): element for element in wanted}
    elif type(live) is not dict:
        return
    for name, value in wanted.items():
        live_value = live.get(name)
        if live_value is None:
            if _is_nonempty(value):
                missing.append((*above, name))
        elif type(value) in (dict, list):
            _collect_missing(live_value, value, (*above, name), missing)


def _is_nonempty(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_nonempty, value.values()))
    return any(map(_is_nonempty, value)) if isinstance(value, list) else bool(value)


def without_field(manifest: Manifest, path: FieldPath) -> Manifest:
    """Returns a copy of `manifest` without the field at `path`. The path contains no lists."""
    first, *rest = path
    if first not in manifest:
        return manifest
    if not rest:
        return {name: value for name, value in manifest.items() if name != first}
    inner = manifest[first]
    return {**manifest, first: without_field(inner, tuple(rest))} if isinstance(inner, dict) else manifest


def _leaf_paths(fields: dict[str, Any], above: FieldPath = ()) -> Iterator[FieldPath]:
    """Yields the leaf paths, without the entries for list elements themselves."""
    for name, below in fields.items():
        if name == ".":
            continue
        path = (*above, name.removeprefix("f:"))
        if isinstance(below, dict) and below.keys() - {"."}:
            yield from _leaf_paths(below, path)
        else:
            yield path


def _has_value(value: Any, path: FieldPath, elements: "_ListElements") -> bool:
    """Returns True if `value` has something at `path`."""
    for step in path:
        is_element = step.startswith(("k:", "v:"))
        value = elements.find(value, step) if is_element else value.get(step) if isinstance(value, dict) else None
        if value is None:
            return False
    return True


class _ListElements:
    """The elements of the lists of one manifest, which must not change meanwhile.

    Why: lists have thousands of elements, and each has a path. Lists are therefore not searched.
    """

    def __init__(self) -> None:
        self._by_key: dict[tuple[int, str], dict[str, list[Any]]] = {}

    def find(self, value: Any, step: str) -> Any:
        """Returns the list element of `k:{…}` (by key) or `v:…` (by value); None if there is
        none.
        """
        if not isinstance(value, list):
            return None
        try:
            key_values = json.loads(step[2:])
        except ValueError:
            return None
        if step.startswith("v:"):
            return key_values if key_values in value else None
        if not isinstance(key_values, dict) or not key_values:
            return None
        # The API server adds keys (a port's protocol); keys that we omit match anything.
        return next(
            (
                element
                for element in self._candidates(value, key_values)
                if all(element.get(k, v) == v for k, v in key_values.items())
            ),
            None,
        )

    def _candidates(self, elements: list[Any], key_values: Mapping[str, Any]) -> list[Any]:
        """Returns the elements with the value of the first key that all elements have."""
        for key, value in key_values.items():
            by_value = self._by_key.get((id(elements), key))
            if by_value is None:
                by_value = self._by_key[id(elements), key] = {}
                if all(isinstance(element, dict) and key in element for element in elements):
                    for element in elements:
                        by_value.setdefault(json.dumps(element[key]), []).append(element)
            if by_value:
                return by_value.get(json.dumps(value), [])
        return [element for element in elements if isinstance(element, dict)]
