"""The report of a replay as a value, and as JSON and Markdown.

All seconds are simulated seconds, except loop lag, which is wall time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fairlead.fleet.model import SloTargets
from fairlead.units import format_duration
from fairlead_cli.replay.client.replay_result import ReplayResult
from fairlead_cli.replay.report.summary import PolicySummary, summarize


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run of one policy: its results and their summary."""

    results: Sequence[ReplayResult]
    summary: PolicySummary

    @classmethod
    def from_results(cls, results: Sequence[ReplayResult], *, objectives: SloTargets, instances: int) -> "RunSummary":
        """Returns a run of these results with their summary. ``instances``: size of the fleet."""
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
        """Returns the object of report.json."""
        sides = (("live", self.live), ("simulated", self.simulated))
        return {name: side.summary.to_json() for name, side in sides if side is not None}


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
            "policies": {name: policy.to_json() for name, policy in self.policies.items()},
            "light_load": {"rate": self.light_rate, "policies": light},
        }


TABLE_HEADINGS = (
    *("policy", "", "TTFT mean", "TTFT p50", "TTFT p90", "TTFT p99", "ITL mean", "ITL p99"),
    *("in SLO", "cached", "load spread", "errors"),
)


def table_rows(policies: Mapping[str, PolicyResult]) -> list[tuple[str, ...]]:
    """Returns the cells of the table: for each policy a live and a simulated row, if there was a
    run.
    """
    cells = []
    for name, policy in policies.items():
        for side, run in (("live", policy.live), ("simulated", policy.simulated)):
            if run is not None:
                cells.append((name, side, *_cells(run.summary)))
    return cells


def _cells(summary: PolicySummary) -> tuple[str, ...]:
    ttft, itl = summary.ttft_seconds, summary.itl_seconds
    return (
        *(_seconds(value) for value in (ttft.mean, ttft.p50, ttft.p90, ttft.p99, itl.mean, itl.p99)),
        _percent(summary.within_objective),
        _percent(summary.cached_token_share),
        "–" if summary.load_cov is None else f"{summary.load_cov:.3f}",
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


def _seconds(value: float | None) -> str:
    return "–" if value is None else format_duration(value)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
