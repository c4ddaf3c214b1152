"""What runs beside the request's way: the engines' own metrics, the board in Redis, and the view that shows both.

Nothing of a request waits for any of it. ``Beside`` is what the management port looks at: the gateway, with the engines' signals
merged into its fleet.
"""

from collections.abc import Mapping

from fairlead.clock import Clock
from fairlead.fleet import Fleet, InstanceState
from fairlead.lag import LoopLag
from fairlead.limits import Limits
from fairlead_gateway.decision_log import DecisionLog
from fairlead_gateway.management import View
from fairlead_gateway.management.scrape import Scraper
from fairlead_gateway.reach import Reach
from fairlead_gateway.telemetry import Load, Telemetry
from fairlead_kvstore.board import Board


class Beside:
    """Start and stop it on the gateway's loop; ``redis`` is a URL, or None to stay alone."""

    def __init__(
        self, gateway: View, limits: Limits, *, gateway_id: str, redis: str | None = None, reach: Reach | None = None
    ) -> None:
        self._gateway = gateway
        self._limits = limits
        self.scraper = Scraper(gateway.fleet, gateway.clock, limits, reach)
        self.board: Board | None = None
        if redis is not None:
            self.board = Board(redis, gateway_id, gateway.clock, loads=self._loads_by_model, limits=limits)
            gateway.decisions.told = self.board.offer
            gateway.telemetry.shared = self.board

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
            for instances in self._gateway.fleet().instances.values()
            for instance in instances
            if instance.state is InstanceState.READY
        ]
        mute = [instance for instance in ready if instance.id in self.scraper.problems]
        if not mute:
            return None
        first = mute[0].id
        return f"{len(mute)} of {len(ready)} ready engines do not tell their metrics: {first}: {self.scraper.problems[first]}"

    def _loads_by_model(self) -> Mapping[str, Mapping[str, Load]]:
        loads = self._gateway.loads()
        return {
            key: {instance.id: loads[instance.id] for instance in instances if instance.id in loads}
            for key, instances in self._gateway.fleet().instances.items()
        }

    # The management port's view.

    @property
    def telemetry(self) -> Telemetry:
        """The gateway's counters."""
        return self._gateway.telemetry

    @property
    def decisions(self) -> DecisionLog:
        """The gateway's last decisions."""
        return self._gateway.decisions

    @property
    def clock(self) -> Clock:
        """The gateway's clock."""
        return self._gateway.clock

    @property
    def lag(self) -> LoopLag:
        """How late the gateway's loop runs."""
        return self._gateway.lag

    def fleet(self) -> Fleet:
        """The present snapshot with the engines' last signals."""
        return self.scraper.merge(self._gateway.fleet())

    def loads(self) -> Mapping[str, Load]:
        """The gateway's own ledger by instance id."""
        return self._gateway.loads()

    def ready(self) -> tuple[bool, list[str]]:
        """As the gateway says on its public port."""
        return self._gateway.ready()
