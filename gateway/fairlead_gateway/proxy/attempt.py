"""One try of a request at one instance, and the records of that attempt.

Fast path, forwarder and stream resumption all make an `Attempt`; each handles the response itself.
An attempt is encoded, dispatched, sent, and finished exactly once.

Checks whether an engine's response can go to the client, or is a failure of the attempt.
"""

import re
from collections.abc import Callable
from typing import Final

import msgspec

from fairlead.decision import Decision
from fairlead.fleet.model import Instance
from fairlead_gateway.adapters.worker.adapter_loader import AdapterLease, AdapterLoader
from fairlead_gateway.admission.worker.admission_queue import AdmissionController
from fairlead_gateway.admission.worker.model_admission import ModelAdmission
from fairlead_gateway.errors import EngineLimited, error_body
from fairlead_gateway.journal import ABANDONED, FINISHED, UNMEASURED, Journal
from fairlead_gateway.limits.worker.amounts import MAX_TOKENS_PER_EVENT
from fairlead_gateway.native import SCAN_NAMED_USAGE, SCAN_USAGE
from fairlead_gateway.openai.model_names import body_with_model, target_with_model
from fairlead_gateway.openai.request import TIMEOUT_HEADER, remaining_timeout_header
from fairlead_gateway.proxy.request_recorder import RequestRecorder
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.resilience.poison_requests import PoisonRequestGuard
from fairlead_gateway.resilience.worker.failure_attribution import FailureAttribution, needs_core
from fairlead_gateway.resilience.worker.retry import (
    ADAPTER_MISSING,
    FIELD_REFUSED,
    MAX_RETRY_AFTER_SECONDS,
    TOKENS_REFUSED,
    AttemptFailure,
)
from fairlead_gateway.router_registry import RoleRouters
from fairlead_gateway.routing import ModelRouter
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.telemetry.decision_log import DecisionRecord
from fairlead_gateway.telemetry.worker.trace_record import ATTEMPT, CONTINUATION
from fairlead_gateway.upstream.connection import EngineConnection, UpstreamError
from fairlead_gateway.upstream.connection_pool import ConnectionPool
from fairlead_gateway.upstream.engine_address import EngineAddress
from fairlead_gateway.upstream.request_encoder import (
    RequestPrefixCache,
    allowed_header_text,
    create_hop_id,
    encode_external_request,
    encode_request,
)
from fairlead_gateway.upstream.response import EngineResponse
from fairlead_gateway.upstream.response_schemas import PLAIN_RESPONSE_DECODER, stored_answer
from fairlead_gateway.upstream.stream_record import StreamRecord, TokenTap
from fairlead_gateway.upstream.usage import (
    EMPTY,
    GARBAGE,
    MAX_HIDDEN_BYTES,
    InBandError,
    Usage,
    counts_of_long_answer,
    engine_words,
    error_in,
    has_failed_finish,
    hide_accounts,
    parse_in_band_error,
    read_usage,
    refusal_status,
    scanned_usage,
    usage_of_named,
)

