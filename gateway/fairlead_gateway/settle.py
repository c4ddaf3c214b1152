"""Room 6, settle: what a request was, told once to metrics and the decision log when it has ended."""

from collections.abc import Callable
from typing import Final

from fairlead_gateway.decision_log import DecisionLog
from fairlead_gateway.handoff_story import FAILED
from fairlead_gateway.job import Job
from fairlead_gateway.telemetry import Outcome, Telemetry, attainment

CLIENT_GONE: Final = 499


def settle(
    job: Job,
    *,
    now: float,
    telemetry: Telemetry,
    decisions: DecisionLog,
    observers: tuple[Callable[[Job, Outcome], None], ...] = (),
) -> None:
    """Tell how ``job`` ended ``now``; ``observers`` are told last, and must neither wait nor raise."""
    prompt, output = job.prompt_tokens, job.output_tokens
    streamed = job.ask.stream and job.first_at is not None
    ttft = job.first_at - job.request.received if streamed and job.first_at is not None else None
    itl = _itl(job, output or job.events) if streamed else None
    failed = job.status >= 500 or job.error is not None
    refused = 400 <= job.status < 500
    judged = not refused and not job.client_gone and (job.ask.stream or failed)
    within = None
    if judged:
        within = attainment(
            job.ask.model.objectives,
            prompt_tokens=prompt if prompt is not None else job.route.prompt_tokens,
            ttft_seconds=ttft,
            itl_mean_seconds=itl,
            failed=failed,
        )
    outcome = Outcome(
        request_id=job.id,
        model_key=job.ask.key,
        instance_id=job.instance_id or None,
        status=CLIENT_GONE if job.client_gone else job.status,
        error="client-gone" if job.client_gone else job.error,
        started_wall=job.request.wall,
        duration_seconds=now - job.request.received,
        ttft_seconds=ttft,
        itl_mean_seconds=itl,
        prompt_tokens=prompt,
        cached_tokens=job.cached_tokens if not job.handed_over else None,  # says nothing then
        predicted_cached_tokens=_predicted(job),
        output_tokens=output,
        within_objective=within.both if within is not None else None,
        attempts=job.attempt,
        client_gone=job.client_gone,
        within_ttft=within.ttft if within is not None else None,
        within_itl=within.itl if within is not None else None,
        overhead_seconds=_overhead(job),
        failures=tuple((failure.where, failure.why) for failure in job.failures) if job.failures else (),
    )
    telemetry.finished(outcome)
    decisions.settle(outcome)
    if observers:
        for observe in observers:
            observe(job, outcome)


def _overhead(job: Job) -> float | None:
    """The gateway's own time; None where it cannot be told apart from an engine's, as behind a failed attempt."""
    if job.dispatched_at is None or job.failures:
        return None
    spent = job.dispatched_at - job.request.received
    if job.story is None:
        return spent
    return spent - job.story.waited_seconds if job.story.outcome != FAILED else None


def _itl(job: Job, tokens: int) -> float | None:
    """Mean seconds between tokens; None when there is no second one."""
    if job.first_at is None or job.last_at is None or tokens < 2:
        return None
    return (job.last_at - job.first_at) / (tokens - 1)


def _predicted(job: Job) -> int | None:
    """Prompt tokens that routing believed to be cached on the chosen instance."""
    if job.decision is None or job.instance is None:
        return None
    matched = job.decision.matched_tokens
    return None if matched is None else int(matched)
