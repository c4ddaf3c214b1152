"""Where a prefix that an instance lacks comes from at the least price: its own computing, or the cache of a peer that holds it.

    computing   prefill(prompt, held here)
    pulling     latency + (held there - held here) · bytes of a token ÷ bandwidth + prefill(prompt, held there)

Pulling pays only where the network is faster than the engine (``research/routing.md``, fact 9: 1.4 times the throughput on long
shared prefixes at 100 Gb/s, a loss at 25 Gb/s for a small model on a fast accelerator), so it is asked anew for every prompt. Both
numbers are estimates and a pull that is held up costs its whole time, so what it saves must be a fifth of the computing.
"""

from typing import Final

from fairlead.fleet import Pull
from fairlead.profile import EngineProfile
from fairlead_gateway.routing.holdings import Place
from fairlead_gateway.routing.request import Candidate

WORTH: Final = 0.8
"""A pull takes at most this share of the seconds that it replaces."""


def pulled_seconds(
    profile: EngineProfile, prompt: float, here: float, there: float, pull: Pull, computed_seconds: float
) -> float:
    """Seconds until a prompt of ``prompt`` tokens, of which ``here`` are held, is prefilled when those that are held ``there`` are
    pulled; negative where computing them, which takes ``computed_seconds`` in all, is the better choice."""
    if there <= here:
        return -1.0
    seconds = pull.seconds(there - here) + profile.prefill(prompt, there)
    return seconds if seconds <= WORTH * computed_seconds else -1.0


def offer_pulls(candidates: list[Candidate], wanted: list[Place], holder: Place, prompt: float) -> None:
    """Those candidates (at the places ``wanted``) that lack what the holder has may get it from there, where that is cheaper than
    to compute it."""
    if holder.pull is None:
        return
    there = 0.0
    for item in candidates:
        if item.holder:
            there = item.matched_tokens
    for item, place in zip(candidates, wanted, strict=True):
        if place is holder or place.pull is None:
            continue
        seconds = pulled_seconds(place.profile, prompt, item.matched_tokens, there, holder.pull, item.own_seconds)
        if seconds >= 0.0:
            item.pulls(holder.id, there - item.matched_tokens, seconds)
