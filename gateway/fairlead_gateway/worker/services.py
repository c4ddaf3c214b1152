"""The services of one worker, built from the supervisor's first message and updated by its later
messages.

Answers the supervisor's queries to a worker.

Long replies go out in chunks of bounded work and size, so that requests have their turn between
them. A chunk waits until most of the earlier ones are out.

Why: a channel drops messages beyond its bound. Without the end of a reply, the supervisor takes
the worker for hung, and kills it. So an unexpected error is logged, and ends the reply too.

Previews the route of a request: where it would go now, and why.

The management port requests it. Nothing is sent, counted or remembered, so a preview changes no
later route. Admission is left out: where requests queue, this one would too, and
its route would depend on what is known when it leaves the queue. So are limits. Between equal
instances the request's id decides, so another request with this prompt may go elsewhere.
"""

import asyncio
import logging
import mmap
import os
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from fairlead.engines.credentials import EngineCredentials
from fairlead.errors import FairleadError
from fairlead.fleet.model import Fleet
from fairlead.settings import GatewaySettings
from fairlead_gateway import messages
from fairlead_gateway.adapters.placement import AdapterUse
from fairlead_gateway.bearer_tokens.messages import TokenIssuer, TokenIssuerUpdate
from fairlead_gateway.caller_key import Caller
from fairlead_gateway.dialects.table import ROUTED, dialect_of
from fairlead_gateway.disaggregation.worker import kv_connectors
from fairlead_gateway.errors import BadRequest, GatewayError, Overloaded, UnknownPath
from fairlead_gateway.http.listener import HttpRequest, RequestIds
from fairlead_gateway.http.request_parser import RequestHead
from fairlead_gateway.http.tls_certificate import TlsCertificate
from fairlead_gateway.idempotency.messages import GatewayList
from fairlead_gateway.idempotency.worker.owner_forwarding import OwnerForwarding
from fairlead_gateway.ipc.channel import CHANNEL_PENDING_BYTES, Channel
from fairlead_gateway.ipc.decision_json import logged_decision
from fairlead_gateway.journal import Journal, Reporters
from fairlead_gateway.kv_index.messages import IndexCorrections, IndexedModels, SampleRequest
from fairlead_gateway.kv_index.worker import apply_corrections
from fairlead_gateway.limits.messages import QuotaUpdates
from fairlead_gateway.limits.worker.quota_reporter import QuotaReporter
from fairlead_gateway.messages import SHARED_SLOTS, WORKER_QUERY_SECONDS, PreviewRoute
from fairlead_gateway.openai.body_parser import ModelRequest
from fairlead_gateway.peers.messages import PeerUpdates
from fairlead_gateway.peers.worker import PeerUpdateApplier
from fairlead_gateway.profiles.messages import ProfileUpdate
from fairlead_gateway.proxy import memory_pressure
from fairlead_gateway.proxy.cors import parse_cors
from fairlead_gateway.proxy.gateway import Gateway
from fairlead_gateway.routing import RouteRequest
from fairlead_gateway.routing.load.shared_memory import SharedLoadTable
from fairlead_gateway.routing.prefill_placement import LOCAL_RULES
from fairlead_gateway.routing.request import NO_INSTANCES
from fairlead_gateway.runtime import WorkerRuntime
from fairlead_gateway.telemetry.decision_log import DecisionRecord, RequestOutcome
from fairlead_gateway.telemetry.handoff_record import BYPASSED, HandoffRecord
from fairlead_gateway.telemetry.snapshot import snapshot_of
from fairlead_gateway.tenants.messages import KeyUpdate, RevocationUpdate, TenantUpdate
from fairlead_gateway.tenants.worker.api_keys import AccessReporter, ApiKeys, GatewaySecrets

if TYPE_CHECKING:
    from fairlead_gateway.telemetry.worker.observers import RequestObservers

_PREVIEW_ID: Final = "asked"
_PARSE_SHARE: Final = 0.5
"""The part of a query's time that its body may take; others may be checked before it."""

