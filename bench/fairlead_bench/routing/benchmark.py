"""Capacity of routing presets in the fleet simulator, and a grid of them.

A missed goal stays in the table and fails nothing.

One measurement of the grid: a preset behind the router seam, on some traffic, from a seed; and
many of them side by side.

Presets × traffic × gateways × staleness: the share within the objective at 0.85 × the dualmap
preset's capacity.

The bound of a cell is Wilson's, of 95 %, for as many independent requests as there were sessions'
worth of them: requests of one burst are late together, so a tenth of their number is taken.

The rows of the bar, each a ratio to the dualmap preset on the same requests unless it says
otherwise.

Rows of the traffic of ``fairlead demo`` under its presets, simulated and as a demo measured it
live.

The first 1,000 requests of at most 20,480 prompt tokens, 8 engines of the 910b4 profile.
"""

import argparse
import gc
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

from fairlead.engine_profile import builtin_profile
from fairlead.fleet.model import SloTargets
from fairlead.runtime.compiled_build import compiled_copy_path
from fairlead_bench.measurement_cache import Measured, print_progress
from fairlead_bench.measurement_cache import MeasurementCache as SharedLab
from fairlead_bench.results import NO_GOALS, ResultRow, load_goals, parse_options, write_results
from fairlead_cli.replay.fleet_simulation import FleetSimulation
from fairlead_cli.replay.report.report import summarize
from fairlead_cli.replay.traffic import ReplayTraffic, load_traffic
from fairlead_gateway.routing import PRESETS
from fairlead_sim.adapters.external_router import SharingDelays
from fairlead_sim.compiled import package_folders
from fairlead_sim.experiments.trial import SeamKind, Trial
from fairlead_sim.fleet.fleet_events import FleetEvent, FleetEventKind, scale_out_and_in
from fairlead_sim.fleet.results import WITHOUT_GUARD, CapacityGoal, attainment_by_window
from fairlead_sim.seams import router
from fairlead_sim.workload.generators import FAMILIES
from fairlead_sim.workload.traces import (
    BUNDLED_TRACE,
    MAX_PROMPT_TOKENS,
    TraceRequest,
    at_rate,
    read_mooncake,
    spread_ties,
)

FIRST_RATES = {"agents": 45.0, "tenants": 33.0, "rag": 25.5, "flash-crowd": 37.0, "bursty": 35.0, "conversation": 20.0}
"""Rates at which the search for a capacity starts, in requests/s of eight engines."""
SLO_SHARES = {
    "guarded": CapacityGoal(),
    "unguarded": WITHOUT_GUARD,
    "strict": CapacityGoal(seconds=2.0, share=0.99, guard_share=0.0),
}
REQUESTS_AN_ENGINE = 1_500
WINDOW_SECONDS = 30.0

SHARE = 0.85
STALE_SECONDS = {"fresh": (0.0, 0.0), "0.5 s": (0.5, 0.5), "5 s": (5.0, 5.0)}
GATEWAYS = (1, 3, 8)
LENGTH = 0.5
"""Share of the requests with which a capacity is searched. Why: there are 585 cells."""
INDEPENDENT = 0.1
Z = 1.96

REFERENCE_STUDY = {
    "agents": (21.2, 37.0),
    "tenants": (22.5, 34.7),
    "rag": (24.4, 28.1),
    "flash-crowd": (25.0, 38.9),
    "bursty": (19.4, 29.4),
}
"""Requests per second of round robin and of DualMap, with which calibration compares its own."""

DEMO_PRESETS = ("dual-hash", "round-robin", "least-request", "session")
RATES = (1.0, 4.0, 6.5, 8.0)
RATE = 6.5
ENGINES = 8
OBJECTIVES = SloTargets(ttft_seconds=5.0, itl_seconds=0.3)
FIGURES = (("p90 TTFT", "ttft_p90", "s"), ("cached tokens", "cached", "share"), ("in objective", "within", "share"))
SECRETS = 3
"""Homes are hashes of a secret: a single one is a draw, so each figure is the mean over so many."""

