"""The errors with which the gateway itself answers. Each has a status, an OpenAI type and code,
and a hint.

    GatewayError
    ├── BadRequest             400  the bytes or the body are wrong; `param` names the field
    │   ├── HeadTooLarge       431      TargetTooLong           414      BodyTooLarge  413
    │   ├── UnsupportedBodyType 415     UnsupportedExpectation  417
    │   ├── UnsupportedHttpVersion 400     FieldRefused     400  a field that clients may not set
    │   ├── RequestTimeout     408  a head or a body did not arrive in time
    │   ├── InvalidApiKey      401  no API key, or an unknown one
    │   ├── NotPermitted       403  the tenant may not do this
    │   │   └── ExternalRefused 403  its requests may not leave the cluster
    │   ├── ForeignPage        403  a web page may have sent it, and no key is asked for
    │   ├── UnknownPath        404      UnknownModel            404      MethodNotAllowed 405
    │   ├── WebSocketRefused   426  the handshake of a WebSocket
    │   ├── UnknownResponse        404  no stored response has this id
    │   ├── QuarantinedRequest 422  instances crashed on this request before
    │   └── IdempotencyKeyReused 422 another request has this idempotency key
    ├── RelayedError                an error of another process of the gateway, with its status
    ├── RequestShed            429  a sheddable request would miss its TTFT target
    ├── TooManyLargeBodies     429  large bodies of the caller wait to be checked
    ├── LimitReached           429  a limit of the tenant is used up
    │   ├── BudgetSpent        429      its budget is
    │   └── ConcurrencyReached 429      as many of its requests are in flight as may be
    ├── LimitsUnavailable      503  what is left of the tenant's limits is not known
    ├── NoReadyInstance        503  no instance of the model is ready
    ├── RouteWithoutTarget     503  the route leads to no model that is served
    ├── AdapterNotLoaded       503  no instance of its base could load the LoRA adapter
    ├── KeyOwnerUnavailable    503  the worker that owns an idempotency key does not answer
    ├── ApiKeysUnavailable     503  the gateway cannot read its API keys
    ├── GatewayDraining        503  this gateway stops, and its drain is over
    ├── Overloaded             503  the instances, or this gateway, are full
    ├── EngineFailed           502  all attempts failed
    └── EngineTimeout          504  an engine did not answer in time

A message never repeats bytes of a request: it names the field, and known names only.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from fairlead.errors import FairleadError
from fairlead_gateway.routes.target_choice import RouteDecision

NO_RETRY: Final = ("x-should-retry", "false")
"""For SDKs: the same request fails again. Without it, some repeat a refusal for minutes."""


class GatewayError(FairleadError):
    """An error that becomes the response to a request. `headers` are added to that response.

    route: how a route chose the model, if the error came before the request had one.
    next_route: the same with a further fallback, which takes the request instead of the error.
    path: of the request, if its head was refused; empty if the request has an accepted one.
    retry_after: seconds after which to send the request again.
    """

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
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.param = param
        self.headers = tuple(headers) if retry_after is None else (*headers, ("retry-after", str(retry_after)))
        self.route: RouteDecision | None = None
        self.next_route: RouteDecision | None = None
        self.path = ""
        if code is not None:
            self.code = code

    def body(self, request_id: str) -> bytes:
        return error_body(str(self), self.error_type, self.param, self.code, request_id)


def forget_frames(error: BaseException) -> None:
    """Drops the frames that an error has passed, once it is handled.

    They hold the request and its body. What holds the error too would make a cycle with them, which
    keeps the body until the garbage collector runs.
    """
    left: BaseException | None = error
    while left is not None:
        left.__traceback__ = None
        left = left.__cause__ or left.__context__


class RelayedError(GatewayError):
    """Raised if another process of the gateway returned the error."""

    def __init__(self, status: int, message: str, param: str | None, code: str | None) -> None:
        super().__init__(message, param=param, code=code)
        self.status = status


class BadRequest(GatewayError):
    """Raised if a request is malformed or a value is out of range."""

    status = 400
    error_type = "invalid_request_error"
    code = "invalid_request"
    repairs: "Mapping[str, bytes]" = MappingProxyType({})
    """Fields that make the body valid, as engines read it; set by the parser of large bodies."""


class FieldRefused(BadRequest):
    """Raised if a field of the body may not reach the engines of its model.

    key: of the model.
    """

    code = "field_not_allowed"

    def __init__(self, message: str, *, param: str | None, hint: str) -> None:
        super().__init__(message, param=param, hint=hint)
        self.key = ""


class HeadTooLarge(BadRequest):
    """Raised if the header fields are too many, or they or the trailers are too long."""

    status = 431
    code = "headers_too_large"


class TargetTooLong(BadRequest):
    """Raised if the request line is too long."""

    status = 414
    code = "target_too_long"


class BodyTooLarge(BadRequest):
    """Raised if a body is too large, or its framing costs far more bytes than its data."""

    status = 413
    code = "body_too_large"


class UnsupportedBodyType(BadRequest):
    """Raised if a body is compressed, or is not JSON where only JSON is forwarded."""

    status = 415
    code = "unsupported_media_type"


class UnsupportedExpectation(BadRequest):
    """Raised if a client expects anything but 100-continue."""

    status = 417
    code = "expectation_failed"


class UnsupportedHttpVersion(BadRequest):
    """Raised for anything but HTTP/1.0 and HTTP/1.1."""

    code = "http_version_not_supported"


class RequestTimeout(BadRequest):
    """Raised if the rest of a request does not arrive in time."""

    status = 408
    code = "request_timeout"


class InvalidApiKey(BadRequest):
    """Raised if the API key is missing or unknown, or has expired."""

    status = 401
    code = "invalid_api_key"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, headers=(("www-authenticate", 'Bearer realm="fairlead"'), NO_RETRY))


class NotPermitted(BadRequest):
    """Raised if a known tenant may not do what a request asks for.

    Why not for models: a model that a tenant may not use is unknown to it, since even its name may
    be a secret.
    """

    status = 403
    code = "not_permitted"


class ExternalRefused(NotPermitted):
    """Raised if a request would leave the cluster, and its tenant refuses that.

    key: of the model, or of a route that leads outside alone.
    """

    code = "external_endpoint_refused"

    def __init__(self, key: str) -> None:
        super().__init__(f"model: {key} runs outside the cluster, which your tenant refuses", param="model")
        self.key = key


class ForeignPage(BadRequest):
    """Raised if a gateway without keys cannot tell a request from that of a foreign web page.

    header: the header that says so.
    """

    status = 403
    code = "foreign_page"

    def __init__(self, header: str, message: str, hint: str) -> None:
        super().__init__(f"{header}: {message}", param=header, hint=hint)


class UnknownPath(BadRequest):
    """Raised if no resource has this path."""

    status = 404
    code = "unknown_url"


class WebSocketRefused(BadRequest):
    """Raised for the handshake of a WebSocket. At this status, Codex goes on over HTTP at once."""

    status = 426
    code = "websocket_not_supported"

    def __init__(self) -> None:
        hint = "stream /v1/responses or /v1/chat/completions; for realtime audio, connect to the engine's own address"
        super().__init__("the gateway serves no WebSockets", hint=hint, headers=(("upgrade", "HTTP/1.1"),))


class UnknownModel(BadRequest):
    """Raised if no model has the requested name."""

    status = 404
    code = "model_not_found"


class UnknownResponse(BadRequest):
    """Raised if no instance holds a stored response with this id, or another tenant made it."""

    status = 404
    code = "response_not_found"

    def __init__(self, client_id: str) -> None:
        shown = client_id if client_id.replace("_", "").replace("-", "").isalnum() and len(client_id) <= 128 else "..."
        super().__init__(f"Response with id '{shown}' not found.", param="response_id")


class MethodNotAllowed(BadRequest):
    """Raised if a path exists, but not the method."""

    status = 405
    code = "method_not_allowed"


class QuarantinedRequest(BadRequest):
    """Raised if instances crashed on this request before; it may be retried after `seconds`."""

    status = 422
    code = "quarantined"

    def __init__(self, seconds: float) -> None:
        super().__init__(
            "two engines broke off on this request; it is not given to another one",
            hint="change the request, or give its id to the operator of the gateway",
            headers=(NO_RETRY,),
            retry_after=max(1, round(seconds)),
        )


class IdempotencyKeyReused(BadRequest):
    """Raised if an idempotency key of the caller belongs to another request."""

    status = 422
    code = "idempotency_key_reused"

    def __init__(self) -> None:
        super().__init__(
            "Idempotency-Key: the key belongs to another request, with another body or path",
            param="idempotency-key",
            hint="send a new key with each new request, and the same key only with the same bytes",
            headers=(NO_RETRY,),
        )


class RequestShed(GatewayError):
    """Raised if a sheddable request would miss its TTFT target behind the queued requests."""

    status = 429
    error_type = "rate_limit_error"
    code = "shed"


class TooManyLargeBodies(GatewayError):
    """Raised if too many large bodies of one caller wait to be checked."""

    status = 429
    error_type = "rate_limit_error"
    code = "too_many_large_bodies"

    def __init__(self) -> None:
        super().__init__(
            "too many large bodies of this caller at once",
            hint="send fewer at a time, or shorter ones",
            retry_after=1,
        )


class LimitReached(GatewayError):
    """Raised if a limit of the tenant is used up."""

    status = 429
    error_type = "rate_limit_error"
    code = "rate_limit_exceeded"


class BudgetSpent(LimitReached):
    """Raised if the budget of the tenant is used up."""

    error_type = "insufficient_quota"
    code = "insufficient_quota"


class ConcurrencyReached(LimitReached):
    """Raised if the tenant has as many requests, or bytes, in flight as it may."""

    code = "concurrency_limit_exceeded"


class LimitsUnavailable(GatewayError):
    """Raised if the rest of a tenant's limits is not known, since Redis is away or has lost it."""

    status = 503
    code = "limits_unavailable"


