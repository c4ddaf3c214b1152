"""Resumes a stream that broke after its first byte: another instance generates the rest.

A stream is resumed at most once. The text that clients have is parsed for one stream at a time, and
in slices.

Why: an engine that ends breaks hundreds of streams at once. To parse 1 MiB of short events takes
0.1 s, and requests of all callers would wait for the sum.
"""

import asyncio
from functools import partial

from fairlead_gateway.errors import NoReadyInstance
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.telemetry.decision_log import CONTINUATION_RULE
from fairlead_gateway.worker.observability.trace_record import ATTEMPT
from fairlead_gateway.worker.proxy.attempt import Attempt, Dispatcher
from fairlead_gateway.worker.proxy.continuation import SentText, resume_body, splice_events, total_usage
from fairlead_gateway.worker.proxy.relayed_stream import GapRecorder, SseKeepAlive
from fairlead_gateway.worker.proxy.response_check import is_usage_refused
from fairlead_gateway.worker.resilience.retry import AttemptFailure, RetryBudget
from fairlead_gateway.worker.tenancy.placement_privacy import hide_in_events
from fairlead_gateway.worker.upstream.connection import UpstreamError
from fairlead_gateway.worker.upstream.connection_pool import ConnectionPool
from fairlead_gateway.worker.upstream.response import CLIENT_SILENT, EngineResponse

_FREE_CAUSES = ("cut", "gone")  # the engine went: its work is free, and resuming charges no budget


class StreamResume:
    """The stage that resumes broken streams. One object serves all requests of a worker."""

    def __init__(
        self, dispatcher: Dispatcher, *, pool: ConnectionPool, telemetry: MetricsRecorder, retry_budget: RetryBudget
    ) -> None:
        self._dispatcher = dispatcher
        self._pool = pool
        self._telemetry = telemetry
        self._retry_budget = retry_budget
        self._now = dispatcher.now
        self._routers = dispatcher.routers
        self._failures = dispatcher.failures
        self._parsing = asyncio.Lock()

    async def resume(self, broken: Attempt, sent: SentText, cause: str, keep_alive: SseKeepAlive) -> str | None:
        """Relays the rest of the response from another instance.

        sent: the text that the client has.
        cause: why the stream of `broken` ended.
        Returns None if the response is complete now, else the cause of the failure.
        """
        context = broken.context
        if context.trace is not None:
            context.trace.finish_span(ATTEMPT, cause)
        body = resume_body(context.request, sent) if await self._parse(sent) else None
        attempt = self._choose(broken, sent, cause) if body is not None else None
        if body is None or attempt is None:
            return cause
        broken.finish(False, self._now())
        attempt.on_dispatch(self._now())
        is_complete = False
        try:
            if context.request.adapter is not None:
                await attempt.acquire_adapter()
            attempt.attach_engine_message(body)
            splice = partial(splice_events, sent=sent)
            shows_cached = context.policy.shows_cached(context.request.entry.rules, context.http_request.head.path)
            rewrite = splice if shows_cached else partial(hide_in_events, splice)
            engine_response, error = await attempt.send_until_verdict(self._pool, rewrite)
            if error is None and is_usage_refused(context, engine_response):
                self._without_usage(attempt, sent)
                engine_response, error = await attempt.send_until_verdict(self._pool, rewrite)
            if error is not None:
                self._failures.on_stream_failed(context, attempt.instance_id, error.cause)
                if error.is_crash:
                    attempt.on_crash()
            scanner = engine_response.scanner
            if error is not None or not engine_response.is_stream or scanner.error is not None or scanner.is_aborted:
                return cause
            self._failures.outlier_detector.on_success(attempt.instance_id, self._now(), context.caller)
            cause_of_rest = await self._relay(attempt, engine_response, sent, keep_alive)
            is_complete = cause_of_rest is None
            if cause_of_rest == "cut":
                attempt.on_crash()
            return cause_of_rest
        except UpstreamError as error:
            self._failures.on_stream_failed(context, attempt.instance_id, error.cause)
            return cause
        except AttemptFailure:
            return cause
        finally:
            attempt.abort_unfinished()
            attempt.finish(is_complete, self._now())
            self._telemetry.record_resumption(context.request.model_key, "whole" if is_complete else "broken")

    def _without_usage(self, attempt: Attempt, sent: SentText) -> None:
        """Makes the attempt one without the request for token counts, which its engine refuses."""
        if attempt.engine_response is not None:
            attempt.engine_response.release_buffer()
        attempt.abort_unfinished()
        attempt.reset()
        request = attempt.context.request
        request.take_back_usage()
        attempt.attach_engine_message(resume_body(request, sent) or b"")

    async def _parse(self, sent: SentText) -> bool:
        """Parses the text that the client has; returns whether the stream can be resumed."""
        async with self._parsing:
            for is_text in sent.parse_slices():
                if not is_text:
                    return False
                await asyncio.sleep(0)
        return True

    def _choose(self, broken: Attempt, sent: SentText, cause: str) -> Attempt | None:
        context, now = broken.context, self._now()
        key, choice = context.request.model_key, context.choice
        assert choice is not None
        if cause not in _FREE_CAUSES and not self._retry_budget.take(context.caller, now):
            return None
        try:
            excluded = self._excluded_instances(broken)
            decision = self._routers.choose(key, context.route_request, now, excluded)
        except NoReadyInstance:
            return None
        instance = self._routers.ready_instance(key, decision.chosen) if decision.chosen is not None else None
        if instance is None:
            return None
        reason = f"continued after {cause}; {decision.rule}: {decision.reason}"
        decision = decision.with_text(rule=CONTINUATION_RULE, reason=reason)
        return self._dispatcher.create_attempt(context, instance, decision, choice.number + 1, now, sent)

    def _excluded_instances(self, broken: Attempt) -> frozenset[str]:
        """Returns the instances that may not resume the stream."""
        context, excluded = broken.context, frozenset({broken.instance_id})
        loader, adapter = self._dispatcher.adapter_loader, context.request.adapter
        if loader is None or adapter is None:
            return excluded
        use = context.adapter_use = loader.place(context.request.model_key, adapter, excluded)
        return excluded | loader.restrict(context.request.model_key, use)

    async def _relay(
        self, attempt: Attempt, engine_response: EngineResponse, sent: SentText, keep_alive: SseKeepAlive
    ) -> str | None:
        context, telemetry, now = attempt.context, self._telemetry, self._now()
        key, name, result = context.request.model_key, attempt.instance_id, context.result
        attempt.on_first_token(now)
        if result.last_at is not None:
            telemetry.record_inter_token(key, name, now - result.last_at)
        context.response.on_backpressure = attempt.set_paused
        keep_alive.start(engine_response)
        engine_response.relay_to(context.response, GapRecorder(telemetry, key, name))
        cause = await engine_response.finished
        result.last_at, result.event_count = (
            engine_response.last_at,
            result.event_count + engine_response.scanner.event_count,
        )
        result.record_usage(total_usage(engine_response.scanner.usage, sent))
        if cause is not None and cause != CLIENT_SILENT:
            self._failures.on_stream_failed(context, name, cause)
        return cause