PARTS = ("demo", "bars", "grid")


@dataclass(frozen=True, slots=True)
class RoutingCell:
    """Without a ``rate`` its capacity is searched for, by ``bar``. ``sent_seconds`` None: gateways
    share nothing. ``happens`` names a script; ``pooled`` puts one memory under all engines and a
    router that sees every queue before them. Without ``seam`` one router is driven directly, as
    ``fairlead simulate`` does it. ``length`` is of the usual number of requests."""

    preset: str
    traffic: str
    seed: int
    profile: str = "h100-llama8b"
    engines: int = 8
    gateways: int = 1
    sent_seconds: float | None = 0.0
    loads_seconds: float = 0.0
    bar: str = "guarded"
    rate: float | None = None
    happens: str = ""
    pooled: bool = False
    seam: bool = True
    length: float = 1.0


def measure(cell: RoutingCell, trace: Path | None) -> Measured:
    """Returns the capacity in requests/s, or the figures at the cell's rate."""
    requests = _traffic(cell.traffic, cell.seed, int(cell.length * REQUESTS_AN_ENGINE * cell.engines), trace)
    gc.unfreeze()
    gc.collect()  # of the last cell
    gc.freeze()  # a fifth of the time went into looking through all requests again and again
    gc.set_threshold(50_000, 20, 100)
    trial = _trial(cell)
    if cell.rate is None:
        guess = FIRST_RATES[cell.traffic] * cell.engines / 8 * (1.0 if cell.profile == "h100-llama8b" else 0.36)
        return {"capacity": trial.capacity(requests, goal=SLO_SHARES[cell.bar], guess=guess)}
    scaled = at_rate(requests, cell.rate)
    trial = replace(trial, events=_fleet_events(cell, scaled[-1].arrival))
    begun = time.process_time()
    found = trial.metrics(scaled)
    seconds = time.process_time() - begun
    worst = {"worst_window": min(attainment_by_window(trial.run(scaled), WINDOW_SECONDS))} if cell.happens else {}
    return worst | {
        "attainment": found.attainment,
        "ttft_p90": found.ttft_p90 or math.inf,
        "tpot_p99": found.tpot_p99 or math.inf,
        "cached": found.cached_token_share,
        "spread": found.load_spread or 0.0,
        "preempted": found.preempted_share,
        "a_minute": 60.0 * found.requests / seconds,
    }


def _core(info: Mapping[str, Any], name: str, seed: int) -> Any:
    return router(info, preset=name, seed=seed)


def _trial(cell: RoutingCell) -> Trial:
    sharing = None if cell.sent_seconds is None else SharingDelays(cell.sent_seconds, cell.loads_seconds)
    seam = SeamKind(_core, cell.gateways, sharing) if cell.seam and not cell.pooled else None
    return Trial(
        cell.preset, builtin_profile(cell.profile), cell.engines, cell.seed, seam=seam, is_pooled_bound=cell.pooled
    )


def _fleet_events(cell: RoutingCell, end: float) -> tuple[FleetEvent, ...]:
    if cell.happens == "lost":
        return (FleetEvent(0.5 * end, FleetEventKind.LOSE, "sim-3/0/0"),)
    if cell.happens == "6-8-6":
        return scale_out_and_in(6, 8, 0.35 * end, 0.7 * end)
    return ()


@cache
def _traffic(name: str, seed: int, requests: int, trace: Path | None) -> list[TraceRequest]:
    if name == "conversation":
        assert trace is not None
        return [ty for ty in spread_ties(read_mooncake(trace)) if ty.prompt_tokens <= MAX_PROMPT_TOKENS]
    return FAMILIES[name](requests, seed=seed)


