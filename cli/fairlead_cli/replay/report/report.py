"""The report of a replay as a value, and as JSON and Markdown.

All seconds are simulated seconds, except loop lag, which is wall time.
"""

import csv
import math
import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from fairlead.fleet.model import SloTargets
from fairlead.management_api import StatsOut
from fairlead.units import format_duration
from fairlead_cli.formatting import known
from fairlead_cli.replay.client.open_loop_client import ReplayResult
from fairlead_sim.fleet.results import quantile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTILES = (("p50", 0.50), ("p90", 0.90), ("p99", 0.99))

TABLE_HEADINGS = (
    *("policy", "", "TTFT mean", "TTFT p50", "TTFT p90", "TTFT p99", "ITL mean", "ITL p99"),
    *("in SLO", "cached", "load spread", "errors"),
)

CSV_COLUMNS = (
    *("policy", "side", "id", "due_seconds", "prompt_tokens", "cached_tokens", "output_tokens", "instance"),
    *("ttft_seconds", "itl_mean_seconds", "finished_seconds", "reason", "error"),
)

POLICY_COLOURS = ("#0b6e4f", "#c8553d", "#4a6fa5", "#8f6bb3", "#b08900", "#5c5c5c")
TEXT_COLOUR = "#222222"
GRID_COLOUR = "#d9d9d9"

TERMINAL_COLUMNS = (
    "policy",
    "",
    "TTFT mean",
    "TTFT p90",
    "TTFT p99",
    "ITL mean",
    "in SLO",
    "cached",
    "load spread",
    "errors",
)
"""The columns of the report that fit a terminal of 80 columns."""
SHORT_TITLES = {
    "TTFT mean": "TTFT",
    "TTFT p90": "p90",
    "TTFT p99": "p99",
    "ITL mean": "ITL",
    "in SLO": "met",
    "load spread": "σ/µ",
    "errors": "err",
}

MAX_SIMULATED_LAG_SECONDS = 0.040
"""A run is not valid when the p99 of any loop lag is above this, in simulated seconds.

Why simulated: a lag disturbs times as far as it is long in comparison. Where simulated time is
slower, the same lag of a busy machine matters less.
"""

