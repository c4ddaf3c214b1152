"""Who set which field of a live object: read from ``metadata.managedFields``, as the API server keeps them.

What somebody else set and we would set too is *taken*: it was changed behind our back, and is set right again. What is not there any
more is *lost*. ``replicas`` is apart: whoever else writes it (an autoscaler, ``kubectl scale``) decides on it from then on.
"""

import json
from collections.abc import Iterator
from typing import Any

from fairlead.kube.managers import entries, replicas_writers
from fairlead.kube.resource import Manifest

REPLICAS = ("spec", "replicas")
Path = tuple[str, ...]
"""Where a field is: names as in JSON; an element of a list is named by its key, as ``managedFields`` does (``k:{"name":"x"}``)."""
_KEYS = ("name", "mountPath", "containerPort", "port", "topologyKey", "uid")
"""What tells the elements of a list apart, in the order in which they are tried."""


def taken(live: Manifest, wanted: Manifest, manager: str) -> frozenset[Path]:
    """The fields of ``wanted`` that other managers own in ``live`` and ``manager`` does not."""
    ours: set[Path] = set()
    others: set[Path] = set()
    for entry in entries(live):
        (ours if entry.get("manager") == manager else others).update(_leaves(entry.get("fieldsV1") or {}))
    return frozenset(path for path in others - ours if _sets(wanted, path))


def scaler(live: Manifest, manager: str) -> str:
    """Who else writes ``spec.replicas``, be it the same number, by the name of the field manager; empty where nobody does.

    Then it is left out of what we apply, and the API server keeps theirs. Controllers that run a workload write its status only.
    """
    return next((one for one in replicas_writers(live) if one != manager), "")


def lost(live: Any, wanted: Any) -> frozenset[Path]:
    """The fields of ``wanted`` that are not in ``live`` at all.

    Values are not compared: changed ones are found by their owner, and the API server writes some in another form. What is empty
    (0, false, "", {}) it may leave out.
    """
    found: list[Path] = []
    _compare(live, wanted, (), found)
    return frozenset(found)


def _compare(live: Any, wanted: Any, above: Path, found: list[Path]) -> None:
    if type(wanted) is list:
        key = next((key for key in _KEYS if all(type(one) is dict and key in one for one in wanted)), None)
        if key is None or type(live) is not list:
            return
        live = {str(one.get(key)): one for one in live if type(one) is dict}
        wanted = {str(one[key]): one for one in wanted}
    elif type(live) is not dict:
        return
    for name, value in wanted.items():
        there = live.get(name)
        if there is None:
            if _says_something(value):
                found.append((*above, name))
        elif type(value) in (dict, list):
            _compare(there, value, (*above, name), found)


def _says_something(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_says_something, value.values()))
    return any(map(_says_something, value)) if isinstance(value, list) else bool(value)


def without(manifest: Manifest, path: Path) -> Manifest:
    """A copy of ``manifest`` without the field at ``path``, which leads through objects only."""
    first, *rest = path
    if first not in manifest:
        return manifest
    if not rest:
        return {name: value for name, value in manifest.items() if name != first}
    inner = manifest[first]
    return {**manifest, first: without(inner, tuple(rest))} if isinstance(inner, dict) else manifest


def _leaves(fields: dict[str, Any], above: Path = ()) -> Iterator[Path]:
    """The paths at which nothing lies below, without the marks that name an element itself."""
    for name, below in fields.items():
        if name == ".":
            continue
        path = (*above, name.removeprefix("f:"))
        if isinstance(below, dict) and below.keys() - {"."}:
            yield from _leaves(below, path)
        else:
            yield path


def _sets(value: Any, path: Path) -> bool:
    """Does ``value`` hold something at ``path``?"""
    for step in path:
        named = step.startswith(("k:", "v:"))
        value = _element(value, step) if named else value.get(step) if isinstance(value, dict) else None
        if value is None:
            return False
    return True


def _element(value: Any, step: str) -> Any:
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
