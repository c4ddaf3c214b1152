"""A gateway between hostile peers, and what must hold while they act and afterwards.

The fleet has two models. `tiny` has the hostile engine, and may have a good one too. `fine` has a
good engine of another namespace, and requests to it must all succeed meanwhile.
"""

import asyncio
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet, Instance, Model, ModelRouting, Role, SloTargets
from fairlead.limits import Limits
from fairlead_gateway.http.connection import connection_factory
from fairlead_gateway.proxy.gateway import Gateway
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.tenants.worker.api_keys import GatewaySecrets
from fairlead_gateway.upstream.response import EngineResponse
from fairlead_testing.simulated.event_loop import LinkSocket, SimulatedLoop, linked_sockets
from fairlead_testing.simulated.hostile_engine import (
    CHAT_PATH,
    ClientRequest,
    ClientScript,
    EngineScript,
    GoodEngine,
    HostileClient,
    HostileEngine,
    ReceivedResponse,
    plain_body,
    stream_events,
    tag,
)

LIMITS = Limits(
    response_seconds=40.0,
    first_token_seconds=40.0,
    first_token_min_seconds=8.0,
    stream_idle_seconds=12.0,
    unresponsive_seconds=3.0,
    body_seconds=30.0,
    body_idle_seconds=8.0,
    keepalive_idle_seconds=10.0,
    keep_alive_seconds=5.0,
    ejection_probe_seconds=1.5,
    handoff_min_tokens=16,
    handoff_prefill_seconds=6.0,
    handoff_lease_seconds=6.0,
    handoff_first_event_seconds=5.0,
    write_high_bytes=16_384,
    response_head_bytes=8_192,
    response_buffer_bytes=32_768,
    sse_event_bytes=20_000,
    resumable_bytes=65_536,
    buffered_responses_bytes=131_072,
)
SETTLE_SECONDS = 30.0
"""Until no pooled or lingering connection of the clients' requests is left."""
_MAX_READ_BYTES = 65_536
_GOOD_SECONDS = 2.0
_PROBE_TIMES = (*[0.5 * number for number in range(24)], 20.0, 45.0, 70.0)
_DRAIN_SECONDS = 10.0
_HOSTILE, _SECOND, _GOOD = ("10.0.0.1", 80), ("10.0.0.2", 80), ("10.0.0.3", 80)


class _ErrorLog(logging.Handler):
    """The errors that the gateway logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The circumstances of a scene.

    second: another engine of the model; None: a good one, if `has_second`.
    roles: of the hostile engine and the second one.
    transfer: the KV transfer between them.
    has_served_name: the hostile engine has another name for the model.
    leaves_at: seconds after which the engines of the model leave the fleet; 0: they stay.
    drains_at: seconds after which the gateway drains, for ten seconds; 0: it does not.
    """

    has_second: bool = False
    second: EngineScript | None = None
    roles: tuple[Role, Role] = (Role.SERVE, Role.SERVE)
    transfer: str = "nixl"
    has_served_name: bool = False
    leaves_at: float = 0.0
    drains_at: float = 0.0

    def fleet(self) -> Fleet:
        """Returns the fleet of the scene."""
        tiny = []
        for number, (host, port) in enumerate([_HOSTILE, _SECOND][: 1 + self.has_second]):
            url, role = f"http://{host}:{port}", self.roles[number]
            tiny.append(
                Instance(
                    f"e-{number}/{number}/0",
                    "evil",
                    "tiny",
                    role.value.lower(),
                    url,
                    role=role,
                    transfer=None if role is Role.SERVE else self.transfer,
                    bootstrap=url if role is Role.PREFILL and self.transfer != "nixl" else None,
                    served_name="own" if self.has_served_name and not number else None,
                )
            )
        return _fleet(tiny)


