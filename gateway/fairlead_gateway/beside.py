"""What runs beside the request's way: the engines' own metrics, and the board in Redis. Nothing of a request waits for either."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fairlead.clock import Clock
from fairlead.fleet import Fleet, InstanceState
from fairlead.limits import Limits
from fairlead_gateway.management.scrape import Scraper
from fairlead_gateway.reach import Reach
from fairlead_gateway.telemetry import Load

if TYPE_CHECKING:  # without a Redis its client is not loaded
    from fairlead_kvstore.board import Board


class Beside:
    """Start and stop it on the running loop. ``fleet`` is the present snapshot, ``loads`` what the gateway has in flight by
    instance; ``redis`` is a URL, or None to stay alone."""

    def __init__(
        self,
        *,
        fleet: Callable[[], Fleet],
        loads: Callable[[], Mapping[str, Load]],
        clock: Clock,
        limits: Limits,
        gateway_id: str,
        redis: str | None = None,
        reach: Reach | None = None,
    ) -> None:
        self._fleet = fleet
        self._loads = loads
        self.scraper = Scraper(fleet, clock, limits, reach)
        self.board: Board | None = None
        if redis is not None:
            from fairlead_kvstore import board

            self.board = board.Board(redis, gateway_id, clock, loads=self._loads_by_model, limits=limits)

    def start(self) -> None:
        """Begin on the running loop; neither engines nor Redis are waited for."""
        self.scraper.start()
        if self.board is not None:
            self.board.start()

    async def stop(self) -> None:
        """Tell the last decisions, take the board down, stop asking."""
        await self.scraper.stop()
        if self.board is not None:
            await self.board.stop()

    def fleet(self) -> Fleet:
        """The present snapshot with the engines' last signals."""
        return self.scraper.merge(self._fleet())

    def notes(self) -> list[str]:
        """What is missing or degraded, in words."""
        found = [self._redis_note(), self._signals_note()]
        return [note for note in found if note]

    def _redis_note(self) -> str | None:
        if self.board is None:
            return "no Redis: limits and index stay local"
        return self.board.problem()

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

    def _loads_by_model(self) -> Mapping[str, Mapping[str, Load]]:
        loads = self._loads()
        return {
            key: {instance.id: loads[instance.id] for instance in instances if instance.id in loads}
            for key, instances in self._fleet().instances.items()
        }
