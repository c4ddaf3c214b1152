"""Result rows of the autoscaler: its goals, a comparison with every preset, and the simulated
plant. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import exp, fsum, log
from pathlib import Path
from typing import Any

from fairlead_bench.autoscaler.measurement import FAIRLEAD
from fairlead_bench.measurement_cache import Measured
from fairlead_bench.results import ResultRow, load_goals, meets_goal

NAME = "autoscaler"
TARGET = 0.99
SMOOTH = ("smooth-chat", "smooth-short", "smooth-mixed")
HARD = ("noisy-hour", "failures", "slow-engine", "drift", "long-prompts", "mix-move")
METRICS_OUTAGES = ("missing-metrics", "inconsistent-metrics")
COMPARED_SCENARIOS = (*SMOOTH, *HARD, *METRICS_OUTAGES)
"""Scenarios on which presets are compared: without those that no controller without foresight can
meet."""
STRETCH_SCENARIOS = ("step-cold", "step-warm", "on-off", "zero-warm", "zero-cold")
ALL_SCENARIOS = (*COMPARED_SCENARIOS, *STRETCH_SCENARIOS)
COMPARED_PRESETS = (
    "hpa-concurrency",
    "kpa-concurrency",
    "keda-request-rate",
    "apa-concurrency",
    "wva-saturation",
    "dynamo",
)
"""One preset per project, as that project ships it: the signal that keeps the SLO most often."""
TUNED = Path("bench/results/autoscaler.json")
EXCEL, STRETCH = ", to excel", ", at a stretch"


@dataclass(frozen=True, slots=True)
class TunedPreset:
    """A preset and its knob: the best single value over all compared scenarios, or what it is fixed
    to."""

    preset: str
    knob: float
    best: bool

    @property
    def name(self) -> str:
        """As rows and plots call it."""
        return f"{self.preset} at {self.knob:g}{' (best)' if self.best else ' (fixed)'}"


def tuned_presets(table: dict[str, Any], presets: Sequence[str]) -> list[TunedPreset]:
    """Returns these presets with the knobs of the committed run, best and fixed."""
    found = []
    for name in table:
        preset, _, rest = name.partition(" at ")
        if preset in presets:
            knob, kind = rest.split()
            found.append(TunedPreset(preset, float(knob), kind == "(best)"))
    return found


def geometric_mean(values: Sequence[float]) -> float | None:
    """Returns the geometric mean; None without values."""
    return exp(fsum(map(log, values)) / len(values)) if values else None


def best_knob(found: Mapping[float, Mapping[str, Measured]]) -> float:
    """Returns the knob that keeps the target most often, and the cheapest of these."""

    def score(knob: float) -> tuple[int, float]:
        cells = list(found[knob].values())
        return sum(map(meets_slo, cells)), -(geometric_mean([cell["cost"] for cell in cells]) or 0.0)

    return max(found, key=score)


def fairlead_rows(found: Mapping[str, Measured], oracles: Mapping[str, float]) -> Iterator[ResultRow]:
    """Yields the rows with goals of the core, by scenario."""
    wanted = load_goals(NAME)

    row = wanted.value

    def priced(metric: str, name: str) -> ResultRow:
        return wanted.ratio(metric, "money", found[name]["cost"], "oracle", oracles[name])

    for name in SMOOTH:
        yield row(f"{name}: within the objectives", "share", found[name]["attainment"])
        for level in ("", EXCEL, STRETCH):
            yield priced(f"{name}: cost ÷ oracle{level}", name)
        yield row(f"{name}: changes of direction an hour{EXCEL}", "1/h", found[name]["turns"])
    for name in HARD:
        for level in ("", EXCEL):
            yield row(f"{name}: within the objectives{level}", "share", found[name]["attainment"])
        yield priced(f"{name}: cost ÷ oracle{EXCEL}", name)
    mean = geometric_mean([found[name]["cost"] / oracles[name] for name in HARD])
    for level in ("", EXCEL, STRETCH):
        yield row(f"six hard scenarios: cost ÷ oracle, geometric mean{level}", "ratio", mean)
    for name in METRICS_OUTAGES:
        yield row(
            f"{name}: within the objectives in a window and 5 minutes after, least",
            "share",
            found[name]["window_attainment"],
        )
        yield row(
            f"{name}: replicas taken away in a window and 5 minutes after", "replicas", found[name]["window_away"]
        )
    yield row(
        f"step-cold: from the first possible moment until 95 % again{EXCEL}", "s", found["step-cold"]["again_seconds"]
    )
    yield priced(f"step-cold: cost ÷ oracle{EXCEL}", "step-cold")
    yield row(f"step-warm: within the objectives{EXCEL}", "share", found["step-warm"]["attainment"])
    yield row(f"on-off: within the objectives{EXCEL}", "share", found["on-off"]["attainment"])
    for level in (EXCEL, STRETCH):
        yield priced(f"on-off: cost ÷ oracle{level}", "on-off")
    for level in (EXCEL, STRETCH):
        yield row(f"zero-warm: within the objectives{level}", "share", found["zero-warm"]["attainment"])
        yield priced(f"zero-warm: cost ÷ oracle{level}", "zero-warm")
    cold = found["zero-cold"]
    yield row(f"zero-cold: requests lost{EXCEL}", "requests", cold["abandoned"] + cold["lost"])
    yield row(f"zero-cold: first token after silence, beyond the start-up, longest{EXCEL}", "s", cold["wake_seconds"])


def comparison_rows(
    found: Mapping[str, Measured], others: Mapping[TunedPreset, Mapping[str, Measured]]
) -> Iterator[ResultRow]:
    """Ours ÷ each preset's cost, over the compared scenarios in which both keep the target; and how
    many each keeps."""
    wanted = load_goals(NAME)
    yield wanted.value(
        f"{FAIRLEAD}: of {len(COMPARED_SCENARIOS)} scenarios keeps 99 % in", "scenarios", _share_meeting_slo(found)
    )
    for chosen, cells in others.items():
        yield wanted.value(
            f"{chosen.name}: of {len(COMPARED_SCENARIOS)} scenarios keeps 99 % in",
            "scenarios",
            _share_meeting_slo(cells),
        )
        compared = {name: found[name] for name in COMPARED_SCENARIOS}
        _, value, other = costs_where_both_meet(compared, cells)
        if not chosen.best:
            continue
        metric = beats_goal(chosen.preset)
        ratio = None if value is None or not other else value / other
        # Who keeps the target nowhere is beaten without a price.
        holds = ratio is None or meets_goal(wanted[metric], ratio)
        yield ResultRow(metric, value, "money", chosen.name, other, ratio, wanted[metric], holds)


def costs_where_both_meet(
    ours: Mapping[str, Measured], theirs: Mapping[str, Measured]
) -> tuple[int, float | None, float | None]:
    """Returns the number of cells in which both keep the target, and the mean costs there."""
    both = [name for name in ours if meets_slo(ours[name]) and meets_slo(theirs[name])]
    value, other = (geometric_mean([cells[name]["cost"] for name in both]) for cells in (ours, theirs))
    return len(both), value, other


def beats_goal(preset: str) -> str:
    """Returns the metric that compares the core's cost with that of a preset."""
    return f"{preset} at its best knob: cost where both keep 99 %, geometric mean: {FAIRLEAD} ÷ it"


def simulator_rows(day_seconds: float, quick: Measured, exact: Measured) -> Iterator[ResultRow]:
    """Yields the rows of the plant: its speed, and its distance from token-level engines."""
    wanted = load_goals(NAME)
    yield wanted.value("a day of a million requests under one controller, simulated on one core", "s", day_seconds)
    metric = "aggregated and token-level engines: attainment apart"
    yield wanted.value(metric, "points", 100.0 * abs(quick["attainment"] - exact["attainment"]))
    metric = "aggregated ÷ token-level engines: replica-hours"
    yield wanted.ratio(metric, "h", quick["cost"], "token-level", exact["cost"])


def meets_slo(cell: Measured) -> bool:
    """Returns whether the cell keeps the target."""
    return cell["attainment"] >= TARGET


def _share_meeting_slo(cells: Mapping[str, Measured]) -> int:
    return sum(meets_slo(cells[name]) for name in COMPARED_SCENARIOS)
