"""Whether what an engine answered can go to the client, or is the engine's failure and another one should be asked."""

import re
from typing import Final

import msgspec

from fairlead_gateway.errors import error_body
from fairlead_gateway.worker.request_context import RequestContext
from fairlead_gateway.worker.resilience.retry import CRASH_CAUSES, AttemptFailure
from fairlead_gateway.worker.upstream.connection import UpstreamError
from fairlead_gateway.worker.upstream.response import EngineResponse
from fairlead_gateway.worker.upstream.response_schemas import PLAIN_RESPONSE_DECODER, USAGE_DECODER
from fairlead_gateway.worker.upstream.usage import InBandError, Usage, parse_in_band_error, parse_usage

_MAX_PARSED_BYTES: Final = 65_536
_TAIL_BYTES: Final = 4_096
_OVERLOAD_STATUSES = frozenset({429, 503})
_WRONG_MODEL = re.compile(
    rb'"param"\s*:\s*"model"|The model `[^`]{1,512}` does not exist'
)  # what embeds names no param
_DECODE_RESPONSE: Final = PLAIN_RESPONSE_DECODER.decode
_DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def check_response(
    context: RequestContext, engine_response: EngineResponse, error: UpstreamError | None, is_final: bool
) -> None:
    """Raise a Failure unless the answer can be passed on; the usage of a whole plain one becomes the job's. ``late``: nobody has
    time for another engine."""
    if error is not None:
        raise AttemptFailure(error.cause, crashed=error.cause in CRASH_CAUSES, is_final=is_final)
    if engine_response.status == 404 and engine_response.is_complete and _is_wrong_model(engine_response.buffered_body):
        raise AttemptFailure("wrong-model")  # the address belongs to somebody else now
    fault = _response_error(context, engine_response)
    if fault is None:
        return
    if fault.status in _OVERLOAD_STATUSES:
        raise AttemptFailure("overloaded", is_overload=True)
    if fault.status >= 500:
        raise AttemptFailure(f"status-{fault.status}")


def _response_error(context: RequestContext, engine_response: EngineResponse) -> InBandError | None:
    if engine_response.is_stream:
        if engine_response.scanner.error is not None:
            return engine_response.scanner.error
        if engine_response.scanner.is_aborted:
            return InBandError(500, "aborted")
        return (
            InBandError(502, "an empty stream")
            if engine_response.is_complete and not engine_response.scanner.is_done
            else None
        )
    status = engine_response.status
    if status == 429:
        return None  # a 4xx is the client's business, also this one
    if status == 401 and context.instance is not None and context.instance.access.has_token:
        return InBandError(502, "the engine wants another token")
    if status >= 400:
        return InBandError(status, "")
    if context.request.stream or not (status == 200 or (context.request.is_passthrough and 200 < status < 300)):
        return InBandError(502, "not what was asked for")
    if not engine_response.is_complete:
        return None
    usage, readable = _parse_usage(engine_response.buffered_body)
    context.record_usage(usage)
    return None if readable or context.request.is_passthrough else InBandError(502, "not JSON")


def _parse_usage(body: bytes) -> tuple[Usage | None, bool]:
    """The usage of a plain answer, and whether the body can be an answer at all."""
    if len(body) > _MAX_PARSED_BYTES:
        at = body.rfind(b'"usage"', len(body) - _TAIL_BYTES)
        start = body.find(b"{", at) if at >= 0 else -1
        try:
            found = USAGE_DECODER.decode(body[start : body.find(b"}", start) + 1]) if start >= 0 else None
        except msgspec.DecodeError:
            found = None
        return parse_usage(found), body.lstrip()[:1] == b"{" and body.rstrip()[-1:] == b"}"
    try:
        read = _DECODE_RESPONSE(body)
    except _DECODE_ERRORS:
        return None, False
    return parse_usage(read.usage), True


def not_served_body(status: int, request_id: str) -> bytes:
    """An error object in place of what an engine says when it has no such path (``{"detail":"Not Found"}``) or no words."""
    if status in (404, 405):
        text, code = "the model's engine does not serve this path", "unknown_url"
    else:
        text, code = "the engine does not serve this request", "engine_refused"
    return error_body(text, "invalid_request_error", None, code, request_id)


def _is_wrong_model(body: bytes) -> bool:
    """Whether an engine says that it does not serve the model that the fleet says it serves."""
    return len(body) < _TAIL_BYTES and b'"NotFoundError"' in body and _WRONG_MODEL.search(body) is not None


def is_error_object(body: bytes) -> bool:
    """Whether an engine's answer is an OpenAI error object with words."""
    try:
        error = _DECODE_RESPONSE(body).error
    except _DECODE_ERRORS:
        return False
    return error is not msgspec.UNSET and bool(parse_in_band_error(bytes(error), 400).message)
