"""Checks whether an engine's response can go to the client, or is a failure of the attempt."""

import re
from typing import Final

import msgspec

from fairlead_gateway.errors import EngineLimited, error_body
from fairlead_gateway.native import SCAN_USAGE
from fairlead_gateway.worker.request_context import RequestContext, RoutedChoice
from fairlead_gateway.worker.resilience.retry import ADAPTER_MISSING, FIELD_REFUSED, AttemptFailure
from fairlead_gateway.worker.upstream.connection import UpstreamError
from fairlead_gateway.worker.upstream.request_encoder import retry_after_of
from fairlead_gateway.worker.upstream.response import EngineResponse
from fairlead_gateway.worker.upstream.response_schemas import PLAIN_RESPONSE_DECODER
from fairlead_gateway.worker.upstream.sse import has_failed_finish
from fairlead_gateway.worker.upstream.usage import (
    GARBAGE,
    InBandError,
    Usage,
    counts_of_long_answer,
    engine_words,
    error_in,
    parse_in_band_error,
    read_usage,
    scanned_usage,
)

_MAX_PARSED_BYTES: Final = 65_536
_TAIL_BYTES: Final = 4_096
_ACCOUNT_STATUSES: Final = frozenset({401, 402, 403})
_ACCOUNT_WORDS: Final = re.compile(rb"\b(?:organi[sz]ation|account|billing|payment|credits?)\b", re.IGNORECASE)
_ACCOUNT_NAMES: Final = re.compile(
    rb'\b(?:org|proj|acct|user|team|sk|pk|key)[-_][A-Za-z0-9_-]{6,}|https?:(?:\\?/){2}(?:[^\s"\\<>]|\\/)+',
    re.IGNORECASE,
)
"""Names of accounts and keys, and addresses."""
_UNKNOWN_PATH_WORDS: Final = ("", "Not Found", "Method Not Allowed")
_OVERLOAD_STATUSES: Final = frozenset({429, 503, 529})
_WRONG_MODEL = re.compile(rb'"param"\s*:\s*"model"|The model `[^`]{1,512}` does not exist')  # embeddings name no param
_NOT_FOUND: Final = re.compile(rb'"(?:NotFoundError|not_found_error|model_not_found)"')
"""The types of vLLM, those under `/v1/messages`, and the code of OpenAI."""
_MISSING_ADAPTERS: Final = (b"LoRA adapter that has never been loaded", b"requested LoRA adapters are not loaded")
"""Words of SGLang, with status 400."""
_MAX_RELOADS: Final = 3
"""Loads of an adapter for one request, since engines had lost it."""
_USAGE_FIELD: Final = b"stream_options"
_LIMITED: Final = 429
_NO_SUCH_FUNCTION: Final = 501
"""For whatever request, so the client's business like every 4xx. vLLM, llama.cpp, TensorRT-LLM."""
_REFUSALS: Final = (400, 422)
_SCAN_USAGE: Final = SCAN_USAGE
_DECODE_RESPONSE: Final = PLAIN_RESPONSE_DECODER.decode
_DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def check_response(
    context: RequestContext, engine_response: EngineResponse, error: UpstreamError | None, is_final: bool
) -> None:
    """Raises AttemptFailure unless the response can be relayed.

    The usage of a whole plain response becomes the request's, and a refusal with status 200 gets
    the status that it means.
    is_final: no time is left for another instance.
    """
    if error is not None:
        raise AttemptFailure(error.cause, crashed=error.is_crash, is_final=is_final)
    if engine_response.status == 404 and not is_external(context) and _is_wrong_model(engine_response.buffered_body):
        # Without an adapter, another server has taken over the address.
        raise AttemptFailure("wrong-model" if context.request.adapter is None else ADAPTER_MISSING)
    if context.request.adapter is not None and _is_adapter_missing(context, engine_response):
        raise AttemptFailure(ADAPTER_MISSING)
    if is_usage_refused(context, engine_response):
        raise AttemptFailure(FIELD_REFUSED)
    response_error = _response_error(context, engine_response)
    if response_error is None and engine_response.has_whole_answer:
        usage, response_error = _read_answer(engine_response, is_passthrough=context.request.is_passthrough)
        if response_error is None:
            context.result.record_usage(usage)
    if response_error is None:
        return
    status = response_error.status
    if status in _OVERLOAD_STATUSES and not (status == _LIMITED and is_external(context)):
        refusal = _limit_error(engine_response, response_error, context.http_request.id) if status == _LIMITED else None
        raise AttemptFailure("overloaded", is_overload=True, refusal=refusal)
    if status >= 500 and status != _NO_SUCH_FUNCTION:
        context.result.is_charged = response_error.is_charged
        raise AttemptFailure(response_error.cause or f"status-{status}", is_final=response_error.is_charged)
    if not engine_response.is_stream:
        engine_response.status = status


def _response_error(context: RequestContext, engine_response: EngineResponse) -> InBandError | None:
    """Returns the error in the status or in the first event of a response."""
    if engine_response.is_stream:
        scanner = engine_response.scanner
        if scanner.error is not None:
            return scanner.error
        if scanner.is_aborted:
            return InBandError(500, "aborted", "aborted")
        is_empty = engine_response.is_complete and not scanner.is_done
        return InBandError(502, "an empty stream", "cut") if is_empty else None
    status, request, choice = engine_response.status, context.request, context.choice
    if status in _ACCOUNT_STATUSES and choice is not None and _is_about_account(choice, status):
        return InBandError(502, "the engine refuses the gateway's own token")
    if status >= 400:
        return InBandError(status, "")
    if request.stream or not (status == 200 or (request.is_passthrough and 200 < status < 300)):
        return InBandError(502, "not what was asked for", GARBAGE)
    return engine_response.in_band_error if engine_response.counts_passed else None


