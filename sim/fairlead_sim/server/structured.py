"""Answers that must have a form: JSON of a schema, any JSON object, or one of some choices. The smallest thing that fits is said.

A schema is read as far as clients usually write one (types, properties, required, enum, const, items, references, unions and
the lower bounds of lengths and numbers); what is not understood becomes a string.
"""

import math
from typing import Any

import msgspec

from fairlead_sim.server.fields import Fields

_DEPTH = 32
_WORD = "simulated"


def forced_text(fields: Fields) -> str | None:
    """What ``response_format`` or ``structured_outputs`` make the answer say; None when it is free."""
    form = fields.mapping("response_format")
    if form is not None:
        kind = form.get("type")
        if kind == "json_object":
            return _json({"answer": _WORD})
        if kind == "json_schema":
            named = form.get("json_schema")
            schema = named.get("schema") if isinstance(named, dict) else None
            return _json(value(schema if isinstance(schema, dict) else {"type": "object"}))
        if kind not in (None, "text"):
            wanted = "Input should be 'text', 'json_object' or 'json_schema'"
            fields.wrong("literal_error", "response_format.type", wanted, kind)
    wish = fields.mapping("structured_outputs")
    if wish is not None:
        choices = wish.get("choice")
        if isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices):
            return str(choices[0])
        if isinstance(wish.get("json"), dict):
            return _json(value(wish["json"]))
        if wish.get("json_object"):
            return _json({"answer": _WORD})
    return None


def value(schema: dict[str, Any], root: dict[str, Any] | None = None, depth: int = 0) -> Any:
    """The smallest value of a schema. Optional properties are left out below a depth, so that recursion ends."""
    top = schema if root is None else root
    if depth > _DEPTH:
        return None
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return schema["enum"][0]
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return value(_resolve(reference, top), top, depth + 1)
    for union in ("anyOf", "oneOf", "allOf"):
        options = schema.get(union)
        if isinstance(options, list) and options and isinstance(options[0], dict):
            return value(options[0], top, depth + 1)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    if kind == "object" or (kind is None and "properties" in schema):
        return _object(schema, top, depth)
    if kind == "array":
        items = schema.get("items")
        inner = items if isinstance(items, dict) else {}
        return [value(inner, top, depth + 1) for _ in range(min(64, _bound(schema, "minItems", 0)))]
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        return math.ceil(low) + ("exclusiveMinimum" in schema) if isinstance(low, int | float) else 0
    if kind == "boolean":
        return True
    if kind == "null":
        return None
    return _WORD.ljust(min(4_096, _bound(schema, "minLength", 0)), "-")


def _object(schema: dict[str, Any], root: dict[str, Any], depth: int) -> dict[str, Any]:
    properties = schema.get("properties")
    known = properties if isinstance(properties, dict) else {}
    required = schema.get("required")
    names = list(required) if isinstance(required, list) and (depth or required) else list(known)
    return {
        name: value(known[name] if isinstance(known.get(name), dict) else {}, root, depth + 1)
        for name in names
        if isinstance(name, str)
    }


def _resolve(reference: str, root: dict[str, Any]) -> dict[str, Any]:
    found: Any = root
    for name in reference.lstrip("#/").split("/"):
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _bound(schema: dict[str, Any], name: str, default: int) -> int:
    bound = schema.get(name, default)
    return bound if isinstance(bound, int) else default


def _json(document: Any) -> str:
    return msgspec.json.encode(document).decode()
