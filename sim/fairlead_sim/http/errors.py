"""The error tree of the simulated engine, with the status and the body that vLLM sends for each.

The subclasses of ``ApiError``:

- RouteNotFound: 404 ``{"detail": "Not Found"}``, or 405, in the web framework's form.
- MalformedRequest: 400 ``Bad Request``. No JSON, or fields of wrong types, all of them listed.
- InvalidRequest: 400 ``BadRequestError``. Well-formed but impossible; may name the parameter.
- ResourceNotFound: 404 ``NotFoundError``. No such model or adapter.
- EndpointDisabled: 403 ``PermissionDeniedError``. A switch of the surface is off.
- ForeignPage: 403 ``PermissionDeniedError``. Not of vLLM.
- EngineBusy: 503 ``Service Unavailable``. The queue is full.
- InternalError: 500 ``InternalServerError``.
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


_MAX_SHOWN_FINDINGS = 10
_MAX_SHOWN_CHARACTERS = 200


class ApiError(FairleadError):
    """Raised by handlers; the connection turns it into the response of the real engine."""

    status = 500
    kind = "InternalServerError"
    has_dialect = True  # a body of its own on the Anthropic routes; the web framework's errors have none

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def error_fields(self) -> dict[str, object]:
        return {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}

    def body(self) -> bytes:
        return msgspec.json.encode({"error": self.error_fields()})

    def event(self) -> bytes:
        return b"data: %b\n\n" % json.dumps({"error": self.error_fields()}, ensure_ascii=False).encode()

    def anthropic_body(self) -> bytes:
        return msgspec.json.encode({"type": "error", "error": {"type": self.kind, "message": self.message}})

    def anthropic_event(self) -> bytes:
        """Returns the event of a message stream: how vLLM fails to read the event of its chat."""
        text = repr({"error": self.error_fields()})
        why = f"Field required [type=missing, input_value={text[:25]}...{text[-24:]}, input_type=dict]"
        why += "\n    For further information visit https://errors.pydantic.dev/2.14/v/missing"
        message = f"2 validation errors for ChatCompletionStreamResponse\nmodel\n  {why}\nchoices\n  {why}"
        error = {"type": "error", "error": {"type": "internal_error", "message": message}}
        return b"event: error\ndata: %b\n\n" % msgspec.json.encode(error)


class RouteNotFound(ApiError):
    """Raised for an unknown path (404) or method (405; ``allow`` lists the permitted ones)."""

    has_dialect = False

    def __init__(self, allow: str | None = None) -> None:
        super().__init__("Not Found" if allow is None else "Method Not Allowed")
        self.status = 404 if allow is None else 405
        self.allow = allow

    def body(self) -> bytes:
        return msgspec.json.encode({"detail": self.message})


class MalformedRequest(ApiError):
    """Raised for a body or query that does not have the documented form; never 422."""

    status = 400
    kind = "Bad Request"
    has_dialect = False

    def __init__(self, findings: Sequence["ValidationFinding | str"]) -> None:
        plural = "s" if len(findings) > 1 else ""
        lines = "".join(f"\n  {finding}" for finding in findings[:_MAX_SHOWN_FINDINGS])
        if len(findings) > _MAX_SHOWN_FINDINGS:
            lines += f"\n  ...and {len(findings) - _MAX_SHOWN_FINDINGS} more errors"
        first = findings[0]
        super().__init__(
            f"{len(findings)} validation error{plural}:{lines}",
            param=first.where if isinstance(first, ValidationFinding) else None,
        )


class ValidationFinding:
    """One line of a MalformedRequest: type, location, message and shortened input.

    context: why, as a text or an exception; or all its fields.
    """

    def __init__(self, kind: str, where: str, message: str, value: object, context: object = None) -> None:
        self.kind = kind
        self.where = where
        self.message = message
        self.value = value
        self.context = context

    def __str__(self) -> str:
        text = str(self.value)
        if isinstance(self.value, dict | list):
            text = f"<{type(self.value).__name__} of {len(self.value)} items>"
        elif len(text) > _MAX_SHOWN_CHARACTERS:
            text = text[:_MAX_SHOWN_CHARACTERS] + "...[truncated]"
        parts: dict[str, object] = {"type": self.kind, "loc": self.where, "msg": self.message, "input": text}
        if self.context is not None:
            parts["ctx"] = self.context if isinstance(self.context, dict) else {"error": self.context}
        return str(parts)


class InvalidRequest(ApiError):
    """Raised for a well-formed request that the engine cannot or will not serve."""

    status = 400
    kind = "BadRequestError"

    @classmethod
    def for_param(cls, message: str, param: str) -> "InvalidRequest":
        return cls(f"{message} (parameter={param})", param=param)

    @classmethod
    def for_value(cls, message: str, param: str, value: object) -> "InvalidRequest":
        """Returns an error with parameter and value at the end of the message, as vLLM
        writes it.
        """
        return cls(f"{message} (parameter={param}, value={value})", param=param)


class InvalidAdapterRequest(InvalidRequest):
    """Raised by the adapter endpoints, which have their own error type."""

    kind = "InvalidUserInput"


class ResourceNotFound(ApiError):
    """Raised for a model or an adapter that is not served here."""

    status = 404
    kind = "NotFoundError"


class EndpointDisabled(ApiError):
    """Raised for an endpoint whose switch is off."""

    status = 403
    kind = "PermissionDeniedError"


class ForeignPage(ApiError):
    """Raised for a request that a page of another site may have sent, which vLLM would answer."""

    status = 403
    kind = "PermissionDeniedError"


class EngineBusy(ApiError):
    """Raised at the queue limit."""

    status = 503
    kind = "Service Unavailable"

    def __init__(self) -> None:
        super().__init__(BUSY_MESSAGE)


class InternalError(ApiError):
    """Raised for a fault of the engine itself.

    bare: leaves out the middleware's headers.
    """

    def __init__(self, message: str, *, bare: bool = False) -> None:
        super().__init__(message)
        self.is_bare = bare


class DropConnection(FairleadError):
    """Raised where the engine would drop the connection without a response."""
