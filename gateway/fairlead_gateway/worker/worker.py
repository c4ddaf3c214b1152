"""Worker."""

import asyncio
import logging
import mmap
import os
import signal
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.errors import FairleadError
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead.runtime import nonblocking_log, process_tuning
from fairlead.runtime.clock import SystemClock
from fairlead.runtime.compiled_build import is_compiled
from fairlead.settings import GatewaySettings
from fairlead_gateway.http.sockets import ListenAddress
from fairlead_gateway.http.tls import TlsCertificate
from fairlead_gateway.ipc import messages as say
from fairlead_gateway.ipc.channel import Channel
from fairlead_gateway.routing.hooks import SiblingWorkers
from fairlead_gateway.routing.load.shared_memory import SharedLoadTable
from fairlead_gateway.routing.prefix.prefix_hash import unpack_hashes
from fairlead_gateway.worker import memory_pressure
from fairlead_gateway.worker.api_keys import ApiKeys
from fairlead_gateway.worker.proxy import forwarder
from fairlead_gateway.worker.proxy.gateway import Gateway
from fairlead_gateway.worker.query_handler import QueryHandler
from fairlead_gateway.worker.reporting.dispatch_reporter import DispatchReporter
from fairlead_gateway.worker.reporting.index_reporter import IndexReporter, apply_corrections
from fairlead_gateway.worker.reporting.peer_updates import PeerUpdateApplier
from fairlead_gateway.worker.reporting.timing_reporter import TimingReporter
from fairlead_gateway.worker.request_ids import RequestIds
from fairlead_gateway.worker.server import PublicServer

if TYPE_CHECKING:  # most gateways observe nothing, and then need none of it
    from fairlead_gateway.worker.observability.observers import RequestObservers


_log = logging.getLogger("fairlead.gateway")


_CHANNEL_CLOSE_SECONDS = 1.0


_REPLACEMENT_SECONDS = 10.0  # for the helper to put another in the place of a worker that was told to go


