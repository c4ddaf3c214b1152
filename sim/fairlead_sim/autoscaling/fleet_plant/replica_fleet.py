"""The pools of a scenario as one fleet: their replicas are the engines of a fleet simulation.

``Pool`` decides which replicas exist. ``synchronize`` makes the simulation follow: ready replicas
join the router, draining ones leave it, ended ones leave the fleet. A replica that was asleep
returns with an empty cache.
"""

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import Instance, Model, SloTargets
from fairlead_gateway.routing import ModelRouter
from fairlead_sim.autoscaling.fleet_plant.conversation_prompts import ConversationPrompts
from fairlead_sim.autoscaling.fleet_plant.conversations import PREFIX_BLOCK_TOKENS, conversation_turns
from fairlead_sim.autoscaling.fleet_plant.holding_gateway import HoldingGateway
from fairlead_sim.autoscaling.fleet_plant.options import FleetPlantOptions
from fairlead_sim.autoscaling.fleet_plant.replica_engine import CacheCounters, FleetReplicaEngine, ReplicaObserver
from fairlead_sim.autoscaling.plant import AutoscalingScenario
from fairlead_sim.autoscaling.plant_engine import StepTotals
from fairlead_sim.autoscaling.pool import Pool, PoolSetup
from fairlead_sim.autoscaling.request_table import RequestTable
from fairlead_sim.fleet.request import InflightRequest
from fairlead_sim.fleet.simulation import CLIENT_GONE, FleetOptions, FleetSimulation
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE


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
        model = Model(NAMESPACE, MODEL, targets, options.preset)
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
            factory = _ReplicaEngineFactory(self, setup)
            self.pools[name] = Pool(setup, factory, scenario.random_source(name), foresight=foresight)
        self.synchronize(0.0)

    def make_engine(self, setup: PoolSetup, name: str) -> FleetReplicaEngine:
        """Returns a new engine, which joins the simulation when its replica is ready."""
        self._profiles[name] = setup.profile
        self._pool_of[name] = setup.facts.name
        totals = StepTotals(*self._bounds)
        totals.cached_tokens = 0
        return FleetReplicaEngine(name, setup.profile, self._requests, totals, self.simulation, self._prompts)

    def arrive(self, request: int, now: float) -> None:
        """Brings a request to the gateway."""
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


class _ReplicaEngineFactory:
    """The factory of a pool's engines, which are named as ``Pool`` names its replicas."""

    def __init__(self, fleet: ReplicaFleet, setup: PoolSetup) -> None:
        self._fleet = fleet
        self._setup = setup
        self._count = 0

    def __call__(self) -> FleetReplicaEngine:
        self._count += 1
        return self._fleet.make_engine(self._setup, f"{self._setup.facts.name}-{self._count}")
