"""50 tenants (Zipf 0.8), each with its own prefix of 1 to 12 blocks.

A tenant sends chats, agent sessions or questions about documents. About every 200 s each
sends four times as much for about 30 s, independently of the others.
"""

import random
from typing import Final

from fairlead_sim.workload.generators.agents import CALLS, add_agent_session
from fairlead_sim.workload.generators.building_blocks import (
    HOUR_REQUESTS,
    HOUR_SECONDS,
    BlockIds,
    GrowingPrompt,
    TrafficBuilder,
    is_high,
    poisson_process,
    state_changes,
)
from fairlead_sim.workload.generators.chat import TURNS, add_chat_session
from fairlead_sim.workload.generators.rag import OUTPUT_TOKENS, DocumentLibrary, rag_prompt
from fairlead_sim.workload.traces import TraceRequest

TENANTS: Final = 50
EXPONENT: Final = 0.8
BURST: Final = 4.0
BURST_SECONDS: Final = 30.0
CYCLE_SECONDS: Final = 200.0
DOCUMENTS: Final = 30
KINDS: Final = ("chat", "agent", "rag")
_REQUESTS_PER_SESSION: Final = {"chat": TURNS, "agent": float(CALLS), "rag": 1.0}


def tenant_traffic(requests: int, *, seed: int) -> list[TraceRequest]:
    """Returns the first ``requests`` requests, by arrival; equal arguments give equal traffic."""
    random_, fresh, into = random.Random(f"tenants {seed}"), BlockIds(), TrafficBuilder(requests)
    weights = [(1 + rank) ** -EXPONENT for rank in range(TENANTS)]
    mean = 1.0 + (BURST - 1.0) * BURST_SECONDS / CYCLE_SECONDS
    for rank, weight in enumerate(weights):
        kind = KINDS[rank % len(KINDS)]
        rate = HOUR_REQUESTS / HOUR_SECONDS * weight / sum(weights) / mean / _REQUESTS_PER_SESSION[kind]
        _add_tenant(into, random_, fresh, kind, rate, f"t{rank}")
    return into.build()


def _add_tenant(
    into: TrafficBuilder, random_: random.Random, fresh: BlockIds, kind: str, rate: float, name: str
) -> None:
    """Adds all requests of one tenant; ``rate`` is that of its sessions outside bursts."""
    own = fresh.take(random_.randint(1, 12))
    library = DocumentLibrary(fresh, random_, DOCUMENTS) if kind == "rag" else None
    bursts = state_changes(random_, CYCLE_SECONDS - BURST_SECONDS, BURST_SECONDS, into.until)
    times = poisson_process(
        random_, lambda at: rate * (BURST if is_high(bursts, at) else 1.0), rate * BURST, into.until
    )
    for number, at in enumerate(times):
        session = f"{name}.{number}"
        if library is not None:
            prompt = rag_prompt(random_, fresh, own, library)
            into.add(at, prompt, random_.randint(*OUTPUT_TOKENS), session, name)
        elif kind == "chat":
            add_chat_session(into, random_, at, GrowingPrompt(fresh, own), session, name)
        else:
            add_agent_session(into, random_, at, GrowingPrompt(fresh, own), session, name)
