"""The formats of ``-o``, the same for all verbs."""

from typing import Annotated, Literal, TypeGuard

import msgspec
from cyclopts import Parameter

DocumentFormat = Literal["json", "yaml"]
OutputFormat = Literal["table", "wide", "json", "yaml"]
OutputFlag = Annotated[
    OutputFormat,
    Parameter(name=["--output", "-o"], help="Text; wide: with more columns; or all of it as JSON or YAML."),
]
"""The flag ``-o``."""


def is_document(output: OutputFormat) -> TypeGuard[DocumentFormat]:
    """Returns True if the output is a document for programs: JSON or YAML."""
    return output in ("json", "yaml")


def format_document(value: object, output: DocumentFormat) -> str:
    """Returns a value as a document, without a line break at its end.

    value: anything that encodes as JSON; bytes are a JSON text.
    """
    content = value if isinstance(value, bytes) else msgspec.json.encode(value)
    if output == "json":
        return msgspec.json.format(content, indent=2).decode()
    import yaml

    plain = msgspec.json.decode(content)
    return str(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100)).rstrip("\n")
