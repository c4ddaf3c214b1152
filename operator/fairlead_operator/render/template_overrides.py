"""Merges a pool's `template` over the rendered pod template: a strategic merge, as in `kubectl
patch`.

- Mappings are merged by field; `null` removes a field.
- Lists of named items are merged by item; some lists are appended to; others are replaced.
- `$patch: delete` removes an item; `$patch: replace` replaces a mapping.
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
"""Items with one of several alternatives besides these fields: another alternative replaces the
first.
"""
_UNION_FIELDS: Final = frozenset({"startupProbe", "livenessProbe", "readinessProbe", "preStop", "postStart"})
_ACTIONS: Final = frozenset({"exec", "grpc", "httpGet", "tcpSocket", "sleep"})
_DIRECTIVE: Final = "$patch"


def merge_template(base: Mapping[str, Any], patch: Mapping[str, Any], path: str = "template") -> dict[str, Any]:
    """Returns `base` with `patch` merged over it. Raises BadInput with the path of a problem."""
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
            raise BadInput(f"the directive {key} is not known", field=path, hint="use $patch, the only directive")
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge_field(key, merged.get(key), value, f"{path}.{key}")
    return merged


def _merge_field(key: str, base: Any, value: Any, path: str) -> Any:
    if key in _MERGE_KEYS or key in _APPENDED_LISTS:
        if not isinstance(value, list):
            raise BadInput("must be a list", field=path)
        existing = base or []
        if key in _APPENDED_LISTS:
            return [*existing, *(item for item in value if item not in existing)]
        return _merge_items(key, existing, value, path)
    if isinstance(value, Mapping):
        if base is not None and not isinstance(base, Mapping):
            raise BadInput("cannot be a mapping", field=path)
        return merge_template(base or {}, value, path)
    if isinstance(base, Mapping | list) and type(base) is not type(value):
        raise BadInput(f"must be a {'list' if isinstance(base, list) else 'mapping'}", field=path)
    return value


def _merge_items(name: str, base: list[Any], patch: list[Any], path: str) -> list[Any]:
    """Returns the merged list. Items of `base` keep their position; new items follow."""
    key = _MERGE_KEYS[name]
    merged: dict[Any, Any] = {item[key]: item for item in base}
    for index, item in enumerate(patch):
        item_path = f"{path}[{index}]"
        if not isinstance(item, Mapping) or key not in item or isinstance(item[key], Mapping | list):
            raise BadInput(f"has no {key}, by which it is merged", field=item_path, hint=f"add {key}")
        item_path = f"{path}[{item[key]}]"
        if item.get(_DIRECTIVE) == "delete":
            merged.pop(item[key], None)
            continue
        existing = merged.get(item[key], {})
        if name in _UNION_ITEMS and not set(item) <= set(existing):
            existing = {field: existing[field] for field in _UNION_ITEMS[name] if field in existing}
        merged[item[key]] = merge_template(existing, item, item_path)
    return list(merged.values())