_TIMEOUT_SECONDS = 10.0
_SERIES = re.compile(r"^(fairlead_(?:gateway|sim)_loop_lag_seconds)\{([^}]*)\}\s+(\S+)\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean and quantiles in seconds; None without a value."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None


@dataclass(frozen=True, slots=True)
class PolicySummary:
    """Statistics of one run, as in report.json. Shares are 0..1, and None without such requests.

    load_cov: variation of computed tokens between instances; None when nothing was computed.
    """

    requests: int
    errors: int
    ttft_seconds: Distribution
    itl_seconds: Distribution
    within_objective: float | None
    cached_token_share: float | None
    load_cov: float | None


def summarize(results: Sequence[ReplayResult], *, objectives: SloTargets, instances: int) -> PolicySummary:
    """Returns statistics of all results. ``instances`` includes those without requests."""
    return PolicySummary(
        requests=len(results),
        errors=sum(result.error is not None for result in results),
        ttft_seconds=summarize_values(result.ttft_seconds for result in results if result.ttft_seconds is not None),
        itl_seconds=summarize_values(gap for result in results for gap in result.gaps),
        within_objective=_ratio(sum(is_within_slo(result, objectives) for result in results), len(results)),
        cached_token_share=_ratio(
            sum(result.cached_tokens or 0 for result in results),
            sum(result.prompt_tokens for result in results if result.cached_tokens is not None),
        ),
        load_cov=_load_cov(computed_tokens(results), instances),
    )


def is_within_slo(result: ReplayResult, objectives: SloTargets) -> bool:
    """Whether the answer is complete and its first token and mean gap are within the SLO."""
    if result.error is not None or result.ttft_seconds is None:
        return False
    limit = objectives.ttft_limit_seconds(result.prompt_tokens)
    if limit is not None and result.ttft_seconds > limit:
        return False
    mean = result.itl_mean_seconds
    return objectives.itl_seconds is None or mean is None or mean <= objectives.itl_seconds


def computed_tokens(results: Iterable[ReplayResult]) -> Mapping[str, int]:
    """Returns the prompt tokens that each instance computed, because they were not cached."""
    computed: dict[str, int] = {}
    for result in results:
        if result.instance is not None and result.cached_tokens is not None:
            uncached = result.prompt_tokens - result.cached_tokens
            computed[result.instance] = computed.get(result.instance, 0) + uncached
    return computed


def summarize_values(values: Iterable[float]) -> Distribution:
    """Returns mean and quantiles, with linear interpolation."""
    ordered = sorted(values)
    if not ordered:
        return Distribution(None, None, None, None)
    quantiles = {name: quantile(ordered, share) for name, share in QUANTILES}
    return Distribution(mean=math.fsum(ordered) / len(ordered), **quantiles)


def scale_times(results: Iterable[ReplayResult], speed: float) -> list[ReplayResult]:
    """Returns the results with every time multiplied by ``speed``: wall to simulated seconds."""
    return [
        replace(
            result,
            due_seconds=result.due_seconds * speed,
            ttft_seconds=None if result.ttft_seconds is None else result.ttft_seconds * speed,
            gaps=array("d", (gap * speed for gap in result.gaps)),
            finished_seconds=None if result.finished_seconds is None else result.finished_seconds * speed,
            late_seconds=result.late_seconds * speed,
        )
        for result in results
    ]


def _ratio(part: float, total: float) -> float | None:
    return part / total if total else None


def _load_cov(computed: Mapping[str, int], instances: int) -> float | None:
    count = max(instances, len(computed))
    total = sum(computed.values())
    if not total:
        return None
    mean = total / count
    squares = sum((value - mean) ** 2 for value in computed.values()) + (count - len(computed)) * mean**2
    return math.sqrt(squares / count) / mean


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run of one policy: its results and their summary."""

    results: Sequence[ReplayResult]
    summary: PolicySummary

    @classmethod
    def from_results(cls, results: Sequence[ReplayResult], *, objectives: SloTargets, instances: int) -> "RunSummary":
        return cls(results, summarize(results, objectives=objectives, instances=instances))


@dataclass(frozen=True, slots=True)
class PolicyResult:
    """The runs of one preset, None for those that were not made. ``simulated_on_live_choices``:
    simulated with the live run's own choices.
    """

    live: RunSummary | None = None
    simulated: RunSummary | None = None
    simulated_on_live_choices: RunSummary | None = None

    def to_json(self) -> dict[str, Any]:
        return {side: asdict(run.summary) for side, run in self.runs}

    @property
    def runs(self) -> list[tuple[str, RunSummary]]:
        return [(side, run) for side, run in (("live", self.live), ("simulated", self.simulated)) if run is not None]


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """The report of a replay. ``lags``: p99 of each process's loop lag in wall seconds; None is
    unknown.
    """

    trace: str
    objectives: SloTargets
    speed: float
    rate: float
    requests: int
    policies: Mapping[str, PolicyResult]
    lags: Mapping[str, float | None] = field(default_factory=dict)
    invalid_reasons: Sequence[str] = ()
    ideal_reuse: float | None = None
    light_rate: float | None = None
    light: Mapping[str, PolicyResult] = field(default_factory=dict)

    @property
    def lag_p99_seconds(self) -> float | None:
        """The worst known lag; None when none is known."""
        return max((lag for lag in self.lags.values() if lag is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        """Returns report.json; docs/reference/seams.md describes it."""
        light = {name: policy.to_json() for name, policy in self.light.items()}
        return {
            "trace": self.trace,
            "objective": {
                "ttft_seconds": self.objectives.ttft_seconds,
                "ttft_per_kilo_token_seconds": self.objectives.ttft_per_kilo_token_seconds,
                "itl_seconds": self.objectives.itl_seconds,
            },
            "speed": self.speed,
            "rate": self.rate,
            "valid": not self.invalid_reasons,
            "lag_p99_seconds": self.lag_p99_seconds,
            "ideal_cached_share": self.ideal_reuse,
            "policies": {name: policy.to_json() for name, policy in self.policies.items()},
            "light_load": {"rate": self.light_rate, "policies": light},
        }


def table_rows(policies: Mapping[str, PolicyResult]) -> list[tuple[str, ...]]:
    """Returns the cells of the table: for each policy a live and a simulated row, if there was a
    run.
    """
    return [(name, side, *_cells(run.summary)) for name, policy in policies.items() for side, run in policy.runs]


def _cells(summary: PolicySummary) -> tuple[str, ...]:
    ttft, itl = summary.ttft_seconds, summary.itl_seconds
    return (
        *(known(value, format_duration) for value in (ttft.mean, ttft.p50, ttft.p90, ttft.p99, itl.mean, itl.p99)),
        *(known(share, "{:.1%}".format) for share in (summary.within_objective, summary.cached_token_share)),
        known(summary.load_cov, "{:.3f}".format),
        str(summary.errors),
    )


def describe_findings(report: ReplayReport) -> list[str]:
    """Returns sentences on the effect of routing: dual hash against each other policy, and live
    against simulated.
    """
    sentences = []
    dual_hash = report.policies.get("dual-hash")
    for name, policy in report.policies.items():
        if dual_hash is None or policy is dual_hash:
            continue
        for side in ("live", "simulated"):
            sentences += _compare_sides(side, getattr(dual_hash, side), getattr(policy, side), name)
    for name, policy in report.policies.items():
        difference = live_simulated_gap(policy)
        if difference is not None:
            direction = "above" if difference >= 0 else "below"
            timing = live_simulated_gap(PolicyResult(policy.live, policy.simulated_on_live_choices))
            timing_note = "" if timing is None else f"; on the live run's own choices they are {abs(timing):.1%} apart"
            sentences.append(
                f"{name}: live mean TTFT is {abs(difference):.1%} {direction} the simulated one{timing_note}"
            )
    return sentences


def live_simulated_gap(policy: PolicyResult) -> float | None:
    """Returns (live − simulated) ÷ simulated mean TTFT; None when one of them is missing."""
    if policy.live is None or policy.simulated is None:
        return None
    live, simulated = policy.live.summary.ttft_seconds.mean, policy.simulated.summary.ttft_seconds.mean
    return None if live is None or not simulated else live / simulated - 1.0


def ratio(dual_hash: RunSummary | None, other: RunSummary | None, quantity: str) -> float | None:
    """Returns the value of dual hash ÷ that of another policy; None when one of them is missing.

    quantity: ``cached`` (share of cached tokens) or ``p90`` (p90 TTFT).
    """
    if dual_hash is None or other is None:
        return None
    own_value, other_value = (
        run.summary.cached_token_share if quantity == "cached" else run.summary.ttft_seconds.p90
        for run in (dual_hash, other)
    )
    return None if own_value is None or not other_value else own_value / other_value


def _compare_sides(side: str, dual_hash: RunSummary | None, other: RunSummary | None, name: str) -> list[str]:
    cached, ttft = ratio(dual_hash, other, "cached"), ratio(dual_hash, other, "p90")
    if cached is None or ttft is None:
        return []
    return [
        f"{side}: dual-hash reuses {cached:.2f} × the cached tokens of {name}, its p90 TTFT is {ttft:.2f} × as long"
    ]


def markdown(report: ReplayReport) -> str:
    """Returns report.md."""
    objectives = report.objectives
    targets = (
        [f"first token within {format_duration(objectives.ttft_seconds)}"]
        if objectives.ttft_seconds is not None
        else []
    )
    if objectives.itl_seconds is not None:
        targets.append(f"mean gap between tokens at most {format_duration(objectives.itl_seconds)}")
    lag = report.lag_p99_seconds
    lines = [
        "# Routing presets compared",
        "",
        f"- Traffic: {report.trace}; {report.requests} requests at a mean of {report.rate:g} simulated requests/s, "
        f"clock × {report.speed:g}. Every request counts; seconds are simulated seconds.",
        f"- SLO: {' and '.join(targets) or 'none'}.",
        f"- Event loops: the worst p99 lateness was {'unknown' if lag is None else format_duration(lag)} (wall).",
    ]
    if report.ideal_reuse is not None:
        lines.append(
            f"- One unlimited cache would hold {report.ideal_reuse:.1%} of the prompt tokens when they arrive."
        )
    if report.invalid_reasons:
        lines += ["", "**These live numbers are not valid:**", *(f"- {reason}" for reason in report.invalid_reasons)]
    lines += [
        "",
        *_table(report.policies),
        "",
        *(f"- {line}" for line in describe_findings(report)),
        "",
        "![](report.png)",
        "",
    ]
    if report.light:
        lines += [
            f"## At light load ({report.light_rate:g} requests/s, simulated)",
            "",
            "With idle engines every policy answers at once; what a cache hit saves is then all that differs.",
            "",
            *_table(report.light),
            "",
        ]
    lines += ["## Loop lateness", "", "| process | p99 |", "|---|---|"]
    lines += [f"| {name} | {'unknown' if lag is None else format_duration(lag)} |" for name, lag in report.lags.items()]
    return "\n".join(lines) + "\n"


def _table(policies: Mapping[str, PolicyResult]) -> list[str]:
    lines = ["| " + " | ".join(TABLE_HEADINGS) + " |", "|---|---|" + "---:|" * (len(TABLE_HEADINGS) - 2)]
    return lines + ["| " + " | ".join(row) + " |" for row in table_rows(policies)]


def write_report(report: ReplayReport, folder: Path) -> list[Path]:
    """Writes report.json, report.md, report.png and requests.csv; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / name for name in ("report.json", "report.md", "report.png", "requests.csv")]
    files[0].write_bytes(msgspec.json.format(msgspec.json.encode(report.to_json()), indent=2) + b"\n")
    files[1].write_text(markdown(report), encoding="utf-8")
    draw_plots(report, files[2])
    _write_requests(report, files[3])
    return files


