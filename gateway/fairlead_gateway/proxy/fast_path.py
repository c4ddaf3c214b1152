"""The fast path: serves a plain request with callbacks instead of an asyncio task.

A request is plain if it has:

- no stream, no unknown path, no LoRA adapter and no trace
- no client timeout
- no body that may have crashed an engine
- no earlier model, whose fallback it is: it starts here at the time at which it was received
- no prefill instance in its model

A plain request starts here. One iteration of the event loop sends it, another relays the response.
If it must wait, before or after its instance is chosen, its callbacks wait in the queues of
`admission`: no task does.

All other requests start as a task in `forwarder`. A plain one continues there if an instance is
chosen for it, but

- no idle connection is left to it,
- the connection was stale, the engine failed, or the response is too long to buffer, or
- its model has got prefill instances while it waited.

Why: for a plain request, a task with its coroutines, futures and timers costs more than all other
work of the gateway.
"""

from abc import abstractmethod

from fairlead_gateway.errors import GatewayError
from fairlead_gateway.http.timers import TimeoutEntry, TimeoutQueue
from fairlead_gateway.openai.request import TIMEOUT_HEADER, timeout_error
from fairlead_gateway.proxy.attempt import Attempt, AttemptParts, check_response
from fairlead_gateway.proxy.forwarder import Forwarder
from fairlead_gateway.proxy.relay import ResponseRelay
from fairlead_gateway.proxy.relayed_stream import StreamLifecycle
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.resilience.worker.retry import AttemptFailure
from fairlead_gateway.routing.request import NO_INSTANCES
from fairlead_gateway.upstream.connection import UpstreamError
from fairlead_gateway.upstream.connection_pool import ConnectionPool
from fairlead_gateway.upstream.response import EngineResponse


class RequestLifecycle(StreamLifecycle):
    """The owner of requests; its methods are called as a request proceeds."""

    @abstractmethod
    def on_started(self, exchange: "FastPathExchange") -> None:
        """Notes a request in flight; `exchange.cancel` ends it."""

    @abstractmethod
    def continue_as_task(self, context: RequestContext, attempt: Attempt | None) -> None:
        """Continues an admitted request as a task, from the attempt's state.

        attempt: None if no instance is chosen yet.
        """

    @abstractmethod
    def on_disconnected(self, context: RequestContext) -> None:
        """Notes the end of a request whose client has disconnected."""


class FastPath:
    """The stage that starts eligible requests, with the parts that their exchanges share."""

    def __init__(
        self,
        lifecycle: RequestLifecycle,
        parts: AttemptParts,
        *,
        forwarder: Forwarder,
        relay: ResponseRelay,
        pool: ConnectionPool,
    ) -> None:
        self.lifecycle = lifecycle
        self.relay = relay
        self.failures = parts.failures
        self.response_seconds: float = parts.runtime.limits.response_seconds
        self.now = parts.now
        self.timeouts = TimeoutQueue(pool.loop, self.response_seconds, self.now)
        self.forwarder = forwarder
        self.pool = pool
        self.admission = parts.admission
        self.late_binding_queue = parts.admission.late_binding_queue
        self._poison_guard = parts.poison_guard
        self._prefill_routers = forwarder.prefill_routers

    def is_eligible(self, context: RequestContext) -> bool:
        """Whether a request without a stream and an earlier model is plain."""
        request = context.request
        return not (
            request.is_passthrough
            or request.adapter is not None
            or request.runs_on
            or context.trace is not None
            or self._poison_guard.may_contain(request.body)
            or context.http_request.head.get_rare(TIMEOUT_HEADER) is not None
            or self._prefill_routers.has_instances(request.model_key)
        )

    def must_prefill_remotely(self, context: RequestContext) -> bool:
        return self._prefill_routers.has_instances(context.request.model_key)

    def start(self, context: RequestContext) -> None:
        """Sends an eligible request, or queues it.

        Raises GatewayError if it is refused, or if no instance can take it.
        """
        now = context.http_request.received_at
        self.forwarder.retry_budget.on_request(context.caller, now)
        context.deadline = now + self.response_seconds
        exchange = FastPathExchange(self, context)
        if self.admission.try_admit(context, now):
            exchange.dispatch(now)
        else:
            exchange.enqueue()


