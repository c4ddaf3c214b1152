"""Rows of the traffic of ``fairlead demo`` under its presets, simulated and as a demo measured it
live.

The first 1,000 requests of at most 20,480 prompt tokens, 8 engines of the 910b4 profile.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import SloTargets
from fairlead_bench.results import ResultRow, load_goals, ratio_row, value_row
from fairlead_cli.replay.fleet_simulation import FleetSimulation
from fairlead_cli.replay.report.summary import PolicySummary, summarize
from fairlead_cli.replay.traffic import ReplayTraffic

PRESETS = ("dual-hash", "round-robin", "least-request", "session")
RATES = (1.0, 4.0, 6.5, 8.0)
RATE = 6.5
ENGINES = 8
OBJECTIVES = SloTargets(ttft_seconds=5.0, itl_seconds=0.3)
FIGURES = (("p90 TTFT", "ttft_p90", "s"), ("cached tokens", "cached", "share"), ("in objective", "within", "share"))
SECRETS = 3
"""Homes are hashes of a secret: a single one is a draw, so each figure is the mean over so many."""


def simulated_rows(wanted: ReplayTraffic, seed: int) -> Iterator[ResultRow]:
    """Returns the rows with goals, then the whole table."""
    measured = {
        (rate, name): _mean(_simulate(wanted.with_rate(rate), name, seed))
        for rate in sorted({*RATES, RATE})
        for name in PRESETS
    }
    yield from _goal_rows("simulated", {name: measured[RATE, name] for name in PRESETS})
    for (rate, name), figures in measured.items():
        for title, what, unit in FIGURES:
            metric = f"{title} at {rate:g}/s, {name}"
            if name == "round-robin":
                yield value_row(metric, unit, figures[what], None)
            else:
                base = measured[rate, "round-robin"][what]
                yield ratio_row(metric, unit, figures[what], "round-robin", base, None)


def live_rows(report: Mapping[str, Any]) -> Iterator[ResultRow]:
    """Returns the live rows from a demo's report.json."""
    wanted = load_goals("routing")
    sides = {
        name: {side: _figures_of(run) for side, run in policy.items()} for name, policy in report["policies"].items()
    }
    yield from _goal_rows("live", {name: policy["live"] for name, policy in sides.items()})
    for name, policy in sides.items():
        metric = f"mean TTFT, {name}: live ÷ simulated"
        simulated_mean = policy["simulated"]["ttft_mean"]
        yield ratio_row(metric, "s", policy["live"]["ttft_mean"], "simulated", simulated_mean, wanted[metric])
    metric = "event-loop lag p99 of the live run"
    yield value_row(metric, "s", report["lag_p99_seconds"], wanted[metric])


def _goal_rows(side: str, by_preset: Mapping[str, Mapping[str, float | None]]) -> Iterator[ResultRow]:
    wanted = load_goals("routing")
    for title, what, unit, other in (
        ("cached tokens", "cached", "share", "round-robin"),
        ("p90 TTFT", "ttft_p90", "s", "round-robin"),
        ("p90 TTFT", "ttft_p90", "s", "least-request"),
    ):
        metric = f"{title}, {side}: dual-hash ÷ {other}"
        yield ratio_row(metric, unit, by_preset["dual-hash"][what], other, by_preset[other][what], wanted[metric])


def _simulate(wanted: ReplayTraffic, name: str, seed: int) -> Iterator[Mapping[str, float | None]]:
    hashed = name in ("dual-hash", "session")
    for draw in range(SECRETS if hashed else 1):
        simulation = FleetSimulation(
            profile=builtin_profile("910b4"),
            instance_ids=[f"sim-{index}/0/0" for index in range(ENGINES)],
            preset=name,
            objectives=OBJECTIVES,
            secret=f"secret {draw}".encode(),
            seed=seed,
        )
        outcomes = simulation.run(wanted.requests)
        yield _figures(summarize(outcomes, objectives=OBJECTIVES, instances=ENGINES))


def _figures(summary: PolicySummary) -> Mapping[str, float | None]:
    return _figures_of(summary.to_json())


def _figures_of(run: Mapping[str, Any]) -> Mapping[str, float | None]:
    return {
        "ttft_mean": run["ttft_seconds"]["mean"],
        "ttft_p90": run["ttft_seconds"]["p90"],
        "within": run["within_objective"],
        "cached": run["cached_token_share"],
        "load_cov": run["load_cov"],
    }


def _mean(runs: Iterator[Mapping[str, float | None]]) -> Mapping[str, float | None]:
    every = list(runs)
    found: dict[str, float | None] = {}
    for what in every[0]:
        values = [value for run in every if (value := run[what]) is not None]
        found[what] = sum(values) / len(values) if values else None
    return found
