"""The operator process: waits for the lease, then watches, reconciles and records events."""

import asyncio
import logging
from collections.abc import Callable

from fairlead.audit import AuditLog
from fairlead.errors import FairleadError
from fairlead.fleet.client_names import is_model_claim, object_key
from fairlead.kube.client import KubeApi
from fairlead.kube.events.event import EventDraft
from fairlead.kube.events.recorder import EventRecorder
from fairlead.kube.leader_client import LeaderKubeApi
from fairlead.kube.leader_election import LeaderElector, LeaseCandidate
from fairlead.kube.resources import Manifest
from fairlead.kube.transport.kubeconfig import ClusterConfig
from fairlead.runtime.aiohttp_server import serve
from fairlead.runtime.clock import Clock, Pacing
from fairlead.runtime.tasks import end_with_first, run_despite_defects
from fairlead_operator import action_audit, health, http_server
from fairlead_operator.canary.judge import Judgement
from fairlead_operator.canary.observer import CanaryObserver
from fairlead_operator.canary.progress import CanaryState
from fairlead_operator.controller.reconciler import Reconciler
from fairlead_operator.controller.status_writer import NameStatusWriter
from fairlead_operator.controller.workqueue import WorkQueue
from fairlead_operator.hung_engines.engine_restarter import EngineRestarter, RestartCounts, RestartOptions
from fairlead_operator.hung_engines.gateway_reports import GatewayReader
from fairlead_operator.kube.kopf_watch import KopfWatch
from fairlead_operator.kube.leader_election import LEASE_NAME, run_while_leading
from fairlead_operator.kube.object_cache import ObjectCache
from fairlead_operator.kube.watches import ClusterWatcher
from fairlead_operator.render.context import ClusterCapabilities
from fairlead_operator.settings import HungEngineOptions, OperatorOptions

CONTROLLER_NAME = "fairlead.io/operator"
_REFUSED_SECONDS = 5.0
_LOG = logging.getLogger("fairlead.operator")


