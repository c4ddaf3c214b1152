"""Attributes failed attempts to instances, and sets how long an instance may stall.

These count as the instance's failure:

- immediately: a refused connection, or a stall;
- later: an error response, once another instance has answered the same request, or if there was no
other instance to try. A request that fails everywhere therefore ejects no instance.

A failure that no other instance could be tried for, because no retry was left, counts against
none. Failures that depend on the request count with their source (`fault_evidence`).

Overload (429, 503) is never counted: a full instance is left out while others have room. So is an
API that others run after 429, which concerns its account and so all callers. Not counted either is
a failure of the gateway itself: out of descriptors, ports or memory, or a name that cannot be
resolved (`upstream.connect_errors`).

Stalls are judged per instance, not per request. An instance that still sends bytes to any client is
slow, and the request waits. One that has sent nothing for several times the predicted time of a
first token has stalled. That does not hold for a plain request whose engine computes. The request
moves if another instance can take it. If none can, and the instance is ejected or known to hang, it
moves to another model of its route. Otherwise it waits until its deadline, since an early error
would be no better.

A 4xx says nothing about the instance, nor does an answer to a request that needs no core. A server
whose core hangs refuses what is invalid, and counts tokens.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.resilience.outlier_detection import (
    REQUEST_INDEPENDENT_CAUSES,
    FaultSource,
    OutlierDetector,
)
from fairlead_gateway.resilience.worker.engine_progress import EngineProgress
from fairlead_gateway.resilience.worker.retry import (
    MAX_RETRY_AFTER_SECONDS,
    AnswerTimes,
    AttemptFailure,
    RetryBudget,
    StallTimeout,
    should_retry,
)
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.telemetry.status_types import HealthState
from fairlead_gateway.upstream.connection import LOCAL_CAUSES, EndpointActivity
from fairlead_gateway.upstream.response import EngineResponse

_MIN_STALL_SECONDS = 1.0
_UNKNOWN_ANSWER_SECONDS: Final = 200.0
"""A plain answer before any was measured: 4,000 tokens at 20 a second."""
_PATIENCE: Final = 4.0
"""A plain answer may take so many times the longest one of late."""
_RENDERING: Final = "/render"
"""The end of the paths on which vLLM shows a prompt, which no model computes."""
_IMMEDIATE_CAUSES = frozenset({"refused", "connect-timeout", "timeout", "gone"})
"""The causes that count against an instance at once, whatever other instances answer."""
_DEFAULT_PROMPT_TOKEN_SECONDS: Final = 1e-3
_DEFAULT_OUTPUT_TOKEN_SECONDS: Final = 0.05


class FailureAttribution:
    """The attribution of failed attempts: the failures that the outlier detector counts against an
    instance.

    ready_instances: returns the ready instances of a model by id.
    fingerprint: returns the keyed fingerprint of a body.
    progress: whether silent engines compute; set by the creator.
    has_fallback: returns whether another model can take a request; set by the gateway.
    """

    def __init__(
        self,
        runtime: WorkerRuntime,
        outlier_detector: OutlierDetector,
        *,
        ready_instances: Callable[[str], Mapping[str, object]],
        telemetry: MetricsRecorder,
        retry_budget: RetryBudget,
        fingerprint: Callable[[bytes], bytes],
    ) -> None:
        self._fingerprint = fingerprint
        self.has_fallback: Callable[[StallTimeout], bool] | None = None
        self.progress: EngineProgress | None = None
        self._answer_times = AnswerTimes()
        self._on_silent = self._more_seconds  # bound once, not for each request
        self._on_opened = self._opened_seconds
        self.outlier_detector = outlier_detector
        self._retry_budget = retry_budget
        self._ready_instances = ready_instances
        self._telemetry = telemetry
        self._limits = runtime.limits
        self._now = runtime.now
        self._on_soft_stall = self._should_abandon  # bound once, not for each request
        self._floor_seconds = runtime.limits.first_token_min_seconds
        self._factor = runtime.limits.first_token_factor
        self._max_seconds = runtime.limits.first_token_seconds

    def on_attempt_failed(self, context: RequestContext, failure: AttemptFailure) -> None:
        """Records a failure before the first byte; counts a refused connection or a stall now."""
        if failure.is_overload or failure.is_local or failure.is_no_fault:
            self.outlier_detector.on_inconclusive(failure.instance_id)
            if failure.is_overload:
                self._count_full(context, failure.instance_id, failure.retry_after)
        elif failure.cause in _IMMEDIATE_CAUSES and not _is_stall_counted(context, failure.cause):
            if failure.cause == "timeout" and not failure.is_final and not self._has_retry(context):
                self.outlier_detector.on_inconclusive(failure.instance_id)
            else:
                self._count_failure_of(context, failure.instance_id, failure.cause)

    def on_answered(self, context: RequestContext, engine_response: EngineResponse, now: float) -> None:
        """Records a response that can be relayed; counts the error responses before it."""
        status = engine_response.status
        if context.address is not None and status < 400 and needs_core(context):
            self.outlier_detector.on_success(context.address.id, now, context.caller)
            request, dispatched_at = context.request, context.result.dispatched_at
            if dispatched_at is not None and not (request.stream or request.passes_stream):
                self._answer_times.learn(request.model_key, now - dispatched_at)
            if self.outlier_detector.full and dispatched_at is not None:
                self.outlier_detector.on_room(context.address.id, dispatched_at)
        elif status == 429 and context.address is not None:
            self._count_full(context, context.address.id, engine_response.retry_after(int(MAX_RETRY_AFTER_SECONDS)))
        if context.failures:
            self._count_failures(context, context.failures, is_harmless=True)

    def on_all_attempts_failed(self, context: RequestContext, *, is_budget_spent: bool = False) -> None:
        """Records that no instance answered; counts an error response if it is the only one.

        It is not counted if the gateway could not try another instance.
        is_budget_spent: no retry was left.
        """
        error_responses = [failure for failure in context.failures if _is_engine_failure(failure)]
        is_untried = is_budget_spent or any(failure.is_local for failure in context.failures)
        if len(error_responses) == 1 and not is_untried:
            self._count_failures(context, error_responses)
        for failure in error_responses:
            self.outlier_detector.on_inconclusive(failure.instance_id)

    def on_stream_failed(self, context: RequestContext, instance: str, cause: str) -> None:
        """Records a stream that broke after its first byte, or an attempt to resume one."""
        if cause in LOCAL_CAUSES:
            self.outlier_detector.on_inconclusive(instance)
        elif not _is_stall_counted(context, cause):
            self._count_failure_of(context, instance, cause)

    def on_timeout(self, context: RequestContext) -> bool:
        """Records that the request's time is over; returns whether its instance has stalled, which
        is counted.
        """
        timeout = context.stall_timeout
        if timeout is None:
            return False
        if not self._is_stalled(context, timeout):
            return timeout.is_counted
        if not timeout.is_counted:
            self._count_failure_of(context, timeout.instance_id, "timeout")
        return True

    def on_probe_failed(self, model_key: str, instance: str, cause: str) -> None:
        self._count_failure(model_key, instance, cause, None)

    def stall_timeout(self, context: RequestContext, activity: EndpointActivity) -> StallTimeout:
        """Returns the stall timeout of the current attempt."""
        should_abandon = self._on_soft_stall if context.transfer is None else _abandon_always
        deadline = context.http_request.received_at + self._max_seconds
        return self._stall_timeout(context, activity, deadline, should_abandon)

    def resume_stall_timeout(self, context: RequestContext, activity: EndpointActivity) -> StallTimeout:
        """Returns the stall timeout of an attempt that resumes a stream.

        Its deadline counts from now, and a stall only counts as a failure.

        Why: no attempt follows this one, and the stream may be old.
        """
        deadline = self._now() + self._limits.stream_idle_seconds
        return self._stall_timeout(context, activity, deadline, self._count_stall_once)

    def describe(self, instance: str) -> tuple[HealthState, str]:
        return self.outlier_detector.health(instance, self._now())

    def _stall_timeout(
        self,
        context: RequestContext,
        activity: EndpointActivity,
        deadline: float,
        should_abandon: Callable[[StallTimeout], bool],
    ) -> StallTimeout:
        address = context.address
        assert address is not None
        first_seconds, max_tokens = _predicted_seconds(context), context.route_request.max_tokens
        timeout = StallTimeout(
            activity,
            max(self._floor_seconds, self._factor * first_seconds),
            deadline,
            self._now,
            should_abandon,
            context.request,
            address.id,
            context.failures,
        )
        timeout.instance, timeout.on_opened = address.instance, self._on_opened
        request = context.request
        if not (request.stream or request.passes_stream or request.dialect.has_early_answer):
            timeout.on_silent = self._on_silent
            if max_tokens is not None:
                answer_seconds = first_seconds + max_tokens * _DEFAULT_OUTPUT_TOKEN_SECONDS
                timeout.answer_seconds = max(self._floor_seconds, self._factor * answer_seconds)
        timeout.caller = context.caller
        if context.request.route is not None:
            timeout.client = context.http_request.caller
        return timeout

    def _is_stalled(self, context: RequestContext, timeout: StallTimeout) -> bool:
        """Whether the instance of a request whose time is over has been silent for too long."""
        silent_seconds = timeout.silence_seconds()
        if silent_seconds <= max(_MIN_STALL_SECONDS, self._factor * _predicted_seconds(context)):
            return False
        return timeout.on_silent is None or self._more_seconds(timeout, silent_seconds) <= 0.0

    def _more_seconds(self, timeout: StallTimeout, silent_seconds: float) -> float:
        """Returns how many more seconds an instance may be silent that has a plain request.

        Its engine has to compute meanwhile. Where that cannot be seen, the longest earlier answer
        bounds the silence: closely, if other instances have answered since it began.
        """
        soft_seconds = timeout.soft_seconds
        if self.progress is not None and timeout.instance is not None and not timeout.request.is_passthrough:
            half_seconds = soft_seconds / 2.0
            still_seconds = self.progress.still_seconds(timeout.instance, half_seconds)
            if still_seconds is not None:
                return max(soft_seconds - silent_seconds, half_seconds - still_seconds)
        longest = self._answer_times.of(timeout.request.model_key)
        limit = max(_UNKNOWN_ANSWER_SECONDS, _PATIENCE * longest.seconds)
        if longest.is_known and self._has_other_answered(timeout, silent_seconds):
            limit = max(soft_seconds, self._factor * longest.seconds)
        if timeout.answer_seconds is not None:
            limit = min(limit, timeout.answer_seconds)
        return limit - silent_seconds

    def _opened_seconds(self, timeout: StallTimeout, silent_seconds: float) -> float:
        """Returns how many more seconds an engine may be silent that has opened a stream."""
        if self.progress is None or timeout.instance is None:
            return 0.0
        predicted_seconds = timeout.soft_seconds / self._factor
        return self.progress.check_stream(timeout.instance, silent_seconds, 0.0, predicted_seconds)

    def _has_other_answered(self, timeout: StallTimeout, silent_seconds: float) -> bool:
        """Whether another instance of the model has answered since the silence began."""
        since, times = self._now() - silent_seconds, self.outlier_detector.answer_times()
        ready = self._ready_instances(timeout.request.model_key)
        return any(name != timeout.instance_id and times.get(name, 0.0) > since for name in ready)

    def _should_abandon(self, timeout: StallTimeout) -> bool:
        """Whether the request moves to another instance; counts the stall if it stays."""
        now = self._now()
        tried = {failure.instance_id for failure in timeout.failures}
        has_other = any(
            name != timeout.instance_id and name not in tried and self.outlier_detector.is_usable(name, now)
            for name in self._ready_instances(timeout.request.model_key)
        )
        failures, max_attempts = [*timeout.failures, AttemptFailure("timeout")], timeout.request.entry.max_attempts
        if has_other and should_retry(failures, self._limits, max_attempts):
            timeout.has_retry = self._retry_budget.take(timeout.caller, now)
            return timeout.has_retry
        self._count_stall_once(timeout)
        return self._is_left_for_another_model(timeout, now)

    def _is_left_for_another_model(self, timeout: StallTimeout, now: float) -> bool:
        """Whether a request leaves its silent instance for another model of its route."""
        if timeout.request.route is None or self.has_fallback is None:
            return False
        instance = timeout.instance_id
        is_judged = instance in self.outlier_detector.ejection_records.by_instance
        return (is_judged or not self.outlier_detector.is_usable(instance, now)) and self.has_fallback(timeout)

    def _count_stall_once(self, timeout: StallTimeout) -> bool:
        """Counts the stall if it is not counted yet; returns False: the request stays."""
        if not timeout.is_counted:
            timeout.is_counted = True
            source = FaultSource(timeout.caller, self._fingerprint(timeout.request.body))
            self._count_failure(timeout.request.model_key, timeout.instance_id, "timeout", source)
        return False

    def _has_retry(self, context: RequestContext) -> bool:
        timeout = context.stall_timeout
        if timeout is not None and timeout.has_retry:
            return True
        return self._retry_budget.has_left(context.caller, self._now())

    def _count_failures(
        self, context: RequestContext, failures: Iterable[AttemptFailure], *, is_harmless: bool = False
    ) -> None:
        for failure in failures:
            if _is_engine_failure(failure):
                self._count_failure_of(context, failure.instance_id, failure.cause, is_harmless=is_harmless)
            elif failure.is_overload:
                self._count_full(context, failure.instance_id, failure.retry_after, is_harmless=is_harmless)

    def _count_full(
        self, context: RequestContext, instance: str, retry_after: int | None, *, is_harmless: bool = False
    ) -> None:
        if needs_core(context):
            source = FaultSource(context.caller, context.body_fingerprint(self._fingerprint), is_harmless)
            self.outlier_detector.on_full(instance, retry_after, self._now(), source)

    def _count_failure_of(
        self, context: RequestContext, instance: str, cause: str, *, is_harmless: bool = False
    ) -> None:
        source = None
        if cause not in REQUEST_INDEPENDENT_CAUSES:
            source = FaultSource(context.caller, context.body_fingerprint(self._fingerprint), is_harmless)
        self._count_failure(context.request.model_key, instance, cause, source)

    def _count_failure(self, key: str, instance: str, cause: str, source: FaultSource | None) -> None:
        if self.outlier_detector.on_failure(instance, cause, self._now(), self._ready_instances(key), source):
            self._telemetry.record_ejection(key, instance, cause)


def needs_core(context: RequestContext) -> bool:
    """Whether only the engine's core can answer the request."""
    request = context.request
    return request.dialect.is_computed and (
        not request.is_passthrough
        or (request.method == "POST" and not context.http_request.head.path.endswith(_RENDERING))
    )


def _is_engine_failure(failure: AttemptFailure) -> bool:
    """Whether the engine took the request and failed it, by an error response or a broken one.

    Overload is no failure; `on_attempt_failed` counts refused connections and stalls already.
    """
    if failure.is_overload or failure.is_local or failure.is_no_fault:
        return False
    return failure.cause not in _IMMEDIATE_CAUSES


def _abandon_always(timeout: StallTimeout) -> bool:
    del timeout
    return True


def _is_stall_counted(context: RequestContext, cause: str) -> bool:
    timeout = context.stall_timeout
    return cause == "timeout" and timeout is not None and timeout.is_counted and timeout.silence_seconds() > 0


def _predicted_seconds(context: RequestContext) -> float:
    first = context.choice.decision.ttft_seconds if context.choice is not None else None
    return context.route_request.prompt_tokens * _DEFAULT_PROMPT_TOKEN_SECONDS if first is None else first
