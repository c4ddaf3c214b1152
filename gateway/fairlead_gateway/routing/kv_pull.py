"""Where a prefix that an instance lacks comes from at the least price: its own computing, or the cache of a peer that holds it.

    computing   prefill(prompt, held here)
    pulling     latency + (held there - held here) · bytes of a token ÷ bandwidth + prefill(prompt, held there)

Pulling pays only where the network is faster than the engine (``research/routing.md``, fact 9: 1.4 times the throughput on long
shared prefixes at 100 Gb/s, a loss at 25 Gb/s for a small model on a fast accelerator), so it is asked anew for every prompt. Both
numbers are estimates and a pull that is held up costs its whole time, so what it saves must be a fifth of the computing.
"""

from typing import Final

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import KvPull
from fairlead_gateway.routing.candidates import Candidate
from fairlead_gateway.routing.endpoint import Endpoint

MAX_TIME_SHARE: Final = 0.8
"""A pull takes at most this share of the seconds that it replaces."""


def pull_prefill_seconds(
    profile: EngineProfile, prompt: float, cached_here: float, cached_there: float, pull: KvPull, prefill_seconds: float
) -> float:
    """Seconds until a prompt of ``prompt`` tokens, of which ``here`` are held, is prefilled when those that are held ``there`` are
    pulled; negative where computing them, which takes ``computed_seconds`` in all, is the better choice."""
    if cached_there <= cached_here:
        return -1.0
    seconds = pull.transfer_seconds(cached_there - cached_here) + profile.prefill_time(prompt, cached_there)
    return seconds if seconds <= MAX_TIME_SHARE * prefill_seconds else -1.0


def offer_pulls(candidates: list[Candidate], endpoints: list[Endpoint], holder: Endpoint, prompt: float) -> None:
    """Those candidates (at the places ``wanted``) that lack what the holder has may get it from there, where that is cheaper than
    to compute it."""
    if holder.pull is None:
        return
    cached_there = 0.0
    for candidate in candidates:
        if candidate.is_holder:
            cached_there = candidate.matched_tokens
    for candidate, endpoint in zip(candidates, endpoints, strict=True):
        if endpoint is holder or endpoint.pull is None:
            continue
        seconds = pull_prefill_seconds(
            endpoint.profile, prompt, candidate.matched_tokens, cached_there, holder.pull, candidate.prefill_seconds
        )
        if seconds >= 0.0:
            candidate.add_pull(holder.id, cached_there - candidate.matched_tokens, seconds)
