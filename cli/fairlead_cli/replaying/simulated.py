"""The same requests through the fleet simulator: what the report sets beside the live numbers.

A policy that looks at load is chaotic: two arrivals that swap places send a request elsewhere, and everything after it differs.
Shifting arrivals by at most 10 ms moves least-request's mean TTFT by ± 9 % and dual hash's by ± 3 %. One simulated run would
be as much of a draw as the live one, so several are made, each with arrivals a few milliseconds later, as a network would
have it, and the one with the median mean TTFT is kept whole.
"""

import math
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace

from fairlead.fleet import Objectives
from fairlead.profile import EngineProfile
from fairlead_cli.replaying.outcome import Outcome
from fairlead_gateway.routing import PrefixChain
from fairlead_sim.fleet import simulate
from fairlead_sim.traces import TraceRequest

ENGINE_BLOCK_TOKENS = 16
DRAWS = 9
JITTER_SECONDS = 0.010


def typical(
    requests: Sequence[TraceRequest],
    *,
    profile: EngineProfile,
    instance_ids: Sequence[str],
    preset: str,
    objectives: Objectives,
    secret: bytes,
    chain: Callable[[TraceRequest], PrefixChain] | None = None,
    draws: int = DRAWS,
    jitter_seconds: float = JITTER_SECONDS,
) -> list[Outcome]:
    """The draw with the median mean TTFT; the first draw has the arrivals as they are."""
    known = None if chain is None else _once(chain)
    runs = []
    for draw in range(draws):
        runs.append(
            simulated(
                jittered(requests, jitter_seconds, draw) if draw else requests,
                profile=profile,
                instance_ids=instance_ids,
                preset=preset,
                objectives=objectives,
                secret=secret,
                chain=known,
            )
        )
    return sorted(runs, key=_mean_ttft)[len(runs) // 2]


def jittered(requests: Sequence[TraceRequest], seconds: float, seed: int) -> list[TraceRequest]:
    """Each request up to ``seconds`` later, in the order given."""
    draw = random.Random(seed)
    return [replace(request, arrival=request.arrival + draw.uniform(0.0, seconds)) for request in requests]


def _once(chain: Callable[[TraceRequest], PrefixChain]) -> Callable[[TraceRequest], PrefixChain]:
    """Chains depend on a request's text only, so one computation serves all draws."""
    known: dict[str, PrefixChain] = {}

    def remembered(request: TraceRequest) -> PrefixChain:
        found = known.get(request.id)
        if found is None:
            found = known[request.id] = chain(request)
        return found

    return remembered


def _mean_ttft(outcomes: Sequence[Outcome]) -> float:
    times = [outcome.ttft_seconds for outcome in outcomes if outcome.ttft_seconds is not None]
    return sum(times) / len(times) if times else math.inf


def simulated(
    requests: Sequence[TraceRequest],
    *,
    profile: EngineProfile,
    instance_ids: Sequence[str],
    preset: str,
    objectives: Objectives,
    secret: bytes,
    seed: int = 0,
    chain: Callable[[TraceRequest], PrefixChain] | None = None,
) -> list[Outcome]:
    """Outcomes in the profile's seconds, in the order of ``requests``. With ``chain`` homes are those of the real prompts."""
    served = simulate(
        requests,
        profile=profile,
        engines=len(instance_ids),
        preset=preset,
        objectives=objectives,
        block_tokens=ENGINE_BLOCK_TOKENS,
        secret=secret,
        seed=seed,
        instance_ids=instance_ids,
        chain=chain,
    )
    return [
        Outcome(
            id=item.id,
            due=item.arrival,
            prompt_tokens=item.prompt_tokens,
            instance=item.instance,
            ttft_seconds=item.ttft_seconds,
            gaps=array("d", item.gaps),
            finished=item.finish,
            cached_tokens=None if item.error else item.cached_tokens,
            output_tokens=item.output_tokens,
            error=item.error,
        )
        for item in served
    ]