def publish(report: ReplayReport, folder: Path, console: Console) -> int:
    print_report(report, console, write_report(report, folder))
    return 1 if any(policy.live.summary.errors for policy in report.policies.values() if policy.live) else 0


def _write_requests(report: ReplayReport, file: Path) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(CSV_COLUMNS)
        for name, policy in report.policies.items():
            for side, run in policy.runs:
                for result in run.results:
                    values = ((column, getattr(result, column)) for column in CSV_COLUMNS[2:])
                    cells = (
                        f"{value:.6f}" if value is not None and "seconds" in name else value for name, value in values
                    )
                    writer.writerow((name, side, *cells))


def draw_plots(report: ReplayReport, file: Path) -> None:
    """Writes the picture.

    Why: matplotlib is imported here, because nothing else needs it.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    style: Any = {
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#888888",
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "text.color": TEXT_COLOUR,
    }
    colours = {
        name: POLICY_COLOURS[index % len(POLICY_COLOURS)]
        for index, name in enumerate({**report.policies, **report.light})
    }
    with mpl.rc_context(style):
        figure, axes = pyplot.subplots(2, 2, figsize=(12, 8.4), dpi=130)
        _draw_first_tokens(axes[0][0], report, colours)
        _draw_p90(axes[0][1], report, colours)
        _draw_cached(axes[1][0], report, colours)
        _draw_spread(axes[1][1], report, colours)
        subtitle = f"{report.trace} · {report.requests} requests at {report.rate:g}/s · seconds are simulated"
        figure.suptitle(headline(report), x=0.052, y=0.985, ha="left", fontsize=15, fontweight="bold")
        figure.text(0.052, 0.935, subtitle, color="#555555")
        if report.invalid_reasons:
            figure.text(
                0.98, 0.965, "NOT VALID: " + report.invalid_reasons[0], color="#b00020", ha="right", fontweight="bold"
            )
        figure.subplots_adjust(left=0.06, right=0.985, top=0.875, bottom=0.07, hspace=0.36, wspace=0.2)
        figure.savefig(file)
        pyplot.close(figure)


def _draw_first_tokens(axes: "Axes", report: ReplayReport, colours: Mapping[str, str]) -> None:
    """Draws, for each policy, the share of requests with a first token within x seconds."""
    max_seconds = 0.0
    for name, policy in report.policies.items():
        for side, run in policy.runs:
            times = sorted(result.ttft_seconds for result in run.results if result.ttft_seconds is not None)
            if not times:
                continue
            shares = [100.0 * (index + 1) / len(run.results) for index in range(len(times))]
            line_style: Any = {"linewidth": 2.2} if side == "live" else {"linewidth": 1.2, "linestyle": (0, (3, 2))}
            axes.plot(times, shares, color=colours[name], label=f"{name}, {side}", **line_style)
            max_seconds = max(max_seconds, times[int(0.99 * (len(times) - 1))])
    limit = report.objectives.ttft_seconds
    if limit is not None:
        axes.axvline(limit, color="#999999", linewidth=1, linestyle=":")
        axes.text(limit, 3, " latency target", color="#777777", fontsize=9)
    axes.set(xlim=(0, max(max_seconds, limit or 0.0, 0.001) * 1.02), ylim=(0, 101), xlabel="seconds to the first token")
    axes.set_title("Requests answered within so many seconds (%)")
    axes.grid(color=GRID_COLOUR, linewidth=0.6)
    axes.legend(frameon=False, fontsize=9, loc="lower right")


def _draw_p90(axes: "Axes", report: ReplayReport, colours: Mapping[str, str]) -> None:
    """Draws p90 TTFT under the trace's load and under a light load."""
    _draw_bars(axes, report, lambda summary: summary.ttft_seconds.p90, colours, "{:.2f}".format)
    _draw_legend(axes, report, colours)
    axes.set_ylabel("seconds")
    axes.set_title("p90 time to the first token: under load, and almost idle")


