"""The services of one worker, built from the supervisor's first message and updated by its later
messages.
"""

import asyncio
import logging
import mmap
import os
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fairlead.engines.credentials import EngineCredentials
from fairlead.errors import FairleadError
from fairlead.fleet.model import Fleet
from fairlead.settings import GatewaySettings
from fairlead_gateway.http.sockets import TlsCertificate
from fairlead_gateway.ipc import messages
from fairlead_gateway.ipc.channel import Channel
from fairlead_gateway.ipc.messages import QuotaUpdates, TokenIssuer, TokenIssuerUpdate
from fairlead_gateway.routing import InstanceLoad
from fairlead_gateway.routing.hooks import SiblingWorkers
from fairlead_gateway.routing.load.shared_memory import SharedLoadTable
from fairlead_gateway.routing.prefix.prefix_hash import unpack_hashes
from fairlead_gateway.worker import memory_pressure
from fairlead_gateway.worker.api_keys import ApiKeys, GatewaySecrets
from fairlead_gateway.worker.browser_access import parse_browser_access
from fairlead_gateway.worker.proxy.gateway import Gateway
from fairlead_gateway.worker.query_handler import QueryHandler
from fairlead_gateway.worker.quota.quota_reporter import QuotaReporter
from fairlead_gateway.worker.reporting.access_reporter import AccessReporter
from fairlead_gateway.worker.reporting.dispatch_reporter import DispatchReporter
from fairlead_gateway.worker.reporting.index_reporter import IndexReporter, apply_corrections
from fairlead_gateway.worker.reporting.peer_updates import PeerUpdateApplier
from fairlead_gateway.worker.reporting.reporters import Reporters
from fairlead_gateway.worker.reporting.timing_reporter import TimingReporter
from fairlead_gateway.worker.reporting.usage_reporter import UsageReporter
from fairlead_gateway.worker.request_context import RequestIds
from fairlead_gateway.worker.runtime import WorkerRuntime

if TYPE_CHECKING:  # most gateways observe nothing, and then load none of it
    from fairlead_gateway.worker.observability.observers import RequestObservers

_log = logging.getLogger("fairlead.gateway")


