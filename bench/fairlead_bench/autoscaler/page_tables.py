"""Tables of the autoscaler in `docs/benchmarks.md`: its goals, and every controller by scenario."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

ControllerFigures = Mapping[str, Mapping[str, Any]]
"""Share and cost of one controller by scenario."""
OutsideRun = Mapping[str, Any]

FAIRLEAD: Final = "fairlead"
KEPT_SHARE: Final = 0.99
_LEAST_SHARE: Final = 0.988
_DAYS: Final = ("smooth-chat", "smooth-short", "smooth-mixed")
_JUDGED: Final = (*_DAYS, "noisy-hour", "failures", "slow-engine", "drift", "long-prompts", "mix-move")
_OUTAGES: Final = ("missing-metrics", "inconsistent-metrics")


@dataclass(frozen=True, slots=True)
class GoalRow:
    """One goal with what was measured.

    holds: None if nothing was measured.
    """

    goal: str
    figure: str
    holds: bool | None

    def line(self) -> str:
        """Returns the row of the table."""
        holds = "not measured" if self.holds is None else "yes" if self.holds else "**no**"
        return f"| {self.goal} | {self.figure} | {holds} |\n"


def goal_rows(results: Path) -> list[GoalRow]:
    """Returns the goals of the autoscaler, from the committed results."""
    report = _load(results, "autoscaler")
    ours = report["table"][FAIRLEAD]
    value = {row["metric"]: row["value"] for row in report["rows"]}
    return [
        *_simulator_rows(ours),
        *_judging_rows(_load(results, "autoscaler-judging")["table"]),
        *_outside_rows(results),
        *_fleet_rows(_load(results, "autoscaler-fleet")),
        *_outage_rows(results, value),
        *_preset_rows(results, report),
        *_target_rows(results),
        *_sudden_load_rows(results, ours, value),
        *_prediction_rows(results),
        _property_row(_load(results, "autoscaler-properties")),
        _cluster_row(results),
    ]


def _simulator_rows(ours: ControllerFigures) -> Iterator[GoalRow]:
    shares = {name: ours[name]["attainment"] for name in _JUDGED}
    least = min(shares, key=lambda name: shares[name])
    costs = {name: ours[name]["oracle"] for name in _JUDGED}
    dearest = max(costs, key=lambda name: costs[name])
    average = _geometric_mean(list(costs.values()))
    yield GoalRow(
        "simulator, nine scenarios: at least 98.8% in each",
        f"least {shares[least]:.2%}, `{least}`",
        shares[least] >= _LEAST_SHARE,
    )
    yield GoalRow(
        "simulator: cost at most 1.20 × the optimum on average, 1.40 × in each",
        f"{average:.2f} ×; {costs[dearest]:.2f} ×, `{dearest}`",
        average <= 1.20 and costs[dearest] <= 1.40,
    )
    days = [costs[name] for name in _DAYS]
    yield GoalRow(
        "simulator, to excel: at most 1.12 × on average, 1.08 × on each day",
        f"{average:.2f} ×; {min(days):.2f} to {max(days):.2f} ×",
        average <= 1.12 and max(days) <= 1.08,
    )


def _judging_rows(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Iterator[GoalRow]:
    """Yields the goals on judging seeds of the simulator: shares by run, cost, and outages.

    table: figures by controller, scenario and seed.
    """
    ours, optima = table[FAIRLEAD], table["offline optimum"]
    judged = [name for name in _JUDGED if name in ours]
    shares = [run["servable"] for name in judged for run in ours[name].values()]
    title = f"simulator, judging seeds, {len(judged)} scenarios"
    yield _seeds_row(f"{title}: at least 98.8% in each run", shares, _LEAST_SHARE)
    yield _seeds_row(f"{title}, to excel: at least 98.5% in each run", shares, 0.985)
    ratios = {
        name: _geometric_mean([ours[name][seed]["cost"] / found["cost"] for seed, found in seeds.items()])
        for name, seeds in optima.items()
    }
    dearest = max(ratios, key=lambda name: ratios[name])
    average = _geometric_mean(list(ratios.values()))
    yield GoalRow(
        f"simulator, judging seeds, {len(ratios)} scenarios: cost at most 1.20 × the optimum on average, 1.40 × in each",
        f"{average:.2f} ×; {ratios[dearest]:.2f} ×, `{dearest}`",
        average <= 1.20 and ratios[dearest] <= 1.40,
    )
    windows = [run["window_attainment"] for name in _OUTAGES for run in ours[name].values()]
    yield _seeds_row(
        "simulator, judging seeds, metrics missing or inconsistent: at least 99.5% until five minutes after",
        windows,
        0.995,
    )


def _outside_rows(results: Path) -> Iterator[GoalRow]:
    tuning, judging = (_load(results, name)["runs"] for name in ("autoscaler-outside", "autoscaler-outside-judging"))
    yield _least_share_row("second plant, tuning seeds: at least 98.8% in each run", tuning, _LEAST_SHARE)
    ratios = {family: _geometric_mean(list(map(_cost_ratio, runs))) for family, runs in _by_family(tuning).items()}
    dearest = max(ratios, key=lambda family: ratios[family])
    average = _geometric_mean(list(ratios.values()))
    yield GoalRow(
        "second plant: cost at most 1.20 × the optimum on average, 1.40 × in each family",
        f"{average:.2f} ×; {ratios[dearest]:.2f} ×, `{dearest}`",
        average <= 1.20 and ratios[dearest] <= 1.40,
    )
    yield _least_share_row("second plant, judging seeds: at least 98.8% in each run", judging, _LEAST_SHARE)
    yield _least_share_row("second plant, judging seeds, to excel: at least 98.5% in each run", judging, 0.985)


def _least_share_row(goal: str, runs: Sequence[OutsideRun], limit: float) -> GoalRow:
    worst = min(runs, key=servable_share)
    below = sum(servable_share(run) < limit for run in runs)
    figure = f"least {servable_share(worst):.2%}, `{worst['family']}`; {below} of {len(runs)} below"
    return GoalRow(goal, figure, below == 0)


def _seeds_row(goal: str, shares: Sequence[float], limit: float) -> GoalRow:
    below = sum(share < limit for share in shares)
    return GoalRow(goal, f"least {min(shares):.2%}; {below} of {len(shares)} below", below == 0)


def _fleet_rows(report: Mapping[str, Any]) -> Iterator[GoalRow]:
    ours, bounds = report["table"][FAIRLEAD], report["bounds"]
    judged = [name for name in _JUDGED if name in ours]
    least = min(judged, key=lambda name: float(ours[name]["attainment"]))
    yield GoalRow(
        f"fleet simulator, {len(judged)} scenarios: at least 98.8% in each",
        f"least {ours[least]['attainment']:.2%}, `{least}`",
        ours[least]["attainment"] >= _LEAST_SHARE,
    )
    costs = {name: ours[name]["cost"] / bounds[name]["cost"] for name in ours if name in bounds}
    compared = [name for name in judged if name in costs]
    dearest = max(compared, key=lambda name: costs[name])
    average = _geometric_mean([costs[name] for name in compared])
    yield GoalRow(
        f"fleet simulator, {len(compared)} scenarios: cost at most 1.20 × a bound of the optimum on average, "
        "1.40 × in each",
        f"{average:.2f} ×; {costs[dearest]:.2f} ×, `{dearest}`",
        average <= 1.20 and costs[dearest] <= 1.40,
    )
    windows = [ours[name] for name in _OUTAGES if name in ours]
    share, removed = min(cell["window_attainment"] for cell in windows), sum(cell["window_away"] for cell in windows)
    yield GoalRow(
        "fleet simulator, metrics missing or inconsistent: at least 99.5% until five minutes after, no replica removed",
        f"least {share:.2%}; {removed:.0f} removed",
        share >= 0.995 and removed == 0.0,
    )
    if outages := [name for name in _OUTAGES if name in costs]:
        dearest = max(outages, key=lambda name: costs[name])
        yield GoalRow(
            "the same: the whole run at most 1.25 × a bound of the optimum",
            f"{costs[dearest]:.2f} ×, `{dearest}`",
            costs[dearest] <= 1.25,
        )


def _outage_rows(results: Path, value: Mapping[str, float]) -> Iterator[GoalRow]:
    share = min(value[f"{name}: within the objectives in a window and 5 minutes after, least"] for name in _OUTAGES)
    away = sum(value[f"{name}: replicas taken away in a window and 5 minutes after"] for name in _OUTAGES)
    yield GoalRow(
        "metrics missing or inconsistent: at least 99.5% until five minutes after, no replica removed",
        f"least {share:.2%}; {away:.0f} removed",
        share >= 0.995 and away == 0.0,
    )
    runs = [run for run in _load(results, "autoscaler-outside-sudden")["runs"] if run["window_share"] is not None]
    share = min(run["window_share"] for run in runs)
    dearest = max(runs, key=_cost_ratio)
    yield GoalRow(
        "the same, second plant, seed 1: at least 99.5%, the whole run at most 1.25 × the optimum",
        f"least {share:.2%}; {_cost_ratio(dearest):.2f} ×, `{dearest['family']}`",
        share >= 0.995 and _cost_ratio(dearest) <= 1.25,
    )
    judging = _load(results, "autoscaler-outside-judging")["runs"]
    shares = [run["window_share"] for run in judging if run["window_share"] is not None]
    yield _seeds_row(
        "metrics missing, second plant, judging seeds: at least 99.5% until five minutes after", shares, 0.995
    )


def _preset_rows(results: Path, report: Mapping[str, Any]) -> Iterator[GoalRow]:
    ratios = {
        row["versus"].partition(" at ")[0]: row["ratio"]
        for row in report["rows"]
        if " at its best knob: cost where both keep 99 %" in row["metric"] and row["ratio"] is not None
    }
    nearest = max(ratios, key=lambda name: ratios[name])
    yield GoalRow(
        "simulator: cheaper than each of 16 presets at its best setting, where both keep 99%",
        f"at most {ratios[nearest]:.2f} × the cost, of `{nearest}`",
        max(ratios.values()) < 1.0,
    )
    yield _other_preset_row("second plant", _load(results, "autoscaler-outside-presets"))
    yield _other_preset_row("fleet simulator", _load(results, "autoscaler-fleet"))


def _other_preset_row(plant: str, report: Mapping[str, Any]) -> GoalRow:
    rows = {row["metric"]: row["ratio"] for row in report["rows"] if ": cost where both keep 99 %" in row["metric"]}
    best = {metric: ratio for metric, ratio in rows.items() if " (best): " in metric}
    ratios = {metric: ratio for metric, ratio in (best or rows).items() if ratio is not None}
    nearest = max(ratios, key=lambda metric: ratios[metric])
    name, _, rest = nearest.partition(" at ")
    runs = int(rest.partition("99 % (")[2].partition(" ")[0])
    setting = "best" if best else "usual"
    return GoalRow(
        f"{plant}, seed 1: cheaper than each of {len(best or rows)} presets at its {setting} setting",
        f"up to {ratios[nearest]:.2f} × the cost, of `{name}`, in {runs} run{'s' * (runs > 1)}",
        max(ratios.values()) < 1.0,
    )


def _target_rows(results: Path) -> Iterator[GoalRow]:
    rows = _load(results, "autoscaler-targets")["rows"]
    judged = [row for row in rows if row["goal"] is not None]
    held = sum(row["holds"] for row in judged)
    yield GoalRow(
        "days at targets of 95, 99 and 99.9%: the attained share is near the target",
        f"{held} of {len(judged)}",
        held == len(judged),
    )


def _sudden_load_rows(results: Path, ours: ControllerFigures, value: Mapping[str, float]) -> Iterator[GoalRow]:
    again = value["step-cold: from the first possible moment until 95 % again, to excel"]
    yield GoalRow(
        "five times the load: 95% again within 90 s of the fastest start",
        f"{again:.0f} s",
        again <= 90.0,
    )
    yield _scenario_row("on and off", ours["on-off"], 0.97, 2.2)
    held_out = [
        table[FAIRLEAD]["on-off"]["attainment"] for table in _load(results, "autoscaler-held-out")["tables"].values()
    ]
    yield _seeds_row("on and off, held-out seeds: at least 97%", held_out, 0.97)
    yield _scenario_row("from zero, a fleet that was warm", ours["zero-warm"], 0.97, 1.6)
    wake = value["zero-cold: first token after silence, beyond the start-up, longest, to excel"]
    yield GoalRow(
        "from zero, cold: first token at most 5 s after the start-up, at most 2 × the optimum's cost",
        f"{wake:.1f} s; {ours['zero-cold']['oracle']:.2f} ×",
        wake <= 5.0 and ours["zero-cold"]["oracle"] <= 2.0,
    )
    silence = next(
        run for run in _load(results, "autoscaler-outside-sudden")["runs"] if run["family"] == "silence-bursts"
    )
    yield GoalRow(
        "second plant, seed 1, bursts out of silence: at most 2 × the optimum's cost",
        f"{servable_share(silence):.2%}; {_cost_ratio(silence):.2f} ×",
        _cost_ratio(silence) <= 2.0,
    )
    turns = {name: ours[name]["turns"] for name in _DAYS}
    yield GoalRow(
        "days: at most 6 changes of direction an hour",
        ", ".join(f"{count:.1f}" for count in turns.values()),
        max(turns.values()) <= 6.0,
    )


def _scenario_row(title: str, found: Mapping[str, Any], share: float, cost: float) -> GoalRow:
    return GoalRow(
        f"{title}: at least {share:.0%} at no more than {cost:g} × the optimum",
        f"{found['attainment']:.2%}; {found['oracle']:.2f} ×",
        found["attainment"] >= share and found["oracle"] <= cost,
    )


def _prediction_rows(results: Path) -> Iterator[GoalRow]:
    value = {row["metric"]: row["value"] for row in _load(results, "autoscaler-missed-share")["rows"]}
    plants = [metric.partition(":")[0] for metric in value if metric.endswith(": fleets judged")]
    fleets = sum(value[f"{plant}: fleets judged"] for plant in plants)
    within = sum(
        value[f"{plant}: fleets judged"]
        * value[f"{plant}: fleets whose missed share, corrected, is within a factor of 2"]
        for plant in plants
    )
    yield GoalRow(
        "fixed fleets on four plants: the missed share is predicted within a factor of 2",
        f"{within:.0f} of {fleets:.0f}, with learned factors",
        round(within) == round(fleets),
    )


def _property_row(report: Mapping[str, Any]) -> GoalRow:
    tests = report["tests"].values()
    done, failed = sum(test["is_done"] for test in tests), sum(not test["passed"] for test in tests)
    return GoalRow(
        "each property test passes with 10,000 examples",
        f"{done} of {len(tests)} pass, {failed} fail, {len(tests) - done - failed} not finished",
        done == len(tests),
    )


def _cluster_row(results: Path) -> GoalRow:
    parts = _load(results, "e2e-autoscaling")["parts"].values()
    lines = [line for part in parts for line in part["verdict"] if "failed streams" in line["line"]]
    failed = sum(line["measured"] for line in lines)
    return GoalRow("waves on a real cluster: no failed stream", f"{failed} in {len(lines)} tests", failed == 0)


def preset_table(
    table: Mapping[str, ControllerFigures], titles: Mapping[str, str], kind: str, *, digits: int = 1
) -> str:
    """Returns share and cost of Fairlead and of each measured preset by scenario, at one setting.

    Scenarios that no preset ran are left out.

    kind: "fixed" or "best", the setting of a preset.
    digits: of the costs.
    """
    others = {name: found for name, found in table.items() if name != FAIRLEAD}
    ours = {name: cell for name, cell in table[FAIRLEAD].items() if any(name in found for found in others.values())}
    rows = [_controller_row("Fairlead", ours, ours, digits)]
    for preset, title in titles.items():
        key = next((key for key in others if key.startswith(f"{preset} at ") and key.endswith(f"({kind})")), None)
        if key is None:
            continue
        setting = key.removeprefix(f"{preset} at ").removesuffix(f" ({kind})")
        rows.append(_controller_row(f"{title}, {setting}", others[key], ours, digits))
    heads = [name.removesuffix(" 1") for name in ours]
    return f"| controller, setting | {' | '.join(heads)} |\n|---|{'---:|' * len(ours)}\n{''.join(rows)}"


def _controller_row(name: str, found: ControllerFigures, ours: ControllerFigures, digits: int) -> str:
    cells = []
    for scenario, figures in found.items():
        text = f"{100.0 * figures['attainment']:.1f}"
        is_kept = figures["attainment"] >= KEPT_SHARE
        cost = figures["cost"] / ours[scenario]["cost"]
        cells.append(f"{text if is_kept else f'**{text}**'}, {cost:.{digits}f}")
    return f"| {name} | {' | '.join(cells)} |\n"


def fleet_table(report: Mapping[str, Any]) -> str:
    """Returns Fairlead's figures in the fleet simulator by scenario."""
    lines = [
        "| scenario | within the SLO | cost ÷ bound of the optimum | prompt tokens cached | changes of direction an hour |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, cell in report["table"][FAIRLEAD].items():
        share, bound = f"{cell['attainment']:.2%}", report["bounds"].get(name)
        share = share if cell["attainment"] >= KEPT_SHARE else f"**{share}**"
        cost = "–" if bound is None else f"{cell['cost'] / bound['cost']:.2f} ×"
        lines.append(f"| `{name}` | {share} | {cost} | {cell['cached_share']:.0%} | {cell['turns']:.1f} |")
    return "\n".join(lines) + "\n"


def judging_table(table: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Returns Fairlead's shares and costs on judging seeds by scenario.

    table: figures by controller, scenario and seed.
    """
    lines = [
        "| scenario | runs | mean share | least share | below 98.8% | cost ÷ optimum, runs |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, runs in table[FAIRLEAD].items():
        shares = [run["servable"] for run in runs.values()]
        ratios = [runs[seed]["cost"] / found["cost"] for seed, found in table["offline optimum"].get(name, {}).items()]
        cost = f"{_geometric_mean(ratios):.2f} ×, {len(ratios)}" if ratios else "–"
        below = sum(share < _LEAST_SHARE for share in shares)
        mean = sum(shares) / len(shares)
        lines.append(f"| `{name}` | {len(runs)} | {mean:.2%} | {min(shares):.2%} | {below} | {cost} |")
    return "\n".join(lines) + "\n"


def servable_share(run: OutsideRun) -> float:
    """Returns the share within the SLO among requests that a start could have served."""
    return float(run["share"] * run["requests"] / max(run["requests"] - run["unservable"], 1))


def _cost_ratio(run: OutsideRun) -> float:
    return float(run["replica_hours"] / run["optimum"]["replica_hours"])


def _by_family(runs: Sequence[OutsideRun]) -> dict[str, list[OutsideRun]]:
    families: dict[str, list[OutsideRun]] = {}
    for run in runs:
        families.setdefault(run["family"], []).append(run)
    return families


def _geometric_mean(values: Sequence[float]) -> float:
    return float(prod(values) ** (1.0 / len(values)))


def _load(results: Path, name: str) -> Any:
    return json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
