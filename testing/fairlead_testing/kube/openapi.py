"""Checks manifests against the OpenAPI files of a Kubernetes release; unknown fields are errors.

The API server drops unknown fields of built-in kinds with a warning at most, and tests have only
one release of it. This checks the rules of OpenAPI: kinds, fields, types, required fields. Rules in
code (range of a port, characters of a label) need a server.

``python -m fairlead_testing.kube.openapi FOLDER > fairlead/manifests/pod_fields.json`` writes the
fields that ``fairlead lint`` knows, once a Kubernetes release.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_REF = "#/components/schemas/"
_CRD = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps"
_EITHER = {f"{_CRD}OrArray", f"{_CRD}OrBool"}
"""Schemas without a type that are, for objects, the schema of a CRD field."""
_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


class KubernetesRelease:
    """One release. `folder` has its OpenAPI files, one per group and version."""

    def __init__(self, folder: Path) -> None:
        self._schemas: dict[str, Any] = {}
        self._kinds: dict[tuple[str, str], str] = {}
        for path in sorted(folder.glob("*.json")):
            self._schemas |= json.loads(path.read_text(encoding="utf-8"))["components"]["schemas"]
        for name, schema in self._schemas.items():
            for one in schema.get("x-kubernetes-group-version-kind", ()):
                version = f"{one['group']}/{one['version']}" if one["group"] else one["version"]
                self._kinds[version, one["kind"]] = name

    def problems(self, manifest: Mapping[str, Any]) -> list[str]:
        """Returns the violations in an object, each with its path; empty if it is valid."""
        said = str(manifest.get("apiVersion")), str(manifest.get("kind"))
        name = self._kinds.get(said)
        if name is None:
            return [f"no kind {said[1]} in {said[0]}"]
        return list(self._check(manifest, {"$ref": _REF + name}, ""))

    def pod_fields(self) -> dict[str, dict[str, Any]]:
        """Returns the fields of a PodSpec and of all types below it: type to field to its type.

        A list has its type in a list, and a map of names has it under ``*``.
        """
        found: dict[str, dict[str, Any]] = {}
        waiting = ["io.k8s.api.core.v1.PodSpec"]
        while waiting:
            full = waiting.pop()
            fields = self._schemas[full].get("properties", {})
            name = full.rpartition(".")[2]
            if name not in found:
                found[name] = {field: _type_of(schema, waiting) for field, schema in fields.items()}
        return found

    def _check(self, value: Any, schema: Mapping[str, Any], path: str) -> Iterator[str]:
        reference = schema.get("$ref")
        if reference is not None:
            name = reference.removeprefix(_REF)
            if name in _EITHER and isinstance(value, dict):
                name = _CRD
            yield from self._check(value, self._schemas[name], path)
            return
        for part in schema.get("allOf", ()):
            yield from self._check(value, part, path)
        if "oneOf" in schema and all(any(self._check(value, one, path)) for one in schema["oneOf"]):
            yield f"{path}: fits none of what it may be: {value!r}"
        kind = schema.get("type")
        if kind is not None and (
            not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")
        ):
            yield f"{path}: not of type {kind}: {value!r}"
        elif kind == "array":
            for index, one in enumerate(value):
                yield from self._check(one, schema["items"], f"{path}[{index}]")
        elif kind == "object":
            yield from self._check_fields(value, schema, path)

    def _check_fields(self, value: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
        known, others = schema.get("properties"), schema.get("additionalProperties")
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{path}.{name}: missing"
        for name, one in value.items():
            if known is not None and name in known:
                yield from self._check(one, known[name], f"{path}.{name}")
            elif isinstance(others, dict):
                yield from self._check(one, others, f"{path}.{name}")
            elif known is not None:
                yield f"{path}.{name}: no such field"


def _type_of(schema: Mapping[str, Any], waiting: list[str]) -> Any:
    """Returns the type of a field. Adds the schema of another object to `waiting`."""
    schema = {**schema, **{key: value for part in schema.get("allOf", ()) for key, value in part.items()}}
    if "$ref" in schema:
        full = schema["$ref"].removeprefix(_REF)
        name = full.rpartition(".")[2]
        if name not in ("Quantity", "IntOrString"):
            waiting.append(full)
        return name
    if schema.get("type") == "array":
        return [_type_of(schema["items"], waiting)]
    if "additionalProperties" in schema:
        return {"*": _type_of(schema["additionalProperties"], waiting)}
    return schema.get("type", "object")


def main(folder: str) -> None:
    """Prints the fields of a pod, one type a line."""
    fields = KubernetesRelease(Path(folder)).pod_fields()
    print("{", ",\n".join(f" {json.dumps(name)}: {json.dumps(fields[name])}" for name in sorted(fields)), "}", sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
