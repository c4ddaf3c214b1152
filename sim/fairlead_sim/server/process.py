"""A process with one or many engines: start, print ``ready``, serve, exit on SIGTERM or SIGINT."""

import asyncio
import functools
import gc
import signal
import socket
from collections.abc import Callable, Sequence
from random import Random

import zmq

from fairlead.engines.sim import SIM_ENGINES_PER_PROCESS
from fairlead.errors import SettingsError
from fairlead.runtime.clock import Clock
from fairlead.runtime.event_loop import close_server
from fairlead.runtime.loop_lag import LoopLag
from fairlead_sim.api import routes
from fairlead_sim.api.app import EngineApp
from fairlead_sim.engine.tokenizer import Tokenizer
from fairlead_sim.http.connection import ServerConnection
from fairlead_sim.http.errors import CORE_DIED_MESSAGE, InternalError
from fairlead_sim.runtime import fault_injection
from fairlead_sim.runtime.settings import EngineSettings
from fairlead_sim.runtime.simulated_engine import EngineResources, SimulatedEngine, ZmqContext, shift_event_ports
from fairlead_sim.server.command_line import EngineProcessOptions

_FLUSH_SECONDS = 1.0
_LAG_SAMPLES = 1_000


class RunningEngine:
    """An engine with its listening socket."""

    def __init__(self, engine: SimulatedEngine, app: EngineApp, listening: asyncio.Server, url: str) -> None:
        self.engine = engine
        self.app = app
        self.url = url
        self._listening = listening
        self._gone = asyncio.Event()

    async def stop(self, timeout: float) -> None:
        """Lets requests finish within ``timeout`` seconds, and ends the others by ``on_sigterm``.

        The outcomes are those of vLLM: an abort, an error, or open streams without a further byte.
        """
        engine = self.engine
        engine.is_draining = True
        if timeout > 0 and engine.responses:
            drained = asyncio.Event()
            engine.call_when_empty(drained.set)
            try:
                await asyncio.wait_for(drained.wait(), timeout)
            except TimeoutError:
                pass
        outcome = engine.settings.on_sigterm or ("silence" if timeout > 0 else "abort")
        if outcome == "silence" and engine.responses:
            await self._freeze_streams()
        elif outcome == "error":
            engine.is_core_dead = True
            for answer in list(engine.responses):
                answer.fail(InternalError(CORE_DIED_MESSAGE))
        else:
            engine.abort_responses()
        await self.close()

    async def close(self) -> None:
        """Closes listener and connections; written bytes get a second to leave."""
        await close_server(self._listening)
        self.engine.stop()
        for connection in list(self.app.connections):
            connection.close_when_idle()
        try:
            await asyncio.wait_for(self.app.has_no_connections.wait(), _FLUSH_SECONDS)
        except TimeoutError:
            for connection in list(self.app.connections):
                connection.drop()
            await self.app.has_no_connections.wait()
        self._gone.set()

    def kill(self) -> None:
        """Ends like a killed process: all connections are reset."""
        self._listening.close()
        self.engine.stop()
        for connection in list(self.app.connections):
            connection.drop()
        self._gone.set()

    async def wait_gone(self) -> None:
        await self._gone.wait()

    async def _freeze_streams(self) -> None:
        """Stops the core and leaves streams open without a byte: the worst outcome of the real
        engine.
        """
        await close_server(self._listening)
        for driver in self.engine.drivers:
            driver.stop()
        for connection in list(self.app.connections):
            if not connection.is_busy:
                connection.close()
        await self.app.has_no_connections.wait()


async def start_engine(
    settings: EngineSettings,
    resources: EngineResources,
    *,
    host: str,
    port: int,
    on_death: "Callable[[RunningEngine], None] | None" = None,
) -> RunningEngine:
    """Starts one engine that listens on ``host:port``; port 0 takes a free port.

    Raises SettingsError if the address cannot be bound.

    on_death: called when the engine crashes. None: this engine ends, the process stays.
    """
    loop = asyncio.get_running_loop()
    listening_socket = _listen(host, port)
    bound = listening_socket.getsockname()[1]
    started: list[RunningEngine] = []

    def die() -> None:
        (on_death or RunningEngine.kill)(started[0])

    engine = SimulatedEngine(settings, resources, port=bound, on_death=die)
    app = EngineApp(engine, routes.build_routes())
    listening = await loop.create_server(functools.partial(ServerConnection, app), sock=listening_socket, backlog=2048)
    shown = f"[{host}]" if ":" in host else host
    started.append(RunningEngine(engine, app, listening, f"http://{shown}:{bound}"))
    return started[0]


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise SettingsError(f"cannot listen on {host}:{port}: {error}", field="--listen") from error
    listening.setblocking(False)
    return listening


async def run_engines(
    options: EngineProcessOptions, *, clock: Clock, random: Random, print_line: Callable[[str], None]
) -> None:
    """Serves engines until a signal comes or all engines have ended.

    Raises SettingsError for a wrong number of engines, or an address that cannot be bound.
    """
    settings, port, count = options.settings, options.port, options.count
    if not 1 <= count <= SIM_ENGINES_PER_PROCESS:
        raise SettingsError(
            f"one process cannot have {count} engines", field="--count", hint=f"from 1 to {SIM_ENGINES_PER_PROCESS}"
        )
    engines: list[RunningEngine] = []
    signalled = _listen_for_signals(engines)
    lag = LoopLag(max_samples=_LAG_SAMPLES)
    lag.start()
    context: ZmqContext | None = zmq.Context() if settings.kv_events.endpoint else None
    resources = EngineResources(clock, random, Tokenizer(), lag, context)
    try:
        for index in range(count):
            running = await start_engine(
                shift_event_ports(settings, index),
                resources,
                host=options.host,
                port=port + index if port else 0,
                on_death=_exit_process if count == 1 else None,
            )
            engines.append(running)
            for number, fault in options.faults:
                if number is None or number == index:
                    running.engine.fault_injector.arm(fault)
        gc.collect()
        gc.freeze()
        for running in engines:
            print_line(f"ready {running.url}")
        await _wait_for_exit(signalled, engines)
        await asyncio.gather(*(running.stop(settings.shutdown_timeout) for running in engines))
    finally:
        lag.stop()
        for running in engines:
            running.engine.stop()
        if context is not None:
            context.term()


def _listen_for_signals(fleet: Sequence[RunningEngine]) -> asyncio.Event:
    """Returns an event that SIGTERM or SIGINT sets; a second signal kills all engines."""
    signalled = asyncio.Event()

    def on_signal() -> None:
        if signalled.is_set():
            for served in fleet:
                served.kill()
        signalled.set()

    for kind in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(kind, on_signal)
    return signalled


async def _wait_for_exit(signalled: asyncio.Event, fleet: Sequence[RunningEngine]) -> None:
    """Waits for a signal, or for the end of the last engine."""

    async def all_left() -> None:
        for served in fleet:
            await served.wait_gone()

    async def wait_signal() -> None:
        await signalled.wait()

    waits = {asyncio.create_task(wait_signal()), asyncio.create_task(all_left())}
    _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()


def _exit_process(_served: RunningEngine) -> None:
    fault_injection.exit_process()
