"""What the API server can say instead of an answer.

KubeError (FairleadError)
├── NotFound            the object, or its kind, is not there
├── Conflict            somebody else changed it first, or owns the field
│   └── AlreadyExists
├── Gone                this resource version, or continuation, is too old: list again
├── Forbidden           we may not; the message names the verb and the resource
│   └── Unauthenticated the API server does not know us
├── Invalid             the object is refused; ``causes`` names the fields
├── Refused             an eviction that a disruption budget does not allow now
└── Unreachable         no answer, or one that says "later", after all attempts (also Unavailable)
    └── TooManyRequests

The causes come from the API server word for word. No message holds a token.
"""

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from fairlead.errors import FairleadError, Unavailable


@dataclass(frozen=True, slots=True)
class ErrorCause:
    """One thing that is wrong with an object: ``field`` is its path (``spec.replicas``), ``reason`` a word of the API's."""

    field: str
    reason: str
    message: str


class KubeError(FairleadError):
    """Raised when the API server does not do what it was asked. ``status`` is that of HTTP, 0 when there was no answer."""

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
    """Raised when the object, its namespace or its kind is not there."""


class Conflict(KubeError):
    """Raised when the object was changed meanwhile, or when another manager owns a field of it."""


class AlreadyExists(Conflict):
    """Raised when an object of this name is there already."""


class Gone(KubeError):
    """Raised when the API server has forgotten this resource version: what is known must be listed anew."""


class Forbidden(KubeError):
    """Raised when our identity may not do this, and when a namespace that ends takes nothing new."""


class Unauthenticated(Forbidden):
    """Raised when the API server does not accept our token or certificate."""


class Invalid(KubeError):
    """Raised when the API server refuses the object itself; ``causes`` says which fields and why."""


class EvictionBlocked(KubeError):
    """Raised when a disruption budget does not allow an eviction now."""


class Unreachable(KubeError, Unavailable):
    """Raised when the API server does not answer, or says that it cannot now; trying later may help."""


class TooManyRequests(Unreachable):
    """Raised when the API server has no room for us now; ``retry_after_seconds`` says how long it asks to be left alone."""


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
_UNTYPED_PATCH_MESSAGE = "failed to create typed patch object"
"""How the API server (1.36) says, with 500, that what is applied does not fit the schema."""
_FIELD_LINE = re.compile(r"^\s*(\.[^:\s]+): (.+)$", re.MULTILINE)


def error_from_response(status: int, body: bytes, request: str, retry_after_seconds: float | None = None) -> KubeError:
    """The error that an answer means. ``asked`` says what for (``GET /api/v1/pods``); the body may be anything at all."""
    return error_from_status(_parse_status(body), request, status, retry_after_seconds)


def error_from_status(
    status_object: dict[str, Any], request: str, status: int = 0, retry_after_seconds: float | None = None
) -> KubeError:
    """The error that a ``Status`` object means, as it comes in answers and within watches."""
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
    """A ``Status``, or what a proxy in between wrote as one."""
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError:
        found = None
    if isinstance(found, dict):
        return found
    text = body[:200].decode("utf-8", "replace").strip()
    return {"message": text} if text else {}


def _parse_causes(listed: object) -> tuple[ErrorCause, ...]:
    if not isinstance(listed, list):
        return ()
    return tuple(
        ErrorCause(str(one.get("field") or ""), str(one.get("reason") or ""), str(one.get("message") or ""))
        for one in listed
        if isinstance(one, dict)
    )
