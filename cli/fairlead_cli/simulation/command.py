"""``fairlead simulate``: traffic under other routing presets, in the simulator."""

from typing import Annotated

from cyclopts import Parameter

from fairlead_cli.simulation.arguments import SimulationArguments

_DEFAULTS = SimulationArguments()


def simulate(
    traffic: Annotated[
        str,
        Parameter(
            help="A trace (Mooncake's JSON lines or Azure's CSV), or agents, tenants, rag, flash-crowd, bursty, conversation."
        ),
    ] = "conversation",
    *,
    arguments: Annotated[SimulationArguments, Parameter(name="*")] = _DEFAULTS,
) -> int:
    """Simulate traffic under several routing presets: the production router before simulated
    engines, on a virtual clock.

    One gateway sees all traffic, without KV events. Prompts over 20,480 tokens are left out; the
    first tenth of the requests warms the caches and does not count. Equal arguments give equal
    figures. Exits 1 when requests failed.
    """
    from fairlead_sim.compiled import run_compiled

    run_compiled()  # restarts this program with a compiled copy, if there is one (scripts/compile.py --sim)
    from fairlead_cli.console import stdout_console
    from fairlead_cli.simulation.comparison import compare_presets
    from fairlead_cli.simulation.options import build_options
    from fairlead_cli.simulation.report import print_results, write_json

    console = stdout_console()
    options = build_options(traffic, arguments)
    console.print(options.describe(), highlight=False, soft_wrap=True)
    results = compare_presets(options, lambda line: console.print(line, highlight=False))
    print_results(options, results, console)
    if arguments.out is not None:
        write_json(options, results, arguments.out)
        console.print(f"  {arguments.out}", highlight=False, soft_wrap=True)
    return 1 if any(result.figures.errors for result in results) else 0
