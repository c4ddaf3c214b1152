"""Who set which field of a live object: read from ``metadata.managedFields``, as server-side apply keeps them.

What somebody else set and we would set too is *taken*: ``replicas`` is then theirs (an autoscaler, ``kubectl scale``) and left out of
what we apply; anything else was changed behind our back, and is set right again.
"""

import json
from collections.abc import Iterator
from typing import Any

from fairlead.kube.resource import Manifest, metadata_of

REPLICAS = ("spec", "replicas")
Path = tuple[str, ...]
"""Where a field is: names as in JSON; an element of a list is named by its key, as ``managedFields`` does (``k:{"name":"x"}``)."""


def taken(live: Manifest, wanted: Manifest, manager: str) -> frozenset[Path]:
    """The fields of ``wanted`` that other managers own in ``live`` and ``manager`` does not."""
    ours: set[Path] = set()
    others: set[Path] = set()
    for entry in metadata_of(live).get("managedFields") or []:
        if entry.get("subresource") == "status":
            continue
        mine = entry.get("manager") == manager and entry.get("operation") == "Apply"
        (ours if mine else others).update(_leaves(entry.get("fieldsV1") or {}))
    return frozenset(path for path in others - ours if _sets(wanted, path))


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