class FastPathExchange(TimeoutEntry):
    """One request of the fast path, from its admission to its end or to its task."""

    __slots__ = ("_attempt", "_fast_path", "_is_finished", "_is_queued", "_is_started", "context")

    def __init__(self, fast_path: FastPath, context: RequestContext) -> None:
        super().__init__()
        self.context = context
        self._fast_path = fast_path
        self._attempt: Attempt | None = None
        self._is_started = False
        self._is_queued = False
        self._is_finished = False

    def enqueue(self) -> None:
        """Waits for admission. Raises GatewayError if the request is refused now."""
        self._fast_path.admission.enqueue(self.context, self._on_admission)
        self._is_queued = True
        self._start()

    def dispatch(self, now: float) -> None:
        """Chooses an instance, and sends the request or waits for the instance.

        Raises GatewayError if no instance can take it, or if it is refused.
        """
        fast_path, context = self._fast_path, self.context
        attempt = self._attempt = fast_path.forwarder.route_attempt(context, NO_INSTANCES, now)
        if fast_path.late_binding_queue.can_start(context):
            self._send(attempt, now)
        elif fast_path.late_binding_queue.enqueue(context, self._on_room):
            self._is_queued = True
            self._start()
        else:
            self._continue_as_task()

    def _start(self) -> None:
        """Makes the request one in flight, with its timeout."""
        if not self._is_started:
            self._is_started = True
            self._fast_path.timeouts.add(self, self.context.http_request.received_at)
            self._fast_path.lifecycle.on_started(self)

    def _on_admission(self, error: GatewayError | None) -> None:
        """Dispatches the request, or ends it if it is refused."""
        if self._is_finished:
            return
        self._is_queued = False
        fast_path = self._fast_path
        try:
            if error is not None:
                self.fail(error)
            elif fast_path.must_prefill_remotely(self.context):
                self._continue_as_task()
            else:
                self.dispatch(fast_path.now())
        except GatewayError as refusal:
            self.fail(refusal)
        except Exception as defect:  # noqa: BLE001 - the boundary of a request: whatever happens, it gets an answer
            self._fail_internally(defect)

    def _on_room(self, has_room: bool, error: GatewayError | None) -> None:
        """Sends the request, chooses another instance, or ends it if it is refused."""
        attempt = self._attempt
        if self._is_finished or attempt is None:
            return
        self._is_queued = False
        try:
            if error is not None:
                self.fail(error)
            elif has_room:
                attempt.has_room = True
                self._send(attempt, self._fast_path.now())
            else:
                self.dispatch(self._fast_path.now())
        except GatewayError as refusal:
            self.fail(refusal)
        except Exception as defect:  # noqa: BLE001 - the boundary of a request: whatever happens, it gets an answer
            self._fail_internally(defect)

    def _send(self, attempt: Attempt, now: float) -> None:
        """Sends the request over an idle connection, or continues as a task if there is none."""
        fast_path = self._fast_path
        connection = fast_path.pool.take_idle(attempt.address.url)
        if connection is None:
            self._continue_as_task()
            return
        attempt.connection = connection
        fast_path.forwarder.attach_engine_message(attempt)
        attempt.on_dispatch(now)
        self._start()
        attempt.send(self.on_verdict)

    def _continue_as_task(self) -> None:
        self._is_finished = True
        self._fast_path.timeouts.remove(self)
        self._fast_path.lifecycle.continue_as_task(self.context, self._attempt)

    def on_verdict(self, error: UpstreamError | None) -> None:
        """Relays the response, or continues as a task."""
        context, fast_path, attempt = self.context, self._fast_path, self._attempt
        engine_response = None if attempt is None else attempt.engine_response
        if self._is_finished or attempt is None or engine_response is None:
            return
        self._is_finished = True
        fast_path.timeouts.remove(self)
        try:
            if (
                error is not None
                or not engine_response.is_complete
                or not self._is_relayable(engine_response)
                or (engine_response.status >= 400 and context.request.route is not None)  # it may have a fallback
            ):
                attempt.has_verdict, attempt.error = True, error
                fast_path.lifecycle.continue_as_task(context, attempt)
                return
            result = context.result
            result.status = engine_response.status
            result.first_at, result.last_at = engine_response.first_at, engine_response.last_at
            # The response came in this very iteration of the event loop.
            now = result.last_at if result.last_at is not None else fast_path.now()
            fast_path.failures.on_answered(context, engine_response, now)
            attempt.finish(True, now)
            fast_path.relay.relay_buffered(context, engine_response, now)
            fast_path.lifecycle.on_finished(context)
        except Exception as defect:  # noqa: BLE001 - the boundary of a request: whatever happens, it gets an answer
            fast_path.lifecycle.on_internal_error(context, defect)

    def cancel(self) -> None:
        """Ends the request; its client has disconnected."""
        if not self._is_finished:
            self._abort()
            self.context.result.client_disconnected = True
            self._fast_path.lifecycle.on_disconnected(self.context)

    def on_timeout(self) -> None:
        """Ends the request; its time is over."""
        if not self._is_finished:
            fast_path = self._fast_path
            self.context.result.is_charged = not fast_path.failures.on_timeout(self.context)
            self.fail(timeout_error(self.context.http_request.head, fast_path.response_seconds))

    def fail(self, error: GatewayError) -> None:
        """Ends the request with an error for its client."""
        if not self._is_finished:
            self._abort()
            self._fast_path.lifecycle.on_finished(self.context, error)

    def _is_relayable(self, engine_response: EngineResponse) -> bool:
        try:
            check_response(self.context, engine_response, None, False)
        except AttemptFailure:
            return False  # the task checks again, and acts on it
        return True

    def _fail_internally(self, defect: Exception) -> None:
        if not self._is_finished:
            self._abort()
        self._fast_path.lifecycle.on_internal_error(self.context, defect)

    def _abort(self) -> None:
        self._is_finished = True
        fast_path, attempt = self._fast_path, self._attempt
        fast_path.timeouts.remove(self)
        if self._is_queued:
            fast_path.admission.leave(self.context)
        if attempt is not None:
            if attempt.connection is not None:
                attempt.connection.abort()
            attempt.finish(False, fast_path.now())
