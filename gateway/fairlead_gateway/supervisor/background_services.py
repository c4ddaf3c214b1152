"""The services for which no request waits: engine metrics, and what goes through Redis."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet, InstanceState
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.supervisor.metrics_scraper import MetricsScraper

if TYPE_CHECKING:  # without Redis, its client is not loaded
    from fairlead_gateway.supervisor.decision_stream import DecisionStream
    from fairlead_gateway.supervisor.peers.peer_sync import GatewayWorkers, PeerSync
    from fairlead_kvstore.redis.link import RedisLink


@dataclass(frozen=True, slots=True)
class PeerMembership:
    """A gateway's membership among the gateways of one Redis.

    secret: gateways that share it compute the same prefix hashes.
    """

    redis_url: str
    gateway_id: str
    secret: bytes


class BackgroundServices:
    """The metrics scraper and, with Redis, the decision stream and the exchange with peers.

    membership: None for a gateway without peers.
    """

    def __init__(
        self,
        workers: "GatewayWorkers",
        *,
        clock: Clock,
        limits: Limits,
        membership: PeerMembership | None,
        credentials: EngineCredentials | None = None,
    ) -> None:
        self._fleet = workers.applied_fleet
        self.scraper = MetricsScraper(self._fleet, clock, limits, credentials)
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

    def start(self) -> None:
        """Starts all services on the running loop. Waits neither for engines nor for Redis."""
        self.scraper.start()
        if self.redis_link is not None:
            self.redis_link.start()
        if self.decision_stream is not None:
            self.decision_stream.start()
        if self.peers is not None:
            self.peers.start()

    async def stop(self) -> None:
        """Stops all services. Publishes the last decisions, and that this gateway leaves."""
        await self.scraper.stop()
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
