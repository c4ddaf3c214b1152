"""The gateway: the rooms in their order, and what is answered without an engine.

listen → model → prompt → route → forward → settle. ``Gateway`` is also what the management port looks at (``View``).
"""

import asyncio
import logging
import random
import traceback
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec

from fairlead.engine_profile import EngineProfile
from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead.runtime import nonblocking_log
from fairlead.runtime.clock import Clock
from fairlead.runtime.loop_lag import LoopLag
from fairlead_gateway.errors import GatewayError, MethodNotAllowed, UnknownPath
from fairlead_gateway.http.listener import HttpRequest, Listener
from fairlead_gateway.http.request_head import RequestHead
from fairlead_gateway.http.response_writer import ResponseWriter
from fairlead_gateway.routing import InstanceLoad, PrefixChain, RouteRequest
from fairlead_gateway.routing.hooks import DispatchHooks, SiblingWorkers
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.telemetry.decision_log import DecisionLog, LoggedRequest
from fairlead_gateway.worker import route_preview
from fairlead_gateway.worker.api_keys import ApiKeys
from fairlead_gateway.worker.disaggregation.prefill_coordinator import PrefillCoordinator
from fairlead_gateway.worker.dispatch.admission_control import AdmissionController
from fairlead_gateway.worker.dispatch.router_registry import RouterRegistry
from fairlead_gateway.worker.memory_pressure import MemoryPressure, MemoryShare
from fairlead_gateway.worker.openai.model_names import public_model_names, resolve_model
from fairlead_gateway.worker.openai.passthrough import (
    PASSTHROUGH_METHODS,
    is_passthrough_path,
    parse_passthrough_request,
)
from fairlead_gateway.worker.openai.prefix_key import build_route_request
from fairlead_gateway.worker.openai.request import BODY_TYPES, ModelRequest, parse_request
from fairlead_gateway.worker.proxy.fast_path import FastPath, FastPathAttempt, RequestLifecycle
from fairlead_gateway.worker.proxy.forwarder import Forwarder, StartedAttempt
from fairlead_gateway.worker.proxy.request_outcome import CLIENT_CLOSED_STATUS, record_outcome
from fairlead_gateway.worker.reporting.prompt_samples import PromptSampleBuffer
from fairlead_gateway.worker.reporting.timing_reporter import TimingReporter
from fairlead_gateway.worker.request_context import RequestContext
from fairlead_gateway.worker.resilience.failure_attribution import FailureAttribution
from fairlead_gateway.worker.resilience.outlier_detection import OutlierDetector
from fairlead_gateway.worker.resilience.poison_requests import PoisonRequestGuard
from fairlead_gateway.worker.resilience.retry import RetryBudget
from fairlead_gateway.worker.upstream.connection import ConnectionPool

if TYPE_CHECKING:  # most gateways observe nothing, and then need none of it
    from fairlead_gateway.worker.observability.observers import RequestObservers

_MIN_THREADED_BYTES = 256 * 1024
_MODELS_PATH = "/v1/models"
_INTERNAL_ERROR_MESSAGE = "the gateway met a defect; it was logged with this id"
_log = logging.getLogger("fairlead.gateway")


