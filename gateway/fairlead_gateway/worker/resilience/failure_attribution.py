"""Whose fault it was: what becomes of requests, told to the breaker; and how long an engine may be silent.

A refused connection and silence are the engine's at once. A bad answer may also be the request's doing, so it is held
against an engine only when another one then answered the same request, or when no other was asked: a client that sends
what makes every engine fail ejects none of them. Load is nobody's fault.

Silence is judged by the engine's whole voice: one that still sends tokens to others is slow, and waited for; one from which
nobody has heard a byte for several times the predicted time hangs. That is a fault in any case; the request leaves such an
engine only when another one can take it, since an error now is no better than one at the deadline.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.telemetry.status_types import HealthState
from fairlead_gateway.worker.request_context import RequestContext
from fairlead_gateway.worker.resilience.outlier_detection import OutlierDetector
from fairlead_gateway.worker.resilience.retry import AttemptFailure, RetryBudget, should_retry
from fairlead_gateway.worker.resilience.stall_timeout import StallTimeout
from fairlead_gateway.worker.upstream.connection import EndpointActivity

_MIN_STALL_SECONDS = 1.0
_IMMEDIATE_CAUSES = frozenset({"refused", "connect-timeout", "timeout", "gone"})
_DEFAULT_PROMPT_TOKEN_SECONDS: Final = 1e-3
_DEFAULT_OUTPUT_TOKEN_SECONDS: Final = 0.05


class FailureAttribution:
    """The breaker, and what the request's way tells it. ``ready`` gives the ids of a model's ready instances."""

    def __init__(
        self,
        outlier_detector: OutlierDetector,
        *,
        ready_instances: Callable[[str], Mapping[str, object]],
        telemetry: MetricsRecorder,
        clock: Clock,
        limits: Limits,
        retry_budget: RetryBudget,
    ) -> None:
        self.outlier_detector = outlier_detector
        self._retry_budget = retry_budget
        self._ready_instances = ready_instances
        self._telemetry = telemetry
        self._limits = limits
        self._now = clock.now
        self._on_soft_stall = self._should_abandon  # bound once, not for each request
        self._floor_seconds = limits.first_token_min_seconds
        self._factor = limits.first_token_factor
        self._max_seconds = limits.first_token_seconds

    def on_attempt_failed(self, context: RequestContext, failure: AttemptFailure) -> None:
        """An attempt failed before the first byte."""
        if failure.is_overload:
            self.outlier_detector.on_inconclusive(failure.instance_id)
        elif failure.cause in _IMMEDIATE_CAUSES and not _is_stall_counted(context, failure.cause):
            self._count_failure(context.request.model_key, failure.instance_id, failure.cause)

    def on_answered(self, context: RequestContext, now: float) -> None:
        """An attempt gave an answer that can be passed on: the former ones were the engines' fault."""
        self.outlier_detector.on_success(context.instance_id, now)
        if context.failures:
            self._count_failures(context, context.failures)

    def on_all_attempts_failed(self, context: RequestContext) -> None:
        """No engine answered. Where several answered badly, it may be the request."""
        bad = [
            failure
            for failure in context.failures
            if failure.cause not in _IMMEDIATE_CAUSES and not failure.is_overload
        ]
        if len(bad) == 1:
            self._count_failures(context, bad)
        for failure in bad:
            self.outlier_detector.on_inconclusive(failure.instance_id)

    def on_stream_failed(self, context: RequestContext, instance: str, why: str) -> None:
        """A stream broke after its first byte, or its continuation before."""
        if not _is_stall_counted(context, why):
            self._count_failure(context.request.model_key, instance, why)

    def on_timeout(self, context: RequestContext) -> None:
        """The request's own time is over. Its engine is to blame only when it has been silent to everybody for long enough."""
        patience = context.stall_timeout
        if (
            patience is not None
            and not patience.is_counted
            and patience.silence_seconds() > self._stall_limit_seconds(context)
        ):
            self._count_failure(context.request.model_key, patience.instance_id, "timeout")

    def _stall_limit_seconds(self, context: RequestContext) -> float:
        predicted = _predicted_seconds(context)
        return math.inf if predicted is None else max(_MIN_STALL_SECONDS, self._factor * predicted)

    def stall_timeout(self, context: RequestContext, activity: EndpointActivity) -> StallTimeout:
        """How long the engine that ``job`` goes to now may be silent."""
        until = context.http_request.received_at + self._max_seconds
        elsewhere = self._on_soft_stall if context.handoff is None else _abandon_always
        soft = self._soft_stall_seconds(context)
        return StallTimeout(
            activity,
            soft,
            until,
            self._now,
            elsewhere,
            context.request.model_key,
            context.instance_id,
            context.failures,
        )

    def resume_stall_timeout(self, context: RequestContext, activity: EndpointActivity) -> StallTimeout:
        """The same for the engine that continues a stream: there is no other after it, and the stream may be old."""
        soft, until = self._soft_stall_seconds(context), self._now() + self._limits.stream_idle_seconds
        return StallTimeout(
            activity,
            soft,
            until,
            self._now,
            self._count_stall_once,
            context.request.model_key,
            context.instance_id,
            context.failures,
        )

    def _soft_stall_seconds(self, context: RequestContext) -> float | None:
        predicted = _predicted_seconds(context)
        return None if predicted is None else max(self._floor_seconds, self._factor * predicted)

    def _should_abandon(self, patience: StallTimeout) -> bool:
        """Whether a request should leave an engine that has been silent to everybody for long."""
        now = self._now()
        tried = {failure.instance_id for failure in patience.failures}
        others = any(
            one != patience.instance_id and one not in tried and self.outlier_detector.is_usable(one, now)
            for one in self._ready_instances(patience.model_key)
        )
        again = others and should_retry([*patience.failures, AttemptFailure("timeout")], self._limits)
        return (again and self._retry_budget.has_left(now)) or self._count_stall_once(patience)

    def _count_stall_once(self, patience: StallTimeout) -> bool:
        """The request stays there, and the silence counts already, once."""
        if not patience.is_counted:
            patience.is_counted = True
            self._count_failure(patience.model_key, patience.instance_id, "timeout")
        return False

    def describe(self, instance: str) -> tuple[HealthState, str]:
        """An instance's standing and why."""
        return self.outlier_detector.health(instance, self._now())

    def _count_failures(self, context: RequestContext, failures: Iterable[AttemptFailure]) -> None:
        for failure in failures:
            if failure.cause not in _IMMEDIATE_CAUSES and not failure.is_overload:
                self._count_failure(context.request.model_key, failure.instance_id, failure.cause)

    def _count_failure(self, key: str, instance: str, why: str) -> None:
        if self.outlier_detector.on_failure(instance, why, self._now(), self._ready_instances(key)):
            self._telemetry.record_ejection(key, instance, why)


def _abandon_always(patience: StallTimeout) -> bool:
    """Whether a hand-off leaves a silent engine: the same request goes again plainly, there or elsewhere."""
    del patience
    return True


def _is_stall_counted(context: RequestContext, why: str) -> bool:
    """Whether this silence has been counted already."""
    return (
        why == "timeout"
        and context.stall_timeout is not None
        and context.stall_timeout.is_counted
        and context.stall_timeout.silence_seconds() > 0
    )


def _predicted_seconds(context: RequestContext) -> float | None:
    """Seconds until this job's engine should have said something; None when nobody can know."""
    first = context.decision.ttft_seconds if context.decision is not None else None
    if first is None:
        first = context.route_request.prompt_tokens * _DEFAULT_PROMPT_TOKEN_SECONDS
    if context.request.stream:
        return first
    tokens = context.route_request.max_tokens
    return None if tokens is None else first + tokens * _DEFAULT_OUTPUT_TOKEN_SECONDS
