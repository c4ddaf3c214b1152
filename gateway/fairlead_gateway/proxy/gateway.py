"""The data plane of one worker: serves requests, from receipt to record.

`http` receives a request. Here its key is checked, `model_selection` finds its model, and
`limits` reserves what it may use. `forwarder` has it admitted and routed, and sends it; `relay`
relays the response, and `request_recorder` records the outcome.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Final

from fairlead.fleet.model import Fleet, InstanceState
from fairlead.runtime import nonblocking_log
from fairlead.runtime.loop_lag import LoopLag
from fairlead_gateway.body_check.worker.caller_limit import LargeBodyQueue
from fairlead_gateway.body_check.worker.client import BodyChecker
from fairlead_gateway.caller_key import Caller, caller_key
from fairlead_gateway.continuation.stream_moves import MOVE_INTERVAL_SECONDS, MOVES_AT_ONCE
from fairlead_gateway.dialects.table import DIALECTS
from fairlead_gateway.errors import GatewayDraining, GatewayError, WebSocketRefused, forget_frames
from fairlead_gateway.http.listener import (
    COUNTED_BYTES,
    HttpRequest,
    Listener,
    ResponseWriter,
    connection_warnings,
    max_connections,
)
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.idempotency.answer_table import HEADER as IDEMPOTENCY_HEADER
from fairlead_gateway.idempotency.worker.keyed_requests import KeyedRequests
from fairlead_gateway.journal import Reporters
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.openai.request import is_passthrough_path, methods_of
from fairlead_gateway.proxy.attempt import Attempt
from fairlead_gateway.proxy.cors import Cors
from fairlead_gateway.proxy.fallbacks import FallbackRequest, fallback_header
from fairlead_gateway.proxy.fast_path import FastPathExchange, RequestLifecycle
from fairlead_gateway.proxy.local_routes import (
    DRAINING,
    NO_FLEET_YET,
    NO_KEYS_YET,
    PROBE_PATHS,
    LocalRoutes,
    check_body,
    check_counted_path,
    check_method,
    is_local_path,
    local_headers,
    log_internal_error,
    send_error,
    unknown_path,
)
from fairlead_gateway.proxy.memory_pressure import MemoryPressure, MemoryShare
from fairlead_gateway.proxy.model_selection import ModelRequestParser
from fairlead_gateway.proxy.relay import end_incomplete
from fairlead_gateway.proxy.relayed_stream import RelayedStream
from fairlead_gateway.proxy.request_recorder import CLIENT_CLOSED_STATUS, RequestRecorder
from fairlead_gateway.proxy.stages import RequestStages
from fairlead_gateway.request_context import RequestContext
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.telemetry import UNKNOWN, MetricsRecorder
from fairlead_gateway.telemetry.counters import ABANDONED
from fairlead_gateway.telemetry.decision_log import DecisionLog
from fairlead_gateway.tenants.worker.api_keys import GatewaySecrets
from fairlead_gateway.tenants.worker.tenant_policy import ModelVisibility, TenantPolicies
from fairlead_gateway.upstream.request_encoder import check_hops, create_hop_id

DECISION_LOG: Final = 4_096
"""Limit: decisions kept in memory by a worker."""

if TYPE_CHECKING:
    from fairlead_gateway.telemetry.worker.observers import RequestObservers

_DIALECTS: Final = DIALECTS
_MIN_CHECKED_BYTES: Final = 256 * 1024
_INTERNAL_ERROR_MESSAGE = "the gateway met a defect; it was logged with this id"


_log = logging.getLogger("fairlead.gateway")


class Gateway(RequestLifecycle):
    """The handler of requests in one worker process.

    create_request_id: returns a new id that clients cannot guess.
    memory_share: reads the used share of memory; None if no limit is known.
    warnings: returns texts about degraded parts of the rest of the process.

    Why 7 parameters: each is a part of the worker with its own lifecycle.
    """

    def __init__(
        self,
        runtime: WorkerRuntime,
        secrets: GatewaySecrets,
        *,
        create_request_id: Callable[[], str],
        memory_share: MemoryShare | None = None,
        observers: "RequestObservers | None" = None,
        reporters: Reporters | None = None,
        warnings: Callable[[], list[str]] = list,
    ) -> None:
        self.runtime = runtime
        self._now, self._warnings = runtime.now, warnings
        reporters = reporters or Reporters()
        limits = runtime.limits
        self.loop_lag = LoopLag(max_samples=3_000)  # one minute; every reading sorts them
        self.telemetry = MetricsRecorder(runtime.clock, self.loop_lag)
        journal = reporters.journal
        self.decisions = DecisionLog(DECISION_LOG)
        if journal is not None and journal.publishes_decisions:
            self.decisions.on_record = journal.on_decision
        self._observers = observers
        self._tracer = observers.tracer if observers is not None else None
        if observers is not None:
            observers.attach_counters(self.telemetry)
        on_finished = list(observers.finish_callbacks) if observers is not None else []
        if journal is not None and journal.keeps_usage:
            on_finished.append(journal.on_outcome)
        self._recorder = RequestRecorder(self.telemetry, self.decisions, limits, tuple(on_finished))
        self.listener = Listener(
            self,
            clock=runtime.clock,
            limits=limits,
            loop=runtime.loop,
            create_request_id=create_request_id,
            ends=runtime.ends,
        )
        runtime.count_detached_bytes = self.listener.count_detached_bytes
        self.listener.has_api_keys = secrets.api_keys is not None
        self.memory_pressure = MemoryPressure(limits, memory_share, self.listener.set_memory_pressure)
        self.memory_pressure.start(runtime.loop)
        self.api_keys = secrets.api_keys
        self.cors = Cors(self.api_keys is not None)
        self._hop_id = create_hop_id(secrets.hash_secret)
        self.stages = RequestStages(self, runtime, secrets, self._recorder, reporters)
        self._policies = TenantPolicies(secrets.hash_secret, self.stages.routers.serving.sizes)
        self._fast_path = self.stages.fast_path
        self._local_routes = LocalRoutes(self.readiness, self.stages.context_lengths, int(runtime.clock.wall()))
        self._body_checker = BodyChecker(limits)
        self._request_parser = ModelRequestParser(limits, self._policies, self._body_checker)
        self._large_bodies = LargeBodyQueue(runtime.loop, limits.caller_large_bodies_bytes)
        self._is_loaded = self._is_draining = self._has_drain_ended = False
        self._visible_models = ModelVisibility()
        self._fallbacks = self.stages.create_fallbacks(self._visible_models)
        self.copies = self.stages.create_shadow_traffic(
            self._request_parser, lambda: self.listener.under_memory_pressure
        )
        self.keyed_requests = KeyedRequests(
            runtime, self._start_request, self._on_replayed, self.telemetry.non_model_counters
        )
        self.keyed_requests.count_replay = self.stages.limit_gate.count_unreserved
        self._inflight: dict[str, asyncio.Task[None] | FastPathExchange | RelayedStream] = {}
        self._draining_ids: frozenset[str] = frozenset()
        self._next_moves: asyncio.TimerHandle | None = None

    def leave_out(self, changing_text: str | None) -> None:
        self._policies.leave_out(changing_text)

    def update_fleet(self, fleet: Fleet) -> None:
        """Replaces the fleet. Requests in flight stay where they are, but for streams of instances
        that drain: they move.
        """
        self.stages.update_fleet(fleet)
        instances = [instance for listed in fleet.instances.values() for instance in listed]
        self._draining_ids = frozenset([one.id for one in instances if one.state is InstanceState.DRAINING])
        if self._draining_ids:
            self._move_streams()
        self._visible_models.update_fleet(fleet)
        self._is_loaded = True
        self._limit_connections(sum(map(len, fleet.instances.values())))

    def _move_streams(self) -> None:
        """Moves streams away from instances that drain, a few at once, until none is left there."""
        if self._next_moves is not None:
            self._next_moves.cancel()
            self._next_moves = None
        moved = left = 0
        for request in list(self._inflight.values()):
            if not isinstance(request, RelayedStream) or request.instance_id not in self._draining_ids:
                continue
            if moved < MOVES_AT_ONCE and request.move():
                moved += 1
            else:
                left += 1
        if left:
            self._next_moves = self.runtime.loop.call_later(MOVE_INTERVAL_SECONDS, self._move_streams)

    def readiness(self) -> tuple[bool, list[str]]:
        """Returns whether requests are served, and texts about what is wrong or degraded."""
        warnings = [
            *self._warnings(),
            *self.stages.credentials.warnings(),
            *self.memory_pressure.warnings(),
            *self._connection_warnings(),
            *nonblocking_log.log_warnings(),
        ]
        if self._observers is not None:
            warnings += self._observers.warnings()
        cause = DRAINING if self._is_draining else "" if self._is_loaded else NO_FLEET_YET
        if not cause and self.api_keys is not None and not self.api_keys.is_loaded:
            cause = NO_KEYS_YET
        return not cause, [cause, *warnings] if cause else warnings

    def _limit_connections(self, instances: int) -> None:
        """Lowers the number of client connections to what the limit of open files allows."""
        listener, runtime = self.listener, self.runtime
        was_lowered = bool(self._connection_warnings())
        listener.max_connections = max_connections(runtime.limits, runtime.max_open_files, instances)
        if not was_lowered:
            for warning in self._connection_warnings():
                _log.warning("%s", warning)

    def _connection_warnings(self) -> list[str]:
        runtime = self.runtime
        return connection_warnings(self.listener.max_connections, runtime.limits, runtime.max_open_files)

    def inflight_count(self) -> int:
        return len(self._inflight)

    def drain(self) -> None:
        """Reports unready and takes no new requests; those in flight finish."""
        self._is_draining = True
        self.copies.close()
        self.listener.drain()

    def end_drain(self) -> None:
        """Ends all requests with an error: streams with an event, others with 503."""
        if self._inflight:
            _log.warning("the drain is over: %d requests are ended with an error", len(self._inflight))
        self._has_drain_ended = True
        self.listener.refuse_requests(GatewayDraining())
        for request in list(self._inflight.values()):
            if isinstance(request, FastPathExchange):
                request.fail(GatewayDraining())
            else:
                request.cancel()

    def close(self) -> None:
        """Ends all requests and closes all connections."""
        self.listener.close()
        for request in list(self._inflight.values()):
            request.cancel()
        self.keyed_requests.close()
        self._fast_path.timeouts.clear()
        self.copies.close()
        self.stages.close()
        self.memory_pressure.close()
        if self._observers is not None:
            self._observers.close()
        self._large_bodies.close()
        self._body_checker.close()

    # Requests, from the listener.

    def admit_body(self, head: RequestHead, client_address: str | None) -> Caller | None:
        return self.check_headers(head)

    def check_headers(self, head: RequestHead) -> Caller | None:
        """Returns whose request it is; None if the path or this gateway needs no API key.

        Raises ForeignPage, InvalidApiKey, NotPermitted, BodyTooLarge for a body where none belongs,
        UnknownPath, MethodNotAllowed, GatewayLoop, and Overloaded if memory is short.
        """
        if not head.is_checked:
            self.cors.check(head)
        caller = None if self.api_keys is None or head.path in PROBE_PATHS else self.api_keys.caller(head)
        if caller is not None and not caller.may_use_other_paths:
            check_counted_path(head.path)
        if head.length != 0 and not (head.method == "POST" and head.path in _DIALECTS):
            check_body(head.method, head.path)
        check_hops(head, self._hop_id)
        if self.listener.under_memory_pressure:
            self.memory_pressure.check_body(head.length or 0)
        return caller

    def handle(self, http_request: HttpRequest, response: ResponseWriter) -> None:
        """Answers the request, or starts to forward it."""
        observers = self._observers
        if observers is not None:
            http_request.client_address = response.client_address()
        head = http_request.head
        try:
            if head.method == "OPTIONS" and self.cors.try_answer_preflight(head, response):
                return
            caller = http_request.caller = self.check_headers(head)
            if caller is not None:
                self.listener.check_caller_connections(caller_key(caller))
            if self.listener.under_memory_pressure:
                self.memory_pressure.check_body(len(http_request.body))
            if len(http_request.body) > COUNTED_BYTES:
                self.listener.check_complete_body(len(http_request.body), caller_key(http_request.caller))
            path, method = http_request.head.path, http_request.head.method
            if method == "GET" and (head.get_rare(b"upgrade") or b"").lower() == b"websocket":
                raise WebSocketRefused
            if path in _DIALECTS:
                if method == "POST" or check_method(method, ("POST",), response):
                    if head.get_rare(IDEMPOTENCY_HEADER) is None:
                        self._start_request(http_request, response)
                    else:
                        self.keyed_requests.handle(http_request, response)
            elif is_local_path(path):
                if check_method(method, ("GET", "HEAD"), response):
                    models = self._visible_models.of(caller)
                    shows = self.api_keys is not None and self.api_keys.shows_details(http_request.head)
                    refuses = self._policies.of(caller).refuses_external
                    later = self._local_routes.answer(path, response, models, shows_key=shows, refuses_external=refuses)
                    if later is not None:
                        self._run_as_task(http_request.internal_id, response, later)
                    if observers is not None and path not in PROBE_PATHS:
                        observers.on_answered_locally(http_request, response, 200, None)
            elif is_passthrough_path(path):
                if check_method(method, methods_of(path), response):
                    if method != "POST" or head.get_rare(IDEMPOTENCY_HEADER) is None:
                        self._start_request(http_request, response)
                    else:
                        self.keyed_requests.handle(http_request, response)
            elif path == "*":
                check_method(method, ("GET", "HEAD", "POST"), response)
            else:
                raise unknown_path(path)
            if observers is not None and method == "OPTIONS":
                observers.on_answered_locally(http_request, response, 200, None)
        except GatewayError as error:
            self.on_rejected(error, response, http_request)

    def on_rejected(
        self,
        error: GatewayError,
        response: ResponseWriter,
        http_request: HttpRequest | None = None,
        context: RequestContext | None = None,
    ) -> None:
        """Answers a request that never reached an engine with an error."""
        self.telemetry.record_rejected(
            context.request.model_key if context is not None else None, error.status, error.code
        )
        if self._observers is not None:
            self._observers.on_answered_locally(http_request, response, error.status, error.code, context)
        headers = local_headers(error.code) + self.stages.limit_gate.headers(context, self._now())
        route = error.route if context is None else context.request.route
        if route is not None:
            key = route.target if context is None else context.request.model_key
            self.telemetry.record_route(key or UNKNOWN, error.status, route.route)
            if http_request is not None and self._policies.of(http_request.caller).shows_placement:
                headers += fallback_header(route)
        send_error(error, response, headers)

    def _on_replayed(self, http_request: HttpRequest, response: ResponseWriter, status: int) -> None:
        if self._observers is not None:
            self._observers.on_answered_locally(http_request, response, status, None)

    def _start_request(
        self, http_request: HttpRequest, response: ResponseWriter, fallback: FallbackRequest | None = None
    ) -> None:
        """Parses the request and starts to forward it; a large body is checked in a process.

        fallback: gives it another model than the one before.
        """
        request_id = http_request.internal_id
        if len(http_request.body) > _MIN_CHECKED_BYTES:
            self._run_as_task(request_id, response, self._serve_large(http_request, response, fallback))
            return
        context: RequestContext | None = None
        try:
            models = self._visible_models.of(http_request.caller)
            request, route_request = self._request_parser.parse(http_request, models, request_id, fallback)
            context = self._create_context(http_request, response, request, route_request, fallback)
            may_start = not context.policy.has_limits or self.stages.limit_gate.reserve(context)
            if may_start and not request.stream and fallback is None and self._fast_path.is_eligible(context):
                self._fast_path.start(context)
            else:
                self._run_as_task(request_id, response, self._serve(context, None))
        except GatewayError as error:
            if not self._fall_back(context, error, response, http_request):
                self._fail_request(context, error, response, http_request)
        except Exception as error:  # noqa: BLE001 - the boundary of a request: whatever happens, it gets an answer
            self._fail_internally(context, error, response, http_request)

    def _fall_back(
        self, context: RequestContext | None, error: GatewayError, response: ResponseWriter, http_request: HttpRequest
    ) -> bool:
        """Gives the request to another model of its route; returns False if there is none."""
        fallback = self._fallbacks.take(context, error, http_request.caller, self._now())
        if fallback is not None:
            forget_frames(error)
            self._start_request(http_request, response, fallback)
        return fallback is not None

    async def parse(
        self, http_request: HttpRequest, request_id: str, fallback: FallbackRequest | None = None
    ) -> tuple[ModelRequest, RouteRequest]:
        """Returns a request as engines get it, and as routing sees it. Raises GatewayError.

        A large body is checked in a process, in the turn of its caller.
        """
        parser, models = self._request_parser, self._visible_models.of(http_request.caller)
        if len(http_request.body) <= _MIN_CHECKED_BYTES:
            return parser.parse(http_request, models, request_id, fallback)
        check = partial(parser.parse_large, http_request, models, request_id, fallback)
        return await self._large_bodies.run(caller_key(http_request.caller), len(http_request.body), check)

    def _create_context(
        self,
        http_request: HttpRequest,
        response: ResponseWriter,
        request: ModelRequest,
        route_request: RouteRequest,
        fallback: FallbackRequest | None,
    ) -> RequestContext:
        prompt_tokens = self.stages.routers.serving.prompt_tokens(request.model_key, route_request)
        self.telemetry.record_received(request.model_key, prompt_tokens, http_request.received_at)
        context = RequestContext(http_request, response, http_request.internal_id, request, route_request)
        context.policy = self._policies.of(http_request.caller)
        if fallback is not None and fallback.previous is not None:
            context.follow(fallback.previous)
        elif self._tracer is not None:
            context.trace = self._tracer.start_trace(http_request)
        return context

    def _run_as_task(self, request_id: str, response: ResponseWriter, work: Coroutine[None, None, None]) -> None:
        task = self._inflight[request_id] = self.runtime.loop.create_task(work)
        task.add_done_callback(partial(self._on_task_done, request_id))
        # Not at once: a task that is cancelled before its first step would release nothing.
        response.on_client_gone = partial(self.runtime.loop.call_soon, task.cancel)

    async def _serve_large(
        self, http_request: HttpRequest, response: ResponseWriter, fallback: FallbackRequest | None
    ) -> None:
        context: RequestContext | None = None
        try:
            request, route_request = await self.parse(http_request, http_request.internal_id, fallback)
            context = self._create_context(http_request, response, request, route_request, fallback)
        except GatewayError as error:
            if not self._fall_back(None, error, response, http_request):
                self._send_failure(None, error, response, http_request)
        except asyncio.CancelledError:
            self._on_cancelled(http_request, response, None)
        except Exception as error:  # noqa: BLE001 - the boundary of a request: whatever happens, it gets an answer
            self._fail_internally(None, error, response, http_request)
        if context is not None:
            await self._serve(context, None)

    async def _serve(self, context: RequestContext, attempt: Attempt | None) -> None:
        http_request, response = context.http_request, context.response
        if context.request.stream:
            self.stages.relay.watch_silence(context)
        try:
            await self.stages.forwarder.forward(context, attempt)
        except GatewayError as error:
            if not self._fall_back(context, error, response, http_request):
                self._send_failure(context, error, response, http_request)
        except asyncio.CancelledError:
            self._on_cancelled(http_request, response, context)
        except Exception as error:  # noqa: BLE001 - the boundary of a request: whatever happens, it gets an answer
            log_internal_error(http_request.id, error)
            self._send_failure(context, GatewayError(_INTERNAL_ERROR_MESSAGE), response, http_request)
        finally:
            if not context.is_handed_over:
                context.stop_comments()
                self._recorder.record_outcome(context, self._now())

    def _on_task_done(self, request_id: str, task: asyncio.Task[None]) -> None:
        if self._inflight.get(request_id) is task:  # a relayed stream may have its place
            del self._inflight[request_id]

    def on_started(self, exchange: FastPathExchange) -> None:
        """Registers a request in flight; its exchange is cancelled if the client disconnects."""
        context = exchange.context
        self._inflight[context.id] = exchange
        context.response.on_client_gone = exchange.cancel

    def continue_as_task(self, context: RequestContext, attempt: Attempt | None) -> None:
        self._run_as_task(context.id, context.response, self._serve(context, attempt))

    def on_disconnected(self, context: RequestContext) -> None:
        """Records the end of a request whose client has disconnected."""
        self._inflight.pop(context.id, None)
        if context.choice is None:
            self._on_early_disconnect(context.http_request, context.response, context)
        self._recorder.record_outcome(context, self._now())

    def on_finished(self, context: RequestContext, error: GatewayError | None = None) -> None:
        """Records the end of a request; sends `error` to the client, if there is one."""
        if context.id in self._inflight:
            del self._inflight[context.id]
        if error is not None:
            if self._fall_back(context, error, context.response, context.http_request):
                return
            self._send_failure(context, error, context.response, context.http_request)
        self._recorder.record_outcome(context, self._now())

    def on_relayed(self, stream: RelayedStream) -> None:
        """Registers a stream that its task has handed over."""
        context = stream.context
        self._inflight[context.id] = stream
        if not context.response.finished and not context.request.runs_on:
            context.response.on_client_gone = stream.cancel

    def on_broken(self, context: RequestContext, work: Coroutine[None, None, bool]) -> None:
        self._run_as_task(context.id, context.response, self._serve_rest(context, work))

    async def _serve_rest(self, context: RequestContext, work: Coroutine[None, None, bool]) -> None:
        has_ended = True
        try:
            has_ended = await work
        except asyncio.CancelledError:
            self._on_cancelled(context.http_request, context.response, context)
        except Exception as error:  # noqa: BLE001 - the boundary of a request: whatever happens, it gets an answer
            log_internal_error(context.http_request.id, error)
            self._send_failure(context, GatewayError(_INTERNAL_ERROR_MESSAGE), context.response, context.http_request)
        finally:
            if has_ended:
                self._recorder.record_outcome(context, self._now())

    def on_cancelled(self, context: RequestContext) -> None:
        """Records the end of a relayed stream that was cancelled."""
        self._on_cancelled(context.http_request, context.response, context)
        self._recorder.record_outcome(context, self._now())
        self._inflight.pop(context.id, None)

    def on_internal_error(self, context: RequestContext, error: Exception) -> None:
        self._inflight.pop(context.id, None)
        self._fail_internally(context, error, context.response, context.http_request)

    def _fail_request(
        self, context: RequestContext | None, error: GatewayError, response: ResponseWriter, http_request: HttpRequest
    ) -> None:
        self._send_failure(context, error, response, http_request)
        if context is not None:
            self._recorder.record_outcome(context, self._now())

    def _fail_internally(
        self, context: RequestContext | None, error: Exception, response: ResponseWriter, http_request: HttpRequest
    ) -> None:
        log_internal_error(http_request.id, error)
        self._fail_request(context, GatewayError(_INTERNAL_ERROR_MESSAGE), response, http_request)

    def _on_cancelled(
        self, http_request: HttpRequest, response: ResponseWriter, context: RequestContext | None
    ) -> None:
        """Ends a request whose client disconnected, or that outlasts the drain."""
        if self._has_drain_ended and not response.finished:
            error = GatewayDraining()
            if context is not None and response.started and not response.is_waiting:
                end_incomplete(context, error)
            else:
                self._send_failure(context, error, response, http_request)
            return
        if context is not None:
            context.result.client_disconnected = True
        if context is None or context.choice is None:
            self._on_early_disconnect(http_request, response, context)

    def _on_early_disconnect(
        self, http_request: HttpRequest, response: ResponseWriter, context: RequestContext | None
    ) -> None:
        """Records a client that disconnected before an instance was chosen."""
        if context is not None:
            self.telemetry.record(context.request.model_key, ABANDONED)
        if self._observers is not None:
            self._observers.on_answered_locally(http_request, response, CLIENT_CLOSED_STATUS, "client-gone", context)

    def _send_failure(
        self, context: RequestContext | None, error: GatewayError, response: ResponseWriter, http_request: HttpRequest
    ) -> None:
        if context is None or (context.choice is None and context.reservation is None):
            error = self.stages.limit_gate.count_refused(http_request.caller, error)
        forget_frames(error)
        if context is None or context.choice is None:
            self._recorder.record_unserved(http_request, context, error)
            self.on_rejected(error, response, http_request, context)
            return
        context.result.status, context.result.error = error.status, error.code
        if response.started and not response.is_waiting:
            response.abort()
        else:
            send_error(error, response, self.stages.relay.response_headers(context, self._now()))
