"""What runs beside the request's way: the engines' own metrics, and what is told and heard through Redis. Nothing of a request waits
for either."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fairlead.clock import Clock
from fairlead.fleet import Fleet, InstanceState
from fairlead.limits import Limits
from fairlead_gateway.management.scrape import Scraper
from fairlead_gateway.reach import Reach
from fairlead_gateway.telemetry import Load

if TYPE_CHECKING:  # without a Redis its client is not loaded
    from fairlead_gateway.others import Others, Workers
    from fairlead_kvstore.decisions import Decisions
    from fairlead_kvstore.redis import RedisLink


class Beside:
    """Start and stop it on the running loop. ``fleet`` is the present snapshot, ``loads`` what the gateway has in flight by
    instance; ``redis`` is a URL, or None to stay alone; ``workers`` hear of other gateways, whose hashes mean the same under the same
    ``secret``."""

    def __init__(
        self,
        *,
        fleet: Callable[[], Fleet],
        loads: Callable[[], Mapping[str, Load]],
        clock: Clock,
        limits: Limits,
        gateway_id: str,
        secret: bytes,
        workers: "Workers",
        redis: str | None = None,
        reach: Reach | None = None,
    ) -> None:
        self._fleet = fleet
        self.scraper = Scraper(fleet, clock, limits, reach)
        self.link: RedisLink | None = None
        self.decisions: Decisions | None = None
        self.others: Others | None = None
        if redis is not None:
            from fairlead_gateway import others
            from fairlead_kvstore import decisions
            from fairlead_kvstore import redis as links

            link = self.link = links.RedisLink(redis, clock, limits=limits, name=f"fairlead-{gateway_id}")
            self.decisions = decisions.Decisions(link, gateway_id, clock, limits=limits)
            self.others = others.Others(
                link,
                workers,
                fleet=fleet,
                loads=loads,
                gateway_id=gateway_id,
                secret=secret,
                clock=clock,
                limits=limits,
            )

    def start(self) -> None:
        """Begin on the running loop; neither engines nor Redis are waited for."""
        self.scraper.start()
        if self.link is not None:
            self.link.start()
        if self.decisions is not None:
            self.decisions.start()
        if self.others is not None:
            self.others.start()

    async def stop(self) -> None:
        """Tell the last decisions, take leave of the other gateways, stop asking."""
        await self.scraper.stop()
        if self.others is not None:
            await self.others.stop()
        if self.decisions is not None:
            await self.decisions.stop()
        if self.link is not None:
            await self.link.stop()

    def fleet(self) -> Fleet:
        """The present snapshot with the engines' last signals."""
        return self.scraper.merge(self._fleet())

    def notes(self) -> list[str]:
        """What is missing or degraded, in words."""
        found = [self._redis_note(), self._signals_note()]
        if self.others is not None:
            found += self.others.notes()
        return [note for note in found if note]

    def _redis_note(self) -> str | None:
        if self.decisions is None:
            return "no Redis: limits and index stay local"
        return self.decisions.problem()

    def _signals_note(self) -> str | None:
        ready = [
            instance
            for instances in self._fleet().instances.values()
            for instance in instances
            if instance.state is InstanceState.READY
        ]
        mute = [instance for instance in ready if instance.id in self.scraper.problems]
        if not mute:
            return None
        first = mute[0].id
        return f"{len(mute)} of {len(ready)} ready engines do not tell their metrics: {first}: {self.scraper.problems[first]}"
