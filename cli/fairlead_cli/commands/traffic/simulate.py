"""``fairlead simulate``: what would another routing preset do with this traffic?"""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def simulate(
    traffic: Annotated[
        str,
        Parameter(
            help="A trace (Mooncake's JSON lines or Azure's CSV), or agents, tenants, rag, flash-crowd, bursty, conversation."
        ),
    ] = "conversation",
    *,
    presets: Annotated[tuple[str, ...], Parameter(help="Routing presets to compare.", consume_multiple=True)] = (
        "dual-hash",
        "dualmap",
        "least-request",
        "round-robin",
    ),
    profile: Annotated[str, Parameter(help="What an engine takes: one of the built-in profiles.")] = "h100-llama8b",
    engines: Annotated[int, Parameter(help="Equal engines.")] = 8,
    rate: Annotated[float | None, Parameter(help="Mean arrivals per second. Default: the traffic's own.")] = None,
    ttft: Annotated[float, Parameter(help="The first-token objective in seconds.")] = 5.0,
    capacity: Annotated[
        bool,
        Parameter(help="Also search how much each carries: 90 % within the objective and 99 % within three times it."),
    ] = False,
    limit: Annotated[int | None, Parameter(help="Only the first so many requests.")] = None,
    seed: Annotated[int, Parameter(help="Seed of generated traffic, and of where prompts hash to.")] = 0,
    out: Annotated[Path | None, Parameter(help="Write the figures as JSON here.")] = None,
) -> int:
    """Simulate traffic under several routing presets: the production router before simulated engines, on a virtual clock.

    One gateway that sees all it sent, and no events. Prompts over 20,480 tokens are left out; the first tenth of the requests
    warms the caches and does not count. Equal arguments give equal figures. Exits 1 when requests failed.
    """
    from fairlead_sim.compiled import run_compiled

    run_compiled()  # it starts this program anew where a compiled copy is there (make compile: scripts/compile.py --sim)
    from fairlead_cli.console import stdout_console
    from fairlead_cli.simulation.comparison import compare_presets
    from fairlead_cli.simulation.options import build_options
    from fairlead_cli.simulation.report import print_results, write_json

    console = stdout_console()
    wanted = build_options(
        traffic,
        presets=presets,
        profile=profile,
        engines=engines,
        rate=rate,
        ttft_seconds=ttft,
        capacity=capacity,
        limit=limit,
        seed=seed,
    )
    console.print(wanted.describe(), highlight=False, soft_wrap=True)
    results = compare_presets(wanted, lambda line: console.print(line, highlight=False))
    print_results(wanted, results, console)
    if out is not None:
        write_json(wanted, results, out)
        console.print(f"  {out}", highlight=False, soft_wrap=True)
    return 1 if any(one.figures.errors for one in results) else 0
