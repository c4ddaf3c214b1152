"""``fairlead simulate``: traffic under other routing presets, in the simulator.

Why: a compiled simulator starts this program again, before its modules are loaded.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich import box
from rich.console import Console
from rich.table import Table

from fairlead.engine_profile import EngineProfile, builtin_profile
from fairlead.errors import BadInput
from fairlead.fleet.model import SloTargets
from fairlead.units import format_duration
from fairlead_cli.formatting import known
from fairlead_gateway.routing import PRESETS
from fairlead_sim.experiments.trial import Trial
from fairlead_sim.fleet.results import CapacityGoal, RunMetrics
from fairlead_sim.workload.sources import TrafficSource, load_source
from fairlead_sim.workload.traces import at_rate

MAX_ENGINES = 1_024
GUARD_FACTOR = 3.0
"""At capacity, 99 of 100 first tokens come within this multiple of the latency target."""

COLUMNS = ("preset", "met", "TTFT\np50", "\np90", "\np99", "TPOT\np99", "cached", "σ/µ", "put\nback")
"""Headings in two lines, so that the table with capacities fits a terminal of 80 columns."""


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


_DEFAULTS = SimulationArguments()


def simulate(
    traffic: Annotated[
        str,
        Parameter(
            help="A trace (Mooncake's JSON lines or Azure's CSV), or agents, coding-agents, tenants, rag, flash-crowd, "
            "bursty, conversation."
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

    console = stdout_console()
    options = build_options(traffic, arguments)
    console.print(options.describe(), highlight=False, soft_wrap=True)
    results = compare_presets(options, lambda line: console.print(line, highlight=False))
    print_results(options, results, console)
    if arguments.out is not None:
        write_json(options, results, arguments.out)
        console.print(f"  {arguments.out}", highlight=False, soft_wrap=True)
    return 1 if any(result.figures.errors for result in results) else 0


@dataclass(frozen=True, slots=True)
class SimulationOptions:
    """The simulation to run: checked arguments, and what they name. ``rate``: requests/s."""

    arguments: SimulationArguments
    source: TrafficSource
    profile: EngineProfile
    rate: float

    def describe(self) -> str:
        """Returns the options in one line of text."""
        return (
            f"traffic: {self.source.name}, {len(self.source.requests)} requests at {self.rate:.3g}/s; "
            f"{self.arguments.engines} engines {self.profile.name}, first token within {self.arguments.ttft:g} s"
        )

    @property
    def capacity_goal(self) -> CapacityGoal:
        """The goals for first tokens that a rate within capacity meets."""
        return CapacityGoal(seconds=self.arguments.ttft, guard_seconds=GUARD_FACTOR * self.arguments.ttft)

    def trial(self, name: str) -> Trial:
        objectives = SloTargets(ttft_seconds=self.arguments.ttft)
        return Trial(name, self.profile, self.arguments.engines, self.arguments.seed, objectives=objectives)


def build_options(traffic: str, arguments: SimulationArguments) -> SimulationOptions:
    """Checks the arguments. Raises BadInput with the option."""
    presets, engines, rate, ttft = arguments.presets, arguments.engines, arguments.rate, arguments.ttft
    for name in presets:
        if name not in PRESETS:
            raise BadInput(f"--presets: there is no preset {name!r}", field="--presets", hint=", ".join(PRESETS))
    if not presets:
        raise BadInput("--presets names nothing to compare", field="--presets", hint=", ".join(PRESETS))
    if not 1 <= engines <= MAX_ENGINES:
        raise BadInput(f"--engines must be from 1 to {MAX_ENGINES}, not {engines}", field="--engines")
    if rate is not None and not 0.0 < rate < float("inf"):
        raise BadInput(f"--rate must be above 0 requests/s, not {rate:g}", field="--rate")
    if not 0.0 < ttft < float("inf"):
        raise BadInput(f"--ttft must be above 0 s, not {ttft:g}", field="--ttft")
    profile = builtin_profile(arguments.profile, field="--profile")
    source = load_source(traffic, limit=arguments.limit, seed=arguments.seed)
    return SimulationOptions(arguments, source, profile, source.rate if rate is None else rate)


@dataclass(frozen=True, slots=True)
class PresetResult:
    """Figures of one preset; ``capacity`` in requests/s, or None when it was not searched for."""

    preset: str
    figures: RunMetrics
    capacity: float | None


def compare_presets(options: SimulationOptions, on_progress: Callable[[str], None]) -> list[PresetResult]:
    """Returns one result for each preset, in the order of the options."""
    requests = at_rate(options.source.requests, options.rate)
    prompts = options.trial(options.arguments.presets[0]).prompt_cache()
    results = []
    for name in options.arguments.presets:
        trial = options.trial(name)
        figures = trial.metrics(requests, prompts=prompts)
        capacity = None
        if options.arguments.capacity:
            on_progress(f"  {name}: searching for its capacity")
            capacity = trial.capacity(requests, goal=options.capacity_goal, guess=options.rate, prompts=prompts)
        results.append(PresetResult(name, figures, capacity))
    return results


def print_results(options: SimulationOptions, results: Sequence[PresetResult], console: Console) -> None:
    """Prints a row for each preset, a legend, and the number of failed requests if any failed."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    columns = (*COLUMNS, "carries\nper s") if options.arguments.capacity else COLUMNS
    for column in columns:
        table.add_column(column, justify="left" if column == "preset" else "right", no_wrap=True)
    for result in results:
        table.add_row(*_cells(result, capacity=options.arguments.capacity))
    console.print(table)
    met = f"met: first tokens within {format_duration(options.arguments.ttft)}"
    legend = f"  {met}; σ/µ: spread of computed tokens over engines; put back: requests that an engine preempted"
    console.print(legend, highlight=False, soft_wrap=True)
    if options.arguments.capacity and not all(result.capacity for result in results):
        console.print("  carries –: no rate near the requested one was within bounds", highlight=False, soft_wrap=True)
    failed = {result.preset: result.figures.errors for result in results if result.figures.errors}
    for name, errors in failed.items():
        console.print(f"  [bold red]{name}: {errors} requests failed[/]", highlight=False)


def write_json(options: SimulationOptions, results: Sequence[PresetResult], file: Path) -> None:
    """Writes ``{"traffic", "requests", "rate", "engines", "profile", "objective_seconds", "seed",
    "presets": {NAME: figures}}``.
    """
    report = {
        "traffic": options.source.name,
        "requests": len(options.source.requests),
        "rate": options.rate,
        "engines": options.arguments.engines,
        "profile": options.profile.name,
        "objective_seconds": options.arguments.ttft,
        "seed": options.arguments.seed,
        "presets": {result.preset: asdict(result.figures) | {"capacity": result.capacity} for result in results},
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _cells(result: PresetResult, *, capacity: bool) -> list[str]:
    figures = result.figures
    times = (figures.ttft_p50, figures.ttft_p90, figures.ttft_p99, figures.tpot_p99)
    cells = [
        result.preset,
        f"{figures.attainment:.1%}",
        *(known(seconds, format_duration) for seconds in times),
        f"{figures.cached_token_share:.1%}",
        known(figures.load_spread, "{:.2f}".format),
        f"{figures.preempted_share:.1%}",
    ]
    if capacity:
        cells.append(known(result.capacity or None, "{:.1f}".format))
    return cells
