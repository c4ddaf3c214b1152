"""The fast path: serves a plain request with callbacks instead of an asyncio task.

A request is plain if it has:

- no stream, no unknown path and no trace
- no client timeout
- no body that may have crashed an engine
- no prefill instance in its model

A plain request starts here if it is admitted without waiting. One iteration of the event loop sends
the request, another relays the response.

All other requests start as a task in `forwarder`. A plain one continues there, with the attempt
that has been started:

- without a connection: there was no idle one, or the instance has no room yet
- with its verdict: the connection was stale, the engine failed, or the response is too long to
  buffer

Why: for a plain request, a task with its coroutines, futures and timers costs more than all other
work of the gateway.
"""

from abc import abstractmethod

from fairlead_gateway.errors import GatewayError
from fairlead_gateway.http.timers import TimeoutEntry, TimeoutQueue
from fairlead_gateway.routing.request import NO_INSTANCES
from fairlead_gateway.worker.dispatch.router_registry import RoleRouters
from fairlead_gateway.worker.openai.request_timeout import TIMEOUT_HEADER, timeout_error
from fairlead_gateway.worker.proxy.attempt import Attempt, Dispatcher
from fairlead_gateway.worker.proxy.forwarder import Forwarder
from fairlead_gateway.worker.proxy.relay import ResponseRelay
from fairlead_gateway.worker.proxy.response_check import check_response
from fairlead_gateway.worker.request_context import RequestContext
from fairlead_gateway.worker.resilience.retry import AttemptFailure
from fairlead_gateway.worker.upstream.connection import UpstreamError
from fairlead_gateway.worker.upstream.connection_pool import ConnectionPool
from fairlead_gateway.worker.upstream.response import EngineResponse


class RequestLifecycle:
    """The owner of requests; its methods are called as a request proceeds.

    Why a base class and not a Protocol: compiled, its methods are called directly.
    """

    @abstractmethod
    def on_started(self, exchange: "FastPathExchange") -> None:
        """Notes a request in flight; `exchange.cancel` ends it."""

    @abstractmethod
    def continue_as_task(self, attempt: Attempt) -> None:
        """Continues a request as a task, from the attempt's state."""

    @abstractmethod
    def on_finished(self, context: RequestContext, error: GatewayError | None = None) -> None:
        """Notes the end of a request; sends `error` to the client, if there is one."""

    @abstractmethod
    def on_internal_error(self, context: RequestContext, error: Exception) -> None:
        """Ends a request after a defect of the gateway."""


class FastPath:
    """The stage that starts eligible requests, with the parts that their exchanges share."""

    def __init__(
        self,
        lifecycle: RequestLifecycle,
        dispatcher: Dispatcher,
        *,
        forwarder: Forwarder,
        relay: ResponseRelay,
        pool: ConnectionPool,
        prefill_routers: RoleRouters,
    ) -> None:
        self.lifecycle = lifecycle
        self.relay = relay
        self.failures = dispatcher.failures
        self.response_seconds: float = dispatcher.runtime.limits.response_seconds
        self.now = dispatcher.now
        self.timeouts = TimeoutQueue(pool.loop, self.response_seconds, self.now)
        self._forwarder = forwarder
        self._pool = pool
        self._poison_guard = dispatcher.poison_guard
        self._admission = dispatcher.admission
        self._prefill_routers = prefill_routers

    def is_eligible(self, context: RequestContext) -> bool:
        """Whether the request is plain and admitted now. Calls admission control if it is plain."""
        request = context.request
        is_plain = not (
            request.stream
            or request.is_passthrough
            or context.trace is not None
            or self._poison_guard.may_contain(request.body)
            or context.http_request.head.get(TIMEOUT_HEADER) is not None
            or self._prefill_routers.has_instances(request.model_key)
        )
        return is_plain and self._admission.try_admit(context)

    def start(self, context: RequestContext) -> None:
        """Sends an eligible request, or continues it as a task if no idle connection can take it.

        Raises GatewayError if no instance can take it.
        """
        forwarder, now = self._forwarder, context.http_request.received_at
        forwarder.retry_budget.on_request(context.caller, now)
        attempt = forwarder.route_attempt(context, NO_INSTANCES, now)
        connection = self._pool.take_idle(attempt.instance.url) if self._admission.can_start(context) else None
        if connection is None:
            self.lifecycle.continue_as_task(attempt)
            return
        context.deadline = now + self.response_seconds
        attempt.connection = connection
        forwarder.attach_engine_message(attempt)
        attempt.on_dispatch(now)
        exchange = FastPathExchange(self, attempt)
        self.timeouts.add(exchange, now)
        self.lifecycle.on_started(exchange)
        attempt.send(exchange.on_verdict)


class FastPathExchange(TimeoutEntry):
    """One request of the fast path, from its dispatch to its end or to its task."""

    __slots__ = ("_attempt", "_fast_path", "_is_finished", "context")

    def __init__(self, fast_path: FastPath, attempt: Attempt) -> None:
        super().__init__()
        self.context = attempt.context
        self._fast_path = fast_path
        self._attempt = attempt
        self._is_finished = False

    def on_verdict(self, error: UpstreamError | None) -> None:
        """Relays the response, or continues as a task."""
        context, fast_path, attempt = self.context, self._fast_path, self._attempt
        engine_response = attempt.engine_response
        if self._is_finished or engine_response is None:
            return
        self._is_finished = True
        fast_path.timeouts.remove(self)
        try:
            if error is not None or not engine_response.is_complete or not self._is_relayable(engine_response):
                attempt.has_verdict, attempt.error = True, error
                fast_path.lifecycle.continue_as_task(attempt)
                return
            result = context.result
            result.status = engine_response.status
            result.first_at, result.last_at = engine_response.first_at, engine_response.last_at
            # The response came in this very iteration of the event loop.
            now = result.last_at if result.last_at is not None else fast_path.now()
            fast_path.failures.on_answered(context, result.status, now)
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
            self._fast_path.lifecycle.on_finished(self.context)

    def on_timeout(self) -> None:
        """Ends the request; its time is over."""
        if not self._is_finished:
            fast_path = self._fast_path
            fast_path.failures.on_timeout(self.context)
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

    def _abort(self) -> None:
        self._is_finished = True
        self._fast_path.timeouts.remove(self)
        if self._attempt.connection is not None:
            self._attempt.connection.abort()
        self._attempt.finish(False, self._fast_path.now())
