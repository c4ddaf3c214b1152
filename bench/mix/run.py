"""What the accelerator mix saves and how long it takes, beside the best fleet of one kind, Mélange's slices and the greedy
mix; what dividing engines between prefill and decode brings after the traffic turns, and what it brings that decode engines compute
prompts while they have slack.

    python bench/mix/run.py [--out out/bench/mix.json] [--seed 1] [--only mix|roles] [--table FILE --rate R]

With ``--table`` it solves an imported table instead, at R requests a second spread as the file says (Mélange's do) or
evenly, and prints what comes of it.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from convertible import convertible_rows  # noqa: E402 - beside this file
from flip import (  # noqa: E402 - beside this file
    BEST,
    CHATTY,
    ENGINES,
    LONG,
    STARTUP_SECONDS,
    balanced,
    fixed,
    flip,
    saturated,
    settled,
    throughput,
)
from measuring import tabled  # noqa: E402 - beside this file
from planted import WAYS, planted  # noqa: E402 - beside this file
from roofline import ITL_SECONDS, by_knee, objectives, price_lists  # noqa: E402 - beside this file
from routed import kept  # noqa: E402 - beside this file
from table import Row, comparing, goals, measuring, write  # noqa: E402 - one folder up
from workloads import WORKLOADS, dense, histogram, homogeneous, skewed, traffic  # noqa: E402

from fairlead.errors import FairleadError  # noqa: E402
from fairlead.profile_tables import flat, load_profile_table  # noqa: E402
from fairlead.shapes import ShapeGrid  # noqa: E402
from fairlead_autoscaler.mix import Candidate, Mix, MixSettings, candidates_of, plan_mix  # noqa: E402
from fairlead_autoscaler.mix.greedy import deal  # noqa: E402
from fairlead_autoscaler.mix.program import solve  # noqa: E402
from fairlead_sim.capacity import capacity  # noqa: E402
from fairlead_sim.scaling.prefilling import Computing  # noqa: E402
from fairlead_sim.traces import at_rate  # noqa: E402

RESULTS = Path(__file__).parents[1] / "results" / "mix.json"
PARTS = MIX, ROLES = "mix", "roles"
OF_ROLES = "P/D"
"""What the metrics of prefill and decode begin with."""
GRID = ShapeGrid()
RATES = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
SLICES = 4
SLICED_SECONDS = 30.0
SLICED_RATES = (8.0, 64.0)
SKEWED_SEEDS = 4
DENSE = 50
FLIPPED_CALM, FLIPPED_SEEDS = 8_000, 5
"""Requests of each kind below saturation, to see the turn."""
SLACK_DIVISIONS = {LONG: (11, 12, 13, 14), CHATTY: (3, 4, 5, 6)}
"""Where the best division is looked for when decode engines take prompts."""
FLIPPED_FULL = (20_000, 60_000)
"""The same at saturation, to see what is finished: half an hour, and an hour and a quarter."""
ROUTED_PRICES, ROUTED_ITL, ROUTED_RATE, ROUTED_REQUESTS = "hyperscalers", 0.12, 16.0, 3_000
ROUTED_SKEWED, ROUTED_FLEET = "80 % short chat, 20 % documents", {"L4": 8, "H100-80GB": 1}
"""Fleets that are served: of which table, at how many requests a second, and how many."""
PLANTED_SEEDS = 3
_STATIC = MixSettings(change_share=0.0)
"""A mix from scratch: nothing runs, so nothing is charged for changing."""


@dataclass(frozen=True, slots=True)
class Case:
    """One problem and what came of it. ``sliced`` is the cost with slices, and whether it is proven cheapest; None where
    not tried."""

    mix: Mix
    seconds: float
    single: float
    greedy: float
    sliced: float | None = None
    proven: bool = False

    @property
    def ratio(self) -> float:
        """Cost ÷ that of the best fleet of one kind."""
        return self.mix.cost_per_hour / self.single


def solved(rates: Sequence[float], types: Sequence[Candidate], *, slices: bool = False) -> Case:
    """One problem by every method."""
    began = time.perf_counter()
    mix = plan_mix(rates, types, _STATIC)
    seconds = time.perf_counter() - began
    greedy = sum([count * one.cost_per_hour for count, one in zip(deal(rates, types).replicas, types, strict=True)])
    case = Case(mix, seconds, homogeneous(rates, types), greedy)
    if not slices:
        return case
    sliced = solve(rates, types, replace(_STATIC, solve_seconds=SLICED_SECONDS), slices=SLICES)
    assert sliced.replicas is not None
    cost = sum([count * one.cost_per_hour for count, one in zip(sliced.replicas, types, strict=True)])
    return replace(case, sliced=cost, proven=sliced.status == "optimal")


def cases(seed: int) -> Iterator[tuple[str, Case]]:
    """Every problem, with the name of its group."""
    for prices, priced in price_lists().items():
        for itl_seconds in ITL_SECONDS:
            kept_to = objectives(itl_seconds)
            tables = {"": tabled(priced, kept_to), ", by the knee": by_knee(priced, GRID, kept_to)}
            for how, types in tables.items():
                group = f"{prices}, {itl_seconds * 1e3:.0f} ms"
                for rate in RATES:
                    sliced = rate in SLICED_RATES and not how
                    alike = [rate / GRID.size] * GRID.size
                    yield f"{group}, all shapes alike{how}", solved(alike, types, slices=sliced)
                    for workload in WORKLOADS:
                        rates = [rate * share for share in histogram(workload, GRID, seed)]
                        yield f"{group}, six traffics{how}", solved(rates, types, slices=sliced)
    for table in range(SKEWED_SEEDS):
        types = skewed(GRID, seed + table)
        for workload in WORKLOADS:
            shares = histogram(workload, GRID, seed)
            for rate in RATES:
                yield "skewed", solved([rate * share for share in shares], types, slices=rate in SLICED_RATES)
    draw = random.Random(seed)
    for _ in range(DENSE):
        yield "dense", solved(*dense(GRID, draw))


def mean(values: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum([math.log(value) for value in values]) / len(values))


def mix_rows(seed: int, bars: Mapping[str, str]) -> list[Row]:
    """The bar's rows, and those that inform."""
    groups: dict[str, list[Case]] = {}
    for group, case in cases(seed):
        groups.setdefault(group, []).append(case)
    every = [case for group in groups.values() for case in group]
    slowest = max(case.seconds for case in every)
    metric = "solving 10 × 10 shapes × 6 accelerators, the slowest"
    rows = [measuring(metric, "s", slowest, bars[metric])]
    with_slices = [case for case in every if case.sliced is not None]
    worst = max(with_slices, key=lambda case: case.mix.cost_per_hour / (case.sliced or math.inf))
    metric = "cost ÷ binary optimum of 4 slices, the worst"
    rows.append(
        comparing(
            metric, "USD/h", round(worst.mix.cost_per_hour, 6), "4 slices", round(worst.sliced or 0.0, 6), bars[metric]
        )
    )
    share = sum([case.proven for case in with_slices]) / len(with_slices)
    rows.append(
        measuring(
            f"of {len(with_slices)} optima with slices, proven within {SLICED_SECONDS:.0f} s", "share", share, None
        )
    )
    for name, group in groups.items():
        if name == "dense":
            continue
        metric = f"cost ÷ best fleet of one kind, {name}"
        spent, single = mean([case.mix.cost_per_hour for case in group]), mean([case.single for case in group])
        rows.append(comparing(metric, "USD/h", spent, "best of one kind", single, bars[metric]))
        least = min([case.ratio for case in group])
        rows.append(measuring(f"the least of {len(group)} cases, {name}", "ratio", least, None))
        greedy = mean([case.greedy for case in group])
        rows.append(comparing(f"greedy ÷ mix, {name}", "USD/h", greedy, "mix", spent, None))
    fallen = [case for case in every if case.mix.rule != "milp"]
    rows.append(measuring(f"of {len(every)} mixes, not proven cheapest", "mixes", float(len(fallen)), None))
    return rows


