"""One try of a request at one instance, and the records of that attempt.

Fast path, forwarder and stream resumption all make an `Attempt`; each handles the response itself.
An attempt is encoded, dispatched, sent, and finished exactly once.
"""

from collections.abc import Callable

from fairlead.decision import Decision
from fairlead.fleet.model import Instance
from fairlead_gateway.routing import ModelRouter
from fairlead_gateway.worker.adapters.adapter_loader import AdapterLoader
from fairlead_gateway.worker.adapters.instance_adapters import AdapterLease
from fairlead_gateway.worker.dispatch.admission_queue import AdmissionController
from fairlead_gateway.worker.dispatch.engine_address import EngineAddresses
from fairlead_gateway.worker.dispatch.router_registry import RoleRouters
from fairlead_gateway.worker.observability.trace_record import ATTEMPT, CONTINUATION
from fairlead_gateway.worker.openai.request_timeout import TIMEOUT_HEADER, remaining_timeout_header
from fairlead_gateway.worker.openai.served_name import body_with_model, target_with_model
from fairlead_gateway.worker.proxy.continuation import SentText
from fairlead_gateway.worker.proxy.request_recorder import RequestRecorder
from fairlead_gateway.worker.quota.generated_tokens import MAX_TOKENS_PER_EVENT
from fairlead_gateway.worker.reporting.reporters import Reporters
from fairlead_gateway.worker.request_context import RequestContext, RoutedChoice
from fairlead_gateway.worker.resilience.failure_attribution import FailureAttribution, needs_core
from fairlead_gateway.worker.resilience.poison_requests import PoisonRequestGuard
from fairlead_gateway.worker.runtime import WorkerRuntime
from fairlead_gateway.worker.upstream.connection import EngineConnection, UpstreamError
from fairlead_gateway.worker.upstream.connection_pool import ConnectionPool
from fairlead_gateway.worker.upstream.hop_header import create_hop_id
from fairlead_gateway.worker.upstream.request_encoder import (
    RequestPrefixCache,
    allowed_header_text,
    encode_external_request,
    encode_request,
)
from fairlead_gateway.worker.upstream.response import EngineResponse


class Dispatcher:
    """The creator of attempts, with the parts that every attempt is recorded with.

    Why 8 parameters: each is one of these parts.
    """

    def __init__(
        self,
        runtime: WorkerRuntime,
        *,
        routers: RoleRouters,
        admission: AdmissionController,
        failures: FailureAttribution,
        poison_guard: PoisonRequestGuard,
        recorder: RequestRecorder,
        reporters: Reporters,
    ) -> None:
        self.runtime = runtime
        self.now = runtime.now
        self.routers = routers
        self.admission = admission
        self.failures = failures
        self.outlier_detector = failures.outlier_detector
        self.poison_guard = poison_guard
        self.recorder = recorder
        self.prompt_samples = reporters.prompt_samples
        self.timings = reporters.timings
        self.adapter_loader: AdapterLoader | None = None
        self._addresses = EngineAddresses()
        self.request_prefixes = RequestPrefixCache(create_hop_id(routers.secret))

    def create_attempt(
        self,
        context: RequestContext,
        instance: Instance,
        decision: Decision,
        number: int,
        now: float,
        sent: SentText | None = None,
    ) -> "Attempt":
        """Records the choice of an instance and returns the attempt at it.

        number: counts from 1.
        sent: the text that the client has already, if this attempt resumes a stream.
        """
        choice = RoutedChoice(number, self._addresses.of(instance), decision)
        tokens = self.routers.prompt_tokens(context.request.model_key, context.route_request)
        self.recorder.record_choice(context, choice, tokens, now)
        return Attempt(self, context, choice, sent)

    def create_copy(self, context: RequestContext, instance: Instance, decision: Decision) -> "Attempt":
        """Returns the attempt of a copied request, whose choice is not recorded."""
        choice = context.choice = RoutedChoice(1, self._addresses.of(instance), decision)
        return Attempt(self, context, choice, None)