class NoReadyInstance(GatewayError):
    """Raised if no instance of a model is ready."""

    status = 503
    code = "no_ready_instance"


class RouteWithoutTarget(GatewayError):
    """Raised if a route leads to no model that is served."""

    status = 503
    code = "route_without_target"


class AdapterNotLoaded(GatewayError):
    """Raised if no instance of its base could load the LoRA adapter of a request."""

    status = 503
    code = "adapter_not_loaded"


class ApiKeysUnavailable(GatewayError):
    """Raised while the gateway knows no API key because its keys file has never been valid."""

    status = 503
    code = "api_keys_unavailable"

    def __init__(self) -> None:
        super().__init__(
            "this gateway cannot read its API keys",
            hint="tell the operator of the gateway; its management port names the cause",
            retry_after=5,
        )


class KeyOwnerUnavailable(GatewayError):
    """Raised if the worker that owns an idempotency key does not answer."""

    status = 503
    code = "key_owner_unavailable"

    def __init__(self) -> None:
        super().__init__(
            "the worker that owns this Idempotency-Key does not answer",
            hint="send the request again with the same key",
            retry_after=1,
        )


class GatewayDraining(GatewayError):
    """Raised if a request has not ended when the drain of this gateway has."""

    status = 503
    code = "gateway_draining"

    def __init__(self) -> None:
        super().__init__(
            "this gateway stops, and the time for requests in flight is over",
            hint="send the request again; another gateway takes it",
            retry_after=1,
        )