class RoutingMeasurements(SharedLab[RoutingCell]):
    """Measures cells. What they depend on is all of the simulator and the router."""

    def __init__(self, keep: Path, trace: Path | None, jobs: int, said: Callable[[str], None]) -> None:
        state = compiled_copy_path(package_folders(), Path()).name
        super().__init__(keep, partial(measure, trace=trace), lambda _: state, jobs=jobs, said=said)
        self.trace = trace

    def name(self, cell: RoutingCell) -> str:
        return f"{cell.preset}, {cell.traffic}, seed {cell.seed}"

    def capacities(self, cells: Sequence[RoutingCell]) -> list[float]:
        found = self(cells)
        return [found[cell]["capacity"] for cell in cells]


def geometric_mean(values: Iterable[float]) -> float:
    every = list(values)
    return math.exp(math.fsum(map(math.log, every)) / len(every)) if all(value > 0.0 for value in every) else 0.0


def wilson_low(share: float, number: float) -> float:
    """Returns the lower end of Wilson's interval for a share of so many."""
    middle = share + Z * Z / (2 * number)
    spread = Z * math.sqrt(share * (1.0 - share) / number + Z * Z / (4 * number * number))
    return (middle - spread) / (1.0 + Z * Z / number)


def grid_rows(lab: RoutingMeasurements, seeds: Sequence[int]) -> Iterator[ResultRow]:
    """Returns a row per cell, and the default's worst cell against the best preset of each."""
    bases = [RoutingCell("dualmap", family, seed) for family in FAMILIES for seed in seeds]
    rates = dict(zip([(base.traffic, base.seed) for base in bases], lab.capacities(bases), strict=True))
    places = [(family, gateways, name) for family in FAMILIES for gateways in GATEWAYS for name in STALE_SECONDS]
    cells = {(place, preset): _cells(place, preset, seeds, rates) for place in places for preset in PRESETS}
    found = lab([cell for ones in cells.values() for cell in ones])
    worst = math.inf
    for place in places:
        shares = {preset: _attainment([found[cell] for cell in cells[place, preset]]) for preset in PRESETS}
        best = max(shares.values())
        number = INDEPENDENT * LENGTH * REQUESTS_AN_ENGINE * 8 * len(seeds)
        mine = wilson_low(shares["dual-hash"], number)
        worst = min(worst, mine / wilson_low(best, number))
        family, gateways, stale = place
        for preset, share in shares.items():
            yield NO_GOALS.value(metric(family, gateways, stale, preset), "share", share)
    yield load_goals("routing").value("grid, worst cell: default ÷ best preset, lower bounds", "ratio", worst)


def metric(family: str, gateways: int, stale: str, preset: str) -> str:
    return f"within 5 s, {family}, {gateways} gateways, {stale}: {preset}"


def _cells(
    place: tuple[str, int, str], preset: str, seeds: Sequence[int], rates: dict[tuple[str, int], float]
) -> list[RoutingCell]:
    family, gateways, stale = place
    sent, loads = STALE_SECONDS[stale]
    cell = RoutingCell(
        preset,
        family,
        0,
        gateways=gateways,
        sent_seconds=sent,
        loads_seconds=loads,
        length=LENGTH,
    )
    return [replace(cell, seed=seed, rate=SHARE * rates[family, seed]) for seed in seeds]


def _attainment(found: Sequence[Measured]) -> float:
    return fmean([one["attainment"] for one in found])


DEFAULT, DUALMAP = "dual-hash", "dualmap"
PUBLISHED = ("prefix-cache", "llm-d", "cache-aware", "min-ttft", "preble", DUALMAP)


