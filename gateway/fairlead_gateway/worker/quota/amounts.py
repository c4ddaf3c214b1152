"""The use of a request in each unit of limits: as expected before it starts, and as it was."""

from typing import Final

from fairlead_gateway.errors import BadRequest
from fairlead_gateway.worker.body_check.protocol import TextBounds, text_bounds
from fairlead_gateway.worker.openai.request import OUTPUT_LIMITS, ModelRequest
from fairlead_gateway.worker.quota.limit_plan import LimitPlan
from fairlead_gateway.worker.quota.reservation import Amounts
from fairlead_gateway.worker.request_context import RequestContext

_GENERATING_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions", *OUTPUT_LIMITS})


def is_generating(context: RequestContext) -> bool:
    """Returns whether the request gets tokens from its engine, not scores or vectors."""
    return context.http_request.head.path in _GENERATING_PATHS


def most_amounts(context: RequestContext, plan: LimitPlan, margin: int) -> Amounts:
    """Returns the most that a request can use.

    A token of text has at least one byte, so the bytes of the body bound those of the prompt.

    margin: tokens that a chat template may add.

    Raises BadRequest if the plan counts output that the request does not bound, or counts input
    that is not only text.
    """
    request = context.request
    body_bytes = len(request.client_body)
    if request.is_passthrough and request.is_counted and (plan.counts_input or plan.counts_output):
        unbounded = _bounds(request).unbounded
        if unbounded is not None:
            raise _unbounded(*unbounded)
    if plan.counts_input and (not request.is_passthrough or not request.is_counted) and _has_media(context):
        raise BadRequest(
            "messages: images, audio, video and files have no bound in tokens, and the limits of this tenant are strict",
            param="messages",
            code="unsupported_content",
            hint="send text only, with keys that have no escapes",
        )
    output = 0
    # Of a path without counts, the output is unknown; `otherPaths` admits it.
    if plan.counts_output and request.is_counted and is_generating(context):
        if request.max_tokens is None:
            name = OUTPUT_LIMITS.get(context.http_request.head.path, "max_tokens")
            raise BadRequest(
                f"{name}: this field is required, since the limits of this tenant are strict",
                param=name,
                code="missing_field",
                hint="set it to the most tokens that you want",
            )
        output = request.max_tokens * request.answers
    tokens = body_bytes + margin
    return Amounts(1, tokens, output, plan.cost(request.model, tokens, 0, output), body_bytes)


def _bounds(request: ModelRequest) -> TextBounds:
    """Returns what is not bounded by the bytes of a body; of a large one, the checking process has
    looked for it.
    """
    if request.bounds is None:
        request.bounds = text_bounds(request.client_body, is_passed_on=request.is_passthrough)
    return request.bounds


def _unbounded(name: str, reason: str) -> BadRequest:
    message = f"{name}: {reason}, which has no bound in tokens, and the limits of this tenant are strict"
    return BadRequest(
        message, param=name, code="unsupported_content", hint="send all input as text in the request itself"
    )


def _has_media(context: RequestContext) -> bool:
    """Returns whether a body may have parts that are not text."""
    request = context.request
    if request.decoded_fields is None and not request.is_passthrough:
        return False  # a scanned chat, which has text only
    return _bounds(request).has_media


def expected_amounts(context: RequestContext, plan: LimitPlan, prompt_tokens: int, output_tokens: int) -> Amounts:
    """Returns what a request will probably use.

    output_tokens: of one answer.
    """
    request = context.request
    output = 0
    if output_tokens and is_generating(context):
        most = request.max_tokens
        output = (output_tokens if most is None or most > output_tokens else most) * request.answers
    cost = plan.cost(request.model, prompt_tokens, 0, output)
    return Amounts(1, prompt_tokens, output, cost, len(request.client_body))


def used_amounts(context: RequestContext, plan: LimitPlan, estimate: Amounts) -> Amounts:
    """Returns what a request has used, after its end.

    - Nothing if it was never sent, or is refunded (`RequestOutcome.is_refunded`).
    - The prompt and the tokens until then if its client disconnected, or if it took too long.
    - What the engine reported, else what was expected: a missing count is not zero.

    In strict mode, tokens that the engine has not reported are no more than what was reserved.
    """
    result = context.result
    if result.dispatched_at is None or result.is_refunded:
        return Amounts(0, 0, 0, 0, 0)
    prompt, output = result.prompt_tokens, result.output_tokens
    is_counted = context.request.is_counted
    if prompt is None:
        prompt = estimate.input_tokens if is_counted else 0
        if plan.is_strict and not result.is_complete:  # what was reserved is the size of the body
            prompt = min(prompt, result.estimated_prompt)
    if output is None:
        output = result.estimated_tokens
        if not output and result.is_complete and is_counted:
            output = estimate.output_tokens
        if plan.is_strict and output > estimate.output_tokens:
            output = estimate.output_tokens
    cached = result.cached_tokens
    if cached is None:
        cached = 0
    elif cached > prompt:
        cached = prompt
    return Amounts(1, prompt, output, plan.cost(context.request.model, prompt, cached, output), 0)
