"""Room 6, settle: what a request was, told once to metrics and the decision log when it has ended."""

from collections.abc import Callable
from typing import Final

from fairlead_gateway.telemetry import MetricsRecorder, RequestOutcome, assess_attainment
from fairlead_gateway.telemetry.decision_log import DecisionLog
from fairlead_gateway.telemetry.handoff_record import FAILED
from fairlead_gateway.worker.request_context import RequestContext

CLIENT_CLOSED_STATUS: Final = 499


def record_outcome(
    context: RequestContext,
    *,
    now: float,
    telemetry: MetricsRecorder,
    decisions: DecisionLog,
    callbacks: tuple[Callable[[RequestContext, RequestOutcome], None], ...] = (),
) -> None:
    """Tell how ``job`` ended ``now``; ``observers`` are told last, and must neither wait nor raise."""
    prompt, output = context.prompt_tokens, context.output_tokens
    streamed = context.request.stream and context.first_at is not None
    ttft = context.first_at - context.http_request.received_at if streamed and context.first_at is not None else None
    itl = _tpot_seconds(context, output or context.event_count) if streamed else None
    failed = context.status >= 500 or context.error is not None
    refused = 400 <= context.status < 500
    judged = not refused and not context.client_disconnected and (context.request.stream or failed)
    within = None
    if judged:
        within = assess_attainment(
            context.request.model.objectives,
            prompt_tokens=prompt if prompt is not None else context.route_request.prompt_tokens,
            ttft_seconds=ttft,
            itl_mean_seconds=itl,
            failed=failed,
        )
    outcome = RequestOutcome(
        request_id=context.id,
        model_key=context.request.model_key,
        instance_id=context.instance_id or None,
        status=CLIENT_CLOSED_STATUS if context.client_disconnected else context.status,
        error="client-gone" if context.client_disconnected else context.error,
        started_wall=context.http_request.received_wall,
        duration_seconds=now - context.http_request.received_at,
        ttft_seconds=ttft,
        itl_mean_seconds=itl,
        prompt_tokens=prompt,
        cached_tokens=context.cached_tokens if not context.kv_transferred else None,  # says nothing then
        predicted_cached_tokens=_predicted_cached_tokens(context),
        output_tokens=output,
        within_objective=within.both if within is not None else None,
        attempts=context.attempt_number,
        client_disconnected=context.client_disconnected,
        within_ttft=within.ttft if within is not None else None,
        within_itl=within.itl if within is not None else None,
        overhead_seconds=_overhead_seconds(context),
        failures=tuple((failure.instance_id, failure.cause) for failure in context.failures)
        if context.failures
        else (),
    )
    telemetry.record_finished(outcome)
    decisions.complete(outcome)
    if callbacks:
        for observe in callbacks:
            observe(context, outcome)


def _overhead_seconds(context: RequestContext) -> float | None:
    """The gateway's own time; None where it cannot be told apart from an engine's, as behind a failed attempt."""
    if context.dispatched_at is None or context.failures:
        return None
    spent = context.dispatched_at - context.http_request.received_at
    if context.handoff_record is None:
        return spent
    return spent - context.handoff_record.waited_seconds if context.handoff_record.outcome != FAILED else None


def _tpot_seconds(context: RequestContext, tokens: int) -> float | None:
    """Mean seconds between tokens; None when there is no second one."""
    if context.first_at is None or context.last_at is None or tokens < 2:
        return None
    return (context.last_at - context.first_at) / (tokens - 1)


def _predicted_cached_tokens(context: RequestContext) -> int | None:
    """Prompt tokens that routing believed to be cached on the chosen instance."""
    if context.decision is None or context.instance is None:
        return None
    matched = context.decision.matched_tokens
    return None if matched is None else int(matched)
