"""The requests to replay: from a recorded trace, or generated; with a name for the report."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fairlead.errors import BadInput
from fairlead_sim.workload.generators import conversation_traffic
from fairlead_sim.workload.traces import (
    BUNDLED_TRACE,
    MAX_PROMPT_TOKENS,
    TraceRequest,
    at_rate,
    ideal_cached_share,
    read_mooncake,
    spread_ties,
)

BUNDLED_NAME: Final = "Mooncake conversation trace"
"""The name of the bundled trace in reports."""


@dataclass(frozen=True, slots=True)
class ReplayTraffic:
    """Requests that arrive in simulated seconds, with their source. ``rate``: mean requests per
    second.
    """

    requests: Sequence[TraceRequest]
    name: str
    rate: float

    @property
    def ideal_reuse(self) -> float:
        """Share of prompt tokens that one unlimited cache would have."""
        return ideal_cached_share(self.requests)

    def with_rate(self, rate: float) -> "ReplayTraffic":
        """Returns the same requests at another mean rate."""
        return ReplayTraffic(at_rate(self.requests, rate), self.name, rate)


def load_traffic(trace: Path | None, *, limit: int | None, rate: float | None, seed: int = 0) -> ReplayTraffic:
    """Returns the requests of a trace, or generated ones, at a mean of ``rate`` per second or at
    their own.

    limit: the first so many requests; None for the whole trace, or 1,000 generated ones. Raises
    BadInput below 1.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"--limit must be at least 1, not {limit}", field="--limit")
    if trace is None:
        requests = conversation_traffic(1_000 if limit is None else limit, seed=seed)
        name = f"generated conversations (seed {seed})"
    else:
        requests = spread_ties(read_mooncake(trace, max_prompt=MAX_PROMPT_TOKENS, limit=limit))
        name = BUNDLED_NAME if trace == BUNDLED_TRACE else trace.name
    span = requests[-1].arrival - requests[0].arrival
    own_rate = (len(requests) - 1) / span if span > 0 else 1.0
    mean_rate = own_rate if rate is None else rate
    return ReplayTraffic(at_rate(requests, mean_rate), name, mean_rate)
