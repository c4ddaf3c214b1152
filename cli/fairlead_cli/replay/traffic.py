"""Which requests are replayed: from a recorded trace, or generated where there is none; said in words either way."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead.errors import BadInput
from fairlead_sim.workload.generators import conversation_traffic
from fairlead_sim.workload.traces import (
    MAX_PROMPT_TOKENS,
    TraceRequest,
    at_rate,
    ideal_cached_share,
    read_mooncake,
    spread_ties,
)


@dataclass(frozen=True, slots=True)
class ReplayTraffic:
    """Requests in simulated seconds from 0 on, and what they are."""

    requests: Sequence[TraceRequest]
    name: str
    rate: float

    @property
    def ideal_reuse(self) -> float:
        """Share of prompt tokens that one endless cache would have."""
        return ideal_cached_share(self.requests)

    def with_rate(self, rate: float) -> "ReplayTraffic":
        """The same requests at another mean rate."""
        return ReplayTraffic(at_rate(self.requests, rate), self.name, rate)


def load_traffic(trace: Path | None, *, limit: int | None, rate: float | None, seed: int = 0) -> ReplayTraffic:
    """The first ``limit`` requests of the trace (or as many made from ``seed``), at a mean of ``rate`` or at their own."""
    if limit is not None and limit < 1:
        raise BadInput(f"--limit must be at least 1, not {limit}", field="--limit")
    if trace is None:
        found = conversation_traffic(1_000 if limit is None else limit, seed=seed)
        name = f"generated conversations (seed {seed})"
    else:
        found = spread_ties(read_mooncake(trace, max_prompt=MAX_PROMPT_TOKENS, limit=limit))
        name = trace.name
    span = found[-1].arrival - found[0].arrival
    own = (len(found) - 1) / span if span > 0 else 1.0
    wanted = own if rate is None else rate
    return ReplayTraffic(at_rate(found, wanted), name, wanted)