def _draw_cached(axes: "Axes", report: ReplayReport, colours: Mapping[str, str]) -> None:
    """Draws the share of prompt tokens found in a cache."""

    def percentage(summary: PolicySummary) -> float | None:
        return None if summary.cached_token_share is None else 100.0 * summary.cached_token_share

    _draw_bars(axes, report, percentage, colours, "{:.1f}".format)
    if report.ideal_reuse is not None:
        ideal = 100.0 * report.ideal_reuse
        axes.axhline(ideal, color="#999999", linewidth=1, linestyle=":")
        middle = sum(axes.get_xlim()) / 2
        axes.text(middle, ideal, "one unlimited cache", color="#777777", fontsize=9, ha="center", va="bottom")
        axes.set_ylim(0, max(axes.get_ylim()[1], ideal * 1.15))
    axes.set_title("Prompt tokens that were already cached (%)")


def _draw_spread(axes: "Axes", report: ReplayReport, colours: Mapping[str, str]) -> None:
    """Draws the prompt tokens that each instance computed, relative to the mean."""
    max_deviation = 0.25
    for row, (name, policy) in enumerate(report.policies.items()):
        for side, run in policy.runs:
            computed = computed_tokens(run.results).values()
            if not computed or run.summary.load_cov is None:
                continue
            mean = sum(computed) / len(computed)
            shares = [value / mean for value in computed]
            max_deviation = max(max_deviation, *(abs(share - 1.0) for share in shares))
            y = row + (-0.15 if side == "live" else 0.15)
            filled = colours[name] if side == "live" else "white"
            axes.plot(shares, [y] * len(shares), "o", color=colours[name], markerfacecolor=filled, markersize=7)
            axes.annotate(
                f"{side} σ/µ {run.summary.load_cov:.3f}",
                (1.0, y),
                xycoords=("axes fraction", "data"),
                color="#777777",
                fontsize=9,
                ha="right",
                va="center",
            )
    axes.axvline(1.0, color="#999999", linewidth=1, linestyle=":")
    count = len(report.policies)
    axes.set(yticks=range(count), yticklabels=list(report.policies), ylim=(count - 0.5, -0.5))
    axes.set_xlim(max(0.0, 1.0 - max_deviation * 1.1), 1.0 + max_deviation * 1.8)
    axes.set_xlabel("prompt tokens computed ÷ mean over the instances; a dot is an instance")
    axes.set_title("How evenly the work was spread")
    axes.tick_params(axis="y", length=0)


