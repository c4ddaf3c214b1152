"""Lint rules on `pools[].template`: what the API server would refuse in the pods.

The API of a ModelDeployment takes any PodSpec there, since clusters differ in their fields. An
unknown field that resembles a known one is therefore a problem, and any other one a note.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Final, NamedTuple

from fairlead.manifests.yaml_nodes import format_value
from fairlead.names import closest_matches

_Path = tuple[str | int, ...]
_ENGINE: Final = "engine"
_DIRECTIVE: Final = "$patch"
_QUANTITY: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+|[KMGTPE]i|[numkMGTPE])?")
_SELECTOR_OPERATORS: Final = ("In", "NotIn", "Exists", "DoesNotExist")
_VALUES: Final[Mapping[tuple[str, str], tuple[str, ...]]] = {
    ("Toleration", "operator"): ("Exists", "Equal", "Lt", "Gt"),
    ("Toleration", "effect"): ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    ("NodeSelectorRequirement", "operator"): (*_SELECTOR_OPERATORS, "Gt", "Lt"),
    ("LabelSelectorRequirement", "operator"): _SELECTOR_OPERATORS,
    ("TopologySpreadConstraint", "whenUnsatisfiable"): ("DoNotSchedule", "ScheduleAnyway"),
    ("Container", "imagePullPolicy"): ("Always", "IfNotPresent", "Never"),
    ("ContainerPort", "protocol"): ("TCP", "UDP", "SCTP"),
    ("SeccompProfile", "type"): ("RuntimeDefault", "Localhost", "Unconfined"),
    ("PodSpec", "dnsPolicy"): ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    ("PodSpec", "restartPolicy"): ("Always",),
    ("PodSpec", "preemptionPolicy"): ("PreemptLowerPriority", "Never"),
}
_SCALARS: Final[Mapping[str, tuple[tuple[type, ...], str, str]]] = {
    "string": ((str,), "text", "put it in quotes"),
    "integer": ((int,), "a whole number", "write it without quotes"),
    "boolean": ((bool,), "true or false", "write one of the two, without quotes"),
    "IntOrString": ((int, str), "a number or text", "write one of the two"),
    "Quantity": ((int, float, str), "a quantity", "write it like 64Gi or 500m"),
}


class TemplateNote(NamedTuple):
    """A note on a field of a pod template. `is_problem`: the API server refuses the pods."""

    path: _Path
    message: str
    fix: str
    is_problem: bool = True


def lint_template(spec: Mapping[str, Any]) -> Iterator[TemplateNote]:
    """Yields notes on unknown fields, on values of other types, and on containers without image."""
    yield from _lint_value(spec, "PodSpec", ())
    for kind in ("containers", "initContainers"):
        containers = spec.get(kind)
        for index, container in enumerate(containers if isinstance(containers, list) else ()):
            if not isinstance(container, Mapping) or _DIRECTIVE in container or container.get("image"):
                continue
            if kind == "initContainers" or container.get("name") != _ENGINE:
                message = f"{format_value(container.get('name'))} has no image, and Fairlead's own is called {_ENGINE}"
                yield TemplateNote((kind, index), message, f"add image, or write `name: {_ENGINE}`")


@cache
def _fields() -> Mapping[str, Mapping[str, Any]]:
    """Returns the fields of each type, which `fairlead_testing.kube.api_server` writes."""
    text = files("fairlead.manifests").joinpath("pod_fields.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def _lint_value(value: Any, kind: Any, path: _Path) -> Iterator[TemplateNote]:
    """Yields notes on a value and on all below it. `null` is right: it removes a field."""
    if value is None or kind == "object":
        return
    if isinstance(kind, str) and kind in _SCALARS:
        yield from _lint_scalar(value, kind, path)
    elif isinstance(kind, list):
        if not isinstance(value, list):
            yield TemplateNote(path, "must be a list", "write each item with - before it")
            return
        for index, item in enumerate(value):
            yield from _lint_value(item, kind[0], (*path, index))
    elif not isinstance(value, Mapping):
        yield TemplateNote(path, "must be a mapping", "write `key: value`")
    elif isinstance(kind, dict):
        for key, item in value.items():
            yield from _lint_value(item, kind["*"], (*path, key))
    else:
        for key, item in value.items():
            if not key.startswith("$"):
                yield from _lint_field(key, item, kind, path)


def _lint_field(name: str, value: Any, kind: str, path: _Path) -> Iterator[TemplateNote]:
    fields = _fields()[kind]
    here = (*path, name)
    if name not in fields:
        matches = closest_matches(name, fields, count=1)
        fix = f"did you mean {matches[0]}?" if matches else "leave it if your release of Kubernetes has it"
        yield TemplateNote(here, f"unknown field of a {kind}", fix, is_problem=bool(matches))
        return
    allowed = _VALUES.get((kind, name))
    if allowed is not None and isinstance(value, str) and value not in allowed:
        matches = closest_matches(value, allowed, count=1)
        fix = f"did you mean {matches[0]}?" if matches else "write one of them"
        yield TemplateNote(here, f"must be one of {', '.join(allowed)}, not {format_value(value)}", fix)
        return
    yield from _lint_value(value, fields[name], here)


def _lint_scalar(value: Any, kind: str, path: _Path) -> Iterator[TemplateNote]:
    types, wanted, fix = _SCALARS[kind]
    is_right = isinstance(value, types) and (kind == "boolean" or not isinstance(value, bool))
    if is_right and kind == "Quantity":
        is_right = _QUANTITY.fullmatch(str(value)) is not None
    if not is_right:
        yield TemplateNote(path, f"must be {wanted}, not {format_value(value)}", fix)
