"""The autoscaler in a second plant that shares no code with the simulator.

Prints one line a run and a table by family.

Tuning uses the seeds 1, 2 and 3; whole days use the first of them. ``--judging`` runs the 20 seeds
of ``judging_seeds.json``, on which nothing was tuned.

One run of the core in one scenario, measured: latency targets, cost, changes.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from time import perf_counter
from typing import Any

from fairlead_bench.judging_seeds import TUNING_SEEDS
from fairlead_bench.outside_plant.offline_optimum import OPTIMUM_FILE, OfflineOptimum, OptimumFile
from fairlead_bench.outside_plant.plant import (
    GATEWAY_RULES,
    RESCUE_SECONDS,
    ControllerFactory,
    Plant,
    PlantOptions,
    PlantRecord,
    RescuedReplay,
    WorkRule,
    core_controller,
)
from fairlead_bench.outside_plant.scenario import FAMILIES, Scenario, judging_seeds
from fairlead_bench.results import NO_GOALS, ResultRow, write_results

WINDOW_AFTERMATH_SECONDS = 300.0

NAME = "autoscaler-outside"
ROOT = Path(__file__).resolve().parents[3]
_ONE_SEED = frozenset({"chat-day"})
"""Families that run with one seed unless seeds are named: a run takes minutes."""


@dataclass(frozen=True, slots=True)
class CoreMeasurement:
    """The result of one run.

    share: of requests with TTFT and mean gap within the targets
    ttft_share, gap_share: of requests within each target
    unservable: late requests that no start ordered at the first look could have served
    window_share: the least share in a window of faulty metrics and five minutes after it
    optimum: None if it is not known
    """

    family: str
    seed: int
    gateway_rule: str
    requests: int
    share: float
    ttft_share: float
    gap_share: float
    unservable: int
    abandoned: int
    lost: int
    replica_hours: float
    changes_per_hour: float
    max_desired: int
    optimum: OfflineOptimum | None
    wall_seconds: float
    window_share: float | None = None

    @property
    def servable_share(self) -> float:
        return self.share * self.requests / max(self.requests - self.unservable, 1)

    @property
    def cost_ratio(self) -> float | None:
        return None if self.optimum is None else self.replica_hours / self.optimum.replica_hours

    def describe(self) -> str:
        """Returns the line of the run."""
        ratio = "–" if self.cost_ratio is None else f"{self.cost_ratio:.3f}"
        optimum = "–" if self.optimum is None else f"{self.optimum.replica_hours:.2f}"
        return (
            f"{self.family:15} seed {self.seed:<7} {self.gateway_rule:10} share {self.share:.4f} "
            f"servable {self.servable_share:.4f} (ttft {self.ttft_share:.4f} gap {self.gap_share:.4f}) "
            f"apart {self.unservable:<4} cost {self.replica_hours:7.2f} ÷ {optimum:>6} = {ratio:5} "
            f"changes/h {self.changes_per_hour:5.1f} max {self.max_desired:<2} abandoned {self.abandoned:<4} "
            f"lost {self.lost:<3} {self.wall_seconds:.1f} s"
        )


def measure(
    family: str, seed: int, options: PlantOptions, factory: ControllerFactory, optima: OptimumFile | None
) -> CoreMeasurement:
    """Returns the measurement of a run. ``optima`` is None where no optimum is wanted."""
    scenario = FAMILIES[family](seed)
    optimum = None if optima is None else optima.find(scenario, options)
    began = perf_counter()
    record = Plant(scenario, options).run(factory(scenario))
    wall_seconds = perf_counter() - began
    requests = scenario.requests
    late = requests.late(scenario.ttft, scenario.gap)
    count = len(requests)
    ttft_share = sum(ttft <= scenario.ttft for ttft in requests.ttft) / count
    gap_share = sum(gap <= scenario.gap for gap in requests.gap) / count
    return CoreMeasurement(
        family=family,
        seed=seed,
        gateway_rule=options.gateway_rule,
        requests=count,
        share=1.0 - sum(late) / count,
        ttft_share=ttft_share,
        gap_share=gap_share,
        unservable=_unservable(scenario, options, record, late),
        abandoned=record.abandoned,
        lost=record.lost,
        replica_hours=record.replica_hours,
        changes_per_hour=record.changes / (scenario.seconds / 3600.0),
        max_desired=max(max(sizes) for sizes in record.desired),
        optimum=optimum,
        wall_seconds=wall_seconds,
        window_share=_window_share(scenario, late),
    )


def _window_share(scenario: Scenario, late: list[bool]) -> float | None:
    """Returns the least share of requests in time, of those of a window and five minutes after it.

    None if all metrics were right.
    """
    shares = []
    for window in scenario.windows:
        end = window.end + WINDOW_AFTERMATH_SECONDS
        found = [
            is_late
            for arrival, is_late in zip(scenario.requests.arrivals, late, strict=True)
            if window.start <= arrival < end
        ]
        shares.append(1.0 - sum(found) / max(len(found), 1))
    return min(shares, default=None)


def _unservable(scenario: Scenario, options: PlantOptions, record: PlantRecord, late: list[bool]) -> int:
    """Returns how many requests soon after a sudden change no start could have served.

    They are late, and stay late in a run that orders the maximum at the first look after it.
    """
    if not scenario.shocks:
        return 0
    Plant(scenario, options).run(RescuedReplay(scenario, record.desired))
    rescued = scenario.requests.late(scenario.ttft, scenario.gap)
    return sum(
        is_late and is_late_still and any(shock <= arrival < shock + RESCUE_SECONDS for shock in scenario.shocks)
        for arrival, is_late, is_late_still in zip(scenario.requests.arrivals, late, rescued, strict=True)
    )


def main(arguments: Sequence[str]) -> int:
    """Runs the families and prints one line a run; returns 0."""
    options = _options(arguments)
    optima = None if options.no_optimum else OptimumFile(options.optima)
    settings = dict(options.set)
    factory = _factory(settings, options.work_target)
    measurements = []
    for rule in options.gateway:
        for family in options.families:
            for seed in _seeds(family, options):
                plant = PlantOptions(rule, is_per_gap=options.per_gap)
                measurement = measure(family, seed, plant, factory, optima)
                print(measurement.describe(), flush=True)
                measurements.append(measurement)
    if options.curves:
        _print_curves(measurements)
    more = {"settings": settings, "runs": [asdict(measurement) for measurement in measurements]}
    write_results(NAME, result_rows(measurements), seed=measurements[0].seed, file=options.file, more=more)
    return 0


def result_rows(measurements: Iterable[CoreMeasurement]) -> list[ResultRow]:
    """Returns the rows by gateway rule and family: means over seeds, and the worst share."""
    groups: dict[tuple[str, str], list[CoreMeasurement]] = defaultdict(list)
    for measurement in measurements:
        groups[measurement.gateway_rule, measurement.family].append(measurement)
    rows = []
    for (rule, family), runs in groups.items():
        name = f"{family}, gateway by {rule}"
        rows.append(NO_GOALS.value(f"{name}: share within both targets", "", fmean(run.share for run in runs)))
        rows.append(NO_GOALS.value(f"{name}: the same, worst servable", "", min(run.servable_share for run in runs)))
        optimum = fmean(run.optimum.replica_hours if run.optimum else float("nan") for run in runs)
        cost = fmean(run.replica_hours for run in runs)
        rows.append(
            NO_GOALS.ratio(
                f"{name}: cost ÷ offline optimum",
                "replica-h",
                cost,
                "offline optimum",
                None if optimum != optimum else optimum,
            )
        )
        rows.append(NO_GOALS.value(f"{name}: changes", "1/h", fmean(run.changes_per_hour for run in runs)))
        rows.append(NO_GOALS.value(f"{name}: unservable", "requests", fmean(run.unservable for run in runs)))
    return rows


def _print_curves(measurements: Iterable[CoreMeasurement]) -> None:
    for measurement in measurements:
        if measurement.optimum is None:
            continue
        steady = measurement.optimum.steady_replicas()
        for pool, curve in measurement.optimum.late_by_size.items():
            points = " ".join(f"{size}:{late:.4f}" for size, late in curve.items())
            print(f"{measurement.family} seed {measurement.seed} {pool}: 99 % with {steady[pool]}; late {points}")


def _factory(settings: Mapping[str, Any], work_target: float | None) -> ControllerFactory:
    """Returns what makes the core, or the plain rule if it has a target."""
    if work_target is not None:
        return lambda scenario: WorkRule(scenario, work_target)
    return lambda scenario: core_controller(scenario, settings)


def _seeds(family: str, options: argparse.Namespace) -> Sequence[int]:
    if options.judging:
        return judging_seeds()
    if options.seeds:
        seeds: Sequence[int] = options.seeds
        return seeds
    return TUNING_SEEDS[:1] if family in _ONE_SEED else TUNING_SEEDS


def known_names(known: Mapping[str, Any], what: str) -> Callable[[str], list[str]]:
    """Returns the parser of an option that names some of ``known``, or all."""

    def parse(text: str) -> list[str]:
        names = list(known) if text == "all" else text.split(",")
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(f"no {what} {', '.join(unknown)}; known are {', '.join(known)}")
        return names

    return parse


def _setting(text: str) -> tuple[str, Any]:
    """Returns name and value of ``NAME=VALUE``; the value is JSON, or else text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fairlead_bench autoscaler-outside", description="Run the autoscaler in the outside plant."
    )
    parser.add_argument("--families", type=known_names(FAMILIES, "family"), default=list(FAMILIES), metavar="NAME,…")
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], metavar="N,…")
    parser.add_argument("--judging", action="store_true", help="the 20 seeds of the judgement")
    parser.add_argument(
        "--gateway", type=known_names(GATEWAY_RULES, "rule"), default=["work"], metavar="RULE,…", help="or all"
    )
    parser.add_argument("--per-gap", action="store_true", help="histograms of single gaps, not of answers' means")
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--work-target", type=float, metavar="LOAD", help="a plain rule, not the core")
    parser.add_argument("--no-optimum", action="store_true", help="search for no offline optimum")
    parser.add_argument(
        "--optima", type=Path, default=OPTIMUM_FILE, metavar="FILE", help="known optima; new ones are added"
    )
    parser.add_argument("--curves", action="store_true", help="print the late share of fixed fleets")
    parser.add_argument("--file", type=Path, default=ROOT / "out" / "bench" / f"{NAME}.json", metavar="FILE")
    return parser.parse_args(arguments)
