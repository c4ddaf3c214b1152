"""Forwards a request to an instance and relays the response, as a task.

An attempt ends with a response that can be relayed, or with `AttemptFailure`. A failure before the
first byte sends the request to another instance, if `resilience.retry` allows that. If the client
disconnects, the task is cancelled and the engine's connection closed at once.

After the first byte nothing is retried. A stream that breaks is resumed elsewhere if its request
allows that (`continuation`). Otherwise it ends with an error event and without `[DONE]`.
"""

from collections.abc import Mapping
from typing import Final

from fairlead.decision import Decision, DecisionText
from fairlead_gateway.disaggregation.worker.prefill_coordinator import PrefillCoordinator
from fairlead_gateway.errors import GatewayError, QuarantinedRequest, UnknownResponse, forget_frames
from fairlead_gateway.http.timers import TaskDeadline
from fairlead_gateway.limits.worker.limit_gate import LimitGate
from fairlead_gateway.openai.request import timeout_error, total_timeout
from fairlead_gateway.openai.response_ids import HeldResponse
from fairlead_gateway.proxy.attempt import Attempt, AttemptParts, check_response
from fairlead_gateway.proxy.background_work import BackgroundWork
from fairlead_gateway.proxy.fallbacks import Fallbacks
from fairlead_gateway.proxy.relay import ResponseRelay, end_incomplete
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.resilience.worker.retry import (
    ADAPTER_MISSING,
    FIELD_REFUSED,
    TOKENS_REFUSED,
    AttemptFailure,
    RetryBudget,
    should_retry,
    to_client_error,
)
from fairlead_gateway.router_registry import as_retry_decision
from fairlead_gateway.routing.request import NO_INSTANCES
from fairlead_gateway.telemetry.worker.trace_record import ATTEMPT
from fairlead_gateway.upstream.connection import LOCAL_CAUSES, EngineConnection, UpstreamError
from fairlead_gateway.upstream.connection_pool import ConnectionPool
from fairlead_gateway.upstream.response import EngineResponse

_MAX_WITHOUT_USAGE: Final = 4_096
HOLDER_RULE: Final = "stored-response"


class _NoLongerReady(Exception):
    """Raised when the chosen instance stopped being ready before anything was sent to it."""