class RoutingRows:
    """All of them, over ``seeds``. Without a trace, the rows of the recorded conversations are left
    out."""

    def __init__(self, lab: RoutingMeasurements, seeds: Sequence[int]) -> None:
        self._lab = lab
        self._seeds = seeds
        self._goals = load_goals("routing")
        self._shared = ("agents", "tenants", *(("conversation",) if lab.trace is not None else ()))

    def rows(self) -> Iterator[ResultRow]:
        """Returns all rows in the order of goals.yaml."""
        yield from self._family_rows()
        if self._lab.trace is not None:
            yield from self._conversation_rows()
        yield from self._gateway_rows()
        yield from self._at_rates()
        yield from self._strict_slo_rows()
        yield from self._large_fleet_rows()
        yield from self._reference_rows()

    # --- ratios ---------------------------------------------------------------------------------------------------------

    def _capacity(self, cell: RoutingCell) -> float:
        return geometric_mean(self._lab.capacities([replace(cell, seed=seed) for seed in self._seeds]))

    def _prepare(self, cells: Sequence[RoutingCell]) -> None:
        self._lab([replace(cell, seed=seed) for cell in cells for seed in self._seeds])

    def _ratio(self, metric: str, value: float, versus: str, base: float) -> ResultRow:
        return self._goals.ratio(metric, "/s", value, versus, base)

    def _mean(self, metric: str, ratios: Sequence[float]) -> ResultRow:
        return self._goals.value(metric, "ratio", geometric_mean(ratios))

    def _family_rows(self) -> Iterator[ResultRow]:
        presets = (DEFAULT, "round-robin", *PUBLISHED)
        self._prepare([RoutingCell(name, family, 0) for family in FAMILIES for name in presets])
        ratios, best = [], []
        for family in FAMILIES:
            mine, theirs = (
                self._capacity(RoutingCell(DEFAULT, family, 0)),
                self._capacity(RoutingCell(DUALMAP, family, 0)),
            )
            others = {name: self._capacity(RoutingCell(name, family, 0)) for name in PUBLISHED}
            winner = max(others, key=others.__getitem__)
            ratios.append(mine / theirs if theirs else 0.0)
            best.append(mine / others[winner] if others[winner] else 0.0)
            yield self._ratio(f"capacity, {family}: default ÷ dualmap", mine, DUALMAP, theirs)
            for name, value in others.items():
                yield self._ratio(f"capacity, {family}: default ÷ {name}, for comparison", mine, name, value)
        yield self._mean("capacity, five families: default ÷ dualmap", ratios)
        yield self._mean("capacity, five families: default ÷ dualmap, to excel", ratios)
        yield self._mean("capacity, five families: default ÷ best published of each", best)

    def _conversation_rows(self) -> Iterator[ResultRow]:
        here = RoutingCell(DEFAULT, "conversation", 0)
        there = replace(here, profile="910b4", bar="unguarded")
        names = (DEFAULT, DUALMAP, "round-robin")
        self._prepare([replace(cell, preset=name) for cell in (here, there) for name in names])
        mine, theirs = self._capacity(here), self._capacity(replace(here, preset=DUALMAP))
        yield self._ratio("capacity, conversation: default ÷ dualmap", mine, DUALMAP, theirs)
        mine, theirs = self._capacity(there), self._capacity(replace(there, preset=DUALMAP))
        yield self._ratio("capacity, conversation, 910b4, unguarded: default ÷ dualmap", mine, DUALMAP, theirs)
        plain = self._capacity(replace(there, preset="round-robin"))
        for bound in ("at least", "at most"):
            metric = f"capacity, conversation, 910b4, unguarded: dualmap ÷ round-robin, {bound}"
            yield self._ratio(metric, theirs, "round-robin", plain)

    # --- several gateways -----------------------------------------------------------------------------------------------

    def _gateway_rows(self) -> Iterator[ResultRow]:
        one = [RoutingCell(DEFAULT, traffic, 0) for traffic in self._shared]
        late = {
            "three gateways, 50 ms / 0.2 s ÷ one": (0.05, 0.2),
            "three gateways, 0.5 s / 1 s ÷ one": (0.5, 1.0),
        }
        apart = [replace(cell, gateways=3, sent_seconds=None) for cell in one]
        stale = [replace(cell, sent_seconds=5.0, loads_seconds=5.0) for cell in one]
        three = {
            metric: [replace(cell, gateways=3, sent_seconds=sent, loads_seconds=loads) for cell in one]
            for metric, (sent, loads) in late.items()
        }
        three["three gateways, 5 s / 5 s ÷ one, for comparison"] = [replace(cell, gateways=3) for cell in stale]
        dualmap = [replace(cell, preset=DUALMAP) for cell in apart]
        self._prepare([*one, *apart, *stale, *dualmap, *[cell for cells in three.values() for cell in cells]])
        for metric, cells in three.items():
            yield self._mean(metric, self._over(cells, one))
        yield self._mean("three gateways, nothing shared: default ÷ dualmap", self._over(apart, dualmap))
        yield self._mean("views 5 s old ÷ fresh", self._over(stale, one))

    def _over(self, cells: Sequence[RoutingCell], bases: Sequence[RoutingCell]) -> list[float]:
        return [self._capacity(cell) / self._capacity(base) for cell, base in zip(cells, bases, strict=True)]

    # --- at a rate ------------------------------------------------------------------------------------------------------

    def _at_rates(self) -> Iterator[ResultRow]:
        """Yields rows at shares of DualMap's capacity."""
        calm = {name: self._at_load(name, 0.9) for name in (DEFAULT, DUALMAP)}
        for what, metric in (
            ("ttft_p90", "p90 TTFT at 90 % of dualmap's capacity: default ÷ dualmap"),
            ("tpot_p99", "p99 TPOT at 90 % of dualmap's capacity: default ÷ dualmap"),
        ):
            pairs = zip(calm[DEFAULT], calm[DUALMAP], strict=True)
            yield self._mean(metric, [mine[what] / theirs[what] for mine, theirs in pairs])
        lost = self._at_load(DEFAULT, 0.85, happens="lost")
        metric = "one of eight lost at 85 % of dualmap's capacity: worst attainment of 30 s"
        yield self._goals.value(metric, "share", min(one["worst_window"] for one in lost))
        scaled = self._at_load(DEFAULT, 0.85, engines=6, happens="6-8-6")
        metric = "6 → 8 → 6 at 85 % of six engines' capacity: attainment"
        yield self._goals.value(metric, "share", min(one["attainment"] for one in scaled))
        alone = self._lab([RoutingCell(DEFAULT, family, self._seeds[0], rate=30.0, seam=False) for family in FAMILIES])
        metric = "simulated requests a minute of one core, one router"
        yield self._goals.value(metric, "", geometric_mean([one["a_minute"] for one in alone.values()]))

    def _at_load(self, name: str, share: float, *, engines: int = 8, happens: str = "") -> list[dict[str, float]]:
        bases = [RoutingCell(DUALMAP, family, seed, engines=engines) for family in FAMILIES for seed in self._seeds]
        rates = self._lab.capacities(bases)
        cells = [
            replace(base, preset=name, rate=share * rate, happens=happens)
            for base, rate in zip(bases, rates, strict=True)
        ]
        found = self._lab(cells)
        return [dict(found[cell]) for cell in cells]

    def _strict_slo_rows(self) -> Iterator[ResultRow]:
        pairs = {
            family: [RoutingCell(name, family, 0, bar="strict") for name in (DEFAULT, DUALMAP)] for family in FAMILIES
        }
        self._prepare([cell for pair in pairs.values() for cell in pair])
        for family, (mine, theirs) in pairs.items():
            metric = f"capacity at 99 % within 2 s, {family}: default ÷ dualmap"
            yield self._ratio(metric, self._capacity(mine), DUALMAP, self._capacity(theirs))

    def _large_fleet_rows(self) -> Iterator[ResultRow]:
        seed = self._seeds[0]
        pair = [RoutingCell(name, "agents", seed, engines=64) for name in (DEFAULT, DUALMAP)]
        mine, theirs = self._lab.capacities(pair)
        yield self._ratio("capacity, 64 engines, agents: default ÷ dualmap", mine, DUALMAP, theirs)
        pooled = [RoutingCell("round-robin", family, 0, pooled=True) for family in FAMILIES]
        self._prepare(pooled)
        for cell in pooled:
            mine = self._capacity(RoutingCell(DEFAULT, cell.traffic, 0))
            yield self._ratio(f"capacity, {cell.traffic}: default ÷ one pool", mine, "pool", self._capacity(cell))

    def _reference_rows(self) -> Iterator[ResultRow]:
        for family, published in REFERENCE_STUDY.items():
            ours = [self._capacity(RoutingCell(name, family, 0)) for name in ("round-robin", DUALMAP)]
            for name, mine, theirs in zip(("round-robin", DUALMAP), ours, published, strict=True):
                yield self._ratio(f"calibration, {family}, {name}: ours ÷ the study's", mine, "study", theirs)
            metric = f"calibration, {family}: dualmap ÷ round-robin, ours ÷ the study's"
            value, base = ours[1] / ours[0], published[1] / published[0]
            yield self._goals.ratio(metric, "ratio", value, "study", base)


