"""Tenants side by side: 50 of them (Zipf 0.8), each with a prefix of its own of 1 to 12 blocks in front of all that it asks.

A tenant does chat, agents or answers from documents. Each has its own clock: about every 200 s it sends four times as much
for about 30 s.
"""

import random
from typing import Final

from fairlead_sim.traces import TraceRequest
from fairlead_sim.traffic.agents import CALLS, work
from fairlead_sim.traffic.chat import TURNS, chat
from fairlead_sim.traffic.prompt import (
    HOUR_REQUESTS,
    HOUR_SECONDS,
    Blocks,
    Collected,
    Prompt,
    arrivals,
    is_high,
    two_states,
)
from fairlead_sim.traffic.rag import Library, ask

TENANTS: Final = 50
EXPONENT: Final = 0.8
BURST: Final = 4.0
BURST_SECONDS: Final = 30.0
EVERY_SECONDS: Final = 200.0
DOCUMENTS: Final = 30
KINDS: Final = ("chat", "agent", "rag")
_EACH: Final = {"chat": TURNS, "agent": float(CALLS), "rag": 1.0}
"""Requests of a session."""


def tenants(requests: int, *, seed: int) -> list[TraceRequest]:
    """The first so many requests; equal arguments give equal traffic."""
    random_, fresh, into = random.Random(f"tenants {seed}"), Blocks(), Collected(requests)
    weights = [(1 + rank) ** -EXPONENT for rank in range(TENANTS)]
    mean = 1.0 + (BURST - 1.0) * BURST_SECONDS / EVERY_SECONDS
    for rank, weight in enumerate(weights):
        kind = KINDS[rank % len(KINDS)]
        rate = HOUR_REQUESTS / HOUR_SECONDS * weight / sum(weights) / mean / _EACH[kind]
        _tenant(into, random_, fresh, kind, rate, f"t{rank}")
    return into.first()


def _tenant(into: Collected, random_: random.Random, fresh: Blocks, kind: str, rate: float, name: str) -> None:
    """All that one tenant asks; ``rate`` is that of sessions outside bursts."""
    own = fresh.run(random_.randint(1, 12))
    library = Library(fresh, random_, DOCUMENTS) if kind == "rag" else None
    bursts = two_states(random_, EVERY_SECONDS - BURST_SECONDS, BURST_SECONDS, into.until)
    times = arrivals(random_, lambda at: rate * (BURST if is_high(bursts, at) else 1.0), rate * BURST, into.until)
    for number, at in enumerate(times):
        session = f"{name}.{number}"
        if library is not None:
            ask(into, random_, at, fresh, own, library, session, name)
        elif kind == "chat":
            chat(into, random_, at, Prompt(fresh, own), session, name)
        else:
            work(into, random_, at, Prompt(fresh, own), session, name)
