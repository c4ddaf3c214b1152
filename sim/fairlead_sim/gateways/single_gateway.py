"""The fleet simulator: the production router in front of simulated engines, on a virtual clock.

Open loop: requests arrive when the trace says, whatever the engines do. The router is the class that the gateway runs, told what
the gateway would be told, when it would be told: dispatch at the arrival, the first token and the end when their steps end.
"""

from collections.abc import Callable, Mapping, Sequence

from fairlead.engine_profile import EngineProfile
from fairlead.errors import BadInput
from fairlead.fleet.model import Instance, Model, SloTargets
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest
from fairlead_gateway.routing.load.inflight import InstanceLoad
from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import FleetSimulation
from fairlead_sim.gateways.late_binding import Dispatcher
from fairlead_sim.workload.trace_prompts import TracePromptCache, trace_chain
from fairlead_sim.workload.traces import TraceRequest

__all__ = ["MODEL", "NAMESPACE", "RequestResult", "SingleGateway", "instances_of", "simulate", "synthetic_chain"]

MODEL = "sim"
NAMESPACE = "default"


def synthetic_chain(request: TraceRequest, *, secret: bytes, seed: bytes) -> PrefixChain:
    """The chain of a prompt of which only block ids are known."""
    return trace_chain(request.blocks, request.prompt_tokens, secret=secret, seed=seed)


def instances_of(names: Sequence[str], profile: EngineProfile) -> list[Instance]:
    """Equal engines as a router sees them."""
    return [Instance(id=name, namespace=NAMESPACE, model=MODEL, pool="sim", url="", profile=profile) for name in names]


def simulate(
    requests: Sequence[TraceRequest],
    *,
    profile: EngineProfile,
    engines: int,
    preset: str,
    objectives: SloTargets,
    block_tokens: int,
    secret: bytes,
    seed: int,
    instance_ids: Sequence[str] | None = None,
    chain: Callable[[TraceRequest], PrefixChain] | None = None,
    choices: Mapping[str, str] | None = None,
    feedback_delay_seconds: float = 0.0,
    prompts: TracePromptCache | None = None,
) -> list[RequestResult]:
    """Every request served by ``engines`` equal engines under one routing preset, in the order given.

    ``instance_ids`` name the engines as the router sees them; homes depend on names. ``chain`` replaces the made-up prefix
    chain where the prompts' real text is known: with both, homes are the very ones that a live gateway computes.
    ``choices`` (request id → instance id) overrule the router: what the same engines make of decisions taken elsewhere.
    The router hears of first tokens and ends ``hearing_seconds`` after they happened, as a gateway does. ``prompts`` may be
    shared by simulations of the same requests.
    """
    names = [f"sim-{index}/0/0" for index in range(engines)] if instance_ids is None else list(instance_ids)
    if not names or len(names) != engines or len(set(names)) != engines:
        raise BadInput(f"{engines} engines need as many different instance ids", field="engines")
    model = Model(NAMESPACE, MODEL, objectives, preset)
    router = ModelRouter(secret=secret, seed=seed)
    router.update(model, instances_of(names, profile), 1)
    if prompts is None:
        prompts = TracePromptCache(block_tokens, secret=secret, seed=model.key.encode())
    gateway = SingleGateway(router, chain or prompts.prefix_chain, choices or {}, model, profile)
    simulation = FleetSimulation(
        gateway,
        names,
        profile,
        block_tokens=block_tokens,
        feedback_delay_seconds=feedback_delay_seconds,
        prompts=prompts,
    )
    return simulation.run(requests)


class SingleGateway:
    """One router that sees everything that is sent. ``on_home`` counts the requests that went to one of their homes. ``at_once``:
    nothing is held before engines, whatever the preset wants."""

    def __init__(
        self,
        router: ModelRouter,
        chain: Callable[[TraceRequest], PrefixChain],
        choices: Mapping[str, str],
        model: Model,
        profile: EngineProfile,
        *,
        never_queues: bool = False,
    ) -> None:
        self._never_queues = never_queues
        self._model = model
        self._profile = profile
        self._epoch = 1
        self._router = router
        self._chain = chain
        self._choices = choices
        self._dispatcher: Dispatcher | None = None
        self._simulation: FleetSimulation | None = None
        self._unreachable: frozenset[str] = frozenset()
        self.routed_to_home = 0

    def start(self, simulation: FleetSimulation) -> None:
        """From now on requests may be held."""
        self._simulation = simulation
        self._dispatcher = Dispatcher(
            self._router, self._profile, simulation.send, simulation.schedule, never_queues=self._never_queues
        )

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """As the router decides, or as was decided elsewhere."""
        route_request = RouteRequest(
            request.id, self._chain(request), request.prompt_tokens, request.output_tokens, request.session
        )
        decision = self._router.decide(route_request, now, excluded=self._unreachable)
        chosen = self._choices.get(request.id, decision.chosen)
        if chosen is None:
            return None, decision.reason
        self.routed_to_home += bool(decision.home)
        return self._sender().dispatch(route_request, chosen, now), ""

    def on_rejected(self, request: str, now: float) -> None:
        """Its load is gone at once."""
        self.on_lost(request, now)

    def on_first_token(self, request: str, now: float) -> None:
        """Its prefill is before nobody any more."""
        self._sender().on_first_token(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        """With what an engine reports."""
        self._sender().on_finished(sequence, now)

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """Nobody listens."""

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        """As a watch tells it. What was held for an engine that left is asked anew."""
        self._epoch += 1
        self._router.update(self._model, instances_of(live_engines, self._profile), self._epoch)
        if self._simulation is not None:
            for request in self._sender().retain(live_engines, now):
                self._simulation.reroute(request, now)

    def on_lost(self, request: str, now: float) -> None:
        """Its load is gone at once."""
        self._sender().on_abandoned(request, now)

    def set_unreachable(self, names: frozenset[str], now: float) -> None:
        """The gateway does not reach these engines from now on, and no others: what it has there without a first token arrives
        anew, the other answers are cut."""
        self._unreachable = names
        assert self._simulation is not None
        reached = [endpoint.id for endpoint, _ in self._router.endpoint_loads() if endpoint.id not in names]
        queued = self._sender().retain(reached, now)
        sent = [
            inflight.request.id
            for inflight in self._simulation.inflight_requests()
            if not inflight.is_ended and inflight.instance in names
        ]
        for request in (*queued, *sent):
            self.on_lost(request, now)
            self._simulation.reroute(request, now)

    def loads(self) -> Mapping[str, InstanceLoad]:
        """What the router counts as sent and not over."""
        return self._router.loads()

    def unreachable_for(self, request: str) -> frozenset[str]:
        """The engines that are out of reach."""
        del request
        return self._unreachable

    def _sender(self) -> Dispatcher:
        assert self._dispatcher is not None, "nothing is sent before the course begins"
        return self._dispatcher
