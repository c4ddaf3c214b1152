"""The interface between the fleet simulation and whatever routes its requests."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.workload.traces import TraceRequest

if TYPE_CHECKING:
    from fairlead_sim.fleet.simulation import FleetSimulation


class RouterFront(Protocol):
    """The router of a fleet simulation. Times are simulated seconds.

    A router receives what a gateway receives, when the gateway receives it.
    """

    def start(self, simulation: "FleetSimulation") -> None:
        """Starts the router; ``simulation.schedule`` works from now on."""
        ...

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """Chooses an engine and counts the request as sent.

        Returns ``QUEUED`` to send the request later. Returns None and the reason if no engine is
        available.
        """
        ...

    def on_rejected(self, request: str, now: float) -> None:
        """Notes that the engine did not take the request."""
        ...

    def on_first_token(self, request: str, now: float) -> None:
        """Notes the first token of a request."""
        ...

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        """Notes a complete answer."""
        ...

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """Notes what an engine stored and evicted in the step that ends now, if the fleet publishes
        events.
        """
        ...

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        """Replaces the set of engines that take requests."""
        ...

    def on_lost(self, request: str, now: float) -> None:
        """Notes that the engine of a request is gone.

        A request without a first token arrives again right after.
        """
        ...
