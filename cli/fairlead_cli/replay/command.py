"""``fairlead replay``: recorded traffic against a running gateway."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


@dataclass(frozen=True, slots=True)
class ReplayArguments:
    """The arguments as given."""

    trace: Annotated[
        Path | None, Parameter(help="A trace in Mooncake's format. Without: traffic of the same shape from a seed.")
    ] = None
    url: Annotated[str | None, Parameter(help="The gateway. Default: that of the running `fairlead up`.")] = None
    manage: Annotated[str | None, Parameter(help="Its management address; its loop lag is read there.")] = None
    fleet: Annotated[
        Path | None, Parameter(help="Its fleet file. If the file has profiles, the replay is also simulated.")
    ] = None
    model: Annotated[str | None, Parameter(help="The model to query. Default: the only model.")] = None
    rate: Annotated[float | None, Parameter(help="Mean arrivals per simulated second. Default: the trace's own.")] = (
        None
    )
    speed: Annotated[float, Parameter(help="Simulated seconds in one second; the same as for `fairlead up`.")] = 1.0
    limit: Annotated[int | None, Parameter(help="Replay only this number of requests, the first ones.")] = None
    seed: Annotated[int, Parameter(help="Seed of generated traffic.")] = 0
    out: Annotated[Path, Parameter(help="Where the report goes.")] = Path("out/replay")


_DEFAULTS = ReplayArguments()


def replay(*, arguments: Annotated[ReplayArguments, Parameter(name="*")] = _DEFAULTS) -> int:
    """Replay a trace against a running gateway, open loop, and write a report.

    Prompts over 20,480 tokens are left out; requests with one timestamp are spread up to the next.
    Exits 1 when requests failed.
    """
    from fairlead_cli.console import stdout_console
    from fairlead_cli.replay.live_run import find_gateway, replay_once
    from fairlead_cli.replay.report.output_files import write_report
    from fairlead_cli.replay.report.terminal_tables import print_report
    from fairlead_cli.replay.traffic import load_traffic

    console = stdout_console()
    gateway = find_gateway(
        url=arguments.url, manage=arguments.manage, fleet_file=arguments.fleet, model=arguments.model
    )
    traffic = load_traffic(arguments.trace, limit=arguments.limit, rate=arguments.rate, seed=arguments.seed)
    console.print(
        f"traffic: {traffic.name}, {len(traffic.requests)} requests at {traffic.rate:.3g} simulated requests/s "
        f"to {gateway.model} at {gateway.url}",
        highlight=False,
    )
    report = replay_once(
        traffic,
        gateway,
        speed=arguments.speed,
        on_progress=lambda line: console.print(line, highlight=False),
    )
    files = write_report(report, arguments.out)
    print_report(report, console, files)
    failed = sum(policy.live.summary.errors for policy in report.policies.values() if policy.live is not None)
    return 1 if failed else 0