def _draw_bars(
    axes: "Axes",
    report: ReplayReport,
    value_of: Callable[[PolicySummary], float | None],
    colours: Mapping[str, str],
    format_value: Callable[[float], str],
) -> None:
    """Draws bars by load and policy, with values on top."""
    groups = [(f"at {report.rate:g} requests/s", report.policies)]
    if report.light:
        groups.append((f"at {report.light_rate:g} requests/s\nsimulated only", report.light))
    position = 0.0
    centres = []
    for title, policies in groups:
        group_start = position
        for name, policy in policies.items():
            for side, run in policy.runs:
                value = value_of(run.summary)
                filled = colours[name] if side == "live" else "white"
                axes.bar(position, value or 0.0, 0.85, color=filled, edgecolor=colours[name], linewidth=1.4)
                axes.text(position, value or 0.0, known(value, format_value), ha="center", va="bottom", fontsize=9)
                position += 1.0
            position += 0.35
        centres.append(((group_start + position - 1.35) / 2, title))
        position += 0.9
    axes.set_xticks([centre for centre, _ in centres], [title for _, title in centres])
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.8, max(position - 1.5, 0.8))
    axes.margins(y=0.12)
    axes.set_ylim(0, axes.get_ylim()[1] * 1.12)


def _draw_legend(axes: "Axes", report: ReplayReport, colours: Mapping[str, str]) -> None:
    for name in {**report.policies, **report.light}:
        axes.bar(0, 0, color=colours[name], label=name)
    axes.bar(0, 0, color="white", edgecolor="#777777", label="outline: simulated")
    axes.legend(frameon=False, fontsize=9, loc="upper right")


