"""The same requests through the fleet simulator: what the report sets beside the live numbers.

A policy that looks at load is chaotic: two arrivals that swap places send a request elsewhere, and everything after it differs.
Shifting arrivals by at most 10 ms moves least-request's mean TTFT by ± 9 % and dual hash's by ± 3 %. One simulated run would
be as much of a draw as the live one, so several are made, each with arrivals a few milliseconds later, as a network would
have it, and the one with the median mean TTFT is kept whole.
"""

import math
import random
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import SloTargets
from fairlead_cli.replay.client.replay_result import ReplayResult
from fairlead_gateway.routing import PrefixChain
from fairlead_sim.gateways.single_gateway import simulate
from fairlead_sim.workload.traces import TraceRequest

ENGINE_BLOCK_TOKENS = 16
RUN_COUNT = 9
JITTER_SECONDS = 0.010
MAX_TIMING_DIFFERENCE = 0.05


@dataclass(frozen=True, slots=True)
class FleetSimulation:
    """A fleet under one preset. All seconds in and out are the profile's. With ``chain`` homes are those of the real prompts."""

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
        hearing_seconds: float = 0.0,
    ) -> list[ReplayResult]:
        """One run, outcomes in the order of ``requests``. ``choices`` (request → instance) overrule the router."""
        served = simulate(
            requests,
            profile=self.profile,
            engines=len(self.instance_ids),
            preset=self.preset,
            objectives=self.objectives,
            block_tokens=ENGINE_BLOCK_TOKENS,
            secret=self.secret,
            seed=self.seed,
            instance_ids=self.instance_ids,
            chain=self.chain,
            choices=choices,
            feedback_delay_seconds=hearing_seconds,
        )
        return [
            ReplayResult(
                id=item.id,
                due_seconds=item.arrival,
                prompt_tokens=item.prompt_tokens,
                instance=item.instance,
                ttft_seconds=item.ttft_seconds,
                gaps=array("d", item.token_gaps),
                finished_seconds=item.finish,
                cached_tokens=None if item.error else item.cached_tokens,
                output_tokens=item.output_tokens,
                error=item.error,
            )
            for item in served
        ]

    def run_median(
        self,
        requests: Sequence[TraceRequest],
        *,
        hearing_seconds: float = 0.0,
        draws: int = RUN_COUNT,
        jitter_seconds: float = JITTER_SECONDS,
    ) -> list[ReplayResult]:
        """The draw with the median mean TTFT; the first draw has the arrivals as they are."""
        once = self if self.chain is None else replace(self, chain=_cached_chain(self.chain))
        runs = [
            once.run(
                jitter_arrivals(requests, jitter_seconds, draw) if draw else requests, hearing_seconds=hearing_seconds
            )
            for draw in range(draws)
        ]
        return sorted(runs, key=_mean_ttft)[len(runs) // 2]

    def run_on_choices(self, requests: Sequence[TraceRequest], live: Sequence[ReplayResult]) -> list[ReplayResult]:
        """The simulator on a live run's own choices: what then still differs from ``live`` is timing alone."""
        return self.run(requests, choices={one.id: one.instance for one in live if one.instance is not None})


def transport_seconds(live: Sequence[ReplayResult], retraced: Sequence[ReplayResult]) -> float:
    """What a first token takes longer live than the engine needs for it: the median way through sockets and processes."""
    longer = [
        one.ttft_seconds - other.ttft_seconds
        for one, other in zip(live, retraced, strict=True)
        if one.ttft_seconds is not None and other.ttft_seconds is not None
    ]
    return max(0.0, median(longer)) if longer else 0.0


def timing_doubts(live: Sequence[ReplayResult], retraced: Sequence[ReplayResult]) -> list[str]:
    """A doubt when the live run was much slower or faster than the same engines are on the same choices."""
    ratio = _mean_ttft(live) / _mean_ttft(retraced)
    if abs(ratio - 1.0) <= MAX_TIMING_DIFFERENCE:
        return []
    return [f"mean TTFT was {ratio:.2f} × what the simulator finds on the same choices: the engines were disturbed"]


def jitter_arrivals(requests: Sequence[TraceRequest], seconds: float, seed: int) -> list[TraceRequest]:
    """Each request up to ``seconds`` later, in the order given."""
    draw = random.Random(seed)
    return [replace(request, arrival=request.arrival + draw.uniform(0.0, seconds)) for request in requests]


def _cached_chain(chain: Callable[[TraceRequest], PrefixChain]) -> Callable[[TraceRequest], PrefixChain]:
    """Chains depend on a request's text only, so one computation serves all draws."""
    known: dict[str, PrefixChain] = {}

    def remembered(request: TraceRequest) -> PrefixChain:
        found = known.get(request.id)
        if found is None:
            found = known[request.id] = chain(request)
        return found

    return remembered


def _mean_ttft(outcomes: Sequence[ReplayResult]) -> float:
    times = [outcome.ttft_seconds for outcome in outcomes if outcome.ttft_seconds is not None]
    return sum(times) / len(times) if times else math.inf