class WorkerServices:
    """The gateway of one worker, and what connects it to the supervisor.

    shared_memory: the load table that the workers share; None without siblings and peers.
    certificate: of the public port; None: the port has no TLS.
    """

    def __init__(
        self,
        configuration: messages.Configure,
        settings: GatewaySettings,
        runtime: WorkerRuntime,
        channel: Channel[messages.ToWorker],
        shared_memory: mmap.mmap | None,
    ) -> None:
        self._runtime = runtime
        self._channel = channel
        self._supervisor_warnings = configuration.warnings
        self._certificate_warning: str | None = None
        self._memory_warning = memory_pressure.unreadable_limit_warning(settings.memory_limit)
        if self._memory_warning is not None:
            _log.warning("%s", self._memory_warning)
        self._tasks: set[asyncio.Task[None]] = set()
        self.certificate: TlsCertificate | None = None
        if configuration.certificate is not None:
            self.certificate = TlsCertificate(*map(Path, configuration.certificate))
        self._api_keys: ApiKeys | None = None
        self._access_reporter: AccessReporter | None = None
        if configuration.keys is not None and configuration.pepper is not None:
            self._api_keys = ApiKeys(
                configuration.pepper,
                configuration.keys,
                is_loaded=configuration.are_keys_loaded,
                wall=runtime.clock.wall,
            )
            self._api_keys.update_tenants(configuration.tenants)
            self._api_keys.revoke(configuration.revoked)
            self._access_reporter = AccessReporter(self._api_keys, channel, runtime.loop, runtime.limits)
            if configuration.token_issuers is not None:
                self._accept_tokens(self._api_keys, self._access_reporter, configuration.token_issuers)
        loop, limits = runtime.loop, runtime.limits
        self._shared_loads: SharedLoadTable | None = None
        if shared_memory is not None:
            cells = memoryview(shared_memory).cast("q")
            self._shared_loads = SharedLoadTable(cells, limits.shared_slots, configuration.row)
            self._shared_loads.set_active_rows(configuration.active_rows)
        self._dispatch_reporter: DispatchReporter | None = None
        if shared_memory is not None or configuration.has_redis:
            self._dispatch_reporter = DispatchReporter(
                channel,
                loop,
                limits,
                publish=configuration.has_redis,
                loads=self._loads,
                take_service=self._take_service,
            )
        self._index_reporter = IndexReporter(channel, loop, limits) if configuration.has_index else None
        self._quota_reporter = QuotaReporter(channel, loop, runtime.clock, limits)
        self._usage_reporter = UsageReporter(channel, loop, limits) if configuration.has_ledger else None
        self.gateway = Gateway(
            runtime,
            GatewaySecrets(configuration.secret, EngineCredentials(os.environ, runtime.now), self._api_keys),
            create_request_id=RequestIds().next,
            memory_share=memory_pressure.memory_share_reader(settings.memory_limit),
            observers=_create_observers(configuration, settings, runtime),
            reporters=self._create_reporters(configuration),
            warnings=self._warnings,
        )
        self.gateway.browser_access = parse_browser_access(settings, self._api_keys is not None)
        self._quota_reporter.tenants = self.gateway.stack.limit_gate.tenants
        self._peer_updates = PeerUpdateApplier(runtime.clock, limits, loop, self.gateway.stack.routers)
        self._query_handler = QueryHandler(self.gateway, channel)
        self._assign_slots(configuration.slots)

    def apply(self, message: messages.ToWorker) -> None:
        """Applies a message of the supervisor, or begins to answer its query."""
        stack = self.gateway.stack
        match message:
            case messages.PeerUpdates(dispatches, crashes, cleared, service):
                stack.admission.add_peer_service(service)
                if dispatches is not None:
                    self._peer_updates.enqueue(dispatches)
                for crash in crashes:
                    stack.poison_guard.on_peer_crash(*crash)
                for clearing in cleared:
                    stack.poison_guard.on_peer_cleared(*clearing)
            case messages.HotPrefixUpdate(model, epoch, serving, prefilling):
                for role, table in ((stack.routers.serving, serving), (stack.routers.prefilling, prefilling)):
                    router = role.router(model)
                    if router is not None:
                        router.set_hot_prefixes(epoch, unpack_hashes(table))
            case messages.IndexCorrections():
                apply_corrections(stack.routers, message)
            case messages.ProfileUpdate(profiles, sequences, memory_shares):
                stack.routers.set_learned_profiles(profiles)
                stack.routers.serving.set_sequence_bounds(sequences)
                stack.routers.serving.set_memory_shares(memory_shares)
            case messages.SampleRequest():
                if self._index_reporter is not None:
                    self._index_reporter.send_samples(message)
            case messages.FleetUpdate(fleet, slots):
                self._assign_slots(slots)
                self._update_fleet(fleet)
            case TokenIssuerUpdate(issuers):
                if self._api_keys is not None and self._api_keys.tokens is not None:
                    self._api_keys.tokens.update_issuers(issuers)
                    self._api_keys.on_issuers_changed()
            case messages.KeyUpdate() | messages.TenantUpdate() | messages.RevocationUpdate():
                self._update_keys(message)
            case QuotaUpdates():
                for limits in self._quota_reporter.apply(message):
                    stack.limit_gate.serve_waiting(limits)
            case messages.ActiveRows(rows):
                if self._shared_loads is not None:
                    self._shared_loads.set_active_rows(rows)
            case messages.WarningsUpdate(warnings):
                self._supervisor_warnings = warnings
            case messages.ReloadCertificate():
                self._start_task(self._reload_certificate())
            case (
                messages.GetState()
                | messages.GetCounters()
                | messages.GetDecisions()
                | messages.GetDecision()
                | messages.PreviewRoute()
            ):
                self._start_task(self._query_handler.handle(message))
            case _:
                pass

    def _accept_tokens(self, keys: ApiKeys, reporter: AccessReporter, issuers: list[TokenIssuer]) -> None:
        from fairlead_gateway.worker.bearer_tokens.token_callers import TokenCallers

        wall, limits = self._runtime.clock.wall, self._runtime.limits
        keys.tokens = TokenCallers(keys.tenants, wall, reporter.report_unknown_key, limits)
        keys.tokens.update_issuers(issuers)

    def _update_keys(self, message: messages.KeyUpdate | messages.TenantUpdate | messages.RevocationUpdate) -> None:
        keys = self._api_keys
        if keys is None:
            return
        match message:
            case messages.KeyUpdate(names, are_keys_loaded):
                keys.replace(names)
                keys.is_loaded = are_keys_loaded
            case messages.TenantUpdate(changed, removed, is_whole):
                if is_whole:
                    whole = {tenant.name for tenant in changed}
                    removed = [tenant.name for tenant in keys.tenants() if tenant.name not in whole]
                keys.update_tenants(changed, removed)
            case messages.RevocationUpdate(digests):
                keys.revoke(digests)

    def send_final_counters(self) -> None:
        """Sends the remaining reports and the counters, at the end of the worker."""
        if self._dispatch_reporter is not None:
            self._dispatch_reporter.flush()
        self._quota_reporter.close()
        if self._usage_reporter is not None:
            self._usage_reporter.flush()
        if self._access_reporter is not None:
            self._access_reporter.flush()
        self._channel.send(self._query_handler.final_counters())

    def _create_reporters(self, configuration: messages.Configure) -> Reporters:
        siblings, dispatch, index = None, self._dispatch_reporter, self._index_reporter
        if self._shared_loads is not None and dispatch is not None:
            siblings = SiblingWorkers(self._shared_loads, dispatch.on_dispatch, dispatch.on_crash, dispatch.on_cleared)
        return Reporters(
            siblings=siblings,
            dispatch_hooks=index.hooks if index is not None else None,
            prompt_samples=index.samples if index is not None else None,
            timings=TimingReporter(self._channel, self._runtime.loop, self._runtime.limits),
            usage=self._usage_reporter,
            on_decision=dispatch.on_decision if configuration.has_redis and dispatch is not None else None,
            on_needs_instance=self._report_needs_instance,
            limits=self._quota_reporter,
        )

    def _report_needs_instance(self, key: str) -> None:
        self._channel.send(messages.NeedsInstance(key))

    def _loads(self) -> Mapping[str, InstanceLoad]:
        return self.gateway.stack.routers.loads()

    def _take_service(self) -> dict[str, dict[str, float]]:
        return self.gateway.stack.admission.take_service()

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._runtime.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _assign_slots(self, slots: dict[str, int]) -> None:
        """Assigns the fleet's slots in the shared load table, and writes all loads there again.

        Why before the fleet is replaced: siblings then know the load of its instances from the
        first request on.
        """
        if self._shared_loads is not None:
            self._shared_loads.set_slots(slots)
            self.gateway.stack.routers.republish_loads()

    def _update_fleet(self, fleet: Fleet) -> None:
        """Replaces the fleet and reports the result; on an error, the last fleet stays in use."""
        failure = None
        try:
            self.gateway.update_fleet(fleet)
        except FairleadError as error:
            failure = str(error)
        self._channel.send(messages.FleetApplied(fleet.version, failure))

    async def _reload_certificate(self) -> None:
        if self.certificate is None:
            return
        try:
            await self.certificate.load()
            self._certificate_warning = None
        except (FairleadError, OSError, ValueError) as error:
            self._certificate_warning = f"the certificate cannot be used, the last good state stays: {error}"
            _log.warning("%s", self._certificate_warning)

    def _warnings(self) -> list[str]:
        own = [warning for warning in (self._certificate_warning, self._memory_warning) if warning is not None]
        return [*self._supervisor_warnings, *own]


def _create_observers(
    configuration: messages.Configure, settings: GatewaySettings, runtime: WorkerRuntime
) -> "RequestObservers | None":
    if settings.access_log is None and settings.trace_endpoint is None:
        return None
    from fairlead_gateway.worker.observability.observers import create_observers
    from fairlead_gateway.worker.observability.settings import parse_observability_settings

    return create_observers(
        parse_observability_settings(settings),
        clock=runtime.clock,
        limits=runtime.limits,
        instance_id=configuration.gateway_id,
    )
