"""One flooding tenant and three steady ones, all with the same kind of prompts.

A prompt begins with one of its tenant's texts, six blocks long, and goes on with three of its own.
"""

import random
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Final

from fairlead.engine_profile import EngineProfile
from fairlead_gateway.admission.fair_share import decode_seconds
from fairlead_sim.workload.traces import TRACE_BLOCK_TOKENS, TraceRequest

STEADY: Final = ("steady-1", "steady-2", "steady-3")
FLOOD: Final = "flood"
TEXTS: Final = 30
SHARED_BLOCKS: Final = 6
OWN_BLOCKS: Final = 2
OUTPUT_TOKENS: Final = (20, 120)


def request_seconds(profile: EngineProfile) -> float:
    """Returns the mean engine time of a request whose shared text is cached."""
    shared, own = SHARED_BLOCKS * TRACE_BLOCK_TOKENS, OWN_BLOCKS * TRACE_BLOCK_TOKENS
    answer = sum(OUTPUT_TOKENS) / 2
    return profile.prefill_time(shared + own, shared) + decode_seconds(profile, shared + own, answer, 1)


def tenant_requests(rates: Mapping[str, float], seconds: float, seed: int) -> list[TraceRequest]:
    """Returns Poisson arrivals of each tenant at its rate a second, in order of arrival.

    The requests of a tenant are the same whatever others send.
    """
    made: list[TraceRequest] = []
    for tenant, rate in rates.items():
        made += _requests_of(tenant, rate, seconds, random.Random(f"{seed} {tenant}"))
    return sorted(made, key=_arrival)


def _requests_of(tenant: str, rate: float, seconds: float, draw: random.Random) -> Sequence[TraceRequest]:
    blocks = count(draw.getrandbits(62))
    texts = [tuple(next(blocks) for _ in range(SHARED_BLOCKS)) for _ in range(TEXTS)]
    made: list[TraceRequest] = []
    at = draw.expovariate(rate)
    while at < seconds:
        own = tuple(next(blocks) for _ in range(OWN_BLOCKS))
        prompt = draw.choice(texts) + own
        tokens = len(prompt) * TRACE_BLOCK_TOKENS
        output = draw.randint(*OUTPUT_TOKENS)
        made.append(TraceRequest(f"{tenant}/{len(made)}", at, tokens, output, prompt, None, tenant))
        at += draw.expovariate(rate)
    return made


def _arrival(request: TraceRequest) -> float:
    return request.arrival
