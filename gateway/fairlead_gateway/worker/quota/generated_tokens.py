"""The output tokens of requests whose engine has reported none.

- Of a stream that ends before its usage, the events are counted. An engine that decodes
  speculatively sends several tokens in one event. How many these are on average is learned, from
  streams of the same model whose engine has reported its tokens: those of the caller, or of all
  callers where there are none.
- Another response comes when it is complete. How much of it was computed follows from the time
  since its dispatch.

Source of the histograms: `admission.output_lengths`.
"""

from collections.abc import Hashable
from typing import Final, TypeVar

from fairlead.limits import Limits
from fairlead_gateway.admission.output_lengths import OutputLengths, conditional_quantile
from fairlead_gateway.worker.quota.amounts import is_generating
from fairlead_gateway.worker.request_context import RequestContext

SHARE: Final = 0.9
TABLE_SECONDS: Final = 2.0
"""An estimate is used for so long."""
_MAX_CLASSES: Final = 256


class OutputEstimator:
    """The learned output lengths of all tenants with limits, by model.

    default_tokens: expected before any answer was measured.
    """

    def __init__(self, default_tokens: int) -> None:
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
        """Forgets all other models."""
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
_MAX_CALLERS: Final = 16_384
"""Pairs of a model and a caller; then all are forgotten."""
_MAX_MODELS: Final = 1_024
MAX_TOKENS_PER_EVENT: Final = 16.0
"""Maximum of tokens per event that a stream adds to the average of its model. No engine drafts more
in a step.

Why: events lack the reasoning that a client does not want. Without a maximum, one caller's streams
could raise the estimates of other callers hundreds of times.
"""
_MAX_EVENTS: Final = 65_536.0
"""Events from which on all counts are halved, so that later streams weigh more."""


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

    def __init__(self, limits: Limits) -> None:
        self._tokens_per_second: int = limits.disconnected_tokens_per_second
        self._default_tokens: int = limits.quota_output_tokens
        self._models: dict[str, _StreamCounts] = {}
        self._callers: dict[tuple[str, str], _StreamCounts] = {}

    def learn(self, context: RequestContext) -> None:
        """Counts a stream whose engine has reported its tokens."""
        result, key = context.result, context.request.model_key
        tokens, events = result.output_tokens, float(result.event_count)
        if tokens is None or result.error is not None or events < 1.0:
            return
        _find_or_add(self._callers, (key, context.caller), _MAX_CALLERS).add(events, float(tokens))
        _find_or_add(self._models, key, _MAX_MODELS).add(events, min(float(tokens), events * MAX_TOKENS_PER_EVENT))

    def estimate(self, context: RequestContext, now: float) -> int:
        """Returns the tokens that were probably computed until now; no more than the request
        allows.
        """
        request, result = context.request, context.result
        most = request.max_tokens
        if request.stream or request.passes_stream:
            tokens = self.of_events(request.model_key, context.caller, result.event_count)
            # The prompts of a text completion may be many, and its body is gone by now.
            is_bounded = most is not None and context.http_request.head.path != "/v1/completions"
            return min(tokens, (most or 0) * request.sequences) if is_bounded else tokens
        if result.dispatched_at is None or not is_generating(context):
            return 0
        tokens = int((now - result.dispatched_at) * self._tokens_per_second)
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
