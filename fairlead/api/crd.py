"""Generates CustomResourceDefinitions with structural schemas from API types.

The API server supports a subset of JSON Schema. Every value has one type, there are no references
or nullable unions, and exclusive bounds are flags. This module translates pydantic's schema
into that subset. What cannot be translated (unions, recursion) is an error here, not at `kubectl
apply`.
"""

import copy
import functools
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from fairlead.api.kinds import CustomResourceKind, PrinterColumn
from fairlead.api.v1alpha1 import GROUP, VERSION

Schema = dict[str, Any]

_KEPT_KEYWORDS = (
    "description",
    "type",
    "format",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
)
_EXCLUSIVE_BOUNDS = {"exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}


def crd_manifest(kind: CustomResourceKind) -> Schema:
    return copy.deepcopy(_crd_manifest(kind))


@functools.cache
def _crd_manifest(kind: CustomResourceKind) -> Schema:
    """Builds the CustomResourceDefinition of one kind.

    Why: pydantic takes up to 0.4 s for the schema of a kind.
    """
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "additionalPrinterColumns": [_column(column) for column in kind.columns],
        **({"subresources": _subresources(kind)} if kind.status is not None else {}),
        "schema": {"openAPIV3Schema": _object_schema(kind)},
    }
    names = {
        "kind": kind.name,
        "listKind": f"{kind.name}List",
        "plural": kind.plural,
        "singular": kind.name.lower(),
        "shortNames": [kind.short_name],
        "categories": ["fairlead"],
    }
    scope = "Namespaced" if kind.namespaced else "Cluster"
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}", "labels": {"app.kubernetes.io/part-of": "fairlead"}},
        "spec": {"group": GROUP, "names": names, "scope": scope, "versions": [version]},
    }


def _column(column: PrinterColumn) -> Schema:
    shown = {"name": column.name, "type": column.type, "jsonPath": column.path}
    return {**shown, "priority": 1} if column.wide else shown


def _subresources(kind: CustomResourceKind) -> Schema:
    """Returns the subresource `status`, and for a kind with a scale also the subresource `scale`.

    Controllers write `status`; `kubectl scale` and autoscalers write `scale`.
    """
    scale = {
        "specReplicasPath": ".spec.replicas",
        "statusReplicasPath": ".status.replicas",
        "labelSelectorPath": ".status.selector",
    }
    return {"status": {}, **({"scale": scale} if kind.has_scale else {})}


def _object_schema(kind: CustomResourceKind) -> Schema:
    """Returns the schema of a whole object. The API server defines apiVersion, kind and metadata
    itself.
    """
    status = {"status": structural_schema(kind.status)} if kind.status is not None else {}
    # A rule cannot point into metadata, which the schema does not describe.
    rules = [{key: text for key, text in rule.schema().items() if key != "fieldPath"} for rule in kind.model.rules]
    return {
        "type": "object",
        "description": kind.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural_schema(kind.model)["properties"]["spec"],
            **status,
        },
        **({"x-kubernetes-validations": rules} if rules else {}),
    }


def structural_schema(model: type[BaseModel]) -> Schema:
    """Returns the structural schema of a type. Raises TypeError if there is none."""
    root = model.model_json_schema(by_alias=True)
    return _SchemaTranslator(root.get("$defs", {})).translate(root, model.__name__, ())


class _SchemaTranslator:
    """The translator of one schema, which resolves references to its definitions."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions

    def translate(self, schema: Schema, path: str, inside: tuple[str, ...]) -> Schema:
        """Returns the structural form of a schema.

        inside: the definitions being expanded. A reference to one of them raises TypeError.
        """
        schema = _without_null(schema, path)
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            if name in inside:
                raise TypeError(f"{path}: the type {name} contains itself")
            siblings = {key: value for key, value in schema.items() if key != "$ref"}
            return self.translate({**self._definitions[name], **siblings}, path, (*inside, name))
        result = _copy_keywords(schema)
        if "properties" in schema:
            fields = schema["properties"]
            result["properties"] = {name: self.translate(fields[name], f"{path}.{name}", inside) for name in fields}
            if "default" in result:
                # The server checks rules on a default before it fills in nested defaults.
                result["default"] = _nested_defaults(result["properties"])
        elif isinstance(schema.get("additionalProperties"), dict):
            result["additionalProperties"] = self.translate(schema["additionalProperties"], f"{path}.*", inside)
        if "items" in schema:
            result["items"] = self.translate(schema["items"], f"{path}[]", inside)
        if "x-kubernetes-int-or-string" in result:
            result["anyOf"] = schema["anyOf"]  # the only union of structural schemas
        elif "type" not in result:
            result["x-kubernetes-preserve-unknown-fields"] = True
        return result


def _without_null(schema: Schema, path: str) -> Schema:
    """Returns the schema without its null alternative: optional fields may be left out, but not be
    null. Raises TypeError for any other union.
    """
    if "anyOf" not in schema or "x-kubernetes-int-or-string" in schema:
        return schema
    choices = [choice for choice in schema["anyOf"] if choice.get("type") != "null"]
    if len(choices) != 1:
        raise TypeError(f"{path}: a union of {len(choices)} types has no structural schema")
    return {**choices[0], **{key: value for key, value in schema.items() if key != "anyOf"}}


def _nested_defaults(fields: Mapping[str, Schema]) -> Schema:
    return {name: field["default"] for name, field in fields.items() if "default" in field}


def _copy_keywords(schema: Schema) -> Schema:
    """Returns the keywords that both schema languages share, with adapted spelling."""
    result = {key: schema[key] for key in _KEPT_KEYWORDS if key in schema}
    if "required" in result:
        result["required"] = list(result["required"])  # its own, else YAML writes a reference to the first one
    if "description" in result:
        result["description"] = " ".join(result["description"].split())
    if "const" in schema:
        result["enum"] = [schema["const"]]
    for exclusive, bound in _EXCLUSIVE_BOUNDS.items():
        if exclusive in schema:
            result[bound] = schema[exclusive]
            result[exclusive] = True
    if schema.get("default") is not None:
        # The translator fills in the defaults of nested fields.
        result["default"] = {} if isinstance(schema["default"], dict) else schema["default"]
    result.update({key: value for key, value in schema.items() if key.startswith("x-kubernetes-")})
    return result