_LOG: Final = logging.getLogger("fairlead.gateway")
_DECISIONS_PER_CHUNK: Final = 16
_CANDIDATES_PER_CHUNK: Final = 4_096
_UNSENT_POLL_SECONDS: Final = 0.001
_QUANTILES = (0.5, 0.99, 1.0)


class RoutePreviewer:
    """The previewer of routes: it decides where a request would go, without sending it."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._clock = gateway.runtime.clock
        self._routers = gateway.stages.routers
        self._prefill_coordinator = gateway.stages.prefill_coordinator

    async def preview(self, query: PreviewRoute) -> RequestOutcome:
        """Returns the choices that a request would get: the prefill instance, if any, then
        the instance that answers.

        Raises GatewayError as for a request of a client, and for an unknown tenant. Raises
        Overloaded if the body is not checked before the supervisor takes the worker for hung.
        """
        routers, prefilling = self._routers.serving, self._routers.prefilling
        http_request = self._http_request(query)
        request, route_request = await self._parse(http_request)
        key = request.model_key
        now = self._clock.now()
        excluded, loader = NO_INSTANCES, self._gateway.stages.adapter_loader
        use: AdapterUse | None = None
        if request.adapter is not None:
            use = loader.place(key, request.adapter, NO_INSTANCES)
            excluded = loader.restrict(key, use)
        decision = routers.choose(key, route_request, now, excluded, preview=True)
        if use is not None:
            decision = decision.after(use.describe)
        choices = [(routers, decision)]
        record = None
        if prefilling.has_instances(key) and decision.chosen is not None:
            record = HandoffRecord()
            ineligible = kv_connectors.ineligible_reason(request)
            if ineligible is None:
                placement = record.placement = self._prefill_coordinator.place_prefill(
                    request, route_request, decision.chosen, now
                )
                record.reason, record.message = placement.rule, placement.reason
            else:
                record.reason, record.message = ineligible
            if record.placement is None or record.placement.rule in LOCAL_RULES:
                record.outcome = BYPASSED
            elif record.placement.chosen is not None:
                prefill = prefilling.choose(key, route_request, now, NO_INSTANCES, preview=True)
                choices.insert(0, (prefilling, prefill.with_text(reason=f"to prefill it: {prefill.reason}")))
        wall = self._clock.wall()
        logged = RequestOutcome(_PREVIEW_ID, key, wall)
        logged.records = [
            DecisionRecord(_PREVIEW_ID, wall, key, choice, 1, role.prompt_tokens(key, route_request), None, record)
            for role, choice in choices
        ]
        for found in logged.records:
            found.route = request.route
        return logged

    async def _parse(self, http_request: HttpRequest) -> tuple[ModelRequest, RouteRequest]:
        seconds = _PARSE_SHARE * WORKER_QUERY_SECONDS
        try:
            return await asyncio.wait_for(self._gateway.parse(http_request, _PREVIEW_ID), seconds)
        except TimeoutError:
            raise Overloaded("the body could not be checked in time", hint="try again later") from None

    def _http_request(self, query: PreviewRoute) -> HttpRequest:
        """Returns the request as if a client had sent it with a key of the tenant."""
        path, body, session = query.path, query.body, query.session
        if dialect_of(path).prompt is None:
            paths = ", ".join(path for dialect in ROUTED for path in dialect.paths)
            raise UnknownPath(f"requests for {path} are not routed by their prompt", hint=f"use one of {paths}")
        headers = query.headers if session is None else [("x-session-id", session), *query.headers]
        fields = [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers]
        head = RequestHead("POST", path, fields, 11, len(body), keep_alive=True, expects_continue=False)
        caller = None if query.tenant is None else self._caller_of(query.tenant)
        return HttpRequest(head, body, _PREVIEW_ID, self._clock.now(), self._clock.wall(), caller)

    def _caller_of(self, tenant: str) -> Caller:
        api_keys = self._gateway.api_keys
        caller = None if api_keys is None else api_keys.caller_of(tenant)
        if caller is None:
            raise BadRequest(f"tenant: no tenant is called {tenant!r}", param="tenant")
        return caller


_encode = msgspec.msgpack.Encoder().encode


class QueryHandler:
    """The handler of queries about one gateway."""

    def __init__(self, gateway: Gateway, channel: Channel[messages.ToWorker]) -> None:
        self._gateway = gateway
        self._previewer = RoutePreviewer(gateway)
        self._channel = channel
        self._max_unsent_bytes = CHANNEL_PENDING_BYTES // 4

    async def handle(self, query: messages.Query) -> None:
        """Sends the reply to one query, in one chunk or several."""
        try:
            await self._reply(query)
        except Exception:  # noqa: BLE001  # it is logged
            _LOG.exception("a defect ended the reply to %s", type(query).__name__)
            await self._send_chunk(query.query_id, b"", is_last=True, has_failed=True)

    async def _reply(self, query: messages.Query) -> None:
        if isinstance(query, messages.GetState):
            await self._send_chunk(query.query_id, _encode(self._state()), is_last=True)
        elif isinstance(query, messages.GetCounters):
            await self._send_counters(query)
        elif isinstance(query, messages.GetDecisions):
            latest = self._gateway.decisions.latest(query.limit, query.model, query.callers, query.kind)
            await self._send_decisions(query.query_id, latest)
        elif isinstance(query, messages.PreviewRoute):
            await self._send_chunk(query.query_id, _encode(await self._preview(query)), is_last=True)
        else:
            found = self._gateway.decisions.find(query.request_id, query.callers)[:_DECISIONS_PER_CHUNK]
            await self._send_decisions(query.query_id, found)

    def final_counters(self) -> messages.FinalCounters:
        """Returns the counters of a worker that ends."""
        telemetry = self._gateway.telemetry
        models = [snapshot_of(key, counters, None) for key, counters in telemetry.models.items()]
        return messages.FinalCounters(models, dict(telemetry.non_model_counters))

    async def _send_chunk(self, query_id: int, content: bytes, *, is_last: bool, has_failed: bool = False) -> None:
        while self._channel.unsent_bytes > self._max_unsent_bytes:  # noqa: ASYNC110 - a channel sets no event
            await asyncio.sleep(_UNSENT_POLL_SECONDS)
        self._channel.send(messages.ReplyChunk(query_id, content, is_last, has_failed))

    async def _send_end(self, query_id: int) -> None:
        await self._send_chunk(query_id, b"", is_last=True)

    async def _preview(self, query: messages.PreviewRoute) -> messages.RoutePreview:
        try:
            logged = await self._previewer.preview(query)
            return messages.RoutePreview(logged_decision(logged))
        except GatewayError as error:
            return messages.RoutePreview(None, (error.status, str(error), error.param, error.code))

    async def _send_counters(self, query: messages.GetCounters) -> None:
        telemetry = self._gateway.telemetry
        telemetry.remove_departed(self._gateway.stages.routers.fleet, query.now)
        for key in list(telemetry.models):
            if (series := telemetry.models.get(key)) is not None:  # another query may drop it
                snapshot = snapshot_of(key, series, query.now if query.windows else None)
                await self._send_chunk(query.query_id, _encode(snapshot), is_last=False)
                await asyncio.sleep(0)
        await self._send_end(query.query_id)

    async def _send_decisions(self, query_id: int, requests: Sequence[RequestOutcome]) -> None:
        for chunk in _chunks(requests):
            content = _encode([logged_decision(logged) for logged in chunk])
            await self._send_chunk(query_id, content, is_last=False)
            await asyncio.sleep(0)
        await self._send_end(query_id)

    def _state(self) -> messages.WorkerState:
        gateway = self._gateway
        is_ready, warnings = gateway.readiness()
        outlier_detector = gateway.stages.failures.outlier_detector
        lags = [(share, gateway.loop_lag.quantile(share)) for share in _QUANTILES]
        return messages.WorkerState(
            is_ready,
            warnings,
            {
                name: messages.EncodedLoad(
                    load.inflight, load.waiting, load.backlog_seconds, load.inflight_tokens, load.queued
                )
                for name, load in gateway.stages.routers.loads().items()
            },
            self._health_states(),
            [(share, lag) for share, lag in lags if lag is not None],
            dict(gateway.telemetry.non_model_counters),
            gateway.inflight_count(),
            gateway.stages.admission.queued(),
            {
                name: messages.EncodedEjection(record.since, record.cause, record.failed_probes)
                for name, record in outlier_detector.ejection_records.by_instance.items()
            },
            outlier_detector.answer_times(),
            gateway.stages.adapter_loader.loaded(),
        )

    def _health_states(self) -> dict[str, tuple[str, str]]:
        """Returns state and reason of the instances that are not healthy, by instance id."""
        fleet = self._gateway.stages.routers.fleet
        described = (
            (instance.id, self._gateway.stages.failures.describe(instance.id))
            for instances in fleet.instances.values()
            for instance in instances
        )
        return {name: (str(state), reason) for name, (state, reason) in described if reason}


def _chunks(requests: Sequence[RequestOutcome]) -> Iterator[list[RequestOutcome]]:
    """Yields the requests in chunks of a few decisions, or of fewer that have many candidates."""
    chunk: list[RequestOutcome] = []
    candidates = 0
    for logged in requests:
        chunk.append(logged)
        candidates += sum(len(record.decision.rejected) for record in logged.records)
        if len(chunk) >= _DECISIONS_PER_CHUNK or candidates >= _CANDIDATES_PER_CHUNK:
            yield chunk
            chunk, candidates = [], 0
    if chunk:
        yield chunk


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
            self._access_reporter = AccessReporter(self._api_keys, channel, runtime.loop)
            if configuration.token_issuers is not None:
                self._accept_tokens(self._api_keys, self._access_reporter, configuration.token_issuers)
        loop, limits = runtime.loop, runtime.limits
        self._shared_loads: SharedLoadTable | None = None
        if shared_memory is not None:
            cells = memoryview(shared_memory).cast("q")
            self._shared_loads = SharedLoadTable(cells, SHARED_SLOTS, configuration.row)
            self._shared_loads.set_active_rows(configuration.active_rows)
        self._journal = Journal(
            channel,
            loop,
            gateway_id=configuration.gateway_id if configuration.has_redis else None,
            shares_dispatches=shared_memory is not None or configuration.has_redis,
            keeps_usage=configuration.has_ledger,
        )
        self._quota_reporter = QuotaReporter(channel, loop, runtime.clock, limits)
        self.gateway = Gateway(
            runtime,
            GatewaySecrets(configuration.secret, EngineCredentials(os.environ, runtime.now), self._api_keys),
            create_request_id=RequestIds().next,
            memory_share=memory_pressure.memory_share_reader(settings.memory_limit),
            observers=_create_observers(configuration, settings, runtime),
            reporters=Reporters(
                self._journal,
                self._shared_loads,
                self._quota_reporter,
                self._report_needs_instance,
            ),
            warnings=self._warnings,
        )
        self.gateway.leave_out(settings.changing_text)
        self.gateway.cors = parse_cors(settings, self._api_keys is not None)
        self._forward_keyed_requests(configuration)
        self._journal.loads = self.gateway.stages.routers.loads
        self._journal.take_service = self.gateway.stages.admission.take_service
        self._quota_reporter.tenants = self.gateway.stages.limit_gate.tenants
        self._peer_updates = PeerUpdateApplier(runtime.clock, loop, self.gateway.stages.routers)
        self._query_handler = QueryHandler(self.gateway, channel)
        self._assign_slots(configuration.slots)

    def _forward_keyed_requests(self, configuration: messages.Configure) -> None:
        keyed_requests = self.gateway.keyed_requests
        if not configuration.sibling_ports and configuration.gateways is None:
            return
        keyed_requests.forwarding = OwnerForwarding(
            self._runtime,
            configuration.number,
            configuration.sibling_ports,
            fail=self.gateway.on_rejected,
            on_owner_lost=keyed_requests.count_lost_owner,
            certificate=self.certificate,
        )
        if configuration.gateways is not None:
            keyed_requests.forwarding.update_gateways(configuration.gateways)

    def apply(self, message: messages.ToWorker) -> None:
        """Applies a message of the supervisor, or begins to answer its query."""
        stack = self.gateway.stages
        match message:
            case PeerUpdates(dispatches, crashes, cleared, service):
                stack.admission.add_peer_service(service)
                self._peer_updates.enqueue(dispatches)
                for crash in crashes:
                    stack.poison_guard.on_peer_crash(*crash)
                for clearing in cleared:
                    stack.poison_guard.on_peer_cleared(*clearing)
            case IndexedModels(models):
                stack.routers.set_indexed_models(models)
            case IndexCorrections():
                apply_corrections(stack.routers, message)
            case ProfileUpdate(profiles, sequences, memory_shares):
                stack.routers.set_learned_profiles(profiles)
                stack.routers.serving.set_sequence_bounds(sequences)
                stack.routers.serving.memory_shares.update(memory_shares)
            case SampleRequest():
                self._journal.send_samples(message.model, message.tails)
            case messages.FleetUpdate(fleet, slots):
                self._assign_slots(slots)
                self._update_fleet(fleet)
            case TokenIssuerUpdate(issuers):
                if self._api_keys is not None and self._api_keys.tokens is not None:
                    self._api_keys.tokens.update_issuers(issuers)
                    self._api_keys.on_changed()
            case KeyUpdate() | TenantUpdate() | RevocationUpdate():
                self._update_keys(message)
            case QuotaUpdates():
                for limits in self._quota_reporter.apply(message):
                    stack.limit_gate.serve_waiting(limits)
            case GatewayList():
                if self.gateway.keyed_requests.forwarding is not None:
                    self.gateway.keyed_requests.forwarding.update_gateways(message)
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
        from fairlead_gateway.bearer_tokens.worker.token_callers import TokenCallers

        keys.tokens = TokenCallers(keys.tenants, self._runtime.clock.wall, reporter.report_unknown_key)
        keys.tokens.update_issuers(issuers)

    def _update_keys(self, message: KeyUpdate | TenantUpdate | RevocationUpdate) -> None:
        keys = self._api_keys
        if keys is None:
            return
        match message:
            case KeyUpdate(names, are_keys_loaded):
                keys.replace(names)
                keys.is_loaded = are_keys_loaded
            case TenantUpdate(changed, removed, is_whole):
                if is_whole:
                    whole = {tenant.name for tenant in changed}
                    removed = [tenant.name for tenant in keys.tenants() if tenant.name not in whole]
                keys.update_tenants(changed, removed)
            case RevocationUpdate(digests):
                keys.revoke(digests)

    def send_final_counters(self) -> None:
        """Sends the remaining reports and the counters, at the end of the worker."""
        self._journal.flush()
        self._quota_reporter.close()
        if self._access_reporter is not None:
            self._access_reporter.flush()
        self._channel.send(self._query_handler.final_counters())

    def _report_needs_instance(self, key: str) -> None:
        self._channel.send(messages.NeedsInstance(key))

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
            self.gateway.stages.routers.republish_loads()

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
    from fairlead_gateway.telemetry.worker.observers import create_observers
    from fairlead_gateway.telemetry.worker.settings import parse_observability_settings

    return create_observers(
        parse_observability_settings(settings),
        clock=runtime.clock,
        limits=runtime.limits,
        instance_id=configuration.gateway_id,
    )