class Scene:
    """One run: a gateway, engines and clients. `problems` are the rules that did not hold."""

    def __init__(self, loop: SimulatedLoop, engine: EngineScript, surroundings: Surroundings) -> None:
        count = itertools.count(1)
        self._loop = loop
        self._surroundings = surroundings
        self._runtime = WorkerRuntime(loop, LIMITS, loop)
        self.gateway = Gateway(
            self._runtime,
            GatewaySecrets(b"a secret of the test", EngineCredentials({}, loop.now)),
            create_request_id=lambda: f"req-{next(count)}",
        )
        second = surroundings.second
        self.hostile, self.good = HostileEngine(engine), GoodEngine()
        self.second = GoodEngine() if second is None else HostileEngine(second, first_number=5_000)
        loop.listeners = {_HOSTILE: self.hostile.accept, _SECOND: self.second.accept, _GOOD: self.good.accept}
        self.gateway.update_fleet(surroundings.fleet())
        self.clients: list[HostileClient] = []
        self.problems: list[str] = []
        self._max_unsent = LIMITS.write_high_bytes + LIMITS.response_buffer_bytes + 2 * _MAX_READ_BYTES
        self._max_held = max(LIMITS.response_buffer_bytes, LIMITS.sse_event_bytes) + 2 * _MAX_READ_BYTES
        loop.simulated.on_advance = self._check_memory

    async def run(self, scripts: Sequence[ClientScript]) -> None:
        """Runs all clients, and checks what they got and what is left."""
        errors = _ErrorLog()
        log = logging.getLogger("fairlead")
        log.addHandler(errors)
        probes = [
            ClientScript((ClientRequest("fine", stream=number % 2 == 0),), at, leaves_after=_GOOD_SECONDS)
            for number, at in enumerate(_PROBE_TIMES)
        ]
        try:
            started = [
                self._loop.create_task(self._run_client(script, number), name="peer")
                for number, script in enumerate([*scripts, *probes])
            ]
            timers = self._schedule_changes()
            await asyncio.gather(*started)
            await asyncio.sleep(SETTLE_SECONDS)
            for timer in timers:
                timer.cancel()
            self.gateway.update_fleet(_fleet([]))  # an ejected engine is probed until it leaves
            await asyncio.sleep(2.0)
            self.problems += errors.lines
            for client in self.clients:
                self._check_client(client, is_probe=client.number >= len(scripts))
            self._check_leftovers()
        finally:
            log.removeHandler(errors)
            for engine in (self.hostile, self.second, self.good):
                await engine.close()
        if left := self._loop.live_timers():  # those of engines and clients are gone
            self.problems.append(f"left: timers: {left}")
        self.gateway.close()
        self.problems += self._loop.errors

    def _schedule_changes(self) -> list[asyncio.TimerHandle]:
        surroundings, loop = self._surroundings, self._loop
        timers: list[asyncio.TimerHandle] = []
        if surroundings.leaves_at:
            timers.append(loop.call_later(surroundings.leaves_at, self.gateway.update_fleet, _fleet([])))
        if surroundings.drains_at:
            timers.append(loop.call_later(surroundings.drains_at, self.gateway.drain))
            timers.append(loop.call_later(surroundings.drains_at + _DRAIN_SECONDS, self.gateway.end_drain))
        return timers

    async def _run_client(self, script: ClientScript, number: int) -> None:
        await asyncio.sleep(script.starts_after)
        near, far = linked_sockets()
        client = HostileClient(script, number)
        self.clients.append(client)
        await self._loop.connect_accepted_socket(connection_factory(self.gateway.listener), near)
        try:
            await client.run(far)
        except AssertionError as error:
            self.problems.append(f"client {number} got what is no HTTP: {error}")

    # What each client got.

    def _check_client(self, client: HostileClient, *, is_probe: bool) -> None:
        requests, responses = client.script.requests, client.reader.responses
        for index, (request, response) in enumerate(zip(requests, responses, strict=False)):
            problem = self._response_problem(client, index, request, response)
            if problem is not None:
                self.problems.append(f"client {client.number}, response {index}: {problem}: {response}")
        if self._surroundings.drains_at:
            return
        if is_probe and not (responses and responses[0].is_complete and responses[0].status == 200):
            self.problems.append(f"the good engine did not serve: {responses}")
        last = responses[-1] if responses else None
        is_answered = len(responses) >= client.sent_count or (last is not None and (last.closes or last.is_cut))
        if client.is_ended and not is_answered and not client.script.read_seconds:  # a slow one may be idle for long
            self.problems.append(f"client {client.number}: the connection was closed without an answer")

    def _response_problem(
        self, client: HostileClient, index: int, request: ClientRequest, response: ReceivedResponse
    ) -> str | None:
        nonce, size, body = client.nonce(index), request.answer_bytes, bytes(response.body)
        marks = [number for number in self._hostile_links if tag(number) in body]
        for number in marks:
            peer = self._hostile_links[number].peer
            if peer is not None and nonce.encode() + b"\r\n" not in peer.recorded:
                return "bytes for another caller"
        if b"good n-" in body and f"good {nonce}".encode() not in body:
            return "bytes of the good engine for another caller"
        if not response.is_complete:
            return None
        if b'"error"' in body and response.status != 200 and request.model != "fine":
            return None if b'"request_id"' in body or marks else "an error without a request"
        events = response.events
        is_stream = request.is_stream and response.status == 200
        is_broken = is_stream and b"the answer is incomplete" in body
        if is_broken and (request.timeout or self._surroundings.drains_at):
            return None
        if is_stream and not is_broken and (not events or events[-1] != b"[DONE]"):
            return "a stream that looks whole and is not"
        expected = b"".join(stream_events(nonce, size)) if is_stream else plain_body(nonce, size)
        is_good = request.path == CHAT_PATH and (
            request.model == "fine" or (b"good n-" in body and not request.resumable)
        )
        if is_good and response.status == 200 and _without_comments(body) != expected:
            return "a response of the good engine with other bytes"
        if request.model == "fine" and response.status not in self._good_statuses(request):
            return "the good engine was not asked"
        return None

    def _good_statuses(self, request: ClientRequest) -> tuple[int, ...]:
        own = (200, 400, 408)  # a request that comes too slowly gets an error
        return (*own, *((503,) if self._surroundings.drains_at else ()), *((504,) if request.timeout else ()))

    # What is left.

    def _check_memory(self) -> None:
        for transport in self._loop.transports:
            if transport.is_lost:
                continue
            protocol = transport.get_protocol()
            sink = getattr(protocol, "_sink", None)
            if not hasattr(protocol, "_sink"):
                unsent = transport.get_write_buffer_size()
                if unsent > self._max_unsent:
                    self.problems.append(f"{unsent} bytes wait for a client")
            elif isinstance(sink, EngineResponse):
                held = sum(map(len, sink._buffer)) + (sink._scanner.waiting_bytes if sink._scanner is not None else 0)
                if held > self._max_held:
                    self.problems.append(f"{held} bytes of one response are in memory")

    def _check_leftovers(self) -> None:
        gateway, runtime = self.gateway, self._runtime
        stack, listener = gateway.stages, gateway.listener
        open_links = [repr(link.peer) for link in self._links() if link.peer is not None and link.peer.fileno() >= 0]
        others = asyncio.all_tasks() - {asyncio.current_task()}
        tasks = [repr(task) for task in others if task.get_name() != "peer"]
        left = {
            "connections": open_links,
            "transports": [transport for transport in self._loop.transports if not transport.is_lost],
            "tasks": tasks,
            "requests": gateway.inflight_count(),
            "client connections": len(listener.connections),
            "buffered bytes": listener.buffered_bytes,
            "unparsed bytes": listener.unparsed_bytes,
            "response memory": runtime.response_memory.used_bytes,
            "namespaces with response memory": runtime.response_memory._by_namespace,
            "sent text": stack.relay.continuation.text_memory.used_bytes,
            "idle connections": stack.pool._idle,
            "unread connections": stack.pool._unread,
            "probes": stack.pool._probes,
            "inflight": {name: load for name, load in stack.routers.loads().items() if load.inflight},
        }
        self.problems += [f"left: {name}: {value}" for name, value in left.items() if value]

    @property
    def _hostile_links(self) -> dict[int, LinkSocket]:
        engines = [engine for engine in (self.hostile, self.second) if isinstance(engine, HostileEngine)]
        return {engine.first_number + at: link for engine in engines for at, link in enumerate(engine.links)}

    def _links(self) -> list[LinkSocket]:
        return [*self.hostile.links, *self.second.links, *self.good.links]


