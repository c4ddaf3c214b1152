"""The use of a request in each unit of limits: as expected before it starts, and as it was."""

import re
from typing import Final

import msgspec

from fairlead_gateway.errors import BadRequest
from fairlead_gateway.worker.openai.schemas import CompletionRequest
from fairlead_gateway.worker.quota.limit_plan import LimitPlan
from fairlead_gateway.worker.quota.reservation import Amounts
from fairlead_gateway.worker.request_context import RequestContext

_SEVERAL_PROMPTS: Final = re.compile(rb'\[[ \t\r\n]*["\[]')
"""The beginning of a list of texts, or of lists of token ids."""
_MEDIA: Final = re.compile(rb'"(?:input_|prompt_)?(?:image|audio|video|file)[a-z_]*"[ \t\r\n]*:')
"""A key of a part of a message that is not text."""
_ESCAPED_KEY: Final = re.compile(rb'"[^"\\]*\\u[^"]*"[ \t\r\n]*:')
"""A key with an escaped letter, which could be one of `_MEDIA`."""
_GENERATING_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})


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


def most_amounts(context: RequestContext, plan: LimitPlan, margin: int) -> Amounts:
    """Returns the most that a request can use.

    A token of text has at least one byte, so the bytes of the body bound those of the prompt.

    margin: tokens that a chat template may add.

    Raises BadRequest if the plan counts output that the request does not bound, or counts input
    that is not only text.
    """
    request = context.request
    body_bytes = len(request.client_body)
    if plan.counts_input and _has_media(context):
        raise BadRequest(
            "messages: images, audio, video and files have no bound in tokens, and the limits of this tenant are strict",
            param="messages",
            code="unsupported_content",
            hint="send text only, with keys that have no escapes",
        )
    output = 0
    # Of a path that is only passed on, the output is unknown; `otherPaths` admits it.
    if plan.counts_output and not request.is_passthrough and is_generating(context):
        if request.max_tokens is None:
            raise BadRequest(
                "max_tokens: this field is required, since the limits of this tenant are strict",
                param="max_tokens",
                code="missing_field",
                hint="set it to the most tokens that you want",
            )
        output = request.max_tokens * answer_count(context)
    tokens = body_bytes + margin
    return Amounts(1, tokens, output, plan.cost(request.model, tokens, 0, output), body_bytes)


def _has_media(context: RequestContext) -> bool:
    """Returns whether a body may have parts that are not text."""
    request = context.request
    if request.decoded_fields is None and not request.is_passthrough:
        return False  # a scanned chat, which has text only
    body = request.client_body
    return _MEDIA.search(body) is not None or (b"\\u" in body and _ESCAPED_KEY.search(body) is not None)


def expected_amounts(context: RequestContext, plan: LimitPlan, prompt_tokens: int, output_tokens: int) -> Amounts:
    """Returns what a request will probably use.

    output_tokens: of one answer.
    """
    request = context.request
    output = 0
    if output_tokens and is_generating(context):
        most = request.max_tokens
        output = (output_tokens if most is None or most > output_tokens else most) * answer_count(context)
    cost = plan.cost(request.model, prompt_tokens, 0, output)
    return Amounts(1, prompt_tokens, output, cost, len(request.client_body))


def used_amounts(context: RequestContext, plan: LimitPlan, estimate: Amounts) -> Amounts:
    """Returns what a request has used, after its end.

    - Nothing if it was never sent, or is refunded (`RequestResult.is_refunded`).
    - The prompt and the tokens until then if its client disconnected, or if it took too long.
    - What the engine reported, else what was expected: a missing count is not zero.

    In strict mode, tokens that the engine has not reported are no more than what was reserved.
    """
    result = context.result
    if result.dispatched_at is None or result.is_refunded:
        return Amounts(0, 0, 0, 0, 0)
    prompt, output = result.prompt_tokens, result.output_tokens
    if prompt is None:
        prompt = 0 if context.request.is_passthrough else estimate.input_tokens
    if output is None:
        output = result.estimated_tokens
        if not output and result.is_complete and not context.request.is_passthrough:
            output = estimate.output_tokens
        if plan.is_strict and output > estimate.output_tokens:
            output = estimate.output_tokens
    cached = result.cached_tokens
    if cached is None:
        cached = 0
    elif cached > prompt:
        cached = prompt
    return Amounts(1, prompt, output, plan.cost(context.request.model, prompt, cached, output), 0)
