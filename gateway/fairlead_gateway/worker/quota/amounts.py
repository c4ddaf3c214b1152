"""The use of a request in each unit of limits: as expected before it starts, and as it was."""

import re
from typing import Final

import msgspec

from fairlead.fleet.model import TokenPrice
from fairlead.tenants.model import LimitUnit
from fairlead_gateway.errors import BadRequest
from fairlead_gateway.worker.openai.schemas import CompletionRequest
from fairlead_gateway.worker.quota.reservation import Amounts
from fairlead_gateway.worker.request_context import RequestContext

REQUESTS: Final = 0
INPUT_TOKENS: Final = 1
OUTPUT_TOKENS: Final = 2
TOKENS: Final = 3
COST: Final = 4
CONCURRENCY: Final = 5
BYTES_IN_FLIGHT: Final = 6
UNITS: Final = (
    LimitUnit.REQUESTS,
    LimitUnit.INPUT_TOKENS,
    LimitUnit.OUTPUT_TOKENS,
    LimitUnit.TOKENS,
    LimitUnit.COST,
    LimitUnit.CONCURRENCY,
    LimitUnit.BYTES_IN_FLIGHT,
)
_SEVERAL_PROMPTS: Final = re.compile(rb'\[[ \t\r\n]*["\[]')
"""The beginning of a list of texts, or of lists of token ids."""
_MEDIA: Final = re.compile(rb'"(?:input_|prompt_)?(?:image|audio|video|file)[a-z_]*"[ \t\r\n]*:')
"""A key of a part of a message that is not text."""
_ESCAPED_KEY: Final = re.compile(rb'"[^"\\]*\\u[^"]*"[ \t\r\n]*:')
"""A key with an escaped letter, which could be one of `_MEDIA`."""
_GENERATING_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})


def amount_of(amounts: Amounts, unit: int) -> int:
    """Returns the use in one unit."""
    if unit == REQUESTS:
        return amounts.requests
    if unit == TOKENS:
        return amounts.input_tokens + amounts.output_tokens
    if unit == INPUT_TOKENS:
        return amounts.input_tokens
    if unit == OUTPUT_TOKENS:
        return amounts.output_tokens
    if unit == COST:
        return amounts.cost
    return 1 if unit == CONCURRENCY else amounts.body_bytes


def is_generating(context: RequestContext) -> bool:
    """Returns whether the request gets tokens from its engine, not scores or vectors."""
    return context.http_request.head.path in _GENERATING_PATHS


def answer_count(context: RequestContext) -> int:
    """Returns how many answers the request gets: `n` or `best_of`, for each prompt."""
    request = context.request
    if context.http_request.head.path != "/v1/completions":
        return request.sequences
    fields = request.fields
    prompt = bytes(fields.prompt) if isinstance(fields, CompletionRequest) else b""
    if _SEVERAL_PROMPTS.match(prompt) is None:  # one text, or millions of token ids of one prompt
        return request.sequences
    prompts = msgspec.json.decode(prompt, type=list[msgspec.Raw])
    return request.sequences * max(1, len(prompts))


def most_amounts(context: RequestContext, margin: int, *, needs_input: bool, needs_output: bool) -> Amounts:
    """Returns the most that a request can use.

    A token of text has at least one byte, so the bytes of the body bound those of the prompt.

    margin: tokens that a chat template may add.
    needs_input, needs_output: a limit counts these tokens, so they must have a bound.

    Raises BadRequest if the request does not bound its output, or has more than text.
    """
    request = context.request
    body_bytes = len(request.client_body)
    if needs_input and _has_media(request.client_body):
        raise BadRequest(
            "messages: images, audio, video and files have no bound in tokens, and the limits of this tenant are strict",
            param="messages",
            code="unsupported_content",
            hint="send text only, with keys that have no escapes",
        )
    output = 0
    if needs_output and is_generating(context):
        if request.max_tokens is None:
            raise BadRequest(
                "max_tokens: this field is required, since the limits of this tenant are strict",
                param="max_tokens",
                code="missing_field",
                hint="set it to the most tokens that you want",
            )
        output = request.max_tokens * answer_count(context)
    tokens = body_bytes + margin
    return Amounts(1, tokens, output, cost(request.model.price, tokens, 0, output), body_bytes)


def _has_media(body: bytes) -> bool:
    """Returns whether a body may have parts that are not text."""
    return _MEDIA.search(body) is not None or (b"\\u" in body and _ESCAPED_KEY.search(body) is not None)


def expected_amounts(context: RequestContext, prompt_tokens: int, output_tokens: int) -> Amounts:
    """Returns what a request will probably use.

    output_tokens: of one answer.
    """
    request = context.request
    output = 0
    if output_tokens and is_generating(context):
        most = request.max_tokens
        output = (output_tokens if most is None or most > output_tokens else most) * answer_count(context)
    price = request.model.price
    return Amounts(1, prompt_tokens, output, cost(price, prompt_tokens, 0, output), len(request.client_body))


def tokens_until_disconnect(context: RequestContext, most: int, now: float, tokens_per_second: int) -> int:
    """Returns the output tokens that were probably computed until the client disconnected.

    The events of a stream are counted. Another response comes when it is complete. How much of it
    was computed follows from the time since its dispatch.

    most: the tokens of the whole response.
    """
    result = context.result
    if context.request.stream:
        return result.event_count
    if result.dispatched_at is None or not is_generating(context):
        return 0
    return min(most, int((now - result.dispatched_at) * tokens_per_second) * answer_count(context))


def used_amounts(context: RequestContext, estimate: Amounts, until_disconnect: int) -> Amounts:
    """Returns what a request has used, after its end.

    - Nothing if it failed, or was never sent.
    - The prompt and the tokens until then if its client disconnected.
    - What the engine reported, else what was expected: a missing count is not zero.

    until_disconnect: of `tokens_until_disconnect`.
    """
    result = context.result
    if result.dispatched_at is None:
        return Amounts(0, 0, 0, 0, 0)
    prompt, output = result.prompt_tokens, result.output_tokens
    if result.client_disconnected:
        prompt = estimate.input_tokens if prompt is None else prompt
        output = until_disconnect if output is None else output
    elif result.error is not None or result.status >= 400 or result.status == 0:
        return Amounts(0, 0, 0, 0, 0)
    elif context.request.is_passthrough and prompt is None:
        prompt = output = 0
    else:
        prompt = estimate.input_tokens if prompt is None else prompt
        if output is None:
            output = result.event_count or estimate.output_tokens
    output = output or 0
    cached = min(result.cached_tokens or 0, prompt)
    return Amounts(1, prompt, output, cost(context.request.model.price, prompt, cached, output), 0)


def cost(price: TokenPrice | None, prompt: int, cached: int, output: int) -> int:
    """Returns the cost in billionths of a US dollar; 0 without a price."""
    return 0 if price is None else price.cost(prompt, cached, output)
