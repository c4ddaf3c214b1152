"""What the gateway can answer instead of an engine. Each error knows its status, its OpenAI type and code, and the fix.

GatewayError
├── BadRequest             400  the bytes or the body are wrong; ``param`` names the field
│   ├── HeadTooLarge       431      TargetTooLong  414      BodyTooLarge  413
│   ├── BodyType           415      BadExpectation 417      BadVersion    400
│   └── TooSlow            408  a head or a body did not arrive in time
├── NoKey                  401  no API key, or one that is not known
├── UnknownPath            404      UnknownModel   404      WrongMethod   405
├── Quarantined            422  engines broke off on this very request before
├── Shed                   429  the request's tier goes last, and its objective cannot be met
├── NoInstance             503  no engine of this model is ready
├── Overloaded             503  engines, or this gateway, are full
├── EngineFailed           502  engines were asked and failed
└── EngineSilent           504  an engine said nothing in time

No message ever repeats bytes of a request: it names the field, and known names only.
"""

from collections.abc import Sequence

import msgspec

from fairlead.errors import FairleadError


class GatewayError(FairleadError):
    """Raised on the request's way; becomes the answer. ``fields`` are extra header fields of that answer."""

    status = 500
    error_type = "server_error"
    code = "internal_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        hint: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(message, hint=hint)
        self.param = param
        self.headers = tuple(headers)
        if code is not None:
            self.code = code

    def body(self, request_id: str) -> bytes:
        """The OpenAI error object, with the request's id beside it."""
        return error_body(str(self), self.error_type, self.param, self.code, request_id)


class RelayedError(GatewayError):
    """Raised when another process of the gateway says what a request would be answered."""

    def __init__(self, status: int, message: str, param: str | None, code: str | None) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status


class BadRequest(GatewayError):
    """Raised when a request cannot be understood or holds a value that is out of range."""

    status = 400
    error_type = "invalid_request_error"
    code = "invalid_request"


class HeadTooLarge(BadRequest):
    """Raised when the header fields are too many or too long."""

    status = 431
    code = "headers_too_large"


class TargetTooLong(BadRequest):
    """Raised when the request line is too long."""

    status = 414
    code = "target_too_long"


class BodyTooLarge(BadRequest):
    """Raised when a body passes the limit, or costs far more bytes on the wire than it holds."""

    status = 413
    code = "body_too_large"


class UnsupportedBodyType(BadRequest):
    """Raised when a body is compressed."""

    status = 415
    code = "unsupported_media_type"


class UnsupportedExpectation(BadRequest):
    """Raised when a client expects something else than 100-continue."""

    status = 417
    code = "expectation_failed"


class UnsupportedHttpVersion(BadRequest):
    """Raised for anything but HTTP/1.0 and HTTP/1.1."""

    code = "http_version_not_supported"


class RequestTimeout(BadRequest):
    """Raised when the rest of a request does not arrive in time."""

    status = 408
    code = "request_timeout"


class InvalidApiKey(BadRequest):
    """Raised when a caller shows no API key or an unknown one."""

    status = 401
    code = "invalid_api_key"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, headers=(("www-authenticate", 'Bearer realm="fairlead"'),))


class UnknownPath(BadRequest):
    """Raised when nothing is served under a path."""

    status = 404
    code = "unknown_url"


class UnknownModel(BadRequest):
    """Raised when no model has the name that the client gave."""

    status = 404
    code = "model_not_found"


class MethodNotAllowed(BadRequest):
    """Raised when a path exists and the method does not."""

    status = 405
    code = "method_not_allowed"


class QuarantinedRequest(BadRequest):
    """Raised when engines broke off on this very request before; ``seconds`` are left until it may be tried again."""

    status = 422
    code = "quarantined"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            "two engines broke off on this request; it is not given to another one",
            hint="change it, or ask the operator with this id",
            headers=(("x-should-retry", "false"), ("retry-after", f"{max(1, round(seconds))}")),
        )


class RequestShed(GatewayError):
    """Raised when a request of a sheddable tier could not meet its objective behind those that are held."""

    status = 429
    error_type = "rate_limit_error"
    code = "shed"


class NoReadyInstance(GatewayError):
    """Raised when no instance of a model is ready."""

    status = 503
    code = "no_ready_instance"


class Overloaded(GatewayError):
    """Raised when every engine that was asked, or the gateway itself, is full."""

    status = 503
    code = "overloaded"


class EngineFailed(GatewayError):
    """Raised when the engines that were asked failed before the first byte of an answer."""

    status = 502
    code = "engine_failed"


class EngineTimeout(GatewayError):
    """Raised when an engine took a request and said nothing until the deadline."""

    status = 504
    code = "engine_timeout"


_encode = msgspec.json.Encoder().encode


def error_body(message: str, error_type: str, param: str | None, code: str | int | None, request_id: str) -> bytes:
    """An OpenAI error object as bytes."""
    return _encode(
        {"error": {"message": message, "type": error_type, "param": param, "code": code}, "request_id": request_id}
    )


def error_event(message: str, code: str, request_id: str) -> bytes:
    """The same object as the last event of a stream that broke."""
    return b"data: " + error_body(message, GatewayError.error_type, None, code, request_id) + b"\n\n"
