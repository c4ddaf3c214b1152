"""Answers with a required form: JSON of a schema, any JSON object, or a choice; a small one that
fits.

The supported parts of a schema are types, properties, required, enum, const, items, references,
unions and lower bounds. Anything else becomes a string.
"""

import math
from typing import Any

import msgspec

from fairlead_sim.http.fields import RequestFields

_MAX_DEPTH = 32
_MAX_OPTIONAL_DEPTH = 3
_MAX_PARTS = 1_000
_FILLER_WORD = "simulated"


def parse_forced_text(fields: RequestFields) -> str | None:
    """Returns the answer that ``response_format`` or ``structured_outputs`` require; None if
    the answer is free.
    """
    form = fields.mapping("response_format")
    if form is not None:
        kind = form.get("type")
        if kind == "json_object":
            return _json_text({"answer": _FILLER_WORD})
        if kind == "json_schema":
            named = form.get("json_schema")
            schema = named.get("schema") if isinstance(named, dict) else None
            return _json_text(minimal_value(schema if isinstance(schema, dict) else {"type": "object"}))
        if kind not in (None, "text"):
            expected = "Input should be 'text', 'json_object' or 'json_schema'"
            fields.add_wrong("literal_error", "response_format.type", expected, kind)
    wish = fields.mapping("structured_outputs")
    if wish is not None:
        choices = wish.get("choice")
        if isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices):
            return str(choices[0])
        if isinstance(wish.get("json"), dict):
            return _json_text(minimal_value(wish["json"]))
        if wish.get("json_object"):
            return _json_text({"answer": _FILLER_WORD})
    return None


def minimal_value(schema: dict[str, Any]) -> Any:
    """Returns a small value that fits a schema; null beyond the bounds on depth and parts."""
    return _ValueBuilder(schema).build(schema, 0)


class _ValueBuilder:
    """The builder of one value. Bounds on depth and parts end endless schemas with nulls."""

    def __init__(self, root: dict[str, Any]) -> None:
        self._root = root
        self._parts_left = _MAX_PARTS

    def build(self, schema: dict[str, Any], depth: int) -> Any:
        self._parts_left -= 1
        if depth > _MAX_DEPTH or self._parts_left < 0:
            return None
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return schema["enum"][0]
        if isinstance(schema.get("$ref"), str):
            return self.build(_resolve_reference(schema["$ref"], self._root), depth + 1)
        for union in ("anyOf", "oneOf", "allOf"):
            options = schema.get(union)
            if isinstance(options, list) and options and isinstance(options[0], dict):
                return self.build(options[0], depth + 1)
        kind = schema.get("type")
        kind = kind[0] if isinstance(kind, list) and kind else kind
        if kind == "object" or (kind is None and "properties" in schema):
            return self._object(schema, depth)
        if kind == "array":
            items = schema.get("items")
            inner = items if isinstance(items, dict) else {}
            return [self.build(inner, depth + 1) for _ in range(min(64, _integer_bound(schema, "minItems")))]
        return _plain_value(schema, kind)

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        """Returns the required properties, or all near the root if none is marked required."""
        properties = schema.get("properties")
        known = properties if isinstance(properties, dict) else {}
        required = schema.get("required")
        names = required if isinstance(required, list) else list(known) if depth <= _MAX_OPTIONAL_DEPTH else []
        return {
            name: self.build(known[name] if isinstance(known.get(name), dict) else {}, depth + 1)
            for name in names
            if isinstance(name, str)
        }


def _plain_value(schema: dict[str, Any], kind: object) -> Any:
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        return math.ceil(low) + ("exclusiveMinimum" in schema) if isinstance(low, int | float) else 0
    if kind == "boolean":
        return True
    if kind == "null":
        return None
    return _FILLER_WORD.ljust(min(4_096, _integer_bound(schema, "minLength")), "-")


def _resolve_reference(reference: str, root: dict[str, Any]) -> dict[str, Any]:
    node: Any = root
    for name in reference.split("/")[1:]:
        node = node.get(name) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _integer_bound(schema: dict[str, Any], name: str) -> int:
    bound = schema.get(name, 0)
    return bound if isinstance(bound, int) else 0


def _json_text(document: Any) -> str:
    return msgspec.json.encode(document).decode()
