"""The replicas of a plant whose engines are those of the fleet simulator.

The simulation advances all engines together, and its gateway sends the requests. The fleet may be
empty or full: then requests wait in the gateway for a replica. The router is the one that the
gateway runs, with late binding. As in the gateway, a request is not sent to a replica whose batch
or memory is full by what is in flight. While no replica is ready, or all are full, requests wait in
order of arrival.

Why the memory: an engine whose memory is full lets a prompt wait, and all later ones behind it.

``Pool`` decides which replicas exist. ``synchronize`` makes the simulation follow: ready replicas
join the router, draining ones leave it, ended ones leave the fleet. A replica that was asleep
returns with an empty cache.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Instance, Model, ModelRouting, Role, SloTargets
from fairlead_gateway.routing import ModelRouter, PrefixChain, RouteRequest
from fairlead_gateway.routing.request import DEFAULT_OUTPUT_TOKENS
from fairlead_sim.autoscaling.fleet_plant.conversations import (
    PREFIX_BLOCK_TOKENS,
    ConversationPrompts,
    FleetPlantOptions,
    conversation_turns,
)
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.plant_engine import PlantEngine, StepTotals
from fairlead_sim.autoscaling.pool import Pool, PoolSetup
from fairlead_sim.autoscaling.request_table import RequestTable
from fairlead_sim.engine.sequence import EngineSequence
from fairlead_sim.fleet.request import InflightRequest
from fairlead_sim.fleet.simulation import CLIENT_GONE, QUEUED, EngineObserver, FleetOptions, FleetSimulation
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE, SingleGateway
from fairlead_sim.workload.traces import TraceRequest


class CacheCounters:
    """The prompt tokens of a run so far, and the part of them that was cached."""

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.cached_tokens = 0


class FleetReplicaEngine(PlantEngine):
    """A plant engine that is an engine of a fleet simulation, while its replica serves.

    - next_step_at: when its last answer ended.
    - applied_slowdown: the slowdown that the simulation knows.
    """

    def __init__(
        self,
        name: str,
        profile: EngineProfile,
        requests: RequestTable,
        totals: StepTotals,
        simulation: FleetSimulation,
        prompts: ConversationPrompts,
    ) -> None:
        super().__init__(profile, Role.SERVE, requests, totals)
        self.name = name
        self.applied_slowdown = 1.0
        self._simulation = simulation
        self._prompts = prompts

    def add(self, request: int, now: float) -> None:
        self.requests.sent[request] = now
        self._simulation.arrive_at(self._prompts.take(request), self.name, now)

    def advance(self, until: float) -> None:
        self._simulation.run_until(until)

    def drop_abandoned(self, now: float) -> None:
        """Does nothing: the plant ends such requests in time."""

    def evict(self) -> list[int]:
        """Removes the engine. Returns no request: the simulation cuts or reroutes them."""
        if self._simulation.engine_core(self.name) is not None:
            self._simulation.lose_engine(self.name, self._simulation.now)
        return []

    def running(self) -> int:
        """Returns the sequences in the batch; one at least while the last step is not over."""
        core = self._simulation.engine_core(self.name)
        if core is None:
            return 0
        running = core.stats.running
        return running if running or not core.is_idle else int(self._simulation.is_engine_busy(self.name))

    def waiting(self) -> int:
        core = self._simulation.engine_core(self.name)
        return 0 if core is None else core.stats.waiting

    def kv_share(self) -> float:
        core = self._simulation.engine_core(self.name)
        return 0.0 if core is None else core.stats.kv_usage

    def load_tokens(self) -> int:
        core = self._simulation.engine_core(self.name)
        sequences = [] if core is None else core.sequences()
        return self.uncomputed_tokens() + sum([sequence.prompt_tokens + sequence.generated for sequence in sequences])

    def uncomputed_tokens(self) -> int:
        core = self._simulation.engine_core(self.name)
        sequences = [] if core is None else core.sequences()
        return sum([sequence.prompt_tokens - sequence.computed for sequence in sequences if not sequence.generated])


class ReplicaObserver(EngineObserver):
    """Writes what an engine does into its counters and the request table."""

    def __init__(self, engine: FleetReplicaEngine, caches: CacheCounters) -> None:
        self._engine = engine
        self._caches = caches

    def on_gaps(self, tokens: int, seconds: float) -> None:
        if tokens:
            totals = self._engine.totals
            totals.generated_tokens += tokens
            totals.add_gaps(tokens, seconds)

    def on_first_token(self, sequence: EngineSequence, now: float) -> None:
        engine, request = self._engine, int(sequence.id)
        totals, table, caches = engine.totals, engine.requests, self._caches
        totals.add_first_token(now - table.sent[request], sequence.prompt_tokens)
        totals.cached_tokens = (totals.cached_tokens or 0) + sequence.cached_tokens
        caches.prompt_tokens += sequence.prompt_tokens
        caches.cached_tokens += sequence.cached_tokens
        table.first[request] = now

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        engine = self._engine
        book, request = engine.requests, int(sequence.id)
        book.end[request] = now
        engine.totals.add_answer(now - book.first[request], book.output[request] - 1)
        engine.next_step_at = now


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
        self._max_sequences = {
            instance.id: instance.profile.max_sequences for instance in instances if instance.profile is not None
        }
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


class ReplicaFleet:
    """The pools, the simulation of their ready and draining replicas, and the gateway.

    - ideal_cached_share: the share (0..1) of prompt tokens that an endless cache would have.
    - caches: what the engines' caches had.
    """

    def __init__(
        self, scenario: AutoscalingScenario, requests: RequestTable, options: FleetPlantOptions, *, foresight: bool
    ) -> None:
        self._requests = requests
        self._bounds = scenario.model.ttft_bounds, scenario.model.itl_bounds
        self.caches = CacheCounters()
        self._profiles: dict[str, EngineProfile] = {}  # of all engines so far, for the simulation
        self._pool_of: dict[str, str] = {}
        self._serving: dict[str, None] = {}
        self._cordoned: dict[str, None] = {}
        targets = SloTargets(ttft_seconds=scenario.model.ttft_seconds, itl_seconds=scenario.model.itl_seconds)
        model = Model(NAMESPACE, MODEL, targets, ModelRouting(options.preset))
        secret = f"fleet plant {options.routing_seed}".encode()
        random_ = scenario.random_source("conversations")
        turns = conversation_turns(scenario.load, options.conversations, random_)
        self.ideal_cached_share = turns.cached_share
        self._prompts = ConversationPrompts(
            scenario.load, turns, options.conversations, secret=secret, seed=model.key.encode()
        )
        router, profile = ModelRouter(secret=secret, seed=options.routing_seed), scenario.pools[0].profile
        self.gateway = HoldingGateway(
            router, self._prompts.prefix_chain, model, profile, self._describe_instance, self._on_assigned
        )
        fleet = FleetOptions((), profile, PREFIX_BLOCK_TOKENS, profiles=self._profiles, keeps_results=False)
        self.simulation = FleetSimulation(self.gateway, fleet, prompts=self._prompts, on_progress=self._on_progress)
        self.simulation.begin()
        self.pools: dict[str, Pool] = {}
        for setup in scenario.pools:
            name = setup.facts.name
            factory = partial(self.make_engine, setup, count(1))
            self.pools[name] = Pool(setup, factory, scenario.random_source(name), foresight=foresight)
        self.synchronize(0.0)

    def make_engine(self, setup: PoolSetup, numbers: Iterator[int]) -> FleetReplicaEngine:
        """Returns a new engine, which joins the simulation when its replica is ready.

        It is named as ``Pool`` names its replicas.
        """
        name = f"{setup.facts.name}-{next(numbers)}"
        self._profiles[name] = setup.profile
        self._pool_of[name] = setup.facts.name
        totals = StepTotals(*self._bounds)
        totals.cached_tokens = 0
        return FleetReplicaEngine(name, setup.profile, self._requests, totals, self.simulation, self._prompts)

    def arrive(self, request: int, now: float) -> None:
        self.simulation.arrive(self._prompts.take(request), now)

    def synchronize(self, now: float) -> None:
        """Makes the simulation and the router follow the pools."""
        simulation, ready, draining = self.simulation, {}, {}
        for pool in self.pools.values():
            ready.update({replica.name: replica.engine for replica in pool.ready})
            draining.update({replica.name: replica.engine for replica in pool.draining})
        for name, engine in ready.items():
            if name in self._cordoned:
                del self._cordoned[name]
                simulation.uncordon_engine(name, now)
            elif name not in self._serving:
                assert isinstance(engine, FleetReplicaEngine)
                simulation.add_engine(name, now, ReplicaObserver(engine, self.caches))
                engine.applied_slowdown = 1.0
            self._serving[name] = None
            self._apply_slowdown(engine, now)
        for name in [one for one in self._serving if one not in ready]:
            del self._serving[name]
            if simulation.engine_core(name) is not None:
                simulation.cordon_engine(name, now)
                self._cordoned[name] = None
        for engine in draining.values():
            self._apply_slowdown(engine, now)
        for name in [one for one in self._cordoned if one not in draining]:
            if not simulation.is_engine_busy(name):  # requests may leave before the last step ends
                del self._cordoned[name]
                simulation.remove_engine(name)

    def _apply_slowdown(self, engine: object, now: float) -> None:
        assert isinstance(engine, FleetReplicaEngine)
        if engine.slowdown != engine.applied_slowdown:
            engine.applied_slowdown = engine.slowdown
            self.simulation.slow_engine(engine.name, engine.slowdown, now)

    def _describe_instance(self, name: str) -> Instance:
        return Instance(
            id=name, namespace=NAMESPACE, model=MODEL, pool=self._pool_of[name], url="", profile=self._profiles[name]
        )

    def _on_assigned(self, request: str, now: float) -> None:
        self._requests.sent[int(request)] = now

    def _on_progress(self, inflight: InflightRequest, now: float) -> None:
        """Counts requests that end without a complete answer."""
        del now
        if inflight.error == CLIENT_GONE:
            self._requests.abandoned += 1
        elif inflight.error is not None:
            self._requests.lost += 1
