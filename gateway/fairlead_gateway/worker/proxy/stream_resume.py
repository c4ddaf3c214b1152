"""After the first byte: another engine says the rest of a stream that broke, when the request allows that. Once, not again."""

from collections.abc import Callable
from functools import partial

from fairlead.decision import Decision
from fairlead.fleet.model import Instance
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.errors import NoReadyInstance
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.telemetry.decision_log import CONTINUATION_RULE
from fairlead_gateway.worker.dispatch.router_registry import RouterRegistry
from fairlead_gateway.worker.observability.trace_record import ATTEMPT, CONTINUATION
from fairlead_gateway.worker.openai.request_timeout import remaining_timeout_header
from fairlead_gateway.worker.openai.served_name import body_with_model
from fairlead_gateway.worker.proxy.continuation import SentText, resume_body, splice_events, total_usage
from fairlead_gateway.worker.proxy.sse_keepalive import SseKeepAlive
from fairlead_gateway.worker.request_context import RequestContext
from fairlead_gateway.worker.resilience.failure_attribution import FailureAttribution
from fairlead_gateway.worker.resilience.retry import CRASH_CAUSES, RetryBudget
from fairlead_gateway.worker.upstream.connection import ConnectionPool, EngineConnection, UpstreamError
from fairlead_gateway.worker.upstream.request_encoder import encode_request
from fairlead_gateway.worker.upstream.response import EngineResponse


class StreamResume:
    """Continues streams. One object serves all requests of a gateway.

    ``chosen`` makes a choice the job's, under the attempt's number.
    """

    def __init__(
        self,
        *,
        routers: RouterRegistry,
        pool: ConnectionPool,
        telemetry: MetricsRecorder,
        record_choice: Callable[[RequestContext, Instance, Decision, int], None],
        clock: Clock,
        limits: Limits,
        failures: FailureAttribution,
        budget: RetryBudget,
        apply_backpressure: Callable[[EngineResponse, EngineConnection, bool], None],
        on_crash: Callable[[RequestContext, str, float], bool],
    ) -> None:
        self._routers = routers
        self._pool = pool
        self._telemetry = telemetry
        self._record_choice = record_choice
        self._clock = clock
        self._limits = limits
        self._failures = failures
        self._budget = budget
        self._apply_backpressure = apply_backpressure
        self._on_crash = on_crash

    async def resume(self, context: RequestContext, said: SentText, why: str, kept: SseKeepAlive) -> str | None:
        """The rest of the answer from another instance: None when it is complete now, else what went wrong."""
        if context.trace is not None:
            context.trace.finish_span(ATTEMPT, why)
        if not said.parse():
            return why
        body = resume_body(context.request, said)
        instance = self._choose_instance(context, why) if body is not None else None
        if body is None or instance is None:
            return why
        if instance.served_name is not None:
            body = body_with_model(instance.served_name, body)
        key, breaker = context.request.model_key, self._failures.outlier_detector
        connection: EngineConnection | None = None
        engine_response: EngineResponse | None = None
        breaker.on_dispatch(instance.id)
        began = self._clock.now()
        try:
            connection = self._pool.take_idle(instance.url) or await self._pool.connect(instance.url)
            engine_response = self._send_request(context, instance, body, said, connection)
            broken = await engine_response.verdict
            if broken is not None and not broken.is_stale:
                self._failures.on_stream_failed(context, instance.id, broken.cause)
                if broken.cause in CRASH_CAUSES:
                    self._on_crash(context, instance.id, began)
            if (
                broken is not None
                or not engine_response.is_stream
                or engine_response.scanner.error is not None
                or engine_response.scanner.is_aborted
            ):
                return why
            breaker.on_success(instance.id, self._clock.now())
            rest = await self._relay(context, instance, engine_response, connection, said, kept)
            if rest == "cut":
                self._on_crash(context, instance.id, began)
            return rest
        except UpstreamError as error:
            self._failures.on_stream_failed(context, instance.id, error.cause)
            return why
        finally:
            breaker.on_inconclusive(instance.id)
            done = (
                engine_response is not None
                and engine_response.finished.done()
                and engine_response.finished.result() is None
            )
            if (
                connection is not None
                and engine_response is not None
                and not engine_response.is_complete
                and not engine_response.scanner.is_done
            ):
                connection.abort()
            self._telemetry.record_resumption(key, "whole" if done else "broken")

    def _choose_instance(self, context: RequestContext, why: str) -> Instance | None:
        now = self._clock.now()
        assert context.instance is not None
        if why not in ("cut", "gone") and not self._budget.take(now):
            return None
        try:
            decision = self._routers.choose(
                context.request.model_key, context.route_request, now, frozenset({context.instance.id})
            )
        except NoReadyInstance:
            return None
        instance = (
            self._routers.ready_instance(context.request.model_key, decision.chosen)
            if decision.chosen is not None
            else None
        )
        if instance is None:
            return None
        decision = decision.with_text(
            rule=CONTINUATION_RULE, reason=f"continued after {why}; {decision.rule}: {decision.reason}"
        )
        self._record_choice(context, instance, decision, context.attempt_number + 1)
        return instance

    def _send_request(
        self, context: RequestContext, instance: Instance, body: bytes, said: SentText, connection: EngineConnection
    ) -> EngineResponse:
        head = context.http_request.head
        more = remaining_timeout_header(head, context.deadline, self._clock.now())
        if context.trace is not None:
            more += context.trace.start_span(instance, CONTINUATION, CONTINUATION_RULE)
        message = encode_request(
            instance.url, head.path, head, body, context.http_request.id, dp_rank=instance.dp_rank, extra_headers=more
        )
        patience = context.stall_timeout = self._failures.resume_stall_timeout(context, connection.activity)
        engine_response = EngineResponse(
            stream_requested=True,
            strip_usage=context.request.strip_usage,
            clock=self._clock,
            limits=self._limits,
            loop=self._pool.loop,
            on_silence=patience.on_silence,
        )
        engine_response.rewrite_events = partial(splice_events, sent=said)
        if context.router is not None:
            context.router.on_dispatch(context.route_request, instance.id, self._clock.now())
        connection.send_request(message, engine_response, patience.start(self._clock.now()))
        return engine_response

    async def _relay(
        self,
        context: RequestContext,
        instance: Instance,
        engine_response: EngineResponse,
        connection: EngineConnection,
        said: SentText,
        kept: SseKeepAlive,
    ) -> str | None:
        now, key, name, telemetry = self._clock.now(), context.request.model_key, instance.id, self._telemetry
        if context.router is not None:
            context.router.on_first_token(context.route_request.id, now)
        if context.last_at is not None:
            telemetry.record_inter_token(key, name, now - context.last_at)
        context.response.on_backpressure = partial(self._apply_backpressure, engine_response, connection)
        kept.start(engine_response)
        engine_response.relay_to(context.response, lambda seconds: telemetry.record_inter_token(key, name, seconds))
        why = await engine_response.finished
        context.last_at, context.event_count = (
            engine_response.last_at,
            context.event_count + engine_response.scanner.event_count,
        )
        context.record_usage(total_usage(engine_response.scanner.usage, said))
        if why is not None:
            self._failures.on_stream_failed(context, name, why)
        return why