_MAX_PARSED_BYTES: Final = 65_536
_TAIL_BYTES: Final = 4_096
_MAX_ADDRESSES: Final = 4_096
_ACCOUNT_STATUSES: Final = frozenset({401, 402, 403})
_ACCOUNT_WORDS: Final = re.compile(rb"\b(?:organi[sz]ation|account|billing|payment|credits?)\b", re.IGNORECASE)
_OWN_TOKEN_REFUSED: Final = InBandError(502, "the engine refuses the gateway's own token", "token-refused")
_UNKNOWN_PATH_WORDS: Final = ("", "Not Found", "Method Not Allowed", "File Not Found")
"""The words of FastAPI, and of llama.cpp."""
_OVERLOAD_STATUSES: Final = frozenset({429, 503, 529})
_WRONG_MODEL = re.compile(rb'"param"\s*:\s*"model"|The model `[^`]{1,512}` does not exist')  # embeddings name no param
_NOT_FOUND: Final = re.compile(rb'"(?:NotFoundError|not_found_error|model_not_found)"')
"""The types of vLLM, those under `/v1/messages`, and the code of OpenAI."""
_MISSING_ADAPTERS: Final = (b"LoRA adapter that has never been loaded", b"requested LoRA adapters are not loaded")
"""Words of SGLang, with status 400."""
_MAX_RELOADS: Final = 3
"""Loads of an adapter for one request, since engines had lost it."""
_USAGE_FIELD: Final = b"stream_options"
_TOKENS_FIELD: Final = b"return_token_ids"
_NO_TRANSLATION: Final = "; no API is translated into another"
_LIMITED: Final = 429
_NO_SUCH_FUNCTION: Final = 501
"""For whatever request, so the client's business like every 4xx. vLLM, llama.cpp, TensorRT-LLM."""
_CHOICES: Final = b'"choices"'
_ACCEPTED: Final = 202
_ANSWERED: Final = (200, _ACCEPTED)
_REFUSALS: Final = (400, 422)
_SCAN_USAGE: Final = SCAN_USAGE
_SCAN_NAMED_USAGE: Final = SCAN_NAMED_USAGE
_DECODE_RESPONSE: Final = PLAIN_RESPONSE_DECODER.decode
_DECODE_ERRORS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class AttemptParts:
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
        journal: Journal | None,
    ) -> None:
        self.runtime = runtime
        self.now = runtime.now
        self.routers = routers
        self.admission = admission
        self.late_binding_queue = admission.late_binding_queue
        self.failures = failures
        self.outlier_detector = failures.outlier_detector
        self.poison_guard = poison_guard
        self.recorder = recorder
        self.journal = journal
        self.adapter_loader: AdapterLoader | None = None
        self._addresses: dict[str, EngineAddress] = {}  # of the instances that were chosen lately
        self.request_prefixes = RequestPrefixCache(create_hop_id(routers.secret))

    def create_attempt(
        self,
        context: RequestContext,
        instance: Instance,
        decision: Decision,
        number: int,
        now: float,
        sent_tokens: int | None = None,
    ) -> "Attempt":
        """Records the choice of an instance and returns the attempt at it.

        number: counts from 1.
        sent_tokens: those that the client has already; None unless this attempt continues a stream.
        """
        address = self._addresses.get(instance.id)
        if address is None or address.instance is not instance:
            address = self._remember_address(instance)
        tokens = self.routers.prompt_tokens(context.request.model_key, context.route_request)
        self.recorder.record_choice(context, address, decision, number, tokens, now)
        return Attempt(self, context, address, sent_tokens)

    def create_copy(self, context: RequestContext, instance: Instance, decision: Decision) -> "Attempt":
        """Returns the attempt of a copied request, whose choice is not recorded."""
        address = context.address = self._remember_address(instance)
        context.choice = DecisionRecord(context.id, 0.0, context.request.model_key, decision, 1, 0.0)
        return Attempt(self, context, address, None)

    def _remember_address(self, instance: Instance) -> EngineAddress:
        if len(self._addresses) >= _MAX_ADDRESSES:
            self._addresses.clear()
        address = self._addresses[instance.id] = EngineAddress(instance)
        return address