def routed_rows(seed: int, bars: Mapping[str, str]) -> list[Row]:
    """Fleets as they were sized, under the traffic that they were sized for: simulated engines behind the gateway's own router."""
    rows: list[Row] = []
    priced, wanted = price_lists()[ROUTED_PRICES], objectives(ROUTED_ITL)
    types = tabled(priced, wanted)
    profiles = {one.profile.name: one.profile for one in priced}
    shares: dict[str, list[float]] = {"by shape": [], "all kinds alike": [], "one kind": []}
    for workload in WORKLOADS:
        rates = [ROUTED_RATE * share for share in histogram(workload, GRID, seed)]
        requests = traffic(workload, ROUTED_RATE, ROUTED_REQUESTS, seed)
        mix = {name: count for name, count in plan_mix(rates, types, _STATIC).replicas.items() if count}
        single = best_single(rates, types)
        fleets = {"by shape": mix, "all kinds alike": mix, "one kind": single}
        for how, fleet in fleets.items():
            share = kept(
                {name: (profiles[name], count) for name, count in fleet.items()},
                requests,
                wanted,
                apart=how == "by shape",
                seed=seed,
            )
            shares[how].append(share)
            named = ", ".join([f"{count} x {name}" for name, count in fleet.items()])
            rows.append(measuring(f"routed, {workload}, {how} ({named}): within the objectives", "share", share, None))
    for how, found in shares.items():
        metric = f"routed, six traffics, {how}: within the objectives, the least"
        rows.append(measuring(metric, "share", min(found), bars.get(metric)))
    requests = traffic(ROUTED_SKEWED, 1.0, ROUTED_REQUESTS, seed)
    fleet = {name: (profiles[name], count) for name, count in ROUTED_FLEET.items()}
    carried = [
        capacity(
            lambda rate, apart=apart: kept(fleet, at_rate(requests, rate), wanted, apart=apart, seed=seed) >= 0.99, 10.0
        )
        for apart in (True, False)
    ]
    metric = "routed, 8 x L4 and 1 x H100, a fifth documents: carried at 99 % by shape ÷ all kinds alike"
    rows.append(comparing(metric, "requests/s", carried[0], "all kinds alike", carried[1], bars.get(metric)))
    return rows


