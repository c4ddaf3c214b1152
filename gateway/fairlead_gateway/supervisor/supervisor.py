"""The supervisor process: everything of a gateway that is slow.

It follows files or the cluster, queries engines and Redis, and serves the management port. It runs
the workers, which carry the bytes. No request waits for it: what it shows may be late.

Why: the supervisor follows files, not each worker. Files are read and checked once, all workers
change at the same moment, and none of them loads a YAML parser.
"""

import asyncio
import logging
import random
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING

from fairlead.audit import AuditLog
from fairlead.fleet.model import Fleet
from fairlead.limits import Limits
from fairlead.runtime import nonblocking_log, process_tuning
from fairlead.runtime.clock import Clock
from fairlead.runtime.file_watcher import FileWatcher
from fairlead.runtime.tasks import cancel_and_wait, first_failure
from fairlead_gateway import messages as say
from fairlead_gateway.audit.supervisor import AuditService, manage_token_watchers
from fairlead_gateway.errors import RelayedError
from fairlead_gateway.http.sockets import socket_url
from fairlead_gateway.idempotency.supervisor.gateway_addresses import GatewayAddresses
from fairlead_gateway.kv_index.messages import IndexedModels, PromptSamples
from fairlead_gateway.kv_index.supervisor.index_service import KvIndexService
from fairlead_gateway.limits.messages import QuotaReport
from fairlead_gateway.messages import LoggedDecision
from fairlead_gateway.profiles.supervisor import ProfilingService
from fairlead_gateway.supervisor import worker_handle as reports
from fairlead_gateway.supervisor.background_services import BackgroundServices, create_background_services
from fairlead_gateway.supervisor.config import GatewayConfig
from fairlead_gateway.supervisor.lost_instances import LostInstances
from fairlead_gateway.supervisor.management import GatewayStatus
from fairlead_gateway.supervisor.management.server import ManagementServer
from fairlead_gateway.supervisor.scale_from_zero import ScaleUpNotifier
from fairlead_gateway.supervisor.worker_handle import PreforkedWorkers, RoutedMessage, WorkerHandle
from fairlead_gateway.supervisor.worker_pool import WorkerPool, WorkerPoolHooks
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.telemetry.decision_log import LATEST, SLOW
from fairlead_gateway.telemetry.snapshot import restore_counters
from fairlead_gateway.tenants.messages import TenantsSnapshot

if TYPE_CHECKING:  # loaded only when an engine reports KV events
    from fairlead_gateway.kv_index.links import PromptLinks
    from fairlead_gateway.kv_index.supervisor.event_reader import EventReader
    from fairlead_gateway.kv_index.supervisor.link_store import LinkStore
    from fairlead_gateway.tenants.supervisor.access_service import AccessService
    from fairlead_kvstore.fleet_reader import ChangeSink

_log = logging.getLogger("fairlead.gateway")
_WARNINGS_SECONDS = 0.2
_COUNTERS_SECONDS = 2.0


