"""Who set which field of a live object: read from ``metadata.managedFields``, as the API server keeps them.

What somebody else set and we would set too is *taken*: it was changed behind our back, and is set right again. What is not there any
more is *lost*. ``replicas`` is apart: whoever else writes it (an autoscaler, ``kubectl scale``) decides on it from then on.
"""

import json
from collections.abc import Iterator
from typing import Any

from fairlead.kube.field_managers import field_entries, replicas_managers
from fairlead.kube.resources import Manifest

REPLICAS_PATH = ("spec", "replicas")
FieldPath = tuple[str, ...]
"""Where a field is: names as in JSON; an element of a list is named by its key, as ``managedFields`` does (``k:{"name":"x"}``)."""
_LIST_KEYS = ("name", "mountPath", "containerPort", "port", "topologyKey", "uid")
"""What tells the elements of a list apart, in the order in which they are tried."""


def overwritten_fields(live: Manifest, wanted: Manifest, manager: str) -> frozenset[FieldPath]:
    """The fields of ``wanted`` that other managers own in ``live`` and ``manager`` does not."""
    ours: set[FieldPath] = set()
    others: set[FieldPath] = set()
    for entry in field_entries(live):
        (ours if entry.get("manager") == manager else others).update(_leaf_paths(entry.get("fieldsV1") or {}))
    return frozenset(path for path in others - ours if _has_value(wanted, path))


def replica_field_owner(live: Manifest, manager: str) -> str:
    """Who else writes ``spec.replicas``, be it the same number, by the name of the field manager; empty where nobody does.

    Then it is left out of what we apply, and the API server keeps theirs. Controllers that run a workload write its status only.
    """
    return next((one for one in replicas_managers(live) if one != manager), "")


def missing_fields(live: Any, wanted: Any) -> frozenset[FieldPath]:
    """The fields of ``wanted`` that are not in ``live`` at all.

    Values are not compared: changed ones are found by their owner, and the API server writes some in another form. What is empty
    (0, false, "", {}) it may leave out.
    """
    found: list[FieldPath] = []
    _collect_missing(live, wanted, (), found)
    return frozenset(found)


def _collect_missing(live: Any, wanted: Any, above: FieldPath, found: list[FieldPath]) -> None:
    if type(wanted) is list:
        key = next((key for key in _LIST_KEYS if all(type(one) is dict and key in one for one in wanted)), None)
        if key is None or type(live) is not list:
            return
        live = {str(one.get(key)): one for one in live if type(one) is dict}
        wanted = {str(one[key]): one for one in wanted}
    elif type(live) is not dict:
        return
    for name, value in wanted.items():
        there = live.get(name)
        if there is None:
            if _is_nonempty(value):
                found.append((*above, name))
        elif type(value) in (dict, list):
            _collect_missing(there, value, (*above, name), found)


def _is_nonempty(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_is_nonempty, value.values()))
    return any(map(_is_nonempty, value)) if isinstance(value, list) else bool(value)


def without_field(manifest: Manifest, path: FieldPath) -> Manifest:
    """A copy of ``manifest`` without the field at ``path``, which leads through objects only."""
    first, *rest = path
    if first not in manifest:
        return manifest
    if not rest:
        return {name: value for name, value in manifest.items() if name != first}
    inner = manifest[first]
    return {**manifest, first: without_field(inner, tuple(rest))} if isinstance(inner, dict) else manifest


def _leaf_paths(fields: dict[str, Any], above: FieldPath = ()) -> Iterator[FieldPath]:
    """The paths at which nothing lies below, without the marks that name an element itself."""
    for name, below in fields.items():
        if name == ".":
            continue
        path = (*above, name.removeprefix("f:"))
        if isinstance(below, dict) and below.keys() - {"."}:
            yield from _leaf_paths(below, path)
        else:
            yield path


def _has_value(value: Any, path: FieldPath) -> bool:
    """Does ``value`` hold something at ``path``?"""
    for step in path:
        named = step.startswith(("k:", "v:"))
        value = _list_element(value, step) if named else value.get(step) if isinstance(value, dict) else None
        if value is None:
            return False
    return True


def _list_element(value: Any, step: str) -> Any:
    """The element of a list that ``k:{…}`` (by its key) or ``v:…`` (by its value) names; None where there is none."""
    if not isinstance(value, list):
        return None
    try:
        named = json.loads(step[2:])
    except ValueError:
        return None
    if step.startswith("v:"):
        return named if named in value else None
    if not isinstance(named, dict):
        return None
    # The API server fills keys in (a port's protocol): what we leave out is no difference.
    return next(
        (one for one in value if isinstance(one, dict) and all(one.get(k, v) == v for k, v in named.items())), None
    )