def planted_rows(seed: int) -> list[Row]:
    """A day's rise on two kinds, scaled by the core as it runs."""
    rows: list[Row] = []
    for each in range(seed, seed + PLANTED_SEEDS):
        for way in WAYS:
            found = planted(way, each)
            name = f"scaled, seed {each}, {way}"
            rows.append(measuring(f"{name}: within the objectives", "share", found.attainment, None))
            rows.append(measuring(f"{name}: cost of two hours", "USD", found.cost, None))
            rows.append(measuring(f"{name}: changes of direction", "per hour", found.turns_per_hour, None))
    return rows


def best_single(rates: Sequence[float], types: Sequence[Candidate]) -> dict[str, int]:
    """The cheapest fleet of one type that serves every shape."""
    found = {
        one.name: math.ceil(
            sum([rate / each for rate, each in zip(rates, one.throughput, strict=True) if rate > 0.0]) - 1e-9
        )
        for one in types
        if all(each > 0.0 for rate, each in zip(rates, one.throughput, strict=True) if rate > 0.0)
    }
    costs = {one.name: one.cost_per_hour for one in types}
    best = min(found, key=lambda name: found[name] * costs[name])
    return {best: found[best]}


def flip_rows(seed: int, bars: Mapping[str, str]) -> list[Row]:
    """Prefill and decode after the traffic turned. Where several seeds are run, the worst counts."""
    rows: list[Row] = []
    slowest, lost, kept = 0.0, 0, 1.0
    for each in range(seed, seed + FLIPPED_SEEDS):
        made, turned = flip(0.85, FLIPPED_CALM, BEST[LONG], each)
        calm = balanced(made)
        near = settled(calm, turned, BEST[CHATTY])
        slowest = max(slowest, math.inf if near is None else near - STARTUP_SECONDS)
        lost, kept = lost + calm.abandoned + calm.lost, min(kept, calm.attainment)
    metric = "P/D: until within one engine of the best division, less a start"
    rows.append(measuring(metric, "s", slowest, bars[metric]))
    metric = "P/D: requests whose prefill timed out"
    rows.append(measuring(metric, "requests", float(lost), bars[metric]))
    rows += attainment_rows(seed, kept)
    for shape, name in ((LONG, "8k in, 100 out"), (CHATTY, "1k in, 800 out")):
        each_split = {count: saturated(count, shape, seed) for count in {8, *range(BEST[shape] - 1, BEST[shape] + 2)}}
        best = max(each_split, key=lambda count: each_split[count])
        rows.append(measuring(f"P/D: engines that prefill in the best division, {name}", "engines", float(best), None))
        metric = f"P/D: throughput of the best division ÷ 1:1, {name}"
        rows.append(comparing(metric, "requests/s", each_split[best], "1:1", each_split[8], bars.get(metric)))
        most = {
            count: saturated(count, shape, seed, computing=Computing.SLACK) for count in (8, *SLACK_DIVISIONS[shape])
        }
        best = max(most, key=lambda count: most[count])
        metric = f"P/D: with convertible decoders, engines that prefill in the best division, {name}"
        rows.append(measuring(metric, "engines", float(best), None))
        metric = f"P/D: throughput of the best division, {name}: convertible decoders ÷ without"
        rows.append(comparing(metric, "requests/s", most[best], "without", max(each_split.values()), None))
        metric = f"P/D: throughput of 1:1, {name}: convertible decoders ÷ without"
        rows.append(comparing(metric, "requests/s", most[8], "without", each_split[8], None))
    for requests in FLIPPED_FULL:
        rows += full_rows(seed, requests, bars)
    return rows