class Worker:
    """One worker. ``rows`` is the memory shared with siblings, None where there are none."""

    def __init__(self, settings: GatewaySettings, limits: Limits, shared_memory: mmap.mmap | None) -> None:
        self._settings = settings
        self._limits = limits
        self._shared_memory = shared_memory
        self._clock = SystemClock()
        self._loop = asyncio.get_running_loop()
        self._configured: asyncio.Future[say.Configure | None] = self._loop.create_future()
        self._stop = asyncio.Event()
        self._channel_closed = asyncio.Event()
        self._channel: Channel[say.ToWorker] = Channel(say.ToWorker, self._on_message, self._on_channel_closed, limits)
        self._early_messages: list[say.ToWorker] = []
        self._supervisor_warnings: list[str] = []
        self._certificate_warning: str | None = None
        self._gateway: Gateway | None = None
        self._api_keys: ApiKeys | None = None
        self._certificate: TlsCertificate | None = None
        self._shared_loads: SharedLoadTable | None = None
        self._dispatch_reporter: DispatchReporter | None = None
        self._peer_updates: PeerUpdateApplier | None = None
        self._index_reporter: IndexReporter | None = None
        self._query_handler: QueryHandler | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, sock: socket.socket) -> int:
        """Serve until told to stop; 0 after a clean drain, 2 when it could not start."""
        self._loop.add_signal_handler(signal.SIGTERM, self._on_sigterm)
        self._loop.set_exception_handler(nonblocking_log.on_loop_exception)
        await self._channel.open(sock)
        setup = await self._configured
        if setup is None:
            return 0
        observing = self._create_observers(setup)
        try:
            server = await self._start_serving(setup, observing)
        except (FairleadError, OSError) as error:
            self._channel.send(say.StartFailed(str(error)))
            await self._close_channel()
            return 2
        try:
            await self._stop.wait()
            await server.drain()
        finally:
            server.close()
            self._send_final_counters()
            await self._close_channel()
        return 0

    # Start ---------------------------------------------------------------------------------------------------------------

    async def _start_serving(self, setup: say.Configure, observing: "RequestObservers | None") -> PublicServer:
        if setup.certificate is not None:
            self._certificate = TlsCertificate(Path(setup.certificate[0]), Path(setup.certificate[1]))
            await self._certificate.load()
        if setup.keys is not None and setup.pepper is not None:
            self._api_keys = ApiKeys(setup.pepper, setup.keys)
        gateway = self._gateway = self._create_gateway(setup, observing)
        self._supervisor_warnings = setup.notes
        gateway.warnings = self._warnings
        self._query_handler = QueryHandler(gateway, self._channel.send)
        self._assign_slots(setup.slots)
        gateway.update_fleet(setup.fleet)
        process_tuning.freeze_heap()  # takes tens of milliseconds: before anybody is served
        process_tuning.relax_gc()
        public = ListenAddress(setup.host, setup.port).bind(shared=True)
        server = PublicServer(gateway, public, self._certificate)
        await server.start()
        for message in self._early_messages:
            self._on_message(message)
        self._early_messages.clear()
        _log.info("worker %d runs %s", setup.number, "compiled" if is_compiled(forwarder.__file__) else "interpreted")
        self._channel.send(say.WorkerReady(gateway.fleet().version))
        return server

    def _create_gateway(self, setup: say.Configure, observing: "RequestObservers | None") -> Gateway:
        siblings = None
        if self._shared_memory is not None:
            self._shared_loads = SharedLoadTable(
                memoryview(self._shared_memory).cast("q"), self._limits.shared_slots, setup.row
            )
            self._shared_loads.set_active_rows(setup.siblings)
        if self._shared_memory is not None or setup.publish:
            self._dispatch_reporter = DispatchReporter(
                self._channel, self._loop, self._limits, publish=setup.publish, loads=lambda: gateway.loads()
            )
        if self._shared_loads is not None and self._dispatch_reporter is not None:
            siblings = SiblingWorkers(
                self._shared_loads,
                self._dispatch_reporter.on_dispatch,
                self._dispatch_reporter.on_crash,
                self._dispatch_reporter.on_cleared,
            )
        if setup.indexed:
            self._index_reporter = IndexReporter(self._channel, self._loop, self._limits)
        gateway = Gateway(
            clock=self._clock,
            limits=self._limits,
            loop=self._loop,
            secret=setup.secret,
            new_id=RequestIds().next,
            api_keys=self._api_keys,
            environ=os.environ,
            memory_share=memory_pressure.memory_share_reader(self._settings.memory_limit),
            observers=observing,
            siblings=siblings,
            dispatch_hooks=self._index_reporter.hooks if self._index_reporter is not None else None,
            prompt_samples=self._index_reporter.samples if self._index_reporter is not None else None,
            timing_reporter=TimingReporter(self._channel, self._loop, self._limits),
        )
        gateway.admission.on_needs_instance = self._report_needs_instance
        if setup.publish and self._dispatch_reporter is not None:
            gateway.decisions.on_record = self._dispatch_reporter.on_decision
        if self._shared_loads is not None:
            self._peer_updates = PeerUpdateApplier(self._loop, self._limits, gateway.on_peer_dispatch)
        return gateway

    def _report_needs_instance(self, key: str) -> None:
        self._channel.send(say.NeedsInstance(key))

    def _create_observers(self, setup: say.Configure) -> "RequestObservers | None":
        if self._settings.access_log is None and self._settings.trace_endpoint is None:
            return None
        from fairlead_gateway.worker.observability.observers import create_observers
        from fairlead_gateway.worker.observability.settings import parse_observability_settings

        return create_observers(
            parse_observability_settings(self._settings),
            clock=self._clock,
            limits=self._limits,
            instance_id=setup.gateway_id,
        )

    # The channel ---------------------------------------------------------------------------------------------------------

    def _on_message(self, message: say.ToWorker) -> None:
        if isinstance(message, say.Configure):
            if not self._configured.done():
                self._configured.set_result(message)
        elif isinstance(message, say.StartDrain):
            self._stop.set()
            if not self._configured.done():
                self._configured.set_result(None)
        elif self._query_handler is None:
            self._early_messages.append(message)
        else:
            self._apply_message(message, self._query_handler)

    def _apply_message(self, message: say.ToWorker, answers: QueryHandler) -> None:
        match message:
            case say.PeerUpdates(sent, deaths, cleared):
                if self._peer_updates is not None and sent is not None:
                    self._peer_updates.enqueue(sent)
                if self._gateway is not None:
                    for death in deaths:
                        self._gateway.poison_guard.on_peer_crash(*death)
                    for clearing in cleared:
                        self._gateway.poison_guard.on_peer_cleared(*clearing)
            case say.HotPrefixUpdate(model, epoch, serving, prefilling):
                if self._gateway is not None:
                    self._gateway.set_hot_prefixes(model, epoch, unpack_hashes(serving), unpack_hashes(prefilling))
            case say.IndexCorrections():
                if self._gateway is not None:
                    apply_corrections(self._gateway, message)
            case say.ProfileUpdate(profiles):
                if self._gateway is not None:
                    self._gateway.set_learned_profiles(profiles)
            case say.SampleRequest():
                if self._index_reporter is not None:
                    self._index_reporter.send_samples(message)
            case say.FleetUpdate(fleet, slots):
                self._assign_slots(slots)
                self._update_fleet(fleet)
            case say.KeyUpdate(keys):
                if self._api_keys is not None:
                    self._api_keys.replace(keys)
            case say.ActiveRows(rows):
                if self._shared_loads is not None:
                    self._shared_loads.set_active_rows(rows)
            case say.WarningsUpdate(notes):
                self._supervisor_warnings = notes
            case say.ReloadCertificate():
                self._start_task(self._reload_certificate())
            case say.GetState() | say.GetCounters() | say.GetDecisions() | say.GetDecision() | say.PreviewRoute():
                self._start_task(answers.handle(message))
            case _:
                pass

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _assign_slots(self, slots: dict[str, int]) -> None:
        """Before their fleet is applied: what it routes to is seen by the siblings from the first request on."""
        if self._shared_loads is not None and self._gateway is not None:
            self._shared_loads.set_slots(slots)
            self._gateway.republish_loads()

    def _update_fleet(self, fleet: Fleet) -> None:
        """A snapshot that cannot be applied leaves the last one in use."""
        assert self._gateway is not None
        problem = None
        try:
            self._gateway.update_fleet(fleet)
        except FairleadError as error:
            problem = str(error)
        self._channel.send(say.FleetApplied(fleet.version, problem))

    async def _reload_certificate(self) -> None:
        if self._certificate is None:
            return
        try:
            await self._certificate.load()
            self._certificate_warning = None
        except (FairleadError, OSError, ValueError) as error:
            self._certificate_warning = f"the certificate cannot be used, the last good state stays: {error}"
            _log.warning("%s", self._certificate_warning)

    def _warnings(self) -> list[str]:
        return [
            *self._supervisor_warnings,
            *([self._certificate_warning] if self._certificate_warning is not None else []),
        ]

    def _on_sigterm(self) -> None:
        """SIGTERM: go once somebody else listens, which the helper tells; soon in any case, and at once without a helper."""
        if self._query_handler is not None and self._channel.send(say.DrainRequested()):
            self._loop.call_later(_REPLACEMENT_SECONDS, self._stop.set)
        else:
            self._stop.set()
            if not self._configured.done():
                self._configured.set_result(None)

    def _on_channel_closed(self) -> None:
        """The helper is gone."""
        self._channel_closed.set()
        self._stop.set()
        if not self._configured.done():
            self._configured.set_result(None)

    def _send_final_counters(self) -> None:
        if self._dispatch_reporter is not None:
            self._dispatch_reporter.flush()
        if self._query_handler is not None:
            self._channel.send(self._query_handler.final_counters())

    async def _close_channel(self) -> None:
        """Until what was sent has gone out, or nobody reads it."""
        self._channel.close()
        try:
            async with asyncio.timeout(_CHANNEL_CLOSE_SECONDS):
                await self._channel_closed.wait()
        except TimeoutError:
            pass