class Attempt:
    """One try of a request at one instance.

    adapter_lease: the use of the request's adapter, until the attempt is finished
    connection, message: set before the message is sent
    engine_response: set when the message is sent
    kept: what is kept of its stream, so that another instance can continue it; None without one
    has_room: it has waited for the instance, which can start it now and counts it as load
    has_verdict: it is known whether the response can be relayed
    error: why it cannot be relayed; None if no connection error is known
    """

    __slots__ = (
        "_admission",
        "_is_finished",
        "_journal",
        "_parts",
        "_router",
        "_sent_tokens",
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
        "kept",
        "message",
    )

    def __init__(
        self, parts: AttemptParts, context: RequestContext, address: EngineAddress, sent_tokens: int | None
    ) -> None:
        self._parts = parts
        self._sent_tokens = sent_tokens
        self.kept: StreamRecord | None = None
        self._router: ModelRouter | None = None
        self._admission: ModelAdmission | None = None
        self._journal: Journal | None = None  # None: learned profiles leave the attempt out
        self._is_finished = False
        self.context = context
        self.address = address
        self.instance = address.instance
        self.instance_id = address.id
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
        context, address, parts = self.context, self.address, self._parts
        request = context.request
        head, choice = context.http_request.head, context.choice
        extra = ""
        if context.deadline is not None and head.get_rare(TIMEOUT_HEADER) is not None:
            extra = remaining_timeout_header(head, context.deadline, parts.now())
        if context.trace is not None and choice is not None:
            kind = ATTEMPT if self._sent_tokens is None else CONTINUATION
            extra += context.trace.start_span(self.instance, kind, choice.decision.rule)
        if request.entry.allowed_headers:
            extra += allowed_header_text(head, request.entry.allowed_headers)
        target, name = request.target, self._engine_model()
        if name is not None:
            body = body_with_model(name, body)
            target = None if target is None else target_with_model(name, target)
        prefix = parts.request_prefixes.get(request.method, head.path if target is None else target, address.url)
        if request.files is not None:
            body, prefix = request.files.encode(body, context.id), prefix.of_form(context.id)
        if address.leaves_cluster:
            self.message = encode_external_request(prefix, body, context.id)
            return
        self.message = encode_request(prefix, head, body, context.id, dp_rank=address.dp_rank, extra_headers=extra)

    def named_body(self, body: bytes) -> bytes:
        name = self._engine_model()
        return body if name is None else body_with_model(name, body)

    def _engine_model(self) -> str | None:
        adapter = self.context.request.adapter
        return self.address.served_name if adapter is None else self.address.adapter_model(adapter.name)

    def on_dispatch(self, now: float) -> None:
        """Records the attempt with router, admission, reports and outlier detection."""
        context, parts = self.context, self._parts
        route_request = context.route_request
        router = self._router = parts.routers.router(context.request.model_key)
        assert router is not None
        is_counted, has_transfer = context.counted_at == self.instance_id, context.transfer is not None
        if not is_counted:
            router.on_dispatch(route_request, self.instance_id, now, prefilled_elsewhere=has_transfer, is_waiting=False)
        if context.choice is not None:
            matched_tokens = context.choice.decision.matched_tokens
            context.result.predicted_cached_tokens = (
                None
                if matched_tokens is None
                else int(router.predict_cached_tokens(route_request, self.instance_id, matched_tokens))
            )
        admission = self._admission = parts.admission.models.get(context.request.model_key)
        if admission is not None:
            admission.on_dispatch(context, now, is_planned=is_counted, generated=self._sent_tokens or 0)
        journal = parts.journal
        if journal is not None and router.is_indexed:
            tap = self.kept if isinstance(self.kept, TokenTap) else None
            journal.samples.offer(context.request, route_request, tap)
        if journal is not None and not has_transfer and context.choice is not None:
            self._journal = journal
            decision = context.choice.decision
            matched = decision.matched_tokens if decision.source is None else None
            tokens = router.prompt_tokens(route_request) + (0 if self._sent_tokens is None else self._sent_tokens)
            cached = 0.0 if matched is None else matched
            journal.on_dispatch(route_request.id, self.instance_id, now, tokens, cached, decision.loaded)
        if self.instance_id in parts.outlier_detector.unhealthy:
            parts.outlier_detector.on_dispatch(self.instance_id)

    async def acquire_adapter(self) -> None:
        """Waits until the instance has the request's adapter. Raises AttemptFailure."""
        parts, context = self._parts, self.context
        loader, adapter, use = parts.adapter_loader, context.request.adapter, context.adapter_use
        assert loader is not None
        assert adapter is not None
        assert use is not None
        started_at = parts.now()
        try:
            self.adapter_lease = await loader.acquire(context.request.model_key, adapter, self.instance, use)
        finally:
            if use.load_seconds is not None:
                now = parts.now()
                context.result.queued_seconds += now - started_at
                if self._journal is not None:  # else the load counts as prefill
                    self._journal.on_end(ABANDONED, context.route_request.id, now)
                    self._journal = None

    def send(self, on_verdict: Callable[[UpstreamError | None], None] | None = None) -> None:
        """Sends the message; the verdict is awaited from the response, or given to `on_verdict`."""
        context, parts, connection = self.context, self._parts, self.connection
        assert connection is not None
        request, failures = context.request, parts.failures
        if self.address.dp_rank is not None:
            connection.select_rank(self.address.dp_rank)
        stall_timeout = context.stall_timeout = (
            failures.stall_timeout(context, connection.activity)
            if self._sent_tokens is None
            else failures.resume_stall_timeout(context, connection.activity)
        )
        engine_response = self.engine_response = EngineResponse(
            parts.runtime,
            stream_requested=request.stream,
            strip_usage=request.strip_usage,
            is_passthrough=request.is_passthrough,
            on_silence=stall_timeout.on_silence,
            on_verdict=on_verdict,
        )
        engine_response.namespace = self.address.namespace
        engine_response.choices = request.sequences
        engine_response.grammar = request.dialect.grammar
        engine_response.is_external = self.address.leaves_cluster
        engine_response.tokens = self.kept if isinstance(self.kept, TokenTap) else None
        self.has_verdict, self.error = False, None
        now = self.dispatched_at = parts.now()
        if self._sent_tokens is None:
            context.result.dispatched_at = now
        connection.send_request(self.message, engine_response, stall_timeout.start(now), needs_core=needs_core(context))

    def now(self) -> float:
        """Returns the clock's monotonic seconds."""
        return self._parts.now()

    def on_first_token(self, now: float) -> None:
        """Records that the prefill is over; only called for streams."""
        context, parts, engine_response = self.context, self._parts, self.engine_response
        assert engine_response is not None
        if self._router is not None:
            self._router.on_first_token(context.route_request.id, now)
            parts.late_binding_queue.schedule_dispatch(context.request.model_key)
            if self._admission is not None:
                self._admission.on_first_token(context, now)
        if self._journal is not None and engine_response.first_at is not None:
            self._journal.on_first_token(context.route_request.id, engine_response.first_at)

    def finish(self, is_complete: bool, now: float) -> None:
        """Removes the attempt from the load of its instance. Later calls do nothing.

        Records the tokens if the response is complete.
        """
        router = self._router
        if self.adapter_lease is not None:
            self.adapter_lease.release()
        if self.engine_response is not None:
            self.engine_response.release_buffer()
        if self.kept is not None:
            self.kept.release()
            self.kept = None
        if self._is_finished or router is None:
            return
        self._is_finished = True
        context, parts, journal = self.context, self._parts, self._journal
        result, request_id, output = context.result, context.route_request.id, self._output_tokens()
        if is_complete and not 400 <= result.status < 500:
            if len(parts.poison_guard) and result.status < 400:
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
                parts.routers.learn_prompt(
                    context.request.model_key, context.caller, context.route_request, result.prompt_tokens
                )
            if journal is not None and self._is_measurable(output):
                journal.on_end(FINISHED, request_id, now, result.cached_tokens, output)
            elif journal is not None:
                journal.on_end(UNMEASURED, request_id, now)
        else:
            engine_response = self.engine_response
            if engine_response is not None:
                self._count_events(engine_response)
            is_computed = not is_complete and engine_response is not None and engine_response.first_at is not None
            router.on_abandoned(request_id, now, is_computed=is_computed)
            if journal is not None:
                journal.on_end(ABANDONED, request_id, now)
        if self.instance_id in parts.outlier_detector.unhealthy:
            parts.outlier_detector.on_inconclusive(self.instance_id)
        parts.late_binding_queue.schedule_dispatch(context.request.model_key)
        if self._admission is not None:
            self._admission.on_finish(context, is_complete, output, now)

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
        earlier = 0 if self._sent_tokens is None else self._sent_tokens
        result = self.context.result
        result.event_count = max(result.event_count, earlier + engine_response.event_count)

    def on_crash(self) -> bool:
        """Records that the engine broke off on the body; returns whether the body is
        blocked now.
        """
        guard, now = self._parts.poison_guard, self._parts.now()
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
        tokens = self.context.result.output_tokens
        return tokens if tokens is None or self._sent_tokens is None else max(0, tokens - self._sent_tokens)

    def _clear_suspicion(self, now: float) -> None:
        """Clears the body of suspicion, unless a prefill instance crashed on it. Hashes it only if
        it may be suspect.
        """
        context, guard = self.context, self._parts.poison_guard
        record = context.handoff_record
        if record is not None and record.is_suspicious:
            return
        if context.fingerprint is not None or guard.may_contain(context.request.body):
            guard.on_answered(context.body_fingerprint(guard.fingerprint), now)