def is_external(context: RequestContext) -> bool:
    """Whether the request has gone to an API that others run."""
    return context.choice is not None and context.choice.address.leaves_cluster


def _read_answer(engine_response: EngineResponse, *, is_passthrough: bool) -> tuple[Usage | None, InBandError | None]:
    """Returns the usage of a whole plain answer, and the error in it."""
    if engine_response.counts_passed:
        return engine_response.usage, None
    body = engine_response.buffered_body
    usage, is_readable = _parse_usage(body)
    if is_passthrough:
        return usage, None
    return usage, _plain_error(body) if is_readable else InBandError(502, "not JSON", GARBAGE)


def _limit_error(engine_response: EngineResponse, error: InBandError, request_id: str) -> EngineLimited:
    """Returns the words with which an engine limits requests, for a client whom no engine takes."""
    if error.message:
        body = error_body(error.message, "rate_limit_error", None, "engine_refused", request_id)
    else:
        body = engine_response.buffered_body
        body = body if is_error_object(body) else refusal_body(_LIMITED, body, request_id)
    max_seconds = int(engine_response.limits.max_retry_after_seconds)
    return EngineLimited(body, retry_after_of(engine_response.headers, max_seconds) or 1)


def _plain_error(body: bytes) -> InBandError | None:
    """Returns the error in a whole plain response with status 200."""
    if has_failed_finish(body):
        return InBandError(500, "aborted", "aborted")
    if body.find(b'"error"') < 0:
        return None
    try:
        decoded = _DECODE_RESPONSE(body)
    except _DECODE_ERRORS:
        return None
    error = error_in(decoded.error, decoded.object, body)
    return parse_in_band_error(error, 500) if error else None


def _is_about_account(choice: RoutedChoice, status: int) -> bool:
    """Whether a status is about the gateway's account, which the client must not see."""
    return choice.address.leaves_cluster or (status == 401 and choice.instance.access.has_token)


def external_refusal(status: int, body: bytes, request_id: str) -> bytes:
    """Returns the body for clients of a refusal of an external API.

    It has the API's own words, without names of accounts and addresses. Rate limits, missing models
    and what is about the account itself get other words.
    """
    if status == 429:
        text = "the provider of this model limits the gateway's requests"
        return error_body(text, "rate_limit_error", None, "provider_limit", request_id)
    if status == 404:
        text = "the provider of this model does not serve this request"
    elif _ACCOUNT_WORDS.search(body) is not None:
        text = "the provider of this model refuses the request"
    else:
        return _ACCOUNT_NAMES.sub(b"(hidden)", body)
    return error_body(text, "invalid_request_error", None, "engine_refused", request_id)


def _parse_usage(body: bytes) -> tuple[Usage | None, bool]:
    """Returns the usage of a plain response, and whether the body looks like a JSON object."""
    if len(body) > _MAX_PARSED_BYTES:
        return counts_of_long_answer(body), body.lstrip()[:1] == b"{" and body.rstrip()[-1:] == b"}"
    if _SCAN_USAGE is not None:
        found = _SCAN_USAGE(body)
        if found is not None:
            return scanned_usage(found), True
    try:
        decoded = _DECODE_RESPONSE(body)
    except _DECODE_ERRORS:
        return None, False
    return read_usage(decoded.usage), True


def refusal_body(status: int, body: bytes, request_id: str) -> bytes:
    """Returns the error object that replaces an error response of an engine without one.

    It has the engine's words. An engine without the path answers `{"detail":"Not Found"}`.
    """
    words = engine_words(body)
    if status in (404, 405) and words.message in _UNKNOWN_PATH_WORDS:
        text, code = "the model's engine does not serve this path", "unknown_url"
    else:
        text, code = words.message or "the engine does not serve this request", words.code or "engine_refused"
    kind = words.type or ("rate_limit_error" if status == 429 else "invalid_request_error")
    return error_body(text, kind, words.param or None, code, request_id)


def _is_wrong_model(body: bytes) -> bool:
    """Whether the engine does not serve the model that the fleet lists for it."""
    return len(body) < _TAIL_BYTES and _NOT_FOUND.search(body) is not None and _WRONG_MODEL.search(body) is not None


def _is_adapter_missing(context: RequestContext, engine_response: EngineResponse) -> bool:
    """Whether an SGLang engine has not loaded the adapter: it has started again.

    Not for ever: engines quote what they refuse, so the words can be those of the client.
    """
    refusal = _refusal_words(engine_response)
    if not any(words in refusal for words in _MISSING_ADAPTERS):
        return False
    return sum(failure.cause == ADAPTER_MISSING for failure in context.failures) < _MAX_RELOADS


def is_usage_refused(context: RequestContext, engine_response: EngineResponse) -> bool:
    """Whether the engine refuses to count the tokens of a stream, as the gateway has asked."""
    return context.request.strip_usage and _USAGE_FIELD in _refusal_words(engine_response)


def _refusal_words(engine_response: EngineResponse) -> bytes:
    """Returns what an engine says that refuses a request; empty if it does not."""
    error = engine_response.in_band_error
    if error is not None:
        return error.message.encode()
    return engine_response.buffered_body if engine_response.status in _REFUSALS else b""


def is_error_object(body: bytes) -> bool:
    """Whether the body is an error object with a message, as OpenAI and Anthropic define one."""
    try:
        body.decode()  # also of fields not read here
        error = _DECODE_RESPONSE(body).error
        fields = msgspec.json.decode(error) if error is not msgspec.UNSET else None
    except _DECODE_ERRORS:
        return False
    message = fields.get("message") if isinstance(fields, dict) else None
    return isinstance(message, str) and bool(message)
