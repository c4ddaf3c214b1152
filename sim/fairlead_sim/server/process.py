"""One process with one or many engines on their ports: start, say ``ready``, serve, and leave on SIGTERM or SIGINT."""

import asyncio
import functools
import gc
import signal
import socket
from collections.abc import Callable, Sequence
from random import Random

import zmq

from fairlead.clock import Clock
from fairlead.errors import SettingsError
from fairlead.lag import LoopLag
from fairlead.limits import Limits
from fairlead_sim.server import faults, parts, routes
from fairlead_sim.server.app import App
from fairlead_sim.server.connection import Connection
from fairlead_sim.server.engine import Engine
from fairlead_sim.server.problems import CORE_DIED, Broken
from fairlead_sim.server.settings import EngineSettings
from fairlead_sim.tokenizer import Tokenizer

_FLUSH_SECONDS = 1.0
_LAG_KEPT = 1_000


class Served:
    """An engine with its listening socket."""

    def __init__(self, engine: Engine, app: App, listening: asyncio.Server, url: str) -> None:
        self.engine = engine
        self.app = app
        self.url = url
        self._listening = listening
        self._left = asyncio.Event()

    async def stop(self, timeout: float) -> None:
        """Leave as vLLM does: abort what runs, or with a timeout let it finish first. Listens until nothing runs."""
        engine = self.engine
        engine.draining = True
        if timeout > 0 and engine.answers:
            drained = asyncio.Event()
            engine.when_empty(drained.set)
            try:
                await asyncio.wait_for(drained.wait(), timeout)
            except TimeoutError:
                pass
        outcome = engine.settings.on_sigterm or ("silence" if timeout > 0 else "abort")
        if outcome == "silence" and engine.answers:
            await self._fall_silent()
        elif outcome == "error":
            engine.core_dead = True
            for answer in list(engine.answers):
                answer.fail(Broken(CORE_DIED))
        else:
            engine.abort_answers()
        await self.close()

    async def close(self) -> None:
        """Close listener and connections; what is written gets a second to leave."""
        self._listening.close()
        self.engine.stop()
        for connection in list(self.app.connections):
            connection.close_when_idle()
        try:
            await asyncio.wait_for(self.app.empty.wait(), _FLUSH_SECONDS)
        except TimeoutError:
            for connection in list(self.app.connections):
                connection.drop()
            await self.app.empty.wait()
        self._left.set()

    def vanish(self) -> None:
        """Be gone like a killed process: resets everywhere, nothing said."""
        self._listening.close()
        self.engine.stop()
        for connection in list(self.app.connections):
            connection.drop()
        self._left.set()

    async def left(self) -> None:
        """Returns once this engine is gone."""
        await self._left.wait()

    async def _fall_silent(self) -> None:
        """The worst of the real outcomes: the core is gone, streams get neither byte nor end, until clients give up."""
        self._listening.close()
        for driver in self.engine.drivers:
            driver.stop()
        for connection in list(self.app.connections):
            if not connection.busy:
                connection.close()
        await self.app.empty.wait()


async def serve(
    settings: EngineSettings,
    *,
    host: str,
    port: int,
    clock: Clock,
    random: Random,
    tokenizer: Tokenizer,
    lag: LoopLag | None = None,
    context: parts.Context | None = None,
    die: "Callable[[Served], None] | None" = None,
) -> Served:
    """Start one engine listening on ``host:port`` (0 = a free one). Without ``die`` its death ends only itself."""
    loop = asyncio.get_running_loop()
    listening_socket = _listen(host, port)
    bound = listening_socket.getsockname()[1]
    served: list[Served] = []

    def death() -> None:
        (die or Served.vanish)(served[0])

    engine = Engine(
        settings, tokenizer=tokenizer, clock=clock, random=random, port=bound, lag=lag, context=context, die=death
    )
    app = App(engine, routes.build())
    listening = await loop.create_server(functools.partial(Connection, app), sock=listening_socket, backlog=2048)
    shown = f"[{host}]" if ":" in host else host
    served.append(Served(engine, app, listening, f"http://{shown}:{bound}"))
    return served[0]


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


async def run(
    settings: EngineSettings,
    *,
    host: str,
    port: int,
    count: int,
    clock: Clock,
    random: Random,
    armed: Sequence[tuple[int | None, faults.Fault]],
    say: Callable[[str], None],
) -> None:
    """Serve ``count`` engines until a signal comes, or until every engine has died."""
    if not 1 <= count <= Limits().sim_engines_per_process:
        most = Limits().sim_engines_per_process
        raise SettingsError(f"{count} engines in one process", field="--count", hint=f"from 1 to {most}")
    fleet: list[Served] = []
    signalled = _on_signals(fleet)
    lag = LoopLag(keep=_LAG_KEPT)
    lag.start()
    tokenizer = Tokenizer()
    context: parts.Context | None = zmq.Context() if settings.kv_events.endpoint else None
    try:
        for at in range(count):
            served = await serve(
                parts.moved(settings, at),
                host=host,
                port=port + at if port else 0,
                clock=clock,
                random=random,
                tokenizer=tokenizer,
                lag=lag,
                context=context,
                die=_exit if count == 1 else None,
            )
            fleet.append(served)
            for number, fault in armed:
                if number is None or number == at:
                    served.engine.faults.arm(fault)
        gc.collect()
        gc.freeze()
        for served in fleet:
            say(f"ready {served.url}")
        await _until(signalled, fleet)
        await asyncio.gather(*(served.stop(settings.shutdown_timeout) for served in fleet))
    finally:
        lag.stop()
        for served in fleet:
            served.engine.stop()
        if context is not None:
            context.term()


def _on_signals(fleet: Sequence[Served]) -> asyncio.Event:
    """SIGTERM or SIGINT sets the event; a second one ends everything at once."""
    signalled = asyncio.Event()

    def told() -> None:
        if signalled.is_set():
            for served in fleet:
                served.vanish()
        signalled.set()

    for kind in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(kind, told)
    return signalled


async def _until(signalled: asyncio.Event, fleet: Sequence[Served]) -> None:
    """Wait for a signal, or for the last engine to go by itself."""

    async def all_left() -> None:
        for served in fleet:
            await served.left()

    async def told() -> None:
        await signalled.wait()

    waits = {asyncio.create_task(told()), asyncio.create_task(all_left())}
    _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()


def _exit(_served: Served) -> None:
    faults.exit_now()