def check_response(
    context: RequestContext, engine_response: EngineResponse, error: UpstreamError | None, is_final: bool
) -> None:
    """Raises AttemptFailure unless the response can be relayed.

    The usage of a whole plain response becomes the request's, and a refusal with status 200 gets
    the status that it means.
    is_final: no time is left for another instance.
    """
    if error is not None:
        raise AttemptFailure(error.cause, crashed=error.is_crash, is_final=is_final)
    if engine_response.status == 404 and not is_external(context) and _is_wrong_model(engine_response.buffered_body):
        # Without an adapter, another server has taken over the address.
        raise AttemptFailure("wrong-model" if context.request.adapter is None else ADAPTER_MISSING)
    if context.request.adapter is not None and _is_adapter_missing(context, engine_response):
        raise AttemptFailure(ADAPTER_MISSING)
    if engine_response.tokens is not None and _TOKENS_FIELD in _refusal_words(engine_response):
        raise AttemptFailure(TOKENS_REFUSED)
    if is_usage_refused(context, engine_response):
        raise AttemptFailure(FIELD_REFUSED)
    response_error = _response_error(context, engine_response)
    if response_error is None and engine_response.has_whole_answer:
        usage, response_error = _read_answer(context, engine_response.buffered_body)
        if response_error is None:
            context.record_usage(usage)
            if engine_response.status == _ACCEPTED or (
                (usage is None or usage.completion_tokens is None) and context.request.dialect.generates
            ):
                _note_unfinished(context, engine_response)
    if response_error is None:
        return
    status = response_error.status
    if status in _OVERLOAD_STATUSES and not (status == _LIMITED and is_external(context)):
        raise _overloaded(context, engine_response, response_error)
    if status >= 500 and status != _NO_SUCH_FUNCTION:
        context.result.is_charged = response_error.is_charged
        raise AttemptFailure(response_error.cause or f"status-{status}", is_final=response_error.is_charged)
    if not engine_response.is_stream:
        engine_response.status = status