class Manager:
    """One process of the operator.

    chance: returns a random number from 0 to 1.
    """

    def __init__(
        self,
        access: ClusterConfig,
        options: OperatorOptions,
        clock: Clock,
        chance: Callable[[], float],
        identity: str,
        lease_namespace: str | None = None,
    ) -> None:
        self.stopped = False
        self._access = access
        self._options = options
        self._clock = clock
        self._identity = identity
        self._audit = AuditLog("operator", identity, clock, options.audit)
        pacing = Pacing(clock, chance)
        self._api = LeaderKubeApi(access, clock, chance, agent="fairlead-operator")
        self._lease_api = KubeApi(access, clock, chance, agent="fairlead-operator")
        self._stop = asyncio.Event()
        self._queue = WorkQueue(clock, chance)
        self._cache = ObjectCache(options.client_names, self._queue.add)
        self._recorder = EventRecorder(self._api, CONTROLLER_NAME, self._identity, clock)
        self._watcher = ClusterWatcher(
            self._api,
            self._cache,
            self._queue.add,
            pacing,
            namespaces=options.namespaces,
            resync_seconds=options.resync_seconds,
        )
        self._kopf = KopfWatch(self._watcher, access, clock, identity, options.namespaces)
        self._reconciler = Reconciler(
            self._api,
            self._cache,
            clock,
            self,
            options.installation,
            capacity_grace_seconds=options.capacity_grace_seconds,
        )
        self._name_writer = NameStatusWriter(self._api, self._cache, clock, self._reconciler.counts)
        self._restarter, self._canaries = self._make_gateway_followers(options.hung_engines, pacing)
        candidate = LeaseCandidate(lease_namespace or access.namespace, LEASE_NAME, identity)
        self._elector = LeaderElector(self._lease_api, candidate, pacing, options.lease_timing)
        self._api.restrict_writes(lambda: self._elector.is_leading)

    def _make_gateway_followers(
        self, options: HungEngineOptions | None, pacing: Pacing
    ) -> tuple[EngineRestarter | None, CanaryObserver | None]:
        """Returns the restarter of engines that hang, and the observer of canaries.

        Both read the gateways; without configured gateways there are none.
        """
        if options is None:
            return None, None
        gateways = GatewayReader(self._api, options.gateways, options.token)
        times = RestartOptions(options.grace_seconds, options.restart_seconds)
        return (
            EngineRestarter(self._api, self._cache, gateways, self, pacing, times),
            CanaryObserver(self._cache, gateways, pacing, self._queue.add),
        )

    @property
    def is_leading(self) -> bool:
        return self._elector.is_leading

    @property
    def capabilities(self) -> ClusterCapabilities:
        return self._watcher.capabilities

    def stale_cache_reason(self) -> str:
        """Returns why the object cache may be out of date; empty if it is fresh."""
        return health.stale_cache_reason(self._health())

    def record_event(self, model: Manifest, event: EventDraft) -> None:
        """Records an event about a model; an action goes to the audit log as well."""
        audited = action_audit.audit_event(model, event)
        if audited is not None:
            self._audit.add(audited)
        self._recorder.record(model, event.type, event.reason, event.action, event.note)

    def ignore_self_event(self, key: str) -> None:
        self._queue.ignore_self_event(key)

    def judgement(self, key: str, state: CanaryState | None) -> Judgement | None:
        """Returns the latest judgement on the step of a model's canary; None if there is none."""
        return None if self._canaries is None else self._canaries.judgement(key, state)

    def stop(self) -> None:
        self.stopped = True
        self._stop.set()

    async def run(self, host: str, port: int) -> str:
        """Runs until `stop` or loss of the lease, and returns the reason. Raises OSError if the
        port is in use.
        """
        app = http_server.make_application(http_server.MetricsCollector(self._metrics, self._health), self._health)
        try:
            async with serve(app, host, port):
                return await run_while_leading(
                    self._elector, self._stop, self._lead, lambda line: _LOG.info("%s", line)
                )
        finally:
            await self._api.close()
            await self._lease_api.close()
            await asyncio.to_thread(self._audit.close)

    async def _lead(self) -> None:
        """Does the leader's work until it fails, the cluster is restored, or it is cancelled."""
        await self._watcher.discover()
        try:
            done = await end_with_first(  # and ends them in this order: first what writes
                self._process_queue(),
                self._follow_gateways(self._restarter),
                self._follow_gateways(self._canaries),
                self._watcher.wait_restored(),
                self._recorder.run(),
                self._watcher.run(),
                self._kopf.run(),
            )
            for task in done:
                task.result()
        finally:
            await self._recorder.flush()

    async def _process_queue(self) -> None:
        """Waits until everything is listed, then reconciles models until it is cancelled.

        Why: before the lists, every child would seem to be missing.
        """
        await self._watcher.wait_synced()
        for key in (*self._cache.models, *self._cache.routes, *self._cache.adapters):
            self._queue.add(key)
        await self._queue.process(self._reconcile, self._options.workers, self._on_failure)

    async def _follow_gateways(self, follower: EngineRestarter | CanaryObserver | None) -> None:
        """Runs a part that reads the gateways until it is cancelled, if they are configured."""
        await self._watcher.wait_synced()
        if follower is None:
            await asyncio.Event().wait()
        else:
            await run_despite_defects(follower.run, _LOG, f"followers of gateways ({type(follower).__name__})")

    async def _reconcile(self, key: str) -> float | None:
        if not self._elector.is_leading:
            return 1.0  # the lease has expired
        if object_key(key).partition("/")[0] in self._watcher.refused_namespaces():
            return _REFUSED_SECONDS  # its children may be unknown
        if not is_model_claim(key):
            return await self._name_writer.reconcile(key)
        return await self._reconciler.reconcile(key)

    def _on_failure(self, key: str, error: Exception, pause: float) -> None:
        self._reconciler.counts.failures += 1
        internal_error = None if isinstance(error, FairleadError) else error
        _LOG.warning("%s: %s; again in %.1f s", key, error, pause, exc_info=internal_error)

    def _health(self) -> health.HealthState:
        return self._watcher.health(self._elector.is_leading)

    def _metrics(self) -> http_server.OperatorMetrics:
        keys, counts = self._queue.keys, self._reconciler.counts
        engines = RestartCounts() if self._restarter is None else self._restarter.counts
        return http_server.OperatorMetrics(
            gauges={
                "leading": ("1 while this replica leads", float(self._elector.is_leading)),
                "synced": ("1 once this replica leads and has listed every kind", float(self._health().synced)),
                "models": ("known ModelDeployments", float(len(self._cache.models))),
                "models_of_other_installations": (
                    "models that are left to another installation",
                    float(len(self._reconciler.other_installations)),
                ),
                "queue_waiting": ("models that wait for a worker", float(keys.ready_count)),
                "queue_running": ("models that are being reconciled", float(keys.running_count)),
                "queue_later": ("models with a scheduled pass", float(keys.delayed_count)),
                "gateways": ("gateways that were asked which engines hang", float(engines.gateways)),
                "gateways_missing": ("gateways of these that did not answer", float(engines.gateways_missing)),
                "hung_pods": ("pods whose engine hangs", float(engines.hung_pods)),
            },
            counters={
                "reconciles": ("passes over a model", float(counts.reconciles)),
                "reconcile_failures": ("passes that failed", float(counts.failures)),
                "applied": ("children applied", float(counts.applied)),
                "pruned": ("children deleted", float(counts.pruned)),
                "statuses": ("statuses written", float(counts.statuses)),
                "engine_restarts": ("pods that were deleted because their engine hung", float(engines.restarts)),
                "audit_records_lost": ("audit records that were not written", float(self._audit.lost)),
                "events_dropped": ("events that were not written", float(self._recorder.dropped)),
            },
            models=tuple(self._cache.models.values()),
        )
