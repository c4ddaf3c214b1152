"""The OpenAPI descriptions of a gateway's two ports, and the page that shows them.

The management port describes itself (``/openapi.json``). The description of the clients' port is
made from the table of dialects: paths, the fields that the gateway reads or checks, and the form of
errors. Answers of engines are left open, since the gateway passes them on.
"""

import json
from collections.abc import Iterator
from typing import Any, cast

import msgspec

from fairlead import __version__
from fairlead_gateway.dialects.dialect import Dialect
from fairlead_gateway.dialects.error_shape import ANTHROPIC_ERRORS
from fairlead_gateway.dialects.table import DIALECTS, ROUTED
from fairlead_gateway.supervisor.management.api import create_api

FOLDER = "docs/reference"
_SCHEMAS = "#/components/schemas/"
_FIELDS = "Fields that the gateway reads or checks. Others go to the engine, unless they are refused or removed."
_OPENAI_ERROR = {
    "type": "object",
    "required": ["error", "request_id"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        },
        "request_id": {"type": "string"},
    },
}
_ANTHROPIC_ERROR = _OPENAI_ERROR | {
    "required": ["type", "error", "request_id"],
    "properties": {"type": {"const": "error"}, **cast(dict[str, Any], _OPENAI_ERROR["properties"])},
}
_HEADERS = {
    "x-request-id": "The client's own id where it sent a plain one, else the gateway's.",
    "x-fairlead-decision": "The id by which `fairlead explain request` finds the request.",
    "x-fairlead-instance": "The instance that answered; `gateway` when no engine was asked.",
    "x-fairlead-reason": "The rule that chose the instance.",
}


def management_description() -> dict[str, Any]:
    nothing = cast(Any, None)  # the description needs neither state nor probes
    return create_api(nothing, nothing).openapi()


def gateway_description() -> dict[str, Any]:
    """Returns the description of the port of clients."""
    bodies, schemas = msgspec.json.schema_components(
        [dialect.body_type for dialect in DIALECTS.values()], ref_template=f"{_SCHEMAS}{{name}}"
    )
    for body in bodies:
        schemas[body["$ref"].removeprefix(_SCHEMAS)]["description"] = _FIELDS
    paths = {path: {"post": _operation(DIALECTS[path], body)} for path, body in zip(DIALECTS, bodies, strict=True)}
    models = {"200": _answer("Models that the key may use.", {"type": "object"})}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Fairlead gateway",
            "description": "The API of clients. Further paths under /v1 go to the engine of the model.",
            "version": __version__,
        },
        "security": [{"bearer": []}, {"key": []}],
        "paths": {"/v1/models": {"get": {"summary": "Models", "responses": models | _errors("Error")}}} | paths,
        "components": {
            "schemas": {"Error": _OPENAI_ERROR, "AnthropicError": _ANTHROPIC_ERROR} | dict(sorted(schemas.items())),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(dialect: Dialect, body: dict[str, Any]) -> dict[str, Any]:
    answer = _answer("The answer of the engine.", {"type": "object"})
    if dialect.generates:
        answer["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    is_anthropic = dialect.errors is ANTHROPIC_ERRORS
    return {
        "summary": f"Dialect `{dialect.name}`",
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {"200": answer} | _errors("AnthropicError" if is_anthropic else "Error"),
    }


def _errors(schema: str) -> dict[str, Any]:
    refusal, failure = "The gateway or an engine refuses the request.", "No engine has answered."
    reference = {"$ref": f"{_SCHEMAS}{schema}"}
    return {"4XX": _answer(refusal, reference), "5XX": _answer(failure, reference)}


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()}
    return {"description": description, "headers": headers, "content": {"application/json": {"schema": schema}}}


def openapi_files(note: str) -> dict[str, str]:
    """Returns path below the root → content: both descriptions, and their page."""
    gateway, management = gateway_description(), management_description()
    page = (
        f"{note}# OpenAPI\n\nThe two ports of a gateway as OpenAPI 3.1, for generators of clients and for tests.\n\n"
        "- [gateway.json](gateway.json): the port of clients. It has the fields that the gateway reads or checks;\n"
        "  answers are those of [engines](requests.md) and are left open.\n"
        "- [management.json](management.json): the [management port](management.md), which serves it at\n"
        "  `/openapi.json`.\n\n"
        f"## Paths of the port of clients\n\n{_paths_of_clients(gateway)}\n"
        f"## Paths of the management port\n\n{_paths(management)}\n"
        f"## Answers of the management port\n\n{_tables(management['components']['schemas'])}"
    )
    return {
        f"{FOLDER}/gateway.json": json.dumps(gateway, indent=1) + "\n",
        f"{FOLDER}/management.json": json.dumps(management, indent=1) + "\n",
        f"{FOLDER}/openapi.md": page,
    }


def _paths_of_clients(description: dict[str, Any]) -> str:
    rows = ["| path | dialect | fields that the gateway reads or checks |\n|---|---|---|\n"]
    schemas = description["components"]["schemas"]
    for path, dialect in DIALECTS.items():
        fields = "counts, limits and inputs, as in `GenericRequest` of the file"
        if dialect in ROUTED:
            fields = ", ".join(f"`{field}`" for field in schemas[dialect.body_type.__name__]["properties"])
        rows.append(f"| `POST {path}` | `{dialect.name}` | {fields} |\n")
    return "".join(rows)


def _paths(description: dict[str, Any]) -> str:
    rows = ["| path | what | parameters | answer |\n|---|---|---|---|\n"]
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            parameters = ", ".join(f"`{parameter['name']}`" for parameter in operation.get("parameters", ()))
            (content, *_) = operation["responses"]["200"]["content"].values()
            rows.append(
                f"| `{method.upper()} {path}` | {operation['summary']} | {parameters} | {_type(content['schema'])} |\n"
            )
    return "".join(rows)


def _tables(schemas: dict[str, Any]) -> str:
    parts = []
    for name, schema in schemas.items():
        rows = "".join(
            f"| `{field}` | {_type(kind)} | {kind.get('description', '')} |\n"
            for field, kind in schema.get("properties", {}).items()
        )
        parts.append(
            f"### {name}\n\n{schema.get('description', '')}\n\n| field | type | meaning |\n|---|---|---|\n{rows}"
        )
    return "\n".join(parts)


def _type(schema: dict[str, Any]) -> str:
    return " or ".join(dict.fromkeys(_types(schema))) or "any"


def _types(schema: dict[str, Any]) -> Iterator[str]:
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_SCHEMAS)
        yield f"[{name}](#{name.lower()})"
    for option in schema.get("anyOf", ()):
        yield from _types(option)
    kind = schema.get("type")
    if kind == "array":
        yield f"list of {_type(schema.get('items', {}))}"
    elif kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        yield f"map of {_type(schema['additionalProperties'])}"
    elif isinstance(kind, str):
        yield kind
