"""The choice between computing a missing prefix and pulling its KV from a peer instance.

    computing   prefill(prompt, cached here)
    pulling     latency + (cached there - cached here) · bytes of a token ÷ bandwidth
                + prefill(prompt, cached there)

Both numbers are estimates, and a delayed pull costs its whole time. So a pull must save a fifth of
the computing.

Why: pulling pays only where the network is faster than the engine. At 100 Gb/s it gives 1.4 times
the throughput on long shared prefixes. At 25 Gb/s it loses for a small model on a fast accelerator.
So it is decided for every prompt.
"""

from typing import Final

from fairlead.engine_profile import EngineProfile
from fairlead.fleet.model import KvPullSource
from fairlead_gateway.routing.candidates import Candidate
from fairlead_gateway.routing.endpoint import Endpoint

MAX_TIME_SHARE: Final = 0.8
"""A pull takes at most this share of the seconds that it replaces."""


def pull_prefill_seconds(
    profile: EngineProfile,
    prompt: float,
    cached_here: float,
    cached_there: float,
    pull: KvPullSource,
    prefill_seconds: float,
) -> float:
    """Returns the seconds until the prompt is prefilled if the cached tokens of a peer are pulled.

    Returns -1 if computing, which takes `prefill_seconds`, is the better choice.
    """
    if cached_there <= cached_here:
        return -1.0
    seconds = pull.transfer_seconds(cached_there - cached_here) + profile.prefill_time(prompt, cached_there)
    return seconds if seconds <= MAX_TIME_SHARE * prefill_seconds else -1.0


def offer_pulls(candidates: list[Candidate], endpoints: list[Endpoint], holder: Endpoint, prompt: float) -> None:
    """Adds a pull from `holder` to each candidate for which pulling is cheaper than computing.

    - endpoints: the endpoints of the candidates, in the same order.
    - holder: the instance with the longest cached prefix.
    - prompt: in tokens.
    """
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