def attainment_rows(seed: int, kept: float) -> list[Row]:
    """Within the objectives at 85 %, ``kept`` of them balanced; beside it without convertible decoders, and divided 1:1."""
    what = "P/D: within the objectives, the turn included, at 85 %"
    plain = [
        balanced(flip(0.85, FLIPPED_CALM, BEST[LONG], each, computing=Computing.APART)[0]).attainment
        for each in range(seed, seed + FLIPPED_SEEDS)
    ]
    rows = [comparing(what, "share", kept, "every prompt handed over", min(plain), None)]
    halves = {
        how: fixed(flip(0.85, FLIPPED_CALM, ENGINES // 2, seed, computing=how)[0]).attainment
        for how in (Computing.SLACK, Computing.APART)
    }
    metric = "P/D: within the objectives, the same divided 1:1, convertible decoders"
    rows.append(
        comparing(metric, "share", halves[Computing.SLACK], "every prompt handed over", halves[Computing.APART], None)
    )
    return rows


def full_rows(seed: int, requests: int, bars: Mapping[str, str]) -> list[Row]:
    """What is finished over the turn at saturation. The bar is against engines that do as their role says."""
    ours: dict[Computing, float] = {}
    halves: dict[Computing, float] = {}
    for how in (Computing.SLACK, Computing.APART):
        ours[how] = throughput(balanced(flip(1.0, requests, BEST[LONG], seed, patience=1e9, computing=how)[0]))
        slow = flip(1.0, requests, ENGINES // 2, seed, patience=1e9, computing=how)[0]
        halves[how] = throughput(fixed(replace(slow, seconds=3.0 * slow.seconds)))
    what = f"P/D: throughput over the turn, {requests} requests of each kind"
    metric = f"{what}: balanced ÷ 1:1"
    base = halves[Computing.APART]
    return [
        comparing(metric, "requests/s", ours[Computing.SLACK], "1:1", base, bars[metric]),
        comparing(
            f"{what}: balanced, every prompt handed over ÷ 1:1", "requests/s", ours[Computing.APART], "1:1", base, None
        ),
        comparing(
            f"{what}: balanced ÷ 1:1, convertible decoders in both",
            "requests/s",
            ours[Computing.SLACK],
            "1:1",
            halves[Computing.SLACK],
            None,
        ),
    ]


def imported(file: Path, rate: float | None) -> None:
    """Solve a table that somebody else made."""
    table = load_profile_table(file)
    types = candidates_of(table)
    shapes = len(types[0].throughput)
    rates = list(flat(table.rates)) if table.rates is not None else [1.0 / shapes] * shapes
    if rate is not None:
        rates = [rate * one / sum(rates) for one in rates]
    case = solved(rates, types, slices=True)
    print(case.mix.reason)
    proven = "proven" if case.proven else "not proven"
    print(
        f"{SLICES} slices: {case.sliced:.2f} an hour ({proven}); best of one kind: {case.single:.2f}; greedy: {case.greedy:.2f}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every goal holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/bench/mix.json"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", choices=PARTS, help="one part; the other's rows are those of bench/results/mix.json")
    parser.add_argument("--table", type=Path)
    parser.add_argument("--rate", type=float)
    asked = parser.parse_args(arguments)
    if asked.rate is not None and not 0.0 < asked.rate < math.inf:
        parser.error(f"--rate: requests a second, more than none, and not {asked.rate:g}")
    if asked.table is not None:
        try:
            imported(asked.table, asked.rate)
        except FairleadError as error:
            parser.exit(2, f"{error}\n")
        return 0
    bars = goals("mix")
    rows: list[Row] = []
    if asked.only != ROLES:
        rows += [*mix_rows(asked.seed, bars), *routed_rows(asked.seed, bars), *planted_rows(asked.seed)]
    if asked.only != MIX:
        rows += [*flip_rows(asked.seed, bars), *convertible_rows(asked.seed)]
    if asked.only is not None:
        before = [Row(**row) for row in json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]]
        other = [row for row in before if row.metric.startswith(OF_ROLES) == (asked.only == MIX)]
        rows = [*rows, *other] if asked.only == MIX else [*other, *rows]
    write("mix", rows, seed=asked.seed, file=asked.out)
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
