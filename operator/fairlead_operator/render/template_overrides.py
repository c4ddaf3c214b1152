"""Merging a pool's ``template`` over the pod template that Fairlead makes, the way ``kubectl patch`` does: strategically.

Mappings are merged field by field and ``null`` removes a field. Lists whose items have a name are merged item by item; a few
lists are appended to; all others are replaced. ``$patch: delete`` removes an item, ``$patch: replace`` a whole mapping.
"""

from collections.abc import Mapping
from typing import Any, Final

from fairlead.errors import BadInput

_MERGE_KEYS: Final[Mapping[str, str]] = {
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "ports": "containerPort",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "resourceClaims": "name",
}
_APPENDED_LISTS: Final = frozenset({"tolerations", "envFrom", "readinessGates", "schedulingGates"})
_UNION_ITEMS: Final[Mapping[str, frozenset[str]]] = {"volumes": frozenset({"name"}), "env": frozenset({"name"})}
"""Items that hold one of several alternatives beside these fields: another alternative takes the place of the first."""
_UNION_FIELDS: Final = frozenset({"startupProbe", "livenessProbe", "readinessProbe", "preStop", "postStart"})
_ACTIONS: Final = frozenset({"exec", "grpc", "httpGet", "tcpSocket", "sleep"})
_DIRECTIVE: Final = "$patch"


def merge_template(base: Mapping[str, Any], patch: Mapping[str, Any], path: str = "template") -> dict[str, Any]:
    """``base`` with ``patch`` over it; neither is changed. Raises BadInput with the path of what cannot be merged."""
    directive = patch.get(_DIRECTIVE)
    if directive == "replace":
        return {key: value for key, value in patch.items() if key != _DIRECTIVE}
    if directive is not None:
        raise BadInput(f"$patch: {directive} cannot be used here", field=path, hint="use $patch: replace")
    merged = dict(base)
    name = path.rpartition(".")[2]
    if name in _UNION_FIELDS and _ACTIONS & patch.keys():
        merged = {key: value for key, value in merged.items() if key not in _ACTIONS - patch.keys()}
    for key, value in patch.items():
        if key.startswith("$"):
            raise BadInput(f"the directive {key} is not known", field=path, hint="only $patch is")
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge_field(key, merged.get(key), value, f"{path}.{key}")
    return merged


def _merge_field(key: str, base: Any, value: Any, path: str) -> Any:
    if key in _MERGE_KEYS or key in _APPENDED_LISTS:
        if not isinstance(value, list):
            raise BadInput("must be a list", field=path)
        present = base or []
        if key in _APPENDED_LISTS:
            return [*present, *(one for one in value if one not in present)]
        return _merge_items(key, present, value, path)
    if isinstance(value, Mapping):
        if base is not None and not isinstance(base, Mapping):
            raise BadInput("cannot be a mapping", field=path)
        return merge_template(base or {}, value, path)
    if isinstance(base, Mapping | list) and type(base) is not type(value):
        raise BadInput(f"must be a {'list' if isinstance(base, list) else 'mapping'}", field=path)
    return value


def _merge_items(name: str, base: list[Any], patch: list[Any], path: str) -> list[Any]:
    """Items of ``base`` keep their places, new ones follow."""
    key = _MERGE_KEYS[name]
    merged: dict[Any, Any] = {item[key]: item for item in base}
    for index, item in enumerate(patch):
        where = f"{path}[{index}]"
        if not isinstance(item, Mapping) or key not in item or isinstance(item[key], Mapping | list):
            raise BadInput(f"has no {key}, by which it is merged", field=where, hint=f"add {key}")
        where = f"{path}[{item[key]}]"
        if item.get(_DIRECTIVE) == "delete":
            merged.pop(item[key], None)
            continue
        present = merged.get(item[key], {})
        if name in _UNION_ITEMS and not set(item) <= set(present):
            present = {field: present[field] for field in _UNION_ITEMS[name] if field in present}
        merged[item[key]] = merge_template(present, item, where)
    return list(merged.values())