class Supervisor:
    """The parent of a gateway's workers, and the view that the management port reads.

    announce: called with the line that says where the gateway listens, once it is ready.
    """

    def __init__(
        self,
        config: GatewayConfig,
        preforked: PreforkedWorkers,
        *,
        clock: Clock,
        limits: Limits,
        announce: Callable[[str], None],
    ) -> None:
        self._config = config
        self.clock = clock
        self._limits = limits
        self._announce = announce
        self._sent_warnings: list[str] = []
        self.audit = AuditService(config.audit_log or AuditLog("gateway", config.gateway_id, clock), clock)
        self.audit.log.hold_stream()
        self.audit_records = self.audit.log.recent
        self._watchers = self._create_watchers(config)
        self._draining = False
        self._has_failed = False
        self._stop_now = asyncio.Event()
        self._fleet = Fleet()
        self._lost = LostInstances()
        self._scale_up_notifier = (
            None
            if config.autoscaler_url is None
            else ScaleUpNotifier(config.autoscaler_url, config.manage_token, clock)
        )
        self.started_at = clock.now()
        hooks = WorkerPoolHooks(
            configure=self._configuration,
            on_message=self._on_worker_message,
            on_worker_ready=self._on_worker_ready,
            access_messages=lambda: [] if self.access is None else self.access.state_messages(),
            on_worker_exit=lambda worker: self.background.on_worker_exit(worker),
        )
        self.workers = WorkerPool(preforked, hooks, clock, limits)
        self._gateways = GatewayAddresses(
            config.gateway_addresses, config.public_socket, clock, limits, self.workers.broadcast
        )
        self.access = self._create_access(config)
        self._index_secret = config.index_secret if config.redis_url is not None else config.hash_secret
        self.kv_index = KvIndexService(
            workers=lambda: [worker for worker in self.workers.workers if worker.is_ready],
            create_reader=self._create_event_reader,
            create_store=self._create_link_store if config.redis_url is not None and config.index_secret else None,
            on_indexed=lambda models: self.workers.broadcast(IndexedModels(list(models))),
            token_source=config.token_source,
            secret=self._index_secret,
            clock=clock,
            credentials=config.credentials,
        )
        self.background = create_background_services(config, self.workers, clock, limits)
        self.limit_states = self.background.limit_states
        self.profiling = ProfilingService(broadcast=self.workers.broadcast, clock=clock)
        self.background.scraper.on_reading = self.profiling.on_signals
        if config.usage_folder is not None:
            self.background.open_ledger(config.usage_folder, config.gateway_id, self.profiling.learned_profile)
        if self.background.peers is not None:
            self.background.peers.on_peer_dispatch = self._on_peer_dispatch

    async def run(self) -> int:
        """Serves until SIGTERM or SIGINT, then drains. Returns the exit code.

        The code is 1 when a second signal ended the drain early or a background task failed, else
        0. Raises FairleadError when a file cannot be used at the start.
        """
        loop = asyncio.get_running_loop()
        stop, hurry = asyncio.Event(), self._stop_now
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: (hurry if stop.is_set() else stop).set())
        loop.set_exception_handler(nonblocking_log.on_loop_exception)
        stopped = loop.create_task(stop.wait())
        starting = loop.create_task(self._start())
        try:
            await asyncio.wait({stopped, starting}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await self._serve(await starting, stopped)
        finally:
            await cancel_and_wait(starting)
            await cancel_and_wait(stopped)
            await self.workers.kill_and_wait()
            for watch in self._watchers:
                await watch.stop()
            if self.access is not None:
                await self.access.stop()
            await asyncio.to_thread(self.audit.log.close)
        return int(self._stop_now.is_set() or self._has_failed)

    async def _start(self) -> AsyncIterator[Fleet]:
        for watch in self._watchers:
            await watch.start()
        if self.access is not None:
            await self.access.start()
        snapshots = self._config.fleet_source.watch()
        self._fleet = await anext(snapshots)
        if self._config.file_parser is not None:
            self._config.file_parser.release_process()
        self._use_fleet(self._fleet)
        await self._gateways.refresh()
        self._sent_warnings = self._current_warnings()
        await self.workers.activate_and_wait(self._fleet)
        return snapshots

    async def _serve(self, snapshots: AsyncIterator[Fleet], stopped: "asyncio.Task[bool]") -> None:
        config, loop = self._config, asyncio.get_running_loop()
        management = ManagementServer(
            self,
            config.management_socket,
            limits=self._limits,
            tokens=config.manage_tokens,
            hosts=config.manage_hosts,
            on_access=self.audit.access.on_request,
        )
        await management.start()
        self.background.start()
        self.kv_index.start()
        self.profiling.start()
        tasks = [
            loop.create_task(job)
            for job in (
                *(self._follow_fleet(snapshots), self._send_warnings(), self._poll_counters()),
                *(self.audit.run(), self._gateways.run()),
            )
        ]
        try:
            process_tuning.freeze_heap()
            secure = config.certificate is not None
            self._announce(
                f"ready {socket_url(config.public_socket, secure=secure)} manage {socket_url(config.management_socket)}"
            )
            self.audit.log.release_stream()
            defect = await first_failure(tasks, stopped)
            if defect is not None:  # a restart is better than to serve with an old fleet
                self._has_failed = True
                _log.critical("the gateway stops because a background task failed", exc_info=defect)
            self._draining = True
            config.public_socket.close()
            await self.workers.drain_then_kill(self._stop_now)
        finally:
            for task in tasks:
                await cancel_and_wait(task)
            await management.stop()
            await self.profiling.stop()
            await self.kv_index.stop()
            await self.background.stop()
            if self._scale_up_notifier is not None:
                await self._scale_up_notifier.close()

    # Files ---------------------------------------------------------------------------------------------------------------

    def _create_watchers(self, config: GatewayConfig) -> list[FileWatcher]:
        watchers = []
        if config.certificate is not None:
            certificate = config.certificate

            async def renew() -> None:
                await certificate.load()
                self.workers.broadcast(say.ReloadCertificate())

            watchers.append(FileWatcher("the certificate", certificate.files, renew))
        return watchers + manage_token_watchers(
            config.manage_token_file, config.manage_tokens, self.audit, self._limits
        )

    def _create_access(self, config: GatewayConfig) -> "AccessService | None":
        if config.access is None:
            return None
        from fairlead_gateway.tenants.supervisor.access_service import AccessService

        update, wall = (lambda tenants: self.background.update_tenants(tenants)), self.clock.wall
        return AccessService(config.access, self.workers.broadcast, wall, update, self.audit.on_access)

    async def _follow_fleet(self, snapshots: AsyncIterator[Fleet]) -> None:
        async for fleet in snapshots:
            self._lost.update(self._fleet, fleet, self.clock.now())
            self._fleet = fleet
            self._use_fleet(fleet)
            self.workers.update_fleet(fleet)

    def _use_fleet(self, fleet: Fleet) -> None:
        """Gives a fleet to the parts of this process."""
        if self._config.credentials is not None:
            self._config.credentials.update_fleet(fleet)
        self.kv_index.update_fleet(fleet)
        self.profiling.update_fleet(fleet)
        self.audit.on_models(fleet.models)
        self.background.update_fleet(fleet)

    def _configuration(self, number: int, row: int, siblings: list[int], slots: dict[str, int]) -> say.Configure:
        config = self._config
        host, port = config.public_socket.getsockname()[:2]
        files = config.certificate.files if config.certificate is not None else None
        return say.Configure(
            number=number,
            gateway_id=config.gateway_id,
            host=host,
            port=port,
            secret=config.hash_secret,
            pepper=config.key_pepper,
            keys=None if self.access is None else self.access.keys,
            tenants=[] if self.access is None else list(self.access.tenants.values()),
            revoked=[] if self.access is None else self.access.revoked,
            token_issuers=None if self.access is None else self.access.token_issuers,
            are_keys_loaded=self.access is None or self.access.are_keys_loaded,
            certificate=(str(files[0]), str(files[1])) if files is not None else None,
            fleet=self._fleet,
            slots=slots,
            row=row,
            active_rows=siblings,
            has_redis=config.redis_url is not None,
            indexed_models=list(self.kv_index.indexed_models),
            has_ledger=config.usage_folder is not None,
            warnings=self._sent_warnings,
            sibling_ports=self.workers.sibling_ports,
            gateways=self._gateways.list if config.gateway_addresses else None,
        )

    # Warnings and counters -----------------------------------------------------------------------------------------------

    async def _send_warnings(self) -> None:
        """Sends workers the warnings of the supervisor, which their public port shows."""
        while True:
            await asyncio.sleep(_WARNINGS_SECONDS)
            warnings = self._current_warnings()
            if warnings != self._sent_warnings:
                self._sent_warnings = warnings
                self.workers.broadcast(say.WarningsUpdate(warnings))

    async def _poll_counters(self) -> None:
        """Reads the workers' counters often, so that a crash loses only the last seconds."""
        while True:
            await asyncio.sleep(_COUNTERS_SECONDS)
            await self.workers.collect_counters(windows=False)
            self.workers.kill_frozen(_COUNTERS_SECONDS)

    def _current_warnings(self) -> list[str]:
        warnings = self._config.fleet_source.warnings()
        warnings += [watch.problem for watch in self._watchers if watch.problem]
        if self.access is not None:
            warnings += self.access.warnings(self._fleet.models)
        if self._scale_up_notifier is not None:
            warnings += self._scale_up_notifier.warnings()
        return [
            *warnings,
            *self.workers.warnings(),
            *nonblocking_log.log_warnings(),
            *self.background.warnings(),
            *self.kv_index.warnings(),
            *self._gateways.warnings(),
            *self.audit.log.warnings(),
        ]

    def _on_worker_message(self, worker: WorkerHandle, message: RoutedMessage) -> None:
        """Gives a worker's message to its readers."""
        if isinstance(message, say.WorkerReport):
            self.background.on_report(message)
            self.kv_index.on_report(worker, message.dispatches, message.prompt_ends)
            self.profiling.on_timings(message.timings)
        elif isinstance(message, QuotaReport):
            self.background.on_quota_report(worker, message)
        elif isinstance(message, say.NeedsInstance):
            if self._scale_up_notifier is not None:
                self._scale_up_notifier.notify(message.model)
        elif isinstance(message, PromptSamples):
            self.kv_index.on_samples(message)
        elif self.access is not None:
            self.access.on_report(message)

    def _on_worker_ready(self) -> None:
        self.kv_index.on_worker_ready()
        self.profiling.on_worker_ready()

    def _on_peer_dispatch(self, model_key: str, instance: str, tail: int, hashes: Sequence[int]) -> None:
        self.kv_index.on_peer_dispatch(model_key, instance, tail, hashes)
        self.profiling.on_peer_dispatch(instance, hashes)

    def _create_event_reader(self, sink: "ChangeSink", on_restored: Callable[[str], None]) -> "EventReader":
        """Returns the reader of engines' KV events.

        Why: it is created for the first indexed model, since its modules take much memory.
        """
        from fairlead_gateway.kv_index.supervisor.event_reader import EventReader
        from fairlead_kvstore.reader.reader_context import ReaderRuntime

        return EventReader(
            sink,
            on_restored,
            ReaderRuntime(asyncio.get_running_loop(), self.clock, random.random, self._limits),
            secret=self._index_secret,
            environ=self._config.environ,
            link=self.background.redis_link,
        )

    def _create_link_store(self, learned: "Callable[[str, PromptLinks], None]") -> "LinkStore":
        """Returns the store of the links of prompts that gateways share.

        Only gateways with the same secret compute the same hashes and can use each other's entries.
        """
        from fairlead_gateway.kv_index.supervisor.link_store import LinkStore

        config, link = self._config, self.background.redis_link
        assert link is not None
        return LinkStore(link, config.gateway_id, learned, secret=config.index_secret)

    # The management port's view ------------------------------------------------------------------------------------------

    def fleet(self) -> Fleet:
        return self.background.fleet()

    async def status(self) -> GatewayStatus:
        """Returns the state of all workers that answer in time."""
        states = await self._worker_states()
        warnings = self._current_warnings()
        pushed = {*warnings, *self._sent_warnings, "draining"}
        for number, state in states:
            own = [text for text in state.warnings if text not in pushed]
            warnings += [text if self.workers.size == 1 else f"worker {number}: {text}" for text in own]
        ready = not self._draining and any(state.ready for _, state in states)
        if self._draining:
            warnings = ["draining", *warnings]
        progress_times = self.background.scraper.progress_times
        return GatewayStatus(
            ready,
            warnings,
            reports.merge_loads(state.loads for _, state in states),
            reports.merge_health_states([state.health_states for _, state in states]),
            reports.MaxLoopLag([state.loop_lag for _, state in states]),
            self.kv_index.status(),
            None if self.background.peers is None else self.background.peers.present_peers(),
            self.profiling.learned_profile,
            reports.merge_counts(state.queued for _, state in states),
            reports.merge_ejections([state for _, state in states], self.clock.now(), progress_times),
            reports.merge_answer_times([state for _, state in states]),
            reports.merge_adapters(state.adapters for _, state in states),
            self._lost.present(self.clock.now()),
        )

    async def counters(self, *, windows: bool) -> MetricsRecorder:
        """Returns the counters of all workers, added up, with those of the supervisor."""
        parts = await self.workers.collect_counters(windows=windows)
        now = self.clock.now()
        telemetry = MetricsRecorder(self.clock)
        telemetry.started_at = self.started_at
        for key, part in parts.items():
            telemetry.models[key] = restore_counters(part, now)
            await asyncio.sleep(0)
        telemetry.non_model_counters.update(self.workers.non_model_counters())
        telemetry.index_status = self.kv_index.status()
        self.background.add_metrics(telemetry)
        telemetry.non_model_counters["workers"] = self.workers.serving_count
        telemetry.non_model_counters["worker_deaths_total"] = self.workers.crash_count
        if self.access is not None:
            telemetry.non_model_counters.update(self.access.counters())
        age = self._config.fleet_source.age_seconds()
        if age is not None:
            telemetry.non_model_counters["fleet_age_seconds"] = int(age)
        return telemetry

    @property
    def tenant_reports(self) -> BackgroundServices:
        return self.background

    def tenants(self) -> TenantsSnapshot:
        return TenantsSnapshot() if self.access is None else self.access.snapshot()

    async def decisions(
        self, limit: int, model_key: str | None, tenants: frozenset[str] | None = None, kind: str = LATEST
    ) -> list[LoggedDecision]:
        """Returns `limit` requests of all workers: the newest first, or the slowest."""
        answers = await self.workers.query(
            lambda number: say.GetDecisions(number, limit, model_key, tenants, kind), list[LoggedDecision]
        )
        entries = [entry for _, pieces in answers for piece in pieces for entry in piece]
        entries.sort(key=lambda entry: entry.waited_seconds if kind == SLOW else entry.wall, reverse=True)
        return entries[:limit]

    async def decision(self, request_id: str, tenants: frozenset[str] | None = None) -> list[LoggedDecision]:
        """Returns the request with this id; else the newest of each tenant that chose this id."""
        answers = await self.workers.query(
            lambda number: say.GetDecision(number, request_id, tenants), list[LoggedDecision]
        )
        entries = [entry for _, pieces in answers for piece in pieces for entry in piece]
        newest: dict[str | None, LoggedDecision] = {}
        for entry in sorted(entries, key=lambda entry: entry.latest_wall):
            if entry.request_id == request_id:  # an id of our own is unique
                return [entry]
            newest[entry.caller] = entry
        return list(newest.values())

    async def preview_route(
        self,
        path: str,
        body: bytes,
        session: str | None,
        tenant: str | None = None,
        headers: Sequence[tuple[str, str]] = (),
    ) -> list[LoggedDecision]:
        """Returns each worker's routing decision for the request, without sending it.

        Raises RelayedError when no worker would route it.
        """
        answers = await self.workers.query(
            lambda number: say.PreviewRoute(number, path, body, session, tenant, list(headers)), say.RoutePreview
        )
        replies = [pieces[0] for _, pieces in answers]
        previews = [reply.preview for reply in replies if reply.preview is not None]
        refusal = next((reply.rejection for reply in replies if reply.rejection is not None), None)
        if refusal is not None and not previews:
            raise RelayedError(*refusal)
        return previews

    async def _worker_states(self) -> list[tuple[int, say.WorkerState]]:
        answers = await self.workers.query(say.GetState, say.WorkerState)
        for worker, pieces in answers:
            if not worker.sent_final_counters:
                worker.non_model_counters = pieces[0].non_model_counters
        return sorted(((worker.number, pieces[0]) for worker, pieces in answers), key=lambda row: row[0])