def _without_comments(body: bytes) -> bytes:
    return body.replace(b":\n\n", b"").replace(b": keep-alive\n\n", b"")


def _fleet(tiny: Sequence[Instance]) -> Fleet:
    models = {
        "evil/tiny": Model("evil", "tiny", SloTargets(), ModelRouting("round-robin")),
        "default/fine": Model("default", "fine", SloTargets(), ModelRouting("round-robin")),
    }
    host, port = _GOOD
    fine = (Instance("f-0/0/0", "default", "fine", "main", f"http://{host}:{port}"),)
    version = 1 + (not tiny)
    return Fleet(version, version, models, {"evil/tiny": tuple(tiny), "default/fine": fine})


def run_scene(
    engine: EngineScript,
    clients: Sequence[ClientScript],
    surroundings: Surroundings | None = None,
    *,
    received: list[ReceivedResponse] | None = None,
) -> list[str]:
    """Runs a gateway between an engine and clients; returns the rules that did not hold.

    received: gets the responses to the first client.
    """
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, SimulatedLoop)

        async def main() -> list[str]:
            scene = Scene(loop, engine, surroundings or Surroundings())
            await scene.run(clients)
            if received is not None:
                received.extend(next(client for client in scene.clients if not client.number).reader.responses)
            return scene.problems

        return runner.run(main())