def headline(report: ReplayReport) -> str:
    """Returns what a report shows in one line: the first preset and the best of the others."""
    measured = {name: policy.live or policy.simulated for name, policy in report.policies.items()}
    times = {name: run.summary.ttft_seconds.p90 for name, run in measured.items() if run is not None}
    known_times = {name: seconds for name, seconds in times.items() if seconds}
    first = next(iter(known_times), None)
    others = {name: seconds for name, seconds in known_times.items() if name != first}
    if first is None or not others:
        return "Routing presets compared" if first is None else f"First tokens under {first}"
    best = min(others, key=lambda name: others[name])
    ratio = known_times[first] / others[best]
    return f"{first}: p90 of first tokens {ratio:.2f} × that of {best}"


def print_report(report: ReplayReport, console: Console, files: Sequence[Path]) -> None:
    """Prints tables, findings, validity and the paths of the files."""
    console.print(f"[bold]{headline(report)}[/]", highlight=False)
    console.print(_terminal_table(report.policies, f"at {report.rate:g} requests/s, seconds are simulated"))
    if report.light:
        console.print(_terminal_table(report.light, f"at {report.light_rate:g} requests/s"))
    for line in describe_findings(report):
        console.print(f"  {line}", highlight=False)
    lag = report.lag_p99_seconds
    if report.invalid_reasons:
        console.print("[bold red]These live numbers are not valid:[/]")
        for reason in report.invalid_reasons:
            console.print(f"  {reason}", highlight=False, markup=False)
    elif lag is not None:
        limit = format_duration(max_lag_seconds(report.speed))
        console.print(
            f"  valid: no event loop was more than {format_duration(lag)} late (p99; the limit is {limit})",
            highlight=False,
        )
    console.print("  " + "  ".join(str(file) for file in files), highlight=False, soft_wrap=True)


def _terminal_table(policies: Mapping[str, PolicyResult], title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in TERMINAL_COLUMNS:
        table.add_column(
            SHORT_TITLES.get(column, column), justify="left" if column in ("policy", "") else "right", no_wrap=True
        )
    columns = [TABLE_HEADINGS.index(column) for column in TERMINAL_COLUMNS]
    for row in table_rows(policies):
        table.add_row(*(row[index].replace("simulated", "sim") for index in columns))
    return table


def max_lag_seconds(speed: float) -> float:
    """Returns the largest valid p99 of a loop's lag, in wall seconds."""
    return MAX_SIMULATED_LAG_SECONDS / speed


def lag_p99(metrics: str) -> float | None:
    """Returns the largest p99 of loop lag in Prometheus text, in seconds; None without any."""
    values = [float(value) for _, labels, value in _SERIES.findall(metrics) if 'quantile="0.99"' in labels]
    known = [value for value in values if value == value]  # a summary without observations says NaN
    return max(known, default=None)


def read_lags(urls: Iterable[str], *, attempts: int = 3) -> dict[str, float | None]:
    """Returns the p99 of loop lag in seconds by base URL; None without an answer or without this
    metric.

    attempts: number of tries while a process does not answer.
    """
    lags: dict[str, float | None] = {}
    with httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
        for url in urls:
            lags[url] = None
            for _ in range(attempts):
                try:
                    answer = client.get(f"{url}/metrics")
                except httpx.HTTPError:
                    continue
                if answer.status_code == 200:
                    lags[url] = lag_p99(answer.text)
                    break
    return lags


def count_finished_requests(manage: str) -> int | None:
    """Returns the requests that the gateway has finished since its start; None when unknown."""
    with httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=False) as client:
        try:
            answer = client.get(f"{manage.rstrip('/')}/api/stats")
            stats = msgspec.json.decode(answer.raise_for_status().content, type=StatsOut)
        except (httpx.HTTPError, ValueError):  # msgspec's own errors are ValueErrors too
            return None
    return sum(model.totals.requests for model in stats.models.values())


def lag_doubts(lags: Mapping[str, float | None], speed: float) -> list[str]:
    """Returns why a run with these lags is not valid; empty when it is valid.

    speed: simulated seconds in one second.

    An unknown lag is a reason, except that of an engine.
    """
    reasons, most = [], max_lag_seconds(speed)
    for name, lag in lags.items():
        if lag is None:
            if not name.startswith("engine"):
                reasons.append(f"{name}: its loop lag is not known")
        elif lag > most:
            reasons.append(f"{name} ran {format_duration(lag)} late (p99), more than {format_duration(most)}")
    return reasons


def foreign_request_doubts(before: int | None, after: int | None, own_requests: int) -> list[str]:
    """Returns a doubt when the gateway finished more requests than were sent here."""
    if before is None or after is None or after - before <= own_requests:
        return []
    return [f"the gateway answered {after - before - own_requests} requests of other clients meanwhile"]
