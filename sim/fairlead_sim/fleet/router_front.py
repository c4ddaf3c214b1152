"""The interface between the fleet simulation and the router of its requests."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Protocol, TypeAlias

from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.scheduler import EngineCore, EngineSequence
from fairlead_sim.fleet.request import InflightRequest
from fairlead_sim.workload.traces import TraceRequest

Action: TypeAlias = Callable[[float], None]
QUEUED: Final = ""
"""The choice of a router that keeps a request and sends it later."""


class SimulationContext(ABC):
    """The fleet simulation, as its router sees it.

    Why: a base class, since compiled calls through a Protocol look up each method by name.
    """

    @property
    @abstractmethod
    def engine_cores(self) -> Mapping[str, EngineCore]:
        """Returns the present engines by name."""

    @abstractmethod
    def schedule(self, at: float, act: Action) -> None:
        """Calls ``act(at)`` at a simulated time, unless all requests have ended before."""

    @abstractmethod
    def send_queued_request(self, request_id: str, instance: str, now: float) -> None:
        """Sends a queued request.

        If the engine is absent or rejects the request, the router is notified and the request ends
        with an error.
        """

    @abstractmethod
    def refuse(self, request_id: str, reason: str, now: float) -> None:
        """Ends a queued request with an error."""

    @abstractmethod
    def interrupt_request(self, request_id: str, now: float) -> None:
        """Routes a request without a first token again; cuts an answer in progress.

        The router must have dropped the request.
        """

    @abstractmethod
    def known_request(self, request_id: str) -> InflightRequest:
        """Returns a request that has arrived."""

    @abstractmethod
    def all_requests(self) -> Iterator[InflightRequest]:
        """Returns all requests that have arrived, also the ended ones."""


class RouterFront(Protocol):
    """The router of a fleet simulation. Times are simulated seconds.

    A router receives what a gateway receives, when the gateway receives it.
    """

    def start(self, simulation: SimulationContext) -> None:
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
        """Notes that the engine of a request was lost.

        A request without a first token is routed again right after.
        """
        ...
