"""The same requests in the fleet simulator, for comparison with the live numbers.

Why: a policy that uses load is chaotic. Two arrivals that swap places send a request elsewhere, and
everything after it differs. Shifting arrivals by at most 10 ms moves least-request's mean TTFT by ±
9 % and dual hash's by ± 3 %. So several runs are made, each with arrivals a few milliseconds later,
and the one with the median mean TTFT is used.
"""

import math
import random
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import SloTargets
from fairlead_cli.replay.client.open_loop_client import ReplayResult
from fairlead_gateway.routing import PrefixChain
from fairlead_sim.fleet.simulation import FleetOptions
from fairlead_sim.gateways.single_gateway import RoutingOptions, simulate
from fairlead_sim.workload.traces import TraceRequest

ENGINE_BLOCK_TOKENS = 16
RUN_COUNT = 9
JITTER_SECONDS = 0.010
MAX_TIMING_DIFFERENCE = 0.05


@dataclass(frozen=True, slots=True)
class FleetSimulation:
    """The simulation of a fleet under one preset. Seconds are simulated seconds, as in the engine
    profile.

    chain: returns the prefix chain of a request's real prompt, so that homes are those of the live
    run.
    """

    profile: EngineProfile
    instance_ids: Sequence[str]
    preset: str
    objectives: SloTargets
    secret: bytes
    chain: Callable[[TraceRequest], PrefixChain] | None = None
    seed: int = 0

    def run(
        self,
        requests: Sequence[TraceRequest],
        *,
        choices: Mapping[str, str] | None = None,
        feedback_delay_seconds: float = 0.0,
    ) -> list[ReplayResult]:
        """Simulates the requests once; returns results in their order. ``choices`` (request id →
        instance id) override the router.
        """
        fleet = FleetOptions(
            self.instance_ids, self.profile, ENGINE_BLOCK_TOKENS, feedback_delay_seconds=feedback_delay_seconds
        )
        routing = RoutingOptions(self.objectives, self.secret, self.seed, self.preset, self.chain, choices or {})
        simulated_requests = simulate(requests, fleet, routing)
        return [
            ReplayResult(
                id=request.id,
                due_seconds=request.arrival,
                prompt_tokens=request.prompt_tokens,
                instance=request.instance,
                ttft_seconds=request.ttft_seconds,
                gaps=array("d", request.token_gaps),
                finished_seconds=request.finish,
                cached_tokens=None if request.error else request.cached_tokens,
                output_tokens=request.output_tokens,
                error=request.error,
            )
            for request in simulated_requests
        ]

    def run_median(
        self,
        requests: Sequence[TraceRequest],
        *,
        feedback_delay_seconds: float = 0.0,
        run_count: int = RUN_COUNT,
        jitter_seconds: float = JITTER_SECONDS,
    ) -> list[ReplayResult]:
        """Returns the run with the median mean TTFT; the first run has unshifted arrivals."""
        cached = self if self.chain is None else replace(self, chain=_cached_chain(self.chain))
        runs = [
            cached.run(
                jitter_arrivals(requests, jitter_seconds, number) if number else requests,
                feedback_delay_seconds=feedback_delay_seconds,
            )
            for number in range(run_count)
        ]
        return sorted(runs, key=_mean_ttft)[len(runs) // 2]

    def run_on_choices(self, requests: Sequence[TraceRequest], live: Sequence[ReplayResult]) -> list[ReplayResult]:
        """Runs with a live run's own choices: what then differs from ``live`` is timing alone."""
        return self.run(
            requests, choices={result.id: result.instance for result in live if result.instance is not None}
        )


def transport_seconds(live: Sequence[ReplayResult], rerun: Sequence[ReplayResult]) -> float:
    """Returns the median extra TTFT of a live run, at least 0: time in sockets and processes."""
    differences = [
        live_result.ttft_seconds - simulated_result.ttft_seconds
        for live_result, simulated_result in zip(live, rerun, strict=True)
        if live_result.ttft_seconds is not None and simulated_result.ttft_seconds is not None
    ]
    return max(0.0, median(differences)) if differences else 0.0


def timing_doubts(live: Sequence[ReplayResult], rerun: Sequence[ReplayResult]) -> list[str]:
    """Returns a doubt when the live run was much slower or faster than the same engines with the
    same choices.
    """
    ratio = _mean_ttft(live) / _mean_ttft(rerun)
    if abs(ratio - 1.0) <= MAX_TIMING_DIFFERENCE:
        return []
    return [f"mean TTFT was {ratio:.2f} × what the simulator finds on the same choices: the engines were disturbed"]


def jitter_arrivals(requests: Sequence[TraceRequest], seconds: float, seed: int) -> list[TraceRequest]:
    """Returns each request up to ``seconds`` later, in the given order."""
    random_source = random.Random(seed)
    return [replace(request, arrival=request.arrival + random_source.uniform(0.0, seconds)) for request in requests]


def _cached_chain(chain: Callable[[TraceRequest], PrefixChain]) -> Callable[[TraceRequest], PrefixChain]:
    """Returns ``chain`` with a cache by request id, because a chain depends on the text only."""
    chains: dict[str, PrefixChain] = {}

    def cached(request: TraceRequest) -> PrefixChain:
        prefix_chain = chains.get(request.id)
        if prefix_chain is None:
            prefix_chain = chains[request.id] = chain(request)
        return prefix_chain

    return cached


def _mean_ttft(results: Sequence[ReplayResult]) -> float:
    times = [result.ttft_seconds for result in results if result.ttft_seconds is not None]
    return sum(times) / len(times) if times else math.inf