def simulated_rows(wanted: ReplayTraffic, seed: int) -> Iterator[ResultRow]:
    """Returns the rows with goals, then the whole table."""
    measured = {
        (rate, name): _mean(_simulate(wanted.with_rate(rate), name, seed))
        for rate in sorted({*RATES, RATE})
        for name in DEMO_PRESETS
    }
    yield from _goal_rows("simulated", {name: measured[RATE, name] for name in DEMO_PRESETS})
    for (rate, name), figures in measured.items():
        for title, what, unit in FIGURES:
            metric = f"{title} at {rate:g}/s, {name}"
            if name == "round-robin":
                yield NO_GOALS.value(metric, unit, figures[what])
            else:
                base = measured[rate, "round-robin"][what]
                yield NO_GOALS.ratio(metric, unit, figures[what], "round-robin", base)


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
        yield wanted.ratio(metric, "s", policy["live"]["ttft_mean"], "simulated", simulated_mean)
    yield wanted.value("event-loop lag p99 of the live run", "s", report["lag_p99_seconds"])


def _goal_rows(side: str, by_preset: Mapping[str, Mapping[str, float | None]]) -> Iterator[ResultRow]:
    wanted = load_goals("routing")
    for title, what, unit, other in (
        ("cached tokens", "cached", "share", "round-robin"),
        ("p90 TTFT", "ttft_p90", "s", "round-robin"),
        ("p90 TTFT", "ttft_p90", "s", "least-request"),
    ):
        metric = f"{title}, {side}: dual-hash ÷ {other}"
        yield wanted.ratio(metric, unit, by_preset["dual-hash"][what], other, by_preset[other][what])


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
        yield (_figures_of(asdict(summarize(outcomes, objectives=OBJECTIVES, instances=ENGINES))))


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


