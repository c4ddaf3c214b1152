"""One trial: a preset, a fleet and a traffic from a seed; its results and its capacity.

An upper bound for all routing: one cache under all engines, and exact knowledge of every queue.

Every engine reads and writes one memory of the fleet's size, which has each block once. A request
goes to the engine with the least queued prefill. Nothing is transferred and nothing is late, so
only the queues remain. No gateway could follow this policy, so it is not a preset.

The capacity of a fleet: the highest arrival rate at which first tokens meet a goal.

Requests stay the same; their arrivals are scaled, with the pauses of sessions. A run that must miss
its goal ends early, and most runs of a search clearly meet or miss it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import Model, ModelRouting, SloTargets
from fairlead_gateway.routing import InstanceLoad, ModelRouter
from fairlead_sim.adapters.external_router import ExternalRouter, SharingDelays
from fairlead_sim.engine.block_pool import KvEvent
from fairlead_sim.engine.sequence import EngineSequence
from fairlead_sim.fleet.fleet_events import FleetEvent, schedule_events
from fairlead_sim.fleet.packet_simulator import NO_FAULTS, PacketSimulator
from fairlead_sim.fleet.request import InflightRequest, RequestResult
from fairlead_sim.fleet.results import (
    TARGET_SECONDS,
    WARMUP_SHARE,
    CapacityGoal,
    RunMetrics,
    run_metrics,
    without_warmup,
)
from fairlead_sim.fleet.simulation import FleetOptions, FleetSimulation, SimulationContext
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE, SingleGateway, instances_of
from fairlead_sim.workload.trace_prompts import TracePromptCache
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest, at_rate

TOLERANCE = 0.015
"""The relative precision of a capacity."""
_SEARCH_FACTOR = 1.25
_MAX_DISTANCE_FACTOR = 40.0
"""A capacity further than this factor from the guess counts as none."""

H100: Final = builtin_profile("h100-llama8b")
DEFAULT_OBJECTIVES: Final = SloTargets(ttft_seconds=TARGET_SECONDS)

NO_DELAY: Final = SharingDelays()


class PooledCacheBound:
    """A router that sends each request to the engine with the least queued prefill.

    The prefill is in seconds, without what the shared cache has.
    """

    def __init__(self, names: Sequence[str], profile: EngineProfile, prompts: TracePromptCache) -> None:
        self._profile = profile
        self._prompts = prompts
        self._queued = dict.fromkeys(names, 0.0)
        self._sent: dict[str, tuple[str, float]] = {}
        self._simulation: SimulationContext | None = None

    def start(self, simulation: SimulationContext) -> None:
        self._simulation = simulation

    def route(self, request: TraceRequest, now: float) -> tuple[str | None, str]:
        """Chooses the engine with the least queued prefill, and adds the request's prefill.

        Returns the engine (the first of equal ones) and an empty reason.
        """
        del now
        assert self._simulation is not None
        core = next(iter(self._simulation.engine_cores.values()))
        keys = self._prompts.block_keys(request)
        hit = len(core.pool.match(keys, len(keys))) * core.block_tokens
        seconds = self._profile.prefill_time(request.prompt_tokens, min(hit, request.prompt_tokens - 1))
        name = min(self._queued, key=self._queued.__getitem__)
        self._queued[name] += seconds
        self._sent[request.id] = name, seconds
        return name, ""

    def on_first_token(self, request: str, now: float) -> None:
        self.on_lost(request, now)

    def on_lost(self, request: str, now: float) -> None:
        """Removes the prefill of the request from its queue."""
        del now
        name, seconds = self._sent.pop(request, ("", 0.0))
        if name:
            self._queued[name] = max(0.0, self._queued[name] - seconds)

    def on_rejected(self, request: str, now: float) -> None:
        self.on_lost(request, now)

    def on_finished(self, sequence: EngineSequence, now: float) -> None:
        self.on_lost(sequence.id, now)

    def on_kv_events(self, instance: str, events: Sequence[KvEvent], now: float) -> None:
        """Does nothing: the router reads the cache itself."""

    def on_membership(self, live_engines: Sequence[str], now: float) -> None:
        """Adds new engines with an empty queue, and drops engines that left with their queues."""
        del now
        self._queued = {name: self._queued.get(name, 0.0) for name in live_engines}

    def set_unreachable(self, names: frozenset[str], now: float) -> None:
        """Does nothing: the bound reaches every engine."""

    def loads(self) -> Mapping[str, InstanceLoad]:
        """Returns an empty mapping: the bound has no gateway."""
        return {}


class GoalMissed(Exception):
    """Raised in a run that cannot meet its goal any more."""


class GoalWatch:
    """The observer that ends a run with too many late first tokens. Warm-up requests do not
    count.
    """

    def __init__(self, goal: CapacityGoal, requests: Sequence[TraceRequest]) -> None:
        arrivals = sorted([request.arrival for request in requests])
        warmup_requests = int(WARMUP_SHARE * len(arrivals))
        self._counted_from = arrivals[warmup_requests] if arrivals else 0.0
        counted_requests = len(arrivals) - warmup_requests
        self._goal = goal
        self._max_late = math.floor(counted_requests * (1.0 - goal.share) + 1e-9)
        self._max_starved = math.floor(counted_requests * (1.0 - goal.guard_share) + 1e-9)
        self._late = self._starved = 0

    def __call__(self, inflight: InflightRequest, now: float) -> None:
        """Counts a late first token, or an error before the first token.

        Raises GoalMissed if there are too many for the goal.
        """
        arrival = inflight.request.arrival
        if arrival < self._counted_from or (inflight.error is not None and inflight.first_token_at is not None):
            return
        waited = now - arrival if inflight.error is None else math.inf
        if waited > self._goal.seconds:
            self._late += 1
            if waited > self._goal.guard_seconds:
                self._starved += 1
            if self._late > self._max_late or self._starved > self._max_starved:
                raise GoalMissed


def search_capacity(meets_goal: Callable[[float], bool], guess: float, *, tolerance: float = TOLERANCE) -> float:
    """Returns the highest rate found that meets the goal, to within ``tolerance``.

    The search ends at a factor of about 40 from ``guess``: 0 if no rate down to there meets it.

    The result is a border: by chance a higher rate may meet the goal where a lower one does not.
    """
    low = high = guess
    if meets_goal(guess):
        while meets_goal(high := high * _SEARCH_FACTOR):
            low = high
            if high > guess * _MAX_DISTANCE_FACTOR:
                return low
    else:
        while not meets_goal(low := low / _SEARCH_FACTOR):
            high = low
            if low < guess / _MAX_DISTANCE_FACTOR:
                return 0.0
    while high / low > 1.0 + tolerance:
        middle = math.sqrt(low * high)
        if meets_goal(middle):
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True, slots=True)
class SeamKind:
    """Cores behind the router seam, driven as an outside tool drives them.

    - core: makes one from (info, preset, seed), such as ``fairlead_sim.seams.router``; each gateway
      has its own.
    - sharing: None if gateways and engines share nothing.
    - network: what happens to KV events on their way.
    """

    core: Callable[[Mapping[str, Any], str, int], Any]
    gateways: int = 1
    sharing: SharingDelays | None = NO_DELAY
    network: PacketSimulator = NO_FAULTS


@dataclass(frozen=True, slots=True)
class Trial:
    """A preset, a fleet and a seed, to be run with some traffic.

    - seed: draws the hashes of names, and so the homes.
    - events: fleet events during the trial.
    - seam: None for one router that sees all traffic and no KV events, which is faster.
    - is_pooled_bound: measures ``ideal_bound`` in place of the preset.
    """

    preset: str = "dual-hash"
    profile: EngineProfile = H100
    engines: int = 8
    seed: int = 0
    objectives: SloTargets = DEFAULT_OBJECTIVES
    events: tuple[FleetEvent, ...] = ()
    seam: SeamKind | None = None
    is_pooled_bound: bool = False

    def prompt_cache(self) -> TracePromptCache:
        return TracePromptCache(TRACE_BLOCK_TOKENS, secret=self._secret, seed=self._model.key.encode())

    def run(self, requests: Sequence[TraceRequest], *, prompts: TracePromptCache | None = None) -> list[RequestResult]:
        return self._simulate(requests, prompts, None)[0]

    def metrics(self, requests: Sequence[TraceRequest], *, prompts: TracePromptCache | None = None) -> RunMetrics:
        """Returns the metrics after warm-up; ``requests`` are by arrival."""
        results, router = self._simulate(requests, prompts, None)
        home_share = None
        if isinstance(router, SingleGateway) and self.preset == "dual-hash" and results:
            home_share = router.routed_to_home / len(results)
        limit = self.objectives.ttft_limit_seconds(0.0)
        target = TARGET_SECONDS if limit is None else limit
        return run_metrics(without_warmup(results), self.engines, home_share=home_share, target_seconds=target)

    def meets_goal(
        self, requests: Sequence[TraceRequest], goal: CapacityGoal, *, prompts: TracePromptCache | None = None
    ) -> bool:
        """Whether the fleet meets the goal. A run that must miss the goal ends early."""
        try:
            return goal.is_met(without_warmup(self._simulate(requests, prompts, GoalWatch(goal, requests))[0]))
        except GoalMissed:
            return False

    def capacity(
        self,
        requests: Sequence[TraceRequest],
        *,
        goal: CapacityGoal | None = None,
        guess: float = 25.0,
        prompts: TracePromptCache | None = None,
    ) -> float:
        """Returns the capacity in requests per second, to within 1.5 %."""
        goal, shared = goal or CapacityGoal(), prompts or self.prompt_cache()
        return search_capacity(lambda rate: self.meets_goal(at_rate(requests, rate), goal, prompts=shared), guess)

    @property
    def engine_names(self) -> list[str]:
        return [f"sim-{index}/0/0" for index in range(self.engines)]

    def router(self, prompts: TracePromptCache) -> SingleGateway | ExternalRouter:
        """Returns a new router for the fleet: one gateway, or the cores of ``seam``."""
        if self.seam is None:
            return self._single_gateway(self.engine_names, prompts)
        profile, seam = self.profile, self.seam
        cores = [self.core(seam) for _ in range(seam.gateways)]
        return ExternalRouter(
            cores,
            self.engine_names,
            kv_tokens=profile.kv_tokens,
            sharing=seam.sharing,
            seed=self.seed,
            network=seam.network,
        )

    def core(self, seam: SeamKind) -> Any:
        """Returns a new core of the seam."""
        profile = self.profile
        info = {
            "n": self.engines,
            "live": self.engine_names,
            "block_tokens": TRACE_BLOCK_TOKENS,
            "ttft_slo": self.objectives.ttft_limit_seconds(0.0),
            "prefill_s_per_token": profile.prefill_token_seconds,
            "kv_tokens": profile.kv_tokens,
            "max_seqs": profile.max_sequences,
            "step_tokens": profile.step_tokens,
        }
        return seam.core(info, self.preset, self.seed)

    def _simulate(
        self, requests: Sequence[TraceRequest], prompts: TracePromptCache | None, watch: GoalWatch | None
    ) -> tuple[list[RequestResult], SingleGateway | ExternalRouter | PooledCacheBound]:
        shared = prompts or self.prompt_cache()
        router = (
            PooledCacheBound(self.engine_names, self.profile, shared) if self.is_pooled_bound else self.router(shared)
        )
        fleet = FleetOptions(
            self.engine_names,
            self.profile,
            TRACE_BLOCK_TOKENS,
            publishes_kv_events=self.seam is not None and self.seam.sharing is not None,
            is_pooled=self.is_pooled_bound,
        )
        simulation = FleetSimulation(router, fleet, prompts=shared, on_progress=watch)
        schedule_events(self.events, simulation)
        return simulation.run(requests), router

    def _single_gateway(self, names: list[str], prompts: TracePromptCache) -> SingleGateway:
        model = self._model
        router = ModelRouter(secret=self._secret, seed=self.seed)
        router.update(model, instances_of(names, self.profile))
        return SingleGateway(router, prompts.prefix_chain, {}, model, self.profile)

    @property
    def _model(self) -> Model:
        return Model(NAMESPACE, MODEL, self.objectives, ModelRouting(self.preset))

    @property
    def _secret(self) -> bytes:
        return f"secret {self.seed}".encode()
