"""Request bodies: JSON in, typed fields out, with findings in the wording of vLLM's framework.

Parsing is as lax as in that framework: ``"3"`` and ``3.0`` are integers, ``3.5`` is not. Findings
are collected, so that one response names all wrong fields; ``check`` raises them.
"""

import json
from typing import Any

import msgspec

from fairlead_sim.http.connection import HttpRequest
from fairlead_sim.http.errors import MalformedRequest, ValidationFinding

_TRUE = frozenset({"true", "1", "yes", "on", "t", "y"})
NO_OBJECT = "Input should be a valid dictionary or object to extract fields from"
_FALSE = frozenset({"false", "0", "no", "off", "f", "n"})


def json_body(request: HttpRequest) -> Any:
    """Returns the decoded body. Raises MalformedRequest if it is not JSON, or not labelled
    as JSON.
    """
    kind = request.headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if kind != "application/json":
        raise MalformedRequest(["Unsupported Media Type: Only 'application/json' is allowed"])
    try:
        return msgspec.json.decode(request.body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return _decode_with_stdlib(request.body)


def _decode_with_stdlib(body: bytes) -> Any:
    """Decodes again with the standard library, which permits NaN, as vLLM does.

    Raises MalformedRequest with the position of the error.
    """
    try:
        document = json.loads(body)
        json.dumps(document, ensure_ascii=False).encode()  # half of a surrogate pair is not text
        return document
    except UnicodeEncodeError:
        message = "Input should be a valid string, unable to parse raw data as a unicode string"
        finding = ValidationFinding("string_unicode", "body", message, {})
    except json.JSONDecodeError as error:
        finding = ValidationFinding("json_invalid", f"body.{error.pos}", "JSON decode error", {}, error.msg)
    except (RecursionError, UnicodeDecodeError, ValueError) as error:
        finding = ValidationFinding("json_invalid", "body.0", "JSON decode error", {}, str(error))
    raise MalformedRequest([finding])


class RequestFields:
    """Typed access to one JSON object."""

    def __init__(self, body: Any, *, where: str = "body") -> None:
        self.findings: list[ValidationFinding] = []
        self._where = where
        if not isinstance(body, dict):
            raise MalformedRequest([ValidationFinding("model_attributes_type", where, NO_OBJECT, body)])
        self.body: dict[str, Any] = body

    def check(self) -> None:
        """Raises MalformedRequest if there are findings."""
        if self.findings:
            raise MalformedRequest(self.findings)

    def add_missing(self, name: str) -> None:
        self.findings.append(ValidationFinding("missing", f"{self._where}.{name}", "Field required", self.body))

    def add_wrong(self, kind: str, name: str, message: str, value: object) -> None:
        self.findings.append(ValidationFinding(kind, f"{self._where}.{name}", message, value))

    def add_value_error(self, where: str, message: str, value: object) -> None:
        """Notes a value that a check of its own refuses; ``where`` is empty for the whole body."""
        place = f"{self._where}.{where}" if where else self._where
        self.findings.append(
            ValidationFinding("value_error", place, f"Value error, {message}", value, ValueError(message))
        )

    def add_unless_literal(self, where: str, parent: dict[str, Any], expected: tuple[str, ...]) -> None:
        """Notes the last field of ``where`` if it is missing, or is none of the expected words."""
        name = where.rpartition(".")[2]
        if name not in parent:
            self.add_wrong("missing", where, "Field required", parent)
        elif parent[name] not in expected:
            words = [repr(word) for word in expected]
            listed = f"{', '.join(words[:-1])} or {words[-1]}"
            self.findings.append(
                ValidationFinding(
                    "literal_error",
                    f"{self._where}.{where}",
                    f"Input should be {listed}",
                    parent[name],
                    {"expected": listed},
                )
            )

    def require(self, name: str) -> Any:
        """Returns the value as it is. A missing field is a finding, and None is returned."""
        if name not in self.body:
            self.add_missing(name)
        return self.body.get(name)

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self.body.get(name)
        if value is None:
            return default
        if isinstance(value, str):
            return value
        self.add_wrong("string_type", name, "Input should be a valid string", value)
        return default

    def integer(self, name: str, default: int | None = None) -> int | None:
        value = self.body.get(name)
        if value is None:
            return default
        if isinstance(value, bool):
            return int(value)
        if isinstance(value, int):
            return value
        if isinstance(value, float):
            if value.is_integer():
                return int(value)
            message = "Input should be a valid integer, got a number with a fractional part"
            self.add_wrong("int_from_float", name, message, value)
        elif isinstance(value, str):
            try:
                return int(value)
            except ValueError:
                message = "Input should be a valid integer, unable to parse string as an integer"
                self.add_wrong("int_parsing", name, message, value)
        else:
            self.add_wrong("int_type", name, "Input should be a valid integer", value)
        return default

    def number(self, name: str, default: float | None = None) -> float | None:
        value = self.body.get(name)
        if value is None:
            return default
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                message = "Input should be a valid number, unable to parse string as a number"
                self.add_wrong("float_parsing", name, message, value)
        else:
            self.add_wrong("float_type", name, "Input should be a valid number", value)
        return default

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.body.get(name)
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        word = str(value).lower()
        if not isinstance(value, list | dict) and word in _TRUE | _FALSE:
            return word in _TRUE
        kind = "bool_parsing" if isinstance(value, str | int | float) else "bool_type"
        self.add_wrong(kind, name, "Input should be a valid boolean, unable to interpret input", value)
        return default

    def mapping(self, name: str) -> dict[str, Any] | None:
        value = self.body.get(name)
        if value is None or isinstance(value, dict):
            return value
        self.add_wrong("dict_type", name, "Input should be a valid dictionary", value)
        return None

    def items(self, name: str) -> list[Any] | None:
        """Returns a list; None if the field is absent, or has another type (a finding)."""
        value = self.body.get(name)
        if value is None or isinstance(value, list):
            return value
        self.add_wrong("list_type", name, "Input should be a valid list", value)
        return None

    def strings(self, name: str) -> tuple[str, ...]:
        """Returns the strings of a string or list; () if absent or of a wrong type (a finding)."""
        value = self.body.get(name)
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        self.add_wrong("string_type", name, "Input should be a valid string", value)
        return ()

    def token_ids(self, name: str) -> list[int]:
        """Returns a list of integers; empty if absent or of a wrong type (a finding)."""
        value = self.body.get(name)
        if value is None:
            return []
        if isinstance(value, list) and all(type(item) is int for item in value):
            return value
        self.add_wrong("int_type", name, "Input should be a valid integer", value)
        return []