def main(arguments: list[str]) -> int:
    """Returns 0: the benchmark measures, and tests judge."""
    given = parse_options(
        "routing",
        "Routing presets in the fleet simulator.",
        arguments,
        trace=(Path, "a trace in Mooncake's format; without it one is generated for the demo"),
        live=(Path, "report.json of a demo, for the live rows"),
        only=(list(PARTS), "parts to measure"),
        seeds=([11, 12], "of traffic and homes; none of these was tuned on"),
        jobs=min(os.cpu_count() or 1, 16),
    )
    rows = list(_rows(given, given.seeds))
    write_results(
        "routing",
        rows,
        seed=given.seeds[0],
        file=given.out,
        more={"seeds": given.seeds},
    )
    return 0


def _rows(given: argparse.Namespace, seeds: list[int]) -> Iterator[ResultRow]:
    parts = given.only
    if "demo" in parts:
        wanted = load_traffic(given.trace or BUNDLED_TRACE, limit=1_000, rate=RATE, seed=0)
        print(f"traffic of the demo: {wanted.name}, {len(wanted.requests)} requests")
        yield from simulated_rows(wanted, 0)
        if given.live is not None:
            yield from live_rows(json.loads(given.live.read_text(encoding="utf-8")))
    if given.trace is None and ("bars" in parts or "grid" in parts):
        print("no --trace: rows of the recorded conversations are left out")
    lab = RoutingMeasurements(given.out.with_name("routing-cells.jsonl"), given.trace, given.jobs, print_progress)
    if "bars" in parts:
        yield from RoutingRows(lab, seeds).rows()
    if "grid" in parts:
        yield from grid_rows(lab, seeds[:1])
