"""Decides whether a stream without a byte waits for its engine, or leaves it.

An engine that lives may be silent for minutes: it holds a long tool call, or reasons. One that
hangs is left as soon as that is known, if another instance can continue the stream. If none can,
the stream waits for `stream_idle_seconds`, since its engine may start to work again.
"""

from fairlead_gateway.continuation.continued_stream import ContinuedStream
from fairlead_gateway.proxy.attempt import Attempt, AttemptParts
from fairlead_gateway.resilience.worker.retry import RetryBudget


class StreamSilence:
    """The judge of silent streams. One object serves all requests of a worker."""

    def __init__(self, parts: AttemptParts, retry_budget: RetryBudget) -> None:
        self._progress = parts.failures.progress
        self._outlier_detector = parts.outlier_detector
        self._routers = parts.routers
        self._retry_budget = retry_budget
        self._idle_seconds = parts.runtime.limits.stream_idle_seconds
        self._now = parts.now

    def check(self, attempt: Attempt, stream: ContinuedStream | None, silent_seconds: float) -> float:
        """Returns after how many more seconds to ask again; 0 if the stream leaves its engine."""
        assert self._progress is not None
        seconds = self._progress.check_stream(
            attempt.instance, silent_seconds, _gap_seconds(attempt), self._prefill_seconds(attempt)
        )
        if seconds > 0.0 or self._can_go_on(attempt, stream):
            return seconds
        return self._idle_seconds - silent_seconds

    def _prefill_seconds(self, attempt: Attempt) -> float:
        """Returns the predicted prefill of the prompts that the instance has not computed yet."""
        router = self._routers.router(attempt.context.request.model_key)
        endpoint = None if router is None else router.endpoint(attempt.instance_id)
        return 0.0 if router is None or endpoint is None else router.total_load(endpoint.load).backlog_seconds

    def _can_go_on(self, attempt: Attempt, stream: ContinuedStream | None) -> bool:
        """Whether another instance can continue the stream, as far as that is known now."""
        if stream is None or stream.refusal():
            return False
        context, now = attempt.context, self._now()
        has_other = any(
            name != attempt.instance_id and self._outlier_detector.is_usable(name, now)
            for name in self._routers.ready_instances(context.request.model_key)
        )
        return has_other and self._retry_budget.has_left(context.caller, now)


def _gap_seconds(attempt: Attempt) -> float:
    """Returns the mean time between two events of the stream; 0 if it is not known."""
    engine_response = attempt.engine_response
    if engine_response is None or engine_response.first_at is None or engine_response.last_at is None:
        return 0.0
    gaps = engine_response.event_count - 1
    return (engine_response.last_at - engine_response.first_at) / gaps if gaps > 0 else 0.0
