"""One worker process: its channel to the supervisor, its start and its end."""

import asyncio
import logging
import mmap
import signal
import socket

from fairlead.errors import FairleadError
from fairlead.limits import Limits
from fairlead.runtime import nonblocking_log, process_tuning
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.compiled_build import is_compiled
from fairlead.settings import GatewaySettings
from fairlead_gateway import messages
from fairlead_gateway.http.sockets import ListenAddress
from fairlead_gateway.ipc.channel import Channel
from fairlead_gateway.proxy import forwarder
from fairlead_gateway.proxy.memory_pressure import IdleRelease
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.worker.server import PublicServer
from fairlead_gateway.worker.services import WorkerServices

_log = logging.getLogger("fairlead.gateway")
_CHANNEL_CLOSE_SECONDS = 1.0
_REPLACEMENT_SECONDS = 10.0  # for the supervisor to replace a worker that got SIGTERM


class Worker:
    """One worker process.

    shared_memory: the load table that the workers share; None without siblings and peers.
    sibling_port: where it listens for requests of other workers; None without siblings.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        limits: Limits,
        shared_memory: mmap.mmap | None,
        sibling_port: socket.socket | None = None,
    ) -> None:
        self._settings = settings
        self._sibling_port = sibling_port
        self._shared_memory = shared_memory
        self._runtime = WorkerRuntime(
            SystemClock(), limits, asyncio.get_running_loop(), process_tuning.max_open_files()
        )
        self._configured: asyncio.Future[messages.Configure | None] = self._runtime.loop.create_future()
        self._stop = asyncio.Event()
        self._channel_closed = asyncio.Event()
        self._channel: Channel[messages.ToWorker] = Channel(
            messages.ToWorker, self._on_message, self._on_channel_closed
        )
        self._early_messages: list[messages.ToWorker] = []
        self._services: WorkerServices | None = None
        self._server: PublicServer | None = None

    async def run(self, channel_socket: socket.socket) -> int:
        """Serves until it must end; returns 2 if it could not start, else 0."""
        self._runtime.loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        self._runtime.loop.set_exception_handler(nonblocking_log.on_loop_exception)
        await self._channel.open(channel_socket)
        configuration = await self._configured
        if configuration is None:
            return 0
        try:
            server, services = await self._start_serving(configuration)
        except (FairleadError, OSError) as error:
            self._channel.send(messages.StartFailed(str(error)))
            await self._close_channel()
            return 2
        try:
            await self._stop.wait()
            await server.drain()
        finally:
            server.close()
            services.send_final_counters()
            await self._close_channel()
        return 0

    async def _start_serving(self, configuration: messages.Configure) -> tuple[PublicServer, WorkerServices]:
        services = WorkerServices(configuration, self._settings, self._runtime, self._channel, self._shared_memory)
        if services.certificate is not None:
            await services.certificate.load()
        services.gateway.stages.routers.set_indexed_models(configuration.indexed_models)
        services.gateway.update_fleet(configuration.fleet)
        process_tuning.freeze_heap()  # takes tens of milliseconds, so before the first request
        process_tuning.relax_gc()
        IdleRelease().start(self._runtime.loop)
        public = ListenAddress(configuration.host, configuration.port).bind(shared=True)
        server = PublicServer(services.gateway, public, services.certificate, self._sibling_port)
        await server.start()
        self._server = server
        self._services = services
        for message in self._early_messages:
            self._on_message(message)
        self._early_messages.clear()
        build = "compiled" if is_compiled(forwarder.__file__) else "interpreted"
        _log.info("worker %d runs %s", configuration.number, build)
        self._channel.send(messages.WorkerReady(services.gateway.stages.routers.fleet.version))
        return server, services

    def _on_message(self, message: messages.ToWorker) -> None:
        if isinstance(message, messages.Configure):
            if not self._configured.done():
                self._configured.set_result(message)
        elif isinstance(message, messages.StartDrain):
            self._end()
        elif isinstance(message, messages.EndDrain):
            self._end()
            if self._server is not None:
                self._server.end_drain()
        elif self._services is None:
            self._early_messages.append(message)
        else:
            self._services.apply(message)

    def _on_sigterm(self) -> None:
        """Requests a replacement, and drains in 10 s at the latest; without a supervisor, now."""
        if self._services is not None and self._channel.send(messages.DrainRequested()):
            self._runtime.loop.call_later(_REPLACEMENT_SECONDS, self._stop.set)
        else:
            self._end()

    def _on_channel_closed(self) -> None:
        self._channel_closed.set()
        self._end()

    def _end(self) -> None:
        self._stop.set()
        if not self._configured.done():
            self._configured.set_result(None)

    async def _close_channel(self) -> None:
        """Closes the channel, and waits until everything is sent, for a second at most."""
        self._channel.close()
        try:
            async with asyncio.timeout(_CHANNEL_CLOSE_SECONDS):
                await self._channel_closed.wait()
        except TimeoutError:
            pass
