"""What runs beside the request's way: the engines' own metrics, and what is told and heard through Redis. Nothing of a request waits
for either."""

from typing import TYPE_CHECKING

from fairlead.engines.credentials import EngineCredentials
from fairlead.fleet.model import Fleet, InstanceState
from fairlead.limits import Limits
from fairlead.runtime.clock import Clock
from fairlead_gateway.supervisor.metrics_scraper import MetricsScraper

if TYPE_CHECKING:  # without a Redis its client is not loaded
    from fairlead_gateway.supervisor.decision_stream import DecisionStream
    from fairlead_gateway.supervisor.peers.peer_sync import GatewayWorkers, PeerSync
    from fairlead_kvstore.redis.link import RedisLink


class BackgroundServices:
    """The metrics scraper, and with a Redis the decision stream and the exchange with other gateways.

    - secret: gateways that share it understand the hashes of each other.
    - redis_url: None for a gateway that runs alone.
    """

    def __init__(
        self,
        workers: "GatewayWorkers",
        *,
        clock: Clock,
        limits: Limits,
        gateway_id: str,
        secret: bytes,
        redis_url: str | None = None,
        credentials: EngineCredentials | None = None,
    ) -> None:
        self._fleet = workers.applied_fleet
        self.scraper = MetricsScraper(self._fleet, clock, limits, credentials)
        self.redis_link: RedisLink | None = None
        self.decision_stream: DecisionStream | None = None
        self.peers: PeerSync | None = None
        if redis_url is not None:
            from fairlead_gateway.supervisor import decision_stream
            from fairlead_gateway.supervisor.peers import peer_sync
            from fairlead_kvstore.redis import link as links

            link = self.redis_link = links.RedisLink(redis_url, clock, limits=limits, name=f"fairlead-{gateway_id}")
            self.decision_stream = decision_stream.DecisionStream(link, gateway_id, clock, limits=limits)
            self.peers = peer_sync.PeerSync(
                link, workers, gateway_id=gateway_id, secret=secret, clock=clock, limits=limits
            )

    def start(self) -> None:
        """Begin on the running loop; neither engines nor Redis are waited for."""
        self.scraper.start()
        if self.redis_link is not None:
            self.redis_link.start()
        if self.decision_stream is not None:
            self.decision_stream.start()
        if self.peers is not None:
            self.peers.start()

    async def stop(self) -> None:
        """Tell the last decisions, take leave of the other gateways, stop asking."""
        await self.scraper.stop()
        if self.peers is not None:
            await self.peers.stop()
        if self.decision_stream is not None:
            await self.decision_stream.stop()
        if self.redis_link is not None:
            await self.redis_link.stop()

    def fleet(self) -> Fleet:
        """The present snapshot with the engines' last signals."""
        return self.scraper.with_signals(self._fleet())

    def warnings(self) -> list[str]:
        """What is missing or degraded, in words."""
        found = [self._redis_warning(), self._signals_warning()]
        if self.peers is not None:
            found += self.peers.warnings()
        return [note for note in found if note]

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
        mute = [instance for instance in ready if instance.id in self.scraper.errors]
        if not mute:
            return None
        first = mute[0].id
        return f"{len(mute)} of {len(ready)} ready engines do not tell their metrics: {first}: {self.scraper.errors[first]}"