class Forwarder:
    """The stage that chooses instances and runs attempts. One object serves all requests of a
    worker.

    fallbacks: of routes; set by the gateway.
    background_work: follows work behind an answer; set by the gateway.
    """

    def __init__(
        self,
        parts: AttemptParts,
        *,
        pool: ConnectionPool,
        prefill_coordinator: PrefillCoordinator,
        retry_budget: RetryBudget,
        relay: ResponseRelay,
        limit_gate: LimitGate,
    ) -> None:
        self._parts = parts
        self._pool = pool
        self._prefill_coordinator = prefill_coordinator
        self.prefill_routers = prefill_coordinator.prefill_routers
        self.retry_budget = retry_budget
        self._relay = relay
        self._limit_gate = limit_gate
        self.fallbacks: Fallbacks | None = None
        self.background_work: BackgroundWork | None = None
        self._refused_fields: dict[str, dict[str, None]] = {FIELD_REFUSED: {}, TOKENS_REFUSED: {}}
        self._now = parts.now
        self._loop = parts.runtime.loop
        self._ends = parts.runtime.ends
        self._limits = parts.runtime.limits
        self._routers = parts.routers
        self._admission = parts.admission
        self._late_binding_queue = parts.admission.late_binding_queue
        self._failures = parts.failures
        self._poison_guard = parts.poison_guard
        self._telemetry = parts.recorder.telemetry

    async def forward(self, context: RequestContext, attempt: Attempt | None = None) -> None:
        """Gets a response and relays it, within the request's timeout.

        attempt: the one that the fast path has started; see `FastPath`.
        Raises GatewayError if the request is refused, or if no instance responds in time.
        """
        head = context.http_request.head
        seconds = total_timeout(head, context.request.stream, self._limits)
        if seconds is None:
            await self._run_attempts(context, attempt)
            return
        context.deadline = context.http_request.received_at + seconds
        try:
            with TaskDeadline(self._loop, context.deadline - self._now(), self._ends):
                await self._run_attempts(context, attempt)
        except TimeoutError:
            self._on_timeout(context, timeout_error(head, seconds))

    def _on_timeout(self, context: RequestContext, error: GatewayError) -> None:
        """Raises the error, or ends the response that has started with it."""
        context.result.is_charged = not self._failures.on_timeout(context)
        if not context.response.started or context.response.is_waiting:
            raise error
        end_incomplete(context, error)

    async def _run_attempts(self, context: RequestContext, attempt: Attempt | None) -> None:
        """Runs attempts on one instance after the other, until one answers. `_check_retry` raises
        the error of the last one.
        """
        excluded = NO_INSTANCES
        if context.reservation is None and context.policy.has_limits:
            await self._limit_gate.ensure_reserved(context)
        if attempt is None and context.admitted is None:
            blocked_seconds = self._poison_guard.seconds_left(context.request.body, self._now())
            if blocked_seconds is not None:
                raise QuarantinedRequest(blocked_seconds)
            self.retry_budget.on_request(context.caller, self._now())
            await self._admission.ensure_admitted(context)
        if (
            attempt is None
            and context.request.held is None
            and self.prefill_routers.has_instances(context.request.model_key)
        ):
            await self._prefill_coordinator.prefill_remotely(context)
        while True:
            if attempt is None:
                attempt = self.route_attempt(context, excluded, self._now())
            try:
                has_room = attempt.has_verdict or attempt.has_room or self._late_binding_queue.can_start(context)
                if has_room or await self._late_binding_queue.wait(context):
                    await self._run(attempt)
                    return
            except _NoLongerReady:
                if context.trace is not None:
                    context.trace.finish_span(ATTEMPT, "moved")
            except AttemptFailure as failure:
                failure.instance_id = attempt.instance_id
                if context.trace is not None:
                    context.trace.finish_span(ATTEMPT, failure.cause)
                if context.transfer is None or not self._prefill_coordinator.give_up_transfer(context, failure):
                    if failure.cause == FIELD_REFUSED:
                        context.request.take_back_usage()
                    elif failure.cause == TOKENS_REFUSED:
                        context.request.without_tokens = True
                    elif not self._is_adapter_to_reload(attempt, failure):
                        excluded |= {attempt.instance_id}
                    self._check_retry(attempt, failure)
            attempt = None

    def _note_usage_refused(self, attempt: Attempt, engine_response: EngineResponse) -> None:
        """Remembers an instance for later requests that took this one only without what the gateway
        had added.

        Why only then: the words of a refusal can be those of the client, and then say nothing of
        the engine.
        """
        if engine_response.status >= 400 or engine_response.in_band_error is not None:
            return
        for failure in attempt.context.failures:
            known = self._refused_fields.get(failure.cause)
            if known is not None and failure.instance_id == attempt.instance_id:
                if len(known) == _MAX_WITHOUT_USAGE:
                    known.clear()
                known[attempt.instance_id] = None

    def _is_adapter_to_reload(self, attempt: Attempt, failure: AttemptFailure) -> bool:
        """Records an engine that has lost its adapters; returns whether it may load them again."""
        loader = self._parts.adapter_loader
        if loader is None or attempt.context.request.adapter is None:
            return False
        if failure.cause == ADAPTER_MISSING or failure.crashed or not failure.was_sent:
            loader.on_missing(attempt.instance_id, attempt.adapter_lease)
        return failure.cause == ADAPTER_MISSING

    def _check_retry(self, attempt: Attempt, failure: AttemptFailure) -> None:
        """Records the failure. Raises GatewayError unless another instance may be tried."""
        context = attempt.context
        forget_frames(failure)
        context.failures.append(failure)
        self._failures.on_attempt_failed(context, failure)
        is_blocked = failure.crashed and attempt.on_crash()
        if not should_retry(context.failures, self._limits, context.request.entry.max_attempts):
            raise self._give_up(context) from None
        if is_blocked:  # copies of it have crashed another engine
            raise QuarantinedRequest(self._limits.quarantine_seconds) from None

    def route_attempt(self, context: RequestContext, excluded: frozenset[str], now: float) -> Attempt:
        """Chooses an instance and returns the attempt at it, which has sent nothing yet.

        An attempt after a failure takes a retry from the budget, unless the failure is exempt.

        excluded: the ids of instances that must not be chosen.
        now: monotonic seconds.

        Raises GatewayError if no instance is left, or if the retry budget is used up.
        """
        key, failures = context.request.model_key, context.failures
        context.counted_at = ""
        deferred = self._late_binding_queue.deferred_seconds(context)
        if context.request.adapter is None:
            decision = self._choose_instance(context, excluded, now, deferred)
        else:
            decision = self._choose_with_adapter(context, excluded, now, deferred)
        admitted = context.admitted
        if admitted is not None and not failures:
            decision = decision.after(admitted.describe)
        if context.reservation is not None and context.reservation.waited_for and not failures:
            decision = decision.after(context.reservation.describe_wait)
        if context.handoff is not None:
            decision = decision.with_text(reason=f"{context.handoff.record.message}; {decision.reason}")
        if decision.chosen is None:
            raise self._give_up(context)
        if failures:
            last, stall_timeout = failures[-1], context.stall_timeout
            has_retry = last.is_exempt_from_budget or (stall_timeout is not None and stall_timeout.has_retry)
            if not has_retry and not self.retry_budget.take(context.caller, now):
                raise self._give_up(context, is_budget_spent=True)
            if context.address is not None:
                self._telemetry.record_retry(key, context.address.id, last.cause)
            decision = as_retry_decision(decision, len(failures), last.cause)
        if context.adapter_use is not None:
            decision = decision.after(context.adapter_use.describe)
        chosen = decision.chosen
        instance = None if chosen is None else self._routers.ready_instance(key, chosen)
        if instance is None:
            raise self._routers.no_ready_instance(key, now)
        number = context.earlier_attempts + len(failures) + 1
        return self._parts.create_attempt(context, instance, decision, number, now)

    def _choose_instance(
        self, context: RequestContext, excluded: frozenset[str], now: float, deferred: Mapping[str, float]
    ) -> Decision:
        """Returns the decision on the instance that answers. Raises NoReadyInstance."""
        held, handoff = context.request.held, context.handoff
        if held is not None:
            return self._choose_holder(context, held, excluded)
        if handoff is None:
            return self._routers.choose_for(context, excluded, now, deferred)
        return self._prefill_coordinator.choose_decode_instance(context, handoff, excluded, now, deferred)

    def _choose_holder(self, context: RequestContext, held: HeldResponse, excluded: frozenset[str]) -> Decision:
        """Returns the decision on the instance that holds a stored response; no other one has it.

        Raises UnknownResponse if it is not ready.
        """
        if self._routers.ready_instance(context.request.model_key, held.instance_id) is None:
            raise UnknownResponse(held.client_id)
        chosen = None if held.instance_id in excluded else held.instance_id
        return Decision(chosen, HOLDER_RULE, DecisionText("it holds the stored response that the request names"))

    def _choose_with_adapter(
        self, context: RequestContext, excluded: frozenset[str], now: float, deferred: Mapping[str, float]
    ) -> Decision:
        """Returns the decision among the instances that may serve the request's adapter.

        If none of these can take the request, others are asked for.
        """
        loader, request, key = self._parts.adapter_loader, context.request, context.request.model_key
        assert loader is not None
        assert request.adapter is not None
        tried = excluded
        while True:
            counts = not context.failures and tried is excluded
            use = context.adapter_use = loader.place(key, request.adapter, tried, counts=counts)
            instances = use.placement.instances
            left_out = loader.restrict(key, use) if instances else tried
            decision = self._choose_instance(context, excluded | left_out, now, deferred)
            if decision.chosen is not None or not instances:
                return decision
            tried = tried.union(instances)

    def attach_engine_message(self, attempt: Attempt) -> None:
        """Builds the attempt's message from the request, with transfer fields if it has a
        transfer.
        """
        context = attempt.context
        if context.request.strip_usage and attempt.instance_id in self._refused_fields[FIELD_REFUSED]:
            context.request.take_back_usage()
        if attempt.instance_id in self._refused_fields[TOKENS_REFUSED]:
            context.request.without_tokens = True
        body = context.request.body
        if context.handoff is not None:
            body = self._prefill_coordinator.request_body(context)
        source = context.choice.decision.source if context.choice is not None else None
        if source is not None:
            body = self._prefill_coordinator.add_kv_source(context, body, source)
        attempt.attach_engine_message(
            self._relay.continuation.request_tokens(attempt, body) if context.request.stream else body
        )

    def _give_up(self, context: RequestContext, *, is_budget_spent: bool = False) -> GatewayError:
        self._failures.on_all_attempts_failed(context, is_budget_spent=is_budget_spent)
        return to_client_error(context.failures, self._routers.drain_seconds(context.request.model_key))

    async def _run(self, attempt: Attempt) -> None:
        """Runs one attempt, and finishes it whatever happens."""
        if not attempt.has_verdict:
            attempt.on_dispatch(self._now())
        is_complete = False
        try:
            if attempt.context.request.adapter is not None and not attempt.has_verdict:
                await attempt.acquire_adapter()
            is_complete = await self._exchange(attempt)
        finally:
            if not attempt.context.is_handed_over:
                attempt.finish(is_complete, self._now())

    async def _exchange(self, attempt: Attempt) -> bool:
        """Sends the request and relays the response; returns whether it was complete.

        Raises AttemptFailure while another instance may still be tried.
        """
        context = attempt.context
        is_stale = False
        may_run_on = context.request.runs_on
        if may_run_on:
            context.response.on_client_gone = None  # its engine goes on
        if not attempt.has_verdict:
            self.attach_engine_message(attempt)
            attempt.connection = self._pool.take_idle(attempt.address.url)
        while True:
            if attempt.engine_response is None:
                await self._send(attempt, is_stale)
                is_stale = False
            engine_response = attempt.engine_response
            assert engine_response is not None
            try:
                handoff = context.handoff
                if handoff is not None and handoff.transfer is not None and not attempt.has_verdict:
                    deadline = self._prefill_coordinator.first_event_deadline
                    with deadline(context, handoff, attempt.instance, engine_response):
                        attempt.error = await engine_response.verdict
                elif not attempt.has_verdict:
                    attempt.error = await engine_response.verdict
                is_stale = attempt.error is not None and attempt.error.is_stale
                if not is_stale:
                    stall_timeout = context.stall_timeout
                    is_final = stall_timeout is not None and stall_timeout.is_exhausted
                    check_response(context, engine_response, attempt.error, is_final)
                    self._failures.on_answered(context, engine_response, self._now())
                    if context.failures:
                        self._note_usage_refused(attempt, engine_response)
                    if context.request.route is not None and self.fallbacks is not None:
                        self.fallbacks.raise_if_refused(context, engine_response, self._now())
                    if handoff is not None:
                        self._prefill_coordinator.on_decode_accepted(context, handoff)
                    attempt.message = []  # a stream may take minutes
                    is_complete = await self._relay.relay(attempt)
                    if may_run_on and is_complete and self.background_work is not None:
                        await self.background_work.follow(attempt, engine_response.buffered_body)
                    return is_complete
            finally:
                if not is_stale and not context.is_handed_over:
                    attempt.abort_unfinished()
            attempt.reset()

    async def _send(self, attempt: Attempt, is_stale: bool) -> None:
        """Connects if necessary, and sends the message. Raises AttemptFailure or _NoLongerReady."""
        if attempt.connection is None:
            attempt.connection = await self._connect(attempt, is_stale)
        if self._routers.ready_instance(attempt.context.request.model_key, attempt.instance_id) is None:
            self._pool.release(attempt.connection)
            raise _NoLongerReady
        attempt.send()

    async def _connect(self, attempt: Attempt, is_stale: bool) -> EngineConnection:
        try:
            return await self._pool.connect(attempt.address.url)
        except UpstreamError as error:
            # The engine went between two connections: the request may be what closed the first one.
            crashed = is_stale and error.cause not in LOCAL_CAUSES
            cause = "reset" if crashed else error.cause
            raise AttemptFailure(cause, crashed=crashed, was_sent=is_stale) from None
