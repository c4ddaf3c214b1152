"""Traffic by name: a family of generated traffic, or the file of a recorded trace."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairlead.errors import BadInput
from fairlead_sim.workload.coding_agents import coding_agent_traffic
from fairlead_sim.workload.generators import FAMILIES, TrafficFamily, conversation_traffic
from fairlead_sim.workload.traces import COLUMNS, TraceRequest, read_azure, read_mooncake, spread_ties

DEFAULT_REQUESTS = 12_000
"""The default size of generated traffic: one hour."""
_FAMILIES: Mapping[str, TrafficFamily] = {**FAMILIES, "coding-agents": coding_agent_traffic}
GENERATED_SOURCES = (*_FAMILIES, "conversation")


@dataclass(frozen=True, slots=True)
class TrafficSource:
    """Requests by arrival, and a description of them."""

    name: str
    requests: Sequence[TraceRequest]

    @property
    def rate(self) -> float:
        """Returns the mean arrivals per second; 1 if all requests arrive at the same time."""
        span = self.requests[-1].arrival - self.requests[0].arrival
        return (len(self.requests) - 1) / span if span > 0 else 1.0


def load_source(name: str, *, limit: int | None = None, seed: int = 0) -> TrafficSource:
    """Returns a family by name, else the requests of a file.

    The first line distinguishes Azure's CSV from Mooncake's JSON lines. Requests of a file with
    equal timestamps are spread out. Raises BadInput.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"the number of requests must be at least 1, not {limit}", field="limit")
    generator = _FAMILIES.get(name)
    if generator is not None:
        return TrafficSource(f"generated {name} (seed {seed})", generator(limit or DEFAULT_REQUESTS, seed=seed))
    if name == "conversation":
        return TrafficSource(
            f"generated conversation (seed {seed})", conversation_traffic(limit or DEFAULT_REQUESTS, seed=seed)
        )
    path = Path(name)
    if not path.exists():
        raise BadInput(
            f"there is no traffic {name!r}", field="traffic", hint=f"a file, or one of {', '.join(GENERATED_SOURCES)}"
        )
    with open(path, "rb") as file:
        is_azure = file.readline(200).startswith(COLUMNS[0].encode())
    read = read_azure if is_azure else read_mooncake
    return TrafficSource(path.name, spread_ties(read(path, limit=limit)))