class Gateway(RequestLifecycle):
    """One process's data plane. ``new_id`` makes request ids; ``secret`` keys all prompt hashes; no ``keys``: anyone may call;
    ``environ`` holds the tokens of engines; ``memory`` says how full it is; ``observing`` is told of every request;
    ``siblings`` are the other workers of this gateway; ``told`` hears what is sent where, for the index, which may ask for
    ``samples`` of it; ``rows`` hears when requests are sent, answered and over, to learn of engines."""

    def __init__(
        self,
        *,
        clock: Clock,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        secret: bytes,
        new_id: Callable[[], str],
        api_keys: ApiKeys | None = None,
        environ: Mapping[str, str] = MappingProxyType({}),
        memory_share: MemoryShare | None = None,
        observers: "RequestObservers | None" = None,
        siblings: SiblingWorkers | None = None,
        dispatch_hooks: DispatchHooks | None = None,
        prompt_samples: PromptSampleBuffer | None = None,
        timing_reporter: TimingReporter | None = None,
    ) -> None:
        self.clock = clock
        self._now = clock.now
        self.limits = limits
        self.lag = LoopLag(max_samples=3_000)  # one minute: every look at it sorts them
        telemetry = self.telemetry = MetricsRecorder(clock, limits, self.lag)
        self._attach_observers(observers)
        self.decisions = DecisionLog(limits.decision_log)
        self.listener = Listener(self, clock=clock, limits=limits, loop=loop, create_request_id=new_id)
        self.memory_pressure = MemoryPressure(limits, memory_share, self.listener.set_memory_pressure)
        self.memory_pressure.start(loop)
        self.warnings: Callable[[], list[str]] = list
        self._api_keys = api_keys
        draw = random.Random(f"{clock.wall()}").random
        breaker = OutlierDetector(limits, draw)
        self._prompt_samples = prompt_samples
        self._timing_reporter = timing_reporter
        self._routers = RouterRegistry(
            secret=secret, limits=limits, outlier_detector=breaker, siblings=siblings, dispatch_hooks=dispatch_hooks
        )
        self._prefill_routers = RouterRegistry(
            secret=secret,
            limits=limits,
            outlier_detector=breaker,
            prefill=True,
            siblings=siblings,
            dispatch_hooks=dispatch_hooks,
        )
        budget = RetryBudget(limits)
        self._failures = FailureAttribution(
            breaker,
            ready_instances=self._routers.ready_instances,
            telemetry=telemetry,
            clock=clock,
            limits=limits,
            retry_budget=budget,
        )
        self.telemetry.health_state = self._failures.describe
        self.credentials = EngineCredentials(environ, clock.now)
        self._pool = ConnectionPool(limits, loop, self.credentials)
        deaths = (siblings.report_crash, siblings.report_cleared) if siblings is not None else (None, None)
        quarantine = self.poison_guard = PoisonRequestGuard(secret, limits, *deaths)
        self._prefill_coordinator = PrefillCoordinator(
            decode_routers=self._routers,
            prefill_routers=self._prefill_routers,
            pool=self._pool,
            telemetry=self.telemetry,
            clock=clock,
            limits=limits,
            poison_guard=quarantine,
            random=draw,
        )
        self._loop = loop
        self._build_forwarding(quarantine, budget)
        # One thread: more would not be faster, and each would make the loop wait longer for its turn.
        self._parser_thread = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")
        self._new_id = new_id
        self._started_wall = int(clock.wall())
        self._loaded = self._draining = False
        self._inflight: dict[str, asyncio.Task[None] | FastPathAttempt] = {}

    def _build_forwarding(self, quarantine: PoisonRequestGuard, budget: RetryBudget) -> None:
        """The two ways to an engine and back, and who waits before them."""
        self.admission = AdmissionController(
            routers=self._routers,
            telemetry=self.telemetry,
            limits=self.limits,
            clock=self.clock,
            loop=self._loop,
            has_api_keys=self._api_keys is not None,
        )
        self._forwarder = Forwarder(
            routers=self._routers,
            pool=self._pool,
            telemetry=self.telemetry,
            decisions=self.decisions,
            clock=self.clock,
            limits=self.limits,
            failures=self._failures,
            poison_guard=quarantine,
            prefill_coordinator=self._prefill_coordinator,
            retry_budget=budget,
            prompt_samples=self._prompt_samples,
            timing_reporter=self._timing_reporter,
            admission=self.admission,
        )
        self._fast_path = FastPath(
            self,
            forwarder=self._forwarder,
            pool=self._pool,
            failures=self._failures,
            poison_guard=quarantine,
            prefill_routers=self._prefill_routers,
            admission=self.admission,
            limits=self.limits,
            clock=self.clock,
        )

    def _attach_observers(self, observers: "RequestObservers | None") -> None:
        """Who is told of requests besides metrics and the decision log; nobody costs nothing."""
        self._observers = observers
        self._finish_callbacks = tuple(observers.finish_callbacks) if observers is not None else ()
        self._tracer = observers.tracer if observers is not None else None
        if observers is not None:
            observers.attach_counters(self.telemetry)

    # The fleet and what the management port sees.

    def update_fleet(self, fleet: Fleet) -> None:
        """Take over a snapshot; what is in flight goes on where it is."""
        self._routers.update_fleet(fleet, self.clock.now())
        self._prefill_routers.update_fleet(fleet, self.clock.now())
        self.credentials.update_fleet(fleet)
        self._prefill_coordinator.retain(fleet.models)
        self._pool.retain(self._routers.addresses())
        self.admission.update_fleet(fleet)
        self._loaded = True

    def on_peer_dispatch(self, key: str, instance_id: str, chain: PrefixChain, pin: Hashable) -> None:
        """A sibling or another gateway sent a prompt there, of the session ``pin`` where that is not None."""
        now = self.clock.now()
        self._routers.on_peer_dispatch(key, instance_id, chain, now, pin)
        self._prefill_routers.on_peer_dispatch(key, instance_id, chain, now, pin)

    def set_hot_prefixes(
        self, key: str, epoch: int, serving: frozenset[Hashable], prefilling: frozenset[Hashable]
    ) -> None:
        """The hot prefixes of a model as all gateways see them; epoch 0: nobody tells them any more."""
        self._routers.set_hot_prefixes(key, epoch, serving)
        self._prefill_routers.set_hot_prefixes(key, epoch, prefilling)

    def apply_corrections(
        self, key: str, instance_id: str, forget: str, gone: Sequence[Hashable], held: Sequence[tuple[Hashable, ...]]
    ) -> None:
        """What the index says of an instance of a model."""
        self._routers.apply_corrections(key, instance_id, forget, gone, held)
        self._prefill_routers.apply_corrections(key, instance_id, forget, gone, held)

    def set_learned_profiles(self, profiles: Mapping[str, EngineProfile]) -> None:
        """What was learned of engines, by instance: from now on they are routed by that."""
        self._routers.set_learned_profiles(profiles, self._now())

    def republish_loads(self) -> None:
        """The slots of the rows that siblings share have been given out anew."""
        self._routers.republish_loads()
        self._prefill_routers.republish_loads()

    def fleet(self) -> Fleet:
        """The present snapshot."""
        return self._routers.fleet

    def loads(self) -> Mapping[str, InstanceLoad]:
        """This gateway's own load by instance id."""
        return {**self._routers.loads(), **self._prefill_routers.loads()}

    def preview_route(self, path: str, body: bytes, session: str | None) -> LoggedRequest:
        """Where a request would go just now, and why. Raises GatewayError as a request would be answered."""
        return route_preview.preview_route(
            path,
            body,
            session,
            routers=self._routers,
            prefill_routers=self._prefill_routers,
            prefill_coordinator=self._prefill_coordinator,
            limits=self.limits,
            clock=self.clock,
        )

    def readiness(self) -> tuple[bool, list[str]]:
        """Whether requests are answered, and what is wrong or degraded, in words."""
        notes = [
            *self.warnings(),
            *self.credentials.warnings(),
            *self.memory_pressure.warnings(),
            *nonblocking_log.log_warnings(),
        ]
        if self._observers is not None:
            notes += self._observers.warnings()
        if self._draining:
            return False, ["draining", *notes]
        if not self._loaded:
            return False, ["no fleet has been read yet", *notes]
        return True, notes

    # Requests, as listen hands them over.

    def check_headers(self, head: RequestHead) -> str | None:
        """The name of the key that a request shows, None where nobody is asked for one. Raises NoKey."""
        caller = None if self._api_keys is None or head.path == "/readyz" else self._api_keys.caller(head)
        if self.memory_pressure.max_body_bytes is not None:
            self.memory_pressure.check_body(head.length or 0)
        return caller

    def handle(self, http_request: HttpRequest, response: ResponseWriter) -> None:
        """Answer now what needs no engine; start a task for the rest."""
        if self._observers is not None:
            http_request.client_address = response.client_address()
        try:
            http_request.caller = self.check_headers(http_request.head)
            if self.memory_pressure.max_body_bytes is not None:
                self.memory_pressure.check_body(len(http_request.body))
            path, method = http_request.head.path, http_request.head.method
            if path in BODY_TYPES:
                if _check_method(method, ("POST",), response):
                    self._start_request(http_request, response)
            elif path == "/readyz" or path == _MODELS_PATH or path.startswith(_MODELS_PATH + "/"):
                if _check_method(method, ("GET", "HEAD"), response):
                    self._answer_locally(path, response)
                    if self._observers is not None and path != "/readyz":
                        self._observers.on_answered_locally(http_request, response, 200, None)
            elif is_passthrough_path(path):
                if _check_method(method, PASSTHROUGH_METHODS, response):
                    self._start_request(http_request, response)
            elif path == "*":
                _check_method(method, ("GET", "HEAD", "POST"), response)
            else:
                raise UnknownPath("nothing is served under this path", hint="the API lies under /v1")
            if self._observers is not None and method == "OPTIONS":
                self._observers.on_answered_locally(http_request, response, 200, None)
        except GatewayError as error:
            self.on_rejected(error, response, http_request)

    def on_rejected(
        self,
        error: GatewayError,
        response: ResponseWriter,
        http_request: HttpRequest | None = None,
        context: RequestContext | None = None,
    ) -> None:
        """Answer with an error object; for what never reached an engine."""
        self.telemetry.record_rejected(
            context.request.model_key if context is not None else None, error.status, error.code
        )
        if self._observers is not None:
            self._observers.on_answered_locally(http_request, response, error.status, error.code, context)
        self._send_error(error, response, _local_response_headers(error.code))

    def inflight_count(self) -> int:
        """Requests that engines are working on."""
        return len(self._inflight)

    def drain(self) -> None:
        """Be unready, take no new connection's request, let what is under way finish."""
        self._draining = True
        self.listener.drain()

    def close(self) -> None:
        """Cut what is left."""
        self.listener.close()
        for one in list(self._inflight.values()):
            one.cancel()
        self._fast_path.timeouts.clear()
        self._prefill_coordinator.close()
        self._pool.close()
        self.memory_pressure.close()
        if self._observers is not None:
            self._observers.close()
        self._parser_thread.shutdown(wait=False, cancel_futures=True)

    # The request's way.

    def _start_request(self, http_request: HttpRequest, response: ResponseWriter) -> None:
        """Understand a request and send it on its way; large bodies are read in a thread, so that others get their turn."""
        unique = http_request.id if http_request.id not in self._inflight else f"{http_request.id}~{self._new_id()}"
        if len(http_request.body) > _MIN_THREADED_BYTES:
            self._run_as_task(unique, response, self._parse_in_thread(http_request, response, unique))
            return
        context: RequestContext | None = None
        try:
            request, route = self._parse(http_request, self._routers.fleet, unique)
            context = self._create_context(http_request, response, unique, request, route)
            if self._fast_path.is_eligible(context):
                self._fast_path.start(context)
            else:
                self._run_as_task(unique, response, self._serve(context, None))
        except GatewayError as error:
            self._fail_request(context, error, response, http_request)
        except Exception as error:  # noqa: BLE001 - the boundary of a request: whatever happens, it gets an answer
            self._fail_internally(unique, context, error, response, http_request)

    def _create_context(
        self,
        http_request: HttpRequest,
        response: ResponseWriter,
        unique: str,
        request: ModelRequest,
        route: RouteRequest,
    ) -> RequestContext:
        self.telemetry.record_received(request.model_key, self._routers.prompt_tokens(request.model_key, route))
        context = RequestContext(http_request, response, unique, request, route)
        if self._tracer is not None:
            context.trace = self._tracer.start_trace(http_request)
        return context

    def _run_as_task(self, unique: str, response: ResponseWriter, work: Coroutine[None, None, None]) -> None:
        """Go on as a task."""
        task = self._inflight[unique] = self._loop.create_task(work)
        task.add_done_callback(partial(self._inflight.pop, unique))
        response.on_client_gone = task.cancel

    async def _parse_in_thread(self, http_request: HttpRequest, response: ResponseWriter, unique: str) -> None:
        context: RequestContext | None = None
        try:
            request, route = await self._loop.run_in_executor(
                self._parser_thread, self._parse, http_request, self._routers.fleet, unique
            )
            context = self._create_context(http_request, response, unique, request, route)
        except GatewayError as error:
            self._send_failure(None, error, response, http_request)
        except asyncio.CancelledError:
            self._on_client_disconnected(http_request, response, None)
        except Exception as error:  # noqa: BLE001 - the boundary of a request: whatever happens, it gets an answer
            self._fail_internally(unique, None, error, response, http_request)
        if context is not None:
            await self._serve(context, None)

    async def _serve(self, context: RequestContext, begun: StartedAttempt | None) -> None:
        request, response = context.http_request, context.response
        try:
            await self._forwarder.forward(context, begun)
        except GatewayError as error:
            self._send_failure(context, error, response, request)
        except asyncio.CancelledError:
            context.client_disconnected = True
            if not context.attempt_number:
                self._on_client_disconnected(request, response, context)
        except Exception as error:  # noqa: BLE001 - the boundary of a request: whatever happens, it gets an answer
            self._log_internal_error(context.id, error)
            self._send_failure(context, GatewayError(_INTERNAL_ERROR_MESSAGE), response, request)
        finally:
            self._record_outcome(context)

    # What ``short`` says.

    def on_started(self, context: RequestContext, attempt: FastPathAttempt) -> None:
        """The request is in flight; ``short.cancel`` ends it."""
        self._inflight[context.id] = attempt
        context.response.on_client_gone = attempt.cancel

    def continue_as_task(self, context: RequestContext, begun: StartedAttempt) -> None:
        """Go on as a task."""
        self._run_as_task(context.id, context.response, self._serve(context, begun))

    def on_finished(self, context: RequestContext, error: GatewayError | None = None) -> None:
        """It has ended; with ``error`` the client has still to be told."""
        if context.id in self._inflight:
            del self._inflight[context.id]
        if error is not None:
            self._send_failure(context, error, context.response, context.http_request)
        self._record_outcome(context)

    def on_internal_error(self, context: RequestContext, error: Exception) -> None:
        """Something of ours failed."""
        self._inflight.pop(context.id, None)
        self._fail_internally(context.id, context, error, context.response, context.http_request)

    # How requests end.

    def _fail_request(
        self, context: RequestContext | None, error: GatewayError, response: ResponseWriter, http_request: HttpRequest
    ) -> None:
        self._send_failure(context, error, response, http_request)
        if context is not None:
            self._record_outcome(context)

    def _fail_internally(
        self,
        unique: str,
        context: RequestContext | None,
        error: Exception,
        response: ResponseWriter,
        http_request: HttpRequest,
    ) -> None:
        self._log_internal_error(unique, error)
        self._fail_request(context, GatewayError(_INTERNAL_ERROR_MESSAGE), response, http_request)

    def _log_internal_error(self, unique: str, error: Exception) -> None:
        _log.error("request %s met a defect: %s\n%s", unique, type(error).__name__, _location_of(error))

    def _on_client_disconnected(
        self, http_request: HttpRequest, response: ResponseWriter, context: RequestContext | None
    ) -> None:
        """The client left before any engine was asked."""
        if context is not None:
            self.telemetry.record_abandoned(context.request.model_key)
        if self._observers is not None:
            self._observers.on_answered_locally(http_request, response, CLIENT_CLOSED_STATUS, "client-gone", context)

    def _record_outcome(self, context: RequestContext) -> None:
        if context.attempt_number:
            record_outcome(
                context,
                now=self._now(),
                telemetry=self.telemetry,
                decisions=self.decisions,
                callbacks=self._finish_callbacks,
            )

    def _parse(self, http_request: HttpRequest, fleet: Fleet, unique: str) -> tuple[ModelRequest, RouteRequest]:
        if http_request.head.path in BODY_TYPES:
            request = parse_request(http_request.head.path, http_request.body, fleet, self.limits)
        else:
            request = parse_passthrough_request(http_request.head, http_request.body, fleet, self.limits)
        return request, build_route_request(request, http_request.head, unique, self._routers.secret)

    def _send_failure(
        self, context: RequestContext | None, error: GatewayError, response: ResponseWriter, http_request: HttpRequest
    ) -> None:
        if context is None or not context.attempt_number:
            self.on_rejected(error, response, http_request, context)
            return
        context.status, context.error = error.status, error.code
        if response.started:
            response.abort()
        else:
            self._send_error(error, response, self._forwarder.response_headers(context, self._now()))

    def _send_error(self, error: GatewayError, response: ResponseWriter, fields: str) -> None:
        more = "".join(f"{name}: {value}\r\n" for name, value in error.headers)
        response.send(error.status, more + fields, error.body(response.request_id))

    # Answers without an engine.

    def _answer_locally(self, path: str, response: ResponseWriter) -> None:
        if path == "/readyz":
            ready, notes = self.readiness()
            body = msgspec.json.encode({"ready": ready, "notes": notes})
            response.send(200 if ready else 503, _local_response_headers("readyz"), body)
            return
        shown = public_model_names(self._routers.fleet)
        if path in (_MODELS_PATH, _MODELS_PATH + "/"):
            listed = [self._model_object(name, model.namespace) for name, model in shown.items()]
            response.send(
                200, _local_response_headers("models"), msgspec.json.encode({"object": "list", "data": listed})
            )
            return
        name = path[len(_MODELS_PATH) + 1 :]
        model = resolve_model(name, self._routers.fleet)
        response.send(
            200, _local_response_headers("models"), msgspec.json.encode(self._model_object(name, model.namespace))
        )

    def _model_object(self, name: str, namespace: str) -> dict[str, str | int]:
        return {"id": name, "object": "model", "created": self._started_wall, "owned_by": namespace}


def _check_method(method: str, known: Sequence[str], response: ResponseWriter) -> bool:
    """Whether the path may be asked this way; OPTIONS is answered here. Raises WrongMethod."""
    if method in known:
        return True
    allow = ", ".join((*known, "OPTIONS"))
    if method != "OPTIONS":
        raise MethodNotAllowed(
            "this path is not asked with this method", hint=f"use {allow}", headers=(("allow", allow),)
        )
    response.send(200, f"allow: {allow}\r\n{_local_response_headers('options')}", b"")
    return False


def _local_response_headers(reason: str) -> str:
    """The header fields of an answer that no engine was asked for."""
    return f"x-fairlead-instance: gateway\r\nx-fairlead-reason: {reason}\r\nx-fairlead-decision: none\r\nserver-timing: gateway\r\n"


def _location_of(error: Exception) -> str:
    """The lines of code that an error came through; its text is left out, it may hold a part of a prompt."""
    return "".join(traceback.format_tb(error.__traceback__))
