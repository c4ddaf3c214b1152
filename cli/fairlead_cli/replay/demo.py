"""``fairlead demo``: real traffic through a real stack under several presets, with a report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The options as given."""

    trace: Annotated[
        Path | None,
        Parameter(help="A trace in Mooncake's format. Default: 1,000 requests of its conversation trace, bundled."),
    ] = None
    out: Annotated[Path, Parameter(help="Where the report goes.")] = Path("out/demo")
    limit: Annotated[int, Parameter(help="How many requests of at most 20,480 prompt tokens, from the start.")] = 1000
    rate: Annotated[float, Parameter(help="Mean arrivals per simulated second.")] = 6.5
    light_rate: Annotated[
        float, Parameter(help="Mean arrivals per simulated second of a light load, simulated too.")
    ] = 1.0
    speed: Annotated[float, Parameter(help="Simulated seconds in one second.")] = 2.0
    presets: Annotated[tuple[str, ...], Parameter(help="Routing presets to compare.", consume_multiple=True)] = (
        "dual-hash",
        "round-robin",
        "least-request",
    )


_DEFAULTS = DemoOptions()


def demo(*, options: Annotated[DemoOptions, Parameter(name="*")] = _DEFAULTS) -> int:
    """Replay a trace under several routing presets, live and simulated, and write the comparison.

    Exits 0 when all requests were answered; 1 when requests failed; 2 when a stack could not be
    started or stopped.

    A busy machine makes the times invalid. The report then says "valid": false, and so does the
    last line.
    """
    from fairlead.engine_profile import builtin_profile
    from fairlead.fleet.model import SloTargets
    from fairlead.runtime.clock import SystemClock
    from fairlead_cli.console import stdout_console
    from fairlead_cli.replay.comparison import PresetComparison
    from fairlead_cli.replay.report.output_files import write_report
    from fairlead_cli.replay.report.terminal_tables import print_report
    from fairlead_cli.replay.traffic import load_traffic
    from fairlead_sim.workload.traces import BUNDLED_TRACE

    console = stdout_console()
    traffic = load_traffic(options.trace or BUNDLED_TRACE, limit=options.limit, rate=options.rate)
    console.print(
        f"traffic: {traffic.name}, {len(traffic.requests)} requests at {traffic.rate:g} simulated requests/s",
        highlight=False,
    )
    comparison = PresetComparison(
        traffic=traffic,
        presets=options.presets,
        profile=builtin_profile("910b4"),
        engines=8,
        objectives=SloTargets(ttft_seconds=5.0, itl_seconds=0.3),
        speed=options.speed,
        light_rate=options.light_rate,
        folder=options.out,
    )
    report = comparison.run(lambda line: console.print(line, highlight=False), SystemClock())
    files = write_report(report, options.out)
    print_report(report, console, files)
    failed = sum(policy.live.summary.errors for policy in report.policies.values() if policy.live is not None)
    return 1 if failed else 0
