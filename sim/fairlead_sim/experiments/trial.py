"""One trial: a preset, a fleet and a traffic from a seed; its results and its capacity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.fleet.model import Model, SloTargets
from fairlead_gateway.routing import ModelRouter
from fairlead_sim.adapters.external_router import ExternalRouter, SharingDelays
from fairlead_sim.experiments.capacity_search import GoalMissed, GoalWatch, search_capacity
from fairlead_sim.experiments.ideal_bound import PooledCacheBound
from fairlead_sim.fleet.fleet_events import FleetEvent, schedule_events
from fairlead_sim.fleet.fleet_options import FleetOptions
from fairlead_sim.fleet.packet_simulator import NO_FAULTS, PacketSimulator
from fairlead_sim.fleet.request import RequestResult
from fairlead_sim.fleet.results import TARGET_SECONDS, CapacityGoal, RunMetrics, run_metrics, without_warmup
from fairlead_sim.fleet.simulation import FleetSimulation
from fairlead_sim.gateways.single_gateway import MODEL, NAMESPACE, SingleGateway, instances_of
from fairlead_sim.workload.trace_prompts import TracePromptCache
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest, at_rate

H100: Final = builtin_profile("h100-llama8b")
DEFAULT_OBJECTIVES: Final = SloTargets(ttft_seconds=TARGET_SECONDS)


NO_DELAY: Final = SharingDelays()


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
        """Returns a cache for one traffic, which trials of one seed may share."""
        return TracePromptCache(TRACE_BLOCK_TOKENS, secret=self._secret, seed=self._model.key.encode())

    def run(self, requests: Sequence[TraceRequest], *, prompts: TracePromptCache | None = None) -> list[RequestResult]:
        """Returns the result of each request, in the order given."""
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
        """Returns the names of the engines at the start."""
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
        return Model(NAMESPACE, MODEL, self.objectives, self.preset)

    @property
    def _secret(self) -> bytes:
        return f"secret {self.seed}".encode()


def with_seed(trial: Trial, seed: int) -> Trial:
    """Returns the same trial from another seed."""
    return replace(trial, seed=seed)
