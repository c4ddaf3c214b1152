"""One gateway in front of the simulated fleet.

The router is the class that the gateway runs. It receives what the gateway would receive, when the
gateway would receive it: dispatch at the arrival, first token and end at the ends of their steps.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fairlead.engine_profile import EngineProfile
from fairlead.errors import BadInput
from fairlead.fleet.model import Instance, KvPullSource, Model, ModelRouting, SloTargets
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest
from fairlead_gateway.routing.load.inflight import InstanceLoad
from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.scheduler import EngineSequence
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation, SimulationContext
from fairlead_sim.gateways.late_binding import Dispatcher
from fairlead_sim.workload.trace_prompts import TracePromptCache, trace_chain
from fairlead_sim.workload.traces import TraceRequest

MODEL = "sim"
NAMESPACE = "default"


def synthetic_chain(request: TraceRequest, *, secret: bytes, seed: bytes) -> PrefixChain:
    return trace_chain(request.blocks, request.prompt_tokens, secret=secret, seed=seed)


def instances_of(names: Sequence[str], profile: EngineProfile, pull: KvPullSource | None = None) -> list[Instance]:
    """Returns equal engines as instances of the router."""
    return [
        Instance(id=name, namespace=NAMESPACE, model=MODEL, pool="sim", url="", profile=profile, pull=pull)
        for name in names
    ]


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """The routing of the simulated model.

    - prefix_chain: chains of the prompts' real text. With them and the live engines' names, homes
      are those of a live gateway. None: chains of the block ids.
    - choices: instances by request id that replace the router's, to replay decisions.
    """

    objectives: SloTargets
    secret: bytes
    seed: int = 0
    preset: str = "dual-hash"
    prefix_chain: Callable[[TraceRequest], PrefixChain] | None = None
    choices: Mapping[str, str] = field(default_factory=dict)

    @property
    def model(self) -> Model:
        return Model(NAMESPACE, MODEL, self.objectives, ModelRouting(self.preset))


def simulate(
    requests: Sequence[TraceRequest],
    fleet: FleetOptions,
    routing: RoutingOptions,
    *,
    prompts: TracePromptCache | None = None,
) -> list[RequestResult]:
    """Returns the results of the requests behind one gateway, in the order given."""
    names = list(fleet.engine_names)
    if not names or len(set(names)) != len(names):
        raise BadInput("a fleet needs at least one engine, and engine names must differ", field="engines")
    model = routing.model
    router = ModelRouter(secret=routing.secret, seed=routing.seed)
    router.update(model, instances_of(names, fleet.profile))
    if prompts is None:
        prompts = TracePromptCache(fleet.block_tokens, secret=routing.secret, seed=model.key.encode())
    gateway = SingleGateway(router, routing.prefix_chain or prompts.prefix_chain, routing.choices, model, fleet.profile)
    return FleetSimulation(gateway, fleet, prompts=prompts).run(requests)


class SingleGateway:
    """One router that sees all traffic.

    - never_queues: disables late binding.
    - routed_to_home: counts the requests that went to one of their homes.
    """

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
        self._router = router
        self._chain = chain
        self._choices = choices
        self._dispatcher: Dispatcher | None = None
        self._simulation: SimulationContext | None = None
        self._unreachable: frozenset[str] = frozenset()
        self.routed_to_home = 0

    def start(self, simulation: SimulationContext) -> None:
        self._simulation = simulation
        self._dispatcher = Dispatcher(
            self._router,
            self._profile,
            simulation.send_queued_request,
            simulation.schedule,
            never_queues=self._never_queues,
        )

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        route_request = RouteRequest(
            request.id, self._chain(request), request.prompt_tokens, request.output_tokens, request.session
        )
        decision = self._router.choose_instance(route_request, now, excluded=self._unreachable)
        chosen = self._choices.get(request.id, decision.chosen)
        if chosen is None:
            return None, decision.reason
        self.routed_to_home += bool(decision.home)
        return self._sender().dispatch(route_request, chosen, now), ""

    def on_rejected(self, request: str, now: float) -> None:
        self.on_lost(request, now)

    def on_first_token(self, request: str, now: float) -> None:
        self._sender().on_first_token(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        self._sender().on_finished(sequence, now)

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """Does nothing: the router does not read KV events."""

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        """Updates the router and reroutes requests queued for engines that left."""
        self._router.update(self._model, instances_of(live_engines, self._profile))
        if self._simulation is not None:
            for request in self._sender().retain(live_engines, now):
                self._simulation.interrupt_request(request, now)

    def on_lost(self, request: str, now: float) -> None:
        self._sender().on_abandoned(request, now)

    def set_unreachable(self, names: frozenset[str], now: float) -> None:
        """Cuts the gateway off from these engines, and from no others.

        Its requests there without a first token are rerouted; answers in progress are cut.
        """
        self._unreachable = names
        assert self._simulation is not None
        reached = [endpoint.id for endpoint, _ in self._router.endpoint_loads() if endpoint.id not in names]
        queued = self._sender().retain(reached, now)
        sent = [
            inflight.request.id
            for inflight in self._simulation.all_requests()
            if not inflight.is_ended and inflight.instance in names
        ]
        for request in (*queued, *sent):
            self.on_lost(request, now)
            self._simulation.interrupt_request(request, now)

    def loads(self) -> Mapping[str, InstanceLoad]:
        return self._router.loads()

    def gateway_number(self, request: str) -> int | None:
        return 0

    def unreachable_for(self, request: str) -> frozenset[str]:
        del request
        return self._unreachable

    def _sender(self) -> Dispatcher:
        assert self._dispatcher is not None, "nothing is sent before the course begins"
        return self._dispatcher
