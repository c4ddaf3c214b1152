"""The use of a request in each unit of limits: as expected before it starts, and as it was.

- Of a stream that ends before its usage, the events are counted. An engine that decodes
  speculatively sends several tokens in one event. How many these are on average is learned, from
  streams of the same model whose engine has reported its tokens: those of the caller, or of all
  callers where there are none.
- Another response comes when it is complete. How much of it was computed follows from the time
  since its dispatch, at the speed of the model's streams.

Source of the histograms: `admission.output_lengths`.
"""

from collections.abc import Hashable
from typing import Final, TypeVar

from fairlead.limits import Limits
from fairlead_gateway.admission.output_lengths import OutputLengths, conditional_quantile
from fairlead_gateway.dialects.completions import COMPLETIONS
from fairlead_gateway.dialects.text_bounds import TextBounds, text_bounds
from fairlead_gateway.errors import BadRequest
from fairlead_gateway.limits.worker.limit_plan import Amounts, LimitPlan
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.telemetry.decision_log import is_client_fault

SHARE: Final = 0.9
TABLE_SECONDS: Final = 2.0
"""An estimate is used for so long."""
_MAX_CLASSES: Final = 256
QUOTA_OUTPUT_TOKENS: Final = 1_024
"""Limit: output tokens to expect of a request without `max_tokens` before any answer was measured.
"""

_MAX_CALLERS: Final = 16_384
"""Pairs of a model and a caller; then all are forgotten."""
_MAX_MODELS: Final = 1_024
MAX_TOKENS_PER_EVENT: Final = 16.0
"""Maximum of tokens per event that a stream adds to the average of its model. No engine drafts more
in a step.

Why: events lack the reasoning that a client does not want. Without a maximum, one caller's streams
could raise the estimates of other callers hundreds of times.
"""
_SMOOTHING: Final = 0.1
"""Weight of the newest stream in the time per token of its model."""
_MIN_TOKEN_SECONDS: Final = 0.0005
_MAX_EVENTS: Final = 65_536.0
"""Events from which on all counts are halved, so that later streams weigh more."""


class OutputEstimator:
    """The learned output lengths of all tenants with limits, by model.

    default_tokens: expected before any answer was measured.
    """

    def __init__(self, default_tokens: int = QUOTA_OUTPUT_TOKENS) -> None:
        self._default_tokens = default_tokens
        self._lengths: dict[str, OutputLengths] = {}
        self._estimates: dict[tuple[str, str, int], tuple[float, int]] = {}

    def estimate(self, model_key: str, tenant: str, prompt_tokens: int, now: float) -> int:
        """Returns the 90 % quantile of the lengths of similar answers."""
        key = (model_key, tenant, prompt_class(prompt_tokens))
        known = self._estimates.get(key)
        if known is not None and now - known[0] < TABLE_SECONDS:
            return known[1]
        lengths = self._lengths.get(model_key)
        counts = None if lengths is None else lengths.shares(tenant, float(prompt_tokens), now)
        tokens = self._default_tokens if counts is None else round(conditional_quantile(counts, SHARE, 0))
        if len(self._estimates) >= _MAX_CLASSES:
            self._estimates.clear()
        self._estimates[key] = (now, tokens)
        return tokens

    def learn(self, model_key: str, tenant: str, prompt_tokens: int, output_tokens: int, now: float) -> None:
        """Counts a complete answer."""
        lengths = self._lengths.get(model_key)
        if lengths is None:
            lengths = self._lengths[model_key] = OutputLengths(max_classes=_MAX_CLASSES)
        lengths.learn(tenant, float(prompt_tokens), output_tokens, now)

    def retain(self, model_keys: set[str]) -> None:
        self._lengths = {key: lengths for key, lengths in self._lengths.items() if key in model_keys}


def prompt_class(prompt_tokens: int) -> int:
    """Returns the class of a prompt's size, as `admission.output_lengths` has it: powers of
    four.
    """
    power = 0
    while prompt_tokens >= 4:
        power += 1
        prompt_tokens >>= 2
    return power


