"""The short way: a plain request to one engine and back, without a task of its own.

Most plain requests find an idle connection, are answered whole, and that is all. For them a task with its coroutines, futures
and timers would cost more than the rest of the gateway's work. So they go by callbacks: sent in one turn of the loop,
answered in another. Whatever is out of the ordinary (no idle connection, a stale one, a failure, an answer too long to
hold) goes on as a task in ``forward`` from the very point that was reached; streams, hand-offs, deadlines of clients and
traced requests begin there. The rules are ``forward``'s: nothing is decided here.
"""

from abc import abstractmethod
from typing import Final

from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.http.timers import TimeoutEntry, TimeoutQueue
from fairlead_gateway.routing import ModelRouter
from fairlead_gateway.worker.dispatch.admission_control import AdmissionController
from fairlead_gateway.worker.dispatch.router_registry import RouterRegistry
from fairlead_gateway.worker.openai.request_timeout import TIMEOUT_HEADER, timeout_error
from fairlead_gateway.worker.proxy.forwarder import Forwarder, StartedAttempt
from fairlead_gateway.worker.proxy.response_check import check_response
from fairlead_gateway.worker.request_context import RequestContext
from fairlead_gateway.worker.resilience.failure_attribution import FailureAttribution
from fairlead_gateway.worker.resilience.poison_requests import PoisonRequestGuard
from fairlead_gateway.worker.resilience.retry import AttemptFailure
from fairlead_gateway.worker.upstream.connection import ConnectionPool, EngineConnection, UpstreamError
from fairlead_gateway.worker.upstream.response import EngineResponse

_NO_IDS: Final[frozenset[str]] = frozenset()


class RequestLifecycle:
    """Whose requests they are. (A base, not a Protocol: compiled, its methods are called directly.)"""

    @abstractmethod
    def on_started(self, context: RequestContext, attempt: "FastPathAttempt") -> None:
        """The request is in flight; ``short.cancel`` ends it."""

    @abstractmethod
    def continue_as_task(self, context: RequestContext, begun: StartedAttempt) -> None:
        """Go on as a task."""

    @abstractmethod
    def on_finished(self, context: RequestContext, error: GatewayError | None = None) -> None:
        """It has ended; with ``error`` the client has still to be told."""

    @abstractmethod
    def on_internal_error(self, context: RequestContext, error: Exception) -> None:
        """Something of ours failed."""


class FastPath:
    """What all short requests of a gateway share; ``prefilling`` are the routers of engines that only prefill."""

    def __init__(
        self,
        lifecycle: RequestLifecycle,
        *,
        forwarder: Forwarder,
        pool: ConnectionPool,
        failures: FailureAttribution,
        poison_guard: PoisonRequestGuard,
        prefill_routers: RouterRegistry,
        admission: AdmissionController,
        limits: Limits,
        clock: Clock,
    ) -> None:
        self.lifecycle = lifecycle
        self.forwarder = forwarder
        self.pool = pool
        self.failures = failures
        self.answer_seconds: float = limits.response_seconds
        self.now = clock.now
        self.timeouts = TimeoutQueue(pool.loop, self.answer_seconds, clock.now)
        self._poison_guard = poison_guard
        self._prefill_routers = prefill_routers
        self._admission = admission

    def is_eligible(self, context: RequestContext) -> bool:
        """Whether nothing of the request asks for more, and it need not wait."""
        request = context.request
        plain = not (
            request.stream
            or request.is_passthrough
            or context.trace is not None
            or self._poison_guard.may_contain(request.body)
            or context.http_request.head.get(TIMEOUT_HEADER) is not None
            or self._prefill_routers.has_instances(request.model_key)
        )
        return plain and self._admission.admit_now(context)

    def start(self, context: RequestContext) -> None:
        """Send it. Raises GatewayError when it cannot go anywhere."""
        forward, now = self.forwarder, context.http_request.received_at
        forward.retry_budget.on_request(now)
        instance = forward.choose_instance(context, _NO_IDS, now)
        connection = self.pool.take_idle(instance.url) if self._admission.can_start(context) else None
        if connection is None:
            self.lifecycle.continue_as_task(context, StartedAttempt(instance))
            return
        context.deadline = now + self.answer_seconds
        message = forward.encode_request(context, instance)
        short = FastPathAttempt(self, context, forward.on_dispatch(context, now), connection, message)
        self.timeouts.add(short, now)
        self.lifecycle.on_started(context, short)
        short.engine_response = forward.send_request(context, connection, message, short.on_verdict)


class FastPathAttempt(TimeoutEntry):
    """One of them."""

    __slots__ = ("_connection", "_context", "_fast_path", "_is_finished", "_message", "_router", "engine_response")

    def __init__(
        self,
        fast_path: FastPath,
        context: RequestContext,
        router: ModelRouter,
        connection: EngineConnection,
        message: list[bytes],
    ) -> None:
        super().__init__()
        self._fast_path = fast_path
        self._context = context
        self._router = router
        self._connection = connection
        self._message = message
        self._is_finished = False
        self.engine_response: EngineResponse | None = None

    def on_verdict(self, broken: UpstreamError | None) -> None:
        """The engine answered, or failed."""
        context, way, engine_response = self._context, self._fast_path, self.engine_response
        if self._is_finished or engine_response is None:
            return
        self._is_finished = True
        way.timeouts.remove(self)
        try:
            if broken is not None or not engine_response.is_complete or not self._is_relayable(engine_response):
                assert context.instance is not None
                way.lifecycle.continue_as_task(
                    context, StartedAttempt(context.instance, self._connection, engine_response, self._message, broken)
                )
                return
            context.status = engine_response.status
            context.first_at, context.last_at = engine_response.first_at, engine_response.last_at
            now = context.last_at if context.last_at is not None else way.now()  # it came in this very turn of the loop
            way.failures.on_answered(context, now)
            way.forwarder.on_finish(context, self._router, True, now)
            way.forwarder.relay_buffered(context, engine_response, now)
            way.lifecycle.on_finished(context)
        except Exception as error:  # noqa: BLE001 - the boundary of a request: whatever happens, it gets an answer
            way.lifecycle.on_internal_error(context, error)

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        if not self._is_finished:
            self._abort()
            self._context.client_disconnected = True
            self._fast_path.lifecycle.on_finished(self._context)

    def on_timeout(self) -> None:
        """It took longer than any answer may."""
        if not self._is_finished:
            self._abort()
            self._fast_path.failures.on_timeout(self._context)
            self._fast_path.lifecycle.on_finished(
                self._context, timeout_error(self._context.http_request.head, self._fast_path.answer_seconds)
            )

    def _is_relayable(self, engine_response: EngineResponse) -> bool:
        try:
            check_response(self._context, engine_response, None, False)
        except AttemptFailure:
            return False  # said again, and acted on, on the long way
        return True

    def _abort(self) -> None:
        self._is_finished = True
        self._fast_path.timeouts.remove(self)
        self._connection.abort()
        self._fast_path.forwarder.on_finish(self._context, self._router, False, self._fast_path.now())
