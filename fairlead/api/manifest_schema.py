"""The JSON schema of manifests, for editors: draft 7, made of the schemas of the custom resources.

Rules of the API server (CEL) have no counterpart in JSON Schema. `fairlead lint` and the API server
check them.
"""

import re
from typing import Any, Final

from fairlead.api.crd import Schema, structural_schema
from fairlead.api.kinds import CustomResourceKind, served_kinds
from fairlead.api.v1alpha1 import API_VERSION, GROUP

SCHEMA_FILE: Final = "fairlead.schema.json"
"""The file name of the schema, where a person or the repository keeps it."""
EDITOR_COMMENT: Final = f"# yaml-language-server: $schema={SCHEMA_FILE}"
"""The comment by which editors find the schema. They read it in each document by itself."""
_BOUNDS: Final = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}


def manifest_schema() -> Schema:
    """Returns the schema of a document with a manifest of any kind.

    Objects of other API groups pass, as in `fairlead lint`.
    """
    kinds = served_kinds()
    names = [kind.name for kind in kinds]
    is_own = [_has("apiVersion", {"pattern": f"^{re.escape(GROUP)}(/|$)"}), _has("kind", {"enum": names})]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Manifest of Fairlead",
        "type": "object",
        "required": ["apiVersion", "kind"],
        "properties": {
            "apiVersion": {"type": "string", "examples": [API_VERSION]},
            "kind": {"type": "string", "examples": names},
        },
        "if": {"anyOf": is_own},
        "then": {
            "properties": {"apiVersion": {"const": API_VERSION}, "kind": {"enum": names}},
            "allOf": [
                {"if": _has("kind", {"const": name}), "then": {"$ref": f"#/definitions/{name}"}} for name in names
            ],
        },
        "definitions": {kind.name: _kind_schema(kind) for kind in kinds},
    }


def _kind_schema(kind: CustomResourceKind) -> Schema:
    """Returns the schema of a kind's objects; any `apiVersion` and `kind` pass, since the schema of
    the document has checked them.
    """
    schema = _draft_7(structural_schema(kind.model))
    schema["properties"] |= {"apiVersion": {}, "kind": {}}
    return {**schema, "description": kind.description, "required": ["metadata", "spec"]}


def _has(name: str, schema: Schema) -> Schema:
    return {"required": [name], "properties": {name: schema}}


def _draft_7(node: Schema) -> Schema:
    """Returns a structural schema in the words of draft 7, where unknown fields are errors."""
    result: dict[str, Any] = {key: value for key, value in node.items() if not key.startswith("x-kubernetes-")}
    for exclusive, bound in _BOUNDS.items():
        if result.pop(exclusive, False):
            result[exclusive] = result.pop(bound)
    if "properties" in node:
        result["properties"] = {name: _draft_7(field) for name, field in node["properties"].items()}
        result["additionalProperties"] = node.get("x-kubernetes-preserve-unknown-fields", False)
    elif isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _draft_7(node["additionalProperties"])
    if "items" in node:
        result["items"] = _draft_7(node["items"])
    return result
