"""The services for which no request waits: engine metrics, and what goes through Redis."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet, InstanceState
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead.tenants.model import Tenant
from fairlead_gateway.ipc.quota_messages import QuotaReport
from fairlead_gateway.supervisor.config import GatewayConfig
from fairlead_gateway.supervisor.metrics_scraper import MetricsScraper

if TYPE_CHECKING:  # without Redis, its client is not loaded
    from fairlead_gateway.supervisor.decision_stream import DecisionStream
    from fairlead_gateway.supervisor.peers.peer_sync import GatewayWorkers, PeerSync
    from fairlead_gateway.supervisor.quota.quota_service import QuotaService, QuotaWorker
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
    """The metrics scraper and, with Redis, the decision stream and the exchange with peers.

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
        self.scraper = MetricsScraper(self._fleet, clock, limits, credentials)
        self.quota: QuotaService | None = None
        self._limit_sharing = limit_sharing
        self._is_running = False
        self.redis_link: RedisLink | None = None
        self.decision_stream: DecisionStream | None = None
        self.peers: PeerSync | None = None
        if membership is not None:
            from fairlead_gateway.supervisor import decision_stream
            from fairlead_gateway.supervisor.peers import peer_sync
            from fairlead_kvstore.redis import link as links

            name = membership.gateway_id
            link = self.redis_link = links.RedisLink(
                membership.redis_url, clock, limits=limits, name=f"fairlead-{name}"
            )
            self.decision_stream = decision_stream.DecisionStream(link, name, clock, limits=limits)
            self.peers = peer_sync.PeerSync(
                link, workers, gateway_id=name, secret=membership.secret, clock=clock, limits=limits
            )

    def update_tenants(self, tenants: Collection[Tenant]) -> None:
        """Replaces the tenants whose limits count. Without any limit, no module is loaded."""
        if self.quota is None:
            if not any(tenant.limits for tenant in tenants):
                return
            self.quota = self._create_quota()
        self.quota.set_tenants(tenants)

    def _create_quota(self) -> "QuotaService":
        from fairlead_gateway.supervisor.quota.limit_stores import create_limit_store
        from fairlead_gateway.supervisor.quota.quota_service import QuotaService

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

    def on_quota_report(self, worker: "QuotaWorker", report: QuotaReport) -> None:
        """Takes what a worker's requests used and need of tenants' limits."""
        if self.quota is not None:
            self.quota.on_report(worker, report)

    def on_worker_exit(self, worker: "QuotaWorker") -> None:
        """Settles what a worker that has ended was granted."""
        if self.quota is not None:
            self.quota.on_worker_exit(worker)

    def start(self) -> None:
        """Starts all services on the running loop. Waits neither for engines nor for Redis."""
        self.scraper.start()
        if self.redis_link is not None:
            self.redis_link.start()
        if self.decision_stream is not None:
            self.decision_stream.start()
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
        if self.peers is not None:
            await self.peers.stop()
        if self.decision_stream is not None:
            await self.decision_stream.stop()
        if self.redis_link is not None:
            await self.redis_link.stop()

    def fleet(self) -> Fleet:
        """Returns the applied fleet with the engines' last signals."""
        return self.scraper.with_signals(self._fleet())

    def warnings(self) -> list[str]:
        """Returns one text for each thing that is missing or degraded."""
        warnings = [self._redis_warning(), self._signals_warning()]
        if self.peers is not None:
            warnings += self.peers.warnings()
        return [warning for warning in warnings if warning]

    def _redis_warning(self) -> str | None:
        if self.decision_stream is None:
            return "no Redis: limits and index stay local"
        return self.decision_stream.warning()

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
        limit_sharing=LimitSharing(config.gateway_id),
    )
