"""The errors of the API server.

    KubeError (FairleadError)
    ├── NotFound            the object, or its kind, does not exist
    ├── Conflict            the object has changed meanwhile, or another manager owns the field
    │   └── AlreadyExists
    ├── Gone                this resource version, or continue token, is too old: list again
    ├── Forbidden           not permitted; the message names the verb and the resource
    │   └── Unauthenticated the API server does not accept the credentials
    ├── Invalid             the object is invalid; `causes` names the fields
    ├── EvictionBlocked     a disruption budget does not allow the eviction now
    ├── NotLeading          this process does not lead any more; nothing was sent
    └── Unreachable         no final response after all attempts (also Unavailable)
        ├── TooManyRequests
        └── ResponseTooLarge the response has more bytes than are read

The causes are quoted from the API server. No message contains a token.
"""

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from fairlead.errors import FairleadError, Unavailable
from fairlead.kube.json_decoding import decode_json

_UNTYPED_PATCH_MESSAGE = "failed to create typed patch object"
"""Start of the API server's (1.36) message, with status 500, if an applied object violates the
schema.
"""
_FIELD_LINE = re.compile(r"^\s*(\.[^:\s]+): (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ErrorCause:
    """A detail of an error.

    field: path such as `spec.replicas`.
    reason: a word of the API, such as `FieldValueInvalid`.
    """

    field: str
    reason: str
    message: str


class KubeError(FairleadError):
    """A request that the API server did not fulfil. `status` is the HTTP status; 0 without a
    response.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        reason: str = "",
        causes: tuple[ErrorCause, ...] = (),
        retry_after_seconds: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.reason = reason
        self.causes = causes
        self.retry_after_seconds = retry_after_seconds


class NotFound(KubeError):
    """The object, its namespace or its kind does not exist."""


class Conflict(KubeError):
    """The object was changed in the meantime, or another manager owns a field."""


class AlreadyExists(Conflict):
    """An object of this name already exists."""


class Gone(KubeError):
    """The API server no longer has this resource version: list again."""


class Forbidden(KubeError):
    """The identity lacks the permission, or the namespace of a new object is being deleted."""


class Unauthenticated(Forbidden):
    """The API server does not accept the token or certificate."""


class Invalid(KubeError):
    """The API server rejects the object. `causes` names the fields."""


class EvictionBlocked(KubeError):
    """A disruption budget does not allow the eviction now."""


class NotLeading(KubeError):
    """This process does not lead any more, so the request was not sent."""


class Unreachable(KubeError, Unavailable):
    """The API server does not respond, or cannot serve now. A later attempt may succeed."""


class TooManyRequests(Unreachable):
    """The API server is overloaded. `retry_after_seconds` is the pause that it requests."""


class ResponseTooLarge(Unreachable):
    """The response has more bytes than are read. The same request would get as many again."""


_BY_STATUS: dict[int, type[KubeError]] = {
    400: Invalid,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}


def error_from_response(status: int, body: bytes, request: str, retry_after_seconds: float | None = None) -> KubeError:
    """Returns the error for a response with an error status.

    body: a `Status` object as JSON, or any other text.
    request: for the message, such as `GET /api/v1/pods`.
    """
    return error_from_status(_parse_status(body), request, status, retry_after_seconds)


def error_from_status(
    status_object: dict[str, Any], request: str, status: int = 0, retry_after_seconds: float | None = None
) -> KubeError:
    """Returns the error of a `Status` object, which appears in responses and in watches."""
    code = status_object.get("code")
    status = status or (code if isinstance(code, int) else 0)
    reason, details = str(status_object.get("reason") or ""), status_object.get("details")
    details = details if isinstance(details, dict) else {}
    causes = _parse_causes(details.get("causes"))
    seconds = details.get("retryAfterSeconds")
    if retry_after_seconds is None and isinstance(seconds, int) and seconds > 0:
        retry_after_seconds = float(seconds)
    kind = _BY_STATUS.get(status) or (Unreachable if status >= 500 or not status else Invalid)
    if kind is Conflict and reason == "AlreadyExists":
        kind = AlreadyExists
    if kind is TooManyRequests and any(cause.reason == "DisruptionBudget" for cause in causes):
        kind = EvictionBlocked
    message = str(status_object.get("message") or "")
    if message.startswith(_UNTYPED_PATCH_MESSAGE):
        kind, listed = Invalid, message.partition("): ")[2]
        causes = tuple(ErrorCause(path.lstrip("."), "Invalid", words) for path, words in _FIELD_LINE.findall(listed))
    message = message or (f"HTTP {status}" if status else "an error that names no cause")
    return kind(
        f"{request}: {message}", status=status, reason=reason, causes=causes, retry_after_seconds=retry_after_seconds
    )


def _parse_status(body: bytes) -> dict[str, Any]:
    """Returns the `Status` object in a body; for other text, a `Status` with it as the message."""
    try:
        status_object = decode_json(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        status_object = None
    if isinstance(status_object, dict):
        return status_object
    text = body[:200].decode("utf-8", "replace").strip()
    return {"message": text} if text else {}


def _parse_causes(listed: object) -> tuple[ErrorCause, ...]:
    if not isinstance(listed, list):
        return ()
    return tuple(
        ErrorCause(str(cause.get("field") or ""), str(cause.get("reason") or ""), str(cause.get("message") or ""))
        for cause in listed
        if isinstance(cause, dict)
    )
