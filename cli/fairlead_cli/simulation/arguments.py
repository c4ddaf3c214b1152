"""The arguments of ``fairlead simulate``. The simulator itself is not imported here.

Why: a compiled simulator starts this program again, before its modules are loaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


@dataclass(frozen=True, slots=True)
class SimulationArguments:
    """The arguments as given."""

    presets: Annotated[tuple[str, ...], Parameter(help="Routing presets to compare.", consume_multiple=True)] = (
        "dual-hash",
        "dualmap",
        "least-request",
        "round-robin",
    )
    profile: Annotated[str, Parameter(help="What an engine takes: one of the built-in profiles.")] = "h100-llama8b"
    engines: Annotated[int, Parameter(help="Equal engines.")] = 8
    rate: Annotated[float | None, Parameter(help="Mean arrivals per second. Default: the traffic's own.")] = None
    ttft: Annotated[float, Parameter(help="The latency target for the first token, in seconds.")] = 5.0
    capacity: Annotated[
        bool,
        Parameter(
            help="Also search how much each carries: 90 % within the target and 99 % within three times the target."
        ),
    ] = False
    limit: Annotated[int | None, Parameter(help="Use only this number of requests, the first ones.")] = None
    seed: Annotated[int, Parameter(help="Seed of generated traffic, and of where prompts hash to.")] = 0
    out: Annotated[Path | None, Parameter(help="Write the figures as JSON here.")] = None