_Key = TypeVar("_Key", bound=Hashable)


class _StreamCounts:
    """Events and tokens of streams whose engine has reported its tokens."""

    __slots__ = ("events", "tokens")

    def __init__(self) -> None:
        self.events = 0.0
        self.tokens = 0.0

    def add(self, events: float, tokens: float) -> None:
        """Adds those of a stream."""
        self.events = self.events + events  # not `+=`, which mypyc adds as objects
        self.tokens = self.tokens + tokens
        if self.events > _MAX_EVENTS:
            self.events, self.tokens = self.events / 2, self.tokens / 2


class GeneratedTokens:
    """The estimate of output tokens that no engine has reported."""

    def __init__(self, limits: Limits, default_tokens: int = QUOTA_OUTPUT_TOKENS) -> None:
        self._tokens_per_second: int = limits.disconnected_tokens_per_second
        self._default_tokens: int = default_tokens
        self._token_seconds: dict[str, float] = {}  # of each answer, by model, as streams showed
        self._models: dict[str, _StreamCounts] = {}
        self._callers: dict[tuple[str, str], _StreamCounts] = {}

    def learn(self, context: RequestContext) -> None:
        """Counts a stream whose engine has reported its tokens."""
        result, key = context.result, context.request.model_key
        tokens, events = result.output_tokens, float(result.event_count)
        if tokens is None or result.error is not None or events < 1.0:
            return
        if result.first_at is not None and result.last_at is not None and result.last_at > result.first_at:
            seconds = (result.last_at - result.first_at) / max(1, tokens - 1) * context.request.answers
            if len(self._token_seconds) >= _MAX_MODELS:
                self._token_seconds.clear()
            known = self._token_seconds.get(key, seconds)
            self._token_seconds[key] = known + _SMOOTHING * (seconds - known)
        _find_or_add(self._callers, (key, context.caller), _MAX_CALLERS).add(events, float(tokens))
        _find_or_add(self._models, key, _MAX_MODELS).add(events, min(float(tokens), events * MAX_TOKENS_PER_EVENT))

    def estimate(self, context: RequestContext, now: float) -> int:
        """Returns the tokens that were probably computed until now; no more than the request
        allows. Of work that its engine may go on with, all that it allows.
        """
        request, result = context.request, context.result
        most = request.max_tokens
        if request.runs_on and result.dispatched_at is not None:
            return (most or self._default_tokens) * request.answers
        if request.stream or request.passes_stream:
            tokens = self.of_events(request.model_key, context.caller, result.event_count)
            # The prompts of a text completion may be many, and its body is gone by now.
            is_bounded = most is not None and request.dialect is not COMPLETIONS
            return min(tokens, (most or 0) * request.sequences) if is_bounded else tokens
        if result.dispatched_at is None or not request.dialect.generates:
            return 0
        seconds = self._token_seconds.get(request.model_key, 1.0 / self._tokens_per_second)
        tokens = int((now - result.dispatched_at) / max(_MIN_TOKEN_SECONDS, seconds))
        return min(tokens, most or self._default_tokens) * request.answers

    def of_events(self, model_key: str, caller: str, events: int) -> int:
        """Returns the tokens that so many events of a caller's streams probably hold.

        They are one for each event, at least.
        """
        counts = self._callers.get((model_key, caller)) or self._models.get(model_key)
        if counts is None or counts.tokens <= counts.events:
            return events
        return int(events * counts.tokens / counts.events + 0.5)


def _find_or_add(counts: dict[_Key, _StreamCounts], key: _Key, max_keys: int) -> _StreamCounts:
    """Returns the counts of a key. A new key gets empty ones; at `max_keys`, all others go."""
    found = counts.get(key)
    if found is None:
        if len(counts) >= max_keys:
            counts.clear()
        found = counts[key] = _StreamCounts()
    return found


