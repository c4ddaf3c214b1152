"""A gateway in front of a fleet that may be empty or full: requests wait in it for a replica.

The router is the one that the gateway runs, with late binding. As in the gateway, a request is not
sent to a replica whose batch or memory is full by what is in flight. While no replica is ready, or
all are full, requests wait in order of arrival.

Why the memory: an engine whose memory is full lets a prompt wait, and all later ones behind it.
"""

from collections.abc import Callable, Sequence

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Instance, Model
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest
from fairlead_gateway.routing.request import DEFAULT_OUTPUT_TOKENS
from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.fleet.simulation import QUEUED
from fairlead_sim.gateways.single_gateway import SingleGateway
from fairlead_sim.workload.traces import TraceRequest


class HoldingGateway(SingleGateway):
    """A single gateway in which requests wait for a replica.

    - describe_instance: returns the router's description of an engine.
    - on_assigned: called with a request and the time when it gets a replica.
    """

    def __init__(
        self,
        router: ModelRouter,
        chain: Callable[[TraceRequest], PrefixChain],
        model: Model,
        profile: EngineProfile,
        describe_instance: Callable[[str], Instance],
        on_assigned: Callable[[str, float], None],
    ) -> None:
        super().__init__(router, chain, {}, model, profile)
        router.update(model, ())  # late binding depends on the preset, which the router now knows
        self._describe_instance = describe_instance
        self._on_assigned = on_assigned
        self._max_sequences: dict[str, int] = {}
        self._held: dict[str, TraceRequest] = {}  # in order of arrival
        self._is_releasing = False

    def held_count(self) -> int:
        """Returns the requests that wait in the gateway, for a replica or for their turn."""
        return len(self._held) + self._sender().queued_count()

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        chosen = None if self._held else self._assign(request, now)
        if chosen is None:
            self._held[request.id] = request
            return QUEUED, ""
        return chosen, ""

    def on_first_token(self, request: str, now: float) -> None:
        super().on_first_token(request, now)
        self._release(now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        super().on_finished(sequence, now)
        self._release(now)

    def on_lost(self, request: str, now: float) -> None:
        """Drops the request from the load and from those that wait."""
        if self._held.pop(request, None) is None:
            super().on_lost(request, now)
        self._release(now)

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        """Updates the router, and reroutes requests queued for engines that left."""
        instances = [self._describe_instance(name) for name in live_engines]
        self._max_sequences = {one.id: one.profile.max_sequences for one in instances if one.profile is not None}
        self._router.update(self._model, instances)
        if self._simulation is not None:
            for request in self._sender().retain(live_engines, now):
                self._simulation.interrupt_request(request, now)
            self._release(now)

    def _assign(self, request: TraceRequest, now: float) -> str | None:
        """Returns where the request goes, or ``QUEUED``; None if no replica has room."""
        full = self._full_replicas(request)
        if len(full) == len(self._max_sequences):
            return None
        route_request = RouteRequest(
            request.id, self._chain(request), request.prompt_tokens, request.output_tokens, request.session
        )
        decision = self._router.choose_instance(route_request, now, excluded=full)
        if decision.chosen is None:
            return None
        self.routed_to_home += bool(decision.home)
        self._on_assigned(request.id, now)
        return self._sender().dispatch(route_request, decision.chosen, now)

    def _full_replicas(self, request: TraceRequest) -> frozenset[str]:
        """Returns the replicas without room for the request; an empty replica has room for any."""
        tokens = request.prompt_tokens + min(request.output_tokens, DEFAULT_OUTPUT_TOKENS)
        full: list[str] = []
        for endpoint, load in self._router.endpoint_loads():
            is_over = load.inflight_tokens + tokens > endpoint.kv_tokens
            if load.inflight and (is_over or load.inflight >= self._max_sequences[endpoint.id]):
                full.append(endpoint.id)
        return frozenset(full)

    def _release(self, now: float) -> None:
        """Assigns the waiting requests in order, as long as a replica has room."""
        if self._is_releasing or self._simulation is None:
            return
        self._is_releasing = True
        while self._held:
            request = next(iter(self._held.values()))
            chosen = self._assign(request, now)
            if chosen is None:
                break
            del self._held[request.id]
            if chosen != QUEUED:
                self._simulation.send_queued_request(request.id, chosen, now)
        self._is_releasing = False
