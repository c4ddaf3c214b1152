"""Room 5, forward: to an engine and back.

An attempt ends with an answer that can be passed on, or with a Failure; failures before the first byte go to another engine
as far as ``retry`` allows. A client that leaves cancels the task, and with it the attempt: the engine's connection is closed
at once. After the first byte there is no second try: a stream that breaks ends with an error event and without ``[DONE]``.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from fairlead.decision import Decision
from fairlead.fleet.model import Instance
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.errors import GatewayError, QuarantinedRequest, error_body, error_event
from fairlead_gateway.routing import ModelRouter
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.telemetry.decision_log import DecisionLog, DecisionRecord
from fairlead_gateway.worker.disaggregation.prefill_coordinator import PrefillCoordinator
from fairlead_gateway.worker.dispatch.admission_control import AdmissionController
from fairlead_gateway.worker.dispatch.router_registry import RouterRegistry, as_retry_decision
from fairlead_gateway.worker.observability.trace_record import ATTEMPT
from fairlead_gateway.worker.openai.request_timeout import (
    TIMEOUT_HEADER,
    remaining_timeout_header,
    timeout_error,
    total_timeout,
)
from fairlead_gateway.worker.openai.served_name import ServedNameRewriter, body_with_model, target_with_model
from fairlead_gateway.worker.proxy.continuation import SentText, can_resume
from fairlead_gateway.worker.proxy.response_check import check_response, is_error_object, not_served_body
from fairlead_gateway.worker.proxy.sse_keepalive import SseKeepAlive
from fairlead_gateway.worker.proxy.stream_resume import StreamResume
from fairlead_gateway.worker.reporting.prompt_samples import PromptSampleBuffer
from fairlead_gateway.worker.reporting.timing_reporter import TimingReporter
from fairlead_gateway.worker.request_context import RequestContext
from fairlead_gateway.worker.resilience.failure_attribution import FailureAttribution
from fairlead_gateway.worker.resilience.poison_requests import PoisonRequestGuard
from fairlead_gateway.worker.resilience.retry import AttemptFailure, RetryBudget, should_retry, to_client_error
from fairlead_gateway.worker.upstream.connection import ConnectionPool, EngineConnection, UpstreamError
from fairlead_gateway.worker.upstream.request_encoder import (
    JSON_TYPE,
    RequestPrefixCache,
    RouteHeaderCache,
    encode_with_prefix,
    relayed_headers,
    route_header,
    server_timing,
)
from fairlead_gateway.worker.upstream.response import EngineResponse

_STREAM_ERROR_TEXTS = {
    "cut": "the engine broke off",
    "timeout": "the engine fell silent",
    "gone": "the engine fell silent and takes no connections",
    "error-event": "the engine reported an error",
    "aborted": "the engine aborted the request",
    "garbage": "the engine's answer cannot be read",
}


_JSON_OR_EVENTS: Final = re.compile(rb"json|text/event-stream", re.IGNORECASE)


@dataclass(slots=True)
class StartedAttempt:
    """An attempt that ``short`` began and that has met its verdict, or found no idle connection (then without ``connection``)."""

    instance: Instance
    connection: EngineConnection | None = None
    engine_response: EngineResponse | None = None
    message: list[bytes] | None = None
    error: UpstreamError | None = None


class _NoLongerReady(Exception):
    """Raised when the instance stopped being ready between the choice and the first byte to it."""


class Forwarder:
    """Carries jobs to engines. One object serves all requests of a gateway."""

    def __init__(
        self,
        *,
        routers: RouterRegistry,
        pool: ConnectionPool,
        telemetry: MetricsRecorder,
        decisions: DecisionLog,
        clock: Clock,
        limits: Limits,
        failures: FailureAttribution,
        poison_guard: PoisonRequestGuard,
        prefill_coordinator: PrefillCoordinator,
        retry_budget: RetryBudget,
        prompt_samples: PromptSampleBuffer | None = None,
        timing_reporter: TimingReporter | None = None,
        admission: AdmissionController,
    ) -> None:
        self._routers = routers
        self._admission = admission
        self._timing_reporter = timing_reporter
        self._prompt_samples = prompt_samples
        self._prefill_coordinator = prefill_coordinator
        self._failures = failures
        self._poison_guard = poison_guard
        self._pool = pool
        self._telemetry = telemetry
        self._decisions = decisions
        self._clock = clock
        self._now = clock.now  # called more often than anything: without a look at the clock each time
        self._limits = limits
        self._request_prefixes = RequestPrefixCache()
        self._route_headers = RouteHeaderCache()
        self.retry_budget = retry_budget
        self._stream_resume = StreamResume(
            routers=routers,
            pool=pool,
            telemetry=telemetry,
            record_choice=self._record_choice,
            clock=clock,
            limits=limits,
            failures=failures,
            budget=self.retry_budget,
            apply_backpressure=_apply_backpressure,
            on_crash=self._on_crash,
        )

    async def forward(self, context: RequestContext, begun: StartedAttempt | None = None) -> None:
        """Get an answer for ``job`` and pass it on, in the time that it may take. Raises GatewayError when none comes."""
        seconds = total_timeout(context.http_request.head, context.request.stream, self._limits)
        if seconds is None:
            await self._run_attempts(context, begun)
            return
        context.deadline = context.http_request.received_at + seconds
        try:
            async with asyncio.timeout(context.deadline - self._now()):
                await self._run_attempts(context, begun)
        except TimeoutError:
            self._on_timeout(context, timeout_error(context.http_request.head, seconds))

    def _on_timeout(self, context: RequestContext, error: GatewayError) -> None:
        """The time is over: raise the error, or say it in the stream that has begun."""
        self._failures.on_timeout(context)
        if not context.response.started:
            raise error
        context.error = error.code
        if context.request.stream:
            context.response.end_with_error(
                error_event(f"{error}; the answer is incomplete", error.code, context.http_request.id)
            )
        else:
            context.response.abort()

    async def _run_attempts(self, context: RequestContext, begun: StartedAttempt | None) -> None:
        excluded: frozenset[str] = frozenset()
        if begun is None:
            left = self._poison_guard.seconds_left(context.request.body, self._now())
            if left is not None:
                raise QuarantinedRequest(left)
            self.retry_budget.on_request(self._now())
            await self._admission.wait_for_admission(context)
            await self._prefill_coordinator.prefill_remotely(context)
        while True:
            first, begun = begun, None
            instance = first.instance if first is not None else self.choose_instance(context, excluded, self._now())
            asked = first if first is not None and first.engine_response is not None else None
            try:
                if asked is not None or await self._admission.wait_for_slot(context):
                    await self._attempt(context, instance, asked)
                    return
            except _NoLongerReady:
                if context.trace is not None:
                    context.trace.finish_span(ATTEMPT, "moved")
                continue
            except AttemptFailure as failure:
                failure.instance_id = instance.id
                if context.trace is not None:
                    context.trace.finish_span(ATTEMPT, failure.cause)
                if self._prefill_coordinator.retry_without_transfer(context, failure):
                    continue
                context.failures.append(failure)
                self._failures.on_attempt_failed(context, failure)
                held = failure.crashed and self._on_crash(context, instance.id, context.dispatched_at)
                excluded |= {instance.id}
                if not should_retry(context.failures, self._limits):
                    raise self._give_up(context) from None
                if held:  # others like it have been the end of another engine
                    raise QuarantinedRequest(self._limits.quarantine_seconds) from None

    def choose_instance(self, context: RequestContext, excluded: frozenset[str], now: float) -> Instance:
        """Ask for a decision, log it, and make it the job's."""
        decision = self._prefill_coordinator.choose_decode_instance(context, excluded, now)
        if context.admitted is not None and not context.failures:
            decision = decision.with_text(
                reason=f"{context.admitted.describe()}; then {decision.rule}: {decision.reason}"
            )
        if context.handoff_record is not None:
            decision = self._prefill_coordinator.annotate_decision(context, decision)
        chosen = decision.chosen
        if chosen is None:
            raise self._give_up(context)
        if context.failures:
            if not context.failures[-1].is_exempt_from_budget and not self.retry_budget.take(now):
                raise self._give_up(context)
            assert context.instance is not None
            self._telemetry.record_retry(context.request.model_key, context.instance.id, context.failures[-1].cause)
            decision = as_retry_decision(decision, len(context.failures), context.failures[-1].cause)
        instance = self._routers.ready_instance(context.request.model_key, chosen)
        if instance is None:
            raise self._routers.no_ready_instance(context.request.model_key, now)
        self._record_choice(context, instance, decision, len(context.failures) + 1)
        return instance

    def _record_choice(self, context: RequestContext, instance: Instance, decision: Decision, attempt: int) -> None:
        """A choice is the job's from now on: counted and logged."""
        context.attempt_number, context.instance, context.decision, context.instance_id = (
            attempt,
            instance,
            decision,
            instance.id,
        )
        self._telemetry.record_routed(context.request.model_key, context.instance_id, decision)
        self._decisions.append(
            DecisionRecord(
                context.id,
                context.http_request.received_wall,
                context.request.model_key,
                decision,
                context.attempt_number,
                _round_half_even(self._routers.prompt_tokens(context.request.model_key, context.route_request)),
                context.http_request.caller,
                context.handoff_record,
            )
        )

    def _give_up(self, context: RequestContext) -> GatewayError:
        """What the client is told now that no engine answered."""
        self._failures.on_all_attempts_failed(context)
        return to_client_error(context.failures, self._routers.drain_seconds(context.request.model_key))

    async def _attempt(self, context: RequestContext, instance: Instance, begun: StartedAttempt | None) -> None:
        """One engine: send, wait for the verdict, pass on. The ledger knows of it from here to the end."""
        router = context.router if begun is not None else self.on_dispatch(context, self._now())
        assert router is not None
        finished = False
        try:
            finished = await self._exchange(context, instance, begun)
        finally:
            self.on_finish(context, router, finished, self._now())

    def on_dispatch(self, context: RequestContext, now: float) -> ModelRouter:
        """Ledger and breaker learn of an attempt."""
        router = context.router = self._routers.router(context.request.model_key)
        assert router is not None
        if context.counted_at != context.instance_id:
            router.on_dispatch(
                context.route_request, context.instance_id, now, prefilled_elsewhere=context.handoff is not None
            )
        self._admission.on_dispatch(context, now)
        if self._prompt_samples is not None and router.is_indexed:
            self._prompt_samples.offer(context.request, context.route_request)
        if self._timing_reporter is not None and context.handoff is None:
            decision = context.decision
            matched = decision.matched_tokens if decision is not None and decision.source is None else None
            tokens = router.prompt_tokens(context.route_request)
            self._timing_reporter.on_dispatch(
                context.route_request.id, context.instance_id, now, tokens, 0.0 if matched is None else matched
            )
        self._failures.outlier_detector.on_dispatch(context.instance_id)
        return router

    def on_finish(self, context: RequestContext, router: ModelRouter, finished: bool, now: float) -> None:
        """Ledger and breaker learn of an attempt's end."""
        if finished and len(self._poison_guard) and context.status < 400:
            self._clear_suspicion(context, now)
        if finished:
            router.on_finish(
                context.route_request.id,
                now,
                prompt_tokens=context.prompt_tokens,
                cached_tokens=None if context.kv_transferred else context.cached_tokens,  # says nothing then
                output_tokens=context.output_tokens,
            )
            if self._timing_reporter is not None and context.handoff is None:
                self._timing_reporter.on_finish(
                    context.route_request.id, now, context.cached_tokens, context.output_tokens
                )
        else:
            router.on_abandoned(context.route_request.id, now)
            if self._timing_reporter is not None and context.handoff is None:
                self._timing_reporter.on_abandoned(context.route_request.id, now)
        self._failures.outlier_detector.on_inconclusive(context.instance_id)
        self._admission.on_finish(context, finished, now)

    def encode_request(self, context: RequestContext, instance: Instance) -> list[bytes]:
        """The request as this attempt's engine gets it."""
        head, body = (
            context.http_request.head,
            context.request.body if context.handoff is None else self._prefill_coordinator.request_body(context),
        )
        if context.decision is not None and context.decision.source is not None:
            body = self._prefill_coordinator.add_kv_source(context, body, context.decision.source)
        more = (
            remaining_timeout_header(head, context.deadline, self._now())
            if head.get(TIMEOUT_HEADER) is not None and context.deadline is not None
            else ""
        )
        if context.trace is not None:
            more += context.trace.start_span(
                instance, ATTEMPT, context.decision.rule if context.decision is not None else ""
            )
        target = context.request.target
        if instance.served_name is not None:
            body = body_with_model(instance.served_name, body)
            target = None if target is None else target_with_model(instance.served_name, target)
        start = self._request_prefixes.get(
            context.request.method, head.path if target is None else target, instance.url
        )
        return encode_with_prefix(
            start, head, body, context.http_request.id, dp_rank=instance.dp_rank, extra_headers=more
        )

    def send_request(
        self,
        context: RequestContext,
        connection: EngineConnection,
        message: list[bytes],
        on_verdict: Callable[[UpstreamError | None], None] | None = None,
    ) -> EngineResponse:
        """Send a request; the answer's verdict is awaited, or told to ``decided``."""
        patience = context.stall_timeout = self._failures.stall_timeout(context, connection.activity)
        engine_response = EngineResponse(
            stream_requested=context.request.stream,
            strip_usage=context.request.strip_usage,
            clock=self._clock,
            limits=self._limits,
            loop=self._pool.loop,
            on_silence=patience.on_silence,
            on_verdict=on_verdict,
        )
        engine_response.is_passthrough = context.request.is_passthrough
        now = self._now()
        context.dispatched_at = now
        connection.send_request(message, engine_response, patience.start(now))
        return engine_response

    async def _exchange(self, context: RequestContext, instance: Instance, begun: StartedAttempt | None) -> bool:
        """Whether the engine's answer was complete. Raises Failure while another engine may still be asked."""
        if begun is not None and begun.message is not None:
            message, connection = begun.message, begun.connection
        else:
            message, connection = self.encode_request(context, instance), self._pool.take_idle(instance.url)
        stale = False
        while True:
            if connection is None:
                connection = await self._connect(instance, stale)
            if begun is not None and begun.engine_response is not None:
                engine_response, broken = begun.engine_response, begun.error
            else:
                if self._routers.ready_instance(context.request.model_key, instance.id) is None:
                    self._pool.release(connection)
                    raise _NoLongerReady
                engine_response, broken = self.send_request(context, connection, message), None
            used, waiting, begun = connection, begun is None, None
            try:
                if waiting:
                    with self._prefill_coordinator.first_event_deadline(context, instance, engine_response):
                        broken = await engine_response.verdict
                stale = broken is not None and broken.is_stale
                if not stale:
                    check_response(
                        context,
                        engine_response,
                        broken,
                        context.stall_timeout is not None and context.stall_timeout.is_exhausted,
                    )
                    self._failures.on_answered(context, self._now())
                    self._prefill_coordinator.on_decode_accepted(context)
                    message = []  # a stream may take minutes
                    return await self._relay(context, instance, engine_response, used)
            finally:
                if not stale and not engine_response.is_complete and not engine_response.scanner.is_done:
                    used.abort()
            connection = None

    async def _connect(self, instance: Instance, stale: bool) -> EngineConnection:
        try:
            return await self._pool.connect(instance.url)
        except UpstreamError as error:
            # Gone between two connections: what closed the first one may be this very request.
            raise AttemptFailure("reset" if stale else error.cause, crashed=stale, was_sent=stale) from None

    async def _relay(
        self, context: RequestContext, instance: Instance, engine_response: EngineResponse, connection: EngineConnection
    ) -> bool:
        """Send the answer to the client as it comes."""
        response = context.response
        context.status = engine_response.status
        context.first_at, context.last_at = engine_response.first_at, engine_response.last_at
        if engine_response.is_stream and engine_response.scanner.error is not None:
            fault = engine_response.scanner.error
            context.status, context.error = fault.status, "engine-refused"
            response.send(
                fault.status,
                self.response_headers(context, self._now()),
                error_body(fault.message, "invalid_request_error", None, "engine_refused", context.http_request.id),
            )
            return True
        if not engine_response.is_stream and engine_response.is_complete:
            self.relay_buffered(context, engine_response, self._now())
            return True
        key, name, telemetry = context.request.model_key, instance.id, self._telemetry
        if engine_response.is_stream:
            if context.router is not None:
                context.router.on_first_token(context.route_request.id, self._now())
                self._admission.on_first_token(context, self._now())
            if self._timing_reporter is not None and context.handoff is None and engine_response.first_at is not None:
                self._timing_reporter.on_first_token(context.route_request.id, engine_response.first_at)
            assert engine_response.first_at is not None
            limit = context.request.model.objectives.ttft_limit_seconds(
                self._routers.prompt_tokens(key, context.route_request)
            )
            telemetry.record_first_token(key, name, engine_response.first_at - context.http_request.received_at, limit)
        renaming = _served_name_rewriter(context, engine_response)
        if renaming is not None:
            engine_response.rewrite_events, engine_response.rewrite_chunks = (
                renaming.rewrite_events,
                renaming.rewrite_chunks,
            )
        length = None if engine_response.is_stream or renaming is not None else _content_length(engine_response.headers)
        response.on_backpressure = partial(_apply_backpressure, engine_response, connection)
        response.start_stream(
            engine_response.status,
            relayed_headers(engine_response.headers) + self.response_headers(context, self._now()),
            length=length,
        )
        response.accepts_comments = response.accepts_comments and engine_response.is_stream
        context.sent_text = (
            SentText(self._limits.resumable_bytes)
            if engine_response.is_stream and can_resume(context.request)
            else None
        )
        engine_response.on_relayed = context.sent_text.add if context.sent_text is not None else None
        if (
            engine_response.is_stream and context.sent_text is None
        ):  # nobody will be asked again: thousands of streams need not keep their prompts
            context.fingerprint = context.body_fingerprint(self._poison_guard.fingerprint)
            context.http_request.body = b""
            context.request.release_body()
        engine_response.relay_to(response, lambda seconds: telemetry.record_inter_token(key, name, seconds))
        why = await self._relay_to_end(context, instance, engine_response, connection)
        if why is None:
            return True
        if why == "timeout" and engine_response.is_paused:
            context.client_disconnected = (
                True  # the silence is the client's: it has not read for so long that the engine was paused
            )
            response.abort()
            return False
        context.error = why
        if engine_response.is_stream:
            text = f"{_STREAM_ERROR_TEXTS.get(why, 'the engine failed')}; the answer is incomplete"
            response.end_with_error(error_event(text, f"stream_{why.replace('-', '_')}", context.http_request.id))
        else:
            response.abort()
        return False

    def _on_crash(self, context: RequestContext, instance: str, began: float | None) -> bool:
        """An engine broke off on a request that it had been sent at ``began``; whether no engine should get it any more."""
        now = self._now()
        return self._poison_guard.on_crash(
            context.body_fingerprint(self._poison_guard.fingerprint), instance, now if began is None else began, now
        )

    def _clear_suspicion(self, context: RequestContext, now: float) -> None:
        """An engine has done what the request asked for; hashes the body only when it may be a suspect's."""
        if context.handoff_record is not None and context.handoff_record.is_suspicious:
            return
        if context.fingerprint is not None or self._poison_guard.may_contain(context.request.body):
            self._poison_guard.on_answered(context.body_fingerprint(self._poison_guard.fingerprint), now)

    async def _relay_to_end(
        self, context: RequestContext, instance: Instance, engine_response: EngineResponse, connection: EngineConnection
    ) -> str | None:
        """Wait until the answer has been sent, perhaps its rest by another engine; None or what went wrong."""
        kept = SseKeepAlive(context.response, self._limits.keep_alive_seconds, self._pool.loop)
        try:
            if engine_response.is_stream:
                kept.start(engine_response)
            why = await engine_response.finished
            context.last_at, context.event_count = engine_response.last_at, engine_response.scanner.event_count
            context.record_usage(engine_response.scanner.usage)
            if why is None or (why == "timeout" and engine_response.is_paused):
                return why
            self._failures.on_stream_failed(context, instance.id, why)
            held = why == "cut" and self._on_crash(context, instance.id, context.dispatched_at)
            if context.sent_text is None or held:
                return why
            if not engine_response.is_complete:
                connection.abort()
            return await self._stream_resume.resume(context, context.sent_text, why, kept)
        finally:
            kept.stop()
            context.response.on_backpressure = None

    def relay_buffered(self, context: RequestContext, engine_response: EngineResponse, now: float) -> None:
        """Send a whole plain answer."""
        body, kind = engine_response.buffered_body, JSON_TYPE
        fields = relayed_headers(engine_response.headers, exclude=b"content-type") + self.response_headers(context, now)
        if context.request.is_passthrough and b"content-type" in engine_response.headers:
            kind = engine_response.headers[b"content-type"].decode("latin-1")
        if engine_response.status >= 400:
            context.error = "engine-refused"
            if not is_error_object(body):
                kind, body = JSON_TYPE, not_served_body(engine_response.status, context.http_request.id)
        renaming = _served_name_rewriter(context, engine_response)
        body = body if renaming is None else renaming.rewrite(body)
        context.response.send(engine_response.status, fields, body, content_type=kind)

    def response_headers(self, context: RequestContext, now: float) -> str:
        """The header fields that say where a request went and why, and how long that took."""
        where = (
            self._route_headers.get(context.instance_id) if context.instance is not None else route_header("gateway")
        )
        rule = context.decision.rule if context.decision is not None else "none"
        sent = context.dispatched_at
        begun = context.http_request.received_at
        times = server_timing(now - begun, -1.0) if sent is None else server_timing(sent - begun, now - sent)
        traced = context.trace.response_header if context.trace is not None else ""
        return f"{where}{rule}\r\nx-fairlead-decision: {context.id}\r\nserver-timing: {times}\r\n{traced}"


def _apply_backpressure(engine_response: EngineResponse, connection: EngineConnection, paused: bool) -> None:
    """The client keeps up, or not: so does the engine."""
    engine_response.is_paused = paused
    connection.set_paused(paused)


def _served_name_rewriter(context: RequestContext, engine_response: EngineResponse) -> ServedNameRewriter | None:
    """How the client comes to see the name that it asked for; None where the engine knows the model by its own, or says no JSON."""
    name = None if context.instance is None else context.instance.served_name
    if name is None or not (
        engine_response.is_stream or _JSON_OR_EVENTS.search(engine_response.headers.get(b"content-type", b""))
    ):
        return None
    return ServedNameRewriter(name, context.request.fields.model)


def _round_half_even(tokens: float) -> int:
    """As ``round`` does it, without the call."""
    whole = int(tokens)
    more = tokens - whole
    return whole + 1 if more > 0.5 or (more == 0.5 and whole % 2 == 1) else whole


def _content_length(fields: dict[bytes, bytes]) -> int | None:
    value = fields.get(b"content-length", b"")
    return int(value) if value.isdigit() else None
