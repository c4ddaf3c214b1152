"""Presets × traffic × gateways × staleness: the share within the objective at 0.85 × the dualmap
preset's capacity.

The bound of a cell is Wilson's, of 95 %, for as many independent requests as there were sessions'
worth of them: requests of one burst are late together, so a tenth of their number is taken.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean

from fairlead_bench.measurement_cache import Measured
from fairlead_bench.results import ResultRow, load_goals, value_row
from fairlead_bench.routing.measurement import REQUESTS_AN_ENGINE, RoutingCell, RoutingMeasurements
from fairlead_gateway.routing import PRESETS
from fairlead_sim.workload.generators import FAMILIES

SHARE = 0.85
STALE_SECONDS = {"fresh": (0.0, 0.0), "0.5 s": (0.5, 0.5), "5 s": (5.0, 5.0)}
GATEWAYS = (1, 3, 8)
LENGTH = 0.5
"""Share of the requests with which a capacity is searched. Why: there are 585 cells."""
INDEPENDENT = 0.1
Z = 1.96


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
            yield value_row(metric(family, gateways, stale, preset), "share", share, None)
    least = "grid, worst cell: default ÷ best preset, lower bounds"
    yield value_row(least, "ratio", worst, load_goals("routing").get(least))


def metric(family: str, gateways: int, stale: str, preset: str) -> str:
    """Returns the name of a cell's row."""
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