def _overloaded(context: RequestContext, engine_response: EngineResponse, error: InBandError) -> AttemptFailure:
    """Returns the failure of an instance that takes no more requests now."""
    refusal = _limit_error(engine_response, error, context.http_request.id) if error.status == _LIMITED else None
    failure = AttemptFailure("overloaded", is_overload=True, refusal=refusal)
    failure.retry_after = engine_response.retry_after(int(MAX_RETRY_AFTER_SECONDS))
    return failure


def _note_unfinished(context: RequestContext, engine_response: EngineResponse) -> None:
    """Notes that the amount of the work is unknown, if a whole answer says that it goes on."""
    answer = stored_answer(engine_response.buffered_body)
    if engine_response.status == _ACCEPTED or (answer is not None and answer.is_unfinished):
        context.request.runs_on = True
        context.record_usage(None)


def _response_error(context: RequestContext, engine_response: EngineResponse) -> InBandError | None:
    """Returns the error in the status or in the first event of a response."""
    if engine_response.is_stream:
        scanner = engine_response.scanner
        if scanner.error is not None:
            return _OWN_TOKEN_REFUSED if _refuses_own_token(context, scanner.error.status) else scanner.error
        if scanner.is_aborted:
            return InBandError(500, "aborted", "aborted")
        if engine_response.is_complete and not scanner.is_done:
            return InBandError(502, "an empty stream", "cut")
        is_empty = scanner.is_done and not scanner.event_count and engine_response.grammar is None
        return InBandError(502, "a stream without an answer", EMPTY) if is_empty else None
    status, request = engine_response.status, context.request
    if _refuses_own_token(context, status):
        return _OWN_TOKEN_REFUSED
    if status >= 400:
        return InBandError(refusal_status(status, engine_response.buffered_body), "")
    if request.stream or not (status in _ANSWERED or (request.is_passthrough and 200 < status < 300)):
        return InBandError(502, "not what was asked for", GARBAGE)
    return None