def most_amounts(context: RequestContext, plan: LimitPlan, margin: int) -> Amounts:
    """Returns the most that a request can use.

    A token of text has at least one byte, so the bytes of the body bound those of the prompt. An
    engine computes the query of a ranking again for each document.

    margin: tokens that a template may add to a prompt.

    Raises BadRequest if the plan counts output that the request does not bound, or counts input
    that is not only text.
    """
    request = context.request
    body_bytes = len(request.client_body)
    prompt = request.dialect.prompt
    if prompt is not None and prompt.is_open and (plan.counts_input or plan.counts_output):
        unbounded = _bounds(request).unbounded
        if unbounded is not None:
            raise _unbounded(*unbounded)
    elif plan.counts_input and _has_media(request):
        raise BadRequest(
            "messages: images, audio, video and files have no bound in tokens, and the limits of this tenant are strict",
            param="messages",
            code="unsupported_content",
            hint="send text only, with keys that have no escapes",
        )
    output = 0
    # Of a path without counts, the output is unknown; `otherPaths` admits it.
    if plan.counts_output and not request.is_passthrough and request.dialect.generates:
        if request.max_tokens is None:
            name = request.dialect.output_limit
            raise BadRequest(
                f"{name}: this field is required, since the limits of this tenant are strict",
                param=name,
                code="missing_field",
                hint="set it to the most tokens that you want",
            )
        output = request.max_tokens * request.answers
    tokens = body_bytes + margin
    if request.dialect.is_measured:
        tokens += request.repeated_bytes + margin * (request.items - 1)
    return Amounts(1, tokens, output, plan.cost(request.model, tokens, 0, output), body_bytes)


def _bounds(request: ModelRequest) -> TextBounds:
    """Returns what is not bounded by the bytes of a body; of a large one, the checking process has
    looked for it.
    """
    if request.bounds is None:
        request.bounds = text_bounds(
            request.client_body, is_open=request.dialect.prompt is not None and request.dialect.prompt.is_open
        )
    return request.bounds


def _unbounded(name: str, reason: str) -> BadRequest:
    message = f"{name}: {reason}, which has no bound in tokens, and the limits of this tenant are strict"
    return BadRequest(
        message, param=name, code="unsupported_content", hint="send all input as text in the request itself"
    )


def _has_media(request: ModelRequest) -> bool:
    """Returns whether a body may have parts that are not text."""
    if request.decoded_fields is None and not request.is_passthrough:
        return False  # a scanned chat, which has text only
    return _bounds(request).has_media


def expected_amounts(context: RequestContext, plan: LimitPlan, prompt_tokens: int, output_tokens: int) -> Amounts:
    """Returns what a request will probably use.

    output_tokens: of one answer.
    """
    request = context.request
    output = 0
    if output_tokens and request.dialect.generates:
        most = request.max_tokens
        output = (output_tokens if most is None or most > output_tokens else most) * request.answers
    cost = plan.cost(request.model, prompt_tokens, 0, output)
    return Amounts(1, prompt_tokens, output, cost, len(request.client_body))


def used_amounts(context: RequestContext, plan: LimitPlan, estimate: Amounts) -> Amounts:
    """Returns what a request has used, after its end.

    - Nothing if it was never sent, or is refunded (`RequestOutcome.is_refunded`). A request that
      its engine refused as wrong (4xx, but not 429) counts as one.
    - The prompt and the tokens until then if its client disconnected, or if it took too long.
    - What the engine reported, else what was expected: a missing count is not zero.

    In strict mode, tokens that the engine has not reported are no more than what was reserved.
    """
    result = context.result
    if result.dispatched_at is None or result.is_refunded:
        return Amounts(int(is_client_fault(result) and result.status != 429), 0, 0, 0, 0)
    prompt, output = result.prompt_tokens, result.output_tokens
    is_counted = context.request.dialect.is_counted
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