class Overloaded(GatewayError):
    """Raised if all instances that were tried, or the gateway itself, are full."""

    status = 503
    code = "overloaded"


class EngineLimited(Overloaded):
    """Raised if the last engine that was tried limits requests.

    engine_body: its error object.
    retry_after: in seconds.
    """

    status = 429
    error_type = "rate_limit_error"
    code = "engine_refused"

    def __init__(self, engine_body: bytes, retry_after: int) -> None:
        super().__init__("the engine limits requests", retry_after=retry_after)
        self._engine_body = engine_body

    def body(self, request_id: str) -> bytes:
        del request_id
        return self._engine_body


class GatewayLoop(GatewayError):
    """Raised if a request has passed this gateway before, or too many gateways."""

    status = 508
    code = "gateway_loop"


class EngineFailed(GatewayError):
    """Raised if all attempts failed before the first byte of a response."""

    status = 502
    code = "engine_failed"


class EngineTimeout(GatewayError):
    """Raised if an engine accepted a request and its answer was not complete in time."""

    status = 504
    code = "engine_timeout"


_encode = msgspec.json.Encoder().encode


def error_body(message: str, error_type: str, param: str | None, code: str | int | None, request_id: str) -> bytes:
    """Returns an OpenAI error object as bytes."""
    return _encode(
        {"error": {"message": message, "type": error_type, "param": param, "code": code}, "request_id": request_id}
    )
