"""Router front."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.workload.traces import TraceRequest

if TYPE_CHECKING:
    from fairlead_sim.fleet.simulation import FleetSimulation


class RouterFront(Protocol):
    """Who chooses an engine for a request, and what it is told. Times are simulated seconds."""

    def start(self, simulation: "FleetSimulation") -> None:
        """The simulation begins; ``course.later`` may be called from now on."""
        ...

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """Choose an engine and take the request as sent there; ``HELD`` to send it later; None and why where there is none."""
        ...

    def on_rejected(self, request: str, now: float) -> None:
        """The engine did not take it."""
        ...

    def on_first_token(self, request: str, now: float) -> None:
        """Its first token came."""
        ...

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        """Its answer is complete."""
        ...

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """An engine tells what it stored and removed in the step that ends now; only when the course has ``events``."""
        ...

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        """The engines that are there from now on; only where some come or go."""
        ...

    def on_lost(self, request: str, now: float) -> None:
        """The engine that it was on is gone; it arrives anew at once where it has no first token yet."""
        ...
