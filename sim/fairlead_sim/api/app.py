"""The dispatch of requests to handlers, with faults and HTTP metrics."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fairlead.limits import Limits
from fairlead_sim.api.response_store import ResponseStore
from fairlead_sim.generation.requests import GenerationRequest
from fairlead_sim.http.connection import HeaderBuilder, HttpRequest, ResponseWriter, ServerConnection
from fairlead_sim.http.errors import ApiError, EndpointDisabled, RouteNotFound
from fairlead_sim.runtime.fault_injection import Fault
from fairlead_sim.runtime.simulated_engine import ResponseKind, SimulatedEngine

_RESPONSES = "/v1/responses/"
SCALE_OUT_DISABLED = "Scale-out endpoints are disabled. Set --enable-scale-out to enable them."


@dataclass(slots=True)
class RequestContext:
    """The arguments of a handler: a request, its engine, the writer of the answer, and a fault."""

    app: "EngineApp"
    engine: SimulatedEngine
    request: HttpRequest
    writer: ResponseWriter
    fault: Fault | None = None

    def require_generation(self) -> None:
        """Raises RouteNotFound on an engine that only embeds."""
        if self.engine.settings.task == "embed":
            raise RouteNotFound

    def begin(self, request: GenerationRequest, whole: ResponseKind, stream: ResponseKind) -> None:
        self.engine.begin(request, stream if request.stream else whole, self.writer, self.fault)


Handler = Callable[[RequestContext], None]


@dataclass(frozen=True, slots=True)
class Route:
    """The handlers of one path, by method.

    - generates: counted in ``/sim/state``, and the target of most faults.
    - switch: the flag in ``settings.surface`` that enables the path. A disabled path answers 404,
      a path for scale-out 403.
    """

    handlers: Mapping[str, Handler]
    generates: bool = False
    switch: str | None = None
    anthropic: bool = False


class EngineApp:
    """The HTTP side of one engine."""

    def __init__(self, engine: SimulatedEngine, routes: Mapping[str, Route]) -> None:
        settings = engine.settings
        self.engine = engine
        self.header_builder = HeaderBuilder(engine.clock)
        self.random = engine.random
        self.keep_alive_seconds = settings.keep_alive_seconds
        self.body_bytes = Limits().body_bytes
        self.echo_request_ids = settings.surface.request_id_headers
        self.connections: set[ServerConnection] = set()
        self.has_no_connections = asyncio.Event()
        self.has_no_connections.set()
        self.requests_seen = 0
        self.requests_while_draining = 0
        self.response_store = ResponseStore()
        self._routes = routes

    def on_connection_made(self, connection: ServerConnection) -> bool:
        """Registers a connection. Returns False if a fault refuses it."""
        fault = self.engine.fault_injector.pick_for_connection()
        self.connections.add(connection)
        self.has_no_connections.clear()
        if fault == "hang":
            connection.stop_answering()
        return fault != "refuse"

    def on_connection_lost(self, connection: ServerConnection) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self.has_no_connections.set()

    def handle(self, request: HttpRequest, writer: ResponseWriter) -> None:
        engine = self.engine
        path = request.path
        if path.startswith(_RESPONSES):
            name, slash, action = path.removeprefix(_RESPONSES).partition("/")
            path = f"{_RESPONSES}{{response_id}}{slash}{action}" if name else path
        route = self._routes.get(path)
        if route is not None:
            writer.is_anthropic = route.anthropic
            if route.generates:
                self.requests_seen += 1
                self.requests_while_draining += engine.is_draining
        self._observe_response(request, writer, path if route is not None else None)
        if route is None or not self._is_enabled(route):
            raise RouteNotFound
        handler = route.handlers.get(request.method)
        if handler is None:
            raise RouteNotFound(allow=", ".join(route.handlers))
        fault = None
        if not request.path.startswith("/sim/"):
            fault = engine.fault_injector.pick_for_request(generates=route.generates)
            if fault is not None and _apply_fault(fault, writer):
                return
        handler(RequestContext(self, engine, request, writer, fault))

    def _is_enabled(self, route: Route) -> bool:
        if route.switch is None or getattr(self.engine.settings.surface, route.switch):
            return True
        if route.switch == "scale_out":
            raise EndpointDisabled(SCALE_OUT_DISABLED)
        return False

    def _observe_response(self, request: HttpRequest, reply: ResponseWriter, path: str | None) -> None:
        began = time.monotonic()
        received = len(request.body)

        def sent(status: int, size: int) -> None:
            seconds = time.monotonic() - began
            self.engine.metrics.http.observe_response(
                path, request.method, status, seconds, received_bytes=received, sent_bytes=size
            )

        reply.on_sent = sent


def _apply_fault(fault: Fault, reply: ResponseWriter) -> bool:
    """Answers as the fault demands. Returns False for a fault that acts later."""
    if fault.kind == "refuse":
        reply.drop_connection()
    elif fault.kind == "hang":
        pass  # the request stays open until its client gives up
    elif fault.kind == "garbage":
        reply.send_raw(b"\x16\x03\x01\x02\x00garbage\xff\xfe\r\n\r\n\x00\x01")
    elif fault.kind == "content-type":
        reply.send(200, b"<html><body>It works!</body></html>", b"text/html; charset=utf-8")
    elif fault.kind == "error":
        problem = ApiError("The simulated engine fails on demand.")
        problem.status = fault.status
        reply.fail(problem)
    else:
        return False
    return True
