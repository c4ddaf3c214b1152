"""The OpenAPI of the site: readable by tools, and true for errors and paths of a gateway."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import schemathesis

from fairlead_gateway.dialects.error_shape import ErrorShape
from fairlead_gateway.dialects.table import DIALECTS
from fairlead_gateway.errors import error_body

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"
GATEWAY, MANAGEMENT = (json.loads((FOLDER / f"{name}.json").read_text()) for name in ("gateway", "management"))


@pytest.mark.parametrize(("description", "paths"), [(GATEWAY, len(DIALECTS) + 1), (MANAGEMENT, 12)])
def test_tools_read_each_operation(description: dict[str, Any], paths: int) -> None:
    operations = [result.ok().label for result in schemathesis.openapi.from_dict(description).get_all_operations()]
    assert len(set(operations)) == paths


def test_errors_have_the_described_form() -> None:
    body = error_body("message", "invalid_request_error", None, "missing_field", "req-1")
    schemas = GATEWAY["components"]["schemas"]
    for shape, name in ((ErrorShape(), "Error"), (ErrorShape(is_anthropic=True), "AnthropicError")):
        jsonschema.validate(json.loads(shape.body(400, body)), schemas[name])


def test_streams_are_described_where_models_generate() -> None:
    streams = [
        path
        for path, operations in GATEWAY["paths"].items()
        for operation in operations.values()
        if "text/event-stream" in operation["responses"]["200"]["content"]
    ]
    assert streams == [path for path, dialect in DIALECTS.items() if dialect.generates]
