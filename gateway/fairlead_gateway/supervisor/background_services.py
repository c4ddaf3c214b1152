"""The services for which no request waits: engine metrics, the ledger, and the use of Redis."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet, InstanceState
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.tenants.model import Tenant
from fairlead_gateway.limits.messages import QuotaReport
from fairlead_gateway.messages import WorkerReport
from fairlead_gateway.supervisor.config import GatewayConfig
from fairlead_gateway.supervisor.metrics_scraper import MetricsScraper
from fairlead_gateway.telemetry import MetricsRecorder
from fairlead_gateway.telemetry.adapter_series import AdapterSeries
from fairlead_gateway.telemetry.recorder import METRIC_ADAPTERS
from fairlead_gateway.usage.supervisor import METRIC_TENANTS

if TYPE_CHECKING:  # without Redis, its client is not loaded; without a ledger, nor is what keeps it
    from fairlead.engine_profile import EngineProfile
    from fairlead.management_api import LimitOut
    from fairlead.usage.ledger_reader import LedgerContent
    from fairlead_gateway.limits.budget_watch import BudgetState
    from fairlead_gateway.limits.supervisor.quota_service import QuotaService, QuotaWorker
    from fairlead_gateway.peers.supervisor.peer_sync import GatewayWorkers, PeerSync
    from fairlead_gateway.profiles.profile_estimator import LearnedProfile
    from fairlead_gateway.supervisor.decision_publisher import DecisionPublisher
    from fairlead_gateway.usage.supervisor import UsageService
    from fairlead_kvstore.redis.link import RedisLink


@dataclass(frozen=True, slots=True)
class PeerMembership:
    """A gateway's membership among the gateways of one Redis.

    secret: gateways that share it compute the same prefix hashes.
    """

    redis_url: str
    gateway_id: str
    secret: bytes


@dataclass(frozen=True, slots=True)
class LimitSharing:
    """The identity of a gateway among those that share limits of tenants.

    checkpoint_folder: holds what was granted, beyond Redis; None: nothing does.
    """

    gateway_id: str
    checkpoint_folder: Path | None = None


class BackgroundServices:
    """The metrics scraper, the ledger and, with Redis, the decision stream and the exchange with
    peers.

    membership: None for a gateway without peers.
    limit_sharing: how limits of tenants are shared with other gateways.
    """

    def __init__(
        self,
        workers: "GatewayWorkers",
        *,
        clock: Clock,
        limits: Limits,
        membership: PeerMembership | None,
        credentials: EngineCredentials | None = None,
        limit_sharing: LimitSharing = LimitSharing("gateway"),
    ) -> None:
        self._fleet = workers.applied_fleet
        self._clock = clock
        self._limits = limits
        self._adapter_series = AdapterSeries(METRIC_ADAPTERS)
        self.scraper = MetricsScraper(self._fleet, clock, limits, credentials)
        self.quota: QuotaService | None = None
        self._limit_sharing = limit_sharing
        self._limited_tenants: list[Tenant] = []
        self._is_running = False
        self.usage: UsageService | None = None
        self.redis_link: RedisLink | None = None
        self.decision_publisher: DecisionPublisher | None = None
        self.peers: PeerSync | None = None
        if membership is not None:
            from fairlead_gateway.peers.supervisor import peer_sync
            from fairlead_gateway.supervisor import decision_publisher
            from fairlead_kvstore.redis import link as links

            name = membership.gateway_id
            link = self.redis_link = links.RedisLink(
                membership.redis_url, clock, limits=limits, name=f"fairlead-{name}"
            )
            self.decision_publisher = decision_publisher.DecisionPublisher(link, clock)
            self.peers = peer_sync.PeerSync(link, workers, gateway_id=name, secret=membership.secret, clock=clock)

    def update_tenants(self, tenants: Collection[Tenant]) -> None:
        """Replaces the tenants whose limits count. Without any limit, no module is loaded."""
        if self.quota is None:
            if not any(tenant.limits for tenant in tenants):
                return
            self.quota = self._create_quota()
        self._limited_tenants = [tenant for tenant in tenants if tenant.limits]
        self.quota.set_tenants(tenants)

    def _create_quota(self) -> "QuotaService":
        from fairlead_gateway.limits.supervisor.quota_service import QuotaService, create_limit_store

        store, sharing = create_limit_store(self.redis_link, self._clock), self._limit_sharing
        quota = QuotaService(
            store,
            sharing.gateway_id,
            clock=self._clock,
            limits=self._limits,
            checkpoint_folder=sharing.checkpoint_folder,
        )
        if self._is_running:
            quota.start()
        return quota

    async def limit_states(self, tenants: frozenset[str] | None, limit: int) -> "list[LimitOut]":
        """Returns the state of limits; tenants: None for all."""
        return [] if self.quota is None else await self.quota.states(tenants, limit)

    def _limit_warnings(self) -> list[str]:
        if self.quota is None:
            return []
        from fairlead_gateway.limits.supervisor.quota_service import unpriced_budgets

        return self.quota.warnings() + unpriced_budgets(self._limited_tenants, self._fleet().models)

    def on_quota_report(self, worker: "QuotaWorker", report: QuotaReport) -> None:
        if self.quota is not None:
            self.quota.on_report(worker, report)

    def on_worker_exit(self, worker: "QuotaWorker") -> None:
        if self.quota is not None:
            self.quota.on_worker_exit(worker)

    def open_ledger(
        self, folder: Path, gateway_id: str, learned_profile: Callable[[str], "LearnedProfile | None"]
    ) -> None:
        """Keeps a ledger from now on. To be called before `start`.

        Why here: without a ledger, its modules are not loaded.
        """
        from fairlead_gateway.usage.supervisor import EngineReadings, UsageService

        def profile(instance: str) -> "EngineProfile | None":
            learned = learned_profile(instance)
            return None if learned is None else learned.profile

        readings = EngineReadings(profile, self._running_requests)
        self.usage = UsageService(folder, gateway_id, readings, clock=self._clock)

    def update_fleet(self, fleet: Fleet) -> None:
        if self.usage is not None:
            self.usage.update_fleet(fleet)

    def on_report(self, report: WorkerReport) -> None:
        """Gives a worker's report to the ledger, the decision stream and the peers."""
        if self.usage is not None:
            self.usage.on_rows(report.usage, report.lost_usage)
        if self.decision_publisher is not None:
            self.decision_publisher.dropped += report.dropped_decisions
            for model_key, entry in report.decisions:
                self.decision_publisher.offer(model_key, entry)
        if self.peers is not None:
            self.peers.on_worker_report(report.dispatches, report.service, report.loads is not None)

    async def usage_content(self, first_day: str, last_day: str) -> "LedgerContent | None":
        """Returns what the ledger holds about these days; None without a ledger."""
        return None if self.usage is None else await self.usage.read(first_day, last_day)

    def budgets(self) -> "Sequence[BudgetState]":
        return () if self.quota is None else self.quota.budgets.states(self._clock.wall())

    def add_metrics(self, telemetry: MetricsRecorder) -> None:
        """Adds the values of the ledger, of peers, of the budgets that are used most, and the
        adapters that have series of their own.
        """
        telemetry.adapter_series = self._adapter_series
        stream = self.decision_publisher
        if stream is not None:
            telemetry.non_model_counters.update(
                redis_connected=int(stream.connected),
                redis_published_total=stream.published,
                redis_dropped_total=stream.dropped,
                redis_refused_total=stream.refused,
            )
        if self.peers is not None:
            telemetry.peer_values = self.peers.counters()
        values: dict[str, list[tuple[str, float]]] = {}
        if self.usage is not None:
            values = self.usage.tenants.metric_values()
            telemetry.non_model_counters.update(self.usage.metrics())
        shares: dict[str, float] = {}
        for state in self.budgets()[:METRIC_TENANTS]:
            shares.setdefault(state.tenant, state.used_share)
        telemetry.tenant_values = {**values, "budget_used_ratio": list(shares.items())}

    def start(self) -> None:
        """Starts all services on the running loop. Waits neither for engines nor for Redis."""
        self.scraper.start()
        if self.usage is not None:
            self.usage.start()
        if self.redis_link is not None:
            self.redis_link.start()
        if self.decision_publisher is not None:
            self.decision_publisher.start()
        if self.peers is not None:
            self.peers.start()
        self._is_running = True
        if self.quota is not None:
            self.quota.start()

    async def stop(self) -> None:
        """Stops all services. Publishes the last decisions, and that this gateway leaves."""
        await self.scraper.stop()
        self._is_running = False
        if self.quota is not None:
            await self.quota.stop()
        if self.usage is not None:
            await self.usage.stop()
        if self.peers is not None:
            await self.peers.stop()
        if self.decision_publisher is not None:
            await self.decision_publisher.stop()
        if self.redis_link is not None:
            await self.redis_link.stop()

    def fleet(self) -> Fleet:
        return self.scraper.with_signals(self._fleet())

    def warnings(self) -> list[str]:
        """Returns one text for each thing that is missing or degraded."""
        warnings = [self._redis_warning(), self._signals_warning()]
        if self.peers is not None:
            warnings += self.peers.warnings()
        warnings += self._limit_warnings()
        if self.usage is not None:
            warnings += self.usage.warnings()
        return [warning for warning in warnings if warning]

    def _redis_warning(self) -> str | None:
        if self.decision_publisher is None:
            return "no Redis: limits and index stay local"
        return self.decision_publisher.warning()

    def _signals_warning(self) -> str | None:
        ready = [
            instance
            for instances in self._fleet().instances.values()
            for instance in instances
            if instance.state is InstanceState.READY
        ]
        silent = [instance for instance in ready if instance.id in self.scraper.errors]
        if not silent:
            return None
        first = silent[0].id
        error = self.scraper.errors[first]
        return f"no metrics from {len(silent)} of {len(ready)} ready instances: {first}: {error}"

    def _running_requests(self, instance: str) -> float | None:
        reading = self.scraper.readings.get(instance)
        return None if reading is None else reading.signals.running


def create_background_services(
    config: GatewayConfig, workers: "GatewayWorkers", clock: Clock, limits: Limits
) -> BackgroundServices:
    """Returns the services of a gateway with this configuration."""
    membership = None
    if config.redis_url is not None:
        membership = PeerMembership(config.redis_url, config.gateway_id, config.hash_secret)
    return BackgroundServices(
        workers,
        clock=clock,
        limits=limits,
        membership=membership,
        credentials=config.credentials,
        limit_sharing=LimitSharing(config.gateway_id, config.usage_folder),
    )