class Attempt:
    """One try of a request at one instance.

    adapter_lease: the use of the request's adapter, until the attempt is finished
    connection, message: set before the message is sent
    engine_response: set when the message is sent
    has_room: it has waited for the instance, which can start it now and counts it as load
    has_verdict: it is known whether the response can be relayed
    error: why it cannot be relayed; None if no connection error is known
    """

    __slots__ = (
        "_dispatcher",
        "_is_finished",
        "_is_timed",
        "_router",
        "_sent",
        "adapter_lease",
        "address",
        "connection",
        "context",
        "dispatched_at",
        "engine_response",
        "error",
        "has_room",
        "has_verdict",
        "instance",
        "instance_id",
        "message",
    )

    def __init__(
        self, dispatcher: Dispatcher, context: RequestContext, choice: RoutedChoice, sent: SentText | None
    ) -> None:
        self._dispatcher = dispatcher
        self._sent = sent
        self._router: ModelRouter | None = None
        self._is_timed = False
        self._is_finished = False
        self.context = context
        self.address = choice.address
        self.instance = choice.instance
        self.instance_id: str = choice.instance_id
        self.message: list[bytes] = []
        self.connection: EngineConnection | None = None
        self.dispatched_at: float | None = None
        self.engine_response: EngineResponse | None = None
        self.adapter_lease: AdapterLease | None = None
        self.has_room = False
        self.has_verdict = False
        self.error: UpstreamError | None = None

    def attach_engine_message(self, body: bytes) -> None:
        """Builds the message: the request with `body` as this instance gets it."""
        context, address, dispatcher = self.context, self.address, self._dispatcher
        head, request, choice = context.http_request.head, context.request, context.choice
        extra = ""
        if context.deadline is not None and head.get_rare(TIMEOUT_HEADER) is not None:
            extra = remaining_timeout_header(head, context.deadline, dispatcher.now())
        if context.trace is not None and choice is not None:
            kind = ATTEMPT if self._sent is None else CONTINUATION
            extra += context.trace.start_span(self.instance, kind, choice.decision.rule)
        if request.entry.allowed_headers:
            extra += allowed_header_text(head, request.entry.allowed_headers)
        target, adapter = request.target, request.adapter
        name = address.served_name if adapter is None else address.adapter_model(adapter.name)
        if name is not None:
            body = body_with_model(name, body)
            target = None if target is None else target_with_model(name, target)
        prefix = dispatcher.request_prefixes.get(request.method, head.path if target is None else target, address.url)
        if address.leaves_cluster:
            self.message = encode_external_request(prefix, body, context.id)
            return
        self.message = encode_request(prefix, head, body, context.id, dp_rank=address.dp_rank, extra_headers=extra)

    def on_dispatch(self, now: float) -> None:
        """Records the attempt with router, admission, reports and outlier detection."""
        context, dispatcher = self.context, self._dispatcher
        route_request = context.route_request
        router = self._router = dispatcher.routers.router(context.request.model_key)
        assert router is not None
        has_transfer = context.transfer is not None
        is_counted = context.admission.counted_at == self.instance_id
        if not is_counted:
            router.on_dispatch(route_request, self.instance_id, now, prefilled_elsewhere=has_transfer, is_waiting=False)
        dispatcher.admission.on_dispatch(context, now, is_planned=is_counted)
        if dispatcher.prompt_samples is not None and router.is_indexed and context.request.adapter is None:
            dispatcher.prompt_samples.offer(context.request, route_request)
        timings = dispatcher.timings
        if timings is not None and not has_transfer and context.choice is not None:
            self._is_timed = True
            decision = context.choice.decision
            matched = decision.matched_tokens if decision.source is None else None
            tokens = router.prompt_tokens(route_request) + (0 if self._sent is None else self._sent.tokens)
            timings.on_dispatch(route_request.id, self.instance_id, now, tokens, 0.0 if matched is None else matched)
        dispatcher.outlier_detector.on_dispatch(self.instance_id)

    async def acquire_adapter(self) -> None:
        """Waits until the instance has the request's adapter. Raises AttemptFailure."""
        dispatcher, context = self._dispatcher, self.context
        loader, adapter, use = dispatcher.adapter_loader, context.request.adapter, context.adapter_use
        assert loader is not None
        assert adapter is not None
        assert use is not None
        started_at = dispatcher.now()
        try:
            self.adapter_lease = await loader.acquire(context.request.model_key, adapter, self.instance, use)
        finally:
            if use.load_seconds is not None:
                now = dispatcher.now()
                context.admission.queued_seconds += now - started_at
                if self._is_timed and dispatcher.timings is not None:  # else the load counts as prefill
                    self._is_timed = False
                    dispatcher.timings.on_abandoned(context.route_request.id, now)

    def send(self, on_verdict: Callable[[UpstreamError | None], None] | None = None) -> None:
        """Sends the message; the verdict is awaited from the response, or given to `on_verdict`."""
        context, dispatcher, connection = self.context, self._dispatcher, self.connection
        assert connection is not None
        request, failures = context.request, dispatcher.failures
        if self.address.dp_rank is not None:
            connection.select_rank(self.address.dp_rank)
        stall_timeout = context.stall_timeout = (
            failures.stall_timeout(context, connection.activity)
            if self._sent is None
            else failures.resume_stall_timeout(context, connection.activity)
        )
        engine_response = self.engine_response = EngineResponse(
            dispatcher.runtime,
            stream_requested=request.stream,
            strip_usage=request.strip_usage,
            is_passthrough=request.is_passthrough,
            on_silence=stall_timeout.on_silence,
            on_verdict=on_verdict,
        )
        engine_response.namespace = self.address.namespace
        engine_response.choices = request.sequences
        engine_response.counts_passed = request.is_passthrough and request.is_counted
        self.has_verdict, self.error = False, None
        now = self.dispatched_at = dispatcher.now()
        if self._sent is None:
            context.result.dispatched_at = now
        connection.send_request(self.message, engine_response, stall_timeout.start(now), needs_core=needs_core(context))

    def now(self) -> float:
        """Returns the clock's monotonic seconds."""
        return self._dispatcher.now()

    def on_first_token(self, now: float) -> None:
        """Records that the prefill is over; only called for streams."""
        context, dispatcher, engine_response = self.context, self._dispatcher, self.engine_response
        assert engine_response is not None
        if self._router is not None:
            self._router.on_first_token(context.route_request.id, now)
            dispatcher.admission.on_first_token(context, now)
        if self._is_timed and dispatcher.timings is not None and engine_response.first_at is not None:
            dispatcher.timings.on_first_token(context.route_request.id, engine_response.first_at)

    def finish(self, is_complete: bool, now: float) -> None:
        """Removes the attempt from the load of its instance. Later calls do nothing.

        Records the tokens if the response is complete.
        """
        router = self._router
        if self.adapter_lease is not None:
            self.adapter_lease.release()
        if self.engine_response is not None:
            self.engine_response.release_buffer()
        if self._is_finished or router is None:
            return
        self._is_finished = True
        context, dispatcher = self.context, self._dispatcher
        result, request_id, output = context.result, context.route_request.id, self._output_tokens()
        if is_complete and not 400 <= result.status < 500:
            if len(dispatcher.poison_guard) and result.status < 400:
                self._clear_suspicion(now)
            is_transferred = context.handoff is not None and context.handoff.is_transferred
            router.on_finish(
                request_id,
                now,
                prompt_tokens=result.prompt_tokens,
                cached_tokens=None if is_transferred else result.cached_tokens,
                output_tokens=output,
            )
            if result.prompt_tokens:
                dispatcher.routers.learn_prompt(
                    context.request.model_key, context.caller, context.route_request, result.prompt_tokens
                )
            if self._is_timed and dispatcher.timings is not None:
                if self._is_measurable(output):
                    dispatcher.timings.on_finish(request_id, now, result.cached_tokens, output)
                else:
                    dispatcher.timings.on_unmeasured(request_id, now)
        else:
            engine_response = self.engine_response
            if engine_response is not None:
                self._count_events(engine_response)
            is_computed = not is_complete and engine_response is not None and engine_response.first_at is not None
            router.on_abandoned(request_id, now, is_computed=is_computed)
            if self._is_timed and dispatcher.timings is not None:
                dispatcher.timings.on_abandoned(request_id, now)
        dispatcher.outlier_detector.on_inconclusive(self.instance_id)
        dispatcher.admission.on_finish(context, is_complete, output, now)

    def _is_measurable(self, output: int | None) -> bool:
        """Whether each output token of a response took a step of its own, and an event shows it."""
        context, engine_response = self.context, self.engine_response
        if context.route_request.sequences > 1:
            return False
        if output is None or engine_response is None or not context.request.stream:
            return True
        return output <= engine_response.event_count * MAX_TOKENS_PER_EVENT

    def _count_events(self, engine_response: EngineResponse) -> None:
        """Records the events of a stream that was not relayed to its end."""
        earlier = 0 if self._sent is None else self._sent.tokens
        result = self.context.result
        result.event_count = max(result.event_count, earlier + engine_response.event_count)

    def on_crash(self) -> bool:
        """Records that the engine broke off on the body; returns whether the body is
        blocked now.
        """
        guard, now = self._dispatcher.poison_guard, self._dispatcher.now()
        sent_at = now if self.dispatched_at is None else self.dispatched_at
        return guard.on_crash(self.context.body_fingerprint(guard.fingerprint), self.instance_id, sent_at, now)

    def set_paused(self, is_paused: bool) -> None:
        """Pauses or resumes reading from the engine: the client's backpressure.

        Does nothing once the response is complete: the connection is for other requests then.
        """
        engine_response = self.engine_response
        if engine_response is not None and self.connection is not None and not engine_response.is_complete:
            engine_response.is_paused = is_paused
            self.connection.set_paused(is_paused)

    def abort_unfinished(self) -> None:
        """Closes the connection unless the engine has sent its whole response.

        The end of a stream whose last event has come is awaited for a short time.
        """
        engine_response = self.engine_response
        if self.connection is not None and engine_response is not None and not engine_response.is_complete:
            self.connection.abandon(engine_response, has_ended=engine_response.scanner.is_done)

    async def send_until_verdict(
        self, pool: ConnectionPool, rewrite_events: Callable[[list[bytes]], list[bytes]] | None = None
    ) -> tuple[EngineResponse, UpstreamError | None]:
        """Sends the message and returns the response with its verdict. Raises as `connect` does.

        Sends it again over a new connection if the idle one was stale.

        rewrite_events: of the response.
        """
        url = self.address.url
        self.connection = pool.take_idle(url)
        while True:
            if self.connection is None:
                self.connection = await pool.connect(url)
            self.send()
            engine_response = self.engine_response
            assert engine_response is not None
            engine_response.rewrite_events = rewrite_events
            error = await engine_response.verdict
            if error is None or not error.is_stale:
                return engine_response, error
            self.reset()

    def reset(self) -> None:
        """Prepares the attempt for another connection to the same instance."""
        self.connection = None
        self.engine_response = None
        self.has_verdict = False

    def _output_tokens(self) -> int | None:
        """Returns the tokens that this attempt's engine generated; None if it reported none."""
        tokens = self.context.result.output_tokens
        return tokens if tokens is None or self._sent is None else max(0, tokens - self._sent.tokens)

    def _clear_suspicion(self, now: float) -> None:
        """Clears the body of suspicion; hashes it only if it may be suspect."""
        context, guard = self.context, self._dispatcher.poison_guard
        record = context.handoff_record
        if record is not None and record.is_suspicious:
            return
        if context.fingerprint is not None or guard.may_contain(context.request.body):
            guard.on_answered(context.body_fingerprint(guard.fingerprint), now)
