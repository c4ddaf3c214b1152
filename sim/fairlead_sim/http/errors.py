"""The error tree of the simulated engine: each knows its status and the body that vLLM sends for it.

ApiProblem
├── NotServed       404 ``{"detail": "Not Found"}`` or 405: the web framework's own words, not the OpenAI shape
├── Malformed       400 ``Bad Request``: the body is no JSON or a field has the wrong type; lists every finding
├── Refused         400 ``BadRequestError``: well-formed, but not possible; may name the parameter and its value
├── Unknown         404 ``NotFoundError``: no such model or adapter
├── Disabled        403 ``PermissionDeniedError``: a family of endpoints is switched off
├── Busy            503 ``Service Unavailable``: the queue is full
└── Broken          500 ``InternalServerError``
"""

import json
from collections.abc import Sequence

import msgspec

from fairlead.errors import FairleadError

BUSY_MESSAGE = (
    "The engine is currently busy and cannot accept new requests. Please try again later or on a different instance."
)
CORE_DIED_MESSAGE = "EngineCore encountered an issue. See stack trace (above) for the root cause."
DRAINING_MESSAGE = "cannot schedule new futures after shutdown"


class ApiError(FairleadError):
    """Raised while answering; the connection turns it into the response that the real engine would give."""

    status = 500
    kind = "InternalServerError"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def error_fields(self) -> dict[str, object]:
        """The OpenAI error object."""
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}

    def body(self) -> bytes:
        """The body of a plain answer."""
        return msgspec.json.encode({"error": self.error_fields()})

    def event(self) -> bytes:
        """The same inside a stream; there the engine writes it with blanks after the separators."""
        return b"data: %b\n\n" % json.dumps({"error": self.error_fields()}, ensure_ascii=False).encode()

    def anthropic_body(self) -> bytes:
        """The body on the Anthropic routes."""
        return msgspec.json.encode({"type": "error", "error": {"type": self.kind, "message": self.message}})


class RouteNotFound(ApiError):
    """Raised for a path that is not served (404) or not with this method (405, ``allow`` names those that are)."""

    def __init__(self, allow: str | None = None) -> None:
        super().__init__("Not Found" if allow is None else "Method Not Allowed")
        self.status = 404 if allow is None else 405
        self.allow = allow

    def body(self) -> bytes:
        return msgspec.json.encode({"detail": self.message})


class MalformedRequest(ApiError):
    """Raised when a body or query does not have the documented form; never 422."""

    status = 400
    kind = "Bad Request"

    def __init__(self, findings: Sequence["ValidationFinding | str"]) -> None:
        plural = "s" if len(findings) > 1 else ""
        lines = "".join(f"\n  {finding}" for finding in findings)
        first = findings[0]
        super().__init__(
            f"{len(findings)} validation error{plural}:{lines}",
            param=first.where if isinstance(first, ValidationFinding) else None,
        )


class ValidationFinding:
    """One line of a Malformed problem: type, place, words, and the input in short."""

    def __init__(self, kind: str, where: str, message: str, value: object, context: str | None = None) -> None:
        self.kind = kind
        self.where = where
        self.message = message
        self.value = value
        self.context = context

    def __str__(self) -> str:
        parts: dict[str, object] = {"type": self.kind, "loc": self.where, "msg": self.message, "input": self.value}
        if isinstance(self.value, dict | list):
            parts["input"] = f"<{type(self.value).__name__} of {len(self.value)} items>"
        if self.context is not None:
            parts["ctx"] = {"error": self.context}
        return str(parts)


class InvalidRequest(ApiError):
    """Raised when a well-formed request asks for what the engine cannot or will not do."""

    status = 400
    kind = "BadRequestError"

    @classmethod
    def for_value(cls, message: str, param: str, value: object) -> "InvalidRequest":
        """Named parameter and value at the end of the message, as vLLM writes them."""
        return cls(f"{message} (parameter={param}, value={value})", param=param)


class InvalidAdapterRequest(InvalidRequest):
    """Raised by the adapter endpoints, which have an error type of their own."""

    kind = "InvalidUserInput"


class ResourceNotFound(ApiError):
    """Raised when a model or adapter is not served here."""

    status = 404
    kind = "NotFoundError"


class EndpointDisabled(ApiError):
    """Raised when the switch of a family of endpoints is off."""

    status = 403
    kind = "PermissionDeniedError"


class EngineBusy(ApiError):
    """Raised when the queue limit is reached."""

    status = 503
    kind = "Service Unavailable"

    def __init__(self) -> None:
        super().__init__(BUSY_MESSAGE)


class InternalError(ApiError):
    """Raised when the engine itself is at fault; ``bare`` answers lack the middleware's headers."""

    def __init__(self, message: str, *, bare: bool = False) -> None:
        super().__init__(message)
        self.is_bare = bare


class DropConnection(FairleadError):
    """Raised when the engine would drop the connection without a word."""
