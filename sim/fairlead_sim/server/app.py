"""From a request to its handler: faults first, then path and method, then the handler, and the count of what was answered."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fairlead.limits import Limits
from fairlead_sim.server.connection import Connection, Reply, Request
from fairlead_sim.server.engine import Engine
from fairlead_sim.server.faults import Fault
from fairlead_sim.server.heads import Heads
from fairlead_sim.server.problems import ApiProblem, Disabled, NotServed

SCALE_OUT_OFF = "Scale-out endpoints are disabled. Set --enable-scale-out to enable them."


@dataclass(slots=True)
class Call:
    """One request on its way through a handler."""

    app: "App"
    engine: Engine
    request: Request
    reply: Reply
    fault: Fault | None = None


Handler = Callable[[Call], None]


@dataclass(frozen=True, slots=True)
class Route:
    """What answers a path: a handler a method. ``generates``: counted in ``/load`` and the target of most faults.

    ``switch`` names the part of the surface that the route belongs to: without it there is no such path (403 for scale-out).
    """

    handlers: Mapping[str, Handler]
    generates: bool = False
    switch: str | None = None
    anthropic: bool = False


class App:
    """The HTTP side of one engine."""

    def __init__(self, engine: Engine, routes: Mapping[str, Route]) -> None:
        settings = engine.settings
        self.engine = engine
        self.heads = Heads(engine.clock)
        self.random = engine.random
        self.keep_alive_seconds = settings.keep_alive_seconds
        self.body_bytes = Limits().body_bytes
        self.echo_request_ids = settings.surface.request_id_headers
        self.connections: set[Connection] = set()
        self.empty = asyncio.Event()
        self.empty.set()
        self.requests_seen = 0
        self.requests_while_draining = 0
        self._routes = routes

    def opened(self, connection: Connection) -> bool:
        """Let a connection in, unless a fault says otherwise."""
        fault = self.engine.faults.connection()
        self.connections.add(connection)
        self.empty.clear()
        if fault == "hang":
            connection.go_deaf()
        return fault != "refuse"

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self.connections.discard(connection)
        if not self.connections:
            self.empty.set()

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request."""
        engine = self.engine
        route = self._routes.get(request.path)
        if route is not None:
            reply.anthropic = route.anthropic
            if route.generates:
                self.requests_seen += 1
                self.requests_while_draining += engine.draining
        self._count(request, reply, route)
        if route is None or not self._on(route):
            raise NotServed
        handler = route.handlers.get(request.method)
        if handler is None:
            raise NotServed(allow=", ".join(route.handlers))
        fault = None
        if not request.path.startswith("/sim/"):
            fault = engine.faults.request(generates=route.generates)
            if fault is not None and _spoil(fault, reply):
                return
        handler(Call(self, engine, request, reply, fault))

    def _on(self, route: Route) -> bool:
        if route.switch is None or getattr(self.engine.settings.surface, route.switch):
            return True
        if route.switch == "scale_out":
            raise Disabled(SCALE_OUT_OFF)
        return False

    def _count(self, request: Request, reply: Reply, route: Route | None) -> None:
        began = time.monotonic()
        path = request.path if route is not None else None
        received = len(request.body)

        def sent(status: int, size: int) -> None:
            seconds = time.monotonic() - began
            self.engine.metrics.http.answered(
                path, request.method, status, seconds, received_bytes=received, sent_bytes=size
            )

        reply.on_sent = sent


def _spoil(fault: Fault, reply: Reply) -> bool:
    """Answer as the fault wants; False when it acts later."""
    if fault.kind == "refuse":
        reply.cut()
    elif fault.kind == "hang":
        pass  # the request stays open until its client gives up
    elif fault.kind == "garbage":
        reply.raw(b"\x16\x03\x01\x02\x00garbage\xff\xfe\r\n\r\n\x00\x01")
    elif fault.kind == "content-type":
        reply.send(200, b"<html><body>It works!</body></html>", b"text/html; charset=utf-8")
    elif fault.kind == "error":
        problem = ApiProblem("The simulated engine was told to fail.")
        problem.status = fault.status
        reply.fail(problem)
    else:
        return False
    return True
