"""The rows of prefill and decode after the traffic turned (``flip``), and of decode engines that
take prompts (``convertible``).

Every number comes of a call by itself, so that they can be worked out side by side (``each``).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import repeat

from fairlead_bench.mix.decode_slack import convertible_rows
from fairlead_bench.mix.traffic_shift import (
    ENGINES,
    LONG,
    OPTIMUM_SHARE,
    SHORT_PROMPTS,
    STARTUP_SECONDS,
    balanced_controller,
    fixed_controller,
    run_shift,
    saturated_throughput,
    settling_seconds,
    throughput,
)
from fairlead_bench.results import MapFunction, ResultRow, ratio_row, value_row
from fairlead_sim.autoscaling.routing.prefill_placement import PrefillPolicy

SEEDS = 5
QUIET_SECONDS = 8_000
"""Requests of each kind below saturation, to see the turn."""
LOAD = 0.85
DIVISIONS = {shape: (8, *range(best - 1, best + 2)) for shape, best in OPTIMUM_SHARE.items()}
SLACK_DIVISIONS = {LONG: (8, 11, 12, 13, 14), SHORT_PROMPTS: (8, 3, 4, 5, 6)}
"""Divisions among which the best one is searched, 1:1 first, and those for decode engines that take
prompts."""
FULL = (20_000, 60_000)
"""Requests of each kind at saturation, to see what is finished: half an hour, and an hour and a
quarter."""
CROWDED_DIVISIONS = 1.3
"""Times what the best division carries, as where what one carries is measured."""


def measure_shift(seed: int, computing: PrefillPolicy) -> tuple[float, int, float]:
    """Measures a shift under the core: seconds, requests and the share within the SLOs.

    The seconds count until the ratio is within one engine of the best division. The requests are
    the lost and the abandoned ones.
    """
    made, turned = run_shift(LOAD, QUIET_SECONDS, OPTIMUM_SHARE[LONG], seed, computing=computing)
    calm = balanced_controller(made)
    near = settling_seconds(calm, turned, OPTIMUM_SHARE[SHORT_PROMPTS])
    return math.inf if near is None else near, calm.abandoned + calm.lost, calm.attainment


def run_halved(seed: int, computing: PrefillPolicy) -> float:
    """Returns the share within the SLOs with a division of 1:1."""
    return fixed_controller(run_shift(LOAD, QUIET_SECONDS, ENGINES // 2, seed, computing=computing)[0]).attainment


def shift_rows(seed: int, bars: Mapping[str, str], each: MapFunction) -> list[ResultRow]:
    """Returns rows on the speed of the division and the requests that wait for it; the worst of
    several seeds."""
    seeds = range(seed, seed + SEEDS)
    slack, apart = (each(measure_shift, seeds, repeat(how)) for how in (PrefillPolicy.SLACK, PrefillPolicy.APART))
    halves = each(run_halved, repeat(seed), (PrefillPolicy.SLACK, PrefillPolicy.APART))
    nears, lost, kept = zip(*slack, strict=True)
    plain = [share for _, _, share in apart]
    metric = "P/D: until within one engine of the best division, less a start"
    rows = [value_row(metric, "s", max(nears) - STARTUP_SECONDS, bars[metric])]
    metric = "P/D: requests whose prefill timed out"
    rows.append(value_row(metric, "requests", float(sum(lost)), bars[metric]))
    metric = "P/D: within the objectives, the turn included, at 85 %"
    rows.append(ratio_row(metric, "share", min(kept), "every prompt handed over", min(plain), None))
    metric = "P/D: within the objectives, the same divided 1:1, convertible decoders"
    rows.append(ratio_row(metric, "share", next(halves), "every prompt handed over", next(halves), None))
    return rows


def capacity_of(count: int, shape: tuple[int, int], seed: int, computing: PrefillPolicy) -> float:
    """Requests per second that a division with so many engines for prefill finishes of one kind."""
    return saturated_throughput(count, shape, seed, computing=computing)


def division_rows(seed: int, bars: Mapping[str, str], each: MapFunction) -> list[ResultRow]:
    """Returns rows on the capacity of divisions, for each kind of traffic."""
    rows: list[ResultRow] = []
    shapes = ((LONG, "8k in, 100 out"), (SHORT_PROMPTS, "1k in, 800 out"))
    plain, slack = (
        [each(capacity_of, counts[shape], repeat(shape), repeat(seed), repeat(how)) for shape, _ in shapes]
        for counts, how in ((DIVISIONS, PrefillPolicy.APART), (SLACK_DIVISIONS, PrefillPolicy.SLACK))
    )
    for (shape, name), without, with_slack in zip(shapes, plain, slack, strict=True):
        split = dict(zip(DIVISIONS[shape], without, strict=True))
        best = max(split, key=lambda count: split[count])
        rows.append(value_row(f"P/D: engines that prefill in the best division, {name}", "engines", float(best), None))
        metric = f"P/D: throughput of the best division ÷ 1:1, {name}"
        rows.append(ratio_row(metric, "requests/s", split[best], "1:1", split[8], bars.get(metric)))
        most = dict(zip(SLACK_DIVISIONS[shape], with_slack, strict=True))
        best = max(most, key=lambda count: most[count])
        metric = f"P/D: with convertible decoders, engines that prefill in the best division, {name}"
        rows.append(value_row(metric, "engines", float(best), None))
        metric = f"P/D: throughput of the best division, {name}: convertible decoders ÷ without"
        rows.append(ratio_row(metric, "requests/s", most[best], "without", max(split.values()), None))
        metric = f"P/D: throughput of 1:1, {name}: convertible decoders ÷ without"
        rows.append(ratio_row(metric, "requests/s", most[8], "without", split[8], None))
    return rows


def finished_share(load: float, requests: int, prefill: int | None, seed: int, computing: PrefillPolicy) -> float:
    """Requests per second over the turn, divided as that says to the end, or by the core (None)."""
    began = OPTIMUM_SHARE[LONG] if prefill is None else prefill
    made = run_shift(load, requests, began, seed, patience=1e9, computing=computing)[0]
    made = replace(made, seconds=3.0 * made.seconds)  # to the end of what is left
    return throughput(balanced_controller(made) if prefill is None else fixed_controller(made))


def full_rows(seed: int, bars: Mapping[str, str], each: MapFunction) -> list[ResultRow]:
    """Returns rows on finished requests over the shift at saturation. The goal compares with
    engines that keep to their role."""
    cases = [(1.0, requests) for requests in FULL] + [(CROWDED_DIVISIONS, FULL[0])]
    both = (PrefillPolicy.SLACK, PrefillPolicy.APART)
    calls = [(*case, prefill, how) for case in cases for prefill in (None, ENGINES // 2) for how in both]
    loads, requests, prefills, ways = zip(*calls, strict=True)
    found = dict(zip(calls, each(finished_share, loads, requests, prefills, repeat(seed), ways), strict=True))
    rows: list[ResultRow] = []
    for load, count in cases:
        what = f"P/D: throughput over the turn, {count} requests of each kind"
        if load != 1.0:
            what += f" at {load} times the rate"
        ours = {how: found[load, count, None, how] for how in both}
        halves = {how: found[load, count, ENGINES // 2, how] for how in both}
        base, metric = halves[PrefillPolicy.APART], f"{what}: balanced ÷ 1:1"
        rows.append(ratio_row(metric, "requests/s", ours[PrefillPolicy.SLACK], "1:1", base, bars.get(metric)))
        metric = f"{what}: balanced, every prompt handed over ÷ 1:1"
        rows.append(ratio_row(metric, "requests/s", ours[PrefillPolicy.APART], "1:1", base, None))
        metric = f"{what}: balanced ÷ 1:1, convertible decoders in both"
        rows.append(
            ratio_row(metric, "requests/s", ours[PrefillPolicy.SLACK], "1:1", halves[PrefillPolicy.SLACK], None)
        )
    return rows


ROLE_ROWS: tuple[Callable[[int, Mapping[str, str], MapFunction], list[ResultRow]], ...] = (
    shift_rows,
    division_rows,
    full_rows,
    convertible_rows,
)
"""Whatever there is of them, in the order of the table."""
