"""The output tokens of requests whose engine has reported none.

- Of a stream that ends before its usage, the events are counted. An engine that decodes
  speculatively sends several tokens in one event. How many these are on average is learned, from
  streams of the same model whose engine has reported its tokens.
- Another response comes when it is complete. How much of it was computed follows from the time
  since its dispatch.
"""

from typing import Final

from fairlead.limits import Limits
from fairlead_gateway.worker.quota.amounts import answer_count, is_generating
from fairlead_gateway.worker.request_context import RequestContext

_MAX_MODELS: Final = 1_024
_MAX_EVENTS: Final = 65_536.0
"""Events from which on all counts are halved, so that later streams weigh more."""


class _StreamCounts:
    """Events and tokens of streams whose engine has reported its tokens."""

    __slots__ = ("events", "tokens")

    def __init__(self) -> None:
        self.events = 0.0
        self.tokens = 0.0


class GeneratedTokens:
    """The estimate of output tokens that no engine has reported."""

    def __init__(self, limits: Limits) -> None:
        self._tokens_per_second: int = limits.disconnected_tokens_per_second
        self._default_tokens: int = limits.quota_output_tokens
        self._streams: dict[str, _StreamCounts] = {}

    def learn(self, context: RequestContext) -> None:
        """Counts a stream whose engine has reported its tokens."""
        result, streams = context.result, self._streams
        tokens = result.output_tokens
        if tokens is None or result.error is not None or result.event_count < 1:
            return
        key = context.request.model_key
        counts = streams.get(key)
        if counts is None:
            if len(streams) >= _MAX_MODELS:
                streams.clear()
            counts = streams[key] = _StreamCounts()
        counts.events = counts.events + result.event_count  # not `+=`, which mypyc adds as objects
        counts.tokens = counts.tokens + tokens
        if counts.events > _MAX_EVENTS:
            counts.events, counts.tokens = counts.events / 2, counts.tokens / 2

    def estimate(self, context: RequestContext, now: float) -> int:
        """Returns the tokens that were probably computed until now; no more than the request
        allows.
        """
        request, result = context.request, context.result
        most = request.max_tokens
        if request.stream or request.passes_stream:
            tokens = self.of_events(request.model_key, result.event_count)
            # The prompts of a text completion may be many, and its body is gone by now.
            is_bounded = most is not None and context.http_request.head.path != "/v1/completions"
            return min(tokens, (most or 0) * request.sequences) if is_bounded else tokens
        if result.dispatched_at is None or not is_generating(context):
            return 0
        answers = answer_count(context)
        tokens = int((now - result.dispatched_at) * self._tokens_per_second)
        return min(tokens, most or self._default_tokens) * answers

    def of_events(self, model_key: str, events: int) -> int:
        """Returns the tokens that so many events of a model's streams probably hold.

        They are one for each event, at least.
        """
        counts = self._streams.get(model_key)
        if counts is None or counts.tokens <= counts.events:
            return events
        return int(events * counts.tokens / counts.events + 0.5)