def is_external(context: RequestContext) -> bool:
    return context.address is not None and context.address.leaves_cluster


def _read_answer(context: RequestContext, body: bytes) -> tuple[Usage | None, InBandError | None]:
    """Returns the usage of a whole plain answer, and the error in it."""
    request = context.request
    if request.dialect.is_measured:
        return counts_of_long_answer(body), None
    usage, fault = parse_usage(body, is_named=request.dialect.grammar is not None)
    if request.is_passthrough:
        return usage, None
    return usage, fault or _plain_error(body)


def _fault_in(body: bytes, *, is_named: bool) -> InBandError | None:
    """Returns the fault of an answer whose choices are null or an empty list.

    is_named: it is in a dialect without choices, where a tool's input may have that name.
    """
    at = -1 if is_named else body.find(_CHOICES)
    start = at + len(_CHOICES)
    if at < 0 or body[start : start + 16].translate(None, b": \t\r\n")[:2] not in (b"[]", b"nu"):
        return None
    return InBandError(502, "an answer without choices", EMPTY)


def _limit_error(engine_response: EngineResponse, error: InBandError, request_id: str) -> EngineLimited:
    """Returns the error for a client whom no engine takes.

    The body is the engine's own if that is an error object, else ours. Retry-After is the
    engine's; 1 s if it gives none.
    """
    if error.message:
        body = error_body(error.message, "rate_limit_error", None, "engine_refused", request_id)
    else:
        body = engine_response.buffered_body
        body = body if is_error_object(body) else refusal_body(_LIMITED, body, request_id)
    return EngineLimited(body, engine_response.retry_after(int(MAX_RETRY_AFTER_SECONDS)) or 1)


def _plain_error(body: bytes) -> InBandError | None:
    """Returns the error in a whole plain response with status 200."""
    if has_failed_finish(body):
        return InBandError(500, "aborted", "aborted")
    if body.find(b'"error"') < 0:
        return None
    try:
        decoded = _DECODE_RESPONSE(body)
    except _DECODE_ERRORS:
        return None
    error = error_in(decoded.error, decoded.object, body)
    return parse_in_band_error(error, 500) if error else None


def _refuses_own_token(context: RequestContext, status: int) -> bool:
    """Whether a status is about the gateway's account, which the client must not see."""
    address = context.address
    if status not in _ACCOUNT_STATUSES or address is None:
        return False
    return address.leaves_cluster or (status == 401 and address.instance.access.has_token)


def external_refusal(status: int, body: bytes, request_id: str) -> bytes:
    """Returns the body for clients of a refusal of an external API.

    It has the API's own words, without names of accounts and addresses. Rate limits, missing models
    and what is about the account itself get other words.
    """
    if status == 429:
        text = "the provider of this model limits the gateway's requests"
        return error_body(text, "rate_limit_error", None, "provider_limit", request_id)
    if status == 404:
        text = f"the provider of this model does not serve this request{_NO_TRANSLATION}"
    elif len(body) > MAX_HIDDEN_BYTES or _ACCOUNT_WORDS.search(body) is not None:
        text = "the provider of this model refuses the request"
    else:
        return hide_accounts(body)
    return error_body(text, "invalid_request_error", None, "engine_refused", request_id)


def parse_usage(body: bytes, *, is_named: bool) -> tuple[Usage | None, InBandError | None]:
    """Returns the usage of a plain response, and what makes it no answer.

    is_named: it is in a dialect whose events have names.
    """
    if len(body) > _MAX_PARSED_BYTES:
        is_object = body.lstrip()[:1] == b"{" and body.rstrip()[-1:] == b"}"
        fault = _fault_in(body, is_named=is_named) if is_object else InBandError(502, "not JSON", GARBAGE)
        return counts_of_long_answer(body), fault
    scan = _SCAN_NAMED_USAGE if is_named else _SCAN_USAGE
    found = None if scan is None else scan(body)
    if found is not None:
        return scanned_usage(found), None
    try:
        decoded = _DECODE_RESPONSE(body)
    except _DECODE_ERRORS:
        return None, InBandError(502, "not JSON", GARBAGE)
    usage = usage_of_named(decoded.usage) if is_named else read_usage(decoded.usage)
    return usage, _fault_in(body, is_named=is_named)


def refusal_body(status: int, body: bytes, request_id: str) -> bytes:
    """Returns the error object that replaces an error response of an engine without one.

    It has the engine's words. An engine without the path answers `{"detail":"Not Found"}`.
    """
    words = engine_words(body)
    if is_unknown_path(status, body):
        text, code = f"the model's engine does not serve this path{_NO_TRANSLATION}", "unknown_url"
    else:
        text, code = words.message or "the engine does not serve this request", words.code or "engine_refused"
    kind = words.type or ("rate_limit_error" if status == 429 else "invalid_request_error")
    return error_body(text, kind, words.param or None, code, request_id)


def is_unknown_path(status: int, body: bytes) -> bool:
    return status in (404, 405) and engine_words(body).message in _UNKNOWN_PATH_WORDS


def _is_wrong_model(body: bytes) -> bool:
    return len(body) < _TAIL_BYTES and _NOT_FOUND.search(body) is not None and _WRONG_MODEL.search(body) is not None


def _is_adapter_missing(context: RequestContext, engine_response: EngineResponse) -> bool:
    """Whether an SGLang engine has not loaded the adapter: it has started again.

    Not for ever: engines quote what they refuse, so the words can be those of the client.
    """
    refusal = _refusal_words(engine_response)
    if not any(words in refusal for words in _MISSING_ADAPTERS):
        return False
    return sum(failure.cause == ADAPTER_MISSING for failure in context.failures) < _MAX_RELOADS


def is_usage_refused(context: RequestContext, engine_response: EngineResponse) -> bool:
    """Whether the engine refuses to count the tokens of a stream, as the gateway has asked."""
    return context.request.strip_usage and _USAGE_FIELD in _refusal_words(engine_response)


def _refusal_words(engine_response: EngineResponse) -> bytes:
    """Returns what an engine says that refuses a request; empty if it does not."""
    error = engine_response.in_band_error
    if error is not None:
        return error.message.encode()
    return engine_response.buffered_body if engine_response.status in _REFUSALS else b""


def is_error_object(body: bytes) -> bool:
    """Whether the body is an error object with a message, as OpenAI and Anthropic define one."""
    try:
        body.decode()  # also of fields not read here
        error = _DECODE_RESPONSE(body).error
        fields = msgspec.json.decode(error) if error is not msgspec.UNSET else None
    except _DECODE_ERRORS:
        return False
    message = fields.get("message") if isinstance(fields, dict) else None
    return isinstance(message, str) and bool(message)
